use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, unbounded};
use recado::base::topic::TopicFilter;
use recado::link::BrokerUrl;
use recado::link::{Link, LinkEvent, LinkOptions, Subscription};
use recado::wire::{Message, Properties, Qos};

use crate::support::http::get;
use crate::support::{
    Chain, Kind, PATIENCE, TestBroker, mqtt311, start_agent, start_backend, start_gateway,
};

on_each_broker!(
    replies_that_are_not_for_the_caller,
    replies_that_can_not_be_used,
    requests_that_must_not_be_executed,
    a_reply_of_an_mqtt_5_agent,
);

/// An MQTT 5 peer that sends and receives whatever a test wants.
pub struct Peer {
    link: Option<Link>,
    messages: Receiver<Message>,
}

impl Peer {
    pub fn start(broker: &TestBroker, filters: &[&str]) -> Peer {
        static NUMBER: Mutex<u32> = Mutex::new(0);
        let number = {
            let mut number = NUMBER.lock().unwrap();
            *number += 1;
            *number
        };
        let (on_message, messages) = unbounded();
        let (on_ready, ready) = unbounded();
        let options = LinkOptions {
            brokers: vec![broker.url().parse::<BrokerUrl>().unwrap()],
            prefix: Default::default(),
            client_id: format!("peer-{number}"),
            session_expiry: Duration::ZERO,
            keep_alive: Duration::from_secs(10),
            max_packet_bytes: 1_000_000,
            queue: 100,
            queue_bytes: 1_000_000,
            proves_topics: false,
            manual_acknowledgement: false,
            will: None,
            subscriptions: filters
                .iter()
                .map(|filter| Subscription {
                    filter: TopicFilter::new(*filter).unwrap(),
                    qos: Qos::AtMostOnce,
                    group: None,
                    retained: true,
                    is_needed: true,
                })
                .collect(),
        };
        let link = Link::start(options, move |_, event| match event {
            LinkEvent::Ready => on_ready.send(()).unwrap(),
            LinkEvent::Message(message) => on_message.send(message).unwrap(),
            _ => {}
        })
        .unwrap();
        ready.recv_timeout(PATIENCE).unwrap();
        Peer {
            link: Some(link),
            messages,
        }
    }

    pub fn receive(&self) -> Message {
        self.messages.recv_timeout(PATIENCE).unwrap()
    }

    /// Waits while too much is under way.
    pub fn publish_patiently(&self, message: Message) {
        let publisher = self.link.as_ref().unwrap().publisher();
        crate::support::wait_until("it is published", || {
            publisher.publish(message.clone(), None).is_ok()
        });
    }

    pub fn publish(&self, message: Message) {
        self.link
            .as_ref()
            .unwrap()
            .publisher()
            .publish(message, None)
            .unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let link = self.link.take().unwrap();
        link.stop(Instant::now() + PATIENCE).unwrap();
    }
}

fn reply_to(request: &Message, payload: &'static str, user: &[(&str, &str)]) -> Message {
    Message {
        topic: request.properties.response_topic.clone().unwrap(),
        payload: Bytes::from_static(payload.as_bytes()),
        properties: Properties {
            correlation_data: request.properties.correlation_data.clone(),
            user: user
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Properties::default()
        },
        ..Message::default()
    }
}

fn a_reply_of_an_mqtt_5_agent(kind: Kind) {
    let broker = TestBroker::start(kind);
    let gateway = start_gateway(&broker);
    let peer = Peer::start(&broker, &["api/ping/request"]);
    let address = gateway.address();
    let caller = std::thread::spawn(move || get(address, "/ping"));
    let request = peer.receive();
    let properties = &request.properties;
    assert_eq!(properties.correlation_data.as_ref().unwrap().len(), 16);
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert!(matches!(properties.message_expiry_interval, Some(1..=3)));
    let deadline: u64 = properties.user("deadline-ms").unwrap().parse().unwrap();
    assert!((1..=3000).contains(&deadline));
    peer.publish(reply_to(
        &request,
        r#"{"message": "mine"}"#,
        &[("status", "201"), ("x", "y")],
    ));
    let answer = caller.join().unwrap();
    assert_eq!(answer.status, 201);
    assert_eq!(answer.text(), r#"{"response": {"message": "mine"}}"#);
    drop(peer);
    gateway.stop().unwrap();
}

fn replies_that_are_not_for_the_caller(kind: Kind) {
    let broker = TestBroker::start(kind);
    let gateway = start_gateway(&broker);
    let peer = Peer::start(&broker, &["api/ping/request"]);
    let address = gateway.address();
    let caller = std::thread::spawn(move || get(address, "/ping"));
    let request = peer.receive();
    let forged = r#"{"message": "forged"}"#;
    let right = reply_to(&request, r#"{"message": "right"}"#, &[]);
    let with_correlation = |data: &'static [u8]| Message {
        properties: Properties {
            correlation_data: Some(Bytes::from_static(data)),
            ..Properties::default()
        },
        ..reply_to(&request, forged, &[])
    };
    // A foreign correlation, ones of the wrong length, the right one on the wrong topic, replies
    // to another request, garbage, and a retained one from before.
    peer.publish(with_correlation(b"0123456789abcdef"));
    peer.publish(with_correlation(b"short"));
    peer.publish(with_correlation(b""));
    peer.publish(Message {
        topic: "api/ping/response".into(),
        ..reply_to(&request, forged, &[])
    });
    let old = |payload: &'static str, retain| Message {
        topic: "api/ping/response".into(),
        payload: Bytes::from_static(payload.as_bytes()),
        retain,
        ..Message::default()
    };
    peer.publish(old(
        r#"{"message": "forged", "received": {"ask": "other"}}"#,
        false,
    ));
    for garbage in ["", "pong", "[]", "null", "{\"received\"", "\u{0}"] {
        peer.publish(old(garbage, false));
    }
    peer.publish(right.clone());
    let answer = caller.join().unwrap();
    assert_eq!(answer.text(), r#"{"response": {"message": "right"}}"#);
    // The same again: nobody waits for it now, and the next caller must not get it.
    peer.publish(right);
    let caller = std::thread::spawn(move || get(address, "/ping"));
    let next = peer.receive();
    peer.publish(reply_to(&next, r#"{"message": "next"}"#, &[]));
    assert_eq!(
        caller.join().unwrap().text(),
        r#"{"response": {"message": "next"}}"#
    );
    drop(peer);
    gateway.stop().unwrap();
}

fn replies_that_can_not_be_used(kind: Kind) {
    let broker = TestBroker::start(kind);
    let gateway = start_gateway(&broker);
    let peer = Peer::start(&broker, &["api/ping/request"]);
    let address = gateway.address();
    let cases: [(&'static str, &[(&str, &str)]); 5] = [
        ("{}", &[("status", "42")]),
        ("{}", &[("status", "600")]),
        ("{}", &[("status", "two hundred")]),
        ("pong", &[]),
        ("", &[("status", "200")]),
    ];
    for (payload, user) in cases {
        let caller = std::thread::spawn(move || get(address, "/ping"));
        peer.publish(reply_to(&peer.receive(), payload, user));
        let answer = caller.join().unwrap();
        assert_eq!(answer.status, 502, "{payload:?} {user:?}");
        assert_eq!(answer.json()["hop"], "agent");
        assert_eq!(answer.json()["outcome"], "unknown");
    }
    drop(peer);
    gateway.stop().unwrap();
}

fn requests_that_must_not_be_executed(kind: Kind) {
    let broker = TestBroker::start(kind);
    let backend = start_backend();
    // Retained before the agent comes: whoever asked is long gone.
    let mut before = mqtt311::Client::connect(broker.port());
    before.publish_with("api/ping/request", br#"{"ask": "retained"}"#, true);
    assert_eq!(before.received_so_far(), []);
    let agent = start_agent(&broker, backend.address());
    let peer = Peer::start(&broker, &["#"]);
    let request = |response_topic: &str| Message {
        topic: "api/ping/request".into(),
        payload: Bytes::from_static(br#"{"ask": "elsewhere"}"#),
        properties: Properties {
            response_topic: Some(response_topic.to_owned()),
            ..Properties::default()
        },
        ..Message::default()
    };
    peer.publish(request("somewhere/else"));
    peer.publish(request("api/ping/request"));
    peer.publish(Message {
        payload: Bytes::from_static(br#"{"ask": "ping"}"#),
        ..request("api/ping/response/last")
    });
    let mut replies = Vec::new();
    loop {
        let message = peer.receive();
        if message.topic == "api/ping/request" || message.topic.ends_with("/presence") {
            continue;
        }
        let last = message.topic == "api/ping/response/last";
        replies.push(message);
        if last {
            break;
        }
    }
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert_eq!(replies[0].properties.user("status"), Some("200"));
    assert_eq!(replies[0].properties.user("error"), None);
    before.publish_with("api/ping/request", b"", true);
    drop(peer);
    agent.stop().unwrap();
    backend.stop().unwrap();
}

#[test]
fn a_flood_of_garbage_does_no_harm() {
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start(&broker);
    let mut vandal = mqtt311::Client::connect(broker.port());
    let flood = vandal.publisher();
    let flooding = std::thread::spawn(move || {
        let mut flood = flood;
        for number in 0..2000u32 {
            let topic = ["api/ping/request", "api/ping/response"][number as usize % 2];
            let junk: Vec<u8> = (0..number % 50).map(|byte| (byte * number) as u8).collect();
            flood.publish(topic, &junk);
        }
    });
    for _ in 0..20 {
        assert!(matches!(
            get(chain.address(), "/ping").status,
            200 | 503 | 504
        ));
    }
    flooding.join().unwrap();
    vandal.received_so_far();
    crate::support::wait_until("all is well again", || {
        get(chain.address(), "/ping").status == 200
    });
    chain.stop();
}

#[test]
fn a_request_delivered_twice_is_executed_once() {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let agent = start_agent(&broker, backend.address());
    let peer = Peer::start(&broker, &["api/ping/#"]);
    let request = Message {
        topic: "api/ping/request".into(),
        payload: Bytes::from_static(br#"{"ask": "ping"}"#),
        qos: Qos::AtLeastOnce,
        properties: Properties {
            response_topic: Some("api/ping/response/peer".into()),
            correlation_data: Some(Bytes::from_static(b"the same")),
            ..Properties::default()
        },
        ..Message::default()
    };
    let mut timings = Vec::new();
    for _ in 0..3 {
        peer.publish(request.clone());
        let reply = loop {
            let message = peer.receive();
            if message.topic == "api/ping/response/peer" {
                break message;
            }
        };
        assert_eq!(
            reply.properties.correlation_data.as_deref(),
            Some(&b"the same"[..])
        );
        timings.push(reply.properties.user("timing").unwrap().to_owned());
    }
    // Microseconds of a call of its own would not be equal three times over.
    timings.dedup();
    assert_eq!(timings.len(), 1, "{timings:?}");
    drop(peer);
    agent.stop().unwrap();
    backend.stop().unwrap();
}
