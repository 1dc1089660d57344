//! The end of entries: retiring, the sweep, and bringing slots back to use.
//!
//! Retiring is a mark on the entry that exactly one thread sets, and a push on a list: a worker does that without a lock.
//! [`ConnectionTable::reclaim`] then takes entries off the index in groups, and frees the slots of a group when every worker has
//! passed a batch boundary since. The control thread does that with every sweep; a worker only when it needs a slot.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::entry::{Connection, EntryRef};
use super::epoch::Padded;
use super::index::Reference;
use super::insert::reply_key;
use super::layout::{CONTROL, Control, Direction, Kind, LINK, TAIL_CONTROLLED, TEMPLATE};
use super::slots::CHUNK;
use super::table::ConnectionTable;
use super::time::ticks_of_seconds;
use super::{State, Tick};

/// What still controls connections when its time is over lasts this long from then on, as in the kernel.
const CONTROLLER_REARM_TICKS: u32 = ticks_of_seconds(60);
/// Retired entries that one step takes off the index.
const GROUP_MAX: usize = 256;
/// Groups that wait for the workers.
const GROUPS_MAX: usize = 32;
/// Chunks that were passed without being read and cost as much as one entry read.
const CHUNKS_PASSED_PER_ENTRY: usize = 8;

/// Retired entries: a list through their link words, by slot + 1.
#[derive(Debug, Default)]
pub(super) struct Retired {
    newest: Padded<AtomicU32>,
    waiting: Mutex<Waiting>,
}

/// Off the list. Only ever locked by trying.
#[derive(Debug, Default)]
struct Waiting {
    /// To be taken off the index.
    pending: u32,
    /// Off the index, oldest first.
    groups: [Group; GROUPS_MAX],
    count: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Group {
    first: u32,
    epoch: u64,
}

/// Where the sweep goes on.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    cursor: u32,
}

/// What a call of [`ConnectionTable::sweep`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Entries that expired.
    pub expired: usize,
    /// Every chunk was looked at: nothing that is due is left.
    pub complete: bool,
}

impl ConnectionTable {
    /// Expires entries whose deadline has come, reading about `budget` entries at most, and goes on next time where it
    /// stopped. `on_expire` gets each expired one, to take it off its destination's numbers. For the control
    /// thread, about ten times a second.
    pub fn sweep(&self, now: Tick, budget: usize, on_expire: &mut dyn FnMut(&Connection)) -> SweepReport {
        let mut sweeper = self.sweeper.lock().unwrap_or_else(|e| e.into_inner());
        let chunks = self.slots.chunks();
        let mut report = SweepReport::default();
        let mut spent = 0;
        for passed in 0..chunks as usize {
            if spent + passed / CHUNKS_PASSED_PER_ENTRY >= budget {
                break;
            }
            let chunk = sweeper.cursor;
            sweeper.cursor = (chunk + 1) % chunks;
            report.complete = passed + 1 == chunks as usize;
            if self.chunks.get(chunk).next_deadline() <= now {
                spent += CHUNK as usize;
                report.expired += self.sweep_chunk(chunk, now, on_expire);
                self.reclaim(GROUP_MAX);
            }
        }
        while self.reclaim(GROUP_MAX) {}
        report
    }

    fn sweep_chunk(&self, chunk: u32, now: Tick, on_expire: &mut dyn FnMut(&Connection)) -> usize {
        let reader = self.slots.workers();
        self.epochs.online(reader);
        // Forget first, then read: a deadline that comes nearer meanwhile is noted after this, or read below.
        let known = self.chunks.get(chunk);
        known.forget();
        let mut next = Tick(u32::MAX);
        let mut expired = 0;
        self.live_in(chunk, |entry| {
            let is_due = entry.deadline() <= now && !self.keep_controller(&entry, now);
            if is_due && let Some(connection) = self.retire(entry, |control| control.deadline() <= now) {
                // It is taken off the index in a moment.
                self.prefetch_buckets_of(entry, entry.control());
                on_expire(&connection);
                expired += 1;
                return;
            }
            if entry.is_live() {
                next = next.min(entry.deadline());
            }
        });
        known.expires_at(next);
        self.epochs.offline(reader);
        expired
    }

    /// What controls connections goes on.
    fn keep_controller(&self, entry: &EntryRef<'_>, now: Tick) -> bool {
        if entry.controlled() == 0 {
            return false;
        }
        entry.extend(now, CONTROLLER_REARM_TICKS);
        true
    }

    /// Ends an entry now. `None`: it has ended already. Else the caller takes it off its destination's numbers.
    pub fn remove(&self, entry: EntryRef<'_>) -> Option<Connection> {
        self.retire(entry, |_| true)
    }

    /// Marks the entry retired if it lives and `condition` holds at that moment.
    pub(super) fn retire(&self, entry: EntryRef<'_>, condition: impl Fn(Control) -> bool) -> Option<Connection> {
        let word = &entry.slot.words[CONTROL];
        let mut seen = Control(word.load(Ordering::Acquire));
        let kind = loop {
            let kind = seen.kind()?;
            if !condition(seen) {
                return None;
            }
            match word.compare_exchange(seen.0, seen.retired().0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break kind,
                Err(now) => seen = Control(now),
            }
        };
        let connection = entry.read_as(kind, seen);
        self.chunk_of(entry.number())
            .count_giving_way(seen.state(), State::None);
        self.count_expected(kind, entry, -1);
        if kind == Kind::Connection {
            self.control_one_less(entry.slot.words[TEMPLATE].load(Ordering::Relaxed));
        }
        self.slots.put_in_limbo(seen.is_wide());
        self.push_retired(entry.number(), seen.is_wide());
        Some(connection)
    }

    fn push_retired(&self, number: u32, wide: bool) {
        let link = self.link(number, wide);
        let push = |newest: u32| {
            link.store(newest as u64, Ordering::Relaxed);
            Some(number + 1)
        };
        // Never fails: the closure always gives a value.
        let _previous = self
            .retired
            .newest
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, push);
    }

    fn link(&self, number: u32, wide: bool) -> &AtomicU64 {
        &self.slots()[number as usize + wide as usize].words[LINK]
    }

    /// Takes up to `limit` retired entries off the index, and frees the slots of those that no worker can hold any
    /// more. `true`: there is more to take off, and it makes sense to call again at once.
    pub(super) fn reclaim(&self, limit: usize) -> bool {
        let Ok(mut waiting) = self.retired.waiting.try_lock() else {
            return false; // someone else is at it
        };
        self.free_passed(&mut waiting);
        let more = self.unlink(&mut waiting, limit);
        self.free_passed(&mut waiting);
        more
    }

    fn unlink(&self, waiting: &mut Waiting, limit: usize) -> bool {
        if waiting.pending == 0 {
            waiting.pending = self.retired.newest.0.swap(0, Ordering::AcqRel);
        }
        // One group more; when there are too many, the newest grows, and waits longer.
        let slot = waiting.count.min(GROUPS_MAX - 1);
        let old = if slot < waiting.count {
            waiting.groups[slot].first
        } else {
            0
        };
        let mut first = old;
        for _ in 0..limit {
            let Some(number) = waiting.pending.checked_sub(1) else {
                break;
            };
            let Some(entry) = self.entry(number) else { break };
            let control = entry.control();
            if !self.unlink_one(entry, control) {
                break;
            }
            let link = self.link(number, control.is_wide());
            waiting.pending = link.load(Ordering::Relaxed) as u32;
            link.store(first as u64, Ordering::Relaxed);
            first = number + 1;
        }
        if first == old {
            return false;
        }
        waiting.groups[slot] = Group {
            first,
            epoch: self.epochs.retire(),
        };
        waiting.count = slot + 1;
        waiting.pending != 0
    }

    /// `false`: a bucket is locked by someone who does not run; try again later.
    fn unlink_one(&self, entry: EntryRef<'_>, control: Control) -> bool {
        let Some(kind) = control.kind_before() else { return true };
        let hash = self.hash_as(kind, &entry.flow(), entry.call_id());
        let forward = Reference::new(entry.number(), Direction::Forward);
        let reply = Reference::new(entry.number(), Direction::Reply);
        self.index.remove(hash, forward)
            && reply_key(entry, control).is_none_or(|key| self.index.remove(self.hash(&key), reply))
    }

    /// Starts loading the buckets that hold the entry's keys.
    pub(super) fn prefetch_buckets_of(&self, entry: EntryRef<'_>, control: Control) {
        if let Some(kind) = control.kind_before() {
            self.prefetch_bucket(self.hash_as(kind, &entry.flow(), entry.call_id()));
        }
        if let Some(key) = reply_key(entry, control) {
            self.prefetch_bucket(self.hash(&key));
        }
    }

    fn free_passed(&self, waiting: &mut Waiting) {
        let groups = &waiting.groups[..waiting.count];
        let passed = groups.iter().take_while(|g| self.epochs.passed(g.epoch)).count();
        for group in &groups[..passed] {
            let mut next = group.first;
            while let Some(number) = next.checked_sub(1) {
                let slot = &self.slots()[number as usize];
                let wide = Control(slot.words[CONTROL].load(Ordering::Relaxed)).is_wide();
                next = self.link(number, wide).load(Ordering::Relaxed) as u32;
                slot.words[CONTROL].store(0, Ordering::Release);
                if wide {
                    self.slots()[number as usize + 1].words[CONTROL].store(0, Ordering::Release);
                }
                self.slots.take_from_limbo(number, wide);
            }
        }
        waiting.groups.copy_within(passed..waiting.count, 0);
        waiting.count -= passed;
    }

    /// A connection has ended that was controlled by what `control` names (a connection's template word).
    pub(super) fn control_one_less(&self, control: u64) {
        let controller = (control as u32).checked_sub(1).and_then(|number| self.entry(number));
        let Some(count) = controller.as_ref().and_then(EntryRef::control_count) else {
            return;
        };
        let generation = control >> 32;
        let less = |word: u64| (word >> 32 == generation && word as u32 != 0).then(|| word - 1);
        // Another generation: it ended before its connection. Nothing to count.
        let _counted = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl<'t> EntryRef<'t> {
    /// Generation, and how many connections it controls; `None`: it is not of those that can.
    fn control_count(&self) -> Option<&'t AtomicU64> {
        let control = self.control();
        match control.kind()? {
            Kind::Template => Some(&self.slot.words[TEMPLATE]),
            Kind::Connection => control.is_helped().then(|| self.tail_word(TAIL_CONTROLLED))?,
        }
    }

    /// Connections that it controls.
    pub(super) fn controlled(&self) -> u32 {
        self.control_count()
            .map_or(0, |count| count.load(Ordering::Relaxed) as u32)
    }

    /// What a connection that this one controls keeps.
    pub(super) fn control_word(&self) -> u64 {
        let count = self.control_count();
        let generation = count.map_or(0, |count| count.load(Ordering::Relaxed) >> 32);
        generation << 32 | (self.number() as u64 + 1)
    }

    /// It controls one connection more.
    pub(super) fn control_one_more(&self) {
        if let Some(count) = self.control_count() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What controls this connection, if that still lives.
    pub fn controller(&self) -> Option<EntryRef<'t>> {
        let word = self.slot.words[TEMPLATE].load(Ordering::Relaxed);
        let controller = self.table.entry((word as u32).checked_sub(1)?)?;
        (self.is_controlled() && controller.control_word() == word).then_some(controller)
    }
}
