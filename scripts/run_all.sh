#!/usr/bin/env bash
# Builds everything and runs the whole demo: broker, api_2, agent, api_1. Ctrl-C stops it all.
#
#   scripts/run_all.sh           run until Ctrl-C, or until a part dies
#   scripts/run_all.sh --check   send one ping, compare the answer, stop, exit 0 or 1
#
#   BROKER=auto|running|mosquitto|docker|embedded
#       auto: a broker that answers on the port already, else mosquitto where it is installed,
#       else a Docker engine that answers, else the embedded one
#   API_1_PORT (5000), API_2_PORT (5001), BROKER_PORT (1883)
set -euo pipefail
cd "$(dirname "$0")/.."

api_1_port=${API_1_PORT:-5000} api_2_port=${API_2_PORT:-5001} broker_port=${BROKER_PORT:-1883}
broker=${BROKER:-auto}
bin=${CARGO_TARGET_DIR:-target}/release
logs=$(mktemp -d)
names=() pids=()

say() { printf '\n== %s\n' "$*"; }
fail() { printf '\nrun_all.sh: %s\n' "$*" >&2; exit 1; }

# Stops what this script started, in the order of a reply's way back, and nothing else.
stop_all() {
  trap - EXIT INT TERM
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    # The whole group: a script does not pass a signal on to what it runs.
    kill -- "-${pids[i]}" 2>/dev/null || continue
    wait "${pids[i]}" 2>/dev/null || true
  done
  [ -z "${tail_pid:-}" ] || kill "$tail_pid" 2>/dev/null || true
  rm -rf "$logs"
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_port() { # port, what for, variable
  ! answers "$1" || fail "port $1, for $2, is taken by another program; choose one with $3=PORT"
}

start() { # name, command...
  local name=$1
  shift
  # In a process group of its own: Ctrl-C must reach only this script, which then stops the parts
  # in order.
  set -m
  "$@" >"$logs/$name" 2>&1 &
  set +m
  pids+=($!) names+=("$name")
}

alive() { # fails with the log of a part that has died
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    sed "s/^/${names[i]}: /" "$logs/${names[i]}" >&2
    fail "${names[i]} has ended"
  done
}

wait_until() { # seconds, what for, command...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    alive
    ((SECONDS < end)) || fail "$what: not within the time; the logs: $(cat "$logs"/*)"
    sleep 0.05
  done
}

get() { # path: prints the status line and the body of GET on api_1
  exec 3<>"/dev/tcp/127.0.0.1/$api_1_port" || return 1
  printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$1" >&3
  tr -d '\r' <&3
  exec 3<&-
}
ready() { [[ $(get /readyz 2>/dev/null) == "HTTP/1.1 200 "* ]]; }

choose_broker() {
  case $broker in
  auto)
    if answers "$broker_port"; then broker=running
    elif command -v mosquitto >/dev/null; then broker=mosquitto
    elif command -v docker >/dev/null && timeout 5 docker info >/dev/null 2>&1; then broker=docker
    else broker=embedded; fi ;;
  running) answers "$broker_port" || fail "no broker answers on 127.0.0.1:$broker_port" ;;
  mosquitto) command -v mosquitto >/dev/null || fail "BROKER=mosquitto, but it is not installed" ;;
  docker | embedded) ;;
  *) fail "BROKER=$broker: allowed are auto, running, mosquitto, docker and embedded" ;;
  esac
  [ "$broker" = running ] || free_port "$broker_port" "the broker" BROKER_PORT
}

start_broker() {
  case $broker in
  running) say "using the broker that answers on 127.0.0.1:$broker_port" ;;
  mosquitto)
    say "starting mosquitto with config/mosquitto.conf"
    sed "s/^listener 1883/listener $broker_port/" config/mosquitto.conf >"$logs/mosquitto.conf"
    start mosquitto mosquitto -c "$logs/mosquitto.conf" ;;
  docker) say "starting mosquitto in Docker"; start mosquitto scripts/exec_container.sh ;;
  embedded) say "starting the embedded broker"
    start broker "$bin/broker" --listen "127.0.0.1:$broker_port" ;;
  esac
  wait_until 60 "the broker" answers "$broker_port"
}

choose_broker
free_port "$api_1_port" api_1 API_1_PORT
free_port "$api_2_port" api_2 API_2_PORT

say "building (release); the first time takes some minutes, later only seconds"
command -v cargo >/dev/null || fail "cargo is not installed; see https://rustup.rs"
build=(--release --bin api_1 --bin api_2 --bin agent --bin client_a --bin client_b)
# The embedded broker is most of the build: it is left out where another one serves.
if [ "$broker" = embedded ]; then build+=(--bin broker); else build+=(--no-default-features --features tls,page,tiny-front); fi
cargo build --locked "${build[@]}"

start_broker
say "starting api_2, agent and api_1"
start api_2 "$bin/api_2" --listen "127.0.0.1:$api_2_port"
start agent "$bin/agent" --config config/agent.toml \
  --broker "mqtt://127.0.0.1:$broker_port" --upstream "http://127.0.0.1:$api_2_port"
start api_1 "$bin/api_1" --config config/api_1.toml \
  --broker "mqtt://127.0.0.1:$broker_port" --listen "127.0.0.1:$api_1_port"
wait_until 20 "api_1" ready
wait_until 20 "the agent" grep -q "ready as agent" "$logs/agent"

if [ "${1:-}" = --check ]; then
  want='{"response": {"message": "pong", "received": {"ask": "ping"}}}'
  got=$(get /ping | tail -n 1)
  alive
  [ "$got" = "$want" ] || fail "GET /ping answered $got instead of $want"
  say "GET /ping answered $got"
  exit 0
fi

cat <<T

Everything is up. In another terminal, try:

  curl http://localhost:$api_1_port/ping            through the broker and back
  curl http://localhost:$api_1_port/ping?ask=hello  another word: api_2 says 400
  curl http://localhost:$api_2_port/ping?ask=ping   api_2 directly
  curl http://localhost:$api_1_port/readyz          is the gateway connected?
  $bin/client_a --broker mqtt://127.0.0.1:$broker_port --topic 'api/#'
                                            see the messages go by

Ctrl-C stops everything. The logs:

T
tail -n +1 -q -F "$logs"/{api_2,agent,api_1} 2>/dev/null &
tail_pid=$!
while alive; do sleep 0.2; done
