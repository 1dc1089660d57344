//! The shape of the house: which module may name which, where `unsafe` may stand, and how long a file may get.
//!
//! How: reads the sources as text. Goal: ARCHITECTURE.md's map cannot rot silently.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]

use std::fs;
use std::path::{Path, PathBuf};

/// Layers from the bottom up; modules of one row stand beside each other and do not name each other.
const LAYERS: &[&[&str]] = &[
    &["packet", "service", "options", "prefetch", "random"],
    &["scheduler", "conn"],
    &["table", "forward"],
    &["dataplane"],
    &["io"],
    &["control"],
    &["ipvsadm"],
    &["replay"],
    &["demo"],
    &["cli"],
];

/// `service` uses `packet`'s words, `conn` uses `scheduler`'s Load, `forward` uses `table`'s NextHop.
const NEIGHBOURS: &[(&str, &str)] = &[("service", "packet"), ("conn", "scheduler"), ("forward", "table")];

/// The files outside io/ that may hold `unsafe`: one maps the connection entries, one has two instructions, one is where the C library
/// calls Rust.
const UNSAFE_FILES: [&str; 3] = ["src/conn/entries.rs", "src/prefetch.rs", "src/main.rs"];

/// The hard end for a file, tests included. About 500 is the aim.
const LINES_MAX: usize = 700;

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
    let files = sources_in("src");
    assert!(
        files.len() > 40,
        "only {} sources found: is the walk broken?",
        files.len()
    );
    files
}

/// Path and text of each, in order.
fn sources_in(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join(folder), &mut files);
    files.sort();
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

/// Code without comments and without the unit tests at the end of the file; lines stay where they are.
fn code(text: &str) -> String {
    let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
    let lines = text[..end].lines().map(|line| line.split("//").next().unwrap_or(""));
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules of the crate that the code names, each with its line: in `crate::a`, and in groups
/// (`crate::{a, b::{self, c}}`), also over several lines.
fn modules_named(code: &str) -> Vec<(usize, &str)> {
    let mut named = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let at = at + prefix.len();
        match code[at..].strip_prefix('{') {
            Some(group) => named.extend(first_names(group).map(|(offset, name)| (at + 1 + offset, name))),
            None => named.push((at, word(&code[at..]))),
        }
    }
    let line = |at: usize| code[..at].matches('\n').count() + 1;
    named.into_iter().map(|(at, name)| (line(at), name)).collect()
}

/// The first name of each path in a group, up to the group's end; groups inside belong to their path.
fn first_names(group: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut depth = 0;
    let mut fresh = true;
    let mut names = Vec::new();
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && !c.is_whitespace() => {
                names.push((at, word(&group[at..])));
                fresh = false;
            }
            _ => {}
        }
    }
    names.into_iter()
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// What is wrong in a file of that path.
fn layer_faults(path: &str, text: &str) -> Vec<String> {
    let Some(module) = module_of(path) else { return vec![] };
    let mut faults = Vec::new();
    for (n, named) in modules_named(&code(text)) {
        if named == module || !LAYERS.iter().any(|row| row.contains(&named)) {
            continue;
        }
        let allowed = layer(named) < layer(module) || NEIGHBOURS.contains(&(module, named));
        if !allowed {
            faults.push(format!("{path}:{n}: `{module}` names `{named}`, which is not below it"));
        }
    }
    faults
}

#[test]
fn modules_name_only_lower_layers() {
    let faults: Vec<_> = all_sources()
        .iter()
        .flat_map(|(path, text)| layer_faults(path, text))
        .collect();
    assert!(faults.is_empty(), "layers broken:\n{}", faults.join("\n"));
}

/// How: sources made up, with imports of every shape. Goal: the check above sees what it shall see, and nothing else.
#[test]
fn the_layer_check_sees_every_shape_of_import() {
    for (text, lines) in [
        ("use crate::control::State;", &[1][..]),
        ("use crate::packet::Mac;", &[]),
        ("use crate::io::netlink;", &[]),
        ("use crate::{control, packet};", &[1]),
        (
            "use crate::{\n    packet::{Frame, control},\n    control::{self, state::{State, cli}},\n};",
            &[3],
        ),
        (
            "use crate::{packet::Mac, table::{Table}, control::State, cli};",
            &[1, 1],
        ),
        ("pub(crate) use crate::{packet};\nuse crate::demo;", &[2]),
        (
            "// use crate::control;\nuse crate::packet::{self, Mac}; // crate::cli",
            &[],
        ),
        ("fn f() -> crate::control::State {\n    crate::{control}\n}", &[1, 2]),
        (
            "use crate::packet;\n#[cfg(test)]\nmod tests {\n    use crate::control;\n}",
            &[],
        ),
    ] {
        let faults = layer_faults("src/io/made_up.rs", text);
        let wanted: Vec<_> = lines.iter().map(|n| format!("src/io/made_up.rs:{n}: ")).collect();
        assert_eq!(faults.len(), wanted.len(), "{text}\n{faults:?}");
        for (fault, wanted) in faults.iter().zip(&wanted) {
            assert!(fault.starts_with(wanted), "{text}\n{fault}");
        }
    }
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let mut faults = Vec::new();
    for (path, text) in all_sources() {
        if path.starts_with("src/io/") || UNSAFE_FILES.contains(&path.as_str()) {
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
        "unsafe outside io/ and {UNSAFE_FILES:?}:\n{}",
        faults.join("\n")
    );
}

#[test]
fn files_fit_a_sitting() {
    let long: Vec<_> = ["src", "tests", "perf", "fuzz"]
        .into_iter()
        .flat_map(sources_in)
        .map(|(path, text)| (text.lines().count(), path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "longer than {LINES_MAX} lines: {long:?}");
}
