#!/usr/bin/env bash
# Tries what scripts/release.sh has put into dist: each archive's programs say who they are, are static, accept the
# settings that come with them, and carry a ping; those for another processor do so under qemu-user. As root, with
# --packages, the Debian packages too: this machine gets them, upgrades them, and loses them again.
#
#   scripts/try_release.sh [--packages]
#
#   RECADO_BIN (target/debug)  where api_2 and broker are, for the ends of a ping
#   PYTHON (/usr/bin/python3)
#
# On Debian: apt-get install qemu-user curl python3 file, and for packages lintian adduser. One line for each check;
# exits 1 if one fails.
set -euo pipefail
cd "$(dirname "$0")/.."

source scripts/chain.sh

runs_on() { # ARCHITECTURE: what its programs are started with, into `runner`
  runner=()
  case $1 in
  "$(dpkg --print-architecture)") ;;
  amd64) runner=(qemu-x86_64) ;;
  arm64) runner=(qemu-aarch64) ;;
  armhf) runner=(qemu-arm) ;;
  *) fail "$1: which emulator?" ;;
  esac
}

ping_through() { # NAME DIRECTORY: a ping through the gateway and the agent there
  local broker gateway service word=$RANDOM
  broker=$(free_port) gateway=$(free_port) service=$(free_port)
  local first=${#pids[@]} url=mqtt://127.0.0.1:$broker
  start broker "$bin/broker" --listen "127.0.0.1:$broker"
  start service "$bin/api_2" --listen "127.0.0.1:$service"
  start gateway "${runner[@]}" "$2/recado-gateway" --broker "$url" --listen "127.0.0.1:$gateway"
  start agent "${runner[@]}" "$2/recado-agent" --broker "$url" --upstream "http://127.0.0.1:$service" --demo
  until_it_answers "http://127.0.0.1:$gateway/readyz" gateway
  local number answer
  for ((number = 0; number < 100; number++)); do
    answer=$(curl -s -m 5 "http://127.0.0.1:$gateway/agents/demo/echo?a=$word" -d "hello $word" || true)
    [[ $answer != *"hello $word"* ]] || break
    sleep 0.1
  done
  [[ $answer == *"hello $word"* ]] || fail "$1: no echo, but: $answer $(cat "$work"/*.log)"
  answer=$(curl -s -m 5 "http://127.0.0.1:$gateway/ping")
  [ "$answer" = '{"response": {"message": "pong", "received": {"ask": "ping"}}}' ] || fail "$1: no ping, but: $answer"
  answer=$(curl -s -m 5 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$gateway/")
  [ "$answer" = "$([[ $1 == *-minimal ]] && echo 501 || echo 200)" ] || fail "$1: the live page: $answer"
  answer=$("${runner[@]}" "$2/recado-agent" --broker "$url" --health)
  [[ $answer == "agent demo: "* ]] || fail "$1: --health: $answer"
  "${runner[@]}" "$2/recado-pub" --broker "$url" --retain --message "$word" --topic a/b >/dev/null 2>&1 || fail "$1: pub"
  answer=$("${runner[@]}" "$2/recado-sub" --broker "$url" --topic a/b --count 1 2>/dev/null)
  [[ $answer == *"$word"* ]] || fail "$1: sub got: $answer"
  kill "${pids[@]:first}"
  wait "${pids[@]:first}" 2>/dev/null || true
  pids=("${pids[@]:0:first}")
  ok "$1: an echo, a ping, its health, a message"
}

try_archive() { # FILE
  local name root program version architecture said
  name=$(basename "$1" .tar.gz)
  architecture=${name#*-linux-}
  runs_on "${architecture%-minimal}"
  tar -xzf "$1" -C "$work"
  root=$work/$name
  version=${name#recado-} version=${version%%-linux-*}
  for program in "$root"/bin/*; do
    [[ $(file -b "$program") == *static-pie* ]] || fail "$program is not static: $(file -b "$program")"
    said=$("${runner[@]}" "$program" --version)
    [[ $said == "$(basename "$program") $version (commit "* ]] || fail "$program --version: $said"
    [ -s "$root/man/$(basename "$program").1" ] || fail "$program has no manual page"
    grep -aq "$HOME" "$program" && fail "$program names a folder of the machine that built it"
  done
  for program in gateway agent; do
    "${runner[@]}" "$root/bin/recado-$program" --config "$root/config/$program.toml" --check >"$work/out" ||
      fail "$name: $program --check"
  done
  "$python" - "$root" <<'END' || fail "$name: its papers"
import json, pathlib, sys
root = pathlib.Path(sys.argv[1])
bom = json.loads((root / "recado.cdx.json").read_text())
parts = {part["name"] for part in bom["components"]}
assert {"rumqttc", "clap", "http"} <= parts, parts
assert ("rustls" in parts) == (not root.name.endswith("-minimal")), "the list is not that of its features"
licences = (root / "THIRD-PARTY-LICENCES.txt").read_text()
assert "rumqttc " in licences and "Permission is hereby granted" in licences
END
  ok "$name: static, versions, manual pages, settings, papers"
  try_sizes "${name#*-linux-}" "$root/bin"
  ping_through "$name" "$root/bin"
  if ((${#runner[@]} == 0)) && [ "$(id -u)" = 0 ]; then as_process_1 "$name" "$root/bin"; fi
}

# A program may be larger than docs/sizes.md says by a twentieth, no more: who makes it grow has to say so there.
try_sizes() { # VARIANT DIRECTORY
  local program said bytes
  for program in "$2"/*; do
    said=$(awk -F '|' -v v="$1" -v p="$(basename "$program")" \
      '{ gsub(/[ `,]/, "") } $2 == v && $3 == p { print $4 }' docs/sizes.md)
    bytes=$(stat -c %s "$program")
    [ -n "$said" ] || fail "docs/sizes.md does not know $1 $(basename "$program"), which has $bytes bytes"
    ((bytes * 20 <= said * 21)) || fail "$1 $(basename "$program") has $bytes bytes; docs/sizes.md says $said"
  done
  ok "$1: no program has grown"
}

# What a container does: process 1 in a directory with nothing else in it, which has to stop in order.
as_process_1() { # NAME DIRECTORY
  local port first=${#pids[@]} number inner
  port=$(free_port)
  mkdir "$work/alone"
  cp "$2/recado-gateway" "$work/alone/"
  start alone unshare --fork --pid --kill-child chroot "$work/alone" /recado-gateway \
    --broker mqtt://127.0.0.1:1 --listen "127.0.0.1:$port"
  until_it_answers "http://127.0.0.1:$port/healthz" alone
  inner=$(pgrep -P "${pids[first]}")
  # unshare itself takes no signal while that runs.
  pids+=("$inner")
  chroot "$work/alone" /recado-gateway --listen "127.0.0.1:$port" --health >"$work/out" 2>&1 && fail "$1: --health"
  grep -q "is not ready: there is no connection to the broker" "$work/out" || fail "$1: --health: $(cat "$work/out")"
  kill -TERM "$inner"
  for ((number = 0; number < 100; number++)); do
    kill -0 "${pids[first]}" 2>/dev/null || break
    sleep 0.1
  done
  wait "${pids[first]}" || fail "$1: as process 1 it ended with $?: $(cat "$work/alone.log")"
  grep -q stopped "$work/alone.log" || fail "$1: it did not stop in order: $(cat "$work/alone.log")"
  pids=("${pids[@]:0:first}")
  rm -r "$work/alone"
  ok "$1: as process 1, alone in a directory"
}

# --- packages ------------------------------------------------------------------------------------

try_packages() {
  local architecture packages program
  architecture=$(dpkg --print-architecture)
  packages=(dist/recado-{gateway,agent,tools}_*_"$architecture".deb)
  [ -e "${packages[2]}" ] || fail "dist has no packages for $architecture"
  lintian --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs "${packages[@]}" || fail "lintian"
  ok "packages: lintian has nothing to say"
  for program in gateway agent tools; do
    ! dpkg -s "recado-$program" >/dev/null 2>&1 || fail "recado-$program is installed already"
  done
  dpkg --install "${packages[@]}" >"$work/out" 2>&1 || fail "$(cat "$work/out")"
  trap 'dpkg --purge recado-gateway recado-agent recado-tools >/dev/null 2>&1; stop' EXIT
  getent passwd recado >/dev/null || fail "no user recado"
  for program in gateway agent; do
    [ -L "/etc/systemd/system/multi-user.target.wants/recado-$program.service" ] || fail "recado-$program is not enabled"
    systemd-analyze verify "/usr/lib/systemd/system/recado-$program.service" 2>"$work/out" || fail "$(cat "$work/out")"
    ! grep "recado-$program" "$work/out" || fail "its unit"
    setpriv --reuid recado --regid recado --clear-groups "/usr/bin/recado-$program" \
      --config "/etc/recado/$program.toml" --check >/dev/null || fail "recado-$program --check as recado"
    man -w "recado-$program" >/dev/null 2>&1 || [ -e "/usr/share/man/man1/recado-$program.1.gz" ] || fail "no page"
  done
  grep -q '^listen = "127.0.0.1:' /etc/recado/gateway.toml || fail "it is open to the world"
  runner=()
  ping_through "packages" /usr/bin
  ok "packages: installed, enabled, run as recado"

  # An upgrade asks nothing where only the administrator has changed the settings, and keeps them.
  sed -i 's/^id = "demo"/id = "shed"/' /etc/recado/agent.toml
  mkdir "$work/newer"
  for program in gateway agent tools; do
    dpkg-deb --raw-extract "dist/recado-$program"_*_"$architecture".deb "$work/tree"
    sed -i 's/^Version: .*/&+newer/' "$work/tree/DEBIAN/control"
    dpkg-deb --root-owner-group --build "$work/tree" "$work/newer/$program.deb" >/dev/null
    rm -r "$work/tree"
  done
  dpkg --install "$work"/newer/*.deb >"$work/out" 2>&1 </dev/null || fail "$(cat "$work/out")"
  grep -q '^id = "shed"' /etc/recado/agent.toml || fail "the upgrade has lost the settings"
  dpkg -s recado-agent | grep -q '^Version: .*+newer' || fail "it was not upgraded"
  ok "packages: upgraded, settings kept"

  dpkg --remove recado-gateway recado-agent recado-tools >/dev/null 2>&1 || fail "remove"
  grep -q '^id = "shed"' /etc/recado/agent.toml || fail "removing is not purging: the settings stay"
  dpkg --purge recado-gateway recado-agent recado-tools >"$work/out" 2>&1 || fail "$(cat "$work/out")"
  ! getent passwd recado >/dev/null || fail "the user stays behind"
  local left
  left=$(find /etc /usr /lib /var -xdev -name '*recado*' -not -path '*/.cargo/*' 2>/dev/null |
    grep -vE '^/var/(log|cache|lib/(dpkg|apt))/' || true)
  [ -z "$left" ] || fail "left behind: $left"
  trap stop EXIT
  ok "packages: purged, nothing left"
}

found=(dist/*.tar.gz)
[ -e "${found[0]}" ] || fail "dist has no archives: run scripts/release.sh"
(cd dist && sha256sum --quiet --check SHA256SUMS) || fail "SHA256SUMS"
for file in "${found[@]}"; do try_archive "$file"; done
[ "${1:-}" != --packages ] || try_packages
