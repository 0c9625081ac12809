#!/usr/bin/env bash
# How fast is it on this machine, and how does it scale?
#
#   scripts/bench.sh [SECONDS] [--csv DIR]
#
#   SECONDS    how long each of 31 measurements takes: 3 by default, 2 at least
#   --csv DIR  also writes the tables there as CSV files, for scripts/plot.py
#
#   RECADO_BIN (target/release)    where the programs are; they are built if they are missing
#   BROKER=auto|mosquitto|embedded auto: mosquitto where it is installed, else the embedded one
#   RECADO_LOG (info)              a line for each request, thrown away here; warn: none
#
# wrk asks api_1, and all goes through a broker and an agent to an upstream: nginx where it is
# installed, else api_2, which also sleeps and echoes. The settings are the defaults where nothing
# else is said. Prints Markdown tables:
#
#   the floor    what the hops alone take: two through the broker, two over HTTP (needs python3)
#   connections  1 to 1,000: GET /ping
#   payload      16 B to 1 MiB, there and back: POST /agents/demo/echo
#   agents       1 to 4 that share a service: GET /ping, and an upstream that takes 20 ms
#   waiters      1 to 2,000 requests at a time to an upstream that takes a second (needs python3)
#
# All programs run on this machine and share its processors, wrk too. All on 127.0.0.1, on free ports.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'bench.sh: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"; }

seconds=3 csv=''
while (($#)); do
  case $1 in
  -h | --help) usage; exit 0 ;;
  --csv) csv=${2:-}; [ -n "$csv" ] || fail "--csv: which directory?"; shift ;;
  *) [[ $1 =~ ^[1-9][0-9]{0,3}$ && $1 -ge 2 ]] || fail "unknown: $1; see --help"; seconds=$1 ;;
  esac
  shift
done
limit=20 # seconds that a start may take

PATH=$PATH:/usr/sbin:/usr/local/sbin # where mosquitto and nginx may be
installed() { command -v "$1" >/dev/null; }
installed curl || fail "curl is not installed"
installed wrk || fail "wrk is not installed: apt install wrk, dnf install wrk, brew install wrk, or see
https://github.com/wg/wrk"
broker=${BROKER:-auto}
[ "$broker" != auto ] || { if installed mosquitto; then broker=mosquitto; else broker=embedded; fi; }
case $broker in
mosquitto) installed mosquitto || fail "BROKER=mosquitto, but it is not installed" ;;
embedded) ;;
*) fail "BROKER=$broker: allowed are auto, mosquitto and embedded" ;;
esac

programs=(api_1 api_2 agent)
[ "$broker" = mosquitto ] || programs+=(broker)
bin=${RECADO_BIN:-${CARGO_TARGET_DIR:-target}/release}
for program in "${programs[@]}"; do
  [ -x "$bin/$program" ] && continue
  [ -z "${RECADO_BIN:-}" ] || fail "no program $bin/$program"
  cargo build --locked --release "${programs[@]/#/--bin=}"
  break
done
[ -z "$csv" ] || mkdir -p "$csv"

# --- processes -----------------------------------------------------------------------------------

ulimit -n "$(ulimit -Hn)" # a descriptor for each connection
work=$(mktemp -d)
declare -A pid=()
wrk_pid=''

stop() { # names...: waits for their end
  local name i
  for name; do kill "${pid[$name]}" 2>/dev/null || true; done
  for name; do
    for ((i = 0; i < 100; i++)); do kill -0 "${pid[$name]}" 2>/dev/null || break; sleep 0.1; done
    kill -9 "${pid[$name]}" 2>/dev/null || true
    unset "pid[$name]"
  done
}
stop_all() {
  trap - EXIT INT TERM
  [ -z "$wrk_pid" ] || kill "$wrk_pid" 2>/dev/null || true
  stop "${!pid[@]}"
  rm -rf "$work"
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

log=${RECADO_LOG:-info}
unset "${!RECADO_@}" # nothing of the user's own settings
export RECADO_LOG=$log no_proxy='*'

. scripts/ports.sh

start() { # name, command...
  local name=$1
  shift
  "$@" >/dev/null 2>&1 </dev/null &
  pid[$name]=$!
  disown
  commands+=$'\n'"$*"
}
commands=''

wait_until() { # what for, command...
  local end=$((SECONDS + limit)) what=$1
  shift
  until "$@"; do
    ((SECONDS < end)) || fail "$what: not within $limit s. What was started:$commands"
    sleep 0.05
  done
}

gets() { # path: is it answered with 200?
  [ "$(curl -q -s -m 5 -o /dev/null -w '%{http_code}' "$url$1" || true)" = 200 ]
}
agents_there() { # number
  [ "$(curl -q -s -m 5 "$url/agents" | grep -o '"id"' | wc -l)" = "$1" ]
}

start_chain() { # number of agents; settings are in the files gateway.toml and agent.toml
  local i names=(demo b c d)
  free_port
  url=http://127.0.0.1:$port
  start api_1 "$bin/api_1" --config "$work/gateway.toml" --broker "$mqtt" --listen "127.0.0.1:$port"
  for ((i = 0; i < $1; i++)); do
    start "${names[i]}" "$bin/agent" --demo --config "$work/agent.toml" --broker "$mqtt" --id "${names[i]}"
  done
  wait_until "api_1" gets /readyz
  wait_until "the agents" agents_there "$1"
  wait_until "an answer" gets /ping
}
stop_chain() {
  local name
  for name in api_1 demo b c d; do [ -z "${pid[$name]:-}" ] || stop "$name"; done
}

# --- measuring -----------------------------------------------------------------------------------

rss() { awk '/^VmRSS/ { print $2 }' "/proc/${pid[$1]}/status"; } # KiB
connected() { find "/proc/${pid[api_1]}/fd" -mindepth 1 2>/dev/null | wc -l; }
is_idle() { [ "$(connected)" -le "$idle" ]; }

table() { # file, title, what the rows are
  file=${csv:+$csv/$1.csv}
  [ -z "$file" ] || echo "$3,p50_us,p99_us,requests_per_s,failed,api_1_kib,agent_kib" >"$file"
  printf '\n### %s\n\n| %s | p50 µs | p99 µs | requests/s | failed | api_1 KiB | agent KiB |\n' "$2" "$3"
  printf '|--:|--:|--:|--:|--:|--:|--:|\n'
}

row() { # label, connections, path, options of wrk...
  local label=$1 connections=$2 path=$3 gateway agent cells
  shift 3
  idle=$(connected)
  wrk -t1 -c"$connections" -d"${seconds}s" --timeout 10s --latency "$url$path" "$@" >"$work/wrk" 2>&1 &
  wrk_pid=$!
  sleep $((seconds - 1))
  gateway=$(rss api_1)
  agent=$(rss demo)
  wait "$wrk_pid" || fail "wrk: $(cat "$work/wrk")"
  wrk_pid=''
  cells=$(awk '
    function us(t) { return t + 0 ? t * (t ~ /us$/ ? 1 : t ~ /ms$/ ? 1e3 : t ~ /s$/ ? 1e6 : 6e7) : 0 }
    /^ +50%/ { p50 = us($2) }
    /^ +99%/ { p99 = us($2) }
    /^Requests\/sec/ { rate = $2 }
    /Non-2xx/ { failed += $NF }
    /Socket errors/ { gsub(/[a-z:,]/, ""); failed += $1 + $2 + $3 + $4 }
    END { printf "%.0f,%.0f,%.0f,%d", p50, p99, rate, failed }' "$work/wrk")
  cells=$label,$cells,$gateway,$agent
  [ -z "$file" ] || echo "$cells" >>"$file"
  echo "| ${cells//,/ | } |"
  wait_until "the end of the connections" is_idle
}

floor() { # ports of the broker and of the upstream: prints p50 of the two hops, of HTTP, of it all
  python3 - "$@" <<'P'
import os, socket, statistics, sys, time

def connected(port):
    s = socket.create_connection(("127.0.0.1", port), 5)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s

def client(name, topic):  # MQTT 3.1.1: CONNECT, SUBSCRIBE
    s = connected(int(sys.argv[1]))
    s.sendall(bytes([0x10, 12 + len(name), 0, 4]) + b"MQTT\4\2\0\74" + bytes([0, len(name)]) + name)
    s.recv(4, socket.MSG_WAITALL)
    s.sendall(bytes([0x82, 5 + len(topic), 0, 1, 0, len(topic)]) + topic + b"\0")
    s.recv(5, socket.MSG_WAITALL)
    return s

def publish(topic, body):
    return bytes([0x30, 2 + len(topic) + len(body), 0, len(topic)]) + topic + body

def median_us(s, request, size, rounds=3000):
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        s.sendall(request)
        if len(s.recv(size, socket.MSG_WAITALL)) < size:
            sys.exit("a connection was closed")
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6

asker, answerer = client(b"floor-a", b"floor/y"), client(b"floor-b", b"floor/x")
question = publish(b"floor/x", b'{"ask": "ping"}')
answer = publish(b"floor/y", b'{"message":"pong","received":{"ask":"ping"}}')
child = os.fork()
if child == 0:
    asker.close()
    while len(answerer.recv(len(question), socket.MSG_WAITALL)) == len(question):
        answerer.sendall(answer)
    os._exit(0)
try:
    hops = median_us(asker, question, len(answer))
finally:
    answerer.shutdown(socket.SHUT_RDWR)
    os.waitpid(child, 0)
http = connected(int(sys.argv[2]))
request = (b"POST /ping HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
           b'Content-Length: 15\r\n\r\n{"ask": "ping"}')
http.sendall(request)
time.sleep(0.2)
size = len(http.recv(65536))
call = median_us(http, request, size)
print(f"{hops:.0f} {call:.0f} {hops + 2 * call:.0f}")
P
}

# Answers /slow after a second, everything else at once; api_2 has not as many threads.
slow_upstream='
import asyncio, sys
async def serve(reader, writer):
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if b"/slow " in head:
                await asyncio.sleep(1)
            body = b"{\"message\": \"pong\"}"
            head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            writer.write((head % len(body)).encode() + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()
asyncio.run(main())
'

# --- the parts that stay: the broker, api_2, nginx -----------------------------------------------

free_port; mqtt_port=$port mqtt=mqtt://127.0.0.1:$port
if [ "$broker" = mosquitto ]; then
  sed "s/^listener 1883/listener $mqtt_port/" config/mosquitto.conf >"$work/mosquitto.conf"
  start broker mosquitto -c "$work/mosquitto.conf"
else
  start broker "$bin/broker" --listen "127.0.0.1:$mqtt_port"
fi
wait_until "the broker" answers "$mqtt_port"

free_port; api_2=$port
start api_2 "$bin/api_2" --listen "127.0.0.1:$api_2"
wait_until "api_2" answers "$api_2"

upstream=$api_2 upstream_name=api_2
if installed nginx; then
  free_port; upstream=$port upstream_name=nginx
  cat >"$work/nginx.conf" <<C
worker_processes 1; error_log /dev/null; pid $work/nginx.pid; daemon off;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 100000000; default_type application/json;
  client_body_temp_path $work; proxy_temp_path $work; fastcgi_temp_path $work;
  uwsgi_temp_path $work; scgi_temp_path $work;
  server { listen 127.0.0.1:$port; location /ping { return 200 '{"message":"pong"}'; } }
}
C
  start nginx nginx -c "$work/nginx.conf"
  wait_until "nginx" answers "$port"
fi

# --- the tables ----------------------------------------------------------------------------------

printf '%s, %s processors, %s; broker: %s, upstream of /ping: %s, log level: %s, %s s each\n' \
  "$(uname -sr)" "$(getconf _NPROCESSORS_ONLN)" "$(uname -m)" "$broker" "$upstream_name" "$log" "$seconds"

printf '\n### The floor\n\n'
if ! installed python3; then
  echo "Not measured: python3 is not installed."
elif ! hops=$(floor "$mqtt_port" "$upstream"); then
  echo "Not measured: its probe has failed."
else
  read -r hops http all <<<"$hops"
  [ -z "$csv" ] || printf 'mqtt_two_hops_us,http_us,floor_us\n%s\n' "$hops,$http,$all" >"$csv/floor.csv"
  echo "p50: $hops µs for two hops through the broker + 2 × $http µs for HTTP = $all µs. The probe, in"
  echo "Python, takes some of it."
fi

printf '[http]\nmax_connections = 1100\n' >"$work/gateway.toml"
printf 'upstream = "http://127.0.0.1:%s"\nqueue = 1100\n' "$upstream" >"$work/agent.toml"
start_chain 1
printf '\nMemory when idle: api_1 %s KiB, agent %s KiB.\n' "$(rss api_1)" "$(rss demo)"
table connections "Connections: GET /ping" connections
for n in 1 2 4 8 16 32 64 128 256 512 1000; do row $n $n /ping; done
stop_chain

# An echo is longer than what it echoes: bodies of 2 MiB, in enough memory for all connections.
cat >"$work/gateway.toml" <<C
[http]
max_body_bytes = 2097152
max_buffered_bytes = 134217728
C
cat >"$work/agent.toml" <<C
upstream = "http://127.0.0.1:$api_2"
workers = 256
max_body_bytes = 2097152
C
cat >"$work/post.lua" <<'L'
init = function(size)
  wrk.method, wrk.body = "POST", string.rep("x", tonumber(size[1]))
  request = function() return wrk.format() end
end
L
start_chain 1
table payload "Payload: POST /agents/demo/echo, 8 connections" bytes
for n in 16 1024 16384 65536 262144 1048576; do
  row $n 8 /agents/demo/echo -s "$work/post.lua" -- $n
done
stop_chain

if installed python3; then
  free_port
  start slow python3 -c "$slow_upstream" "$port"
  wait_until "the slow upstream" answers "$port"
  printf 'max_waiting = 2100\n[http]\nmax_connections = 2100\n' >"$work/gateway.toml"
  printf 'upstream = "http://127.0.0.1:%s"\nworkers = 2100\n' "$port" >"$work/agent.toml"
  start_chain 1
  table waiters "Waiters: an upstream that takes a second, an agent with 2,100 workers" waiters
  for n in 1 10 100 500 1000 2000; do row $n $n /agents/demo/slow; done
  stop_chain
fi

: >"$work/gateway.toml"
cat >"$work/agent.toml" <<C
upstream = "http://127.0.0.1:$api_2"
[[service]]
name = "ping"
mode = "json"
request_topic = "api/ping/request"
response_topic = "api/ping/response"
path = "/ping"
upstream = "http://127.0.0.1:$upstream"
[[service]]
name = "slow"
mode = "http"
workers = 8
C
table agents "Agents: GET /ping, 64 connections" agents
for n in 1 2 3 4; do start_chain $n; row $n 64 /ping; stop_chain; done
table agents_slow "Agents with 8 workers each: an upstream that takes 20 ms, 64 connections" agents
for n in 1 2 3 4; do start_chain $n; row $n 64 '/services/slow/sleep?ms=20'; stop_chain; done

[ -z "$csv" ] || printf '\nThe tables are in %s; scripts/plot.py %s draws them.\n' "$csv" "$csv"
