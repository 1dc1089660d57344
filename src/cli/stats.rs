//! The human form of `uvs stats`: the daemon's JSON as aligned text. Pure; what it does not know it shows as it is, so
//! a newer daemon's numbers are never hidden.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::packet::DropReason;

/// Columns of an interface's table: JSON name and title.
const INTERFACE: [(&str, &str); 8] = [
    ("name", "INTERFACE"),
    ("driver", "DRIVER"),
    ("mode", "MODE"),
    ("filter_matched", "MATCHED"),
    ("filter_passed", "PASSED"),
    ("rx_ring_full", "RX-RING-FULL"),
    ("fill_ring_empty", "FILL-RING-EMPTY"),
    ("rx_dropped", "RX-DROPPED"),
];

/// Parts with a form of their own; the rest is listed behind them.
const KNOWN: [&str; 13] = [
    "version",
    "pid",
    "uptime_s",
    "workers",
    "generation",
    "unsaved",
    "received_by_worker",
    "icmp_errors_withheld",
    "frames",
    "interfaces",
    "connections",
    "latency_ns",
    "batch_sizes",
];

/// Appends to a `String`, which cannot fail.
macro_rules! line {
    ($out:expr, $($argument:tt)*) => {
        // Writing to a String never fails.
        let _ = writeln!($out, $($argument)*);
    };
}

/// Prints statistics for people.
pub fn text(statistics: &Value) -> String {
    let mut out = String::new();
    daemon_text(&mut out, statistics);
    if let Some(frames) = statistics.get("frames") {
        let by_worker = statistics.get("received_by_worker").and_then(Value::as_array);
        frames_text(&mut out, frames, by_worker.map_or(&[], Vec::as_slice));
    }
    if let Some(interfaces) = statistics.get("interfaces").and_then(Value::as_array) {
        out += "\n";
        out += &table(interfaces);
    }
    if let Some(connections) = statistics.get("connections") {
        connections_text(&mut out, connections);
    }
    if let Some(latency) = statistics.get("latency_ns") {
        line!(
            out,
            "\nLATENCY THROUGH THE DIRECTOR\n  {}",
            quantiles(latency, duration, "frames")
        );
    }
    if let Some(sizes) = statistics.get("batch_sizes") {
        line!(
            out,
            "\nFRAMES A BATCH\n  {}",
            quantiles(sizes, |frames| frames.to_string(), "batches")
        );
    }
    let rest = statistics.as_object().into_iter().flatten();
    let rest: Vec<_> = rest.filter(|(name, _)| !KNOWN.contains(&name.as_str())).collect();
    if !rest.is_empty() {
        out += "\n";
    }
    for (name, value) in rest {
        flat(&mut out, name, value);
    }
    out
}

/// Who answers, since when, and what is wrong with it.
fn daemon_text(out: &mut String, statistics: &Value) {
    let number = |name: &str| statistics.get(name).and_then(Value::as_u64);
    if let Some(version) = statistics.get("version").and_then(Value::as_str) {
        let mut parts = vec![format!("uvs {version}")];
        parts.extend(number("pid").map(|pid| format!("process {pid}")));
        parts.extend(number("uptime_s").map(|uptime_s| format!("up {}", uptime(uptime_s))));
        parts.extend(
            number("workers").map(|workers| format!("{workers} worker{}", if workers == 1 { "" } else { "s" })),
        );
        parts.extend(number("generation").map(|changes| format!("{changes} table changes")));
        line!(out, "{}", parts.join(", "));
    }
    if let Some(reason) = statistics.get("unsaved").and_then(Value::as_str) {
        line!(out, "The rules are not saved: {reason}");
    }
    if let Some(withheld) = number("icmp_errors_withheld").filter(|withheld| *withheld > 0) {
        line!(
            out,
            "ICMP errors withheld, as too many were due in a second: {withheld}"
        );
    }
    if !out.is_empty() {
        out.push('\n');
    }
}

fn uptime(s: u64) -> String {
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
    }
}

fn frames_text(out: &mut String, frames: &Value, by_worker: &[Value]) {
    let count = |name: &str| frames.get(name).and_then(Value::as_u64).unwrap_or(0);
    let dropped = frames.get("dropped");
    let dropped_total = dropped
        .and_then(|dropped| dropped.get("total"))
        .and_then(Value::as_u64)
        .unwrap_or(0);
    line!(out, "FRAMES");
    for name in ["received", "generated", "transmitted", "handed_back", "held"] {
        line!(out, "  {:<22} {:>14}", name.replace('_', " "), count(name));
        if name == "received" && by_worker.len() > 1 {
            let parts: Vec<String> = by_worker.iter().map(plain).collect();
            line!(out, "    by worker: {}", parts.join(", "));
        }
    }
    line!(out, "  {:<22} {:>14}", "dropped", dropped_total);
    let reasons = dropped
        .and_then(|dropped| dropped.get("reasons"))
        .and_then(Value::as_object);
    let mut reasons: Vec<_> = reasons.into_iter().flatten().collect();
    reasons.retain(|(_, count)| count.as_u64() != Some(0));
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(count.as_u64()));
    for (name, count) in reasons {
        let known = DropReason::ALL.iter().find(|reason| reason.name() == name);
        let explanation = known.map_or("", |reason| reason.explanation());
        line!(out, "    {name:<20} {:>14}  {explanation}", count.to_string());
    }
    let into = count("received").saturating_add(count("generated"));
    let ends = [count("transmitted"), count("handed_back"), dropped_total, count("held")];
    let ends = ends.iter().fold(0u64, |sum, end| sum.saturating_add(*end));
    if into != ends {
        line!(
            out,
            "  unaccounted            {:>14}  (a defect of uvs: please report it)",
            i128::from(into) - i128::from(ends)
        );
    }
}

/// A table of interfaces: the known columns, then whatever else there is.
fn table(interfaces: &[Value]) -> String {
    let mut columns: Vec<(String, String)> = INTERFACE
        .iter()
        .map(|(name, title)| ((*name).to_owned(), (*title).to_owned()))
        .collect();
    for name in interfaces.iter().filter_map(Value::as_object).flat_map(Map::keys) {
        if !columns.iter().any(|(known, _)| known == name) {
            columns.push((name.clone(), name.to_uppercase().replace('_', "-")));
        }
    }
    let cell = |interface: &Value, name: &str| interface.get(name).map_or_else(|| "-".to_owned(), plain);
    let mut rows = vec![columns.iter().map(|(_, title)| title.clone()).collect::<Vec<_>>()];
    rows.extend(
        interfaces
            .iter()
            .map(|interface| columns.iter().map(|(name, _)| cell(interface, name)).collect()),
    );
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        // Words to the left, numbers to the right.
        let cells = cells.map(|(column, (cell, &width))| {
            if column < 3 {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
        line!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    out
}

fn connections_text(out: &mut String, connections: &Value) {
    let count = |name: &str| connections.get(name).and_then(Value::as_u64).unwrap_or(0);
    let (used, capacity) = (count("used"), count("capacity"));
    let percent = if capacity == 0 {
        0.0
    } else {
        used as f64 * 100.0 / capacity as f64
    };
    line!(out, "\nCONNECTIONS");
    line!(out, "  {used} of {capacity} entries used ({percent:.1} %)");
    for (name, value) in connections.as_object().into_iter().flatten() {
        if name != "used" && name != "capacity" {
            flat(out, &format!("  {name}"), value);
        }
    }
}

/// `p50 …   p99 …   p999 …   max …   of N things`, and whatever else there is.
fn quantiles(histogram: &Value, show: impl Fn(u64) -> String, things: &str) -> String {
    let first = ["p50", "p99", "p999", "max"];
    let others = histogram
        .as_object()
        .into_iter()
        .flat_map(Map::keys)
        .map(String::as_str);
    let others = others.filter(|name| !first.contains(name) && *name != "count");
    let number = |name: &str| histogram.get(name).and_then(Value::as_u64);
    let parts = first.into_iter().chain(others);
    let mut parts: Vec<_> = parts
        .filter_map(|name| Some(format!("{name} {}", show(number(name)?))))
        .collect();
    parts.extend(number("count").map(|count| format!("of {count} {things}")));
    parts.join("   ")
}

fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        _ => format!("{:.1} ms", ns as f64 / 1e6),
    }
}

/// `name.part: value`, one line a number.
fn flat(out: &mut String, name: &str, value: &Value) {
    match value {
        Value::Object(parts) => parts
            .iter()
            .for_each(|(part, value)| flat(out, &format!("{name}.{part}"), value)),
        Value::Array(parts) => parts
            .iter()
            .enumerate()
            .for_each(|(n, value)| flat(out, &format!("{name}.{n}"), value)),
        value => {
            line!(out, "{name}: {}", plain(value));
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_is_shown() {
        let statistics = json!({
            "frames": {"received": 100, "generated": 1, "transmitted": 90, "handed_back": 2, "held": 1,
                       "dropped": {"total": 8, "reasons": {"no_route": 3, "truncated": 5, "too_big": 0, "novel": 0}}},
            "interfaces": [
                {"name": "eth0", "driver": "xdp", "mode": "native", "filter_matched": 100, "filter_passed": 7,
                 "rx_ring_full": 0, "fill_ring_empty": 0, "rx_dropped": 0, "tx_invalid": 12},
                {"name": "e1", "driver": "raw", "mode": "packet"},
            ],
            "connections": {"capacity": 1000, "used": 250, "templates": 3},
            "latency_ns": {"p50": 900, "p99": 12_300, "p999": 456_700, "max": 7_800_000, "count": 1_234},
            "batch_sizes": {"p50": 1, "p99": 64, "p999": 64, "max": 64, "count": 90},
            "version": "1.2.3", "pid": 42, "uptime_s": 93_784, "workers": 1, "generation": 7,
            "unsaved": "/var/lib/uvs: No space left on device", "received_by_worker": [60, 40], "icmp_errors_withheld": 5,
            "novel": [{"thing": 4}],
        });
        let expected = "\
uvs 1.2.3, process 42, up 1 d 2 h, 1 worker, 7 table changes
The rules are not saved: /var/lib/uvs: No space left on device
ICMP errors withheld, as too many were due in a second: 5

FRAMES
  received                          100
    by worker: 60, 40
  generated                           1
  transmitted                        90
  handed back                         2
  held                                1
  dropped                             8
    truncated                         5  Shorter than its headers, or than the lengths in them.
    no_route                          3  No route to the destination; the sender got host-unreachable.

INTERFACE  DRIVER  MODE    MATCHED  PASSED  RX-RING-FULL  FILL-RING-EMPTY  RX-DROPPED  TX-INVALID
eth0       xdp     native      100       7             0                0           0          12
e1         raw     packet        -       -             -                -           -           -

CONNECTIONS
  250 of 1000 entries used (25.0 %)
  templates: 3

LATENCY THROUGH THE DIRECTOR
  p50 900 ns   p99 12.3 µs   p999 456.7 µs   max 7.8 ms   of 1234 frames

FRAMES A BATCH
  p50 1   p99 64   p999 64   max 64   of 90 batches

novel.0.thing: 4
";
        let found = text(&statistics);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_frame_without_a_fate_is_not_hidden() {
        let frames = json!({"frames": {"received": 10, "transmitted": 7, "dropped": {"total": 2}}});
        assert!(
            text(&frames).contains("unaccounted                         1  (a defect"),
            "{}",
            text(&frames)
        );
        assert_eq!(text(&json!({})), "");
    }
}
