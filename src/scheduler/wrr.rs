//! Weighted round robin: in each round of the list those whose weight is at least a mark that falls from the largest weight
//! in steps of the weights' greatest common divisor.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Batch, Candidate, Peek, Schedule, gcd};
use crate::packet::FlowKey;
use crate::service::DestinationKey;

/// See [`Position`]; largest mark and step belong to the list.
#[derive(Debug, Default)]
pub struct Wrr {
    position: AtomicU64,
    marks: Marks,
}

/// Where the rounds stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    /// Who comes next: index, or the length of the list.
    next: u32,
    /// Weights from this on are picked in this round.
    mark: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    largest: u32,
    step: u32,
}

impl Position {
    fn packed(self) -> u64 {
        (self.next as u64) << 32 | self.mark as u64
    }

    fn unpacked(bits: u64) -> Position {
        Position {
            next: (bits >> 32) as u32,
            mark: bits as u32,
        }
    }
}

impl Wrr {
    /// The first round of a service that had another scheduler so far (`-E`): its destinations are all there at once.
    pub(super) fn beginning(list: &[Candidate]) -> Wrr {
        let marks = Marks::of(list.iter().map(|candidate| candidate.weight));
        let position = Position {
            next: 0,
            mark: marks.largest,
        };
        Wrr {
            position: AtomicU64::new(position.packed()),
            marks,
        }
    }

    /// The scheduler of a changed list. The kernel adjusts its mark at every single change, and the order of picks
    /// shows it; so what changed is gone through one by one: removed, edited, added (oldest first).
    pub(super) fn successor(&self, before: &[Candidate], after: &[Candidate]) -> Wrr {
        let mut mark = Position::unpacked(self.position.load(Ordering::Relaxed)).mark;
        let mut marks = self.marks;
        let edits = |list: &[Candidate]| list.first().map(|c| c.edits);
        // An edit that changes nothing is one too.
        let edited = edits(before) != edits(after);
        let mut list: Vec<(DestinationKey, u32)> = before.iter().map(|c| (c.key, c.weight)).collect();
        let mut changed = false;
        let mut change = |list: &[(DestinationKey, u32)]| {
            marks = Marks::of(list.iter().map(|(_, weight)| *weight));
            mark = marks.adjusted(mark);
            changed = true;
        };
        for old in before {
            if !after.iter().any(|new| new.key == old.key) {
                list.retain(|(key, _)| *key != old.key);
                change(&list);
            }
        }
        for new in after.iter().rev() {
            match list.iter().position(|(key, _)| *key == new.key) {
                Some(at) if list[at].1 == new.weight => {}
                Some(at) => {
                    list[at].1 = new.weight;
                    change(&list);
                }
                None => {
                    list.insert(0, (new.key, new.weight));
                    change(&list);
                }
            }
        }
        // Once more does no harm.
        if edited {
            change(&list);
        }
        let next = match changed {
            true => 0,
            false => Position::unpacked(self.position.load(Ordering::Relaxed)).next,
        };
        Wrr {
            position: AtomicU64::new(Position { next, mark }.packed()),
            marks,
        }
    }

    /// Where the kernel's search ends that finds everybody over a threshold: where it began when that was in the last round, else at
    /// the head of the first.
    fn after_nobody(&self, from: Position) -> Position {
        if from.next > 0 && from.mark <= self.marks.step {
            return from;
        }
        Position {
            next: 0,
            mark: self.marks.largest,
        }
    }

    /// One pick: who, and the position after it.
    fn step(&self, candidates: &[Candidate], from: Position) -> (Option<usize>, Position) {
        let Marks { largest, step } = self.marks;
        let available = || candidates.iter().filter(|c| c.is_available());
        let Some(heaviest) = available().map(|c| c.weight).max() else {
            return (None, self.after_nobody(from));
        };
        let mut mark = from.mark;
        let mut start = (from.next as usize).min(candidates.len());
        // At most: the rest of this round, a round at a mark that someone reaches, one more after wrapping round.
        for _ in 0..4 {
            let fits = |c: &Candidate| c.is_available() && c.weight >= mark;
            if let Some(n) = candidates[start..].iter().position(fits) {
                let picked = start + n;
                let next = picked as u32 + 1;
                return (Some(picked), Position { next, mark });
            }
            start = 0;
            // Down by steps to the first mark that the heaviest reaches, without walking the rounds in between.
            let steps = mark.saturating_sub(heaviest).div_ceil(step).max(1);
            mark = match mark.checked_sub(steps.saturating_mul(step)) {
                None | Some(0) => largest,
                Some(mark) => mark,
            };
        }
        (None, Position { next: 0, mark })
    }
}

impl Marks {
    fn of(weights: impl Iterator<Item = u32>) -> Marks {
        let (mut step, mut heaviest) = (0, 0);
        for weight in weights {
            step = gcd(step, weight);
            heaviest = heaviest.max(weight);
        }
        let step = step.max(1);
        Marks {
            // With the smallest mark 1, every round that is walked picks someone.
            largest: heaviest.saturating_sub(step - 1),
            step,
        }
    }

    /// What becomes of the mark in progress.
    fn adjusted(self, mark: u32) -> u32 {
        if mark > self.largest || mark == 0 {
            self.largest
        } else if self.step > 1 {
            mark / self.step * self.step + 1
        } else {
            mark
        }
    }
}

impl Schedule for Wrr {
    fn pick<'s>(&'s self, candidates: &[Candidate], _: &FlowKey, _: &mut Batch<'s>) -> Option<usize> {
        if self.marks.largest == 0 {
            return None;
        }
        let mut bits = self.position.load(Ordering::Relaxed);
        loop {
            let (picked, after) = self.step(candidates, Position::unpacked(bits));
            let swapped =
                self.position
                    .compare_exchange_weak(bits, after.packed(), Ordering::Relaxed, Ordering::Relaxed);
            match swapped {
                Ok(_) => return picked,
                Err(now) => bits = now,
            }
        }
    }

    fn peek(&self, candidates: &[Candidate], flow: &FlowKey) -> Peek<usize> {
        let copy = Wrr {
            position: AtomicU64::new(self.position.load(Ordering::Relaxed)),
            marks: self.marks,
        };
        Peek::Sure(copy.pick(candidates, flow, &mut Batch::default()))
    }
}
