use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::streams::{Chain, content, number};
use crate::support::http::{Connection, get};
use crate::support::process::Process;
use crate::support::upstream::{RawUpstream, Visit};
use crate::support::{Kind, PATIENCE, TestBroker, start_gateway, wait_until};

on_each_broker!(
    a_broker_that_comes_back_costs_nothing,
    who_hangs_up_is_not_sent_for,
    a_dead_agent_cuts_its_answers,
);

/// An upstream whose answers begin and don't go on; how many of its connections are open.
fn idle_upstream() -> (RawUpstream, Arc<AtomicUsize>) {
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    let upstream = RawUpstream::start(move |mut visit| {
        if visit.head().is_none() {
            return;
        }
        counted.fetch_add(1, Ordering::SeqCst);
        visit.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n");
        visit.wait_for_close();
        counted.fetch_sub(1, Ordering::SeqCst);
    });
    (upstream, open)
}

fn begun(chain: &Chain) -> Connection {
    let mut client = chain.get("/idle");
    assert_eq!(client.try_read_answer(false).unwrap().status, 200);
    assert_eq!(client.read_chunk().unwrap().unwrap(), b"data");
    client
}

fn who_hangs_up_is_not_sent_for(kind: Kind) {
    let (upstream, open) = idle_upstream();
    let chain = Chain::start(kind, &upstream);
    let clients: Vec<Connection> = (0..5).map(|_| begun(&chain)).collect();
    assert_eq!(open.load(Ordering::SeqCst), 5);
    drop(clients);
    // While nothing is sent, too.
    wait_until("the upstream is left alone", || {
        open.load(Ordering::SeqCst) == 0
    });
    chain.stop();
}

#[test]
fn who_hangs_up_before_there_is_an_answer_ends_the_call() {
    let (seen, asked) = mpsc::channel();
    let (closed, ended) = mpsc::channel();
    let upstream = RawUpstream::start(move |mut visit| {
        if let Some(head) = visit.head() {
            seen.send(head).unwrap();
            visit.wait_for_close();
            closed.send(Instant::now()).unwrap();
        }
    });
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start_with(
        broker,
        &upstream,
        |agent| agent.max_timeout = Duration::from_secs(600),
        |gateway| {
            for route in &mut gateway.routes {
                route.timeout = Duration::from_secs(600);
            }
        },
    );
    for method in ["GET", "POST"] {
        let head = format!("{method} /agents/demo/poll HTTP/1.1\r\nHost: t\r\n\r\n");
        let client = chain.ask(&head);
        asked.recv_timeout(PATIENCE).unwrap();
        drop(client);
        ended.recv_timeout(PATIENCE).unwrap();
        assert!(asked.try_recv().is_err(), "it is not asked once more");
    }
    chain.stop();
}

#[test]
fn who_hangs_up_in_the_middle_of_much_ends_it() {
    let sending = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&sending);
    let upstream = RawUpstream::start(move |mut visit| {
        if visit.head().is_none() {
            return;
        }
        flag.store(true, Ordering::SeqCst);
        visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n");
        while visit.try_send(&[0; 65536]) {}
        flag.store(false, Ordering::SeqCst);
    });
    let chain = Chain::start(Kind::Embedded, &upstream);
    let mut client = chain.get("/much");
    assert_eq!(client.try_read_answer(false).unwrap().status, 200);
    client.read_bytes(1_000_000).unwrap();
    assert!(sending.load(Ordering::SeqCst));
    drop(client);
    wait_until("the upstream is left alone", || {
        !sending.load(Ordering::SeqCst)
    });
    chain.stop();
}

fn a_dead_agent_cuts_its_answers(kind: Kind) {
    let (upstream, open) = idle_upstream();
    let broker = TestBroker::start(kind);
    let url = format!("http://{}", upstream.address());
    let mut agent = Process::own("agent", &["--broker", &broker.url(), "--upstream", &url]);
    let gateway = start_gateway(&broker);
    wait_until("the agent is there", || {
        get(gateway.address(), "/agents")
            .text()
            .contains("\"streams\":true")
    });
    let mut client = Connection::open(gateway.address());
    client.send(b"GET /agents/demo/idle HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_eq!(client.try_read_answer(false).unwrap().status, 200);
    assert_eq!(client.read_chunk().unwrap().unwrap(), b"data");
    agent.kill();
    let cut = client.read_chunk().unwrap_err();
    assert_ne!(
        cut.kind(),
        ErrorKind::WouldBlock,
        "it is cut, not waited for"
    );
    wait_until("the upstream is left alone", || {
        open.load(Ordering::SeqCst) == 0
    });
    gateway.stop().unwrap();
}

#[test]
fn an_upload_or_an_upgrade_does_not_hold_up_the_stop() {
    let (seen, reached) = mpsc::channel();
    let upstream = RawUpstream::start(move |mut visit| {
        let Some(head) = visit.head() else {
            return;
        };
        if head.contains("websocket") {
            visit.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n");
        }
        seen.send(()).unwrap();
        visit.wait_for_close();
    });
    for agent_first in [true, false] {
        let chain = Chain::start(Kind::Embedded, &upstream);
        let mut upload = chain
            .ask("POST /agents/demo/a HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000\r\n\r\nbegun");
        let upgrade = chain.ask(
            "GET /agents/demo/b HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        for _ in 0..2 {
            reached.recv_timeout(PATIENCE).unwrap();
        }
        // It moves all the time.
        let sending = std::thread::spawn(move || {
            while upload.try_send(b"x") {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let Chain { gateway, agent, .. } = chain;
        if agent_first {
            agent.stop().unwrap();
            gateway.stop().unwrap();
        } else {
            gateway.stop().unwrap();
            agent.stop().unwrap();
        }
        sending.join().unwrap();
        drop(upgrade);
    }
}

#[test]
fn an_agent_or_a_gateway_that_stops_cuts_what_it_carries() {
    let (upstream, open) = idle_upstream();
    let chain = Chain::start(Kind::Embedded, &upstream);
    let mut client = begun(&chain);
    chain.agent.stop().unwrap();
    assert!(client.read_chunk().is_err());
    chain.gateway.stop().unwrap();
    let chain = Chain::start(Kind::Embedded, &upstream);
    let mut client = begun(&chain);
    chain.gateway.stop().unwrap();
    assert!(client.read_chunk().is_err());
    wait_until("the upstream is left alone", || {
        open.load(Ordering::SeqCst) == 0
    });
    chain.agent.stop().unwrap();
}

/// How an answer is delimited, and how its connection ends in the middle.
fn broken(head: &'static str, resets: bool) -> RawUpstream {
    RawUpstream::start(move |mut visit: Visit| {
        if visit.head().is_none() {
            return;
        }
        visit.send(head.as_bytes());
        let body = content(200_000);
        match head.contains("chunked") {
            true => visit.send(&[b"30d41\r\n", body.as_slice()].concat()),
            false => visit.send(&body),
        }
        if resets {
            visit.reset();
        }
    })
}

#[test]
fn an_answer_that_is_cut_never_looks_whole() {
    for (head, resets) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 200001\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 200001\r\n\r\n", true),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            true,
        ),
    ] {
        let upstream = broken(head, resets);
        let chain = Chain::start(Kind::Embedded, &upstream);
        let mut client = chain.get("/x");
        let answer = client.try_read_answer(false).unwrap();
        assert_eq!(answer.status, 200);
        match answer.header("content-length") {
            Some(_) => assert!(client.read_bytes(200_001).is_err(), "{head}"),
            None => assert!(client.read_chunks().is_err(), "{head}"),
        }
        // Where the end of the connection is the end of the body, it is not an orderly one.
        let mut old = chain.ask("GET /agents/demo/x HTTP/1.0\r\n\r\n");
        let answer = old.try_read_answer(false).unwrap();
        match answer.header("content-length") {
            Some(_) => assert!(old.read_bytes(200_001).is_err(), "{head}"),
            None => assert!(old.read_to_end().is_err(), "{head}"),
        }
        chain.stop();
    }
}

#[test]
fn a_request_that_is_cut_never_looks_whole() {
    let (seen, whole) = mpsc::channel();
    let upstream = RawUpstream::start(move |mut visit| {
        let Some(head) = visit.head() else {
            return;
        };
        let is_whole = match head.contains("chunked") {
            false => visit.read_exactly(&mut vec![0; 300_000]),
            true => visit.read_chunks().is_some(),
        };
        seen.send(is_whole).unwrap();
    });
    let chain = Chain::start(Kind::Embedded, &upstream);
    for fields in ["Content-Length: 300000", "Transfer-Encoding: chunked"] {
        let head = format!("PUT /agents/demo/x HTTP/1.1\r\nHost: t\r\n{fields}\r\n\r\n");
        let mut client = chain.ask(&head);
        if fields.contains("chunked") {
            client.send(b"30d40\r\n");
        }
        client.send(&content(200_000));
        drop(client);
        assert!(!whole.recv_timeout(PATIENCE).unwrap(), "{fields}");
    }
    chain.stop();
}

#[test]
fn what_is_idle_for_too_long_is_cut() {
    let (upstream, open) = idle_upstream();
    let idle = Some(Duration::from_millis(500));
    for (agent, gateway) in [(idle, None), (None, idle)] {
        let chain = Chain::start_with(
            TestBroker::start(Kind::Embedded),
            &upstream,
            |settings| settings.streams.idle = agent,
            |settings| settings.streams.idle = gateway,
        );
        let mut client = begun(&chain);
        assert!(client.read_chunk().is_err());
        wait_until("the upstream is left alone", || {
            open.load(Ordering::SeqCst) == 0
        });
        chain.stop();
    }
}

fn a_broker_that_comes_back_costs_nothing(kind: Kind) {
    const LENGTH: usize = 3_000_000;
    // Sends as the client takes it, a part at a time.
    let upstream = RawUpstream::start(|mut visit| {
        let Some(head) = visit.head() else {
            return;
        };
        match head.starts_with("GET") {
            true => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
                visit.send(head.as_bytes());
                visit.send(&content(LENGTH));
            }
            false => {
                let mut body = vec![0; number(&head)];
                let said = match visit.read_exactly(&mut body) && body == content(LENGTH) {
                    true => "yes",
                    false => "no!",
                };
                visit
                    .send(format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{said}").as_bytes());
            }
        }
    });
    let chain = Chain::start(kind, &upstream);
    let mut down = chain.get("/down");
    assert_eq!(down.try_read_answer(false).unwrap().status, 200);
    let mut up = chain.ask(&format!(
        "PUT /agents/demo/{LENGTH} HTTP/1.1\r\nHost: t\r\nContent-Length: {LENGTH}\r\n\r\n"
    ));
    let whole = content(LENGTH);
    let mut got = Vec::new();
    for part in whole.chunks(LENGTH / 3) {
        chain.broker.stop();
        chain.broker.start_again();
        // More than all that is on its way, so that it has to go on on the new connection.
        up.send(part);
        got.extend_from_slice(&down.read_bytes(part.len()).unwrap());
    }
    assert!(got == whole);
    assert_eq!(up.read_answer().text(), "yes");
    chain.stop();
}

#[test]
fn a_reader_that_takes_its_time_holds_nobody_up() {
    const LARGE: usize = 20_000_000;
    let whole = Arc::new(content(LARGE));
    let served = Arc::clone(&whole);
    let upstream = RawUpstream::start(move |mut visit| {
        while let Some((head, _)) = visit.request() {
            let body = &served[..number(&head)];
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            if !visit.try_send(head.as_bytes()) || !visit.try_send(body) {
                return;
            }
        }
    });
    let chain = Chain::start(Kind::Embedded, &upstream);
    let mut lazy: Vec<Connection> = (0..30).map(|_| chain.get(&format!("/{LARGE}"))).collect();
    for client in &mut lazy {
        assert_eq!(client.try_read_answer(false).unwrap().status, 200);
    }
    for _ in 0..20 {
        let answer = get(chain.gateway.address(), "/agents/demo/10");
        assert_eq!(answer.body, whole[..10]);
        let answer = get(chain.gateway.address(), "/agents/demo/300000");
        assert!(answer.body == whole[..300_000]);
    }
    assert!(
        lazy[0].read_bytes(LARGE).unwrap() == *whole,
        "it is all there"
    );
    drop(lazy);
    chain.stop();
}
