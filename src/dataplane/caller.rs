//! Connections that a real server begins: a NAT destination of a service with the persistence engine `sip` calls a client
//! (`ip_vs_conn_out`).
//!
//! ```text
//! server:5060 --INVITE--> client:5060      leaves as from VIP:5060; template and connection as if the client had begun,
//!                                          so that what it answers to VIP:5060 reaches this server
//! ```
//!
//! Limits: UDP only, a service with an address and a port, a destination of just the port that the packet comes from.
//! One client endpoint talks with one server of a service at a time, the one that began last: of two connections with
//! the same client the kernel finds the newer one too. One-packet scheduling has no such bound.

use super::begin::Choice;
use super::driver::Driver;
use super::round::{Round, Verdict};
use crate::conn::ticks_of_seconds;
use crate::conn::{Direction, EntryRef, Hit, InsertError, State, TemplateKey};
use crate::packet::rewrite::Endpoint;
use crate::packet::{DropReason, FlowKey, Frame, Parsed};
use crate::service::{Method, Persistence, ServiceKey};
use crate::table::{DestinationId, HopId, InterfaceId, Service};

impl<'a, D: Driver> Round<'a, D> {
    /// A packet of no connection and to no service. `None`: it is no NAT destination's that may begin one.
    pub(super) fn begin_outwards<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
    ) -> Option<Verdict> {
        let (service, id, destination) = self.table.service_of_caller(&parsed.flow)?;
        // What is for us is not forwarded, the kernel's forwarding looks at the TTL first, and nobody answers to port 0.
        let to_us = self.table.local.contains(&parsed.flow.destination());
        if to_us || parsed.ttl <= 1 || parsed.flow.destination_port() == 0 {
            return None;
        }
        let ServiceKey::Address { address, port, .. } = service.key else {
            return None;
        };
        let client = (parsed.flow.destination(), parsed.flow.destination_port());
        let flow = FlowKey::new(parsed.flow.protocol, client, (address, port));
        let mut choice = Choice {
            id,
            destination,
            template: None,
        };
        if let Some(persistence) = service.persistence {
            let call_id = self.call_id(service, || parsed.datagram(frame.bytes())).ok()?;
            let key = TemplateKey {
                flow: service.template_key(&flow)?,
                call_id,
            };
            match self.template_to(service, key, &persistence, &choice) {
                Ok(template) => choice.template = template,
                Err(reason) => return Some(Verdict::Drop(reason)),
            }
        }
        let counters = &destination.counters[self.worker.0 as usize];
        if service.one_packet {
            counters.count_connection();
            counters.count_out(parsed.ip_len() as u64);
            let from = Endpoint::from((address, port));
            return Some(self.reply_by_kernel(frame, interface, parsed, from));
        }
        Some(match self.enter_outwards(service, &choice, &flow, parsed) {
            Ok(entry) => {
                counters.count_connection();
                self.outbound(frame, interface, parsed, Hit::of(entry, Direction::Reply))
            }
            Err(reason) => Verdict::Drop(reason),
        })
    }

    /// The template of the call, if it leads to this destination; else a new one, and that of before wins no more.
    fn template_to(
        &mut self,
        service: &Service,
        key: TemplateKey,
        persistence: &Persistence,
        choice: &Choice<'a>,
    ) -> Result<Option<EntryRef<'a>>, DropReason> {
        if let Some(template) = self.connections.lookup_template(&key) {
            if DestinationId(template.destination_id()) == choice.id && self.template_holds(choice.destination) {
                template.rearm(self.now);
                return Ok(Some(template));
            }
            self.end_template(template);
        }
        let ticks = ticks_of_seconds(persistence.timeout_s);
        let made = self.insert_template(service, key, choice.id, choice.destination, ticks)?;
        Ok(made.template)
    }

    /// Enters the connection as one of the client's, whose way is not known yet.
    fn enter_outwards(
        &mut self,
        service: &Service,
        choice: &Choice<'a>,
        flow: &FlowKey,
        parsed: &Parsed,
    ) -> Result<EntryRef<'a>, DropReason> {
        let state = self.timeouts.next(
            State::None,
            flow.protocol,
            Method::Masq,
            Direction::Reply,
            parsed.signals(),
        );
        let lasts = (state, self.timeouts.ticks(state));
        let mut hop = HopId::UNKNOWN;
        let key = (flow, self.connections.hash(flow));
        for _ in 0..2 {
            match self.enter(service, choice, key, lasts, hop) {
                Ok(entry) => return Ok(entry),
                Err(InsertError::Full) => break,
                Err(InsertError::Exists(older)) => {
                    hop = HopId(older.client_hop());
                    self.forget(older);
                }
            }
        }
        Err(DropReason::TableFull)
    }
}
