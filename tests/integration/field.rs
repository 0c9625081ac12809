use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use recado::agent::Agent;
use recado::gateway::Gateway;
use recado::wire::{Message, Properties, Qos};

use crate::failures::problem;
use crate::http_mode::{ask, start_upstream, stop};
use crate::odd_messages::Peer;
use crate::support::http::{Connection, get, get_agent};
use crate::support::process::{Process, own_command};
use crate::support::proxy::Proxy;
use crate::support::upstream::RawUpstream;
use crate::support::{
    Chain, Kind, TestBroker, agent_settings, gateway_settings, local, mqtt311, start_agent,
    start_agent_with, start_gateway, start_gateway_with, wait_until,
};

on_each_broker!(
    an_agent_that_stood_still_executes_nothing_late,
    what_a_stalled_connection_holds_up_is_not_executed_late,
    two_agents_with_one_id_execute_each_request_once,
    an_own_service_does_not_join_the_ping,
    an_agent_that_says_no_more_that_it_is_there_is_gone,
);

/// An upstream that counts what it is asked, and answers 200.
fn counting() -> (RawUpstream, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let upstream = RawUpstream::start(move |mut visit| {
        while visit.request().is_some() {
            counted.fetch_add(1, Ordering::SeqCst);
            visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    (upstream, count)
}

fn ask_at_once(gateway: &Gateway, count: usize, fields: &str) -> Vec<u16> {
    let address = gateway.address();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..count)
            .map(|_| scope.spawn(|| ask(address, "POST", "/agents/demo/x", fields, b"x").status))
            .collect();
        let answers = callers.into_iter().map(|caller| caller.join().unwrap());
        answers.collect()
    })
}

fn an_agent_that_stood_still_executes_nothing_late(kind: Kind) {
    let broker = TestBroker::start(kind);
    let (upstream, count) = counting();
    let url = format!("http://{}", upstream.address());
    let agent = Process::own("agent", &["--broker", &broker.url(), "--upstream", &url]);
    let mut settings = gateway_settings(&broker.url());
    for route in &mut settings.routes {
        route.timeout = Duration::from_millis(700);
    }
    let gateway = start_gateway_with(settings);
    wait_until("it is there", || {
        ask(gateway.address(), "POST", "/agents/demo/x", "", b"x").status == 200
    });
    let before = count.load(Ordering::SeqCst);
    agent.signal("STOP");
    let statuses = ask_at_once(&gateway, 5, "");
    assert_eq!(statuses, [504; 5]);
    agent.signal("CONT");
    // What is asked now is executed behind those that are dropped.
    let last = ask(gateway.address(), "POST", "/agents/demo/x", "", b"x");
    assert_eq!(last.status, 200, "{}", last.text());
    assert_eq!(count.load(Ordering::SeqCst), before + 1);
    gateway.stop().unwrap();
}

fn what_a_stalled_connection_holds_up_is_not_executed_late(kind: Kind) {
    for gateways_side in [true, false] {
        let broker = TestBroker::start(kind);
        let proxy = Proxy::start(broker.port());
        let (upstream, count) = counting();
        let (gateways, agents) = match gateways_side {
            true => (proxy.url(), broker.url()),
            false => (broker.url(), proxy.url()),
        };
        let agent = start_agent_with(agent_settings(&agents, upstream.address()));
        let mut settings = gateway_settings(&gateways);
        for route in &mut settings.routes {
            route.timeout = Duration::from_millis(900);
        }
        let gateway = start_gateway_with(settings);
        wait_until("it is there", || {
            ask(gateway.address(), "POST", "/agents/demo/x", "", b"x").status == 200
        });
        let before = count.load(Ordering::SeqCst);
        proxy.stall(true);
        let statuses = ask_at_once(&gateway, 3, "");
        assert_eq!(statuses, [504; 3], "{gateways_side}");
        proxy.stall(false);
        let last = ask(gateway.address(), "POST", "/agents/demo/x", "", b"x");
        assert_eq!(last.status, 200, "{}", last.text());
        assert_eq!(count.load(Ordering::SeqCst), before + 1, "{gateways_side}");
        gateway.stop().unwrap();
        agent.stop().unwrap();
    }
}

fn two_agents_with_one_id_execute_each_request_once(kind: Kind) {
    let broker = TestBroker::start(kind);
    let (upstream, count) = counting();
    let agents: Vec<Agent> = (0..2)
        .map(|_| start_agent(&broker, upstream.address()))
        .collect();
    let gateway = start_gateway(&broker);
    wait_until("both are seen", || {
        get(gateway.address(), "/agents").json()["agents"]
            .as_array()
            .is_some_and(|all| all.len() == 2)
    });
    let all = get(gateway.address(), "/agents").json();
    assert_eq!(all["agents"][0]["id"], all["agents"][1]["id"]);
    assert_ne!(all["agents"][0]["instance"], all["agents"][1]["instance"]);
    let mut client = Connection::open(gateway.address());
    for _ in 0..1000 {
        client.send(b"POST /agents/demo/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(client.read_answer().status, 200);
    }
    assert_eq!(count.load(Ordering::SeqCst), 1000);
    drop(client);
    gateway.stop().unwrap();
    for agent in agents {
        agent.stop().unwrap();
    }
}

fn an_own_service_does_not_join_the_ping(kind: Kind) {
    let broker = TestBroker::start(kind);
    let (upstream, count) = counting();
    let url = format!("http://{}", upstream.address());
    let arguments = [
        "--broker",
        &broker.url(),
        "--upstream",
        &url,
        "--id",
        "shed",
    ];
    let own = Process::own("agent", &arguments);
    let mut settings = gateway_settings(&broker.url());
    settings.routes[0].timeout = Duration::from_millis(300);
    let gateway = start_gateway_with(settings);
    wait_until("it is there", || {
        get_agent(gateway.address(), "shed").status == 200
    });
    let shed = get_agent(gateway.address(), "shed").json();
    assert_eq!(shed["topics"].as_array().unwrap().len(), 1, "{shed}");
    assert_ne!(get(gateway.address(), "/ping").status, 200);
    assert_eq!(count.load(Ordering::SeqCst), 0);
    drop(own);
    let with_demo = Process::own("agent", &[&arguments[..], &["--demo"]].concat());
    wait_until("it is asked", || {
        get(gateway.address(), "/ping");
        count.load(Ordering::SeqCst) > 0
    });
    drop(with_demo);
    gateway.stop().unwrap();
}

/// An agent that dies together with its broker leaves a presence that no will takes back.
fn an_agent_that_says_no_more_that_it_is_there_is_gone(kind: Kind) {
    let broker = TestBroker::start(kind);
    let gateway = start_gateway(&broker);
    let mut ghost = mqtt311::Client::connect(broker.port());
    let presence =
        br#"{"id": "ghost", "services": [], "since": "2026-01-01T00:00:00Z", "version": "1",
        "topics": ["recado/agents/ghost/request"], "instance": "1", "refresh_s": 1}"#;
    ghost.publish_with("recado/agents/ghost/presence", presence, true);
    wait_until("it is seen", || {
        get_agent(gateway.address(), "ghost").status == 200
    });
    wait_until("it is gone", || {
        get_agent(gateway.address(), "ghost").status == 404
    });
    let absent = get(gateway.address(), "/agents/ghost/x");
    problem(&absent, 503, "agent", "not-executed");
    // One that goes on saying it stays.
    let upstream = start_upstream();
    let mut settings = agent_settings(&broker.url(), upstream.address());
    settings.presence_refresh = Duration::from_secs(1);
    let agent = start_agent_with(settings);
    wait_until("it is there", || {
        get(gateway.address(), "/agents/demo/x").status == 200
    });
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        assert_eq!(get(gateway.address(), "/agents/demo/x").status, 200);
    }
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

#[test]
fn a_hangup_of_the_terminal_ends_no_service() {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = Process::own("api_2", &["--listen", "127.0.0.1:0"]);
    let url = format!("http://{}", backend.address());
    let agent = Process::own(
        "agent",
        &["--broker", &broker.url(), "--upstream", &url, "--demo"],
    );
    let gateway = Process::own(
        "api_1",
        &["--listen", "127.0.0.1:0", "--broker", &broker.url()],
    );
    let address = gateway.address();
    wait_until("it is answered", || get(address, "/ping").status == 200);
    for service in [&backend, &agent, &gateway] {
        service.signal("HUP");
        service.wait_for_output("SIGHUP: the settings were read again");
    }
    assert_eq!(get(address, "/ping").status, 200);
    let subscriber = Process::own("client_a", &["--broker", &broker.url()]);
    subscriber.wait_for_output("subscribed to");
    subscriber.signal("HUP");
    assert_eq!(subscriber.wait().0.code(), Some(0));
}

#[test]
fn a_path_without_its_slash_leads_to_the_application() {
    let broker = TestBroker::start(Kind::Embedded);
    let chain = Chain::start(&broker);
    for (method, path, location) in [
        ("GET", "/agents/demo", "./demo/"),
        ("POST", "/agents/demo?a=b", "./demo/?a=b"),
        ("GET", "/services/web", "./web/"),
    ] {
        let moved = ask(
            chain.address(),
            method,
            path,
            "Accept: text/html, */*\r\n",
            b"",
        );
        assert_eq!(moved.status, 308, "{path}");
        assert_eq!(moved.header("location"), Some(location));
    }
    assert_eq!(get_agent(chain.address(), "demo").json()["id"], "demo");
    chain.stop();
}

#[test]
fn a_broker_of_mqtt_3_1_1_is_named_as_such() {
    let listener = TcpListener::bind(local(0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    // What MQTT 3.1.1, section 3.1.2.2, asks a server to say.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 256]);
            let _ = stream.write_all(&[0x20, 2, 0, 1]);
        }
    });
    let url = format!("mqtt://127.0.0.1:{port}");
    let agent = Process::own("agent", &["--broker", &url]);
    agent.wait_for_output("the broker speaks MQTT 3.1.1 only");
    assert!(
        agent.output().contains("CONNACK code 1"),
        "{}",
        agent.output()
    );
}

#[test]
fn a_broker_that_never_acknowledges_the_subscriptions_is_left() {
    let listener = TcpListener::bind(local(0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (on_closed, closed) = crossbeam_channel::unbounded();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, on_closed) = (stream.unwrap(), on_closed.clone());
            std::thread::spawn(move || {
                let mut packet = [0; 1024];
                let _ = stream.read(&mut packet);
                let _ = stream.write_all(&[0x20, 3, 0, 0, 0]);
                while let Ok(1..) = stream.read(&mut packet) {
                    // Pings are answered, so that it looks alive.
                    if packet[0] == 0xc0 {
                        let _ = stream.write_all(&[0xd0, 0]);
                    }
                }
                let _ = on_closed.send(());
            });
        }
    });
    let url = format!("mqtt://127.0.0.1:{port}");
    let agent = Process::own("agent", &["--broker", &url]);
    agent.wait_for_output("does not acknowledge the subscriptions");
    // Well before the next attempt: it would get its share of what others are asked, and not read it.
    closed.recv_timeout(Duration::from_secs(3)).unwrap();
}

#[test]
fn a_broker_that_takes_nothing_is_the_one_that_is_blamed() {
    let broker = TestBroker::start(Kind::Embedded);
    let proxy = Proxy::start(broker.port());
    let upstream = start_upstream();
    let agent = start_agent(&broker, upstream.address());
    let mut settings = gateway_settings(&proxy.url());
    for route in &mut settings.routes {
        route.timeout = Duration::from_millis(200);
    }
    let gateway = start_gateway_with(settings);
    wait_until("the agent is known", || {
        get(gateway.address(), "/agents/demo/x").status == 200
    });
    proxy.stall(true);
    // More than the system's buffers on the way take.
    let body = vec![b'x'; 900_000];
    wait_until("the gateway is not ready any more", || {
        ask(gateway.address(), "POST", "/agents/demo/mirror", "", &body);
        get(gateway.address(), "/readyz").status == 503
    });
    let refused = get(gateway.address(), "/agents/demo/x");
    let detail = problem(&refused, 503, "broker", "not-executed");
    assert!(!detail.is_empty());
    proxy.stall(false);
    wait_until("all is well again", || {
        get(gateway.address(), "/agents/demo/x").status == 200
    });
    gateway.stop().unwrap();
    agent.stop().unwrap();
    stop(upstream);
}

#[test]
fn a_client_that_closes_its_own_direction_reads_nothing_that_invites_a_repeat() {
    let broker = TestBroker::start(Kind::Embedded);
    let gateway = start_gateway(&broker);
    let mut agent = mqtt311::Client::connect(broker.port());
    agent.subscribe("api/ping/request");
    let mut stream = std::net::TcpStream::connect(gateway.address()).unwrap();
    stream
        .write_all(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    agent.receive();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    gateway.stop().unwrap();
}

#[test]
fn replies_with_qos_1_wait_for_a_place() {
    let broker = TestBroker::start(Kind::Embedded);
    let proxy = Proxy::start(broker.port());
    proxy.delay(Duration::from_millis(50));
    let (upstream, count) = counting();
    let mut settings = agent_settings(&proxy.url(), upstream.address());
    for service in &mut settings.services {
        service.workers = 400;
    }
    let agent = start_agent_with(settings);
    let mut settings = gateway_settings(&broker.url());
    for route in &mut settings.routes {
        route.timeout = Duration::from_secs(20);
        route.qos = Qos::AtLeastOnce;
    }
    settings.http.max_connections = 400;
    let gateway = start_gateway_with(settings);
    wait_until("it is there", || {
        get(gateway.address(), "/agents/demo/x").status == 200
    });
    let before = count.load(Ordering::SeqCst);
    // The gateway too has 100 places only: what finds none is refused, not executed.
    let statuses = ask_at_once(&gateway, 250, "");
    let answered = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(
        answered,
        count.load(Ordering::SeqCst) - before,
        "{statuses:?}"
    );
    assert!(statuses.iter().all(|status| [200, 503].contains(status)));
    gateway.stop().unwrap();
    agent.stop().unwrap();
}

#[test]
fn help_names_the_variables() {
    for (program, names) in [
        (
            "api_1",
            &["RECADO_LOG", "RECADO_MQTT_PASSWORD", "RECADO_TLS_CA_FILE"][..],
        ),
        (
            "agent",
            &["RECADO_LOG", "RECADO_MQTT_PASSWORD", "RECADO_TLS_CA_FILE"],
        ),
        ("client_a", &["RECADO_LOG", "RECADO_MQTT_PASSWORD"]),
        ("client_b", &["RECADO_LOG", "RECADO_MQTT_PASSWORD"]),
        ("api_2", &["RECADO_LOG"]),
        ("broker", &["RECADO_LOG"]),
    ] {
        let mut command: Command = own_command(program);
        command.env("RECADO_LISTEN", "127.0.0.1:4321");
        let (status, output) = Process::spawn(command.arg("--help")).wait();
        assert_eq!(status.code(), Some(0));
        for name in names {
            assert!(output.contains(name), "{program}: {name}\n{output}");
        }
        assert!(output.contains("off, error, warn, info, debug"), "{output}");
        assert!(!output.contains("RECADO_LISTEN="), "{program}\n{output}");
    }
}

#[test]
fn a_correlation_that_is_too_long_is_refused_and_remembered_nowhere() {
    let broker = TestBroker::start(Kind::Embedded);
    let (upstream, count) = counting();
    let agent = start_agent(&broker, upstream.address());
    let peer = Peer::start(&broker, &["recado/gateways/peer/response"]);
    for (length, status) in [(64, "200"), (65, "400"), (60_000, "400")] {
        peer.publish_patiently(Message {
            topic: "recado/agents/demo/request".into(),
            qos: Qos::AtLeastOnce,
            properties: Properties {
                response_topic: Some("recado/gateways/peer/response".into()),
                correlation_data: Some(vec![7; length].into()),
                user: [
                    ("v", "1"),
                    ("method", "GET"),
                    ("target", "/"),
                    ("deadline-ms", "9000"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
                ..Properties::default()
            },
            ..Message::default()
        });
        let reply = peer.receive();
        assert_eq!(reply.properties.user("status"), Some(status), "{length}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    agent.stop().unwrap();
}
