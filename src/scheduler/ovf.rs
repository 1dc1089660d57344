//! Weighted overflow: the heaviest, until it has more active connections than its weight, then the next.

use super::fo::heaviest;
use super::{Batch, Candidate, Schedule};
use crate::packet::FlowKey;

/// Has no state of its own.
#[derive(Debug)]
pub struct Ovf;

impl Schedule for Ovf {
    fn pick<'s>(&'s self, candidates: &[Candidate], _: &FlowKey, _: &mut Batch<'s>) -> Option<usize> {
        // "More than" is the kernel's: each takes weight + 1.
        heaviest(candidates, |c| c.is_available() && c.load.active() <= c.weight)
    }
}
