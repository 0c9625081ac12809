//! One node of a cluster of rmqtt brokers, which agree by Raft on who is where.
//!
//! ```text
//! node ID MQTT GRPC RAFT NODES PEERS
//! ```
//!
//! ID is 1 to N; MQTT, GRPC and RAFT are the addresses that it listens on. NODES and PEERS, ID@HOST:PORT with
//! commas, are where it reaches GRPC and RAFT of everybody, itself included. Prints `ready` once it takes clients.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use rmqtt::Result;
use rmqtt::context::ServerContext;
use rmqtt::net::{Builder, Listener};
use rmqtt::node::Node;
use rmqtt::server::MqttServer;
use simplelog::{ConfigBuilder, LevelFilter, SimpleLogger};

fn main() -> Result<()> {
    let log = ConfigBuilder::new().set_time_format_rfc3339().build();
    SimpleLogger::init(LevelFilter::Info, log)?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [id, mqtt, grpc, raft, nodes, peers] = &words[..] else {
        eprintln!("usage: node ID MQTT GRPC RAFT NODES PEERS");
        std::process::exit(2);
    };
    // rmqtt is asynchronous; this thread waits for each step.
    let runtime = tokio::runtime::Runtime::new()?;
    let _inside = runtime.enter();
    let builder = ServerContext::new()
        .node(Node::new(id.parse()?, 80.0, 90.0, Duration::from_secs(2)))
        // It would refuse connections while the machine is busy, as it is under test.
        .busy_check_enable(false)
        .plugins_config_map_add(
            "rmqtt-retainer",
            // Its default is to forget a retained message after five minutes.
            "storage.type = \"ram\"\nretained_message_ttl = \"0s\"",
        )
        .plugins_config_map_add("rmqtt-shared-subscription", "strategy = \"round_robin\"")
        .plugins_config_map_add("rmqtt-cluster-raft", cluster(raft, nodes, peers));
    let context = runtime.block_on(builder.build());
    context
        .node
        .start_grpc_server(context.clone(), grpc.parse()?, true, false);
    runtime.block_on(rmqtt_retainer::register(&context, true, false))?;
    runtime.block_on(rmqtt_shared_subscription::register(&context, true, false))?;
    runtime.block_on(rmqtt_cluster_raft::register(&context, true, false))?;
    let listener = listener(mqtt.parse()?)?;
    println!("ready");
    let server = MqttServer::new(context).listener(listener).build();
    runtime.block_on(server.run())
}

/// The settings that `config/` ships, with the addresses in front of them.
fn cluster(raft: &str, nodes: &str, peers: &str) -> String {
    let list = |text: &str| {
        let quoted: Vec<String> = text.split(',').map(|it| format!("{it:?}")).collect();
        quoted.join(", ")
    };
    format!(
        "laddr = {raft:?}\nnode_grpc_addrs = [{}]\nraft_peer_addrs = [{}]\n{}",
        list(nodes),
        list(peers),
        include_str!("../../../config/rmqtt-cluster-raft.toml")
    )
}

fn listener(address: SocketAddr) -> Result<Listener> {
    Builder::new()
        .name("tcp")
        .laddr(address)
        .nodelay(true)
        .reuseaddr(Some(true))
        .max_packet_size(16 * 1024 * 1024)
        .max_inflight(NonZeroU16::MAX)
        .max_mqueue_len(10_000)
        // Its default is to give every message that states none an expiry of five minutes.
        .message_expiry_interval(Duration::ZERO)
        .bind()?
        .tcp()
}
