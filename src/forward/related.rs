//! ICMP errors of others about a connection: on to the destination, back to the client, each in the terms of its reader.
//!
//! | error | quotes | goes to | as |
//! |---|---|---|---|
//! | to the VIP | VIP to client | the destination | NAT: [`masq_in`]; others as any packet of the connection |
//! | from a NAT destination, or a router before it | client to destination | the client | [`masq_out`] |
//! | to the director, about an outer packet | director to destination | the client | [`from_tunnel`] |
//!
//! The connection of the first two is that of the quoted flow reversed; of the third that of the quoted inner flow itself.
//! As in the kernel, addresses and ports in the quote are rewritten, its IP header checksum and the ICMP checksum follow, and
//! the quoted transport checksum stays as it is. The source of what goes out is always the VIP.

use std::net::IpAddr;

use super::{Identifications, Limit, Outcome, admit, icmp, ready};
use crate::packet::checksum::{self, Delta};
use crate::packet::parse::ICMP_HEADER_LEN;
use crate::packet::rewrite::{self, Endpoint, Side};
use crate::packet::{Family, FlowKey, Frame, Parsed, Protocol, Quote};
use crate::table::NextHop;

/// A client side's error, to a NAT destination: the destination's address, and its port in the quoted source.
pub fn masq_in<F: Frame>(frame: &mut F, parsed: &Parsed, quote: &Quote, to: Endpoint, hop: &NextHop) -> Outcome {
    masq(
        frame,
        parsed,
        quote,
        Side::Destination,
        Side::Source,
        to,
        (hop, Limit::way_in(hop.mtu)),
    )
}

/// A destination side's error, to the client: from the virtual service's address, which with its port becomes the
/// quoted destination.
pub fn masq_out<F: Frame>(frame: &mut F, parsed: &Parsed, quote: &Quote, from: Endpoint, hop: &NextHop) -> Outcome {
    masq(
        frame,
        parsed,
        quote,
        Side::Source,
        Side::Destination,
        from,
        (hop, Limit::way_out(hop.mtu)),
    )
}

fn masq<F: Frame>(
    frame: &mut F,
    parsed: &Parsed,
    quote: &Quote,
    outer: Side,
    quoted: Side,
    endpoint: Endpoint,
    (hop, limit): (&NextHop, Limit),
) -> Outcome {
    let cut = match admit(frame, parsed, limit) {
        Ok(cut) => cut,
        Err(outcome) => return outcome,
    };
    let bytes = frame.bytes_mut();
    let port_at = quote.l4 as usize + if quoted == Side::Source { 0 } else { 2 };
    bytes[port_at..port_at + 2].copy_from_slice(&endpoint.port.to_be_bytes());
    match parsed.flow.family {
        Family::V4 => {
            let changed = set_ipv4(bytes, quote.l3 as usize, quoted, endpoint);
            adjust(bytes, quote.l3 as usize + 10, changed);
            let changed = set_ipv4(bytes, parsed.l3 as usize, outer, endpoint);
            adjust(bytes, parsed.l3 as usize + 10, changed);
        }
        Family::V6 => {
            set_ipv6(bytes, quote.l3 as usize, quoted, endpoint);
            set_ipv6(bytes, parsed.l3 as usize, outer, endpoint);
        }
    }
    set_icmp_checksum(bytes, parsed);
    rewrite::decrement_ttl(bytes, parsed);
    rewrite::set_link(bytes, hop.source, hop.destination);
    ready(cut)
}

/// Writes an address into the IPv4 header at `l3`.
fn set_ipv4(bytes: &mut [u8], l3: usize, side: Side, endpoint: Endpoint) -> Delta {
    let at = l3 + if side == Side::Source { 12 } else { 16 };
    let field = bytes[at..]
        .first_chunk_mut::<4>()
        .expect("parsed, so the header is there");
    let old = u32::from_be_bytes(*field);
    let new = endpoint.address[0] as u32;
    *field = new.to_be_bytes();
    Delta::NONE.u32(old, new)
}

/// Writes an address into the IPv6 header at `l3`.
fn set_ipv6(bytes: &mut [u8], l3: usize, side: Side, endpoint: Endpoint) {
    let at = l3 + if side == Side::Source { 8 } else { 24 };
    bytes[at..at + 8].copy_from_slice(&endpoint.address[0].to_be_bytes());
    bytes[at + 8..at + 16].copy_from_slice(&endpoint.address[1].to_be_bytes());
}

/// Lets a checksum follow a change.
fn adjust(bytes: &mut [u8], at: usize, delta: Delta) {
    let field = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    bytes[at..at + 2].copy_from_slice(&delta.apply(field).to_be_bytes());
}

/// Makes the ICMP checksum anew; that it was right before, [`parse`](crate::packet::parse::parse) has seen.
fn set_icmp_checksum(bytes: &mut [u8], parsed: &Parsed) {
    let pseudo = match parsed.flow.family {
        Family::V4 => 0,
        Family::V6 => {
            let address = |at: usize| u128::from_be_bytes(*bytes[at..].first_chunk().expect("an IPv6 header"));
            let l3 = parsed.l3 as usize;
            let flow = FlowKey::v6(Protocol::ICMPV6, address(l3 + 8), address(l3 + 24), 0);
            checksum::pseudo_header(&flow, parsed.end - parsed.l4 as u32)
        }
    };
    let icmp = &mut bytes[parsed.l4 as usize..parsed.end as usize];
    icmp[2..4].fill(0);
    let checksum = !checksum::fold(pseudo + checksum::sum(icmp));
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
}

/// An error about an outer packet of ours (`quote.outer` is set) becomes one about the client's packet inside, from the
/// virtual service, to the client. `overhead` is what the tunnel puts in front, taken off a reported MTU.
/// `false`: of a kind that says nothing to a client, or no room: drop it.
pub fn from_tunnel<F: Frame>(
    frame: &mut F,
    parsed: &Parsed,
    quote: &Quote,
    overhead: u16,
    hop: &NextHop,
    ids: &mut Identifications,
) -> bool {
    let bytes = frame.bytes();
    let icmp = &bytes[parsed.l4 as usize..][..ICMP_HEADER_LEN];
    let mtu = match parsed.flow.family {
        Family::V4 => u16::from_be_bytes([icmp[6], icmp[7]]) as u32,
        Family::V6 => u32::from_be_bytes([icmp[4], icmp[5], icmp[6], icmp[7]]),
    };
    let Some(error) = translate_error(parsed.flow.family, quote.flow.family, icmp[0], icmp[1], mtu, overhead) else {
        return false;
    };
    let (client, service) = (quote.flow.source(), quote.flow.destination());
    write_from_tunnel(frame, parsed, quote, (service, client), error, ids)
        .inspect(|()| rewrite::set_link(frame.bytes_mut(), hop.source, hop.destination))
        .is_some()
}

/// Moves the quoted inner packet to behind a new header.
fn write_from_tunnel<F: Frame>(
    frame: &mut F,
    parsed: &Parsed,
    quote: &Quote,
    (source, destination): (IpAddr, IpAddr),
    error: (u8, u8, u32),
    ids: &mut Identifications,
) -> Option<()> {
    // The largest quote that any error may have.
    let mut packet = [0; 1280];
    let inner = &frame.bytes()[quote.l3 as usize..parsed.end as usize];
    let len = inner.len().min(packet.len());
    packet[..len].copy_from_slice(&inner[..len]);
    icmp::write(frame, source, destination, error, &packet[..len], ids).then_some(())?;
    let family = crate::packet::build::ether_type(Family::of(source));
    frame.bytes_mut()[12..14].copy_from_slice(&family.0.to_be_bytes());
    Some(())
}

/// Type, code and word for the client, of the inner family.
fn translate_error(outer: Family, inner: Family, kind: u8, code: u8, mtu: u32, overhead: u16) -> Option<(u8, u8, u32)> {
    #[derive(Clone, Copy)]
    enum Kind {
        Host,
        Protocol,
        TimeExceeded,
        TooBig,
    }
    let meaning = match (outer, kind, code) {
        (Family::V4, 3, 4) | (Family::V6, 2, _) => Kind::TooBig,
        (Family::V4, 3, 2) | (Family::V6, 4, 1) => Kind::Protocol,
        (Family::V4, 3, _) | (Family::V6, 1, _) => Kind::Host,
        (Family::V4, 11, 0) | (Family::V6, 3, 0) => Kind::TimeExceeded,
        _ => return None,
    };
    if outer == inner && !matches!(meaning, Kind::TooBig) {
        return Some((kind, code, 0));
    }
    let mtu = mtu.checked_sub(overhead as u32).filter(|mtu| *mtu >= 68);
    Some(match (meaning, inner) {
        (Kind::TooBig, Family::V4) => (3, 4, mtu?),
        (Kind::TooBig, Family::V6) => (2, 0, mtu?),
        (Kind::Host | Kind::Protocol, Family::V4) => (3, 1, 0),
        (Kind::Host | Kind::Protocol, Family::V6) => (1, 3, 0),
        (Kind::TimeExceeded, Family::V4) => (11, 0, 0),
        (Kind::TimeExceeded, Family::V6) => (3, 0, 0),
    })
}
