//! The gate: instructions a packet, counted by callgrind, must not be more than `perf/instructions.toml` says. Unlike times
//! they are the same at every run, so that a busy machine can judge them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Mode;
use super::children::instructions;
use super::report::rustc;
use super::sections::{begins, hits};

/// Small enough for seconds under valgrind, large enough that nothing is special.
const CONNECTIONS: u32 = 10_000;
const HITS: u64 = 64_000;
const NEW: u64 = 10_240;

const HEAD: &str = "\
# Instructions a packet (callgrind, all of Pipeline::process) that CI allows: `perf/dataplane --gate` fails when one is more
# than `tolerance_percent` above its number here (by another compiler `tolerance_percent_otherwise`). A change that is worth its instructions, or another compiler, renews the
# file: `perf/dataplane --renew-gate`, and the commit says why.
";

#[derive(Deserialize, Serialize)]
struct Reference {
    tolerance_percent: f64,
    /// By another compiler than `rustc`.
    tolerance_percent_otherwise: f64,
    rustc: String,
    instructions_per_packet: BTreeMap<String, f64>,
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/instructions.toml")
}

/// What is counted: name, and arguments of the run.
fn cases() -> Vec<(String, Vec<String>)> {
    let hit = |mode: Mode| (format!("hit-{}", mode.name()), hits(mode, CONNECTIONS, HITS));
    let new = |mode: Mode, scheduler: &str| {
        let arguments = begins(mode, scheduler, CONNECTIONS, NEW);
        (format!("new-{}-{scheduler}", mode.name()), arguments)
    };
    let mut cases: Vec<_> = Mode::ALL.into_iter().map(hit).collect();
    cases.extend([new(Mode::Nat, "rr"), new(Mode::Nat, "wlc"), new(Mode::Dr, "rr")]);
    cases
}

/// Counts and compares, or writes the reference anew. `Err`: what is wrong.
pub fn run(renew: bool) -> Result<(), String> {
    let counted = count()?;
    if renew {
        return write(counted);
    }
    let text = fs::read_to_string(file()).map_err(|error| format!("{}: {error}", file().display()))?;
    let reference: Reference = toml::from_str(&text).map_err(|error| format!("{}: {error}", file().display()))?;
    let tolerance_percent = match reference.rustc == rustc() {
        true => reference.tolerance_percent,
        false => reference.tolerance_percent_otherwise,
    };
    let mut faults = Vec::new();
    for (name, counted) in &counted {
        let Some(allowed) = reference.instructions_per_packet.get(name) else {
            faults.push(format!("{name}: not in the file"));
            continue;
        };
        let percent = (counted / allowed - 1.0) * 100.0;
        let verdict = match percent {
            p if p > tolerance_percent => "TOO MANY",
            p if p < -tolerance_percent => "fewer: renew the file",
            _ => "ok",
        };
        println!("{name:<12} {counted:>7.1} instructions/packet, reference {allowed:>7.1} ({percent:+.1} %) {verdict}");
        if percent > tolerance_percent {
            faults.push(format!(
                "{name}: {counted:.1} instead of {allowed:.1} ({percent:+.1} %)"
            ));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(format!(
        "more instructions a packet than {} allows (+{} %, by {}; this is {}):\n  {}\nperf/README.md says what to do",
        file().display(),
        tolerance_percent,
        reference.rustc,
        rustc(),
        faults.join("\n  ")
    ))
}

/// Two at a time, on as many CPUs as there are.
fn count() -> Result<BTreeMap<String, f64>, String> {
    let cases = cases();
    let one = |(name, arguments): &(String, Vec<String>)| {
        let counted = instructions(arguments).ok_or("valgrind is not installed")?;
        Ok((name.clone(), counted))
    };
    let halves: Vec<Result<Vec<(String, f64)>, String>> = std::thread::scope(|scope| {
        let half = |n: usize| cases.iter().skip(n).step_by(2).map(one).collect();
        let other = scope.spawn(move || half(1));
        vec![half(0), other.join().expect("no panic")]
    });
    let halves: Result<Vec<Vec<(String, f64)>>, String> = halves.into_iter().collect();
    Ok(halves?.into_iter().flatten().collect())
}

fn write(counted: BTreeMap<String, f64>) -> Result<(), String> {
    let reference = Reference {
        tolerance_percent: 3.0,
        tolerance_percent_otherwise: 10.0,
        rustc: rustc(),
        instructions_per_packet: counted
            .into_iter()
            .map(|(name, n)| (name, (n * 10.0).round() / 10.0))
            .collect(),
    };
    let text = toml::to_string(&reference).map_err(|error| error.to_string())?;
    fs::write(file(), format!("{HEAD}{text}")).map_err(|error| format!("{}: {error}", file().display()))?;
    println!("written: {}", file().display());
    Ok(())
}
