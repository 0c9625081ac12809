//! What a gateway runs with.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use ipnet::IpNet;
use log::LevelFilter;

use super::part::Part;
use super::table::MAX_AGENTS;
use super::template::TopicTemplate;
use super::users::Users;
use crate::base::scheduling::Scheduling;
use crate::base::topic::{Id, Topic, constant_topic};
use crate::front::{FrontKind, HttpLimits};
use crate::link::{Brokers, Prefix};
use crate::stream::StreamLimits;
use crate::wire::Qos;

/// What api_1 runs with.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Which log lines are shown.
    pub log: LevelFilter,
    /// How the kernel shares the processors out among its threads and those of others.
    pub scheduling: Scheduling,
    /// The brokers.
    pub brokers: Brokers,
    /// What this project's topics begin with at the brokers.
    pub prefix: Prefix,
    /// Where to listen for HTTP; port 0 takes a free one.
    pub listen: SocketAddr,
    /// This gateway's id; none: a random one at each start.
    pub id: Option<Id>,
    /// Which HTTP server to use.
    pub front: FrontKind,
    /// The interval between MQTT pings.
    pub keep_alive: Duration,
    /// How many requests may wait for a reply at a time, per route.
    pub max_waiting: usize,
    /// What is believed of who is there.
    pub presence: PresenceSettings,
    /// The bounds of the HTTP server.
    pub http: HttpLimits,
    /// How bodies travel that are no single message.
    pub streams: StreamLimits,
    /// Who may call.
    pub access: Access,
    /// The routes.
    pub routes: Vec<Route>,
    /// The names.
    pub names: Names,
    /// Whether requests that are passed on have the field Via.
    pub via: bool,
}

impl GatewaySettings {
    /// What of other settings a running gateway can go on with, and the keys of what it can't: these keep
    /// their values. `subscribed`: the routes whose replies can come in.
    pub(super) fn reloaded(
        &self,
        wished: GatewaySettings,
        subscribed: &[Route],
    ) -> (GatewaySettings, Vec<String>) {
        let (own, http) = (&self.http, &wished.http);
        let kept = [
            ("broker", self.brokers.are_same_places(&wished.brokers)),
            ("listen", self.listen == wished.listen),
            ("prefix", self.prefix == wished.prefix),
            ("scheduling", self.scheduling == wished.scheduling),
            ("id", self.id == wished.id),
            ("front", self.front == wished.front),
            ("keep_alive_s", self.keep_alive == wished.keep_alive),
            ("max_waiting", self.max_waiting == wished.max_waiting),
            ("presence", self.presence == wished.presence),
            ("max_body_bytes", own.max_body_bytes == http.max_body_bytes),
            (
                "max_buffered_bytes",
                own.max_buffered_bytes == http.max_buffered_bytes,
            ),
            (
                "inline_bytes, max_streams, window_bytes, stream_idle_ms",
                self.streams == wished.streams,
            ),
        ];
        let changed = kept.iter().filter(|(_, is_same)| !is_same);
        let mut fixed: Vec<String> = changed.map(|(key, _)| (*key).to_owned()).collect();
        // Replies come in on topics that were subscribed to at the start.
        let (routes, unknown): (Vec<Route>, Vec<Route>) =
            wished.routes.into_iter().partition(|route| {
                let is_known = |own: &Route| own.has_topics_of(route);
                route.mode == Mode::Http || subscribed.iter().any(is_known)
            });
        fixed.extend(unknown.iter().map(|route| {
            format!(
                "the [[route]] {} (its topics are new; it is left out)",
                route.path
            )
        }));
        let brokers = match self.brokers.are_same_places(&wished.brokers) {
            true => wished.brokers,
            false => self.brokers.clone(),
        };
        let next = GatewaySettings {
            log: wished.log,
            brokers,
            http: HttpLimits {
                max_body_bytes: own.max_body_bytes,
                max_buffered_bytes: own.max_buffered_bytes,
                ..wished.http
            },
            access: wished.access,
            routes,
            names: wished.names,
            via: wished.via,
            ..self.clone()
        };
        (next, fixed)
    }

    /// How long a request may take at the most.
    pub(super) fn longest_timeout(&self) -> Duration {
        let hosts = self.names.hosts.iter();
        let named = hosts.filter_map(|host| host.route.as_ref());
        let all = self.routes.iter().chain(named);
        all.map(|route| route.timeout).max().unwrap_or_default()
    }
}

/// What a gateway believes of who is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceSettings {
    /// Whether the broker can be relied upon to say which agents are there.
    pub is_relied_upon: bool,
    /// The agents that are this gateway's own; the others are not there for it.
    pub part: Part,
    /// How many of them are taken note of.
    pub max_agents: usize,
}

impl Default for PresenceSettings {
    fn default() -> PresenceSettings {
        PresenceSettings {
            is_relied_upon: true,
            part: Part::default(),
            max_agents: MAX_AGENTS,
        }
    }
}

/// The names that are served.
#[derive(Debug, Clone)]
pub struct Names {
    /// Each, and what it leads to.
    pub hosts: Vec<Host>,
    /// Whether a name that is not among these leads nowhere, instead of to the routes.
    pub is_strict: bool,
}

impl Names {
    /// The names out of the box.
    pub fn built_in() -> Names {
        Names {
            hosts: Host::built_in(),
            is_strict: false,
        }
    }
}

/// A name that leads to an agent or a service, which is an origin of its own in a browser.
#[derive(Debug, Clone)]
pub struct Host {
    /// The name, in lower case and without a dot at its end. `*.` in front stands for one label.
    pub name: String,
    /// What it leads to, whatever the path is; none: to the gateway's own paths and routes.
    pub route: Option<Route>,
}

impl Host {
    /// What stands for the label in the topic of a route that a name with `*` leads to.
    pub const LABEL: &str = "id";

    /// The names out of the box: `{id}.localhost` leads to the agent with that id. A browser takes such
    /// names for this machine (RFC 6761, section 6.3).
    pub fn built_in() -> Vec<Host> {
        vec![Host {
            name: "*.localhost".into(),
            route: Some(Route::at_name(constant("recado/agents/{id}/request"))),
        }]
    }
}

/// How long a caller waits unless something else is said.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
/// The gateway's own paths, which no route may claim.
pub const OWN_PATHS: [&str; 4] = ["/healthz", "/readyz", "/agents", "/agents/{id}"];

/// The paths that show this gateway, unless a route has them.
pub const SHOWN_PATHS: [&str; 3] = ["/", "/events", "/metrics"];

/// How requests of a route travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// As JSON that any program with MQTT 3.1.1 can read; such programs answer on this topic.
    /// The gateway's own inbox is the level `<gateway-id>` below it.
    Json {
        /// Where peers that know no Response Topic answer.
        response_topic: Topic,
    },
    /// As HTTP: method, target, headers and body, to an agent.
    Http,
}

/// One route of the gateway.
#[derive(Debug, Clone)]
pub struct Route {
    /// The pattern of the paths that it serves: `/agents/{id}/{*path}`. `{name}` stands for one
    /// segment, a final `{*name}` for the rest.
    pub path: String,
    /// The methods that it serves; empty: every one.
    pub methods: Vec<Method>,
    /// Where requests are published.
    pub request_topic: TopicTemplate,
    /// How they travel.
    pub mode: Mode,
    /// How long a client waits for the reply at the most.
    pub timeout: Duration,
    /// With which quality of service requests are published.
    pub qos: Qos,
    /// Who may call it.
    pub admission: Admission,
    /// Those who may call it with a password, instead of those who may call everything with one.
    pub users: Option<Arc<Users>>,
    /// Whether what an answer says of its upstream is brought to where its caller finds it.
    pub rewrite: bool,
}

impl Route {
    /// The patterns of every path that it answers: with `{*path}` what stands before it too, which
    /// leads to the root of what is behind it.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        let root = self.path.split_once("{*").map(|(root, _)| root);
        [self.path.as_str()]
            .into_iter()
            .chain(root.filter(|root| root.ends_with('/')))
    }

    // Whether another one's requests and replies travel on the same topics.
    fn has_topics_of(&self, other: &Route) -> bool {
        self.mode == other.mode && self.request_topic == other.request_topic
    }

    /// The path without a slash at its end for which a route of HTTP mode has only the one with it.
    pub fn without_slash(&self) -> Option<&str> {
        let root = self.patterns().nth(1)?.trim_end_matches('/');
        (self.mode == Mode::Http && !root.is_empty()).then_some(root)
    }

    /// The routes out of the box.
    pub fn built_in() -> Vec<Route> {
        vec![Route::ping(), Route::agents(), Route::services()]
    }

    /// `GET /ping`: a question in JSON to whoever answers it.
    pub fn ping() -> Route {
        Route {
            path: "/ping".into(),
            methods: vec![Method::GET, Method::HEAD],
            request_topic: constant("api/ping/request"),
            mode: Mode::Json {
                response_topic: constant_topic("api/ping/response"),
            },
            timeout: DEFAULT_TIMEOUT,
            qos: Qos::AtMostOnce,
            admission: Admission::AnyToken,
            users: None,
            rewrite: true,
        }
    }

    /// `ANY /agents/{id}/…`: any HTTP request to one agent.
    pub fn agents() -> Route {
        Route::http("/agents/{id}/{*path}", "recado/agents/{id}/request")
    }

    /// `ANY /services/{name}/…`: any HTTP request to one of the agents that serve it.
    pub fn services() -> Route {
        Route::http("/services/{name}/{*path}", "recado/services/{name}/request")
    }

    /// Any HTTP request to a name of whoever has this topic.
    pub fn at_name(request_topic: TopicTemplate) -> Route {
        Route {
            path: "/{*path}".into(),
            methods: Vec::new(),
            request_topic,
            mode: Mode::Http,
            ..Route::ping()
        }
    }

    fn http(path: &str, request_topic: &str) -> Route {
        Route {
            path: path.into(),
            ..Route::at_name(constant(request_topic))
        }
    }
}

#[allow(clippy::expect_used)] // constants, covered by tests
fn constant(text: &str) -> TopicTemplate {
    TopicTemplate::new(text).expect("a constant topic template")
}

/// Who may call a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Everybody.
    Public,
    /// Whoever has a token, if there are any tokens; else everybody.
    AnyToken,
    /// Whoever has one of the tokens with these names.
    Tokens(Vec<String>),
}

/// A token and its name, so that one of several can be withdrawn.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What the upstream knows its owner by.
    pub name: String,
    /// The secret.
    pub secret: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:***", self.name)
    }
}

/// Who may call, and who is believed.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The tokens; empty: no route needs one.
    pub tokens: Vec<Token>,
    /// Where the tokens came from.
    pub tokens_file: Option<PathBuf>,
    /// Those who may call with a password; none: nobody is asked for one, unless on a route of its own.
    pub users: Option<Arc<Users>>,
    /// The names of those who may see what the gateway does: the live page, metrics, who is there. None:
    /// all who may call anything.
    pub monitors: Option<Vec<String>>,
    /// Whose `X-Forwarded-*` and `Forwarded` fields are believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Access {
    /// Whether anybody is asked who he is, on routes that say nothing of that.
    pub fn asks(&self) -> bool {
        !self.tokens.is_empty() || self.users.is_some()
    }

    /// Whether a peer's word on whom it forwards for is believed.
    pub fn trusts(&self, peer: SocketAddr) -> bool {
        // A socket that listens on :: sees IPv4 clients in IPv6 clothes.
        let address = peer.ip().to_canonical();
        self.trusted_proxies
            .iter()
            .any(|net| net.contains(&address))
    }
}

#[cfg(test)]
impl GatewaySettings {
    /// Those out of the box, of a gateway where one request may wait.
    pub(super) fn example() -> GatewaySettings {
        GatewaySettings {
            log: LevelFilter::Info,
            scheduling: Scheduling::default(),
            prefix: Prefix::default(),
            brokers: "mqtt://127.0.0.1"
                .parse::<crate::link::BrokerUrl>()
                .unwrap()
                .into(),
            listen: ([127, 0, 0, 1], 0).into(),
            id: None,
            front: FrontKind::default(),
            keep_alive: Duration::from_secs(10),
            max_waiting: 1,
            presence: PresenceSettings::default(),
            http: HttpLimits::default(),
            streams: StreamLimits::default(),
            access: Access::default(),
            routes: Route::built_in(),
            names: Names::built_in(),
            via: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_routes_are_whole() {
        assert_eq!(Route::built_in().len(), 3);
    }
}
