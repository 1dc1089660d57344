//! The packets that change nothing about their connection but its deadline, and are most: told by few comparisons.

use std::sync::atomic::Ordering;

use super::entries::Slot;
use super::entry::{EntryRef, Hit};
use super::index::{Bucket, Guess, Hash, Index};
use super::layout::{ADDRESSES, CONTROL, Control, Direction, PORTS};
use super::table::ConnectionTable;
use crate::packet::steady::Steady;
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
    /// Starts loading the entry that a lookup of this hash most likely finds, and says which: for
    /// [`confirm`](ConnectionTable::confirm) in the same batch. Its bucket should be loaded by now.
    #[inline(always)]
    pub fn prefetch_entry(&self, hash: Hash) -> Guess {
        let guess = Index::first_guess(self.buckets, hash);
        prefetch::to_read(self.slots, guess.slot() as usize);
        guess
    }

    /// As [`confirm`](ConnectionTable::confirm), for a packet whose flags leave an established connection established. `None`
    /// of any other entry.
    #[inline(always)]
    pub fn confirm_steady(&self, guess: Guess, key: &Steady) -> Option<Hit<'t>> {
        let slot = self.slots.get(guess.slot() as usize)?;
        let word = |n: usize| slot.words[n].load(Ordering::Relaxed);
        let seen = Control(word(CONTROL));
        let direction = guess.direction();
        let ports = match direction {
            Direction::Forward => (word(PORTS) >> 32) as u32,
            Direction::Reply => word(PORTS) as u32,
        };
        let fits =
            seen.is_established_tcp_v4() && ports == key.ports && word(ADDRESSES + direction as usize) == key.addresses;
        fits.then_some(Hit {
            entry: EntryRef {
                table: self.table,
                slot,
            },
            direction,
            seen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{Kind, State, Tick};
    use crate::packet::{Family, Protocol, TcpFlags};
    use crate::service::Method;

    /// Goal: what counts as steady really leaves the state as it is. How: all flags and control words, against the state
    /// machine.
    #[test]
    fn steady_packets_change_no_state() {
        let mut steady = 0;
        for kind in [Kind::Connection, Kind::Template] {
            for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
                for family in [Family::V4, Family::V6] {
                    for state in State::ALL.iter().copied() {
                        let control = Control::new(kind, family, family, protocol, Method::Masq, state, Tick(77));
                        if control.is_established_tcp_v4() {
                            steady += 1;
                            assert_eq!((kind, protocol, family), (Kind::Connection, Protocol::TCP, Family::V4));
                            for flags in (0..=255).map(TcpFlags).filter(|flags| flags.is_plain()) {
                                for direction in [Direction::Forward, Direction::Reply] {
                                    assert_eq!(state.next(protocol, control.method(), direction, flags), state);
                                }
                            }
                        }
                        assert!(!control.retired().is_established_tcp_v4());
                    }
                }
            }
        }
        assert_eq!(steady, 1);
    }
}
