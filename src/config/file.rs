//! The shapes of the configuration files.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::access::{AccessName, RawAccess, admission};
use super::host::Host;
use super::login::Websocket;
use super::service::{Direct, PartService};
use super::values::{
    BodyBytes, BrokerList, BufferedBytes, Count, EveryMs, IdleMs, InlineBytes, KeepAliveS,
    ListenAddress, LogLevel, MethodName, ProxySetting, Streams, Template, TimeoutMs, WindowBytes,
    Within, apart, apart_if_any,
};
use crate::base::scheduling::Scheduling;
use crate::base::topic::{Id, Topic};
use crate::front::{FrontKind, HttpLimits};
use crate::gateway::{DEFAULT_TIMEOUT, Mode, Part};
use crate::link::{BrokerMode, Prefix, TlsFiles};
use crate::stream::StreamLimits;
use crate::upstream::UpstreamUrl;
use crate::wire::Qos;

/// api_1's file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Gateway {
    pub broker: Option<BrokerList>,
    pub brokers: BrokersPart,
    pub log: Option<LogLevel>,
    pub scheduling: Option<Scheduling>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub tls: TlsFiles,
    pub proxy: Option<ProxySetting>,
    pub websocket: Websocket,
    pub listen: Option<ListenAddress>,
    pub id: Option<Id>,
    pub front: Option<FrontKind>,
    pub keep_alive_s: Option<KeepAliveS>,
    pub max_waiting: Option<Count>,
    pub prefix: Option<Prefix>,
    pub presence: PresencePart,
    pub http: Http,
    pub access: RawAccess,
    pub route: Option<Vec<Route>>,
    pub host: Option<Vec<Host>>,
    pub strict_hosts: Option<bool>,
    pub via: Option<bool>,
}

/// What is believed of who is there: `presence = false`, or a table.
#[derive(Default)]
pub(super) struct PresencePart {
    pub is_relied_upon: Option<bool>,
    pub filter: Option<Part>,
    pub max_agents: Option<Within<1, 10_000_000>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct PresenceTable {
    enabled: Option<bool>,
    filter: Option<Part>,
    max_agents: Option<Within<1, 10_000_000>>,
}

impl<'de> Deserialize<'de> for PresencePart {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = PresencePart;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("true, false, or a table with filter and max_agents")
            }

            fn visit_bool<E>(self, enabled: bool) -> std::result::Result<PresencePart, E> {
                Ok(PresencePart {
                    is_relied_upon: Some(enabled),
                    ..PresencePart::default()
                })
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                map: A,
            ) -> std::result::Result<PresencePart, A::Error> {
                let map = serde::de::value::MapAccessDeserializer::new(map);
                let table = PresenceTable::deserialize(map)?;
                Ok(PresencePart {
                    is_relied_upon: table.enabled,
                    filter: table.filter,
                    max_agents: table.max_agents,
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What several brokers are for.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BrokersPart {
    pub mode: Option<BrokerMode>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Http {
    max_connections: Option<Count>,
    max_head_bytes: Option<Within<1024, 1_048_576>>,
    max_body_bytes: Option<BodyBytes>,
    inline_bytes: Option<InlineBytes>,
    max_streams: Option<Streams>,
    window_bytes: Option<WindowBytes>,
    stream_idle_ms: Option<IdleMs>,
    max_buffered_bytes: Option<BufferedBytes>,
    head_timeout_ms: Option<TimeoutMs>,
    body_timeout_ms: Option<TimeoutMs>,
    idle_timeout_ms: Option<TimeoutMs>,
}

impl Http {
    pub(super) fn streams(&self) -> StreamLimits {
        stream_limits(
            self.inline_bytes,
            self.max_streams,
            self.window_bytes,
            self.stream_idle_ms,
        )
    }

    pub(super) fn limits(self) -> HttpLimits {
        let default = HttpLimits::default();
        // Each stream has a connection, and the short requests beside them need some too.
        let beside = |streams: Streams| default.max_connections.max(streams.size() + 64);
        let connections = self.max_streams.map_or(default.max_connections, beside);
        HttpLimits {
            max_connections: self.max_connections.map_or(connections, Within::size),
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

/// The bounds of streams, as a file has them.
pub(super) fn stream_limits(
    inline_bytes: Option<InlineBytes>,
    max_streams: Option<Streams>,
    window_bytes: Option<WindowBytes>,
    stream_idle_ms: Option<IdleMs>,
) -> StreamLimits {
    let default = StreamLimits::default();
    let forever = |idle: Duration| Some(idle).filter(|idle| !idle.is_zero());
    StreamLimits {
        inline_bytes: inline_bytes.map_or(default.inline_bytes, Within::size),
        max_streams: max_streams.map_or(default.max_streams, Within::size),
        window: window_bytes.map_or(default.window, Within::size),
        idle: stream_idle_ms
            .map(Within::millis)
            .map_or(default.idle, forever),
    }
}

/// A route, whole and checked, and where in the file what may clash with others stands.
#[derive(Deserialize)]
#[serde(try_from = "RawRoute")]
pub(super) struct Route {
    pub route: crate::gateway::Route,
    pub path_at: Range<usize>,
    pub response_topic_at: Range<usize>,
    pub tokens_at: Range<usize>,
    pub users_file: Option<PathBuf>,
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
    users_file: Option<PathBuf>,
    rewrite: Option<bool>,
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
            (ModeName::Http, None) => Mode::Http,
            (ModeName::Http, Some(_)) => {
                return Err("response_topic: only a route with mode = \"json\" has one".into());
            }
            (ModeName::Json, Some(response_topic)) => Mode::Json { response_topic },
            (ModeName::Json, None) => {
                return Err("response_topic: a route with mode = \"json\" needs one".into());
            }
        };
        let route = crate::gateway::Route {
            admission: admission(raw.access, tokens, raw.users_file.as_ref())?,
            users: None,
            rewrite: raw.rewrite.unwrap_or(true),
            path,
            methods: raw.methods.into_iter().map(|method| method.0).collect(),
            request_topic: raw.request_topic.0,
            mode,
            timeout: raw.timeout_ms.map_or(DEFAULT_TIMEOUT, Within::millis),
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
            users_file: raw.users_file,
        })
    }
}

/// The agent's file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Agent {
    pub broker: Option<BrokerList>,
    pub brokers: BrokersPart,
    pub log: Option<LogLevel>,
    pub scheduling: Option<Scheduling>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub tls: TlsFiles,
    pub proxy: Option<ProxySetting>,
    pub websocket: Websocket,
    pub prefix: Option<Prefix>,
    pub upstream: Option<UpstreamUrl>,
    pub upstream_ca_file: Option<PathBuf>,
    pub upstream_verify: Option<bool>,
    pub id: Option<Id>,
    pub keep_alive_s: Option<KeepAliveS>,
    pub workers: Option<Count>,
    pub queue: Option<Count>,
    pub timeout_ms: Option<TimeoutMs>,
    pub max_timeout_ms: Option<TimeoutMs>,
    pub max_body_bytes: Option<BodyBytes>,
    pub inline_bytes: Option<InlineBytes>,
    pub max_streams: Option<Streams>,
    pub window_bytes: Option<WindowBytes>,
    pub stream_idle_ms: Option<IdleMs>,
    pub max_buffered_bytes: Option<BufferedBytes>,
    pub presence_refresh_s: Option<Within<1, 3_600>>,
    pub stats_ms: Option<EveryMs>,
    pub upstream_check_ms: Option<EveryMs>,
    pub reply_prefixes: Option<Vec<String>>,
    pub direct: Direct,
    pub service: Option<Vec<PartService>>,
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
