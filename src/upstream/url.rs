//! The URL of an upstream.

use std::fmt;

use serde::Deserialize;

use crate::base::authority::host_and_port;

/// The base URL of the upstream: `http://host:port`, perhaps with a path below which all is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct UpstreamUrl(String);

impl UpstreamUrl {
    /// Whether everything is below a path of its own.
    pub fn has_path(&self) -> bool {
        !self.path().is_empty()
    }

    /// The scheme.
    pub fn scheme(&self) -> &str {
        self.0.split_once("://").map_or("", |(scheme, _)| scheme)
    }

    // What stands behind the scheme: the authority, and the path below which all is.
    fn split(&self) -> (&str, &str) {
        let rest = self.0.split_once("://").map_or("", |(_, rest)| rest);
        rest.split_at(rest.find('/').unwrap_or(rest.len()))
    }

    /// The host, and the port if it is not the scheme's own.
    pub fn authority(&self) -> &str {
        self.split().0
    }

    /// The path below which all is, without a slash at its end; empty: there is none.
    pub fn path(&self) -> &str {
        self.split().1
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
