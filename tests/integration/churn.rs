use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use recado::front::HttpLimits;
use recado::front::{Client, Front, guarded};
use recado::gateway::Gateway;
use recado::http::{Request, Response};

use crate::support::http::{Answer, Connection, get};
use crate::support::process::Process;
use crate::support::{
    Kind, PATIENCE, TempFile, TestBroker, gateway_settings_of, local, start_gateway_with,
    wait_until,
};

on_each_broker!(
    ten_thousand_requests_while_agents_are_killed,
    nothing_is_executed_late_or_twice,
);

const AGENTS: usize = 3;
const CALLERS: usize = 16;
/// How long a caller waits for its reply.
const TIMEOUT: Duration = Duration::from_secs(1);
/// A request states how long it may live in whole seconds, and agents have no clock in common
/// with gateways; a request that waited for a broker or an agent to come back would be later.
const TOLERANCE: Duration = Duration::from_secs(1);

const GATEWAY: &str = r#"
    [[route]]
    path = "/services/{name}/{*path}"
    request_topic = "recado/services/{name}/request"
    mode = "http"
    timeout_ms = 1000
    qos = 1
"#;

/// A service that counts: which request was executed how often, how late, and by which agent.
#[derive(Default)]
struct Counters {
    executed: Mutex<HashMap<String, usize>>,
    by_agent: [AtomicUsize; AGENTS],
    latest: Mutex<Duration>,
}

/// Three agents as processes, two gateways, one service, and how to disturb them.
struct Scene {
    broker: TestBroker,
    agents: Mutex<Vec<Process>>,
    files: Vec<TempFile>,
    gateways: Vec<Gateway>,
    upstream: Box<dyn Front>,
    counters: Arc<Counters>,
    begun: Instant,
}

/// What callers saw.
#[derive(Default)]
struct Seen {
    answered: AtomicUsize,
    failed: AtomicUsize,
}

impl Scene {
    fn start(kind: Kind) -> Scene {
        let broker = TestBroker::start(kind);
        let counters = Arc::new(Counters::default());
        let begun = Instant::now();
        let upstream = counting_upstream(Arc::clone(&counters), begun);
        let files: Vec<TempFile> = (0..AGENTS)
            .map(|number| agent_file(number, upstream.address()))
            .collect();
        let agents = files.iter().map(|file| start_agent(&broker, file));
        let agents = Mutex::new(agents.collect());
        let gateways: Vec<Gateway> = (0..2)
            .map(|_| start_gateway_with(gateway_settings_of(&broker.url(), GATEWAY)))
            .collect();
        let scene = Scene {
            broker,
            agents,
            files,
            gateways,
            upstream,
            counters,
            begun,
        };
        scene.wait_for_all_agents();
        scene
    }

    fn wait_for_all_agents(&self) {
        for gateway in &self.gateways {
            wait_until("every agent is known", || {
                let known = get(gateway.address(), "/agents");
                known.status == 200 && known.json()["agents"].as_array().unwrap().len() == AGENTS
            });
        }
    }

    fn kill_agent(&self, number: usize) {
        let mut agents = self.agents.lock().unwrap();
        agents[number].kill();
        agents[number] = start_agent(&self.broker, &self.files[number]);
    }

    /// Calls until `more` says no; each caller asks what nobody else asks.
    fn call(&self, seen: &Seen, more: &(dyn Fn(usize) -> bool + Sync)) {
        std::thread::scope(|scope| {
            for caller in 0..CALLERS {
                let address = self.gateways[caller % 2].address();
                scope.spawn(move || {
                    let mut client = Connection::open(address);
                    for number in (0..).take_while(|number| more(*number)) {
                        let sent = self.begun.elapsed().as_micros();
                        let body = format!("{caller}-{number} {sent}");
                        let head = "POST /services/web/mirror HTTP/1.1\r\nHost: test\r\n";
                        let length = body.len();
                        client.send(
                            format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes(),
                        );
                        self.check(&client.read_answer(), &body, seen);
                    }
                });
            }
        });
    }

    fn check(&self, answer: &Answer, body: &str, seen: &Seen) {
        if answer.status == 200 {
            assert_eq!(answer.text(), body, "somebody else's answer");
            seen.answered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        seen.failed.fetch_add(1, Ordering::Relaxed);
        let problem = answer.json();
        let said = (
            answer.status,
            problem["hop"].as_str().unwrap(),
            problem["outcome"].as_str().unwrap(),
        );
        let honest = [
            (503, "agent", "not-executed"),
            (503, "broker", "not-executed"),
            // Too much is under way to a broker that takes nothing.
            (503, "gateway", "not-executed"),
            (504, "agent", "unknown"),
        ];
        assert!(honest.contains(&said), "{problem}");
        if said.2 == "not-executed" {
            let executed = self.counters.executed.lock().unwrap();
            assert!(!executed.contains_key(body), "{problem}, but it was");
            // Nobody asks again at once.
            drop(executed);
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn stop(self) {
        for gateway in self.gateways {
            gateway.stop().unwrap();
        }
        drop(self.agents);
        self.upstream.stop(Instant::now() + PATIENCE).unwrap();
        let executed = self.counters.executed.lock().unwrap();
        let twice = executed.iter().filter(|(_, times)| **times > 1);
        assert_eq!(twice.collect::<Vec<_>>(), [], "executed more than once");
        let latest = *self.counters.latest.lock().unwrap();
        assert!(latest < TIMEOUT + TOLERANCE, "executed after {latest:?}");
    }
}

fn counting_upstream(counters: Arc<Counters>, begun: Instant) -> Box<dyn Front> {
    let handler = move |request: Request, _: &Client<'_>| {
        let body = String::from_utf8(request.body().as_bytes().to_vec()).unwrap();
        let (_, sent) = body.split_once(' ').unwrap();
        let sent = Duration::from_micros(sent.parse().unwrap());
        let age = begun.elapsed() - sent;
        let mut latest = counters.latest.lock().unwrap();
        *latest = age.max(*latest);
        drop(latest);
        let agent: usize = request.uri().path()[1..2].parse().unwrap();
        counters.by_agent[agent].fetch_add(1, Ordering::Relaxed);
        *counters.executed.lock().unwrap().entry(body).or_default() += 1;
        Response::new(request.into_body())
    };
    let listener = TcpListener::bind(local(0)).unwrap();
    Box::new(guarded::start(listener, HttpLimits::default(), handler).unwrap())
}

// The service's path tells the upstream which agent called.
fn agent_file(number: usize, upstream: SocketAddr) -> TempFile {
    TempFile::new(&format!(
        "id = \"agent-{number}\"\nupstream = \"http://{upstream}/{number}\"\n[[service]]\nname = \"web\"\nmode = \"http\"\n"
    ))
}

fn start_agent(broker: &TestBroker, file: &TempFile) -> Process {
    let arguments = ["--broker", &broker.url(), "--config", file.path()];
    Process::own("agent", &arguments)
}

fn ten_thousand_requests_while_agents_are_killed(kind: Kind) {
    let scene = Scene::start(kind);
    let seen = Seen::default();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut kills = 0;
            while !done.load(Ordering::SeqCst) {
                // Some hundred requests for each kill.
                let executed = || scene.counters.executed.lock().unwrap().len();
                let before = executed();
                wait_until("work goes on", || {
                    executed() > before + 200 || done.load(Ordering::SeqCst)
                });
                scene.kill_agent(kills % AGENTS);
                kills += 1;
                scene.wait_for_all_agents();
            }
            kills
        });
        scene.call(&seen, &|number| number < 10_000 / CALLERS);
        done.store(true, Ordering::SeqCst);
        assert!(killer.join().unwrap() > 0);
    });
    let (answered, failed) = (seen.answered.into_inner(), seen.failed.into_inner());
    println!("{answered} answered, {failed} failed");
    assert_eq!(answered + failed, 10_000);
    assert!(answered > 9_000, "{answered} answered, {failed} failed");
    let shares = scene.counters.by_agent.each_ref();
    let shares = shares.map(|count| count.load(Ordering::Relaxed));
    assert!(shares.iter().all(|share| *share > 100), "{shares:?}");
    scene.stop();
}

fn nothing_is_executed_late_or_twice(kind: Kind) {
    let scene = Scene::start(kind);
    let seen = Seen::default();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let callers = scope.spawn(|| scene.call(&seen, &|_| !done.load(Ordering::SeqCst)));
        for number in 0..3 {
            scene.broker.stop();
            scene.kill_agent(number);
            // How long the broker is away, longer than anybody waits: what was kept for its return
            // would be late.
            std::thread::sleep(TIMEOUT + TOLERANCE);
            scene.broker.start_again();
            scene.wait_for_all_agents();
            scene.kill_agent(number);
            scene.wait_for_all_agents();
        }
        done.store(true, Ordering::SeqCst);
        callers.join().unwrap();
    });
    assert!(seen.answered.into_inner() > 0);
    assert!(seen.failed.into_inner() > 0, "nothing was disturbed");
    scene.stop();
}
