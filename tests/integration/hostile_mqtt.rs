use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use recado::front::HttpLimits;
use recado::front::{Client, Front, guarded};
use recado::http::{Request, Response};
use recado::wire::{Message, Properties, Qos};

use crate::http_mode::stop;
use crate::odd_messages::Peer;
use crate::support::http::get;
use crate::support::{
    Kind, Random, TestBroker, agent_settings, local, start_agent_with, start_gateway,
};

on_each_broker!(no_crafted_request_reaches_the_upstream);

const REQUESTS: &str = "recado/agents/demo/request";
const REPLIES: &str = "recado/gateways/vandal/response";
const MAX_BODY: usize = 10_000;

/// What can be wrong with a request, and what the agent says to it; None: nothing at all.
type Flaw = (&'static str, fn(&mut Message), Option<&'static str>);

const FLAWS: &[Flaw] = &[
    (
        "no response topic",
        |m| m.properties.response_topic = None,
        None,
    ),
    ("an empty response topic", |m| answer_to(m, ""), None),
    (
        "somebody else's topic",
        |m| answer_to(m, "somewhere/else"),
        None,
    ),
    ("a request topic", |m| answer_to(m, REQUESTS), None),
    (
        "the ping request topic",
        |m| answer_to(m, "api/ping/request"),
        None,
    ),
    (
        "another agent's request topic",
        |m| answer_to(m, "recado/agents/x/request"),
        None,
    ),
    (
        "a service's request topic",
        |m| answer_to(m, "recado/services/x/request"),
        None,
    ),
    (
        "a presence",
        |m| answer_to(m, "recado/agents/x/presence"),
        None,
    ),
    (
        "the broker's own topic",
        |m| answer_to(m, "$SYS/broker"),
        None,
    ),
    (
        "no correlation",
        |m| m.properties.correlation_data = None,
        None,
    ),
    ("version 2", |m| set(m, "v", "2"), Some("505")),
    ("version nothing", |m| set(m, "v", ""), Some("505")),
    ("no deadline", |m| remove(m, "deadline-ms"), Some("400")),
    (
        "a deadline that is no number",
        |m| set(m, "deadline-ms", "soon"),
        Some("400"),
    ),
    (
        "a deadline with a sign",
        |m| set(m, "deadline-ms", "+3000"),
        Some("400"),
    ),
    (
        "an empty deadline",
        |m| set(m, "deadline-ms", ""),
        Some("400"),
    ),
    (
        "two deadlines",
        |m| twice(m, "deadline-ms", "3000"),
        Some("400"),
    ),
    (
        "a time of sending that is none",
        |m| set(m, "sent", "yesterday"),
        Some("400"),
    ),
    (
        "two times of sending",
        |m| twice(m, "sent", "a/1"),
        Some("400"),
    ),
    ("two methods", |m| twice(m, "method", "GET"), Some("400")),
    ("two targets", |m| twice(m, "target", "/y"), Some("400")),
    ("no method", |m| remove(m, "method"), Some("400")),
    (
        "a method with a space",
        |m| set(m, "method", "GET /x"),
        Some("400"),
    ),
    ("an empty method", |m| set(m, "method", ""), Some("400")),
    ("CONNECT", |m| set(m, "method", "CONNECT"), Some("400")),
    ("no target", |m| remove(m, "target"), Some("400")),
    (
        "a target without a slash",
        |m| set(m, "target", "x"),
        Some("400"),
    ),
    (
        "another host",
        |m| set(m, "target", "http://elsewhere/x"),
        Some("400"),
    ),
    (
        "a target with a line end",
        |m| set(m, "target", "/x\r\nA: b"),
        Some("400"),
    ),
    (
        "a target with a space",
        |m| set(m, "target", "/x HTTP/1.1"),
        Some("400"),
    ),
    ("a fragment", |m| set(m, "target", "/x#y"), Some("400")),
    (
        "a header without a colon",
        |m| add(m, "h", "x"),
        Some("400"),
    ),
    (
        "a header without a name",
        |m| add(m, "h", ": x"),
        Some("400"),
    ),
    (
        "a header name with a space",
        |m| add(m, "h", "a b: c"),
        Some("400"),
    ),
    (
        "a header with a line end",
        |m| add(m, "h", "a: b\r\nc: d"),
        Some("400"),
    ),
    (
        "a header in broken hexadecimal",
        |m| add(m, "hb", "a: 6"),
        Some("400"),
    ),
    (
        "a hidden line end",
        |m| add(m, "hb", "a: 0d0a"),
        Some("400"),
    ),
    (
        "too large a body",
        |m| m.payload = vec![0; MAX_BODY + 1].into(),
        Some("413"),
    ),
];

/// What Mosquitto itself cuts the sender off for.
const STOPPED_BY_MOSQUITTO: [&str; 3] = [
    "an empty response topic",
    "a target with a line end",
    "a header with a line end",
];

fn answer_to(message: &mut Message, topic: &str) {
    message.properties.response_topic = Some(topic.to_owned());
}

fn remove(message: &mut Message, name: &str) {
    message.properties.user.retain(|(found, _)| found != name);
}

fn set(message: &mut Message, name: &str, value: &str) {
    remove(message, name);
    add(message, name, value);
}

fn twice(message: &mut Message, name: &str, value: &str) {
    set(message, name, value);
    add(message, name, value);
}

fn add(message: &mut Message, name: &str, value: &str) {
    let property = (name.to_owned(), value.to_owned());
    message.properties.user.push(property);
}

/// A request with nothing wrong; the correlation tells the replies apart.
fn request(number: usize) -> Message {
    let user = [
        ("v", "1"),
        ("method", "POST"),
        ("target", "/x?y"),
        ("h", "accept: */*"),
        ("deadline-ms", "20000"),
        ("vandal", "these come from the vandal"),
    ];
    Message {
        topic: REQUESTS.into(),
        payload: Bytes::from_static(b"body"),
        properties: Properties {
            response_topic: Some(REPLIES.into()),
            correlation_data: Some(Bytes::copy_from_slice(&number.to_be_bytes())),
            user: user.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
            ..Properties::default()
        },
        ..Message::default()
    }
}

fn number_of(reply: &Message) -> usize {
    let bytes = reply.properties.correlation_data.as_deref().unwrap();
    usize::from_be_bytes(bytes.try_into().unwrap())
}

/// What the agent has published once its reply to `last` and so many in all are there, in whatever
/// order; everything that anybody publishes is looked at.
fn replies_until(observer: &Peer, last: usize, count: usize) -> Vec<Message> {
    let mut replies = Vec::new();
    loop {
        let message = observer.receive();
        let own = message.properties.user("vandal").is_some();
        let elsewhere = ["/presence", "/stats"]
            .iter()
            .any(|end| message.topic.ends_with(end));
        if own || elsewhere || message.topic.starts_with("$SYS") {
            continue;
        }
        assert_eq!(
            message.topic, REPLIES,
            "nothing goes elsewhere: {message:?}"
        );
        replies.push(message);
        if replies.len() >= count && replies.iter().any(|reply| number_of(reply) == last) {
            return replies;
        }
    }
}

fn no_crafted_request_reaches_the_upstream(kind: Kind) {
    let broker = TestBroker::start(kind);
    let executed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&executed);
    let handler = move |request: Request, _: &Client<'_>| {
        counted.fetch_add(1, Ordering::SeqCst);
        Response::new(request.into_body())
    };
    let listener = TcpListener::bind(local(0)).unwrap();
    let upstream = guarded::start(listener, HttpLimits::default(), handler).unwrap();
    let mut settings = agent_settings(&broker.url(), upstream.address());
    settings.max_body_bytes = MAX_BODY;
    let agent = start_agent_with(settings);
    let observer = Peer::start(&broker, &["#"]);

    // Each flaw by itself, then a request without any.
    let passes = |name| kind != Kind::Mosquitto || !STOPPED_BY_MOSQUITTO.contains(&name);
    let flaws: Vec<&Flaw> = FLAWS.iter().filter(|(name, ..)| passes(name)).collect();
    for (number, (_, spoil, _)) in flaws.iter().enumerate() {
        let mut message = request(number);
        spoil(&mut message);
        observer.publish(message);
    }
    let last = flaws.len();
    observer.publish(request(last));
    let wanted = flaws.iter().filter(|(_, _, wanted)| wanted.is_some());
    let replies = replies_until(&observer, last, wanted.count() + 1);
    for (number, (name, _, wanted)) in flaws.iter().enumerate() {
        let reply = replies.iter().find(|reply| number_of(reply) == number);
        let status = reply.and_then(|reply| reply.properties.user("status"));
        assert_eq!(status, *wanted, "{name}");
        if let Some(reply) = reply {
            assert_eq!(reply.properties.user("error"), Some("agent"), "{name}");
        }
    }
    assert_eq!(executed.load(Ordering::SeqCst), 1, "only the last one");

    // Several at a time, in every quality of service, some of them again and again.
    let mut random = Random::new(0x2545_f491_4f6c_dd1d);
    for number in 0..500 {
        let mut message = request(1_000 + number);
        for _ in 0..=random.below(3) {
            flaws[random.below(flaws.len())].1(&mut message);
        }
        message.qos = [Qos::AtMostOnce, Qos::AtLeastOnce][random.below(2)];
        for _ in 0..=random.below(2) {
            observer.publish_patiently(message.clone());
        }
    }
    observer.publish_patiently(request(2_000));
    replies_until(&observer, 2_000, 1);
    assert_eq!(executed.load(Ordering::SeqCst), 2, "only the last one");

    let gateway = start_gateway(&broker);
    assert_eq!(get(gateway.address(), "/agents/demo/x").status, 200);
    gateway.stop().unwrap();
    drop(observer);
    agent.stop().unwrap();
    stop(Box::new(upstream));
}

#[test]
fn a_retained_request_is_from_before() {
    let broker = TestBroker::start(Kind::Embedded);
    let peer = Peer::start(&broker, &["recado/gateways/vandal/#"]);
    peer.publish(Message {
        retain: true,
        ..request(1)
    });
    let upstream = crate::http_mode::start_upstream();
    let agent = start_agent_with(agent_settings(&broker.url(), upstream.address()));
    peer.publish(request(2));
    assert_eq!(number_of(&peer.receive()), 2);
    drop(peer);
    agent.stop().unwrap();
    stop(upstream);
}
