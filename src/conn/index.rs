//! From the hash of a key to the slots that may hold it: buckets of one cache line, looked up without a lock.
//!
//! A key's place is its home bucket or one of the next [`PROBES_MAX`] - 1; each bucket counts the references that went
//! past it, so a search stops where none did. References never move, so a search races with insertion and removal of
//! the very key only. Inserting and removing a key take the lock of its home bucket; lanes of further buckets are
//! taken by compare-exchange.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::entries::{advise_huge_pages, equal_lanes};
use super::layout::Direction;

/// References a bucket holds.
pub const LANES: usize = 8;
/// Buckets a key may be in. At two keys an entry and a full table, the furthest of 20 M keys was 14 away.
pub const PROBES_MAX: usize = 16;
/// Buckets per slot, in 1/8: two keys an entry fill them to two thirds.
const BUCKETS_PER_8_SLOTS: usize = 3;

const LOCK: u32 = 1 << 31;
/// Tries for a lock; the holder does well under a microsecond of work unless it is preempted.
const LOCK_TRIES: u32 = 20_000;

/// A slot and which of its keys the bucket's key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference(u32);

impl Reference {
    const EMPTY: u32 = 0;

    #[inline]
    pub fn new(slot: u32, direction: Direction) -> Reference {
        Reference((slot + 1) << 1 | direction as u32)
    }

    #[inline]
    pub fn slot(self) -> u32 {
        (self.0 >> 1) - 1
    }

    #[inline]
    pub fn direction(self) -> Direction {
        if self.0 & 1 == 0 {
            Direction::Forward
        } else {
            Direction::Reply
        }
    }
}

/// Why a key was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is there.
    Exists(Reference),
    /// All its buckets are full, or the lock's holder does not run.
    NoRoom,
}

/// Hash of a key: the upper half chooses the bucket, the lowest 16 bits are the tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash(pub(super) u64);

impl Hash {
    /// Never 0, which marks an empty lane.
    #[inline]
    fn tag(self) -> u16 {
        (self.0 as u16).max(1)
    }
}

#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Bucket {
    /// Eight tags of 16 bits; lane 0 is the lowest of the first word.
    tags: [AtomicU64; 2],
    references: [AtomicU32; LANES],
    /// [`LOCK`], and how many references went past this bucket.
    control: AtomicU32,
    _spare: [AtomicU32; 3],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// Bit n: lane n has this tag. May have bits too many, never too few.
    #[inline]
    fn matches(&self, tag: u16) -> u32 {
        let low = self.tags[0].load(Ordering::Relaxed);
        let high = self.tags[1].load(Ordering::Relaxed);
        equal_lanes(low, high, tag)
    }

    fn set_tag(&self, lane: usize, tag: u16) {
        // The lane's owner found it 0.
        self.tags[lane / 4].fetch_or((tag as u64) << (lane % 4 * 16), Ordering::Release);
    }

    fn clear_tag(&self, lane: usize) {
        self.tags[lane / 4].fetch_and(!(0xffff << (lane % 4 * 16)), Ordering::Release);
    }

    #[inline]
    fn overflows(&self) -> bool {
        self.control.load(Ordering::Relaxed) & !LOCK != 0
    }
}

#[derive(Debug)]
pub struct Index {
    /// Home buckets, then [`PROBES_MAX`] - 1 for the last ones to overflow into.
    buckets: Vec<Bucket>,
    homes: u64,
}

impl Index {
    /// An empty index for that many slots.
    pub fn new(slots: u32) -> Index {
        let homes = (slots as usize * BUCKETS_PER_8_SLOTS).div_ceil(8).max(1);
        let count = homes + PROBES_MAX - 1;
        let mut buckets = Vec::with_capacity(count);
        advise_huge_pages(buckets.spare_capacity_mut());
        buckets.resize_with(count, Bucket::default);
        Index {
            buckets,
            homes: homes as u64,
        }
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.buckets[..])
    }

    #[inline]
    fn home(&self, hash: Hash) -> usize {
        (((hash.0 >> 32) * self.homes) >> 32) as usize
    }

    /// The bucket that a search for this hash reads first.
    #[inline]
    pub fn home_bucket(&self, hash: Hash) -> &Bucket {
        &self.buckets[self.home(hash)]
    }

    /// What a search will most likely look at first.
    #[inline]
    pub fn first_guess(&self, hash: Hash) -> Option<Reference> {
        let bucket = self.home_bucket(hash);
        let lanes = bucket.matches(hash.tag());
        if lanes == 0 {
            return None;
        }
        let reference = bucket.references[lanes.trailing_zeros() as usize % LANES].load(Ordering::Relaxed);
        (reference != Reference::EMPTY).then_some(Reference(reference))
    }

    /// The first reference with this hash's tag that `is_it` takes.
    #[inline]
    pub fn find(&self, hash: Hash, mut is_it: impl FnMut(Reference) -> bool) -> Option<Reference> {
        let home = self.home(hash);
        let tag = hash.tag();
        for bucket in &self.buckets[home..home + PROBES_MAX] {
            let mut lanes = bucket.matches(tag);
            while lanes != 0 {
                let lane = lanes.trailing_zeros() as usize % LANES;
                // Acquire: the entry's words were written before its reference.
                let reference = bucket.references[lane].load(Ordering::Acquire);
                if reference != Reference::EMPTY && is_it(Reference(reference)) {
                    return Some(Reference(reference));
                }
                lanes &= lanes - 1;
            }
            if !bucket.overflows() {
                return None;
            }
        }
        None
    }

    /// Inserts a key that must be there once only. `publish` runs when it is sure that the key is new and there is room,
    /// before anyone can find the reference.
    pub fn insert_unique(
        &self,
        hash: Hash,
        reference: Reference,
        is_same: impl FnMut(Reference) -> bool,
        publish: impl FnOnce(),
    ) -> Result<(), Refused> {
        let home = self.home(hash);
        let _lock = self.lock(home).ok_or(Refused::NoRoom)?;
        if let Some(there) = self.find(hash, is_same) {
            return Err(Refused::Exists(there));
        }
        publish();
        self.place(home, hash.tag(), reference).map(|_| ())
    }

    /// Inserts a key that may be there: of several the newest is found first, as in the kernel's lists.
    pub fn insert_newest(
        &self,
        hash: Hash,
        reference: Reference,
        mut is_same: impl FnMut(Reference) -> bool,
    ) -> Result<(), Refused> {
        let home = self.home(hash);
        let _lock = self.lock(home).ok_or(Refused::NoRoom)?;
        let tag = hash.tag();
        let (last_bucket, last_lane) = self.place(home, tag, reference)?;
        // Each older one before that lane moves to the place of the next older, and the oldest of them to that lane.
        let mut carried = reference;
        for (distance, bucket) in self.buckets[home..=home + last_bucket].iter().enumerate() {
            let mut lanes = bucket.matches(tag);
            while lanes != 0 {
                let lane = lanes.trailing_zeros() as usize % LANES;
                if (distance, lane) == (last_bucket, last_lane) {
                    bucket.references[lane].store(carried.0, Ordering::Release);
                    return Ok(());
                }
                let there = bucket.references[lane].load(Ordering::Acquire);
                if there != Reference::EMPTY && is_same(Reference(there)) {
                    bucket.references[lane].store(carried.0, Ordering::Release);
                    carried = Reference(there);
                }
                lanes &= lanes - 1;
            }
        }
        Ok(())
    }

    /// Takes the first free lane from `home` on. The home bucket is locked.
    /// Returns its distance in buckets and its number.
    fn place(&self, home: usize, tag: u16, reference: Reference) -> Result<(usize, usize), Refused> {
        let buckets = &self.buckets[home..home + PROBES_MAX];
        for (distance, bucket) in buckets.iter().enumerate() {
            for (lane, there) in bucket.references.iter().enumerate() {
                if there.load(Ordering::Relaxed) != Reference::EMPTY {
                    continue;
                }
                let taken = there.compare_exchange(Reference::EMPTY, reference.0, Ordering::AcqRel, Ordering::Relaxed);
                if taken.is_ok() {
                    bucket.set_tag(lane, tag);
                    return Ok((distance, lane));
                }
            }
            if distance + 1 < PROBES_MAX {
                bucket.control.fetch_add(1, Ordering::AcqRel);
            }
        }
        for bucket in &buckets[..PROBES_MAX - 1] {
            bucket.control.fetch_sub(1, Ordering::AcqRel);
        }
        Err(Refused::NoRoom)
    }

    /// Takes the reference out. `false`: the lock's holder does not run, try again later.
    pub fn remove(&self, hash: Hash, reference: Reference) -> bool {
        let home = self.home(hash);
        let Some(_lock) = self.lock(home) else { return false };
        let buckets = &self.buckets[home..home + PROBES_MAX];
        for (distance, bucket) in buckets.iter().enumerate() {
            for (lane, there) in bucket.references.iter().enumerate() {
                if there.load(Ordering::Relaxed) == reference.0 {
                    // The tag first: a lane with an empty reference is anybody's.
                    bucket.clear_tag(lane);
                    there.store(Reference::EMPTY, Ordering::Release);
                    for passed in &buckets[..distance] {
                        passed.control.fetch_sub(1, Ordering::AcqRel);
                    }
                    return true;
                }
            }
        }
        true
    }

    fn lock(&self, home: usize) -> Option<Lock<'_>> {
        let control = &self.buckets[home].control;
        for round in 1..=LOCK_TRIES {
            if control.load(Ordering::Relaxed) & LOCK == 0 && control.fetch_or(LOCK, Ordering::Acquire) & LOCK == 0 {
                return Some(Lock { control });
            }
            std::hint::spin_loop();
            if round.is_multiple_of(1000) {
                // The holder was preempted, on this CPU perhaps.
                std::thread::yield_now();
            }
        }
        None
    }

    /// References in the index, for tests.
    #[cfg(test)]
    pub fn references(&self) -> usize {
        let used = |b: &Bucket| b.references.iter().filter(|r| r.load(Ordering::Relaxed) != 0).count();
        self.buckets.iter().map(used).sum()
    }

    /// No lock held, and overflow counts that no reference needs, for tests.
    #[cfg(test)]
    pub fn control_sum(&self) -> u64 {
        self.buckets
            .iter()
            .map(|b| b.control.load(Ordering::Relaxed) as u64)
            .sum()
    }
}

struct Lock<'a> {
    control: &'a AtomicU32,
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        self.control.fetch_and(!LOCK, Ordering::Release);
    }
}
