use std::sync::Barrier;
use std::time::Duration;

use recado::front::FrontKind;

use crate::support::http::{Connection, get};
use crate::support::process::Process;
use crate::support::{
    Kind, TestBroker, agent_settings, gateway_settings, set_path, start_agent_with, start_backend,
    start_gateway_with, wait_until,
};

const CALLERS: usize = 32;

/// Stops the gateway while requests wait for their replies: each gets its answer.
fn what_was_accepted_is_answered(front: FrontKind) {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let mut settings = agent_settings(&broker.url(), backend.address());
    set_path(&mut settings, "/sleep?ms=700");
    let agent = start_agent_with(settings);
    let mut settings = gateway_settings(&broker.url());
    settings.front = front;
    let gateway = start_gateway_with(settings);
    let address = gateway.address();
    let mut observer = crate::support::mqtt311::Client::connect(broker.port());
    observer.subscribe("api/ping/request");
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| scope.spawn(move || get(address, "/ping")))
            .collect();
        for _ in 0..CALLERS {
            observer.receive();
        }
        // All are published, none is answered yet.
        gateway.stop().unwrap();
        for caller in callers {
            assert_eq!(caller.join().unwrap().status, 200);
        }
    });
    assert!(
        std::net::TcpStream::connect(address).is_err(),
        "nobody listens any more"
    );
    agent.stop().unwrap();
    backend.stop().unwrap();
}

#[test]
fn the_guarded_front_answers_what_it_accepted() {
    what_was_accepted_is_answered(FrontKind::Guarded);
}

#[test]
fn the_tiny_http_front_answers_what_it_accepted() {
    what_was_accepted_is_answered(FrontKind::TinyHttp);
}

#[test]
fn an_agent_finishes_what_it_took() {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let mut settings = agent_settings(&broker.url(), backend.address());
    settings.services[0].workers = 2;
    set_path(&mut settings, "/sleep?ms=200");
    let agent = start_agent_with(settings);
    let mut requester = crate::support::mqtt311::Client::connect(broker.port());
    requester.subscribe("api/ping/#");
    for number in 0..6 {
        requester.publish("api/ping/request", format!("{number}").as_bytes());
    }
    // The requests have passed the broker when they come back on the same connection.
    for _ in 0..6 {
        assert_eq!(requester.receive().topic, "api/ping/request");
    }
    agent.stop().unwrap();
    let replies = requester.received_so_far();
    assert_eq!(replies.len(), 6, "{replies:?}");
    for reply in replies {
        assert!(reply.text().contains("slept 200 ms"), "{reply:?}");
    }
    backend.stop().unwrap();
}

#[test]
fn every_program_ends_with_0_on_either_signal() {
    for signal in ["INT", "TERM"] {
        let broker = Process::own("broker", &["--listen", "127.0.0.1:0"]);
        let url = format!("mqtt://{}", broker.address());
        let api_2 = Process::own("api_2", &["--listen", "127.0.0.1:0"]);
        let upstream = format!("http://{}", api_2.address());
        let agent = Process::own(
            "agent",
            &["--broker", &url, "--upstream", &upstream, "--demo"],
        );
        let api_1 = Process::own("api_1", &["--broker", &url, "--listen", "127.0.0.1:0"]);
        let client_a = Process::own("client_a", &["--broker", &url]);
        agent.wait_for_output("ready as agent");
        api_1.wait_for_output("ready as gateway");
        client_a.wait_for_output("subscribed to my/topic");
        // An idle connection must not hold anything up.
        let mut idle = Connection::open(api_1.address());
        assert_eq!(idle.get("/ping").status, 200);
        for process in [api_1, agent, client_a, api_2, broker] {
            process.signal(signal);
            let (status, output) = process.wait();
            assert!(status.success(), "{signal}: {status}: {output}");
        }
        assert!(idle.is_closed_by_server());
    }
}

#[test]
fn a_gateway_without_a_broker_stops_too() {
    let url = format!("mqtt://127.0.0.1:{}", crate::support::free_port());
    let api_1 = Process::own("api_1", &["--broker", &url, "--listen", "127.0.0.1:0"]);
    api_1.wait_for_output("no connection to");
    api_1.signal("TERM");
    let (status, output) = api_1.wait();
    assert!(status.success(), "{status}: {output}");
}

#[test]
fn a_request_that_never_becomes_whole_does_not_hold_up_the_stop() {
    let broker = TestBroker::start(Kind::Embedded);
    let gateway = start_gateway_with(gateway_settings(&broker.url()));
    let mut client = Connection::open(gateway.address());
    client.send(b"POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab");
    gateway.stop().unwrap();
    assert!(
        client
            .try_read_answer(true)
            .is_none_or(|answer| answer.status >= 400)
    );
}

#[test]
fn nobody_is_cut_off_while_connections_come_and_the_gateway_goes() {
    // Every answer that is begun is whole, however close the stop comes.
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let agent = start_agent_with(agent_settings(&broker.url(), backend.address()));
    let gateway = start_gateway_with(gateway_settings(&broker.url()));
    let address = gateway.address();
    let begin = Barrier::new(9);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Connection::open(address);
                assert_eq!(client.get("/ping").status, 200);
                begin.wait();
                loop {
                    if !client.try_send(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n") {
                        break;
                    }
                    // No answer at all: the connection was closed between two requests.
                    let Some(answer) = client.try_read_answer(true) else {
                        break;
                    };
                    assert_eq!(answer.status, 200, "{answer:?}");
                    if answer.header("connection") == Some("close") {
                        break;
                    }
                }
            });
        }
        begin.wait();
        wait_until("the load runs", || get(address, "/ping").status == 200);
        gateway.stop().unwrap();
    });
    agent.stop().unwrap();
    backend.stop().unwrap();
}

#[test]
fn a_connection_that_is_being_closed_does_not_hold_up_the_stop() {
    let broker = TestBroker::start(Kind::Embedded);
    let mut settings = gateway_settings(&broker.url());
    settings.routes[0].timeout = Duration::from_millis(1);
    let gateway = start_gateway_with(settings);
    let mut client = Connection::open(gateway.address());
    client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(client.read_answer().status, 200);
    gateway.stop().unwrap();
}

#[test]
fn an_agent_waits_for_a_caller_who_waits_longer_than_usual() {
    let broker = TestBroker::start(Kind::Embedded);
    let backend = start_backend();
    let mut settings = agent_settings(&broker.url(), backend.address());
    settings.services[0].timeout = Duration::from_millis(100);
    set_path(&mut settings, "/sleep?ms=1200");
    let agent = start_agent_with(settings);
    let gateway = start_gateway_with(gateway_settings(&broker.url()));
    let address = gateway.address();
    let mut observer = crate::support::mqtt311::Client::connect(broker.port());
    observer.subscribe("api/ping/request");
    let caller = std::thread::spawn(move || get(address, "/ping"));
    observer.receive();
    agent.stop().unwrap();
    assert_eq!(caller.join().unwrap().status, 200);
    gateway.stop().unwrap();
    backend.stop().unwrap();
}
