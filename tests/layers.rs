//! The shape of the house: which module may name which, where `unsafe` may stand, and how long a file may get.
//!
//! How: reads the sources as text. Goal: ARCHITECTURE.md's map cannot rot silently.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]

use std::fs;
use std::path::{Path, PathBuf};

/// Layers from the bottom up; modules of one row stand beside each other and do not name each other.
const LAYERS: &[&[&str]] = &[
    &["packet", "service", "options"],
    &["scheduler", "conn"],
    &["table", "forward"],
    &["dataplane"],
    &["io"],
    &["control"],
    &["ipvsadm"],
    &["demo"],
    &["cli"],
];

/// `service` uses `packet`'s words, `conn` uses `scheduler`'s Load, `forward` uses `table`'s NextHop.
const NEIGHBOURS: &[(&str, &str)] = &[("service", "packet"), ("conn", "scheduler"), ("forward", "table")];

/// The one file outside io/ that may hold `unsafe`: it maps the connection entries.
const UNSAFE_FILE: &str = "src/conn/entries.rs";

/// The hard end for a file, tests included. About 500 is the aim.
const LINES_MAX: usize = 800;

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    files.sort();
    assert!(
        files.len() > 40,
        "only {} sources found: is the walk broken?",
        files.len()
    );
    files
        .into_iter()
        .map(|p| {
            (
                p.strip_prefix(root).unwrap().display().to_string(),
                fs::read_to_string(&p).unwrap(),
            )
        })
        .collect()
}

/// `src/conn/tcp.rs` and `src/cli.rs` belong to `conn` and `cli`; `lib.rs` and `main.rs` to no layer.
fn module_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    let name = rest.split('/').next()?.trim_end_matches(".rs");
    LAYERS.iter().flat_map(|row| row.iter()).find(|m| **m == name).copied()
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|row| row.contains(&module))
        .expect("a module with a layer")
}

/// Code lines without comments and without the unit tests at the end of the file.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end]
        .lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line.split("//").next().unwrap_or("")))
}

#[test]
fn modules_name_only_lower_layers() {
    let mut faults = Vec::new();
    for (path, text) in all_sources() {
        let Some(module) = module_of(&path) else { continue };
        for (n, line) in code(&text) {
            for part in line.split("crate::").skip(1) {
                let named: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if named == module || !LAYERS.iter().any(|row| row.contains(&named.as_str())) {
                    continue;
                }
                let allowed = layer(&named) < layer(module) || NEIGHBOURS.contains(&(module, named.as_str()));
                if !allowed {
                    faults.push(format!("{path}:{n}: `{module}` names `{named}`, which is not below it"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "layers broken:\n{}", faults.join("\n"));
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let mut faults = Vec::new();
    for (path, text) in all_sources() {
        if path.starts_with("src/io/") || path == UNSAFE_FILE {
            continue;
        }
        for (n, line) in text.lines().enumerate() {
            let line = line.split("//").next().unwrap_or("");
            if line.contains("unsafe ") || line.contains("allow(unsafe_code") {
                faults.push(format!("{path}:{}: {}", n + 1, line.trim()));
            }
        }
    }
    assert!(
        faults.is_empty(),
        "unsafe outside io/ and {UNSAFE_FILE}:\n{}",
        faults.join("\n")
    );
}

#[test]
fn files_fit_a_sitting() {
    let long: Vec<_> = all_sources()
        .into_iter()
        .map(|(path, text)| (text.lines().count(), path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "longer than {LINES_MAX} lines: {long:?}");
}
