//! uvs from end to end beside its peers, in network namespaces. Run by `perf/endtoend`; what is measured and how to
//! read it: `perf/README.md`.

mod cluster;
mod control;
mod cpu;
mod datagrams;
mod forwarder;
mod generator;
mod latency;
mod least;
mod peers;
mod plot;
mod report;
mod rig;
mod rows;
mod sink;
mod takeover;
mod tcp;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use uvs::io::guardian::Guardian;
use uvs::io::netns;

use report::{Machine, Row};
use rows::{ROWS, Setup, When};

/// Measures uvs beside its peers, from end to end.
#[derive(Parser)]
#[command(name = "perf/endtoend")]
struct Arguments {
    /// Only these rows, by name, with commas between.
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
    /// Lists the rows.
    #[arg(long)]
    list: bool,
    /// A first impression: short and twice.
    #[arg(long)]
    quick: bool,
    /// Runs of which minimum, median and maximum are told [default: 5, 2 if quick].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: Option<u16>,
    /// Where results are kept [default: nowhere if quick, else perf/results].
    #[arg(long, value_name = "FOLDER")]
    results: Option<PathBuf>,
    /// The program that is measured [default: the one beside this].
    #[arg(long, value_name = "PROGRAM")]
    uvs: Option<PathBuf>,
    /// Be the bare forwarder.
    #[arg(long, value_name = "DRIVER", hide = true)]
    forward: Option<String>,
    /// Be the least director instead, on `xdp`, for so many flows.
    #[arg(long, value_name = "FLOWS", requires = "forward", hide = true)]
    least: Option<usize>,
}

/// What Debian has the peers and tools in.
const INSTALL: &str = "apt-get install nftables haproxy nginx-light libnginx-mod-stream apache2-utils iperf3 wrk";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        ROWS.iter().for_each(|(name, what, ..)| println!("{name:<12} {what}"));
        return ExitCode::SUCCESS;
    }
    if let Some(driver) = &arguments.forward {
        return told(
            forwarder::run(driver, arguments.least)
                .map_err(|error| error.to_string())
                .map(|()| true),
        );
    }
    told(measure(&arguments))
}

fn told(result: Result<bool, String>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("perf/endtoend: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well; a missed goal is no failure, a row that could not be measured is.
fn measure(arguments: &Arguments) -> Result<bool, String> {
    let unknown = arguments
        .only
        .iter()
        .find(|name| ROWS.iter().all(|row| row.0 != **name));
    if let Some(name) = unknown {
        return Err(format!("no row is called {name}: see --list"));
    }
    if !netns::is_root() {
        return Err("needs root: it makes network namespaces".to_owned());
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return Err("needs two CPUs: one for directors, one for all else".to_owned());
    }
    // Before any thread: cleans up should this process be killed.
    let own = std::process::id();
    let _guardian = Guardian::start(move || uvs::demo::cluster::remove_all_of(own)).map_err(|e| e.to_string())?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|e| e.to_string())?;
    }
    say_what_is_missing();
    let mut machine = machine(arguments);
    let setup = Setup {
        uvs: arguments.uvs.clone().unwrap_or_else(uvs_beside_this),
        runs: machine.runs,
        quick: arguments.quick,
        stop: Arc::clone(&stop),
    };
    if !setup.uvs.is_file() {
        return Err(format!(
            "{} is not there: run perf/endtoend, which builds it",
            setup.uvs.display()
        ));
    }
    cpu::pin(cpu::OURS);
    let rows = passes(&setup, &arguments.only)?;
    rows.iter().for_each(|row| println!("{}", report::markdown(row)));
    if stop.load(Ordering::Relaxed) {
        eprintln!("interrupted; everything is cleaned up");
        return Ok(false);
    }
    machine.load_after = load();
    summary(&rows);
    let folder = match &arguments.results {
        Some(folder) => Some(folder.clone()),
        None => (!arguments.quick).then(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/results")),
    };
    if let Some(folder) = folder {
        let file = report::write(&folder, &machine, &rows).map_err(|error| error.to_string())?;
        println!("written: {}", file.display());
    }
    Ok(rows.iter().all(|row| row.failed.is_empty()))
}

/// Measures the rows of these names, or all.
fn passes(setup: &Setup, only: &[String]) -> Result<Vec<Row>, String> {
    let mut rows = Vec::<Row>::new();
    for pass in 1..=setup.runs {
        for (name, what, measure, when) in ROWS {
            let (times, runs) = match when {
                When::Each(_) if setup.quick => (1, 1),
                When::Each(times) => (*times, 1),
                When::First if pass == 1 => (1, setup.runs),
                When::First => continue,
            };
            if setup.go_on().is_err() || !only.is_empty() && !only.iter().any(|only| only == name) {
                continue;
            }
            eprintln!("pass {pass} of {}: {name}", setup.runs);
            for _ in 0..times {
                let row = match measure(&Setup { runs, ..setup.clone() }) {
                    Ok(row) => row,
                    // That an interrupted one is not whole needs no telling.
                    Err(_) if setup.go_on().is_err() => break,
                    Err(error) => Row::not_measured(name, what, format!("NOT MEASURED in pass {pass}: {error}")),
                };
                add(&mut rows, row)?;
            }
        }
    }
    Ok(rows)
}

/// To the runs of the same row, if there were any.
fn add(rows: &mut Vec<Row>, row: Row) -> Result<(), String> {
    match rows.iter_mut().find(|own| own.name == row.name) {
        Some(own) => own.add_runs(row).map_err(|error| error.to_string())?,
        None => rows.push(row),
    }
    Ok(())
}

/// All goals in a few lines.
fn summary(rows: &[Row]) {
    println!("## Goals\n\n| row | goal | must | median | |\n|---|---|---|---|---|");
    for row in rows {
        for verdict in &row.verdicts {
            let sign = if verdict.goal.at_most { "≤" } else { "≥" };
            let median = verdict.measured.map_or("–".to_owned(), |s| format!("{:.3}", s.median));
            println!(
                "| {} | {} | {sign} {} {} | {median} | **{}** |",
                row.name, verdict.what, verdict.goal.must, verdict.goal.unit, verdict.word
            );
        }
        if row.series.is_empty() {
            println!("| {} | | | | **not measured** |", row.name);
        }
    }
    println!();
}

fn say_what_is_missing() {
    let missing: Vec<_> = ["nft", "haproxy", "nginx", "ab", "iperf3", "wrk", "taskset"]
        .into_iter()
        .filter(|program| rig::which(program).is_none())
        .collect();
    if !missing.is_empty() {
        eprintln!("missing: {}. Debian has them: {INSTALL}", missing.join(", "));
    }
    if let Some(why) = rig::Peer::NginxStream.missing() {
        eprintln!("{why}");
    }
}

fn machine(arguments: &Arguments) -> Machine {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown CPU", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let root = env!("CARGO_MANIFEST_DIR");
    let git = |arguments: &[&str]| output("git", &[&["-C", root], arguments].concat());
    let dirty = !git(&["status", "--porcelain", "--untracked-files=no"]).is_empty();
    Machine {
        date: output("date", &["+%Y-%m-%d %H:%M %Z"]),
        commit: format!(
            "{}{}",
            git(&["rev-parse", "--short", "HEAD"]),
            if dirty { "-dirty" } else { "" }
        ),
        machine: format!("{model}, {cpus} CPUs"),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        runs: arguments.runs.map_or(if arguments.quick { 2 } else { 5 }, usize::from),
        load_before: load(),
        load_after: String::new(),
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().unwrap_or_default().to_owned()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| String::new(),
        |o| String::from_utf8_lossy(&o.stdout).trim().to_owned(),
    )
}

/// This program, for being the bare forwarder.
fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into())
}

/// `target/release/uvs` beside `target/release/examples/endtoend`.
fn uvs_beside_this() -> PathBuf {
    let this = this_program();
    let folder = this.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    folder.join("uvs")
}
