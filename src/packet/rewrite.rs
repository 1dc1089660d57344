//! Writing into a parsed frame: addresses, ports, TTL, link addresses, each with its checksum.
//!
//! Everything here takes the frame's bytes and the [`Parsed`] that [`parse`](super::parse::parse) made of them (panics
//! on any other). Fields are set through pnet_packet, whose accessors compile to plain stores; checksums follow by
//! RFC 1624, so that a packet with a wrong one stays wrong.

use std::net::{IpAddr, Ipv4Addr};

use pnet_packet::MutablePacket;
use pnet_packet::ipv4::MutableIpv4Packet;
use pnet_packet::ipv6::MutableIpv6Packet;
use pnet_packet::tcp::MutableTcpPacket;
use pnet_packet::udp::MutableUdpPacket;

use super::checksum::{self, Delta};
use super::flow::{Family, Protocol};
use super::frame::ChecksumOffload;
use super::parse::{END_OF_OPTIONS, IPV4_HEADER_LEN, NO_OPERATION, Parsed, RECORD_ROUTE};
use super::{ETHERNET_HEADER_LEN, Mac};

/// An address and port to be written into a packet of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// IPv6: high and low word. IPv4: the address and 0. In host order, as in [`FlowKey`](super::FlowKey).
    pub address: [u64; 2],
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// An IPv4 address and port.
    #[inline]
    pub fn v4(address: u32, port: u16) -> Endpoint {
        Endpoint {
            address: [address as u64, 0],
            port,
        }
    }

    /// An IPv6 address and port.
    #[inline]
    pub fn v6(address: u128, port: u16) -> Endpoint {
        Endpoint {
            address: [(address >> 64) as u64, address as u64],
            port,
        }
    }

    #[inline]
    pub(super) fn ipv4(self) -> u32 {
        self.address[0] as u32
    }

    #[inline]
    fn ipv6(self) -> u128 {
        (self.address[0] as u128) << 64 | self.address[1] as u128
    }
}

impl From<(IpAddr, u16)> for Endpoint {
    fn from((address, port): (IpAddr, u16)) -> Endpoint {
        match address {
            IpAddr::V4(address) => Endpoint::v4(address.to_bits(), port),
            IpAddr::V6(address) => Endpoint::v6(address.to_bits(), port),
        }
    }
}

/// Which end of a packet is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Source address and port.
    Source,
    /// Destination address and port.
    Destination,
}

/// Writes the Ethernet addresses; the type stays.
#[inline(always)]
pub fn set_link(bytes: &mut [u8], source: Mac, destination: Mac) {
    bytes[..6].copy_from_slice(&destination.0);
    bytes[6..12].copy_from_slice(&source.0);
}

/// Both Ethernet addresses as they are in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link(pub(super) [u8; 12]);

impl Link {
    /// From our address to that of the next hop.
    #[inline(always)]
    pub fn new(source: Mac, destination: Mac) -> Link {
        let mut link = Link::default();
        set_link(&mut link.0, source, destination);
        link
    }
}

/// What a decremented TTL does to the header checksum: the word of TTL and protocol becomes smaller by 0x0100.
const TTL_DELTA: Delta = Delta::from_sum(!0x0100);

/// Takes one off the TTL (which must not be 0) or hop limit.
#[inline]
pub fn decrement_ttl(bytes: &mut [u8], parsed: &Parsed) {
    match parsed.flow.family {
        Family::V4 => {
            let mut ip = ipv4_header(bytes);
            ip.set_ttl(parsed.ttl - 1);
            ip.set_checksum(TTL_DELTA.apply(ip.get_checksum()));
        }
        Family::V6 => ipv6_header(bytes).set_hop_limit(parsed.ttl - 1),
    }
}

#[inline]
fn ipv4_header(bytes: &mut [u8]) -> MutableIpv4Packet<'_> {
    MutableIpv4Packet::new(&mut bytes[ETHERNET_HEADER_LEN..]).expect("parsed as IPv4")
}

#[inline]
fn ipv6_header(bytes: &mut [u8]) -> MutableIpv6Packet<'_> {
    MutableIpv6Packet::new(&mut bytes[ETHERNET_HEADER_LEN..]).expect("parsed as IPv6")
}

/// Writes an address and port over one end of a packet and takes one off its TTL. What is known of its transport
/// checksum says how that is updated: [`ChecksumOffload::Unknown`] must have been settled by [`finish`] before.
#[inline]
pub fn translate(bytes: &mut [u8], parsed: &Parsed, side: Side, to: Endpoint, offload: ChecksumOffload) {
    let (network, transport) = bytes.split_at_mut(parsed.l4 as usize);
    let addresses = match parsed.flow.family {
        Family::V4 => translate_ipv4(network, parsed, side, to),
        Family::V6 => translate_ipv6(network, parsed, side, to),
    };
    match parsed.flow.protocol {
        Protocol::TCP => {
            let mut tcp = MutableTcpPacket::new(transport).expect("parsed as TCP");
            match side {
                Side::Source => tcp.set_source(to.port),
                Side::Destination => tcp.set_destination(to.port),
            }
            let field = tcp.get_checksum();
            tcp.set_checksum(match offload {
                ChecksumOffload::Unfinished { .. } => addresses.apply_unfinished(field),
                _ => addresses.u16(port(parsed, side), to.port).apply(field),
            });
        }
        Protocol::UDP => translate_udp(transport, parsed, side, to, offload, addresses),
        Protocol::SCTP => translate_sctp(transport, parsed, side, to),
        // AH and ESP have no ports; what AH says of the addresses becomes wrong, as by any NAT (RFC 3715).
        _ => {}
    }
}

/// The port that is replaced.
#[inline]
fn port(parsed: &Parsed, side: Side) -> u16 {
    match side {
        Side::Source => parsed.flow.source_port(),
        Side::Destination => parsed.flow.destination_port(),
    }
}

#[inline]
fn translate_ipv4(network: &mut [u8], parsed: &Parsed, side: Side, to: Endpoint) -> Delta {
    let mut ip = ipv4_header(network);
    let old = match side {
        Side::Source => (parsed.flow.addresses[0] >> 32) as u32,
        Side::Destination => parsed.flow.addresses[0] as u32,
    };
    let new = to.ipv4();
    match side {
        Side::Source => ip.set_source(Ipv4Addr::from_bits(new)),
        Side::Destination => ip.set_destination(Ipv4Addr::from_bits(new)),
    }
    let addresses = Delta::NONE.u32(old, new);
    ip.set_ttl(parsed.ttl - 1);
    ip.set_checksum(addresses.and(TTL_DELTA).apply(ip.get_checksum()));
    addresses
}

#[inline]
fn translate_ipv6(network: &mut [u8], parsed: &Parsed, side: Side, to: Endpoint) -> Delta {
    let mut ip = ipv6_header(network);
    let a = &parsed.flow.addresses;
    let old = match side {
        Side::Source => [a[0], a[1]],
        Side::Destination => [a[2], a[3]],
    };
    // pnet_packet writes an IPv6 address in eight steps; the bytes at once are the same.
    let at = match side {
        Side::Source => 8,
        Side::Destination => 24,
    };
    ip.packet_mut()[at..at + 16].copy_from_slice(&to.ipv6().to_be_bytes());
    ip.set_hop_limit(parsed.ttl - 1);
    Delta::NONE.u64(old[0], to.address[0]).u64(old[1], to.address[1])
}

fn translate_udp(
    transport: &mut [u8],
    parsed: &Parsed,
    side: Side,
    to: Endpoint,
    offload: ChecksumOffload,
    addresses: Delta,
) {
    let mut udp = MutableUdpPacket::new(transport).expect("parsed as UDP");
    match side {
        Side::Source => udp.set_source(to.port),
        Side::Destination => udp.set_destination(to.port),
    }
    let field = udp.get_checksum();
    let checksum = match offload {
        ChecksumOffload::Unfinished { .. } => return udp.set_checksum(addresses.apply_unfinished(field)),
        // No checksum in, a computed one out, as the kernel does.
        _ if field == 0 => udp_checksum(&udp, parsed, side, to),
        _ => addresses.u16(port(parsed, side), to.port).apply(field),
    };
    // RFC 768: a computed 0 is sent as all ones, as 0 says that there is none.
    udp.set_checksum(if checksum == 0 { 0xffff } else { checksum });
}

/// The checksum of a translated UDP datagram whose field is 0.
#[cold]
fn udp_checksum(udp: &MutableUdpPacket<'_>, parsed: &Parsed, side: Side, to: Endpoint) -> u16 {
    use pnet_packet::Packet;
    let mut flow = parsed.flow;
    let a = &mut flow.addresses;
    match (flow.family, side) {
        (Family::V4, Side::Source) => a[0] = to.address[0] << 32 | a[0] & 0xffff_ffff,
        (Family::V4, Side::Destination) => a[0] = a[0] >> 32 << 32 | to.address[0],
        (Family::V6, Side::Source) => (a[0], a[1]) = (to.address[0], to.address[1]),
        (Family::V6, Side::Destination) => (a[2], a[3]) = (to.address[0], to.address[1]),
    }
    let len = udp.get_length();
    let datagram = &udp.packet()[..len as usize];
    !checksum::fold(checksum::pseudo_header(&flow, len as u32) + checksum::sum(datagram))
}

/// SCTP's checksum is a CRC over the packet without any pseudo-header, so it changes with the port only. (The kernel writes
/// the right one over a wrong one too, and so hands damage on as sound.)
#[cold]
fn translate_sctp(transport: &mut [u8], parsed: &Parsed, side: Side, to: Endpoint) {
    let packet = &mut transport[..parsed.end as usize - parsed.l4 as usize];
    let at = match side {
        Side::Source => 0,
        Side::Destination => 2,
    };
    if port(parsed, side) == to.port {
        return;
    }
    let before = checksum::sctp(packet);
    packet[at..at + 2].copy_from_slice(&to.port.to_be_bytes());
    let after = checksum::sctp(packet);
    // A right one becomes right, and what was wrong in a wrong one stays.
    for i in 0..4 {
        packet[SCTP_CHECKSUM + i] ^= before[i] ^ after[i];
    }
}

/// Where SCTP has its checksum.
const SCTP_CHECKSUM: usize = 8;

/// Finishes a checksum that a local stack left to hardware that does not exist, when it looks like that: TCP's or UDP's field
/// holds the folded pseudo-header sum, SCTP's 0. (A finished checksum that happens to look so is written anew with the same
/// value.) For frames of [`ChecksumOffload::Unknown`].
#[inline]
pub fn finish(bytes: &mut [u8], parsed: &Parsed) {
    let (field, len) = match parsed.flow.protocol {
        Protocol::TCP => (parsed.l4 as usize + 16, parsed.end - parsed.l4 as u32),
        Protocol::UDP => {
            let at = parsed.l4 as usize + 4;
            (at + 2, u16::from_be_bytes([bytes[at], bytes[at + 1]]) as u32)
        }
        Protocol::SCTP => return finish_sctp(&mut bytes[parsed.l4 as usize..parsed.end as usize]),
        _ => return,
    };
    let pseudo = checksum::pseudo_header(&parsed.flow, len);
    let found = u16::from_be_bytes([bytes[field], bytes[field + 1]]);
    if checksum::may_be_sum(pseudo, found) && checksum::fold(pseudo) == found {
        complete(bytes, parsed.l4 as usize, field, len as usize, parsed.flow.protocol);
    }
}

/// Linux leaves 0 in the field when it leaves the CRC to a device. (Who leaves 0 there on purpose, by RFC 9653, must take the
/// right one as well: section 5.2.)
#[cold]
fn finish_sctp(packet: &mut [u8]) {
    let field = SCTP_CHECKSUM..SCTP_CHECKSUM + 4;
    if packet[field.clone()] == [0; 4] {
        let checksum = checksum::sctp(packet);
        packet[field].copy_from_slice(&checksum);
    }
}

#[cold]
fn complete(bytes: &mut [u8], start: usize, field: usize, len: usize, protocol: Protocol) {
    // The field takes part in the sum with the pseudo-header's.
    let checksum = checksum::of(&bytes[start..start + len]);
    let checksum = if checksum == 0 && protocol == Protocol::UDP {
        0xffff
    } else {
        checksum
    };
    bytes[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Notes `address` in a record route option that has room (RFC 791 section 3.1), as a kernel does with packets to
/// itself. For IPv4 headers with options; their checksum is made anew.
#[cold]
pub fn record_route(bytes: &mut [u8], parsed: &Parsed, address: Ipv4Addr) {
    let header = &mut bytes[ETHERNET_HEADER_LEN..parsed.l4 as usize];
    let mut at = IPV4_HEADER_LEN;
    while at + 2 < header.len() && header[at] != END_OF_OPTIONS {
        let len = if header[at] == NO_OPERATION {
            1
        } else {
            header[at + 1] as usize
        };
        if header[at] == RECORD_ROUTE {
            let (room, pointer) = (header.len().min(at + len), header[at + 2] as usize);
            // The pointer counts from 1, at the option's first byte.
            if pointer >= 4 && at + pointer + 3 <= room {
                header[at + pointer - 1..at + pointer + 3].copy_from_slice(&address.octets());
                header[at + 2] += 4;
            }
        }
        at += len;
    }
    header[10..12].fill(0);
    let checksum = checksum::of(header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
#[path = "rewrite_tests.rs"]
mod tests;
