//! The URLs of the broker and of the upstream.

use std::fmt;

use serde::Deserialize;

use super::login::TlsFiles;

/// Where the broker is and who we are there: `mqtt://host:1883`, `mqtts://host:8883`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BrokerUrl {
    host: String,
    port: u16,
    tls: bool,
    credentials: Option<(String, String)>,
    tls_files: TlsFiles,
}

impl BrokerUrl {
    /// The broker's host name or address; an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The broker's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether to speak TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// User name and password.
    pub fn credentials(&self) -> Option<(&str, &str)> {
        self.credentials
            .as_ref()
            .map(|(username, password)| (username.as_str(), password.as_str()))
    }

    /// The certificates of the TLS connection.
    pub fn tls_files(&self) -> &TlsFiles {
        &self.tls_files
    }

    pub(super) fn set_tls_files(&mut self, files: TlsFiles) {
        self.tls_files = files;
    }

    /// User name and password, each where given, replace what the URL says.
    pub(super) fn set_credentials(&mut self, username: Option<String>, password: Option<String>) {
        if username.is_some() || password.is_some() {
            let (own_username, own_password) = self.credentials.take().unwrap_or_default();
            let username = username.unwrap_or(own_username);
            self.credentials = Some((username, password.unwrap_or(own_password)));
        }
    }
}

impl std::str::FromStr for BrokerUrl {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<BrokerUrl, String> {
        let shape = || {
            "allowed is mqtt://[user:password@]host[:port], or mqtts:// for TLS; a port is 1 to 65535".to_owned()
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(shape)?;
        let tls = match scheme {
            "mqtt" => false,
            "mqtts" => true,
            _ => return Err(shape()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (userinfo, authority) = match rest.rsplit_once('@') {
            Some((userinfo, authority)) => (Some(userinfo), authority),
            None => (None, rest),
        };
        let Some((host, port)) = host_and_port(authority) else {
            return Err(shape());
        };
        if tls && host.starts_with('[') {
            return Err("mqtts:// needs a host name, not an IPv6 address".into());
        }
        let port = port.unwrap_or(if tls { 8883 } else { 1883 });
        let credentials = userinfo
            .map(|userinfo| {
                let (username, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
                let decode = |text: &str| {
                    percent_encoding::percent_decode_str(text)
                        .decode_utf8()
                        .map(|text| text.into_owned())
                        .map_err(|_| "user and password must be UTF-8".to_owned())
                };
                Ok::<_, String>((decode(username)?, decode(password)?))
            })
            .transpose()?;
        Ok(BrokerUrl {
            host: host.to_owned(),
            port,
            tls,
            credentials,
            tls_files: TlsFiles::default(),
        })
    }
}

impl TryFrom<String> for BrokerUrl {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<BrokerUrl, String> {
        // The text is not shown: it may hold a password.
        text.parse()
    }
}

impl fmt::Display for BrokerUrl {
    /// The URL without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        write!(f, "{scheme}://")?;
        if let Some((username, _)) = &self.credentials {
            write!(f, "{username}:***@")?;
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The base URL of the upstream: `http://host:port`, perhaps with a path below which all is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct UpstreamUrl(String);

impl UpstreamUrl {
    /// Whether everything is below a path of its own.
    pub fn has_path(&self) -> bool {
        self.0.matches('/').count() > 2
    }

    /// The URL of a path below the upstream. `path` begins with a slash.
    pub fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

impl std::str::FromStr for UpstreamUrl {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<UpstreamUrl, String> {
        const ALLOWED: &str = "allowed is http://host[:port][/path], a port is 1 to 65535";
        if text.contains('@') {
            return Err(format!("user and password can't stand in it; {ALLOWED}"));
        }
        let wrong = |what: &str| format!("found {text:?}, {what}; {ALLOWED}");
        let rest = text
            .get(.."http://".len())
            .filter(|scheme| scheme.eq_ignore_ascii_case("http://"))
            .map(|scheme| &text[scheme.len()..])
            .ok_or_else(|| wrong("which does not begin with http://"))?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if host_and_port(authority).is_none() {
            return Err(wrong("whose host or port can't be meant"));
        }
        if path.contains(['?', '#']) {
            return Err(wrong("whose query or fragment no request could carry"));
        }
        let is_path = path.is_empty() || path.parse::<http::uri::PathAndQuery>().is_ok();
        let mut segments = path.split('/');
        if !is_path || segments.any(|segment| matches!(segment, "." | "..")) {
            return Err(wrong("whose path can't be meant"));
        }
        let url = format!("http://{authority}{path}");
        Ok(UpstreamUrl(url.trim_end_matches('/').to_owned()))
    }
}

// RFC 3986, section 3.2, without user information: a name or an address, and perhaps a port that
// something can listen on.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(literal) => {
            let (address, _) = literal.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            authority.split_at(address.len() + 2)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_name = (1..=253).contains(&host.len()) && host.chars().all(fits);
    if !host.starts_with('[') && !is_name {
        return None;
    }
    match port.strip_prefix(':') {
        None => port.is_empty().then_some((host, None)),
        Some(port) => {
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse().ok().filter(|port| digits && *port > 0)?;
            Some((host, Some(port)))
        }
    }
}

impl TryFrom<String> for UpstreamUrl {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<UpstreamUrl, String> {
        text.parse()
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> BrokerUrl {
        text.parse().unwrap()
    }

    #[test]
    fn broker_urls() {
        assert_eq!(
            (url("mqtt://host").host(), url("mqtt://host").port()),
            ("host", 1883)
        );
        assert_eq!(url("mqtts://host/").port(), 8883);
        assert!(url("mqtts://host").is_tls());
        assert_eq!(url("mqtt://[::1]:9").host(), "[::1]");
        assert_eq!(
            url("mqtt://me:p%40ss@host:1").credentials(),
            Some(("me", "p@ss"))
        );
        for bad in [
            "host:1883",
            "http://host",
            "mqtt://",
            "mqtt://host:",
            "mqtt://host:99999",
            "mqtt://host:0",
            "mqtt://host:x",
            "mqtt://host:+1",
            "mqtt://host#x",
            "mqtt://host?x",
            "mqtt://[::zz]",
            "mqtt://[::1",
            "mqtt://a,b",
            "mqtt://host/path",
            "mqtt://ho st",
        ] {
            assert!(bad.parse::<BrokerUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let secret = url("mqtt://me:hush@host");
        assert_eq!(secret.to_string(), "mqtt://me:***@host:1883");
        assert!(!format!("{secret:?}").contains("hush"));
    }

    #[test]
    fn upstream_urls() {
        let base: UpstreamUrl = "http://127.0.0.1:5001/".parse().unwrap();
        assert_eq!(base.join("/ping"), "http://127.0.0.1:5001/ping");
        let below: UpstreamUrl = "http://host/app".parse().unwrap();
        assert_eq!(below.join("/ping"), "http://host/app/ping");
        for good in [
            "http://[::1]:80/a",
            "HTTP://my_host.local",
            "http://h/a%20b/;c",
        ] {
            assert!(good.parse::<UpstreamUrl>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "host:80",
            "https://host",
            "http://",
            "http://host?x=1",
            "http://host#x",
            "http://127.0.0.1:15001/#/",
            "http://host/a?b",
            "http://host:",
            "http://host:0",
            "http://host:99999",
            "http://host:x/",
            "http://host:80:80",
            "http://[::1",
            "http://[zz]:80",
            "http://ho st",
            "http://host/a b",
            "http://host/../a",
            "http://host/a/./b",
            "http:///path",
            "ftp://host",
        ] {
            assert!(bad.parse::<UpstreamUrl>().is_err(), "{bad}");
        }
    }
}
