//! Connections whose payload is looked at: FTP control connections of NAT services. What is kept of each stands in the
//! second slot of its entry, and so outlasts a restart as the entry does.
//!
//! ```text
//!  shift       position:32 | after:24 | delta:8      how much longer the server's bytes have become on their way
//!  passive     what the client asked for last
//!  controlled  generation:32 | data connections:32
//! ```
//!
//! An *expected* connection is one whose client port is not known yet: a data connection that the server has announced. Its
//! entry has client port 0, and makes room for a whole one when the client's SYN comes.

use std::sync::atomic::Ordering;

use super::entry::EntryRef;
use super::layout::{Direction, Kind, TAIL_PASSIVE, TAIL_SHIFT};
use super::table::ConnectionTable;
use super::{State, StateChange, Tick, TimeoutTable};
use crate::packet::{FlowKey, Protocol};

/// What the sequence numbers of the server's bytes are off by, since a reply of its was rewritten to another length. As in
/// netfilter (`nf_conntrack_seqadj.c`) only the last change is known exactly: a packet from before the one before it would
/// get the wrong number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// Sequence number of the packet that was rewritten last.
    position: u32,
    /// Of bytes up to there.
    before: i32,
    /// Of bytes behind it.
    after: i32,
}

/// Bits of `after` in the word.
const AFTER_BITS: u32 = 24;
const AFTER_MAX: i32 = (1 << (AFTER_BITS - 1)) - 1;

impl Shift {
    fn of_word(word: u64) -> Shift {
        let after = (word as u32 as i32) >> 8;
        Shift {
            position: (word >> 32) as u32,
            before: after - word as i8 as i32,
            after,
        }
    }

    fn word(self) -> u64 {
        let delta = (self.after - self.before) as u8;
        (self.position as u64) << 32 | ((self.after << 8) as u32 | delta as u32) as u64
    }

    /// Nothing is shifted.
    pub fn is_none(&self) -> bool {
        (self.before, self.after) == (0, 0)
    }

    /// A sequence number of the server, as the client is to see it.
    pub fn sequence(&self, server: u32) -> u32 {
        let is_behind = is_after(server, self.position);
        server.wrapping_add_signed(if is_behind { self.after } else { self.before })
    }

    /// An acknowledgement (or an edge of SACK) of the client, as the server is to see it.
    pub fn acknowledgement(&self, client: u32) -> u32 {
        let is_behind = is_after(client.wrapping_add_signed(-self.before), self.position);
        client.wrapping_add_signed(-if is_behind { self.after } else { self.before })
    }

    /// The packet with this sequence number of the server has become longer by `delta` bytes. The same packet again changes
    /// nothing. `None`: further off than can be kept.
    fn and(self, position: u32, delta: i8) -> Option<Shift> {
        let known = self.before != self.after && !is_after(position, self.position);
        if known || delta == 0 {
            return Some(self);
        }
        let after = self.after + delta as i32;
        (after.abs() <= AFTER_MAX).then_some(Shift {
            position,
            before: self.after,
            after,
        })
    }
}

/// RFC 9293 section 3.4: `a` comes behind `b`.
fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// How a client wants to open data connections; a reply is looked for only when it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passive {
    /// PORT or EPRT, or nothing yet.
    Off = 0,
    /// PASV (RFC 959).
    Plain = 1,
    /// EPSV (RFC 2428).
    Extended = 2,
}

impl EntryRef<'_> {
    /// Its payload is looked at. Only connections of which the following is asked.
    #[inline]
    pub fn is_helped(&self) -> bool {
        self.control().is_helped()
    }

    /// What sequence numbers of the server are off by.
    pub fn shift(&self) -> Shift {
        let word = self.tail_word(TAIL_SHIFT);
        word.map_or(Shift::default(), |word| Shift::of_word(word.load(Ordering::Relaxed)))
    }

    /// The server's packet with this sequence number has become longer by so many bytes. `false`: further off than can be
    /// kept.
    pub fn shift_by(&self, position: u32, delta: i8) -> bool {
        let change = |word| Some(Shift::of_word(word).and(position, delta)?.word());
        let word = self.tail_word(TAIL_SHIFT);
        word.is_some_and(|word| word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok())
    }

    /// What its client asked for last.
    pub fn passive(&self) -> Passive {
        match self.tail_word(TAIL_PASSIVE).map(|word| word.load(Ordering::Relaxed)) {
            Some(1) => Passive::Plain,
            Some(2) => Passive::Extended,
            _ => Passive::Off,
        }
    }

    /// What its client asks for.
    pub fn set_passive(&self, passive: Passive) {
        if let Some(word) = self.tail_word(TAIL_PASSIVE) {
            word.store(passive as u64, Ordering::Relaxed);
        }
    }

    /// An announced data connection is announced again: it is waited for anew (`ip_vs_tcp_conn_listen`).
    pub fn listen(&self, now: Tick, timeouts: &TimeoutTable) -> Option<StateChange> {
        let until = now.after(timeouts.ticks(State::Listen));
        self.table.write_touch(self, self.control(), |_| (State::Listen, until))
    }
}

impl ConnectionTable {
    /// The expected connection that a packet of a client would begin: between the same addresses, with the same virtual port.
    #[inline]
    pub fn lookup_expected(&self, flow: &FlowKey) -> Option<EntryRef<'_>> {
        if self.expected.load(Ordering::Relaxed) == 0 || flow.protocol != Protocol::TCP {
            return None;
        }
        self.lookup_any_port(flow)
    }

    #[cold]
    fn lookup_any_port(&self, flow: &FlowKey) -> Option<EntryRef<'_>> {
        let key = FlowKey {
            ports: flow.ports & 0xffff,
            ..*flow
        };
        let hit = self.lookup(self.hash(&key), &key)?;
        (hit.direction == Direction::Forward).then_some(hit.entry)
    }

    /// Counts an entry that begins (1) or ends (-1) if it is an expected connection.
    pub(super) fn count_expected(&self, kind: Kind, entry: EntryRef<'_>, change: i32) {
        if kind == Kind::Connection && entry.client_port() == 0 {
            self.expected.fetch_add(change as u32, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: numbers on both sides fit each other, over several rewritten replies and the wrap-around. How: a server that
    /// sends replies, some rewritten to another length, and a client that acknowledges what it got.
    #[test]
    fn both_sides_agree() {
        for start in [0u32, 1000, u32::MAX - 40, u32::MAX - 400, 1 << 31] {
            let mut shift = Shift::default();
            let (mut server, mut client) = (start, start);
            for (len, delta) in [(20, 0), (48, 3), (30, 0), (50, -12), (10, 0), (47, 8), (47, 8), (20, 0)] {
                shift = shift.and(server, delta as i8).unwrap();
                assert_eq!(
                    shift.sequence(server),
                    client,
                    "the packet itself has the number of before"
                );
                assert_eq!(shift.and(server, delta as i8), Some(shift), "the same packet again");
                assert_eq!(Shift::of_word(shift.word()), shift);
                server = server.wrapping_add(len);
                client = client.wrapping_add_signed(len as i32 + delta);
                assert_eq!(shift.acknowledgement(client), server);
                assert_eq!(shift.sequence(server), client);
            }
            assert!(!shift.is_none());
        }
        assert!(Shift::of_word(0).is_none());
    }

    #[test]
    fn further_than_can_be_kept_is_refused() {
        let far = Shift {
            position: 7,
            before: AFTER_MAX - 3,
            after: AFTER_MAX,
        };
        assert_eq!(Shift::of_word(far.word()), far);
        assert_eq!(far.and(100, 1), None);
        assert_eq!(far.and(100, -1).map(|shift| shift.after), Some(AFTER_MAX - 1));
        let low = Shift {
            after: -AFTER_MAX,
            before: -AFTER_MAX + 9,
            position: 7,
        };
        assert_eq!(Shift::of_word(low.word()), low);
    }
}
