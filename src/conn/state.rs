//! States of connections, how they count, and how long they last.

use super::time::ticks_of_seconds;
use crate::packet::{Protocol, Signals};
use crate::scheduler::Load;
use crate::service::{Method, Timeouts};

use super::layout::Direction;
use super::table::WorkerId;
use super::{sctp, tcp, udp};

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
    /// TCP: a data connection of FTP, announced and not yet there. (The kernel counts it among the active ones
    /// from its begin, `ip_vs_tcp_conn_listen` leaves it there, and no other connection comes to this state.)
    Listen = 9, "LISTEN", true, 120;
    /// TCP: SYN and answer seen (secure_tcp).
    SynAck = 10, "SYNACK", true, 120;
    /// UDP.
    Udp = 11, "UDP", false, 300;
    /// SCTP: the client's first INIT seen.
    SctpInit1 = 12, "INIT1", false, 4;
    /// SCTP: another INIT of the client seen.
    SctpInit = 13, "INIT", false, 61;
    /// SCTP: the server has sent a cookie.
    SctpCookieSent = 14, "C-SENT", false, 61;
    /// SCTP: the client has brought it back.
    SctpCookieReplied = 15, "C-REPLIED", false, 61;
    /// SCTP: the server's INIT seen.
    SctpCookieWait = 16, "C-WAIT", false, 61;
    /// SCTP: the client has sent the server a cookie.
    SctpCookie = 17, "COOKIE", false, 61;
    /// SCTP: the server has brought it back.
    SctpCookieEchoed = 18, "C-ECHOED", false, 61;
    /// SCTP: established.
    SctpEstablished = 19, "ESTABLISHED", true, 900;
    /// SCTP: the server ends it.
    SctpShutdownSent = 20, "S-SENT", false, 61;
    /// SCTP: the client ends it.
    SctpShutdownReceived = 21, "S-RECEIVED", false, 61;
    /// SCTP: the server has agreed to the end.
    SctpShutdownAckSent = 22, "S-ACK-SENT", false, 61;
    /// SCTP: the INIT was refused.
    SctpRejected = 23, "REJECTED", false, 4;
    /// SCTP: over.
    SctpClosed = 24, "CLOSED", false, 61;
}

impl State {
    /// Not yet established, or over: goes when the table is full. LISTEN too, of which one client can have any number.
    #[inline]
    pub const fn gives_way(self) -> bool {
        const WHICH: u32 = {
            let (mut which, mut n) = (0, 0);
            while n < State::ALL.len() {
                which |= (State::ALL[n].is_half_open_or_over() as u32) << n;
                n += 1;
            }
            which
        };
        WHICH >> self as u8 & 1 != 0
    }

    const fn is_half_open_or_over(self) -> bool {
        let number = self as u8;
        matches!(
            self,
            State::SynRecv | State::SynSent | State::SynAck | State::Listen | State::TimeWait | State::Close
        ) || number >= State::SctpInit1 as u8 && number <= State::SctpCookieEchoed as u8
            || matches!(self, State::SctpRejected | State::SctpClosed)
    }

    /// The state in which a connection of this protocol is for most of its packets, which leave it there.
    #[inline(always)]
    pub const fn steady(protocol: Protocol) -> State {
        match protocol {
            Protocol::UDP => State::Udp,
            _ => State::Established,
        }
    }

    /// A connection of this protocol can be in this state.
    pub fn is_of(self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::TCP => (self as u8) < State::Udp as u8,
            Protocol::UDP => self == State::Udp,
            // NONE: left by a uvs that knew no states of SCTP; its next packet brings it among the others.
            Protocol::SCTP => self == State::None || self as u8 > State::Udp as u8,
            _ => self == State::None,
        }
    }

    /// The state of a new connection by its first packet (client to VIP).
    #[inline]
    pub fn first(protocol: Protocol, method: Method, signals: impl Into<Signals>) -> State {
        State::None.next(protocol, method, Direction::Forward, signals)
    }

    /// The state after a packet.
    #[inline]
    pub fn next(self, protocol: Protocol, method: Method, direction: Direction, signals: impl Into<Signals>) -> State {
        let signals = signals.into();
        match protocol {
            Protocol::TCP => tcp::next(self, Sides::of(method, direction), signals.tcp_flags),
            Protocol::UDP => udp::next(),
            Protocol::SCTP => sctp::next(self, Sides::of(method, direction), signals.chunk),
            _ => State::None,
        }
    }
}

/// Who sent a packet, and whether the other side's packets are seen at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sides {
    /// Client, and the server's packets are seen too (NAT).
    Client = 0,
    /// Server (NAT).
    Server = 1,
    /// Client, the only one that is seen (Route, Tunnel).
    ClientOnly = 2,
}

impl Sides {
    /// By method and direction.
    #[inline]
    pub fn of(method: Method, direction: Direction) -> Sides {
        match (method, direction) {
            (_, Direction::Reply) => Sides::Server,
            (Method::Masq, Direction::Forward) => Sides::Client,
            (_, Direction::Forward) => Sides::ClientOnly,
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
    pub fn count_on(self, load: &Load, by: WorkerId) {
        load.change(by.0, self.from.is_active(), self.to.is_active());
    }
}

/// Room for as many states; a power of two.
const STATES_MAX: usize = 32;

const _: () = assert!(State::ALL.len() <= STATES_MAX && STATES_MAX.is_power_of_two());

/// How long each state lasts, ready for the workers: ticks by state number. And which state comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutTable {
    ticks: [u32; STATES_MAX],
    secure_tcp: bool,
}

impl TimeoutTable {
    /// Defaults with the three values of `--set` ("Timeouts and TCP states": ESTABLISHED, FIN_WAIT, UDP).
    pub fn new(set: &Timeouts) -> TimeoutTable {
        let mut ticks = [0; STATES_MAX];
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
        signals: impl Into<Signals>,
    ) -> State {
        let signals = signals.into();
        if self.secure_tcp && protocol == Protocol::TCP {
            tcp::next_secure(state, Sides::of(method, direction), signals.tcp_flags)
        } else {
            state.next(protocol, method, direction, signals)
        }
    }

    /// Ticks that a connection in this state lasts without a packet.
    #[inline]
    pub fn ticks(&self, state: State) -> u32 {
        self.ticks[state as usize & (STATES_MAX - 1)]
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
        assert_eq!(
            active,
            ["ESTABLISHED", "SYN_SENT", "SYN_RECV", "LISTEN", "SYNACK", "ESTABLISHED"]
        );
    }
}
