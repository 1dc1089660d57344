//! Tunnel (`-i`): the packet travels to its destination inside another one.
//!
//! ```text
//! | Ethernet | outer IP | (UDP, GUE) or (GRE) or nothing | inner IP, TTL less one | ...
//! ```
//! IPIP (RFC 2003, RFC 2473, RFC 4213), GRE (RFC 2784) and GUE (draft-ietf-intarea-gue), each of IPv4 and IPv6 in each.
//! The outer header copies TTL and traffic class of the inner one, except that "congestion experienced" becomes ECT(0);
//! Don't Fragment is copied between IPv4 headers when path MTU discovery is on. Outer identification is 0 with it.

use std::net::IpAddr;

use super::{Cut, Identifications, Limit, Outcome, admit, dont_fragment, is_simple};
use crate::packet::build::{self, Ipv4Header, Ipv6Header, OuterFields};
use crate::packet::parse::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};
use crate::packet::rewrite;
use crate::packet::steady::{HEADERS_LEN, Headers, Steady, Transport};
use crate::packet::{ChecksumOffload, ETHERNET_HEADER_LEN, Family, Frame, Offload, Parsed, Protocol, Reassembled};
use crate::packet::{checksum, flow::FlowKey};
use crate::service::{Tunnel, TunnelChecksum, TunnelKind};
use crate::table::{NextHop, Way};

/// What the outer header says.
#[derive(Clone, Copy, Debug)]
pub struct Outer<'a> {
    /// The way to the destination.
    pub hop: &'a NextHop,
    /// Our address on that way; of the destination's family.
    pub source: IpAddr,
    /// The destination.
    pub destination: IpAddr,
    /// Encapsulation.
    pub tunnel: Tunnel,
    /// `net.ipv4.vs.pmtu_disc`: Don't Fragment is copied and obeyed.
    pub path_mtu_discovery: bool,
}

impl Outer<'_> {
    /// Bytes in front of the inner packet.
    #[inline]
    pub fn overhead(&self) -> u16 {
        overhead(self.destination, self.tunnel)
    }
}

/// Bytes that a tunnel to this destination puts in front of a packet.
#[inline]
pub fn overhead(destination: IpAddr, tunnel: Tunnel) -> u16 {
    let ip = if destination.is_ipv4() {
        IPV4_HEADER_LEN
    } else {
        IPV6_HEADER_LEN
    } as u16;
    ip + match (tunnel.kind, tunnel.checksum) {
        (TunnelKind::Ipip, _) => 0,
        (TunnelKind::Gre, TunnelChecksum::NoCsum) => GRE_HEADER_LEN,
        (TunnelKind::Gre, _) => GRE_HEADER_LEN + GRE_CHECKSUM_LEN,
        (TunnelKind::Gue, _) => UDP_HEADER_LEN + GUE_HEADER_LEN,
    }
}

const GRE_HEADER_LEN: u16 = 4;
const GRE_CHECKSUM_LEN: u16 = 4;
const UDP_HEADER_LEN: u16 = 8;
const GUE_HEADER_LEN: u16 = 4;

/// RFC 8200 section 5: every IPv6 link carries that much.
const IPV6_MTU_MIN: u16 = 1280;

/// Puts the outer header in front. Also for ICMP errors about connections of the destination.
#[inline]
pub fn forward<F: Frame>(frame: &mut F, parsed: &Parsed, outer: &Outer<'_>, ids: &mut Identifications) -> Outcome {
    if frame.offload().segmentation.is_some() {
        return Outcome::Segment;
    }
    let overhead = outer.overhead();
    let limit = Limit {
        ignore_dont_fragment: !outer.path_mtu_discovery,
        ..Limit::way_in(outer.hop.mtu.saturating_sub(overhead))
    };
    if parsed.ip_len() + overhead as u32 > u16::MAX as u32 {
        return Outcome::TooBig { mtu: limit.mtu };
    }
    let must_cut = if is_simple(frame, parsed, limit) {
        if frame.offload().checksum == ChecksumOffload::Unknown {
            rewrite::finish(frame.bytes_mut(), parsed);
        }
        false
    } else {
        match admit(frame, parsed, limit) {
            Ok(cut) => cut.is_some(),
            Err(outcome) => return outcome,
        }
    };
    let inner_family = parsed.flow.family;
    let inner_len = parsed.ip_len() as u16;
    let bytes = frame.bytes_mut();
    rewrite::decrement_ttl(bytes, parsed);
    let (traffic_class, copied_dont_fragment) = match inner_family {
        Family::V4 => (bytes[15], outer.path_mtu_discovery && dont_fragment(bytes)),
        Family::V6 => (bytes[14] << 4 | bytes[15] >> 4, false),
    };
    if outer.tunnel.checksum != TunnelChecksum::NoCsum {
        finish_inner(frame, parsed);
    }
    let reassembled = frame.reassembled();
    if frame.grow_front(overhead as usize).is_err() {
        return Outcome::NoHeadroom;
    }
    shift_offload(frame, overhead);
    let bytes = frame.bytes_mut();
    rewrite::set_link(bytes, outer.hop.source, outer.hop.destination);
    let protocol = match (outer.tunnel.kind, inner_family) {
        (TunnelKind::Ipip, Family::V4) => Protocol::IPIP,
        (TunnelKind::Ipip, Family::V6) => Protocol::IPV6,
        (TunnelKind::Gre, _) => Protocol(47),
        (TunnelKind::Gue, _) => Protocol::UDP,
    };
    let (ethernet, ip) = bytes.split_at_mut(ETHERNET_HEADER_LEN);
    let total_len = inner_len + overhead;
    let family = Family::of(outer.destination);
    ethernet[12..14].copy_from_slice(&build::ether_type(family).0.to_be_bytes());
    match (outer.source, outer.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Ipv4Header {
            traffic_class: outer_traffic_class(traffic_class),
            total_len,
            id: if copied_dont_fragment { 0 } else { ids.ipv4() },
            dont_fragment: copied_dont_fragment,
            ttl: parsed.ttl - 1,
            protocol,
            source,
            destination,
        }
        .write(ip.first_chunk_mut().expect("the front grew by more")),
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6Header {
            traffic_class: outer_traffic_class(traffic_class),
            payload_len: total_len - IPV6_HEADER_LEN as u16,
            next_header: protocol,
            hop_limit: parsed.ttl - 1,
            source,
            destination,
        }
        .write(ip.first_chunk_mut().expect("the front grew by more")),
        (source, destination) => {
            unreachable!("a tunnel from {source} to {destination}: the source is of one family with it")
        }
    }
    match outer.tunnel.kind {
        TunnelKind::Ipip => {}
        TunnelKind::Gre => write_gre(ip, outer, inner_family),
        TunnelKind::Gue => write_gue(ip, outer, inner_family, &parsed.flow),
    }
    match reassembled {
        None if must_cut => Outcome::Fragment(Cut::even(outer.hop.mtu)),
        None => Outcome::Ready,
        Some(whole) => cut_outer(whole, inner_family, family, total_len, overhead, outer.hop.mtu),
    }
}

/// [`forward`] of a packet that needs nothing but to be wrapped, IPv4 in IPv4: its headers, and the room in front of them.
pub struct SteadyWrap<'a>(&'a mut [u8; STEADY_OVERHEAD + HEADERS_LEN]);

const STEADY_OVERHEAD: usize = IPV4_HEADER_LEN;

impl<'a> SteadyWrap<'a> {
    /// Makes room. `None`: there is none, or the packet is too long; nothing was written.
    #[inline(always)]
    pub fn open<F: Frame, T: Transport>(frame: &'a mut F, packet: &Steady<T>, len_max: u32) -> Option<SteadyWrap<'a>> {
        if packet.ip_len > len_max {
            return None;
        }
        frame.set_len(packet.frame_len()).ok()?;
        frame.grow_front(STEADY_OVERHEAD).ok()?;
        let front = frame.bytes_mut().first_chunk_mut();
        Some(SteadyWrap(front.expect("so much was read, and so much added")))
    }

    #[inline(always)]
    fn inner(&mut self) -> Headers<'_> {
        Headers::of(&mut self.0[STEADY_OVERHEAD..]).expect("as long as they are")
    }

    /// The Ethernet header that it came with.
    #[inline(always)]
    pub fn ethernet(&self) -> &[u8; ETHERNET_HEADER_LEN] {
        self.0[STEADY_OVERHEAD..].first_chunk().expect("longer than that")
    }

    /// Writes the outer header.
    #[inline(always)]
    pub fn close<T: Transport>(
        &mut self,
        packet: &Steady<T>,
        way: &Way,
        path_mtu_discovery: bool,
        ids: &mut Identifications,
    ) {
        let mut inner = self.inner();
        inner.decrement_ttl();
        let dont_fragment = if path_mtu_discovery { inner.dont_fragment() } else { 0 };
        // "Congestion experienced" (3) becomes 2, as in `outer_traffic_class`.
        let first = inner.first_short();
        let fields = OuterFields {
            first: first & !(first >> 1 & u16::from_ne_bytes([0, 1])),
            total_len: (packet.ip_len + STEADY_OVERHEAD as u32) as u16,
            id: if dont_fragment != 0 { 0 } else { ids.ipv4() },
            dont_fragment,
            ttl: inner.ttl(),
        };
        let mut outer = Headers::of(self.0).expect("longer than they are");
        outer.set_link(&way.link);
        outer.set_outer(&way.outer, fields);
    }
}

/// The outer DSCP and ECN: congestion experienced further back is not this hop's to report (RFC 3168 section 9.1.1).
#[inline]
fn outer_traffic_class(inner: u8) -> u8 {
    // 3 (CE) becomes 2 (ECT(0)); 0, 1 and 2 stay.
    inner & !(inner >> 1 & 1)
}

/// The place of an unfinished checksum moves with the front.
#[inline]
fn shift_offload<F: Frame>(frame: &mut F, by: u16) {
    let offload = frame.offload();
    if let ChecksumOffload::Unfinished { start, offset } = offload.checksum {
        let checksum = ChecksumOffload::Unfinished {
            start: start + by,
            offset,
        };
        frame.set_offload(Offload { checksum, ..offload });
    }
}

/// Checksums over the inner packet need its own to be there already.
#[cold]
fn finish_inner<F: Frame>(frame: &mut F, parsed: &Parsed) {
    let offload = frame.offload();
    if let ChecksumOffload::Unfinished { .. } = offload.checksum {
        rewrite::finish(frame.bytes_mut(), parsed);
        frame.set_offload(Offload {
            checksum: ChecksumOffload::Finished,
            ..offload
        });
    }
}

/// How a tunnelled datagram that had come in fragments is cut: as the kernel does, at the size received, and IPv6 with
/// the outer header as part of the first fragment as long as that stays small.
#[cold]
fn cut_outer(whole: Reassembled, inner: Family, outer: Family, total_len: u16, overhead: u16, mtu: u16) -> Outcome {
    let cut = match (inner, outer) {
        (Family::V4, Family::V4) => Cut::even(whole.largest.min(mtu)),
        (Family::V6, Family::V6) if whole.largest + overhead <= IPV6_MTU_MIN => Cut {
            first: whole.largest + overhead,
            rest: whole.largest,
        },
        (Family::V6, Family::V6) => Cut::even(whole.largest.max(IPV6_MTU_MIN).min(mtu)),
        _ => Cut::even(mtu),
    };
    let fits = match (inner, outer) {
        (Family::V6, Family::V6) => total_len <= whole.largest,
        _ => total_len <= cut.first,
    };
    if fits && whole.pieces == 1 {
        Outcome::Ready
    } else {
        Outcome::Fragment(cut)
    }
}

/// The Ethernet type of the inner packet, as GRE names it.
fn write_gre(ip: &mut [u8], outer: &Outer<'_>, inner: Family) {
    let at = if outer.destination.is_ipv4() {
        IPV4_HEADER_LEN
    } else {
        IPV6_HEADER_LEN
    };
    let gre = &mut ip[at..];
    let with_checksum = outer.tunnel.checksum != TunnelChecksum::NoCsum;
    gre[0..2].copy_from_slice(&[if with_checksum { 0x80 } else { 0 }, 0]);
    gre[2..4].copy_from_slice(&build::ether_type(inner).0.to_be_bytes());
    if with_checksum {
        gre[4..8].fill(0);
        let checksum = checksum::of(gre);
        gre[4..6].copy_from_slice(&checksum.to_be_bytes());
    }
}

fn write_gue(ip: &mut [u8], outer: &Outer<'_>, inner: Family, flow: &FlowKey) {
    let at = if outer.destination.is_ipv4() {
        IPV4_HEADER_LEN
    } else {
        IPV6_HEADER_LEN
    };
    let udp = &mut ip[at..];
    let len = udp.len() as u16;
    let protocol = match inner {
        Family::V4 => Protocol::IPIP,
        Family::V6 => Protocol::IPV6,
    };
    let source_port = gue_source_port(flow);
    udp[0..2].copy_from_slice(&source_port.to_be_bytes());
    udp[2..4].copy_from_slice(&outer.tunnel.port.to_be_bytes());
    udp[4..6].copy_from_slice(&len.to_be_bytes());
    udp[6..8].fill(0);
    udp[8..12].copy_from_slice(&[0, protocol.0, 0, 0]);
    if outer.tunnel.checksum != TunnelChecksum::NoCsum {
        let flow = FlowKey::new(Protocol::UDP, (outer.source, 0), (outer.destination, 0));
        let checksum = !checksum::fold(checksum::pseudo_header(&flow, len as u32) + checksum::sum(udp));
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// One port a flow, so that routers on the way keep a flow on one path; from the dynamic range (RFC 6335).
fn gue_source_port(flow: &FlowKey) -> u16 {
    let words = flow
        .addresses
        .iter()
        .fold(flow.ports as u64, |mixed, word| mixed.rotate_left(7) ^ word);
    let mixed = words.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    0xc000 | (mixed >> 50) as u16
}
