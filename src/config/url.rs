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
        let shape =
            || "allowed is mqtt://[user:password@]host[:port], or mqtts:// for TLS".to_owned();
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
        let authority: http::uri::Authority = authority.parse().map_err(|_| shape())?;
        if authority.host().is_empty() || authority.as_str().ends_with(':') {
            return Err(shape());
        }
        if tls && authority.host().starts_with('[') {
            return Err("mqtts:// needs a host name, not an IPv6 address".into());
        }
        // `port_u16` is None for a port that is no number below 65536, too.
        let port = match (authority.port_u16(), authority.as_str() == authority.host()) {
            (Some(port), _) => port,
            (None, true) if tls => 8883,
            (None, true) => 1883,
            (None, false) => return Err(shape()),
        };
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
            host: authority.host().to_owned(),
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
        if text.contains('@') {
            return Err(
                "user and password can't stand in it; allowed is http://host[:port][/path]".into(),
            );
        }
        let uri: http::Uri = text.parse().map_err(|error| {
            format!("found {text:?} ({error}), allowed is http://host[:port][/path]")
        })?;
        if uri.scheme_str() != Some("http")
            || uri.host().is_none_or(str::is_empty)
            || uri.query().is_some()
        {
            return Err(format!(
                "found {text:?}, allowed is http://host[:port][/path]"
            ));
        }
        Ok(UpstreamUrl(text.trim_end_matches('/').to_owned()))
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
            "mqtt://host:x",
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
        for bad in [
            "",
            "host:80",
            "https://host",
            "http://",
            "http://host?x=1",
            "ftp://host",
        ] {
            assert!(bad.parse::<UpstreamUrl>().is_err(), "{bad}");
        }
    }
}
