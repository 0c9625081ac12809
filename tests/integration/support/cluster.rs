//! A cluster of three nodes of rmqtt with Raft, as processes: `tests/cluster` is the node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::process::Process;
use super::proxy::Proxy;
use super::{free_port, local};

const COUNT: usize = 3;

/// A node that was killed may need a minute to get back in.
const PATIENCE: Duration = Duration::from_secs(180);

/// Nodes are called 1 to 3, as they call themselves. Node 1 leads at first.
pub struct Cluster {
    program: PathBuf,
    ports: [Ports; COUNT],
    // What node sends to node goes through these; a node has none to itself.
    ways: Vec<Vec<Option<Proxy>>>,
    nodes: [Option<Process>; COUNT],
}

#[derive(Clone, Copy)]
struct Ports {
    mqtt: u16,
    messages: u16,
    raft: u16,
}

impl Cluster {
    /// None where the node was not built: `scripts/try_cluster.sh` does that, and names it here.
    pub fn start() -> Option<Cluster> {
        let Some(program) = std::env::var_os("RECADO_CLUSTER_NODE") else {
            eprintln!("left out: scripts/try_cluster.sh runs this");
            return None;
        };
        let ports = [(); COUNT].map(|()| Ports {
            mqtt: free_port(),
            messages: free_port(),
            raft: free_port(),
        });
        let way = |from, to: usize| (from != to).then(|| Proxy::start(ports[to].messages));
        let ways_of = |from| (0..COUNT).map(|to| way(from, to)).collect();
        let mut cluster = Cluster {
            program: program.into(),
            ways: (0..COUNT).map(ways_of).collect(),
            ports,
            nodes: [const { None }; COUNT],
        };
        // One behind the other: each joins the leader.
        for id in 1..=COUNT {
            cluster.start_node(id);
        }
        Some(cluster)
    }

    /// Starts a node that is not there, and returns how long it took until it takes clients.
    pub fn start_node(&mut self, id: usize) -> Duration {
        let begun = Instant::now();
        let mut node = Process::spawn(&mut self.command(id));
        while !node.output().contains("\nready") {
            assert!(begun.elapsed() < PATIENCE, "{}", node.output());
            // It gives up where the cluster does not take it yet.
            if node.has_ended() {
                node = Process::spawn(&mut self.command(id));
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.nodes[id - 1] = Some(node);
        begun.elapsed()
    }

    fn command(&self, id: usize) -> Command {
        let list = |address: &dyn Fn(usize) -> SocketAddr| {
            let all = (0..COUNT).map(|to| format!("{}@{}", to + 1, address(to)));
            all.collect::<Vec<_>>().join(",")
        };
        let messages = |to: usize| match &self.ways[id - 1][to] {
            Some(way) => way.address(),
            None => local(self.ports[to].messages),
        };
        let own = self.ports[id - 1];
        let mut command = Command::new(&self.program);
        command.arg(id.to_string());
        command.args([own.mqtt, own.messages, own.raft].map(|port| local(port).to_string()));
        command.arg(list(&messages));
        command.arg(list(&|to| local(self.ports[to].raft)));
        command
    }

    /// The brokers of a program: all nodes, in this order.
    pub fn urls(&self, ids: &[usize]) -> Vec<String> {
        let url = |id: &usize| format!("mqtt://{}", local(self.ports[id - 1].mqtt));
        ids.iter().map(url).collect()
    }

    pub fn kill(&mut self, id: usize) {
        self.nodes[id - 1].take().unwrap().kill();
    }

    /// Between this node and the others no message passes, though each still is in the cluster; or they pass again.
    pub fn cut_off(&self, id: usize, cut: bool) {
        let id = id - 1;
        let inward = self.ways.iter().filter_map(|from| from[id].as_ref());
        for way in self.ways[id].iter().flatten().chain(inward) {
            way.stall(cut);
        }
    }
}
