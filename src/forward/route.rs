//! Direct routing (`-g`, "Route"): the packet as it is, TTL less one, to the destination's link address.
//!
//! The destination has the VIP on a device that does not answer ARP, and replies to the client itself.

use super::{Limit, Outcome, admit, ready};
use crate::packet::rewrite;
use crate::packet::{Frame, Parsed};
use crate::table::NextHop;

/// Makes a frame ready for its destination. Also for ICMP errors about its connections.
#[inline]
pub fn forward<F: Frame>(frame: &mut F, parsed: &Parsed, hop: &NextHop) -> Outcome {
    let cut = match admit(frame, parsed, Limit::way_in(hop.mtu)) {
        Ok(cut) => cut,
        Err(outcome) => return outcome,
    };
    let bytes = frame.bytes_mut();
    rewrite::decrement_ttl(bytes, parsed);
    rewrite::set_link(bytes, hop.source, hop.destination);
    ready(cut)
}
