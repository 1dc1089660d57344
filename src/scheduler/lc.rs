//! Least connections: the one with the fewest, an active one weighing 256 inactive ones; weights (but 0) do not count.

use super::packed::Packed;
use super::{Batch, Candidate, Connections, Schedule};
use crate::packet::FlowKey;

/// The numbers are the destinations'.
#[derive(Debug)]
pub struct Lc(Packed);

impl Lc {
    pub(super) fn new(candidates: &[Candidate]) -> Lc {
        Lc(Packed::new(candidates))
    }
}

impl Schedule for Lc {
    fn pick<'s>(&'s self, _: &[Candidate], _: &FlowKey, batch: &mut Batch<'s>) -> Option<usize> {
        self.0.least(batch.view(&self.0), Connections::signed_overhead)
    }
}
