use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::http_mode::{start_upstream, stop};
use crate::support::http::{Connection, get};
use crate::support::process::{Process, is_installed};
use crate::support::{Kind, TempFile, TestBroker, free_port, local, wait_until};

/// Two of each: brokers, gateways behind nginx, agents of one service.
struct Site {
    brokers: [TestBroker; 2],
    gateways: Mutex<[Process; 2]>,
    gateway_ports: [u16; 2],
    agents: Mutex<[Process; 2]>,
    upstream: SocketAddr,
    entry: SocketAddr,
    _nginx: Process,
}

fn gateway(brokers: &[TestBroker; 2], port: u16) -> Process {
    let urls = format!("{},{}", brokers[0].url(), brokers[1].url());
    let listen = format!("127.0.0.1:{port}");
    let flags = [
        "--broker",
        &urls,
        "--broker-mode",
        "all",
        "--listen",
        &listen,
    ];
    let gateway = Process::own("api_1", &flags);
    wait_until("the gateway is ready", || {
        // It does not listen yet at first.
        Connection::try_open(local(port)).is_some() && get(local(port), "/readyz").status == 200
    });
    gateway
}

fn agent(brokers: &[TestBroker; 2], id: &str, upstream: SocketAddr) -> Process {
    let file = TempFile::new(&format!(
        "broker = [\"{}\", \"{}\"]\nid = \"{id}\"\nupstream = \"http://{upstream}\"\n\
         [brokers]\nmode = \"all\"\n[[service]]\nname = \"web\"\nmode = \"http\"\n",
        brokers[0].url(),
        brokers[1].url(),
    ));
    let agent = Process::own("agent", &["--config", file.path()]);
    // At both brokers.
    wait_until("the agent is ready", || {
        agent.output().matches("ready as agent").count() == 2
    });
    agent
}

impl Site {
    fn start(upstream: SocketAddr) -> Site {
        let brokers = [(); 2].map(|()| TestBroker::start(Kind::Mosquitto));
        let gateway_ports = [(); 2].map(|()| free_port());
        let agents = ["a", "b"].map(|id| agent(&brokers, id, upstream));
        let gateways = gateway_ports.map(|port| gateway(&brokers, port));
        let (port, directory) = (free_port(), std::env::temp_dir());
        let own = format!("recado-rolling-{}", std::process::id());
        let pid = directory.join(own);
        let file = TempFile::new(&format!(
            "daemon off; master_process off; pid {}; error_log stderr warn;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off;\n\
             upstream gateways {{ server 127.0.0.1:{} max_fails=0; server 127.0.0.1:{} max_fails=0; keepalive 16; }}\n\
             server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://gateways;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_next_upstream error timeout; }} }} }}\n",
            pid.display(),
            gateway_ports[0],
            gateway_ports[1]
        ));
        let nginx = Process::spawn(Command::new("nginx").args(["-c", file.path()]));
        wait_until("nginx listens", || {
            Connection::try_open(local(port)).is_some()
        });
        Site {
            brokers,
            gateways: Mutex::new(gateways),
            gateway_ports,
            agents: Mutex::new(agents),
            upstream,
            entry: local(port),
            _nginx: nginx,
        }
    }

    // One after the other; `more` waits until further requests were answered.
    fn restart_each(&self, more: impl Fn()) {
        for broker in &self.brokers {
            broker.stop();
            more();
            broker.start_again();
            self.wait_until_whole();
            more();
        }
        for (number, port) in self.gateway_ports.into_iter().enumerate() {
            self.gateways.lock().unwrap()[number].signal("TERM");
            wait_until("it has stopped", || {
                self.gateways.lock().unwrap()[number].has_ended()
            });
            more();
            self.gateways.lock().unwrap()[number] = gateway(&self.brokers, port);
            self.wait_until_whole();
            more();
        }
        for (number, id) in ["a", "b"].into_iter().enumerate() {
            self.agents.lock().unwrap()[number].signal("TERM");
            wait_until("it has stopped", || {
                self.agents.lock().unwrap()[number].has_ended()
            });
            more();
            self.agents.lock().unwrap()[number] = agent(&self.brokers, id, self.upstream);
            self.wait_until_whole();
            more();
        }
    }

    // Each gateway is connected to both brokers, and each broker knows both agents.
    fn wait_until_whole(&self) {
        wait_until("everybody is back", || {
            self.gateway_ports.iter().all(|port| {
                let sheet = get(local(*port), "/metrics");
                let connected = sheet.text().lines().filter(|line| {
                    line.starts_with("recado_broker_connected") && line.ends_with(" 1.0")
                });
                connected.count() == 2
            }) && self.agents.lock().unwrap().iter().all(|agent| {
                let output = agent.output();
                let lost = output.matches("broker lost").count();
                output.matches("ready as agent").count() >= 2 + lost
            })
        });
    }
}

/// Whoever asks again where a 503 says that nothing was executed does not notice that everything is
/// restarted.
#[test]
fn everything_is_restarted_one_after_the_other() {
    if !is_installed("nginx") || !Kind::Mosquitto.is_here() {
        return;
    }
    let upstream = start_upstream();
    let site = Site::start(upstream.address());
    let (stop_asking, right) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    let retried: &Mutex<HashMap<u16, usize>> = &Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            let entry = site.entry;
            scope.spawn(move || {
                let mut client = Connection::open(entry);
                while !stop_asking.load(Ordering::Relaxed) {
                    let answer = client.get("/services/web/bytes");
                    match answer.status {
                        200 => drop(right.fetch_add(1, Ordering::Relaxed)),
                        503 => {
                            assert_eq!(answer.json()["outcome"], "not-executed");
                            *retried.lock().unwrap().entry(503).or_default() += 1;
                            std::thread::park_timeout(std::time::Duration::from_millis(20));
                        }
                        _ => panic!("{answer:?}"),
                    }
                }
            });
        }
        site.restart_each(|| {
            let seen = right.load(Ordering::Relaxed);
            wait_until("more are right", || {
                right.load(Ordering::Relaxed) > seen + 100
            });
        });
        stop_asking.store(true, Ordering::Relaxed);
    });
    let retried = retried.lock().unwrap();
    println!("{right:?} answered, asked again after {retried:?}");
    assert!(retried.values().sum::<usize>() < right.load(Ordering::Relaxed) / 10);
    stop(upstream);
}
