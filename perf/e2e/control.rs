//! Rows about the daemon beside its packets: what it costs idle, and how fast rules are in force.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};

use uvs::demo::cluster::Error;

use crate::cpu;
use crate::report::{Goal, Row, Series};
use crate::rig::{Peer, Rig, VIP, Wanted, server_address, wrong};
use crate::rows::Setup;

const SERVICES: u16 = 1000;
const SERVERS: usize = 10;
/// Weights changed one by one in each run.
const EDITS: usize = 5;

/// `idle`: services and no packets.
pub fn idle(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new("idle", "CPU of an idle director", "% of a CPU");
    let length = Duration::from_secs(if setup.quick { 1 } else { 4 });
    for driver in ["xdp", "raw"] {
        let peer = Peer::Uvs(driver);
        let mut rig = Rig::build("idle", peer, &Wanted::new(&setup.uvs))?;
        let pid = rig.director_pid().ok_or_else(|| wrong("uvs is a process"))?;
        let mut values = Vec::new();
        std::thread::sleep(Duration::from_secs(1));
        for _ in 0..setup.runs {
            setup.go_on()?;
            let (start, before) = (Instant::now(), cpu::of_process(pid));
            std::thread::sleep(length);
            let spent = cpu::of_process(pid).saturating_sub(before);
            values.push(100.0 * spent.as_secs_f64() / start.elapsed().as_secs_f64());
        }
        row.series.push(Series {
            peer: peer.name(),
            values,
            missing: None,
        });
        row.judge(&peer.name(), Goal::at_most(1.0, Some(0.1), "%"));
    }
    Ok(row)
}

/// `rules`: a thousand services with ten servers each.
pub fn rules(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new("rules", "1,000 services x 10 servers, wall clock of the command", "ms");
    let wanted = Wanted {
        servers: SERVERS,
        ..Wanted::new(&setup.uvs)
    };
    let rig = Rig::build("rules", Peer::Uvs("xdp"), &wanted)?;
    let file = rig.directory().join("rules");
    fs::write(&file, text()).map_err(Error::io("write the rules"))?;
    let [mut all, mut one, mut start, mut any] = [const { Vec::new() }; 4];
    for n in 0..setup.runs {
        setup.go_on()?;
        rig.uvs()?.ipvsadm("-C")?;
        let stdin = File::open(&file).map_err(Error::io("open the rules"))?;
        let mut restore = rig.uvs()?.command(&["ipvsadm", "-R"]);
        restore.stdin(stdin);
        all.push(milliseconds(&mut restore)?);
        let service = format!("{VIP}:{}", port(SERVICES / 2));
        let server = format!("{}:80", server_address(SERVERS / 2));
        for edit in 0..EDITS {
            let weight = (2 + n * EDITS + edit).to_string();
            let edit = ["ipvsadm", "-e", "-t", &service, "-r", &server, "-m", "-w", &weight];
            one.push(milliseconds(&mut rig.uvs()?.command(&edit))?);
            // What a process costs that asks nobody, and one that does nothing.
            start.push(milliseconds(&mut rig.uvs()?.command(&["--version"]))?);
            any.push(milliseconds(&mut Command::new("true"))?);
        }
    }
    let listed = rig
        .uvs()?
        .ipvsadm("-ln")?
        .lines()
        .filter(|line| line.contains("->"))
        .count();
    // The heading has an arrow too.
    if listed != usize::from(SERVICES) * SERVERS + 1 {
        return Err(wrong(format!("{listed} lines of servers are listed")));
    }
    for (peer, values) in [
        ("uvs ipvsadm -R", all),
        ("uvs ipvsadm -e", one),
        ("uvs --version (start of a process)", start),
        ("true (start of any process)", any),
    ] {
        row.series.push(Series {
            peer: peer.into(),
            values,
            missing: None,
        });
    }
    row.judge("uvs ipvsadm -R", Goal::at_most(200.0, Some(50.0), "ms"));
    row.judge("uvs ipvsadm -e", Goal::at_most(1.0, None, "ms"));
    row.judge_difference(
        "uvs ipvsadm -e",
        "uvs --version (start of a process)",
        Goal::at_most(1.0, None, "ms"),
    );
    row.note("When the command returns, the change is live in the data plane and on the disk (here a tmpfs).");
    Ok(row)
}

fn port(n: u16) -> u16 {
    1000 + n
}

fn text() -> String {
    let mut text = String::new();
    for n in 0..SERVICES {
        // Writing to a String does not fail.
        let _ = writeln!(text, "-A -t {VIP}:{} -s wlc", port(n));
        for server in (0..SERVERS).map(server_address) {
            let _ = writeln!(text, "-a -t {VIP}:{} -r {server}:80 -m -w 1", port(n));
        }
    }
    text
}

fn milliseconds(command: &mut Command) -> Result<f64, Error> {
    let start = Instant::now();
    crate::rig::run(command)?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}
