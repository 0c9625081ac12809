# What scripts share that start a chain and look at it. To be read with `source`, at the root of the project;
# sets bin, work and pids, and stops what was started as the script ends.

name=$(basename "$0")
bin=${RECADO_BIN:-target/debug}
python=${PYTHON:-/usr/bin/python3}
work=$(mktemp -d)
pids=()
stop() {
  kill "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT

start() { # NAME COMMAND...
  local name=$1
  shift
  "$@" >"$work/$name.log" 2>&1 &
  pids+=($!)
}

free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

ok() { printf 'ok    %s\n' "$*"; }

fail() {
  printf '%s: %s\n' "$name" "$*" >&2
  exit 1
}

until_it_answers() { # URL NAME
  local number
  for ((number = 0; number < 200; number++)); do
    if curl -s -m 2 -o "$work/answer" -w '%{http_code}' "$1" | grep -qE '^[234]'; then return; fi
    sleep 0.1
  done
  cat "$work/$2.log" >&2
  fail "$2 does not answer at $1"
}
