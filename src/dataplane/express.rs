//! The short way of most packets: of an established TCP connection over IPv4, with nothing left to decide.
//!
//! The long way (`flow`) does the same to such a packet, byte by byte and count by count, in twice the instructions; a
//! test compares the two. All checks come before anything is written: a packet that fails one takes the long way from its
//! start.

use super::driver::Driver;
use super::pipeline::{Finding, Looked};
use super::round::Round;
use crate::conn::{Direction, EntryRef, Hit};
use crate::forward::{masq, route, tunnel};
use crate::packet::rewrite::{Endpoint, Side};
use crate::packet::steady::Steady;
use crate::packet::{Frame, Mac, TcpFlags};
use crate::service::Method;
use crate::table::{Destination, DestinationId, HopId, InterfaceId, Reach};

impl<D: Driver> Round<'_, D> {
    /// `Some`: the frame is rewritten and counted as traffic, and leaves there. `None`: nothing has happened to it, but that
    /// its Ethernet padding may be off.
    #[inline(always)]
    pub(super) fn express(
        &mut self,
        frame: &mut D::Frame,
        interface: InterfaceId,
        looked: &Looked,
    ) -> Option<InterfaceId> {
        let Finding::Steady(packet) = &looked.finding else {
            return None;
        };
        let hit = self.connections.confirm_steady(looked.guess, packet)?;
        let destination = self.table.destination(DestinationId(hit.entry.destination_id()))?;
        let exit = match hit.direction {
            Direction::Forward => self.express_inbound(frame, interface, packet, hit, destination)?,
            Direction::Reply => self.express_outbound(frame, packet, hit, destination)?,
        };
        if hit.is_due(self.established_until)
            && let Some(change) = hit.touch(TcpFlags(TcpFlags::ACK), self.now, self.timeouts)
        {
            change.count_on(&destination.load);
        }
        Some(exit)
    }

    #[inline(always)]
    fn express_inbound(
        &mut self,
        frame: &mut D::Frame,
        interface: InterfaceId,
        packet: &Steady,
        hit: Hit<'_>,
        destination: &Destination,
    ) -> Option<InterfaceId> {
        let Reach::Hop { hop, source } = &destination.reach else {
            return None;
        };
        if !destination.present || packet.ip_len > hop.mtu {
            return None;
        }
        frame.set_len(packet.frame_len()).ok()?;
        let from = Mac(*frame.bytes().get(6..)?.first_chunk()?);
        let method = hit.method();
        match method {
            Method::Masq => {
                let to = Endpoint::v4(hit.entry.destination_v4(), hit.entry.destination_port());
                masq::forward_steady(frame.bytes_mut(), Side::Destination, to, hop)?;
            }
            Method::Route => route::forward_steady(frame.bytes_mut(), hop)?,
            Method::Tunnel => {
                let outer = tunnel::Outer {
                    hop,
                    source: *source,
                    destination: destination.key.address,
                    tunnel: destination.tunnel,
                    path_mtu_discovery: self.table.sysctls.pmtu_disc != 0,
                };
                tunnel::forward_steady(frame, packet, &outer, self.ids)?;
            }
        }
        if method != Method::Route && !self.hops.is(HopId(hit.entry.client_hop()), interface, from) {
            self.new_hop(hit.entry, interface, from);
        }
        destination.counters[self.worker.0 as usize].count_in(packet.ip_len as u64);
        Some(hop.interface)
    }

    #[inline(always)]
    fn express_outbound(
        &mut self,
        frame: &mut D::Frame,
        packet: &Steady,
        hit: Hit<'_>,
        destination: &Destination,
    ) -> Option<InterfaceId> {
        let hop = self.client_hop(&hit.entry)?;
        if packet.ip_len > hop.mtu {
            return None;
        }
        frame.set_len(packet.frame_len()).ok()?;
        let from = Endpoint::v4(hit.entry.virtual_v4(), hit.entry.virtual_port());
        masq::forward_steady(frame.bytes_mut(), Side::Source, from, &hop)?;
        destination.counters[self.worker.0 as usize].count_out(packet.ip_len as u64);
        Some(hop.interface)
    }

    /// The client's frames come another way now.
    #[cold]
    fn new_hop(&self, entry: EntryRef<'_>, interface: InterfaceId, from: Mac) {
        entry.set_client_hop(self.hops.intern(interface, from).0);
    }
}
