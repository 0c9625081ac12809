//! The shapes of the configuration files.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use toml::Spanned;

use super::access::{Admission, RawAccess};
use super::login::TlsFiles;
use super::service::{Direct, PartService};
use super::source::{apart, apart_if_any};
use super::{BrokerUrl, Front, HttpLimits, UpstreamUrl};
use crate::message::Qos;
use crate::topic::{Id, Topic};

/// A whole number of a file within bounds, so that the file's own error names the place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Within<const MIN: u64, const MAX: u64>(u64);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Within<MIN, MAX> {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        struct Visitor<const MIN: u64, const MAX: u64>;

        impl<const MIN: u64, const MAX: u64> serde::de::Visitor<'_> for Visitor<MIN, MAX> {
            type Value = Within<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_u64<E: serde::de::Error>(
                self,
                found: u64,
            ) -> std::result::Result<Self::Value, E> {
                if (MIN..=MAX).contains(&found) {
                    Ok(Within(found))
                } else {
                    Err(E::invalid_value(
                        serde::de::Unexpected::Unsigned(found),
                        &self,
                    ))
                }
            }

            fn visit_i64<E: serde::de::Error>(
                self,
                found: i64,
            ) -> std::result::Result<Self::Value, E> {
                match u64::try_from(found) {
                    Ok(found) => self.visit_u64(found),
                    Err(_) => Err(E::invalid_value(
                        serde::de::Unexpected::Signed(found),
                        &self,
                    )),
                }
            }
        }
        deserializer.deserialize_u64(Visitor::<MIN, MAX>)
    }
}

impl<const MIN: u64, const MAX: u64> Within<MIN, MAX> {
    pub(super) fn millis(self) -> Duration {
        Duration::from_millis(self.0)
    }

    pub(super) fn seconds(self) -> Duration {
        Duration::from_secs(self.0)
    }

    // Every use has a MAX that fits; `usize` has 32 bits at least.
    pub(super) fn size(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

pub(super) type TimeoutMs = Within<1, 600_000>;
type KeepAliveS = Within<5, 3_600>;
type BodyBytes = Within<1, 67_108_864>;
type BufferedBytes = Within<1024, 4_294_967_295>;
pub(super) type Count = Within<1, 65_535>;

/// api_1's file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Gateway {
    pub broker: Option<BrokerUrl>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub tls: TlsFiles,
    pub listen: Option<ListenAddress>,
    pub id: Option<Id>,
    pub front: Option<Front>,
    pub keep_alive_s: Option<KeepAliveS>,
    pub max_waiting: Option<Count>,
    pub presence: Option<bool>,
    pub http: Http,
    pub access: RawAccess,
    pub route: Option<Vec<Route>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Http {
    max_connections: Option<Count>,
    max_head_bytes: Option<Within<1024, 1_048_576>>,
    max_body_bytes: Option<BodyBytes>,
    max_buffered_bytes: Option<BufferedBytes>,
    head_timeout_ms: Option<TimeoutMs>,
    body_timeout_ms: Option<TimeoutMs>,
    idle_timeout_ms: Option<TimeoutMs>,
}

impl Http {
    pub(super) fn limits(self) -> HttpLimits {
        let default = HttpLimits::default();
        HttpLimits {
            max_connections: self
                .max_connections
                .map_or(default.max_connections, Within::size),
            max_head_bytes: self
                .max_head_bytes
                .map_or(default.max_head_bytes, Within::size),
            max_body_bytes: self
                .max_body_bytes
                .map_or(default.max_body_bytes, Within::size),
            max_buffered_bytes: self
                .max_buffered_bytes
                .map_or(default.max_buffered_bytes, Within::size),
            head_timeout: self
                .head_timeout_ms
                .map_or(default.head_timeout, Within::millis),
            body_timeout: self
                .body_timeout_ms
                .map_or(default.body_timeout, Within::millis),
            idle_timeout: self
                .idle_timeout_ms
                .map_or(default.idle_timeout, Within::millis),
        }
    }
}

/// A route, whole and checked, and where in the file what may clash with others stands.
#[derive(Deserialize)]
#[serde(try_from = "RawRoute")]
pub(super) struct Route {
    pub route: super::Route,
    pub path_at: Range<usize>,
    pub response_topic_at: Range<usize>,
    pub tokens_at: Range<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    path: Spanned<String>,
    #[serde(default)]
    methods: Vec<MethodName>,
    #[serde(default)]
    mode: ModeName,
    request_topic: Template,
    response_topic: Option<Spanned<Topic>>,
    timeout_ms: Option<TimeoutMs>,
    qos: Option<Within<0, 1>>,
    access: Option<AccessName>,
    tokens: Option<Spanned<Vec<String>>>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum AccessName {
    Public,
    Token,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum ModeName {
    #[default]
    Json,
    Http,
}

impl TryFrom<RawRoute> for Route {
    type Error = String;

    fn try_from(raw: RawRoute) -> std::result::Result<Route, String> {
        let (path, path_at) = apart(raw.path);
        if !path.starts_with('/') {
            return Err(format!(
                "path: found {path:?}, allowed is a pattern such as /a/{{b}}"
            ));
        }
        let mut alone = matchit::Router::new();
        alone.insert(path.as_str(), ()).map_err(|error| {
            format!("path: found {path:?} ({error}), allowed is a pattern such as /a/{{b}}")
        })?;
        let (response_topic, response_topic_at) = apart_if_any(raw.response_topic);
        let (tokens, tokens_at) = apart_if_any(raw.tokens);
        for name in raw.request_topic.0.parameters() {
            if !path.contains(&format!("{{{name}}}")) {
                return Err(format!(
                    "request_topic: found {{{name}}}, which path does not have"
                ));
            }
        }
        let mode = match (raw.mode, response_topic) {
            (ModeName::Http, None) => super::Mode::Http,
            (ModeName::Http, Some(_)) => {
                return Err("response_topic: only a route with mode = \"json\" has one".into());
            }
            (ModeName::Json, Some(response_topic)) => super::Mode::Json { response_topic },
            (ModeName::Json, None) => {
                return Err("response_topic: a route with mode = \"json\" needs one".into());
            }
        };
        let admission = match (raw.access, tokens) {
            (Some(AccessName::Public), Some(_)) => {
                return Err("tokens: a route with access = \"public\" needs none".into());
            }
            (Some(AccessName::Public), None) => Admission::Public,
            (_, Some(names)) if names.is_empty() => {
                return Err("tokens: found none; without the key, every token is admitted".into());
            }
            (_, Some(names)) => Admission::Tokens(names),
            (_, None) => Admission::AnyToken,
        };
        let route = super::Route {
            admission,
            path,
            methods: raw.methods.into_iter().map(|method| method.0).collect(),
            request_topic: raw.request_topic.0,
            mode,
            timeout: raw
                .timeout_ms
                .map_or(super::DEFAULT_TIMEOUT, Within::millis),
            qos: match raw.qos {
                Some(Within(1)) => Qos::AtLeastOnce,
                _ => Qos::AtMostOnce,
            },
        };
        Ok(Route {
            route,
            path_at,
            response_topic_at,
            tokens_at,
        })
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Template(super::TopicTemplate);

impl TryFrom<String> for Template {
    type Error = crate::topic::InvalidTopic;

    fn try_from(text: String) -> std::result::Result<Template, Self::Error> {
        super::TopicTemplate::new(&text).map(Template)
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct MethodName(pub Method);

impl TryFrom<String> for MethodName {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<MethodName, String> {
        Method::from_bytes(text.as_bytes())
            .map(MethodName)
            .map_err(|_| format!("found {text:?}, allowed is a method such as GET"))
    }
}

/// The agent's file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Agent {
    pub broker: Option<BrokerUrl>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub tls: TlsFiles,
    pub upstream: Option<UpstreamUrl>,
    pub id: Option<Id>,
    pub keep_alive_s: Option<KeepAliveS>,
    pub workers: Option<Count>,
    pub queue: Option<Count>,
    pub timeout_ms: Option<TimeoutMs>,
    pub max_timeout_ms: Option<TimeoutMs>,
    pub max_body_bytes: Option<BodyBytes>,
    pub max_buffered_bytes: Option<BufferedBytes>,
    pub presence_refresh_s: Option<Within<1, 3_600>>,
    pub reply_prefixes: Option<Vec<String>>,
    pub direct: Direct,
    pub service: Option<Vec<PartService>>,
}

/// An address to listen on.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct ListenAddress(pub SocketAddr);

impl TryFrom<String> for ListenAddress {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<ListenAddress, String> {
        super::resolve(&text).map(ListenAddress).ok_or_else(|| {
            format!("found {text:?}, allowed is \"ADDRESS:PORT\", e.g. \"127.0.0.1:5000\"")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::source::parse;

    fn gateway_error(text: &str) -> String {
        parse::<Gateway>(text, Path::new("api_1.toml"))
            .err()
            .unwrap()
            .to_string()
    }

    #[test]
    fn a_bad_value_names_file_line_key_and_what_is_allowed() {
        for (text, place, parts) in [
            (
                "\nmax_waiting = 0",
                "api_1.toml line 2, key max_waiting:",
                ["`0`", "from 1 to 65535"],
            ),
            (
                "max_waiting = -3",
                "api_1.toml line 1, key max_waiting:",
                ["`-3`", "from 1 to 65535"],
            ),
            (
                "[[route]]\ntimeout_ms = \"3s\"",
                "api_1.toml line 2, key timeout_ms:",
                ["\"3s\"", "from 1 to 600000"],
            ),
            (
                "[[route]]\nrequest_topic = \"a/#\"",
                "api_1.toml line 2, key request_topic:",
                ["a/#", "wildcard"],
            ),
            (
                "[[route]]\npath = \"ping\"\nrequest_topic = \"a\"\nresponse_topic = \"b\"",
                "api_1.toml line 1: path:",
                ["\"ping\"", "/a/{b}"],
            ),
            (
                "id = \"a/b\"",
                "api_1.toml line 1, key id:",
                ["a/b", "1 to 64"],
            ),
            (
                "front = \"nginx\"",
                "api_1.toml line 1, key front:",
                ["nginx", "guarded"],
            ),
            (
                "listen = \"5000\"",
                "api_1.toml line 1, key listen:",
                ["5000", "ADDRESS:PORT"],
            ),
            (
                "[http]\n\nmax_conections = 3",
                "api_1.toml line 3, key max_conections:",
                ["unknown field", "max_connections"],
            ),
            ("broker = ", "api_1.toml line 1, key broker:", ["", ""]),
        ] {
            let error = gateway_error(text);
            assert!(error.starts_with(place), "{text:?}: {error}");
            for part in parts {
                assert!(error.contains(part), "{text:?}: {error}");
            }
        }
    }

    #[test]
    fn a_bad_broker_url_does_not_show_its_password() {
        for broker in ["tcp://me:hush@host", "me:hush@host", "mqtt:/me:hush@host"] {
            let error = gateway_error(&format!("broker = {broker:?}"));
            assert!(error.contains("mqtt://"), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
