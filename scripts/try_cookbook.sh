#!/usr/bin/env bash
# Runs the recipes of docs/cookbook.md and compares what they print with what the page says.
#
#   scripts/try_cookbook.sh            every recipe
#   scripts/try_cookbook.sh lamp pump  those whose names contain one of these words
#
#   RECADO_BIN (target/debug)  where the programs are
#   BROKER=auto|mosquitto|embedded
#       auto: mosquitto where it is installed, else the embedded one
#   CI=1  a recipe that needs a program that is not installed fails; else it is skipped
#
# One line for each recipe: ok, skip or FAIL. Exits 1 if one has failed. Files, commands and what
# they print are taken out of the page; only ports and host names are replaced. The comments in the
# page that say what a block is:
#
#   <!-- recipe: NAME -->   a recipe begins; a broker is started for it
#   <!-- needs: PROGRAMS -->
#   <!-- file: NAME -->     the block below is this file
#   <!-- start: NAME -->    the block below is a command that goes on running
#   <!-- output: NAME -->   the block below is what that command has printed so far
#   <!-- run -->            the block below is commands, each behind "$ ", and what they print
#   <!-- stop: NAME -->, <!-- kill: NAME -->   ends a command, gently or with SIGKILL
#   <!-- if: mosquitto --> ... <!-- end -->    only where the broker is Mosquitto
set -euo pipefail
cd "$(dirname "$0")/.."

limit=10 # seconds that anything may take

die() { printf 'try_cookbook.sh: %s\n' "$*" >&2; exit 1; }

bin=$(cd "${RECADO_BIN:-target/debug}" 2>/dev/null && pwd) ||
  die "no directory ${RECADO_BIN:-target/debug}; build the programs first, with cargo build"
for program in api_1 api_2 agent; do
  [ -x "$bin/$program" ] || die "no program $bin/$program; build it first, with cargo build"
done

broker=${BROKER:-auto}
PATH=/usr/sbin:/usr/local/sbin:$PATH # where mosquitto may be
installed() { command -v "$1" >/dev/null; }
case $broker in
auto) if installed mosquitto; then broker=mosquitto; else broker=embedded; fi ;;
mosquitto) installed mosquitto || die "BROKER=mosquitto, but it is not installed" ;;
embedded) ;;
*) die "BROKER=$broker: allowed are auto, mosquitto and embedded" ;;
esac
[ "$broker" = mosquitto ] || [ -x "$bin/broker" ] || die "no program $bin/broker, and no mosquitto"

work=$(mktemp -d)
dir=$work names=() pids=()
export PATH=$bin:$PATH
# Nothing of the user's own settings may matter.
unset "${!RECADO_@}"
export no_proxy='*' CURL_HOME=$work XDG_CONFIG_HOME=$work/config
: >"$work/.curlrc"

trap 'stop_all; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- processes -----------------------------------------------------------------------------------

# Starts a command in the directory of the recipe, in a process group of its own: a script does not
# pass a signal on to what it runs.
spawn() { # name, output, command
  : >"$2"
  set -m
  (cd "$dir" && exec bash -c "$3") >"$2" 2>&1 </dev/null &
  set +m
  disown # so that the shell does not report its end
  names+=("$1") pids+=("$!")
}

place_of() { # name: sets `place`, the latest with this name
  for ((place = ${#names[@]} - 1; place >= 0; place--)); do
    [ "${names[place]}" != "$1" ] || return 0
  done
  return 1
}

signal() { kill -"$1" -- "-${pids[place]}" 2>/dev/null; }
is_alive() { kill -0 "${pids[place]}" 2>/dev/null; }

# Ends the process at `place`, and then what it has left behind, and forgets it.
end() { # signal
  local deadline=$((SECONDS + limit))
  signal "$1" || true
  while is_alive; do
    ((SECONDS < deadline)) || signal KILL || true
    sleep 0.02
  done
  signal KILL || true
  names[place]='' pids[place]=''
}

stop_all() {
  for ((place = ${#pids[@]} - 1; place >= 0; place--)); do
    [ -z "${pids[place]}" ] || end TERM
  done
  names=() pids=()
}

until_true() { # command...: polls it
  local deadline=$((SECONDS + limit))
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.05
  done
}

# --- ports ---------------------------------------------------------------------------------------

. scripts/ports.sh

# The ports of the page, and those that stand for them in this recipe.
choose_ports() {
  local options
  free_port; mqtt=$port
  free_port; mqtts=$port
  [ "$broker" = mosquitto ] || mqtts=$mqtt # it has one port only
  free_port; gateway=$port
  free_port; app=$port
  free_port; app_b=$port
  mkdir -p "$work/config"
  for options in mosquitto_sub mosquitto_pub mosquitto_rr; do
    printf '%s\n' '-h 127.0.0.1' "-p $mqtt" >"$work/config/$options"
  done
}

# A block as it is on this machine. There is no certificate for a test, so it goes without TLS.
localize() { # file
  sed -e "s|mqtts://broker.example:8883|mqtt://127.0.0.1:$mqtts|g" \
    -e "s|^listener 8883|listener $mqtts 127.0.0.1|" -e '/^certfile /d' -e '/^keyfile /d' \
    -e 's/localhost/127.0.0.1/g' \
    -e "s/:1883/:$mqtt/g" -e "s/:5000/:$gateway/g" -e "s/:8080/:$app/g" -e "s/:8081/:$app_b/g" "$1"
}

# --- steps: each returns 1 and sets `why` where it fails -----------------------------------------

# Whether a text is what the page says; "…" there stands for anything.
is_like() { # text, expected
  local pattern=$2 special
  for special in \\ '*' '?' '[' ']' '(' ')'; do
    pattern=${pattern//"$special"/\\"$special"}
  done
  # shellcheck disable=SC2053 # it is a pattern
  [[ $1 == ${pattern//…/*} ]]
}

# What a program logs once it is ready to be used.
ready_line() { # program
  case $1 in
  agent) echo 'ready as agent' ;;
  api_1) echo 'ready as gateway' ;;
  api_2 | broker) echo 'listening on' ;;
  mosquitto) echo ' running$' ;;
  esac
}

begin() { # recipe
  dir=$work/$1
  mkdir "$dir"
  choose_ports
  if [ "$broker" = mosquitto ]; then
    printf '%s\n' "listener $mqtt 127.0.0.1" 'allow_anonymous true' 'set_tcp_nodelay true' \
      >"$dir/broker.conf"
    start broker 'mosquitto -c broker.conf'
  else
    start broker "broker --listen 127.0.0.1:$mqtt"
  fi
}

start() { # name, command
  local program
  program=$(sed -n '$s/ .*//p' <<<"$2")
  spawn "$1" "$dir/$1.log" "$(sed '$s/^/exec /' <<<"$2")"
  place=$((${#pids[@]} - 1))
  until_true is_ready "$dir/$1.log" "$(ready_line "$program")" && is_alive && return
  why="$1 does not start: $2"$'\n'$(cat "$dir/$1.log")
  return 1
}
is_ready() { ! is_alive || [ -z "$2" ] || grep -q -- "$2" "$1"; }

printed() { # name, expected
  local log=$dir/$1.log
  has_printed() { is_like "$(cat "$log")" "$2…"; }
  until_true has_printed "$@" && return
  why="$1 should print:"$'\n'"$2"$'\n'"but prints:"$'\n'$(cat "$log")
  return 1
}

# Runs a command until it prints what it should: what it depends on may take a moment.
try() { # command, expected
  local deadline=$((SECONDS + limit)) got
  while :; do
    spawn command "$work/output" "$1"
    place=$((${#pids[@]} - 1))
    until_true is_over || true
    end KILL
    got=$(cat "$work/output")
    ! is_like "$got" "$2" || return 0
    ((SECONDS < deadline)) || break
    sleep 0.1
  done
  why="not what the page says: $1"$'\n'"should print:"$'\n'"$2"$'\n'"but prints:"$'\n'"$got"
  return 1
}
is_over() { ! is_alive; }

run() { # commands and what they print
  local line command='' expected=''
  while IFS= read -r line; do
    if [[ $line == '$ '* ]]; then
      [ -z "$command" ] || try "$command" "${expected%$'\n'}" || return 1
      command=${line#'$ '} expected=''
    else
      expected+=$line$'\n'
    fi
  done <<<"$1"
  try "$command" "${expected%$'\n'}"
}

finish() { # name, signal
  place_of "$1" && end "$2" && return
  why="nothing is called $1"
  return 1
}

step() { # kind, argument, block
  local text=''
  [ -z "$3" ] || text=$(localize "$3")
  case $1 in
  file) printf '%s\n' "$text" >"$dir/$2" ;;
  start) start "$2" "$text" ;;
  output) printed "$2" "$text" ;;
  run) run "$text" ;;
  stop) finish "$2" TERM ;;
  kill) finish "$2" KILL ;;
  *) why="no such step: $1" && return 1 ;;
  esac
}

# --- the page ------------------------------------------------------------------------------------

# Writes each block to a file, and the steps to another: kind, argument, file of the block.
split_page() {
  awk -v work="$work" '
    function wrong(why) { print FILENAME ":" NR ": " why > "/dev/stderr"; failed = 1; exit 1 }
    /^```/ && inside {
      if (recipe) print kind "\t" argument "\t" block
      inside = 0; kind = ""; close(block); next
    }
    inside { print > block; next }
    /^```/ {
      if (recipe && kind !~ /^(file|start|output|run)$/) wrong("a block without a word on what it is")
      inside = 1; block = work "/block-" ++blocks; printf "" > block; next
    }
    /^<!-- .* -->$/ {
      if (kind != "") wrong("a block is missing")
      text = substr($0, 6, length($0) - 9)
      kind = text; argument = "-"
      if (i = index(text, ": ")) { kind = substr(text, 1, i - 1); argument = substr(text, i + 2) }
      if (kind ~ /^(file|start|output|run)$/) next
      if (kind !~ /^(recipe|needs|stop|kill|if|end)$/) wrong("unknown: " kind)
      if (kind == "recipe") recipe = 1
      print kind "\t" argument "\t-"
      kind = ""
    }
    END { if (!failed && (inside || kind != "")) wrong("a block has no end") }
  ' docs/cookbook.md
}

failures=0 tried=0 recipe='' state='' why=''

say() { # word, why
  printf '%-4s %s%s\n' "$1" "$recipe" "${2:+: $2}"
}
failed() { # why
  state=failed failures=$((failures + 1))
  say FAIL "${1%%$'\n'*}"
  [[ $1 != *$'\n'* ]] || sed 's/^/     /' <<<"${1#*$'\n'}" >&2
}
close_recipe() {
  stop_all
  [ "$state" != running ] && [ "$state" != left_out ] || say ok
}
is_wanted() { # name, words...
  local name=$1 word
  shift
  [ $# -gt 0 ] || return 0
  for word in "$@"; do [[ $name != *"$word"* ]] || return 0; done
  return 1
}

split_page >"$work/steps" || die "docs/cookbook.md can't be read"
while IFS=$'\t' read -r kind argument block <&4; do
  [ "$block" != - ] || block=''
  case $kind in
  recipe)
    close_recipe
    recipe=$argument state=unwanted
    is_wanted "$recipe" "$@" || continue
    state=running tried=$((tried + 1))
    begin "recipe-$tried" || failed "$why"
    continue ;;
  esac
  [ "$state" = running ] || { [ "$kind $state" = 'end left_out' ] && state=running; continue; }
  case $kind in
  needs)
    for program in $argument; do
      installed "$program" && continue
      why="$program is not installed"
      if [ -n "${CI:-}" ]; then failed "$why"; else state=skipped && say skip "$why"; fi
      break
    done ;;
  if) [ "$broker" = "$argument" ] || state=left_out ;;
  end) ;;
  *) step "$kind" "$argument" "$block" || failed "$why" ;;
  esac
done 4<"$work/steps"
close_recipe
[ "$tried" -gt 0 ] || die "no recipe is called like this: $*"
[ "$failures" -eq 0 ]
