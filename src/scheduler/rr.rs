//! Round robin: each in turn, whatever its weight (but 0).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Batch, Candidate, Peek, Schedule};
use crate::packet::FlowKey;

/// Turns that a worker takes at once, at most.
const AT_ONCE_MAX: u64 = 16;

const _: () = assert!(AT_ONCE_MAX < 1 << 8, "their number is a byte of `returned`");

/// Its position. At a million turns a second it lasts for two thousand years.
///
/// In cache lines of its own (two, as processors load pairs): what scheduler it is must not be read where another worker writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Rr {
    /// How many turns were given out, of those who could not take theirs too.
    next: AtomicU64,
    /// Turns that a worker gave back and that come before `next`: the first, and in the lowest byte their number. 0: none.
    returned: AtomicU64,
}

/// Turns in the hand of a worker, for one batch: taken one, two, four and more at once, as they are used up. What is left at the end is
/// given back, so with one worker, or one connection a batch, all have their turns in order.
#[derive(Debug, Default)]
pub(super) struct Turns<'s> {
    of: Option<&'s Rr>,
    left: Range<u64>,
    at_once: u64,
}

impl<'s> Turns<'s> {
    /// The next one of this scheduler; those of another are given back.
    #[inline]
    pub(super) fn next(&mut self, of: &'s Rr) -> u64 {
        if !self.of.is_some_and(|rr| std::ptr::eq(rr, of)) {
            *self = Turns {
                of: Some(of),
                at_once: 1,
                left: 0..0,
            };
        }
        if self.left.is_empty() {
            self.left = of.take(self.at_once);
            self.at_once = (2 * self.at_once).min(AT_ONCE_MAX);
        }
        let turn = self.left.start;
        self.left.start += 1;
        turn
    }
}

impl Drop for Turns<'_> {
    fn drop(&mut self) {
        if let Some(rr) = self.of
            && !self.left.is_empty()
        {
            rr.give_back(self.left.clone());
        }
    }
}

impl Rr {
    fn at(turn: u64) -> Rr {
        Rr {
            next: AtomicU64::new(turn),
            returned: AtomicU64::new(0),
        }
    }

    /// So many turns, or those that somebody gave back.
    fn take(&self, turns: u64) -> Range<u64> {
        if self.returned.load(Ordering::Relaxed) != 0 {
            let returned = unpacked(self.returned.swap(0, Ordering::Relaxed));
            if !returned.is_empty() {
                return returned;
            }
        }
        let first = self.next.fetch_add(turns, Ordering::Relaxed);
        first..first + turns
    }

    /// As if they had not been taken, when nobody has taken later ones. When others have, they are the next ones to be taken; when
    /// that is so of another worker's already, they are lost.
    fn give_back(&self, turns: Range<u64>) {
        let (order, to) = (Ordering::Relaxed, turns.start);
        if self.next.compare_exchange(turns.end, to, order, order).is_err() {
            let _lost_if_others = self.returned.compare_exchange(0, packed(&turns), order, order);
        }
    }

    /// The same position in a changed list. When the destination at the position is gone, its neighbour before counts
    /// as picked last.
    pub(super) fn successor(&self, before: &[Candidate], after: &[Candidate]) -> Rr {
        let turns = self.next.load(Ordering::Relaxed);
        let until_last = match turns.checked_sub(1) {
            Some(last) if !before.is_empty() => &before[..=(last % before.len() as u64) as usize],
            _ => &[],
        };
        let place = |c: &Candidate| after.iter().position(|a| a.key == c.key);
        let last = until_last.iter().rev().find_map(place);
        Rr::at(last.map_or(0, |n| n as u64 + 1))
    }
}

fn packed(turns: &Range<u64>) -> u64 {
    turns.start << 8 | (turns.end - turns.start)
}

fn unpacked(turns: u64) -> Range<u64> {
    let first = turns >> 8;
    first..first + (turns & 0xff)
}

impl Schedule for Rr {
    fn pick<'s>(&'s self, candidates: &[Candidate], _: &FlowKey, batch: &mut Batch<'s>) -> Option<usize> {
        let len = candidates.len() as u64;
        for _ in 0..len {
            let turn = (batch.turn(self) % len) as usize;
            if candidates[turn].is_available() {
                return Some(turn);
            }
        }
        // Turns among which other workers took theirs may all have been those of others.
        candidates.iter().position(Candidate::is_available)
    }

    fn peek(&self, candidates: &[Candidate], flow: &FlowKey) -> Peek<usize> {
        let copy = Rr {
            next: AtomicU64::new(self.next.load(Ordering::Relaxed)),
            returned: AtomicU64::new(self.returned.load(Ordering::Relaxed)),
        };
        Peek::Sure(copy.pick(candidates, flow, &mut Batch::default()))
    }
}
