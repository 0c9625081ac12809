//! An answer as its caller gets it, where what it asked for is below a path of this gateway. Pure.

use http::header::{self, HeaderName};

use super::onward::{FORWARDED_HOST, FORWARDED_PREFIX};
use crate::http::reference::{Moves, Whose, is_below, is_same_authority, move_references};
use crate::http::{Request, Response};

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
/// for: here, and at a proxy before, if that is `trusted`.
pub(super) fn outward(response: &mut Response, request: &Request, prefix: &str, trusted: bool) {
    let field = |name: &HeaderName| request.headers().get(name)?.to_str().ok();
    let forwarded = field(&FORWARDED_HOST).filter(|_| trusted);
    let first = forwarded.and_then(|list| list.split(',').next());
    let outward = Outward {
        prefix,
        hosts: [field(&header::HOST), first.map(str::trim)],
    };
    move_references(response.headers_mut(), &outward);
}

struct Outward<'a> {
    prefix: &'a str,
    // What the caller may have asked for.
    hosts: [Option<&'a str>; 2],
}

impl Outward<'_> {
    fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().copied().flatten()
    }
}

impl Moves for Outward<'_> {
    fn path(&self, path: &str) -> Option<String> {
        // Who knows its prefix has put it there already.
        (!is_below(path, self.prefix)).then(|| format!("{}{path}", self.prefix))
    }

    fn whose(&self, scheme: Option<&str>, authority: &str) -> Whose {
        let scheme = scheme.unwrap_or("http");
        match self
            .hosts()
            .any(|host| is_same_authority(scheme, authority, host))
        {
            true => Whose::Own,
            false => Whose::Other,
        }
    }

    // A wider one would reach others, whose owners could take what is in the cookie.
    fn keeps_domain(&self, domain: &str) -> bool {
        self.hosts().any(|host| {
            let name = host.split(':').next().unwrap_or_default();
            domain.eq_ignore_ascii_case(name.strip_suffix('.').unwrap_or(name))
        })
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
        outward(&mut response, &request, "", false);
        assert_eq!(response.headers()["location"], "/login");
        let cookies = response.headers().get_all(header::SET_COOKIE).iter();
        let cookies: Vec<_> = cookies.collect();
        let expected = ["a=b; Path=/; Domain=.shed.example.org", "a=b; Path=/"];
        assert_eq!(cookies, expected);
    }

    #[test]
    fn the_host_before_a_trusted_proxy_is_the_callers_too() {
        let mut request = Request::default();
        for (name, value) in [
            ("host", "127.0.0.1:5000"),
            ("x-forwarded-host", "shop.example, inner"),
        ] {
            let value = HeaderValue::from_static(value);
            request.headers_mut().insert(name, value);
        }
        for (trusted, location, cookie) in [
            (
                true,
                "https://shop.example/agents/py/login",
                "a=b; Domain=shop.example",
            ),
            (false, "https://shop.example/login", "a=b"),
        ] {
            let mut response = Response::default();
            let headers = response.headers_mut();
            headers.insert(
                "location",
                HeaderValue::from_static("https://shop.example/login"),
            );
            headers.insert(
                "set-cookie",
                HeaderValue::from_static("a=b; Domain=shop.example"),
            );
            outward(&mut response, &request, "/agents/py", trusted);
            assert_eq!(response.headers()["location"], location);
            assert_eq!(response.headers()["set-cookie"], cookie);
        }
    }
}
