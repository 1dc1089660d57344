//! How fast the data plane is: nanoseconds and instructions a packet, beside the floor. Run by `perf/dataplane`; what is
//! measured and how to read it: `perf/README.md`.

mod children;
mod report;
mod world;

use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use uvs::dataplane::driver::BATCH_MAX;
use uvs::service::Method;

use report::Row;
use world::{Random, World};

/// Measures the data plane beside its floor.
#[derive(Parser)]
#[command(name = "perf/dataplane")]
struct Arguments {
    /// Writes the rows to this file too, as JSON: one object a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A first impression: 1000 and 100000 connections, three runs.
    #[arg(long)]
    quick: bool,
    /// Only this many connections; may be repeated.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(64..=100_000_000))]
    connections: Vec<u32>,
    /// Only this forwarding method; may be repeated.
    #[arg(long, value_name = "MODE")]
    mode: Vec<Mode>,
    /// Runs of which the median is taken [default: 5, 3 above 1 M connections].
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// The CPU to be measured on [default: the last].
    #[arg(long, value_name = "CPU")]
    cpu: Option<usize>,
    /// The floor's program.
    #[arg(long, value_name = "PROGRAM", hide = true)]
    floor: Option<PathBuf>,
    /// One run of so many packets, in this process: what the others are made of.
    #[arg(long, value_name = "PACKETS", hide = true)]
    one_run: Option<u64>,
}

/// A forwarding method by its name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// NAT.
    Nat,
    /// Direct routing.
    Dr,
    /// IP in IP.
    Tunnel,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Nat, Mode::Dr, Mode::Tunnel];

    fn method(self) -> Method {
        match self {
            Mode::Nat => Method::Masq,
            Mode::Dr => Method::Route,
            Mode::Tunnel => Method::Tunnel,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Mode::Nat => "nat",
            Mode::Dr => "dr",
            Mode::Tunnel => "tunnel",
        }
    }
}

/// Packets that a run measures.
const PACKETS: u64 = 4_000_000;
/// A batch that took longer was interrupted by another program, and counts neither here nor in floor/mb.c.
const INTERRUPTED_NS: u128 = 50_000;

fn main() {
    let arguments = Arguments::parse();
    let modes = or_all(&arguments.mode, &Mode::ALL);
    if let Some(packets) = arguments.one_run {
        for &connections in &arguments.connections {
            modes.iter().for_each(|mode| one_run(*mode, connections, packets));
        }
        return;
    }
    let connections: &[u32] = if arguments.quick {
        &[1000, 100_000]
    } else {
        &[1000, 100_000, 1_000_000, 10_000_000]
    };
    let connections = or_all(&arguments.connections, connections);
    let setup = children::Setup {
        floor: arguments.floor,
        cpu: arguments.cpu,
        runs: arguments.runs.or(arguments.quick.then_some(3)),
        packets: PACKETS,
    };
    let mut rows: Vec<Row> = Vec::new();
    report::head();
    for mode in modes {
        for &connections in &connections {
            let row = setup.row(mode, connections);
            row.print();
            rows.push(row);
        }
    }
    report::foot(&rows);
    if let Some(file) = &arguments.json
        && let Err(error) = report::write_json(file, &rows)
    {
        eprintln!("{}: {error}", file.display());
        std::process::exit(1);
    }
}

fn or_all<T: Copy>(chosen: &[T], all: &[T]) -> Vec<T> {
    if chosen.is_empty() { all } else { chosen }.to_vec()
}

/// Measures once, and prints nanoseconds a packet and bytes a connection.
fn one_run(mode: Mode, connections: u32, packets: u64) {
    let mut world = World::new(mode.method(), connections);
    world.establish(connections);
    let mut random = Random::new();
    let before = world.transmitted();
    let batches = packets.div_ceil(BATCH_MAX as u64);
    // The first fifth warms caches up.
    for _ in 0..batches / 5 {
        world.fill_random(&mut random);
        world.process();
        world.drain();
    }
    let (mut spent, mut counted) = (0, 0);
    for _ in 0..batches {
        world.fill_random(&mut random);
        let start = Instant::now();
        world.process_measured();
        let ns = start.elapsed().as_nanos();
        world.drain();
        if ns < INTERRUPTED_NS {
            spent += ns;
            counted += 1;
        }
    }
    assert_eq!(world.transmitted() - before, (batches + batches / 5) * BATCH_MAX as u64);
    let ns = spent as f64 / (counted.max(1) * BATCH_MAX as u64) as f64;
    println!("{ns} {}", world.bytes_per_connection());
}
