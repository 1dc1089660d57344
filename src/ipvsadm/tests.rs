//! The dialect against what was recorded from ipvsadm 1.31 (`tests/kernel/`): every command, in order, over the real
//! control state behind an in-memory transport.

mod arguments;

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::names::testing::RecordedNames;
use super::*;
use crate::control::client::{ClientError, Transport};
use crate::control::protocol::{
    Command, CommandError, ConnectionListing, DestinationListing, Reply, Request, ServiceListing, TrafficStatistics,
};
use crate::control::state::State;
use crate::service::{DestinationKey, Method, Service, ServiceKey, TransportProtocol};

/// The control thread without its threads: the real state, and live numbers that the test sets.
#[derive(Default)]
struct InMemory {
    state: State,
    numbers: HashMap<(ServiceKey, DestinationKey), DestinationNumbers>,
    connections: Vec<ConnectionListing>,
    /// All commands that came, for tests that look at them.
    commands: Vec<Command>,
    requests: usize,
}

#[derive(Clone, Copy, Default)]
struct DestinationNumbers {
    active: u32,
    inactive: u32,
    statistics: TrafficStatistics,
}

impl Transport for InMemory {
    fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.requests += 1;
        Ok(match request {
            Request::Apply {
                commands,
                all_or_nothing,
            } => {
                self.commands.extend(commands.iter().cloned());
                let applied = self.state.apply_all(commands, *all_or_nothing);
                self.state = applied.state;
                Reply::Applied {
                    results: applied.results,
                    unsaved: None,
                }
            }
            Request::List { service } => Reply::Services {
                services: self.list(*service),
            },
            Request::Connections => Reply::Connections {
                connections: self.connections.clone(),
            },
            Request::Timeouts => Reply::Timeouts(self.state.timeouts),
            Request::Ping => Reply::Ok {
                version: String::new(),
                pid: 1,
            },
            other => Reply::Error {
                message: format!("{other:?} is not for this test"),
            },
        })
    }
}

impl InMemory {
    fn list(&self, only: Option<ServiceKey>) -> Vec<ServiceListing> {
        let services = self
            .state
            .services()
            .filter(|entry| only.is_none_or(|key| key == entry.service.key));
        let listings = services.map(|entry| ServiceListing {
            service: entry.service.clone(),
            statistics: TrafficStatistics::default(),
            destinations: entry
                .destinations()
                .map(|destination| {
                    let key = (entry.service.key, destination.key);
                    let numbers = self.numbers.get(&key).copied().unwrap_or_default();
                    DestinationListing {
                        destination: destination.clone(),
                        active: numbers.active,
                        inactive: numbers.inactive,
                        persistent: 0,
                        statistics: numbers.statistics,
                    }
                })
                .collect(),
        });
        listings.collect()
    }

    fn run(&mut self, line: &str) -> Outcome {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        self.run_words(&words, "")
    }

    fn run_words(&mut self, words: &[String], stdin: &str) -> Outcome {
        let program = Program::of(&words[0]).expect("one of the three programs");
        run(
            program,
            &words[0],
            &words[1..],
            &mut stdin.as_bytes(),
            self,
            &RecordedNames::new(),
        )
    }
}

fn outcome(stdout: &str, stderr: &str, exit_code: u8) -> Outcome {
    Outcome {
        stdout: stdout.into(),
        stderr: stderr.into(),
        exit_code,
    }
}

/// `--nosort` shows the kernel's hash order, which differs with each boot: compares services as a set, each with its
/// destinations in order.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    for line in text.split_inclusive('\n').skip(3) {
        match blocks.last_mut() {
            Some(block) if line.starts_with("  ->") => block.push_str(line),
            _ => blocks.push(line.to_owned()),
        }
    }
    blocks.sort();
    blocks
}

fn assert_outcome(line: &str, found: Outcome, expected: Outcome) {
    if line.contains("--nosort") {
        assert_eq!(blocks(&found.stdout), blocks(&expected.stdout), "$ {line}");
        assert_eq!(
            (found.stderr, found.exit_code),
            (expected.stderr, expected.exit_code),
            "$ {line}"
        );
    } else {
        assert_eq!(found, expected, "$ {line}");
    }
}

/// The shell loop of the transcript, written out.
fn spelled_out(line: &str) -> Vec<String> {
    if !line.starts_with("for ") {
        return vec![line.to_owned()];
    }
    let mut lines: Vec<String> = Vec::new();
    lines.extend([8, 3, 5, 1, 7, 2, 6, 4].map(|i| format!("ipvsadm -A -t 10.0.0.{i}:80 -s rr")));
    lines.extend([3, 1, 2].map(|i| format!("ipvsadm -a -t 10.0.0.1:80 -r 10.1.0.{i} -m")));
    for port in [90, 70, 443] {
        lines.extend(["-t", "-u"].map(|protocol| format!("ipvsadm -A {protocol} 10.0.0.1:{port} -s rr")));
    }
    lines.extend(
        [
            "-f 2 -s rr",
            "-f 1 -s rr",
            "-t [2001:db8::2]:80",
            "-t [2001:db8::1]:80",
            "-t [::1]:80",
        ]
        .map(|service| format!("ipvsadm -A {service}")),
    );
    lines
}

#[test]
fn transcript_basic() {
    let text = include_str!("../../tests/kernel/01a-basic.txt");
    let mut control = InMemory::default();
    let mut commands = 0;
    for block in text.split("\n$ ").skip(1) {
        let (line, output) = block.split_once('\n').unwrap();
        let (output, rest) = output.split_once("[rc=").unwrap();
        let exit_code = rest.split_once(']').unwrap().0.parse().unwrap();
        let (stderr, stdout): (Vec<_>, Vec<_>) = output.split_inclusive('\n').partition(|line| line.starts_with("2> "));
        let stderr: String = stderr.into_iter().map(|line| &line[3..]).collect();
        if line.starts_with("cat ") || line.starts_with("cd ") {
            continue;
        }
        for line in spelled_out(line) {
            let found = control.run(&line);
            assert_outcome(&line, found, outcome(&stdout.concat(), &stderr, exit_code));
            commands += 1;
        }
    }
    assert_eq!(commands, 117, "commands in the transcript");
}

#[derive(Deserialize)]
struct Golden {
    count: usize,
    vectors: Vec<GoldenVector>,
}

#[derive(Deserialize)]
struct GoldenVector {
    cmd: String,
    rc: u8,
    stdout: String,
    stderr: String,
}

#[test]
fn transcript_with_traffic() {
    let golden: Golden = serde_json::from_str(include_str!("../../tests/kernel/cli.json")).unwrap();
    assert_eq!(golden.vectors.len(), golden.count);
    let key = |protocol, port| ServiceKey::Address {
        protocol,
        address: IpAddr::from([10, 200, 1, 1]),
        port,
    };
    let server = |port| DestinationKey {
        address: IpAddr::from([172, 16, 0, 11]),
        port,
    };
    let mut control = InMemory::default();
    // The recording had traffic between its commands; the UDP totals came late, as the kernel's estimator has them.
    let tcp = TrafficStatistics {
        connections: 2,
        packets_in: 2,
        bytes_in: 96,
        bytes_in_per_s: 12,
        ..Default::default()
    };
    let udp = TrafficStatistics {
        connections: 3,
        packets_in: 3,
        packets_out: 1,
        bytes_in: 1486,
        bytes_out: 576,
        ..Default::default()
    };
    let numbers = |active, inactive, statistics| DestinationNumbers {
        active,
        inactive,
        statistics,
    };
    control
        .numbers
        .insert((key(TransportProtocol::Tcp, 80), server(80)), numbers(2, 0, tcp));
    control.numbers.insert(
        (key(TransportProtocol::Udp, 53), server(53)),
        numbers(0, 15, Default::default()),
    );
    for vector in golden.vectors {
        if vector.cmd.contains("--exact --stats") {
            control
                .numbers
                .insert((key(TransportProtocol::Udp, 53), server(53)), numbers(0, 15, udp));
        }
        let found = control.run(&vector.cmd);
        assert_outcome(&vector.cmd, found, outcome(&vector.stdout, &vector.stderr, vector.rc));
    }
}

/// Every refusal of the daemon, in the words of ipvsadm for that command.
#[test]
fn refusals_have_the_kernels_words() {
    struct Refuse(CommandError);
    impl Transport for Refuse {
        fn call(&mut self, _: &Request) -> Result<Reply, ClientError> {
            Ok(Reply::Applied {
                results: vec![Some(self.0.clone())],
                unsaved: None,
            })
        }
    }
    const SERVICE: [&str; 3] = ["-A -t 1.1.1.1:1", "-E -t 1.1.1.1:1", "-D -t 1.1.1.1:1"];
    const SERVER: [&str; 3] = [
        "-a -t 1.1.1.1:1 -r 2.2.2.2",
        "-e -t 1.1.1.1:1 -r 2.2.2.2",
        "-d -t 1.1.1.1:1 -r 2.2.2.2",
    ];
    use CommandError::*;
    let invalid = "Invalid operation.  Possibly wrong module version, address not unicast, ...\nuvs: why";
    for (lines, error, words) in [
        (SERVICE, ServiceExists, "Service already exists"),
        (SERVICE, NoSuchService, "No such service"),
        (SERVER, NoSuchService, "Service not defined"),
        (SERVER, DestinationExists, "Destination already exists"),
        (SERVER, NoSuchDestination, "No such destination"),
        (SERVICE, NoSuchScheduler, "Scheduler or persistence engine not found"),
        (SERVER, OutOfRange, "Numerical result out of range"),
        (SERVICE, Invalid("why".into()), invalid),
        (
            SERVER,
            Limit("there are 9 destinations already".into()),
            "there are 9 destinations already",
        ),
    ] {
        for line in lines {
            let words_of_line: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let control = &mut Refuse(error.clone());
            let names = &RecordedNames::new();
            let found = run(
                Program::Ipvsadm,
                "ipvsadm",
                &words_of_line,
                &mut "".as_bytes(),
                control,
                names,
            );
            assert_eq!(found, outcome("", &format!("{words}\n"), 255), "{line}: {error:?}");
        }
    }
}

#[test]
fn without_a_daemon_the_message_says_how_to_start_it() {
    let mut client = Client::new("/nonexistent/uvs.sock".into());
    let words = ["-Ln".to_owned()];
    let found = run(
        Program::Ipvsadm,
        "ipvsadm",
        &words,
        &mut "".as_bytes(),
        &mut client,
        &RecordedNames::new(),
    );
    assert_eq!(found.exit_code, 2);
    assert_eq!(found.stdout, "");
    assert!(
        found
            .stderr
            .starts_with("Can't initialize ipvs: uvs is not running: /nonexistent/uvs.sock: "),
        "{}",
        found.stderr
    );
    assert!(found.stderr.contains("`uvs run`"), "{}", found.stderr);
    for words in ["-h", "-v"] {
        let words = [words.to_owned()];
        let found = run(
            Program::Ipvsadm,
            "ipvsadm",
            &words,
            &mut "".as_bytes(),
            &mut client,
            &RecordedNames::new(),
        );
        assert_eq!(found.exit_code, 0, "{words:?} needs no daemon");
    }
}

#[test]
fn a_restore_is_one_request_and_saves_what_it_read() {
    let mut control = InMemory::default();
    let mut rules = String::new();
    for service in 0..1000 {
        let address = format!("10.{}.{}.1:80", service / 250, service % 250);
        rules += &format!("-A -t {address} -s rr\n");
        for server in 1..=10 {
            rules += &format!("-a -t {address} -r 10.100.0.{server}:80 -m -w {server}\n");
        }
    }
    let found = control.run_words(&["ipvsadm".into(), "-R".into()], &rules);
    assert_eq!(found, Outcome::default());
    assert_eq!((control.requests, control.commands.len()), (1, 11_000));
    let saved = control.run("ipvsadm -Sn");
    assert_eq!(saved.stdout, rules);

    // Again: all exist already, each is said, and the last line decides the exit code.
    let again = control.run_words(&["ipvsadm".into(), "-R".into()], &format!("{rules}-Z\n"));
    assert_eq!(again.stderr.lines().count(), 11_000);
    assert_eq!(again.exit_code, 0);

    // ipvsadm-restore clears first, and takes comment lines out.
    let rules = "# mine\n-A -t 10.0.0.1:80 -s wlc\n";
    assert_eq!(
        control.run_words(&["/sbin/ipvsadm-restore".into()], rules),
        Outcome::default()
    );
    assert_eq!(control.run("ipvsadm-save -n").stdout, "-A -t 10.0.0.1:80 -s wlc\n");
}

/// A service may be without a scheduler; the statistics of nowhere are those of all.
#[test]
fn nobody_and_nowhere() {
    let mut control = InMemory::default();
    assert_eq!(control.run("ipvsadm -A -t 10.0.0.1:80 -s none"), outcome("", "", 0));
    assert_eq!(
        control.run("ipvsadm -S -n"),
        outcome("-A -t 10.0.0.1:80 -s none\n", "", 0)
    );
    for line in ["ipvsadm -Z -t 0.0.0.0:0", "ipvsadm -Z -u [::]:0"] {
        assert_eq!(control.run(line), outcome("", "", 0), "{line}");
        assert_eq!(control.commands.pop(), Some(Command::Zero { service: None }), "{line}");
    }
    let refused = control.run("ipvsadm -Z -t 0.0.0.0:80");
    assert_eq!(refused, outcome("", "No such service\n", 255));
}

#[test]
fn the_save_script_knows_one_option() {
    let mut control = InMemory::default();
    let usage = "ipvsadm-save: Script to save the IPVS table to stdout.\n   \
                 With the -n option, prints out the table in numeric format.\n";
    assert_eq!(control.run("/sbin/ipvsadm-save -x"), outcome("", usage, 1));
    assert_eq!(control.run("ipvsadm-save -n word"), Outcome::default());
}

#[test]
fn tunnels_round_trip() {
    let mut control = InMemory::default();
    control.run("ipvsadm -A -t 10.0.0.1:80");
    for (server, options) in [
        (1, "--tun-type gue --tun-port 6080 --tun-nocsum"),
        (2, "--tun-type gue --tun-port 6080 --tun-remcsum"),
        (3, "--tun-type gre --tun-csum"),
        (4, "--tun-type ipip"),
    ] {
        let found = control.run(&format!("ipvsadm -a -t 10.0.0.1:80 -r 10.1.0.{server} -i {options}"));
        assert_eq!(found, Outcome::default(), "{options}");
    }
    let listing = control.run("ipvsadm -Ln --tun-info").stdout;
    let lines: Vec<_> = listing.lines().skip(4).collect();
    assert_eq!(
        lines,
        [
            "  -> 10.1.0.1:80                  Tunnel  gue:6080:-c   1      0          0         ",
            "  -> 10.1.0.2:80                  Tunnel  gue:6080:r+c  1      0          0         ",
            "  -> 10.1.0.3:80                  Tunnel  gre:+c        1      0          0         ",
            "  -> 10.1.0.4:80                  Tunnel  ipip          1      0          0         ",
        ]
    );
    let saved = control.run("ipvsadm -Sn").stdout;
    assert!(
        saved.contains("-r 10.1.0.2:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-remcsum\n"),
        "{saved}"
    );
    assert_eq!(
        control.run_words(&["ipvsadm-restore".into()], &saved),
        Outcome::default()
    );
    assert_eq!(control.run("ipvsadm -Sn").stdout, saved);
}

#[test]
fn connections_as_recorded() {
    let entry = |protocol, expires_s, state: &str, client: &str, service: &str, server: &str| {
        let end = |text: &str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            (address.ip(), address.port())
        };
        ConnectionListing {
            protocol,
            expires_s,
            state: state.into(),
            client: end(client),
            virtual_address: end(service),
            destination: end(server),
            call_id: None,
        }
    };
    let call = |expires_s, server, call_id: &str| ConnectionListing {
        call_id: Some(call_id.into()),
        ..entry(17, expires_s, "NONE", "198.51.100.3:0", "192.0.2.1:5060", server)
    };
    let mut control = InMemory {
        connections: vec![
            entry(
                6,
                886,
                "ESTABLISHED",
                "198.51.100.9:20143",
                "192.0.2.1:80",
                "10.1.0.1:80",
            ),
            entry(17, 299, "UDP", "198.51.100.9:30001", "192.0.2.1:53", "10.1.0.13:53"),
            entry(6, 49, "NONE", "198.51.100.3:0", "192.0.2.1:83", "10.1.0.11:83"),
            entry(0, 6000, "NONE", "198.51.100.3:0", "0.0.0.7:0", "10.1.0.11:80"),
            entry(
                6,
                0,
                "CLOSE",
                "[2001:db8::9]:5",
                "[2001:db8::1]:80",
                "[2001:db8:1::1]:8080",
            ),
            call(298, "10.1.0.11:5060", "a84b4c76e66710@pc33"),
            call(297, "10.1.0.12:5060", ""),
        ],
        ..Default::default()
    };
    let expected = "IPVS connection entries
pro expire state       source             virtual            destination
TCP 14:46  ESTABLISHED 198.51.100.9:20143 192.0.2.1:80       10.1.0.1:80
UDP 04:59  UDP         198.51.100.9:30001 192.0.2.1:53       10.1.0.13:53
TCP 00:49  NONE        198.51.100.3:0     192.0.2.1:83       10.1.0.11:83
IP  100:00 NONE        198.51.100.3:0     0.0.0.7:0          10.1.0.11:80
TCP 00:00  CLOSE       [2001:db8::9]:5    [2001:db8::1]:80   [2001:db8:1::1]:8080
UDP 04:58  NONE        198.51.100.3:0     192.0.2.1:5060     10.1.0.11:5060
UDP 04:57  NONE        198.51.100.3:0     192.0.2.1:5060     10.1.0.12:5060
";
    assert_eq!(control.run("ipvsadm -Lnc"), outcome(expected, "", 0));
    let named = control.run("ipvsadm -Lc").stdout;
    assert!(
        named.contains("198.51.100.9:20143 192.0.2.1:http     rs1.example.com:http\n"),
        "{named}"
    );
    assert!(
        named.contains("0.0.0.7:0          10.1.0.11:80\n"),
        "no service names without a protocol: {named}"
    );
    assert!(
        named.contains("[2001:db8::1]:http [2001:db8:1::1]:http-alt\n"),
        "{named}"
    );
    let wide = control.run("ipvsadm -Lnc --persistent-conn").stdout;
    let lines: Vec<&str> = wide.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "pro expire state       source             virtual            destination        pe name          pe_data",
            "TCP 14:46  ESTABLISHED 198.51.100.9:20143 192.0.2.1:80       10.1.0.1:80",
            "UDP 04:59  UDP         198.51.100.9:30001 192.0.2.1:53       10.1.0.13:53",
            "TCP 00:49  NONE        198.51.100.3:0     192.0.2.1:83       10.1.0.11:83",
            "IP  100:00 NONE        198.51.100.3:0     0.0.0.7:0          10.1.0.11:80",
            "TCP 00:00  CLOSE       [2001:db8::9]:5    [2001:db8::1]:80   [2001:db8:1::1]:8080",
            "UDP 04:58  NONE        198.51.100.3:0     192.0.2.1:5060     10.1.0.11:5060   sip                a84b4c76e66710@pc33",
            "UDP 04:57  NONE        198.51.100.3:0     192.0.2.1:5060     10.1.0.12:5060",
        ]
    );
}

#[test]
fn long_names_are_cut_in_listings_only() {
    let mut control = InMemory::default();
    control.run("ipvsadm -A -t 10.9.9.9:80 -s rr");
    control.run("ipvsadm -a -t 10.9.9.9:80 -r 10.9.9.9 -m");
    let listing = control.run("ipvsadm -L").stdout;
    assert!(listing.ends_with(
        "TCP  a-very-long-host-name.of.the rr\n  -> a-very-long-host-name.of.the Masq    1      0          0         \n"
    ), "{listing}");
    assert_eq!(
        control.run("ipvsadm -S").stdout,
        "-A -t a-very-long-host-name.of.the.example.com:http -s rr\n\
        -a -t a-very-long-host-name.of.the.example.com:http -r a-very-long-host-name.of.the.example.com:http -m -w 1\n"
    );
}

#[test]
fn persistence_and_flags_are_shown() {
    let mut control = InMemory::default();
    for line in [
        "-A -u 10.0.0.1:5060 -s rr -p 30 -M 255.255.0.0 --pe sip",
        "-A -t [2001:db8::1]:80 -s rr -p 30 -M 64",
        "-A -f 4294967295 -s sh -b sh-port -p",
        "-A -t 10.0.0.1:0 -s rr -p 5 -M 24",
        "-A -t 10.0.0.1:7 -s mh -b mh-port,flag-3",
    ] {
        assert_eq!(control.run(&format!("ipvsadm {line}")), Outcome::default(), "{line}");
    }
    let listing = control.run("ipvsadm -Ln").stdout;
    assert_eq!(
        listing.lines().skip(3).collect::<Vec<_>>(),
        [
            "FWM  -1 sh (sh-port) persistent 360",
            "TCP  10.0.0.1:0 rr persistent 5 mask 0.0.0.24",
            "TCP  10.0.0.1:7 mh (mh-port)",
            "UDP  10.0.0.1:5060 rr persistent 30 mask 255.255.0.0 pe sip",
            "TCP  [2001:db8::1]:80 rr persistent 30 mask 64",
        ]
    );
    assert_eq!(
        control.run("ipvsadm -Sn").stdout,
        "-A -f -1 -s sh -p 360 -b sh-port\n\
        -A -t 10.0.0.1:0 -s rr -p 5 -M 0.0.0.24\n\
        -A -t 10.0.0.1:7 -s mh -b mh-port\n\
        -A -u 10.0.0.1:5060 -s rr -p 30 -M 255.255.0.0 --pe sip\n\
        -A -t [2001:db8::1]:80 -s rr -p 30 -M 64\n"
    );
}

#[test]
fn the_sync_daemon_is_refused_after_its_options_are_checked() {
    let mut control = InMemory::default();
    let refused = outcome("", "Operation not supported: uvs has no connection sync daemon\n", 255);
    assert_eq!(
        control.run("ipvsadm --start-daemon master --mcast-interface lo --syncid 5"),
        refused
    );
    assert_eq!(
        control.run("ipvsadm --start-daemon backup --mcast-group ff02::81 --mcast-ttl 3"),
        refused
    );
    assert_eq!(
        control.run("ipvsadm --stop-daemon backup"),
        outcome("", "No daemon is running\n", 255)
    );
    assert_eq!(control.run("ipvsadm -L --daemon"), Outcome::default());
}

/// How: the real socket and its server in front of the in-memory control. Goal: 11,000 rules are one exchange, far
/// from a second each thousand as with one exchange a rule (the limit is for a busy machine and a debug build).
#[test]
fn a_restore_through_the_socket_is_fast() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("uvs.sock");
    let (requests, asked) = crossbeam_channel::unbounded::<crate::control::server::Asked>();
    let server = crate::control::server::Server::start(&path, requests).unwrap();
    let control = std::thread::spawn(move || {
        let mut control = InMemory::default();
        for asked in asked {
            let (request, answering) = asked.into_parts();
            answering.reply(control.call(&request).unwrap());
        }
        control.requests
    });
    let rules: String = (0..1000)
        .flat_map(|service| {
            let address = format!("10.1.{}.{}:80", service / 250, service % 250);
            let servers = (1..=10).map(move |server| format!("-a -t {address} -r 10.9.0.{server}:80 -m -w 1\n"));
            std::iter::once(format!("-A -t 10.1.{}.{}:80 -s rr\n", service / 250, service % 250)).chain(servers)
        })
        .collect();
    let mut client = Client::new(path);
    let mut call = |option: &str, stdin: &str| {
        let arguments = [option.to_owned()];
        let names = RecordedNames::new();
        run(
            Program::Ipvsadm,
            "ipvsadm",
            &arguments,
            &mut stdin.as_bytes(),
            &mut client,
            &names,
        )
    };
    let start = std::time::Instant::now();
    assert_eq!(call("-R", &rules), Outcome::default());
    let took = start.elapsed();
    assert!(took.as_secs() < 5, "11,000 rules took {took:?}");
    assert_eq!(call("-Sn", "").stdout, rules);
    println!("11,000 rules: {took:?}");
    drop(server);
    assert_eq!(control.join().unwrap(), 2);
}
