#!/usr/bin/env bash
# Builds what a release consists of, into dist: archives and Debian packages of static programs, with the licences and
# the list of what they are made of, and checksums.
#
#   scripts/release.sh [VARIANT...]     VARIANT: amd64, arm64, armhf, each also with -minimal; all six by default
#
# The minimal variants have neither TLS, WebSockets, proxies, the live page, tiny_http as a front nor the embedded broker,
# and are optimized for size: SHA-2 is a loop, and a panic, which is a defect here, says what but not in which line.
#
# Needs cargo-zigbuild, which brings a C compiler and the C library for each target, and for the archives' papers
# cargo-about and cargo-cyclonedx, for packages cargo-deb:
#
#   pip install cargo-zigbuild && cargo install --locked cargo-deb cargo-cyclonedx cargo-about --features cargo-about/cli
#
# The same commit is to give the same bytes in whatever folder (.ci/run compares one archive). Rust's standard library
# is built here too, from rustup's rust-src: programs become a tenth smaller by leaving out what reads debug information,
# which stripped ones don't have. cargo offers that behind a switch for nightly compilers only, hence RUSTC_BOOTSTRAP.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'release.sh: %s\n' "$*" >&2; exit 1; }
[[ ${1:-} != -* ]] || { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"; exit 0; }

for tool in cargo-zigbuild cargo-about cargo-cyclonedx cargo-deb; do
  command -v $tool >/dev/null || fail "$tool is missing; see --help"
done
[ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ] || rustup component add rust-src

variants=("$@")
((${#variants[@]})) || variants=(amd64 amd64-minimal arm64 arm64-minimal armhf armhf-minimal)
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# Every file has the time of the commit, so that nothing depends on when it was built.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
RECADO_DATE=$(date -u -d "@$SOURCE_DATE_EPOCH" +%F)
export SOURCE_DATE_EPOCH RECADO_DATE

# Installed names, and what cargo calls them.
declare -A program=(
  [recado-gateway]=api_1 [recado-agent]=agent [recado-broker]=broker [recado-sub]=client_a [recado-pub]=client_b)

target_of() {
  case $1 in
  amd64*) echo x86_64-unknown-linux-musl ;;
  arm64*) echo aarch64-unknown-linux-musl ;;
  armhf*) echo armv7-unknown-linux-musleabihf ;;
  *) fail "unknown: $1; see --help" ;;
  esac
}
installed_of() { # the names that a variant has
  echo recado-gateway recado-agent recado-sub recado-pub
  [[ $1 == *-minimal ]] || echo recado-broker
}
features_of() { if [[ $1 == *-minimal ]]; then echo --no-default-features; fi; }

build() { # variant
  local variant=$1 target flags name bins=() size=()
  target=$(target_of "$variant")
  say "$variant: $target"
  for name in $(installed_of "$variant"); do bins+=("--bin=${program[$name]}"); done
  # zig has the start files and the C library, and takes `-static-pie` for `-static`; with `-pie` a program is at
  # another address each time, which makes it harder to attack. No path of this machine may end up in it.
  flags="-C target-feature=+crt-static -C link-self-contained=no -C link-arg=-pie --remap-path-prefix=$PWD=/recado"
  flags+=" --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$(rustc --print sysroot)=/rust"
  if [[ $variant == *-minimal ]]; then
    size=(CARGO_PROFILE_RELEASE_OPT_LEVEL=z)
    flags+=' -Zlocation-detail=none --cfg sha2_backend="soft" --cfg sha2_backend_soft="compact"'
  fi
  # shellcheck disable=SC2046 # one word, or none
  env "${size[@]}" RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags" CARGO_TARGET_DIR="$target_dir" \
    cargo-zigbuild zigbuild --locked --release --target "$target" $(features_of "$variant") "${bins[@]}" \
    -Zbuild-std=std,panic_unwind -Zbuild-std-features=optimize_for_size
}

# What archives and packages are made of, in dist/staging.
stage() { # variant
  local variant=$1 target name
  target=$(target_of "$variant")
  rm -rf dist/staging
  mkdir -p dist/staging/{bin,config,overrides}
  for name in $(installed_of "$variant"); do
    install -m 755 "$target_dir/$target/release/${program[$name]}" "dist/staging/bin/$name"
  done
  cp config/api_1.toml dist/staging/config/gateway.toml
  cp config/agent.toml config/mosquitto.conf config/mosquitto-secure.{conf,acl} dist/staging/config/
  cp -r config/systemd config/openwrt dist/pages/{man,completions} README.md CHANGELOG.md LICENSE dist/staging/
  mkdir dist/staging/docs
  cp docs/*.md dist/staging/docs/
  papers "$target" "$(features_of "$variant")"
}

papers() { # target, feature flags: the licences, and the bill of materials
  # shellcheck disable=SC2086 # one word, or none
  cargo about generate --locked --fail --target "$1" $2 --config scripts/release/about.toml \
    --output-file dist/staging/THIRD-PARTY-LICENCES.txt scripts/release/licences.hbs
  # shellcheck disable=SC2086
  cargo cyclonedx --quiet --format json --spec-version 1.5 --target "$1" $2 --override-filename recado.cdx
  sed "s|path+file://$PWD#|pkg:cargo/|g" recado.cdx.json >dist/staging/recado.cdx.json
  rm recado.cdx.json
}

archive() { # variant
  local name=recado-$version-linux-$1
  tar --create --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
    --transform "s,^staging,$name," --exclude staging/overrides --exclude staging/changelog \
    --directory dist staging | gzip -9n >"dist/$name.tar.gz"
}

packages() { # variant
  local package variant
  printf 'recado (%s-1) unstable; urgency=medium\n\n  * See CHANGELOG.md of the project.\n\n -- %s  %s\n' "$version" \
    "$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" >dist/staging/changelog
  for package in gateway agent tools; do
    # lintian takes a program that is static and position-independent for a library. cargo-deb writes the field of the
    # one that depends on nothing too.
    echo "recado-$package: shared-library-lacks-prerequisites" >"dist/staging/overrides/recado-$package"
    [ $package != tools ] || echo "recado-tools: empty-field Depends" >>dist/staging/overrides/recado-tools
    variant=(--variant "$package")
    [ $package != tools ] || variant=()
    cargo deb --locked --no-build --no-strip --target "$(target_of "$1")" "${variant[@]}" --output dist/ --quiet
  done
}

rm -rf dist
mkdir -p dist
say "manual pages and completions"
cargo run --locked --quiet --no-default-features --features tiny-front --example pages -- dist/pages
for variant in "${variants[@]}"; do
  build "$variant"
  stage "$variant"
  archive "$variant"
  [[ $variant == *-minimal ]] || packages "$variant"
done
rm -rf dist/staging
(cd dist && find . -maxdepth 1 -type f ! -name SHA256SUMS -printf "%f\n" | sort | xargs sha256sum -- >SHA256SUMS)
say "in dist"
ls -l dist
