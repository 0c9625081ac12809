use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use recado::agent::{Agent, AgentSettings};
use recado::gateway::{Gateway, GatewaySettings};
use recado::link::{BrokerMode, BrokerUrl, Brokers};

use crate::support::http::{Connection, get, get_agent};
use crate::support::process::Process;
use crate::support::upstream::RawUpstream;
use crate::support::{
    Kind, PATIENCE, TempFile, TestBroker, agent_settings, agent_settings_of, gateway_settings,
    start_agent_with, start_backend, start_gateway_with, wait_until,
};

on_each_broker!(
    the_next_one_has_its_turn,
    a_lost_broker_costs_nothing_where_one_agent_is_asked,
    a_service_of_several_agents_executes_nothing_twice,
    a_body_goes_on_through_another_broker,
);

fn several(brokers: &[&TestBroker], mode: BrokerMode) -> Brokers {
    let urls = brokers.iter().map(|it| it.url().parse().unwrap());
    Brokers::new(urls.collect::<Vec<BrokerUrl>>(), mode).unwrap()
}

fn pings(address: std::net::SocketAddr) -> bool {
    get(address, "/ping").status == 200
}

/// Two brokers that know nothing of each other, so it shows where everybody is.
fn the_next_one_has_its_turn(kind: Kind) {
    let (first, second) = (TestBroker::start(kind), TestBroker::start(kind));
    let both = [&first, &second];
    let backend = start_backend();
    let mut settings = agent_settings(&first.url(), backend.address());
    settings.brokers = several(&both, BrokerMode::Failover);
    let agent = start_agent_with(settings);
    let settings = GatewaySettings {
        brokers: several(&both, BrokerMode::Failover),
        ..gateway_settings(&first.url())
    };
    let gateway = start_gateway_with(settings.clone());
    let at = gateway.address();
    assert!(pings(at));
    first.stop();
    wait_until("both are at the second broker", || pings(at));
    // There they stay, whoever comes back.
    first.start_again();
    let newcomer = start_gateway_with(settings.clone());
    assert_eq!(
        get(newcomer.address(), "/agents").json()["agents"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    assert!(pings(at));
    // Until they are asked to.
    gateway.reload(settings).unwrap();
    wait_until("the gateway is at the first one", || {
        get(at, "/agents").json()["agents"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    let mut settings = agent_settings(&first.url(), backend.address());
    settings.brokers = several(&both, BrokerMode::Failover);
    agent.reload(settings).unwrap();
    wait_until("the agent too", || pings(at) && pings(newcomer.address()));
    for gateway in [gateway, newcomer] {
        gateway.stop().unwrap();
    }
    agent.stop().unwrap();
    backend.stop().unwrap();
}

/// Two brokers that know nothing of each other, agents and a gateway at both.
struct Pair {
    brokers: [TestBroker; 2],
    agents: Vec<Agent>,
    gateway: Gateway,
    upstream: RawUpstream,
    // How often each target was executed.
    executed: Arc<Mutex<HashMap<String, u32>>>,
}

impl Pair {
    /// `settings`: of each agent.
    fn start(kind: Kind, settings: &[&str]) -> Pair {
        let executed: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
        let counted = Arc::clone(&executed);
        let upstream = RawUpstream::start(move |mut visit| {
            while let Some((head, _)) = visit.request() {
                let target = head.split(' ').nth(1).unwrap();
                let asked = head.lines().next().unwrap().to_owned();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}",
                    target.len()
                );
                *counted.lock().unwrap().entry(asked).or_default() += 1;
                visit.send(answer.as_bytes());
            }
        });
        let brokers = [(); 2].map(|()| TestBroker::start(kind));
        let both = || several(&[&brokers[0], &brokers[1]], BrokerMode::All);
        let url = brokers[0].url();
        let agent = |text: &&str| {
            let text = format!("upstream = \"http://{}\"\n{text}", upstream.address());
            start_agent_with(AgentSettings {
                brokers: both(),
                ..agent_settings_of(&url, &text)
            })
        };
        let agents = settings.iter().map(agent).collect();
        let gateway = start_gateway_with(GatewaySettings {
            brokers: both(),
            ..gateway_settings(&url)
        });
        let pair = Pair {
            brokers,
            agents,
            gateway,
            upstream,
            executed,
        };
        pair.wait_until_whole();
        pair
    }

    // Until both brokers are known to have everybody.
    fn wait_until_whole(&self) {
        let at = self.gateway.address();
        wait_until("everybody is at both brokers", || {
            let sheet = get(at, "/metrics");
            let connected = sheet.text().lines().filter(|line| {
                line.starts_with("recado_broker_connected") && line.ends_with(" 1.0")
            });
            connected.count() == 2 && self.agents_are_at_both()
        });
    }

    fn agents_are_at_both(&self) -> bool {
        self.brokers.iter().all(|broker| {
            let gateway = start_gateway_with(gateway_settings(&broker.url()));
            let agents = get(gateway.address(), "/agents").json();
            gateway.stop().unwrap();
            agents["agents"].as_array().unwrap().len() == self.agents.len()
        })
    }

    /// 64 callers ask without a pause, each time for something else, while one broker after the other is
    /// lost and comes back. Returns the statuses.
    fn lose_each(&self, method: &str, path: &str) -> HashMap<u16, usize> {
        let (at, stop) = (self.gateway.address(), &AtomicBool::new(false));
        let statuses: &Mutex<HashMap<u16, usize>> = &Mutex::default();
        let right = &AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for caller in 0..64 {
                scope.spawn(move || {
                    let mut client = Connection::open(at);
                    for number in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let target = format!("/{caller}/{number}");
                        let head = format!("{method} {path}{target} HTTP/1.1\r\nHost: x\r\n\r\n");
                        client.send(head.as_bytes());
                        let answer = client.read_answer();
                        if answer.status == 200 {
                            assert_eq!(answer.text(), target, "an answer to something else");
                            right.fetch_add(1, Ordering::Relaxed);
                        }
                        *statuses.lock().unwrap().entry(answer.status).or_default() += 1;
                    }
                });
            }
            for broker in &self.brokers {
                let more = || {
                    let seen = right.load(Ordering::Relaxed);
                    wait_until("more are right", || {
                        right.load(Ordering::Relaxed) > seen + 300
                    });
                };
                more();
                broker.stop();
                more();
                broker.start_again();
                self.wait_until_whole();
            }
            stop.store(true, Ordering::Relaxed);
        });
        std::mem::take(&mut *statuses.lock().unwrap())
    }

    fn repeated(&self) -> u64 {
        let sheet = get(self.gateway.address(), "/metrics");
        let mut lines = sheet.text().lines();
        let value = lines.find_map(|line| line.strip_prefix("recado_repeated_requests_total "));
        value.unwrap().parse().unwrap()
    }

    fn assert_nothing_twice(&self) {
        let executed = self.executed.lock().unwrap();
        let twice = executed.iter().filter(|(_, count)| **count > 1);
        let twice: Vec<_> = twice.take(5).collect();
        assert!(twice.is_empty(), "executed more than once: {twice:?}");
    }

    fn stop(self) {
        self.gateway.stop().unwrap();
        for agent in self.agents {
            agent.stop().unwrap();
        }
        drop(self.upstream);
    }
}

fn a_lost_broker_costs_nothing_where_one_agent_is_asked(kind: Kind) {
    let pair = Pair::start(kind, &["id = \"shed\""]);
    let agents = get(pair.gateway.address(), "/agents").json();
    assert_eq!(agents["agents"].as_array().unwrap().len(), 1, "it is one");
    for method in ["GET", "POST"] {
        let statuses = pair.lose_each(method, "/agents/shed");
        assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200], "{statuses:?}");
    }
    pair.assert_nothing_twice();
    assert!(pair.repeated() > 0);
    pair.stop();
}

fn a_service_of_several_agents_executes_nothing_twice(kind: Kind) {
    let service = "[[service]]\nname = \"web\"\nmode = \"http\"\n";
    let settings = ["a", "b"].map(|id| format!("id = \"{id}\"\n{service}"));
    let pair = Pair::start(kind, &settings.each_ref().map(String::as_str));
    let statuses = pair.lose_each("POST", "/services/web");
    for (status, count) in &statuses {
        assert!([200, 502].contains(status), "{count} times {status}");
    }
    pair.assert_nothing_twice();
    // What only reads is asked again.
    let statuses = pair.lose_each("GET", "/services/web");
    assert_eq!(statuses.keys().collect::<Vec<_>>(), [&200], "{statuses:?}");
    pair.stop();
}

fn a_body_goes_on_through_another_broker(kind: Kind) {
    let pair = Pair::start(kind, &["id = \"shed\""]);
    let (first, second) = (vec![b'a'; 300_000], vec![b'b'; 300_000]);
    let (on_head, head_came) = crossbeam_channel::bounded(1);
    let (on_go, go) = crossbeam_channel::bounded::<()>(1);
    let own = (first.clone(), second.clone());
    let upstream = RawUpstream::start(move |mut visit| {
        visit.request();
        let length = own.0.len() + own.1.len();
        visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes());
        visit.send(&own.0);
        on_head.send(()).unwrap();
        go.recv_timeout(2 * PATIENCE).unwrap();
        visit.send(&own.1);
    });
    let text = format!(
        "id = \"long\"\nupstream = \"http://{}\"",
        upstream.address()
    );
    let agent = start_agent_with(AgentSettings {
        brokers: several(&[&pair.brokers[0], &pair.brokers[1]], BrokerMode::All),
        ..agent_settings_of(&pair.brokers[0].url(), &text)
    });
    let at = pair.gateway.address();
    wait_until("the gateway knows it", || {
        get_agent(at, "long").status == 200
    });
    let mut client = Connection::open(at);
    client.send(b"GET /agents/long/x HTTP/1.1\r\nHost: x\r\n\r\n");
    head_came.recv_timeout(PATIENCE).unwrap();
    let answer = client.read_head_answer();
    assert_eq!(answer.status, 200);
    assert_eq!(client.read_bytes(first.len()).unwrap(), first);
    // Whichever of them it came by.
    for broker in &pair.brokers {
        broker.stop();
        if std::ptr::eq(broker, &pair.brokers[0]) {
            broker.start_again();
            wait_until("it is at the first one again", || {
                let gateway = start_gateway_with(gateway_settings(&broker.url()));
                let there = get_agent(gateway.address(), "long").status == 200;
                gateway.stop().unwrap();
                there
            });
        }
    }
    on_go.send(()).unwrap();
    assert_eq!(client.read_bytes(second.len()).unwrap(), second);
    agent.stop().unwrap();
    pair.stop();
}

#[test]
fn brokers_by_flag_variable_and_file() {
    let lists = ["--broker mqtt://a,mqtts://me:hush@b:1 --broker ws://c", ""];
    let file = TempFile::new(
        "broker = [\"mqtt://a\", \"mqtts://me:hush@b:1\", \"ws://c\"]\n[brokers]\nmode = \"all\"\n",
    );
    for list in lists {
        let mut arguments = vec!["--check"];
        arguments.extend(list.split_whitespace());
        match list {
            "" => arguments.extend(["--config", file.path()]),
            _ => arguments.extend(["--broker-mode", "all"]),
        }
        for program in ["api_1", "agent"] {
            let (status, output) = Process::own(program, &arguments).wait();
            assert!(status.success(), "{output}");
            let line = "broker = [\"mqtt://a:1883\", \"mqtts://me:***@b:1\", \"ws://c:80/mqtt\"]";
            assert!(output.contains(line), "{output}");
            assert!(output.contains("[brokers]\nmode = \"all\""), "{output}");
        }
    }
    for (bad, why) in [
        ("mqtt://a,mqtt://a:1883", "mqtt://a:1883 is there twice"),
        ("mqtt://a,tcp://me:hush@b", "allowed is mqtt://"),
        ("mqtt://a,,mqtt://b", "allowed is mqtt://"),
    ] {
        let (status, output) = Process::own("api_1", &["--check", "--broker", bad]).wait();
        assert_eq!(status.code(), Some(2), "{output}");
        assert!(output.contains(why) && !output.contains("hush"), "{output}");
    }
}
