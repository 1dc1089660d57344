//! What the words of an entry mean.
//!
//! ```text
//!            narrow (IPv4, one slot)              wide (an IPv6 address or a Call-ID in it, or helped; two slots, the first even)
//!  word 0    control                              control
//!       1    runtime                              runtime
//!       2    ports                                ports
//!       3    template                             template
//!       4    client << 32 | VIP                   client high        (client << 32 | VIP when they are IPv4)
//!       5    destination << 32 | client           client low           (the same when both are IPv4)
//!       6    own                                  VIP high
//!       7    link of retired entries              VIP low
//!       8                                         tail mark
//!       9,10                                      destination (high, low; an IPv4 one in the low)
//!       11                                        own
//!       12                                        of a template of a call, digest of the Call-ID
//!       12-14                                     of a helped connection: shift, passive, controlled
//!       15                                        link of retired entries
//!
//!  control   deadline:32 | spare:2 | Call-ID:1 | helped:1 | touches:4 | state:8 | protocol:8 | method:2 | destination v6:1 | client v6:1 | kind:4
//!  runtime   destination id:32 | client hop:16 | spare:16
//!  ports     client:16 | virtual:16 | destination:16 | client:16
//!  own       of a template, how long it lasts in ticks:32 | firewall mark:32
//!  template  of a connection, what controls it: generation:32 | slot + 1:32;
//!            of a template: generation:32 | connections controlled:32
//!  helped    see `helped`
//! ```
//!
//! The redundant client address and port make each direction one comparison of addresses and one of ports. Runtime and
//! template mean nothing after a crash. Control is written last, so an entry with a valid kind is whole.

use crate::packet::{Family, FlowKey, Protocol};
use crate::service::Method;

use super::{State, Tick};

/// Word positions.
pub const CONTROL: usize = 0;
pub const RUNTIME: usize = 1;
pub const PORTS: usize = 2;
pub const TEMPLATE: usize = 3;
pub const ADDRESSES: usize = 4;
/// Narrow entries; in wide ones [`TAIL_OWN`].
pub const OWN: usize = 6;
/// In the last slot of the entry.
pub const LINK: usize = 7;
/// In the tail slot of a wide entry.
pub const TAIL_DESTINATION: usize = 1;
/// As above.
pub const TAIL_OWN: usize = 3;
/// Of helped connections: see [`super::helped`].
pub const TAIL_SHIFT: usize = 4;
/// As above.
pub const TAIL_PASSIVE: usize = 5;
/// As above.
pub const TAIL_CONTROLLED: usize = 6;
/// Of templates of calls: see [`super::call_ids`].
pub const TAIL_CALL_ID: usize = 4;

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A connection.
    Connection = 1,
    /// A persistence template.
    Template = 2,
}

/// Added to the kind of an entry that was retired; 0 is a free slot.
const RETIRED: u64 = 8;
/// Control word of the second slot of a wide entry.
pub const TAIL_MARK: u64 = 4;

/// Which way a packet of a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Client to VIP.
    Forward = 0,
    /// NAT destination to client.
    Reply = 1,
}

const KIND_MASK: u64 = 0xf;
const CLIENT_V6: u64 = 1 << 4;
const DESTINATION_V6: u64 = 1 << 5;
const METHOD_SHIFT: u32 = 6;
const PROTOCOL_SHIFT: u32 = 8;
const STATE_SHIFT: u32 = 16;
const TOUCHES_SHIFT: u32 = 24;
/// Counted up to here.
const TOUCHES_MAX: u8 = 15;
const HELPED: u64 = 1 << 28;
/// A template of the persistence engine sip.
const CALL_ID: u64 = 1 << 29;
const DEADLINE_SHIFT: u32 = 32;

/// A deadline is written again when it moves by this many ticks (0.5 s): so two workers that see the two directions of
/// a connection do not write its cache line at every packet.
const REFRESH_TICKS: u32 = 8;

/// The control word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control(pub u64);

impl Control {
    /// Bits that a packet's key decides: kind, client family, protocol, and whether it has a Call-ID.
    const KEY_MASK: u64 = KIND_MASK | CLIENT_V6 | 0xff << PROTOCOL_SHIFT | CALL_ID;

    pub fn new(
        kind: Kind,
        client: Family,
        destination: Family,
        protocol: Protocol,
        method: Method,
        state: State,
        deadline: Tick,
    ) -> Control {
        let method = match method {
            Method::Route => 0,
            Method::Masq => 1,
            Method::Tunnel => 2,
        };
        let mut bits = kind as u64
            | method << METHOD_SHIFT
            | (protocol.0 as u64) << PROTOCOL_SHIFT
            | (state as u64) << STATE_SHIFT
            | (deadline.0 as u64) << DEADLINE_SHIFT;
        if client == Family::V6 {
            bits |= CLIENT_V6;
        }
        if destination == Family::V6 {
            bits |= DESTINATION_V6;
        }
        Control(bits)
    }

    /// The same of a connection whose payload is looked at.
    pub fn helped(self) -> Control {
        Control(self.0 | HELPED)
    }

    /// The bits of [`Control::KEY_MASK`] that an entry of this kind with this key has.
    #[inline]
    pub fn key_bits(kind: Kind, key: &FlowKey) -> u64 {
        let family = if key.family == Family::V6 { CLIENT_V6 } else { 0 };
        kind as u64 | family | (key.protocol.0 as u64) << PROTOCOL_SHIFT
    }

    /// Kind, family and protocol are those of `key_bits`.
    #[inline]
    pub fn has_key_bits(self, key_bits: u64) -> bool {
        self.0 & Control::KEY_MASK == key_bits
    }

    /// A connection of an IPv4 client, of that protocol, in its [steady](State::steady) state, and not helped: in one
    /// comparison, if the protocol is a constant.
    #[inline(always)]
    pub fn is_steady_v4(self, protocol: Protocol) -> bool {
        const MASK: u64 = Control::KEY_MASK | 0xff << STATE_SHIFT | HELPED;
        let wanted = Kind::Connection as u64
            | (protocol.0 as u64) << PROTOCOL_SHIFT
            | (State::steady(protocol) as u64) << STATE_SHIFT;
        self.0 & MASK == wanted
    }

    #[inline]
    pub fn kind(self) -> Option<Kind> {
        match self.0 & KIND_MASK {
            1 => Some(Kind::Connection),
            2 => Some(Kind::Template),
            _ => None,
        }
    }

    #[inline]
    pub fn is_wide(self) -> bool {
        self.0 & (CLIENT_V6 | DESTINATION_V6 | HELPED | CALL_ID) != 0
    }

    /// Its payload is looked at.
    #[inline]
    pub fn is_helped(self) -> bool {
        self.0 & HELPED != 0
    }

    /// With a Call-ID: what key bits and control words of such templates have.
    pub fn with_call_id(self) -> Control {
        Control(self.0 | CALL_ID)
    }

    pub fn has_call_id(self) -> bool {
        self.0 & CALL_ID != 0
    }

    #[inline]
    pub fn client_family(self) -> Family {
        if self.0 & CLIENT_V6 != 0 {
            Family::V6
        } else {
            Family::V4
        }
    }

    #[inline]
    pub fn destination_family(self) -> Family {
        if self.0 & DESTINATION_V6 != 0 {
            Family::V6
        } else {
            Family::V4
        }
    }

    #[inline]
    pub fn method(self) -> Method {
        match self.0 >> METHOD_SHIFT & 3 {
            0 => Method::Route,
            1 => Method::Masq,
            _ => Method::Tunnel,
        }
    }

    #[inline]
    pub fn protocol(self) -> Protocol {
        Protocol((self.0 >> PROTOCOL_SHIFT) as u8)
    }

    /// Protocol and state in one comparison.
    #[inline]
    pub fn is_established_tcp(self) -> bool {
        let wanted = (State::Established as u16) << 8 | Protocol::TCP.0 as u16;
        (self.0 >> PROTOCOL_SHIFT) as u16 == wanted
    }

    /// NONE when the bits are of no state; only recovery meets such, and refuses them.
    #[inline]
    pub fn state(self) -> State {
        State::from_bits((self.0 >> STATE_SHIFT) as u8).unwrap_or(State::None)
    }

    #[inline]
    pub fn deadline(self) -> Tick {
        Tick((self.0 >> DEADLINE_SHIFT) as u32)
    }

    /// It is to be written again to have this deadline.
    #[inline(always)]
    pub fn is_due(self, deadline: Tick) -> bool {
        deadline.0.wrapping_sub(self.deadline().0) >= REFRESH_TICKS
    }

    #[inline]
    pub fn with_deadline(self, deadline: Tick) -> Control {
        Control(self.0 & 0xffff_ffff | (deadline.0 as u64) << DEADLINE_SHIFT)
    }

    #[inline]
    pub fn with_state(self, state: State) -> Control {
        Control(self.0 & !(0xff << STATE_SHIFT) | (state as u64) << STATE_SHIFT)
    }

    /// How often state or deadline were written since the entry began; counted up to 15.
    pub fn touches(self) -> u8 {
        (self.0 >> TOUCHES_SHIFT) as u8 & TOUCHES_MAX
    }

    #[inline]
    pub fn touched(self) -> Control {
        if self.touches() < TOUCHES_MAX {
            Control(self.0 + (1 << TOUCHES_SHIFT))
        } else {
            self
        }
    }

    pub fn retired(self) -> Control {
        Control(self.0 | RETIRED)
    }

    /// What a retired entry was.
    pub fn kind_before(self) -> Option<Kind> {
        Control(self.0 & !RETIRED).kind()
    }

    /// Everything in it can have been written by us; anything else is damage.
    pub fn is_sound(self) -> bool {
        let state = State::from_bits((self.0 >> STATE_SHIFT) as u8);
        let state_fits = match self.kind() {
            None => false,
            Some(Kind::Template) => state == Some(State::None),
            Some(Kind::Connection) => !self.has_call_id() && state.is_some_and(|state| state.is_of(self.protocol())),
        };
        let method_fits = self.0 >> METHOD_SHIFT & 3 < 3;
        let spare_fits = self.0 >> 30 & 3 == 0;
        let of_ftp = self.protocol() == Protocol::TCP && self.method() == Method::Masq;
        let helped_fits = !self.is_helped() || of_ftp && self.kind() == Some(Kind::Connection);
        state_fits && method_fits && spare_fits && helped_fits
    }
}

/// The ports word.
#[inline]
pub fn ports_word(client: u16, virtual_port: u16, destination: u16) -> u64 {
    (client as u64) << 48 | (virtual_port as u64) << 32 | (destination as u64) << 16 | client as u64
}

/// The own word: how long a template lasts, and the mark of its or a connection's service.
#[inline]
pub fn own_word(timeout_ticks: u32, fwmark: u32) -> u64 {
    (timeout_ticks as u64) << 32 | fwmark as u64
}

/// Runtime word.
#[inline]
pub fn runtime_word(destination_id: u32, client_hop: u16) -> u64 {
    (destination_id as u64) << 32 | (client_hop as u64) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_keeps_what_it_was_given() {
        for method in [Method::Route, Method::Masq, Method::Tunnel] {
            for (client, destination) in [
                (Family::V4, Family::V4),
                (Family::V4, Family::V6),
                (Family::V6, Family::V4),
                (Family::V6, Family::V6),
            ] {
                let c = Control::new(
                    Kind::Connection,
                    client,
                    destination,
                    Protocol::TCP,
                    method,
                    State::CloseWait,
                    Tick(0xdead_beef),
                );
                assert!(c.is_sound());
                assert_eq!(c.kind(), Some(Kind::Connection));
                assert_eq!((c.client_family(), c.destination_family()), (client, destination));
                assert_eq!(c.is_wide(), client == Family::V6 || destination == Family::V6);
                assert_eq!((c.method(), c.protocol()), (method, Protocol::TCP));
                assert_eq!((c.state(), c.deadline()), (State::CloseWait, Tick(0xdead_beef)));
                let d = c.with_state(State::Close).with_deadline(Tick(7));
                assert_eq!((d.state(), d.deadline(), d.method()), (State::Close, Tick(7), method));
                let touched = (0..20).fold(d, |control, _| control.touched());
                assert_eq!((d.touches(), d.touched().touches(), touched.touches()), (0, 1, 15));
                assert_eq!(Control(touched.0 & !(15 << 24)), d);
                assert!(touched.is_sound());
                assert_eq!(c.retired().kind(), None);
                assert_eq!(c.retired().kind_before(), Some(Kind::Connection));
                assert_eq!(c.retired().deadline(), c.deadline());
            }
        }
    }

    #[test]
    fn damage_is_seen() {
        let sound = Control::new(
            Kind::Connection,
            Family::V4,
            Family::V4,
            Protocol::UDP,
            Method::Masq,
            State::Udp,
            Tick(1),
        );
        assert!(sound.is_sound());
        assert!(!sound.with_state(State::Established).is_sound(), "a TCP state on UDP");
        assert!(
            !sound.with_state(State::SctpEstablished).is_sound(),
            "an SCTP state on UDP"
        );
        assert!(!Control(sound.0 | 0xff << 16).is_sound(), "no such state");
        assert!(!Control(sound.0 | 3 << 6).is_sound(), "no such method");
        assert!(!sound.helped().is_sound(), "only TCP is helped");
        assert!(!sound.with_call_id().is_sound(), "a connection has no Call-ID");
        assert!(!Control(sound.0 | 1 << 30).is_sound(), "bits that nobody sets");
        assert!(!Control(0).is_sound() && !Control(TAIL_MARK).is_sound() && !sound.retired().is_sound());
    }
}
