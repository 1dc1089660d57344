//! New connections whose replies cannot be looked up yet.
//!
//! A NAT connection has two keys, and where in the index the second one belongs is only known once a destination was chosen: that
//! memory is asked for then, and the key entered some connections later, when it has come. (Waiting for it took a third of a new
//! connection's time at 100,000 connections, and half at a million.)
//!
//! No reply comes in between: those of a connection come in later batches than its first packet, which leaves at this one's end;
//! and all are entered by then.

use crate::conn::ReplyLink;
use crate::packet::FlowKey;

/// So many packets of 100 ns and more are longer than memory takes.
const LINKS_MAX: usize = 8;

/// The last few, oldest at `next`.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    links: [Option<ReplyLink>; LINKS_MAX],
    next: usize,
}

impl Waiting {
    /// One more. Returns the one whose time has come.
    pub fn push(&mut self, link: ReplyLink) -> Option<ReplyLink> {
        let place = self.next % LINKS_MAX;
        self.next = place + 1;
        self.links[place].replace(link)
    }

    /// The oldest.
    pub fn pop(&mut self) -> Option<ReplyLink> {
        (0..LINKS_MAX).find_map(|n| {
            let place = (self.next + n) % LINKS_MAX;
            self.links[place].take()
        })
    }

    /// A packet of this flow is a reply to one of them.
    pub fn has(&self, flow: &FlowKey) -> bool {
        self.links.iter().flatten().any(|link| link.key() == flow)
    }
}
