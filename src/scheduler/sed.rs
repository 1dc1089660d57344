//! Shortest expected delay: the smallest (active + 1) / weight. Inactive connections do not count.

use super::packed::Packed;
use super::{Candidate, Schedule};
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
    fn pick(&self, _: &[Candidate], _: &FlowKey) -> Option<usize> {
        least_delay(&self.0)
    }
}

pub(super) fn least_delay(servers: &Packed) -> Option<usize> {
    servers.least_for_weight(|connections| connections.active() as i64 + 1)
}
