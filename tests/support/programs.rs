//! Real programs in tests, which run with `UVS_REAL_PROGRAMS=1` alone; a program that is missing is then a failure.
#![allow(dead_code, reason = "each test file uses a part")]

use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::process::Output;
use std::time::Duration;

use uvs::demo::cluster::Host;
use uvs::io::netns;

/// What asks for these tests.
const VARIABLE: &str = "UVS_REAL_PROGRAMS";

/// Whether these tests are wanted; if not it says so on the terminal, past the capture of passing tests' output.
pub fn wanted() -> bool {
    if std::env::var(VARIABLE).is_ok_and(|value| value == "1") {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    netns::say(&format!("REAL PROGRAMS TEST NOT RUN: wants {VARIABLE}=1: {test}"));
    false
}

/// A program on a host.
pub fn attempt(host: &Host, program: &str, arguments: &[&str]) -> Output {
    let mut command = host.command(program).expect("a command");
    command
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"))
}

/// A program on a host, which must succeed.
pub fn run(host: &Host, what: &str, program: &str, arguments: &[&str]) -> Output {
    succeeded(attempt(host, program, arguments), what, program, arguments)
}

/// What a program said that must have succeeded.
pub fn succeeded(output: Output, what: &str, program: &str, arguments: &[&str]) -> Output {
    assert!(
        output.status.success(),
        "{what}: {program} {}: {}: {}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    output
}

/// Waits until somebody listens, at most five seconds.
pub fn wait_for_listener(host: &Host, port: u16) {
    let at = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
    for _ in 0..100 {
        let connected = host.namespace().run(|| TcpStream::connect(at));
        if connected.expect("the namespace").is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("nobody listens on port {port} of {}", host.name());
}

/// Bytes without a pattern, the same in each run.
pub fn random(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}
