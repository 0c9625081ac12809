use std::time::{Duration, Instant};

use recado::agent::Agent;
use recado::agent::AgentSettings;
use recado::gateway::Gateway;

use crate::failures::problem;
use crate::http_mode::ask;
use crate::support::http::Answer;
use crate::support::upstream::{RawUpstream, Visit};
use crate::support::{
    Kind, TestBroker, agent_settings, gateway_settings, start_agent_with, start_gateway_with,
};

/// The chain before an upstream of a test's own.
struct Before {
    gateway: Gateway,
    agent: Agent,
    _broker: TestBroker,
}

impl Before {
    fn start(upstream: &RawUpstream) -> Before {
        Before::start_with(upstream, |_| {}, 3000)
    }

    fn start_with(
        upstream: &RawUpstream,
        set: impl FnOnce(&mut AgentSettings),
        timeout_ms: u64,
    ) -> Before {
        let broker = TestBroker::start(Kind::Embedded);
        let mut settings = agent_settings(&broker.url(), upstream.address());
        set(&mut settings);
        let max_body_bytes = settings.max_body_bytes;
        let agent = start_agent_with(settings);
        let mut settings = gateway_settings(&broker.url());
        settings.http.max_body_bytes = max_body_bytes;
        for route in &mut settings.routes {
            route.timeout = Duration::from_millis(timeout_ms);
        }
        Before {
            gateway: start_gateway_with(settings),
            agent,
            _broker: broker,
        }
    }

    fn ask(&self, method: &str) -> Answer {
        self.ask_with(method, b"")
    }

    /// One of several cases, by its number.
    fn ask_case(&self, method: &str, number: usize) -> Answer {
        let target = format!("/agents/demo/{number}");
        ask(self.gateway.address(), method, &target, "", b"")
    }

    fn ask_with(&self, method: &str, body: &[u8]) -> Answer {
        ask(self.gateway.address(), method, "/agents/demo/x", "", body)
    }

    fn stop(self) {
        self.gateway.stop().unwrap();
        self.agent.stop().unwrap();
    }
}

/// What an agent is that takes whole messages only.
fn no_streams(settings: &mut AgentSettings) {
    settings.streams.max_streams = 0;
}

/// How an upstream breaks an answer off.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Close,
    Reset,
}

#[test]
fn half_an_answer_never_looks_whole() {
    let heads: [(&str, &str, &[Cut]); 9] = [
        // A close is how these end; only a reset is a cut.
        (
            "until the close",
            "HTTP/1.1 200 OK\r\n\r\nhalf",
            &[Cut::Reset],
        ),
        (
            "the same in HTTP/1.0",
            "HTTP/1.0 200 OK\r\n\r\nhalf",
            &[Cut::Reset],
        ),
        (
            "the same, announced",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf",
            &[Cut::Reset],
        ),
        (
            "before Content-Length",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
            &[Cut::Close, Cut::Reset],
        ),
        (
            "the same, announced to close",
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhalf",
            &[Cut::Close, Cut::Reset],
        ),
        (
            "in a chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhalf",
            &[Cut::Close, Cut::Reset],
        ),
        (
            "between chunks",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            &[Cut::Close, Cut::Reset],
        ),
        (
            "in the size of a chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n1",
            &[Cut::Close, Cut::Reset],
        ),
        (
            "in the head",
            "HTTP/1.1 200 OK\r\nContent-Type: text/pl",
            &[Cut::Close, Cut::Reset],
        ),
    ];
    let cases = heads.iter().flat_map(|(what, bytes, cuts)| {
        let cut = cuts.iter().map(move |cut| (*what, *bytes, *cut));
        cut.collect::<Vec<_>>()
    });
    let cases: Vec<(&str, &str, Cut)> = cases.collect();
    let served = cases.clone();
    let upstream = RawUpstream::start(move |mut visit: Visit| {
        let (head, _) = visit.request().unwrap();
        let path = head.split(' ').nth(1).unwrap();
        let (_, bytes, cut) = served[path[1..].parse::<usize>().unwrap()];
        visit.send(bytes.as_bytes());
        if let Cut::Reset = cut {
            visit.reset();
        }
    });
    let before = Before::start(&upstream);
    for (number, (what, _, cut)) in cases.iter().enumerate() {
        for method in ["GET", "POST"] {
            let answer = before.ask_case(method, number);
            eprintln!("{what}, {cut:?}, {method}: {}", answer.status);
            problem(&answer, 502, "upstream", "unknown");
        }
    }
    before.stop();
}

#[test]
fn an_answer_that_stops_in_the_middle_is_told_from_none() {
    for (bytes, words) in [
        ("", "did not answer in time"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "did not answer in time"),
        ("HTTP/1.1 200 OK\r\n\r\nhalf", "began to answer (200)"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
            "began to answer (200)",
        ),
        (
            "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "began to answer (404)",
        ),
    ] {
        let upstream = RawUpstream::start(move |mut visit| {
            visit.request();
            visit.send(bytes.as_bytes());
            visit.wait_for_close();
        });
        let before = Before::start_with(&upstream, no_streams, 700);
        let detail = problem(&before.ask("GET"), 504, "upstream", "unknown");
        assert!(detail.contains(words), "{bytes:?}: {detail}");
        before.stop();
    }
}

#[test]
fn the_agents_own_limit_is_named_where_it_was_the_shorter_one() {
    let upstream = RawUpstream::start(|mut visit| {
        visit.request();
        visit.wait_for_close();
    });
    let shorter = |settings: &mut AgentSettings| {
        settings.max_timeout = Duration::from_millis(300);
    };
    let before = Before::start_with(&upstream, shorter, 60_000);
    let begun = Instant::now();
    let detail = problem(&before.ask("GET"), 504, "upstream", "unknown");
    assert!(begun.elapsed() < Duration::from_secs(50));
    assert!(detail.contains("max_timeout_ms = 300"), "{detail}");
    before.stop();
}

#[test]
fn an_answer_during_the_upload_arrives() {
    const LARGE: usize = 8 * 1024 * 1024;
    for status in [413, 401, 417, 200] {
        // Closed behind the answer, with the body unread, which resets the connection; or kept open,
        // with nobody who reads.
        for closes in [true, false] {
            let upstream = RawUpstream::start(move |mut visit| {
                visit.head();
                let answer = format!(
                    "HTTP/1.1 {status} Early\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly"
                );
                visit.send(answer.as_bytes());
                if !closes {
                    std::thread::park_timeout(Duration::from_secs(20));
                }
            });
            let before = Before::start_with(&upstream, |it| it.max_body_bytes = LARGE, 10_000);
            for size in [100_000, 1_000_000, LARGE] {
                let answer = before.ask_with("POST", &vec![b'x'; size]);
                assert_eq!(answer.status, status, "{size} {closes}: {answer:?}");
                assert_eq!(answer.text(), "early");
            }
            before.stop();
        }
    }
}

#[test]
fn many_fields_and_a_large_head_pass() {
    let cookies: String = (0..256)
        .map(|number| format!("Set-Cookie: c{number}=1\r\n"))
        .collect();
    let large = format!("X-Large: {}\r\n", "x".repeat(60_000));
    for (fields, count) in [(cookies.as_str(), 256), (&large, 1)] {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 4\r\n\r\nbody");
        let upstream = RawUpstream::answering(head);
        let before = Before::start(&upstream);
        let answer = before.ask("GET");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let names = ["set-cookie", "x-large"];
        let carried = answer.headers().iter();
        let carried = carried.filter(|(name, _)| names.contains(&name.as_str()));
        assert_eq!(carried.count(), count);
        assert_eq!(answer.text(), "body");
        before.stop();
    }
    let too_large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let upstream = RawUpstream::answering(too_large);
    let before = Before::start(&upstream);
    let detail = problem(&before.ask("GET"), 502, "upstream", "unknown");
    assert!(detail.contains("65536 bytes"), "{detail}");
    before.stop();
}

#[test]
fn what_a_proxy_must_take_in_an_answer() {
    const TAKEN: [&str; 4] = [
        // RFC 9112, section 5.1: white space before the colon is removed.
        "200 OK\r\nName : value\r\nContent-Length: 2\r\n\r\nok",
        // Section 6.3: equal lengths are one.
        "200 OK\r\nName: value\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\nok",
        // Section 6.3: the coding counts, not the length.
        "200 OK\r\nName: value\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        // RFC 9110, section 15.2: what only informs is passed over, whatever fields it has.
        "100 Continue\r\nLink: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nName: value\r\nContent-Length: 2\r\n\r\nok",
    ];
    let upstream = RawUpstream::choosing(|head| {
        let path = head.split(' ').nth(1).unwrap();
        let number: usize = path[1..].parse().unwrap();
        format!("HTTP/1.1 {}", TAKEN[number])
    });
    let before = Before::start(&upstream);
    for (number, bytes) in TAKEN.iter().enumerate() {
        let answer = before.ask_case("GET", number);
        assert_eq!((answer.status, answer.text()), (200, "ok"), "{bytes:?}");
        assert_eq!(answer.header("name"), Some("value"), "{bytes:?}");
        assert_eq!(answer.header("link"), None, "{bytes:?}");
        assert_eq!(answer.header("content-length"), Some("2"), "{bytes:?}");
    }
    before.stop();
}

#[test]
fn what_a_proxy_must_refuse_in_an_answer() {
    const FLAWED: [(&str, &str); 17] = [
        (
            "1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "coding",
        ),
        ("1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "coding"),
        (
            "1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "coding",
        ),
        (
            "1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "coding",
        ),
        // RFC 9112, section 6.1.
        ("1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "coding"),
        (
            "1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "Content-Length",
        ),
        (
            "1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
            "Content-Length",
        ),
        ("1.1 200 OK\r\nContent-Length: +5\r\n\r\n", "Content-Length"),
        (
            "1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "Content-Length",
        ),
        ("1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", "999"),
        ("1.1 600 Odd\r\nContent-Length: 0\r\n\r\n", "600"),
        ("1.1 099 Odd\r\nContent-Length: 0\r\n\r\n", "99"),
        ("1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "101"),
        ("1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", "field"),
        ("1.1 200 OK\r\nA b: c\r\n\r\n", "field"),
        ("1.1 200 OK\r\n: c\r\n\r\n", "field"),
        ("1.1 200 OK\r\nA: b\x01c\r\n\r\n", "field"),
    ];
    let upstream = RawUpstream::choosing(|head| {
        let path = head.split(' ').nth(1).unwrap();
        let number: usize = path[1..].parse().unwrap();
        format!("HTTP/{}0\r\n\r\n", FLAWED[number].0)
    });
    let before = Before::start(&upstream);
    for (number, (flaw, words)) in FLAWED.iter().enumerate() {
        let answer = before.ask_case("GET", number);
        let detail = problem(&answer, 502, "upstream", "unknown");
        assert!(detail.contains(words), "{flaw:?}: {detail}");
    }
    before.stop();
}

#[test]
fn what_has_no_end_is_refused_at_once() {
    for (kind, answers) in [
        ("text/event-stream", false),
        ("Text/Event-Stream;charset=utf-8", false),
        ("multipart/x-mixed-replace; boundary=x", false),
        ("text/plain", true),
    ] {
        let upstream = RawUpstream::start(move |mut visit| {
            visit.request();
            let chunk = "5\r\ndata:\r\n";
            visit.send(
                format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}")
                    .as_bytes(),
            );
            match answers {
                true => visit.send(b"0\r\n\r\n"),
                false => visit.wait_for_close(),
            }
        });
        // Nobody would wait for as long as this route does.
        let before = Before::start_with(&upstream, no_streams, 600_000);
        let answer = before.ask("GET");
        if answers {
            assert_eq!((answer.status, answer.text()), (200, "data:"));
        } else {
            let detail = problem(&answer, 502, "upstream", "unknown");
            assert!(detail.contains("can't be carried"), "{detail}");
        }
        before.stop();
    }
    let whole =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 5\r\n\r\ndata:";
    let upstream = RawUpstream::answering(whole);
    let before = Before::start(&upstream);
    assert_eq!(before.ask("GET").text(), "data:");
    before.stop();
}

#[test]
fn a_length_is_stated_only_where_it_is_known() {
    for (head, length) in [
        ("Transfer-Encoding: chunked\r\n", None),
        ("Connection: close\r\n", None),
        ("Content-Length: 1234\r\n", Some("1234")),
        ("Content-Length: 0\r\n", Some("0")),
    ] {
        let upstream = RawUpstream::answering(format!("HTTP/1.1 200 OK\r\n{head}\r\n"));
        let before = Before::start(&upstream);
        let answer = before.ask("HEAD");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-length"), length, "{head:?}");
        before.stop();
    }
}
