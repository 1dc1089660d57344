//! Locality-based least connections: all connections to one address (of a service by firewall mark, say) go to one destination,
//! until that is overloaded while another is half idle; then, as for a new address, the weighted least connections decide.

use super::cache::Cache;
use super::wlc::Wlc;
use super::{Candidate, Peek, Schedule};
use crate::packet::FlowKey;

/// Whom each address has: index of the candidate.
#[derive(Debug, Default)]
pub struct Lblc {
    cache: Cache<u16>,
}

impl Lblc {
    /// The same for a changed list.
    pub(super) fn successor(&self, before: &[Candidate], after: &[Candidate]) -> Lblc {
        Lblc {
            cache: self.cache.map(|n| moved(*n, before, after)),
        }
    }
}

impl Schedule for Lblc {
    fn pick(&self, candidates: &[Candidate], flow: &FlowKey) -> Option<usize> {
        let decide = |cached: Option<&u16>| {
            let picked = choose(cached, candidates, flow);
            (picked, picked.map(|n| n as u16))
        };
        self.cache.update(flow.destination(), decide)
    }

    fn peek(&self, candidates: &[Candidate], flow: &FlowKey) -> Peek<usize> {
        let look = |cached: Option<&u16>| choose(cached, candidates, flow);
        Peek::Sure(self.cache.peek(flow.destination(), look))
    }
}

/// By what is remembered of the address.
fn choose(cached: Option<&u16>, candidates: &[Candidate], flow: &FlowKey) -> Option<usize> {
    let cached = cached.map(|n| *n as usize);
    // As in the kernel, a threshold (-x) does not end this.
    let usable = |n: &usize| {
        candidates
            .get(*n)
            .is_some_and(|c| c.weight > 0 && !is_busy(c, candidates))
    };
    cached.filter(usable).or_else(|| Wlc.pick(candidates, flow))
}

/// It has more active connections than its weight, while another has less than half of its own.
pub(super) fn is_busy(candidate: &Candidate, candidates: &[Candidate]) -> bool {
    let is_half_idle = |c: &Candidate| (c.load.active() as u64) * 2 < c.weight as u64;
    candidate.load.active() > candidate.weight && candidates.iter().any(is_half_idle)
}

/// Where in the changed list the candidate is.
pub(super) fn moved(n: u16, before: &[Candidate], after: &[Candidate]) -> Option<u16> {
    let key = before.get(n as usize)?.key;
    after.iter().position(|c| c.key == key).map(|n| n as u16)
}
