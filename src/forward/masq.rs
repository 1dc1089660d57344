//! NAT (`-m`, "Masq"): the destination's address and port on the way in, the virtual service's on the way out.
//!
//! The destination's way back leads through the director. ICMP errors about a connection: see [`super::related`].

use super::{Limit, Outcome, admit, is_simple, ready};
use crate::packet::rewrite::{self, Endpoint, Side};
use crate::packet::{ChecksumOffload, Frame, Parsed};
use crate::table::NextHop;

/// Client to destination: the packet gets the destination's address and port.
#[inline(always)]
pub fn forward_in<F: Frame>(frame: &mut F, parsed: &Parsed, destination: Endpoint, hop: &NextHop) -> Outcome {
    forward(
        frame,
        parsed,
        Side::Destination,
        Limit::way_in(hop.mtu),
        destination,
        hop,
    )
}

/// Destination to client: the packet gets the virtual service's address and port.
#[inline]
pub fn forward_out<F: Frame>(frame: &mut F, parsed: &Parsed, service: Endpoint, hop: &NextHop) -> Outcome {
    forward(frame, parsed, Side::Source, Limit::way_out(hop.mtu), service, hop)
}

#[inline(always)]
fn forward<F: Frame>(frame: &mut F, parsed: &Parsed, side: Side, limit: Limit, to: Endpoint, hop: &NextHop) -> Outcome {
    if is_simple(frame, parsed, limit) {
        let checksum = frame.offload().checksum;
        let bytes = frame.bytes_mut();
        if checksum == ChecksumOffload::Unknown {
            rewrite::finish(bytes, parsed);
        }
        rewrite::translate(bytes, parsed, side, to, checksum);
        rewrite::set_link(bytes, hop.source, hop.destination);
        return Outcome::Ready;
    }
    forward_any(frame, parsed, side, limit, to, hop)
}

/// Any frame.
#[inline(never)]
fn forward_any<F: Frame>(
    frame: &mut F,
    parsed: &Parsed,
    side: Side,
    limit: Limit,
    to: Endpoint,
    hop: &NextHop,
) -> Outcome {
    let cut = match admit(frame, parsed, limit) {
        Ok(cut) => cut,
        Err(outcome) => return outcome,
    };
    let checksum = frame.offload().checksum;
    let bytes = frame.bytes_mut();
    rewrite::translate(bytes, parsed, side, to, checksum);
    rewrite::set_link(bytes, hop.source, hop.destination);
    ready(cut)
}
