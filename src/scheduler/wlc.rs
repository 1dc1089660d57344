//! Weighted least connections: the smallest [overhead](Connections::overhead) for its weight.

use super::packed::Packed;
use super::{Batch, Candidate, Connections, Schedule};
use crate::packet::FlowKey;

/// The numbers are the destinations'.
#[derive(Debug)]
pub struct Wlc(Packed);

impl Wlc {
    pub(super) fn new(candidates: &[Candidate]) -> Wlc {
        Wlc(Packed::new(candidates))
    }

    /// As [`pick`](Schedule::pick), of the candidates that it was made for.
    pub(super) fn least<'s>(&'s self, batch: &mut Batch<'s>) -> Option<usize> {
        self.0
            .least_for_weight(batch.view(&self.0), Connections::signed_overhead)
    }
}

impl Schedule for Wlc {
    fn pick<'s>(&'s self, _: &[Candidate], _: &FlowKey, batch: &mut Batch<'s>) -> Option<usize> {
        self.least(batch)
    }
}
