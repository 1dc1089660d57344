//! Locality-based least connections with replication: as lblc, but an address has a set of destinations, of which the weighted least
//! connections decide; when that one is overloaded while another is half idle, the set grows.
//!
//! The kernel takes the busiest out of a set that did not change for a day; here sets only grow.

use super::cache::Cache;
use super::lblc::{is_busy, place};
use super::wlc::Wlc;
use super::{Batch, Candidate, Peek, Schedule};
use crate::packet::FlowKey;
use crate::service::DestinationKey;

/// Most destinations of one address; with more, the newest replaces the one before it.
const SET_MAX: usize = 16;

/// The sets.
#[derive(Debug)]
pub struct Lblcr {
    cache: Cache<Set>,
    wlc: Wlc,
}

impl Lblcr {
    pub(super) fn new(candidates: &[Candidate]) -> Lblcr {
        Lblcr {
            cache: Cache::default(),
            wlc: Wlc::new(candidates),
        }
    }

    /// The same for a changed list.
    pub(super) fn successor(&self, candidates: &[Candidate]) -> Lblcr {
        Lblcr {
            cache: self.cache.clone(),
            wlc: Wlc::new(candidates),
        }
    }
}

/// Oldest first. Removed ones count again when they come back.
#[derive(Clone, Copy, Debug, Default)]
struct Set {
    members: [Option<DestinationKey>; SET_MAX],
    count: usize,
}

impl Set {
    fn insert(&mut self, key: DestinationKey) {
        if !self.members.contains(&Some(key)) {
            self.count = (self.count + 1).min(SET_MAX);
            self.members[self.count - 1] = Some(key);
        }
    }

    /// Of the set while that is not overloaded, else of all.
    fn choose<'s>(&self, candidates: &[Candidate], all: &'s Wlc, batch: &mut Batch<'s>) -> Option<usize> {
        let least = self.least(candidates).filter(|n| !is_busy(&candidates[*n], candidates));
        least.or_else(|| all.least(batch))
    }

    /// The least loaded for its weight; of equals the newest.
    fn least(&self, candidates: &[Candidate]) -> Option<usize> {
        let mut least: Option<(usize, u64, u64)> = None;
        let members = self.members[..self.count].iter().flatten().rev();
        for n in members.filter_map(|key| place(key, candidates)) {
            let candidate = &candidates[n];
            if !candidate.is_available() {
                continue;
            }
            let (cost, weight) = (candidate.load.connections().overhead(), candidate.weight as u64);
            if least.is_none_or(|(_, least_cost, least_weight)| least_cost * weight > cost * least_weight) {
                least = Some((n, cost, weight));
            }
        }
        least.map(|(n, _, _)| n)
    }
}

impl Schedule for Lblcr {
    fn pick<'s>(&'s self, candidates: &[Candidate], flow: &FlowKey, batch: &mut Batch<'s>) -> Option<usize> {
        let decide = |set: Option<&Set>| {
            let mut set = set.copied().unwrap_or_default();
            let picked = set.choose(candidates, &self.wlc, batch);
            if let Some(n) = picked {
                set.insert(candidates[n].key);
            }
            (picked, picked.map(|_| set))
        };
        self.cache.update(flow.destination(), decide)
    }

    fn peek(&self, candidates: &[Candidate], flow: &FlowKey) -> Peek<usize> {
        let look = |set: Option<&Set>| {
            let set = set.copied().unwrap_or_default();
            set.choose(candidates, &self.wlc, &mut Batch::default())
        };
        Peek::Sure(self.cache.peek(flow.destination(), look))
    }
}
