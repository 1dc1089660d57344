//! Round robin: each in turn, whatever its weight (but 0).

use std::sync::atomic::{AtomicU32, Ordering};

use super::{Candidate, Peek, Schedule};
use crate::packet::FlowKey;

/// Nobody was picked yet: the head of the list comes next.
const HEAD: u32 = u32::MAX;

/// Its position: the destination that was picked last.
#[derive(Debug)]
pub struct Rr {
    last: AtomicU32,
}

impl Default for Rr {
    fn default() -> Self {
        Rr {
            last: AtomicU32::new(HEAD),
        }
    }
}

impl Rr {
    /// The same position in a changed list. When the destination at the position is gone, its neighbour before counts
    /// as picked last.
    pub(super) fn successor(&self, before: &[Candidate], after: &[Candidate]) -> Rr {
        let last = self.last.load(Ordering::Relaxed) as usize;
        let until_last = before.get(..=last).unwrap_or_default();
        let place = |c: &Candidate| after.iter().position(|a| a.key == c.key);
        let last = until_last.iter().rev().find_map(place);
        Rr {
            last: AtomicU32::new(last.map_or(HEAD, |n| n as u32)),
        }
    }
}

impl Schedule for Rr {
    fn pick(&self, candidates: &[Candidate], _: &FlowKey) -> Option<usize> {
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let start = last.wrapping_add(1) as usize;
            let (before, after) = candidates.split_at(start.min(candidates.len()));
            let in_after = after.iter().position(Candidate::is_available).map(|n| n + before.len());
            let next = in_after.or_else(|| before.iter().position(Candidate::is_available))?;
            // Another worker took its turn meanwhile: the turn after that is ours.
            match self
                .last
                .compare_exchange_weak(last, next as u32, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Some(next),
                Err(now) => last = now,
            }
        }
    }

    fn peek(&self, candidates: &[Candidate], flow: &FlowKey) -> Peek<usize> {
        let last = AtomicU32::new(self.last.load(Ordering::Relaxed));
        Peek::Sure(Rr { last }.pick(candidates, flow))
    }
}
