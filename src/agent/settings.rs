//! What an agent runs with.

use std::time::Duration;

use http::{HeaderValue, Method};
use log::LevelFilter;

use crate::base::scheduling::Scheduling;
use crate::base::topic::{Id, Topic};
use crate::link::{Brokers, Prefix};
use crate::stream::StreamLimits;
use crate::upstream::UpstreamSettings;
use crate::wire::whole_bytes;

/// What the agent runs with.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// Which log lines are shown.
    pub log: LevelFilter,
    /// How the kernel shares the processors out among its threads and those of others.
    pub scheduling: Scheduling,
    /// The brokers.
    pub brokers: Brokers,
    /// What this project's topics begin with at the brokers.
    pub prefix: Prefix,
    /// This agent's id.
    pub id: Id,
    /// The interval between MQTT pings.
    pub keep_alive: Duration,
    /// How long any request may take, whatever it states.
    pub max_timeout: Duration,
    /// The longest body to take from either side, in bytes; 0: any.
    pub max_body_bytes: usize,
    /// How bodies travel that are no single message.
    pub streams: StreamLimits,
    /// How much memory the bodies of all requests in hand may take, in bytes.
    pub max_buffered_bytes: usize,
    /// How often it says that it is there; gateways count it as gone after two and a half times that.
    pub presence_refresh: Duration,
    /// How often it says what it does; none: only when asked.
    pub stats: Option<Duration>,
    /// How often it is tried whether an upstream that nobody calls takes connections; none: never.
    pub upstream_check: Option<Duration>,
    /// Beginnings of the topics that replies may go to.
    pub reply_prefixes: Vec<String>,
    /// The services.
    pub services: Vec<Service>,
}

impl AgentSettings {
    /// What of other settings a running agent can go on with, and the keys of what it can't: these keep
    /// their values.
    pub(super) fn reloaded(&self, wished: AgentSettings) -> (AgentSettings, Vec<String>) {
        let is_same_place = self.brokers.are_same_places(&wished.brokers);
        // Each has a subscription and workers of its own.
        let (own, services) = (&self.services, &wished.services);
        let are_same = own.len() == services.len()
            && own
                .iter()
                .zip(services)
                .all(|(own, service)| own.stays(service));
        let kept = [
            ("broker", is_same_place),
            ("prefix", self.prefix == wished.prefix),
            ("scheduling", self.scheduling == wished.scheduling),
            ("id", self.id == wished.id),
            ("keep_alive_s", self.keep_alive == wished.keep_alive),
            (
                "max_body_bytes",
                self.max_body_bytes == wished.max_body_bytes,
            ),
            (
                "max_buffered_bytes",
                self.max_buffered_bytes == wished.max_buffered_bytes,
            ),
            (
                "inline_bytes, max_streams, window_bytes, stream_idle_ms",
                self.streams == wished.streams,
            ),
            (
                "presence_refresh_s",
                self.presence_refresh == wished.presence_refresh,
            ),
            ("stats_ms", self.stats == wished.stats),
            (
                "upstream_check_ms",
                self.upstream_check == wished.upstream_check,
            ),
            (
                "which [[service]]s there are, their topics, workers and queue (no service has changed)",
                are_same,
            ),
        ];
        let changed = kept.iter().filter(|(_, is_same)| !is_same);
        let fixed = changed.map(|(key, _)| (*key).to_owned()).collect();
        let next = AgentSettings {
            log: wished.log,
            brokers: match is_same_place {
                true => wished.brokers,
                false => self.brokers.clone(),
            },
            max_timeout: wished.max_timeout,
            reply_prefixes: wished.reply_prefixes,
            services: match are_same {
                true => wished.services,
                false => self.services.clone(),
            },
            ..self.clone()
        };
        (next, fixed)
    }

    /// How much memory the bodies of all requests in hand really may take: one of the largest size
    /// must always fit.
    pub fn buffered_bytes(&self) -> usize {
        self.max_buffered_bytes.max(self.whole_bytes())
    }

    /// The longest body that is taken as a whole, in bytes.
    pub fn whole_bytes(&self) -> usize {
        whole_bytes(self.max_body_bytes)
    }
}

/// One service of the agent.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name, and the group of agents that share its requests; none for the requests to this
    /// very agent.
    pub name: Option<Id>,
    /// Where requests come from.
    pub request_topic: Topic,
    /// How they are executed.
    pub mode: ServiceMode,
    /// The HTTP service to call.
    pub upstream: UpstreamSettings,
    /// How many requests are called upstream at a time.
    pub workers: usize,
    /// How many requests wait for a worker.
    pub queue: usize,
    /// How long a request that states no deadline may take.
    pub timeout: Duration,
}

impl Service {
    // Whether another one can take its place while it runs.
    fn stays(&self, other: &Service) -> bool {
        let answers_at = |service: &Service| match &service.mode {
            ServiceMode::Json { response_topic, .. } => Some(response_topic.clone()),
            ServiceMode::Http(_) => None,
        };
        (&self.name, &self.request_topic, self.workers, self.queue)
            == (
                &other.name,
                &other.request_topic,
                other.workers,
                other.queue,
            )
            && answers_at(self) == answers_at(other)
    }
}

/// How the requests of a service are executed.
#[derive(Debug, Clone)]
pub enum ServiceMode {
    /// The payload is JSON, and is posted to one path below the upstream.
    Json {
        /// Where requests without a Response Topic are answered.
        response_topic: Topic,
        /// The path.
        path: String,
    },
    /// The message is an HTTP request.
    Http(HttpMode),
}

/// How HTTP requests are passed on.
#[derive(Debug, Clone)]
pub struct HttpMode {
    /// What is put before each path.
    pub path_prefix: String,
    /// What may be called.
    pub allow: Allow,
    /// Which host the upstream is told that it is.
    pub host_header: HostHeader,
    /// Whether what an answer says of the upstream's own address is said so that its caller can use it.
    pub rewrite: bool,
}

impl Default for HttpMode {
    fn default() -> HttpMode {
        HttpMode {
            path_prefix: String::new(),
            allow: Allow::default(),
            host_header: HostHeader::default(),
            rewrite: true,
        }
    }
}

/// Which host an upstream is told that it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// The caller's, where what it asks for has a name of its own; else that of the upstream's URL.
    #[default]
    Named,
    /// That of the upstream's URL.
    Upstream,
    /// The caller's.
    Caller,
    /// This one.
    Fixed(HeaderValue),
}

/// Which requests a service takes; the others are answered with 403.
#[derive(Debug, Clone, Default)]
pub struct Allow {
    /// The methods; empty: every one.
    pub methods: Vec<Method>,
    /// Patterns of paths: `/public/{*rest}`; empty: every one.
    pub paths: Vec<String>,
}

impl Allow {
    /// What matches the allowed paths, decoded.
    ///
    /// Errors: two patterns mean the same paths; which.
    pub fn router(&self) -> Result<matchit::Router<()>, String> {
        let mut router = matchit::Router::new();
        for path in &self.paths {
            let decoded = percent_encoding::percent_decode_str(path);
            let decoded = decoded.decode_utf8_lossy();
            router.insert(decoded.as_ref(), ()).map_err(|error| {
                let other = match error {
                    matchit::InsertError::Conflict { with } => with,
                    other => other.to_string(),
                };
                format!("paths: found {path:?} beside {other:?}, allowed are patterns of different paths")
            })?;
            // `{*rest}` may be empty: /public/.
            if let Some((before, _)) = decoded.split_once("{*") {
                let _ = router.insert(before, ());
            }
        }
        Ok(router)
    }
}

#[cfg(test)]
impl AgentSettings {
    /// Those of an agent `shed` with a service `ping` in JSON mode, and whatever is asked of itself;
    /// nothing listens at its upstream.
    pub(super) fn example() -> AgentSettings {
        let topic = |name: &str| Topic::new(name).unwrap();
        let service = |name: Option<&str>, request_topic: &str, mode| Service {
            name: name.map(|name| Id::new(name).unwrap()),
            request_topic: topic(request_topic),
            mode,
            upstream: UpstreamSettings::at("http://127.0.0.1:1"),
            workers: 1,
            queue: 1,
            timeout: Duration::from_secs(3),
        };
        let json = ServiceMode::Json {
            response_topic: topic("api/ping/response"),
            path: "/ping".into(),
        };
        let http = ServiceMode::Http(HttpMode::default());
        AgentSettings {
            log: LevelFilter::Info,
            scheduling: Scheduling::default(),
            prefix: Prefix::default(),
            brokers: "mqtt://127.0.0.1"
                .parse::<crate::link::BrokerUrl>()
                .unwrap()
                .into(),
            id: Id::new("shed").unwrap(),
            keep_alive: Duration::from_secs(10),
            max_timeout: Duration::from_secs(30),
            max_body_bytes: 1000,
            max_buffered_bytes: 1000,
            streams: StreamLimits::default(),
            presence_refresh: Duration::from_secs(20),
            stats: None,
            upstream_check: None,
            reply_prefixes: vec!["recado/".into()],
            services: vec![
                service(Some("ping"), "api/ping/request", json),
                service(None, "recado/agents/shed/request", http),
            ],
        }
    }
}
