//! Shortest expected delay: the smallest (active + 1) / weight. Inactive connections do not count.

use super::load::View;
use super::packed::Packed;
use super::{Batch, Candidate, Schedule};
use crate::packet::FlowKey;

/// The numbers are the destinations'.
#[derive(Debug)]
pub struct Sed(Packed);

impl Sed {
    pub(super) fn new(candidates: &[Candidate]) -> Sed {
        Sed(Packed::new(candidates))
    }
}

impl Schedule for Sed {
    fn pick<'s>(&'s self, _: &[Candidate], _: &FlowKey, batch: &mut Batch<'s>) -> Option<usize> {
        least_delay(&self.0, batch.view(&self.0))
    }
}

pub(super) fn least_delay(servers: &Packed, view: View) -> Option<usize> {
    servers.least_for_weight(view, |connections| connections.active() as i64 + 1)
}
