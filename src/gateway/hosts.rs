//! Which name is whose (RFC 9110, section 7.2). Pure.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use http::header;

use crate::http::Request;

/// What the name that a request is for leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Led {
    /// The gateway's own paths.
    Paths,
    /// The route with this index; of a name with `*`, what that stands for.
    Route(usize, Option<String>),
    /// Nobody has this name.
    Nowhere(String),
}

/// The names of a gateway.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    // By what stands behind the first dot where that may be anything.
    below: HashMap<String, Option<usize>>,
    exact: HashMap<String, Option<usize>>,
    // Whether an unknown name leads nowhere, instead of to the paths.
    is_strict: bool,
}

impl Hosts {
    pub fn new(is_strict: bool) -> Hosts {
        Hosts {
            is_strict,
            ..Hosts::default()
        }
    }

    /// Adds a name, which leads to the route with this index or to the paths. `*.` in front stands for
    /// one label.
    pub fn insert(&mut self, name: &str, route: Option<usize>) {
        match name.strip_prefix("*.") {
            Some(rest) => self.below.insert(rest.to_owned(), route),
            None => self.exact.insert(name.to_owned(), route),
        };
    }

    /// What a request is for.
    pub fn find(&self, request: &Request) -> Led {
        if request.headers().get_all(header::HOST).iter().count() > 1 {
            return Led::Nowhere("that stands in two fields".into());
        }
        let Some(name) = asked_name(request) else {
            return Led::Paths;
        };
        if let Some(route) = self.exact.get(&name) {
            return route.map_or(Led::Paths, |number| Led::Route(number, None));
        }
        if let Some((label, rest)) = name.split_once('.')
            && !label.is_empty()
            && let Some(route) = self.below.get(rest)
        {
            let label = label.to_owned();
            return route.map_or(Led::Paths, |number| Led::Route(number, Some(label)));
        }
        match self.is_strict {
            true => Led::Nowhere(name),
            false => Led::Paths,
        }
    }
}

// The name of an absolute target, else that in the field Host (RFC 9112, section 3.2.2), in one form: in
// lower case, without the port and a dot at the end. An address, or this machine by whatever name, is
// none: nobody can lead somebody else's browser there by a name.
fn asked_name(request: &Request) -> Option<String> {
    let host = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(header::HOST)?.to_str().ok()?,
    };
    let name = host.split(':').next().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_address = host.starts_with('[') || name.parse::<Ipv4Addr>().is_ok();
    let is_here = name.is_empty() || name.eq_ignore_ascii_case("localhost");
    (!is_address && !is_here).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn find(hosts: &Hosts, host: &str) -> Led {
        let mut request = Request::default();
        let host = HeaderValue::from_str(host).unwrap();
        request.headers_mut().insert(header::HOST, host);
        hosts.find(&request)
    }

    fn hosts(is_strict: bool) -> Hosts {
        let mut hosts = Hosts::new(is_strict);
        hosts.insert("*.localhost", Some(1));
        hosts.insert("shed.example.org", Some(2));
        hosts.insert("*.devices.example.org", Some(3));
        hosts.insert("gateway.devices.example.org", None);
        hosts
    }

    #[test]
    fn a_name_leads_where_it_should_in_whatever_form() {
        let label = |number, label: &str| Led::Route(number, Some(label.to_owned()));
        let hosts = hosts(false);
        for (host, led) in [
            ("demo.localhost:5000", label(1, "demo")),
            ("DEMO.LocalHost.", label(1, "demo")),
            ("demo.localhost.:5000", label(1, "demo")),
            ("shed.example.org", Led::Route(2, None)),
            ("Shed.Example.ORG.:80", Led::Route(2, None)),
            ("a1.devices.example.org", label(3, "a1")),
            ("gateway.devices.example.org:443", Led::Paths),
        ] {
            assert_eq!(find(&hosts, host), led, "{host}");
        }
        assert_eq!(hosts.find(&Request::default()), Led::Paths);
    }

    #[test]
    fn what_only_looks_like_it_leads_to_the_paths_or_nowhere() {
        for host in [
            "demo.localhost.evil.example",
            "demo.localhost..",
            ".localhost",
            "a.demo.localhost",
            "xshed.example.org",
            "a.shed.example.org",
            "devices.example.org",
            "a.b.devices.example.org",
            "demo-localhost",
            "demo.localhost.example.org",
            "127.0.0.1.localhost",
        ] {
            assert_eq!(find(&hosts(false), host), Led::Paths, "{host}");
            let led = find(&hosts(true), host);
            assert!(matches!(led, Led::Nowhere(_)), "{host}: {led:?}");
        }
    }

    #[test]
    fn an_address_is_no_name() {
        for host in [
            "127.0.0.1:5000",
            "[::1]:5000",
            "[::1]",
            "localhost:5000",
            "LOCALHOST.",
            "",
            ":80",
        ] {
            assert_eq!(find(&hosts(true), host), Led::Paths, "{host}");
        }
    }
}
