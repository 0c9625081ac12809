use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use recado::front::FrontKind;

use crate::support::http::Connection;
use crate::support::{Chain, Kind, TestBroker, gateway_settings, start_gateway_with};

on_each_broker!(sixty_four_callers_for_twenty_seconds);

const CALLERS: usize = 64;

/// Every caller asks for words that nobody else asks for; returns how many answers there were.
fn ask_for(address: SocketAddr, time: Duration) -> usize {
    let answers = AtomicUsize::new(0);
    let end = Instant::now() + time;
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let answers = &answers;
            scope.spawn(move || {
                let mut client = Connection::open(address);
                for number in 0.. {
                    if Instant::now() >= end {
                        break;
                    }
                    let word = format!("{caller}-{number}");
                    let answer = client.get(&format!("/ping?ask={word}"));
                    assert_eq!(answer.status, 400, "{answer:?}");
                    let response = &answer.json()["response"];
                    assert_eq!(response["received"]["ask"], word.as_str());
                    assert_eq!(response["message"], format!("unknown ask: {word}"));
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    answers.into_inner()
}

fn sixty_four_callers_for_twenty_seconds(kind: Kind) {
    let broker = TestBroker::start(kind);
    let chain = Chain::start(&broker);
    let answers = ask_for(chain.address(), Duration::from_secs(20));
    assert!(answers >= CALLERS, "only {answers} answers");
    chain.stop();
}

#[test]
fn the_tiny_http_front_serves_as_many() {
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start(&broker);
    let mut settings = gateway_settings(&broker.url());
    settings.front = FrontKind::TinyHttp;
    let gateway = start_gateway_with(settings);
    let answers = ask_for(gateway.address(), Duration::from_secs(5));
    assert!(answers >= CALLERS, "only {answers} answers");
    gateway.stop().unwrap();
    chain.stop();
}

#[test]
fn two_agents_share_the_work_and_no_request_is_executed_twice() {
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start(&broker);
    let second = crate::support::start_agent(&broker, chain.backend.address());
    let mut observer = crate::support::mqtt311::Client::connect(broker.port());
    observer.subscribe("api/ping/response/+");
    let mut client = Connection::open(chain.address());
    for _ in 0..20 {
        assert_eq!(client.get("/ping").status, 200);
    }
    let replies = observer.received_so_far();
    assert_eq!(replies.len(), 20, "one reply for each request");
    second.stop().unwrap();
    chain.stop();
}

#[test]
fn a_hundred_keep_alive_connections_opened_at_once_are_all_served() {
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start(&broker);
    for front in [FrontKind::Guarded, FrontKind::TinyHttp] {
        let mut settings = gateway_settings(&broker.url());
        settings.front = front;
        let gateway = start_gateway_with(settings);
        let barrier = Barrier::new(100);
        std::thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| {
                    barrier.wait();
                    let mut client = Connection::open(gateway.address());
                    // Reading gives up after the tests' patience if this one starves.
                    assert_eq!(client.get("/ping").status, 200, "{front}");
                    // Nobody lets go before everybody is served.
                    barrier.wait();
                });
            }
        });
        gateway.stop().unwrap();
    }
    chain.stop();
}
