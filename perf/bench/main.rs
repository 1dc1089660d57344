//! How fast the data plane is: nanoseconds and instructions a packet, beside the floor. Run by `perf/dataplane`; what is
//! measured and how to read it: `perf/README.md`.

mod children;
mod driver;
mod filter;
mod gate;
mod report;
mod runs;
mod sections;
mod turns;
mod world;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use uvs::packet::Protocol;
use uvs::service::Method;

use report::Report;
use runs::Run;
use sections::Section;

/// Measures the data plane beside its floor.
#[derive(Parser)]
#[command(name = "perf/dataplane", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    run: Option<Run>,
    /// Writes the rows to this file too, as JSON: one object a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keeps the table and its JSON in perf/results/, named by date and commit.
    #[arg(long)]
    keep: bool,
    /// A first impression: up to 100000 connections, three runs.
    #[arg(long)]
    quick: bool,
    /// Only this part of the table; may be repeated.
    #[arg(long, value_name = "PART")]
    only: Vec<Section>,
    /// Only this many connections, for hits; may be repeated.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..=100_000_000))]
    connections: Vec<u32>,
    /// Only this kind of traffic, for hits; may be repeated.
    #[arg(long, value_name = "MODE")]
    mode: Vec<Mode>,
    /// Runs of which the median is taken [default: 5].
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// The CPU to be measured on [default: the last].
    #[arg(long, value_name = "CPU")]
    cpu: Option<usize>,
    /// Only counts instructions, and fails when there are more than perf/instructions.toml allows.
    #[arg(long)]
    gate: bool,
    /// Writes perf/instructions.toml anew.
    #[arg(long)]
    renew_gate: bool,
    /// Where the floor's programs are.
    #[arg(long, value_name = "FOLDER", hide = true)]
    floor: Option<PathBuf>,
}

/// What is forwarded, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// TCP by NAT.
    Nat,
    /// TCP by direct routing.
    Dr,
    /// TCP in IP in IP.
    Tunnel,
    /// UDP by NAT.
    NatUdp,
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::Nat, Mode::Dr, Mode::Tunnel, Mode::NatUdp];

    fn method(self) -> Method {
        match self {
            Mode::Nat | Mode::NatUdp => Method::Masq,
            Mode::Dr => Method::Route,
            Mode::Tunnel => Method::Tunnel,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Mode::Nat => "nat",
            Mode::Dr => "dr",
            Mode::Tunnel => "tunnel",
            Mode::NatUdp => "nat-udp",
        }
    }

    fn protocol(self) -> Protocol {
        match self {
            Mode::NatUdp => Protocol::UDP,
            _ => Protocol::TCP,
        }
    }
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(run) = arguments.run {
        return run.run();
    }
    let done = if arguments.gate || arguments.renew_gate {
        gate::run(arguments.renew_gate)
    } else {
        measure(&arguments)
    };
    if let Err(error) = done {
        eprintln!("perf/dataplane: {error}");
        std::process::exit(1);
    }
}

fn measure(arguments: &Arguments) -> Result<(), String> {
    let quick = arguments.quick;
    let connections = match quick {
        true => vec![1000, 100_000],
        false => vec![1000, 100_000, 1_000_000, 10_000_000],
    };
    let setup = sections::Setup {
        children: children::Children::new(arguments.floor.clone(), arguments.cpu),
        runs: arguments.runs.unwrap_or(if quick { 3 } else { 5 }).max(1),
        modes: or_all(&arguments.mode, &Mode::ALL),
        connections: or_all(&arguments.connections, &connections),
        standing: if quick { vec![100_000] } else { vec![100_000, 1_000_000] },
    };
    let mut report = Report::new();
    let mut measurements = Vec::new();
    for section in or_all(&arguments.only, Section::value_variants()) {
        match setup.measurements(section) {
            Ok(these) => measurements.extend(these),
            Err(why) => report.note(why),
        }
    }
    report.add(turns::take(measurements));
    report.print();
    if let Some(file) = &arguments.json {
        report.write_json(file)?;
    }
    match arguments.keep {
        true => report.keep(),
        false => Ok(()),
    }
}

fn or_all<T: Copy>(chosen: &[T], all: &[T]) -> Vec<T> {
    if chosen.is_empty() { all } else { chosen }.to_vec()
}
