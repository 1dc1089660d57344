//! The candidates as a walk over all of them wants them: close together, quiesced ones left out. Among 1,000 servers such a walk
//! takes two thirds of the time of one over the candidates themselves.
//!
//! An index over the numbers would be faster still, but every new connection and every end of one would write to it, on every
//! worker: one more cache line that workers take from each other, also with the ten servers that a service usually has.

use std::sync::Arc;

use super::load::{Connections, Counts, OVERHEAD_SHIFT, View};
use super::{Candidate, Load};

/// Of the place of a server behind its cost, in one number: costs are below 2^39, as there are less than 2^30 connections and
/// one that is active costs 256 (and a little). As many as are below the overhead: to put the place there takes no shift.
const PLACE_BITS: u32 = OVERHEAD_SHIFT;
/// With weights below it, the kernel's products of weights and costs do not overflow.
const SMALL_WEIGHT_END: u32 = 1 << 20;

/// In the list's order.
#[derive(Debug)]
pub(super) struct Packed {
    servers: Box<[Server]>,
    blocks: Box<[Block]>,
    /// All weights are equal, so that costs alone decide.
    even: bool,
    /// Each is counted in one line, by whoever counts.
    of_one: bool,
}

#[derive(Debug)]
struct Server {
    /// Its place in the list.
    index: u32,
    /// Above 0.
    weight: u32,
    load: Arc<Load>,
}

/// Servers one after another whose numbers are one after another in the same lines.
#[derive(Debug)]
struct Block {
    /// Of the first.
    counts: Counts,
    /// How many they are.
    servers: usize,
}

impl Packed {
    pub fn new(candidates: &[Candidate]) -> Packed {
        let mut servers: Vec<Server> = Vec::new();
        let mut blocks: Vec<Block> = Vec::new();
        for (candidate, index) in candidates.iter().zip(0..).filter(|(c, _)| c.weight > 0) {
            let counts = candidate.load.counts();
            servers.push(Server {
                index,
                weight: candidate.weight,
                load: candidate.load.clone(),
            });
            match blocks.last_mut() {
                Some(block) if block.counts.is_followed_by(block.servers, counts) => block.servers += 1,
                _ => blocks.push(Block {
                    counts: counts.clone(),
                    servers: 1,
                }),
            }
        }
        let weight = servers.first().map_or(0, |first| first.weight);
        Packed {
            even: weight < SMALL_WEIGHT_END && servers.iter().all(|server| server.weight == weight),
            servers: servers.into(),
            of_one: blocks.iter().all(|block| block.counts.is_of_one()),
            blocks: blocks.into(),
        }
    }

    /// There is one worker: what its line has is the sum.
    pub fn is_of_one(&self) -> bool {
        self.of_one
    }

    /// The worker looks at what others have counted of them.
    #[inline(never)]
    pub fn look(&self, worker: u16) {
        self.blocks
            .iter()
            .for_each(|block| block.counts.look(block.servers, worker));
    }

    /// The first that is not overloaded, and of which `is_it` holds.
    #[inline]
    pub fn first(&self, view: View, is_it: impl Fn(Connections) -> bool) -> Option<usize> {
        let mut found = None;
        for (block, servers) in self.blocks() {
            block.each(servers, view, |server, connections| {
                if found.is_none() && is_it(connections) && !server.load.is_overloaded() {
                    found = Some(server.index as usize);
                }
            });
            if found.is_some() {
                break;
            }
        }
        found
    }

    #[inline(always)]
    fn blocks(&self) -> impl Iterator<Item = (&Block, &[Server])> {
        let mut rest = &self.servers[..];
        self.blocks.iter().map(move |block| {
            let (servers, after) = rest.split_at(block.servers);
            rest = after;
            (block, servers)
        })
    }

    /// The one that is not overloaded and has the smallest cost; the first of equals. Costs below 0 are 0.
    #[inline]
    pub fn least(&self, view: View, cost: impl Fn(Connections) -> i64) -> Option<usize> {
        self.least_even(view, &cost)
            .or_else(|| self.least_by(view, cost, |_| 1))
    }

    /// The same for cost / weight.
    #[inline]
    pub fn least_for_weight(&self, view: View, cost: impl Fn(Connections) -> i64) -> Option<usize> {
        let found = if self.even { self.least_even(view, &cost) } else { None };
        found.or_else(|| self.least_by(view, cost, |server| server.weight as u64))
    }

    /// As [`least`](Packed::least), without a branch that depends on the costs: nothing foresees which is the smallest. `None` also
    /// when that one is overloaded or below 0, or when there are more servers than places.
    #[inline(always)]
    fn least_even(&self, view: View, cost: &impl Fn(Connections) -> i64) -> Option<usize> {
        let (mut least, mut place) = (i64::MAX, 0);
        for block in &self.blocks {
            // The least of each block by itself, so that the processor need not wait for the block before.
            let here = block
                .counts
                .fold(block.servers, view, i64::MAX, |here, before, connections| {
                    here.min(cost(connections) << PLACE_BITS | before as i64)
                });
            // No block is empty; what more servers than places would carry over is refused below.
            least = least.min(here.wrapping_add(place));
            place += block.servers as i64;
        }
        let server = self.servers.get(least as usize % (1 << PLACE_BITS))?;
        let is_it = !server.load.is_overloaded() && least >= 0 && place < 1 << PLACE_BITS;
        is_it.then_some(server.index as usize)
    }

    /// Not inlined: the registers that it needs would be saved for [`least_even`](Packed::least_even) too.
    #[inline(never)]
    fn least_by(
        &self,
        view: View,
        cost: impl Fn(Connections) -> i64,
        weight: impl Fn(&Server) -> u64,
    ) -> Option<usize> {
        let mut best = Best::NONE;
        for (block, servers) in self.blocks() {
            block.each(servers, view, |server, connections| {
                best = best.or(server, cost(connections).max(0) as u64, weight(server));
            });
        }
        best.index
    }
}

impl Block {
    /// Each of its `servers` with its connections.
    #[inline(always)]
    fn each<'s>(&self, servers: &'s [Server], view: View, mut take: impl FnMut(&'s Server, Connections)) {
        let mut servers = servers.iter();
        self.counts.fold(self.servers, view, (), |(), _, connections| {
            if let Some(server) = servers.next() {
                take(server, connections);
            }
        });
    }
}

/// The least so far.
#[derive(Clone, Copy)]
struct Best {
    index: Option<usize>,
    cost: u64,
    weight: u64,
}

impl Best {
    /// 1 / 0: more than any.
    const NONE: Best = Best {
        index: None,
        cost: 1,
        weight: 0,
    };

    #[inline(always)]
    fn or(self, server: &Server, cost: u64, weight: u64) -> Best {
        // a / b > c / d as a * d > c * b, without fractions. As in the kernel, weights near
        // 2^31 overflow from 2^25 connections on.
        if self.cost * weight > cost * self.weight && !server.load.is_overloaded() {
            let index = Some(server.index as usize);
            return Best { index, cost, weight };
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::super::load::Loads;
    use super::*;
    use crate::service::DestinationKey;

    /// A server: its weight, whether it is overloaded, whether it is counted elsewhere than the others, and for each worker how many
    /// connections it has counted, or taken off.
    type Plan = (u32, bool, bool, [i8; 3]);

    fn plan() -> impl Strategy<Value = Plan> {
        let weight = prop_oneof![2 => Just(1u32), 1 => 0..4u32];
        let rarely = || prop::bool::weighted(0.1);
        (weight, rarely(), rarely(), prop::array::uniform3(-1..4i8))
    }

    fn candidate(n: u32, (weight, overloaded, _, counted): &Plan, loads: &mut Loads) -> Candidate {
        let load = loads.make();
        load.overloaded.store(*overloaded, std::sync::atomic::Ordering::Relaxed);
        for (worker, change) in (0..).zip(counted) {
            match change {
                0.. => (0..*change).for_each(|_| load.add(worker, true, 0)),
                _ => load.remove(worker, true, 0, 0),
            }
        }
        Candidate {
            key: DestinationKey {
                address: Ipv4Addr::from(0x0a01_0000 + n).into(),
                port: 80,
            },
            weight: *weight,
            upper_threshold: 0,
            lower_threshold: 0,
            last_weight: *weight,
            edits: 0,
            load: Arc::new(load),
        }
    }

    /// The first of those with the smallest cost for its weight, one after the other.
    fn least_of(candidates: &[Candidate], weight: impl Fn(&Candidate) -> u64) -> Option<usize> {
        let mut best: Option<(usize, u64, u64)> = None;
        for (n, candidate) in candidates.iter().enumerate() {
            let (cost, weight) = (candidate.load.connections().overhead(), weight(candidate));
            let is_less = best.is_none_or(|(_, least, of)| cost * of < least * weight);
            if candidate.weight > 0 && !candidate.load.is_overloaded() && is_less {
                best = Some((n, cost, weight));
            }
        }
        best.map(|(n, ..)| n)
    }

    proptest! {
        /// Goal: the walk over blocks finds what a walk over the list finds, as each sees the connections. How: lists as services
        /// have them, the other way round and in any order; of one worker and of three; some servers counted apart from the others.
        #[test]
        fn blocks_are_as_the_list(
            plans in prop::collection::vec(plan(), 0..40),
            order in prop_oneof![Just(0u64), Just(1), 2..1000u64],
            workers in prop_oneof![Just(1usize), Just(3)],
        ) {
            let (mut loads, mut apart) = (Loads::new(workers), Loads::new(1));
            let mut candidates: Vec<Candidate> = (0..)
                .zip(&plans)
                .map(|(n, plan)| candidate(n, plan, if plan.2 { &mut apart } else { &mut loads }))
                .collect();
            match order {
                0 => candidates.reverse(),
                1 => {}
                seed => candidates.sort_by_key(|c| seed * number(c) % 1009),
            }
            let packed = Packed::new(&candidates);
            packed.look(1);
            let mut views = vec![View::Whole, View::By(1)];
            views.extend(packed.is_of_one().then_some(View::Alone));
            prop_assert!(workers > 1 || packed.is_of_one());
            for view in views {
                prop_assert_eq!(packed.least(view, Connections::signed_overhead), least_of(&candidates, |_| 1), "{:?}", view);
                prop_assert_eq!(
                    packed.least_for_weight(view, Connections::signed_overhead),
                    least_of(&candidates, |c| c.weight.into()),
                    "{:?}", view
                );
                let idle = candidates.iter().position(|c| c.weight > 0 && !c.load.is_overloaded() && c.load.active() == 0);
                prop_assert_eq!(packed.first(view, |c| c.active() == 0), idle, "{:?}", view);
            }
        }
    }

    fn number(candidate: &Candidate) -> u64 {
        match candidate.key.address {
            std::net::IpAddr::V4(v4) => v4.to_bits().into(),
            std::net::IpAddr::V6(_) => 0,
        }
    }

    /// Servers added one after another, each before those that are there, are in as few blocks as there are lines.
    #[test]
    fn a_services_list_is_in_whole_lines() {
        let mut loads = Loads::new(2);
        let mut candidates = Vec::new();
        for n in 0..20 {
            candidates.insert(0, candidate(n, &(1, false, false, [0; 3]), &mut loads));
        }
        let blocks: Vec<usize> = Packed::new(&candidates).blocks.iter().map(|b| b.servers).collect();
        assert_eq!(blocks, [4, 8, 8]);
    }
}
