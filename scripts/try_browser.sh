#!/usr/bin/env bash
# Drives a headless Chromium over applications behind agents, by their names and below a path, and over the live
# page.
#
#   scripts/try_browser.sh [FOLDER]    screenshots go there
#
#   RECADO_BIN (target/debug)  where the programs are
#   PYTHON (/usr/bin/python3)  one with selenium, flask, fastapi, uvicorn, websockets and django
#
# On Debian: apt-get install chromium chromium-driver python3-selenium python3-flask python3-fastapi
# python3-uvicorn python3-websockets python3-django. One line for each application; exits 1 if one fails.
set -euo pipefail
cd "$(dirname "$0")/.."

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
until_it_answers() { # URL NAME
  local number
  for ((number = 0; number < 200; number++)); do
    if curl -s -m 2 -o "$work/answer" -w '%{http_code}' "$1" | grep -qE '^[234]'; then return; fi
    sleep 0.1
  done
  printf 'try_browser.sh: %s does not answer\n' "$1" >&2
  cat "$work/$2.log" >&2
  exit 1
}

broker=$(free_port) gateway=$(free_port)
export RECADO_BROKER=mqtt://127.0.0.1:$broker no_proxy='*'
start broker "$bin/broker" --listen "127.0.0.1:$broker"
start gateway "$bin/api_1" --listen "127.0.0.1:$gateway"
for app in flask:flask_app spa:single_page_app django:django_app; do
  port=$(free_port)
  start "${app#*:}" "$python" "tests/browser/${app#*:}.py" "$port"
  until_it_answers "http://127.0.0.1:$port/" "${app#*:}"
  start "agent-${app%:*}" "$bin/agent" --id "${app%:*}" --upstream "http://127.0.0.1:$port"
  until_it_answers "http://127.0.0.1:$gateway/agents/${app%:*}/" gateway
done
service=$(free_port)
start service "$bin/api_2" --listen "127.0.0.1:$service"
start agent-demo "$bin/agent" --upstream "http://127.0.0.1:$service" --demo
demo=${pids[-1]}
until_it_answers "http://127.0.0.1:$gateway/ping" gateway
"$python" tests/browser/drive.py "$gateway" ${1:+"$1/django.png"}
"$python" tests/browser/live.py "$gateway" "$demo" "$@"
