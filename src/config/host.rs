//! Names that lead to agents and services.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::access::{AccessName, admission};
use super::values::{MethodName, TimeoutMs, Within, apart, apart_if_any};
use crate::base::topic::Id;
use crate::gateway::{DEFAULT_TIMEOUT, Route, TopicTemplate};
use crate::wire::Qos;

/// A name, whole and checked, and where in the file what may clash with others stands.
#[derive(Deserialize)]
#[serde(try_from = "RawHost")]
pub(super) struct Host {
    pub host: crate::gateway::Host,
    pub name_at: Range<usize>,
    pub tokens_at: Range<usize>,
    pub users_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHost {
    name: Spanned<String>,
    agent: Option<Id>,
    service: Option<Id>,
    #[serde(default)]
    methods: Vec<MethodName>,
    timeout_ms: Option<TimeoutMs>,
    qos: Option<Within<0, 1>>,
    access: Option<AccessName>,
    tokens: Option<Spanned<Vec<String>>>,
    users_file: Option<PathBuf>,
    rewrite: Option<bool>,
}

impl TryFrom<RawHost> for Host {
    type Error = String;

    fn try_from(raw: RawHost) -> Result<Host, String> {
        let (text, name_at) = apart(raw.name);
        let (tokens, tokens_at) = apart_if_any(raw.tokens);
        let name = host_name(&text).ok_or_else(|| {
            format!("name: found {text:?}, allowed is a host name such as \"shed.example.org\", without a port, or \"*.example.org\" for every name with one label more")
        })?;
        let topic = match (raw.agent, raw.service, name.starts_with("*.")) {
            (None, None, true) => Some(format!(
                "recado/agents/{{{}}}/request",
                crate::gateway::Host::LABEL
            )),
            (None, None, false) => None,
            (Some(id), None, false) => Some(format!("recado/agents/{id}/request")),
            (None, Some(service), false) => Some(format!("recado/services/{service}/request")),
            (Some(_), Some(_), _) => {
                return Err("found agent and service, allowed is one of them".into());
            }
            (_, _, true) => {
                return Err("a name with * leads to the agent whose id stands there, and to nothing else: agent and service are not allowed".into());
            }
        };
        let is_bare = raw.methods.is_empty()
            && raw.timeout_ms.is_none()
            && raw.qos.is_none()
            && raw.rewrite.is_none();
        let is_open = raw.access.is_none() && tokens.is_none() && raw.users_file.is_none();
        if topic.is_none() && !(is_bare && is_open) {
            return Err("a name without agent and service leads to the paths of the gateway, whose routes have these settings".into());
        }
        let admission = admission(raw.access, tokens, raw.users_file.as_ref())?;
        let route = topic.map(|topic| TopicTemplate::new(&topic)).transpose();
        let route = route
            .map_err(|error| error.to_string())?
            .map(|topic| Route {
                methods: raw.methods.into_iter().map(|method| method.0).collect(),
                timeout: raw.timeout_ms.map_or(DEFAULT_TIMEOUT, Within::millis),
                qos: match raw.qos {
                    Some(Within(1)) => Qos::AtLeastOnce,
                    _ => Qos::AtMostOnce,
                },
                admission,
                rewrite: raw.rewrite.unwrap_or(true),
                ..Route::at_name(topic)
            });
        Ok(Host {
            host: crate::gateway::Host { name, route },
            name_at,
            tokens_at,
            users_file: raw.users_file,
        })
    }
}

// A name in the form in which it is looked up.
fn host_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let rest = name.strip_prefix("*.").unwrap_or(&name);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(fits);
    let is_name = rest.len() <= 253 && rest.split('.').all(is_label);
    let is_here = name == "localhost" || rest.parse::<Ipv4Addr>().is_ok();
    (is_name && !is_here).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<crate::gateway::Host, String> {
        let parsed = toml::from_str::<Host>(text);
        parsed
            .map(|host| host.host)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_lead_to_agents_services_or_the_gateway() {
        for (text, name, topic) in [
            (
                "name = \"Shed.Example.org.\"\nagent = \"shed.lan\"",
                "shed.example.org",
                Some("recado/agents/shed.lan/request"),
            ),
            (
                "name = \"shop\"\nservice = \"web\"\nmethods = [\"GET\"]",
                "shop",
                Some("recado/services/web/request"),
            ),
            (
                "name = \"*.localhost\"",
                "*.localhost",
                Some("recado/agents/{id}/request"),
            ),
            ("name = \"gate.example.org\"", "gate.example.org", None),
        ] {
            let host = parse(text).unwrap();
            assert_eq!(host.name, name);
            let found = host.route.map(|route| route.request_topic.to_string());
            assert_eq!(found.as_deref(), topic, "{text}");
        }
    }

    #[test]
    fn names_that_can_not_be_meant_are_refused() {
        for (text, hint) in [
            ("name = \"shed.example.org:5000\"", "without a port"),
            ("name = \"http://shed\"", "host name"),
            ("name = \"\"", "host name"),
            ("name = \"*\"", "host name"),
            ("name = \"a.*.b\"", "host name"),
            ("name = \"*.*.b\"", "host name"),
            ("name = \"a..b\"", "host name"),
            ("name = \"127.0.0.1\"", "host name"),
            ("name = \"[::1]\"", "host name"),
            ("name = \"localhost\"", "host name"),
            ("name = \"caf\u{e9}.example\"", "host name"),
            ("name = \"*.a\"\nagent = \"b\"", "with *"),
            (
                "name = \"a\"\nagent = \"b\"\nservice = \"c\"",
                "one of them",
            ),
            ("name = \"a\"\naccess = \"public\"", "the gateway"),
            ("name = \"a\"\ntimeout_ms = 1", "the gateway"),
            ("name = \"a\"\nagent = \"b/c\"", "b/c"),
            ("agent = \"b\"", "name"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
