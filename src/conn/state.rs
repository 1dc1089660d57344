//! States of connections, how they count, and how long they last.

use super::time::ticks_of_seconds;
use crate::packet::{Protocol, TcpFlags};
use crate::scheduler::Load;
use crate::service::{Method, Timeouts};

use super::layout::Direction;
use super::{tcp, udp};

macro_rules! states {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $active:literal, $seconds:literal;)+) => {
        /// State of a connection, over all protocols. The number is what stands in the entry.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum State { $($(#[doc = $doc])+ $variant = $number,)+ }

        impl State {
            /// Every state, in the order of their numbers.
            pub const ALL: &'static [State] = &[$(State::$variant,)+];

            /// The state of that number.
            #[inline]
            pub const fn from_bits(bits: u8) -> Option<State> {
                match bits { $($number => Some(State::$variant),)+ _ => None }
            }

            /// As `ipvsadm -Lc` lists it.
            pub const fn name(self) -> &'static str {
                match self { $(State::$variant => $name,)+ }
            }

            /// Counts as ActiveConn; else as InActConn.
            #[inline]
            pub const fn is_active(self) -> bool {
                match self { $(State::$variant => $active,)+ }
            }

            /// Seconds it lasts without a packet, by default.
            pub const fn timeout_default_s(self) -> u32 {
                match self { $(State::$variant => $seconds,)+ }
            }
        }
    };
}

states! {
    /// None: templates, connections of protocols without states, and such as began with an ICMP error.
    None = 0, "NONE", false, 3;
    /// TCP: established.
    Established = 1, "ESTABLISHED", true, 900;
    /// TCP: the server opens (active FTP), or a SYN of the server on an old entry.
    SynSent = 2, "SYN_SENT", true, 120;
    /// TCP: SYN seen.
    SynRecv = 3, "SYN_RECV", true, 60;
    /// TCP: the server has closed; or, seen one-sided, anybody.
    FinWait = 4, "FIN_WAIT", false, 120;
    /// TCP: both have closed.
    TimeWait = 5, "TIME_WAIT", false, 120;
    /// TCP: reset.
    Close = 6, "CLOSE", false, 10;
    /// TCP: the client has closed.
    CloseWait = 7, "CLOSE_WAIT", false, 60;
    /// TCP: the server has closed after the client.
    LastAck = 8, "LAST_ACK", false, 30;
    /// TCP: expected (active FTP).
    Listen = 9, "LISTEN", false, 120;
    /// TCP: SYN and answer seen (secure_tcp).
    SynAck = 10, "SYNACK", true, 120;
    /// UDP.
    Udp = 11, "UDP", false, 300;
}

impl State {
    /// Not yet established: goes first when the table is full.
    #[inline]
    pub const fn is_half_open(self) -> bool {
        matches!(self, State::SynRecv | State::SynSent | State::SynAck)
    }

    /// The state of a new connection by its first packet (client to VIP).
    #[inline]
    pub fn first(protocol: Protocol, method: Method, flags: TcpFlags) -> State {
        State::None.next(protocol, method, Direction::Forward, flags)
    }

    /// The state after a packet.
    #[inline]
    pub fn next(self, protocol: Protocol, method: Method, direction: Direction, flags: TcpFlags) -> State {
        match protocol {
            Protocol::TCP => tcp::next(self, tcp::Sides::of(method, direction), flags),
            Protocol::UDP => udp::next(),
            _ => State::None,
        }
    }
}

/// A connection went from one state to another; who caused it counts that on the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
}

impl StateChange {
    /// Counts the change.
    #[inline]
    pub fn count_on(self, load: &Load) {
        load.change(self.from.is_active(), self.to.is_active());
    }
}

/// How long each state lasts, ready for the workers: ticks by state number. And which state comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutTable {
    ticks: [u32; 16],
    secure_tcp: bool,
}

impl TimeoutTable {
    /// Defaults with the three values of `--set` ("Timeouts and TCP states": ESTABLISHED, FIN_WAIT, UDP).
    pub fn new(set: &Timeouts) -> TimeoutTable {
        let mut ticks = [0; 16];
        for state in State::ALL {
            let seconds = match state {
                State::Established => set.tcp,
                State::FinWait => set.tcp_fin,
                State::Udp => set.udp,
                other => other.timeout_default_s(),
            };
            ticks[*state as usize] = ticks_of_seconds(seconds);
        }
        TimeoutTable {
            ticks,
            secure_tcp: false,
        }
    }

    /// With the stricter rules of `secure_tcp` for TCP, or without.
    pub fn with_secure_tcp(self, secure_tcp: bool) -> TimeoutTable {
        TimeoutTable { secure_tcp, ..self }
    }

    /// The state after a packet.
    #[inline]
    pub fn next(
        &self,
        state: State,
        protocol: Protocol,
        method: Method,
        direction: Direction,
        flags: TcpFlags,
    ) -> State {
        if self.secure_tcp && protocol == Protocol::TCP {
            tcp::next_secure(state, tcp::Sides::of(method, direction), flags)
        } else {
            state.next(protocol, method, direction, flags)
        }
    }

    /// Ticks that a connection in this state lasts without a packet.
    #[inline]
    pub fn ticks(&self, state: State) -> u32 {
        self.ticks[state as usize & 15]
    }
}

impl Default for TimeoutTable {
    fn default() -> Self {
        TimeoutTable::new(&Timeouts::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions_and_fit_the_table() {
        for (n, state) in State::ALL.iter().enumerate() {
            assert_eq!(*state as usize, n);
            assert_eq!(State::from_bits(n as u8), Some(*state));
        }
        assert!(State::ALL.len() <= 16);
        assert_eq!(State::from_bits(State::ALL.len() as u8), None);
    }

    #[test]
    fn set_changes_three_timeouts_and_no_other() {
        let set = Timeouts {
            tcp: 30,
            tcp_fin: 7,
            udp: 11,
        };
        let (default, changed) = (TimeoutTable::default(), TimeoutTable::new(&set));
        for state in State::ALL {
            let expected = match state {
                State::Established => 30 * 16,
                State::FinWait => 7 * 16,
                State::Udp => 11 * 16,
                other => default.ticks(*other),
            };
            assert_eq!(changed.ticks(*state), expected, "{state:?}");
        }
    }

    #[test]
    fn counted_as_the_kernel_counts() {
        let active: Vec<_> = State::ALL.iter().filter(|s| s.is_active()).map(|s| s.name()).collect();
        assert_eq!(active, ["ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK"]);
    }
}
