//! A request as the agent's side gets it: told who asked, and for which host. Pure.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method};

use super::access::Caller;
use crate::http::{Request, RequestId, Response, X_REQUEST_ID};
use crate::wire::fields::{remove_where, strip_hop_by_hop};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The name of the token that a request came with; the token itself stays here.
const CALLER: HeaderName = HeaderName::from_static("x-recado-caller");

/// Names who has passed a request on (RFC 8586), so that one that goes in a circle can be told. Via would
/// do that too, but nginx compresses nothing where it stands.
const LOOP: HeaderName = HeaderName::from_static("cdn-loop");
/// How often a request may come by: the service of one agent may be a proxy to that of another.
const MAX_PASSES: usize = 3;

/// What a request is passed on with.
pub(super) struct Passage<'a> {
    /// Who sent it, whose own word on whom it forwards for counts only if it is trusted.
    pub peer: SocketAddr,
    pub trusted: bool,
    pub caller: Caller<'a>,
    pub id: &'a RequestId,
    /// What is taken off its path.
    pub prefix: &'a str,
    /// The name of this gateway.
    pub gateway: &'a str,
    /// Whether it gets the field Via.
    pub via: bool,
}

/// Whether a request goes in a circle, as far as this gateway can tell.
pub(super) fn is_in_a_circle(headers: &HeaderMap, gateway: &str) -> bool {
    let passes = headers.get_all(LOOP).iter();
    let names = passes.flat_map(|field| field.to_str().unwrap_or_default().split(','));
    names.filter(|name| name.trim() == gateway).count() >= MAX_PASSES
}

/// The request to pass on.
pub(super) fn onward(request: &Request, passage: &Passage<'_>) -> Request {
    let Passage { peer, trusted, .. } = *passage;
    let mut onward = Request::new(request.body().clone());
    *onward.method_mut() = request.method().clone();
    let headers = onward.headers_mut();
    *headers = request.headers().clone();
    // Before anything is added: a client must not be able to take it away again.
    strip_hop_by_hop(headers);
    drop_claims(headers, trusted);
    // The host is for the agent to say.
    let host = headers.remove(header::HOST);
    if headers.contains_key(header::FORWARDED) {
        append(headers, header::FORWARDED, &forwarded(peer, host.as_ref()));
    }
    if let Some(host) = host.filter(|_| !headers.contains_key(FORWARDED_HOST)) {
        headers.insert(FORWARDED_HOST, host);
    }
    headers.remove(FORWARDED_PREFIX);
    if let Ok(prefix) = HeaderValue::from_str(passage.prefix)
        && !prefix.is_empty()
    {
        headers.insert(FORWARDED_PREFIX, prefix);
    }
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    append(
        headers,
        FORWARDED_FOR,
        &peer.ip().to_canonical().to_string(),
    );
    append(headers, LOOP, passage.gateway);
    if passage.via {
        append(headers, header::VIA, "1.1 recado");
    }
    if let Some(left) = max_forwards(request) {
        headers.insert(header::MAX_FORWARDS, left.saturating_sub(1).into());
    }
    if let Some(value) = passage.id.header() {
        headers.insert(X_REQUEST_ID, value);
    }
    if let Caller::Known(name) = passage.caller {
        headers.remove(header::AUTHORIZATION);
        if let Ok(name) = HeaderValue::from_str(name) {
            headers.insert(CALLER, name);
        }
    }
    onward
}

// What this hop adds to the words of the trusted proxies before it (RFC 7239, section 4).
fn forwarded(peer: SocketAddr, host: Option<&HeaderValue>) -> String {
    let from = match peer.ip().to_canonical() {
        IpAddr::V4(address) => format!("for={address}"),
        IpAddr::V6(address) => format!("for=\"[{address}]\""),
    };
    match host.and_then(|host| host.to_str().ok()) {
        Some(host) => format!("{from};host=\"{host}\";proto=http"),
        None => format!("{from};proto=http"),
    }
}

/// The answer to a request that is to go no further than here (RFC 9110, section 7.6.2): to OPTIONS what
/// is allowed, to TRACE the request as it came, without what is secret.
pub(super) fn ends_here(request: &Request, methods: &[Method]) -> Option<Response> {
    if max_forwards(request)? > 0 {
        return None;
    }
    let mut response = Response::default();
    let (name, value) = match *request.method() {
        Method::TRACE => {
            *response.body_mut() = as_it_came(request).into();
            (header::CONTENT_TYPE, "message/http".to_owned())
        }
        _ => {
            let names: Vec<&str> = match methods {
                [] => vec![
                    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE",
                ],
                some => some.iter().map(Method::as_str).collect(),
            };
            (header::ALLOW, names.join(", "))
        }
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert(name, value);
    }
    Some(response)
}

// How many more hops the request may take, if it says so and its method heeds it.
fn max_forwards(request: &Request) -> Option<u64> {
    let heeds = [Method::OPTIONS, Method::TRACE].contains(request.method());
    let text = request.headers().get(header::MAX_FORWARDS)?.to_str().ok()?;
    let is_number = heeds && text.bytes().all(|byte| byte.is_ascii_digit());
    // One that is larger than any number is as good as none.
    is_number.then(|| text.parse().ok())?
}

fn as_it_came(request: &Request) -> Vec<u8> {
    let secret = [
        header::AUTHORIZATION,
        header::COOKIE,
        header::PROXY_AUTHORIZATION,
    ];
    let target = request.uri();
    let mut text = format!("{} {target} HTTP/1.1\r\n", request.method()).into_bytes();
    for (name, value) in request.headers() {
        if !secret.contains(name) {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
    }
    text.extend_from_slice(b"\r\n");
    text
}

// What only this gateway, or a trusted proxy, may say. Some services take `_` for `-`.
fn drop_claims(headers: &mut HeaderMap, trusted: bool) {
    remove_where(headers, |name| {
        let name = name.as_str().replace('_', "-");
        name == CALLER.as_str()
            || !trusted && (name == "forwarded" || name.starts_with("x-forwarded-"))
    });
}

/// Adds to a list field, in one line with what is there.
pub(super) fn append(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    let before: Vec<&str> = headers
        .get_all(&name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let list = match before.is_empty() {
        true => value.to_owned(),
        false => format!("{}, {value}", before.join(", ")),
    };
    if let Ok(value) = HeaderValue::from_str(&list) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed_on(trusted: bool, caller: Caller<'_>) -> HeaderMap {
        let mut request = Request::default();
        for (name, value) in [
            ("host", "example.org:5000"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=10.0.0.1"),
            ("via", "1.0 other"),
            ("authorization", "Bearer secret"),
            ("x-recado-caller", "forged"),
            ("x_recado_caller", "forged"),
            ("x-forwarded-prefix", "/forged"),
            ("x_forwarded_for", "forged"),
        ] {
            let value = HeaderValue::from_static(value);
            request.headers_mut().append(name, value);
        }
        let onward = onward(&request, &passage(trusted, caller, &RequestId::random()));
        onward.headers().clone()
    }

    fn passage<'a>(trusted: bool, caller: Caller<'a>, id: &'a RequestId) -> Passage<'a> {
        Passage {
            peer: SocketAddr::from(([192, 0, 2, 1], 99)),
            trusted,
            caller,
            id,
            prefix: "/agents/py",
            gateway: "recado-g",
            via: true,
        }
    }

    #[test]
    fn a_circle_is_noticed() {
        let mut headers = HeaderMap::new();
        for passes in 0..5 {
            let circles = is_in_a_circle(&headers, "recado-g");
            assert_eq!(circles, passes >= MAX_PASSES, "{headers:?}");
            append(&mut headers, LOOP, "other; recado-g, recado-gg");
            append(&mut headers, LOOP, "recado-g");
        }
    }

    #[test]
    fn a_strangers_word_does_not_count() {
        let headers = passed_on(false, Caller::Anybody);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.1");
        assert_eq!(headers["x-forwarded-host"], "example.org:5000");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["via"], "1.0 other, 1.1 recado");
        assert!(!headers.contains_key("host"));
        assert!(!headers.contains_key("forwarded"));
        assert_eq!(headers["x-forwarded-prefix"], "/agents/py");
        assert_eq!(headers["cdn-loop"], "recado-g");
        let forged = headers
            .values()
            .any(|value| value == "forged" || value == "/forged");
        assert!(!forged, "{headers:?}");
        assert_eq!(headers["authorization"], "Bearer secret");
    }

    #[test]
    fn a_trusted_proxys_word_does() {
        let headers = passed_on(true, Caller::Known("anna"));
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1, 192.0.2.1");
        assert_eq!(headers["x-forwarded-host"], "shop.example");
        assert_eq!(headers["x-forwarded-proto"], "https");
        let forwarded = "for=10.0.0.1, for=192.0.2.1;host=\"example.org:5000\";proto=http";
        assert_eq!(headers["forwarded"], forwarded);
    }

    #[test]
    fn max_forwards_counts_down_and_ends_here() {
        let request = |method: &str, value: &str| {
            let mut request = Request::default();
            *request.method_mut() = method.parse().unwrap();
            *request.uri_mut() = "/a?b".parse().unwrap();
            let headers = request.headers_mut();
            headers.insert("max-forwards", value.parse().unwrap());
            headers.insert("cookie", "secret".parse().unwrap());
            headers.insert("x", "y".parse().unwrap());
            request
        };
        let passed = |method, value| {
            let (request, id) = (request(method, value), RequestId::random());
            let onward = onward(&request, &passage(false, Caller::Anybody, &id));
            onward.headers()["max-forwards"]
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(passed("OPTIONS", "7"), "6");
        assert_eq!(passed("TRACE", "1"), "0");
        for (method, value) in [
            ("GET", "7"),
            ("OPTIONS", "x"),
            ("OPTIONS", "-1"),
            ("GET", "0"),
        ] {
            assert_eq!(passed(method, value), value);
            assert!(ends_here(&request(method, value), &[]).is_none());
        }
        assert!(ends_here(&request("TRACE", "1"), &[]).is_none());
        let allowed = ends_here(&request("OPTIONS", "0"), &[Method::GET]).unwrap();
        assert_eq!(allowed.headers()["allow"], "GET");
        let traced = ends_here(&request("TRACE", "0"), &[]).unwrap();
        assert_eq!(traced.headers()["content-type"], "message/http");
        let text = std::str::from_utf8(traced.body().as_bytes()).unwrap();
        assert!(text.starts_with("TRACE /a?b HTTP/1.1\r\n"), "{text}");
        assert!(
            text.contains("x: y\r\n") && !text.contains("secret"),
            "{text}"
        );
    }

    #[test]
    fn a_token_stays_here() {
        let headers = passed_on(false, Caller::Known("anna"));
        assert!(!headers.contains_key("authorization"));
        assert_eq!(headers["x-recado-caller"], "anna");
    }
}
