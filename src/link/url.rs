//! Where the broker is, who we are there, and by whose word we believe that it is the broker.

use std::fmt;
use std::path::PathBuf;

use http::uri::PathAndQuery;
use serde::Deserialize;

use super::proxy::ProxyUrl;
use super::websocket::WebsocketHeaders;
use crate::base::authority::{host_and_port, login_of};

/// The longest path of a Unix socket, in bytes (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// What a TLS connection is made with; the files are PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsFiles {
    /// The certificate authorities to trust; none: those of the system.
    pub ca_file: Option<PathBuf>,
    /// The client certificate, with the chain up to the authority that the broker knows.
    pub certificate_file: Option<PathBuf>,
    /// The key of the client certificate.
    pub key_file: Option<PathBuf>,
    /// The protocols to offer (RFC 7301): some brokers tell MQTT from others on port 443 by that.
    pub alpn: Vec<String>,
}

/// How MQTT is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Over TCP: `mqtt://host:1883`.
    Mqtt,
    /// Over TLS: `mqtts://host:8883`.
    Mqtts,
    /// Over WebSocket (MQTT 5, section 6): `ws://host:80/mqtt`.
    Ws,
    /// Over WebSocket and TLS: `wss://host:443/mqtt`.
    Wss,
    /// Over a Unix socket of this machine: `unix:/run/mosquitto.sock`.
    Unix,
}

impl Scheme {
    fn named(name: &str) -> Option<Scheme> {
        let all = [Scheme::Mqtt, Scheme::Mqtts, Scheme::Ws, Scheme::Wss];
        all.into_iter().find(|scheme| scheme.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Scheme::Mqtt => "mqtt",
            Scheme::Mqtts => "mqtts",
            Scheme::Ws => "ws",
            Scheme::Wss => "wss",
            Scheme::Unix => "unix",
        }
    }

    /// The port where the URL has none.
    pub fn port(self) -> u16 {
        match self {
            Scheme::Mqtt => 1883,
            Scheme::Mqtts => 8883,
            Scheme::Ws => 80,
            Scheme::Wss => 443,
            Scheme::Unix => 0,
        }
    }

    /// Whether it is encrypted.
    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Mqtts | Scheme::Wss)
    }

    /// Whether it is a WebSocket.
    pub fn is_websocket(self) -> bool {
        matches!(self, Scheme::Ws | Scheme::Wss)
    }
}

/// Where a broker is, how it is reached, and who we are there.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BrokerUrl {
    scheme: Scheme,
    host: String,
    port: u16,
    // Of the WebSocket's URL, or of the Unix socket.
    path: String,
    credentials: Option<(String, String)>,
    tls_files: TlsFiles,
    proxy: Option<ProxyUrl>,
    websocket: WebsocketHeaders,
}

impl BrokerUrl {
    /// How it is reached.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The broker's host name or address; an IPv6 address in brackets. Empty for a Unix socket.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The broker's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path of the WebSocket's URL, or of the Unix socket.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether to speak TLS.
    pub fn is_tls(&self) -> bool {
        self.scheme.is_tls()
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

    /// The proxy on the way to it.
    pub fn proxy(&self) -> Option<&ProxyUrl> {
        self.proxy.as_ref()
    }

    /// The fields of the request for a WebSocket.
    pub fn websocket_headers(&self) -> &WebsocketHeaders {
        &self.websocket
    }

    /// Whether another leads to the same broker, whoever connects and whomever it trusts.
    pub fn is_same_place(&self, other: &BrokerUrl) -> bool {
        let place = |it: &BrokerUrl| (it.scheme, it.host.clone(), it.port, it.path.clone());
        place(self) == place(other)
    }

    pub(crate) fn set_tls_files(&mut self, files: TlsFiles) {
        self.tls_files = files;
    }

    pub(crate) fn set_proxy(&mut self, proxy: Option<ProxyUrl>) {
        self.proxy = proxy;
    }

    pub(crate) fn set_websocket_headers(&mut self, headers: WebsocketHeaders) {
        self.websocket = headers;
    }

    /// User name and password, each where given, replace what the URL says.
    pub(crate) fn set_credentials(&mut self, username: Option<String>, password: Option<String>) {
        if username.is_some() || password.is_some() {
            let (own_username, own_password) = self.credentials.take().unwrap_or_default();
            let username = username.unwrap_or(own_username);
            self.credentials = Some((username, password.unwrap_or(own_password)));
        }
    }

    fn socket(path: &str) -> Result<BrokerUrl, String> {
        // As a URL with an empty authority, which means the same.
        let path = match path.strip_prefix("//") {
            Some(rest) => rest,
            None => path,
        };
        if !path.starts_with('/') || path.len() > MAX_SOCKET_PATH {
            return Err(format!(
                "unix: takes the whole path of a socket, of {MAX_SOCKET_PATH} bytes at the most"
            ));
        }
        Ok(BrokerUrl {
            scheme: Scheme::Unix,
            host: String::new(),
            port: 0,
            path: path.to_owned(),
            credentials: None,
            tls_files: TlsFiles::default(),
            proxy: None,
            websocket: WebsocketHeaders::default(),
        })
    }
}

// The path that follows an authority; none: the one that most brokers have WebSockets at.
fn websocket_path(path: &str) -> Option<&str> {
    match path {
        "" => Some("/mqtt"),
        path => path.parse::<PathAndQuery>().ok().map(|_| path),
    }
}

impl std::str::FromStr for BrokerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<BrokerUrl, String> {
        let shape = || {
            "allowed is mqtt://[user:password@]host[:port], or mqtts:// for TLS, ws:// and wss:// with [/path] for WebSockets, unix:/path of a socket; a port is 1 to 65535".to_owned()
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return BrokerUrl::socket(path);
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(shape)?;
        let scheme = Scheme::named(scheme).ok_or_else(shape)?;
        let (authority, path) = match scheme.is_websocket() {
            true => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            false => (rest.strip_suffix('/').unwrap_or(rest), ""),
        };
        let path = match scheme.is_websocket() {
            true => websocket_path(path).ok_or_else(shape)?,
            false => "",
        };
        let (credentials, authority) = login_of(authority)?;
        let Some((host, port)) = host_and_port(authority) else {
            return Err(shape());
        };
        if scheme.is_tls() && host.starts_with('[') {
            let name = scheme.name();
            return Err(format!("{name}:// needs a host name, not an IPv6 address"));
        }
        Ok(BrokerUrl {
            scheme,
            host: host.to_owned(),
            port: port.unwrap_or(scheme.port()),
            path: path.to_owned(),
            credentials,
            tls_files: TlsFiles::default(),
            proxy: None,
            websocket: WebsocketHeaders::default(),
        })
    }
}

impl TryFrom<String> for BrokerUrl {
    type Error = String;

    fn try_from(text: String) -> Result<BrokerUrl, String> {
        // The text is not shown: it may hold a password.
        text.parse()
    }
}

impl fmt::Display for BrokerUrl {
    /// The URL without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scheme == Scheme::Unix {
            return write!(f, "unix:{}", self.path);
        }
        write!(f, "{}://", self.scheme.name())?;
        if let Some((username, _)) = &self.credentials {
            write!(f, "{username}:***@")?;
        }
        write!(f, "{}:{}{}", self.host, self.port, self.path)
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
            "ws://host/a b",
            "ws://host?x",
            "wss://[::1]/mqtt",
            "unix:mosquitto.sock",
            "unix://host/x",
            "tcp://host",
        ] {
            assert!(bad.parse::<BrokerUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_way_to_a_broker() {
        for (text, shown, host, port, path) in [
            ("ws://host", "ws://host:80/mqtt", "host", 80, "/mqtt"),
            ("ws://host/", "ws://host:80/", "host", 80, "/"),
            (
                "wss://host/a/b?c=d",
                "wss://host:443/a/b?c=d",
                "host",
                443,
                "/a/b?c=d",
            ),
            (
                "wss://me:a%2Fb@host:1",
                "wss://me:***@host:1/mqtt",
                "host",
                1,
                "/mqtt",
            ),
            (
                "unix:/run/broker.sock",
                "unix:/run/broker.sock",
                "",
                0,
                "/run/broker.sock",
            ),
        ] {
            let url = url(text);
            assert_eq!(url.to_string(), shown);
            assert_eq!((url.host(), url.port(), url.path()), (host, port, path));
        }
        let same = |one: &str, two: &str| url(one).is_same_place(&url(two));
        assert!(same("ws://host", "ws://me@host/mqtt"));
        assert!(!same("ws://host", "ws://host/other"));
        assert!(!same("ws://host:443", "wss://host"));
    }

    #[test]
    fn a_password_is_never_shown() {
        let secret = url("mqtt://me:hush@host");
        assert_eq!(secret.to_string(), "mqtt://me:***@host:1883");
        assert!(!format!("{secret:?}").contains("hush"));
    }
}
