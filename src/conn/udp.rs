//! UDP: one state, re-armed by each datagram in either direction.

use super::State;

/// The state after any datagram.
#[inline]
pub fn next() -> State {
    State::Udp
}
