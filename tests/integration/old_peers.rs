use std::process::Command;

use recado::gateway::Gateway;

use crate::support::http::get;
use crate::support::process::{Process, is_installed};
use crate::support::{
    Chain, Kind, TestBroker, mqtt311, start_agent, start_backend, start_gateway, wait_until,
};

on_each_broker!(
    an_old_requester_is_served,
    an_old_agent_answers_the_gateway,
    old_and_new_peers_at_the_same_time,
    an_old_requester_sees_what_failed,
    mosquitto_clients_as_requesters,
    mosquitto_clients_as_agent,
);

fn an_old_requester_is_served(kind: Kind) {
    let broker = TestBroker::start(kind);
    let backend = start_backend();
    let agent = start_agent(&broker, backend.address());
    let mut requester = mqtt311::Client::connect(broker.port());
    requester.subscribe("api/ping/response");
    requester.publish("api/ping/request", br#"{"ask": "ping"}"#);
    assert_eq!(
        requester.receive().text(),
        r#"{"message": "pong", "received": {"ask": "ping"}}"#
    );
    agent.stop().unwrap();
}

/// Answers every request on the shared response topic, knowing nothing of correlation, as the
/// demo's agent did.
fn serve_as_old_agent(port: u16, requests: usize) -> std::thread::JoinHandle<()> {
    let mut agent = mqtt311::Client::connect(port);
    agent.subscribe("api/ping/request");
    std::thread::spawn(move || {
        for _ in 0..requests {
            let request = agent.receive();
            let reply = format!(r#"{{"received":{},"message":"old pong"}}"#, request.text());
            agent.publish("api/ping/response", reply.as_bytes());
        }
    })
}

/// Asks with words of its own on several threads and checks that each answer is its own.
fn ask_with_many_words(gateway: &Gateway, callers: usize, requests: usize) {
    let address = gateway.address();
    std::thread::scope(|scope| {
        for caller in 0..callers {
            scope.spawn(move || {
                let mut client = crate::support::http::Connection::open(address);
                for number in 0..requests {
                    let word = format!("{caller}-{number}");
                    let answer = client.get(&format!("/ping?ask={word}"));
                    let response = &answer.json()["response"];
                    assert_eq!(response["received"]["ask"], word.as_str(), "{answer:?}");
                }
            });
        }
    });
}

fn an_old_agent_answers_the_gateway(kind: Kind) {
    let broker = TestBroker::start(kind);
    let gateway = start_gateway(&broker);
    let agent = serve_as_old_agent(broker.port(), 1 + 8 * 20);
    let answer = get(gateway.address(), "/ping");
    assert_eq!(answer.status, 200, "a reply without a status counts as 200");
    assert_eq!(
        answer.text(),
        r#"{"response": {"received":{"ask": "ping"},"message":"old pong"}}"#
    );
    ask_with_many_words(&gateway, 8, 20);
    agent.join().unwrap();
    gateway.stop().unwrap();
}

fn old_and_new_peers_at_the_same_time(kind: Kind) {
    let broker = TestBroker::start(kind);
    let chain = Chain::start(&broker);
    // An old agent beside the new one: each gateway request is answered twice, by both.
    let agent = serve_as_old_agent(broker.port(), 8 * 20 + 50);
    let port = broker.port();
    let requester = std::thread::spawn(move || {
        let mut client = mqtt311::Client::connect(port);
        client.subscribe("api/ping/response");
        for number in 0..50 {
            let request = format!(r#"{{"ask": "old-{number}"}}"#);
            client.publish("api/ping/request", request.as_bytes());
            // Answers to the old agent's other requests come along here too.
            while !client.receive().text().contains(&request) {}
        }
    });
    ask_with_many_words(&chain.gateway, 8, 20);
    requester.join().unwrap();
    agent.join().unwrap();
    chain.stop();
}

fn an_old_requester_sees_what_failed(kind: Kind) {
    let broker = TestBroker::start(kind);
    let nobody = crate::support::local(crate::support::free_port());
    let agent = start_agent(&broker, nobody);
    let mut requester = mqtt311::Client::connect(broker.port());
    requester.subscribe("api/ping/response");
    requester.publish("api/ping/request", br#"{"ask": "ping"}"#);
    let reply: serde_json::Value = serde_json::from_str(requester.receive().text()).unwrap();
    assert_eq!(reply["received"]["ask"], "ping");
    let error = reply["error"].as_str().unwrap();
    assert!(error.contains("can't be reached"), "{error}");
    requester.publish("api/ping/request", b"ping");
    let reply: serde_json::Value = serde_json::from_str(requester.receive().text()).unwrap();
    assert_eq!(reply["received"], "ping");
    assert!(reply["error"].as_str().unwrap().contains("not JSON"));
    agent.stop().unwrap();
}

fn mosquitto_clients_as_requesters(kind: Kind) {
    if !is_installed("mosquitto_rr") {
        return;
    }
    let broker = TestBroker::start(kind);
    let backend = start_backend();
    let agent = start_agent(&broker, backend.address());
    for (version, response_topic) in [("311", "api/ping/response"), ("5", "api/ping/response/rr")] {
        let output = Command::new("mosquitto_rr")
            .args(["-V", version, "-p", &broker.port().to_string(), "-W", "20"])
            .args(["-t", "api/ping/request", "-e", response_topic])
            .args(["-m", r#"{"ask": "ping"}"#])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().trim_end(),
            r#"{"message": "pong", "received": {"ask": "ping"}}"#,
            "version {version}"
        );
    }
    agent.stop().unwrap();
}

fn mosquitto_clients_as_agent(kind: Kind) {
    if !is_installed("mosquitto_sub") {
        return;
    }
    let broker = TestBroker::start(kind);
    let gateway = start_gateway(&broker);
    let port = broker.port().to_string();
    for version in ["311", "5"] {
        // Its output is a pipe here, and must not wait in a buffer.
        let mut listener = Command::new("stdbuf");
        listener.args([
            "-oL",
            "mosquitto_sub",
            "-d",
            "-V",
            version,
            "-p",
            &port,
            "-C",
            "1",
            "-t",
            "api/ping/request",
        ]);
        let listener = Process::spawn(&mut listener);
        wait_until("mosquitto_sub is subscribed", || {
            listener.output().to_lowercase().contains("subscribed")
        });
        let address = gateway.address();
        let caller = std::thread::spawn(move || get(address, "/ping"));
        let (_, output) = listener.wait();
        assert!(output.contains(r#"{"ask": "ping"}"#), "{output}");
        let status = Command::new("mosquitto_pub")
            .args(["-V", version, "-p", &port, "-t", "api/ping/response"])
            .args([
                "-m",
                r#"{"message": "by hand", "received": {"ask": "ping"}}"#,
            ])
            .status()
            .unwrap();
        assert!(status.success());
        let answer = caller.join().unwrap();
        assert_eq!(answer.json()["response"]["message"], "by hand");
    }
    gateway.stop().unwrap();
}
