//! The ICMP errors that uvs sends: the virtual service (or, towards a NAT destination, the director) tells a sender why
//! its packet went no further.
//!
//! ```text
//! | Ethernet, received addresses swapped | IP: source as told, TTL 64 | ICMP | the packet, as much as fits |
//! ```
//! IPv4 errors have precedence 0xc0 (RFC 1812 section 4.3.2.5) and at most 576 bytes (section 4.3.2.3), IPv6 ones at most
//! 1280 (RFC 4443 section 2.4 c). As the kernel does, nothing is said about ICMP errors, to multicast or unspecified
//! addresses, or about frames that were not addressed to us alone (RFC 1122 section 3.2.2, RFC 4443 section 2.4 e).

use std::net::IpAddr;

use pnet_packet::icmp::{IcmpCode, IcmpType, MutableIcmpPacket};
use pnet_packet::icmpv6::{Icmpv6Code, Icmpv6Type, MutableIcmpv6Packet};

use super::Identifications;
use crate::packet::build::{Ipv4Header, Ipv6Header};
use crate::packet::checksum;
use crate::packet::parse::{ICMP_HEADER_LEN, IPV4_HEADER_LEN, IPV6_HEADER_LEN};
use crate::packet::{ChecksumOffload, ETHERNET_HEADER_LEN, FlowKey, Frame, Offload, Parsed, Protocol};

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No destination that may be used.
    PortUnreachable,
    /// No way to the destination.
    HostUnreachable,
    /// TTL or hop limit is used up.
    TimeExceeded,
    /// Longer than its way allows.
    TooBig {
        /// What it allows.
        mtu: u16,
    },
}

impl Error {
    /// Type, code and the word behind the checksum: RFC 792 and RFC 1191.
    fn ipv4(self) -> (u8, u8, u32) {
        match self {
            Error::PortUnreachable => (3, 3, 0),
            Error::HostUnreachable => (3, 1, 0),
            Error::TimeExceeded => (11, 0, 0),
            Error::TooBig { mtu } => (3, 4, mtu as u32),
        }
    }

    /// The same for IPv6: RFC 4443.
    fn ipv6(self) -> (u8, u8, u32) {
        match self {
            Error::PortUnreachable => (1, 4, 0),
            Error::HostUnreachable => (1, 3, 0),
            Error::TimeExceeded => (3, 0, 0),
            Error::TooBig { mtu } => (2, 0, mtu as u32),
        }
    }
}

const TTL: u8 = 64;
/// Precedence "internetwork control" over the type of service bits of the packet that it is about.
const PRECEDENCE: u8 = 0xc0;
const TYPE_OF_SERVICE_MASK: u8 = 0x1e;
const IPV4_ERROR_LEN_MAX: usize = 576;
const IPV6_ERROR_LEN_MAX: usize = 1280;

/// Writes an error about a frame into an empty one from [`Driver::allocate`](crate::dataplane::driver::Driver::allocate),
/// to leave where `about` came in. `source` is of the packet's family: the VIP, or towards a NAT destination our
/// address there. `false`: nothing may be said about that packet, or `into` is too small.
pub fn error<F: Frame, G: Frame>(
    error: Error,
    about: &F,
    parsed: &Parsed,
    source: IpAddr,
    into: &mut G,
    ids: &mut Identifications,
) -> bool {
    let bytes = about.bytes();
    let packet = &bytes[parsed.l3 as usize..parsed.end as usize];
    if !may_be_answered(bytes, parsed) {
        return false;
    }
    let written = match (source, parsed.flow.source()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let (kind, code, word) = error.ipv4();
            write(into, source, parsed.flow.source(), (kind, code, word), packet, ids)
        }
        (IpAddr::V6(_), IpAddr::V6(_)) => {
            let (kind, code, word) = error.ipv6();
            write(into, source, parsed.flow.source(), (kind, code, word), packet, ids)
        }
        _ => false,
    };
    if written {
        let (to, from) = (&bytes[6..12], &bytes[0..6]);
        let ethernet = into.bytes_mut();
        ethernet[0..6].copy_from_slice(to);
        ethernet[6..12].copy_from_slice(from);
        ethernet[12..14].copy_from_slice(&bytes[12..14]);
    }
    written
}

/// Whether an error may be sent about a packet at all.
fn may_be_answered(bytes: &[u8], parsed: &Parsed) -> bool {
    // The group bit of the link address: broadcast or multicast.
    let to_all = bytes[0] & 1 != 0;
    let source = parsed.flow.source();
    let answerable = match source {
        IpAddr::V4(source) => !source.is_multicast() && !source.is_broadcast() && !source.is_unspecified(),
        IpAddr::V6(source) => !source.is_multicast() && !source.is_unspecified(),
    };
    let about_icmp = matches!(parsed.flow.protocol, Protocol::ICMP | Protocol::ICMPV6);
    !to_all && answerable && !about_icmp
}

/// Writes everything behind the Ethernet header: IP, ICMP, quote. Type, code and word are as on the wire.
pub(super) fn write<G: Frame>(
    into: &mut G,
    source: IpAddr,
    destination: IpAddr,
    (kind, code, word): (u8, u8, u32),
    packet: &[u8],
    ids: &mut Identifications,
) -> bool {
    let (header, len_max) = match source {
        IpAddr::V4(_) => (IPV4_HEADER_LEN, IPV4_ERROR_LEN_MAX),
        IpAddr::V6(_) => (IPV6_HEADER_LEN, IPV6_ERROR_LEN_MAX),
    };
    let quote = &packet[..packet.len().min(len_max - header - ICMP_HEADER_LEN)];
    let total_len = header + ICMP_HEADER_LEN + quote.len();
    if into.set_len(ETHERNET_HEADER_LEN + total_len).is_err() {
        return false;
    }
    into.set_offload(Offload {
        checksum: ChecksumOffload::Finished,
        segmentation: None,
    });
    let (ip, icmp) = into.bytes_mut()[ETHERNET_HEADER_LEN..].split_at_mut(header);
    icmp[ICMP_HEADER_LEN..].copy_from_slice(quote);
    icmp[4..8].copy_from_slice(&word.to_be_bytes());
    let type_of_service = packet[1] & TYPE_OF_SERVICE_MASK;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = MutableIcmpPacket::new(icmp).expect("8 bytes are an ICMP header");
            packet.set_icmp_type(IcmpType(kind));
            packet.set_icmp_code(IcmpCode(code));
            packet.set_checksum(0);
            let checksum = checksum::of(icmp);
            icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
            Ipv4Header {
                traffic_class: PRECEDENCE | type_of_service,
                total_len: total_len as u16,
                id: ids.ipv4(),
                dont_fragment: false,
                ttl: TTL,
                protocol: Protocol::ICMP,
                source,
                destination,
            }
            .write(ip.first_chunk_mut().expect("split at an IPv4 header's length"));
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = MutableIcmpv6Packet::new(icmp).expect("8 bytes are an ICMPv6 header");
            packet.set_icmpv6_type(Icmpv6Type(kind));
            packet.set_icmpv6_code(Icmpv6Code(code));
            packet.set_checksum(0);
            let flow = FlowKey::v6(Protocol::ICMPV6, source.to_bits(), destination.to_bits(), 0);
            let checksum = !checksum::fold(checksum::pseudo_header(&flow, icmp.len() as u32) + checksum::sum(icmp));
            icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
            Ipv6Header {
                traffic_class: 0,
                payload_len: (total_len - IPV6_HEADER_LEN) as u16,
                next_header: Protocol::ICMPV6,
                hop_limit: TTL,
                source,
                destination,
            }
            .write(ip.first_chunk_mut().expect("split at an IPv6 header's length"));
        }
        _ => return false,
    }
    true
}
