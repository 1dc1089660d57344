//! Shortest expected delay: the smallest (active + 1) / weight. Inactive connections do not count.

use super::wlc::least_for_weight;
use super::{Candidate, Schedule};
use crate::packet::FlowKey;

/// Has no state of its own.
#[derive(Debug)]
pub struct Sed;

impl Schedule for Sed {
    fn pick(&self, candidates: &[Candidate], _: &FlowKey) -> Option<usize> {
        least_for_weight(candidates, |c| c.load.active() as u64 + 1)
    }
}
