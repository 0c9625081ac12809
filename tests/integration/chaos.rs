use std::net::{SocketAddr, TcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use recado::front::HttpLimits;
use recado::front::{Client, Front, guarded};
use recado::http::{Request, Response};

use crate::support::http::{Answer, Connection, get};
use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::{Kind, PATIENCE, Random, TempFile, TestBroker, local, wait_until};

on_each_broker!(every_request_gets_one_answer);

const AGENTS: usize = 2;
const CALLERS: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(1);
/// How much later than that an answer may be, on a machine that runs all tests at once.
const SLACK: Duration = Duration::from_secs(2);
/// How long everything may take to be ready again once nothing disturbs it.
const RECOVERY: Duration = Duration::from_secs(2);

const GATEWAY: &str = "[[route]]\npath = \"/services/{name}/{*path}\"\n\
     request_topic = \"recado/services/{name}/request\"\nmode = \"http\"\ntimeout_ms = 1000\n";

/// How long the disturbance lasts: `RECADO_CHAOS_SECONDS`, by default a short while.
fn duration() -> Duration {
    let seconds = std::env::var("RECADO_CHAOS_SECONDS").ok();
    Duration::from_secs(seconds.map_or(8, |seconds| seconds.parse().unwrap()))
}

/// Where the random order begins: `RECADO_CHAOS_SEED`, by default the clock.
fn seed() -> u64 {
    let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = std::env::var("RECADO_CHAOS_SEED").ok();
    seed.map_or_else(clock, |seed| seed.parse().unwrap())
}

struct Scene {
    broker: TestBroker,
    // Between gateway and broker, and between agents and broker.
    proxies: [Proxy; 2],
    gateway: Process,
    address: SocketAddr,
    agents: Mutex<Vec<Process>>,
    files: Vec<TempFile>,
    upstream: Mutex<Option<Box<dyn Front>>>,
    upstream_address: SocketAddr,
}

#[derive(Default)]
struct Seen {
    answered: AtomicUsize,
    failed: AtomicUsize,
}

fn start_upstream(address: SocketAddr) -> Box<dyn Front> {
    let mirror = |request: Request, _: &Client<'_>| Response::new(request.into_body());
    let mut listener = None;
    wait_until("the upstream's port is free", || {
        listener = TcpListener::bind(address).ok();
        listener.is_some()
    });
    Box::new(guarded::start(listener.unwrap(), HttpLimits::default(), mirror).unwrap())
}

impl Scene {
    fn start(kind: Kind) -> Scene {
        let broker = TestBroker::start(kind);
        let proxies = [Proxy::start(broker.port()), Proxy::start(broker.port())];
        let upstream = start_upstream(local(0));
        let upstream_address = upstream.address();
        let mut files = vec![TempFile::new(GATEWAY)];
        files.extend((0..AGENTS).map(|number| {
            TempFile::new(&format!(
                "id = \"agent-{number}\"\nupstream = \"http://{upstream_address}\"\n\
                 [[service]]\nname = \"web\"\nmode = \"http\"\n"
            ))
        }));
        let arguments = ["--listen", "127.0.0.1:0", "--broker"];
        let (url, file) = (proxies[0].url(), files[0].path());
        let gateway = Process::own(
            "api_1",
            &[&arguments[..], &[&url, "--config", file]].concat(),
        );
        let address = gateway.address();
        let scene = Scene {
            broker,
            proxies,
            gateway,
            address,
            agents: Mutex::default(),
            files,
            upstream: Mutex::new(Some(upstream)),
            upstream_address,
        };
        let agents = (0..AGENTS)
            .map(|number| scene.start_agent(number))
            .collect();
        *scene.agents.lock().unwrap() = agents;
        scene.wait_until_whole();
        scene
    }

    fn start_agent(&self, number: usize) -> Process {
        let (url, file) = (self.proxies[1].url(), self.files[number + 1].path());
        Process::own("agent", &["--broker", &url, "--config", file])
    }

    fn wait_until_whole(&self) {
        wait_until("everybody is there", || self.is_whole());
    }

    fn is_whole(&self) -> bool {
        let known = get(self.address, "/agents");
        known.status == 200
            && known.json()["agents"].as_array().unwrap().len() == AGENTS
            && get(self.address, "/services/web/x").status == 200
    }

    /// Does one bad thing, and undoes it after a while; returns its name.
    fn disturb(&self, random: &mut Random) -> &'static str {
        let lasts = Duration::from_millis(50 + random.below(600) as u64);
        let proxy = &self.proxies[random.below(2)];
        let nothing = || {};
        let (name, undo): (_, Box<dyn FnOnce() + '_>) = match random.below(7) {
            0 => {
                self.broker.stop();
                (
                    "the broker was away",
                    Box::new(|| self.broker.start_again()),
                )
            }
            1 => {
                let number = random.below(AGENTS);
                let mut agents = self.agents.lock().unwrap();
                agents[number].kill();
                agents[number] = self.start_agent(number);
                ("an agent was killed and started again", Box::new(nothing))
            }
            2 => {
                let upstream = self.upstream.lock().unwrap().take().unwrap();
                upstream.stop(Instant::now() + PATIENCE).unwrap();
                let start_again = || {
                    *self.upstream.lock().unwrap() = Some(start_upstream(self.upstream_address));
                };
                ("the upstream was away", Box::new(start_again))
            }
            3 => {
                proxy.stall(true);
                ("a connection was stalled", Box::new(|| proxy.stall(false)))
            }
            4 | 5 => {
                proxy.cut();
                ("a connection was cut", Box::new(nothing))
            }
            _ => {
                proxy.corrupt();
                ("a connection was corrupted", Box::new(nothing))
            }
        };
        // How long the fault lasts: nothing is waited for here.
        std::thread::sleep(lasts);
        undo();
        name
    }

    fn call(&self, caller: usize, seen: &Seen, done: &AtomicBool) {
        let mut client = Connection::open(self.address);
        let mut number = 0;
        while !done.load(Ordering::SeqCst) {
            number += 1;
            let body = format!("{caller}-{number} {}", "x".repeat(number % 300));
            let head = "POST /services/web/x HTTP/1.1\r\nHost: test\r\n";
            let length = body.len();
            let begun = Instant::now();
            client.send(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes());
            let answer = client.read_answer();
            let took = begun.elapsed();
            assert!(took < TIMEOUT + SLACK, "{took:?}: {answer:?}");
            match answer.status {
                200 => {
                    assert_eq!(answer.text(), body, "somebody else's answer");
                    seen.answered.fetch_add(1, Ordering::Relaxed);
                }
                _ => {
                    check_failure(&answer);
                    seen.failed.fetch_add(1, Ordering::Relaxed);
                    std::thread::park_timeout(Duration::from_millis(2));
                }
            }
        }
    }

    fn stop(self) {
        drop(self.proxies);
        drop(self.agents);
        let upstream = self.upstream.into_inner().unwrap().unwrap();
        upstream.stop(Instant::now() + PATIENCE).unwrap();
        let output = self.gateway.output();
        assert!(!output.contains("panicked"), "{output}");
    }
}

fn check_failure(answer: &Answer) {
    let problem = answer.json();
    let hop = problem["hop"].as_str().unwrap();
    let honest: &[&str] = match answer.status {
        502 => &["upstream"],
        503 => &["agent", "broker", "gateway"],
        504 => &["agent", "upstream"],
        _ => &[],
    };
    assert!(honest.contains(&hop), "{problem}");
}

fn every_request_gets_one_answer(kind: Kind) {
    let scene = Scene::start(kind);
    let before = scene.gateway.resources();
    let seed = seed();
    println!("RECADO_CHAOS_SEED={seed}");
    let mut random = Random::new(seed);
    let (seen, done) = (Seen::default(), AtomicBool::new(false));
    let mut faults = 0;
    let mut last = "";
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (scene, seen, done) = (&scene, &seen, &done);
                scope.spawn(move || scene.call(caller, seen, done))
            })
            .collect();
        let end = Instant::now() + duration();
        while Instant::now() < end && !callers.iter().any(|caller| caller.is_finished()) {
            last = scene.disturb(&mut random);
            faults += 1;
        }
        done.store(true, Ordering::SeqCst);
    });
    let peace = Instant::now();
    scene.wait_until_whole();
    let recovered = peace.elapsed();
    println!(
        "{faults} faults, {:?} answered, {:?} failed honestly, whole again after {recovered:?}",
        seen.answered, seen.failed
    );
    assert!(recovered < RECOVERY + SLACK, "{recovered:?} after {last}");
    assert!(seen.answered.load(Ordering::Relaxed) > 0);
    wait_until("the gateway has given everything back", || {
        let now = scene.gateway.resources();
        now.descriptors <= before.descriptors + 1 && now.threads <= before.threads + 1
    });
    scene.stop();
}
