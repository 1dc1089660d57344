//! The short way of most packets: of UDP and of an established TCP connection, over IPv4, with nothing left to decide.
//!
//! The long way (`flow`) does the same to such a packet, byte by byte and count by count, in twice the instructions; a
//! test compares the two. All checks come before anything is written: a packet that fails one takes the long way from its
//! start.

use super::driver::{BATCH_MAX, Driver};
use super::pipeline::{Finding, Looked};
use super::round::Round;
use crate::conn::{Direction, EntryRef, Guess, Hit, Tick};
use crate::forward::tunnel;
use crate::packet::rewrite::{Endpoint, Link, Side};
use crate::packet::steady::{self, Headers, Steady, Tcp, Transport, Udp};
use crate::packet::{ETHERNET_HEADER_LEN, Frame, Parsed, Protocol};
use crate::service::Method;
use crate::table::{Counters, Destination, DestinationId, HopId, InterfaceId};

// A bit of `renewals` for each.
const _: () = assert!(BATCH_MAX <= u64::BITS as usize);

impl<D: Driver> Round<'_, D> {
    /// `Some`: the frame, which has this place in its batch, is rewritten and counted as traffic, and leaves there. `None`:
    /// nothing has happened to it, but that its Ethernet padding may be off.
    #[inline(always)]
    pub(super) fn express<T: Transport>(
        &mut self,
        frame: &mut D::Frame,
        interface: InterfaceId,
        guess: Guess,
        packet: &Steady<T>,
        place: usize,
    ) -> Option<InterfaceId> {
        let hit = self.reader.confirm_steady(guess, packet)?;
        let destination = self.table.destination(DestinationId(hit.entry.destination_id()))?;
        let exit = match hit.direction {
            Direction::Forward => self.express_inbound(frame, interface, packet, hit, destination),
            Direction::Reply => self.express_outbound(frame, packet, hit, destination),
        }?;
        self.renewals |= (hit.is_due(self.until::<T>()) as u64) << place;
        Some(exit)
    }

    /// The deadline of a connection whose steady packet comes now.
    #[inline(always)]
    fn until<T: Transport>(&self) -> Tick {
        match T::PROTOCOL {
            Protocol::UDP => self.datagrams_until,
            _ => self.established_until,
        }
    }

    /// Writes the deadlines that are due.
    ///
    /// Not at each packet: whether one is due cannot be foretold where connections have a packet about as often as deadlines are
    /// written. Written at once, after a jump, they took some 10 ns more of a packet at 10 M connections.
    #[inline(always)]
    pub(super) fn renew(&mut self, looked: &[Looked]) {
        // Of no bit it is 64: beyond any batch.
        while let Some(looked) = looked.get(self.renewals.trailing_zeros() as usize) {
            self.renewals &= self.renewals - 1;
            match looked.finding {
                Finding::SteadyTcp(_) => self.reader.renew_steady::<Tcp>(looked.guess, self.until::<Tcp>()),
                Finding::SteadyUdp(_) => self.reader.renew_steady::<Udp>(looked.guess, self.until::<Udp>()),
                // Not steady.
                Finding::Other(_) => {}
            }
        }
    }

    #[inline(always)]
    fn express_inbound<T: Transport>(
        &mut self,
        frame: &mut D::Frame,
        interface: InterfaceId,
        packet: &Steady<T>,
        hit: Hit<'_>,
        destination: &Destination,
    ) -> Option<InterfaceId> {
        let way = &destination.way;
        match hit.method() {
            Method::Route => {
                let mut headers = admit(frame, packet.ip_len, way.len_max)?;
                self.counters_of(destination).count_in(packet.ip_len as u64);
                headers.decrement_ttl();
                headers.set_link(&way.link);
            }
            Method::Masq => {
                let mut headers = admit(frame, packet.ip_len, way.len_max)?;
                self.note_link(hit.entry, interface, headers.ethernet());
                self.counters_of(destination).count_in(packet.ip_len as u64);
                let to = Endpoint::v4(hit.entry.destination_v4(), hit.entry.destination_port());
                headers.translate::<T>(Side::Destination, to);
                headers.set_link(&way.link);
            }
            Method::Tunnel => {
                let mut wrap = tunnel::SteadyWrap::open(frame, packet, way.tunnel_len_max)?;
                self.note_link(hit.entry, interface, wrap.ethernet());
                self.counters_of(destination).count_in(packet.ip_len as u64);
                wrap.close(packet, way, self.table.sysctls.pmtu_disc != 0, self.ids);
            }
        }
        Some(way.interface)
    }

    #[inline(always)]
    fn express_outbound<T: Transport>(
        &mut self,
        frame: &mut D::Frame,
        packet: &Steady<T>,
        hit: Hit<'_>,
        destination: &Destination,
    ) -> Option<InterfaceId> {
        let hop = self.client_hop(&hit.entry)?;
        let mut headers = admit(frame, packet.ip_len, hop.mtu as u32)?;
        self.counters_of(destination).count_out(packet.ip_len as u64);
        let from = Endpoint::v4(hit.entry.virtual_v4(), hit.entry.virtual_port());
        headers.translate::<T>(Side::Source, from);
        headers.set_link(&Link::new(hop.source, hop.destination));
        Some(hop.interface)
    }

    /// Ours of the counters of a destination.
    #[inline(always)]
    fn counters_of<'d>(&self, destination: &'d Destination) -> &'d Counters {
        &destination.counters[self.worker.0 as usize]
    }

    /// Sends on a client's steady packet whose connection, new or changed by it, is settled. `None` as above.
    #[inline(always)]
    pub(super) fn express_settled<F: Frame>(
        &self,
        frame: &mut F,
        parsed: &Parsed,
        method: Method,
        destination: &Destination,
        endpoint: impl FnOnce() -> Endpoint,
    ) -> Option<InterfaceId> {
        let way = &destination.way;
        if !parsed.is_steady || method == Method::Tunnel {
            return None;
        }
        let mut headers = admit(frame, parsed.ip_len(), way.len_max)?;
        match method {
            Method::Masq if parsed.flow.protocol == Protocol::UDP => {
                headers.translate::<Udp>(Side::Destination, endpoint());
            }
            Method::Masq => headers.translate::<Tcp>(Side::Destination, endpoint()),
            _ => headers.decrement_ttl(),
        }
        headers.set_link(&way.link);
        Some(way.interface)
    }

    /// The way back to the client, for replies and for errors about tunnels, is where its last frame came from.
    #[inline(always)]
    pub(super) fn note_link(&self, entry: EntryRef<'_>, interface: InterfaceId, link: &[u8; ETHERNET_HEADER_LEN]) {
        if !self.hops.is(HopId(entry.client_hop()), interface, link) {
            self.new_hop(entry, interface, link);
        }
    }

    /// The client's frames come another way now.
    #[cold]
    fn new_hop(&self, entry: EntryRef<'_>, interface: InterfaceId, link: &[u8; ETHERNET_HEADER_LEN]) {
        entry.set_client_hop(self.hops.intern(interface, link).0);
    }
}

/// The headers of a steady packet of that length that is short enough. Takes Ethernet padding off.
#[inline(always)]
fn admit<F: Frame>(frame: &mut F, ip_len: u32, len_max: u32) -> Option<Headers<'_>> {
    if ip_len > len_max {
        return None;
    }
    frame.set_len(steady::frame_len(ip_len)).ok()?;
    Headers::of(frame.bytes_mut())
}
