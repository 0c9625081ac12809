//! Tells the programs what they are built from: `--version` and `/metrics` say it.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RECADO_COMMIT");
    let commit = std::env::var("RECADO_COMMIT").ok().or_else(commit);
    let all = [
        ("CARGO_FEATURE_TLS", "tls"),
        ("CARGO_FEATURE_WEBSOCKET", "websocket"),
        ("CARGO_FEATURE_PROXY", "proxy"),
        ("CARGO_FEATURE_PAGE", "page"),
        ("CARGO_FEATURE_TINY_FRONT", "tiny-front"),
        ("CARGO_FEATURE_BROKER", "broker"),
    ];
    let features = all
        .iter()
        .filter(|(set, _)| std::env::var_os(set).is_some());
    let features: Vec<&str> = features.map(|(_, name)| *name).collect();
    let number = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let (commit, features) = (commit.unwrap_or("unknown".into()), features.join(","));
    let shown = if features.is_empty() {
        "none"
    } else {
        &features
    };
    println!("cargo:rustc-env=RECADO_COMMIT={commit}");
    println!("cargo:rustc-env=RECADO_FEATURES={features}");
    println!("cargo:rustc-env=RECADO_VERSION={number} (commit {commit}, features {shown})");
}

// That of the clone that this is built in, if it is one.
fn commit() -> Option<String> {
    // Not that of a repository that this one lies within.
    if !std::path::Path::new(".git").exists() {
        return None;
    }
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    let names = ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref());
    for file in names.filter_map(|name| git(&["rev-parse", "--git-path", name])) {
        // One that is not there counts as changed each time.
        if std::path::Path::new(&file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let is_said = output.status.success() && !text.trim().is_empty();
    is_said.then(|| text.trim().to_owned())
}
