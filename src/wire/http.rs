//! Requests and replies as MQTT messages, in HTTP mode: everything end-to-end is carried as it is.
//!
//! Method, target and status are user properties; each header field is one, in order, named `h`,
//! its value `name: value`; the body is the payload, byte for byte. An MQTT string is UTF-8 and
//! brokers refuse control characters in it, so a field whose value is not of that kind is carried
//! as `hb`, its value in hexadecimal. Framing and the connection belong to each side alone and are
//! never carried (RFC 9110, section 7.6.1).

use std::fmt::{self, Write};

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode};

use super::fields::{connection_options, is_hop_by_hop};
use super::message::{Message, Properties};
use super::reply::{BadReply, ERROR, Hop, STATUS, status};
use super::stream::read_length;
use crate::base::authority::host_and_port;

/// The user property that names the version of this encoding.
pub const VERSION: &str = "v";
/// The version of requests and replies that are all here.
pub const VERSION_1: &str = "1";
/// That of requests whose body follows as a stream: who takes none must not take it for an empty one.
pub const VERSION_2: &str = "2";
/// The user property that names the protocol that a connection is to be upgraded to, or is.
pub const UPGRADE: &str = "upgrade";
/// The user property that names the host under which the caller knows what it asks for, where that has a
/// name of its own.
pub const HOST: &str = "host";
const METHOD: &str = "method";
const TARGET: &str = "target";
const HEADER: &str = "h";
const HEADER_BYTES: &str = "hb";

/// Why a request in HTTP mode is not executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotExecutable {
    /// The status to answer with.
    pub status: StatusCode,
    reason: String,
}

impl NotExecutable {
    fn new(reason: impl Into<String>) -> NotExecutable {
        NotExecutable {
            status: StatusCode::BAD_REQUEST,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for NotExecutable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Adds what a request is to the properties of its message. `target` is the path and query that
/// the upstream is asked for; `follows`: the body is not in this message.
pub fn write_request<B>(
    request: &Request<B>,
    target: &PathAndQuery,
    follows: bool,
    properties: &mut Properties,
) {
    let user = &mut properties.user;
    let version = if follows { VERSION_2 } else { VERSION_1 };
    user.push((VERSION.to_owned(), version.to_owned()));
    user.push((METHOD.to_owned(), request.method().as_str().to_owned()));
    user.push((TARGET.to_owned(), target.as_str().to_owned()));
    write_headers(request.headers(), properties);
}

/// Reads a request in HTTP mode; its URI is the path and query. Only one that asks for an upgrade has the
/// field of that name, and only what has a name of its own has Host.
///
/// Errors: see [`NotExecutable`]; 505 for another version, else 400.
pub fn read_request(message: &Message) -> Result<Request<Bytes>, NotExecutable> {
    let properties = &message.properties;
    let only = |name| {
        let value = properties.only(name);
        value.map_err(|bad| NotExecutable::new(bad.to_string()))
    };
    let follows = read_length(properties).map_err(|bad| NotExecutable::new(bad.to_string()))?;
    match only(VERSION)? {
        Some(VERSION_1) if follows.is_none() => {}
        Some(VERSION_2) if follows.is_some() => {}
        other => {
            let found = other.unwrap_or_default();
            return Err(NotExecutable {
                status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                reason: format!("its version is {found:?}, this agent knows {VERSION_1:?}"),
            });
        }
    }
    let method = only(METHOD)?
        .and_then(|text| Method::from_bytes(text.as_bytes()).ok())
        .filter(|method| *method != Method::CONNECT)
        .ok_or_else(|| NotExecutable::new("its method is missing, not a token, or CONNECT"))?;
    let target: PathAndQuery = only(TARGET)?
        .filter(|text| text.starts_with('/') || (*text == "*" && method == Method::OPTIONS))
        .filter(|text| text.is_ascii() && !text.contains('#'))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| NotExecutable::new("its target is missing or not a path"))?;
    let mut headers = read_headers(properties).map_err(NotExecutable::new)?;
    headers.remove(header::CONTENT_LENGTH);
    // The name that the caller used is not one of its fields: which host it is, the agent's settings say.
    headers.remove(header::HOST);
    if let Some(host) = only(HOST)? {
        let value = host_and_port(host).and_then(|_| HeaderValue::from_str(host).ok());
        let no_host = || NotExecutable::new("its host is no name with a port");
        headers.insert(header::HOST, value.ok_or_else(no_host)?);
    }
    if follows.is_some()
        && let Some(protocol) = only(UPGRADE)?
    {
        let value = HeaderValue::from_str(protocol);
        let no_value = |_| NotExecutable::new("its upgrade is no header value");
        headers.insert(header::UPGRADE, value.map_err(no_value)?);
    }
    let mut request = Request::new(message.payload.clone());
    *request.method_mut() = method;
    *request.uri_mut() = target.into();
    *request.headers_mut() = headers;
    Ok(request)
}

/// The properties of a reply: status, headers, and where the agent itself reports an error, its
/// hop. The answer to a HEAD request says how long the body would have been.
pub fn write_reply<B>(response: &Response<B>, error: Option<Hop>, method: &Method) -> Properties {
    let mut properties = Properties::default();
    let user = &mut properties.user;
    user.push((VERSION.to_owned(), VERSION_1.to_owned()));
    user.push((STATUS.to_owned(), response.status().as_str().to_owned()));
    if let Some(hop) = error {
        user.push((ERROR.to_owned(), hop.as_str().to_owned()));
    }
    write_headers(response.headers(), &mut properties);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(protocol) = response.headers().get(header::UPGRADE)
        && let Ok(protocol) = protocol.to_str()
    {
        let upgrade = (UPGRADE.to_owned(), protocol.to_owned());
        properties.user.push(upgrade);
    }
    if *method == Method::HEAD
        && let Some(length) = response.headers().get(header::CONTENT_LENGTH)
        && let Ok(length) = length.to_str()
    {
        let field = format!("{}: {length}", header::CONTENT_LENGTH);
        properties.user.push((HEADER.to_owned(), field));
    }
    properties
}

/// Reads a reply in HTTP mode.
///
/// Errors: no status, one that isn't 200 to 599, or a header that isn't valid HTTP.
pub fn read_reply(message: &Message, method: &Method) -> Result<Response<Bytes>, BadReply> {
    let text = message
        .properties
        .user(STATUS)
        .ok_or_else(|| BadReply("it has no status".into()))?;
    let upgraded = message.properties.user(UPGRADE).filter(|_| text == "101");
    let status = match upgraded {
        Some(_) => StatusCode::SWITCHING_PROTOCOLS,
        None => status(text)?,
    };
    if let Some(other) = message.properties.user(VERSION)
        && other != VERSION_1
    {
        return Err(BadReply(format!("its version is {other:?}")));
    }
    let mut headers = read_headers(&message.properties).map_err(BadReply)?;
    if *method != Method::HEAD {
        headers.remove(header::CONTENT_LENGTH);
    }
    if let Some(protocol) = upgraded {
        let value = HeaderValue::from_str(protocol);
        let value = value.map_err(|_| BadReply("its upgrade is no header value".into()))?;
        headers.insert(header::UPGRADE, value);
    }
    let mut response = Response::new(message.payload.clone());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn write_headers(headers: &HeaderMap, properties: &mut Properties) {
    let hop_by_hop = connection_options(headers);
    properties.user.reserve(headers.len());
    for (name, value) in headers {
        let named = |option: &&str| option.eq_ignore_ascii_case(name.as_str());
        if is_hop_by_hop(name) || hop_by_hop.iter().any(named) {
            continue;
        }
        match std::str::from_utf8(value.as_bytes()) {
            Ok(text) if is_mqtt_text(text) => {
                // MQTT has a property of its own for this one.
                if name == header::CONTENT_TYPE && properties.content_type.is_none() {
                    properties.content_type = Some(text.to_owned());
                } else {
                    let field = [name.as_str(), ": ", text].concat();
                    properties.user.push((HEADER.to_owned(), field));
                }
            }
            _ => {
                let mut field = format!("{name}: ");
                for byte in value.as_bytes() {
                    let _ = write!(field, "{byte:02x}");
                }
                properties.user.push((HEADER_BYTES.to_owned(), field));
            }
        }
    }
}

fn read_headers(properties: &Properties) -> Result<HeaderMap, String> {
    // Most properties are headers; who sends thousands of others gets no memory for them.
    let mut headers = HeaderMap::with_capacity(properties.user.len().min(64));
    if let Some(content_type) = &properties.content_type {
        let value = HeaderValue::from_bytes(content_type.as_bytes())
            .map_err(|_| "its content type is not a header value".to_owned())?;
        headers.insert(header::CONTENT_TYPE, value);
    }
    for (key, field) in &properties.user {
        let bytes = match key.as_str() {
            HEADER => false,
            HEADER_BYTES => true,
            _ => continue,
        };
        let malformed = || format!("its header {:?} is not valid HTTP", excerpt(field));
        let (name, text) = field.split_once(": ").ok_or_else(malformed)?;
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| malformed())?;
        let value = match bytes {
            false => HeaderValue::from_bytes(text.as_bytes()).ok(),
            true => unhex(text).and_then(|bytes| HeaderValue::from_bytes(&bytes).ok()),
        };
        let value = value.ok_or_else(malformed)?;
        // The other side may not have stripped them.
        if name == header::CONTENT_LENGTH || !is_hop_by_hop(&name) {
            let too_many = |_| "it has too many headers".to_owned();
            headers.try_append(name, value).map_err(too_many)?;
        }
    }
    Ok(headers)
}

fn excerpt(field: &str) -> String {
    field.chars().take(40).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

// MQTT 5, section 1.5.4: what a receiver may treat as malformed, and Mosquitto does.
fn is_mqtt_text(text: &str) -> bool {
    !text.chars().any(|c| {
        c.is_control() || (c as u32) & 0xfffe == 0xfffe || ('\u{fdd0}'..='\u{fdef}').contains(&c)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(method: &str, target: &str, fields: &[(&str, &[u8])]) -> Message {
        let mut request = Request::new(Bytes::from_static(b"body\0\xff"));
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            let value = HeaderValue::from_bytes(value).unwrap();
            request.headers_mut().append(name, value);
        }
        let mut properties = Properties::default();
        write_request(&request, &target.parse().unwrap(), false, &mut properties);
        Message {
            payload: request.into_body(),
            properties,
            ..Message::default()
        }
    }

    fn with(name: &str, value: &str) -> Message {
        let mut message = request("GET", "/", &[]);
        message.properties.user.retain(|(key, _)| key != name);
        message.properties.user.push((name.into(), value.into()));
        message
    }

    #[test]
    fn everything_end_to_end_survives() {
        let message = request(
            "PROPFIND",
            "/a%2Fb/;c?d=e%20f&&g",
            &[
                ("content-type", b"text/plain"),
                ("x-a", b"1"),
                ("x-b", b""),
                ("x-a", b"2"),
                ("x-bytes", b"caf\xe9"),
                ("x-tab", b"a\tb"),
                ("x-utf8", "olá".as_bytes()),
            ],
        );
        assert_eq!(
            message.properties.content_type.as_deref(),
            Some("text/plain")
        );
        let read = read_request(&message).unwrap();
        assert_eq!(read.method().as_str(), "PROPFIND");
        assert_eq!(read.uri(), "/a%2Fb/;c?d=e%20f&&g");
        assert_eq!(read.body().as_ref(), b"body\0\xff");
        let values: Vec<_> = read.headers().get_all("x-a").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(read.headers()["x-b"], "");
        assert_eq!(read.headers()["x-bytes"].as_bytes(), b"caf\xe9");
        assert_eq!(read.headers()["x-tab"].as_bytes(), b"a\tb");
        assert_eq!(read.headers()["x-utf8"].as_bytes(), "olá".as_bytes());
        for (_, value) in &message.properties.user {
            assert!(is_mqtt_text(value), "{value:?}");
        }
    }

    #[test]
    fn what_is_about_one_connection_stays_there() {
        let message = request(
            "GET",
            "/",
            &[
                ("connection", b"close, X-Mine"),
                ("x-mine", b"1"),
                ("keep-alive", b"timeout=5"),
                ("te", b"trailers"),
                ("transfer-encoding", b"chunked"),
                ("content-length", b"5"),
                ("upgrade", b"h2c"),
                ("expect", b"100-continue"),
                ("x-kept", b"1"),
            ],
        );
        let read = read_request(&message).unwrap();
        let names: Vec<_> = read.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-kept"]);
        let smuggled = with("h", "transfer-encoding: chunked");
        assert!(read_request(&smuggled).unwrap().headers().is_empty());
    }

    #[test]
    fn odd_requests_are_refused() {
        for (name, value, status) in [
            ("v", "2", 505),
            ("v", "", 505),
            ("method", "", 400),
            ("method", "G T", 400),
            ("target", "", 400),
            ("target", "a", 400),
            ("target", "*", 400),
            ("target", "/a b", 400),
            ("target", "/#a", 400),
            ("target", "http://x/", 400),
            ("h", "no colon", 400),
            ("h", "a b: c", 400),
            ("h", ": c", 400),
            ("h", "a: b\r\nc: d", 400),
            ("hb", "a: xyz0", 400),
            ("hb", "a: 0", 400),
            ("hb", "a: 0d0a", 400),
        ] {
            let error = read_request(&with(name, value)).unwrap_err();
            assert_eq!(error.status, status, "{name} {value:?}: {error}");
        }
        assert!(read_request(&with("unknown", "ignored")).is_ok());
    }

    #[test]
    fn only_what_may_be_upgraded_says_to_what() {
        let upgraded = |version: &str, protocol: &str| {
            let mut message = with("v", version);
            let user = &mut message.properties.user;
            if version == VERSION_2 {
                user.push(("length".into(), "unknown".into()));
            }
            user.push((UPGRADE.into(), protocol.into()));
            let read = read_request(&message).map_err(|bad| bad.status);
            read.map(|request| request.headers().get(header::UPGRADE).cloned())
        };
        let websocket = Some(HeaderValue::from_static("websocket"));
        assert_eq!(upgraded(VERSION_2, "websocket"), Ok(websocket));
        assert_eq!(upgraded(VERSION_1, "websocket"), Ok(None));
        for evil in ["x\r\nEvil: 1", "x\n", "x\0", "\u{e9}\u{7f}"] {
            assert_eq!(upgraded(VERSION_2, evil), Err(StatusCode::BAD_REQUEST));
        }
    }

    #[test]
    fn a_host_is_a_name_with_a_port() {
        let host = |name: &str| {
            let read = read_request(&with(HOST, name)).map_err(|bad| bad.status);
            read.map(|request| request.headers()[header::HOST].clone())
        };
        assert_eq!(host("demo.localhost:5000").unwrap(), "demo.localhost:5000");
        for bad in ["", "a b", "a/b", "a\r\nx: y", "a:b", "u@h", "a, b"] {
            assert_eq!(host(bad), Err(StatusCode::BAD_REQUEST), "{bad:?}");
        }
        let field = read_request(&with("h", "host: evil.example")).unwrap();
        assert!(field.headers().is_empty());
    }

    #[test]
    fn a_head_reply_keeps_its_length_and_others_do_not() {
        let mut response = Response::new(Bytes::new());
        let length = HeaderValue::from_static("1234");
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length);
        for (method, expected) in [(Method::HEAD, Some("1234")), (Method::GET, None)] {
            let message = Message {
                properties: write_reply(&response, None, &method),
                ..Message::default()
            };
            let read = read_reply(&message, &method).unwrap();
            let found = read.headers().get("content-length");
            assert_eq!(found.map(|value| value.to_str().unwrap()), expected);
        }
    }

    proptest! {
        #[test]
        fn any_header_value_survives(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let message = request("GET", "/", &[("x", value.as_bytes())]);
                let read = read_request(&message).unwrap();
                prop_assert_eq!(read.headers()["x"].as_bytes(), value.as_bytes());
                prop_assert!(message.properties.user.iter().all(|(_, text)| is_mqtt_text(text)));
            }
        }

        #[test]
        fn no_properties_panic(user in proptest::collection::vec(("(v|method|target|h|hb|status)", any::<String>()), 0..6)) {
            let message = Message {
                properties: Properties { user, ..Properties::default() },
                ..Message::default()
            };
            let _ = read_request(&message);
            let _ = read_reply(&message, &Method::GET);
        }
    }
}
