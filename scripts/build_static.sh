#!/usr/bin/env bash
# Builds static programs, which need no library on the machine they run on, and tries them.
#
#   scripts/build_static.sh            all programs, with TLS
#   scripts/build_static.sh --minimal  without TLS and without the embedded broker: the smallest
#
# They end up in target/static or target/static-minimal (below CARGO_TARGET_DIR, where that is set).
# They are linked with musl where Rust's musl target for this machine is installed (rustup target add
# x86_64-unknown-linux-musl, for example; TLS needs musl-gcc too), else with the C library that is
# here, glibc. A program that is linked with glibc finds DNS names only where the very same glibc is
# installed: give it IP addresses, or use musl.
#
# Each program must be static, and run in a directory with nothing else in it (as root only). There
# api_1, agent and api_2 then answer a ping, through a broker outside: Mosquitto where it is
# installed, else the embedded one.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'build_static.sh: %s\n' "$*" >&2; exit 1; }

programs=(api_1 api_2 agent client_a client_b)
features=() variant=static
case ${1:-} in
-h | --help) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"; exit 0 ;;
--minimal)
  features=(--no-default-features) variant=static-minimal
  # A quarter smaller than optimized for speed.
  export CARGO_PROFILE_RELEASE_OPT_LEVEL=${CARGO_PROFILE_RELEASE_OPT_LEVEL:-s}
  ;;
'') programs+=(broker) ;;
*) fail "unknown: $1; see --help" ;;
esac
command -v cargo >/dev/null || fail "cargo is not installed; see https://rustup.rs"

# --- build ---------------------------------------------------------------------------------------

host=$(rustc -vV | sed -n 's/^host: //p')
[[ $host == *-linux-* ]] || fail "only on Linux, not on $host; docs/install.md tells how to cross-build"
musl=${host/-gnu/-musl} target=$host
musl_cc=CC_${musl//-/_}
if [ "$host" = "$musl" ]; then
  :
elif ! rustup target list --installed 2>/dev/null | grep -x "$musl" >/dev/null; then
  say "linking with glibc: the target $musl is not installed"
elif [ "$variant" = static ] && [ -z "${!musl_cc:-}" ] && ! command -v musl-gcc >/dev/null; then
  say "linking with glibc: TLS with musl needs musl-gcc (apt install musl-tools), or set $musl_cc"
else
  target=$musl
fi
say "building for $target"
# Packed relocations are 80 KB smaller; a linker that doesn't know them says so and goes on.
flags="${RUSTFLAGS:-} -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"
# In a static program getrandom can't look glibc's function up, and would need /dev/urandom.
[[ $target == *-musl* ]] || flags+=' --cfg getrandom_backend="linux_getrandom"'
# With --target the flags are not for procedural macros and build scripts, which can't be static.
RUSTFLAGS=$flags cargo build --locked --release --target "$target" "${features[@]}" \
  "${programs[@]/#/--bin=}"

built=${CARGO_TARGET_DIR:-target}/$target/release
out=${CARGO_TARGET_DIR:-target}/$variant
mkdir -p "$out"
for program in "${programs[@]}"; do install -m 755 "$built/$program" "$out/$program"; done

# --- check ---------------------------------------------------------------------------------------

is_static() { # file; either tool will do
  [[ $(file -b "$1" 2>&1 || true) =~ 'statically linked'|'static-pie linked' ]] ||
    [[ $(ldd "$1" 2>&1 || true) =~ 'statically linked'|'not a dynamic executable' ]]
}

say "$variant: $target"
printf '| program | bytes | MiB |\n|---|--:|--:|\n'
for program in "${programs[@]}"; do
  is_static "$out/$program" || fail "$out/$program is not static"
  bytes=$(stat -c %s "$out/$program")
  awk -v p="$program" -v b="$bytes" 'BEGIN { printf "| %s | %d | %.2f |\n", p, b, b / 1048576 }'
done
echo "All of them are static; they are in $out."

if [ "$(id -u)" != 0 ]; then
  echo "Not tried in an empty directory: only root can."
  exit 0
fi

# --- try, each in a directory with nothing else in it --------------------------------------------

work=$(mktemp -d)
pids=()
stop_all() {
  trap - EXIT INT TERM
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  for p in "${pids[@]}"; do
    for ((i = 0; i < 50; i++)); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$p" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
unset "${!RECADO_@}"

say "in an empty directory"
for program in "${programs[@]}"; do
  mkdir "$work/$program"
  cp "$out/$program" "$work/$program/"
  chroot "$work/$program" "/$program" --version
done

. scripts/ports.sh
start() { # name, command...
  local name=$1
  shift
  "$@" >"$work/$name.log" 2>&1 </dev/null &
  pids+=($!)
  disown
}
wait_until() { # what for, command...
  local end=$((SECONDS + 20)) what=$1
  shift
  until "$@"; do
    ((SECONDS < end)) || { tail "$work"/*.log >&2; fail "$what: not within 20 s"; }
    sleep 0.1
  done
}
get() { # path: the status line and the body
  exec 3<>"/dev/tcp/127.0.0.1/$api_1" || return 1
  printf 'GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n' "$1" >&3
  tr -d '\r' <&3
  exec 3<&-
}
is_pong() {
  [[ $(get /ping 2>/dev/null) == *$'\n{"response": {"message": "pong", "received": {"ask": "ping"}}}' ]]
}

PATH=$PATH:/usr/sbin:/usr/local/sbin # where mosquitto may be
free_port; mqtt=$port
free_port; api_1=$port
free_port; api_2=$port
if command -v mosquitto >/dev/null; then
  sed "s/^listener 1883/listener $mqtt/" config/mosquitto.conf >"$work/mosquitto.conf"
  start mosquitto mosquitto -c "$work/mosquitto.conf"
elif [ -x "$out/broker" ]; then
  start broker "$out/broker" --listen "127.0.0.1:$mqtt"
else
  echo "No ping: Mosquitto is not installed, and the embedded broker is not in this variant."
  exit 0
fi
wait_until "the broker" answers "$mqtt"
start api_2 chroot "$work/api_2" /api_2 --listen "127.0.0.1:$api_2"
start agent chroot "$work/agent" /agent --broker "mqtt://127.0.0.1:$mqtt" \
  --upstream "http://127.0.0.1:$api_2" --demo
start api_1 chroot "$work/api_1" /api_1 --broker "mqtt://127.0.0.1:$mqtt" --listen "127.0.0.1:$api_1"
wait_until "a pong" is_pong
echo "GET /ping answers, with api_1, agent and api_2 each in an empty directory."
