//! Weighted overflow: the heaviest, until it has more active connections than its weight, then the next.

use super::fo::heaviest;
use super::{Candidate, Schedule};
use crate::packet::FlowKey;

/// Has no state of its own.
#[derive(Debug)]
pub struct Ovf;

impl Schedule for Ovf {
    fn pick(&self, candidates: &[Candidate], _: &FlowKey) -> Option<usize> {
        // "More than" is the kernel's: each takes weight + 1.
        heaviest(candidates, |c| c.is_available() && c.load.active() <= c.weight)
    }
}
