//! Fragments: what the headers of one say of its place in the datagram.

use etherparse::{Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice};

use super::{IPV6_HEADER_LEN, Packet};
use crate::packet::{DropReason, ETHERNET_HEADER_LEN, Family, FlowKey, Protocol};

/// A fragment of an IP packet. Offsets in the frame as in [`Parsed`](super::Parsed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Addresses and protocol; ports 0. For IPv6 the protocol is the fragment header's next header.
    pub flow: FlowKey,
    /// The datagram's identification.
    pub id: u32,
    /// Where the piece belongs in the datagram's payload, in bytes.
    pub offset: u16,
    /// Not the last piece.
    pub more: bool,
    /// IPv4's Don't Fragment bit.
    pub dont_fragment: bool,
    /// Where the IP header starts (14).
    pub l3: u16,
    /// Where the headers end that every fragment repeats: the IPv4 header, or all before the IPv6 fragment header.
    pub header_end: u16,
    /// IPv6: where the protocol number stands that names the fragment header, to be replaced by the protocol.
    pub next_header_at: u16,
    /// Where the piece starts.
    pub payload: u16,
    /// Where it ends.
    pub end: u32,
    /// TTL or hop limit as received.
    pub ttl: u8,
}

/// Of an IPv4 packet whose header says that it is one.
#[cold]
pub(super) fn fragment_ipv4(ip: &Ipv4HeaderSlice<'_>, flow: FlowKey, end: usize) -> Result<Packet, DropReason> {
    let l4 = ETHERNET_HEADER_LEN + ip.slice().len();
    let offset = ip.fragments_offset().value() as usize * 8;
    let more = ip.more_fragments();
    // Every piece but the last is a multiple of 8 long; the kernel cuts the rest off, so do we.
    let len = if more { (end - l4) & !7 } else { end - l4 };
    checked_fragment(Fragment {
        flow,
        id: ip.identification() as u32,
        offset: offset as u16,
        more,
        dont_fragment: ip.dont_fragment(),
        l3: ETHERNET_HEADER_LEN as u16,
        header_end: l4 as u16,
        next_header_at: 0,
        payload: l4 as u16,
        end: (l4 + len) as u32,
        ttl: ip.ttl(),
    })
}

/// Of an IPv6 packet with its fragment header at `at`; addresses are left to the caller.
pub(super) fn fragment_ipv6(
    ip: Ipv6HeaderSlice<'_>,
    header: Ipv6FragmentHeaderSlice<'_>,
    at: usize,
    next_header_at: usize,
    end: usize,
) -> Result<Fragment, DropReason> {
    let payload = at + header.slice().len();
    let more = header.more_fragments();
    // RFC 8200 section 4.5: not a multiple of 8 and not the last, discarded.
    if more && !(end - payload).is_multiple_of(8) {
        return Err(DropReason::Fragment);
    }
    Ok(Fragment {
        flow: FlowKey::v6(Protocol(header.next_header().0), 0, 0, 0),
        id: header.identification(),
        offset: header.fragment_offset().value() * 8,
        more,
        dont_fragment: true,
        l3: ETHERNET_HEADER_LEN as u16,
        header_end: at as u16,
        next_header_at: next_header_at as u16,
        payload: payload as u16,
        end: end as u32,
        ttl: ip.hop_limit(),
    })
}

/// The datagram must not become longer than an IP packet can be, and every piece must hold something.
pub(super) fn checked_fragment(fragment: Fragment) -> Result<Packet, DropReason> {
    let len = fragment.end as usize - fragment.payload as usize;
    let headers = match fragment.flow.family {
        Family::V4 => (fragment.header_end - fragment.l3) as usize,
        Family::V6 => (fragment.header_end - fragment.l3) as usize - IPV6_HEADER_LEN,
    };
    if len == 0 || headers + fragment.offset as usize + len > u16::MAX as usize {
        return Err(DropReason::Fragment);
    }
    Ok(Packet::Fragment(fragment))
}
