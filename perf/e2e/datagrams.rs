//! Rows about UDP frames of 60 bytes that go one way: what a frame costs, and what becomes of too many.

use std::time::{Duration, Instant};

use uvs::demo::cluster::Error;

use crate::cpu::{self, OURS, THEIRS};
use crate::generator::{BURST, Generator, Order, Traffic};
use crate::report::{Goal, Row, Series};
use crate::rig::{Peer, Rig, Wanted, wrong};
use crate::rows::Setup;
use crate::sink::Sink;

/// Flows of which all is in the caches.
pub const FEW: u32 = 64;
/// conntrack holds 262,144 connections, and that cannot be changed in a namespace.
const NFT_MANY: u32 = 200_000;
/// The most that the generator has.
pub const MILLION: u32 = 1 << 20;
const BARE: Peer = Peer::Bare("xdp");
const UVS: Peer = Peer::Uvs("xdp");

/// A rig with a source before and a sink behind it.
pub struct Lane {
    name: String,
    /// Where what comes through ends.
    pub sink: Sink,
    generator: Generator,
    /// What stands between.
    pub rig: Rig,
}

/// A rig for so many flows, and a director that takes over in it.
pub fn wanted(setup: &Setup, flows: u32) -> Wanted<'_> {
    Wanted {
        live_frames: true,
        connections: flows.max(100_000) + flows / 8,
        ..Wanted::new(&setup.uvs)
    }
}

impl Lane {
    /// For a row, with a peer.
    pub fn build(setup: &Setup, row: &str, peer: Peer, flows: u32, order: Order) -> Result<Lane, Error> {
        let mut rig = Rig::build(&format!("{row}-{flows}"), peer, &wanted(setup, flows))?;
        let traffic = Traffic {
            flows,
            order,
            rate: None,
        };
        Ok(Lane {
            name: peer.name(),
            sink: Sink::attach(&mut rig.server, "eth0")?,
            generator: Generator::new(&mut rig, traffic)?,
            rig,
        })
    }

    /// Sends a frame of each flow until all have come through.
    pub fn establish(&mut self, flows: u32) -> Result<(), Error> {
        let traffic = Traffic {
            flows,
            order: Order::InTurn,
            rate: Some(200_000),
        };
        let generator = Generator::new(&mut self.rig, traffic)?;
        let before = self.sink.count()?;
        let start = Instant::now();
        generator.during(OURS, || {
            // Twice, for those that were lost the first time.
            while self.sink.count()? - before < 2 * u64::from(flows) {
                if start.elapsed() > Duration::from_secs(60) {
                    return Err(wrong(format!(
                        "{}: {flows} flows do not come through in a minute",
                        self.name
                    )));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        })
    }

    /// What `frames` cost from source to sink.
    fn cost(&mut self, frames: u32) -> Result<Cost, Error> {
        let pid = self.rig.director_pid();
        let spent = || cpu::of_softirqs() + pid.map_or(Duration::ZERO, cpu::of_packets);
        let all = || pid.map_or(Duration::ZERO, cpu::of_process);
        let (sent, arrived, before, all_before) = (self.generator.sent()?, self.sink.count()?, spent(), all());
        let start = Instant::now();
        let source = self.generator.bursts(frames, Duration::from_millis(3))?;
        std::thread::sleep(Duration::from_millis(4));
        let packets = spent().saturating_sub(before);
        let others = all().saturating_sub(all_before).saturating_sub(packets);
        let sent = self.generator.sent()? - sent;
        let arrived = match self.rig.peer {
            Peer::Base => sent,
            _ => self.sink.count()? - arrived,
        };
        if arrived * 2 < sent {
            return Err(wrong(format!("{}: {arrived} of {sent} frames arrived", self.name)));
        }
        Ok(Cost {
            spent: packets + source,
            sent,
            arrived,
            others,
            took: start.elapsed(),
        })
    }
}

/// Of a turn, or of all turns of a run.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// CPU time for the frames.
    spent: Duration,
    sent: u64,
    arrived: u64,
    /// CPU time of the director's other threads meanwhile.
    others: Duration,
    took: Duration,
}

impl Cost {
    /// CPU nanoseconds for each frame that arrived.
    fn ns(&self) -> f64 {
        self.spent.as_nanos() as f64 / self.arrived as f64
    }

    fn add(&mut self, other: &Cost) {
        self.spent += other.spent;
        self.sent += other.sent;
        self.arrived += other.arrived;
        self.others += other.others;
        self.took += other.took;
    }
}

/// Frames of a turn: a burst that finds what the others' turns have left in the caches, and one that does not.
const TURN: u32 = 2 * BURST;

/// Turns of a run; of `onepacket`, bursts.
fn turn_count(setup: &Setup) -> u32 {
    if setup.quick { 36 } else { 96 }
}

/// Runs the lanes by turns; the first is the base, which is taken off the others. The turns of a run are short, so that
/// what else the machine does meets all lanes, and its values are their lower quartiles, as that only adds.
fn cost_row(setup: &Setup, row: &mut Row, lanes: &mut [Lane]) -> Result<(), Error> {
    let mut values = vec![Vec::new(); lanes.len()];
    let mut least = vec![1.0f64; lanes.len()];
    let mut others = vec![0.0f64; lanes.len()];
    for lane in lanes.iter_mut() {
        lane.cost(2 * TURN)?;
    }
    for _ in 0..setup.runs {
        let mut turns = vec![Vec::new(); lanes.len()];
        let mut sums = vec![Cost::default(); lanes.len()];
        for _ in 0..turn_count(setup) {
            for (n, lane) in lanes.iter_mut().enumerate() {
                setup.go_on()?;
                let cost = lane.cost(TURN)?;
                turns[n].push(cost.ns());
                sums[n].add(&cost);
            }
        }
        for (n, sum) in sums.iter().enumerate() {
            least[n] = least[n].min(sum.arrived as f64 / sum.sent as f64);
            others[n] = others[n].max(sum.others.as_secs_f64() / sum.took.as_secs_f64());
        }
        let of_run: Vec<f64> = turns.iter().map(|ns| quartile(ns, 1)).collect();
        values[0].push(of_run[0]);
        for (values, value) in values.iter_mut().zip(&of_run).skip(1) {
            values.push(value - of_run[0]);
        }
    }
    for ((lane, values), (share, others)) in lanes.iter().zip(values).zip(least.into_iter().zip(others)) {
        if others > 0.005 {
            let what =
                "threads that handle no packets (expiry) took up to {} % of a CPU, which is not in these figures.";
            row.note_worst(format!("{}: {what}", lane.name), 100.0 * others, f64::max);
        }
        if share < 0.999 {
            let what = "{} % of the frames arrived in the worst run.";
            row.note_worst(format!("{}: {what}", lane.name), 100.0 * share, f64::min);
        }
        row.series.push(Series {
            peer: lane.name.clone(),
            values,
            missing: None,
        });
    }
    row.note("All on one CPU; the base is taken off the other rows.");
    Ok(())
}

/// Of at least one value: 1 is the lower quartile, 2 the median.
fn quartile(values: &[f64], which: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() * which / 4]
}

/// `packet`: at 64 flows.
pub fn packet(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new("packet", "CPU per packet, 64 UDP flows", "ns a packet");
    let mut lanes = Vec::new();
    for peer in [Peer::Base, Peer::Kernel, Peer::Nft, BARE, UVS] {
        if setup.can_run(peer, &mut row) {
            lanes.push(Lane::build(setup, "packet", peer, FEW, Order::Random)?);
        }
    }
    cost_row(setup, &mut row, &mut lanes)?;
    row.judge_ratio(&UVS.name(), &BARE.name(), Goal::at_most(1.1, None, "x"));
    row.judge_ratio(&UVS.name(), &Peer::Nft.name(), Goal::at_most(1.35, Some(1.1), "x"));
    Ok(row)
}

/// `flows`: at many.
pub fn flows(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new("flows", "CPU per packet by number of UDP flows", "ns a packet");
    let mut lanes = Vec::new();
    for (peer, flows) in [
        (Peer::Base, FEW),
        (UVS, FEW),
        (UVS, NFT_MANY),
        (UVS, MILLION),
        (BARE, NFT_MANY),
        (Peer::Least, FEW),
        (Peer::Least, NFT_MANY),
        (Peer::Least, MILLION),
        (Peer::Nft, NFT_MANY),
    ] {
        if setup.can_run(peer, &mut row) {
            let mut lane = Lane::build(setup, "flows", peer, flows, Order::Random)?;
            if flows > FEW && peer != BARE {
                lane.establish(flows)?;
            }
            if peer != Peer::Base {
                lane.name = at(peer, flows);
            }
            lanes.push(lane);
        }
    }
    cost_row(setup, &mut row, &mut lanes)?;
    let goal = Goal::at_most(1.1, None, "x");
    row.judge_ratio(&at(UVS, MILLION), &at(UVS, FEW), goal);
    let floor = "the floor's work";
    row.compare_ratio(&at(Peer::Least, MILLION), &at(Peer::Least, FEW), goal, floor);
    let nft = at(Peer::Nft, NFT_MANY);
    let goal = Goal::at_most(0.6, Some(0.45), "x");
    row.judge_ratio(&at(UVS, NFT_MANY), &nft, goal);
    // No director on AF_XDP in copy mode can do better.
    row.compare_ratio(&at(BARE, NFT_MANY), &nft, goal, "least possible here");
    row.compare_ratio(&at(Peer::Least, NFT_MANY), &nft, goal, floor);
    Ok(row)
}

/// A series' name.
pub fn at(peer: Peer, flows: u32) -> String {
    format!("{}, {flows} flows", peer.name())
}

/// `onepacket`: each frame is a flow of its own. Each run has new rigs, as tables fill.
pub fn one_packet(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new("onepacket", "UDP flows of one packet a second", "flows a second");
    let mut peers = Vec::new();
    for peer in [Peer::Base, Peer::Nft, UVS] {
        if setup.can_run(peer, &mut row) {
            peers.push((peer, Vec::new()));
        }
    }
    for _ in 0..setup.runs {
        let mut base = 0.0;
        for (peer, values) in &mut peers {
            setup.go_on()?;
            let mut lane = Lane::build(setup, "onepacket", *peer, MILLION, Order::InTurn)?;
            let ns = lane.cost(turn_count(setup) * BURST)?.ns();
            match peer {
                Peer::Base => base = ns,
                _ => values.push(1e9 / (ns - base)),
            }
        }
    }
    for (peer, values) in peers.into_iter().filter(|(peer, _)| *peer != Peer::Base) {
        row.series.push(Series {
            peer: peer.name(),
            values,
            missing: None,
        });
    }
    row.note("From CPU per packet, all on one CPU, the base taken off: what a CPU that does nothing else reaches.");
    row.judge_ratio(&UVS.name(), &Peer::Nft.name(), Goal::at_least(1.5, Some(2.0), "x"));
    Ok(row)
}

/// How long a rate is watched.
const WINDOW: Duration = Duration::from_millis(400);

/// What is offered and what arrives, a second, while a source sends from that CPU.
fn rates(lane: &mut Lane, cpu: usize, rate: Option<u32>) -> Result<(f64, f64), Error> {
    let traffic = Traffic {
        flows: FEW,
        order: Order::Random,
        rate,
    };
    let generator = Generator::new(&mut lane.rig, traffic)?;
    generator.during(cpu, || {
        let start = Instant::now();
        while generator.sent()? < 1000 {
            if start.elapsed() > Duration::from_secs(5) {
                return Err(wrong("the generator does not send"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let (start, sent, arrived) = (Instant::now(), generator.sent()?, lane.sink.count()?);
        std::thread::sleep(WINDOW);
        let seconds = start.elapsed().as_secs_f64();
        let (sent, arrived) = (generator.sent()? - sent, lane.sink.count()? - arrived);
        Ok((sent as f64 / seconds, arrived as f64 / seconds))
    })
}

/// The most that arrives while the offer is raised step by step, until two steps in a row bring no more.
fn peak(lane: &mut Lane) -> Result<f64, Error> {
    let (mut best, mut rate, mut in_vain) = (0.0f64, 300_000.0, 0);
    while in_vain < 2 {
        let (_, arrived) = rates(lane, OURS, Some(rate as u32))?;
        in_vain = if arrived > 1.02 * best { 0 } else { in_vain + 1 };
        best = best.max(arrived);
        rate *= 1.3;
    }
    Ok(best)
}

/// Windows of each kind in a run, of which the median counts: single ones differ by a fifth on a busy host.
const WINDOWS: usize = 3;

/// `overload`: four times what goes through.
pub fn overload(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new("overload", "Delivered at 4 x overload", "packets a second");
    let names = ["peak", "at 4 x, NAPI on the other CPU", "at 4 x, all on one CPU"];
    let mut series = Vec::new();
    let mut lanes = Vec::new();
    for peer in [BARE, UVS] {
        lanes.push(Lane::build(setup, "overload", peer, FEW, Order::Random)?);
        series.extend(names.map(|name| (format!("{}, {name}", peer.name()), Vec::new())));
    }
    let mut offered_least = f64::MAX;
    for _ in 0..setup.runs {
        let mut peaks = Vec::with_capacity(lanes.len());
        for lane in &mut lanes {
            setup.go_on()?;
            peaks.push(peak(lane)?);
        }
        let mut windows = vec![[const { Vec::new() }; 2]; lanes.len()];
        for _ in 0..WINDOWS {
            for (n, lane) in lanes.iter_mut().enumerate() {
                setup.go_on()?;
                let rate = Some((4.0 * peaks[n]) as u32);
                let (offered, apart) = rates(lane, OURS, rate)?;
                let (_, together) = rates(lane, THEIRS, rate)?;
                offered_least = offered_least.min(offered / peaks[n]);
                windows[n][0].push(apart);
                windows[n][1].push(together);
            }
        }
        for (n, [apart, together]) in windows.iter().enumerate() {
            for (k, value) in [peaks[n], quartile(apart, 2), quartile(together, 2)]
                .into_iter()
                .enumerate()
            {
                series[3 * n + k].1.push(value);
            }
        }
    }
    row.note_worst(
        "Offered with NAPI on the other CPU: at least {} x peak (the source shares that CPU with NAPI).",
        offered_least,
        f64::min,
    );
    for (peer, values) in series {
        row.series.push(Series {
            peer,
            values,
            missing: None,
        });
    }
    let name = |peer: Peer, k: usize| format!("{}, {}", peer.name(), names[k]);
    row.judge_ratio(&name(UVS, 1), &name(UVS, 0), Goal::at_least(0.8, Some(0.95), "x"));
    row.judge_ratio(&name(UVS, 2), &name(BARE, 2), Goal::at_least(0.95, Some(1.0), "x"));
    Ok(row)
}
