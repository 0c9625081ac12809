//! An answer as its caller gets it, where what it asked for is below a path of this gateway. Pure.

use http::header::{self, HeaderMap, HeaderName};

use crate::http::reference::{Moves, is_below, is_same_authority, move_references};
use crate::http::{Request, Response};

pub(super) const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The path below which whoever asks sees what is asked for, without a slash at its end: `own`, and before
/// it what a proxy says that it has taken away, if that is `trusted`.
pub(super) fn prefix(request: &Request, own: &str, trusted: bool) -> String {
    let before = request.headers().get(FORWARDED_PREFIX);
    let before = before.filter(|_| trusted).and_then(|it| it.to_str().ok());
    let before = before.unwrap_or_default().trim_end_matches('/');
    match before.starts_with('/') && !before.starts_with("//") {
        true => format!("{before}{own}"),
        false => own.to_owned(),
    }
}

/// Brings what an answer says of its upstream under the prefix, and its cookies to the host that was asked
/// for.
pub(super) fn outward(response: &mut Response, request: &Request, prefix: &str) {
    let outward = Outward {
        prefix,
        host: host(request.headers()),
    };
    move_references(response.headers_mut(), &outward);
}

fn host(headers: &HeaderMap) -> &str {
    let host = headers.get(header::HOST).and_then(|it| it.to_str().ok());
    host.unwrap_or_default()
}

struct Outward<'a> {
    prefix: &'a str,
    host: &'a str,
}

impl Moves for Outward<'_> {
    fn path(&self, path: &str) -> Option<String> {
        // Who knows its prefix has put it there already.
        (!is_below(path, self.prefix)).then(|| format!("{}{path}", self.prefix))
    }

    fn is_own(&self, scheme: Option<&str>, authority: &str) -> bool {
        is_same_authority(scheme.unwrap_or("http"), authority, self.host)
    }

    fn keeps_authority(&self) -> bool {
        true
    }

    // A wider one would reach others, whose owners could take what is in the cookie.
    fn keeps_domain(&self, domain: &str) -> bool {
        let name = self.host.split(':').next().unwrap_or_default();
        domain.eq_ignore_ascii_case(name.strip_suffix('.').unwrap_or(name))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_proxys_prefix_stands_before_ours() {
        for (before, trusted, expected) in [
            ("/outer/", true, "/outer/agents/py"),
            ("/a/b", true, "/a/b/agents/py"),
            ("/outer", false, "/agents/py"),
            ("", true, "/agents/py"),
            ("/", true, "/agents/py"),
            ("outer", true, "/agents/py"),
            ("//evil", true, "/agents/py"),
        ] {
            let mut request = Request::default();
            let value = HeaderValue::from_static(before);
            request.headers_mut().insert(FORWARDED_PREFIX, value);
            assert_eq!(prefix(&request, "/agents/py", trusted), expected);
        }
    }

    #[test]
    fn at_a_name_of_its_own_only_wider_cookies_change() {
        let mut request = Request::default();
        let host = HeaderValue::from_static("Shed.example.org:5000");
        request.headers_mut().insert(header::HOST, host);
        let mut response = Response::default();
        for (name, value) in [
            (header::LOCATION, "/login"),
            (header::SET_COOKIE, "a=b; Path=/; Domain=.shed.example.org"),
            (header::SET_COOKIE, "a=b; Path=/; Domain=example.org"),
        ] {
            let value = HeaderValue::from_static(value);
            response.headers_mut().append(name, value);
        }
        outward(&mut response, &request, "");
        assert_eq!(response.headers()["location"], "/login");
        let cookies = response.headers().get_all(header::SET_COOKIE).iter();
        let cookies: Vec<_> = cookies.collect();
        let expected = ["a=b; Path=/; Domain=.shed.example.org", "a=b; Path=/"];
        assert_eq!(cookies, expected);
    }
}
