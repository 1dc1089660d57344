//! Locality-based least connections: all connections to one address (of a service by firewall mark, say) go to one destination,
//! until that is overloaded while another is half idle; then, as for a new address, the weighted least connections decide.
//!
//! As in the kernel, a destination that is removed and comes back before anybody asked for the address has it again.

use super::cache::Cache;
use super::wlc::Wlc;
use super::{Batch, Candidate, Peek, Schedule};
use crate::packet::FlowKey;
use crate::service::DestinationKey;

/// Whom each address has.
#[derive(Debug)]
pub struct Lblc {
    cache: Cache<DestinationKey>,
    wlc: Wlc,
}

impl Lblc {
    pub(super) fn new(candidates: &[Candidate]) -> Lblc {
        Lblc {
            cache: Cache::default(),
            wlc: Wlc::new(candidates),
        }
    }

    /// The same for a changed list.
    pub(super) fn successor(&self, candidates: &[Candidate]) -> Lblc {
        Lblc {
            cache: self.cache.clone(),
            wlc: Wlc::new(candidates),
        }
    }

    /// By what is remembered of the address.
    fn choose<'s>(
        &'s self,
        cached: Option<&DestinationKey>,
        candidates: &[Candidate],
        batch: &mut Batch<'s>,
    ) -> Option<usize> {
        let cached = cached.and_then(|key| place(key, candidates));
        // As in the kernel, a threshold (-x) does not end this.
        let usable = |n: &usize| candidates[*n].weight > 0 && !is_busy(&candidates[*n], candidates);
        cached.filter(usable).or_else(|| self.wlc.least(batch))
    }
}

impl Schedule for Lblc {
    fn pick<'s>(&'s self, candidates: &[Candidate], flow: &FlowKey, batch: &mut Batch<'s>) -> Option<usize> {
        let decide = |cached: Option<&DestinationKey>| {
            let picked = self.choose(cached, candidates, batch);
            (picked, picked.map(|n| candidates[n].key))
        };
        self.cache.update(flow.destination(), decide)
    }

    fn peek(&self, candidates: &[Candidate], flow: &FlowKey) -> Peek<usize> {
        let look = |cached: Option<&DestinationKey>| self.choose(cached, candidates, &mut Batch::default());
        Peek::Sure(self.cache.peek(flow.destination(), look))
    }
}

/// It has more active connections than its weight, while another has less than half of its own.
pub(super) fn is_busy(candidate: &Candidate, candidates: &[Candidate]) -> bool {
    let is_half_idle = |c: &Candidate| (c.load.active() as u64) * 2 < c.weight as u64;
    candidate.load.active() > candidate.weight && candidates.iter().any(is_half_idle)
}

/// Where in the list it is.
pub(super) fn place(key: &DestinationKey, candidates: &[Candidate]) -> Option<usize> {
    candidates.iter().position(|candidate| candidate.key == *key)
}
