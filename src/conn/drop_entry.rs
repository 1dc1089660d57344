//! `drop_entry`: under pressure, entries end before their time.
//!
//! As in the kernel, each second a random 1/32 of the table is looked at, and of that go
//!
//! - half-open TCP connections (SYN_RECV, SYNACK);
//! - established TCP, UDP and other connections without a packet for a minute that had few packets before: all that had one,
//!   every second that had two, and so on up to eight; those that had more stay.
//!
//! Templates and connections in all other states stay. What the kernel counts by packets is here counted by packets that were
//! half a second apart, or changed the state: the entry is not written for others.

use super::entry::{Connection, EntryRef};
use super::layout::Kind;
use super::table::ConnectionTable;
use super::time::ticks_of_seconds;
use super::{State, Tick, TimeoutTable};
use crate::packet::Protocol;

/// This part of the table is looked at at once.
const PART: u32 = 32;
/// A connection that had a packet since is busy.
const IDLE_TICKS: u32 = ticks_of_seconds(60);
/// A connection that had more packets is worth keeping.
const PACKETS_MAX: usize = 8;

/// Chooses the entries that go.
#[derive(Debug)]
pub struct EntryDropper {
    random: u64,
    /// By number of packets: how many to pass over until one goes.
    until_next: [u8; PACKETS_MAX + 1],
}

impl EntryDropper {
    /// With this beginning of its random numbers.
    pub fn new(seed: u64) -> EntryDropper {
        EntryDropper {
            random: seed | 1,
            until_next: [0; PACKETS_MAX + 1],
        }
    }

    /// Xorshift.
    fn below(&mut self, end: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (((self.random >> 32) * end as u64) >> 32) as u32
    }

    fn takes(&mut self, entry: &EntryRef<'_>, now: Tick, timeouts: &TimeoutTable) -> bool {
        let control = entry.control();
        if control.kind() != Some(Kind::Connection) {
            return false;
        }
        match (control.protocol(), control.state()) {
            (Protocol::TCP, State::SynRecv | State::SynAck) => true,
            (Protocol::TCP, State::Established) => self.takes_idle(entry, now, timeouts),
            (Protocol::TCP, _) => false,
            _ => self.takes_idle(entry, now, timeouts),
        }
    }

    fn takes_idle(&mut self, entry: &EntryRef<'_>, now: Tick, timeouts: &TimeoutTable) -> bool {
        let control = entry.control();
        let idle = timeouts
            .ticks(control.state())
            .saturating_sub(control.deadline().ticks_left(now));
        let packets = 1 + control.touches() as usize;
        let Some(until_next) = self.until_next.get_mut(packets) else {
            return false;
        };
        if idle < IDLE_TICKS {
            return false;
        }
        *until_next = until_next.saturating_sub(1);
        let due = *until_next == 0;
        if due {
            *until_next = packets as u8;
        }
        due
    }
}

impl ConnectionTable {
    /// Looks at a part of the table, and ends what `dropper` chooses; `on_drop` gets each, to take it off its destination's
    /// numbers. For the control thread, once a second while drop_entry is at work. Returns how many.
    pub fn drop_entries(
        &self,
        dropper: &mut EntryDropper,
        now: Tick,
        timeouts: &TimeoutTable,
        on_drop: &mut dyn FnMut(&Connection),
    ) -> usize {
        let guard = self.sweeper.lock().unwrap_or_else(|e| e.into_inner());
        let (reader, chunks) = (self.slots.workers(), self.slots.chunks());
        let mut dropped = 0;
        for _ in 0..chunks.div_ceil(PART) {
            self.epochs.online(reader);
            self.live_in(dropper.below(chunks), |entry| {
                if !dropper.takes(&entry, now, timeouts) {
                    return;
                }
                // Unless a packet came this moment.
                let state = entry.state();
                if let Some(connection) = self.retire(entry, |control| control.state() == state) {
                    on_drop(&connection);
                    dropped += 1;
                }
            });
            self.epochs.offline(reader);
        }
        drop(guard);
        dropped
    }
}
