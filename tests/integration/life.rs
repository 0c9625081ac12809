use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use recado::agent::Agent;
use recado::gateway::Gateway;

use crate::support::http::{Connection, get};
use crate::support::process::Process;
use crate::support::{
    Chain, Kind, TempFile, TestBroker, agent_settings, free_port, gateway_settings, local,
    start_agent, start_backend, start_gateway, wait_until, wait_until_ready,
};

on_each_broker!(
    the_broker_may_come_last,
    a_broker_restart_under_load,
    an_agent_killed_under_load,
    an_agent_stopped_in_order_loses_nothing,
);

fn the_broker_may_come_last(kind: Kind) {
    let broker = TestBroker::absent(kind);
    let gateway = Gateway::start(gateway_settings(&broker.url())).unwrap();
    let upstream = local(free_port());
    let agent = Agent::start(agent_settings(&broker.url(), upstream)).unwrap();
    assert_eq!(get(gateway.address(), "/ping").status, 503);
    assert!(agent.ready().is_err());
    broker.start_again();
    wait_until_ready(&gateway);
    wait_until("the agent is ready", || agent.ready().is_ok());
    assert_eq!(
        get(gateway.address(), "/ping").status,
        502,
        "still no upstream"
    );
    let backend = recado::tools::backend::Backend::start(upstream).unwrap();
    wait_until("the upstream is there", || {
        get(gateway.address(), "/ping").status == 200
    });
    gateway.stop().unwrap();
    agent.stop().unwrap();
    backend.stop().unwrap();
}

/// Eight callers ask with words of their own until told to stop. Every answer is either right or
/// an honest error; `meanwhile` sees how many were right so far.
fn under_load(chain: &Chain, meanwhile: impl FnOnce(&AtomicUsize)) {
    let stop = AtomicBool::new(false);
    let right = &AtomicUsize::new(0);
    let address = chain.address();
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let stop = &stop;
            scope.spawn(move || {
                let mut client = Connection::open(address);
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let word = format!("{caller}-{number}");
                    let answer = client.get(&format!("/ping?ask={word}"));
                    let document = answer.json();
                    match answer.status {
                        400 => {
                            right.fetch_add(1, Ordering::Relaxed);
                            let asked = &document["response"]["received"]["ask"];
                            assert_eq!(asked, word.as_str());
                        }
                        503 => assert_eq!(document["outcome"], "not-executed"),
                        504 => assert_eq!(document["outcome"], "unknown"),
                        _ => panic!("{answer:?}"),
                    }
                }
            });
        }
        meanwhile(right);
        stop.store(true, Ordering::Relaxed);
    });
}

fn wait_for_more(right: &AtomicUsize) {
    let before = right.load(Ordering::Relaxed);
    wait_until("the load is answered", || {
        right.load(Ordering::Relaxed) > before
    });
}

fn a_broker_restart_under_load(kind: Kind) {
    let broker = TestBroker::start(kind);
    let chain = Chain::start(&broker);
    under_load(&chain, |right| {
        for _ in 0..3 {
            wait_for_more(right);
            broker.stop();
            wait_until("the gateway notices", || {
                get(chain.address(), "/readyz").status == 503
            });
            broker.start_again();
            wait_for_more(right);
        }
    });
    chain.stop();
}

fn an_agent_killed_under_load(kind: Kind) {
    let broker = TestBroker::start(kind);
    let chain = Chain::start(&broker);
    let upstream = format!("http://{}", chain.backend.address());
    under_load(&chain, |right| {
        for _ in 0..3 {
            let mut second = Process::own(
                "agent",
                &["--broker", &broker.url(), "--upstream", &upstream, "--demo"],
            );
            second.wait_for_output("request: ");
            second.kill();
            wait_for_more(right);
        }
    });
    wait_until("one agent is enough", || {
        get(chain.address(), "/ping").status == 200
    });
    chain.stop();
}

fn an_agent_stopped_in_order_loses_nothing(kind: Kind) {
    let broker = TestBroker::start(kind);
    let backend = start_backend();
    let first = start_agent(&broker, backend.address());
    let gateway = start_gateway(&broker);
    let address = gateway.address();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut client = Connection::open(address);
                    let mut answers = 0;
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(client.get("/ping").status, 200);
                        answers += 1;
                    }
                    answers
                })
            })
            .collect();
        for _ in 0..5 {
            let second = start_agent(&broker, backend.address());
            for _ in 0..20 {
                assert_eq!(get(address, "/ping").status, 200);
            }
            second.stop().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            assert!(caller.join().unwrap() > 0);
        }
    });
    gateway.stop().unwrap();
    first.stop().unwrap();
    backend.stop().unwrap();
}

#[test]
fn threads_are_in_the_scheduling_class_of_the_settings() {
    let broker = TestBroker::start(Kind::Embedded);
    for (setting, class) in [
        ("", 3),
        ("scheduling = \"batch\"", 3),
        ("scheduling = \"normal\"", 0),
    ] {
        let file = TempFile::new(setting);
        let (url, config) = (broker.url(), file.path());
        let common = ["--broker", &url, "--config", config];
        let gateway = Process::own(
            "api_1",
            &[&common[..], &["--listen", "127.0.0.1:0"]].concat(),
        );
        let agent = Process::own("agent", &[&common[..], &["--id", "a"]].concat());
        for (process, ready) in [(&gateway, "ready as gateway"), (&agent, "ready as agent")] {
            process.wait_for_output(ready);
            let threads = process.scheduling();
            let mqtt = threads.iter().find(|(name, _)| name == "mqtt");
            assert_eq!(
                mqtt.map(|(_, class)| *class),
                Some(class),
                "{setting}: {threads:?}"
            );
        }
    }
}
