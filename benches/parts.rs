//! What the parts that only compute take, per call: time and allocations. `cargo bench`; a name
//! behind it, as in `cargo bench --bench parts head`, runs those only.

// As in tests: what goes in is known.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use divan::{AllocProfiler, Bencher, black_box};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Response};
use recado::base::topic::Topic;
use recado::gateway::pending::Pending;
use recado::http::chunked::Decoder;
use recado::http::head::{Scanner, parse};
use recado::wire::deadline::{Sent, request_properties};
use recado::wire::http::{read_reply, read_request, write_reply, write_request};
use recado::wire::json::{add_received, ask, canonical, read_json_reply, received, wrap_response};
use recado::wire::{Correlation, Message, Properties};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const PING: &[u8] = b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1:5000\r\n\r\n";
const BROWSER: &[u8] = b"GET /agents/kitchen/status?since=2026-01-01 HTTP/1.1\r\n\
    Host: gateway.example\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: pt-PT,pt;q=0.8,en;q=0.5,en-US;q=0.3\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Connection: keep-alive\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; seen=1\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    Sec-Fetch-Dest: document\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Site: none\r\n\
    Priority: u=0, i\r\n\r\n";
const ANSWER: &[u8] = br#"{"message":"pong"}"#;

/// The head of an HTTP request: find its end, then parse it.
#[divan::bench_group]
mod head {
    use super::*;

    #[divan::bench(args = ["ping", "browser"])]
    fn scan_and_parse(bencher: Bencher<'_, '_>, from: &str) {
        let head = if from == "ping" { PING } else { BROWSER };
        bencher.bench_local(|| {
            let length = Scanner::default().scan(black_box(head)).unwrap();
            parse(&head[..length.unwrap()]).unwrap()
        });
    }

    // 64 KiB in chunks of so many bytes.
    #[divan::bench(args = [16, 1024, 65_536])]
    fn chunked_body(bencher: Bencher<'_, '_>, size: usize) {
        let chunk = [
            format!("{size:x}\r\n").as_bytes(),
            &vec![b'x'; size],
            b"\r\n",
        ]
        .concat();
        let body = [chunk.repeat(65_536 / size), b"0\r\n\r\n".to_vec()].concat();
        bencher.bench_local(|| {
            let mut decoded = Vec::new();
            let mut decoder = Decoder::new(1 << 20);
            decoder.decode(black_box(&body), &mut decoded).unwrap();
            decoded
        });
    }
}

/// What api_1 and the agent do to a message of a JSON route.
#[divan::bench_group]
mod json {
    use super::*;

    fn inbox() -> Topic {
        Topic::new("api/ping/response/0123456789abcdef").unwrap()
    }

    #[divan::bench]
    fn request(bencher: Bencher<'_, '_>) {
        let inbox = inbox();
        let properties = || {
            request_properties(
                black_box(&inbox),
                Correlation([7; 16]),
                Duration::from_secs(3),
                Sent {
                    instance: "0123456789abcdef",
                    millis: 123_456_789,
                },
            )
        };
        bencher.bench_local(|| (ask(black_box("ping")), properties()));
    }

    #[divan::bench]
    fn add_received_to_answer() -> Bytes {
        add_received(black_box(ANSWER), br#"{"ask": "ping"}"#).unwrap()
    }

    #[divan::bench]
    fn reply(bencher: Bencher<'_, '_>) {
        let reply = Message {
            payload: add_received(ANSWER, br#"{"ask": "ping"}"#).unwrap(),
            ..Message::default()
        };
        bencher.bench_local(|| wrap_response(&read_json_reply(black_box(&reply)).unwrap().body));
    }

    // What a reply without correlation, from an MQTT 3.1.1 peer, costs on top.
    #[divan::bench]
    fn reply_of_an_old_peer() {
        let reply = br#"{"message": "pong", "received": {"ask": "ping"}}"#;
        black_box(received(black_box(reply)).unwrap());
        black_box(canonical(black_box(br#"{"ask": "ping"}"#)).unwrap());
    }
}

/// An HTTP request and its answer as MQTT messages, there and back.
#[divan::bench_group]
mod http_mode {
    use super::*;

    fn request() -> recado::http::Request {
        parse(BROWSER).unwrap().request
    }

    fn response() -> Response<Bytes> {
        let mut response = Response::new(Bytes::from_static(ANSWER));
        let fields = [
            ("content-type", "application/json"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("server", "nginx/1.22.1"),
        ];
        for (name, value) in fields {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        }
        response
    }

    #[divan::bench]
    fn request_there_and_back(bencher: Bencher<'_, '_>) {
        let request = request();
        let target = PathAndQuery::from_static("/status?since=2026-01-01");
        bencher.bench_local(|| {
            let mut message = Message::default();
            write_request(black_box(&request), &target, false, &mut message.properties);
            read_request(&message).unwrap()
        });
    }

    #[divan::bench]
    fn reply_there_and_back(bencher: Bencher<'_, '_>) {
        let response = response();
        bencher.bench_local(|| {
            let properties: Properties = write_reply(black_box(&response), None, &Method::GET);
            let message = Message {
                properties,
                payload: response.body().clone(),
                ..Message::default()
            };
            read_reply(&message, &Method::GET).unwrap()
        });
    }
}

/// Register, complete, take the reply, while so many others wait.
#[divan::bench_group]
mod pending {
    use super::*;

    fn correlation(number: usize) -> Correlation {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Correlation(bytes)
    }

    #[divan::bench(args = [0, 64, 1000, 10_000])]
    fn one_among(bencher: Bencher<'_, '_>, others: usize) {
        let pending: Pending<u64> = Pending::new(others + 1);
        let request = ask("ping");
        let register = |number| {
            let ticket = pending.register(correlation(number), Some(request.clone()), 0);
            ticket.unwrap_or_else(|_| panic!("the table is full"))
        };
        let _tickets: Vec<_> = (1..=others).map(register).collect();
        let now = Instant::now();
        bencher.bench_local(|| {
            let ticket = register(0);
            pending.complete(correlation(0), black_box(1), now);
            ticket.wait(Duration::from_secs(1)).unwrap()
        });
    }
}
