//! Never queue: the first idle one, else the shortest expected delay.

use super::packed::Packed;
use super::sed::least_delay;
use super::{Batch, Candidate, Schedule};
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
    fn pick<'s>(&'s self, _: &[Candidate], _: &FlowKey, batch: &mut Batch<'s>) -> Option<usize> {
        let view = batch.view(&self.0);
        let idle = self.0.first(view, |connections| connections.active() == 0);
        idle.or_else(|| least_delay(&self.0, view))
    }
}
