use crate::http_mode::{ask, start_upstream, stop};
use crate::support::http::{get, get_agent};
use crate::support::{
    Chain, Kind, TempFile, TestBroker, gateway_settings_of, mqtt311, start_agent, start_gateway,
    start_gateway_with, wait_until,
};

/// Nobody would wait for as long as these routes do.
const PATIENT_ROUTES: &str = r#"
    [[route]]
    path = "/ping"
    request_topic = "api/ping/request"
    mode = "json"
    response_topic = "api/ping/response"
    timeout_ms = 600000
    qos = 1
    [[route]]
    path = "/agents/{id}/{*path}"
    request_topic = "recado/agents/{id}/request"
    mode = "http"
    timeout_ms = 600000
    qos = 1
"#;

#[test]
fn nobody_subscribed_means_503_at_once() {
    let Some(broker) = TestBroker::mosquitto_with("") else {
        return;
    };
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), PATIENT_ROUTES));
    for _ in 0..3 {
        let absent = get(gateway.address(), "/ping");
        assert_eq!(absent.status, 503);
        assert_eq!(absent.json()["hop"], "agent");
        assert_eq!(absent.json()["outcome"], "not-executed");
    }
    // Somebody who subscribes and announces nothing is somebody all the same.
    let mut old_agent = mqtt311::Client::connect(broker.port());
    old_agent.subscribe("api/ping/request");
    let address = gateway.address();
    let caller = std::thread::spawn(move || get(address, "/ping"));
    old_agent.receive();
    old_agent.publish("api/ping/response", br#"{"message": "pong"}"#);
    assert_eq!(caller.join().unwrap().status, 200);
    gateway.stop().unwrap();
}

#[test]
fn a_broker_that_refuses_a_request_is_no_reason_to_wait() {
    let acl = TempFile::new(
        "topic read #\ntopic write recado/#\ntopic deny recado/agents/demo/request\n",
    );
    let settings = format!("acl_file {}\n", acl.path());
    let Some(broker) = TestBroker::mosquitto_with(&settings) else {
        return;
    };
    let upstream = start_upstream();
    let agent = start_agent(&broker, upstream.address());
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), PATIENT_ROUTES));
    for path in ["/ping", "/agents/demo/x"] {
        wait_until("the agent is known", || {
            get_agent(gateway.address(), "demo").status == 200
        });
        let refused = get(gateway.address(), path);
        assert_eq!(refused.status, 502, "{path} {}", refused.text());
        assert_eq!(refused.json()["hop"], "broker");
        assert_eq!(refused.json()["outcome"], "not-executed");
    }
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

#[test]
fn a_broker_without_retained_messages() {
    let Some(broker) = TestBroker::mosquitto_with("retain_available false\n") else {
        return;
    };
    let chain = Chain::start(&broker);
    // Whether it came before the agent or after.
    let late = start_gateway(&broker);
    for address in [chain.address(), late.address()] {
        assert_eq!(get(address, "/ping").status, 200);
        assert_eq!(get(address, "/agents/demo/ping?ask=ping").status, 200);
    }
    late.stop().unwrap();
    chain.stop();
}

#[test]
fn a_broker_with_qos_0_only() {
    let Some(broker) = TestBroker::mosquitto_with("max_qos 0\n") else {
        return;
    };
    let chain = Chain::start(&broker);
    wait_until("the agent is known", || {
        get_agent(chain.address(), "demo").status == 200
    });
    assert_eq!(get(chain.address(), "/ping").status, 200);
    assert_eq!(
        get(chain.address(), "/agents/demo/ping?ask=ping").status,
        200
    );
    chain.stop();
}

#[test]
fn a_broker_with_small_packets() {
    let Some(broker) = TestBroker::mosquitto_with("max_packet_size 20000\n") else {
        return;
    };
    let upstream = start_upstream();
    let agent = start_agent(&broker, upstream.address());
    let gateway = start_gateway(&broker);
    let mirrored = |size: usize| {
        let body = vec![b'x'; size];
        ask(gateway.address(), "POST", "/agents/demo/mirror", "", &body)
    };
    wait_until("the agent is known", || mirrored(1).status == 200);
    assert_eq!(mirrored(15_000).body.len(), 15_000);
    let refused = mirrored(25_000);
    assert_eq!(refused.status, 413);
    assert_eq!(refused.json()["hop"], "broker");
    assert_eq!(mirrored(1).status, 200, "the connection has survived");
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

#[test]
fn a_broker_that_does_not_say_who_is_there_is_waited_for() {
    // The embedded broker never says 0x10: nothing may be concluded from its silence.
    let broker = TestBroker::start(Kind::Embedded);
    let routes = PATIENT_ROUTES.replace("600000", "300");
    let gateway = start_gateway_with(gateway_settings_of(&broker.url(), &routes));
    let silent = get(gateway.address(), "/ping");
    assert_eq!(silent.status, 504);
    assert_eq!(silent.json()["outcome"], "unknown");
    gateway.stop().unwrap();
}
