#!/usr/bin/env bash
# Load and faults for as long as you like: does anything grow that should not?
#
#   scripts/soak.sh [MINUTES]      30 by default, 3 at least
#
#   RECADO_BIN (target/release)    where the programs are; they are built if they are missing
#   BROKER=auto|mosquitto|embedded auto: mosquitto where it is installed, else the embedded one
#   LOAD=auto|wrk|curl             auto: wrk where it is installed, else loops of curl
#
# Runs a broker, api_2, api_1 and two agents, demo and other, and asks /ping, which both agents
# serve, and /agents/…/echo with bodies. Every 20 s something breaks, in turn: other, the broker or
# api_2 is killed with SIGKILL and started again, or demo stands still for two seconds. Requests fail
# then, as they must; within 30 s everything must answer again. api_1 and demo live from the first
# second to the last.
#
# Prints a line every 10 s. After a warm-up (a quarter of the time; 90 s at least, five minutes at
# most) the mean of the first quarter of what follows is compared with that of the last. Exits 1 if
# memory has grown by more than 10 % and 512 KiB, or threads or descriptors by more than 2, or if
# something has died or stays silent. All on 127.0.0.1, on free ports.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'soak.sh: %s\n' "$*" >&2; exit 1; }

case ${1:-} in -h | --help) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"; exit 0 ;; esac
minutes=${1:-30}
if [[ $# -gt 1 || ! $minutes =~ ^[0-9]{1,5}$ ]] || ((10#$minutes < 3)); then
  fail "usage: scripts/soak.sh [MINUTES], 3 at least"
fi

slice=10 connections=16 limit=30 # seconds, wrk's connections, seconds for a recovery
PATH=$PATH:/usr/sbin:/usr/local/sbin # where mosquitto may be
installed() { command -v "$1" >/dev/null; }
choose() { # variable, allowed, the one to prefer, the other
  local value=${!1:-auto}
  [ "$value" != auto ] || { if installed "$3"; then value=$3; else value=$4; fi; }
  [[ " $2 " == *" $value "* ]] || fail "$1=$value: allowed are auto $2"
  [ "$value" != "$3" ] || installed "$3" || fail "$1=$3, but it is not installed"
  chosen=$value
}
choose BROKER "mosquitto embedded" mosquitto embedded; broker=$chosen
choose LOAD "wrk curl" wrk curl; load=$chosen
installed curl || fail "curl is not installed"

programs=(api_1 api_2 agent)
[ "$broker" = mosquitto ] || programs+=(broker)
bin=${RECADO_BIN:-${CARGO_TARGET_DIR:-target}/release}
for program in "${programs[@]}"; do
  [ -x "$bin/$program" ] && continue
  [ -z "${RECADO_BIN:-}" ] || fail "no program $bin/$program"
  cargo build --locked --release "${programs[@]/#/--bin=}"
  break
done

# --- processes -----------------------------------------------------------------------------------

work=$(mktemp -d)
declare -A pid=() command=()
load_pids=()

stop_all() {
  trap - EXIT INT TERM
  for p in "${load_pids[@]}" "${pid[@]}"; do kill -CONT "$p" && kill "$p"; done 2>/dev/null || true
  for p in "${pid[@]}"; do
    for ((i = 0; i < 100; i++)); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$p" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The programs of now, whatever is built meanwhile; and nothing of the user's own settings.
for program in "${programs[@]}"; do cp "$bin/$program" "$work/"; done
unset "${!RECADO_@}"
export RECADO_LOG=error no_proxy='*' # a line for each request would fill the disk

. scripts/ports.sh

start() { # name: runs its command
  # shellcheck disable=SC2086 # it is several words
  ${command[$1]} >>"$work/$1.log" 2>&1 </dev/null &
  pid[$1]=$!
  disown
}

die() { # why: with what the programs have said
  tail -n 5 "$work"/*.log >&2
  fail "$*"
}

wait_until() { # what for, command...
  local end=$((SECONDS + limit)) what=$1
  shift
  until "$@"; do
    ((SECONDS < end)) || die "$what: not within $limit s"
    sleep 0.1
  done
}

gets() { # path: is it answered with 200?
  [ "$(curl -q -s -m 5 -o /dev/null -w '%{http_code}' "$url/$1" || true)" = 200 ]
}
all_answer() { gets ping && gets agents/demo/echo && gets agents/other/echo; }

free_port; mqtt=$port
free_port; api_2=$port
free_port; url=http://127.0.0.1:$port
if [ "$broker" = mosquitto ]; then
  sed "s/^listener 1883/listener $mqtt/" config/mosquitto.conf >"$work/mosquitto.conf"
  command[broker]="mosquitto -c $work/mosquitto.conf"
else
  command[broker]="$work/broker --listen 127.0.0.1:$mqtt"
fi
command[api_2]="$work/api_2 --listen 127.0.0.1:$api_2"
for agent in demo other; do
  command[$agent]="$work/agent --id $agent --broker mqtt://127.0.0.1:$mqtt
    --upstream http://127.0.0.1:$api_2 --demo"
done
command[api_1]="$work/api_1 --broker mqtt://127.0.0.1:$mqtt --listen ${url#http://}"

# --- load: each slice of it leaves the numbers of good and of failed requests in `ok`, `failed` --

cat >"$work/load.lua" <<'L'
-- /ping and bodies of several sizes, in turn; about a hundred requests a second on each connection.
local turn, requests = 0, {}
init = function()
  for _, agent in ipairs({ "demo", "other" }) do
    for _, size in ipairs({ 10, 1000, 30000 }) do
      requests[#requests + 1] = wrk.format("GET", "/ping")
      requests[#requests + 1] =
        wrk.format("POST", "/agents/" .. agent .. "/echo", nil, string.rep("x", size))
    end
  end
end
request = function() turn = turn % #requests + 1; return requests[turn] end
delay = function() return 10 end
L
head -c 1000 /dev/zero | tr '\0' x >"$work/body"

start_load() {
  load_pids=()
  if [ "$load" = wrk ]; then
    wrk -t1 -c"$connections" -d"${slice}s" --timeout 10s -s "$work/load.lua" "$url" >"$work/load.1" 2>&1 &
    load_pids+=($!)
    return
  fi
  for i in 1 2 3 4; do # connections, each kept alive
    timeout "$slice" curl -q -s --max-time 10 -w '%{http_code}\n' \
      -o /dev/null "$url/ping?[1-5000]" --next -s --max-time 10 -w '%{http_code}\n' \
      -o /dev/null --data-binary "@$work/body" "$url/agents/demo/echo?[1-1000000]" \
      >"$work/load.$i" 2>/dev/null &
    load_pids+=($!)
  done
}

end_load() { # sets `good` and `bad`
  for p in "${load_pids[@]}"; do wait "$p" || true; done
  load_pids=()
  read -r good bad < <(cat "$work"/load.[0-9] | awk -v load="$load" '
    load == "curl" { if (/^200$/) good++; else bad++ }
    load == "wrk" && /requests in/ { all = $1 }
    load == "wrk" && /Non-2xx/ { wrong = $NF }
    load == "wrk" && /Socket errors/ { gsub(/[a-z:,]/, ""); lost = $1 + $2 + $3 + $4 }
    END { print load == "curl" ? good + 0 : all - wrong, bad + wrong + lost }')
}

# --- faults --------------------------------------------------------------------------------------

restart() { # name
  kill -9 "${pid[$1]}"
  wait_until "the end of $1" is_gone "${pid[$1]}"
  start "$1"
}
is_gone() { ! kill -0 "$1" 2>/dev/null; }

faults=(other broker api_2 demo)
break_something() { # sets `fault`
  local name=${faults[turn++ % ${#faults[@]}]}
  fault="$name killed"
  if [ "$name" = demo ]; then
    fault="demo stopped for 2 s"
    kill -STOP "${pid[demo]}"
    sleep 2
    kill -CONT "${pid[demo]}"
  else
    restart "$name"
  fi
  wait_until "answers after: $fault" all_answer
}

# --- the soak ------------------------------------------------------------------------------------

figures() { # name: RSS in KiB, threads, descriptors
  [ -d "/proc/${pid[$1]}/fd" ] || die "$1 has died"
  awk '/^VmRSS/ { rss = $2 } /^Threads/ { threads = $2 } END { printf "%s %s ", rss, threads }' \
    "/proc/${pid[$1]}/status"
  find "/proc/${pid[$1]}/fd" -mindepth 1 2>/dev/null | wc -l
}

for name in broker api_2 demo other api_1; do start "$name"; done
wait_until "the first answers" all_answer
printf 'with %s and %s, for %d minutes; the warm-up is not compared\n' "$broker" "$load" "$minutes"
printf '%8s %10s %8s  %-22s  %-22s  %s\n' time ok failed 'api_1: KiB thr fds' 'demo: KiB thr fds' fault

turn=0 ok=0 failed=0 begun=$SECONDS
minutes=$((10#$minutes))
warm_up=$((minutes < 6 ? 90 : minutes < 20 ? minutes * 15 : 300)) # seconds
for ((n = 1; n <= minutes * 60 / slice; n++)); do
  fault=''
  slice_end=$((SECONDS + slice))
  start_load
  ((n % 2)) || { sleep 1; break_something; }
  while ((SECONDS < slice_end - 1)); do sleep 0.2; done
  # Under load, and with a fault as long ago as can be.
  gateway=$(figures api_1)
  agent=$(figures demo)
  end_load
  ok=$((ok + good)) failed=$((failed + bad))
  ((good > 0)) || die "not one good answer in $slice s"
  ((n % 2 == 0 || SECONDS - begun <= warm_up)) || printf '%s %s\n' "$gateway" "$agent" >>"$work/samples"
  # shellcheck disable=SC2086 # they are several numbers
  printf '%8s %10d %8d  %10s %5s %5s  %10s %5s %5s  %s\n' "$(date +%T)" "$ok" "$failed" \
    $gateway $agent "$fault"
done

awk '
  { for (i = 1; i <= 6; i++) sample[NR, i] = $i }
  END {
    split("api_1 memory/KiB,api_1 threads,api_1 descriptors,demo memory/KiB,demo threads,demo descriptors", name, ",")
    quarter = int(NR / 4); if (quarter < 1) quarter = 1
    printf "\n%-18s %14s %13s %9s\n", "", "first quarter", "last quarter", "at most"
    for (i = 1; i <= 6; i++) {
      first = last = 0
      for (k = 1; k <= quarter; k++) { first += sample[k, i]; last += sample[NR + 1 - k, i] }
      first /= quarter; last /= quarter
      most = i % 3 == 1 ? first * 1.1 + 512 : first + 2
      grown = last > most
      bad += grown
      printf "%-18s %14.1f %13.1f %9.1f%s\n", name[i], first, last, most, grown ? "  has grown" : ""
    }
    exit bad > 0
  }' "$work/samples"
