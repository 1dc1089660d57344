//! Packets of TCP, UDP and SCTP: of known connections, and those that begin one.
//!
//! ```text
//! lookup --hit--> client to destination --> count, state, forward by the connection's method
//!    |       \--> destination to client --> state, translate back, leave by the client's hop
//!    \--miss--> service? --> may it begin a connection? --> template or scheduler --> insert --> as a hit
//!                  \--> a NAT destination's stray: dropped; all else: the local stack's
//! ```

use super::driver::Driver;
use super::round::{Round, Teller, Verdict};
use crate::conn::{Direction, EntryRef, Guess, Hash, Hit, sctp, tcp};
use crate::forward::{Outcome, icmp, masq, mss, route, tunnel};
use crate::packet::rewrite::Endpoint;
use crate::packet::{ChecksumOffload, ChunkType, DropReason, Family, Frame, Mac, Parsed, Protocol, TcpFlags};
use crate::service::Method;
use crate::table::{Destination, DestinationId, HopId, InterfaceId, NextHop, Reach};

impl<D: Driver> Round<'_, D> {
    /// A packet of a flow.
    #[inline(always)]
    pub(super) fn flow<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        hash: Hash,
        guess: Guess,
    ) -> Verdict {
        match self.connections.confirm(guess, &parsed.flow) {
            Some(hit) => self.known(frame, interface, parsed, hit),
            None => self.search(frame, interface, parsed, hash),
        }
    }

    /// The guess was wrong, or there was none.
    #[inline(always)]
    fn search<F: Frame>(&mut self, frame: &mut F, interface: InterfaceId, parsed: &Parsed, hash: Hash) -> Verdict {
        if self.connections.is_absent(hash) && tcp::may_create(parsed.tcp_flags) {
            return self.unknown(frame, interface, parsed, hash);
        }
        self.search_closely(frame, interface, parsed, hash)
    }

    #[inline(never)]
    fn search_closely<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        hash: Hash,
    ) -> Verdict {
        if let Some(hit) = self.connections.lookup(hash, &parsed.flow) {
            return self.known(frame, interface, parsed, hit);
        }
        if !tcp::may_create(parsed.tcp_flags) && self.waiting.has(hash) {
            self.link_waiting();
            return self.search_closely(frame, interface, parsed, hash);
        }
        self.unknown(frame, interface, parsed, hash)
    }

    #[inline(always)]
    pub(super) fn known<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        hit: Hit<'_>,
    ) -> Verdict {
        match hit.direction {
            Direction::Forward => self.inbound(frame, interface, parsed, hit),
            Direction::Reply => self.outbound(frame, interface, parsed, hit),
        }
    }

    /// A client's packet of a known connection.
    #[inline(always)]
    fn inbound<F: Frame>(&mut self, frame: &mut F, interface: InterfaceId, parsed: &Parsed, hit: Hit<'_>) -> Verdict {
        let entry = hit.entry;
        // Packets of other protocols have no flags, and no chunk.
        let may_begin = tcp::may_create(parsed.tcp_flags) || parsed.chunk == Some(ChunkType::INIT);
        if may_begin && self.begins_anew(parsed, entry) {
            return self.begin_anew(frame, interface, parsed, entry);
        }
        let table = self.table;
        match table.destination(DestinationId(entry.destination_id())) {
            Some(destination) if destination.present => {
                self.inbound_present(frame, interface, parsed, hit, destination)
            }
            gone => self.destination_gone(frame, interface, parsed, entry, gone.is_some()),
        }
    }

    /// A SYN or an INIT on an old entry, or with expire_nodest_conn on any of a quiesced destination.
    #[cold]
    fn begins_anew(&self, parsed: &Parsed, entry: EntryRef<'_>) -> bool {
        let destination = self.table.destination(DestinationId(entry.destination_id()));
        // Whatever conn_reuse_mode is (since Linux 5.16).
        if self.table.sysctls.expire_nodest_conn != 0 && destination.is_some_and(|d| d.weight == 0) {
            return true;
        }
        let (state, mode) = (entry.state(), self.table.sysctls.conn_reuse_mode);
        let reusable = match parsed.flow.protocol {
            Protocol::SCTP => sctp::reusable(state, parsed.chunk, mode),
            _ => tcp::reusable(state, entry.method(), parsed.tcp_flags, mode),
        };
        reusable && !entry.is_controlled()
    }

    #[inline(always)]
    pub(super) fn inbound_present<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        hit: Hit<'_>,
        destination: &Destination,
    ) -> Verdict {
        destination.counters[self.worker.0 as usize].count_in(parsed.ip_len() as u64);
        if let Some(change) = hit.touch(parsed.signals(), self.now, self.timeouts) {
            change.count_on(&destination.load, self.worker);
        }
        let method = hit.method();
        if method != Method::Route
            && let Some(link) = frame.bytes().first_chunk()
        {
            self.note_link(hit.entry, interface, link);
        }
        let endpoint = || endpoint_of_destination(&hit.entry, parsed.flow.family);
        if hit.is_helped() {
            return match self.help(frame, parsed, hit) {
                Ok(parsed) => self.send(frame, interface, &parsed, method, destination, endpoint),
                Err(reason) => Verdict::Drop(reason),
            };
        }
        self.send(frame, interface, parsed, method, destination, endpoint)
    }

    /// Forwards a client's packet by `method`.
    #[inline(always)]
    pub(super) fn send<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        method: Method,
        destination: &Destination,
        endpoint: impl Fn() -> Endpoint,
    ) -> Verdict {
        if let Some(exit) = self.express_settled(frame, parsed, method, destination, &endpoint) {
            return Verdict::Transmit(exit);
        }
        let Reach::Hop { hop, source } = &destination.reach else {
            return self.unreachable(frame, interface, parsed, method, destination);
        };
        let outcome = match method {
            Method::Route => route::forward(frame, parsed, hop),
            Method::Masq => masq::forward_in(frame, parsed, endpoint(), hop),
            Method::Tunnel => {
                let outer = tunnel::Outer {
                    hop,
                    source: *source,
                    destination: destination.key.address,
                    tunnel: destination.tunnel,
                    path_mtu_discovery: self.table.sysctls.pmtu_disc != 0,
                };
                if parsed.tcp_flags.any(TcpFlags::SYN) && self.table.mss_clamp {
                    mss::clamp(frame, parsed, &outer);
                }
                match tunnel::forward(frame, parsed, &outer, self.ids) {
                    Outcome::Segment => return self.segment_into_tunnel(frame, interface, parsed, &outer, destination),
                    outcome => outcome,
                }
            }
        };
        self.conclude(
            frame,
            parsed,
            interface,
            hop.interface,
            outcome,
            Teller::Service(Some(destination)),
        )
    }

    /// There is no hop to the destination.
    #[cold]
    fn unreachable<F: Frame>(
        &mut self,
        frame: &F,
        interface: InterfaceId,
        parsed: &Parsed,
        method: Method,
        destination: &Destination,
    ) -> Verdict {
        match destination.reach {
            Reach::Hop { .. } => Verdict::Drop(DropReason::NoRoute),
            Reach::Local if destination.is_local_on_another_port(method, parsed.flow.destination_port()) => {
                Verdict::Drop(DropReason::LocalPort)
            }
            Reach::Local => Verdict::HandBack,
            Reach::Resolving => Verdict::Drop(DropReason::NoNeighbour),
            Reach::ForeignInterface => Verdict::Drop(DropReason::ForeignInterface),
            Reach::Unreachable => {
                let teller = Teller::Service(Some(destination));
                self.tell(icmp::Error::HostUnreachable, frame, parsed, interface, teller);
                Verdict::Drop(DropReason::NoRoute)
            }
            Reach::Silent => {
                // Who says so, and whether, is the kernel's way.
                let teller = match method {
                    Method::Masq => Some(Teller::Service(Some(destination))),
                    Method::Route => Some(Teller::Director),
                    Method::Tunnel => None,
                };
                if let Some(teller) = teller {
                    self.tell(icmp::Error::HostUnreachable, frame, parsed, interface, teller);
                }
                Verdict::Drop(DropReason::NoNeighbour)
            }
        }
    }

    /// The destination is in its service no more.
    #[cold]
    pub(super) fn destination_gone<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        entry: EntryRef<'_>,
        slot_known: bool,
    ) -> Verdict {
        if self.table.is_empty() {
            // Without any service IPVS is switched off, and so are we.
            return Verdict::HandBack;
        }
        if !slot_known || self.table.sysctls.expire_nodest_conn != 0 {
            return self.begin_anew(frame, interface, parsed, entry);
        }
        Verdict::Drop(DropReason::DestinationGone)
    }

    /// The packet's connection is over, and another may begin with it.
    #[cold]
    fn begin_anew<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        entry: EntryRef<'_>,
    ) -> Verdict {
        self.forget(entry);
        let hash = self.connections.hash(&parsed.flow);
        self.unknown(frame, interface, parsed, hash)
    }

    /// Takes an entry out of the table before its time, and out of the counts.
    #[cold]
    pub(super) fn forget(&self, entry: EntryRef<'_>) {
        if let Some(gone) = self.connections.remove(entry) {
            self.table.count_off(self.worker, &gone);
        }
    }

    /// A NAT destination's packet: back from the virtual service.
    #[inline(never)]
    pub(super) fn outbound<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        hit: Hit<'_>,
    ) -> Verdict {
        if hit.is_helped() && parsed.ttl > 1 {
            return match self.help(frame, parsed, hit) {
                Ok(parsed) => self.outbound_translated(frame, interface, &parsed, hit),
                Err(reason) => Verdict::Drop(reason),
            };
        }
        self.outbound_translated(frame, interface, parsed, hit)
    }

    #[inline]
    fn outbound_translated<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        hit: Hit<'_>,
    ) -> Verdict {
        let entry = hit.entry;
        let hop = self.client_hop(&entry);
        // The kernel's forwarding looks at the TTL before IPVS sees the packet.
        let outcome = if parsed.ttl <= 1 {
            Outcome::TtlExpired
        } else {
            self.count_reply(parsed, &hit);
            match hop {
                Some(hop) => masq::forward_out(frame, parsed, endpoint_of_service(&entry, parsed.flow.family), &hop),
                None => {
                    let from = endpoint_of_service(&entry, parsed.flow.family);
                    return self.reply_by_kernel(frame, interface, parsed, from);
                }
            }
        };
        let leaves_at = hop.map_or(interface, |hop| hop.interface);
        self.conclude(frame, parsed, interface, leaves_at, outcome, Teller::Director)
    }

    #[inline]
    fn count_reply(&self, parsed: &Parsed, hit: &Hit<'_>) {
        let change = hit.touch(parsed.signals(), self.now, self.timeouts);
        let Some(destination) = self.table.destination(DestinationId(hit.entry.destination_id())) else {
            return;
        };
        destination.counters[self.worker.0 as usize].count_out(parsed.ip_len() as u64);
        if let Some(change) = change {
            change.count_on(&destination.load, self.worker);
        }
    }

    /// How the client is reached.
    #[inline]
    pub(super) fn client_hop(&self, entry: &EntryRef<'_>) -> Option<NextHop> {
        let (interface, destination) = self.hops.get(HopId(entry.client_hop()))?;
        let ours = self.table.interfaces.get(interface.0 as usize)?;
        Some(NextHop {
            interface,
            source: ours.mac,
            destination,
            mtu: ours.mtu,
        })
    }

    /// After a restart, or when the server began, the client's hop is not known until its next frame: the local stack, which
    /// forwards by its routing table, takes the packet, translated to come `from` there.
    #[cold]
    pub(super) fn reply_by_kernel<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        from: Endpoint,
    ) -> Verdict {
        let hop = NextHop {
            interface,
            source: Mac::default(),
            destination: Mac::default(),
            mtu: u16::MAX,
        };
        match masq::forward_out(frame, parsed, from, &hop) {
            Outcome::Ready => {
                // What `parsed` says is of the packet before: nobody may finish its checksum by that.
                let mut offload = frame.offload();
                if offload.checksum == ChecksumOffload::Unknown {
                    offload.checksum = ChecksumOffload::Finished;
                    frame.set_offload(offload);
                }
                Verdict::HandBack
            }
            outcome => self.conclude(frame, parsed, interface, interface, outcome, Teller::Director),
        }
    }
}

/// Where a NAT connection's packets to its destination go; `family` is that of the connection.
#[inline]
pub(super) fn endpoint_of_destination(entry: &EntryRef<'_>, family: Family) -> Endpoint {
    match family {
        Family::V4 => Endpoint::v4(entry.destination_v4(), entry.destination_port()),
        Family::V6 => Endpoint::v6(entry.destination_v6(), entry.destination_port()),
    }
}

/// Where a NAT connection's packets to its client come from.
#[inline]
pub(super) fn endpoint_of_service(entry: &EntryRef<'_>, family: Family) -> Endpoint {
    match family {
        Family::V4 => Endpoint::v4(entry.virtual_v4(), entry.virtual_port()),
        Family::V6 => Endpoint::v6(entry.virtual_v6(), entry.virtual_port()),
    }
}
