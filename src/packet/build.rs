//! IP headers that uvs makes itself: outer headers of tunnels, and those of its ICMP errors.

use std::net::{Ipv4Addr, Ipv6Addr};

use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::ipv6::MutableIpv6Packet;
use pnet_packet::{MutablePacket, ethernet::EtherType};

use super::checksum;
use super::flow::Protocol;
use super::parse::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};

/// An IPv4 header without options.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Header {
    /// Type of service: DSCP and ECN.
    pub traffic_class: u8,
    /// Length of header and payload.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Don't Fragment.
    pub dont_fragment: bool,
    /// TTL.
    pub ttl: u8,
    /// What follows.
    pub protocol: Protocol,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
}

impl Ipv4Header {
    /// Writes it, with its checksum.
    #[inline(always)]
    pub fn write(&self, header: &mut [u8; IPV4_HEADER_LEN]) {
        // RFC 791 section 3.1, by words in the order of memory: a header for each tunnelled packet is too often to go field
        // by field.
        let [len, id] = [self.total_len, self.id].map(u16::to_be_bytes);
        let flags = (self.dont_fragment as u8) << 6;
        let words = [
            [0x45, self.traffic_class, len[0], len[1]],
            [id[0], id[1], flags, 0],
            [self.ttl, self.protocol.0, 0, 0],
            self.source.octets(),
            self.destination.octets(),
        ]
        .map(u32::from_ne_bytes);
        let sum = words.iter().map(|word| *word as u64).sum();
        for (at, word) in words.into_iter().enumerate() {
            header[at * 4..][..4].copy_from_slice(&word.to_ne_bytes());
        }
        header[10..12].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
    }
}

/// What is the same in the outer headers of all packets of IPv4 in IPv4 (RFC 2003) to one destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OuterIpv4 {
    /// Source and destination.
    addresses: [u8; 8],
    /// The sum of their words, in the order of memory.
    sum: u32,
}

/// What is not the same, copied from the inner header or made for it.
#[derive(Clone, Copy, Debug)]
pub struct OuterFields {
    /// Version 4, a header of five words, and the traffic class, as they are in memory.
    pub first: u16,
    /// As in [`Ipv4Header`].
    pub total_len: u16,
    /// As there.
    pub id: u16,
    /// [`DONT_FRAGMENT_IN_MEMORY`](super::parse::DONT_FRAGMENT_IN_MEMORY) or 0.
    pub dont_fragment: u16,
    /// As in [`Ipv4Header`].
    pub ttl: u8,
}

impl OuterIpv4 {
    /// Of a tunnel between these.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr) -> OuterIpv4 {
        let mut addresses = [0; 8];
        addresses[..4].copy_from_slice(&source.octets());
        addresses[4..].copy_from_slice(&destination.octets());
        let (words, _) = addresses.as_chunks();
        OuterIpv4 {
            addresses,
            sum: words.iter().map(|word| u16::from_ne_bytes(*word) as u32).sum(),
        }
    }

    /// Writes the header, as [`Ipv4Header::write`] does.
    #[inline(always)]
    pub fn write(&self, fields: OuterFields, header: &mut [u8; IPV4_HEADER_LEN]) {
        let words = [
            fields.first,
            fields.total_len.to_be(),
            fields.id.to_be(),
            fields.dont_fragment,
            u16::from_ne_bytes([fields.ttl, Protocol::IPIP.0]),
        ];
        let sum = words.iter().fold(self.sum, |sum, word| sum + *word as u32);
        for (at, word) in words.into_iter().enumerate() {
            header[at * 2..][..2].copy_from_slice(&word.to_ne_bytes());
        }
        header[10..12].copy_from_slice(&(!checksum::fold_short(sum)).to_ne_bytes());
        header[12..].copy_from_slice(&self.addresses);
    }
}

/// An IPv6 header.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Header {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Length of what follows.
    pub payload_len: u16,
    /// What follows.
    pub next_header: Protocol,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
}

impl Ipv6Header {
    /// Writes it, with flow label 0.
    #[inline]
    pub fn write(&self, header: &mut [u8; IPV6_HEADER_LEN]) {
        header.fill(0);
        let mut ip = MutableIpv6Packet::new(header).expect("40 bytes are an IPv6 header");
        ip.set_version(6);
        ip.set_traffic_class(self.traffic_class);
        ip.set_payload_length(self.payload_len);
        ip.set_next_header(IpNextHeaderProtocol(self.next_header.0));
        ip.set_hop_limit(self.hop_limit);
        let addresses = &mut ip.packet_mut()[8..];
        addresses[..16].copy_from_slice(&self.source.octets());
        addresses[16..].copy_from_slice(&self.destination.octets());
    }
}

/// Ethernet type of an IP version.
pub fn ether_type(family: super::Family) -> EtherType {
    match family {
        super::Family::V4 => pnet_packet::ethernet::EtherTypes::Ipv4,
        super::Family::V6 => pnet_packet::ethernet::EtherTypes::Ipv6,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::parse::DONT_FRAGMENT_IN_MEMORY;

    proptest! {
        /// Goal: a prepared outer header is the one that is written field by field. How: any fields, both ways.
        #[test]
        fn prepared_outer_header_is_the_same(
            source: u32, destination: u32, class: u8, total_len: u16, id: u16, dont_fragment: bool, ttl: u8,
        ) {
            let (source, destination) = (Ipv4Addr::from_bits(source), Ipv4Addr::from_bits(destination));
            let (mut prepared, mut by_fields) = ([0xee; IPV4_HEADER_LEN], [0xff; IPV4_HEADER_LEN]);
            let fields = OuterFields {
                first: u16::from_ne_bytes([0x45, class]),
                total_len,
                id,
                dont_fragment: if dont_fragment { DONT_FRAGMENT_IN_MEMORY } else { 0 },
                ttl,
            };
            OuterIpv4::new(source, destination).write(fields, &mut prepared);
            Ipv4Header {
                traffic_class: class,
                total_len,
                id,
                dont_fragment,
                ttl,
                protocol: Protocol::IPIP,
                source,
                destination,
            }
            .write(&mut by_fields);
            prop_assert_eq!(prepared, by_fields);
        }
    }
}
