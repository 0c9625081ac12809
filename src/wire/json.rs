//! Requests and replies as MQTT messages, in JSON mode. Pure: no I/O, no clock.
//!
//! JSON mode is what the ping route speaks: the payload is JSON, and everything that MQTT 5 adds
//! (where to answer, which request is answered, how long the caller waits, the status) travels in
//! properties that an MQTT 3.1.1 peer never sees. Payloads are passed on byte for byte; they are
//! parsed only to be checked.

use std::collections::BTreeMap;

use ::http::StatusCode;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::message::Message;
use super::reply::{BadReply, Hop, STATUS, error, status};

/// User property of a JSON request: what log lines call it. An HTTP request has a header for it.
pub const REQUEST_ID: &str = "request-id";

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
    use crate::wire::message::Properties;
    use crate::wire::reply::ERROR;

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
