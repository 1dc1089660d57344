//! After a crash: what the entries' file still holds becomes the table again.

use std::sync::atomic::Ordering;

use super::Tick;
use super::entries::Entries;
use super::entry::{Connection, EntryRef};
use super::index::Reference;
use super::insert::reply_key;
use super::layout::{CONTROL, Control, Direction, Kind, RUNTIME, TAIL_CONTROLLED, TAIL_MARK, TEMPLATE, runtime_word};
use super::slots::width;
use super::table::ConnectionTable;

/// Slots between the one that is recovered and the one whose buckets are being loaded.
const PREFETCH_AHEAD: u32 = 16;

/// What becomes of a recovered entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// It lives, with this slot of its destination in the workers' table and this hop to its client.
    Keep {
        /// Slot of its destination.
        destination_id: u32,
        /// Hop to its client.
        client_hop: u16,
    },
    /// It goes: nobody knows its service any more.
    Drop,
}

/// What [`ConnectionTable::recover`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Entries that live again, templates included.
    pub kept: usize,
    /// Entries that expired meanwhile.
    pub expired: usize,
    /// Entries that the caller did not keep.
    pub dropped: usize,
    /// Entries that are damaged, cut off, or twice there; and what did not fit.
    pub damaged: usize,
}

impl ConnectionTable {
    /// Takes the entries that were left in the file into the table: index, counts and runtime words are made anew. `decide`
    /// says of each what becomes of it. Once, before any worker runs.
    ///
    /// Which template controls which connection is not in the file; [`ConnectionTable::control`] tells it again. (It cannot
    /// of templates of calls: a connection does not know its Call-ID. Those end by their own time.)
    pub fn recover(&self, now: Tick, decide: &mut dyn FnMut(&Connection) -> Recovery) -> Recovered {
        let _sweeper = self.sweeper.lock().unwrap_or_else(|e| e.into_inner());
        let mut report = Recovered::default();
        let mut number = 0;
        while let Some(entry) = self.entry(number) {
            // Measured at 1 M connections: 112 ms of CPU instead of 237.
            if let Some(ahead) = self.entry(number + PREFETCH_AHEAD) {
                self.prefetch_buckets_of(ahead, ahead.control());
            }
            let control = Control(entry.slot.words[CONTROL].load(Ordering::Acquire));
            let wide = control.kind().is_some() && control.is_wide() && self.has_tail(number);
            let kept = match self.judge(entry, control, wide, now, decide) {
                Verdict::Free => false,
                Verdict::Keep(destination_id, client_hop) => {
                    let kept = self.take_in(entry, control, wide, destination_id, client_hop);
                    *if kept { &mut report.kept } else { &mut report.damaged } += 1;
                    kept
                }
                Verdict::Expired => {
                    report.expired += 1;
                    false
                }
                Verdict::Dropped => {
                    report.dropped += 1;
                    false
                }
                Verdict::Damaged => {
                    report.damaged += 1;
                    false
                }
            };
            if !kept {
                entry.slot.words[CONTROL].store(0, Ordering::Release);
            }
            number += if wide && kept { 2 } else { 1 };
        }
        report
    }

    fn has_tail(&self, number: u32) -> bool {
        let tail = self.slots().get(number as usize + 1);
        number.is_multiple_of(2) && tail.is_some_and(|t| t.words[CONTROL].load(Ordering::Relaxed) == TAIL_MARK)
    }

    fn judge(
        &self,
        entry: EntryRef<'_>,
        control: Control,
        wide: bool,
        now: Tick,
        decide: &mut dyn FnMut(&Connection) -> Recovery,
    ) -> Verdict {
        if control.0 == 0 || control.0 == TAIL_MARK || control.kind().is_none() && control.kind_before().is_some() {
            return Verdict::Free;
        }
        let Some(kind) = control.kind().filter(|_| control.is_sound()) else {
            return Verdict::Damaged;
        };
        if control.is_wide() != wide {
            return Verdict::Damaged; // its second half is not there
        }
        // The longest that any timeout can be (31 days): a later deadline was not written by us.
        if control.deadline().ticks_left(now) > super::time::ticks_of_seconds(crate::service::Timeouts::MAX_S) {
            return Verdict::Damaged;
        }
        if control.deadline() <= now {
            return Verdict::Expired;
        }
        match decide(&entry.read_as(kind, control)) {
            Recovery::Keep {
                destination_id,
                client_hop,
            } => Verdict::Keep(destination_id, client_hop),
            Recovery::Drop => Verdict::Dropped,
        }
    }

    /// Puts the entry into slots, index and counts. `false`: no room, or its key is there.
    fn take_in(&self, entry: EntryRef<'_>, control: Control, wide: bool, destination_id: u32, client_hop: u16) -> bool {
        let Some(kind) = control.kind() else { return false };
        let generation = match kind {
            Kind::Connection => 0,
            Kind::Template => self.next_generation(),
        };
        entry.slot.words[TEMPLATE].store(generation, Ordering::Relaxed);
        if let Some(controlled) = entry.tail_word(TAIL_CONTROLLED).filter(|_| control.is_helped()) {
            controlled.store(self.next_generation(), Ordering::Relaxed);
        }
        entry.slot.words[RUNTIME].store(runtime_word(destination_id, client_hop), Ordering::Relaxed);
        let flow = entry.flow();
        let call_id = entry.call_id();
        if control.has_call_id() && call_id.is_none() {
            return false;
        }
        let hash = self.hash_as(kind, &flow, call_id);
        let forward = Reference::new(entry.number(), Direction::Forward);
        let find = || self.index.find(hash, |r| self.is_same(r, kind, &flow, call_id));
        if self.index.insert_unique(hash, forward, find, || ()).is_err() {
            return false;
        }
        let reply = reply_key(entry, control).map(|key| self.hash(&key));
        let linked = reply.is_none_or(|hash| self.link_reply(entry, hash));
        if !linked || !self.slots.claim(entry.number(), wide) {
            self.index.remove(hash, forward);
            if let Some(hash) = reply {
                self.index
                    .remove(hash, Reference::new(entry.number(), Direction::Reply));
            }
            return false;
        }
        self.count_expected(kind, entry, 1);
        self.chunk_of(entry.number())
            .begins(control.state(), control.deadline());
        true
    }

    /// From now on `controller` controls `connection`: that is how it is told again of recovered connections.
    pub fn control(&self, connection: EntryRef<'_>, controller: EntryRef<'_>) {
        controller.control_one_more();
        connection.slot.words[TEMPLATE].store(controller.control_word(), Ordering::Relaxed);
    }
}

/// Moves the entries of a file into an empty one with more or fewer slots, in their order. Returns how many found no room.
pub fn move_entries(from: &Entries, to: &Entries) -> usize {
    let (from, to) = (from.slots(), to.slots());
    let (mut next, mut lost) = (0, 0);
    for (number, slot) in from.iter().enumerate() {
        let control = Control(slot.words[CONTROL].load(Ordering::Relaxed));
        if control.kind().is_none() {
            continue;
        }
        // A second half that is missing is recovery's to notice.
        let wide = control.is_wide() && number % 2 == 0 && number + 1 < from.len();
        let begin = if wide { usize::next_multiple_of(next, 2) } else { next };
        let width = width(wide) as usize;
        let Some(room) = to.get(begin..begin + width) else {
            lost += 1;
            continue;
        };
        for (to, from) in room.iter().zip(&from[number..]) {
            for (to, from) in to.words.iter().zip(&from.words) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        next = begin + width;
    }
    lost
}

enum Verdict {
    Free,
    Keep(u32, u16),
    Expired,
    Dropped,
    Damaged,
}
