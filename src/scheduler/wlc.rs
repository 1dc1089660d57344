//! Weighted least connections: the smallest [`overhead`](super::lc) for its weight.

use super::lc::overhead;
use super::{Candidate, Schedule};
use crate::packet::FlowKey;

/// Has no state of its own.
#[derive(Debug)]
pub struct Wlc;

impl Schedule for Wlc {
    fn pick(&self, candidates: &[Candidate], _: &FlowKey) -> Option<usize> {
        least_for_weight(candidates, |c| overhead(&c.load))
    }
}

/// The available candidate with the smallest cost / weight; the first of equals.
#[inline]
pub(super) fn least_for_weight(candidates: &[Candidate], cost: impl Fn(&Candidate) -> u64) -> Option<usize> {
    let mut least: Option<(usize, u64, u64)> = None;
    for (n, candidate) in candidates.iter().enumerate() {
        if !candidate.is_available() {
            continue;
        }
        let (cost, weight) = (cost(candidate), candidate.weight as u64);
        // a / b < c / d as a * d < c * b, without fractions. 41 and 31 bits: at 2^33 connections it would overflow.
        if least.is_none_or(|(_, least_cost, least_weight)| least_cost * weight > cost * least_weight) {
            least = Some((n, cost, weight));
        }
    }
    least.map(|(n, _, _)| n)
}
