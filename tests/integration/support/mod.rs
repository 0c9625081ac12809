//! Brokers, services, an HTTP client and an MQTT 3.1.1 client for the tests.

pub mod bridge;
pub mod cluster;
pub mod http;
pub mod mqtt311;
pub mod process;
pub mod proxy;
pub mod reorder;
pub mod upstream;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use recado::agent::Agent;
use recado::agent::{AgentSettings, ServiceMode};
use recado::gateway::Gateway;
use recado::gateway::GatewaySettings;
use recado::tools::backend::Backend;
use recado::tools::broker::Broker;
use recado::{cli, config};

use process::Process;

/// How long a test waits for what must happen. Long, because it is never reached unless
/// something is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition, never for a time.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// The brokers that every case runs against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The embedded one, in this process.
    Embedded,
    /// Mosquitto, where it is installed; in CI it must be.
    Mosquitto,
}

impl Kind {
    /// Whether this broker can be used here.
    pub fn is_here(self) -> bool {
        self == Kind::Embedded || process::is_installed("mosquitto")
    }
}

/// Makes a test for each broker out of a function that takes a [`Kind`].
#[macro_export]
macro_rules! on_each_broker {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            use $crate::support::Kind;

            #[test]
            fn embedded() {
                super::$name(Kind::Embedded);
            }

            #[test]
            fn mosquitto() {
                if Kind::Mosquitto.is_here() {
                    super::$name(Kind::Mosquitto);
                }
            }
        }
    )*};
}

/// A broker that can be stopped and started again on its port.
pub struct TestBroker {
    kind: Kind,
    port: u16,
    // Further lines of Mosquitto's configuration.
    settings: String,
    running: Mutex<Option<Running>>,
}

#[allow(dead_code)] // held for their Drop
enum Running {
    Embedded(Broker),
    Mosquitto(Process),
}

impl TestBroker {
    pub fn start(kind: Kind) -> TestBroker {
        TestBroker::start_with(kind, "")
    }

    /// Mosquitto with further settings; None where it is not installed.
    pub fn mosquitto_with(settings: &str) -> Option<TestBroker> {
        let kind = Kind::Mosquitto;
        kind.is_here()
            .then(|| TestBroker::start_with(kind, settings))
    }

    fn start_with(kind: Kind, settings: &str) -> TestBroker {
        match kind {
            Kind::Embedded => {
                let broker = Broker::start(local(0)).unwrap();
                TestBroker {
                    kind,
                    port: broker.address().port(),
                    settings: String::new(),
                    running: Mutex::new(Some(Running::Embedded(broker))),
                }
            }
            Kind::Mosquitto => {
                // It can't take a free port by itself, and one that was free may be gone.
                for _ in 0..10 {
                    let port = free_port();
                    if let Some(process) = process::mosquitto(port, settings) {
                        let running = Mutex::new(Some(Running::Mosquitto(process)));
                        return TestBroker {
                            kind,
                            port,
                            settings: settings.to_owned(),
                            running,
                        };
                    }
                }
                panic!("mosquitto does not start on any port");
            }
        }
    }

    /// A broker that is not there yet, on a port where it will be.
    pub fn absent(kind: Kind) -> TestBroker {
        TestBroker {
            kind,
            port: free_port(),
            settings: String::new(),
            running: Mutex::new(None),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub fn stop(&self) {
        drop(self.running.lock().unwrap().take());
    }

    pub fn start_again(&self) {
        let mut running = self.running.lock().unwrap();
        wait_until("the broker is back on its port", || {
            *running = match self.kind {
                Kind::Embedded => Broker::start(local(self.port)).ok().map(Running::Embedded),
                Kind::Mosquitto => {
                    process::mosquitto(self.port, &self.settings).map(Running::Mosquitto)
                }
            };
            running.is_some()
        });
    }
}

pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind(local(0)).unwrap();
    listener.local_addr().unwrap().port()
}

pub fn gateway_settings(broker: &str) -> GatewaySettings {
    let flags = cli::Api1 {
        broker: vec![broker.to_owned()],
        listen: Some("127.0.0.1:0".to_owned()),
        ..cli::Api1::default()
    };
    config::gateway(&flags).unwrap()
}

pub fn agent_settings(broker: &str, upstream: SocketAddr) -> AgentSettings {
    let flags = cli::Agent {
        broker: vec![broker.to_owned()],
        upstream: Some(format!("http://{upstream}")),
        // With an upstream of its own an agent answers the ping only when asked to.
        demo: true,
        ..cli::Agent::default()
    };
    unchecked(config::agent(&flags).unwrap())
}

// Upstreams of tests count their connections.
fn unchecked(settings: AgentSettings) -> AgentSettings {
    AgentSettings {
        upstream_check: None,
        ..settings
    }
}

/// Settings of an agent as a file would give them.
pub fn agent_settings_of(broker: &str, text: &str) -> AgentSettings {
    with_file(text, |path| {
        let flags = cli::Agent {
            broker: vec![broker.to_owned()],
            config: Some(path),
            ..cli::Agent::default()
        };
        unchecked(config::agent(&flags).unwrap())
    })
}

/// Settings of a gateway as a file would give them.
pub fn gateway_settings_of(broker: &str, text: &str) -> GatewaySettings {
    with_file(text, |path| {
        let flags = cli::Api1 {
            broker: vec![broker.to_owned()],
            listen: Some("127.0.0.1:0".to_owned()),
            config: Some(path),
            ..cli::Api1::default()
        };
        config::gateway(&flags).unwrap()
    })
}

fn with_file<T>(text: &str, load: impl FnOnce(PathBuf) -> T) -> T {
    let file = TempFile::new(text);
    load(file.path.clone())
}

/// A file of its own for a test, as long as this lives.
pub struct TempFile {
    path: PathBuf,
}

impl TempFile {
    pub fn new(text: &str) -> TempFile {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let name = format!("recado-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        TempFile { path }
    }

    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Numbers that look random, the same ones for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        // Nothing comes of zero.
        Random(seed | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Lets the ping service post its requests somewhere else.
pub fn set_path(settings: &mut AgentSettings, path: &str) {
    match &mut settings.services[0].mode {
        ServiceMode::Json { path: set, .. } => *set = path.to_owned(),
        ServiceMode::Http { .. } => panic!("the first service is ping"),
    }
}

pub fn start_gateway(broker: &TestBroker) -> Gateway {
    start_gateway_with(gateway_settings(&broker.url()))
}

/// A gateway that is ready.
pub fn start_gateway_with(settings: GatewaySettings) -> Gateway {
    let gateway = Gateway::start(settings).unwrap();
    wait_until_ready(&gateway);
    gateway
}

pub fn wait_until_ready(gateway: &Gateway) {
    wait_until("the gateway is ready", || {
        http::get(gateway.address(), "/readyz").status == 200
    });
}

/// An agent that is ready.
pub fn start_agent(broker: &TestBroker, upstream: SocketAddr) -> Agent {
    start_agent_with(agent_settings(&broker.url(), upstream))
}

pub fn start_agent_with(settings: AgentSettings) -> Agent {
    let agent = Agent::start(settings).unwrap();
    wait_until("the agent is ready", || agent.ready().is_ok());
    agent
}

pub fn start_backend() -> Backend {
    Backend::start(local(0)).unwrap()
}

/// Every part of the chain behind a broker, ready.
pub struct Chain {
    pub gateway: Gateway,
    pub agent: Agent,
    pub backend: Backend,
}

impl Chain {
    pub fn start(broker: &TestBroker) -> Chain {
        let backend = start_backend();
        let agent = start_agent(broker, backend.address());
        let gateway = start_gateway(broker);
        Chain {
            gateway,
            agent,
            backend,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    /// Stops every part, each of which must end in order.
    pub fn stop(self) {
        self.gateway.stop().unwrap();
        self.agent.stop().unwrap();
        self.backend.stop().unwrap();
    }
}
