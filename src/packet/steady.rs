//! The packets that are most: TCP and UDP over IPv4 with nothing special about them, read and rewritten by words.
//!
//! [`read`] says less of a packet than [`parse`](super::parse::parse) and the same: what it refuses only takes longer. Words
//! are read and written as they are in memory, which saves swapping them (RFC 1071 section 2 B).

use std::marker::PhantomData;

use super::build::{OuterFields, OuterIpv4};
use super::checksum;
use super::frame::{ChecksumOffload, Offload};
use super::parse::{DONT_FRAGMENT_IN_MEMORY, FRAGMENT_OFFSET, IPV4_HEADER_LEN, MORE_FRAGMENTS, Parsed, TcpFlags};
use super::rewrite::{Endpoint, Link, Side};
use super::{ETHERNET_HEADER_LEN, FlowKey, Protocol};

/// Bytes of the headers: Ethernet, IPv4 and TCP, the last two without options. (TCP's may follow; behind UDP's are the first
/// bytes of what it carries.)
pub const HEADERS_LEN: usize = L4 + TCP_HEADER_LEN;

const TCP_HEADER_LEN: usize = 20;
const ETHER_TYPE: usize = 12;
const L3: usize = ETHERNET_HEADER_LEN;
const TOTAL_LEN: usize = L3 + 2;
const FRAGMENTATION: usize = L3 + 6;
const TTL: usize = L3 + 8;
const IP_CHECKSUM: usize = L3 + 10;
const SOURCE: usize = L3 + 12;
const DESTINATION: usize = L3 + 16;
const L4: usize = L3 + IPV4_HEADER_LEN;
const DATA_OFFSET: usize = L4 + 12;
const FLAGS: usize = L4 + 13;
const UDP_LEN: usize = L4 + 4;

/// A transport protocol whose packets may be steady.
pub trait Transport: Copy {
    /// Which.
    const PROTOCOL: Protocol;
    /// Where its checksum is in the frame.
    const CHECKSUM: usize;

    /// Its header is whole and like most, in an IP packet of that length.
    fn is_header_good(headers: &[u8; HEADERS_LEN], ip_len: u32) -> bool;

    /// Its flags.
    fn flags(headers: &[u8; HEADERS_LEN]) -> TcpFlags;

    /// They leave the state of its connection as it is.
    fn is_plain(headers: &[u8; HEADERS_LEN]) -> bool;

    /// The new value of its checksum field, by the sum that was computed.
    fn checksum(sum: u16) -> u16;
}

/// RFC 9293.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp;

impl Transport for Tcp {
    const PROTOCOL: Protocol = Protocol::TCP;
    const CHECKSUM: usize = L4 + 16;

    #[inline(always)]
    fn is_header_good(headers: &[u8; HEADERS_LEN], ip_len: u32) -> bool {
        // Four times its length in bytes: words in the upper half of the byte.
        let header = (headers[DATA_OFFSET] & 0xf0) as i32;
        header >= TCP_HEADER_LEN as i32 * 4 && header <= (ip_len as i32 - IPV4_HEADER_LEN as i32) * 4
    }

    #[inline(always)]
    fn flags(headers: &[u8; HEADERS_LEN]) -> TcpFlags {
        TcpFlags(headers[FLAGS])
    }

    #[inline(always)]
    fn is_plain(headers: &[u8; HEADERS_LEN]) -> bool {
        Tcp::flags(headers).is_plain()
    }

    #[inline(always)]
    fn checksum(sum: u16) -> u16 {
        sum
    }
}

/// RFC 768. Datagrams of less than 12 bytes, which are shorter than [`HEADERS_LEN`], and those without a checksum, which get
/// one, take the long way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp;

impl Transport for Udp {
    const PROTOCOL: Protocol = Protocol::UDP;
    const CHECKSUM: usize = L4 + 6;

    #[inline(always)]
    fn is_header_good(headers: &[u8; HEADERS_LEN], ip_len: u32) -> bool {
        let short = |at: usize| u16::from_be_bytes([headers[at], headers[at + 1]]);
        let len = short(UDP_LEN) as u32 + IPV4_HEADER_LEN as u32;
        len == ip_len && L3 as u32 + len >= HEADERS_LEN as u32 && short(Udp::CHECKSUM) != 0
    }

    #[inline(always)]
    fn flags(_: &[u8; HEADERS_LEN]) -> TcpFlags {
        TcpFlags(0)
    }

    #[inline(always)]
    fn is_plain(_: &[u8; HEADERS_LEN]) -> bool {
        true
    }

    #[inline(always)]
    fn checksum(sum: u16) -> u16 {
        // 0 says that there is none.
        if sum == 0 { 0xffff } else { sum }
    }
}

/// What is kept of such a packet from pass to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steady<T> {
    /// As in [`FlowKey`].
    pub addresses: u64,
    /// As there.
    pub ports: u32,
    /// Length of the IP packet: the frame may be longer by Ethernet padding. [`NOT_PLAIN`] is added where it is so.
    pub ip_len: u32,
    transport: PhantomData<T>,
}

/// Added to the length where the flags are not [plain](TcpFlags::is_plain): longer than any packet may be, so that whoever
/// looks at the length need not look at the flags.
pub const NOT_PLAIN: u32 = 1 << 31;

impl<T: Transport> Steady<T> {
    /// Its flow.
    #[inline(always)]
    pub fn flow(&self) -> FlowKey {
        let (source, destination) = ((self.addresses >> 32) as u32, self.addresses as u32);
        FlowKey::v4(T::PROTOCOL, source, destination, self.ports)
    }

    /// Length of the frame without padding.
    #[inline(always)]
    pub fn frame_len(&self) -> usize {
        frame_len(self.ip_len)
    }

    /// What [`parse`](super::parse::parse) says of it, and that it is steady.
    #[inline]
    pub fn parsed(&self, bytes: &[u8]) -> Parsed {
        let headers = bytes.first_chunk().expect("so much was read");
        Parsed {
            flow: self.flow(),
            l3: L3 as u16,
            l4: L4 as u16,
            end: self.frame_len() as u32,
            tcp_flags: T::flags(headers),
            ttl: headers[TTL],
            chunk: None,
            is_steady: true,
        }
    }
}

/// Length of the frame without padding, of one whose IP packet is so long.
#[inline(always)]
pub fn frame_len(ip_len: u32) -> usize {
    // That it fits into 16 bits is known where it is read; said again here, it saves a comparison in `Window`.
    L3 + ip_len as u16 as usize
}

/// A good packet of that protocol over IPv4, whole, without options of IP, with TTL left, whose checksum is finished. `None` of any
/// other.
#[inline(always)]
pub fn read<T: Transport>(bytes: &[u8], offload: Offload) -> Option<Steady<T>> {
    let headers: &[u8; HEADERS_LEN] = bytes.first_chunk()?;
    let byte = |at: usize| headers[at];
    let short = |at: usize| u16::from_ne_bytes([headers[at], headers[at + 1]]);
    let long = |at: usize| u32::from_ne_bytes([headers[at], headers[at + 1], headers[at + 2], headers[at + 3]]);
    // No fragment, whatever the TTL, and that protocol: what most often is otherwise.
    let [high, low] = (MORE_FRAGMENTS | FRAGMENT_OFFSET).to_be_bytes();
    let kind = u32::from_ne_bytes([high, low, 0, 0xff]);
    if long(FRAGMENTATION) & kind != u32::from_ne_bytes([0, 0, 0, T::PROTOCOL.0]) {
        return None;
    }
    // IPv4, version 4, five words of header.
    let kind = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
    if long(ETHER_TYPE) & kind != u32::from_ne_bytes([0x08, 0x00, 0x45, 0]) {
        return None;
    }
    if byte(TTL) <= 1 {
        return None;
    }
    let ip_len = u16::from_be(short(TOTAL_LEN)) as u32;
    if L3 + ip_len as usize > bytes.len() || !T::is_header_good(headers, ip_len) {
        return None;
    }
    let addresses = long(SOURCE) as u64 + long(DESTINATION) as u64;
    // Not 0, as version and length are in it: of a right header a multiple of 0xffff.
    let header = addresses + long(L3) as u64 + long(L3 + 4) as u64 + long(TTL) as u64;
    if !header.is_multiple_of(0xffff) {
        return None;
    }
    if offload.segmentation.is_some() || matches!(offload.checksum, ChecksumOffload::Unfinished { .. }) {
        return None;
    }
    // The pseudo-header: what is left of the length when the IP header is taken off, in the order of memory.
    let len = short(TOTAL_LEN) as u64 + !(IPV4_HEADER_LEN as u16).to_be() as u64;
    let pseudo = addresses + len + (T::PROTOCOL.0 as u16).to_be() as u64;
    if checksum::may_be_sum(pseudo, short(T::CHECKSUM)) {
        return None;
    }
    Some(Steady {
        addresses: (u32::from_be(long(SOURCE)) as u64) << 32 | u32::from_be(long(DESTINATION)) as u64,
        ports: u32::from_be(long(L4)),
        ip_len: if T::is_plain(headers) {
            ip_len
        } else {
            ip_len | NOT_PLAIN
        },
        transport: PhantomData,
    })
}

/// The headers of a packet that [`read`] took.
pub struct Headers<'a>(&'a mut [u8; HEADERS_LEN]);

/// What a decremented TTL does to the header checksum: the word of TTL and protocol becomes smaller by 0x0100.
const TTL_CHANGE: u32 = (!0x0100u16).to_be() as u32;

impl<'a> Headers<'a> {
    /// Of a frame that begins with them.
    #[inline(always)]
    pub fn of(bytes: &'a mut [u8]) -> Option<Headers<'a>> {
        bytes.first_chunk_mut().map(Headers)
    }

    /// Version, header length and traffic class, as they are in memory.
    #[inline(always)]
    pub fn first_short(&self) -> u16 {
        self.short(L3)
    }

    /// [`DONT_FRAGMENT_IN_MEMORY`] or 0.
    #[inline(always)]
    pub fn dont_fragment(&self) -> u16 {
        self.short(FRAGMENTATION) & DONT_FRAGMENT_IN_MEMORY
    }

    /// TTL.
    #[inline(always)]
    pub fn ttl(&self) -> u8 {
        self.0[TTL]
    }

    #[inline(always)]
    fn short(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.0[at], self.0[at + 1]])
    }

    #[inline(always)]
    fn long(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    #[inline(always)]
    fn set_short(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }

    /// A checksum after words were replaced, by the sum of few complements of old ones and of new ones.
    #[inline(always)]
    fn updated(&self, checksum: usize, change: u32) -> u16 {
        // RFC 1624 eqn. 3: HC' = ~(~HC + ~m + m').
        let sum = change + 0xffff - self.short(checksum) as u32;
        !checksum::fold_short(sum)
    }

    /// The Ethernet header.
    #[inline(always)]
    pub fn ethernet(&self) -> &[u8; ETHERNET_HEADER_LEN] {
        self.0.first_chunk().expect("there are more headers behind it")
    }

    /// Writes the Ethernet addresses.
    #[inline(always)]
    pub fn set_link(&mut self, link: &Link) {
        self.0[..12].copy_from_slice(&link.0);
    }

    /// Writes the Ethernet type of IPv4, and an outer header behind it.
    #[inline(always)]
    pub fn set_outer(&mut self, outer: &OuterIpv4, fields: OuterFields) {
        self.0[ETHER_TYPE..L3].copy_from_slice(&[0x08, 0x00]);
        let header = self.0[L3..].first_chunk_mut();
        outer.write(fields, header.expect("there are more headers behind it"));
    }

    /// As [`rewrite::decrement_ttl`](super::rewrite::decrement_ttl).
    #[inline(always)]
    pub fn decrement_ttl(&mut self) {
        self.0[TTL] -= 1;
        self.set_short(IP_CHECKSUM, self.updated(IP_CHECKSUM, TTL_CHANGE));
    }

    /// As [`rewrite::translate`](super::rewrite::translate), to an IPv4 address.
    #[inline(always)]
    pub fn translate<T: Transport>(&mut self, side: Side, to: Endpoint) {
        let (at, port_at) = match side {
            Side::Source => (SOURCE, L4),
            Side::Destination => (DESTINATION, L4 + 2),
        };
        let (new, port) = (to.ipv4().to_be(), to.port.to_be());
        let addresses = (!self.long(at)) as u64 + new as u64;
        let addresses = (addresses & 0xffff) as u32 + (addresses >> 16) as u32;
        let ports = (!self.short(port_at)) as u32 + port as u32;
        self.0[at..at + 4].copy_from_slice(&new.to_ne_bytes());
        self.set_short(port_at, port);
        self.0[TTL] -= 1;
        self.set_short(IP_CHECKSUM, self.updated(IP_CHECKSUM, addresses + TTL_CHANGE));
        let sum = self.updated(T::CHECKSUM, addresses + ports);
        self.set_short(T::CHECKSUM, T::checksum(sum));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::parse::{Packet, parse};
    use crate::packet::rewrite;
    use crate::packet::testing::{ipv4, to_hex, udp};

    /// A transport, and good packets of it.
    trait Good: Transport + PartialEq + std::fmt::Debug {
        fn packet(payload: &[u8]) -> Vec<u8>;
    }

    impl Good for Tcp {
        fn packet(payload: &[u8]) -> Vec<u8> {
            let mut bytes = Vec::new();
            let builder = ipv4().tcp(20001, 80, 1000, 0xfaf0).ack(7);
            builder.write(&mut bytes, payload).expect("a vector takes everything");
            bytes
        }
    }

    impl Good for Udp {
        /// Long enough.
        fn packet(payload: &[u8]) -> Vec<u8> {
            udp(ipv4(), &[payload, &[0x77; 12]].concat())
        }
    }

    fn parsed(bytes: &[u8], offload: Offload) -> Parsed {
        match parse(bytes, offload) {
            Ok(Packet::Flow(parsed)) => parsed,
            other => panic!("not a flow: {other:?}: {}", to_hex(bytes)),
        }
    }

    fn rewritten_as_by_the_long_way<T: Good>(payload: &[u8], side: Side, to: Endpoint) -> Result<(), TestCaseError> {
        let before = T::packet(payload);
        let parsed = parsed(&before, Offload::default());
        let Some(steady) = read::<T>(&before, Offload::default()) else {
            // One of 65,536 looks unfinished.
            return Err(TestCaseError::reject("looks unfinished"));
        };
        prop_assert_eq!((steady.flow(), steady.frame_len()), (parsed.flow, before.len()));
        let (mut short, mut long) = (before.clone(), before.clone());
        Headers::of(&mut short).unwrap().translate::<T>(side, to);
        rewrite::translate(&mut long, &parsed, side, to, ChecksumOffload::Finished);
        prop_assert_eq!(to_hex(&short), to_hex(&long));
        let (mut short, mut long) = (before.clone(), before);
        Headers::of(&mut short).unwrap().decrement_ttl();
        rewrite::decrement_ttl(&mut long, &parsed);
        prop_assert_eq!(to_hex(&short), to_hex(&long));
        Ok(())
    }

    fn takes_no_other<T: Good>(changes: &[(usize, u8)], right: bool, len: usize) -> Result<(), TestCaseError> {
        let mut bytes = T::packet(b"payload");
        for &(at, value) in changes {
            bytes[at] = value;
        }
        if right {
            bytes[IP_CHECKSUM..][..2].fill(0);
            let sum = checksum::of(&bytes[L3..L4]);
            bytes[IP_CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes.resize(len, 0);
        if let Some(steady) = read::<T>(&bytes, Offload::default()) {
            let parsed = parsed(&bytes, Offload::default());
            let said = Parsed {
                is_steady: false,
                ..steady.parsed(&bytes)
            };
            prop_assert_eq!(said, parsed);
            let is_plain = T::PROTOCOL == Protocol::UDP || parsed.tcp_flags.is_plain();
            prop_assert_eq!(steady.ip_len >= NOT_PLAIN, !is_plain);
            prop_assert!(parsed.is_plain() && parsed.ttl > 1);
            prop_assert!(parsed.flow.protocol != Protocol::UDP || bytes[Udp::CHECKSUM..][..2] != [0, 0]);
        }
        Ok(())
    }

    fn takes_no_unfinished_checksum<T: Good>(payload: &[u8]) -> Result<(), TestCaseError> {
        let mut bytes = T::packet(payload);
        let flow = parsed(&bytes, Offload::default()).flow;
        let unfinished = ChecksumOffload::Unfinished {
            start: L4 as u16,
            offset: (T::CHECKSUM - L4) as u16,
        };
        let offload = |checksum| Offload {
            checksum,
            segmentation: None,
        };
        prop_assert_eq!(read::<T>(&bytes, offload(unfinished)), None);
        let pseudo = checksum::fold(checksum::pseudo_header(&flow, (bytes.len() - L4) as u32));
        bytes[T::CHECKSUM..][..2].copy_from_slice(&pseudo.to_be_bytes());
        prop_assert_eq!(read::<T>(&bytes, offload(ChecksumOffload::Unknown)), None);
        Ok(())
    }

    proptest! {
        /// Goal: both ways write the same. How: a good packet, any address and port.
        #[test]
        fn both_ways_write_the_same(
            payload in proptest::collection::vec(any::<u8>(), 0..60), address: u32, port: u16, source: bool,
        ) {
            let (side, to) = (if source { Side::Source } else { Side::Destination }, Endpoint::v4(address, port));
            rewritten_as_by_the_long_way::<Tcp>(&payload, side, to)?;
            rewritten_as_by_the_long_way::<Udp>(&payload, side, to)?;
        }

        /// Goal: what is taken is what [`parse`] takes, and nothing special. How: headers with bytes changed, their checksum
        /// made right again, frames cut and padded.
        #[test]
        fn nothing_else_is_taken(
            changes in proptest::collection::vec((L3..HEADERS_LEN, any::<u8>()), 0..3), right: bool, len in 0usize..100,
        ) {
            takes_no_other::<Tcp>(&changes, right, len)?;
            takes_no_other::<Udp>(&changes, right, len)?;
        }

        /// Goal: nobody updates a checksum that is not there yet. How: the pseudo-header's sum in its place, said or not.
        #[test]
        fn no_unfinished_checksum_is_taken(payload in proptest::collection::vec(any::<u8>(), 0..60)) {
            takes_no_unfinished_checksum::<Tcp>(&payload)?;
            takes_no_unfinished_checksum::<Udp>(&payload)?;
        }
    }

    /// Goal: a UDP checksum that comes out as 0 is sent as all ones. How: the one port that makes it so.
    #[test]
    fn udp_checksum_is_never_0() {
        let before = Udp::packet(b"");
        let field = u16::from_be_bytes([before[Udp::CHECKSUM], before[Udp::CHECKSUM + 1]]);
        let (steady, address) = (
            read::<Udp>(&before, Offload::default()).expect("is steady"),
            0x0a0a_0a0a,
        );
        let translated = |port: u16| {
            let mut bytes = before.clone();
            let to = Endpoint::v4(address, port);
            Headers::of(&mut bytes).unwrap().translate::<Udp>(Side::Destination, to);
            u16::from_be_bytes([bytes[Udp::CHECKSUM], bytes[Udp::CHECKSUM + 1]])
        };
        let all: Vec<u16> = (0..=u16::MAX).map(translated).collect();
        assert!(
            !all.contains(&0) && all.contains(&0xffff) && all.contains(&field),
            "{steady:?}"
        );
    }
}
