//! DEVIATIONS.md: what it names exists, and what no other test shows. How: the file is read, and the rest is tried in memory and in
//! network namespaces.

#[path = "support/deviations.rs"]
mod file;
#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;
mod support;

use std::path::Path;

use file::deviations;
use memory_director::{CLIENT_SIDE, MemoryDirector, SERVER_SIDE};
use packets::{addresses, client_port, tcp};
use support::{Family, Layout, Method, Plan, REQUEST_MAX, assert_balanced, http, scenario};
use uvs::packet::{DropReason, Offload};

/// More kinds than that are too many to be remembered.
const KINDS_MAX: usize = 20;

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn what_is_named_exists() {
    let all = deviations();
    assert!((1..=KINDS_MAX).contains(&all.len()), "{} kinds", all.len());
    for (n, deviation) in all.iter().enumerate() {
        let title = &deviation.title;
        assert_eq!(deviation.number, n + 1, "{title}");
        assert!(deviation.reason.len() > 80, "{title}: no reason");
        for (file, what) in &deviation.recorded {
            assert!(file.starts_with("tests/kernel/"), "{title}: {file}");
            let text = read(file);
            let there = if file.ends_with(".json") {
                text.contains(&format!("/{what}\""))
            } else {
                text.contains(what)
            };
            assert!(there, "{title}: no {what} in {file}");
        }
        assert!(!deviation.tests.is_empty(), "{title}: no test");
        for (file, function) in &deviation.tests {
            let there = read(file).contains(&format!("#[test]\nfn {function}()"))
                || read(file).contains(&format!("    #[test]\n    fn {function}()"));
            assert!(there, "{title}: no test {function} in {file}");
        }
    }
}

#[test]
fn others_link_to_it() {
    for file in ["README.md", "ARCHITECTURE.md"] {
        assert!(read(file).contains("(DEVIATIONS.md)"), "{file}");
    }
}

#[test]
fn a_changed_method_is_for_new_connections_and_works() {
    let who = addresses(Family::V4);
    let (service, server) = ("10.200.1.1:80", "172.16.0.11:80");
    let mut director = MemoryDirector::new(1024);
    director.ipvsadm(&format!("-A -t {service} -s rr; -a -t {service} -r {server} -g"));
    let mut seen = Vec::new();
    let send = |director: &mut MemoryDirector, number: usize, flags: &str| {
        let client = (who.client, client_port(number)).into();
        let frame = tcp(client, service.parse().expect("an address"), flags);
        let out = director.inject(CLIENT_SIDE, &frame, Offload::default());
        let [(SERVER_SIDE, sent)] = &out.sent[..] else {
            panic!("connection {number}: {out:?}")
        };
        // DR keeps the destination, NAT has the server's, and IPIP a header in front.
        let to: [u8; 4] = *sent[30..].first_chunk().expect("an address");
        match (sent[23], to) {
            (6, [10, 200, 1, 1]) => "-g",
            (6, [172, 16, 0, 11]) => "-m",
            (4, [172, 16, 0, 11]) => "-i",
            other => panic!("{other:?}"),
        }
    };
    for (number, method) in ["-g", "-m", "-g", "-i", "-m", "-g"].into_iter().enumerate() {
        director.ipvsadm(&format!("-e -t {service} -r {server} {method}"));
        assert_eq!(send(&mut director, number, "S"), method, "connection {number}");
        seen.push(method);
        for (number, method) in seen.iter().enumerate() {
            assert_eq!(send(&mut director, number, "A"), *method, "connection {number}");
        }
    }
}

#[test]
fn icmp_errors_are_limited() {
    const LIMIT: usize = 1000;
    let who = addresses(Family::V4);
    let mut director = MemoryDirector::new(64);
    director.ipvsadm("-A -t 10.200.1.1:80 -s rr");
    let answers = |director: &mut MemoryDirector, count: usize| -> usize {
        let answered = |number: usize| {
            let frame = tcp((who.client, client_port(number)).into(), (who.vip, 80).into(), "S");
            director.inject(CLIENT_SIDE, &frame, Offload::default()).sent.len()
        };
        (0..count).map(answered).sum()
    };
    assert_eq!(answers(&mut director, LIMIT + 50), LIMIT);
    assert_eq!(director.counts().errors_withheld, 50);
    assert_eq!(
        director.counts().dropped[DropReason::NoDestination as usize],
        LIMIT as u64 + 50
    );
    director.now_ns += 1_000_000_000;
    assert_eq!(answers(&mut director, 10), 10, "in the next second");
}

/// A process on the director asks for the service; statistics at once; the director as NAT server on another port.
#[test]
fn on_the_director_itself() {
    let plan = Plan {
        servers: 1,
        ..Plan::new(Layout::OneSegment)
    };
    let Some(mut s) = scenario("deviations", plan) else {
        return;
    };
    s.offer(Method::Masq, Family::V4).expect("a VIP");
    s.start(&[]).expect("uvs run");
    s.add_service(Method::Masq, Family::V4, "-s rr").expect("a service");
    let connections = |s: &mut support::Scenario| -> u64 {
        let text = s
            .director()
            .expect("a director")
            .ipvsadm("-Ln --stats --exact")
            .expect("a listing");
        let row = text.lines().find(|line| line.starts_with("TCP")).expect("a service");
        let words: Vec<&str> = row.split_whitespace().collect();
        words[2].parse().expect("a number")
    };
    for count in 1..=3 {
        s.request(Method::Masq, Family::V4).expect("an answer");
        assert_eq!(connections(&mut s), count, "the kernel's would be up to 2 s late");
    }

    let vip = s.service_address(Method::Masq, Family::V4);
    let own = http::get(s.topology.director.namespace(), vip, REQUEST_MAX);
    let error = own.expect_err("nobody on the director serves it");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    assert_eq!(connections(&mut s), 3);

    let mut director = |line: String| s.director().expect("a director").ipvsadm(&line).expect("a rule");
    director(format!("-E -t {vip} -s rr"));
    director(format!("-a -t {vip} -r 172.25.7.2:8080 -m"));
    director(format!("-d -t {vip} -r {}", "172.25.7.3:80"));
    s.request(Method::Masq, Family::V4).expect_err("it cannot be answered");
    let counts = assert_balanced(&mut s);
    assert!(
        counts.dropped.get("local_port").is_some_and(|count| *count > 0),
        "{counts}"
    );
}
