use crate::failures::problem;
use crate::streams::{Chain, content};
use crate::support::http::Connection;
use crate::support::upstream::{RawUpstream, Visit};
use crate::support::{Kind, TestBroker};

on_each_broker!(bytes_go_both_ways_once_the_upstream_agrees);

const ASK: &str = "GET /agents/demo/ws HTTP/1.1\r\nHost: t\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://o\r\n\r\n";

/// Agrees, and sends everything back.
fn echo(mut visit: Visit) {
    let Some(head) = visit.head() else {
        return;
    };
    let fields = head.to_ascii_lowercase();
    for field in [
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-key: ",
        "origin: http://o",
    ] {
        assert!(fields.contains(field), "{head}");
    }
    visit.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nfirst");
    let mut bytes = [0; 4096];
    loop {
        let count = visit.read_some(&mut bytes);
        if count == 0 {
            visit.send(b"last");
            return visit.shut_down_sending();
        }
        visit.send(&bytes[..count]);
    }
}

fn bytes_go_both_ways_once_the_upstream_agrees(kind: Kind) {
    let upstream = RawUpstream::start(echo);
    let chain = Chain::start(kind, &upstream);
    let mut client = chain.ask(ASK);
    let head = client.try_read_answer(false).unwrap();
    assert_eq!(head.status, 101);
    assert_eq!(head.header("upgrade"), Some("websocket"));
    assert_eq!(head.header("connection"), Some("upgrade"));
    assert_eq!(head.header("sec-websocket-accept"), Some("x"));
    assert_eq!(head.header("content-length"), None);
    assert_eq!(head.header("transfer-encoding"), None);
    assert_eq!(client.read_bytes(5).unwrap(), b"first");
    for length in [1, 2, 125, 126, 4096, 70_000] {
        let sent = content(length);
        client.send(&sent);
        assert!(client.read_bytes(length).unwrap() == sent);
    }
    // Each direction ends for itself.
    client.shut_down_sending();
    assert_eq!(client.read_to_end().unwrap(), b"last");
    chain.stop();
}

#[test]
fn a_refusal_passes_and_the_connection_goes_on() {
    let upstream = RawUpstream::start(|mut visit| {
        while let Some((head, _)) = visit.request() {
            let said = match head.contains("ws") {
                true => "426 Upgrade Required",
                false => "200 OK",
            };
            visit.send(format!("HTTP/1.1 {said}\r\nContent-Length: 2\r\n\r\nno").as_bytes());
        }
    });
    let chain = Chain::start(Kind::Embedded, &upstream);
    let mut client = chain.ask(ASK);
    let refused = client.read_answer();
    assert_eq!((refused.status, refused.text()), (426, "no"));
    // What follows is a request again (RFC 9931), also if it came with the first.
    let next = "GET /agents/demo/next HTTP/1.1\r\nHost: t\r\n\r\n";
    client.send(next.as_bytes());
    assert_eq!(client.read_answer().status, 200);
    client.send(format!("{ASK}{next}").as_bytes());
    assert_eq!(client.read_answer().status, 426);
    assert_eq!(client.read_answer().status, 200);
    chain.stop();
}

#[test]
fn what_is_sent_early_waits_for_the_answer() {
    let upstream = RawUpstream::start(|mut visit| {
        visit.head();
        visit.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x/1\r\nConnection: Upgrade\r\n\r\n",
        );
        let mut bytes = [0; 5];
        assert!(visit.read_exactly(&mut bytes));
        visit.send(&bytes);
    });
    let chain = Chain::start(Kind::Embedded, &upstream);
    let mut client = chain.ask(
        "GET /agents/demo/x HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: x/1\r\n\r\nearly",
    );
    assert_eq!(client.try_read_answer(false).unwrap().status, 101);
    assert_eq!(client.read_to_end().unwrap(), b"early");
    chain.stop();
}

#[test]
fn nobody_is_upgraded_who_did_not_ask() {
    let upstream = RawUpstream::answering(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
    );
    let chain = Chain::start(Kind::Embedded, &upstream);
    problem(&chain.get("/x").read_answer(), 502, "upstream", "unknown");
    // HTTP/1.0 has no upgrade, and what only offers HTTP/2 goes on as it is.
    for head in [
        "GET /agents/demo/x HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        "GET /agents/demo/x HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    ] {
        problem(&chain.ask(head).read_answer(), 502, "upstream", "unknown");
    }
    chain.stop();
}

#[test]
fn an_upgrade_is_filtered_as_any_request() {
    let upstream = RawUpstream::start(echo);
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start_with(
        broker,
        &upstream,
        |agent| {
            for service in &mut agent.services {
                if let recado::agent::ServiceMode::Http(mode) = &mut service.mode {
                    mode.allow.paths = vec!["/public/{*rest}".into()];
                }
            }
        },
        |_| {},
    );
    problem(&chain.ask(ASK).read_answer(), 403, "agent", "not-executed");
    let mut client = Connection::open(chain.gateway.address());
    client.send(ASK.replace("/ws", "/public/ws").as_bytes());
    assert_eq!(client.try_read_answer(false).unwrap().status, 101);
    drop(client);
    chain.stop();
}
