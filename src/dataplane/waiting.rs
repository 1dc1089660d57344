//! New connections whose replies cannot be looked up yet.
//!
//! A NAT connection has two keys, and where in the index the second one belongs is only known once a destination was chosen: that
//! memory is asked for then, and the key entered some connections later, when it has come. (Waiting for it took a third of a new
//! connection's time at 100,000 connections, and half at a million.)
//!
//! No reply comes in between: those of a connection come in later batches than its first packet, which leaves at this one's end;
//! and all are entered by then.

use crate::conn::{Hash, ReplyLink};

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

    /// A packet whose flow has this hash is a reply to one of them, most likely.
    pub fn has(&self, hash: Hash) -> bool {
        self.links.iter().flatten().any(|link| link.hash() == hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::{ConnectionTable, NewConnection, State, Tick, WorkerId};
    use crate::packet::{FlowKey, Protocol};
    use crate::service::{DestinationKey, Method};

    /// How: twenty connections. Goal: each comes out once, oldest first, at the ninth push or at the end; until then its replies
    /// are known.
    #[test]
    fn first_in_first_out() {
        let table = ConnectionTable::anonymous(1 << 18, 1).expect("memory");
        let reply = |client: u32| {
            let replies = FlowKey::v4(Protocol::TCP, 0xac10_0001, client, 8080 << 16 | 1024);
            table.hash(&replies)
        };
        let link = |client: u32| {
            let new = NewConnection {
                flow: FlowKey::v4(Protocol::TCP, client, 0xc0a8_0001, 1024 << 16 | 80),
                destination: DestinationKey {
                    address: std::net::Ipv4Addr::from_bits(0xac10_0001).into(),
                    port: 8080,
                },
                destination_id: 0,
                method: Method::Masq,
                state: State::SynRecv,
                timeout_ticks: 100,
                client_hop: 0,
                fwmark: 0,
                controller: None,
                helped: false,
            };
            let hash = table.hash(&new.flow);
            let inserted = table.insert_one_way(WorkerId(0), hash, &new, Tick(1), &mut |_| {});
            inserted.expect("room").1.expect("a NAT connection")
        };
        let mut waiting = Waiting::default();
        let mut came = Vec::new();
        for client in 0..20 {
            came.extend(waiting.push(link(client)).map(|link| link.hash()));
            assert_eq!(came.len(), (client as usize + 1).saturating_sub(LINKS_MAX));
            assert!(waiting.has(reply(client)) && !waiting.has(reply(client + 1)));
        }
        assert!(!waiting.has(reply(11)) && waiting.has(reply(12)));
        came.extend(std::iter::from_fn(|| waiting.pop()).map(|link| link.hash()));
        let all: Vec<Hash> = (0..20).map(reply).collect();
        assert_eq!(came, all);
    }
}
