//! The whole director against what the kernel's IPVS did with recorded frames (`tests/kernel/packets.json`).
//! How: every vector gets a director in memory with its rules; each frame goes in where it was recorded, and what comes out
//! must be the same bytes, but for identifications and what follows from them. What the kernel's own stack answered (resets, echo
//! replies) must have been handed back.

#[path = "support/deviations.rs"]
mod deviations;
#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/recorded_frame.rs"]
mod recorded_frame;

use memory_director::{CLIENT_SIDE, MemoryDirector, Outcome, SERVER_SIDE};
use recorded_frame::{as_on_a_wire, hex, unhex};
use serde_json::Value;
use uvs::packet::{Offload, checksum};

/// Where uvs does something else on purpose, and why: those of DEVIATIONS.md.
const DEVIATIONS: &[(&str, &str)] = &[
    (
        "tcp-doff-beyond",
        "a TCP header that lies about its length is dropped, the kernel forwards it",
    ),
    (
        "udp-bad-len",
        "a UDP header that lies about its length is dropped, the kernel forwards it",
    ),
];

#[test]
fn same_frames_as_the_kernel() {
    let file: Value = serde_json::from_str(include_str!("kernel/packets.json")).expect("a JSON file");
    let vectors = file["vectors"].as_array().expect("vectors");
    let mut faults = Vec::new();
    let mut passed = 0;
    for vector in vectors {
        let name = vector["name"].as_str().expect("a name");
        if DEVIATIONS.iter().any(|(part, _)| name.ends_with(part)) {
            continue;
        }
        match run(vector) {
            Ok(()) => passed += 1,
            Err(fault) => faults.push(format!("{name}: {fault}")),
        }
    }
    assert!(
        faults.is_empty(),
        "{} of {}:\n{}",
        faults.len(),
        vectors.len(),
        faults.join("\n")
    );
    assert!(passed >= 110, "only {passed} vectors ran");
}

#[test]
fn deviations_are_dropped_with_their_reason() {
    let file: Value = serde_json::from_str(include_str!("kernel/packets.json")).expect("a JSON file");
    let vectors = file["vectors"].as_array().expect("vectors");
    for (part, why) in DEVIATIONS {
        let mut some = false;
        for vector in vectors
            .iter()
            .filter(|vector| vector["name"].as_str().expect("a name").ends_with(part))
        {
            let mut director = director(vector);
            let outcome = inject(&mut director, &vector["steps"][0]);
            assert!(outcome.sent.is_empty() && outcome.handed_back == 0, "{part}: {why}");
            assert_eq!(director.counts().dropped_total(), 1, "{part}: {why}");
            some = true;
        }
        assert!(some, "no vector is about {part}");
    }
}

#[test]
fn deviations_are_those_of_the_file() {
    let here: Vec<&str> = DEVIATIONS.iter().map(|(part, _)| *part).collect();
    assert_eq!(deviations::packet_cases(), here);
}

fn director(vector: &Value) -> MemoryDirector {
    let mut director = MemoryDirector::new(1024);
    for line in vector["pre"].as_array().expect("pre") {
        let line = line.as_str().expect("a line");
        let setting = line.rsplit(' ').next().expect("a word");
        let (name, value) = setting.split_once('=').expect("a sysctl");
        director.sysctl(name.trim_start_matches("net.ipv4.vs."), value);
    }
    for line in vector["setup"].as_array().expect("setup") {
        director.ipvsadm(line.as_str().expect("a line"));
    }
    director
}

fn inject(director: &mut MemoryDirector, step: &Value) -> Outcome {
    let side = if step["inject_on"] == "client_side" {
        CLIENT_SIDE
    } else {
        SERVER_SIDE
    };
    director.inject(side, &bytes_of(&step["input_hex"]), Offload::default())
}

fn run(vector: &Value) -> Result<(), String> {
    let mut director = director(vector);
    for (number, step) in vector["steps"].as_array().expect("steps").iter().enumerate() {
        if let Some(command) = step["command"].as_str() {
            director.ipvsadm(command);
            continue;
        }
        let outcome = inject(&mut director, step);
        let wanted = step["outputs"].as_array().expect("outputs");
        compare(&outcome, wanted).map_err(|fault| format!("step {}: {fault}; {:?}", number + 1, director.counts()))?;
    }
    Ok(())
}

fn compare(outcome: &Outcome, wanted: &[Value]) -> Result<(), String> {
    let (local, wanted): (Vec<&Value>, Vec<&Value>) = wanted.iter().partition(is_of_local_stack);
    if !local.is_empty() && outcome.handed_back == 0 {
        return Err(format!("not handed back, sent {}", list(outcome)));
    }
    if outcome.sent.len() != wanted.len() {
        return Err(format!(
            "{} frames for {}:\n{}\nfor {wanted:#?}",
            outcome.sent.len(),
            wanted.len(),
            list(outcome)
        ));
    }
    for ((interface, got), want) in outcome.sent.iter().zip(wanted) {
        let side = if *interface == CLIENT_SIDE {
            "client_side"
        } else {
            "real_side"
        };
        if want["seen_on"] != side {
            return Err(format!("left on the {side}"));
        }
        same(got, &as_on_a_wire(bytes_of(&want["hex"])), &want["volatile_offsets"])?;
    }
    Ok(())
}

/// A reset or an echo reply from the VIP: no service of ours sends such.
fn is_of_local_stack(frame: &&Value) -> bool {
    let bytes = bytes_of(&frame["hex"]);
    let from_vip = bytes[12..14] == [8, 0] && bytes[26..30] == [10, 200, 1, 1];
    let reset_without_acknowledged_data =
        bytes[23] == 6 && bytes.len() >= 54 && bytes[47] & 4 != 0 && bytes[18..20] == [0, 0];
    let echo_reply = bytes[23] == 1 && bytes[34] == 0;
    frame["seen_on"] == "client_side" && from_vip && (reset_without_acknowledged_data || echo_reply)
}

fn same(got: &[u8], want: &[u8], volatile: &Value) -> Result<(), String> {
    let offsets: Vec<usize> = match volatile.as_array() {
        Some(offsets) => offsets
            .iter()
            .map(|offset| offset.as_u64().expect("an offset") as usize)
            .collect(),
        // Recorded once: the identification and checksum of headers that the director itself makes.
        None if want[12..14] == [8, 0] && (want[23] == 4 || want[15] == 0xc0) => vec![18, 19, 24, 25],
        None => vec![],
    };
    let mask = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        for &at in offsets.iter().filter(|at| **at < want.len()) {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = 0;
            }
        }
        hex(&bytes)
    };
    if mask(got) != mask(want) {
        return Err(format!("\n got {}\nwant {}", mask(got), mask(want)));
    }
    if got[12..14] == [8, 0] && checksum::of(&got[14..14 + (got[14] & 15) as usize * 4]) != 0 {
        return Err("wrong header checksum".to_owned());
    }
    Ok(())
}

fn list(outcome: &Outcome) -> String {
    let lines = outcome
        .sent
        .iter()
        .map(|(interface, frame)| format!("{}: {}", interface.0, hex(frame)));
    lines.collect::<Vec<_>>().join("\n")
}

fn bytes_of(digits: &Value) -> Vec<u8> {
    unhex(digits.as_str().expect("hexadecimal"))
}
