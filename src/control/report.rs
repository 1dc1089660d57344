//! The JSON of `uvs stats --json`.
//!
//! The names under `frames`, `interfaces`, `connections` and `latency_ns` are fixed; what comes beside them may grow.

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::dataplane::counters::FrameCounts;
use crate::dataplane::driver::InterfaceStatistics;
use crate::packet::DropReason;

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceReport {
    /// Its name.
    pub name: String,
    /// Driver in use, such as `xdp`.
    pub driver: String,
    /// What the driver got, such as `native`.
    pub mode: String,
    /// Frames that the filter took for us.
    pub filter_matched: u64,
    /// Frames that it left to the kernel.
    pub filter_passed: u64,
    /// Of the kernel, summed over the workers.
    pub statistics: InterfaceStatistics,
}

/// Everything that the report is made of.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of all workers.
    pub frames: FrameCounts,
    /// In the order of their ids.
    pub interfaces: Vec<InterfaceReport>,
    /// Entries that there is room for.
    pub connections_capacity: u64,
    /// Entries in use, templates included.
    pub connections_used: u64,
    /// Nanoseconds from receive to transmit.
    pub latency_ns: Histogram<u64>,
    /// Frames a batch.
    pub batch_sizes: Histogram<u64>,
    /// Frames that each worker received.
    pub received_by_worker: Vec<u64>,
    /// Changes made live so far.
    pub generation: u64,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Why the rules could not be saved, if the last attempt failed.
    pub unsaved: Option<String>,
}

impl Report {
    /// As JSON.
    pub fn json(&self) -> Value {
        let frames = &self.frames;
        let reasons: Map<String, Value> = DropReason::ALL
            .iter()
            .map(|reason| (reason.name().to_owned(), json!(frames.dropped[*reason as usize])))
            .collect();
        json!({
            "frames": {
                "received": frames.received,
                "generated": frames.generated,
                "transmitted": frames.transmitted,
                "handed_back": frames.handed_back,
                "held": frames.held,
                "dropped": { "total": frames.dropped_total(), "reasons": reasons },
            },
            "interfaces": self.interfaces.iter().map(interface).collect::<Vec<_>>(),
            "connections": { "capacity": self.connections_capacity, "used": self.connections_used },
            "latency_ns": quantiles(&self.latency_ns),
            "batch_sizes": quantiles(&self.batch_sizes),
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "workers": self.received_by_worker.len(),
            "received_by_worker": self.received_by_worker,
            "icmp_errors_withheld": frames.errors_withheld,
            "generation": self.generation,
            "uptime_s": self.uptime_s,
            "unsaved": self.unsaved,
        })
    }
}

fn interface(report: &InterfaceReport) -> Value {
    let kernel = report.statistics;
    json!({
        "name": report.name,
        "driver": report.driver,
        "mode": report.mode,
        "filter_matched": report.filter_matched,
        "filter_passed": report.filter_passed,
        "rx_ring_full": kernel.rx_ring_full,
        "fill_ring_empty": kernel.fill_ring_empty,
        "rx_dropped": kernel.rx_dropped,
        "tx_invalid": kernel.tx_invalid,
        "tx_failed": kernel.tx_failed,
    })
}

fn quantiles(histogram: &Histogram<u64>) -> Value {
    json!({
        "p50": histogram.value_at_quantile(0.5),
        "p99": histogram.value_at_quantile(0.99),
        "p999": histogram.value_at_quantile(0.999),
        "max": histogram.max(),
        "count": histogram.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_names_are_there_and_the_sum_is_right() {
        let mut frames = FrameCounts {
            received: 10,
            transmitted: 6,
            handed_back: 2,
            ..FrameCounts::default()
        };
        frames.drop(DropReason::TtlExpired);
        frames.drop(DropReason::Truncated);
        let mut latency = Histogram::new_with_max(1_000_000, 3).unwrap();
        latency.record_n(500, 99).unwrap();
        latency.record(90_000).unwrap();
        let report = Report {
            frames,
            interfaces: vec![InterfaceReport {
                name: "eth0".to_owned(),
                driver: "xdp".to_owned(),
                mode: "native".to_owned(),
                filter_matched: 10,
                ..InterfaceReport::default()
            }],
            connections_capacity: 1024,
            connections_used: 3,
            batch_sizes: latency.clone(),
            latency_ns: latency,
            received_by_worker: vec![7, 3],
            generation: 5,
            uptime_s: 60,
            unsaved: None,
        };
        let json = report.json();
        assert_eq!(json["frames"]["dropped"]["total"], 2);
        assert_eq!(json["frames"]["dropped"]["reasons"]["ttl_expired"], 1);
        assert_eq!(
            json["frames"]["dropped"]["reasons"].as_object().unwrap().len(),
            DropReason::ALL.len()
        );
        let number = |path: &str| {
            json.pointer(path)
                .and_then(Value::as_u64)
                .unwrap_or_else(|| panic!("{path}"))
        };
        let frames = |name: &str| number(&format!("/frames/{name}"));
        let fates = frames("transmitted") + frames("handed_back") + frames("held") + frames("dropped/total");
        assert_eq!(frames("received") + frames("generated"), fates);
        for name in [
            "filter_matched",
            "filter_passed",
            "rx_ring_full",
            "fill_ring_empty",
            "rx_dropped",
            "tx_invalid",
        ] {
            number(&format!("/interfaces/0/{name}"));
        }
        assert_eq!(json["interfaces"][0]["mode"], "native");
        assert_eq!(
            (number("/connections/capacity"), number("/connections/used")),
            (1024, 3)
        );
        assert!((490..510).contains(&number("/latency_ns/p50")));
        assert!(number("/latency_ns/max") >= 90_000 && number("/latency_ns/p999") >= 90_000);
    }
}
