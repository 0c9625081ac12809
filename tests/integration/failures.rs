use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use recado::gateway::Gateway;

use crate::http_mode::ask;
use crate::support::http::{Answer, get};
use crate::support::{
    Chain, Kind, TestBroker, agent_settings, free_port, gateway_settings, local, mqtt311, set_path,
    start_agent, start_agent_with, start_backend, start_gateway, start_gateway_with,
};

on_each_broker!(
    no_reply_is_a_504_at_the_deadline,
    a_refused_upstream_is_a_502_at_once,
    a_slow_upstream_is_named,
    an_upstream_that_is_no_json_service_is_a_502,
);

/// Checks a problem document and returns its detail.
pub fn problem(answer: &Answer, status: u16, hop: &str, outcome: &str) -> String {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    let document = answer.json();
    assert_eq!(document["status"], status);
    assert_eq!(document["hop"], hop, "{document}");
    assert_eq!(document["outcome"], outcome, "{document}");
    assert_eq!(
        document["request_id"],
        answer.header("x-request-id").unwrap()
    );
    document["detail"].as_str().unwrap().to_owned()
}

#[test]
fn without_a_broker_the_answer_is_a_503_at_once() {
    let url = format!("mqtt://127.0.0.1:{}", free_port());
    let gateway = Gateway::start(gateway_settings(&url)).unwrap();
    let answer = get(gateway.address(), "/ping");
    problem(&answer, 503, "broker", "not-executed");
    assert_eq!(answer.header("retry-after"), Some("1"));
    problem(
        &get(gateway.address(), "/readyz"),
        503,
        "broker",
        "not-executed",
    );
    assert_eq!(
        get(gateway.address(), "/healthz").status,
        200,
        "the process is alive"
    );
    gateway.stop().unwrap();
}

fn no_reply_is_a_504_at_the_deadline(kind: Kind) {
    let broker = TestBroker::start(kind);
    let mut settings = gateway_settings(&broker.url());
    settings.routes[0].timeout = Duration::from_millis(300);
    let gateway = start_gateway_with(settings);
    let begun = Instant::now();
    let answer = get(gateway.address(), "/ping");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let detail = problem(&answer, 504, "agent", "unknown");
    assert_eq!(detail, "no reply within 300 ms");
    gateway.stop().unwrap();
}

fn a_refused_upstream_is_a_502_at_once(kind: Kind) {
    let broker = TestBroker::start(kind);
    let agent = start_agent(&broker, local(free_port()));
    let gateway = start_gateway(&broker);
    let detail = problem(
        &get(gateway.address(), "/ping"),
        502,
        "upstream",
        "not-executed",
    );
    assert!(detail.contains("refused"), "{detail}");
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

fn a_slow_upstream_is_named(kind: Kind) {
    let broker = TestBroker::start(kind);
    let backend = start_backend();
    let mut settings = agent_settings(&broker.url(), backend.address());
    // POST /sleep without ms would be refused; with it, it sleeps longer than the caller waits.
    set_path(&mut settings, "/sleep?ms=1500");
    let agent = start_agent_with(settings);
    let mut settings = gateway_settings(&broker.url());
    settings.routes[0].timeout = Duration::from_millis(1000);
    let gateway = start_gateway_with(settings);
    let detail = problem(&get(gateway.address(), "/ping"), 504, "upstream", "unknown");
    assert!(detail.contains("did not answer in time"), "{detail}");
    gateway.stop().unwrap();
    agent.stop().unwrap();
    backend.stop().unwrap();
}

fn an_upstream_that_is_no_json_service_is_a_502(kind: Kind) {
    use std::io::{Read, Write};
    let broker = TestBroker::start(kind);
    let listener = TcpListener::bind(local(0)).unwrap();
    let upstream = listener.local_addr().unwrap();
    let garbage: [&[u8]; 3] = [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n<htm>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\ncut",
    ];
    let server = std::thread::spawn(move || {
        for bytes in garbage {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(bytes).unwrap();
        }
    });
    let agent = start_agent(&broker, upstream);
    let gateway = start_gateway(&broker);
    for bytes in garbage {
        let answer = get(gateway.address(), "/ping");
        let detail = problem(&answer, 502, "upstream", "unknown");
        assert!(!detail.is_empty(), "{}", String::from_utf8_lossy(bytes));
    }
    server.join().unwrap();
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

#[test]
fn too_many_waiting_requests_are_refused() {
    let broker = TestBroker::start(Kind::Embedded);
    let mut settings = gateway_settings(&broker.url());
    settings.max_waiting = 1;
    let gateway = start_gateway_with(settings);
    let mut agent = mqtt311::Client::connect(broker.port());
    agent.subscribe("api/ping/request");
    let address = gateway.address();
    let first = std::thread::spawn(move || get(address, "/ping"));
    agent.receive();
    let answer = get(address, "/ping");
    problem(&answer, 503, "gateway", "not-executed");
    assert!(answer.header("retry-after").is_some());
    agent.publish("api/ping/response", br#"{"message": "pong"}"#);
    assert_eq!(first.join().unwrap().status, 200);
    gateway.stop().unwrap();
}

#[test]
fn a_full_agent_says_so_and_drops_what_is_too_late() {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let mut settings = agent_settings(&broker.url(), backend.address());
    settings.services[0].workers = 1;
    settings.services[0].queue = 1;
    set_path(&mut settings, "/sleep?ms=700");
    let agent = start_agent_with(settings);
    let mut settings = gateway_settings(&broker.url());
    settings.routes[0].timeout = Duration::from_millis(1000);
    let gateway = start_gateway_with(settings);
    let address = gateway.address();
    // One runs, one waits and is too late for its own time, the others find no place.
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| get(address, "/ping")))
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect()
    });
    let count = |status, hop: &str| {
        let is = |answer: &&Answer| answer.status == status && answer.json()["hop"] == hop;
        answers.iter().filter(is).count()
    };
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 200).count(),
        1
    );
    assert_eq!(count(503, "agent"), 2, "{answers:?}");
    assert_eq!(
        count(504, "agent") + count(504, "upstream"),
        1,
        "{answers:?}"
    );
    gateway.stop().unwrap();
    agent.stop().unwrap();
    backend.stop().unwrap();
}

#[test]
fn a_request_whose_time_is_up_is_never_executed() {
    let broker = TestBroker::start(Kind::Embedded);
    let listener = TcpListener::bind(local(0)).unwrap();
    let mut settings = agent_settings(&broker.url(), listener.local_addr().unwrap());
    settings.services[0].workers = 1;
    settings.services[0].timeout = Duration::from_millis(400);
    let agent = start_agent_with(settings);
    let mut gateway_settings = gateway_settings(&broker.url());
    gateway_settings.routes[0].timeout = Duration::from_secs(4);
    let gateway = start_gateway_with(gateway_settings);
    let address = gateway.address();
    let first = std::thread::spawn(move || get(address, "/ping"));
    // The upstream accepts and says nothing: the only worker is busy for nearly four seconds.
    let (_held, _) = listener.accept().unwrap();
    let mut requester = mqtt311::Client::connect(broker.port());
    requester.subscribe("api/ping/response");
    for number in 0..5 {
        requester.publish("api/ping/request", format!("{number}").as_bytes());
    }
    // The agent gives up a moment before the gateway does; on a busy machine that is not soon enough.
    let first = first.join().unwrap();
    assert_eq!(
        (first.status, &first.json()["outcome"]),
        (504, &"unknown".into())
    );
    agent.stop().unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(
        listener.accept().is_err(),
        "none of the late ones was executed"
    );
    assert_eq!(
        requester.received_so_far(),
        [],
        "nobody waits for their answers"
    );
    gateway.stop().unwrap();
}

#[test]
fn unknown_paths_and_methods() {
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start(&broker);
    problem(
        &get(chain.address(), "/nowhere"),
        404,
        "gateway",
        "not-executed",
    );
    let mut client = crate::support::http::Connection::open(chain.address());
    client.send(b"DELETE /ping HTTP/1.1\r\nHost: x\r\nX-Request-Id: my-own\r\n\r\n");
    let answer = client.read_answer();
    problem(&answer, 405, "gateway", "not-executed");
    assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    assert_eq!(answer.header("x-request-id"), Some("my-own"));
    drop(client);
    chain.stop();
}

#[test]
fn a_reply_that_can_not_be_carried_is_a_502_at_once() {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let mut settings = agent_settings(&broker.url(), backend.address());
    set_path(&mut settings, "/echo");
    // The echo holds the request, and the agent adds it once more.
    settings.max_body_bytes = 50_000;
    let agent = start_agent_with(settings);
    let gateway = start_gateway(&broker);
    let mut settings = gateway_settings(&broker.url());
    settings.http.max_head_bytes = 100_000;
    let roomy = start_gateway_with(settings);
    let small = get(
        roomy.address(),
        &format!("/ping?ask={}", "x".repeat(40_000)),
    );
    assert_eq!(small.status, 200, "{:?}", small.json()["detail"]);
    let large = get(
        roomy.address(),
        &format!("/ping?ask={}", "x".repeat(49_900)),
    );
    let detail = problem(&large, 502, "upstream", "unknown");
    assert!(detail.contains("larger than 50000 bytes"), "{detail}");
    for gateway in [gateway, roomy] {
        gateway.stop().unwrap();
    }
    agent.stop().unwrap();
    backend.stop().unwrap();
}

#[test]
fn a_client_that_hangs_up_frees_its_place() {
    let broker = TestBroker::start(Kind::Embedded);
    let mut settings = gateway_settings(&broker.url());
    settings.max_waiting = 1;
    settings.routes[0].timeout = Duration::from_secs(600);
    let gateway = start_gateway_with(settings);
    let mut agent = mqtt311::Client::connect(broker.port());
    agent.subscribe("api/ping/request");
    let mut client = crate::support::http::Connection::open(gateway.address());
    client.send(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n");
    agent.receive();
    drop(client);
    // The only place is free long before its time is up.
    let address = gateway.address();
    let next = std::thread::spawn(move || {
        let mut answer = get(address, "/ping");
        while answer.status == 503 {
            answer = get(address, "/ping");
        }
        answer
    });
    agent.receive();
    agent.publish("api/ping/response", br#"{"message": "pong"}"#);
    assert_eq!(next.join().unwrap().status, 200);
    drop(gateway);
}

#[test]
fn a_connection_that_ends_without_an_answer_is_tried_again_where_that_is_safe() {
    // An upstream that cuts the first and the third connection, and answers on the second.
    let listener = TcpListener::bind(local(0)).unwrap();
    let upstream = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let mut heads = Vec::new();
        for answers in [false, true, false] {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert_ne!(reader.read_line(&mut head).unwrap(), 0);
            }
            if answers {
                let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
                reader.get_mut().write_all(answer).unwrap();
            }
            heads.push(head.to_ascii_lowercase());
        }
        heads
    });
    let broker = TestBroker::start(Kind::Embedded);
    let agent = start_agent(&broker, upstream);
    let gateway = start_gateway(&broker);
    let asked = |method| ask(gateway.address(), method, "/agents/demo/x", "", b"");
    assert_eq!(asked("DELETE").status, 204);
    problem(&asked("POST"), 502, "upstream", "unknown");
    let heads = server.join().unwrap();
    for (head, begin) in heads.iter().zip(["delete /x ", "delete /x ", "post /x "]) {
        assert!(head.starts_with(begin), "{head}");
        let says_length = head.contains("content-length: 0");
        assert_eq!(says_length, begin == "post /x ", "{head}");
    }
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

#[test]
fn a_large_head_of_the_upstream_is_read_and_a_second_attempt_excuses_nothing() {
    let listener = TcpListener::bind(local(0)).unwrap();
    let upstream = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let field = format!("X-Large: {}\r\n", "x".repeat(30_000));
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).unwrap(), 0);
        }
        let answer = format!("HTTP/1.1 204 No Content\r\n{field}\r\n");
        reader.get_mut().write_all(answer.as_bytes()).unwrap();
        // The next request comes on the same connection: cut, and nobody listens any more.
        head.clear();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).unwrap(), 0);
        }
    });
    let broker = TestBroker::start(Kind::Embedded);
    let agent = start_agent(&broker, upstream);
    let gateway = start_gateway(&broker);
    let asked = |method| ask(gateway.address(), method, "/agents/demo/x", "", b"");
    let answer = asked("GET");
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("x-large").map(str::len), Some(30_000));
    // The first attempt was received, so whatever the second meets, it may have been executed.
    problem(&asked("DELETE"), 502, "upstream", "unknown");
    server.join().unwrap();
    gateway.stop().unwrap();
    agent.stop().unwrap();
}
