//! Bad input: machines on which `uvs run` cannot start or on which something breaks while it runs, commands that make no
//! sense, frames that are wrong.
//!
//! How: the built program in network namespaces. Goal: each is a precise message or a counted drop reason, and nothing
//! else is disturbed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod files;
mod frames;
mod running;
mod start;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use support::{Accounting, Host, Process, program};

/// A start that fails, or one that succeeds, takes less.
const START_MAX: Duration = Duration::from_secs(20);

/// Arguments of `uvs run` with folders and socket of its own below `folder`.
fn arguments(folder: &Path, interfaces: &[&str], more: &[&str]) -> Vec<String> {
    let mut all = vec!["run".to_owned()];
    for interface in interfaces {
        all.extend(["--interface".to_owned(), (*interface).to_owned()]);
    }
    for (option, name) in [("--state-dir", "state"), ("--run-dir", "run"), ("--socket", "uvs.sock")] {
        if !more.contains(&option) {
            all.extend([option.to_owned(), folder.join(name).display().to_string()]);
        }
    }
    all.extend(more.iter().map(|argument| (*argument).to_owned()));
    all
}

/// Runs `uvs run` that must not become ready: its exit status and what it said.
fn refused(mut command: Command) -> (ExitStatus, String) {
    let mut process = Process::start("uvs run", &mut command).unwrap();
    // All its output comes before the end of it is seen.
    let ended = process
        .wait_for_line(START_MAX, |line| line.contains("ready on"))
        .unwrap_err();
    match process.try_wait().unwrap() {
        Some(status) => (status, process.output()),
        None => panic!("{ended}"),
    }
}

/// `uvs run` on these interfaces of the host must fail with exit code 1 and one message that holds all of `words`.
fn assert_refused(host: &Host, folder: &Path, interfaces: &[&str], more: &[&str], words: &[&str]) {
    let mut command = host.command(program()).unwrap();
    command.args(arguments(folder, interfaces, more));
    let (status, said) = refused(command);
    assert_message(status, &said, words);
}

fn assert_message(status: ExitStatus, said: &str, words: &[&str]) {
    assert_eq!(status.code(), Some(1), "{said}");
    let message = said.lines().rev().find(|line| line.contains("uvs")).unwrap_or_default();
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// Asks until the answer is yes; panics with what was asked last when the time is over.
fn wait_until<T: std::fmt::Debug>(timeout: Duration, mut ask: impl FnMut() -> T, good: impl Fn(&T) -> bool) -> T {
    let start = Instant::now();
    loop {
        let answer = ask();
        if good(&answer) {
            return answer;
        }
        assert!(start.elapsed() < timeout, "after {timeout:?} still {answer:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How often a reason was counted.
fn dropped(accounting: &Accounting, reason: &str) -> u64 {
    accounting.dropped.get(reason).copied().unwrap_or(0)
}

/// The only folder below `folder`.
fn only_child(folder: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(folder).unwrap();
    let first = entries.next().expect("something there").unwrap().path();
    assert!(entries.next().is_none(), "{} has more than one entry", folder.display());
    first
}
