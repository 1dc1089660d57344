//! The programs that are measured, each run in a process of its own: this one, the floor, this one under valgrind.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Mode;
use super::report::Row;

/// Instructions are counted at this many connections at most: more take minutes under valgrind and change nothing.
const COUNTED_AT_MAX: u32 = 100_000;
/// Packets whose instructions are counted.
const COUNTED_PACKETS: u64 = 64_000;

/// What is the same for all rows.
pub struct Setup {
    pub floor: Option<PathBuf>,
    pub cpu: Option<usize>,
    pub runs: Option<usize>,
    pub packets: u64,
}

impl Setup {
    /// Measures one row. The two programs take turns, so that whatever else the machine does meets both.
    pub fn row(&self, mode: Mode, connections: u32) -> Row {
        let runs = self.runs.unwrap_or(if connections > 1_000_000 { 3 } else { 5 });
        let (mut ours, mut floor, mut bytes) = (Vec::new(), Vec::new(), 0.0);
        for _ in 0..runs {
            floor.extend(self.floor_ns(mode, connections));
            let [ns, bytes_per_connection] = self.our_run(mode, connections);
            ours.push(ns);
            bytes = bytes_per_connection;
        }
        Row {
            mode: mode.name(),
            connections,
            ns_per_packet: median(&mut ours).unwrap_or(f64::NAN),
            floor_ns: median(&mut floor),
            instructions_per_packet: self.instructions(mode, connections.min(COUNTED_AT_MAX)),
            bytes_per_connection: bytes,
        }
    }

    fn our_run(&self, mode: Mode, connections: u32) -> [f64; 2] {
        let mut command = self.pinned(&this_program());
        one_run(&mut command, mode, connections, self.packets);
        let output = output(&mut command);
        let numbers: Vec<f64> = output.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        numbers.try_into().expect("a run prints two numbers")
    }

    fn floor_ns(&self, mode: Mode, connections: u32) -> Option<f64> {
        let mode = if mode == Mode::Tunnel { "ipip" } else { mode.name() };
        let mut command = self.pinned(self.floor.as_deref()?);
        // Batches of 64, prefetching, huge pages.
        command.args([
            mode,
            &connections.to_string(),
            "64",
            "1",
            "1",
            &self.packets.to_string(),
        ]);
        let output = output(&mut command);
        let number = output.split(" ns/pkt").next()?.rsplit(' ').next()?;
        Some(number.parse().expect("the floor prints ns/pkt"))
    }

    /// A program on the one CPU.
    fn pinned(&self, program: &Path) -> Command {
        let last = std::thread::available_parallelism().map_or(0, |n| n.get() - 1);
        let mut command = Command::new("taskset");
        command.arg("-c").arg(self.cpu.unwrap_or(last).to_string()).arg(program);
        command
    }

    /// Instructions a packet, by callgrind; `None` without valgrind.
    fn instructions(&self, mode: Mode, connections: u32) -> Option<f64> {
        let mut command = Command::new("valgrind");
        command
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg("--toggle-collect=*process_measured*")
            .arg(this_program());
        one_run(&mut command, mode, connections, COUNTED_PACKETS);
        let output = command.output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let collected = text.lines().find_map(|line| line.split_once("Collected :"));
        let Some((_, count)) = collected else {
            panic!("valgrind: {text}");
        };
        Some(count.trim().parse::<f64>().expect("a number") / COUNTED_PACKETS as f64)
    }
}

fn this_program() -> PathBuf {
    std::env::current_exe().expect("this program has a path")
}

fn one_run(command: &mut Command, mode: Mode, connections: u32, packets: u64) {
    command.args(["--mode", mode.name(), "--connections", &connections.to_string()]);
    command.args(["--one-run", &packets.to_string()]);
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn median(numbers: &mut [f64]) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}
