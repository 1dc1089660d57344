//! The parts of the table: which runs each row is made of, and what it is to reach.
//!
//! The goals are those of the data plane (ring 1); what a daemon does end to end is measured elsewhere.

use clap::ValueEnum;

use super::Mode;
use super::children::{Children, instructions};
use super::report::{Goal, Report, Row};

/// Packets that a run measures.
const PACKETS: u64 = 4_000_000;
/// The same where they begin connections.
const NEW_PACKETS: u64 = 1_000_000;
/// Packets of a floor that runs beside another: long enough that both begin and end together.
const PACKETS_BESIDE: u64 = 20_000_000;
/// Instructions are counted at so many connections: more take minutes under valgrind and change nothing.
const COUNTED_AT: u32 = 100_000;
const COUNTED_PACKETS: u64 = 64_000;

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Packets of live connections.
    Hits,
    /// New connections.
    New,
    /// Two workers over one.
    Workers,
    /// Picks of the schedulers by themselves.
    Picks,
    /// The XDP filter by itself.
    Filter,
    /// Rules applied, in memory.
    Control,
}

/// What is measured, and how often.
pub struct Setup {
    pub children: Children,
    pub runs: usize,
    pub modes: Vec<Mode>,
    /// Live connections, for hits.
    pub connections: Vec<u32>,
    /// Live connections, for all else.
    pub standing: Vec<u32>,
}

impl Setup {
    pub fn measure(&self, section: Section, report: &mut Report) {
        match section {
            Section::Hits => self.modes.iter().for_each(|mode| self.hits(*mode, report)),
            Section::New => self.new_connections(report),
            Section::Workers => self.workers(report),
            Section::Picks => self.picks(report),
            Section::Filter => self.filter(report),
            Section::Control => self.control(report),
        }
    }

    fn hits(&self, mode: Mode, report: &mut Report) {
        let name = mode.name();
        for &connections in &self.connections {
            let arguments = hits(mode, connections, PACKETS);
            let (mut ours, mut floor, mut bytes) = (Vec::new(), Vec::new(), 0.0);
            // By turns, so that whatever else the machine does meets both.
            for _ in 0..self.runs {
                floor.extend(self.children.floor(floor_mode(mode), connections, PACKETS));
                let numbers = self.children.ours(&arguments);
                ours.push(numbers[0]);
                bytes = numbers[1];
            }
            let row = Row::new(format!("{name}, {connections} connections"), "ns/packet", &ours).beside(&floor);
            report.add(match connections {
                ..=1000 => row.goal(Goal::at_most(32.0, Some(22.0))),
                _ => row.ratio_goal(Goal::at_most(2.0, Some(1.3))),
            });
            if mode == Mode::Nat && connections == 1_000_000 {
                let row = Row::new(
                    format!("{name}, {connections} connections"),
                    "bytes/connection",
                    &[bytes],
                );
                report.add(row.goal(Goal::at_most(128.0, Some(100.0))));
            }
        }
        let goal = match mode {
            Mode::Nat | Mode::NatUdp => Goal::at_most(350.0, Some(250.0)),
            Mode::Dr => Goal::at_most(300.0, Some(220.0)),
            Mode::Tunnel => Goal::at_most(350.0, Some(260.0)),
        };
        if let Some(counted) = instructions(&hits(mode, COUNTED_AT, COUNTED_PACKETS)) {
            let what = format!("{name}, {COUNTED_AT} connections");
            report.add(Row::new(what, "instructions/packet", &[counted]).goal(goal));
        }
    }

    fn new_connections(&self, report: &mut Report) {
        for scheduler in ["rr", "wlc"] {
            for &connections in &self.standing {
                let arguments = begins(Mode::Nat, scheduler, connections, NEW_PACKETS);
                let (mut ours, mut floor) = (Vec::new(), Vec::new());
                for _ in 0..self.runs {
                    floor.extend(self.children.floor_insert(connections));
                    ours.push(self.children.ours(&arguments)[0]);
                }
                let what = format!("new connection, nat, {scheduler}, at {connections}");
                let row = Row::new(what, "ns/packet", &ours).beside(&floor);
                report.add(row.ratio_goal(Goal::at_most(4.0, Some(2.0))));
            }
            let arguments = begins(Mode::Nat, scheduler, COUNTED_AT, COUNTED_PACKETS);
            if let Some(counted) = instructions(&arguments) {
                let what = format!("new connection, nat, {scheduler}, at {COUNTED_AT}");
                report.add(Row::new(what, "instructions/packet", &[counted]));
            }
        }
    }

    fn workers(&self, report: &mut Report) {
        let Some(pair) = self.children.pair() else {
            return report.note("two workers: not measured, there is one CPU");
        };
        // A ratio of runs on one CPU and on two feels the host twice: it takes more turns to settle.
        let turns = 2 * self.runs + 1;
        for &connections in &self.standing {
            let arguments = hits(Mode::Nat, connections, PACKETS);
            let (mut ours, mut floor) = (Vec::new(), Vec::new());
            for _ in 0..turns {
                ours.push(self.two_over_one(&pair, &arguments, &arguments));
                floor.extend(self.two_floors_over_one(&pair, connections));
            }
            let what = format!("two workers over one, nat hits, {connections} connections");
            let row = Row::new(what, "x", &ours).beside(&floor);
            report.add(row.ratio_goal(Goal::at_least(0.95, 0.99)));
        }
        for (scheduler, goal) in [("rr", Goal::at_least(1.7, 1.9)), ("wlc", Goal::at_least(1.3, 1.6))] {
            let arguments = begins(Mode::Nat, scheduler, 100_000, NEW_PACKETS);
            let apart = [&arguments[..], &words("--apart")].concat();
            let [mut ours, mut floor, mut handovers] = [const { Vec::new() }; 3];
            for _ in 0..turns {
                floor.push(self.two_over_one(&pair, &arguments, &apart));
                ours.push(self.two_over_one(&pair, &arguments, &arguments));
                handovers.push(self.children.ours_on(&pair, &words("handover"))[0]);
            }
            let what = format!("two workers over one, new, nat, {scheduler}, 10 servers");
            report.add(Row::new(what, "x", &ours).beside(&floor).goal(goal));
            let what = format!("a cache line from CPU to CPU, beside the {scheduler} above");
            report.add(Row::new(what, "ns", &handovers));
        }
    }

    /// How much faster two workers are than one: than the mean of one on either CPU, before and after, as the host may favour
    /// one of them for a while.
    fn two_over_one(&self, pair: &[usize; 2], one: &[String], two: &[String]) -> f64 {
        let ns = |cpus: &[usize], arguments| self.children.ours_on(cpus, arguments)[0];
        let (before, both, after) = (ns(&pair[..1], one), ns(pair, two), ns(&pair[1..], one));
        2.0 / (both / before + both / after)
    }

    /// The same of two processes of the floor, which share nothing.
    fn two_floors_over_one(&self, pair: &[usize; 2], connections: u32) -> Option<f64> {
        let ns = |cpus: &[usize]| self.children.floor_on(cpus, "nat", connections, PACKETS_BESIDE);
        let (before, both, after) = (ns(&pair[..1])?, ns(pair)?, ns(&pair[1..])?);
        Some(2.0 / (1.0 / before[0] + 1.0 / after[0]) * (1.0 / both[0] + 1.0 / both[1]))
    }

    fn picks(&self, report: &mut Report) {
        for scheduler in uvs::scheduler::NAMES.iter().filter(|name| **name != "none") {
            for servers in [10, 1000] {
                let arguments = words(&format!("picks --scheduler {scheduler} --servers {servers}"));
                let ours: Vec<f64> = (0..self.runs).map(|_| self.children.ours(&arguments)[0]).collect();
                let row = Row::new(format!("{scheduler} pick, {servers} servers"), "ns/pick", &ours);
                report.add(match (*scheduler, servers) {
                    ("wlc", 1000) => row.goal(Goal::at_most(1500.0, Some(100.0))),
                    _ => row,
                });
            }
        }
    }

    fn filter(&self, report: &mut Report) {
        if !uvs::io::netns::is_root() {
            return report.note("filter: not measured, it takes root");
        }
        let runs: Vec<Vec<f64>> = (0..self.runs).map(|_| self.children.ours(&words("filter"))).collect();
        let column = |n: usize| runs.iter().map(|numbers| numbers[n]).collect::<Vec<f64>>();
        let drop = column(3);
        for (n, what) in ["a client's to a service", "a real server's reply", "the kernel's"]
            .iter()
            .enumerate()
        {
            let row = Row::new(format!("filter, a frame: {what}"), "ns/frame", &column(n));
            report.add(row.beside(&drop));
        }
    }

    fn control(&self, report: &mut Report) {
        let runs: Vec<Vec<f64>> = (0..self.runs).map(|_| self.children.ours(&words("control"))).collect();
        let (applied, edited): (Vec<f64>, Vec<f64>) = runs.iter().map(|numbers| (numbers[0], numbers[1])).unzip();
        let what = "1000 services x 10 servers applied, in memory".to_owned();
        report.add(Row::new(what, "ms", &applied).goal(Goal::at_most(200.0, Some(50.0))));
        let what = "one weight change among them, in memory".to_owned();
        report.add(Row::new(what, "ms", &edited).goal(Goal::at_most(1.0, None)));
    }
}

/// The arguments of a run: packets of live connections.
pub fn hits(mode: Mode, connections: u32, packets: u64) -> Vec<String> {
    let name = mode.name();
    words(&format!(
        "hits --mode {name} --connections {connections} --packets {packets}"
    ))
}

/// The arguments of a run: new connections to one of 10 servers.
pub fn begins(mode: Mode, scheduler: &str, connections: u32, packets: u64) -> Vec<String> {
    let name = mode.name();
    words(&format!(
        "new --mode {name} --scheduler {scheduler} --servers 10 --connections {connections} --packets {packets}"
    ))
}

fn floor_mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Nat | Mode::NatUdp => "nat",
        Mode::Dr => "dr",
        Mode::Tunnel => "ipip",
    }
}

fn words(arguments: &str) -> Vec<String> {
    arguments.split(' ').map(str::to_owned).collect()
}
