//! How often the gateway and the agent ask for memory for one ping. One of the two is in this process, where
//! everything is counted; all others are processes of their own. A number here may fall, and is lowered then.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::alloc::System;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use recado::agent::Agent;
use recado::gateway::Gateway;
use recado::{cli, config};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// 22 of them are rumqttc's, which reads each text of a packet into a string, and copies all of it.
const GATEWAY: usize = 56;
/// 24 are rumqttc's, and about 30 ureq's.
const AGENT: usize = 89;

/// What one test does would count in the other.
static ALONE: Mutex<()> = Mutex::new(());

const PINGS: usize = 1000;

/// One of this project's programs; killed when dropped.
struct Process {
    child: Child,
    // Where it listens.
    address: String,
}

impl Process {
    fn start(path: &str, arguments: &[&str]) -> Process {
        let mut command = Command::new(path);
        command.args(arguments).env("RECADO_LOG", "info");
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on ") && !line.contains("ready as agent") {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "it has ended");
        }
        // Without a reader it would be stuck.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        let address = line.trim().rsplit("://").next().unwrap().to_owned();
        Process { child, address }
    }

    fn broker() -> Process {
        Process::start(env!("CARGO_BIN_EXE_broker"), &["--listen", "127.0.0.1:0"])
    }

    fn upstream() -> Process {
        Process::start(env!("CARGO_BIN_EXE_api_2"), &["--listen", "127.0.0.1:0"])
    }

    fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    fn http(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// Asks without any allocation. Returns whether it was answered with 200.
fn ping(client: &mut TcpStream) -> bool {
    let request = b"GET /ping HTTP/1.1\r\nHost: 127.0.0.1:15000\r\n\r\n";
    client.write_all(request).unwrap();
    let (mut answer, mut length) = ([0; 2048], 0);
    // Every body here ends so, and no head does.
    while !answer[..length].ends_with(b"}") {
        let count = client.read(&mut answer[length..]).unwrap();
        assert!(count > 0, "the connection was closed");
        length += count;
    }
    answer.starts_with(b"HTTP/1.1 200 ")
}

fn per_ping(at: SocketAddr) -> usize {
    let mut client = TcpStream::connect(at).unwrap();
    let patience = Some(Duration::from_secs(30));
    client.set_read_timeout(patience).unwrap();
    let mut good = 0;
    // Until both are ready, and tables have grown.
    for _ in 0..2000 {
        if ping(&mut client) {
            good += 1;
        } else {
            std::thread::park_timeout(Duration::from_millis(10));
        }
        if good == 200 {
            break;
        }
    }
    assert_eq!(good, 200);
    let region = Region::new(ALLOCATOR);
    for _ in 0..PINGS {
        assert!(ping(&mut client));
    }
    let seen = region.change();
    (seen.allocations + seen.reallocations) / PINGS
}

#[test]
fn the_gateway() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (broker, upstream) = (Process::broker(), Process::upstream());
    let (url, http) = (broker.url(), upstream.http());
    let flags = ["--broker", &url, "--upstream", &http, "--demo"];
    let _agent = Process::start(env!("CARGO_BIN_EXE_agent"), &flags);
    let flags = cli::Api1 {
        broker: vec![url],
        listen: Some("127.0.0.1:0".into()),
        ..cli::Api1::default()
    };
    let gateway = Gateway::start(config::gateway(&flags).unwrap()).unwrap();
    let count = per_ping(gateway.address());
    gateway.stop().unwrap();
    assert!(count <= GATEWAY, "{count} allocations for a ping");
}

#[test]
fn the_agent() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (broker, upstream) = (Process::broker(), Process::upstream());
    let url = broker.url();
    let flags = ["--broker", &url, "--listen", "127.0.0.1:0"];
    let gateway = Process::start(env!("CARGO_BIN_EXE_api_1"), &flags);
    let flags = cli::Agent {
        broker: vec![url],
        upstream: Some(upstream.http()),
        demo: true,
        ..cli::Agent::default()
    };
    let agent = Agent::start(config::agent(&flags).unwrap()).unwrap();
    let count = per_ping(gateway.address.parse().unwrap());
    agent.stop().unwrap();
    assert!(count <= AGENT, "{count} allocations for a ping");
}
