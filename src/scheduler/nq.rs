//! Never queue: the first idle one, else the shortest expected delay.

use super::sed::Sed;
use super::{Candidate, Schedule};
use crate::packet::FlowKey;

/// Has no state of its own.
#[derive(Debug)]
pub struct Nq;

impl Schedule for Nq {
    fn pick(&self, candidates: &[Candidate], flow: &FlowKey) -> Option<usize> {
        let is_idle = |c: &Candidate| c.is_available() && c.load.active() == 0;
        candidates
            .iter()
            .position(is_idle)
            .or_else(|| Sed.pick(candidates, flow))
    }
}
