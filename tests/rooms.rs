//! The house is in order: each room uses only those before it, and no two files use each other,
//! not even by way of others.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rooms, as `src/lib.rs` tells them.
const ROOMS: [&str; 14] = [
    "base", "wire", "http", "link", "stream", "front", "upstream", "monitor", "gateway", "agent",
    "cli", "config", "tools", "service",
];

/// A file of `src`: the names of its module below the crate, and what it says without comments.
struct Source {
    module: Vec<String>,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let mut sources = Vec::new();
    for file in files {
        let module = file.strip_prefix(&root).unwrap().with_extension("");
        let names = module.iter().map(|name| name.to_str().unwrap().to_owned());
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap());
        sources.push(Source {
            module: names.filter(|name| name != "lib").collect(),
            text: code.collect::<Vec<_>>().join("\n"),
        });
    }
    sources
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, files),
            false => files.push(path),
        }
    }
}

/// Every path in a text that begins with `crate` or `super`, seen from a module; a tree such as
/// `crate::a::{b, c::d}` is several.
fn paths(text: &str, module: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                branches(&text[at..], &mut Vec::new(), &mut found);
            }
        }
    }
    let absolute = |path: Vec<String>| {
        let ups = path.iter().take_while(|name| *name == "super").count();
        let above = &module[..module.len().saturating_sub(ups)];
        match ups {
            0 => path[1..].to_vec(),
            _ => [above, &path[ups..]].concat(),
        }
    };
    found.into_iter().map(absolute).collect()
}

// Reads one path or tree; returns what is behind it.
fn branches<'a>(text: &'a str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> &'a str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    let (name, mut rest) = text.split_at(end.unwrap_or(text.len()));
    prefix.push(name.to_owned());
    match rest.strip_prefix("::") {
        None => found.push(prefix.clone()),
        Some(further) => match further.strip_prefix('{') {
            None => rest = branches(further, prefix, found),
            Some(tree) => {
                rest = tree.trim_start();
                while !rest.starts_with('}') {
                    rest = branches(rest, prefix, found);
                    rest = rest.trim_start().trim_start_matches(',').trim_start();
                }
                rest = &rest[1..];
            }
        },
    }
    prefix.pop();
    rest
}

#[test]
fn each_room_uses_only_those_before_it() {
    let place = |room: &str| ROOMS.iter().position(|it| *it == room);
    for Source { module, text } in sources() {
        let Some(room) = module.first() else {
            continue;
        };
        let own = place(room).unwrap_or_else(|| panic!("{room} is in no order"));
        for used in paths(&text, &module) {
            let theirs = used.first().and_then(|used| place(used));
            let is_before = theirs.is_none_or(|theirs| theirs <= own);
            assert!(is_before, "{} uses {}", module.join("::"), used.join("::"));
        }
    }
}

#[test]
fn no_files_go_in_a_circle() {
    let sources = sources();
    let modules: BTreeSet<&[String]> = sources.iter().map(|it| it.module.as_slice()).collect();
    let mut uses: BTreeMap<&[String], BTreeSet<Vec<String>>> = BTreeMap::new();
    for Source { module, text } in sources.iter().filter(|it| it.module.len() != 1) {
        // What a room shows of its files is no use of them.
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let used = paths(text, module).into_iter().filter_map(|path| {
            let mut lengths = (1..=path.len()).rev();
            let file = lengths.find(|length| modules.contains(&path[..*length]))?;
            // What a room shows to others would hide who uses whom within.
            let is_outside = file > 1 || path[0] != module[0];
            assert!(is_outside, "{} uses {}", module.join("::"), path.join("::"));
            Some(path[..file].to_vec())
        });
        let others = used.filter(|used| used != module);
        uses.insert(module, others.collect());
    }
    for module in &modules {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&Vec<String>> = uses.get(module).into_iter().flatten().collect();
        while let Some(used) = next.pop() {
            assert!(used != module, "{} uses itself", module.join("::"));
            if seen.insert(used) {
                next.extend(uses.get(used.as_slice()).into_iter().flatten());
            }
        }
    }
}

#[test]
fn files_are_short() {
    for Source { module, text } in sources() {
        let lines = text.lines().count();
        assert!(lines <= 500, "{} has {lines} lines", module.join("::"));
    }
}
