//! One batch under way: what all decisions need at hand, and the one place where a frame's fate is carried out and counted.

use std::net::IpAddr;

use super::counters::FrameCounts;
use super::driver::{Driver, Received};
use super::pieces::Exit;
use super::pipeline::{ErrorBudget, Finding, Looked};
use super::waiting::Waiting;
use crate::conn::{ConnectionTable, Reader, ReplyLink, Tick, TimeoutTable, WorkerId};
use crate::forward::fragment::Reassembly;
use crate::forward::{Cut, Identifications, Outcome, icmp};
use crate::packet::parse::Packet;
use crate::packet::{ChecksumOffload, DropReason, Frame, Parsed, rewrite};
use crate::scheduler::Batch;
use crate::service::Method;
use crate::table::defence::PacketDropper;
use crate::table::{Destination, Finder, Hops, InterfaceId, Table};

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Verdict {
    /// Leaves at this interface.
    Transmit(InterfaceId),
    /// Leaves there in pieces.
    TransmitCut(InterfaceId, Cut),
    /// Belongs to the local stack.
    HandBack,
    /// Goes no further.
    Drop(DropReason),
    /// Its segments have gone their ways already, and are counted.
    Segmented,
}

/// A batch under way.
pub(super) struct Round<'a, D: Driver> {
    pub connections: &'a ConnectionTable,
    pub reader: Reader<'a>,
    pub hops: &'a Hops,
    pub table: &'a Table,
    /// Its services.
    pub services: Finder<'a>,
    pub timeouts: &'a TimeoutTable,
    pub now: Tick,
    pub now_ns: u64,
    /// The deadline of an established TCP connection whose packet comes now.
    pub established_until: Tick,
    /// The same of UDP.
    pub datagrams_until: Tick,
    /// Which of the counters of a destination are ours.
    pub worker: WorkerId,
    pub counts: &'a mut FrameCounts,
    pub ids: &'a mut Identifications,
    pub errors: &'a mut ErrorBudget,
    pub dropper: &'a mut PacketDropper,
    pub waiting: &'a mut Waiting,
    /// Bit n: frame n of the batch was steady, and the deadline of its connection is to be written again.
    pub renewals: u64,
    /// What schedulers take ahead for it.
    pub ahead: Batch<'a>,
    pub driver: &'a mut D,
}

impl<D: Driver> Round<'_, D> {
    /// Decides about the frame at this place of the batch and carries it out.
    #[inline(always)]
    pub fn one(&mut self, received: Received<D::Frame>, looked: &Looked, place: usize, fragments: &mut Reassembly) {
        let Received { mut frame, interface } = received;
        let Finding::SteadyTcp(packet) = &looked.finding else {
            return self.one_other(frame, interface, looked, place, fragments);
        };
        match self.express(&mut frame, interface, looked.guess, packet, place) {
            Some(exit) => self.transmit(frame, exit),
            None => self.long_way(frame, interface, looked, fragments),
        }
    }

    /// The same of all but TCP. Not inlined: the way of that is the shorter without it.
    #[inline(never)]
    fn one_other(
        &mut self,
        mut frame: D::Frame,
        interface: InterfaceId,
        looked: &Looked,
        place: usize,
        fragments: &mut Reassembly,
    ) {
        if let Finding::SteadyUdp(packet) = &looked.finding
            && let Some(exit) = self.express(&mut frame, interface, looked.guess, packet, place)
        {
            return self.transmit(frame, exit);
        }
        self.long_way(frame, interface, looked, fragments);
    }

    /// Lets replies find a new connection.
    #[inline(always)]
    pub(super) fn link(&self, link: ReplyLink) {
        if let Some(gone) = self.connections.link_replies(link) {
            self.table.count_off(self.worker, &gone);
        }
    }

    /// Lets replies find all of them.
    #[inline(never)]
    pub(super) fn link_waiting(&mut self) {
        while let Some(link) = self.waiting.pop() {
            self.link(link);
        }
    }

    /// Any frame.
    #[inline(never)]
    fn long_way(&mut self, mut frame: D::Frame, interface: InterfaceId, looked: &Looked, fragments: &mut Reassembly) {
        let parsed = match &looked.finding {
            Finding::SteadyTcp(steady) => &steady.parsed(frame.bytes()),
            Finding::SteadyUdp(steady) => &steady.parsed(frame.bytes()),
            Finding::Other(Ok(Packet::Flow(parsed))) => parsed,
            Finding::Other(other) => return self.of_no_flow(frame, interface, other, fragments),
        };
        match self.flow(&mut frame, interface, parsed, looked.hash, looked.guess) {
            Verdict::Transmit(exit) => self.transmit(frame, exit),
            Verdict::HandBack => {
                make_fit_for_stack(&mut frame, parsed);
                self.settle(frame, Verdict::HandBack);
            }
            verdict => self.settle(frame, verdict),
        }
    }

    /// A frame without ports.
    #[inline(never)]
    fn of_no_flow(
        &mut self,
        mut frame: D::Frame,
        interface: InterfaceId,
        finding: &Result<Packet, DropReason>,
        fragments: &mut Reassembly,
    ) {
        let verdict = match finding {
            Ok(Packet::Fragment(fragment)) => {
                return self.fragment(frame, interface, fragment, fragments);
            }
            Ok(Packet::IcmpError(parsed)) => self.related(&mut frame, interface, parsed),
            Ok(Packet::Secured(parsed)) => self.secured(&mut frame, interface, parsed),
            // A flow takes the way that all flows take.
            Ok(Packet::Flow(_) | Packet::Other) => Verdict::HandBack,
            Err(reason) => Verdict::Drop(*reason),
        };
        self.settle(frame, verdict);
    }

    /// Carries a verdict out and counts it.
    #[inline(never)]
    pub(super) fn settle(&mut self, frame: D::Frame, verdict: Verdict) {
        match verdict {
            Verdict::Transmit(interface) => self.transmit(frame, interface),
            Verdict::HandBack => {
                let taken = self.driver.hand_back(frame);
                self.counts.hand_back(taken);
            }
            Verdict::Drop(reason) => {
                self.driver.free(frame);
                self.counts.drop(reason);
            }
            Verdict::TransmitCut(interface, cut) => {
                self.send_pieces(&frame, cut, Exit::Interface(interface), 1);
                self.driver.free(frame);
            }
            Verdict::Segmented => self.driver.free(frame),
        }
    }

    #[inline(always)]
    fn transmit(&mut self, frame: D::Frame, interface: InterfaceId) {
        let sent = self.driver.transmit(interface, frame);
        self.counts.transmit(sent);
    }

    /// What a forwarding method said, as a verdict; the sender is told where that is due. `teller` is who tells it.
    #[inline(always)]
    pub fn conclude<F: Frame>(
        &mut self,
        frame: &F,
        parsed: &Parsed,
        interface: InterfaceId,
        leaves_at: InterfaceId,
        outcome: Outcome,
        teller: Teller<'_>,
    ) -> Verdict {
        if outcome == Outcome::Ready {
            return Verdict::Transmit(leaves_at);
        }
        self.conclude_otherwise(frame, parsed, interface, leaves_at, outcome, teller)
    }

    #[cold]
    fn conclude_otherwise<F: Frame>(
        &mut self,
        frame: &F,
        parsed: &Parsed,
        interface: InterfaceId,
        leaves_at: InterfaceId,
        outcome: Outcome,
        teller: Teller<'_>,
    ) -> Verdict {
        match outcome {
            Outcome::Ready => Verdict::Transmit(leaves_at),
            Outcome::Fragment(cut) => Verdict::TransmitCut(leaves_at, cut),
            Outcome::TtlExpired => {
                self.tell(icmp::Error::TimeExceeded, frame, parsed, interface, teller);
                Verdict::Drop(DropReason::TtlExpired)
            }
            Outcome::TooBig { mtu } => {
                self.tell(icmp::Error::TooBig { mtu }, frame, parsed, interface, teller);
                Verdict::Drop(DropReason::TooBig)
            }
            Outcome::NoHeadroom => Verdict::Drop(DropReason::NoHeadroom),
            // Only Tunnel says this, and it asks before: see `flow`.
            Outcome::Segment => Verdict::Drop(DropReason::NoHeadroom),
        }
    }

    /// Sends the sender of a frame an ICMP error. What uvs says about a connection counts as its outgoing traffic
    /// (FACTS: counters).
    #[cold]
    pub fn tell<F: Frame>(
        &mut self,
        error: icmp::Error,
        about: &F,
        parsed: &Parsed,
        interface: InterfaceId,
        teller: Teller<'_>,
    ) {
        let Some(source) = self.source_of(&teller, parsed, interface) else {
            return;
        };
        let Some(mut reply) = self.driver.allocate() else {
            return;
        };
        if !icmp::error(error, about, parsed, source, &mut reply, self.ids) {
            self.driver.free(reply);
            return;
        }
        // Too big is never withheld: path MTU discovery depends on it (so also Linux's `icmp_ratemask`).
        if !matches!(error, icmp::Error::TooBig { .. }) && !self.errors.spend(self.now_ns) {
            self.counts.errors_withheld += 1;
            self.driver.free(reply);
            return;
        }
        // The kernel counts them as its connection's where it takes what they quote for a reply: not in NAT, whose replies
        // come from the destination.
        if let Teller::Service(Some(destination)) = teller
            && destination.method != Method::Masq
        {
            let len = reply.bytes().len() - crate::packet::ETHERNET_HEADER_LEN;
            destination.counters[self.worker.0 as usize].count_out(len as u64);
        }
        self.counts.generated += 1;
        let sent = self.driver.transmit(interface, reply);
        self.counts.transmit(sent);
    }

    /// The address that an error comes from.
    fn source_of(&self, teller: &Teller<'_>, parsed: &Parsed, interface: InterfaceId) -> Option<IpAddr> {
        match teller {
            Teller::Service(_) => Some(parsed.flow.destination()),
            Teller::Director => {
                let addresses = &self.table.interfaces.get(interface.0 as usize)?.addresses;
                let ours = parsed.flow.destination();
                let wanted = |a: &&IpAddr| a.is_ipv4() == ours.is_ipv4() && !self.table.is_virtual(**a);
                addresses
                    .iter()
                    .find(wanted)
                    .or_else(|| addresses.iter().find(|a| a.is_ipv4() == ours.is_ipv4()))
                    .copied()
            }
        }
    }
}

/// Who sends an ICMP error.
#[derive(Clone, Copy)]
pub(super) enum Teller<'a> {
    /// The virtual service: the packet's own destination address. With the connection's destination, if it has one.
    Service(Option<&'a Destination>),
    /// The director, by an address of the interface: towards NAT destinations.
    Director,
}

/// The local stack checks checksums, and a frame of which nothing is known may carry an unfinished one.
#[cold]
fn make_fit_for_stack<F: Frame>(frame: &mut F, parsed: &Parsed) {
    if frame.offload().checksum == ChecksumOffload::Unknown {
        rewrite::finish(frame.bytes_mut(), parsed);
    }
}
