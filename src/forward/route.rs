//! Direct routing (`-g`, "Route"): the packet as it is, TTL less one, to the destination's link address.
//!
//! The destination has the VIP on a device that does not answer ARP, and replies to the client itself.

use super::{Limit, Outcome, admit, is_simple, ready};
use crate::packet::rewrite;
use crate::packet::{ChecksumOffload, Frame, Parsed};
use crate::table::NextHop;

/// Makes a frame ready for its destination. Also for ICMP errors about its connections.
#[inline]
pub fn forward<F: Frame>(frame: &mut F, parsed: &Parsed, hop: &NextHop) -> Outcome {
    let limit = Limit::way_in(hop.mtu);
    if !is_simple(frame, parsed, limit) {
        return forward_any(frame, parsed, limit, hop);
    }
    let checksum = frame.offload().checksum;
    let bytes = frame.bytes_mut();
    if checksum == ChecksumOffload::Unknown {
        rewrite::finish(bytes, parsed);
    }
    rewrite::decrement_ttl(bytes, parsed);
    rewrite::set_link(bytes, hop.source, hop.destination);
    Outcome::Ready
}

/// Any frame.
#[cold]
fn forward_any<F: Frame>(frame: &mut F, parsed: &Parsed, limit: Limit, hop: &NextHop) -> Outcome {
    let cut = match admit(frame, parsed, limit) {
        Ok(cut) => cut,
        Err(outcome) => return outcome,
    };
    let bytes = frame.bytes_mut();
    rewrite::decrement_ttl(bytes, parsed);
    rewrite::set_link(bytes, hop.source, hop.destination);
    ready(cut)
}
