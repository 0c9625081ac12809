//! The head of a request, read strictly (RFC 9112). Pure: bytes in, a decision out.
//!
//! Every doubt about where a request ends is an error that closes the connection: a server that
//! guesses differently from the proxy in front of it can be made to see requests that nobody
//! sent. httparse splits the lines; what it is lenient about is refused here, before or after.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, StatusCode, Uri, Version};

use super::bad_request::BadRequest;
use super::fields::header_map;
use super::framing::{Framing, framing};
use super::types::Request;

/// The most header fields in one head.
pub const MAX_HEADERS: usize = 100;
const BAD_TARGET: BadRequest = BadRequest::new("the target is malformed");

/// A checked head.
#[derive(Debug)]
pub struct Head {
    /// The request, its body still to be read.
    pub request: Request,
    /// How its body is delimited.
    pub framing: Framing,
    /// Whether the client wants to send another request after this one.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// Finds the end of a head while it arrives, without looking at any byte twice.
#[derive(Debug, Default)]
pub struct Scanner {
    scanned: usize,
}

impl Scanner {
    /// Looks at the bytes that came since the last call; `buffer` begins with the head. Returns
    /// the length of the head, its final empty line included, once that is there.
    ///
    /// Errors: a line end that is not CRLF. Lenient parsers disagree about those, so nothing that
    /// follows one can be trusted.
    pub fn scan(&mut self, buffer: &[u8]) -> Result<Option<usize>, BadRequest> {
        while let Some(&byte) = buffer.get(self.scanned) {
            let at = self.scanned;
            let after_cr = at > 0 && buffer[at - 1] == b'\r';
            if byte == b'\n' {
                if !after_cr {
                    return Err(BadRequest::new("a line ends with a bare line feed"));
                }
                if at >= 3 && &buffer[at - 3..at] == b"\r\n\r" {
                    self.scanned += 1;
                    return Ok(Some(self.scanned));
                }
            } else if after_cr {
                return Err(BadRequest::new("a carriage return without a line feed"));
            }
            self.scanned += 1;
        }
        Ok(None)
    }
}

/// Parses a whole head, from the request line to the empty line.
///
/// Errors: it is not one that can be answered safely; see [`BadRequest`].
// Not inlined: the fields take 3 KiB of stack, which would lie below each request that waits.
#[inline(never)]
pub fn parse(bytes: &[u8]) -> Result<Head, BadRequest> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut fields);
    let head = Bytes::copy_from_slice(bytes);
    match parsed.parse(&head) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(BadRequest::new("the head is malformed")),
        Err(error) => return Err(parse_error(error, bytes)),
    }
    let version = match parsed.version {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let method = parsed
        .method
        .and_then(|method| Method::from_bytes(method.as_bytes()).ok())
        .ok_or(BadRequest::new("the method is not a token"))?;
    let mut headers = header_map(&head, parsed.headers).map_err(BadRequest::new)?;
    single_host(&headers, version)?;
    let uri = target(parsed.path.unwrap_or_default(), &method)?;
    // RFC 9112, section 3.2.2: an absolute target says what the host is, whatever Host says.
    if let Some(authority) = uri.authority() {
        let host = HeaderValue::from_str(authority.as_str());
        headers.insert(header::HOST, host.map_err(|_| BAD_TARGET)?);
    }
    let framing = framing(&headers, version)?;
    let expects_continue = expectation(&headers, version)?;
    let keep_alive = wants_keep_alive(&headers, version);

    let mut request = Request::default();
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(Head {
        request,
        framing,
        keep_alive,
        expects_continue,
    })
}

fn parse_error(error: httparse::Error, bytes: &[u8]) -> BadRequest {
    match error {
        httparse::Error::TooManyHeaders => BadRequest::with(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "more than 100 header fields",
        ),
        httparse::Error::Version if names_a_version(bytes) => BadRequest::with(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "the version is not HTTP/1.0 or HTTP/1.1",
        ),
        httparse::Error::HeaderName => BadRequest::new("a header name is malformed"),
        httparse::Error::HeaderValue => BadRequest::new("a header value is malformed"),
        httparse::Error::Token => BadRequest::new("the request line is malformed"),
        _ => BadRequest::new("the head is malformed"),
    }
}

// Whether the request line is whole and ends in HTTP/<digit>.<digit>, so that only its version is
// wrong.
fn names_a_version(bytes: &[u8]) -> bool {
    let line = bytes
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let version = words.nth(2).unwrap_or_default();
    words.next().is_none()
        && matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit())
}

// RFC 9112, section 3.2: exactly one Host in HTTP/1.1.
fn single_host(headers: &HeaderMap, version: Version) -> Result<(), BadRequest> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(BadRequest::new("more than one Host")),
        (None, _) if version == Version::HTTP_11 => return Err(BadRequest::new("no Host")),
        (None, _) => return Ok(()),
        (Some(host), None) => host,
    };
    let bad = BadRequest::new("Host is malformed");
    let host = host.to_str().map_err(|_| bad.clone())?;
    // An empty Host is allowed where the target has no authority either.
    match host.is_empty() || is_authority(host) {
        true => Ok(()),
        false => Err(bad),
    }
}

// RFC 3986, section 3.2, without user information: a name, or an IPv6 address in brackets, and
// perhaps a port.
fn is_authority(text: &str) -> bool {
    let (host_is_fine, rest) = match text.strip_prefix('[') {
        Some(literal) => match literal.split_once(']') {
            Some((address, rest)) => (address.parse::<std::net::Ipv6Addr>().is_ok(), rest),
            None => return false,
        },
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let (name, rest) = text.split_at(end);
            (is_name(name.as_bytes()), rest)
        }
    };
    let port_is_fine = match rest.strip_prefix(':') {
        Some(port) => port.bytes().all(|byte| byte.is_ascii_digit()) && port.len() <= 5,
        None => rest.is_empty(),
    };
    host_is_fine && port_is_fine
}

fn is_name(mut name: &[u8]) -> bool {
    if name.is_empty() {
        return false;
    }
    loop {
        name = match name {
            [] => return true,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest
            }
            [byte, rest @ ..]
                if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte) =>
            {
                rest
            }
            _ => return false,
        };
    }
}

// RFC 9112, section 3.2: the four forms of a target.
fn target(text: &str, method: &Method) -> Result<Uri, BadRequest> {
    let bad = || BAD_TARGET;
    if *method == Method::CONNECT {
        return Err(BadRequest::with(
            StatusCode::NOT_IMPLEMENTED,
            "CONNECT: this server opens no tunnels",
        ));
    }
    if text == "*" {
        return match *method {
            Method::OPTIONS => text.parse().map_err(|_| bad()),
            _ => Err(bad()),
        };
    }
    // `Uri` would silently cut a fragment off.
    if !text.is_ascii() || text.contains('#') {
        return Err(bad());
    }
    let uri: Uri = text.parse().map_err(|_| bad())?;
    if text.starts_with('/') {
        return Ok(uri);
    }
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(authority)) if is_authority(authority.as_str()) => Ok(uri),
        _ => Err(bad()),
    }
}

fn expectation(headers: &HeaderMap, version: Version) -> Result<bool, BadRequest> {
    let mut expects = headers.get_all(header::EXPECT).iter();
    // RFC 9110, section 10.1.1: HTTP/1.0 has no 1xx, so the expectation is ignored.
    if version == Version::HTTP_10 {
        return Ok(false);
    }
    match (expects.next(), expects.next()) {
        (None, _) => Ok(false),
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(true),
        _ => Err(BadRequest::with(
            StatusCode::EXPECTATION_FAILED,
            "an expectation other than 100-continue",
        )),
    }
}

// RFC 9112, section 9.3.
fn wants_keep_alive(headers: &HeaderMap, version: Version) -> bool {
    let named = |option: &[u8]| {
        headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .any(|found| found.trim_ascii().eq_ignore_ascii_case(option))
    };
    match version {
        Version::HTTP_10 => named(b"keep-alive") && !named(b"close"),
        _ => !named(b"close"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Result<Head, BadRequest> {
        let bytes = text.as_bytes();
        match Scanner::default().scan(bytes)? {
            Some(length) => parse(&bytes[..length]),
            None => panic!("incomplete: {text:?}"),
        }
    }

    #[test]
    fn a_plain_request() {
        let head = head("GET /ping?ask=x%20y HTTP/1.1\r\nHost: x\r\nA: 1\r\na: 2\r\n\r\n").unwrap();
        assert_eq!(head.request.method(), Method::GET);
        assert_eq!(head.request.uri(), "/ping?ask=x%20y");
        let values: Vec<_> = head.request.headers().get_all("a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(head.framing, Framing::Empty);
        assert!(head.keep_alive);
        assert!(!head.expects_continue);
    }

    #[test]
    fn every_malformed_head_is_refused() {
        for (text, status) in [
            ("GET / HTTP/1.1\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\n\n", 400),
            ("GET / HTTP/1.1\rHost: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\x7fc\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\n: c\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: me@x\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /  HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET ping HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /#a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET http://me@x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET http://x:y/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x:y\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: [zz]\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a%2x\r\n\r\n", 400),
            (
                "GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nExpect: y\r\n\r\n",
                417,
            ),
            ("GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /\r\nHost: x\r\n\r\n", 400),
            ("G{T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
            ("GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
            ("CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 501),
        ] {
            let error = head(text).unwrap_err();
            assert_eq!(error.status, status, "{text:?}: {}", error.reason);
        }
        let many = "A: b\r\n".repeat(MAX_HEADERS);
        let error = head(&format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n")).unwrap_err();
        assert_eq!(error.status, 431);
    }

    #[test]
    fn the_rarer_forms_that_are_allowed() {
        for text in [
            "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET http://x/a?b HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "PROPFIND /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
            "GET /?a={b}&c=[d] HTTP/1.1\r\nHost: x\r\nA: é\r\n\r\n",
        ] {
            if let Err(error) = head(text) {
                panic!("{text:?}: {}", error.reason);
            }
        }
    }

    #[test]
    fn an_absolute_target_says_what_the_host_is() {
        let head = head("GET http://y:80/a HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(head.request.headers()[header::HOST], "y:80");
        assert_eq!(head.request.uri().path(), "/a");
    }

    #[test]
    fn who_keeps_the_connection() {
        let keeps = |version: &str, field: &str| {
            head(&format!("GET / {version}\r\nHost: x\r\n{field}\r\n"))
                .unwrap()
                .keep_alive
        };
        assert!(keeps("HTTP/1.1", ""));
        assert!(!keeps("HTTP/1.1", "Connection: close\r\n"));
        assert!(!keeps("HTTP/1.1", "Connection: x, Close\r\n"));
        assert!(!keeps("HTTP/1.0", ""));
        assert!(keeps("HTTP/1.0", "Connection: Keep-Alive\r\n"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in any::<Vec<u8>>()) {
            if let Ok(Some(length)) = Scanner::default().scan(&bytes) {
                let _ = parse(&bytes[..length]);
            }
            let _ = parse(&bytes);
        }

        #[test]
        fn pieces_give_the_same_as_the_whole(
            fields in proptest::collection::vec("[A-Za-z]{1,8}: ?[ -~]{0,12}\r?\n?", 0..6),
            cuts in proptest::collection::vec(0usize..200, 0..6),
        ) {
            let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", fields.concat());
            let bytes = text.as_bytes();
            let whole = Scanner::default().scan(bytes);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut scanner = Scanner::default();
            let mut pieces = Ok(None);
            for cut in cuts {
                pieces = scanner.scan(&bytes[..cut]);
                if pieces != Ok(None) {
                    break;
                }
            }
            prop_assert_eq!(pieces, whole);
        }
    }
}
