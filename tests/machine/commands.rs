//! Commands that make no sense: ipvsadm's own messages and exit codes, and nothing changed by any of them.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use super::support::{Director, Family, Layout, Method, Plan, Scenario, assert_balanced, scenario};

/// A service on port 80, one on port 443 without servers, and firewall mark 7.
fn director() -> Option<Scenario> {
    let mut s = scenario("commands", Plan::new(Layout::TwoArmed))?;
    s.offer(Method::Masq, Family::V4).unwrap();
    s.start(&["--driver", "raw"]).unwrap();
    s.add_service(Method::Masq, Family::V4, "-s rr").unwrap();
    for rule in ["-A -t 10.0.0.100:443 -s wlc", "-A -f 7"] {
        s.director().unwrap().ipvsadm(rule).unwrap();
    }
    Some(s)
}

/// Runs `uvs ipvsadm`: exit code, standard output, standard error.
fn ipvsadm(director: &Director, arguments: &[&str], stdin: &str) -> (Option<i32>, String, String) {
    let mut command = director.command(&["ipvsadm"]);
    command.args(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// What the kernel would refuse, with the code and message of ipvsadm.
fn refused_by_the_rules(director: &Director) {
    const VIP: &str = "10.0.0.100:80";
    const SERVER: &str = "192.168.0.11:80";
    for (arguments, code, message) in [
        (format!("-A -t {VIP} -s rr"), 255, "Service already exists"),
        ("-A -f 7".to_owned(), 255, "Service already exists"),
        (
            "-A -t 10.0.0.100:81 -s nosuch".to_owned(),
            255,
            "Scheduler or persistence engine not found",
        ),
        (
            format!("-E -t {VIP} -s nosuch"),
            255,
            "Scheduler or persistence engine not found",
        ),
        (
            "-A -u 10.0.0.100:5060 -s rr -p 300 --pe h323".to_owned(),
            255,
            "Scheduler or persistence engine not found",
        ),
        (
            format!("-E -t {VIP} -s rr -p 300 --pe SIP"),
            255,
            "Scheduler or persistence engine not found",
        ),
        ("-E -t 10.0.0.100:81 -s rr".to_owned(), 255, "No such service"),
        ("-E -u 10.0.0.100:80 -s rr".to_owned(), 255, "No such service"),
        ("-D -t 10.0.0.100:81".to_owned(), 255, "No such service"),
        ("-D -f 8".to_owned(), 255, "No such service"),
        (
            format!("-a -t 10.0.0.100:81 -r {SERVER} -m"),
            255,
            "Service not defined",
        ),
        (format!("-a -t {VIP} -r {SERVER} -m"), 255, "Destination already exists"),
        (
            format!("-a -t {VIP} -r {SERVER} -m -w 5"),
            255,
            "Destination already exists",
        ),
        (format!("-e -t {VIP} -r 192.168.0.99:80 -m"), 255, "No such destination"),
        (
            format!("-e -t 10.0.0.100:81 -r {SERVER} -m"),
            255,
            "Service not defined",
        ),
        (format!("-d -t {VIP} -r 192.168.0.11:81"), 255, "No such destination"),
        (format!("-d -t 10.0.0.100:81 -r {SERVER}"), 255, "Service not defined"),
        (
            "-d -t 10.0.0.100:443 -r 192.168.0.11:443".to_owned(),
            255,
            "No such destination",
        ),
        ("-Z -t 10.0.0.100:81".to_owned(), 255, "No such service"),
        ("-Ln -t 10.0.0.100:81".to_owned(), 1, "No such service"),
    ] {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        let (found_code, _, error) = ipvsadm(director, &words, "");
        assert_eq!((found_code, error.trim_end()), (Some(code), message), "{arguments}");
    }
}

/// Every refusal that was recorded from ipvsadm 1.31, except those that depend on the machine's names.
fn refused_by_the_command_line(director: &Director) {
    let recorded: Value = serde_json::from_str(include_str!("../kernel/usage.json")).unwrap();
    let mut tried = 0;
    for vector in recorded["vectors"].as_array().unwrap() {
        let arguments: Vec<&str> = vector["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| a.as_str().unwrap())
            .collect();
        let named = |argument: &&str| {
            argument.contains("invalid") || argument.contains("localhost") || argument.contains("http")
        };
        let untouched = vector["calls"].as_array().unwrap().is_empty();
        if vector["rc"] == 0 || !untouched || arguments.iter().any(named) {
            continue;
        }
        let stdin = vector["stdin"].as_str().unwrap_or_default();
        let (code, output, error) = ipvsadm(director, &arguments, stdin);
        let wanted = (
            vector["rc"].as_i64(),
            vector["stdout"].as_str().unwrap(),
            vector["stderr"].as_str().unwrap(),
        );
        let found = (code.map(i64::from), output.as_str(), error.as_str());
        assert_eq!(found, wanted, "ipvsadm {arguments:?} < {stdin:?}");
        tried += 1;
    }
    assert!(tried > 150, "{tried} commands only");
}

/// `uvs sysctl`: names that are not there, and values that cannot be.
fn refused_settings(director: &Director) {
    for (arguments, word) in [
        (["sysctl", "-w", "net.ipv4.vs.nosuch=1"].as_slice(), "nosuch"),
        (&["sysctl", "net.ipv4.vs.nosuch"], "nosuch"),
        (
            &["sysctl", "-w", "net.ipv4.vs.expire_nodest_conn=abc"],
            "expire_nodest_conn",
        ),
        (
            &["sysctl", "-w", "net.ipv4.vs.expire_nodest_conn="],
            "expire_nodest_conn",
        ),
        (
            &["sysctl", "-w", "net.ipv4.vs.conn_reuse_mode=99999999999"],
            "conn_reuse_mode",
        ),
    ] {
        let output = director.output(arguments).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {error}");
        assert!(error.contains(word), "{arguments:?}: {error}");
    }
}

#[test]
fn senseless_commands_are_answered_and_change_nothing() {
    let Some(mut s) = director() else { return };
    let mut client = s.connect(Method::Masq, Family::V4, None).unwrap();
    let name = client.get("/").unwrap();
    let director = s.director().unwrap();
    let before = director.ipvsadm("-Sn").unwrap();
    refused_by_the_rules(director);
    refused_by_the_command_line(director);
    refused_settings(director);
    assert_eq!(director.ipvsadm("-Sn").unwrap(), before);
    assert_eq!(client.get("/").unwrap(), name);
    s.request(Method::Masq, Family::V4).unwrap();
    assert_balanced(&mut s);
}
