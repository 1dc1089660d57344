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
use crate::packet::{Frame, Mac, Parsed};
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
        let Finding::Common(parsed) = &looked.finding else {
            return None;
        };
        let hit = self
            .connections
            .confirm_steady(looked.guess, &parsed.flow, parsed.tcp_flags)?;
        if parsed.ttl <= 1 {
            return None;
        }
        let destination = self.table.destination(DestinationId(hit.entry.destination_id()))?;
        let exit = match hit.direction {
            Direction::Forward => self.express_inbound(frame, interface, parsed, hit, destination)?,
            Direction::Reply => self.express_outbound(frame, parsed, hit, destination)?,
        };
        if hit.is_due(self.established_until)
            && let Some(change) = hit.touch(parsed.tcp_flags, self.now, self.timeouts)
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
        parsed: &Parsed,
        hit: Hit<'_>,
        destination: &Destination,
    ) -> Option<InterfaceId> {
        let Reach::Hop { hop, source } = &destination.reach else {
            return None;
        };
        if !destination.present || parsed.ip_len() > hop.mtu as u32 {
            return None;
        }
        frame.set_len(parsed.end as usize).ok()?;
        let checksum = frame.offload().checksum;
        let from = Mac(*frame.bytes().get(6..)?.first_chunk()?);
        let method = hit.method();
        let done = match method {
            Method::Masq => {
                let to = Endpoint::v4(hit.entry.destination_v4(), hit.entry.destination_port());
                masq::rewrite_common(frame.bytes_mut(), parsed, Side::Destination, to, checksum, hop)
            }
            Method::Route => route::rewrite_common(frame.bytes_mut(), parsed, checksum, hop),
            Method::Tunnel => {
                let outer = tunnel::Outer {
                    hop,
                    source: *source,
                    destination: destination.key.address,
                    tunnel: destination.tunnel,
                    path_mtu_discovery: self.table.sysctls.pmtu_disc != 0,
                };
                tunnel::wrap_common(frame, parsed, &outer, self.ids)
            }
        };
        if !done {
            return None;
        }
        if method != Method::Route && !self.hops.is(HopId(hit.entry.client_hop()), interface, from) {
            self.new_hop(hit.entry, interface, from);
        }
        destination.counters[self.worker.0 as usize].count_in(parsed.ip_len() as u64);
        Some(hop.interface)
    }

    #[inline(always)]
    fn express_outbound(
        &mut self,
        frame: &mut D::Frame,
        parsed: &Parsed,
        hit: Hit<'_>,
        destination: &Destination,
    ) -> Option<InterfaceId> {
        let hop = self.client_hop(&hit.entry)?;
        if parsed.ip_len() > hop.mtu as u32 {
            return None;
        }
        frame.set_len(parsed.end as usize).ok()?;
        let checksum = frame.offload().checksum;
        let from = Endpoint::v4(hit.entry.virtual_v4(), hit.entry.virtual_port());
        if !masq::rewrite_common(frame.bytes_mut(), parsed, Side::Source, from, checksum, &hop) {
            return None;
        }
        destination.counters[self.worker.0 as usize].count_out(parsed.ip_len() as u64);
        Some(hop.interface)
    }

    /// The client's frames come another way now.
    #[cold]
    fn new_hop(&self, entry: EntryRef<'_>, interface: InterfaceId, from: Mac) {
        entry.set_client_hop(self.hops.intern(interface, from).0);
    }
}
