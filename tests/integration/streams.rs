use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use recado::agent::{Agent, AgentSettings};
use recado::gateway::{Gateway, GatewaySettings};

use crate::failures::problem;
use crate::support::http::Connection;
use crate::support::upstream::{RawUpstream, Visit};
use crate::support::{
    Kind, PATIENCE, TestBroker, agent_settings, gateway_settings, start_agent_with,
    start_gateway_with, wait_until,
};

on_each_broker!(
    answers_of_every_length_are_the_same,
    requests_of_every_length_are_the_same,
);

/// The chain before an upstream of a test's own, ready for streams.
pub struct Chain {
    pub gateway: Gateway,
    pub agent: Agent,
    pub broker: TestBroker,
}

impl Chain {
    pub fn start(kind: Kind, upstream: &RawUpstream) -> Chain {
        Chain::start_with(TestBroker::start(kind), upstream, |_| {}, |_| {})
    }

    pub fn start_with(
        broker: TestBroker,
        upstream: &RawUpstream,
        set_agent: impl FnOnce(&mut AgentSettings),
        set_gateway: impl FnOnce(&mut GatewaySettings),
    ) -> Chain {
        let mut settings = agent_settings(&broker.url(), upstream.address());
        set_agent(&mut settings);
        let agent = start_agent_with(settings);
        let mut settings = gateway_settings(&broker.url());
        set_gateway(&mut settings);
        let gateway = start_gateway_with(settings);
        Chain {
            gateway,
            agent,
            broker,
        }
    }

    /// A connection on which the beginning of a request was sent.
    pub fn ask(&self, head: &str) -> Connection {
        let mut client = Connection::open(self.gateway.address());
        client.send(head.as_bytes());
        client
    }

    pub fn get(&self, path: &str) -> Connection {
        self.ask(&format!(
            "GET /agents/demo{path} HTTP/1.1\r\nHost: test\r\n\r\n"
        ))
    }

    pub fn stop(self) {
        self.gateway.stop().unwrap();
        self.agent.stop().unwrap();
    }
}

/// Bytes that tell where they stand.
pub fn content(length: usize) -> Vec<u8> {
    let byte = |at: usize| (at % 251) as u8 ^ (at / 251 % 241) as u8;
    (0..length).map(byte).collect()
}

/// The number at the end of the path of a request.
pub fn number(head: &str) -> usize {
    let path = head.split(' ').nth(1).unwrap();
    path.rsplit('/').next().unwrap().parse().unwrap()
}

const INLINE: usize = 64 * 1024;
const LENGTHS: [usize; 9] = [
    0,
    1,
    INLINE - 1,
    INLINE,
    INLINE + 1,
    300_000,
    1024 * 1024,
    1024 * 1024 + 1,
    10_000_000,
];

/// Answers `/known/N`, `/chunked/N`, `/close/N` with N bytes, delimited in that way.
fn serve(mut visit: Visit) {
    while let Some((head, _)) = visit.request() {
        let body = content(number(&head));
        let path = head.split(' ').nth(1).unwrap();
        let kind = path.split('/').nth(1).unwrap();
        let field = match kind {
            "known" => format!("Content-Length: {}\r\n", body.len()),
            "chunked" => "Transfer-Encoding: chunked\r\n".into(),
            _ => "Connection: close\r\n".into(),
        };
        visit.send(format!("HTTP/1.1 200 OK\r\n{field}\r\n").as_bytes());
        if head.starts_with("HEAD") {
            continue;
        }
        match kind {
            "chunked" => {
                for part in body.chunks(50_000) {
                    visit.send(format!("{:x}\r\n", part.len()).as_bytes());
                    visit.send(part);
                    visit.send(b"\r\n");
                }
                visit.send(b"0\r\n\r\n");
            }
            "close" => {
                visit.send(&body);
                return;
            }
            _ => visit.send(&body),
        }
    }
}

fn answers_of_every_length_are_the_same(kind: Kind) {
    let upstream = RawUpstream::start(serve);
    let chain = Chain::start(kind, &upstream);
    // One connection for all of them: each is over where it says so.
    let mut client = Connection::open(chain.gateway.address());
    for length in LENGTHS {
        for kind in ["known", "chunked", "close"] {
            let head = format!("GET /agents/demo/{kind}/{length} HTTP/1.1\r\nHost: test\r\n\r\n");
            client.send(head.as_bytes());
            let mut answer = client.read_answer();
            if answer.header("transfer-encoding") == Some("chunked") {
                assert!(kind != "known" && length > INLINE, "{kind} {length}");
                assert_eq!(answer.header("content-length"), None);
                answer.body = client.read_chunks().unwrap();
            } else {
                let stated = answer.header("content-length").unwrap();
                assert_eq!(stated, length.to_string(), "{kind}");
            }
            assert!(answer.body == content(length), "{kind} {length}");
        }
        // In HTTP/1.0 there are no chunks.
        let mut old = chain.ask(&format!(
            "GET /agents/demo/chunked/{length} HTTP/1.0\r\n\r\n"
        ));
        let head = old.try_read_answer(false).unwrap();
        assert_eq!(head.header("transfer-encoding"), None);
        assert!(old.read_to_end().unwrap() == content(length));
        client.send(
            format!("HEAD /agents/demo/known/{length} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes(),
        );
        let head = client.read_head_answer();
        assert_eq!(head.header("content-length").unwrap(), length.to_string());
    }
    chain.stop();
}

#[test]
fn each_piece_is_passed_on_when_it_comes() {
    let (step, steps) = mpsc::channel::<()>();
    let steps = Arc::new(Mutex::new(steps));
    for (kind, fields) in [
        ("text/event-stream", "Transfer-Encoding: chunked\r\n"),
        ("text/plain", "Transfer-Encoding: chunked\r\n"),
        ("text/plain", "Connection: close\r\n"),
        ("text/plain", "Content-Length: 30\r\n"),
    ] {
        let steps = Arc::clone(&steps);
        let is_chunked = fields.contains("chunked");
        let upstream = RawUpstream::start(move |mut visit| {
            visit.request();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{fields}\r\n");
            visit.send(head.as_bytes());
            for number in 0..3 {
                // Nothing is sent before the client has all that was before.
                steps.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                let event = format!("data: {number}\n\n\n");
                match is_chunked {
                    true => visit.send(format!("a\r\n{event}\r\n").as_bytes()),
                    false => visit.send(event.as_bytes()),
                }
            }
            if is_chunked {
                visit.send(b"0\r\n\r\n");
            }
        });
        let chain = Chain::start(Kind::Embedded, &upstream);
        let mut client = chain.get("/events");
        let head = client.try_read_answer(false).unwrap();
        assert_eq!(head.header("content-type"), Some(kind));
        let sends_chunks = head.header("transfer-encoding").is_some();
        for number in 0..3 {
            step.send(()).unwrap();
            let event = match sends_chunks {
                true => client.read_chunk().unwrap().unwrap(),
                false => client.read_bytes(10).unwrap(),
            };
            assert_eq!(event, format!("data: {number}\n\n\n").into_bytes());
        }
        if sends_chunks {
            assert_eq!(client.read_chunk().unwrap(), None);
        }
        chain.stop();
    }
}

/// Answers with the length of the body, and whether it is what it should be.
fn count(mut visit: Visit) {
    while let Some(head) = visit.head() {
        let fields = head.to_ascii_lowercase();
        let mut body = Vec::new();
        let length = fields
            .lines()
            .find_map(|it| it.strip_prefix("content-length: "));
        match length {
            Some(length) => {
                body = vec![0; length.parse().unwrap()];
                if !visit.read_exactly(&mut body) {
                    return;
                }
            }
            None if fields.contains("transfer-encoding: chunked") => {
                body = visit.read_chunks().unwrap_or_default();
            }
            None => {}
        }
        let kind = if length.is_some() { "known" } else { "chunked" };
        let is_right = body == content(body.len());
        let said = format!("{kind} {} {is_right}", body.len());
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}",
            said.len()
        );
        visit.send(head.as_bytes());
    }
}

fn requests_of_every_length_are_the_same(kind: Kind) {
    let upstream = RawUpstream::start(count);
    let chain = Chain::start(kind, &upstream);
    let mut client = Connection::open(chain.gateway.address());
    for length in LENGTHS {
        let body = content(length);
        client.send(
            format!("PUT /agents/demo/x HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n")
                .as_bytes(),
        );
        client.send(&body);
        let answer = client.read_answer();
        assert_eq!(answer.text(), format!("known {length} true"));
        let head = "PUT /agents/demo/x HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(head.as_bytes());
        for part in body.chunks(70_000) {
            client.send(format!("{:x}\r\n", part.len()).as_bytes());
            client.send(part);
            client.send(b"\r\n");
        }
        client.send(b"0\r\n\r\n");
        let answer = client.read_answer();
        // A short one is all here before it is passed on, so its length is known.
        let kind = if length > INLINE { "chunked" } else { "known" };
        assert_eq!(answer.text(), format!("{kind} {length} true"));
    }
    chain.stop();
}

#[test]
fn an_answer_may_come_while_the_request_goes_on() {
    let upstream = RawUpstream::start(|mut visit| {
        visit.head();
        visit.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while let Some(chunk) = visit.read_chunk().filter(|chunk| !chunk.is_empty()) {
            visit.send(format!("{:x}\r\n", chunk.len()).as_bytes());
            visit.send(&chunk);
            visit.send(b"\r\n");
        }
        visit.send(b"0\r\n\r\n");
    });
    let chain = Chain::start(Kind::Embedded, &upstream);
    let mut client = chain
        .ask("POST /agents/demo/echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(b"5\r\nhello\r\n");
    let head = client.try_read_answer(false).unwrap();
    assert_eq!(head.status, 200);
    assert_eq!(client.read_chunk().unwrap().unwrap(), b"hello");
    for number in 0..20 {
        let word = format!("word {number:03}");
        client.send(format!("8\r\n{word}\r\n").as_bytes());
        assert_eq!(client.read_chunk().unwrap().unwrap(), word.as_bytes());
    }
    client.send(b"0\r\n\r\n");
    assert_eq!(client.read_chunk().unwrap(), None);
    chain.stop();
}

#[test]
fn a_body_is_asked_for_only_when_somebody_takes_it() {
    let upstream = RawUpstream::start(count);
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start_with(
        broker,
        &upstream,
        |agent| agent.max_body_bytes = 200_000,
        |_| {},
    );
    let head = |target: &str, length: usize| {
        format!(
            "PUT {target} HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut client = chain.ask(&head("/agents/demo/x", 150_000));
    let go_on = client.try_read_answer(false).unwrap();
    assert_eq!(go_on.status, 100);
    client.send(&content(150_000));
    assert_eq!(client.read_answer().text(), "known 150000 true");
    let mut client = chain.ask(&head("/agents/demo/x", 300_000));
    problem(&client.read_answer(), 413, "agent", "not-executed");
    let mut client = chain.ask(&head("/agents/nobody/x", 300_000));
    problem(&client.read_answer(), 503, "agent", "not-executed");
    chain.stop();
}

#[test]
fn a_limit_holds_for_what_states_no_length() {
    let upstream = RawUpstream::start(|mut visit| {
        while let Some(head) = visit.head() {
            if head.starts_with("GET") {
                visit.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
                visit.send(&content(1_000_000));
                return;
            }
            let _ = visit.read_chunks();
        }
    });
    let limited = |agent: usize, gateway: usize| {
        Chain::start_with(
            TestBroker::start(Kind::Embedded),
            &upstream,
            move |settings| settings.max_body_bytes = agent,
            move |settings| settings.http.max_body_bytes = gateway,
        )
    };
    for (agent, gateway, hop) in [(200_000, 0, "agent"), (0, 200_000, "gateway")] {
        let chain = limited(agent, gateway);
        let mut client = chain
            .ask("POST /agents/demo/x HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..10 {
            let chunk = [b"c350\r\n".as_slice(), &[0; 50_000], b"\r\n"].concat();
            if !client.try_send(&chunk) {
                break;
            }
        }
        let answer = client.read_answer();
        assert_eq!(answer.status, 413, "{answer:?}");
        assert_eq!(answer.json()["hop"], hop);
        chain.stop();
    }
    let chain = limited(200_000, 0);
    let mut client = chain.get("/x");
    assert_eq!(client.try_read_answer(false).unwrap().status, 200);
    assert!(client.read_chunks().is_err(), "it is cut off");
    chain.stop();
}

#[test]
fn brokers_may_limit_their_packets() {
    for limit in [8 * 1024, 128 * 1024] {
        let settings = format!("max_packet_size {limit}\n");
        let Some(broker) = TestBroker::mosquitto_with(&settings) else {
            return;
        };
        let upstream = RawUpstream::start(serve);
        // What fits no message of this broker must not try to.
        let inline = |limit: usize| limit / 4;
        let chain = Chain::start_with(
            broker,
            &upstream,
            |agent| agent.streams.inline_bytes = inline(limit),
            |gateway| gateway.streams.inline_bytes = inline(limit),
        );
        let mut client = Connection::open(chain.gateway.address());
        for length in [1, limit / 4, limit / 4 + 1, limit, 1_000_000] {
            let answer = client.get(&format!("/agents/demo/known/{length}"));
            assert_eq!(answer.status, 200, "{limit} {length}");
            assert!(answer.body == content(length), "{limit} {length}");
        }
        chain.stop();
    }
}

#[test]
fn who_takes_no_streams_gets_whole_messages() {
    let upstream = RawUpstream::start(serve);
    for (agent, gateway) in [(0, 100), (100, 0)] {
        let chain = Chain::start_with(
            TestBroker::start(Kind::Embedded),
            &upstream,
            |settings| settings.streams.max_streams = agent,
            |settings| settings.streams.max_streams = gateway,
        );
        let mut client = Connection::open(chain.gateway.address());
        for length in [0, INLINE + 1, 1024 * 1024] {
            let answer = client.get(&format!("/agents/demo/chunked/{length}"));
            assert_eq!(answer.status, 200);
            assert!(answer.body == content(length));
        }
        let answer = client.get(&format!("/agents/demo/known/{}", 1024 * 1024 + 1));
        let detail = problem(&answer, 502, "upstream", "unknown");
        assert!(detail.contains("max_body_bytes"), "{detail}");
        chain.stop();
    }
}

#[test]
fn the_one_beyond_the_limit_is_told_so() {
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    let upstream = RawUpstream::start(move |mut visit| {
        visit.head();
        visit.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata\n");
        counted.fetch_add(1, Ordering::SeqCst);
        visit.wait_for_close();
        counted.fetch_sub(1, Ordering::SeqCst);
    });
    for (agent, gateway, hop) in [(3, 100, "agent"), (100, 3, "gateway")] {
        let chain = Chain::start_with(
            TestBroker::start(Kind::Embedded),
            &upstream,
            |settings| settings.streams.max_streams = agent,
            |settings| settings.streams.max_streams = gateway,
        );
        let mut clients: Vec<Connection> = (0..3).map(|_| chain.get("/events")).collect();
        for client in &mut clients {
            assert_eq!(client.try_read_answer(false).unwrap().status, 200);
            assert_eq!(client.read_chunk().unwrap().unwrap(), b"data\n");
        }
        let refused = chain.get("/events").read_answer();
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(refused.json()["hop"], hop);
        assert_eq!(refused.header("retry-after"), Some("1"));
        drop(clients);
        wait_until("all are closed", || open.load(Ordering::SeqCst) == 0);
        let mut client = chain.get("/events");
        assert_eq!(client.try_read_answer(false).unwrap().status, 200);
        drop(client);
        chain.stop();
        wait_until("all are closed", || open.load(Ordering::SeqCst) == 0);
    }
}
