//! JSON mode: a question to whoever answers it, an agent of ours or any program that speaks MQTT.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::carrier::{Answer, Asked, Carrier, call_traced, json_response};
use super::forward;
use crate::http::{Failure, Problem, Request};
use crate::monitor::trace::Trace;
use crate::wire::json::{REQUEST_ID, ask, read_json_reply, wrap_response};

/// Asks the body, or the word of the query, and answers with the reply.
pub(super) fn carry(
    carrier: &Carrier,
    asked: &Asked<'_>,
    trace: &mut Trace,
) -> std::result::Result<Answer, Failure> {
    let Asked {
        route: number,
        found,
        request,
        id,
        begun,
        ..
    } = *asked;
    let route = &carrier.router.routes()[number];
    let topic = carrier.router.topic(number, found)?;
    let inbox = carrier.inboxes.of(route);
    let payload = payload(request)?;
    let choice = carrier.brokers.for_json(&topic, &inbox.topic, begun)?;
    let timeout = forward::timeout(request, route.timeout);
    let mut call = carrier.inboxes.prepare(inbox, topic, begun, timeout)?;
    log::debug!("request {id}: asked as {:?}", call.correlation);
    let named = (REQUEST_ID.to_owned(), id.to_string());
    call.message.properties.user.push(named);
    call.message.payload = payload;
    call.message.qos = route.qos;
    // Equal requests to different topics are not equal.
    call.open = route.request_topic.parameters().count() == 0;
    let (reply, away) = call_traced(carrier, inbox, asked, (choice.broker, call), trace)?;
    let reply =
        read_json_reply(&reply.message).map_err(|bad| Failure::BadReply(bad.to_string()))?;
    if let Some(hop) = reply.error {
        let told = Problem::from_agent(reply.status, hop, &reply.body);
        return Err(Failure::Told(told));
    }
    let mut response = json_response(wrap_response(&reply.body));
    *response.status_mut() = reply.status;
    Ok(Answer {
        response,
        away: Some(away),
    })
}

// A body is the question, as it is; without one, the question is the word of the query.
fn payload(request: &Request) -> std::result::Result<Bytes, Failure> {
    if request.body().is_empty() {
        return Ok(ask(&word(request.uri().query().unwrap_or_default())));
    }
    match serde_json::from_slice::<&RawValue>(request.body().as_bytes()) {
        Ok(_) => Ok(request.body().to_bytes()),
        Err(error) => Err(Failure::BodyNotJson(error.to_string())),
    }
}

// The first `ask` of a query, "ping" where there is none.
fn word(query: &str) -> Cow<'_, str> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "ask")
        .map_or("ping".into(), |(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_decoded() {
        assert_eq!(word(""), "ping");
        assert_eq!(word("x=1"), "ping");
        assert_eq!(word("ask=a%20b+c%22&ask=second"), "a b c\"");
        assert_eq!(word("ask="), "");
    }
}
