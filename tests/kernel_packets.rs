//! The whole director against what the kernel's IPVS did with recorded frames (`tests/kernel/packets.json`).
//! How: every vector gets a director in memory with its rules; each frame goes in where it was recorded, and what comes out
//! must be the same bytes, but for identifications and what follows from them. What the kernel's own stack answered (resets, echo
//! replies) must have been handed back.

#[path = "support/deviations.rs"]
mod deviations;
#[path = "support/memory_director.rs"]
mod memory_director;

use memory_director::MemoryDirector;
use uvs::packet::Offload;
use uvs::replay::cases::{self, Case, Cases, Step};

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
    let mut faults = Vec::new();
    let mut passed = 0;
    let cases = recorded();
    for case in &cases.vectors {
        if DEVIATIONS.iter().any(|(part, _)| case.name.ends_with(part)) {
            continue;
        }
        match run(case) {
            Ok(()) => passed += 1,
            Err(fault) => faults.push(format!("{}: {fault}", case.name)),
        }
    }
    assert!(
        faults.is_empty(),
        "{} of {}:\n{}",
        faults.len(),
        cases.vectors.len(),
        faults.join("\n")
    );
    assert!(passed >= 110, "only {passed} vectors ran");
}

#[test]
fn deviations_are_dropped_with_their_reason() {
    let cases = recorded();
    for (part, why) in DEVIATIONS {
        let mut some = false;
        for case in cases.vectors.iter().filter(|case| case.name.ends_with(part)) {
            let mut director = director(case).expect("rules that ipvsadm takes");
            let step = &case.steps[0];
            let interface = side(&director, step);
            let outcome = director.inject(interface, &input(step), Offload::default());
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

fn recorded() -> Cases {
    cases::parse(include_str!("kernel/packets.json")).expect("recorded cases")
}

fn director(case: &Case) -> Result<MemoryDirector, String> {
    let mut director = MemoryDirector::new(1024);
    case.prepare(&mut director)?;
    Ok(director)
}

fn side(director: &MemoryDirector, step: &Step) -> uvs::table::InterfaceId {
    let name = step.inject_on.as_deref().expect("a side");
    cases::side(director.network(), name).expect("a side")
}

fn input(step: &Step) -> Vec<u8> {
    step.input().expect("hexadecimal")
}

fn run(case: &Case) -> Result<(), String> {
    let mut director = director(case)?;
    for (number, step) in (1..).zip(&case.steps) {
        if let Some(command) = &step.command {
            cases::carry_out(&mut director, command)?;
            continue;
        }
        let interface = side(&director, step);
        let outcome = director.inject(interface, &input(step), Offload::default());
        let wanted = step.outputs.as_deref().expect("outputs");
        cases::compare(&director, interface, &outcome, wanted)
            .map_err(|fault| format!("step {number}: {fault}; {:?}", director.counts()))?;
    }
    Ok(())
}
