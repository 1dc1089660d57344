//! The packets that change nothing about their connection but its deadline, and are most: told by few comparisons.

use std::sync::atomic::Ordering;

use super::entries::Slot;
use super::entry::{EntryRef, Hit};
use super::index::{Bucket, Guess, Hash, Index};
use super::layout::{ADDRESSES, CONTROL, Control, Direction, PORTS};
use super::table::ConnectionTable;
use super::time::Tick;
use crate::packet::steady::{Steady, Transport};
use crate::prefetch;

/// A table as it is read for every packet of a batch: where things are is looked up once.
#[derive(Clone, Copy)]
pub struct Reader<'t> {
    table: &'t ConnectionTable,
    buckets: &'t [Bucket],
    slots: &'t [Slot],
}

impl ConnectionTable {
    /// For a batch.
    #[inline(always)]
    pub fn reader(&self) -> Reader<'_> {
        Reader {
            table: self,
            buckets: self.index.buckets(),
            slots: self.slots(),
        }
    }
}

impl<'t> Reader<'t> {
    /// The entry that a lookup of this hash most likely finds: for [`confirm`](ConnectionTable::confirm) in the same batch. Its
    /// bucket should be loaded by now.
    #[inline(always)]
    pub fn guess(&self, hash: Hash) -> Guess {
        Index::first_guess(self.buckets, hash)
    }

    /// Starts loading it.
    #[inline(always)]
    pub fn prefetch(&self, guess: Guess) {
        prefetch::to_read(self.slots, guess.slot() as usize);
    }

    /// As [`confirm`](ConnectionTable::confirm), for a packet whose flags leave the usual state of its protocol as it is.
    /// `None` of any other entry.
    #[inline(always)]
    pub fn confirm_steady<T: Transport>(&self, guess: Guess, key: &Steady<T>) -> Option<Hit<'t>> {
        let slot = self.slots.get(guess.slot() as usize)?;
        let word = |n: usize| slot.words[n].load(Ordering::Relaxed);
        let seen = Control(word(CONTROL));
        let direction = guess.direction();
        let ports = match direction {
            Direction::Forward => (word(PORTS) >> 32) as u32,
            Direction::Reply => word(PORTS) as u32,
        };
        let fits = seen.is_steady_v4(T::PROTOCOL)
            && ports == key.ports
            && word(ADDRESSES + direction as usize) == key.addresses;
        fits.then_some(Hit {
            entry: EntryRef {
                table: self.table,
                slot,
            },
            direction,
            seen,
        })
    }

    /// The connection that [`confirm_steady`](Reader::confirm_steady) found in the same batch lives on until then, unless its
    /// deadline is hardly earlier, or it is in another state by now, which has its own.
    #[inline]
    pub fn renew_steady<T: Transport>(&self, guess: Guess, until: Tick) {
        let Some(entry) = self.table.entry(guess.slot()) else {
            return;
        };
        let seen = entry.control();
        if seen.is_steady_v4(T::PROTOCOL) && seen.is_due(until) {
            // Another worker wrote just now: the next packet for which it is due writes again.
            let _other = self.table.exchange_control(&entry, seen, seen.with_deadline(until));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{Kind, State, TimeoutTable};
    use crate::packet::steady::{Tcp, Udp};
    use crate::packet::{Family, Protocol, TcpFlags};
    use crate::service::Method;

    /// Goal: what counts as steady really leaves the state as it is. How: all flags and control words, against the state
    /// machine.
    #[test]
    fn steady_packets_change_no_state() {
        let steady = [steady_states::<Tcp>(), steady_states::<Udp>()];
        assert_eq!(steady, [[State::Established], [State::Udp]]);
    }

    fn steady_states<T: Transport>() -> Vec<State> {
        let mut steady = Vec::new();
        for kind in [Kind::Connection, Kind::Template] {
            for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
                for family in [Family::V4, Family::V6] {
                    for state in State::ALL.iter().copied() {
                        let control = Control::new(kind, family, family, protocol, Method::Masq, state, Tick(77));
                        if control.is_steady_v4(T::PROTOCOL) {
                            steady.push(state);
                            assert_eq!((kind, protocol, family), (Kind::Connection, T::PROTOCOL, Family::V4));
                            stays(protocol, state);
                        }
                        assert!(!control.retired().is_steady_v4(T::PROTOCOL));
                        assert!(!control.helped().is_steady_v4(T::PROTOCOL));
                    }
                }
            }
        }
        steady
    }

    /// Whatever the method, the direction and `secure_tcp`.
    fn stays(protocol: Protocol, state: State) {
        let is_steady = |flags: &TcpFlags| protocol == Protocol::UDP || flags.is_plain();
        for flags in (0..=255).map(TcpFlags).filter(is_steady) {
            for method in [Method::Route, Method::Masq, Method::Tunnel] {
                for direction in [Direction::Forward, Direction::Reply] {
                    for secure in [false, true] {
                        let timeouts = TimeoutTable::default().with_secure_tcp(secure);
                        assert_eq!(timeouts.next(state, protocol, method, direction, flags), state);
                    }
                }
            }
        }
    }
}
