//! The built program, called by each of its names: which dialect answers, and with which exit code.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use uvs::io::poll::{PollSet, Waker, Woken};
use uvs::io::unix::peer_credentials;

/// Runs a program without a daemon behind its socket.
fn run(program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("UVS_SOCKET", "/nonexistent/uvs.sock")
        .stdin(Stdio::null());
    command.output().unwrap()
}

fn uvs(arguments: &[&str]) -> Output {
    run(Path::new(env!("CARGO_BIN_EXE_uvs")), arguments)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn links_speak_ipvsadm() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["ipvsadm", "ipvsadm-save", "ipvsadm-restore"] {
        let link = dir.path().join(name);
        symlink(env!("CARGO_BIN_EXE_uvs"), &link).unwrap();
        let output = run(&link, &[]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(
            text(&output.stderr).starts_with("Can't initialize ipvs: uvs is not running: /nonexistent/"),
            "{name}"
        );
    }
    let ipvsadm = dir.path().join("ipvsadm");
    let help = run(&ipvsadm, &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let usage = format!("\n  {} -L|l [virtual-service] [options]\n", ipvsadm.display());
    assert!(text(&help.stdout).contains(&usage), "it names the program as called");
    assert_eq!(run(&ipvsadm, &["-L", "--bogus"]).status.code(), Some(255));
    assert_eq!(run(&ipvsadm, &["-A"]).status.code(), Some(2));
}

#[test]
fn the_subcommand_gives_everything_to_the_dialect() {
    let help = uvs(&["ipvsadm", "-h"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("\n  ipvsadm -C\n"));
    assert!(text(&uvs(&["ipvsadm", "--version"]).stdout).starts_with("ipvsadm v1.31 "));
    let output = uvs(&["ipvsadm", "-A", "-t", "10.0.0.1:80", "--", "-s"]);
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(2), "unexpected argument -s\n")
    );
}

#[test]
fn exit_codes() {
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["--version"], 0),
        (&["run", "--help"], 0),
        (&[], 2),
        (&["bogus"], 2),
        (&["sysctl"], 2),
        (&["sysctl", "kernel.pid_max"], 2),
        (&["sysctl", "net.ipv4.vs.pmtu_disc"], 1),
        (&["ping"], 1),
        (&["explain"], 2),
        (&["explain", "tcp", "1.2.3.4", "10.0.0.1:80"], 2),
        (&["explain", "tcp", "1.2.3.4:5", "10.0.0.1:80"], 1),
        (&["replay"], 2),
        (
            &["replay", "tests/kernel/packets.json", "--interfaces", "eth0,mtu=1"],
            2,
        ),
        (&["stats", "--json"], 1),
        (&["stop"], 1),
    ] {
        let output = uvs(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        if code == 1 {
            assert!(
                text(&output.stderr).ends_with("; `uvs run` starts it\n"),
                "{arguments:?}"
            );
        }
    }
}

/// How: alone in a root directory. Goal: linked statically (build.rs) it runs where nothing else is; there names are not found, and it
/// says why.
#[cfg(not(feature = "afxdp"))]
#[test]
fn the_program_needs_no_other_file() {
    use uvs::io::netns;

    if !cfg!(linked_statically) {
        return netns::not_run("TEST NOT RUN: linked dynamically, see build.rs");
    }
    if !netns::is_root() {
        return netns::not_run("TEST NOT RUN: needs root for chroot");
    }
    let program = Path::new(env!("CARGO_BIN_EXE_uvs"));
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(program, root.path().join("uvs")).unwrap();
    let alone = |arguments: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg(root.path()).arg("/uvs").args(arguments).output().unwrap()
    };
    let version = alone(&["--version"]);
    let expected = concat!("uvs ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(text(&version.stdout), expected, "{version:?}");
    let named = alone(&["ipvsadm", "-A", "-t", "localhost:80"]);
    let expected = "uvs: no names of hosts: `getent`: No such file or directory (os error 2)\n\
                    illegal virtual server address[:port] specified\n";
    assert_eq!(text(&named.stderr), expected, "{named:?}");
    assert_eq!(named.status.code(), Some(2));
    // It would load modules of the machine's own C library.
    let resolver = b"\0getaddrinfo\0";
    let bytes = std::fs::read(program).unwrap();
    assert!(
        !bytes.windows(resolver.len()).any(|name| name == resolver),
        "a symbol of it"
    );
}

#[test]
fn hosts_have_names() {
    let service = |name: &str| uvs(&["ipvsadm", "-A", "-t", name]);
    let known = service("localhost:80");
    assert!(text(&known.stderr).starts_with("Can't initialize ipvs: "), "{known:?}");
    let unknown = service("nobody.invalid:80");
    assert!(text(&unknown.stderr).contains("illegal virtual server"), "{unknown:?}");
}

/// How: a pipe whose reader has gone before anything is written. Goal: an exit code, and not death by SIGPIPE.
#[test]
fn a_reader_that_went_away_is_no_signal() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_uvs"));
    let status = command.arg("--help").stdout(writer).status().unwrap();
    assert!(status.code().is_some(), "{status}");
}

/// How: a shell closes them all, and the socket's other end looks what has their numbers while the program waits for it. Goal: no file
/// of the program's own, that what it prints would go to.
#[test]
fn closed_standard_files_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("uvs.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" ping 0<&- 1>&- 2>&-", env!("CARGO_BIN_EXE_uvs")]);
    let mut program = shell.env("UVS_SOCKET", &socket).spawn().unwrap();
    // One that ends without a word would be waited for.
    let mut polls = PollSet::new(Waker::new().unwrap(), &[listener.as_raw_fd()]);
    assert_eq!(polls.wait(Duration::from_secs(20)), Woken::Ready);
    let (mut client, _) = listener.accept().unwrap();
    let mut request = String::new();
    BufReader::new(&client).read_line(&mut request).unwrap();
    let pid = peer_credentials(&client).unwrap().pid;
    for fd in 0..3 {
        let file = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        assert_eq!(file, Path::new("/dev/null"), "{fd}");
    }
    client
        .write_all(b"{\"reply\":\"ok\",\"version\":\"1\",\"pid\":2}\n")
        .unwrap();
    assert!(program.wait().unwrap().success());
}
