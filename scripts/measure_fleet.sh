#!/usr/bin/env bash
# Where the limit is: gateways × agents × brokers, all on this machine, as a table. Agents are simulated, a
# connection each (benches/fleet.rs); gateways and brokers are real, the brokers Mosquitto.
#
#   scripts/measure_fleet.sh [SECONDS]     how long each row is measured (4)
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-4}
PATH=$PATH:/usr/sbin
command -v mosquitto >/dev/null || { echo "measure_fleet.sh: mosquitto is not installed" >&2; exit 1; }

target=${CARGO_TARGET_DIR:-target}
cargo build --release --no-default-features --bins --bench fleet
fleet=$(find "$target/release/deps" -name 'fleet-*' -type f -executable -printf '%T@ %p\n' | sort -rn | head -n 1)
fleet=${fleet#* }

directory=$(mktemp -d)
pids=()
end() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  pids=()
}
trap 'end; rm -rf "$directory"' EXIT

base=$((20000 + RANDOM % 20000))
# Processor time of a process so far, in hundredths of a second.
ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
sum() { local all=0 pid; for pid in "$@"; do all=$((all + $(ticks "$pid"))); done; echo "$all"; }
wait_for() {
  for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
  echo "measure_fleet.sh: waited in vain: $*" >&2
  exit 1
}

measure() {
  local gateways=$1 agents=$2 brokers=$3 callers=$4
  local urls=() addresses=() broker_pids=() gateway_pids=() port
  for number in $(seq "$brokers"); do
    port=$((base++))
    printf 'listener %d 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n' "$port" >"$directory/$port.conf"
    mosquitto -c "$directory/$port.conf" 2>/dev/null &
    broker_pids+=($!)
    urls+=("mqtt://127.0.0.1:$port")
  done
  pids+=("${broker_pids[@]}")
  "$fleet" agents "$agents" 600 "${urls[@]}" >"$directory/agents" &
  local fleet_pid=$!
  pids+=("$fleet_pid")
  wait_for grep -q agents "$directory/agents"
  for number in $(seq "$gateways"); do
    port=$((base++))
    RECADO_LOG=error "$target/release/api_1" --broker "$(IFS=,; echo "${urls[*]}")" --broker-mode all \
      --listen "127.0.0.1:$port" 2>/dev/null &
    gateway_pids+=($!)
    addresses+=("127.0.0.1:$port")
  done
  pids+=("${gateway_pids[@]}")
  for address in "${addresses[@]}"; do
    wait_for sh -c "curl -fsS http://$address/metrics | grep -q 'recado_agents{state=\"ready\"} '"
    wait_for curl -fsS "http://$address/readyz"
  done
  "$fleet" load "$callers" 1 "$agents" "${addresses[@]}" >/dev/null
  local before after
  before="$(sum "${gateway_pids[@]}") $(sum "${broker_pids[@]}") $(sum "$fleet_pid")"
  local row
  row=$("$fleet" load "$callers" "$seconds" "$agents" "${addresses[@]}")
  after="$(sum "${gateway_pids[@]}") $(sum "${broker_pids[@]}") $(sum "$fleet_pid")"
  local rate
  rate=$(sed -E 's/.*: ([0-9]+) requests.*/\1/' <<<"$row")
  awk -v row="$row" -v rate="$rate" -v s="$seconds" -v g="$gateways" -v a="$agents" -v b="$brokers" -v c="$callers" \
    -v before="$before" -v after="$after" 'BEGIN {
      split(before, x, " "); split(after, y, " ")
      match(row, /p50 [0-9.]+/); p50 = substr(row, RSTART + 4, RLENGTH - 4)
      match(row, /p99 [0-9.]+/); p99 = substr(row, RSTART + 4, RLENGTH - 4)
      match(row, /[0-9]+ failed/); failed = substr(row, RSTART, RLENGTH - 7)
      for (i = 1; i <= 3; i++) spent[i] = (y[i] - x[i]) * 10000 / (rate * s + 1)
      printf "| %d | %d | %d | %d | %d | %s | %s | %d | %.0f | %.0f | %.0f |\n", g, a, b, c, rate, p50, p99, failed, spent[1], spent[2], spent[3]
    }'
  end
}

echo "| gateways | agents | brokers | callers | requests/s | p50 ms | p99 ms | failed | gateways, µs of processor per request | brokers | agents |"
echo "|---|---|---|---|---|---|---|---|---|---|---|"
for brokers in 1 2; do
  for gateways in 1 2 10; do
    for agents in 10 100 1000; do
      measure "$gateways" "$agents" "$brokers" 64
    done
  done
done
