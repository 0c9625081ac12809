//! Which host an upstream takes itself for, and what it says of itself. Pure.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::settings::{HostHeader, HttpMode};
use crate::http::Response;
use crate::http::reference::{Moves, Whose, is_below, is_same_authority, move_references};
use crate::upstream::UpstreamUrl;

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Sets the field Host of a request, unless it is to be the upstream's own. So far it has the host that
/// its caller used, if what is asked for has a name of its own.
pub(super) fn set_host(headers: &mut HeaderMap, setting: &HostHeader) {
    let named = headers.remove(header::HOST);
    let host = match setting {
        HostHeader::Upstream => None,
        HostHeader::Named => named,
        HostHeader::Caller => named.or_else(|| first_host(headers)),
        HostHeader::Fixed(host) => Some(host.clone()),
    };
    if let Some(host) = host {
        headers.insert(header::HOST, host);
    }
}

// That which the first of all proxies was asked for.
fn first_host(headers: &HeaderMap) -> Option<HeaderValue> {
    let list = headers.get(FORWARDED_HOST)?.to_str().ok()?;
    let first = list.split(',').next().unwrap_or_default().trim();
    let is_host = !first.is_empty() && !first.contains(['/', '@', ' ', '\t']);
    is_host.then(|| HeaderValue::from_str(first).ok())?
}

/// What an answer says of its upstream by the address that only the agent has, or below the path that only
/// the agent puts before, is said as its caller can use it.
/// `host`: which one the upstream was told, if it was told any.
pub(super) fn outward(
    response: &mut Response,
    upstream: &UpstreamUrl,
    mode: &HttpMode,
    host: Option<&HeaderValue>,
) {
    let own = Own {
        base: format!("{}{}", upstream.path(), mode.path_prefix),
        upstream,
        host: host.and_then(|host| host.to_str().ok()),
        is_callers: !matches!(mode.host_header, HostHeader::Fixed(_)),
    };
    move_references(response.headers_mut(), &own);
}

struct Own<'a> {
    base: String,
    upstream: &'a UpstreamUrl,
    host: Option<&'a str>,
    // That host is the one by which its caller knows it.
    is_callers: bool,
}

impl Moves for Own<'_> {
    fn path(&self, path: &str) -> Option<String> {
        if self.base.is_empty() || !is_below(path, &self.base) {
            return None;
        }
        let rest = &path[self.base.len()..];
        Some(match rest.starts_with('/') {
            true => rest.to_owned(),
            false => format!("/{rest}"),
        })
    }

    fn whose(&self, scheme: Option<&str>, authority: &str) -> Whose {
        let own = self.upstream.scheme();
        let named = |scheme: &str, name: &str| is_same_authority(scheme, authority, name);
        // Its caller may know it by another scheme, which is for both to agree on.
        if self.is_callers
            && self
                .host
                .is_some_and(|host| named(scheme.unwrap_or(own), host))
        {
            return Whose::Own;
        }
        let hidden = self.host.filter(|_| !self.is_callers);
        let mut names = [self.upstream.authority()].into_iter().chain(hidden);
        let is_own = scheme.is_none_or(|scheme| scheme.eq_ignore_ascii_case(own));
        match is_own && names.any(|name| named(own, name)) {
            true => Whose::Hidden,
            false => Whose::Other,
        }
    }

    fn keeps_domain(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_whose_the_setting_says() {
        let fixed = HostHeader::Fixed(HeaderValue::from_static("app.example"));
        for (setting, with_name, without) in [
            (HostHeader::Named, Some("shed.example:80"), None),
            (HostHeader::Upstream, None, None),
            (
                HostHeader::Caller,
                Some("shed.example:80"),
                Some("gate.example"),
            ),
            (fixed, Some("app.example"), Some("app.example")),
        ] {
            for (named, expected) in [(Some("shed.example:80"), with_name), (None, without)] {
                let mut headers = HeaderMap::new();
                let forwarded = HeaderValue::from_static("gate.example, inner");
                headers.insert(FORWARDED_HOST, forwarded);
                let named = named.map(HeaderValue::from_static);
                headers.extend(named.map(|named| (header::HOST, named)));
                set_host(&mut headers, &setting);
                let host = headers.get(header::HOST).map(|it| it.to_str().unwrap());
                assert_eq!(host, expected, "{setting:?}");
            }
        }
    }

    #[test]
    fn no_caller_sees_the_upstreams_own_address() {
        let host = HeaderValue::from_static("app.example");
        let fixed = HttpMode {
            path_prefix: "/x".into(),
            host_header: HostHeader::Fixed(host.clone()),
            ..HttpMode::default()
        };
        let named = HttpMode {
            host_header: HostHeader::Named,
            ..fixed.clone()
        };
        let upstream = "http://127.0.0.1:26002/docs".parse().unwrap();
        let location = |mode: &HttpMode, location| {
            let mut response = Response::default();
            let value = HeaderValue::from_static(location);
            response.headers_mut().insert(header::LOCATION, value);
            outward(&mut response, &upstream, mode, Some(&host));
            response.headers()[header::LOCATION]
                .to_str()
                .unwrap()
                .to_owned()
        };
        // The caller's host stays, and the path that only the agent puts before goes.
        for (found, expected) in [
            ("https://app.example/docs/x/a", "https://app.example/a"),
            ("http://app.example/docs/x", "http://app.example/"),
            ("http://app.example/other", "http://app.example/other"),
            ("http://127.0.0.1:26002/docs/x/a", "/a"),
        ] {
            assert_eq!(location(&named, found), expected);
        }
        for (found, expected) in [
            ("http://127.0.0.1:26002/docs/x/a", "/a"),
            ("http://APP.example/docs/x/a?b", "/a?b"),
            ("/docs/x", "/"),
            ("/docs/y", "/docs/y"),
            ("a/b", "a/b"),
            (
                "https://app.example/docs/x/a",
                "https://app.example/docs/x/a",
            ),
            (
                "http://other.example/docs/x/a",
                "http://other.example/docs/x/a",
            ),
        ] {
            assert_eq!(location(&fixed, found), expected);
        }
    }
}
