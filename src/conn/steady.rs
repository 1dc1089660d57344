//! The packets that change nothing about their connection but its deadline, which are most: told by one comparison.

use std::sync::atomic::Ordering;

use super::entry::{EntryRef, Hit};
use super::index::Guess;
use super::layout::{ADDRESSES, CONTROL, Control, Direction, Kind, PORTS};
use super::table::ConnectionTable;
use super::{State, tcp};
use crate::packet::{FlowKey, Protocol, TcpFlags};

/// Kind, family of the client, protocol and state of the entries that a packet leaves in their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steady(u32);

impl Steady {
    /// Fits no entry.
    pub const NONE: Steady = Steady(u32::MAX);
    /// An established TCP connection.
    const ESTABLISHED: Steady = Steady(Control::steady_bits(
        Kind::Connection,
        Protocol::TCP,
        State::Established,
    ));

    /// Of a TCP packet over IPv4 by its flags; any other has none.
    #[inline(always)]
    pub fn of(flags: TcpFlags) -> Steady {
        if tcp::is_plain(flags) {
            Steady::ESTABLISHED
        } else {
            Steady::NONE
        }
    }
}

impl ConnectionTable {
    /// As [`confirm`](ConnectionTable::confirm), for flows over IPv4 and entries that fit `steady` only.
    #[inline(always)]
    pub fn confirm_steady(&self, guess: Guess, steady: Steady, key: &FlowKey) -> Option<Hit<'_>> {
        let slot = self.slots().get(guess.slot() as usize)?;
        let word = |n: usize| slot.words[n].load(Ordering::Relaxed);
        let seen = Control(word(CONTROL));
        let direction = guess.direction();
        let ports = match direction {
            Direction::Forward => (word(PORTS) >> 32) as u32,
            Direction::Reply => word(PORTS) as u32,
        };
        let fits = seen.has_steady_bits(steady.0)
            && ports == key.ports
            && word(ADDRESSES + direction as usize) == key.addresses[0];
        fits.then_some(Hit {
            entry: EntryRef { table: self, slot },
            direction,
            seen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::Tick;
    use crate::packet::Family;
    use crate::service::Method;

    /// Goal: what counts as steady really leaves every state as it is. How: all flags and states, against the state machine.
    #[test]
    fn steady_packets_change_no_state() {
        let mut steady = 0;
        for flags in (0..=255).map(TcpFlags) {
            for state in State::ALL.iter().copied() {
                for method in [Method::Route, Method::Masq, Method::Tunnel] {
                    let (kind, v4) = (Kind::Connection, Family::V4);
                    let control = Control::new(kind, v4, v4, Protocol::TCP, method, state, Tick(77));
                    let bits = Steady::of(flags).0;
                    if !control.has_steady_bits(bits) {
                        continue;
                    }
                    steady += 1;
                    for direction in [Direction::Forward, Direction::Reply] {
                        assert_eq!(state.next(Protocol::TCP, method, direction, flags), state);
                    }
                    assert!(!control.retired().has_steady_bits(bits));
                }
            }
        }
        assert_eq!(
            steady,
            3 * 256 / 16,
            "plain acknowledgements of established connections"
        );
        assert!(!Control(0).has_steady_bits(Steady::NONE.0) && !Control(u64::MAX).has_steady_bits(Steady::NONE.0));
    }
}
