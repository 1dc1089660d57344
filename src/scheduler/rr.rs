//! Round robin: each in turn, whatever its weight (but 0).

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Candidate, Peek, Schedule};
use crate::packet::FlowKey;
use crate::prefetch;

/// Its position: how many turns were given out, of those who could not take theirs too. Taken with one instruction, as all workers do
/// at each new connection. At a million a second it lasts for half a million years.
///
/// In cache lines of its own (two, as processors load pairs): what scheduler it is must not be read where another worker writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Rr {
    turns: AtomicU64,
}

impl Rr {
    /// The same position in a changed list. When the destination at the position is gone, its neighbour before counts
    /// as picked last.
    pub(super) fn successor(&self, before: &[Candidate], after: &[Candidate]) -> Rr {
        let turns = self.turns.load(Ordering::Relaxed);
        let until_last = match turns.checked_sub(1) {
            Some(last) if !before.is_empty() => &before[..=(last % before.len() as u64) as usize],
            _ => &[],
        };
        let place = |c: &Candidate| after.iter().position(|a| a.key == c.key);
        let last = until_last.iter().rev().find_map(place);
        Rr {
            turns: AtomicU64::new(last.map_or(0, |n| n as u64 + 1)),
        }
    }
}

impl Schedule for Rr {
    fn pick(&self, candidates: &[Candidate], _: &FlowKey) -> Option<usize> {
        let len = candidates.len() as u64;
        for _ in 0..len {
            let turn = (self.turns.fetch_add(1, Ordering::Relaxed) % len) as usize;
            if candidates[turn].is_available() {
                return Some(turn);
            }
        }
        None
    }

    fn prepare(&self) {
        prefetch::to_write(std::slice::from_ref(&self.turns), 0);
    }

    fn peek(&self, candidates: &[Candidate], flow: &FlowKey) -> Peek<usize> {
        let turns = AtomicU64::new(self.turns.load(Ordering::Relaxed));
        Peek::Sure(Rr { turns }.pick(candidates, flow))
    }
}
