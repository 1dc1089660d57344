//! The parts of the table: which runs each row is made of, and what it is to reach.
//!
//! The goals are those of the data plane (ring 1); what a daemon does end to end is measured elsewhere.

use clap::ValueEnum;

use super::Mode;
use super::children::{Children, instructions};
use super::report::{Goal, Row};
use super::turns::Measurement;

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
    /// What a part of the table takes; or why it cannot be measured here.
    pub fn measurements(&self, section: Section) -> Result<Vec<Measurement<'_>>, &'static str> {
        Ok(match section {
            Section::Hits => self.modes.iter().flat_map(|mode| self.hits(*mode)).collect(),
            Section::New => ["rr", "wlc"]
                .into_iter()
                .flat_map(|name| self.new_connections(name))
                .collect(),
            Section::Workers => match self.children.pair() {
                Some(pair) => self.workers(pair),
                None => return Err("two workers: not measured, there is one CPU"),
            },
            Section::Picks => self.picks(),
            Section::Filter if !uvs::io::netns::is_root() => return Err("filter: not measured, it takes root"),
            Section::Filter => vec![self.filter()],
            Section::Control => vec![self.control()],
        })
    }

    /// Runs with so many connections: more where one is over within a tenth of a second, and hangs on what the host does just then.
    fn turns(&self, connections: u32) -> usize {
        match connections {
            ..=100_000 => self.more(),
            _ => self.runs,
        }
    }

    /// Runs where it takes more to settle.
    fn more(&self) -> usize {
        2 * self.runs + 1
    }

    fn hits(&self, mode: Mode) -> Vec<Measurement<'_>> {
        let name = mode.name();
        let timed = |&connections| {
            let arguments = hits(mode, connections, PACKETS);
            let run = move || {
                // By turns, so that whatever else the machine does meets both.
                let floor = self.children.floor(floor_mode(mode), connections, PACKETS);
                let ours = self.children.ours(&arguments);
                ours[..2].iter().copied().chain(floor).collect()
            };
            Measurement::new(self.turns(connections), run, move |runs| {
                let what = format!("{name}, {connections} connections");
                let row = Row::new(what.clone(), "ns/packet", &runs.column(0)).beside(&runs.column(2));
                let mut rows = vec![match connections {
                    ..=1000 => row.goal(Goal::at_most(32.0, Some(22.0))),
                    _ => row.ratio_goal(Goal::at_most(2.0, Some(1.3))),
                }];
                if mode == Mode::Nat && connections == 1_000_000 {
                    let row = Row::new(what, "bytes/connection", &runs.column(1));
                    rows.push(row.goal(Goal::at_most(128.0, Some(100.0))));
                }
                rows
            })
        };
        let goal = match mode {
            Mode::Nat | Mode::NatUdp => Goal::at_most(350.0, Some(250.0)),
            Mode::Dr => Goal::at_most(300.0, Some(220.0)),
            Mode::Tunnel => Goal::at_most(350.0, Some(260.0)),
        };
        let arguments = hits(mode, COUNTED_AT, COUNTED_PACKETS);
        let counted = counted(format!("{name}, {COUNTED_AT} connections"), arguments, Some(goal));
        self.connections.iter().map(timed).chain([counted]).collect()
    }

    fn new_connections(&self, scheduler: &'static str) -> Vec<Measurement<'_>> {
        let what = move |connections| format!("new connection, nat, {scheduler}, at {connections}");
        let timed = |&connections| {
            let arguments = begins(Mode::Nat, scheduler, connections, NEW_PACKETS);
            let run = move || {
                let floor = self.children.floor_insert(connections);
                let ours = self.children.ours(&arguments);
                ours[..1].iter().copied().chain(floor).collect()
            };
            Measurement::new(self.turns(connections), run, move |runs| {
                let row = Row::new(what(connections), "ns/packet", &runs.column(0)).beside(&runs.column(1));
                vec![row.ratio_goal(Goal::at_most(4.0, Some(2.0)))]
            })
        };
        let arguments = begins(Mode::Nat, scheduler, COUNTED_AT, COUNTED_PACKETS);
        let counted = counted(what(COUNTED_AT), arguments, None);
        self.standing.iter().map(timed).chain([counted]).collect()
    }

    fn workers(&self, pair: [usize; 2]) -> Vec<Measurement<'_>> {
        // A ratio of runs on one CPU and on two feels the host twice.
        let turns = self.more();
        let of_hits = |&connections| {
            let arguments = hits(Mode::Nat, connections, PACKETS);
            let run = move || {
                let ours = self.two_over_one(&pair, &arguments, &arguments);
                let floor = self.two_floors_over_one(&pair, connections);
                [ours].into_iter().chain(floor).collect()
            };
            Measurement::new(turns, run, move |runs| {
                let what = format!("two workers over one, nat hits, {connections} connections");
                let row = Row::new(what, "x", &runs.column(0)).beside(&runs.column(1));
                vec![row.ratio_goal(Goal::at_least(0.95, 0.99))]
            })
        };
        let of_new = |(scheduler, goal)| {
            let arguments = begins(Mode::Nat, scheduler, 100_000, NEW_PACKETS);
            let apart = [&arguments[..], &words("--apart")].concat();
            let run = move || {
                let floor = self.two_over_one(&pair, &arguments, &apart);
                let ours = self.two_over_one(&pair, &arguments, &arguments);
                let handover = self.children.ours_on(&pair, &words("handover"))[0];
                vec![ours, floor, handover]
            };
            Measurement::new(turns, run, move |runs| {
                let what = format!("two workers over one, new, nat, {scheduler}, 10 servers");
                let row = Row::new(what, "x", &runs.column(0)).beside(&runs.column(1));
                let what = format!("a cache line from CPU to CPU, beside the {scheduler} above");
                vec![row.goal(goal), Row::new(what, "ns", &runs.column(2))]
            })
        };
        let goals = [("rr", Goal::at_least(1.7, 1.9)), ("wlc", Goal::at_least(1.3, 1.6))];
        self.standing
            .iter()
            .map(of_hits)
            .chain(goals.into_iter().map(of_new))
            .collect()
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

    fn picks(&self) -> Vec<Measurement<'_>> {
        let names = uvs::scheduler::NAMES.iter().filter(|name| **name != "none");
        let of = |(scheduler, servers)| {
            let arguments = words(&format!("picks --scheduler {scheduler} --servers {servers}"));
            let run = move || self.children.ours(&arguments);
            Measurement::new(self.runs, run, move |runs| {
                let row = Row::new(
                    format!("{scheduler} pick, {servers} servers"),
                    "ns/pick",
                    &runs.column(0),
                );
                vec![match (scheduler, servers) {
                    ("wlc", 1000) => row.goal(Goal::at_most(1500.0, Some(100.0))),
                    _ => row,
                }]
            })
        };
        names.flat_map(|name| [(*name, 10), (*name, 1000)]).map(of).collect()
    }

    fn filter(&self) -> Measurement<'_> {
        let run = || self.children.ours(&words("filter"));
        Measurement::new(self.runs, run, |runs| {
            let frames = ["a client's to a service", "a real server's reply", "the kernel's"];
            let row = |(n, what)| Row::new(format!("filter, a frame: {what}"), "ns/frame", &runs.column(n));
            let beside = |row: Row| row.beside(&runs.column(3));
            frames.into_iter().enumerate().map(row).map(beside).collect()
        })
    }

    fn control(&self) -> Measurement<'_> {
        let run = || self.children.ours(&words("control"));
        Measurement::new(self.runs, run, |runs| {
            let what = "1000 services x 10 servers applied, in memory".to_owned();
            let applied = Row::new(what, "ms", &runs.column(0)).goal(Goal::at_most(200.0, Some(50.0)));
            let what = "one weight change among them, in memory".to_owned();
            let edited = Row::new(what, "ms", &runs.column(1)).goal(Goal::at_most(1.0, None));
            vec![applied, edited]
        })
    }
}

/// Instructions a packet, once; no row without valgrind.
fn counted<'a>(what: String, arguments: Vec<String>, goal: Option<Goal>) -> Measurement<'a> {
    let run = move || instructions(&arguments).into_iter().collect();
    Measurement::new(1, run, move |runs| {
        let counted = runs.column(0);
        let row = (!counted.is_empty()).then(|| Row::new(what, "instructions/packet", &counted));
        let judged = |row: Row| match goal {
            Some(goal) => row.goal(goal),
            None => row,
        };
        row.map(judged).into_iter().collect()
    })
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
