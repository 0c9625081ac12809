use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use recado::agent::{Agent, AgentSettings};
use recado::gateway::{Gateway, GatewaySettings};
use recado::link::{BrokerMode, BrokerUrl, Brokers};

use crate::http_mode::ask;
use crate::support::cluster::Cluster;
use crate::support::http::{Connection, get, get_agent};
use crate::support::upstream::RawUpstream;
use crate::support::{
    agent_settings_of, gateway_settings_of, start_agent_with, start_gateway_with, wait_until,
};

/// An upstream that answers with the target that was asked for, or with the body if there is one.
struct Upstream {
    raw: RawUpstream,
    // How often each target was executed.
    executed: Arc<Mutex<HashMap<String, usize>>>,
}

impl Upstream {
    fn start() -> Upstream {
        let executed: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let counted = Arc::clone(&executed);
        let raw = RawUpstream::start(move |mut visit| {
            while let Some((head, body)) = visit.request() {
                let target = head.split(' ').nth(1).unwrap().to_owned();
                *counted.lock().unwrap().entry(target.clone()).or_default() += 1;
                let body = if body.is_empty() {
                    target.into_bytes()
                } else {
                    body
                };
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                visit.send(head.as_bytes());
                visit.send(&body);
            }
        });
        Upstream { raw, executed }
    }

    /// How many targets were executed, none of them twice.
    fn executed_once(&self) -> usize {
        let executed = self.executed.lock().unwrap();
        assert!(executed.values().all(|times| *times == 1), "{executed:?}");
        executed.len()
    }
}

fn several(urls: &[String]) -> Brokers {
    let urls = urls.iter().map(|url| url.parse().unwrap());
    Brokers::new(urls.collect::<Vec<BrokerUrl>>(), BrokerMode::Failover).unwrap()
}

fn start_gateway(urls: &[String], text: &str) -> Gateway {
    start_gateway_with(GatewaySettings {
        brokers: several(urls),
        ..gateway_settings_of(&urls[0], text)
    })
}

fn start_agent(id: &str, urls: &[String], upstream: &Upstream) -> Agent {
    let text = format!(
        "id = \"{id}\"\nupstream = \"http://{}\"\n[[service]]\nname = \"web\"\nmode = \"http\"\n",
        upstream.raw.address()
    );
    start_agent_with(AgentSettings {
        brokers: several(urls),
        ..agent_settings_of(&urls[0], &text)
    })
}

/// Callers that ask an agent without a pause, each time for something else.
struct Callers {
    stopped: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<(Instant, u16)>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Callers {
    fn start(count: usize, at: SocketAddr, id: &str) -> Callers {
        let (stopped, answers) = (Arc::default(), Arc::default());
        let start = |caller| {
            let (stopped, answers) = (Arc::clone(&stopped), Arc::clone(&answers));
            let path = format!("/agents/{id}");
            std::thread::spawn(move || ask_on(at, &path, caller, &stopped, &answers))
        };
        Callers {
            threads: (0..count).map(start).collect(),
            stopped,
            answers,
        }
    }

    /// Waits for so many more good answers.
    fn wait_for(&self, count: usize) {
        let good = || {
            let answers = self.answers.lock().unwrap();
            answers.iter().filter(|(_, status)| *status == 200).count()
        };
        let before = good();
        wait_until("callers have answers", || good() >= before + count);
    }

    /// Says what they saw, and returns how many answers were not good.
    fn stop(self, what: &str) -> usize {
        self.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        let mut statuses: HashMap<u16, usize> = HashMap::new();
        for (_, status) in &answers {
            *statuses.entry(*status).or_default() += 1;
        }
        let good = statuses.remove(&200).unwrap_or(0);
        let mut times = answers.iter().filter(|(_, status)| *status == 200);
        let mut last = times.next().unwrap().0;
        let mut longest = Duration::ZERO;
        for (ended, _) in times {
            longest = longest.max(ended.saturating_duration_since(last));
            last = *ended;
        }
        eprintln!(
            "{what}: {good} × 200, others {statuses:?}, longest time without a 200 {longest:?}"
        );
        answers.len() - good
    }
}

fn ask_on(
    at: SocketAddr,
    path: &str,
    caller: usize,
    stopped: &AtomicBool,
    answers: &Mutex<Vec<(Instant, u16)>>,
) {
    static ROUND: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let mut client = Connection::open(at);
    while !stopped.load(Ordering::Relaxed) {
        let target = format!("/{caller}/{}", ROUND.fetch_add(1, Ordering::Relaxed));
        let answer = client.get(&format!("{path}{target}"));
        if answer.status == 200 {
            assert_eq!(answer.text(), target, "an answer to something else");
        } else {
            // A refusal comes at once, and would leave no processor to the others.
            std::thread::park_timeout(Duration::from_millis(20));
        }
        answers
            .lock()
            .unwrap()
            .push((Instant::now(), answer.status));
    }
}

#[test]
fn a_cluster_is_as_one_broker() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let upstreams = [Upstream::start(), Upstream::start()];
    let gateway = start_gateway(&cluster.urls(&[1]), "");
    let at = gateway.address();
    let agents = [
        start_agent("a", &cluster.urls(&[2]), &upstreams[0]),
        start_agent("b", &cluster.urls(&[3]), &upstreams[1]),
    ];
    let both_are_known = |at| ["a", "b"].iter().all(|id| get_agent(at, id).status == 200);
    wait_until("both are known", || both_are_known(at));
    // It goes in many messages, and between these nodes they overtake each other.
    let long: Vec<u8> = (0..8 << 20)
        .map(|number: u32| (number / 251) as u8)
        .collect();
    for id in ["a", "b"] {
        let answer = ask(at, "POST", &format!("/agents/{id}/long"), "", &long);
        assert_eq!(answer.status, 200);
        assert!(
            answer.body == long,
            "{} of {} bytes",
            answer.body.len(),
            long.len()
        );
    }
    for number in 0..200 {
        let answer = ask(at, "POST", &format!("/services/web/once{number}"), "", b"x");
        assert_eq!((answer.status, answer.text()), (200, "x"));
    }
    let shares = upstreams.each_ref().map(Upstream::executed_once);
    // Each has executed the long one too.
    assert_eq!(shares[0] + shares[1], 202, "{shares:?}");
    assert!(shares.iter().all(|share| *share > 1), "{shares:?}");
    for node in [1, 2, 3] {
        let newcomer = start_gateway(&cluster.urls(&[node]), "");
        wait_until("it knows both", || both_are_known(newcomer.address()));
        newcomer.stop().unwrap();
    }
    for agent in agents {
        agent.stop().unwrap();
    }
    wait_until("their goodbyes have come", || {
        let agents = get(at, "/agents").json();
        agents["agents"].as_array().unwrap().is_empty()
    });
    gateway.stop().unwrap();
}

#[test]
fn who_knows_all_nodes_goes_on_at_another() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let upstream = Upstream::start();
    // Callers that wait for what was lost would not notice when others are served again.
    let impatient = "[[route]]\npath = \"/agents/{id}/{*path}\"\nmode = \"http\"\ntimeout_ms = 500\n\
                     request_topic = \"recado/agents/{id}/request\"\n";
    // The second gateway and its agent are at a node that stays.
    let gateways =
        [&[1, 3, 2][..], &[3]].map(|nodes| start_gateway(&cluster.urls(nodes), impatient));
    let agents = [("a", &[2, 3, 1][..]), ("b", &[3])]
        .map(|(id, nodes)| start_agent(id, &cluster.urls(nodes), &upstream));
    // First the node of the agent, then that of the gateway, which leads.
    for (node, what) in [
        (2, "the agent's node is killed"),
        (1, "the gateway's node is killed"),
    ] {
        let [hit, others] = [("a", 0), ("b", 1)].map(|(id, number): (_, usize)| {
            let at = gateways[number].address();
            wait_until("the agent is known", || get_agent(at, id).status == 200);
            Callers::start(32, at, id)
        });
        hit.wait_for(500);
        others.wait_for(500);
        cluster.kill(node);
        hit.wait_for(500);
        others.wait_for(500);
        hit.stop(what);
        let failed = others.stop("others meanwhile");
        assert_eq!(failed, 0, "nobody else is hurt");
        let took = cluster.start_node(node);
        eprintln!("that node takes clients again after {took:?}");
    }
    assert!(upstream.executed_once() > 4000);
    for gateway in gateways {
        gateway.stop().unwrap();
    }
    for agent in agents {
        agent.stop().unwrap();
    }
}

#[test]
fn while_nodes_are_cut_off_nothing_is_executed_late_or_twice() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let upstream = Upstream::start();
    let gateway = start_gateway(&cluster.urls(&[1]), "");
    let agent = start_agent("a", &cluster.urls(&[2]), &upstream);
    let at = gateway.address();
    let is_reached = |path: &str| get(at, path).status == 200;
    wait_until("it is reached", || is_reached("/agents/a/before"));
    let before = upstream.executed.lock().unwrap().len();
    cluster.cut_off(2, true);
    for number in 0..3 {
        let answer = get(at, &format!("/agents/a/cut{number}"));
        assert_eq!(answer.status, 504, "{}", answer.text());
    }
    cluster.cut_off(2, false);
    let mended = Instant::now();
    let mut number = 0;
    wait_until("it is reached again", || {
        number += 1;
        is_reached(&format!("/agents/a/after{number}"))
    });
    eprintln!("cut off: reached again after {:?}", mended.elapsed());
    assert!(upstream.executed_once() > before);
    let executed = upstream.executed.lock().unwrap().clone();
    assert!(
        executed.keys().all(|target| !target.starts_with("/cut")),
        "their time was up: {executed:?}"
    );
    gateway.stop().unwrap();
    agent.stop().unwrap();
}
