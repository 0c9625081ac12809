//! A proxy on the way to the broker: HTTP CONNECT (RFC 9110, section 9.3.6).

use std::fmt;
use std::str::FromStr;

use crate::base::authority::{host_and_port, login_of};

/// Where a proxy is, and who we are there: `http://[user:password@]host:port`.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    host: String,
    port: u16,
    credentials: Option<(String, String)>,
}

impl ProxyUrl {
    /// What the environment says of the way to `host`, as curl reads it: `https_proxy`, else `all_proxy`,
    /// unless `no_proxy` names the host; in lower or upper case.
    ///
    /// Errors: a variable holds something else than such a URL; which.
    pub fn of_environment(host: &str) -> Result<Option<ProxyUrl>, String> {
        let variable = |name: &'static str| {
            let either = std::env::var(name).or_else(|_| std::env::var(name.to_uppercase()));
            let value = either.ok().filter(|value| !value.is_empty());
            value.map(|value| (name, value))
        };
        if variable("no_proxy").is_some_and(|(_, list)| is_listed(&list, host)) {
            return Ok(None);
        }
        let found = variable("https_proxy").or_else(|| variable("all_proxy"));
        found
            .map(|(name, url)| url.parse().map_err(|why| format!("{name}: {why}")))
            .transpose()
    }

    #[cfg(feature = "proxy")]
    pub(super) fn of_rumqttc(&self) -> rumqttc::Proxy {
        use rumqttc::{Proxy, ProxyAuth, ProxyType};
        Proxy {
            ty: ProxyType::Http,
            auth: match &self.credentials {
                None => ProxyAuth::None,
                Some((username, password)) => ProxyAuth::Basic {
                    username: username.clone(),
                    password: password.clone(),
                },
            },
            addr: self.host.clone(),
            port: self.port,
        }
    }
}

// Names, each with all below it, and addresses, with commas; or `*` for all.
fn is_listed(list: &str, host: &str) -> bool {
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    list.split(',').map(str::trim).any(|entry| {
        let entry = entry.trim_start_matches('.').to_ascii_lowercase();
        let is_below = || {
            host.strip_suffix(&entry)
                .is_some_and(|above| above.ends_with('.'))
        };
        entry == "*" || !entry.is_empty() && (host == entry || is_below())
    })
}

impl FromStr for ProxyUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<ProxyUrl, String> {
        // The text is not shown: it may hold a password.
        let shape = || "allowed is http://[user:password@]host:port of an HTTP proxy".to_owned();
        let rest = text.strip_prefix("http://").ok_or_else(shape)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, authority) = login_of(rest)?;
        let (host, port) = host_and_port(authority).ok_or_else(shape)?;
        Ok(ProxyUrl {
            host: host.to_owned(),
            port: port.ok_or_else(shape)?,
            credentials,
        })
    }
}

impl fmt::Display for ProxyUrl {
    /// The URL without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("http://")?;
        if let Some((username, _)) = &self.credentials {
            write!(f, "{username}:***@")?;
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_urls() {
        let good: ProxyUrl = "http://me:p%40ss@proxy:3128/".parse().unwrap();
        assert_eq!(good.to_string(), "http://me:***@proxy:3128");
        assert_eq!(good.credentials.unwrap().1, "p@ss");
        for bad in [
            "proxy:3128",
            "http://proxy",
            "https://proxy:1",
            "socks5://proxy:1",
            "",
        ] {
            assert!(bad.parse::<ProxyUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_near_needs_no_proxy() {
        let is_near = |host| is_listed("localhost, .corp.example,10.0.0.1,::1", host);
        for near in [
            "localhost",
            "LOCALHOST",
            "corp.example",
            "a.b.corp.example",
            "10.0.0.1",
            "[::1]",
        ] {
            assert!(is_near(near), "{near}");
        }
        for far in ["example", "notcorp.example", "10.0.0.11", "host"] {
            assert!(!is_near(far), "{far}");
        }
        assert!(is_listed("*", "anything"));
        assert!(!is_listed("", "anything"));
    }
}
