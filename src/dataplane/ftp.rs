//! FTP through NAT: the data connections that a control connection announces, as the kernel's `ip_vs_ftp` does it.
//!
//! ```text
//!  active    client: PORT its address,p      expected at once: server:20 to client:p, as VIP:20
//!  passive   client: PASV or EPSV
//!            server: 227 its address,p       the client reads VIP,p; expected: client:any to VIP:p, as server:p
//! ```
//! What is expected is an entry in state LISTEN that its control connection controls; with `client:any` its client port is 0
//! until the SYN comes.

use std::net::IpAddr;
use std::ops::Range;

use super::driver::Driver;
use super::flow::endpoint_of_destination;
use super::round::{Round, Verdict};
use crate::conn::{Direction, EntryRef, Hit, InsertError, NewConnection, Passive, State, tcp};
use crate::forward::ftp;
use crate::packet::ftp::{Command, HOST_PORT_MAX, commands, extended_passive_reply, passive_reply, write_host_port};
use crate::packet::{DropReason, FlowKey, Frame, Parsed, Protocol};
use crate::service::{DestinationKey, FTP_PORT, Method};
use crate::table::{DestinationId, HopId, InterfaceId};

/// A text for the place of another.
type Replacement = (Range<usize>, [u8; HOST_PORT_MAX], usize);

impl<D: Driver> Round<'_, D> {
    /// A packet of a control connection, before it is translated. Returns what is to be known of it now.
    #[cold]
    pub(super) fn help<F: Frame>(
        &mut self,
        frame: &mut F,
        parsed: &Parsed,
        hit: Hit<'_>,
    ) -> Result<Parsed, DropReason> {
        ftp::admit(frame, parsed)?;
        let control = hit.entry;
        let mut replacement = None;
        if control.state() == State::Established {
            match hit.direction {
                Direction::Forward => self.follow_client(ftp::payload(frame, parsed), control)?,
                Direction::Reply => replacement = self.follow_server(ftp::payload(frame, parsed), control)?,
            }
        }
        let replacement = replacement
            .as_ref()
            .map(|(place, text, len)| (place.clone(), &text[..*len]));
        if let Some((place, text)) = &replacement {
            let longer = text.len() as i8 - place.len() as i8;
            if !control.shift_by(ftp::sequence(frame, parsed), longer) {
                return Err(DropReason::FtpControl);
            }
        }
        ftp::edit(frame, parsed, hit.direction, control.shift(), replacement)
    }

    fn follow_client(&self, payload: &[u8], control: EntryRef<'_>) -> Result<(), DropReason> {
        for command in commands(payload, control.family()) {
            control.set_passive(match command {
                Command::Passive => Passive::Plain,
                Command::ExtendedPassive => Passive::Extended,
                Command::Port(..) => Passive::Off,
            });
            if let Command::Port(address, port) = command {
                // RFC 959 section 3.2: the server connects from the port below its own.
                let ports = control
                    .virtual_port()
                    .checked_sub(1)
                    .zip(control.destination_port().checked_sub(1));
                if let Some((from, own)) = ports {
                    self.expect(control, (address, port), from, own)?;
                }
            }
        }
        Ok(())
    }

    fn follow_server(&self, payload: &[u8], control: EntryRef<'_>) -> Result<Option<Replacement>, DropReason> {
        let client = (control.client(), 0);
        match control.passive() {
            Passive::Off => Ok(None),
            Passive::Plain => {
                let Some((address, port, place)) = passive_reply(payload) else {
                    return Ok(None);
                };
                let service = control.virtual_v4().into();
                // A server that knows the virtual address may say that. Any other is none of ours to promise.
                if address != service && control.destination() != address {
                    return Ok(None);
                }
                self.expect(control, client, port, port)?;
                let (text, len) = write_host_port(service, port);
                Ok(Some((place, text, len)))
            }
            Passive::Extended => {
                if let Some(port) = extended_passive_reply(payload) {
                    self.expect(control, client, port, port)?;
                }
                Ok(None)
            }
        }
    }

    /// Enters a data connection to come, or one that is there anew.
    fn expect(
        &self,
        control: EntryRef<'_>,
        client: (IpAddr, u16),
        virtual_port: u16,
        destination_port: u16,
    ) -> Result<(), DropReason> {
        let destination_id = control.destination_id();
        let Some(destination) = self.table.destination(DestinationId(destination_id)) else {
            return Ok(());
        };
        let flow = FlowKey::new(Protocol::TCP, client, (control.virtual_address(), virtual_port));
        let new = NewConnection {
            flow,
            destination: DestinationKey {
                address: control.destination(),
                port: destination_port,
            },
            destination_id,
            method: Method::Masq,
            state: State::Listen,
            timeout_ticks: self.timeouts.ticks(State::Listen),
            client_hop: match client.0 == control.client() {
                true => control.client_hop(),
                false => HopId::UNKNOWN.0,
            },
            fwmark: control.fwmark(),
            controller: Some(control),
            helped: false,
        };
        match self.enter_counted(&new, destination) {
            Ok(_) => Ok(()),
            Err(InsertError::Exists(there)) if there.destination() == new.destination.address => {
                if let Some(change) = there.listen(self.now, self.timeouts) {
                    change.count_on(&destination.load, self.worker);
                }
                Ok(())
            }
            Err(InsertError::Exists(there)) => {
                // Of another server, which announced the same port to this client before.
                self.forget(there);
                let again = self.enter_counted(&new, destination);
                again.map(|_| ()).map_err(|_| DropReason::TableFull)
            }
            Err(InsertError::Full) => Err(DropReason::TableFull),
        }
    }

    /// A SYN for which the client port was not known: the connection is whole now. `None`: another packet, of no concern to
    /// what is expected.
    #[cold]
    pub(super) fn take_up<F: Frame>(
        &mut self,
        frame: &mut F,
        interface: InterfaceId,
        parsed: &Parsed,
        expected: EntryRef<'_>,
    ) -> Option<Verdict> {
        if !tcp::may_create(parsed.tcp_flags) {
            return None;
        }
        let id = expected.destination_id();
        let destination = match self.table.destination(DestinationId(id)) {
            Some(destination) if destination.present => destination,
            gone => return Some(self.destination_gone(frame, interface, parsed, expected, gone.is_some())),
        };
        let state = self.timeouts.next(
            State::Listen,
            Protocol::TCP,
            Method::Masq,
            Direction::Forward,
            parsed.signals(),
        );
        let new = NewConnection {
            flow: parsed.flow,
            destination: DestinationKey {
                address: expected.destination(),
                port: expected.destination_port(),
            },
            destination_id: id,
            method: Method::Masq,
            state,
            timeout_ticks: self.timeouts.ticks(state),
            client_hop: self.hop_of(frame, interface, Method::Masq).0,
            fwmark: expected.fwmark(),
            controller: expected.controller(),
            helped: false,
        };
        Some(match self.enter_counted(&new, destination) {
            Ok(entry) => {
                // Not before: what finds no room may come again.
                self.forget(expected);
                destination.counters[self.worker.0 as usize].count_in(parsed.ip_len() as u64);
                self.send(frame, interface, parsed, Method::Masq, destination, || {
                    endpoint_of_destination(&entry, parsed.flow.family)
                })
            }
            Err(InsertError::Exists(entry)) => self.known(frame, interface, parsed, Hit::of(entry, Direction::Forward)),
            Err(InsertError::Full) => Verdict::Drop(DropReason::TableFull),
        })
    }
}

/// Whether a new connection is one whose payload is to be looked at: control connections of FTP by NAT.
pub(super) fn is_control(flow: &FlowKey, method: Method) -> bool {
    flow.protocol == Protocol::TCP && flow.destination_port() == FTP_PORT && method == Method::Masq
}
