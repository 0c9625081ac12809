//! What `--check` prints: settings as a configuration file, secrets masked.

use std::fmt;

use http::Method;
use log::LevelFilter;

use crate::agent::{AgentSettings, HostHeader, HttpMode, ServiceMode};
use crate::gateway::{Admission, GatewaySettings, Mode, PresenceSettings, Route, Users};
use crate::link::{Brokers, TlsFiles};
use crate::stream::StreamLimits;

fn write_log(f: &mut fmt::Formatter<'_>, level: LevelFilter) -> fmt::Result {
    writeln!(f, "log = \"{}\"", level.as_str().to_lowercase())
}

fn write_brokers(f: &mut fmt::Formatter<'_>, brokers: &Brokers) -> fmt::Result {
    match brokers.urls() {
        [only] => writeln!(f, "broker = \"{only}\"")?,
        several => {
            let list: Vec<String> = several.iter().map(ToString::to_string).collect();
            writeln!(f, "broker = {list:?}")?;
        }
    }
    // Of each what is used: the environment may say that some need none.
    for url in brokers.urls() {
        if let Some(proxy) = url.proxy() {
            return writeln!(f, "proxy = \"{proxy}\"");
        }
    }
    Ok(())
}

// The tables that say how brokers are reached.
fn write_ways(f: &mut fmt::Formatter<'_>, brokers: &Brokers) -> fmt::Result {
    if brokers.urls().len() > 1 {
        writeln!(f, "\n[brokers]\nmode = \"{}\"", brokers.mode())?;
    }
    let urls = brokers.urls();
    let with_headers = urls.iter().find_map(|url| url.websocket_headers().file());
    if let Some(file) = with_headers {
        writeln!(f, "\n[websocket]\nheaders_file = {file:?}")?;
    }
    match urls.iter().find(|url| url.is_tls()) {
        Some(url) => write_tls(f, url.tls_files()),
        None => Ok(()),
    }
}

fn write_presence(f: &mut fmt::Formatter<'_>, presence: &PresenceSettings) -> fmt::Result {
    writeln!(f, "\n[presence]\nenabled = {}", presence.is_relied_upon)?;
    writeln!(f, "filter = \"{}\"", presence.part)?;
    writeln!(f, "max_agents = {}", presence.max_agents)
}

fn write_tls(f: &mut fmt::Formatter<'_>, files: &TlsFiles) -> fmt::Result {
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
    match files.alpn.is_empty() {
        true => Ok(()),
        false => writeln!(f, "alpn = {:?}", files.alpn),
    }
}

fn write_streams(f: &mut fmt::Formatter<'_>, limits: &StreamLimits) -> fmt::Result {
    writeln!(f, "inline_bytes = {}", limits.inline_bytes)?;
    writeln!(f, "max_streams = {}", limits.max_streams)?;
    writeln!(f, "window_bytes = {}", limits.window)?;
    let idle = limits.idle.unwrap_or_default();
    writeln!(f, "stream_idle_ms = {}", idle.as_millis())
}

impl fmt::Display for GatewaySettings {
    /// As a configuration file, secrets masked: what `--check` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_brokers(f, &self.brokers)?;
        write_log(f, self.log)?;
        writeln!(f, "scheduling = \"{}\"", self.scheduling)?;
        writeln!(f, "prefix = \"{}\"", self.prefix)?;
        writeln!(f, "listen = \"{}\"", self.listen)?;
        match &self.id {
            Some(id) => writeln!(f, "id = \"{id}\"")?,
            None => writeln!(f, "# id: a random one at each start")?,
        }
        writeln!(f, "front = \"{}\"", self.front)?;
        writeln!(f, "keep_alive_s = {}", self.keep_alive.as_secs())?;
        writeln!(f, "max_waiting = {}", self.max_waiting)?;
        writeln!(f, "via = {}", self.via)?;
        writeln!(f, "strict_hosts = {}", self.names.is_strict)?;
        write_presence(f, &self.presence)?;
        let http = &self.http;
        writeln!(f, "\n[http]\nmax_connections = {}", http.max_connections)?;
        writeln!(f, "max_head_bytes = {}", http.max_head_bytes)?;
        writeln!(f, "max_body_bytes = {}", http.max_body_bytes)?;
        write_streams(f, &self.streams)?;
        writeln!(f, "max_buffered_bytes = {}", http.buffered_bytes())?;
        writeln!(f, "head_timeout_ms = {}", http.head_timeout.as_millis())?;
        writeln!(f, "body_timeout_ms = {}", http.body_timeout.as_millis())?;
        writeln!(f, "idle_timeout_ms = {}", http.idle_timeout.as_millis())?;
        write_ways(f, &self.brokers)?;
        writeln!(f, "\n[access]")?;
        let access = &self.access;
        if let Some(file) = &access.tokens_file {
            writeln!(f, "tokens_file = {file:?}")?;
        }
        let names: Vec<&str> = access.tokens.iter().map(|it| it.name.as_str()).collect();
        writeln!(f, "# tokens: {names:?}")?;
        write_users(f, access.users.as_deref())?;
        if let Some(names) = &access.monitors {
            writeln!(f, "monitors = {names:?}")?;
        }
        let proxies: Vec<String> = access
            .trusted_proxies
            .iter()
            .map(ToString::to_string)
            .collect();
        writeln!(f, "trusted_proxies = {proxies:?}")?;
        for route in &self.routes {
            writeln!(f, "\n[[route]]\npath = \"{}\"", route.path)?;
            writeln!(f, "request_topic = \"{}\"", route.request_topic)?;
            match &route.mode {
                Mode::Json { response_topic } => {
                    writeln!(f, "mode = \"json\"\nresponse_topic = \"{response_topic}\"")?;
                }
                Mode::Http => writeln!(f, "mode = \"http\"")?,
            }
            write_call(f, route)?;
        }
        for host in &self.names.hosts {
            writeln!(f, "\n[[host]]\nname = \"{}\"", host.name)?;
            let Some(route) = &host.route else {
                continue;
            };
            let topic = route.request_topic.to_string();
            let mut levels = topic.split('/').skip(1);
            match (levels.next(), levels.next()) {
                (Some("services"), Some(name)) => writeln!(f, "service = \"{name}\"")?,
                (_, Some(id)) if !host.name.starts_with('*') => writeln!(f, "agent = \"{id}\"")?,
                _ => {}
            }
            write_call(f, route)?;
        }
        Ok(())
    }
}

fn write_http(f: &mut fmt::Formatter<'_>, mode: &HttpMode) -> fmt::Result {
    let allow = &mode.allow;
    let methods: Vec<&str> = allow.methods.iter().map(Method::as_str).collect();
    writeln!(f, "mode = \"http\"\npath_prefix = \"{}\"", mode.path_prefix)?;
    writeln!(f, "methods = {methods:?}\npaths = {:?}", allow.paths)?;
    match &mode.host_header {
        HostHeader::Named => {}
        HostHeader::Upstream => writeln!(f, "host_header = \"upstream\"")?,
        HostHeader::Caller => writeln!(f, "host_header = \"caller\"")?,
        HostHeader::Fixed(host) => writeln!(f, "host_header = {host:?}")?,
    }
    writeln!(f, "rewrite = {}", mode.rewrite)
}

fn write_users(f: &mut fmt::Formatter<'_>, users: Option<&Users>) -> fmt::Result {
    let Some(users) = users else {
        return Ok(());
    };
    writeln!(f, "users_file = {:?}\n# users: {users:?}", users.path())
}

// What routes and names have in common.
fn write_call(f: &mut fmt::Formatter<'_>, route: &Route) -> fmt::Result {
    if !route.methods.is_empty() {
        let methods: Vec<&str> = route.methods.iter().map(Method::as_str).collect();
        writeln!(f, "methods = {methods:?}")?;
    }
    writeln!(f, "timeout_ms = {}", route.timeout.as_millis())?;
    writeln!(f, "qos = {}", route.qos)?;
    write_users(f, route.users.as_deref())?;
    if route.mode == Mode::Http {
        writeln!(f, "rewrite = {}", route.rewrite)?;
    }
    match &route.admission {
        Admission::Public => writeln!(f, "access = \"public\""),
        Admission::AnyToken => writeln!(f, "access = \"token\""),
        Admission::Tokens(names) => writeln!(f, "tokens = {names:?}"),
    }
}

impl fmt::Display for AgentSettings {
    /// As a configuration file, secrets masked: what `--check` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_brokers(f, &self.brokers)?;
        write_log(f, self.log)?;
        writeln!(f, "scheduling = \"{}\"", self.scheduling)?;
        writeln!(f, "prefix = \"{}\"", self.prefix)?;
        writeln!(f, "id = \"{}\"", self.id)?;
        writeln!(f, "keep_alive_s = {}", self.keep_alive.as_secs())?;
        writeln!(f, "max_timeout_ms = {}", self.max_timeout.as_millis())?;
        writeln!(f, "max_body_bytes = {}", self.max_body_bytes)?;
        write_streams(f, &self.streams)?;
        writeln!(f, "max_buffered_bytes = {}", self.buffered_bytes())?;
        let refresh = self.presence_refresh.as_secs();
        writeln!(f, "presence_refresh_s = {refresh}")?;
        for (key, every) in [
            ("stats_ms", self.stats),
            ("upstream_check_ms", self.upstream_check),
        ] {
            writeln!(f, "{key} = {}", every.unwrap_or_default().as_millis())?;
        }
        writeln!(f, "reply_prefixes = {:?}", self.reply_prefixes)?;
        write_ways(f, &self.brokers)?;
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
                ServiceMode::Http(mode) => write_http(f, mode)?,
            }
            writeln!(f, "upstream = \"{}\"", service.upstream.url)?;
            if let Some(file) = &service.upstream.tls.ca_file {
                writeln!(f, "upstream_ca_file = {file:?}")?;
            }
            if !service.upstream.tls.verify {
                writeln!(f, "upstream_verify = false")?;
            }
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
