//! Settings: from flags, environment and file to one checked value.
//!
//! Precedence: flag, then environment, then file, then default. What leaves this file is valid;
//! nothing downstream checks a setting again. Nothing here logs or exits.

mod access;
mod file;
mod login;
mod route;
mod service;
mod source;
mod url;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use http::Method;
use serde::Deserialize;

use crate::cli;
use crate::error::{Error, Result};
use crate::topic::Id;

pub use access::{Access, Admission, Token};
use login::Login;
pub use login::TlsFiles;
pub use route::{Mode, OWN_PATHS, Route, TopicTemplate};
use service::PartService;
pub use service::{Allow, Service, ServiceMode};
pub use url::{BrokerUrl, UpstreamUrl};

/// Which HTTP server api_1 uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Front {
    /// This crate's own: strict, bounded in every direction.
    #[default]
    Guarded,
    /// The tiny_http library.
    TinyHttp,
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Front::Guarded => "guarded",
            Front::TinyHttp => "tiny_http",
        })
    }
}

/// The bounds of an HTTP front.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Connections at a time; the next one gets a 503.
    pub max_connections: usize,
    /// The longest request line and headers together, in bytes.
    pub max_head_bytes: usize,
    /// The longest body, in bytes.
    pub max_body_bytes: usize,
    /// How much memory the bodies of all requests and answers together may take, in bytes.
    pub max_buffered_bytes: usize,
    /// How long a client may take to send its whole head.
    pub head_timeout: Duration,
    /// How long a client may take to send its whole body, and to take its whole answer.
    pub body_timeout: Duration,
    /// How long a connection may stay open between requests.
    pub idle_timeout: Duration,
}

impl HttpLimits {
    /// How much memory all bodies together really may take: one of the largest size must always
    /// fit, both ways.
    pub fn buffered_bytes(&self) -> usize {
        self.max_buffered_bytes.max(2 * self.max_body_bytes)
    }
}

impl Default for HttpLimits {
    fn default() -> HttpLimits {
        HttpLimits {
            max_connections: 256,
            max_head_bytes: 16 * 1024,
            max_body_bytes: 1024 * 1024,
            max_buffered_bytes: 8 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// What api_1 runs with.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// The broker.
    pub broker: BrokerUrl,
    /// Where to listen for HTTP; port 0 takes a free one.
    pub listen: SocketAddr,
    /// This gateway's id; none: a random one at each start.
    pub id: Option<Id>,
    /// Which HTTP server to use.
    pub front: Front,
    /// The interval between MQTT pings.
    pub keep_alive: Duration,
    /// How many requests may wait for a reply at a time, per route.
    pub max_waiting: usize,
    /// Whether the broker can be relied upon to say which agents are there.
    pub presence: bool,
    /// The bounds of the HTTP server.
    pub http: HttpLimits,
    /// Who may call.
    pub access: Access,
    /// The routes.
    pub routes: Vec<Route>,
}

/// What the agent runs with.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// The broker.
    pub broker: BrokerUrl,
    /// This agent's id.
    pub id: Id,
    /// The interval between MQTT pings.
    pub keep_alive: Duration,
    /// How long any request may take, whatever it states.
    pub max_timeout: Duration,
    /// The largest body to take from either side, in bytes.
    pub max_body_bytes: usize,
    /// How much memory the bodies of all requests in hand may take, in bytes.
    pub max_buffered_bytes: usize,
    /// How often it says that it is there; gateways count it as gone after two and a half times that.
    pub presence_refresh: Duration,
    /// Beginnings of the topics that replies may go to.
    pub reply_prefixes: Vec<String>,
    /// The services.
    pub services: Vec<Service>,
}

impl AgentSettings {
    /// How much memory the bodies of all requests in hand really may take: one of the largest size
    /// must always fit.
    pub fn buffered_bytes(&self) -> usize {
        self.max_buffered_bytes.max(self.max_body_bytes)
    }
}

const DEFAULT_BROKER: &str = "mqtt://127.0.0.1:1883";
const DEFAULT_UPSTREAM: &str = "http://127.0.0.1:5001";
const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(10);
const DEFAULT_PRESENCE_REFRESH: Duration = Duration::from_secs(20);
/// How long a caller waits unless something else is said.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads the broker's URL from a flag or its variable, and credentials from theirs.
///
/// Errors: it is no such URL ([`Error::Usage`]); its text, which may hold a password, is not
/// repeated.
pub fn broker_url(flag: Option<&str>) -> Result<BrokerUrl> {
    broker_with(flag, Login::default())
}

fn broker_with(flag: Option<&str>, mut login: Login) -> Result<BrokerUrl> {
    // A flag that says who we are beats the file.
    if flag.is_some_and(|flag| flag.contains('@')) {
        login.username = None;
        login.password_file = None;
    }
    flag.unwrap_or(DEFAULT_BROKER)
        .parse::<BrokerUrl>()
        .map_err(|reason| Error::Usage(format!("--broker or RECADO_BROKER: {reason}")))
        .and_then(|url| login.complete(url))
}

/// Reads an address to listen on: `127.0.0.1:5000`, `localhost:5000`, `[::1]:0`.
///
/// Errors: it is no address ([`Error::Usage`]).
pub fn listen_address(text: &str) -> Result<SocketAddr> {
    resolve(text).ok_or_else(|| {
        Error::Usage(format!(
            "--listen or RECADO_LISTEN: found {text:?}, allowed is ADDRESS:PORT, e.g. 127.0.0.1:5000"
        ))
    })
}

fn resolve(text: &str) -> Option<SocketAddr> {
    text.to_socket_addrs().ok()?.next()
}

fn broker(flag: Option<&str>, file: Option<BrokerUrl>, login: Login) -> Result<BrokerUrl> {
    match (flag, file) {
        (None, Some(url)) => login.complete(url),
        (flag, _) => broker_with(flag, login),
    }
}

// A name that no token has would shut everybody out, unnoticed.
fn check_tokens(routes: &[file::Route], access: &Access, source: &source::Source) -> Result<()> {
    let known = |name: &String| access.tokens.iter().any(|token| token.name == *name);
    for file::Route {
        route, tokens_at, ..
    } in routes
    {
        if let Admission::Tokens(names) = &route.admission
            && let Some(unknown) = names.iter().find(|name| !known(name))
        {
            let known: Vec<&str> = access.tokens.iter().map(|it| it.name.as_str()).collect();
            let message =
                format!("found {unknown:?}, allowed are the names in tokens_file: {known:?}");
            return Err(source.wrong(tokens_at, "tokens", message));
        }
    }
    Ok(())
}

impl GatewaySettings {
    /// Puts flags, environment, file and defaults together.
    ///
    /// Errors: the file can't be read or holds a bad value ([`Error::ReadFile`],
    /// [`Error::Setting`]); a flag or variable is bad ([`Error::Usage`]).
    pub fn load(flags: &cli::Api1) -> Result<GatewaySettings> {
        let (file, source): (file::Gateway, _) = source::load(flags.config.as_deref())?;
        let listen = match (&flags.listen, file.listen) {
            (Some(text), _) => listen_address(text)?,
            (None, Some(listen)) => listen.0,
            (None, None) => SocketAddr::from(([127, 0, 0, 1], 5000)),
        };
        let access = file.access.load()?;
        let routes = match file.route {
            None => Route::built_in(),
            Some(routes) => {
                source.check_paths(&routes)?;
                let response_topics = routes.iter().filter_map(|it| match &it.route.mode {
                    Mode::Json { response_topic } => {
                        Some((response_topic.as_str(), &it.response_topic_at))
                    }
                    Mode::Http => None,
                });
                // A reply in JSON mode is told by its topic alone which route it belongs to.
                source.no_repeats("response_topic", response_topics)?;
                check_tokens(&routes, &access, &source)?;
                routes.into_iter().map(|it| it.route).collect()
            }
        };
        let login = Login::new(file.username, file.password_file, file.tls);
        Ok(GatewaySettings {
            access,
            broker: broker(flags.broker.as_deref(), file.broker, login)?,
            listen,
            id: file.id,
            front: flags.front.or(file.front).unwrap_or_default(),
            keep_alive: file
                .keep_alive_s
                .map_or(DEFAULT_KEEP_ALIVE, file::Within::seconds),
            max_waiting: file.max_waiting.map_or(1024, file::Within::size),
            presence: file.presence.unwrap_or(true),
            http: file.http.limits(),
            routes,
        })
    }
}

impl AgentSettings {
    /// Puts flags, environment, file and defaults together.
    ///
    /// Errors: as [`GatewaySettings::load`].
    pub fn load(flags: &cli::Agent) -> Result<AgentSettings> {
        let (file, source): (file::Agent, _) = source::load(flags.config.as_deref())?;
        // Nobody's GET /ping may reach somebody's application.
        let is_demo = flags.demo || flags.upstream.is_none() && file.upstream.is_none();
        let upstream = match (&flags.upstream, file.upstream) {
            (None, Some(upstream)) => upstream,
            (flag, _) => flag
                .as_deref()
                .unwrap_or(DEFAULT_UPSTREAM)
                .parse()
                .map_err(|why| Error::Usage(format!("--upstream or RECADO_UPSTREAM: {why}")))?,
        };
        let id = match (&flags.id, file.id) {
            (None, Some(id)) => id,
            (flag, _) => Id::new(flag.as_deref().unwrap_or("demo"))
                .map_err(|why| Error::Usage(format!("--id: {why}")))?,
        };
        let defaults = service::Defaults {
            upstream,
            workers: file.workers.map_or(64, file::Within::size),
            queue: file.queue.map_or(256, file::Within::size),
            timeout: file
                .timeout_ms
                .map_or(DEFAULT_TIMEOUT, file::Within::millis),
        };
        let ping = PartService::ping();
        let mut parts = file.service.unwrap_or_else(|| match is_demo {
            true => vec![PartService::ping()],
            false => Vec::new(),
        });
        if flags.demo && !parts.iter().any(|part| part.takes_same(&ping)) {
            parts.push(ping);
        }
        source.no_repeats(
            "request_topic",
            parts.iter().map(PartService::request_topic),
        )?;
        let services: Vec<Service> = parts
            .into_iter()
            .map(|part| part.service(&defaults))
            .chain(file.direct.service(&id, &defaults))
            .collect();
        let login = Login::new(file.username, file.password_file, file.tls);
        Ok(AgentSettings {
            broker: broker(flags.broker.as_deref(), file.broker, login)?,
            id,
            keep_alive: file
                .keep_alive_s
                .map_or(DEFAULT_KEEP_ALIVE, file::Within::seconds),
            max_timeout: file
                .max_timeout_ms
                .map_or(Duration::from_secs(30), file::Within::millis),
            max_body_bytes: file.max_body_bytes.map_or(1024 * 1024, file::Within::size),
            max_buffered_bytes: file
                .max_buffered_bytes
                .map_or(16 * 1024 * 1024, file::Within::size),
            presence_refresh: file
                .presence_refresh_s
                .map_or(DEFAULT_PRESENCE_REFRESH, file::Within::seconds),
            reply_prefixes: file
                .reply_prefixes
                .unwrap_or_else(|| vec!["api/ping/response".into(), "recado/".into()]),
            services,
        })
    }
}

fn write_tls(f: &mut fmt::Formatter<'_>, broker: &BrokerUrl) -> fmt::Result {
    let files = broker.tls_files();
    if *files == TlsFiles::default() {
        return Ok(());
    }
    writeln!(f, "\n[tls]")?;
    for (key, file) in [
        ("ca_file", &files.ca_file),
        ("certificate_file", &files.certificate_file),
        ("key_file", &files.key_file),
    ] {
        if let Some(file) = file {
            writeln!(f, "{key} = {file:?}")?;
        }
    }
    Ok(())
}

impl fmt::Display for GatewaySettings {
    /// As a configuration file, secrets masked: what `--check` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "broker = \"{}\"", self.broker)?;
        writeln!(f, "listen = \"{}\"", self.listen)?;
        match &self.id {
            Some(id) => writeln!(f, "id = \"{id}\"")?,
            None => writeln!(f, "# id: a random one at each start")?,
        }
        writeln!(f, "front = \"{}\"", self.front)?;
        writeln!(f, "keep_alive_s = {}", self.keep_alive.as_secs())?;
        writeln!(f, "max_waiting = {}", self.max_waiting)?;
        writeln!(f, "presence = {}", self.presence)?;
        let http = &self.http;
        writeln!(f, "\n[http]\nmax_connections = {}", http.max_connections)?;
        writeln!(f, "max_head_bytes = {}", http.max_head_bytes)?;
        writeln!(f, "max_body_bytes = {}", http.max_body_bytes)?;
        writeln!(f, "max_buffered_bytes = {}", http.buffered_bytes())?;
        writeln!(f, "head_timeout_ms = {}", http.head_timeout.as_millis())?;
        writeln!(f, "body_timeout_ms = {}", http.body_timeout.as_millis())?;
        writeln!(f, "idle_timeout_ms = {}", http.idle_timeout.as_millis())?;
        write_tls(f, &self.broker)?;
        writeln!(f, "\n[access]")?;
        let access = &self.access;
        if let Some(file) = &access.tokens_file {
            writeln!(f, "tokens_file = {file:?}")?;
        }
        let names: Vec<&str> = access.tokens.iter().map(|it| it.name.as_str()).collect();
        writeln!(f, "# tokens: {names:?}")?;
        let proxies: Vec<String> = access
            .trusted_proxies
            .iter()
            .map(ToString::to_string)
            .collect();
        writeln!(f, "trusted_proxies = {proxies:?}")?;
        for route in &self.routes {
            writeln!(f, "\n[[route]]\npath = \"{}\"", route.path)?;
            if !route.methods.is_empty() {
                let methods: Vec<&str> = route.methods.iter().map(Method::as_str).collect();
                writeln!(f, "methods = {methods:?}")?;
            }
            writeln!(f, "request_topic = \"{}\"", route.request_topic)?;
            match &route.mode {
                Mode::Json { response_topic } => {
                    writeln!(f, "mode = \"json\"\nresponse_topic = \"{response_topic}\"")?;
                }
                Mode::Http => writeln!(f, "mode = \"http\"")?,
            }
            writeln!(f, "timeout_ms = {}", route.timeout.as_millis())?;
            writeln!(f, "qos = {}", route.qos)?;
            match &route.admission {
                Admission::Public => writeln!(f, "access = \"public\"")?,
                Admission::AnyToken => writeln!(f, "access = \"token\"")?,
                Admission::Tokens(names) => writeln!(f, "tokens = {names:?}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for AgentSettings {
    /// As a configuration file, secrets masked: what `--check` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "broker = \"{}\"", self.broker)?;
        writeln!(f, "id = \"{}\"", self.id)?;
        writeln!(f, "keep_alive_s = {}", self.keep_alive.as_secs())?;
        writeln!(f, "max_timeout_ms = {}", self.max_timeout.as_millis())?;
        writeln!(f, "max_body_bytes = {}", self.max_body_bytes)?;
        writeln!(f, "max_buffered_bytes = {}", self.buffered_bytes())?;
        let refresh = self.presence_refresh.as_secs();
        writeln!(f, "presence_refresh_s = {refresh}")?;
        writeln!(f, "reply_prefixes = {:?}", self.reply_prefixes)?;
        write_tls(f, &self.broker)?;
        for service in &self.services {
            match &service.name {
                Some(name) => writeln!(f, "\n[[service]]\nname = \"{name}\"")?,
                None => writeln!(f, "\n[direct]")?,
            }
            writeln!(f, "request_topic = \"{}\"", service.request_topic)?;
            match &service.mode {
                ServiceMode::Json {
                    response_topic,
                    path,
                } => {
                    writeln!(f, "mode = \"json\"\nresponse_topic = \"{response_topic}\"")?;
                    writeln!(f, "path = \"{path}\"")?;
                }
                ServiceMode::Http { path_prefix, allow } => {
                    let methods: Vec<&str> = allow.methods.iter().map(Method::as_str).collect();
                    writeln!(f, "mode = \"http\"\npath_prefix = \"{path_prefix}\"")?;
                    writeln!(f, "methods = {methods:?}\npaths = {:?}", allow.paths)?;
                }
            }
            writeln!(f, "upstream = \"{}\"", service.upstream)?;
            writeln!(
                f,
                "workers = {}\nqueue = {}",
                service.workers, service.queue
            )?;
            writeln!(f, "timeout_ms = {}", service.timeout.as_millis())?;
        }
        Ok(())
    }
}

/// What an agent's file with this text means.
#[cfg(test)]
pub(crate) fn agent_settings_from(text: &str) -> AgentSettings {
    let file =
        std::env::temp_dir().join(format!("recado-settings-{}", crate::gateway::random_id()));
    std::fs::write(&file, text).unwrap();
    let flags = cli::Agent {
        config: Some(file.clone()),
        ..cli::Agent::default()
    };
    let settings = AgentSettings::load(&flags);
    std::fs::remove_file(&file).unwrap();
    settings.unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_not_repeated() {
        let error = broker_url(Some("me:hush@host")).unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
