//! The packet quoted in an ICMP error: which flow it was, and where its fields are.
//!
//! ```text
//! l3       l4              l4 + 8 = quote.l3      quote.l4        end
//! | IP     | ICMP error    | quoted IP            | 4 bytes or more of the quoted transport header |
//! ```
//!
//! Quotes may end anywhere (RFC 792 asks for 8 transport bytes, RFC 1812 and RFC 4443 for more), so they are read with
//! etherparse's lax slices. An error about an outer IPIP packet of ours quotes that, and our packet inside it.

use etherparse::{LaxNetSlice, LaxSlicedPacket};

use super::drop_reason::DropReason;
use super::flow::{FlowKey, Protocol};
use super::parse::{ICMP_HEADER_LEN, Parsed};

/// A packet quoted in an ICMP error. Offsets count from the frame's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The quoted packet's flow, in the direction it went.
    pub flow: FlowKey,
    /// Where the quoted IP header starts.
    pub l3: u16,
    /// Where the quoted transport header starts; at least its ports are there.
    pub l4: u16,
    /// Where the quoted outer header starts when the error is about a tunnelled packet; `flow`, `l3` and `l4` are then
    /// those of the packet inside.
    pub outer: Option<u16>,
}

/// Reads the quote of an ICMP error.
///
/// [`DropReason::BadIcmp`]: too short to name a flow. [`DropReason::IcmpUnrelated`]: about a packet that no service can
/// be about (a ping, a later fragment), so the local stack may want it.
pub fn quote(bytes: &[u8], error: &Parsed) -> Result<Quote, DropReason> {
    let at = error.l4 as usize + ICMP_HEADER_LEN;
    let end = error.end as usize;
    let first = quoted(&bytes[..end], at)?;
    match first.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP => first.into_quote(bytes, end, None),
        Protocol::IPIP | Protocol::IPV6 => {
            quoted(&bytes[..end], first.payload)?.into_quote(bytes, end, Some(at as u16))
        }
        _ => Err(DropReason::IcmpUnrelated),
    }
}

/// A quoted IP header.
struct Quoted {
    flow: FlowKey,
    protocol: Protocol,
    l3: usize,
    payload: usize,
}

impl Quoted {
    fn into_quote(self, bytes: &[u8], end: usize, outer: Option<u16>) -> Result<Quote, DropReason> {
        if !matches!(self.protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP) {
            return Err(DropReason::IcmpUnrelated);
        }
        let ports = bytes[self.payload..end].first_chunk::<4>().ok_or(DropReason::BadIcmp)?;
        Ok(Quote {
            flow: FlowKey {
                ports: u32::from_be_bytes(*ports),
                protocol: self.protocol,
                ..self.flow
            },
            l3: self.l3 as u16,
            l4: self.payload as u16,
            outer,
        })
    }
}

fn quoted(bytes: &[u8], at: usize) -> Result<Quoted, DropReason> {
    let sliced = LaxSlicedPacket::from_ip(&bytes[at..]).map_err(|_| DropReason::BadIcmp)?;
    let (flow, payload) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let [source, destination] = [header.source(), header.destination()].map(u32::from_be_bytes);
            (FlowKey::v4(Protocol(0), source, destination, 0), ip.payload())
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let [source, destination] = [header.source(), header.destination()].map(u128::from_be_bytes);
            (FlowKey::v6(Protocol(0), source, destination, 0), ip.payload())
        }
        _ => return Err(DropReason::BadIcmp),
    };
    // A first fragment still has its ports; a later one has none.
    if payload.fragmented && is_later_fragment(&sliced) {
        return Err(DropReason::IcmpUnrelated);
    }
    Ok(Quoted {
        flow,
        protocol: Protocol(payload.ip_number.0),
        l3: at,
        payload: payload.payload.as_ptr() as usize - bytes.as_ptr() as usize,
    })
}

fn is_later_fragment(sliced: &LaxSlicedPacket<'_>) -> bool {
    match &sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => ip.header().fragments_offset().value() != 0,
        Some(LaxNetSlice::Ipv6(ip)) => ip.extensions().clone().into_iter().any(|extension| {
            matches!(extension, etherparse::Ipv6ExtensionSlice::Fragment(f) if f.fragment_offset().value() != 0)
        }),
        _ => false,
    }
}
