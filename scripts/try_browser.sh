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

source scripts/chain.sh

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
