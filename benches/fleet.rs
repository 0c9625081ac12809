//! Many agents, and many callers, from one program: where the limits are of gateways and brokers.
//!
//! ```text
//! cargo bench --bench fleet -- presences N BROKER         announces N agents that are not there, and waits
//! cargo bench --bench fleet -- agents N SECONDS BROKER…   N agents that answer at once, a connection each
//! cargo bench --bench fleet -- load CALLERS SECONDS N GATEWAY…
//!                                                         asks agents 0 to N-1 through gateways, HOST:PORT
//! ```
//!
//! Agents are called `fleet-0` and so on. Several brokers: each agent is at one of them, in turn.

// What is measured with it is looked at by somebody.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response};
use recado::base::topic::{Id, TopicFilter};
use recado::link::{BrokerUrl, Link, LinkEvent, LinkOptions, Prefix, Publisher, Subscription};
use recado::wire::http::write_reply;
use recado::wire::presence::{Announcement, topic};
use recado::wire::{Message, Qos};

/// How long everybody may take to be there.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    // `cargo bench` adds a flag of its own.
    let arguments = std::env::args().skip(1).filter(|it| it != "--bench");
    let arguments: Vec<String> = arguments.collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().expect("a number");
    match &words[..] {
        ["presences", count, broker] => presences(number(count), broker),
        ["agents", count, seconds, brokers @ ..] if !brokers.is_empty() => {
            agents(number(count), number(seconds), brokers);
        }
        ["load", callers, seconds, agents, gateways @ ..] if !gateways.is_empty() => {
            load(number(callers), number(seconds), number(agents), gateways);
        }
        // `cargo bench` runs all of them: this one has nothing to say then.
        [] => {}
        _ => panic!("what is meant? see the head of benches/fleet.rs"),
    }
}

fn id(number: usize) -> Id {
    Id::new(format!("fleet-{number}")).unwrap()
}

fn presence(number: usize) -> Message {
    let id = id(number);
    let said = Announcement {
        id: id.to_string(),
        services: Vec::new(),
        since: "2026-01-01T00:00:00Z".into(),
        version: "0.1.0".into(),
        topics: vec![format!("recado/agents/{id}/request")],
        instance: format!("{number:016x}"),
        refresh_s: None,
        stats_ms: None,
        denied: Vec::new(),
        streams: false,
        remembers: false,
        leaving: false,
    };
    Message {
        topic: topic(&id),
        payload: serde_json::to_vec(&said).unwrap().into(),
        qos: Qos::AtLeastOnce,
        retain: true,
        ..Message::default()
    }
}

fn options(broker: &str, client_id: String) -> LinkOptions {
    LinkOptions {
        brokers: vec![broker.parse::<BrokerUrl>().expect("a broker's URL")],
        prefix: Prefix::default(),
        client_id,
        session_expiry: Duration::ZERO,
        keep_alive: Duration::from_secs(60),
        max_packet_bytes: 1024 * 1024,
        queue: 1024,
        queue_bytes: 16 * 1024 * 1024,
        proves_topics: false,
        manual_acknowledgement: false,
        will: None,
        subscriptions: Vec::new(),
    }
}

fn presences(count: usize, broker: &str) {
    let ready = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&ready);
    let link = Link::start(
        options(broker, "fleet-presences".into()),
        move |_, event| {
            if matches!(event, LinkEvent::Acknowledged(_)) {
                own.fetch_add(1, Ordering::Relaxed);
            }
        },
    );
    let link = link.unwrap();
    let begun = Instant::now();
    for number in 0..count {
        let deadline = Instant::now() + PATIENCE;
        let published = link.publisher().publish_before(presence(number), deadline);
        published.unwrap();
    }
    wait_for(&ready, count);
    println!(
        "{count} presences in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    link.stop(Instant::now() + PATIENCE).unwrap();
}

fn wait_for(ready: &AtomicUsize, count: usize) {
    let begun = Instant::now();
    while ready.load(Ordering::Relaxed) < count {
        assert!(begun.elapsed() < PATIENCE, "{ready:?} of {count}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn answer(publisher: &Publisher, request: &Message) {
    let properties = &request.properties;
    let Some(inbox) = &properties.response_topic else {
        return;
    };
    let response = Response::new(Bytes::from_static(b"pong"));
    let mut reply = Message {
        topic: inbox.clone(),
        payload: response.body().clone(),
        properties: write_reply(&response, None, &Method::GET),
        ..Message::default()
    };
    reply.properties.correlation_data = properties.correlation_data.clone();
    let _ = publisher.publish(reply, None);
}

fn agents(count: usize, seconds: usize, brokers: &[&str]) {
    let ready = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let agent = |number: usize| {
        let mut options = options(brokers[number % brokers.len()], id(number).to_string());
        let filter = format!("recado/agents/{}/request", id(number));
        options.subscriptions.push(Subscription {
            filter: TopicFilter::new(filter).unwrap(),
            qos: Qos::AtLeastOnce,
            group: None,
            retained: false,
            is_needed: true,
        });
        options.will = Some(Message {
            payload: Bytes::new(),
            ..presence(number)
        });
        let ready = Arc::clone(&ready);
        let link = Link::start(options, move |publisher, event| match event {
            LinkEvent::Ready => {
                publisher.publish(presence(number), None).unwrap();
                ready.fetch_add(1, Ordering::Relaxed);
            }
            LinkEvent::Message(request) => answer(publisher, &request),
            _ => {}
        });
        link.unwrap()
    };
    let links: Vec<Link> = (0..count).map(agent).collect();
    wait_for(&ready, count);
    println!("{count} agents in {:.1} s", begun.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(seconds as u64));
    drop(links);
}

/// One kept-alive connection that asks one agent after the other.
struct Caller {
    stream: BufReader<TcpStream>,
}

impl Caller {
    // The status of the answer.
    fn ask(&mut self, number: usize) -> Option<u16> {
        let id = id(number);
        let request = format!("GET /agents/{id}/ HTTP/1.1\r\nHost: fleet\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).ok()?;
        let (mut line, mut length, mut status) = (String::new(), 0, None);
        loop {
            line.clear();
            if self.stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let text = line.trim_end().to_ascii_lowercase();
            if status.is_none() {
                status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
            }
            if let Some(value) = text.strip_prefix("content-length: ") {
                length = value.parse().ok()?;
            }
            if text.is_empty() {
                break;
            }
        }
        self.stream.read_exact(&mut vec![0; length]).ok()?;
        status
    }
}

fn load(callers: usize, seconds: usize, agents: usize, gateways: &[&str]) {
    let until = Instant::now() + Duration::from_secs(seconds as u64);
    let times: Mutex<Vec<Duration>> = Mutex::default();
    let failed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for caller in 0..callers {
            let (times, failed) = (&times, &failed);
            scope.spawn(move || {
                let connect = || {
                    let stream = TcpStream::connect(gateways[caller % gateways.len()]).unwrap();
                    stream.set_nodelay(true).unwrap();
                    Caller {
                        stream: BufReader::new(stream),
                    }
                };
                let (mut own, mut own_times) = (connect(), Vec::new());
                // Each goes through all agents in an order of its own.
                let mut number = caller * 7919;
                while Instant::now() < until {
                    number += 1 + 2 * caller;
                    let begun = Instant::now();
                    match own.ask(number % agents) {
                        Some(200) => own_times.push(begun.elapsed()),
                        Some(_) => drop(failed.fetch_add(1, Ordering::Relaxed)),
                        None => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            own = connect();
                        }
                    }
                }
                times.lock().unwrap().extend(own_times);
            });
        }
    });
    let mut times = times.into_inner().unwrap();
    times.sort_unstable();
    let at = |part: f64| {
        let number = (times.len() as f64 * part) as usize;
        times
            .get(number.min(times.len().saturating_sub(1)))
            .map_or(0.0, |it| it.as_secs_f64() * 1e3)
    };
    println!(
        "{} callers, {} gateways: {:.0} requests/s, p50 {:.2} ms, p99 {:.2} ms, {} failed",
        callers,
        gateways.len(),
        times.len() as f64 / seconds as f64,
        at(0.5),
        at(0.99),
        failed.load(Ordering::Relaxed)
    );
}
