//! What happens to a frame once its destination is known: one file a forwarding method, plus ICMP and fragments.
//!
//! Every function takes a frame, what [`parse`](crate::packet::parse::parse) said of it and where it shall go, writes into
//! it, and says in an [`Outcome`] what the pipeline has to do now. Nothing here reads a table, counts or sends.
//!
//! | file | does |
//! |---|---|
//! | [`route`] | direct routing: new link addresses |
//! | [`masq`] | NAT: to the destination and back |
//! | [`tunnel`] | an outer header: IPIP, GRE, GUE |
//! | [`mss`] | the MSS of a SYN through a tunnel |
//! | [`icmp`] | the errors that uvs itself sends |
//! | [`related`] | ICMP errors of others about a connection |
//! | [`ftp`] | control connections of FTP by NAT |
//! | [`fragment`] | fragments put together, datagrams cut |
//!
//! The order of the checks is the kernel's: TTL, then MTU, then rewriting.

pub mod check;
pub mod fragment;
pub mod ftp;
pub mod icmp;
pub mod masq;
pub mod mss;
pub mod related;
pub mod route;
pub mod tunnel;

use std::net::IpAddr;

use crate::packet::parse::DONT_FRAGMENT;
use crate::packet::rewrite;
use crate::packet::{ChecksumOffload, ETHERNET_HEADER_LEN, Family, Frame, Offload, Parsed, SegmentationKind};

/// What is to be done with a frame after a forwarding method had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Send it.
    Ready,
    /// Send it in fragments: see [`fragment::Splitter`].
    Fragment(Cut),
    /// It is a super-frame that nobody can cut after an outer header is in front. Not touched: cut it into
    /// segments, and bring each again.
    Segment,
    /// TTL or hop limit is used up. Not touched: answer with [`icmp::Error::TimeExceeded`], drop.
    TtlExpired,
    /// Too long for its way, and must not be cut. Ready to be quoted in an [`icmp::Error::TooBig`]; drop.
    TooBig {
        /// Longest IP packet of this kind that would go.
        mtu: u16,
    },
    /// No room in front of it for an outer header: drop.
    NoHeadroom,
}

/// How a datagram is cut: the longest IP packets to make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The first one.
    pub first: u16,
    /// The others.
    pub rest: u16,
}

impl Cut {
    /// All of one length.
    pub fn even(len: u16) -> Cut {
        Cut { first: len, rest: len }
    }
}

/// How long a packet may be, and what becomes of a longer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    /// Longest IP packet, as it is before it is rewritten.
    mtu: u16,
    /// Client to destination. The kernel takes one off the TTL before it looks at the MTU on the way in, and afterwards
    /// on the way out, which shows in what its error quotes; and it notes the VIP in a record route option.
    inbound: bool,
    /// IPv4 is cut even with Don't Fragment.
    ignore_dont_fragment: bool,
}

impl Limit {
    /// Client to destination.
    #[inline]
    fn way_in(mtu: u16) -> Limit {
        Limit {
            mtu,
            inbound: true,
            ignore_dont_fragment: false,
        }
    }

    /// Destination to client.
    #[inline]
    fn way_out(mtu: u16) -> Limit {
        Limit {
            inbound: false,
            ..Limit::way_in(mtu)
        }
    }
}

/// Whether a frame needs nothing but to be rewritten: TTL left, short enough, no options, not put together from
/// fragments. Takes Ethernet padding off it. [`admit`] would do the same, in more instructions.
#[inline(always)]
fn is_simple<F: Frame>(frame: &mut F, parsed: &Parsed, limit: Limit) -> bool {
    let simple =
        parsed.ttl > 1 && parsed.ip_len() <= limit.mtu as u32 && parsed.is_plain() && frame.reassembled().is_none();
    // Every short packet from a wire has padding.
    simple && (frame.bytes().len() == parsed.end as usize || frame.set_len(parsed.end as usize).is_ok())
}

/// Checks TTL and length, then makes the frame fit to be rewritten: Ethernet padding off, checksum finished,
/// route recorded. `Ok` says whether it must be cut when its length stays the same.
#[inline(never)]
fn admit<F: Frame>(frame: &mut F, parsed: &Parsed, limit: Limit) -> Result<Option<Cut>, Outcome> {
    if parsed.ttl <= 1 {
        return Err(Outcome::TtlExpired);
    }
    let cut = if parsed.ip_len() > limit.mtu as u32 || frame.reassembled().is_some() {
        admit_long(frame, parsed, limit)?
    } else {
        None
    };
    prepare(frame, parsed, limit.inbound);
    Ok(cut)
}

/// Takes Ethernet padding off, finishes the checksum of a frame of which nothing is known, records the route.
#[inline]
fn prepare<F: Frame>(frame: &mut F, parsed: &Parsed, inbound: bool) {
    if frame.bytes().len() != parsed.end as usize {
        frame
            .set_len(parsed.end as usize)
            .expect("a frame can be cut at its tail");
    }
    if frame.offload().checksum == ChecksumOffload::Unknown {
        rewrite::finish(frame.bytes_mut(), parsed);
    }
    if inbound
        && !parsed.is_plain()
        && let IpAddr::V4(address) = parsed.flow.destination()
    {
        rewrite::record_route(frame.bytes_mut(), parsed, address);
    }
}

/// A packet that is longer than the MTU, or was put together from fragments.
#[cold]
fn admit_long<F: Frame>(frame: &mut F, parsed: &Parsed, limit: Limit) -> Result<Option<Cut>, Outcome> {
    let mtu = limit.mtu;
    let too_big = |frame: &mut F| {
        if limit.inbound {
            rewrite::decrement_ttl(frame.bytes_mut(), parsed);
        }
        Err(Outcome::TooBig { mtu })
    };
    let may_cut = parsed.flow.family == Family::V4 && (limit.ignore_dont_fragment || !dont_fragment(frame.bytes()));
    let mut offload = frame.offload();
    if let Some(segmentation) = &mut offload.segmentation {
        // What counts is what the super-frame will be cut into.
        let headers = segmentation.header_len.saturating_sub(ETHERNET_HEADER_LEN as u16);
        if headers as u32 + segmentation.size as u32 <= mtu as u32 {
            return Ok(None);
        }
        if !may_cut || segmentation.kind == SegmentationKind::UdpL4 || headers >= mtu {
            return too_big(frame);
        }
        segmentation.size = mtu - headers;
        frame.set_offload(offload);
        return Ok(None);
    }
    match frame.reassembled() {
        // The sender's fragments were short enough, so they may be made again.
        Some(whole) if may_cut || parsed.flow.family == Family::V6 && whole.largest <= mtu => {
            let len = whole.largest.min(mtu);
            Ok((whole.pieces > 1 || parsed.ip_len() > len as u32).then_some(Cut::even(len)))
        }
        _ if parsed.ip_len() <= mtu as u32 => Ok(None),
        None if may_cut => {
            // Nobody could finish the checksum of a packet in pieces.
            rewrite::finish(frame.bytes_mut(), parsed);
            frame.set_offload(Offload {
                checksum: ChecksumOffload::Finished,
                ..offload
            });
            Ok(Some(Cut::even(mtu)))
        }
        _ => too_big(frame),
    }
}

/// IPv4's Don't Fragment bit of a frame.
fn dont_fragment(bytes: &[u8]) -> bool {
    u16::from_be_bytes([bytes[20], bytes[21]]) & DONT_FRAGMENT != 0
}

/// The outcome of a rewritten frame.
#[inline]
fn ready(cut: Option<Cut>) -> Outcome {
    match cut {
        None => Outcome::Ready,
        Some(cut) => Outcome::Fragment(cut),
    }
}

/// Numbers for the identification fields of packets that uvs makes: outer headers, fragments, ICMP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identifications(u32);

impl Identifications {
    /// Starts anywhere.
    pub fn new(start: u32) -> Identifications {
        Identifications(start)
    }

    /// The next one for an IPv4 header, never 0.
    #[inline]
    pub fn ipv4(&mut self) -> u16 {
        self.0 = self.0.wrapping_add(1);
        (self.0 as u16).max(1)
    }

    /// The next one for an IPv6 fragment header.
    pub fn ipv6(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

#[cfg(test)]
mod tests;
