//! An entry as it is used: by a worker through [`EntryRef`], elsewhere as a copy, [`Connection`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use super::call_ids::CallId;
use super::entries::{SLOT_BYTES, Slot};
use super::layout::{
    ADDRESSES, CONTROL, Control, Direction, Kind, OWN, PORTS, RUNTIME, TAIL_DESTINATION, TAIL_OWN, TEMPLATE, own_word,
    runtime_word,
};
use super::table::{ConnectionTable, call_id_at};
use super::{State, StateChange, Tick, TimeoutTable};
use crate::packet::{Family, FlowKey, Protocol, Signals};
use crate::service::Method;

/// What a lookup found.
#[derive(Clone, Copy)]
pub struct Hit<'t> {
    /// The connection.
    pub entry: EntryRef<'t>,
    /// Which of its keys the packet has.
    pub direction: Direction,
    /// Its control word as the lookup saw it: one load for all that follows.
    pub(super) seen: Control,
}

impl<'t> Hit<'t> {
    /// An entry found otherwise.
    #[inline]
    pub fn of(entry: EntryRef<'t>, direction: Direction) -> Hit<'t> {
        Hit {
            entry,
            direction,
            seen: entry.control(),
        }
    }

    /// Forwarding method of the entry.
    #[inline(always)]
    pub fn method(&self) -> Method {
        self.seen.method()
    }

    /// As [`EntryRef::is_helped`].
    #[inline(always)]
    pub fn is_helped(&self) -> bool {
        self.seen.is_helped()
    }

    /// An entry that stays in its state, and so gets this deadline, is to be written again: see [`EntryRef::touch`].
    #[inline(always)]
    pub fn is_due(&self, deadline: Tick) -> bool {
        self.seen.is_due(deadline)
    }

    /// As [`EntryRef::touch`].
    #[inline(always)]
    pub fn touch(&self, signals: impl Into<Signals>, now: Tick, timeouts: &TimeoutTable) -> Option<StateChange> {
        let signals = signals.into();
        // Most packets by far: data and acknowledgements.
        if self.seen.is_established_tcp()
            && signals.tcp_flags.is_plain()
            && !self.is_due(now.after(timeouts.ticks(State::Established)))
        {
            return None;
        }
        self.entry.touch_seen(self.seen, self.direction, signals, now, timeouts)
    }
}

/// An entry of the table. Valid until the worker that got it says [`ConnectionTable::quiescent`] or
/// [`ConnectionTable::offline`]; other workers may retire it meanwhile, and then it still reads as it was.
#[derive(Clone, Copy)]
pub struct EntryRef<'t> {
    pub(super) table: &'t ConnectionTable,
    pub(super) slot: &'t Slot,
}

impl<'t> EntryRef<'t> {
    #[inline]
    fn word(&self, n: usize) -> u64 {
        self.slot.words[n].load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn control(&self) -> Control {
        Control(self.word(CONTROL))
    }

    /// Its slot: names the entry as long as it lives.
    #[inline]
    pub fn number(&self) -> u32 {
        let start = self.table.slots().as_ptr().addr();
        ((std::ptr::from_ref(self.slot).addr() - start) / SLOT_BYTES) as u32
    }

    /// Nobody has retired it yet.
    #[inline]
    pub fn is_live(&self) -> bool {
        self.control().kind().is_some()
    }

    /// Forwarding method that it began with.
    #[inline]
    pub fn method(&self) -> Method {
        self.control().method()
    }

    /// IP protocol.
    #[inline]
    pub fn protocol(&self) -> Protocol {
        self.control().protocol()
    }

    /// State.
    #[inline]
    pub fn state(&self) -> State {
        self.control().state()
    }

    /// When it expires, unless a packet comes.
    #[inline]
    pub fn deadline(&self) -> Tick {
        self.control().deadline()
    }

    /// Family of client and virtual address.
    #[inline]
    pub fn family(&self) -> Family {
        self.control().client_family()
    }

    /// Family of the destination: may be the other one with Tunnel.
    #[inline]
    pub fn destination_family(&self) -> Family {
        self.control().destination_family()
    }

    /// Slot of its destination in the workers' table.
    #[inline]
    pub fn destination_id(&self) -> u32 {
        (self.word(RUNTIME) >> 32) as u32
    }

    /// Hop by which its client was last seen.
    #[inline]
    pub fn client_hop(&self) -> u16 {
        (self.word(RUNTIME) >> 16) as u16
    }

    /// Notes the hop by which the client's packet came. Writes only what is new.
    #[inline]
    pub fn set_client_hop(&self, hop: u16) {
        let word = self.word(RUNTIME);
        if (word >> 16) as u16 != hop {
            self.update_runtime(|id, _| (id, hop));
        }
    }

    /// Gives it another destination slot (the control thread, when a destination comes back under a new one).
    pub fn set_destination_id(&self, id: u32) {
        self.update_runtime(|_, hop| (id, hop));
    }

    #[cold]
    fn update_runtime(&self, change: impl Fn(u32, u16) -> (u32, u16)) {
        let change = |word: u64| {
            let (id, hop) = change((word >> 32) as u32, (word >> 16) as u16);
            Some(runtime_word(id, hop))
        };
        // Never fails: the closure always gives a value.
        let _unchanged = self.slot.words[RUNTIME].fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// Client port.
    #[inline]
    pub fn client_port(&self) -> u16 {
        (self.word(PORTS) >> 48) as u16
    }

    /// Virtual port.
    #[inline]
    pub fn virtual_port(&self) -> u16 {
        (self.word(PORTS) >> 32) as u16
    }

    /// Destination port.
    #[inline]
    pub fn destination_port(&self) -> u16 {
        (self.word(PORTS) >> 16) as u16
    }

    /// Client address of an IPv4 connection.
    #[inline]
    pub fn client_v4(&self) -> u32 {
        (self.word(ADDRESSES) >> 32) as u32
    }

    /// Virtual address of an IPv4 connection.
    #[inline]
    pub fn virtual_v4(&self) -> u32 {
        self.word(ADDRESSES) as u32
    }

    /// Destination address when it and the client's are IPv4.
    #[inline]
    pub fn destination_v4(&self) -> u32 {
        (self.word(ADDRESSES + 1) >> 32) as u32
    }

    /// Client address of an IPv6 connection.
    #[inline]
    pub fn client_v6(&self) -> u128 {
        (self.word(ADDRESSES) as u128) << 64 | self.word(ADDRESSES + 1) as u128
    }

    /// Virtual address of an IPv6 connection.
    #[inline]
    pub fn virtual_v6(&self) -> u128 {
        (self.word(ADDRESSES + 2) as u128) << 64 | self.word(ADDRESSES + 3) as u128
    }

    /// Destination address when it is IPv6.
    #[inline]
    pub fn destination_v6(&self) -> u128 {
        let word = |n: usize| self.tail_word(n).map_or(0, |word| word.load(Ordering::Relaxed)) as u128;
        word(TAIL_DESTINATION) << 64 | word(TAIL_DESTINATION + 1)
    }

    /// A word of its second slot. (The last slot of the table has none behind it.)
    #[inline]
    pub(super) fn tail_word(&self, n: usize) -> Option<&'t AtomicU64> {
        let tail = self.table.slots().get(self.number() as usize + 1)?;
        Some(&tail.words[n])
    }

    /// Client address.
    pub fn client(&self) -> IpAddr {
        match self.family() {
            Family::V4 => Ipv4Addr::from_bits(self.client_v4()).into(),
            Family::V6 => Ipv6Addr::from_bits(self.client_v6()).into(),
        }
    }

    /// Virtual address; of the template of a firewall mark, the mark.
    pub fn virtual_address(&self) -> IpAddr {
        match self.family() {
            Family::V4 => Ipv4Addr::from_bits(self.virtual_v4()).into(),
            Family::V6 => Ipv6Addr::from_bits(self.virtual_v6()).into(),
        }
    }

    /// Destination address.
    pub fn destination(&self) -> IpAddr {
        match (self.family(), self.destination_family()) {
            (Family::V4, Family::V4) => Ipv4Addr::from_bits(self.destination_v4()).into(),
            (Family::V6, Family::V4) => Ipv4Addr::from_bits(self.destination_v6() as u32).into(),
            (_, Family::V6) => Ipv6Addr::from_bits(self.destination_v6()).into(),
        }
    }

    /// The firewall mark of its service; 0 = its service has an address.
    pub fn fwmark(&self) -> u32 {
        self.own().load(Ordering::Relaxed) as u32
    }

    fn own(&self) -> &AtomicU64 {
        let tail = self.control().is_wide().then(|| self.tail_word(TAIL_OWN));
        tail.flatten().unwrap_or(&self.slot.words[OWN])
    }

    /// Of a template of the persistence engine `sip`: which call.
    pub fn call_id(&self) -> Option<CallId> {
        let has = self.control().has_call_id();
        call_id_at(self.table.slots(), self.number()).filter(|_| has)
    }

    /// A persistence template controls it, or a connection helped.
    #[inline]
    pub fn is_controlled(&self) -> bool {
        self.word(TEMPLATE) as u32 != 0 && self.control().kind() == Some(Kind::Connection)
    }

    /// What its client's packets have as flow: client to VIP. Of a template: masked client, port 0.
    pub fn flow(&self) -> FlowKey {
        let ports = (self.word(PORTS) >> 32) as u32;
        match self.family() {
            Family::V4 => FlowKey::v4(self.protocol(), self.client_v4(), self.virtual_v4(), ports),
            Family::V6 => FlowKey::v6(self.protocol(), self.client_v6(), self.virtual_v6(), ports),
        }
    }

    /// A packet came: state machine and deadline. Writes only what changed, the deadline in steps of 0.5 s. Returns the
    /// change of state, for whoever caused it to count; exactly one of several workers gets it.
    #[inline]
    pub fn touch(
        &self,
        direction: Direction,
        signals: impl Into<Signals>,
        now: Tick,
        timeouts: &TimeoutTable,
    ) -> Option<StateChange> {
        self.touch_seen(self.control(), direction, signals.into(), now, timeouts)
    }

    #[inline(never)]
    fn touch_seen(
        self,
        control: Control,
        direction: Direction,
        signals: Signals,
        now: Tick,
        timeouts: &TimeoutTable,
    ) -> Option<StateChange> {
        let from = control.state();
        let to = timeouts.next(from, control.protocol(), control.method(), direction, signals);
        let deadline = now.after(timeouts.ticks(to));
        if from == to && !control.is_due(deadline) {
            return None;
        }
        self.table.write_touch(&self, control, |state| {
            let to = timeouts.next(state, control.protocol(), control.method(), direction, signals);
            (to, now.after(timeouts.ticks(to)))
        })
    }

    /// A template lasts as long again as it did before: as its service said when it began, or what
    /// `last` said.
    pub fn rearm(&self, now: Tick) {
        let deadline = now.after((self.own().load(Ordering::Relaxed) >> 32) as u32);
        let control = self.control();
        if control.is_due(deadline) {
            // The state stays, so there is no change to report.
            let _none = self.table.write_touch(self, control, |state| (state, deadline));
        }
    }

    /// It lasts this long from now on; a template, whenever it is re-armed.
    pub(super) fn extend(&self, now: Tick, ticks: u32) {
        let control = self.control();
        if control.kind() == Some(Kind::Template) {
            self.own().store(own_word(ticks, self.fwmark()), Ordering::Relaxed);
        }
        // The state stays, so there is no change to report.
        let _none = self.table.write_touch(self, control, |state| (state, now.after(ticks)));
    }

    /// A copy, or `None` when it is retired.
    pub fn read(&self) -> Option<Connection> {
        let control = self.control();
        Some(self.read_as(control.kind()?, control))
    }

    /// A copy with the control word that it had when it was retired.
    pub(super) fn read_as(&self, kind: Kind, control: Control) -> Connection {
        Connection {
            number: self.number(),
            kind,
            protocol: control.protocol(),
            method: control.method(),
            state: control.state(),
            deadline: control.deadline(),
            destination_id: self.destination_id(),
            client: (self.client(), self.client_port()),
            virtual_address: (self.virtual_address(), self.virtual_port()),
            destination: (self.destination(), self.destination_port()),
            fwmark: self.fwmark(),
            call_id: self.call_id(),
            controlled: match kind {
                Kind::Connection => 0,
                Kind::Template => self.word(TEMPLATE) as u32,
            },
            helped: control.is_helped(),
        }
    }
}

impl PartialEq for EntryRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.slot, other.slot)
    }
}

impl std::fmt::Debug for EntryRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.read() {
            Some(connection) => connection.fmt(f),
            None => write!(f, "retired entry {}", self.number()),
        }
    }
}

/// An entry, copied out of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its slot.
    pub number: u32,
    /// Connection or template.
    pub kind: Kind,
    /// IP protocol; of the template of a firewall mark 0 (`IP`).
    pub protocol: Protocol,
    /// Forwarding method.
    pub method: Method,
    /// State.
    pub state: State,
    /// When it expires.
    pub deadline: Tick,
    /// Slot of its destination in the workers' table. Means nothing before recovery has set it.
    pub destination_id: u32,
    /// Client address and port; of a template masked, port 0.
    pub client: (IpAddr, u16),
    /// Virtual address and port; of the template of a firewall mark the mark, port 0.
    pub virtual_address: (IpAddr, u16),
    /// Destination address and port.
    pub destination: (IpAddr, u16),
    /// Firewall mark of its service; 0 = its service has an address.
    pub fwmark: u32,
    /// Of a template of the persistence engine `sip`: which call.
    pub call_id: Option<CallId>,
    /// Connections that a template controls.
    pub controlled: u32,
    /// Its payload is looked at ([`EntryRef::is_helped`]).
    pub helped: bool,
}
