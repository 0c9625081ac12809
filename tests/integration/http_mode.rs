use std::net::SocketAddr;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use recado::front::HttpLimits;
use recado::front::{Client, Front, guarded};
use recado::http::{Request, Response};

use crate::support::http::{Answer, Connection, get, get_agent};
use crate::support::process::Process;
use crate::support::{
    Chain, Kind, PATIENCE, TestBroker, agent_settings, gateway_settings, local, start_agent,
    start_agent_with, start_backend, start_gateway, start_gateway_with, wait_until,
};

on_each_broker!(
    through_the_broker_as_directly,
    a_mebibyte_each_way,
    who_is_there_is_known,
    a_killed_agent_is_absent_at_once_and_back_when_it_returns,
    agents_with_the_same_id_do_not_hide_each_other,
);

/// A service with everything that HTTP has: whatever is asked of it is in its answer.
pub fn answer(request: Request, _: &Client<'_>) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = Response::default();
    let headers = response.headers_mut();
    let mut add = |name: &'static str, value: &[u8]| {
        let value = HeaderValue::from_bytes(value).unwrap();
        headers.append(HeaderName::from_static(name), value);
    };
    match path.as_str() {
        "/bytes" => {
            add("content-type", b"application/octet-stream");
            add("x-latin1", b"caf\xe9");
            add("x-tab", b"a\tb");
            *response.body_mut() = (0..=255u8).collect::<Vec<_>>().into();
        }
        "/gzip" => {
            add("content-encoding", b"gzip");
            add("vary", b"Accept-Encoding");
            // Not to be looked into by anybody on the way.
            *response.body_mut() = Bytes::from_static(b"\x1f\x8b\x08\0not really gzip").into();
        }
        "/cookies" => {
            add("set-cookie", b"a=1; Path=/; HttpOnly");
            add("set-cookie", b"b=2");
            add("date", b"Sun, 06 Nov 1994 08:49:37 GMT");
        }
        "/redirect" => {
            add("location", b"/elsewhere?x=1");
            *response.status_mut() = StatusCode::FOUND;
        }
        "/mirror" => {
            add("content-type", b"application/octet-stream");
            *response.body_mut() = request.body().clone();
        }
        "/empty" => {}
        status if status.starts_with("/status/") => {
            *response.status_mut() = status["/status/".len()..].parse().unwrap();
            *response.body_mut() = Bytes::from_static(b"a body").into();
        }
        _ => {
            let mut text = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                text.push_str(&format!("{name}: {value:?}\n"));
            }
            text.push_str(&format!("{:?}", request.body().to_bytes()));
            *response.body_mut() = text.into();
        }
    }
    response
}

pub fn start_upstream() -> Box<dyn Front> {
    let listener = TcpListener::bind(local(0)).unwrap();
    let limits = HttpLimits {
        max_body_bytes: 4 * 1024 * 1024,
        ..HttpLimits::default()
    };
    Box::new(guarded::start(listener, limits, answer).unwrap())
}

pub fn stop(front: Box<dyn Front>) {
    front.stop(Instant::now() + PATIENCE).unwrap();
}

pub fn ask(address: SocketAddr, method: &str, target: &str, fields: &str, body: &[u8]) -> Answer {
    let mut client = Connection::open(address);
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Length: {length}\r\n"),
    };
    let head = format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{fields}{length}\r\n");
    client.send(&[head.as_bytes(), body].concat());
    match method {
        "HEAD" => client.read_head_answer(),
        _ => client.read_answer(),
    }
}

// What each hop says of itself.
const OWN: [&str; 5] = ["via", "x-request-id", "server-timing", "date", "connection"];

fn assert_same(direct: &Answer, carried: &Answer, what: &str) {
    assert_eq!(direct.status, carried.status, "{what}");
    let end_to_end = |answer: &Answer| {
        let headers = answer
            .headers()
            .iter()
            .filter(|(name, _)| !OWN.contains(&name.as_str()));
        let mut headers: Vec<_> = headers.cloned().collect();
        headers.sort();
        headers
    };
    assert_eq!(end_to_end(direct), end_to_end(carried), "{what}");
    assert!(direct.body == carried.body, "{what}: the body");
}

fn through_the_broker_as_directly(kind: Kind) {
    let broker = TestBroker::start(kind);
    let upstream = start_upstream();
    let agent = start_agent(&broker, upstream.address());
    let gateway = start_gateway(&broker);
    // Below a path what an answer leads to would change.
    let base = "http://demo.localhost";
    let mut cases: Vec<(String, String, &str, &[u8])> = Vec::new();
    for path in [
        "/bytes",
        "/gzip",
        "/cookies",
        "/redirect",
        "/mirror",
        "/empty",
    ] {
        for method in ["GET", "HEAD"] {
            cases.push((method.into(), path.into(), "", b""));
        }
    }
    for method in [
        "POST", "PUT", "PATCH", "DELETE", "PROPFIND", "TRACE", "QUERY",
    ] {
        cases.push((method.into(), "/mirror".into(), "", b"\0\xff body"));
        cases.push((method.into(), "/mirror".into(), "", b""));
    }
    for code in (200..=599).step_by(7).chain([204, 205, 304, 418, 501]) {
        cases.push(("GET".into(), format!("/status/{code}"), "", b""));
    }
    for (method, path, fields, body) in cases {
        let direct = ask(upstream.address(), &method, &path, fields, body);
        let carried = ask(
            gateway.address(),
            &method,
            &format!("{base}{path}"),
            fields,
            body,
        );
        assert_same(&direct, &carried, &format!("{method} {path}"));
        assert_eq!(carried.header("via"), Some("1.1 recado"), "{method} {path}");
    }
    let cookies = ask(gateway.address(), "GET", "/agents/demo/cookies", "", b"");
    assert_eq!(
        cookies.header("date"),
        Some("Sun, 06 Nov 1994 08:49:37 GMT")
    );

    // What the upstream gets: the target byte for byte, repeated fields in order, who asked.
    let fields = "X-A: 1\r\nX-A: 2\r\nConnection: X-Gone\r\nX-Gone: 1\r\nAccept: */*\r\n\
                  X-Request-Id: mine\r\nTE: trailers\r\n";
    let target = "/agents/demo/a%2Fb//../c;d?x=%20&&y=/";
    let seen = ask(gateway.address(), "DELETE", target, fields, b"body");
    let text = seen.text();
    assert!(
        text.starts_with("DELETE /a%2Fb//../c;d?x=%20&&y=/\n"),
        "{text}"
    );
    assert!(text.contains("x-a: \"1\"\nx-a: \"2\"\n"), "{text}");
    assert!(text.contains("accept: \"*/*\"\n"), "{text}");
    assert!(text.contains("x-forwarded-for: \"127.0.0.1\"\n"), "{text}");
    assert!(text.contains("x-forwarded-host: \"test\"\n"), "{text}");
    assert!(text.contains("x-forwarded-proto: \"http\"\n"), "{text}");
    assert!(
        text.contains("x-forwarded-prefix: \"/agents/demo\"\n"),
        "{text}"
    );
    assert!(!text.contains("via: "), "{text}");
    assert!(text.contains("x-request-id: \"mine\"\n"), "{text}");
    assert!(
        text.contains(&format!("host: \"{}\"\n", upstream.address())),
        "{text}"
    );
    assert!(text.ends_with("b\"body\""), "{text}");
    for gone in ["x-gone", "te:", "user-agent", "accept-encoding"] {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    assert_eq!(seen.header("x-request-id"), Some("mine"));
    let timing = seen.header("server-timing").unwrap();
    for share in ["gateway;dur=", "broker;dur=", "queue;dur=", "upstream;dur="] {
        assert!(timing.contains(share), "{timing}");
    }
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

fn a_mebibyte_each_way(kind: Kind) {
    let broker = TestBroker::start(kind);
    let upstream = start_upstream();
    let mut settings = agent_settings(&broker.url(), upstream.address());
    settings.max_body_bytes = 1024 * 1024;
    let agent = start_agent_with(settings);
    let mut settings = gateway_settings(&broker.url());
    settings.http.max_body_bytes = 1024 * 1024;
    let gateway = start_gateway_with(settings);
    let body: Vec<u8> = (0..1024 * 1024u32).map(|n| (n % 253) as u8).collect();
    let echoed = ask(gateway.address(), "POST", "/agents/demo/mirror", "", &body);
    assert_eq!(
        echoed.status,
        200,
        "{:?}",
        &echoed.body[..200.min(echoed.body.len())]
    );
    assert!(echoed.body == body);
    let mut over = body.clone();
    over.push(0);
    let refused = ask(gateway.address(), "POST", "/agents/demo/mirror", "", &over);
    assert_eq!(refused.status, 413);
    gateway.stop().unwrap();

    let mut settings = gateway_settings(&broker.url());
    settings.http.max_body_bytes = 2 * 1024 * 1024;
    let roomy = start_gateway_with(settings);
    let refused = ask(roomy.address(), "POST", "/agents/demo/mirror", "", &over);
    assert_eq!(refused.status, 413, "the agent's limit");
    assert_eq!(refused.json()["hop"], "agent");
    roomy.stop().unwrap();
    agent.stop().unwrap();

    let mut settings = agent_settings(&broker.url(), upstream.address());
    settings.max_body_bytes = 100;
    let agent = start_agent_with(settings);
    let gateway = start_gateway(&broker);
    wait_until("the agent is there", || {
        get_agent(gateway.address(), "demo").status == 200
    });
    let large = get(gateway.address(), "/agents/demo/bytes");
    assert_eq!(large.status, 502, "{:?}", large.json());
    assert!(
        large.json()["detail"]
            .as_str()
            .unwrap()
            .contains("larger than 100 bytes")
    );
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

fn who_is_there_is_known(kind: Kind) {
    let broker = TestBroker::start(kind);
    let chain = Chain::start(&broker);
    let gateway = start_gateway(&broker);
    // Known from the retained presence alone: this gateway came later.
    let all = get(gateway.address(), "/agents").json();
    assert_eq!(all["agents"][0]["id"], "demo", "{all}");
    assert_eq!(all["agents"][0]["services"][0], "ping");
    let one = get_agent(gateway.address(), "demo").json();
    assert_eq!(one["version"], env!("CARGO_PKG_VERSION"));
    assert!(one["since"].as_str().unwrap().ends_with('Z'));
    assert_eq!(
        get(gateway.address(), "/agents/demo/ping?ask=ping").text(),
        r#"{"message": "pong"}"#
    );
    for path in ["/agents/other/ping", "/services/web/ping"] {
        let absent = get(gateway.address(), path);
        assert_eq!(absent.status, 503, "{path}");
        assert_eq!(absent.json()["hop"], "agent");
        assert_eq!(absent.json()["outcome"], "not-executed");
    }
    assert_eq!(get_agent(gateway.address(), "other").status, 404);
    assert_eq!(get(gateway.address(), "/agents/a%20b/x").status, 404);
    // Once it has left, a ping is not worth waiting for either.
    let Chain {
        gateway: first,
        agent,
        backend,
    } = chain;
    agent.stop().unwrap();
    wait_until("the gateway knows", || {
        get_agent(gateway.address(), "demo").status == 404
    });
    assert_eq!(get(gateway.address(), "/agents/demo/ping").status, 503);
    let ping = get(gateway.address(), "/ping");
    assert_eq!(
        (ping.status, ping.json()["hop"].as_str()),
        (503, Some("agent"))
    );
    let again = start_agent(&broker, backend.address());
    wait_until("it is back", || {
        get(gateway.address(), "/ping").status == 200
    });
    for gateway in [first, gateway] {
        gateway.stop().unwrap();
    }
    again.stop().unwrap();
    backend.stop().unwrap();
}

fn a_killed_agent_is_absent_at_once_and_back_when_it_returns(kind: Kind) {
    let broker = TestBroker::start(kind);
    let upstream = start_upstream();
    let url = format!("http://{}", upstream.address());
    let gateway = start_gateway(&broker);
    for _ in 0..3 {
        let arguments = [
            "--broker",
            &broker.url(),
            "--upstream",
            &url,
            "--id",
            "shed",
        ];
        let mut agent = Process::own("agent", &arguments);
        wait_until("it is there", || {
            get(gateway.address(), "/agents/shed/empty").status == 200
        });
        agent.kill();
        wait_until("its will has come", || {
            get(gateway.address(), "/agents/shed/empty").status == 503
        });
    }
    gateway.stop().unwrap();
    stop(upstream);
}

fn agents_with_the_same_id_do_not_hide_each_other(kind: Kind) {
    let broker = TestBroker::start(kind);
    let upstream = start_upstream();
    let first = start_agent(&broker, upstream.address());
    let gateway = start_gateway(&broker);
    for _ in 0..3 {
        let second = start_agent(&broker, upstream.address());
        assert_eq!(get(gateway.address(), "/agents/demo/empty").status, 200);
        second.stop().unwrap();
        assert_eq!(get(gateway.address(), "/agents/demo/empty").status, 200);
    }
    gateway.stop().unwrap();
    first.stop().unwrap();
    stop(upstream);
}

#[test]
fn what_can_not_be_carried_is_refused_with_a_reason() {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let mut settings = agent_settings(&broker.url(), backend.address());
    settings.streams.max_streams = 0;
    let agent = start_agent_with(settings);
    let gateway = start_gateway(&broker);
    let refused = |method, fields, body| {
        let answer = ask(gateway.address(), method, "/agents/demo/ping", fields, body);
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        (answer.status, detail)
    };
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    let (status, detail) = refused("GET", upgrade, b"");
    assert_eq!(status, 501);
    assert!(detail.contains("upgrade"), "{detail}");
    let (status, detail) = refused("POST", "", &vec![0; 1024 * 1024 + 1]);
    assert_eq!(status, 413, "{detail}");
    gateway.stop().unwrap();
    agent.stop().unwrap();
    backend.stop().unwrap();
}

#[test]
fn a_caller_may_wait_for_less() {
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start(&broker);
    let target = "/agents/demo/sleep?ms=2500";
    let begun = Instant::now();
    let answer = ask(chain.address(), "GET", target, "Prefer: wait=1\r\n", b"");
    assert_eq!(answer.status, 504, "{:?}", answer.json());
    assert!(begun.elapsed() >= Duration::from_millis(900));
    assert_eq!(answer.json()["hop"], "upstream", "who is slow is named");
    chain.stop();
}

#[test]
fn fields_about_the_upstreams_connection_stay_there() {
    use std::io::{Read, Write};
    let broker = TestBroker::start(Kind::Embedded);
    let listener = TcpListener::bind(local(0)).unwrap();
    let agent = start_agent(&broker, listener.local_addr().unwrap());
    let gateway = start_gateway(&broker);
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        let answer = "HTTP/1.1 200 OK\r\nConnection: close, X-Private\r\nX-Private: 1\r\n\
                      Keep-Alive: timeout=5\r\nX-Public: 1\r\nTransfer-Encoding: chunked\r\n\r\n\
                      2\r\nok\r\n0\r\n\r\n";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let carried = get(gateway.address(), "/agents/demo/");
    assert_eq!(carried.text(), "ok", "{:?}", carried.headers());
    assert_eq!(carried.header("x-public"), Some("1"));
    for gone in ["x-private", "keep-alive", "transfer-encoding", "connection"] {
        assert_eq!(carried.header(gone), None, "{gone}");
    }
    server.join().unwrap();
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

#[test]
fn a_line_as_long_as_a_head_may_be_arrives() {
    let broker = TestBroker::start(Kind::Embedded);
    let upstream = start_upstream();
    let agent = start_agent(&broker, upstream.address());
    let gateway = start_gateway(&broker);
    let long = "x".repeat(15_000);
    let (target, field) = (format!("/target?{long}"), format!("X-Long: {long}\r\n"));
    for (target, field) in [(target.as_str(), ""), ("/field", field.as_str())] {
        let direct = ask(upstream.address(), "GET", target, field, b"");
        assert!(direct.text().contains(&long));
        let target = format!("/agents/demo{target}");
        let carried = ask(gateway.address(), "GET", &target, field, b"");
        assert_eq!(carried.status, 200, "{}", carried.text());
        assert!(carried.text().contains(&long));
    }
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}
