//! Requests and replies as MQTT messages, in JSON mode. Pure: no I/O, no clock.
//!
//! JSON mode is what the ping route speaks: the payload is JSON, and everything that MQTT 5 adds
//! (where to answer, which request is answered, how long the caller waits, the status) travels in
//! properties that an MQTT 3.1.1 peer never sees. Payloads are passed on byte for byte; they are
//! parsed only to be checked.

mod deadline;
pub mod http;
pub mod presence;

pub use deadline::{
    BadProperty, DEADLINE_MS, SENT, Sent, request_properties, sent, time_left, whole_seconds,
};

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ::http::StatusCode;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// How surely a message is delivered (MQTT 5, section 4.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// Once or not at all; nobody acknowledges anything.
    #[default]
    AtMostOnce = 0,
    /// Once or more often; the receiver acknowledges, the sender repeats.
    AtLeastOnce = 1,
    /// Exactly once, by a four-part handshake.
    ExactlyOnce = 2,
}

impl fmt::Display for Qos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", *self as u8)
    }
}

/// One MQTT PUBLISH, to be sent or just received.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The topic name; of a received message as the broker sent it.
    pub topic: String,
    /// The application data.
    pub payload: Bytes,
    /// The quality of service.
    pub qos: Qos,
    /// Sent: the broker shall keep it. Received: it was kept, so it is from before.
    pub retain: bool,
    /// Of a received message of QoS 1 or 2: what its acknowledgement names it by.
    pub packet_id: u16,
    /// The MQTT 5 properties; empty where a 3.1.1 peer is involved.
    pub properties: Properties,
}

/// The PUBLISH properties that this crate uses (MQTT 5, section 3.3.2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// Where the sender wants the answer.
    pub response_topic: Option<String>,
    /// What the answer must carry so that the sender knows its request.
    pub correlation_data: Option<Bytes>,
    /// After how many seconds the broker may drop the message.
    pub message_expiry_interval: Option<u32>,
    /// The media type of the payload.
    pub content_type: Option<String>,
    /// Pairs of name and value, in order.
    pub user: Vec<(String, String)>,
}

impl Message {
    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        let properties = &self.properties;
        let user = properties.user.iter();
        let texts = [&properties.response_topic, &properties.content_type];
        self.payload.len()
            + self.topic.len()
            + texts.into_iter().flatten().map(String::len).sum::<usize>()
            + properties.correlation_data.as_ref().map_or(0, Bytes::len)
            + user
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
    }
}

impl Properties {
    /// The value of the only user property with this name.
    ///
    /// Errors: there are several, so nobody can say which one is meant.
    pub fn only(&self, name: &'static str) -> Result<Option<&str>, BadProperty> {
        let mut found = self.user.iter().filter(|(key, _)| key == name);
        let value = found.next().map(|(_, value)| value.as_str());
        match found.next() {
            None => Ok(value),
            Some(_) => Err(BadProperty(name)),
        }
    }

    /// The value of the first user property with this name.
    pub fn user(&self, name: &str) -> Option<&str> {
        self.user
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The user property that carries a reply's HTTP status.
pub const STATUS: &str = "status";
/// User property of a JSON request: what log lines call it. An HTTP request has a header for it.
pub const REQUEST_ID: &str = "request-id";
/// The user property that marks a reply as the agent's own error, and names its hop.
pub const ERROR: &str = "error";

/// The user property that says how long a request was in the agent's queue and at its upstream.
pub const TIMING: &str = "timing";

/// What the agent says of its time: microseconds in its queue and at its upstream.
pub fn timing_text(queue: Duration, upstream: Duration) -> String {
    format!(
        "queue={};upstream={}",
        queue.as_micros(),
        upstream.as_micros()
    )
}

/// Reads what the agent says of its time; zero where it says nothing.
pub fn timing(properties: &Properties) -> (Duration, Duration) {
    let text = properties.user(TIMING).unwrap_or_default();
    let share = |name: &str| {
        let value = text.split(';').find_map(|part| part.strip_prefix(name));
        // An hour is longer than any request lives; more is a lie that could overflow a sum.
        let micros = value.and_then(|value| value.parse::<u64>().ok());
        Duration::from_micros(micros.unwrap_or_default().min(3_600_000_000))
    };
    (share("queue="), share("upstream="))
}

/// The media type of JSON payloads.
pub const JSON: &str = "application/json";
/// The media type of problem documents (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// 16 bytes that name one request: unique, and not to be guessed by who would forge a reply.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Correlation(pub [u8; 16]);

impl Correlation {
    /// Reads Correlation Data; `None` unless it is 16 bytes, as all of ours are.
    pub fn from_bytes(data: &[u8]) -> Option<Correlation> {
        data.try_into().ok().map(Correlation)
    }
}

impl fmt::Debug for Correlation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Which component an error belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// api_1.
    Gateway,
    /// The MQTT broker.
    Broker,
    /// The agent, or its absence.
    Agent,
    /// The HTTP service behind the agent.
    Upstream,
}

impl Hop {
    /// The name in problem documents and in the user property `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Hop::Gateway => "gateway",
            Hop::Broker => "broker",
            Hop::Agent => "agent",
            Hop::Upstream => "upstream",
        }
    }

    /// Reads a name; only hops at the agent's side can be named by a reply.
    pub fn from_reply(name: &str) -> Option<Hop> {
        match name {
            "agent" => Some(Hop::Agent),
            "upstream" => Some(Hop::Upstream),
            _ => None,
        }
    }
}

/// The request payload for a ping with this word: `{"ask": "ping"}`.
pub fn ask(word: &str) -> Bytes {
    match word {
        "ping" => Bytes::from_static(br#"{"ask": "ping"}"#),
        _ => format!(r#"{{"ask": {}}}"#, Value::from(word)).into(),
    }
}

/// Equal JSON has an equal canonical form: no white space, keys sorted.
///
/// Errors: it is not JSON.
pub fn canonical(json: &[u8]) -> serde_json::Result<Bytes> {
    let value: Value = serde_json::from_slice(json)?;
    Ok(serde_json::to_vec(&value)?.into())
}

/// A reply in JSON mode, as the gateway reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonReply {
    /// The status to answer with.
    pub status: StatusCode,
    /// The hop, where the agent itself reports an error; the body is then a problem document.
    pub error: Option<Hop>,
    /// The payload: valid JSON.
    pub body: Bytes,
}

/// Why a reply in JSON mode can't be passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadReply(String);

impl fmt::Display for BadReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a reply in JSON mode. One without a status counts as 200: that is how MQTT 3.1.1 peers
/// answer.
///
/// Errors: the status is not 200 to 599, or the payload is not JSON.
pub fn read_json_reply(message: &Message) -> Result<JsonReply, BadReply> {
    let status = match message.properties.user(STATUS) {
        None => StatusCode::OK,
        Some(text) => status(text)?,
    };
    serde_json::from_slice::<&RawValue>(&message.payload)
        .map_err(|error| BadReply(format!("its payload is not JSON: {error}")))?;
    Ok(JsonReply {
        status,
        error: error(&message.properties)?,
        body: message.payload.clone(),
    })
}

/// The hop that a reply names as the one that failed, where the agent itself reports an error.
///
/// Errors: it names none that could be at its side.
pub fn error(properties: &Properties) -> Result<Option<Hop>, BadReply> {
    match properties.user(ERROR) {
        None => Ok(None),
        Some(name) => match Hop::from_reply(name) {
            Some(hop) => Ok(Some(hop)),
            None => Err(BadReply(format!("its error {name:?} names no hop"))),
        },
    }
}

// The status that a reply states.
fn status(text: &str) -> Result<StatusCode, BadReply> {
    text.parse()
        .ok()
        .filter(|code| (200..=599).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| BadReply(format!("its status {text:?} is not 200 to 599")))
}

/// The answer to the HTTP client: `{"response": …}` around the reply's bytes.
pub fn wrap_response(body: &[u8]) -> Bytes {
    [br#"{"response": "#, body.trim_ascii(), b"}"]
        .concat()
        .into()
}

/// What an uncorrelated reply says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// It answers the request with this canonical form.
    Request(Bytes),
    /// It does not say which request it answers.
    Unknown,
}

/// Looks for `received` in a reply that carries no correlation.
///
/// Errors: it is not a JSON object, so it is no reply; or it has a member `error`. Equal requests
/// have equal replies, but not equal failures: what an MQTT 3.1.1 requester is told of its own
/// request (a full queue, an upstream too slow) must not reach a caller whose request goes well.
pub fn received(payload: &[u8]) -> Result<Received, BadReply> {
    // Not `Option<&RawValue>` alone: that would take `"received": null` for none at all.
    fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
        <&RawValue>::deserialize(value).map(Some)
    }
    #[derive(Deserialize)]
    struct Reply<'a> {
        #[serde(borrow, default, deserialize_with = "present")]
        received: Option<&'a RawValue>,
        #[serde(borrow, default, deserialize_with = "present")]
        error: Option<&'a RawValue>,
    }
    let not_a_reply = |error| BadReply(format!("it is not a JSON object: {error}"));
    if !payload.trim_ascii_start().starts_with(b"{") {
        return Err(BadReply("it is not a JSON object".into()));
    }
    let reply: Reply = serde_json::from_slice(payload).map_err(not_a_reply)?;
    if reply.error.is_some() {
        return Err(BadReply("it reports an error to somebody else".into()));
    }
    match reply.received {
        None => Ok(Received::Unknown),
        Some(raw) => canonical(raw.get().as_bytes())
            .map(Received::Request)
            .map_err(not_a_reply),
    }
}

/// Adds `received`, the request word for word, to what the upstream answered.
///
/// `request` must be valid JSON. Errors: the upstream's answer is not a JSON object.
pub fn add_received(answer: &[u8], request: &[u8]) -> Result<Bytes, BadReply> {
    let fields: BTreeMap<&str, &RawValue> = match serde_json::from_slice(answer) {
        Ok(fields) => fields,
        // A key with an escape can't be borrowed: once more, slower.
        Err(_) => return add_received_slowly(answer, request),
    };
    if fields.contains_key("received") {
        return add_received_slowly(answer, request);
    }
    let open = answer.trim_ascii().strip_suffix(b"}").unwrap_or_default();
    let comma: &[u8] = if fields.is_empty() { b"" } else { b", " };
    Ok([
        open.trim_ascii_end(),
        comma,
        br#""received": "#,
        request.trim_ascii(),
        b"}",
    ]
    .concat()
    .into())
}

fn add_received_slowly(answer: &[u8], request: &[u8]) -> Result<Bytes, BadReply> {
    let bad = |error| BadReply(format!("it is not a JSON object: {error}"));
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_slice(answer).map_err(bad)?;
    let request: &RawValue = serde_json::from_slice(request.trim_ascii()).map_err(bad)?;
    fields.insert("received".to_owned(), request);
    Ok(serde_json::to_vec(&fields).map_err(bad)?.into())
}

/// The error that an MQTT 3.1.1 requester gets: `{"error": …, "received": …}`.
///
/// A request that is not JSON stands in `received` as a string.
pub fn legacy_error(error: &str, request: &[u8]) -> Bytes {
    let received = match serde_json::from_slice::<&RawValue>(request) {
        Ok(raw) => raw.get().to_owned(),
        Err(_) => Value::from(String::from_utf8_lossy(request)).to_string(),
    };
    let error = Value::from(error);
    format!(r#"{{"error": {error}, "received": {received}}}"#).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_ping_contract_word_for_word() {
        let request = ask("ping");
        assert_eq!(text(&request), r#"{"ask": "ping"}"#);
        let reply = add_received(br#"{"message": "pong"}"#, &request).unwrap();
        assert_eq!(
            text(&reply),
            r#"{"message": "pong", "received": {"ask": "ping"}}"#
        );
        assert_eq!(
            text(&wrap_response(&reply)),
            r#"{"response": {"message": "pong", "received": {"ask": "ping"}}}"#
        );
    }

    #[test]
    fn what_the_upstream_calls_received_is_replaced() {
        let reply = add_received(br#"{"received": 1, "a": 2}"#, b"{\"ask\": \"x\"}").unwrap();
        assert_eq!(text(&reply), r#"{"a":2,"received":{"ask": "x"}}"#);
        let empty = add_received(b" {  } ", b"1").unwrap();
        assert_eq!(text(&empty), r#"{"received": 1}"#);
        for bad in ["[]", "\"x\"", "", "{\"a\": }", "{} {}"] {
            assert!(add_received(bad.as_bytes(), b"1").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reply_says_which_request_it_answers() {
        assert_eq!(
            received(br#"{"message": "pong", "received": { "ask" : "ping" }}"#),
            Ok(Received::Request(
                canonical(b"{\"ask\": \"ping\"}").unwrap()
            ))
        );
        assert_eq!(received(br#"{"message": 1}"#), Ok(Received::Unknown));
        let null = Received::Request(Bytes::from_static(b"null"));
        assert_eq!(received(br#"{"received": null}"#), Ok(null));
        for bad in [
            "",
            "pong",
            "[1]",
            "{",
            "{\"received\": }",
            "{\"error\": \"busy\"}",
        ] {
            assert!(received(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn statuses_outside_200_to_599_are_refused() {
        let reply = |status: &str| {
            read_json_reply(&Message {
                payload: Bytes::from_static(b"{}"),
                properties: Properties {
                    user: vec![(STATUS.into(), status.into())],
                    ..Properties::default()
                },
                ..Message::default()
            })
        };
        assert_eq!(reply("200").unwrap().status, StatusCode::OK);
        assert_eq!(reply("599").unwrap().status.as_u16(), 599);
        for bad in ["199", "600", "100", "", "abc", "-1", "2e2", "99999"] {
            assert!(reply(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_names_its_hop() {
        let of = |name: &str| {
            error(&Properties {
                user: vec![(ERROR.into(), name.into())],
                ..Properties::default()
            })
        };
        assert!(of("nowhere").is_err() && of("gateway").is_err());
        assert_eq!(of("agent"), Ok(Some(Hop::Agent)));
        assert_eq!(error(&Properties::default()), Ok(None));
    }

    #[test]
    fn an_old_requester_gets_its_request_back_in_an_error() {
        assert_eq!(
            text(&legacy_error("no \"way\"", br#"{"ask": "ping"}"#)),
            r#"{"error": "no \"way\"", "received": {"ask": "ping"}}"#
        );
        let garbage = legacy_error("not JSON", b"\xff{");
        let value: Value = serde_json::from_slice(&garbage).unwrap();
        assert_eq!(value["received"], "\u{fffd}{");
    }

    proptest! {
        #[test]
        fn any_word_survives_the_round_trip(word in any::<String>()) {
            let request = ask(&word);
            let reply = add_received(br#"{"message": "pong"}"#, &request).unwrap();
            let answer: Value = serde_json::from_slice(&wrap_response(&reply)).unwrap();
            prop_assert_eq!(&answer["response"]["received"]["ask"], &Value::from(word));
            let Received::Request(key) = received(&reply).unwrap() else { panic!() };
            prop_assert_eq!(key, canonical(&request).unwrap());
        }

        #[test]
        fn no_payload_panics(payload in any::<Vec<u8>>(), request in "[{}\\[\\]a-z\":, 0-9]{0,30}") {
            let _ = received(&payload);
            let _ = received(request.as_bytes());
            let _ = add_received(request.as_bytes(), b"{}");
            let error = legacy_error("e", &payload);
            prop_assert!(serde_json::from_slice::<Value>(&error).is_ok());
            let message = Message { payload: payload.into(), ..Message::default() };
            let _ = read_json_reply(&message);
        }
    }
}
