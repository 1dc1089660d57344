//! Clients that never rest: requests on connections that stay and on new ones, and what became of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{HttpClient, Namespace};

/// How long a request may take; longer than the retransmissions over any outage that is allowed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests on one connection before a new one is made.
const REQUESTS_A_CONNECTION: u32 = 20;

/// Running clients, a thread each.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Report>>,
}

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Report {
    pub requests: u64,
    pub connections: u64,
    pub failures: Vec<String>,
    /// The longest that a request took.
    pub slowest: Duration,
    /// How many each server answered, by name.
    pub answers: std::collections::BTreeMap<String, u64>,
}

impl Load {
    /// Starts one client for each target.
    pub fn start(namespace: &Namespace, targets: &[SocketAddr]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = targets.iter().map(|target| {
            let (target, stop) = (*target, stop.clone());
            let namespace = namespace.try_clone().expect("a handle");
            std::thread::spawn(move || client(&namespace, target, &stop))
        });
        Load {
            threads: threads.collect(),
            stop,
        }
    }

    /// Ends the clients.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Report::default();
        for thread in self.threads {
            let report = thread.join().expect("a client does not panic");
            sum.requests += report.requests;
            sum.connections += report.connections;
            sum.failures.extend(report.failures);
            sum.slowest = sum.slowest.max(report.slowest);
            for (server, count) in report.answers {
                *sum.answers.entry(server).or_default() += count;
            }
        }
        sum
    }

    /// Ends the clients; none may have failed.
    pub fn stop_without_failure(self, during: &str) -> Report {
        let report = self.stop();
        assert!(report.failures.is_empty(), "{during}: {report:#?}");
        assert!(report.requests > 0, "{during}: no request was made");
        println!(
            "{during}: {} requests on {} connections, none failed, the slowest took {:?}",
            report.requests, report.connections, report.slowest
        );
        report
    }
}

fn client(namespace: &Namespace, target: SocketAddr, stop: &AtomicBool) -> Report {
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let mut connection = match HttpClient::connect(namespace, None, target, PATIENCE) {
            Ok(connection) => connection,
            Err(error) => {
                report.failures.push(format!("connect to {target}: {error}"));
                continue;
            }
        };
        report.connections += 1;
        report.slowest = report.slowest.max(start.elapsed());
        for _ in 0..REQUESTS_A_CONNECTION {
            let start = Instant::now();
            match connection.get("/") {
                Ok(server) => *report.answers.entry(server).or_default() += 1,
                Err(error) => {
                    report.failures.push(format!("request to {target}: {error}"));
                    break;
                }
            }
            report.requests += 1;
            report.slowest = report.slowest.max(start.elapsed());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    report
}
