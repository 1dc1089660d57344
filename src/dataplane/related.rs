//! ICMP errors about connections: to the destination, or back to the client, in the terms of the reader.

use super::driver::Driver;
use super::flow::{endpoint_of_destination, endpoint_of_service};
use super::round::{Round, Teller, Verdict};
use crate::conn::{Direction, EntryRef};
use crate::forward::related;
use crate::forward::tunnel;
use crate::packet::quote::{Quote, quote};
use crate::packet::rewrite::Endpoint;
use crate::packet::{DropReason, Frame, Parsed};
use crate::service::Method;
use crate::table::{Destination, DestinationId, InterfaceId, Reach};

/// Whom an ICMP error goes to, and how.
pub(super) struct Receiver<'t> {
    pub destination: &'t Destination,
    pub method: Method,
    /// With NAT: where its connection's packets go.
    pub endpoint: Endpoint,
}

impl<'a, D: Driver> Round<'a, D> {
    /// An ICMP error. What it quotes, turned round, is a packet of the connection it is about.
    #[cold]
    pub(super) fn related<F: Frame>(&mut self, frame: &mut F, interface: InterfaceId, parsed: &Parsed) -> Verdict {
        let quote = match quote(frame.bytes(), parsed) {
            Ok(quote) => quote,
            // About a packet that no service can be about: perhaps the director's own ping.
            Err(DropReason::IcmpUnrelated) => return Verdict::HandBack,
            Err(reason) => return Verdict::Drop(reason),
        };
        let connections = self.connections;
        if quote.outer.is_some() {
            let flow = quote.flow;
            return match connections.lookup(connections.hash(&flow), &flow) {
                Some(hit) if hit.entry.method() == Method::Tunnel => {
                    self.about_tunnel(frame, parsed, &quote, hit.entry)
                }
                _ => Verdict::HandBack,
            };
        }
        let flow = quote.flow.reversed();
        match connections.lookup(connections.hash(&flow), &flow) {
            Some(hit) if hit.direction == Direction::Forward => {
                self.error_to_destination(frame, interface, parsed, &quote, hit.entry)
            }
            Some(hit) => self.error_to_client(frame, interface, parsed, &quote, hit.entry),
            None => self.about_nothing(frame, interface, parsed, &quote),
        }
    }

    /// No connection is known by what is quoted.
    fn about_nothing<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        quote: &Quote,
    ) -> Verdict {
        if self.table.sysctls.schedule_icmp != 0
            && let Some(verdict) = self.begin_with_error(frame, interface, parsed, quote)
        {
            return verdict;
        }
        if self.table.local.contains(&parsed.flow.destination()) {
            Verdict::HandBack
        } else {
            Verdict::Drop(DropReason::IcmpUnrelated)
        }
    }

    pub(super) fn error_to_destination<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        quote: &Quote,
        entry: EntryRef<'_>,
    ) -> Verdict {
        let table = self.table;
        if table.is_empty() {
            // As for packets of connections: without any service all is the local stack's.
            return Verdict::HandBack;
        }
        // Of a removed one too: unlike the client's packets, errors still reach it in the kernel.
        let Some(destination) = table.destination(DestinationId(entry.destination_id())) else {
            return Verdict::Drop(DropReason::DestinationGone);
        };
        destination.counters[self.worker.0 as usize].count_in(parsed.ip_len() as u64);
        let receiver = Receiver {
            destination,
            method: entry.method(),
            endpoint: endpoint_of_destination(&entry, entry.family()),
        };
        self.send_error(frame, interface, parsed, quote, &receiver)
    }

    pub(super) fn send_error<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        quote: &Quote,
        to: &Receiver<'_>,
    ) -> Verdict {
        let destination = to.destination;
        match &destination.reach {
            Reach::Hop { hop, .. } if to.method == Method::Masq => {
                let outcome = related::masq_in(frame, parsed, quote, to.endpoint, hop);
                let teller = Teller::Service(Some(destination));
                self.conclude(frame, parsed, interface, hop.interface, outcome, teller)
            }
            _ => self.send(frame, interface, parsed, to.method, destination, || to.endpoint),
        }
    }

    fn error_to_client<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        quote: &Quote,
        entry: EntryRef<'_>,
    ) -> Verdict {
        let Some(hop) = self.client_hop(&entry) else {
            return Verdict::Drop(DropReason::NoNeighbour);
        };
        if let Some(destination) = self.destination_of_entry(&entry) {
            destination.counters[self.worker.0 as usize].count_out(parsed.ip_len() as u64);
        }
        let outcome = related::masq_out(frame, parsed, quote, endpoint_of_service(&entry, entry.family()), &hop);
        self.conclude(frame, parsed, interface, hop.interface, outcome, Teller::Director)
    }

    /// A router on the way to a tunnel's destination says something about our outer packet: the client is told.
    fn about_tunnel<F: Frame>(
        &mut self,
        frame: &mut F,
        parsed: &Parsed,
        quote: &Quote,
        entry: EntryRef<'_>,
    ) -> Verdict {
        let (Some(hop), Some(destination)) = (self.client_hop(&entry), self.destination_of_entry(&entry)) else {
            return Verdict::Drop(DropReason::IcmpUnrelated);
        };
        let overhead = tunnel::overhead(destination.key.address, destination.tunnel);
        if !related::from_tunnel(frame, parsed, quote, overhead, &hop, self.ids) {
            return Verdict::Drop(DropReason::IcmpUnrelated);
        }
        let len = frame.bytes().len() - crate::packet::ETHERNET_HEADER_LEN;
        destination.counters[self.worker.0 as usize].count_out(len as u64);
        Verdict::Transmit(hop.interface)
    }

    fn destination_of_entry(&self, entry: &EntryRef<'_>) -> Option<&'a Destination> {
        let table = self.table;
        table.destination(DestinationId(entry.destination_id())).map(|d| &**d)
    }
}
