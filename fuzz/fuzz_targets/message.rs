//! Whatever a message at the broker holds: no panic, and what is understood survives the way
//! through another message.
#![no_main]

use http::Method;
use http::uri::PathAndQuery;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use recado::message::http::{is_hop_by_hop, read_reply, read_request, write_reply, write_request};
use recado::message::{
    Message, Properties, add_received, canonical, legacy_error, read_json_reply, received,
    time_left, timing, wrap_response,
};
use serde_json::value::RawValue;

#[derive(Arbitrary, Debug)]
struct Input {
    user: Vec<(Name, String)>,
    payload: Vec<u8>,
    content_type: Option<String>,
    expiry: Option<u32>,
    is_head: bool,
}

/// Mostly the names that mean something.
#[derive(Arbitrary, Debug)]
enum Name {
    Version,
    Method,
    Target,
    Header,
    HexHeader,
    Status,
    Error,
    Deadline,
    Timing,
    Other(String),
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        match name {
            Name::Version => "v".into(),
            Name::Method => "method".into(),
            Name::Target => "target".into(),
            Name::Header => "h".into(),
            Name::HexHeader => "hb".into(),
            Name::Status => "status".into(),
            Name::Error => "error".into(),
            Name::Deadline => "deadline-ms".into(),
            Name::Timing => "timing".into(),
            Name::Other(name) => name,
        }
    }
}

fuzz_target!(|input: Input| {
    let user = input.user.into_iter();
    let message = Message {
        payload: input.payload.into(),
        properties: Properties {
            content_type: input.content_type,
            message_expiry_interval: input.expiry,
            user: user.map(|(name, value)| (name.into(), value)).collect(),
            ..Properties::default()
        },
        ..Message::default()
    };
    time_left(&message.properties);
    timing(&message.properties);
    http(&message, input.is_head);
    json(&message);
});

fn http(message: &Message, is_head: bool) {
    if let Ok(request) = read_request(message) {
        let text = request.uri().to_string();
        let target: PathAndQuery = text.parse().expect("a target that was read");
        let mut properties = Properties::default();
        write_request(&request, &target, &mut properties);
        let again = read_request(&Message {
            properties,
            payload: message.payload.clone(),
            ..Message::default()
        });
        let again = again.expect("what was written can be read");
        assert_eq!(again.method(), request.method());
        assert_eq!(again.uri(), request.uri());
        assert_eq!(again.headers(), request.headers());
    }
    let method = if is_head { Method::HEAD } else { Method::GET };
    if let Ok(response) = read_reply(message, &method) {
        assert!((200..600).contains(&response.status().as_u16()));
        assert!(!response.headers().keys().any(is_hop_by_hop));
        let again = read_reply(
            &Message {
                properties: write_reply(&response, None, &method),
                payload: message.payload.clone(),
                ..Message::default()
            },
            &method,
        );
        let again = again.expect("what was written can be read");
        assert_eq!(again.status(), response.status());
        assert_eq!(again.headers(), response.headers());
    }
}

fn json(message: &Message) {
    let payload = &message.payload;
    let _ = received(payload);
    let _ = read_json_reply(message);
    let _ = canonical(payload);
    check(&legacy_error("an error", payload));
    if serde_json::from_slice::<&RawValue>(payload).is_ok() {
        check(&wrap_response(payload));
        if let Ok(answer) = add_received(payload, payload) {
            check(&answer);
        }
    }
}

// As JSON's grammar goes: what a number may be is up to who reads it.
fn check(json: &[u8]) {
    serde_json::from_slice::<&RawValue>(json).expect("JSON, whatever was asked");
}
