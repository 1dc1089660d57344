//! Never queue: the first idle one, else the shortest expected delay.

use super::packed::Packed;
use super::sed::least_delay;
use super::{Candidate, Schedule};
use crate::packet::FlowKey;

/// The numbers are the destinations'.
#[derive(Debug)]
pub struct Nq(Packed);

impl Nq {
    pub(super) fn new(candidates: &[Candidate]) -> Nq {
        Nq(Packed::new(candidates))
    }
}

impl Schedule for Nq {
    fn pick(&self, _: &[Candidate], _: &FlowKey) -> Option<usize> {
        let idle = self.0.first(|connections| connections.active() == 0);
        idle.or_else(|| least_delay(&self.0))
    }
}
