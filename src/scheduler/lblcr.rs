//! Locality-based least connections with replication: as lblc, but an address has a set of destinations, of which the weighted least
//! connections decide; when that one is overloaded while another is half idle, the set grows.
//!
//! The kernel takes the busiest out of a set that did not change for a day; here sets only grow.

use super::cache::Cache;
use super::lblc::{is_busy, moved};
use super::lc::overhead;
use super::wlc::Wlc;
use super::{Candidate, Peek, Schedule};
use crate::packet::FlowKey;

/// Most destinations of one address; with more, the newest replaces the one before it.
const SET_MAX: usize = 16;

/// The sets.
#[derive(Debug, Default)]
pub struct Lblcr {
    cache: Cache<Set>,
}

/// Indexes of candidates, oldest first.
#[derive(Clone, Copy, Debug, Default)]
struct Set {
    members: [u16; SET_MAX],
    count: usize,
}

impl Set {
    fn members(&self) -> &[u16] {
        &self.members[..self.count]
    }

    fn insert(&mut self, n: u16) {
        if !self.members().contains(&n) {
            self.count = (self.count + 1).min(SET_MAX);
            self.members[self.count - 1] = n;
        }
    }

    /// Of the set while that is not overloaded, else of all.
    fn choose(&self, candidates: &[Candidate], flow: &FlowKey) -> Option<usize> {
        let least = self.least(candidates).filter(|n| !is_busy(&candidates[*n], candidates));
        least.or_else(|| Wlc.pick(candidates, flow))
    }

    /// The least loaded for its weight; of equals the newest.
    fn least(&self, candidates: &[Candidate]) -> Option<usize> {
        let mut least: Option<(usize, u64, u64)> = None;
        for n in self.members().iter().rev().map(|n| *n as usize) {
            let Some(candidate) = candidates.get(n).filter(|c| c.is_available()) else {
                continue;
            };
            let (cost, weight) = (overhead(&candidate.load), candidate.weight as u64);
            if least.is_none_or(|(_, least_cost, least_weight)| least_cost * weight > cost * least_weight) {
                least = Some((n, cost, weight));
            }
        }
        least.map(|(n, _, _)| n)
    }
}

impl Lblcr {
    /// The same for a changed list.
    pub(super) fn successor(&self, before: &[Candidate], after: &[Candidate]) -> Lblcr {
        let map = |set: &Set| {
            let mut changed = Set::default();
            let members = set.members().iter().filter_map(|n| moved(*n, before, after));
            members.for_each(|n| changed.insert(n));
            Some(changed)
        };
        Lblcr {
            cache: self.cache.map(map),
        }
    }
}

impl Schedule for Lblcr {
    fn pick(&self, candidates: &[Candidate], flow: &FlowKey) -> Option<usize> {
        let decide = |set: Option<&Set>| {
            let mut set = set.copied().unwrap_or_default();
            let picked = set.choose(candidates, flow);
            if let Some(n) = picked {
                set.insert(n as u16);
            }
            (picked, picked.map(|_| set))
        };
        self.cache.update(flow.destination(), decide)
    }

    fn peek(&self, candidates: &[Candidate], flow: &FlowKey) -> Peek<usize> {
        let look = |set: Option<&Set>| set.copied().unwrap_or_default().choose(candidates, flow);
        Peek::Sure(self.cache.peek(flow.destination(), look))
    }
}
