//! What an agent's service is: where its requests come from, what it may call.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderValue;
use serde::Deserialize;
use toml::Spanned;

use super::values::{
    Count, HttpPath, MethodName, PathPattern, PathPrefix, TimeoutMs, Within, apart,
};
use crate::agent::{Allow, HostHeader, HttpMode, Service, ServiceMode};
use crate::base::authority::host_and_port;
use crate::base::topic::{Id, Topic, constant_topic};
use crate::upstream::{UpstreamSettings, UpstreamTls, UpstreamUrl};

/// What a service takes from the agent's general settings.
pub(super) struct Defaults {
    pub upstream: UpstreamSettings,
    pub workers: usize,
    pub queue: usize,
    pub timeout: Duration,
}

/// The requests to this very agent: `[direct]`.
#[derive(Deserialize)]
#[serde(try_from = "RawDirect")]
pub(super) struct Direct {
    enabled: bool,
    mode: HttpMode,
}

impl Default for Direct {
    fn default() -> Direct {
        Direct {
            enabled: true,
            mode: HttpMode::default(),
        }
    }
}

impl TryFrom<RawDirect> for Direct {
    type Error = String;

    fn try_from(raw: RawDirect) -> Result<Direct, String> {
        Ok(Direct {
            enabled: raw.enabled,
            mode: HttpMode {
                path_prefix: raw.path_prefix.0,
                allow: allow(raw.methods, raw.paths)?,
                host_header: raw.host_header.0,
                rewrite: raw.rewrite,
            },
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDirect {
    enabled: bool,
    path_prefix: PathPrefix,
    methods: Vec<MethodName>,
    paths: Vec<PathPattern>,
    host_header: HostName,
    rewrite: bool,
}

impl Default for RawDirect {
    fn default() -> RawDirect {
        RawDirect {
            enabled: true,
            path_prefix: PathPrefix::default(),
            methods: Vec::new(),
            paths: Vec::new(),
            host_header: HostName::default(),
            rewrite: true,
        }
    }
}

impl Direct {
    pub(super) fn service(self, id: &Id, defaults: &Defaults) -> Option<Service> {
        self.enabled.then(|| Service {
            name: None,
            request_topic: constant_topic(&format!("recado/agents/{id}/request")),
            mode: ServiceMode::Http(self.mode),
            upstream: defaults.upstream.clone(),
            workers: defaults.workers,
            queue: defaults.queue,
            timeout: defaults.timeout,
        })
    }
}

/// Who may be at an upstream, if something is said of that.
///
/// Errors: it contradicts itself.
pub(super) fn upstream_tls(
    ca_file: Option<PathBuf>,
    verify: Option<bool>,
) -> Result<Option<UpstreamTls>, String> {
    match (ca_file, verify) {
        (None, None) => Ok(None),
        (Some(_), Some(false)) => {
            Err("upstream_ca_file: nothing is checked with upstream_verify = false".into())
        }
        (ca_file, verify) => Ok(Some(UpstreamTls {
            ca_file,
            verify: verify.unwrap_or(true),
        })),
    }
}

fn allow(methods: Vec<MethodName>, paths: Vec<PathPattern>) -> Result<Allow, String> {
    let allow = Allow {
        methods: methods.into_iter().map(|method| method.0).collect(),
        paths: paths.into_iter().map(|path| path.0).collect(),
    };
    allow.router()?;
    Ok(allow)
}

/// A service of the file, checked but for what it takes from the general settings.
#[derive(Deserialize)]
#[serde(try_from = "RawService")]
pub(super) struct PartService {
    name: Id,
    request_topic: Topic,
    // Where in the file that, or the name that it follows from, stands.
    request_topic_at: Range<usize>,
    mode: ServiceMode,
    upstream: Option<UpstreamSettings>,
    workers: Option<usize>,
    queue: Option<usize>,
    timeout: Option<Duration>,
}

impl PartService {
    /// The ping service, which is there out of the box.
    #[allow(clippy::expect_used)] // a constant, covered by a test
    pub(super) fn ping() -> PartService {
        PartService {
            name: Id::new("ping").expect("a constant id"),
            request_topic: constant_topic("api/ping/request"),
            request_topic_at: 0..0,
            mode: ServiceMode::Json {
                response_topic: constant_topic("api/ping/response"),
                path: "/ping".into(),
            },
            upstream: None,
            workers: None,
            queue: None,
            timeout: None,
        }
    }

    /// Whether both take the same requests.
    pub(super) fn takes_same(&self, other: &PartService) -> bool {
        self.request_topic == other.request_topic
    }

    /// Where its requests come from, and where in the file that stands.
    pub(super) fn request_topic(&self) -> (&str, &Range<usize>) {
        (self.request_topic.as_str(), &self.request_topic_at)
    }

    pub(super) fn service(self, defaults: &Defaults) -> Service {
        Service {
            name: Some(self.name),
            request_topic: self.request_topic,
            mode: self.mode,
            upstream: self.upstream.unwrap_or_else(|| defaults.upstream.clone()),
            workers: self.workers.unwrap_or(defaults.workers),
            queue: self.queue.unwrap_or(defaults.queue),
            timeout: self.timeout.unwrap_or(defaults.timeout),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    name: Spanned<Id>,
    mode: ModeName,
    request_topic: Option<Spanned<Topic>>,
    response_topic: Option<Topic>,
    path: Option<HttpPath>,
    path_prefix: Option<PathPrefix>,
    #[serde(default)]
    methods: Vec<MethodName>,
    #[serde(default)]
    paths: Vec<PathPattern>,
    upstream: Option<UpstreamUrl>,
    upstream_ca_file: Option<PathBuf>,
    upstream_verify: Option<bool>,
    workers: Option<Count>,
    queue: Option<Count>,
    timeout_ms: Option<TimeoutMs>,
    host_header: Option<HostName>,
    rewrite: Option<bool>,
}

/// Which host the upstream is told that it is.
#[derive(Deserialize, Default)]
#[serde(try_from = "String")]
struct HostName(HostHeader);

impl TryFrom<String> for HostName {
    type Error = String;

    fn try_from(text: String) -> Result<HostName, String> {
        Ok(HostName(match text.as_str() {
            "upstream" => HostHeader::Upstream,
            "caller" => HostHeader::Caller,
            name => {
                let value = host_and_port(name).and_then(|_| HeaderValue::from_str(name).ok());
                HostHeader::Fixed(value.ok_or_else(|| {
                    format!("found {text:?}, allowed are \"upstream\", \"caller\" or a host such as \"app.example.org\"")
                })?)
            }
        }))
    }
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum ModeName {
    Json,
    Http,
}

impl TryFrom<RawService> for PartService {
    type Error = String;

    fn try_from(raw: RawService) -> Result<PartService, String> {
        let json = raw.mode == ModeName::Json;
        let limited = !raw.methods.is_empty() || !raw.paths.is_empty();
        let moves = raw.host_header.is_some() || raw.rewrite.is_some();
        if json && (raw.path_prefix.is_some() || limited || moves) {
            return Err(
                "path_prefix, methods, paths, host_header and rewrite: only with mode = \"http\""
                    .into(),
            );
        }
        if !json && (raw.response_topic.is_some() || raw.path.is_some()) {
            return Err("response_topic and path: only with mode = \"json\"".into());
        }
        let missing = |key| format!("{key}: a service with mode = \"json\" needs it");
        let (name, name_at) = apart(raw.name);
        let (request_topic, request_topic_at) = match raw.request_topic {
            Some(topic) => apart(topic),
            None if json => return Err(missing("request_topic")),
            None => {
                let topic = format!("recado/services/{name}/request");
                (constant_topic(&topic), name_at)
            }
        };
        let mode = match raw.mode {
            ModeName::Json => ServiceMode::Json {
                response_topic: raw
                    .response_topic
                    .ok_or_else(|| missing("response_topic"))?,
                path: raw.path.ok_or_else(|| missing("path"))?.0,
            },
            ModeName::Http => ServiceMode::Http(HttpMode {
                path_prefix: raw.path_prefix.unwrap_or_default().0,
                allow: allow(raw.methods, raw.paths)?,
                host_header: raw.host_header.unwrap_or_default().0,
                rewrite: raw.rewrite.unwrap_or(true),
            }),
        };
        let tls = upstream_tls(raw.upstream_ca_file, raw.upstream_verify)?;
        let upstream = match (raw.upstream, tls) {
            (Some(url), tls) => Some(UpstreamSettings {
                url,
                tls: tls.unwrap_or_default(),
            }),
            (None, None) => None,
            (None, Some(_)) => {
                return Err(
                    "upstream_ca_file and upstream_verify: only with an upstream of its own".into(),
                );
            }
        };
        Ok(PartService {
            name,
            request_topic,
            request_topic_at,
            mode,
            upstream,
            workers: raw.workers.map(Within::size),
            queue: raw.queue.map(Within::size),
            timeout: raw.timeout_ms.map(Within::millis),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_can_not_work_are_refused() {
        let parse = |text: &str| {
            toml::from_str::<PartService>(text)
                .map(|_| ())
                .map_err(|e| e.to_string())
        };
        assert_eq!(parse("name = \"web\"\nmode = \"http\""), Ok(()));
        for (text, hint) in [
            ("mode = \"http\"", "name"),
            ("name = \"a\"\nmode = \"json\"", "request_topic"),
            (
                "name = \"a\"\nmode = \"http\"\npath = \"/x\"",
                "only with mode",
            ),
            (
                "name = \"a\"\nmode = \"json\"\nmethods = [\"GET\"]",
                "only with mode",
            ),
            ("name = \"a\"\nmode = \"http\"\npaths = [\"x\"]", "pattern"),
            (
                "name = \"a\"\nmode = \"http\"\npaths = [\"/{a\"]",
                "pattern",
            ),
            (
                "name = \"a\"\nmode = \"http\"\nmethods = [\"G T\"]",
                "method",
            ),
            ("name = \"a\"\nmode = \"http\"\npath_prefix = \"x\"", "path"),
            (
                "name = \"a\"\nmode = \"http\"\nhost_header = \"a/b\"",
                "\"caller\"",
            ),
            ("name = \"a\"\nmode = \"tcp\"", "http"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn the_ping_service_is_whole() {
        assert_eq!(
            PartService::ping().request_topic.as_str(),
            "api/ping/request"
        );
    }
}
