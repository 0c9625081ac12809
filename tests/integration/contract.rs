use crate::support::http::{Connection, get};
use crate::support::process::Process;
use crate::support::{Chain, Kind, TestBroker, mqtt311, start_backend, wait_until};

on_each_broker!(a_ping_goes_the_whole_way, what_goes_over_the_wire);

fn a_ping_goes_the_whole_way(kind: Kind) {
    let broker = TestBroker::start(kind);
    let chain = Chain::start(&broker);
    let answer = get(chain.address(), "/ping");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.text(),
        r#"{"response": {"message": "pong", "received": {"ask": "ping"}}}"#
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let other = get(chain.address(), "/ping?ask=ol%C3%A1%22");
    assert_eq!(other.status, 400, "api_2's own status comes through");
    assert_eq!(
        other.text(),
        r#"{"response": {"message": "unknown ask: olá\"", "received": {"ask": "olá\""}}}"#
    );
    chain.stop();
}

fn what_goes_over_the_wire(kind: Kind) {
    let broker = TestBroker::start(kind);
    let chain = Chain::start(&broker);
    let mut observer = mqtt311::Client::connect(broker.port());
    observer.subscribe("api/#");
    assert_eq!(get(chain.address(), "/ping").status, 200);
    let request = observer.receive();
    assert_eq!(request.topic, "api/ping/request");
    assert_eq!(request.text(), r#"{"ask": "ping"}"#);
    let reply = observer.receive();
    assert!(reply.topic.starts_with("api/ping/response/"), "{reply:?}");
    assert_eq!(
        reply.text(),
        r#"{"message": "pong", "received": {"ask": "ping"}}"#
    );
    chain.stop();
}

#[test]
fn api_2_answers_directly() {
    let backend = start_backend();
    let mut client = Connection::open(backend.address());
    let pong = client.get("/ping?ask=ping");
    assert_eq!((pong.status, pong.text()), (200, r#"{"message": "pong"}"#));
    client.send(b"POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{\"ask\": \"ping\"}");
    let pong = client.read_answer();
    assert_eq!((pong.status, pong.text()), (200, r#"{"message": "pong"}"#));
    drop(client);
    backend.stop().unwrap();
}

#[test]
fn the_logs_tell_what_happens() {
    let broker = TestBroker::start(Kind::Embedded);
    let api_2 = Process::own("api_2", &["--listen", "127.0.0.1:0"]);
    let upstream = format!("http://{}", api_2.address());
    let url = broker.url();
    let agent = Process::own(
        "agent",
        &["--broker", &url, "--upstream", &upstream, "--demo"],
    );
    let api_1 = Process::own("api_1", &["--broker", &url, "--listen", "127.0.0.1:0"]);
    agent.wait_for_output("ready as agent demo");
    api_1.wait_for_output("ready as gateway");
    assert_eq!(get(api_1.address(), "/ping").status, 200);

    agent.wait_for_output("(mqtt) Connected with reason code 0");
    agent.wait_for_output(
        r#"request: {"ask": "ping"} -> response: {"message": "pong", "received": {"ask": "ping"}}"#,
    );
    api_1.wait_for_output("(mqtt) Connected with reason code 0");
    wait_until("api_1 logs the reply", || {
        api_1.output().lines().any(|line| {
            line.contains("Topic: api/ping/response/")
                && line.ends_with(r#"Message: {"message": "pong", "received": {"ask": "ping"}}"#)
        })
    });
    broker.stop();
    for process in [&agent, &api_1] {
        process.wait_for_output("broker lost: ");
    }
    broker.start_again();
    wait_until("api_1 is back", || {
        api_1
            .output()
            .matches("Connected with reason code 0")
            .count()
            == 2
    });
}
