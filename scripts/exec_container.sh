#!/usr/bin/env bash
# Runs Mosquitto in Docker, as the demo did, on 127.0.0.1:${BROKER_PORT:-1883}. Ctrl-C stops it.
set -euo pipefail
cd "$(dirname "$0")/.."

port=${BROKER_PORT:-1883}
command -v docker >/dev/null || { echo "exec_container.sh: docker is not installed" >&2; exit 1; }
docker info >/dev/null 2>&1 || { echo "exec_container.sh: no Docker engine answers" >&2; exit 1; }

# In the container Mosquitto must listen on every interface; only loopback is published.
conf=$(mktemp)
trap 'rm -f "$conf"' EXIT
sed 's/^listener 1883 .*/listener 1883/' config/mosquitto.conf >"$conf"
chmod 644 "$conf"
docker run --rm --name "recado-mosquitto-$port" --publish "127.0.0.1:$port:1883" \
  --volume "$conf:/mosquitto/config/mosquitto.conf:ro" eclipse-mosquitto:2
