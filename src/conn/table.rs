//! The connection table as workers use it: hash, prefetch, look up; and its bookkeeping.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use std::hash::Hasher;

use super::call_ids::{CallId, CallIds, TemplateKey};
use super::chunk::{Chunk, Chunks};
use super::entries::{Entries, SLOT_BYTES, Slot};
use super::entry::{Connection, EntryRef, Hit};
use super::epoch::Epochs;
use super::expire::{Retired, Sweeper};
pub use super::index::{Guess, Hash};
use super::index::{Index, Reference};
use super::layout::{ADDRESSES, CONTROL, Control, Direction, Kind, PORTS, TAIL_CALL_ID, TAIL_DESTINATION};
use super::slots::{CHUNK, Slots};
use super::{State, StateChange, Tick};
use crate::packet::{Family, FlowKey};
use crate::random::random;

/// Number of a worker, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(pub u16);

impl WorkerId {
    /// Not a worker: the control thread, where it counts.
    pub const CONTROL: WorkerId = WorkerId(u16::MAX);
}

/// All connections and templates. See [`crate::conn`].
pub struct ConnectionTable {
    pub(super) entries: Entries,
    pub(super) index: Index,
    pub(super) slots: Slots,
    pub(super) epochs: Epochs,
    pub(super) chunks: Chunks,
    pub(super) retired: Retired,
    /// What only one thread does at a time: sweep, list, recover. Never taken by a worker.
    pub(super) sweeper: Mutex<Sweeper>,
    /// Last generation given to a template.
    pub(super) generation: AtomicU32,
    /// No entry that gives way was found in the whole table at this tick.
    pub(super) barren: AtomicU32,
    /// Where the search for entries to replace goes on.
    pub(super) evict_cursor: AtomicU32,
    /// Connections without a client port: see [`super::helped`].
    pub(super) expected: AtomicU32,
    call_ids: CallIds,
    seed: u64,
    shared_seed: foldhash::SharedSeed,
}

impl ConnectionTable {
    /// Slots of memory that a table of this capacity needs: [`Entries`] must have that many.
    pub fn slots_for(capacity: u32) -> u32 {
        Slots::total_for(capacity)
    }

    /// A table without a file.
    pub fn anonymous(capacity: u32, workers: usize) -> io::Result<ConnectionTable> {
        let entries = Entries::anonymous(ConnectionTable::slots_for(capacity))?;
        Ok(ConnectionTable::new(entries, workers))
    }

    /// A table over entries. Those that a daemon before left in them are not in it until
    /// [`recover`](ConnectionTable::recover) is called.
    pub fn new(entries: Entries, workers: usize) -> ConnectionTable {
        let capacity = Slots::capacity_of(entries.slots().len() as u32);
        let slots = Slots::new(capacity, workers.max(1));
        let [seed, shared_seed] = [random(), random()];
        ConnectionTable {
            index: Index::new(capacity),
            epochs: Epochs::new(workers.max(1) + 1),
            chunks: Chunks::new(slots.chunks()),
            retired: Retired::default(),
            sweeper: Mutex::default(),
            generation: AtomicU32::new(0),
            barren: AtomicU32::new(u32::MAX),
            evict_cursor: AtomicU32::new(0),
            expected: AtomicU32::new(0),
            call_ids: CallIds::new(entries.boot_id().unwrap_or_else(|| u128::from(random()))),
            seed,
            shared_seed: foldhash::SharedSeed::from_u64(shared_seed),
            entries,
            slots,
        }
    }

    /// Most slots that entries may take; an IPv6 entry takes two.
    pub fn capacity(&self) -> u32 {
        self.slots.capacity()
    }

    /// Live entries, templates included.
    pub fn used(&self) -> u64 {
        self.slots.used()
    }

    /// Slots that are not taken.
    pub fn free(&self) -> u32 {
        self.slots.left()
    }

    /// Bytes of memory: entries, index and all else.
    pub fn bytes(&self) -> usize {
        self.slots().len() * SLOT_BYTES + self.index.bytes() + self.slots.bytes() + self.chunks.bytes()
    }

    /// Makes the `n`th huge page of the entries' memory: see [`Entries::make_huge_page`].
    pub fn make_huge_page(&self, n: usize) -> bool {
        self.entries.make_huge_page(n)
    }

    /// Hash of a packet's flow.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> Hash {
        self.hash_as(Kind::Connection, key, None)
    }

    #[inline]
    pub(super) fn hash_as(&self, kind: Kind, key: &FlowKey, call_id: Option<CallId>) -> Hash {
        // The quality variant mixes once more: with the fast one the keys of a NAT table, which differ in few bits,
        // clustered (the furthest of 2 M was 17 buckets away instead of 11).
        let rest = key.ports as u64 | (key.protocol.0 as u64) << 32 | (kind as u64) << 40;
        let two = |a: u64, b: u64| a as u128 | (b as u128) << 64;
        let mut hasher = foldhash::quality::FoldHasher::with_seed(self.seed, &self.shared_seed);
        match key.family {
            Family::V4 => hasher.write_u128(two(key.addresses[0], rest)),
            Family::V6 => {
                hasher.write_u128(two(key.addresses[0], key.addresses[1]));
                hasher.write_u128(two(key.addresses[2], key.addresses[3]));
                hasher.write_u64(rest);
            }
        }
        if let Some(call_id) = call_id {
            hasher.write_u64(call_id.word());
        }
        self.index.hash(hasher.finish())
    }

    /// Starts loading what a lookup of this hash reads first.
    #[inline]
    pub fn prefetch_bucket(&self, hash: Hash) {
        self.index.prefetch(hash);
    }

    /// The connection of a packet, by either direction of NAT connections. Of several that one reply matches, the newest.
    #[inline]
    pub fn lookup(&self, hash: Hash, key: &FlowKey) -> Option<Hit<'_>> {
        self.hit(self.find(hash, key)?)
    }

    /// The same from what [`guess`](super::steady::Reader::guess) said, without reading the index again.
    /// Almost always right; `None` says only that a [`lookup`](ConnectionTable::lookup) is due.
    #[inline(always)]
    pub fn confirm(&self, guess: Guess, key: &FlowKey) -> Option<Hit<'_>> {
        let reference = guess.reference()?;
        let slot = self.slots().get(reference.slot() as usize)?;
        let seen = Control(slot.words[CONTROL].load(Ordering::Relaxed));
        if !seen.has_key_bits(Control::key_bits(Kind::Connection, key)) || !has_key(self.slots(), slot, reference, key)
        {
            return None;
        }
        Some(Hit {
            entry: EntryRef { table: self, slot },
            direction: reference.direction(),
            seen,
        })
    }

    #[inline]
    fn hit(&self, reference: Reference) -> Option<Hit<'_>> {
        Some(Hit::of(self.entry(reference.slot())?, reference.direction()))
    }

    /// The template of a service for a client.
    pub fn lookup_template(&self, key: &TemplateKey) -> Option<EntryRef<'_>> {
        let hash = self.hash_as(Kind::Template, &key.flow, key.call_id);
        let found = self.index.find(hash, |r| is_template(self.slots(), r, key))?;
        self.entry(found.slot())
    }

    /// What a template keeps of the Call-ID of a SIP message.
    pub fn call_id(&self, text: &[u8]) -> CallId {
        self.call_ids.digest(text)
    }

    /// Keeps its text aside, for listings.
    pub fn note_call_id(&self, id: CallId, text: &[u8]) {
        self.call_ids.note(id, text);
    }

    /// The text of a Call-ID, if it is one of the last that were seen.
    pub fn call_id_text(&self, id: CallId) -> Option<Vec<u8>> {
        self.call_ids.text(id)
    }

    /// From now on the texts of Call-IDs are kept: for the control thread, when a service has the persistence engine `sip`.
    pub fn keep_call_ids(&self) {
        self.call_ids.make_room();
    }

    /// One look says that it is no connection's: so of most that begin one. `false`: look it up.
    #[inline(always)]
    pub fn is_absent(&self, hash: Hash) -> bool {
        self.index.is_absent(hash)
    }

    #[inline]
    fn find(&self, hash: Hash, key: &FlowKey) -> Option<Reference> {
        let slots = self.slots();
        let key_bits = Control::key_bits(Kind::Connection, key);
        self.index.find(hash, |r| is_it(slots, r, key_bits, key))
    }

    #[inline]
    pub(super) fn slots(&self) -> &[Slot] {
        self.entries.slots()
    }

    #[inline]
    pub(super) fn entry(&self, number: u32) -> Option<EntryRef<'_>> {
        let slot = self.slots().get(number as usize)?;
        Some(EntryRef { table: self, slot })
    }

    /// The worker holds nothing that it looked up before. Once a batch.
    #[inline]
    pub fn quiescent(&self, worker: WorkerId) {
        self.epochs.quiescent(worker.0 as usize);
    }

    /// The worker holds nothing and goes to sleep. Workers begin offline.
    pub fn offline(&self, worker: WorkerId) {
        self.epochs.offline(worker.0 as usize);
    }

    /// The worker is awake. Must be called before its first lookup.
    pub fn online(&self, worker: WorkerId) {
        self.epochs.online(worker.0 as usize);
    }

    /// Whether an entry of any kind fits without another's end.
    pub fn has_room(&self) -> bool {
        !self.slots.is_full(true)
    }

    /// Whether the worker has said that it is awake.
    pub fn is_online(&self, worker: WorkerId) -> bool {
        self.epochs.is_online(worker.0 as usize)
    }

    /// Calls `each` with a copy of every entry that lives. For the control thread; not of one moment: entries may come
    /// and go meanwhile.
    pub fn for_each(&self, mut each: impl FnMut(&Connection)) {
        let reader = self.slots.workers();
        let guard = self.sweeper.lock().unwrap_or_else(|e| e.into_inner());
        let mut copies = Vec::with_capacity(CHUNK as usize);
        for chunk in 0..self.slots.chunks() {
            self.epochs.online(reader);
            self.live_in(chunk, |entry| copies.extend(entry.read()));
            self.epochs.offline(reader);
            copies.drain(..).for_each(|c| each(&c));
        }
        drop(guard);
    }

    /// Entries that live in a chunk. The caller is online, or the only thread.
    pub(super) fn live_in<'t>(&'t self, chunk: u32, mut each: impl FnMut(EntryRef<'t>)) {
        let mut bits = self.slots.occupied(chunk);
        while bits != 0 {
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            let Some(entry) = self.entry(chunk * CHUNK + bit) else {
                return;
            };
            // Acquire: a valid control word comes after the rest of the entry.
            let control = Control(entry.slot.words[CONTROL].load(Ordering::Acquire));
            if control.kind().is_some() {
                each(entry);
            }
        }
    }

    /// Writes state and deadline as `next` says of the present state, unless the entry is retired.
    #[cold]
    pub(super) fn write_touch(
        &self,
        entry: &EntryRef<'_>,
        seen: Control,
        next: impl Fn(State) -> (State, Tick),
    ) -> Option<StateChange> {
        let mut seen = seen;
        loop {
            seen.kind()?;
            let (from, (to, deadline)) = (seen.state(), next(seen.state()));
            match self.exchange_control(entry, seen, seen.with_state(to).with_deadline(deadline)) {
                Ok(()) => {
                    self.chunk_of(entry.number()).count_giving_way(from, to);
                    return (from != to).then_some(StateChange { from, to });
                }
                Err(now) => seen = now,
            }
        }
    }

    /// Writes the control word, as one touch more, of an entry that has still the one that was seen; its chunk hears of an earlier
    /// deadline. `Err`: the one that it has.
    #[inline]
    pub(super) fn exchange_control(&self, entry: &EntryRef<'_>, seen: Control, new: Control) -> Result<(), Control> {
        let word = &entry.slot.words[CONTROL];
        word.compare_exchange(seen.0, new.touched().0, Ordering::AcqRel, Ordering::Relaxed)
            .map_err(Control)?;
        if new.deadline() < seen.deadline() {
            self.chunk_of(entry.number()).expires_at(new.deadline());
        }
        Ok(())
    }

    #[inline]
    pub(super) fn chunk_of(&self, number: u32) -> &Chunk {
        self.chunks.get(number / CHUNK)
    }
}

/// The entry at this reference is a live template with this key.
pub(super) fn is_template(slots: &[Slot], reference: Reference, key: &TemplateKey) -> bool {
    let key_bits = Control(Control::key_bits(Kind::Template, &key.flow));
    let Some(call_id) = key.call_id else {
        return is_it(slots, reference, key_bits.0, &key.flow);
    };
    is_it(slots, reference, key_bits.with_call_id().0, &key.flow)
        && call_id_at(slots, reference.slot()) == Some(call_id)
}

/// The Call-ID of the template in this slot, which has one.
pub(super) fn call_id_at(slots: &[Slot], number: u32) -> Option<CallId> {
    let tail = slots.get(number as usize + 1)?;
    CallId::from_word(tail.words[TAIL_CALL_ID].load(Ordering::Relaxed))
}

/// The entry at this reference is live and has this key in this direction.
#[inline]
pub(super) fn is_it(slots: &[Slot], reference: Reference, key_bits: u64, key: &FlowKey) -> bool {
    let Some(slot) = slots.get(reference.slot() as usize) else {
        return false;
    };
    let control = Control(slot.words[CONTROL].load(Ordering::Relaxed));
    control.has_key_bits(key_bits) && has_key(slots, slot, reference, key)
}

/// The addresses and ports of the slot at this reference, in its direction, are the key's.
#[inline(always)]
fn has_key(slots: &[Slot], slot: &Slot, reference: Reference, key: &FlowKey) -> bool {
    let word = |n: usize| slot.words[n].load(Ordering::Relaxed);
    let direction = reference.direction();
    let shift = match direction {
        Direction::Forward => 32,
        Direction::Reply => 0,
    };
    if (word(PORTS) >> shift) as u32 != key.ports {
        return false;
    }
    let a = &key.addresses;
    match (key.family, direction) {
        (Family::V4, _) => word(ADDRESSES + direction as usize) == a[0],
        (Family::V6, Direction::Forward) => (0..4).all(|n| word(ADDRESSES + n) == a[n]),
        (Family::V6, Direction::Reply) => {
            let Some(tail) = slots.get(reference.slot() as usize + 1) else {
                return false;
            };
            let tail_word = |n: usize| tail.words[n].load(Ordering::Relaxed);
            tail_word(TAIL_DESTINATION) == a[0]
                && tail_word(TAIL_DESTINATION + 1) == a[1]
                && word(ADDRESSES) == a[2]
                && word(ADDRESSES + 1) == a[3]
        }
    }
}
