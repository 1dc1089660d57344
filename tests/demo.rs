//! `uvs demo`: shows what it promises, and leaves nothing behind, however it ends.
//!
//! How: the real program, and afterwards a look at /run/netns, /dev/shm and the process table. Goal: whoever tries
//! uvs first sees it work, and finds their machine as it was.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

mod support;

use support::{Process, netns, program};

/// Namespaces and folders of the process `pid`.
fn left_by(pid: u32) -> BTreeSet<String> {
    let prefix = format!("uvs-{pid}-");
    let mut left: BTreeSet<String> = netns::list(&prefix)
        .expect("/run/netns can be read")
        .into_iter()
        .collect();
    for entry in std::fs::read_dir("/dev/shm").expect("/dev/shm can be read").flatten() {
        left.extend(
            entry
                .file_name()
                .into_string()
                .ok()
                .filter(|name| name.starts_with(&prefix)),
        );
    }
    left
}

/// Processes that run in or for the cluster of `pid`.
fn processes_of(pid: u32) -> Vec<String> {
    let mark = format!("uvs-{pid}-");
    let entries = std::fs::read_dir("/proc").expect("/proc can be read").flatten();
    let command_line = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("cmdline")).ok();
    entries
        .filter_map(command_line)
        .filter(|line| line.contains(&mark))
        .collect()
}

/// Waits until nothing is left, at most five seconds.
fn assert_nothing_left(pid: u32) {
    let start = Instant::now();
    while !left_by(pid).is_empty() || !processes_of(pid).is_empty() {
        let (left, processes) = (left_by(pid), processes_of(pid));
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "left behind: {left:?}, {processes:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start(arguments: &[&str]) -> Process {
    Process::start("uvs demo", Command::new(program()).arg("demo").args(arguments)).expect("uvs demo starts")
}

/// Runs one mode to its end; its output, which must be a success.
fn run(mode: &str) -> String {
    let mut process = start(&["--mode", mode]);
    let pid = process.id();
    let status = process.wait(Duration::from_secs(60)).expect("uvs demo ends");
    std::thread::sleep(Duration::from_millis(50)); // Its last lines are on their way through the pipe.
    let output = process.output();
    assert!(status.success(), "{output}");
    assert_nothing_left(pid);
    output
}

/// The lines that each mode must show, in this order.
fn assert_shows(mode: &str, vip: &str, listed: &str) {
    if !netns::can_test() {
        return;
    }
    let output = run(mode);
    let mut rest = output.as_str();
    let answers = ["server4-hk", "server3-hk"].into_iter().cycle().take(6);
    let rows = [
        "IP Virtual Server version 1.2.1 (size=4096)".to_owned(),
        "Prot LocalAddress:Port Scheduler Flags".to_owned(),
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn".to_owned(),
        format!("TCP  {vip}:80 rr"),
        format!("  -> {:<29}{listed:<8}1      0          3", "172.25.7.3:80"),
        format!("  -> {:<29}{listed:<8}1      0          3", "172.25.7.4:80"),
    ];
    for line in answers.map(str::to_owned).chain(rows) {
        let at = rest
            .find(&line)
            .unwrap_or_else(|| panic!("lacks, or not in this place: {line}\n{output}"));
        rest = &rest[at + line.len()..];
    }
    assert!(rest.contains(" = transmitted "), "the accounting: {output}");
}

#[test]
fn nat() {
    assert_shows("nat", "172.25.254.100", "Masq");
}

#[test]
fn tunnel() {
    assert_shows("tun", "172.25.7.100", "Tunnel");
}

#[test]
fn direct_routing() {
    assert_shows("dr", "172.25.7.200", "Route");
}

#[test]
fn kept_it_answers_until_a_signal_and_cleans_up_also_when_killed() {
    if !netns::can_test() {
        return;
    }
    let has_curl = Path::new("/usr/bin/curl").exists();
    if !has_curl {
        netns::not_run("PRINTED CURL COMMAND NOT RUN: needs curl");
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
        let mut process = start(&["--mode", "tun", "--keep"]);
        let pid = process.id();
        process
            .wait_for_line(Duration::from_secs(60), |line| line.contains("Ctrl-C"))
            .expect("it stays up");
        assert!(
            !left_by(pid).is_empty() && !processes_of(pid).is_empty(),
            "there is something to clean up"
        );
        // The commands it prints work.
        let said = process.output();
        let printed = |mark: &str| {
            let line = said.lines().map(str::trim).find(|line| line.contains(mark));
            line.unwrap_or_else(|| panic!("no command with {mark}: {said}"))
                .to_owned()
        };
        let table = shell(&printed("ipvsadm -ln --stats"));
        assert!(table.contains("172.25.7.100:80"), "{table}");
        if has_curl {
            assert_eq!(shell(&printed("ip netns exec")), "server4-hk\n");
        }
        process.signal(signal).expect("it lives");
        process.wait(Duration::from_secs(20)).expect("it ends");
        assert_nothing_left(pid);
    }
}

fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh runs");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn without_root_it_says_what_it_needs() {
    // As nobody in every namespace: by setpriv, where it is there and we are root; else as we are.
    let mut command = if netns::is_root() {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(program());
        command
    } else {
        Command::new(program())
    };
    let output = match command.arg("demo").output() {
        Err(error) if netns::is_root() && error.kind() == ErrorKind::NotFound => {
            return netns::not_run("TEST NOT RUN: needs setpriv");
        }
        output => output.expect("uvs demo runs"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(
        said,
        "uvs demo: needs root: network namespaces are made with CAP_SYS_ADMIN and CAP_NET_ADMIN\n"
    );
}
