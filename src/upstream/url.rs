//! The URL of an upstream.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::base::authority::host_and_port;

/// The base URL of the upstream: `http://host:port` or `https://host:port`, perhaps with a path below which
/// all is; or `unix:/path`, the path of a socket.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct UpstreamUrl {
    base: String,
    socket: Option<PathBuf>,
}

impl UpstreamUrl {
    /// Whether everything is below a path of its own.
    pub fn has_path(&self) -> bool {
        !self.path().is_empty()
    }

    /// The scheme.
    pub fn scheme(&self) -> &str {
        self.base.split_once("://").map_or("", |(scheme, _)| scheme)
    }

    // What stands behind the scheme: the authority, and the path below which all is.
    fn split(&self) -> (&str, &str) {
        let rest = self.base.split_once("://").map_or("", |(_, rest)| rest);
        rest.split_at(rest.find('/').unwrap_or(rest.len()))
    }

    /// The host, and the port if it is not the scheme's own.
    pub fn authority(&self) -> &str {
        self.split().0
    }

    /// The host alone.
    pub fn host(&self) -> &str {
        host_and_port(self.authority()).map_or("", |(host, _)| host)
    }

    /// The path of the Unix socket, if it is one.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// The path below which all is, without a slash at its end; empty: there is none.
    pub fn path(&self) -> &str {
        self.split().1
    }

    /// The URL of a path below the upstream. `path` begins with a slash.
    pub fn join(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

impl std::str::FromStr for UpstreamUrl {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<UpstreamUrl, String> {
        const ALLOWED: &str = "allowed is http://host[:port][/path], https:// likewise, or unix:/path of a socket; a port is 1 to 65535";
        if let Some(path) = text.strip_prefix("unix:") {
            // More does not fit into the address of a socket.
            let fits = path.starts_with('/') && path.len() < 108 && !path.contains('\0');
            return match fits {
                true => Ok(UpstreamUrl {
                    base: "http://localhost".to_owned(),
                    socket: Some(path.into()),
                }),
                false => Err(format!(
                    "found {text:?}, whose path is not whole; {ALLOWED}"
                )),
            };
        }
        if text.contains('@') {
            return Err(format!("user and password can't stand in it; {ALLOWED}"));
        }
        let wrong = |what: &str| format!("found {text:?}, {what}; {ALLOWED}");
        let (scheme, rest) = text
            .split_once("://")
            .map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest))
            .filter(|(scheme, _)| matches!(scheme.as_str(), "http" | "https"))
            .ok_or_else(|| wrong("which does not begin with http:// or https://"))?;
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
        let url = format!("{scheme}://{authority}{path}");
        Ok(UpstreamUrl {
            base: url.trim_end_matches('/').to_owned(),
            socket: None,
        })
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
        match &self.socket {
            Some(path) => write!(f, "unix:{}", path.display()),
            None => f.write_str(&self.base),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_urls() {
        let base: UpstreamUrl = "http://127.0.0.1:5001/".parse().unwrap();
        assert_eq!(base.join("/ping"), "http://127.0.0.1:5001/ping");
        let socket: UpstreamUrl = "unix:/run/app.sock".parse().unwrap();
        assert_eq!(socket.join("/ping"), "http://localhost/ping");
        assert_eq!(socket.to_string(), "unix:/run/app.sock");
        let below: UpstreamUrl = "http://host/app".parse().unwrap();
        assert_eq!(below.join("/ping"), "http://host/app/ping");
        for good in [
            "http://[::1]:80/a",
            "HTTP://my_host.local",
            "http://h/a%20b/;c",
            "https://host",
            "HTTPS://host:8443/app",
            "unix:/run/app.sock",
        ] {
            assert!(good.parse::<UpstreamUrl>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "host:80",
            "unix:app.sock",
            "unix:",
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
