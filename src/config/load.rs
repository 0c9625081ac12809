//! From flags, environment and file to one checked value.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::access::read_users;
use super::file::{BrokersPart, PresencePart};
use super::host::Host;
use super::login::Login;
use super::service::{self, PartService};
use super::values::{BrokerList, LogLevel, Within, resolve};
use super::{file, source};
use crate::agent::{AgentSettings, Service};
use crate::base::error::{Error, Result};
use crate::base::logging::level_from_environment;
use crate::base::topic::Id;
use crate::cli;
use crate::gateway::{
    self, Access, Admission, DEFAULT_TIMEOUT, GatewaySettings, Mode, Names, PresenceSettings, Route,
};
use crate::link::{BrokerMode, BrokerUrl, Brokers};
use crate::upstream::UpstreamSettings;

const DEFAULT_BROKER: &str = "mqtt://127.0.0.1:1883";
const DEFAULT_UPSTREAM: &str = "http://127.0.0.1:5001";
const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(10);
const DEFAULT_PRESENCE_REFRESH: Duration = Duration::from_secs(20);
const DEFAULT_STATS: Option<Duration> = Some(Duration::from_secs(10));
const DEFAULT_CHECK: Option<Duration> = Some(Duration::from_secs(10));

/// Reads the brokers' URLs from flags or their variable, and credentials from theirs.
///
/// Errors: one is no such URL ([`Error::Usage`]); its text, which may hold a password, is not
/// repeated.
pub fn broker_urls(flags: &[String]) -> Result<Vec<BrokerUrl>> {
    urls_with(flags, Login::default())
}

fn urls_with(flags: &[String], mut login: Login) -> Result<Vec<BrokerUrl>> {
    // A flag that says who we are beats the file.
    if flags.iter().any(|flag| flag.contains('@')) {
        login.username = None;
        login.password_file = None;
    }
    let parsed = |text: &str| {
        let url = text.parse::<BrokerUrl>();
        url.map_err(|reason| Error::Usage(format!("--broker or RECADO_BROKER: {reason}")))
    };
    let urls = match flags {
        [] => vec![parsed(DEFAULT_BROKER)?],
        flags => flags
            .iter()
            .map(|flag| parsed(flag))
            .collect::<Result<_>>()?,
    };
    login.complete(urls)
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

// The brokers of the flags, else those of the file, and what they are for.
fn brokers(
    flags: (&[String], Option<BrokerMode>),
    file: (Option<BrokerList>, BrokersPart),
    login: Login,
) -> Result<Brokers> {
    let urls = match (flags.0, file.0) {
        ([], Some(list)) => login.complete(list.0)?,
        (flags, _) => urls_with(flags, login)?,
    };
    let mode = flags.1.or(file.1.mode).unwrap_or_default();
    Brokers::new(urls, mode).map_err(|why| Error::Usage(format!("broker: {why}")))
}

// Which log lines are shown: what the environment says beats the file.
fn log_level(file: Option<LogLevel>) -> Result<LevelFilter> {
    let environment = level_from_environment()?;
    let file = file.map(|level| level.0);
    Ok(environment.or(file).unwrap_or(LevelFilter::Info))
}

// A name that no token has would shut everybody out, unnoticed.
fn check_tokens<'a>(
    routes: impl Iterator<Item = (&'a Route, &'a Range<usize>)>,
    access: &Access,
    source: &source::Source,
) -> Result<()> {
    let known = |name: &String| access.tokens.iter().any(|token| token.name == *name);
    for (route, tokens_at) in routes {
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

// Likewise.
fn check_monitors(access: &Access, at: &Range<usize>, source: &source::Source) -> Result<()> {
    let is_known = |name: &String| {
        let is_users = access.users.as_ref().is_some_and(|users| users.has(name));
        is_users || access.tokens.iter().any(|token| token.name == *name)
    };
    match access
        .monitors
        .iter()
        .flatten()
        .find(|name| !is_known(name))
    {
        None => Ok(()),
        Some(name) => {
            let message =
                format!("found {name:?}, allowed are names in tokens_file and users_file");
            Err(source.wrong(at, "monitors", message))
        }
    }
}

/// Puts flags, environment, file and defaults together.
///
/// Errors: the file can't be read or holds a bad value ([`Error::ReadFile`],
/// [`Error::Setting`]); a flag or variable is bad ([`Error::Usage`]).
pub fn gateway(flags: &cli::Api1) -> Result<GatewaySettings> {
    let (file, source): (file::Gateway, _) = source::load(flags.config.as_deref())?;
    let listen = match (&flags.listen, file.listen) {
        (Some(text), _) => listen_address(text)?,
        (None, Some(listen)) => listen.0,
        (None, None) => SocketAddr::from(([127, 0, 0, 1], 5000)),
    };
    let (access, monitors_at) = file.access.load()?;
    check_monitors(&access, &monitors_at, &source)?;
    let hosts = hosts(file.host, file.route.is_none(), &access, &source)?;
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
            let tokens = routes.iter().map(|it| (&it.route, &it.tokens_at));
            check_tokens(tokens, &access, &source)?;
            let whole = |it: file::Route| with_users(it.route, it.users_file);
            routes.into_iter().map(whole).collect::<Result<_>>()?
        }
    };
    let login = Login {
        username: file.username,
        password_file: file.password_file,
        tls: file.tls,
        proxy: file.proxy,
        websocket: file.websocket,
    };
    Ok(GatewaySettings {
        log: log_level(file.log)?,
        scheduling: file.scheduling.unwrap_or_default(),
        prefix: file.prefix.unwrap_or_default(),
        access,
        brokers: brokers(
            (&flags.broker, flags.broker_mode),
            (file.broker, file.brokers),
            login,
        )?,
        listen,
        id: file.id,
        front: flags.front.or(file.front).unwrap_or_default(),
        keep_alive: file
            .keep_alive_s
            .map_or(DEFAULT_KEEP_ALIVE, Within::seconds),
        max_waiting: file.max_waiting.map_or(1024, Within::size),
        presence: presence(file.presence),
        streams: file.http.streams(),
        http: file.http.limits(),
        routes,
        via: file.via.unwrap_or(false),
        names: Names {
            hosts,
            is_strict: file.strict_hosts.unwrap_or(false),
        },
    })
}

fn presence(file: PresencePart) -> PresenceSettings {
    let default = PresenceSettings::default();
    PresenceSettings {
        is_relied_upon: file.is_relied_upon.unwrap_or(default.is_relied_upon),
        part: file.filter.unwrap_or(default.part),
        max_agents: file.max_agents.map_or(default.max_agents, Within::size),
    }
}

// The names of a file; without any, those out of the box, unless it has its own routes: whoever has these
// must not find others beside them.
fn hosts(
    hosts: Option<Vec<Host>>,
    are_routes_built_in: bool,
    access: &Access,
    source: &source::Source,
) -> Result<Vec<gateway::Host>> {
    let Some(hosts) = hosts else {
        return Ok(match are_routes_built_in {
            true => gateway::Host::built_in(),
            false => Vec::new(),
        });
    };
    // What it asks for would not be asked for by a path that leads to the same.
    let asks_more = |it: &&Host| {
        let admission = it.host.route.as_ref().map(|route| &route.admission);
        it.users_file.is_some() || matches!(admission, Some(Admission::Tokens(_)))
    };
    if are_routes_built_in && let Some(host) = hosts.iter().find(asks_more) {
        let message = format!(
            "found {:?} with tokens or a users_file of its own, but the routes out of the box, below /agents/ and /services/, would lead to the same without asking for them; allowed is that with [[route]]s of your own, or with `route = []` at the top of the file",
            host.host.name
        );
        return Err(source.wrong(&host.name_at, "name", message));
    }
    let names = hosts.iter().map(|it| (it.host.name.as_str(), &it.name_at));
    source.no_repeats("name", names)?;
    let routes = hosts
        .iter()
        .filter_map(|it| Some((it.host.route.as_ref()?, &it.tokens_at)));
    check_tokens(routes, access, source)?;
    let whole = |it: Host| {
        let route = it.host.route.map(|route| with_users(route, it.users_file));
        Ok(gateway::Host {
            route: route.transpose()?,
            ..it.host
        })
    };
    hosts.into_iter().map(whole).collect()
}

fn with_users(mut route: Route, users_file: Option<PathBuf>) -> Result<Route> {
    route.users = users_file.map(read_users).transpose()?;
    Ok(route)
}

/// Puts flags, environment, file and defaults together.
///
/// Errors: as [`gateway()`].
pub fn agent(flags: &cli::Agent) -> Result<AgentSettings> {
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
    let tls = service::upstream_tls(file.upstream_ca_file, file.upstream_verify);
    let tls = tls.map_err(|why| Error::Setting {
        place: source.name().to_owned(),
        message: why,
    })?;
    let defaults = service::Defaults {
        upstream: UpstreamSettings {
            url: upstream,
            tls: tls.unwrap_or_default(),
        },
        workers: file.workers.map_or(64, Within::size),
        queue: file.queue.map_or(256, Within::size),
        timeout: file.timeout_ms.map_or(DEFAULT_TIMEOUT, Within::millis),
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
    let login = Login {
        username: file.username,
        password_file: file.password_file,
        tls: file.tls,
        proxy: file.proxy,
        websocket: file.websocket,
    };
    Ok(AgentSettings {
        log: log_level(file.log)?,
        scheduling: file.scheduling.unwrap_or_default(),
        prefix: file.prefix.unwrap_or_default(),
        brokers: brokers(
            (&flags.broker, flags.broker_mode),
            (file.broker, file.brokers),
            login,
        )?,
        id,
        keep_alive: file
            .keep_alive_s
            .map_or(DEFAULT_KEEP_ALIVE, Within::seconds),
        max_timeout: file
            .max_timeout_ms
            .map_or(Duration::from_secs(30), Within::millis),
        max_body_bytes: file.max_body_bytes.map_or(0, Within::size),
        streams: file::stream_limits(
            file.inline_bytes,
            file.max_streams,
            file.window_bytes,
            file.stream_idle_ms,
        ),
        max_buffered_bytes: file
            .max_buffered_bytes
            .map_or(16 * 1024 * 1024, Within::size),
        presence_refresh: file
            .presence_refresh_s
            .map_or(DEFAULT_PRESENCE_REFRESH, Within::seconds),
        stats: file.stats_ms.map_or(DEFAULT_STATS, |it| it.0),
        upstream_check: file.upstream_check_ms.map_or(DEFAULT_CHECK, |it| it.0),
        reply_prefixes: file
            .reply_prefixes
            .unwrap_or_else(|| vec!["api/ping/response".into(), "recado/".into()]),
        services,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_not_repeated() {
        let error = broker_urls(&["me:hush@host".into()]).unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
