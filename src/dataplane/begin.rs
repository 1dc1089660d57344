//! Packets that belong to no connection: may they begin one, with whom, and what becomes of those that may not.

use std::net::IpAddr;

use super::driver::Driver;
use super::flow::endpoint_of_destination;
use super::ftp;
use super::related::Receiver;
use super::round::{Round, Teller, Verdict};
use crate::conn::{
    CallId, Direction, EntryRef, Hash, Hit, INVALID_TEMPLATE_PORT, InsertError, NewConnection, NewTemplate, ReplyLink,
    State, TemplateKey, sctp, tcp, ticks_of_seconds,
};
use crate::forward::icmp;
use crate::packet::quote::Quote;
use crate::packet::rewrite::Endpoint;
use crate::packet::{DropReason, FlowKey, Frame, Parsed, Protocol, TcpFlags, sip};
use crate::service::{DestinationKey, Method};
use crate::table::{Destination, DestinationId, HopId, InterfaceId, Service};

/// Where a new connection goes.
pub(super) struct Choice<'a> {
    pub id: DestinationId,
    pub destination: &'a Destination,
    pub template: Option<EntryRef<'a>>,
}

impl<'a, D: Driver> Round<'a, D> {
    /// A packet of no known connection.
    #[inline(never)]
    pub(super) fn unknown<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        hash: Hash,
    ) -> Verdict {
        if matches!(parsed.flow.protocol, Protocol::AH | Protocol::ESP) {
            return self.unserved(frame, interface, parsed);
        }
        let connections = self.connections;
        if let Some(expected) = connections.lookup_expected(&parsed.flow)
            && let Some(verdict) = self.take_up(frame, interface, parsed, expected)
        {
            return verdict;
        }
        let table = self.table;
        let Some(service) = self.services.service_at(&parsed.flow, interface) else {
            return match self.begin_outwards(frame, interface, parsed) {
                Some(verdict) => verdict,
                None => self.unserved(frame, interface, parsed),
            };
        };
        if !service.schedules(&parsed.flow) {
            return Verdict::HandBack;
        }
        match self.may_begin(parsed) {
            Ok(true) => {}
            Ok(false) => return Verdict::HandBack,
            Err(reason) => return Verdict::Drop(reason),
        }
        if self.is_martian(parsed) {
            return Verdict::Drop(DropReason::Martian);
        }
        if self.dropper.drops(table.defence.drop_rate) {
            return Verdict::Drop(DropReason::DropPacket);
        }
        match self.choose(service, &parsed.flow, || parsed.datagram(frame.bytes())) {
            Ok(choice) if service.one_packet && parsed.flow.protocol == Protocol::UDP => {
                self.send_once(frame, interface, parsed, service, &choice)
            }
            Ok(choice) => self.begin(frame, interface, parsed, hash, service, &choice),
            Err(reason) => {
                if reason == DropReason::NoDestination {
                    self.tell(
                        icmp::Error::PortUnreachable,
                        frame,
                        parsed,
                        interface,
                        Teller::Service(None),
                    );
                }
                Verdict::Drop(reason)
            }
        }
    }

    /// A source that no host on a wire can have (RFC 1812 section 5.3.7, RFC 4291 section 2.5), or an address of ours.
    fn is_martian(&self, parsed: &Parsed) -> bool {
        let source = parsed.flow.source();
        let impossible = match source {
            IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unspecified() || v6.is_loopback() || v6.is_multicast(),
        };
        impossible || self.table.local.contains(&source)
    }

    /// Whether a packet may begin a connection; if not, the local stack answers it.
    fn may_begin(&self, parsed: &Parsed) -> Result<bool, DropReason> {
        let sysctls = &self.table.sysctls;
        match (parsed.flow.protocol, parsed.chunk) {
            (Protocol::TCP, _) if sysctls.sloppy_tcp != 0 => Ok(tcp::may_create_sloppy(parsed.tcp_flags)),
            (Protocol::TCP, _) => Ok(tcp::may_create(parsed.tcp_flags)),
            (Protocol::SCTP, Some(chunk)) => Ok(sctp::may_create(chunk, sysctls.sloppy_sctp != 0)),
            (Protocol::SCTP, None) => Err(DropReason::Truncated),
            _ => Ok(true),
        }
    }

    /// No service asked for. A NAT destination's stray must not leave with its private address; all else is the local
    /// stack's.
    pub(super) fn unserved<F: Frame>(&mut self, frame: &F, interface: InterfaceId, parsed: &Parsed) -> Verdict {
        let to_us = self.table.local.contains(&parsed.flow.destination());
        if to_us || !self.table.is_nat_source(&parsed.flow) {
            return Verdict::HandBack;
        }
        if self.table.sysctls.nat_icmp_send != 0 && !is_reset(frame.bytes(), parsed) {
            self.tell(icmp::Error::PortUnreachable, frame, parsed, interface, Teller::Director);
        }
        Verdict::Drop(DropReason::NoConnection)
    }

    /// The destination of a new connection: the persistence template's, else the scheduler's choice. `payload` as
    /// [`Parsed::datagram`] has it.
    fn choose<'f>(
        &mut self,
        service: &'a Service,
        flow: &FlowKey,
        payload: impl FnOnce() -> &'f [u8],
    ) -> Result<Choice<'a>, DropReason> {
        let Some((persistence, key)) = service.persistence.as_ref().zip(service.template_key(flow)) else {
            return self.schedule(service, flow);
        };
        let call_id = self.call_id(service, payload)?;
        let key = TemplateKey { flow: key, call_id };
        if let Some(template) = self.connections.lookup_template(&key) {
            let id = DestinationId(template.destination_id());
            match self.table.destination(id) {
                Some(destination) if self.template_holds(destination) => {
                    template.rearm(self.now);
                    return Ok(Choice {
                        id,
                        destination,
                        template: Some(template),
                    });
                }
                _ => self.end_template(template),
            }
        }
        let Choice { id, destination, .. } = self.schedule(service, flow)?;
        let ticks = ticks_of_seconds(persistence.timeout_s);
        self.insert_template(service, key, id, destination, ticks)
    }

    /// The scheduler's choice.
    #[inline(always)]
    fn schedule(&mut self, service: &'a Service, flow: &FlowKey) -> Result<Choice<'a>, DropReason> {
        let id = service.pick(flow, &mut self.ahead).ok_or(DropReason::NoDestination)?;
        let destination = self.table.destination(id).ok_or(DropReason::NoDestination)?;
        Ok(Choice {
            id,
            destination,
            template: None,
        })
    }

    /// With the persistence engine `sip` a template is for one call.
    pub(super) fn call_id<'f>(
        &self,
        service: &Service,
        payload: impl FnOnce() -> &'f [u8],
    ) -> Result<Option<CallId>, DropReason> {
        if !service.sip {
            return Ok(None);
        }
        let text = sip::call_id(payload()).ok_or(DropReason::NoCallId)?;
        let id = self.connections.call_id(text);
        self.connections.note_call_id(id, text);
        Ok(Some(id))
    }

    /// A template of a quiesced destination wins, unless that is switched off; one of a removed destination does not.
    pub(super) fn template_holds(&self, destination: &Destination) -> bool {
        let expired = destination.weight == 0 && self.table.sysctls.expire_quiescent_template != 0;
        destination.present && !expired
    }

    /// The template wins no more. As in the kernel it stays until it would have expired, under a port that finds nobody.
    pub(super) fn end_template(&self, template: EntryRef<'_>) {
        let Some(was) = self.connections.remove(template) else {
            return;
        };
        self.table.count_off(self.worker, &was);
        let Some(destination) = self.table.destination(DestinationId(was.destination_id)) else {
            return;
        };
        // For the listing only: nobody makes room for it, and a service of that port has no such place.
        if was.virtual_address.1 == INVALID_TEMPLATE_PORT || !self.connections.has_room() {
            return;
        }
        let (protocol, client) = (was.protocol, (was.client.0, 0));
        let invalid = NewTemplate {
            key: TemplateKey {
                flow: FlowKey::new(protocol, client, (was.virtual_address.0, INVALID_TEMPLATE_PORT)),
                call_id: was.call_id,
            },
            destination: DestinationKey {
                address: was.destination.0,
                port: INVALID_TEMPLATE_PORT,
            },
            destination_id: was.destination_id,
            method: was.method,
            timeout_ticks: was.deadline.ticks_left(self.now),
            fwmark: was.fwmark,
        };
        destination.load.add_template(destination.upper_threshold);
        let table = self.table;
        let inserted = self
            .connections
            .insert_template(self.worker, &invalid, self.now, &mut |gone| {
                table.count_off(self.worker, gone)
            });
        if inserted.is_err() {
            destination
                .load
                .remove_template(destination.upper_threshold, destination.lower_threshold);
        }
    }

    pub(super) fn insert_template(
        &mut self,
        service: &Service,
        key: TemplateKey,
        id: DestinationId,
        destination: &'a Destination,
        ticks: u32,
    ) -> Result<Choice<'a>, DropReason> {
        let template = NewTemplate {
            key,
            destination: DestinationKey {
                address: destination.key.address,
                port: match service.template_port() {
                    0 => 0,
                    _ => destination.key.port,
                },
            },
            destination_id: id.0,
            method: destination.method,
            timeout_ticks: ticks,
            fwmark: service.mark(),
        };
        destination.load.add_template(destination.upper_threshold);
        let (connections, table) = (self.connections, self.table);
        match connections.insert_template(self.worker, &template, self.now, &mut |gone| {
            table.count_off(self.worker, gone);
        }) {
            Ok(template) => Ok(Choice {
                id,
                destination,
                template: Some(template),
            }),
            Err(InsertError::Exists(template)) => {
                // Another worker was faster with the same client: its choice holds.
                destination
                    .load
                    .remove_template(destination.upper_threshold, destination.lower_threshold);
                let id = DestinationId(template.destination_id());
                let destination = table.destination(id).ok_or(DropReason::NoDestination)?;
                Ok(Choice {
                    id,
                    destination,
                    template: Some(template),
                })
            }
            Err(InsertError::Full) => {
                destination
                    .load
                    .remove_template(destination.upper_threshold, destination.lower_threshold);
                Err(DropReason::TableFull)
            }
        }
    }

    /// Enters the connection and sends its first packet.
    #[inline(never)]
    fn begin<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        hash: Hash,
        service: &Service,
        choice: &Choice<'a>,
    ) -> Verdict {
        let destination = choice.destination;
        let method = destination.method;
        let protocol = parsed.flow.protocol;
        let state = self
            .timeouts
            .next(State::None, protocol, method, Direction::Forward, parsed.signals());
        let hop = self.hop_of(frame, interface, method);
        let ticks = self.timeouts.ticks(state);
        match self.enter(service, choice, (&parsed.flow, hash), (state, ticks), hop) {
            Ok(entry) => {
                self.count_begin(choice.destination, parsed);
                self.send(frame, interface, parsed, method, destination, || {
                    endpoint_of_destination(&entry, parsed.flow.family)
                })
            }
            Err(InsertError::Full) => Verdict::Drop(DropReason::TableFull),
            Err(InsertError::Exists(entry)) => {
                let table = self.table;
                match table.destination(DestinationId(entry.destination_id())) {
                    Some(theirs) => self.as_theirs(frame, interface, parsed, entry, theirs),
                    None => Verdict::Drop(DropReason::DestinationGone),
                }
            }
        }
    }

    /// Enters a connection, and counts it on its destination. `key`: its flow, and the hash of that. `lasts`: the state it
    /// begins in, and for how long.
    #[inline(always)]
    pub(super) fn enter(
        &mut self,
        service: &Service,
        choice: &Choice<'a>,
        key: (&FlowKey, Hash),
        lasts: (State, u32),
        hop: HopId,
    ) -> Result<EntryRef<'a>, InsertError<'a>> {
        let ((flow, hash), (state, timeout_ticks)) = (key, lasts);
        let destination = choice.destination;
        let new = NewConnection {
            flow: *flow,
            destination: service.endpoint_of(&destination.key, flow),
            destination_id: choice.id.0,
            method: destination.method,
            state,
            timeout_ticks,
            client_hop: hop.0,
            fwmark: service.mark(),
            controller: choice.template,
            helped: ftp::is_control(flow, destination.method),
        };
        let (entry, link) = self.enter_one_way(hash, &new, destination)?;
        if let Some(link) = link
            && let Some(due) = self.waiting.push(link)
        {
            self.link(due);
        }
        Ok(entry)
    }

    /// Enters a connection that is ready, and counts it on its destination.
    pub(super) fn enter_counted<'n>(
        &self,
        new: &NewConnection<'n>,
        destination: &Destination,
    ) -> Result<EntryRef<'n>, InsertError<'n>>
    where
        'a: 'n,
    {
        let hash = self.connections.hash(&new.flow);
        let (entry, link) = self.enter_one_way(hash, new, destination)?;
        match link.and_then(|link| self.connections.link_replies(link)) {
            Some(gone) => {
                self.table.count_off(self.worker, &gone);
                Err(InsertError::Full)
            }
            None => Ok(entry),
        }
    }

    /// The same, but its replies do not find it yet.
    #[inline(always)]
    fn enter_one_way<'n>(
        &self,
        hash: Hash,
        new: &NewConnection<'n>,
        destination: &Destination,
    ) -> Result<(EntryRef<'n>, Option<ReplyLink>), InsertError<'n>>
    where
        'a: 'n,
    {
        let (active, upper, lower) = (
            new.state.is_active(),
            destination.upper_threshold,
            destination.lower_threshold,
        );
        destination.load.add(self.worker.0, active, upper);
        let (connections, table) = (self.connections, self.table);
        let inserted = connections.insert_one_way(self.worker, hash, new, self.now, &mut |gone| {
            table.count_off(self.worker, gone)
        });
        if inserted.is_err() {
            destination.load.remove(self.worker.0, active, upper, lower);
        }
        inserted
    }

    fn count_begin(&self, destination: &Destination, parsed: &Parsed) {
        let counters = &destination.counters[self.worker.0 as usize];
        counters.count_connection();
        counters.count_in(parsed.ip_len() as u64);
    }

    /// An ICMP error about a packet of no known connection, with schedule_icmp: as if the client had sent what is quoted,
    /// turned round in `flow`, a connection begins, and the error is its first packet. `None`: no service is asked for.
    pub(super) fn begin_with_error<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        quote: &Quote,
    ) -> Option<Verdict> {
        let flow = quote.flow.reversed();
        let table = self.table;
        let service = self.services.service_at(&flow, interface)?;
        if !service.schedules(&flow) {
            return None;
        }
        if self.is_martian(parsed) {
            return Some(Verdict::Drop(DropReason::Martian));
        }
        if self.dropper.drops(table.defence.drop_rate) {
            return Some(Verdict::Drop(DropReason::DropPacket));
        }
        // Of what is quoted a Call-ID is not looked for: the kernel looks for it behind the outer header, where there is none.
        let choice = match self.choose(service, &flow, || &[]) {
            Ok(choice) => choice,
            // Nothing is said about an ICMP error.
            Err(reason) => return Some(Verdict::Drop(reason)),
        };
        let destination = choice.destination;
        let to = service.endpoint_of(&destination.key, &flow);
        let receiver = Receiver {
            destination,
            method: destination.method,
            endpoint: Endpoint::from((to.address, to.port)),
        };
        if !(service.one_packet && flow.protocol == Protocol::UDP) {
            // No packet of its own has come, so the state is that of none, and soon over.
            let state = match flow.protocol {
                Protocol::UDP => State::Udp,
                _ => State::None,
            };
            let hop = self.hop_of(frame, interface, destination.method);
            let ticks = self.timeouts.ticks(State::None);
            let hash = self.connections.hash(&flow);
            match self.enter(service, &choice, (&flow, hash), (state, ticks), hop) {
                Ok(_) => {}
                // Another worker was faster with the same connection.
                Err(InsertError::Exists(entry)) => {
                    return Some(self.error_to_destination(frame, interface, parsed, quote, entry));
                }
                Err(InsertError::Full) => return Some(Verdict::Drop(DropReason::TableFull)),
            }
        }
        self.count_begin(destination, parsed);
        Some(self.send_error(frame, interface, parsed, quote, &receiver))
    }

    /// The way back to the client, where one is needed.
    pub(super) fn hop_of<F: Frame>(&self, frame: &F, interface: InterfaceId, method: Method) -> HopId {
        if method == Method::Route {
            return HopId::UNKNOWN;
        }
        match frame.bytes().first_chunk() {
            Some(link) => self.hops.intern(interface, link),
            None => HopId::UNKNOWN,
        }
    }

    /// Another worker was faster with the same connection.
    #[cold]
    fn as_theirs<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        entry: EntryRef<'_>,
        destination: &Destination,
    ) -> Verdict {
        self.inbound_present(
            frame,
            interface,
            parsed,
            Hit::of(entry, Direction::Forward),
            destination,
        )
    }

    /// One-packet scheduling: no entry, and replies are not translated.
    fn send_once<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        service: &Service,
        choice: &Choice<'a>,
    ) -> Verdict {
        let destination = choice.destination;
        self.count_begin(destination, parsed);
        let DestinationKey { address, port } = service.endpoint_of(&destination.key, &parsed.flow);
        let endpoint = || Endpoint::from((address, port));
        self.send(frame, interface, parsed, destination.method, destination, endpoint)
    }
}

/// Its sender knows already that there is no connection: TCP reset or SCTP ABORT.
fn is_reset(bytes: &[u8], parsed: &Parsed) -> bool {
    match parsed.flow.protocol {
        Protocol::TCP => parsed.tcp_flags.any(TcpFlags::RST),
        // RFC 9260 section 3.3.7: chunk type 6, the first behind the common header.
        Protocol::SCTP => bytes.get(parsed.l4 as usize + 12) == Some(&6),
        _ => false,
    }
}
