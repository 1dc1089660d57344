//! Ethernet, IPv4 or IPv6, TCP, UDP, SCTP or ICMP: from bytes to [`Packet`].
//!
//! ```text
//! 0          14 = l3              l4                            end     frame's end
//! | Ethernet | IP, options or     | TCP, UDP, SCTP or ICMP ...  | Ethernet padding |
//! |          | extension headers  |                             |                  |
//! ```
//!
//! Only [`parse`] makes a [`Parsed`], a [`Fragment`]; afterwards their offsets are trusted for that frame. Headers are read by
//! etherparse's slices; the lengths in them are compared with each other and with the frame here. Refused is what
//! the kernel refuses, and in addition TCP and UDP headers whose lengths lie (the kernel forwards those).
//!
//! Limits: no VLAN tags, no jumbograms, at most [`EXTENSION_HEADERS_MAX`] IPv6 extension headers.

mod fragment;
pub mod sctp;

use etherparse::{
    Ethernet2HeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice,
    TcpHeaderSlice, UdpHeaderSlice, ether_type, ip_number,
};

use super::checksum;
use super::drop_reason::DropReason;
use super::flow::{FlowKey, Protocol};
use super::frame::{ChecksumOffload, Offload};
use super::{ETHERNET_HEADER_LEN, Family};
use fragment::{checked_fragment, fragment_ipv4, fragment_ipv6};

pub use fragment::Fragment;
pub use sctp::ChunkType;

/// IPv6 extension headers that are skipped at most in search of the transport header.
pub const EXTENSION_HEADERS_MAX: usize = 8;

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER_LEN: usize = 20;

/// Bytes of an IPv6 header without extension headers.
pub const IPV6_HEADER_LEN: usize = 40;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// TCP, UDP or SCTP, whole.
    Flow(Parsed),
    /// A fragment: to be put together first.
    Fragment(Fragment),
    /// An ICMP error about another packet: see [`super::quote`]. Its checksum is right.
    IcmpError(Parsed),
    /// AH or ESP, whole. They go where their key exchange goes, and nothing behind the IP header is looked at.
    Secured(Parsed),
    /// A good IP packet that no service can be about (ping, other protocols): the local stack's.
    Other,
}

/// What a frame is, with the offsets needed to rewrite it. Offsets count from the frame's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The flow: for ICMP errors that of the outer packet, with ports 0, as have AH and ESP.
    pub flow: FlowKey,
    /// Where the IP header starts (14).
    pub l3: u16,
    /// Where the transport header starts.
    pub l4: u16,
    /// Where the IP packet ends: the frame may be longer by Ethernet padding. At most 14 + 65535 + 40.
    pub end: u32,
    /// TCP flags; 0 for others.
    pub tcp_flags: TcpFlags,
    /// TTL or hop limit as received.
    pub ttl: u8,
    /// Of SCTP, the chunk that counts; `None` for others, and when there is no whole chunk header.
    pub chunk: Option<ChunkType>,
    /// [`steady::read`](super::steady::read) took it: TCP or UDP over IPv4 without options, TTL left, checksum finished, all in
    /// one frame.
    pub is_steady: bool,
}

impl Parsed {
    /// Length of the IP packet in bytes: what counts as bytes in the statistics.
    #[inline]
    pub fn ip_len(&self) -> u32 {
        self.end - ETHERNET_HEADER_LEN as u32
    }

    /// IPv4 without options, or IPv6 without extension headers.
    #[inline]
    pub fn is_plain(&self) -> bool {
        let header = match self.flow.family {
            Family::V4 => IPV4_HEADER_LEN,
            Family::V6 => IPV6_HEADER_LEN,
        };
        (self.l4 - self.l3) as usize == header
    }

    /// What a datagram of UDP carries, `frame` being the parsed one; of other packets nothing.
    pub fn datagram<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        const HEADER_LEN: usize = 8;
        let payload = self.l4 as usize + HEADER_LEN..self.end as usize;
        let is_udp = self.flow.protocol == Protocol::UDP;
        frame.get(payload).filter(|_| is_udp).unwrap_or_default()
    }

    /// What it says about the state of its connection.
    #[inline(always)]
    pub fn signals(&self) -> Signals {
        Signals {
            tcp_flags: self.tcp_flags,
            chunk: self.chunk,
        }
    }
}

/// What a packet says about the state of its connection, by whichever protocol it is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// As in [`Parsed`].
    pub tcp_flags: TcpFlags,
    /// As in [`Parsed`].
    pub chunk: Option<ChunkType>,
}

impl From<TcpFlags> for Signals {
    #[inline(always)]
    fn from(tcp_flags: TcpFlags) -> Signals {
        Signals { tcp_flags, chunk: None }
    }
}

impl From<ChunkType> for Signals {
    fn from(chunk: ChunkType) -> Signals {
        Signals {
            tcp_flags: TcpFlags(0),
            chunk: Some(chunk),
        }
    }
}

/// TCP flag bits as on the wire (RFC 9293 section 3.1), low byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgment.
    pub const ACK: u8 = 0x10;

    /// Any of the given bits set.
    #[inline]
    pub fn any(self, bits: u8) -> bool {
        self.0 & bits != 0
    }

    /// An acknowledgement, with data or without, and nothing else: leaves an established connection as it is.
    #[inline(always)]
    pub fn is_plain(self) -> bool {
        self.0 & (TcpFlags::FIN | TcpFlags::SYN | TcpFlags::RST | TcpFlags::ACK) == TcpFlags::ACK
    }
}

/// Says what a frame is, or why it goes no further. `offload` is what the driver said of it.
#[inline]
pub fn parse(bytes: &[u8], offload: Offload) -> Result<Packet, DropReason> {
    match parse_common(bytes) {
        Some(parsed) => Ok(Packet::Flow(parsed)),
        None => parse_any(bytes, offload),
    }
}

/// The common case in a straight line: TCP or UDP over IPv4 without options, nothing wrong with it. `None` says only that
/// [`parse_any`], which would say the same of such frames, has to look.
#[inline(always)]
pub fn parse_common(bytes: &[u8]) -> Option<Parsed> {
    const L3: usize = ETHERNET_HEADER_LEN;
    const L4: usize = L3 + IPV4_HEADER_LEN;
    let header: &[u8; L4] = bytes.first_chunk()?;
    // IPv4, version 4, five words of header.
    if header[12..15] != [0x08, 0x00, 0x45] {
        return None;
    }
    let ip = Ipv4HeaderSlice::from_slice(&header[L3..]).ok()?;
    let ip_header: &[u8; IPV4_HEADER_LEN] = header.last_chunk()?;
    let end = L3 + ip.total_len() as usize;
    let transport = bytes.get(L4..end)?;
    let fragmentation = u16::from_ne_bytes([ip_header[6], ip_header[7]]);
    if fragmentation & (MORE_FRAGMENTS | FRAGMENT_OFFSET).to_be() != 0 || !checksum::is_ipv4_header_20_right(ip_header)
    {
        return None;
    }
    let protocol = Protocol(ip.protocol().0);
    let (ports, tcp_flags) = if protocol == Protocol::TCP {
        tcp_fields(transport).ok()?
    } else if protocol == Protocol::UDP {
        (udp_ports(transport).ok()?, 0)
    } else {
        return None;
    };
    let flow = FlowKey::v4(
        Protocol(ip.protocol().0),
        u32::from_be_bytes(ip.source()),
        u32::from_be_bytes(ip.destination()),
        ports,
    );
    let place = Place {
        l4: L4,
        end,
        ttl: ip.ttl(),
    };
    Some(place.parsed(flow, ports, tcp_flags))
}

/// Everything else, and every verdict other than "a flow".
#[inline(never)]
pub fn parse_any(bytes: &[u8], offload: Offload) -> Result<Packet, DropReason> {
    let ethernet = Ethernet2HeaderSlice::from_slice(bytes).map_err(|_| DropReason::Truncated)?;
    match ethernet.ether_type() {
        ether_type::IPV4 => parse_ipv4(bytes, offload),
        ether_type::IPV6 => parse_ipv6(bytes, offload),
        _ => Err(DropReason::NotIp),
    }
}

#[inline(always)]
fn parse_ipv4(bytes: &[u8], offload: Offload) -> Result<Packet, DropReason> {
    const L3: usize = ETHERNET_HEADER_LEN;
    let ip = Ipv4HeaderSlice::from_slice(&bytes[L3..]).map_err(|error| {
        use etherparse::err::ipv4::HeaderSliceError::{Content, Len};
        match error {
            Len(_) => DropReason::Truncated,
            Content(_) => DropReason::BadIpHeader,
        }
    })?;
    let header = ip.slice();
    let l4 = L3 + header.len();
    let end = L3 + ip.total_len() as usize;
    if end < l4 {
        return Err(DropReason::BadIpHeader);
    }
    if end > bytes.len() {
        return Err(DropReason::Truncated);
    }
    match <&[u8; IPV4_HEADER_LEN]>::try_from(header) {
        Ok(header) if checksum::ipv4_header_20(header) == 0xffff => {}
        Ok(_) => return Err(DropReason::BadIpChecksum),
        Err(_) => check_options(header)?,
    }
    let flow = FlowKey::v4(
        Protocol(ip.protocol().0),
        u32::from_be_bytes(ip.source()),
        u32::from_be_bytes(ip.destination()),
        0,
    );
    let fragmentation = u16::from_be_bytes([header[6], header[7]]);
    if fragmentation & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        return fragment_ipv4(&ip, flow, end);
    }
    let place = Place { l4, end, ttl: ip.ttl() };
    parse_transport(bytes, flow, place, offload)
}

/// IPv4's More Fragments bit in the word at offset 6.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// IPv4's Don't Fragment bit there.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The same as it is in memory.
pub const DONT_FRAGMENT_IN_MEMORY: u16 = DONT_FRAGMENT.to_be();
/// IPv4's fragment offset there, in units of 8 bytes.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Walks IPv4 options: their lengths, the source routes among them, the header checksum over them.
#[cold]
fn check_options(header: &[u8]) -> Result<(), DropReason> {
    if checksum::of(header) != 0 {
        return Err(DropReason::BadIpChecksum);
    }
    let mut options = &header[IPV4_HEADER_LEN..];
    while let [kind, rest @ ..] = options {
        options = match *kind {
            END_OF_OPTIONS => return Ok(()),
            NO_OPERATION => rest,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(DropReason::SourceRoute),
            _ => match rest.first() {
                Some(&len) if len >= 2 => options.get(len as usize..).ok_or(DropReason::BadIpHeader)?,
                _ => return Err(DropReason::BadIpHeader),
            },
        };
    }
    Ok(())
}

/// IPv4 option kinds (RFC 791 section 3.1).
pub(super) const END_OF_OPTIONS: u8 = 0;
pub(super) const NO_OPERATION: u8 = 1;
pub(super) const RECORD_ROUTE: u8 = 7;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

#[inline]
fn parse_ipv6(bytes: &[u8], offload: Offload) -> Result<Packet, DropReason> {
    const L3: usize = ETHERNET_HEADER_LEN;
    let ip = Ipv6HeaderSlice::from_slice(&bytes[L3..]).map_err(|error| {
        use etherparse::err::ipv6::HeaderSliceError::{Content, Len};
        match error {
            Len(_) => DropReason::Truncated,
            Content(_) => DropReason::BadIpHeader,
        }
    })?;
    let mut l4 = L3 + IPV6_HEADER_LEN;
    let end = l4 + ip.payload_length() as usize;
    if end > bytes.len() {
        return Err(DropReason::Truncated);
    }
    let mut flow = FlowKey::v6(
        Protocol(ip.next_header().0),
        u128::from_be_bytes(ip.source()),
        u128::from_be_bytes(ip.destination()),
        0,
    );
    if !is_transport(flow.protocol) {
        match skip_extensions(bytes, ip, end)? {
            Extensions::End { l4: at, protocol } => {
                l4 = at;
                flow.protocol = protocol;
            }
            Extensions::Fragment(fragment) => {
                return checked_fragment(Fragment {
                    flow: FlowKey {
                        protocol: fragment.flow.protocol,
                        ..flow
                    },
                    ..fragment
                });
            }
        }
    }
    let place = Place {
        l4,
        end,
        ttl: ip.hop_limit(),
    };
    parse_transport(bytes, flow, place, offload)
}

/// Protocols that need no look at extension headers.
#[inline]
fn is_transport(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::TCP | Protocol::UDP)
}

/// Where a walk over IPv6 extension headers ended.
enum Extensions {
    /// At something else.
    End { l4: usize, protocol: Protocol },
    /// At a fragment header.
    Fragment(Fragment),
}

/// Skips hop-by-hop options, routing headers and destination options (RFC 8200 section 4).
#[cold]
fn skip_extensions(bytes: &[u8], ip: Ipv6HeaderSlice<'_>, end: usize) -> Result<Extensions, DropReason> {
    let mut at = ETHERNET_HEADER_LEN + IPV6_HEADER_LEN;
    let mut next = ip.next_header();
    let mut next_at = ETHERNET_HEADER_LEN + 6;
    for _ in 0..=EXTENSION_HEADERS_MAX {
        match next {
            ip_number::IPV6_HEADER_HOP_BY_HOP | ip_number::IPV6_ROUTE_HEADER | ip_number::IPV6_DESTINATION_OPTIONS => {
                let header = Ipv6RawExtHeaderSlice::from_slice(&bytes[at..end]).map_err(|_| DropReason::Truncated)?;
                next = header.next_header();
                next_at = at;
                at += header.slice().len();
            }
            ip_number::IPV6_FRAGMENTATION_HEADER => {
                let header = Ipv6FragmentHeaderSlice::from_slice(&bytes[at..end]).map_err(|_| DropReason::Truncated)?;
                return fragment_ipv6(ip, header, at, next_at, end).map(Extensions::Fragment);
            }
            IpNumber(protocol) => {
                return Ok(Extensions::End {
                    l4: at,
                    protocol: Protocol(protocol),
                });
            }
        }
    }
    Err(DropReason::BadIpHeader)
}

/// Where the transport packet is, and the TTL in front of it.
#[derive(Clone, Copy)]
struct Place {
    l4: usize,
    end: usize,
    ttl: u8,
}

impl Place {
    #[inline(always)]
    fn parsed(self, flow: FlowKey, ports: u32, tcp_flags: u8) -> Parsed {
        Parsed {
            flow: FlowKey { ports, ..flow },
            l3: ETHERNET_HEADER_LEN as u16,
            l4: self.l4 as u16,
            end: self.end as u32,
            tcp_flags: TcpFlags(tcp_flags),
            ttl: self.ttl,
            chunk: None,
            is_steady: false,
        }
    }
}

/// Inlined so that what it returns is written once, in its last place.
#[inline(always)]
fn parse_transport(bytes: &[u8], flow: FlowKey, place: Place, offload: Offload) -> Result<Packet, DropReason> {
    let transport = bytes.get(place.l4..place.end).ok_or(DropReason::Truncated)?;
    let (ports, tcp_flags) = match flow.protocol {
        Protocol::TCP => tcp_fields(transport)?,
        Protocol::UDP => (udp_ports(transport)?, 0),
        _ => return parse_rare(transport, place.parsed(flow, 0, 0), offload),
    };
    Ok(Packet::Flow(place.parsed(flow, ports, tcp_flags)))
}

/// Ports and flags of a TCP packet.
#[inline(always)]
fn tcp_fields(transport: &[u8]) -> Result<(u32, u8), DropReason> {
    let tcp = TcpHeaderSlice::from_slice(transport).map_err(|_| DropReason::BadTcpHeader)?;
    let ports = (tcp.source_port() as u32) << 16 | tcp.destination_port() as u32;
    Ok((ports, transport[13]))
}

/// Ports of a UDP packet.
#[inline(always)]
fn udp_ports(transport: &[u8]) -> Result<u32, DropReason> {
    let udp = UdpHeaderSlice::from_slice(transport).map_err(|_| DropReason::BadUdpHeader)?;
    let len = udp.length() as usize;
    if len < udp.slice().len() || len > transport.len() {
        return Err(DropReason::BadUdpHeader);
    }
    Ok((udp.source_port() as u32) << 16 | udp.destination_port() as u32)
}

/// SCTP, ICMP, AH and ESP.
#[cold]
fn parse_rare(transport: &[u8], mut parsed: Parsed, offload: Offload) -> Result<Packet, DropReason> {
    match (parsed.flow.protocol, parsed.flow.family) {
        (Protocol::SCTP, _) => {
            (parsed.flow.ports, parsed.chunk) = sctp::sctp_fields(transport)?;
            Ok(Packet::Flow(parsed))
        }
        (Protocol::ICMP, Family::V4) => {
            let is_error = matches!(
                transport.first(),
                Some(&(icmpv4::UNREACHABLE | icmpv4::SOURCE_QUENCH | icmpv4::TIME_EXCEEDED))
            );
            parse_icmp_error(transport, parsed, is_error, 0, offload)
        }
        (Protocol::ICMPV6, Family::V6) => {
            let is_error = matches!(transport.first(), Some(1..=127));
            let pseudo = checksum::pseudo_header(&parsed.flow, transport.len() as u32);
            parse_icmp_error(transport, parsed, is_error, pseudo, offload)
        }
        // RFC 4303 section 2: 8 bytes of ESP in front of what is encrypted; AH has more (RFC 4302 section 2).
        (Protocol::AH | Protocol::ESP, _) if transport.len() < 8 => Err(DropReason::Truncated),
        (Protocol::AH | Protocol::ESP, _) => Ok(Packet::Secured(parsed)),
        _ => Ok(Packet::Other),
    }
}

/// ICMP types (RFC 792) about a packet that are forwarded to whom it concerns; others are the local stack's.
pub mod icmpv4 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench.
    pub const SOURCE_QUENCH: u8 = 4;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
}

/// Bytes of an ICMP error in front of the packet it quotes.
pub const ICMP_HEADER_LEN: usize = 8;

fn parse_icmp_error(
    icmp: &[u8],
    parsed: Parsed,
    is_error: bool,
    pseudo: u64,
    offload: Offload,
) -> Result<Packet, DropReason> {
    if !is_error {
        return Ok(Packet::Other);
    }
    let unfinished = matches!(offload.checksum, ChecksumOffload::Unfinished { .. });
    if icmp.len() < ICMP_HEADER_LEN || !unfinished && checksum::fold(pseudo + checksum::sum(icmp)) != 0xffff {
        return Err(DropReason::BadIcmp);
    }
    Ok(Packet::IcmpError(parsed))
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
