//! Which slots are free.
//!
//! One bit a slot, 1 = free, in words of 64 (a chunk). While there is plenty, a worker takes all free slots of a chunk at
//! once and deals them out by itself; near the end slots are taken one by one, so that none idles in a cache while
//! another worker needs it.
//!
//! A slot is free, or taken (in an entry, or in a worker's cache), or in limbo (retired, until every worker has passed a
//! batch boundary). Taken slots never exceed the capacity; there are [more slots](RESERVE_MIN) than that, so
//! that a full table can go on replacing entries while the replaced ones are in limbo.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::epoch::Padded;

/// Slots of a chunk.
pub const CHUNK: u32 = 64;
/// Slots beyond the capacity: this many, and one for each so many of the capacity. At 1 M they last a flood of a million
/// connections a second for 17 ms, should a worker be kept from its next batch for so long. (The least is a batch of seven
/// workers; more would show in the bytes a connection of small tables.)
pub const RESERVE_MIN: u32 = 7 * CHUNK;
const RESERVE_PART: u32 = 64;
/// Largest capacity: a reference into the slots and its direction fit 32 bits.
pub const CAPACITY_MAX: u32 = (1 << 30) - (1 << 25);
/// A worker takes whole chunks while this many slots a worker are left.
const PLENTY: u32 = 4 * CHUNK;

/// Even bits: where a wide entry begins.
const EVEN: u64 = 0x5555_5555_5555_5555;

/// A worker's slots in hand and its place in the table. Written by that worker only.
#[derive(Debug, Default)]
struct Cache {
    narrow: Hand,
    wide: Hand,
    /// Chunk to look at next.
    cursor: AtomicU32,
    /// Entries inserted.
    inserted: AtomicU64,
}

/// Slots of one chunk in a worker's hand.
#[derive(Debug, Default)]
struct Hand {
    chunk: AtomicU32,
    slots: AtomicU64,
}

#[derive(Debug)]
pub struct Slots {
    free: Box<[AtomicU64]>,
    capacity: u32,
    /// Capacity and reserve.
    total: u32,
    taken: Padded<AtomicU32>,
    limbo: Padded<AtomicU32>,
    removed: Padded<AtomicU64>,
    caches: Box<[Padded<Cache>]>,
}

/// Slots of an entry.
#[inline]
pub fn width(wide: bool) -> u32 {
    1 + wide as u32
}

/// A wide entry can begin where a slot and the next are free, at even places.
#[inline]
fn pairs(word: u64) -> u64 {
    word & word >> 1 & EVEN
}

impl Slots {
    /// All free.
    pub fn new(capacity: u32, workers: usize) -> Slots {
        let total = Slots::total_for(capacity);
        let words = total.div_ceil(CHUNK);
        let free = (0..words).map(|n| AtomicU64::new(valid_bits(n, total))).collect();
        // Workers begin in different parts, so that they do not meet.
        let cache = |n: usize| {
            let cache = Cache::default();
            let part = n as u64 * words as u64 / workers.max(1) as u64;
            cache.cursor.store(part as u32, Ordering::Relaxed);
            Padded(cache)
        };
        Slots {
            free,
            capacity,
            total,
            taken: Padded::default(),
            limbo: Padded::default(),
            removed: Padded::default(),
            caches: (0..workers).map(cache).collect(),
        }
    }

    /// The capacity that so many slots of memory give.
    pub fn capacity_of(total: u32) -> u32 {
        let rest = total.saturating_sub(RESERVE_MIN) as u64;
        let part = RESERVE_PART as u64;
        let close = (rest * part / (part + 1)) as u32;
        // Rounding may have lost one.
        if Slots::total_for(close + 1) <= total {
            close + 1
        } else {
            close
        }
    }

    /// Slots of memory for that capacity.
    pub fn total_for(capacity: u32) -> u32 {
        assert!(
            capacity <= CAPACITY_MAX,
            "{capacity} slots are more than {CAPACITY_MAX}"
        );
        capacity + RESERVE_MIN + capacity / RESERVE_PART
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    pub fn workers(&self) -> usize {
        self.caches.len()
    }

    pub fn chunks(&self) -> u32 {
        self.free.len() as u32
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.free[..]) + size_of_val(&self.caches[..])
    }

    /// Entries that live (approximate while workers are at it).
    pub fn used(&self) -> u64 {
        let inserted: u64 = self.caches.iter().map(|c| c.0.inserted.load(Ordering::Relaxed)).sum();
        inserted.saturating_sub(self.removed.0.load(Ordering::Relaxed))
    }

    /// Slots that may be in use: bit n of chunk `chunk`.
    #[inline]
    pub fn occupied(&self, chunk: u32) -> u64 {
        !self.free[chunk as usize].load(Ordering::Acquire) & valid_bits(chunk, self.total)
    }

    /// A slot (the first of two if `wide`) for an entry, or `None` when the capacity is used up.
    #[inline]
    pub fn allocate(&self, worker: usize, wide: bool) -> Option<u32> {
        let cache = &self.caches[worker].0;
        let hand = if wide { &cache.wide } else { &cache.narrow };
        let slots = hand.slots.load(Ordering::Relaxed);
        let slots = if slots != 0 {
            slots
        } else {
            self.refill(cache, hand, wide)?
        };
        let bit = slots.trailing_zeros();
        hand.slots.store(slots & !(mask(wide) << bit), Ordering::Relaxed);
        Some(hand.chunk.load(Ordering::Relaxed) * CHUNK + bit)
    }

    /// The slot came from [`Slots::allocate`] of this worker and was never published.
    pub fn put_back(&self, worker: usize, slot: u32, wide: bool) {
        let cache = &self.caches[worker].0;
        let hand = if wide { &cache.wide } else { &cache.narrow };
        let bits = mask(wide) << (slot % CHUNK);
        if hand.chunk.load(Ordering::Relaxed) == slot / CHUNK {
            let slots = hand.slots.load(Ordering::Relaxed);
            hand.slots.store(slots | bits, Ordering::Relaxed);
        } else {
            self.free[(slot / CHUNK) as usize].fetch_or(bits, Ordering::AcqRel);
            self.taken.0.fetch_sub(width(wide), Ordering::AcqRel);
        }
    }

    /// Notes an insertion by this worker.
    #[inline]
    pub fn count_inserted(&self, worker: usize) {
        let inserted = &self.caches[worker].0.inserted;
        inserted.store(inserted.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The entry is retired: its slots no longer count against the capacity, but cannot be used yet.
    pub fn put_in_limbo(&self, wide: bool) {
        self.removed.0.fetch_add(1, Ordering::Relaxed);
        self.limbo.0.fetch_add(width(wide), Ordering::AcqRel);
        self.taken.0.fetch_sub(width(wide), Ordering::AcqRel);
    }

    /// Retired slots may be used again.
    pub fn take_from_limbo(&self, slot: u32, wide: bool) {
        self.free[(slot / CHUNK) as usize].fetch_or(mask(wide) << (slot % CHUNK), Ordering::AcqRel);
        self.limbo.0.fetch_sub(width(wide), Ordering::AcqRel);
    }

    /// Slots wait in limbo.
    pub fn has_limbo(&self) -> bool {
        self.limbo.0.load(Ordering::Relaxed) != 0
    }

    /// The capacity is used up (slots in limbo do not count).
    pub fn is_full(&self, wide: bool) -> bool {
        self.taken.0.load(Ordering::Relaxed) + width(wide) > self.capacity
    }

    /// Slots of the capacity that are not taken.
    pub fn left(&self) -> u32 {
        self.capacity.saturating_sub(self.taken.0.load(Ordering::Relaxed))
    }

    /// Takes the slot of a recovered entry. Only before any worker runs. `false`: beyond the capacity, or not free.
    pub fn claim(&self, slot: u32, wide: bool) -> bool {
        let bits = mask(wide) << (slot % CHUNK);
        let word = &self.free[(slot / CHUNK) as usize];
        if self.is_full(wide) || word.load(Ordering::Relaxed) & bits != bits {
            return false;
        }
        word.fetch_and(!bits, Ordering::AcqRel);
        self.taken.0.fetch_add(width(wide), Ordering::AcqRel);
        self.count_inserted(0);
        true
    }

    #[cold]
    fn refill(&self, cache: &Cache, hand: &Hand, wide: bool) -> Option<u64> {
        let need = width(wide);
        let quota = if self.left() > PLENTY * self.caches.len() as u32 {
            CHUNK
        } else {
            need
        };
        if !self.reserve(quota) {
            return None;
        }
        let (chunk, slots) = match self.take(cache, wide, quota == CHUNK) {
            Some(found) => found,
            None => {
                self.taken.0.fetch_sub(quota, Ordering::AcqRel);
                return None;
            }
        };
        self.taken.0.fetch_sub(quota - slots.count_ones(), Ordering::AcqRel);
        hand.chunk.store(chunk, Ordering::Relaxed);
        Some(slots)
    }

    /// Counts `quota` slots as taken if the capacity and the slots outside limbo allow.
    fn reserve(&self, quota: u32) -> bool {
        let limbo = self.limbo.0.load(Ordering::Acquire);
        let most = self.capacity.min(self.total.saturating_sub(limbo));
        let take = |taken: u32| (taken + quota <= most).then_some(taken + quota);
        self.taken
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, take)
            .is_ok()
    }

    /// Finds free slots from the worker's cursor on: all of one chunk, or as many as one entry needs.
    fn take(&self, cache: &Cache, wide: bool, all: bool) -> Option<(u32, u64)> {
        let chunks = self.chunks();
        let mut chunk = cache.cursor.load(Ordering::Relaxed);
        for _ in 0..chunks {
            let word = &self.free[chunk as usize];
            let mut seen = word.load(Ordering::Relaxed);
            loop {
                let begins = if wide { pairs(seen) } else { seen };
                if begins == 0 {
                    break;
                }
                let wanted = match (all, wide) {
                    (true, true) => begins | begins << 1,
                    (true, false) => begins,
                    (false, _) => mask(wide) << begins.trailing_zeros(),
                };
                match word.compare_exchange(seen, seen & !wanted, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => {
                        let next = if all { (chunk + 1) % chunks } else { chunk };
                        cache.cursor.store(next, Ordering::Relaxed);
                        return Some((chunk, wanted));
                    }
                    Err(now) => seen = now,
                }
            }
            chunk = (chunk + 1) % chunks;
        }
        None
    }
}

#[inline]
fn mask(wide: bool) -> u64 {
    if wide { 3 } else { 1 }
}

/// The bits of a chunk that stand for slots: all but in the last one.
#[inline]
fn valid_bits(chunk: u32, total: u32) -> u64 {
    match total - chunk * CHUNK {
        left if left >= CHUNK => u64::MAX,
        left => (1 << left) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn deals_the_capacity_and_no_slot_twice() {
        for (capacity, workers) in [(1, 1), (70, 1), (5000, 3)] {
            let slots = Slots::new(capacity, workers);
            let mut dealt = HashSet::new();
            for n in 0.. {
                // The last worker takes what the others' caches leave.
                let worker = if n < capacity as usize / 2 {
                    n % workers
                } else {
                    workers - 1
                };
                match slots.allocate(worker, false) {
                    Some(slot) => assert!(dealt.insert(slot), "{slot} twice"),
                    None => break,
                }
            }
            let idle = capacity as usize - dealt.len();
            assert!(idle < workers * CHUNK as usize, "{idle} of {capacity} not dealt");
            if workers == 1 {
                assert_eq!(idle, 0);
            }
        }
    }

    #[test]
    fn capacity_and_slots_of_memory_agree() {
        for capacity in (0..10_000).chain([1 << 20, 10_000_000, CAPACITY_MAX - 1]) {
            assert_eq!(Slots::capacity_of(Slots::total_for(capacity)), capacity);
        }
        assert!((Slots::total_for(CAPACITY_MAX) as u64) < 1 << 30);
    }

    #[test]
    fn wide_and_narrow_share_without_overlap() {
        let slots = Slots::new(1000, 1);
        let mut used = HashSet::new();
        for n in 0.. {
            let wide = n % 3 == 0;
            let Some(slot) = slots.allocate(0, wide) else { break };
            if wide {
                assert_eq!(slot % 2, 0);
                assert!(used.insert(slot + 1));
            }
            assert!(used.insert(slot));
        }
        assert!((998..=1000).contains(&used.len()), "{}", used.len());
    }

    #[test]
    fn limbo_does_not_count_but_is_not_dealt() {
        let slots = Slots::new(10, 1);
        let first: Vec<_> = (0..10).map(|_| slots.allocate(0, false).unwrap()).collect();
        assert!(slots.is_full(false) && slots.allocate(0, false).is_none());
        slots.put_in_limbo(false);
        let next = slots.allocate(0, false).unwrap();
        assert!(!first.contains(&next), "a slot in limbo was dealt");
        assert!(slots.allocate(0, false).is_none());
        slots.take_from_limbo(first[0], false);
        assert!(!slots.has_limbo());
    }
}
