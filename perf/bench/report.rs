//! The rows, for people and as JSON.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

/// What was measured of one method at one number of connections.
#[derive(Serialize)]
pub struct Row {
    pub mode: &'static str,
    pub connections: u32,
    pub ns_per_packet: f64,
    pub floor_ns: Option<f64>,
    pub instructions_per_packet: Option<f64>,
    pub bytes_per_connection: f64,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.floor_ns.map(|floor| self.ns_per_packet / floor)
    }

    pub fn print(&self) {
        let or_dash = |number: Option<f64>, digits: usize| match number {
            Some(number) => format!("{number:.digits$}"),
            None => "-".into(),
        };
        println!(
            "{:<7} {:>11} {:>9.1} {:>9} {:>6} {:>13} {:>11.1}",
            self.mode,
            self.connections,
            self.ns_per_packet,
            or_dash(self.floor_ns, 1),
            or_dash(self.ratio(), 2),
            or_dash(self.instructions_per_packet, 0),
            self.bytes_per_connection,
        );
    }
}

pub fn head() {
    println!(
        "{:<7} {:>11} {:>9} {:>9} {:>6} {:>13} {:>11}",
        "mode", "connections", "ns/packet", "floor ns", "ratio", "instr./packet", "bytes/conn."
    );
}

/// What a reader has to know.
pub fn foot(rows: &[Row]) {
    if rows.iter().any(|row| row.floor_ns.is_none()) {
        println!("no floor: run perf/dataplane, which builds it");
    }
    if rows.iter().any(|row| row.connections > 100_000) {
        println!("instructions above 100000 connections are those counted at 100000");
    }
}

/// One object a line.
pub fn write_json(file: &Path, rows: &[Row]) -> io::Result<()> {
    let lines: Result<Vec<String>, _> = rows.iter().map(serde_json::to_string).collect();
    fs::write(file, lines?.join("\n") + "\n")
}
