//! `uvs explain` asks a running director.
//!
//! How: rules and a frame on real interfaces, then the question, as text and as JSON. Goal: the answer is of what runs, and
//! nothing changed by it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use serde_json::Value;
use support::recorded::{Bench, Side};
use support::recorded_frame::unhex;

/// A SYN of 198.51.100.7:20001 to 10.200.1.1:80.
const SYN: &str = "0200000000d00200000000c00800450000301234000040063291c63364070ac801014e210050000003e80000000070022000dbbb\
                   0000020405b401030307";

#[test]
fn a_running_director_explains() {
    if !uvs::io::netns::can_test() {
        return;
    }
    let mut bench = Bench::start("explain", "raw");
    bench.ipvsadm("-A -t 10.200.1.1:80 -s rr");
    bench.ipvsadm("-a -t 10.200.1.1:80 -r 172.16.0.11:80 -g");
    bench.ipvsadm("-a -t 10.200.1.1:80 -r 172.16.0.12:80 -g");
    let ask = |bench: &Bench, vip: &str| {
        let words = ["explain", "tcp", "198.51.100.7:20001", vip, "--json"];
        let output = bench.director.output(&words).expect("uvs explain runs");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let listed = bench.director.ipvsadm("-Ln --stats").unwrap();
    let foretold = ask(&bench, "10.200.1.1:80");
    assert_eq!(foretold["way"], "scheduler");
    assert_eq!(foretold["server"]["next_hop"]["interface"], "d1");
    assert_eq!(
        foretold,
        ask(&bench, "10.200.1.1:80"),
        "asking does not move the cursor"
    );
    assert_eq!(
        ask(&bench, "10.200.1.7:80")["way"],
        "kernel",
        "no address of the director"
    );
    assert_eq!(bench.director.ipvsadm("-Ln --stats").unwrap(), listed);
    assert_eq!(bench.director.ipvsadm("-Lnc").unwrap().lines().count(), 2, "no entry");

    bench.put(Side::Client, &unhex(SYN));
    let (side, frame) = bench.next().expect("it is forwarded");
    let mac: Vec<_> = frame[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (side, foretold["server"]["next_hop"]["to"].as_str()),
        (Side::Real, Some(&*mac.join(":")))
    );
    let known = ask(&bench, "10.200.1.1:80");
    assert_eq!(
        (&known["way"], &known["entry"]["state"]),
        (&"connection".into(), &"SYN_RECV".into())
    );
    assert_eq!(known["server"]["server"], foretold["server"]["server"]);
    let output = bench
        .director
        .output(&["explain", "tcp", "198.51.100.7:20001", "10.200.1.1:80"]);
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    assert!(text.contains("\nto the server of its connection: "), "{text}");

    // The director as its own NAT server works on the service's port only.
    for (port, hop) in [
        (8080, "the director itself: its local stack"),
        (81, "the director itself, by NAT to another port: dropped (local_port)"),
    ] {
        bench.ipvsadm("-A -t 10.200.1.1:8080 -s rr");
        bench.ipvsadm(&format!("-a -t 10.200.1.1:8080 -r 10.200.1.1:{port} -m"));
        let local = ask(&bench, "10.200.1.1:8080");
        bench.ipvsadm("-D -t 10.200.1.1:8080");
        assert_eq!(local["server"]["next_hop"]["no_hop"], hop);
    }
}
