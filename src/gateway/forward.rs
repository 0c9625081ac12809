//! HTTP mode: any HTTP request to an agent, as if the service behind it were here.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderName};
use http::uri::PathAndQuery;
use http::{StatusCode, Version};

use super::broker::Broker;
use super::brokers::Choice;
use super::call::{Call, Reply};
use super::carrier::{Answer, Asked, Carrier, call_traced};
use super::onward::{Passage, append, ends_here, is_in_a_circle, onward};
use super::outward::{outward, prefix};
use super::router::Endpoint;
use super::settings::Mode;
use crate::base::topic::Topic;
use crate::front::Takes;
use crate::http::{Body, Failure, Problem, Request, Response, Source};
use crate::monitor::trace::Trace;
use crate::stream::{Incoming, Opened, TooMany, Why, send_on};
use crate::wire::Correlation;
use crate::wire::http::{HOST, UPGRADE, read_reply, write_request};
use crate::wire::reply::error;
use crate::wire::stream::{read_length, write_length};

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// In which form the body of a request is taken: whole where whoever gets it takes nothing else. What
/// will be refused anyway need not be read.
pub(super) fn takes(carrier: &Carrier, head: &Request, now: Instant) -> Takes {
    let streams = carrier.inboxes.streams();
    let mut brokers = carrier.brokers.iter();
    let is_open = brokers.any(|broker| streams.is_open(broker.way.number));
    match is_open && !wants_whole(carrier, head, now) {
        true => Takes::Stream(streams.limits().inline_bytes.min(carrier.whole_bytes)),
        false => Takes::Whole,
    }
}

fn wants_whole(carrier: &Carrier, head: &Request, now: Instant) -> bool {
    let Ok(found) = carrier.router.find(head) else {
        return false;
    };
    let Endpoint::Route(number) = found.endpoint else {
        return false;
    };
    if carrier.router.routes()[number].mode != Mode::Http {
        return true;
    }
    let inbox = &carrier.inboxes.of(&carrier.router.routes()[number]).topic;
    let topic = carrier.router.topic(number, &found);
    topic.is_ok_and(|topic| {
        let choice = carrier.brokers.for_http(&topic, inbox, now);
        choice.is_ok_and(|choice| !choice.found)
    })
}

/// Carries a request to an agent and its reply back.
pub(super) fn carry(
    carrier: &Carrier,
    asked: &Asked<'_>,
    trace: &mut Trace,
) -> std::result::Result<Answer, Failure> {
    let (request, client, number) = (asked.request, asked.client, asked.route);
    if let Some(response) = ends_here(request, &carrier.router.routes()[number].methods) {
        return Ok(response.into());
    }
    let topic = carrier.router.topic(number, asked.found)?;
    let inbox = carrier.inboxes.of(&carrier.router.routes()[number]);
    let brokers = &carrier.brokers;
    let Choice { broker, found } = brokers.for_http(&topic, &inbox.topic, asked.begun)?;
    let is_open = carrier.inboxes.streams().is_open(broker.way.number);
    let streams = found && is_open && client.takes_streams();
    let follows = request.body().stream();
    let upgrade = asked_upgrade(request);
    if upgrade.is_some() && !(streams && follows.is_some()) {
        return Err(Failure::Upgrade);
    }
    if follows.is_some() && !streams {
        return Err(Failure::NoStream(topic.to_string()));
    }
    if is_in_a_circle(request.headers(), &carrier.name) {
        return Err(Failure::Circle);
    }
    let own = carrier.router.prefix(number, request);
    let trusted = carrier.gate.trusts(client.peer);
    let prefix = prefix(request, own, trusted);
    let mut call = prepare(carrier, asked, topic, &prefix, upgrade.as_deref())?;
    if streams {
        let offer = carrier.inboxes.streams().offer();
        offer.write(&mut call.message.properties);
    }
    let upload = match follows {
        Some(source) => Some(upload(carrier, broker, &mut call, source)?),
        None => None,
    };
    log::debug!(
        "request {}: {} to {} as {:?}",
        asked.id,
        request.method(),
        call.topic,
        call.correlation
    );
    let correlation = call.correlation;
    let called = call_traced(carrier, inbox, asked, (broker, call), trace);
    if streams && matches!(called, Err(Failure::HungUp)) {
        give_up(carrier, broker, asked, correlation);
    }
    let response = called.and_then(|(reply, away)| {
        let mut response = response(reply, request, upload.as_ref(), upgrade.is_some())?;
        if carrier.router.routes()[number].rewrite {
            outward(&mut response, request, &prefix, trusted);
        }
        Ok(Answer {
            response,
            away: Some(away),
        })
    });
    // Where the answer is all here, nobody takes the rest of the body.
    let goes_on = |it: &Answer| it.response.body().stream().is_some();
    if let Some(upload) = &upload
        && !response.as_ref().is_ok_and(goes_on)
    {
        upload.stream().abort(Why::ClientGone);
    }
    response
}

// The request as its agent gets it. Not inlined: what it takes of the stack would lie below each request
// that waits.
#[inline(never)]
fn prepare(
    carrier: &Carrier,
    asked: &Asked<'_>,
    topic: Topic,
    prefix: &str,
    upgrade: Option<&str>,
) -> std::result::Result<Call, Failure> {
    let request = asked.request;
    let route = &carrier.router.routes()[asked.route];
    let target = carrier.router.target(asked.route, request);
    let target: PathAndQuery = target.parse().map_err(|_| Failure::BadTarget(target))?;
    let peer = asked.client.peer;
    let passage = Passage {
        peer,
        trusted: carrier.gate.trusts(peer),
        caller: asked.caller,
        id: asked.id,
        prefix: if route.rewrite { prefix } else { "" },
        gateway: &carrier.name,
        via: carrier.via,
    };
    let onward = onward(request, &passage);
    let inbox = carrier.inboxes.of(route);
    let timeout = timeout(request, route.timeout);
    let mut call = carrier
        .inboxes
        .prepare(inbox, topic, asked.begun, timeout)?;
    call.only_reads = request.method().is_safe();
    call.message.qos = route.qos;
    call.message.payload = onward.body().to_bytes();
    let properties = &mut call.message.properties;
    properties.content_type = None;
    let follows = request.body().stream();
    write_request(&onward, &target, follows.is_some(), properties);
    if let Some(source) = follows {
        write_length(source.length(), properties);
    }
    if asked.found.is_named()
        && let Some(host) = request.headers().get(header::HOST)
        && let Ok(host) = host.to_str()
    {
        // An empty port is allowed (RFC 3986, section 3.2.3) and says nothing.
        let host = host.strip_suffix(':').unwrap_or(host);
        properties.user.push((HOST.to_owned(), host.to_owned()));
    }
    if let Some(protocol) = upgrade {
        let property = (UPGRADE.to_owned(), protocol.to_owned());
        properties.user.push(property);
    }
    Ok(call)
}

// Whoever executes it for a client that has gone can stop.
fn give_up(carrier: &Carrier, broker: &Broker, asked: &Asked<'_>, correlation: Correlation) {
    if let Ok(topic) = carrier.router.topic(asked.route, asked.found) {
        let agents = broker.presence.stream_topics(&topic);
        let streams = carrier.inboxes.streams();
        streams.give_up(&broker.way.any, correlation, &agents);
    }
}

// Lets the body follow, as soon as an agent says that it takes it, and where to.
fn upload(
    carrier: &Carrier,
    broker: &Broker,
    call: &mut Call,
    source: &Arc<dyn Source>,
) -> std::result::Result<Arc<Opened>, Failure> {
    let streams = carrier.inboxes.streams();
    let opened = streams.open(call.correlation, &broker.way.any);
    let opened = opened.map_err(|TooMany(limit)| Failure::TooManyStreams(limit))?;
    let opened = Arc::new(opened);
    call.upload = Some(Arc::clone(opened.stream()));
    send_on(
        streams,
        Arc::clone(source),
        &opened,
        0,
        |error| match error.kind() {
            ErrorKind::FileTooLarge => Why::TooLarge,
            ErrorKind::InvalidData => Why::Violation,
            _ => Why::ClientGone,
        },
    );
    Ok(opened)
}

// The answer that a reply tells of.
fn response(
    reply: Reply,
    request: &Request,
    upload: Option<&Arc<Opened>>,
    upgrades: bool,
) -> std::result::Result<Response, Failure> {
    let bad = |bad: &dyn std::fmt::Display| Failure::BadReply(bad.to_string());
    let Reply { message, opened } = reply;
    let mut response = read_reply(&message, request.method()).map_err(|it| bad(&it))?;
    let error = error(&message.properties).map_err(|it| bad(&it))?;
    if let Some(hop) = error {
        let told = Problem::from_agent(response.status(), hop, &message.payload);
        return Err(Failure::Told(told));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !upgrades {
        return Err(bad(&"it upgrades what was to stay"));
    }
    append(response.headers_mut(), header::VIA, "1.1 recado");
    let Some(length) = read_length(&message.properties).map_err(|it| bad(&it))? else {
        return Ok(response.map(Body::from));
    };
    let opened = opened.or_else(|| upload.cloned());
    let opened =
        opened.ok_or_else(|| bad(&"its body is not here, and it was not asked to be sent"))?;
    let source = Incoming::new(opened, length, Why::ClientGone);
    Ok(response.map(|_| Body::Stream(Arc::new(source))))
}

/// How long this caller waits: the route's time, or less if it asks for less (RFC 7240,
/// `Prefer: wait=N`, in seconds).
pub(super) fn timeout(request: &Request, longest: Duration) -> Duration {
    request
        .headers()
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']))
        .find_map(|preference| {
            let (name, seconds) = preference.split_once('=')?;
            let seconds = seconds.trim().trim_matches('"').parse().ok()?;
            let wait = name.trim().eq_ignore_ascii_case("wait");
            wait.then(|| Duration::from_secs(seconds))
        })
        .map_or(longest, |wished| wished.min(longest))
}

// The protocols that the client would like to go on with, if it would. One that merely offers HTTP/2 is
// served with HTTP/1.1 (RFC 9110, section 7.8), and so is one that sends a body first. In HTTP/1.0 there
// is no upgrade, so there the field says nothing.
fn asked_upgrade(request: &Request) -> Option<String> {
    let headers = request.headers();
    let has_body = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    if request.version() == Version::HTTP_10 || has_body.iter().any(|it| headers.contains_key(it)) {
        return None;
    }
    let values = headers.get_all(header::UPGRADE).iter();
    let protocols = values.flat_map(|value| value.to_str().unwrap_or_default().split(','));
    let wanted = protocols
        .map(str::trim)
        .filter(|name| !name.eq_ignore_ascii_case("h2c"));
    let wanted: Vec<&str> = wanted.collect();
    (!wanted.is_empty()).then(|| wanted.join(", "))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn request(fields: &[(&'static str, &str)]) -> Request {
        let mut request = Request::default();
        for (name, value) in fields {
            let value = HeaderValue::from_str(value).unwrap();
            request.headers_mut().append(*name, value);
        }
        request
    }

    #[test]
    fn a_caller_may_shorten_its_time_only() {
        let longest = Duration::from_secs(3);
        let wait = |value| timeout(&request(&[("prefer", value)]), longest).as_secs();
        assert_eq!(timeout(&request(&[]), longest), longest);
        assert_eq!(wait("wait=1"), 1);
        assert_eq!(wait("respond-async, Wait=\"2\""), 2);
        assert_eq!(wait("wait=0"), 0);
        assert_eq!(wait("wait=100"), 3);
        assert_eq!(wait("wait=-1"), 3);
        assert_eq!(wait("wait"), 3);
    }

    #[test]
    fn an_upgrade_is_asked_for_in_http_1_1() {
        let asked = |value| asked_upgrade(&request(&[("upgrade", value)]));
        assert_eq!(asked("websocket").as_deref(), Some("websocket"));
        assert_eq!(asked("h2c, websocket").as_deref(), Some("websocket"));
        assert_eq!(asked("a/1, b").as_deref(), Some("a/1, b"));
        assert_eq!(asked("h2c"), None);
        assert_eq!(asked_upgrade(&request(&[])), None);
        let mut old = request(&[("upgrade", "websocket")]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(asked_upgrade(&old), None);
    }
}
