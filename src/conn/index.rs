//! From the hash of a key to the slots that may hold it: buckets of one cache line, looked up without a lock.
//!
//! A key's place is its home bucket or one of the next [`PROBES_MAX`] - 1; each bucket counts the references that went
//! past it, so a search stops where none did. References never move but among equal keys, so a search races with
//! insertion and removal of the very key only. Whoever changes a bucket holds its lock; locks are taken upwards, so
//! nobody waits in a circle.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::entries::{advise_huge_pages, equal_lanes};
use super::layout::Direction;
use crate::prefetch;

/// References a bucket holds.
pub const LANES: usize = 8;
/// Buckets a key may be in. With a full table of NAT connections the furthest of 20 M keys was 10 away from its home.
pub const PROBES_MAX: usize = 32;
/// Buckets per slot, in 1/16: the two keys of each NAT connection fill them to 57 %; 1.7 % of keys are not at home.
const BUCKETS_PER_16_SLOTS: usize = 7;

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

/// Hash of a key, as the index asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// The bucket that a search reads first.
    home: u32,
    /// Never 0, which marks an empty lane.
    tag: u16,
}

impl Hash {
    /// Of nothing.
    pub const NONE: Hash = Hash { home: 0, tag: 1 };
}

/// What a search will most likely find: see `Index::first_guess`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess(u32);

impl Guess {
    /// None: search.
    pub const NONE: Guess = Guess(Reference::EMPTY);

    /// Beyond all slots when there is no guess.
    #[inline(always)]
    pub(super) fn slot(self) -> u32 {
        (self.0 >> 1).wrapping_sub(1)
    }

    #[inline(always)]
    pub(super) fn direction(self) -> Direction {
        Reference(self.0).direction()
    }

    #[inline]
    pub(super) fn reference(self) -> Option<Reference> {
        (self.0 != Reference::EMPTY).then_some(Reference(self.0))
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
        let [low, high] = self.tag_words();
        equal_lanes(low, high, tag)
    }

    /// The reference in the lowest of these lanes.
    #[inline(always)]
    fn first(&self, lanes: u32) -> u32 {
        // Acquire: the entry's words were written before its reference.
        self.references[lanes.trailing_zeros() as usize % LANES].load(Ordering::Acquire)
    }

    /// The first reference with this tag that `is_it` takes.
    #[inline(always)]
    fn find(&self, tag: u16, mut is_it: impl FnMut(Reference) -> bool) -> Option<Reference> {
        let mut lanes = self.matches(tag);
        while lanes != 0 {
            let reference = self.first(lanes);
            if reference != Reference::EMPTY && is_it(Reference(reference)) {
                return Some(Reference(reference));
            }
            lanes &= lanes - 1;
        }
        None
    }

    /// Fills a lane that is empty. The bucket is locked.
    fn fill(&self, lane: usize, tag: u16, reference: Reference) {
        // Release: whoever finds the reference finds the entry's words.
        self.references[lane].store(reference.0, Ordering::Release);
        self.write_tag(lane, tag);
    }

    /// Empties a lane. The bucket is locked.
    fn clear(&self, lane: usize) {
        self.write_tag(lane, 0);
        self.references[lane].store(Reference::EMPTY, Ordering::Release);
    }

    fn write_tag(&self, lane: usize, tag: u16) {
        let word = &self.tags[lane / 4];
        let shift = lane % 4 * 16;
        let others = word.load(Ordering::Relaxed) & !(0xffff << shift);
        word.store(others | (tag as u64) << shift, Ordering::Release);
    }

    /// The first lane without a reference. The bucket is locked.
    fn empty_lane(&self) -> Option<usize> {
        let lanes = self.matches(0);
        (lanes != 0).then(|| lanes.trailing_zeros() as usize % LANES)
    }

    /// The same, when no lane has this tag. The bucket is locked.
    #[inline(always)]
    fn lane_for_first(&self, tag: u16) -> Option<usize> {
        let [low, high] = self.tag_words();
        let empty = equal_lanes(low, high, 0);
        (empty != 0 && equal_lanes(low, high, tag) == 0).then(|| empty.trailing_zeros() as usize % LANES)
    }

    #[inline(always)]
    fn tag_words(&self) -> [u64; 2] {
        [&self.tags[0], &self.tags[1]].map(|word| word.load(Ordering::Relaxed))
    }

    fn lane_of(&self, reference: u32) -> Option<usize> {
        self.references
            .iter()
            .position(|r| r.load(Ordering::Relaxed) == reference)
    }

    /// Counts one reference more or less that went past. The bucket is locked.
    fn count_overflow(&self, more: bool) {
        let control = self.control.load(Ordering::Relaxed);
        let changed = if more { control + 1 } else { control - 1 };
        self.control.store(changed, Ordering::Relaxed);
    }

    /// `false`: the holder does not run.
    fn lock(&self) -> bool {
        for round in 1..=LOCK_TRIES {
            let free = self.control.load(Ordering::Relaxed) & !LOCK;
            let taken = self
                .control
                .compare_exchange_weak(free, free | LOCK, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_ok() {
                return true;
            }
            std::hint::spin_loop();
            if round.is_multiple_of(1000) {
                // The holder was preempted, on this CPU perhaps.
                std::thread::yield_now();
            }
        }
        false
    }

    fn unlock(&self) {
        let control = self.control.load(Ordering::Relaxed);
        self.control.store(control & !LOCK, Ordering::Release);
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
        let homes = (slots as usize * BUCKETS_PER_16_SLOTS).div_ceil(16).max(1);
        let count = homes + PROBES_MAX - 1;
        let mut buckets = Vec::with_capacity(count);
        advise_huge_pages(buckets.spare_capacity_mut());
        buckets.resize_with(count, Bucket::default);
        Index {
            buckets,
            homes: homes as u64,
        }
    }

    /// Every bucket.
    #[inline]
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.buckets[..])
    }

    /// From the hashed bits of a key: the upper half chooses the bucket, the lowest 16 are the tag.
    #[inline(always)]
    pub fn hash(&self, bits: u64) -> Hash {
        Hash {
            home: (((bits >> 32) * self.homes) >> 32) as u32,
            tag: bits as u16 | 1,
        }
    }

    /// Starts loading what a search of this hash reads first.
    #[inline(always)]
    pub fn prefetch(&self, hash: Hash) {
        prefetch::to_read(&self.buckets, hash.home as usize);
    }

    /// Starts loading what an insertion of this hash writes to, most likely.
    #[inline(always)]
    pub fn prefetch_for_insertion(&self, hash: Hash) {
        prefetch::to_write(&self.buckets, hash.home as usize);
    }

    /// The first reference that a search of this hash looks at.
    #[inline(always)]
    pub fn first_guess(buckets: &[Bucket], hash: Hash) -> Guess {
        let bucket = &buckets[hash.home as usize];
        let lanes = bucket.matches(hash.tag);
        if lanes != 0 {
            Guess(bucket.first(lanes))
        } else if bucket.overflows() {
            Index::guess_beyond_home(buckets, hash)
        } else {
            // It is of no connection, and may begin one.
            prefetch::to_write(buckets, hash.home as usize);
            Guess::NONE
        }
    }

    #[cold]
    fn guess_beyond_home(buckets: &[Bucket], hash: Hash) -> Guess {
        for pair in buckets[hash.home as usize..][..PROBES_MAX].windows(2) {
            if !pair[0].overflows() {
                break;
            }
            let lanes = pair[1].matches(hash.tag);
            if lanes != 0 {
                return Guess(pair[1].first(lanes));
            }
        }
        Guess::NONE
    }

    /// The buckets where a key may be, home first.
    #[inline]
    fn probes(&self, hash: Hash) -> &[Bucket; PROBES_MAX] {
        let probes = self.buckets[hash.home as usize..].first_chunk();
        probes.expect("as many buckets as probes follow the last home")
    }

    /// One look says that there is no reference with this hash: so of most that have none.
    #[inline(always)]
    pub fn is_absent(&self, hash: Hash) -> bool {
        let home = &self.probes(hash)[0];
        home.matches(hash.tag) == 0 && !home.overflows()
    }

    /// The first reference with this hash's tag that `is_it` takes.
    #[inline(never)]
    pub fn find(&self, hash: Hash, mut is_it: impl FnMut(Reference) -> bool) -> Option<Reference> {
        for bucket in self.probes(hash) {
            let found = bucket.find(hash.tag, &mut is_it);
            if found.is_some() || !bucket.overflows() {
                return found;
            }
        }
        None
    }

    /// Inserts a key that must be there once only. Where one look at its home does not say that it is absent, `find` looks for it in
    /// this index, and changes nothing there: the home is locked. `publish` runs when it is sure that the key is new, before anyone
    /// can find the reference.
    #[inline(always)]
    pub fn insert_unique(
        &self,
        hash: Hash,
        reference: Reference,
        find: impl FnOnce() -> Option<Reference>,
        publish: impl FnOnce(),
    ) -> Result<(), Refused> {
        let mut window = self.window(hash).ok_or(Refused::NoRoom)?;
        let home = window.last();
        if let Some(lane) = home.lane_for_first(hash.tag)
            && !home.overflows()
        {
            publish();
            home.fill(lane, hash.tag, reference);
            return Ok(());
        }
        if let Some(there) = find() {
            return Err(Refused::Exists(there));
        }
        publish();
        window.place(hash.tag, reference).map(|_| ()).ok_or(Refused::NoRoom)
    }

    /// Inserts a key that may be there: of several the newest is found first, as in the kernel's lists.
    pub fn insert_newest(
        &self,
        hash: Hash,
        reference: Reference,
        mut is_same: impl FnMut(Reference) -> bool,
    ) -> Result<(), Refused> {
        let mut window = self.window(hash).ok_or(Refused::NoRoom)?;
        let home = window.last();
        if let Some(lane) = home.lane_for_first(hash.tag) {
            home.fill(lane, hash.tag, reference);
            return Ok(());
        }
        let place = window.place(hash.tag, reference).ok_or(Refused::NoRoom)?;
        // Each older one before that place moves to the place of the next older, and the oldest of them to that place.
        let mut carried = reference;
        for (distance, bucket) in window.buckets[..=place.0].iter().enumerate() {
            let mut lanes = bucket.matches(hash.tag);
            while lanes != 0 {
                let lane = lanes.trailing_zeros() as usize % LANES;
                lanes &= lanes - 1;
                let there = bucket.references[lane].load(Ordering::Relaxed);
                let is_place = (distance, lane) == place;
                if is_place || there != Reference::EMPTY && is_same(Reference(there)) {
                    bucket.references[lane].store(carried.0, Ordering::Release);
                    carried = Reference(there);
                }
                if is_place {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes the reference out. `false`: a lock's holder does not run, try again later.
    pub fn remove(&self, hash: Hash, reference: Reference) -> bool {
        let Some(mut window) = self.window(hash) else {
            return false;
        };
        loop {
            let last = window.last();
            if let Some(lane) = last.lane_of(reference.0) {
                last.clear(lane);
                let passed = &window.buckets[..window.locked - 1];
                passed.iter().for_each(|bucket| bucket.count_overflow(false));
                return true;
            }
            if !last.overflows() || window.locked == PROBES_MAX {
                return true; // it is not there
            }
            if !window.lock_next() {
                return false;
            }
        }
    }

    /// Locks the home bucket.
    #[inline(always)]
    fn window(&self, hash: Hash) -> Option<Window<'_>> {
        let mut window = Window {
            buckets: self.probes(hash),
            locked: 0,
        };
        window.lock_next().then_some(window)
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

/// The buckets where a key may be, the first ones locked.
struct Window<'a> {
    buckets: &'a [Bucket; PROBES_MAX],
    locked: usize,
}

impl Window<'_> {
    /// The last locked one; the home bucket is always.
    fn last(&self) -> &Bucket {
        &self.buckets[self.locked - 1]
    }

    fn lock_next(&mut self) -> bool {
        let locked = self.buckets[self.locked].lock();
        self.locked += locked as usize;
        locked
    }

    /// Fills the first empty lane. Returns bucket and lane, `None` when all are full or a lock's holder does not run.
    #[inline(never)]
    fn place(&mut self, tag: u16, reference: Reference) -> Option<(usize, usize)> {
        loop {
            let distance = self.locked - 1;
            if let Some(lane) = self.last().empty_lane() {
                // Before the reference can be found: a search must come this far.
                self.buckets[..distance]
                    .iter()
                    .for_each(|bucket| bucket.count_overflow(true));
                self.last().fill(lane, tag, reference);
                return Some((distance, lane));
            }
            if self.locked == PROBES_MAX || !self.lock_next() {
                return None;
            }
        }
    }
}

impl Drop for Window<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.locked == 1 {
            return self.buckets[0].unlock();
        }
        self.buckets[..self.locked].iter().for_each(Bucket::unlock);
    }
}
