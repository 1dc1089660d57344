//! The documents' own benchmark (Clunix seminar, 2004): `ab` on a single server and on a cluster; efficiency = the
//! cluster's most / (the single server's most x servers).
//!
//! Servers are bounded (nginx lets so many requests a second through, the rest waits), so that they are the bottleneck as they
//! were then, and not the two CPUs that all share here. What is lost is the director's doing.

use std::time::{Duration, Instant};

use uvs::demo::cluster::Error;

use crate::cpu::{self, OURS};
use crate::report::{Goal, Row, Series};
use crate::rig::{Peer, Rig, Wanted, run, wrong};
use crate::rows::Setup;
use crate::tcp::{needs, number_after};

const SINGLE: &str = "single server";

fn clusters(setup: &Setup, row: &str, servers: &[usize], capacity: u32) -> Result<Vec<(String, Rig)>, Error> {
    needs("ab")?;
    needs("nginx")?;
    let mut rigs = Vec::new();
    for &count in servers {
        let peer = if count == 1 { Peer::Direct } else { Peer::Uvs("xdp") };
        let wanted = Wanted {
            servers: count,
            ..Wanted::new(&setup.uvs)
        };
        let mut rig = Rig::build(&format!("{row}{count}"), peer, &wanted)?;
        rig.start_web(Some(capacity))?;
        rigs.push((name(count), rig));
    }
    Ok(rigs)
}

fn name(servers: usize) -> String {
    match servers {
        1 => SINGLE.into(),
        n => format!("cluster of {n}"),
    }
}

/// What `ab` says: requests a second, and the mean time of one in milliseconds.
fn ab(rig: &Rig, requests: u32, concurrency: u32) -> Result<(f64, f64), Error> {
    let mut command = Rig::pinned(&rig.client, OURS, "ab")?;
    let url = format!("http://{}/", rig.target());
    command.args(["-q", "-n", &requests.to_string(), "-c", &concurrency.to_string(), &url]);
    let text = run(&mut command)?;
    let failed = number_after(&text, "Failed requests:")?;
    if failed > 0.0 {
        return Err(wrong(format!("{failed} requests failed:\n{text}")));
    }
    Ok((
        number_after(&text, "Requests per second:")?,
        number_after(&text, "Time per request:")?,
    ))
}

/// `efficiency`: two servers and eight.
pub fn efficiency(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new(
        "efficiency",
        "Cluster efficiency, servers of 300 requests a second",
        "requests a second",
    );
    let capacity = 300;
    let seconds = if setup.quick { 2 } else { 6 };
    let servers = [1, 2, 8];
    let rigs = clusters(setup, row.name, &servers, capacity)?;
    let mut values = vec![Vec::new(); rigs.len()];
    for _ in 0..setup.runs {
        for (n, (_, rig)) in rigs.iter().enumerate() {
            setup.go_on()?;
            let count = servers[n] as u32;
            values[n].push(ab(rig, count * capacity * seconds, count * 100)?.0);
        }
    }
    let single = values[0].clone();
    for ((name, _), values) in rigs.iter().zip(&values) {
        row.series.push(Series {
            peer: name.clone(),
            values: values.clone(),
            missing: None,
        });
    }
    judge(&mut row, &single, &servers[1..]);
    row.note(
        "ab, a connection a request, 100 at a time for each server; by NAT, wlc; the single server without a director.",
    );
    Ok(row)
}

/// Efficiency in percent is a series of its own, so that it is in the results.
fn judge(row: &mut Row, single: &[f64], servers: &[usize]) {
    for &count in servers {
        let cluster = row.values(&name(count)).map(<[f64]>::to_vec).unwrap_or_default();
        let percent = cluster
            .iter()
            .zip(single)
            .map(|(c, s)| 100.0 * c / (s * count as f64))
            .collect();
        let peer = format!("efficiency of {count}, %");
        row.series.push(Series {
            peer: peer.clone(),
            values: percent,
            missing: None,
        });
        row.judge(&peer, Goal::at_least(98.0, Some(99.5), "%"));
    }
}

/// `ab`: 50,000 requests, 1000 at a time, and the steps up to there.
pub fn documents(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new(
        "ab",
        "ab -n 50000 -c 1000, servers of 2,000 requests a second",
        "requests a second",
    );
    let capacity = 2000;
    let requests = if setup.quick { 10_000 } else { 50_000 };
    let mut rigs = clusters(setup, row.name, &[1, 2], capacity)?;
    row.note(steps(setup, &mut rigs)?);
    let mut values = vec![Vec::new(); rigs.len()];
    // Half a minute each.
    for _ in 0..setup.runs.min(3) {
        for (n, (_, rig)) in rigs.iter().enumerate() {
            setup.go_on()?;
            values[n].push(ab(rig, requests, 1000)?.0);
        }
    }
    for ((name, _), values) in rigs.iter().zip(&values) {
        row.series.push(Series {
            peer: name.clone(),
            values: values.clone(),
            missing: None,
        });
    }
    let single = values.swap_remove(0);
    judge(&mut row, &single, &[2]);
    row.note("At most three runs. In the documents (2004): 1356.78 and 2593.90 requests a second, 95.6 %.");
    Ok(row)
}

/// Load raised step by step, CPU and memory of the director watched meanwhile; as a table.
fn steps(setup: &Setup, rigs: &mut [(String, Rig)]) -> Result<String, Error> {
    let mut text = String::from(
        "| at a time | | requests a second | mean ms | director CPU % | director MiB |\n|---|---|---|---|---|---|\n",
    );
    let steps: &[u32] = if setup.quick {
        &[10, 1000]
    } else {
        &[1, 10, 50, 100, 250, 500, 1000]
    };
    for &concurrency in steps {
        for (name, rig) in rigs.iter_mut() {
            setup.go_on()?;
            let pid = rig.director_pid();
            let spent = || pid.map_or(Duration::ZERO, cpu::of_process);
            let (start, before) = (Instant::now(), spent());
            let requests = if concurrency < 10 { 500 } else { 4000 };
            let (rate, mean) = ab(rig, requests, concurrency)?;
            let cpu = 100.0 * spent().saturating_sub(before).as_secs_f64() / start.elapsed().as_secs_f64();
            let (cpu, memory) = match pid {
                Some(pid) => (format!("{cpu:.1}"), format!("{:.1}", cpu::memory_mib(pid))),
                None => ("–".into(), "–".into()),
            };
            text += &format!("| {concurrency} | {name} | {rate:.0} | {mean:.1} | {cpu} | {memory} |\n");
        }
    }
    Ok(text)
}
