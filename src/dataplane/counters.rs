//! Where every frame of a worker went. One writer (the worker), any reader; published once a batch.
//!
//! To the frame: `received + generated = transmitted + handed_back + dropped + held`. A datagram put together from
//! fragments stays as many frames as it came in.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::DropReason;

/// Numbers of one worker while it works; plain memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Frames that the driver gave us.
    pub received: u64,
    /// Frames that uvs made: ICMP errors, fragments and segments beyond the first.
    pub generated: u64,
    /// Frames put on a transmit ring.
    pub transmitted: u64,
    /// Frames given to the local stack.
    pub handed_back: u64,
    /// Fragments kept until their datagram is whole (a level, not a total).
    pub held: u64,
    /// Frames dropped, by [`DropReason`] number.
    pub dropped: [u64; DropReason::ALL.len()],
    /// ICMP errors that were due, beyond what a worker sends in a second; no frames.
    pub errors_withheld: u64,
}

impl FrameCounts {
    /// Counts one drop.
    #[inline]
    pub fn drop(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    /// Counts drops of one reason.
    #[inline]
    pub fn drop_many(&mut self, reason: DropReason, frames: u64) {
        self.dropped[reason as usize] += frames;
    }

    /// Counts what became of a frame that was to be transmitted.
    #[inline]
    pub fn transmit(&mut self, sent: bool) {
        if sent {
            self.transmitted += 1;
        } else {
            self.drop(DropReason::TransmitFailed);
        }
    }

    /// Counts frames that were counted as transmitted and did not leave after all.
    pub fn transmit_failed(&mut self, frames: u64) {
        self.transmitted -= frames;
        self.drop_many(DropReason::TransmitFailed, frames);
    }

    /// Counts what became of a frame for the local stack.
    #[inline]
    pub fn hand_back(&mut self, taken: bool) {
        if taken {
            self.handed_back += 1;
        } else {
            self.drop(DropReason::HandBackFailed);
        }
    }

    /// Sum over all reasons.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Adds another worker's numbers.
    pub fn add(&mut self, other: &FrameCounts) {
        self.received += other.received;
        self.generated += other.generated;
        self.transmitted += other.transmitted;
        self.handed_back += other.handed_back;
        self.held += other.held;
        self.errors_withheld += other.errors_withheld;
        for (sum, n) in self.dropped.iter_mut().zip(&other.dropped) {
            *sum += n;
        }
    }

    /// Every frame has exactly one fate.
    pub fn balanced(&self) -> bool {
        self.received + self.generated == self.transmitted + self.handed_back + self.dropped_total() + self.held
    }
}

/// What a worker shows the control thread.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct WorkerShared {
    /// Rounds of the worker's loop: a worker whose number stands still is stuck.
    pub heartbeat: AtomicU64,
    /// Batches with at least one frame.
    pub batches: AtomicU64,
    received: AtomicU64,
    generated: AtomicU64,
    transmitted: AtomicU64,
    handed_back: AtomicU64,
    held: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
    errors_withheld: AtomicU64,
}

impl WorkerShared {
    /// Adds one to a cell that only this worker writes.
    pub fn bump(cell: &AtomicU64) {
        cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Shows new numbers. `before` is what was shown last, so only what changed is written.
    pub fn publish(&self, before: &mut FrameCounts, now: &FrameCounts) {
        let store = |cell: &AtomicU64, old: u64, new: u64| {
            if old != new {
                cell.store(new, Ordering::Relaxed);
            }
        };
        store(&self.received, before.received, now.received);
        store(&self.generated, before.generated, now.generated);
        store(&self.transmitted, before.transmitted, now.transmitted);
        store(&self.handed_back, before.handed_back, now.handed_back);
        store(&self.held, before.held, now.held);
        store(&self.errors_withheld, before.errors_withheld, now.errors_withheld);
        for ((cell, old), new) in self.dropped.iter().zip(&before.dropped).zip(&now.dropped) {
            store(cell, *old, *new);
        }
        before.clone_from(now);
    }

    /// Reads the numbers; they may be of different batches while traffic flows.
    pub fn read(&self) -> FrameCounts {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let mut counts = FrameCounts {
            received: load(&self.received),
            generated: load(&self.generated),
            transmitted: load(&self.transmitted),
            handed_back: load(&self.handed_back),
            held: load(&self.held),
            errors_withheld: load(&self.errors_withheld),
            ..FrameCounts::default()
        };
        for (n, cell) in counts.dropped.iter_mut().zip(&self.dropped) {
            *n = load(cell);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publish_shows_every_field() {
        let shared = WorkerShared::default();
        let mut before = FrameCounts::default();
        let mut now = FrameCounts {
            received: 7,
            generated: 1,
            transmitted: 3,
            handed_back: 2,
            held: 1,
            errors_withheld: 4,
            ..before.clone()
        };
        now.drop(DropReason::Truncated);
        now.drop(DropReason::HandBackFailed);
        assert!(now.balanced());
        shared.publish(&mut before, &now);
        assert_eq!(shared.read(), now);
        assert_eq!(before, now);
        now.received += 1;
        assert!(!now.balanced());
    }
}
