//! Rows with TCP programs: wrk for new connections, iperf3 for bulk.

use std::time::Duration;

use uvs::demo::cluster::Error;
use uvs::io::process::Process;

use crate::cpu::{OURS, THEIRS};
use crate::report::{Goal, Row, Series, Spread};
use crate::rig::{BULK, Peer, Rig, Wanted, run, which, wrong};
use crate::rows::Setup;

/// `connections`: client and server on one CPU, director on the other.
pub fn connections(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new("connections", "New TCP connections a second", "connections a second");
    for program in ["wrk", "nginx"] {
        needs(program)?;
    }
    let peers = [
        Peer::Direct,
        Peer::Kernel,
        Peer::Nft,
        Peer::Haproxy,
        Peer::NginxStream,
        Peer::Bare("xdp"),
        Peer::Uvs("xdp"),
    ];
    let seconds = if setup.quick { 1 } else { 3 };
    let wanted = Wanted {
        // The bare forwarder finishes no checksums.
        offloads: false,
        connections: 1_000_000,
        ..Wanted::new(&setup.uvs)
    };
    by_turns(
        setup,
        &mut row,
        &peers,
        &wanted,
        |rig| rig.start_web(None),
        1,
        |rig| {
            let url = format!("http://{}/", rig.target());
            let mut command = Rig::pinned(&rig.client, OURS, "wrk")?;
            command.args(["-t1", "-c64", &format!("-d{seconds}s"), "-H", "Connection: close", &url]);
            let text = run(&mut command)?;
            number_after(&text, "Requests/sec:")
        },
    )?;
    let uvs = Peer::Uvs("xdp").name();
    let bare = Peer::Bare("xdp").name();
    let over_haproxy = Goal::at_least(1.5, Some(1.7), "x");
    row.judge_ratio(&uvs, &Peer::Haproxy.name(), over_haproxy);
    // More is no matter of the director's: client and server have the other CPU.
    row.compare_ratio(&bare, &Peer::Haproxy.name(), over_haproxy, "most possible here");
    row.judge_ratio(&uvs, &bare, Goal::at_least(0.85, Some(0.95), "x"));
    row.note(
        "wrk, 64 at a time, a request each; wrk and nginx on one CPU, the director on the other; without offloads at client and server.",
    );
    Ok(row)
}

/// `bulk`: uploads by NAT, default offloads.
pub fn bulk(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new("bulk", "Bulk TCP through the director, default offloads", "Gbit/s");
    needs("iperf3")?;
    let peers = [
        Peer::Direct,
        Peer::Kernel,
        Peer::Nft,
        Peer::Haproxy,
        Peer::NginxStream,
        Peer::Uvs("raw"),
        Peer::Uvs("xdp"),
    ];
    by_turns(
        setup,
        &mut row,
        &peers,
        &Wanted::new(&setup.uvs),
        |_| Ok(()),
        1,
        |rig| iperf3(rig, setup, [OURS, THEIRS], false),
    )?;
    let best = Peer::Uvs("raw").name();
    row.judge_ratio(&best, &Peer::Nft.name(), Goal::at_least(0.4, Some(0.8), "x"));
    row.note("iperf3 -C cubic, one stream; client on one CPU, server and director on the other.");
    Ok(row)
}

/// `download`: by direct routing, where data does not pass the director.
pub fn download(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new(
        "download",
        "Bulk download by direct routing, default offloads",
        "Gbit/s",
    );
    needs("iperf3")?;
    let peers = [Peer::Direct, Peer::UvsDr("xdp"), Peer::UvsDr("raw")];
    by_turns(
        setup,
        &mut row,
        &peers,
        &Wanted::new(&setup.uvs),
        |_| Ok(()),
        TURNS,
        |rig| iperf3(rig, setup, [THEIRS, THEIRS], true),
    )?;
    for driver in ["xdp", "raw"] {
        row.judge_ratio(
            &Peer::UvsDr(driver).name(),
            &Peer::Direct.name(),
            Goal::at_least(0.9, Some(0.97), "x"),
        );
    }
    row.note("iperf3 -R -C cubic, one stream; client, server and director on one CPU; the best of four turns.");
    Ok(row)
}

/// Turns of a run of downloads: some are at half the rate, of the direct path more than others.
const TURNS: usize = 4;

/// Builds all rigs, then measures each `turns` times a run, of which the best counts.
fn by_turns(
    setup: &Setup,
    row: &mut Row,
    peers: &[Peer],
    wanted: &Wanted<'_>,
    mut prepare: impl FnMut(&mut Rig) -> Result<(), Error>,
    turns: usize,
    mut measure: impl FnMut(&mut Rig) -> Result<f64, Error>,
) -> Result<(), Error> {
    let mut rigs = Vec::new();
    for &peer in peers {
        if setup.can_run(peer, row) {
            let mut rig = Rig::build(row.name, peer, wanted)?;
            prepare(&mut rig)?;
            rigs.push((rig, Vec::new()));
        }
    }
    for _ in 0..setup.runs {
        let mut measured = vec![Vec::new(); rigs.len()];
        for _ in 0..turns {
            for ((rig, _), measured) in rigs.iter_mut().zip(&mut measured) {
                setup.go_on()?;
                measured.push(measure(rig).map_err(|error| wrong(format!("{}: {error}", rig.peer.name())))?);
            }
        }
        for ((_, values), measured) in rigs.iter_mut().zip(measured) {
            values.extend(Spread::of(&measured).map(|spread| spread.max));
        }
    }
    for (rig, values) in rigs {
        row.series.push(Series {
            peer: rig.peer.name(),
            values,
            missing: None,
        });
    }
    Ok(())
}

/// Gbit/s that arrived, with client and server on those CPUs.
fn iperf3(rig: &mut Rig, setup: &Setup, [client_cpu, server_cpu]: [usize; 2], download: bool) -> Result<f64, Error> {
    // A server a run: between two runs of one process it refuses the next client for a moment.
    let mut command = Rig::pinned(&rig.server, server_cpu, "iperf3")?;
    command.args(["--server", "--one-off", "--forceflush", "--port", &BULK.to_string()]);
    let mut server = Process::start("iperf3", &mut command).map_err(Error::io("iperf3"))?;
    server
        .wait_for_line(Duration::from_secs(5), |line| line.starts_with("Server listening"))
        .map_err(Error::io("wait for iperf3"))?;
    let mut command = Rig::pinned(&rig.client, client_cpu, "iperf3")?;
    let target = rig.target().to_string();
    let seconds = if setup.quick { "1" } else { "3" };
    command.args([
        "-c",
        &target,
        "-p",
        &BULK.to_string(),
        "-t",
        seconds,
        "-O",
        "0.5",
        "-C",
        "cubic",
        "-J",
    ]);
    command.args(["--connect-timeout", "5000"]);
    command.args(download.then_some("-R"));
    let text = run(&mut command)?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(wrong)?;
    let rate = json.pointer("/end/sum_received/bits_per_second");
    rate.and_then(serde_json::Value::as_f64)
        .map(|rate| rate / 1e9)
        .ok_or_else(|| wrong(format!("iperf3 says no rate: {text}")))
}

/// An error that names what to install.
pub fn needs(program: &str) -> Result<(), Error> {
    match which(program) {
        Some(_) => Ok(()),
        None => Err(wrong(format!("{program} is not installed"))),
    }
}

/// The number that stands behind these words in the output of a program.
pub fn number_after(text: &str, words: &str) -> Result<f64, Error> {
    let rest = text.split_once(words).map(|(_, rest)| rest);
    let number = rest.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    number.ok_or_else(|| wrong(format!("no number behind '{words}' in:\n{text}")))
}
