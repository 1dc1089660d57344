//! Weighted failover: always the heaviest that is available.

use super::{Batch, Candidate, Schedule};
use crate::packet::FlowKey;

/// Has no state of its own.
#[derive(Debug)]
pub struct Fo;

impl Schedule for Fo {
    fn pick<'s>(&'s self, candidates: &[Candidate], _: &FlowKey, _: &mut Batch<'s>) -> Option<usize> {
        heaviest(candidates, Candidate::is_available)
    }
}

/// The heaviest that `may`; the first of equals.
#[inline]
pub(super) fn heaviest(candidates: &[Candidate], may: impl Fn(&Candidate) -> bool) -> Option<usize> {
    let able = candidates.iter().enumerate().filter(|(_, c)| may(c));
    // max_by_key keeps the last of equals, so from the end.
    able.rev().max_by_key(|(_, c)| c.weight).map(|(n, _)| n)
}
