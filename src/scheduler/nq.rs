//! Never queue: the first idle one, else the shortest expected delay.

use super::load::View;
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

    fn idle_or_least(&self, view: View) -> Option<usize> {
        let idle = self.0.first(view, |connections| connections.active() == 0);
        idle.or_else(|| least_delay(&self.0, view))
    }
}

impl Schedule for Nq {
    fn pick(&self, _: &[Candidate], _: &FlowKey) -> Option<usize> {
        self.idle_or_least(View::Whole)
    }

    fn pick_in_batch<'s>(&'s self, _: &[Candidate], _: &FlowKey, batch: &mut Batch<'s>) -> Option<usize> {
        self.idle_or_least(batch.view(&self.0))
    }
}
