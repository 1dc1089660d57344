//! When may a retired slot be used again: when every worker has passed a batch boundary since.
//!
//! A counter goes up with each group of retired entries. Each worker publishes, once a batch, the value it saw; one that
//! sleeps publishes that it holds nothing. A group retired at value `e` is free when the smallest published value is
//! above `e`.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// On a cache line of its own (two: the hardware fetches pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Padded<T>(pub T);

const OFFLINE: u64 = u64::MAX;

#[derive(Debug)]
pub struct Epochs {
    now: Padded<AtomicU64>,
    readers: Box<[Padded<AtomicU64>]>,
}

impl Epochs {
    pub fn new(readers: usize) -> Epochs {
        Epochs {
            now: Padded(AtomicU64::new(1)),
            readers: (0..readers).map(|_| Padded(AtomicU64::new(OFFLINE))).collect(),
        }
    }

    /// The reader holds nothing that it found before.
    #[inline]
    pub fn quiescent(&self, reader: usize) {
        let now = self.now.0.load(Ordering::Acquire);
        // Release: what the reader did with its finds comes before.
        self.readers[reader].0.store(now, Ordering::Release);
    }

    /// The reader holds nothing and will find nothing until it is online again.
    pub fn offline(&self, reader: usize) {
        self.readers[reader].0.store(OFFLINE, Ordering::Release);
    }

    /// The reader begins to look things up.
    pub fn online(&self, reader: usize) {
        let now = self.now.0.load(Ordering::Acquire);
        self.readers[reader].0.store(now, Ordering::SeqCst);
        // Either whoever frees sees this reader, or this reader sees that what is freed is unlinked.
        fence(Ordering::SeqCst);
    }

    /// Whether it may look things up now.
    pub fn is_online(&self, reader: usize) -> bool {
        self.readers[reader].0.load(Ordering::Relaxed) != OFFLINE
    }

    /// What was unlinked before this call is free once [`Epochs::passed`] says so of the result.
    pub fn retire(&self) -> u64 {
        self.now.0.fetch_add(1, Ordering::AcqRel)
    }

    /// Every reader has been quiescent since `epoch` was retired.
    pub fn passed(&self, epoch: u64) -> bool {
        fence(Ordering::SeqCst);
        self.readers.iter().all(|r| r.0.load(Ordering::Acquire) > epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_online_readers_only() {
        let epochs = Epochs::new(3);
        let first = epochs.retire();
        assert!(epochs.passed(first), "all are offline");
        epochs.online(0);
        epochs.online(1);
        let second = epochs.retire();
        assert!(epochs.passed(first), "they came after it");
        assert!(!epochs.passed(second));
        epochs.quiescent(0);
        assert!(!epochs.passed(second), "1 may still hold it");
        epochs.offline(1);
        assert!(epochs.passed(second));
        assert!(epochs.is_online(0) && !epochs.is_online(1));
        epochs.online(1);
        assert!(epochs.passed(second), "it came back after");
    }
}
