//! Frames of clients and servers for tests in memory, of both families, and what is in frames that came out.

#![allow(dead_code, reason = "each test file uses a part")]

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep, icmpv4, icmpv6};
use uvs::packet::parse::{Packet, Parsed, parse};
use uvs::packet::{Family, Offload, checksum};

/// Both.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Options of `ipvsadm -a`.
pub const METHODS: [&str; 3] = ["-g", "-m", "-i"];

/// Who talks in one family.
#[derive(Clone, Copy)]
pub struct Addresses {
    /// A client behind a router.
    pub client: IpAddr,
    /// The virtual address.
    pub vip: IpAddr,
    /// A real server.
    pub server: IpAddr,
    /// The director's own, towards the real servers.
    pub director: IpAddr,
    /// A router somewhere between client and director.
    pub router: IpAddr,
}

/// Of this family.
pub fn addresses(family: Family) -> Addresses {
    let [client, vip, server, director, router] = match family {
        Family::V4 => ["198.51.100.7", "10.200.1.1", "172.16.0.11", "172.16.0.1", "203.0.113.9"],
        Family::V6 => [
            "2001:db8::7",
            "fd00:200::1",
            "fd00:16::11",
            "fd00:16::1",
            "2001:db8:9::9",
        ],
    }
    .map(|text| text.parse().expect("an address"));
    Addresses {
        client,
        vip,
        server,
        director,
        router,
    }
}

/// The port of a client that tests tell apart by a number.
pub fn client_port(number: usize) -> u16 {
    20_000 + number as u16
}

/// An Ethernet frame to the director, with an IP header that may be fragmented.
pub fn ip(from: IpAddr, to: IpAddr) -> PacketBuilderStep<IpHeaders> {
    let header = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, from.octets(), to.octets()).expect("a short packet");
            header.identification = 0x1234;
            header.dont_fragment = false;
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = Ipv6Header {
                source: from.octets(),
                destination: to.octets(),
                hop_limit: 64,
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        }
        _ => panic!("one family"),
    };
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xc0], [2, 0, 0, 0, 0, 0xd0]).ip(header)
}

/// A datagram.
pub fn udp(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    datagram(from, to, b"hello")
}

/// A datagram that says something.
pub fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let builder = ip(from.ip(), to.ip()).udp(from.port(), to.port());
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).expect("a vector takes everything");
    bytes
}

/// A TCP segment with flags as letters: `S`, `A`, `F`, `R`.
pub fn tcp(from: SocketAddr, to: SocketAddr, flags: &str) -> Vec<u8> {
    segment(from, to, flags, &[])
}

/// The same with a payload.
pub fn segment(from: SocketAddr, to: SocketAddr, flags: &str, payload: &[u8]) -> Vec<u8> {
    let mut builder = ip(from.ip(), to.ip()).tcp(from.port(), to.port(), 1, 9000);
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'A' => builder.ack(1),
            'F' => builder.fin(),
            'R' => builder.rst(),
            other => panic!("no flag {other}"),
        };
    }
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).expect("a vector takes everything");
    bytes
}

/// Host unreachable, about a frame that went the other way.
pub fn host_unreachable(from: IpAddr, to: IpAddr, about: &[u8]) -> Vec<u8> {
    let builder = ip(from, to);
    let mut bytes = Vec::new();
    let quote = &about[14..];
    let written = if from.is_ipv4() {
        let kind = etherparse::Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Host);
        builder.icmpv4(kind).write(&mut bytes, quote)
    } else {
        let kind = etherparse::Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Address);
        builder.icmpv6(kind).write(&mut bytes, quote)
    };
    written.expect("a vector takes everything");
    bytes
}

/// A frame that is a packet of a flow.
pub fn flow(bytes: &[u8]) -> Parsed {
    match parse(bytes, Offload::default()) {
        Ok(Packet::Flow(parsed)) => parsed,
        other => panic!("not a flow: {other:?}"),
    }
}

/// Whether the checksum of a TCP or UDP packet is right.
pub fn transport_checksum_is_right(bytes: &[u8]) -> bool {
    let parsed = flow(bytes);
    let transport = &bytes[parsed.l4 as usize..parsed.end as usize];
    let sum = checksum::pseudo_header(&parsed.flow, transport.len() as u32) + checksum::sum(transport);
    checksum::fold(sum) == 0xffff
}

/// A packet without the outer IP header of IPIP.
pub fn unwrap_tunnel(bytes: &[u8]) -> Vec<u8> {
    let header = if bytes[14] >> 4 == 4 { 20 } else { 40 };
    [&bytes[..14], &bytes[14 + header..]].concat()
}

/// A frame that is an ICMP error, with type and code.
pub fn icmp_error(bytes: &[u8]) -> (Parsed, [u8; 2]) {
    match parse(bytes, Offload::default()) {
        Ok(Packet::IcmpError(parsed)) => {
            let at = parsed.l4 as usize;
            (parsed, [bytes[at], bytes[at + 1]])
        }
        other => panic!("not an ICMP error: {other:?}"),
    }
}
