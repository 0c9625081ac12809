#!/usr/bin/env bash
# Makes a certificate authority, a server's and a client's certificate. For tests: all three end after
# 30 days, and the authority's key lies unprotected beside them.
#
#   scripts/make_certs.sh [--client NAME] DIR [NAME_OR_ADDRESS...]
#
#   DIR              where to put ca.pem, server.pem, client.pem and the key of each (.key, mode 0600);
#                    made if need be. Nothing that is there is overwritten.
#   NAME_OR_ADDRESS  by what the server is reached, besides localhost, 127.0.0.1 and ::1
#   --client NAME    whose the client's certificate is, its common name (demo)
set -euo pipefail

days=30

fail() { printf 'make_certs.sh: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; }
misuse() { printf 'make_certs.sh: %s\n\n' "$*" >&2; usage >&2; exit 2; }

client=demo
dir=
names=()
while [ $# -gt 0 ]; do
  case $1 in
  -h | --help) usage; exit 0 ;;
  --client) [ $# -ge 2 ] || misuse "--client needs a name"; client=$2; shift ;;
  -*) misuse "no such flag: $1" ;;
  *) if [ -z "$dir" ]; then dir=$1; else names+=("$1"); fi ;;
  esac
  shift
done
[ -n "$dir" ] || misuse "where to? a directory is missing"
[[ ${#client} -le 64 && $client =~ ^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$ ]] ||
  misuse "--client $client: allowed are A-Z a-z 0-9 _ - and . between them, up to 64"
command -v openssl >/dev/null || fail "openssl is not installed"

sans=DNS:localhost,IP:127.0.0.1,IP:::1
for name in ${names[@]+"${names[@]}"}; do
  if [[ $name =~ ^[0-9]+(\.[0-9]+){3}$ || $name =~ ^[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*$ ]]; then
    sans+=,IP:$name
  elif [[ $name =~ ^(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$ ]]; then
    sans+=,DNS:$name
  else
    misuse "$name is neither a host name nor an address"
  fi
done

files=(ca.key ca.pem server.key server.pem client.key client.pem)
mkdir -p "$dir" || fail "can't make the directory $dir"
for file in "${files[@]}"; do
  [ ! -e "$dir/$file" ] && [ ! -L "$dir/$file" ] || fail "$dir/$file is there already; nothing was changed"
done

# All is made beside its place and moved there at the end, so that no half of it is left.
umask 077
work=$(mktemp -d "$dir/.make_certs.XXXXXX") || fail "can't write to $dir"
trap 'rm -rf "$work"' EXIT

# The extensions are all here: those of the system's own openssl.cnf differ from one to the next.
cat >"$work/openssl.cnf" <<CNF
[req]
distinguished_name = none
[none]
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $sans
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
CNF

run() { # openssl, silent unless it fails
  openssl "$@" >"$work/log" 2>&1 || fail "openssl $1 failed: $(tail -n 5 "$work/log")"
}

key() { # name
  run genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/$1.key"
}

certificate() { # name, common name: signed by the authority
  key "$1"
  run req -new -config "$work/openssl.cnf" -key "$work/$1.key" -subj "/O=recado test/CN=$2" \
    -out "$work/$1.csr"
  run x509 -req -in "$work/$1.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -sha256 \
    -set_serial "0x01$(openssl rand -hex 15)" -days "$days" \
    -extfile "$work/openssl.cnf" -extensions "$1" -out "$work/$1.pem"
}

# Each authority has a name of its own: two with one name would be mistaken for each other.
key ca
run req -x509 -new -config "$work/openssl.cnf" -extensions ca -key "$work/ca.key" -sha256 \
  -set_serial "0x01$(openssl rand -hex 15)" -days "$days" \
  -subj "/O=recado test/CN=recado test CA $(openssl rand -hex 4)" -out "$work/ca.pem"
certificate server "recado test server"
certificate client "$client"

chmod 644 "$work"/*.pem
chmod 600 "$work"/*.key
for file in "${files[@]}"; do mv -n "$work/$file" "$dir/$file"; done

cat <<T
In $dir, for tests, valid for $days days:
  ca.pem                    the authority: what clients trust
  server.pem, server.key    the broker's, for $sans
  client.pem, client.key    a client's, with the common name $client
  ca.key                    signs further ones; whoever has it can pose as any of them
T
