use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use recado::front::HttpLimits;
use recado::front::{Client, Front, guarded, tiny};
use recado::http::{Request, Response};

use crate::support::http::{Connection, get};
use crate::support::process::Process;
use crate::support::{PATIENCE, local, wait_until};

/// Answers with what it understood: method, target, length of the body; and panics on request.
fn describe(request: Request, _: &Client<'_>) -> Response {
    assert_ne!(request.uri().path(), "/panic", "on purpose");
    let text = format!(
        "{} {} {}",
        request.method(),
        request.uri(),
        request.body().len()
    );
    let mut response = Response::new(text.into());
    if request.uri().path() == "/empty" {
        *response.status_mut() = StatusCode::NO_CONTENT;
    }
    if request.uri().path() == "/large" {
        *response.body_mut() = vec![b'x'; 300_000].into();
    }
    if *request.method() == Method::TRACE {
        *response.body_mut() = request.into_body();
    }
    response
}

fn start_guarded(limits: HttpLimits) -> Box<dyn Front> {
    let listener = TcpListener::bind(local(0)).unwrap();
    Box::new(guarded::start(listener, limits, describe).unwrap())
}

fn start_tiny(limits: HttpLimits) -> Box<dyn Front> {
    let listener = TcpListener::bind(local(0)).unwrap();
    Box::new(tiny::start(listener, limits, describe).unwrap())
}

fn both(limits: &HttpLimits) -> [Box<dyn Front>; 2] {
    [start_guarded(limits.clone()), start_tiny(limits.clone())]
}

fn stop(front: Box<dyn Front>) {
    front.stop(Instant::now() + PATIENCE).unwrap();
}

#[test]
fn what_both_fronts_can_do() {
    for front in both(&HttpLimits::default()) {
        let mut client = Connection::open(front.address());
        assert_eq!(client.get("/a?b=c").text(), "GET /a?b=c 0");

        client.send(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(client.read_answer().text(), "POST /p 5");

        client.send(b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
        assert_eq!(client.read_answer().text(), "PUT /c 11");

        client.send(b"HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n");
        let head = client.read_head_answer();
        assert_eq!(head.header("content-length"), Some("9"));

        let empty = client.get("/empty");
        assert_eq!((empty.status, empty.body.len()), (204, 0));

        assert_eq!(client.get("/large").body.len(), 300_000);
        let date = client
            .get("/date")
            .header("date")
            .map(str::to_owned)
            .unwrap();
        assert!(httpdate_like(&date), "{date}");

        client.send(b"GET /old HTTP/1.0\r\n\r\n");
        assert_eq!(client.read_answer().text(), "GET /old 0");
        assert!(client.is_closed_by_server());
        stop(front);
    }
}

fn httpdate_like(text: &str) -> bool {
    text.len() == 29 && text.ends_with(" GMT")
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    for front in both(&HttpLimits::default()) {
        let mut client = Connection::open(front.address());
        let mut requests = String::new();
        for number in 0..50 {
            requests.push_str(&format!(
                "POST /{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
            ));
        }
        client.send(requests.as_bytes());
        for number in 0..50 {
            assert_eq!(client.read_answer().text(), format!("POST /{number} 3"));
        }
        drop(client);
        stop(front);
    }
}

#[test]
fn a_client_that_asks_first_is_told_to_continue() {
    for front in both(&HttpLimits::default()) {
        let mut client = Connection::open(front.address());
        client.send(
            b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        );
        assert_eq!(client.read_head_answer().status, 100);
        client.send(b"hello");
        assert_eq!(client.read_answer().text(), "POST /e 5");
        drop(client);
        stop(front);
    }
}

#[test]
fn bodies_over_the_limit_are_refused_before_they_come() {
    let limits = HttpLimits {
        max_body_bytes: 10,
        ..HttpLimits::default()
    };
    for front in both(&limits) {
        let mut client = Connection::open(front.address());
        client.send(b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n12345678901");
        assert_eq!(client.read_answer().status, 413);
        let mut client = Connection::open(front.address());
        client.send(b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(b"b\r\n12345678901\r\n0\r\n\r\n");
        assert_eq!(client.read_answer().status, 413);
        drop(client);
        stop(front);
    }
}

#[test]
fn the_guarded_front_refuses_with_a_reason_and_closes() {
    let limits = HttpLimits {
        max_head_bytes: 1024,
        head_timeout: Duration::from_millis(100),
        ..HttpLimits::default()
    };
    let front = start_guarded(limits);
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(2000));
    let cases: [(&[u8], u16); 9] = [
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\0\x01\x02\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000000\r\n\r\n",
            413,
        ),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n", 501),
        (long.as_bytes(), 414),
        (b"GET / HTTP/1.1\r\nHost: never to be comple", 408),
    ];
    for (bytes, status) in cases {
        let mut client = Connection::open(front.address());
        client.send(bytes);
        let answer = client.read_answer();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert_eq!(answer.status, status, "{shown:?}");
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(answer.json()["hop"], "gateway");
        assert!(client.is_closed_by_server(), "{shown:?}");
        assert_eq!(get(front.address(), "/next").status, 200);
    }
    stop(front);
}

#[test]
fn an_idle_connection_is_closed_and_an_empty_line_before_a_request_is_ignored() {
    let limits = HttpLimits {
        idle_timeout: Duration::from_millis(50),
        ..HttpLimits::default()
    };
    let front = start_guarded(limits);
    let mut client = Connection::open(front.address());
    client.send(b"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.read_answer().text(), "GET /a 0");
    assert!(client.is_closed_by_server());
    stop(front);
}

#[test]
fn the_connection_above_the_bound_gets_a_503_and_places_become_free_again() {
    let limits = HttpLimits {
        max_connections: 2,
        ..HttpLimits::default()
    };
    let front = start_guarded(limits);
    let mut first = Connection::open(front.address());
    let mut second = Connection::open(front.address());
    assert_eq!(first.get("/1").status, 200);
    assert_eq!(second.get("/2").status, 200);
    let mut third = Connection::open(front.address());
    let answer = third.read_answer();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.json()["hop"], "gateway");
    assert_eq!(
        answer.json()["request_id"],
        answer.header("x-request-id").unwrap()
    );
    drop(first);
    wait_until("the place is free", || {
        let mut client = Connection::open(front.address());
        client.send(b"GET /4 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        client.read_answer().status == 200
    });
    assert_eq!(second.get("/5").status, 200);
    drop(second);
    stop(front);
}

#[test]
fn a_panic_in_the_handler_costs_one_answer() {
    let front = start_guarded(HttpLimits::default());
    let mut client = Connection::open(front.address());
    let answer = client.get("/panic");
    assert_eq!(answer.status, 500);
    assert_eq!(answer.json()["outcome"], "unknown");
    assert_eq!(client.get("/next").status, 200);
    drop(client);
    stop(front);
}

#[test]
fn a_body_of_a_mebibyte_there_and_back() {
    let front = start_guarded(HttpLimits::default());
    let mut client = Connection::open(front.address());
    let body: Vec<u8> = (0..1_048_576u32)
        .map(|number| (number % 251) as u8)
        .collect();
    let head = format!(
        "TRACE /t HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head.as_bytes());
    client.send(&body);
    assert!(client.read_answer().body == body);
    drop(client);
    stop(front);
}

/// Runs out of descriptors, refuses, and recovers when clients leave.
fn survives_without_descriptors(front: &str) {
    let broker = format!("mqtt://127.0.0.1:{}", crate::support::free_port());
    let api_1 = env!("CARGO_BIN_EXE_api_1");
    let script = "ulimit -n 40; exec \"$0\" --listen 127.0.0.1:0 --front \"$1\" --broker \"$2\"";
    let mut command = std::process::Command::new("sh");
    let server = Process::spawn(command.args(["-c", script, api_1, front, &broker]));
    let address = server.address();
    assert_eq!(get(address, "/healthz").status, 200);
    let crowd: Vec<_> = (0..60)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    // tiny_http may panic instead of saying so.
    wait_until("it is out of descriptors", || {
        let output = server.output();
        output.contains("cannot accept connections") || output.contains("Too many open files")
    });
    drop(crowd);
    wait_until("it serves again", || {
        let mut client = Connection::open(address);
        client.try_send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            && client
                .try_read_answer(true)
                .is_some_and(|answer| answer.status == 200)
    });
    server.signal("TERM");
    let (status, output) = server.wait();
    assert!(status.success(), "{output}");
}

#[test]
fn the_guarded_front_survives_without_descriptors() {
    survives_without_descriptors("guarded");
}

#[test]
fn the_tiny_http_front_survives_without_descriptors() {
    survives_without_descriptors("tiny_http");
}
