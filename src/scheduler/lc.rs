//! Least connections: the one with the fewest, an active one weighing 256 inactive ones; weights (but 0) do not count.

use super::{Candidate, Load, Schedule};
use crate::packet::FlowKey;

/// Has no state of its own: the numbers are the destinations'.
#[derive(Debug)]
pub struct Lc;

impl Schedule for Lc {
    fn pick(&self, candidates: &[Candidate], _: &FlowKey) -> Option<usize> {
        let available = candidates.iter().enumerate().filter(|(_, c)| c.is_available());
        // min_by_key keeps the first of equals.
        available.min_by_key(|(_, c)| overhead(&c.load)).map(|(n, _)| n)
    }
}

/// What a destination has to do.
#[inline]
pub(super) fn overhead(load: &Load) -> u64 {
    load.active() as u64 * 256 + load.inactive() as u64
}
