#!/usr/bin/env bash
# Gateways and agents on a cluster of three brokers, nodes of rmqtt with Raft: as one broker, with nodes killed
# under load, with nodes cut off from each other (tests/integration/clusters.rs). Says what was seen.
#
#   scripts/try_cluster.sh [NAME]     all of it, or the tests whose name contains NAME
#
# On Debian: apt-get install protobuf-compiler gcc. The first build takes some minutes: the node brings 300 crates,
# which nothing else here needs.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v protoc >/dev/null || { echo "try_cluster.sh: protoc is not installed (protobuf-compiler)" >&2; exit 1; }
cargo build --locked --manifest-path tests/cluster/Cargo.toml --target-dir target/cluster
export RECADO_CLUSTER_NODE=$PWD/target/cluster/debug/node
cargo test --locked --test integration -- "clusters::${1:-}" --nocapture --test-threads 1
