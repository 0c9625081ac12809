//! Where the broker is, who we are there, and by whose word we believe that it is the broker.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::base::authority::host_and_port;

/// The files of a TLS connection, all in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsFiles {
    /// The certificate authorities to trust; none: those of the system.
    pub ca_file: Option<PathBuf>,
    /// The client certificate, with the chain up to the authority that the broker knows.
    pub certificate_file: Option<PathBuf>,
    /// The key of the client certificate.
    pub key_file: Option<PathBuf>,
}

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

    /// Whether another leads to the same broker, whoever connects and whomever it trusts.
    pub fn is_same_place(&self, other: &BrokerUrl) -> bool {
        (&self.host, self.port, self.tls) == (&other.host, other.port, other.tls)
    }

    pub(crate) fn set_tls_files(&mut self, files: TlsFiles) {
        self.tls_files = files;
    }

    /// User name and password, each where given, replace what the URL says.
    pub(crate) fn set_credentials(&mut self, username: Option<String>, password: Option<String>) {
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
}
