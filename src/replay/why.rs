//! Why a frame went where it went, found out without a word in the data plane: what the connection table and the counters
//! say before a frame and after it.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::cases::hex;
use super::director::{MemoryDirector, Outcome};
use super::summary;
use crate::conn::{Connection, Direction, TemplateKey, sctp, tcp};
use crate::control::explain::{method_name, service_name};
use crate::dataplane::counters::FrameCounts;
use crate::forward::fragment::{Inserted, Reassembly};
use crate::packet::parse::{Packet, Parsed, parse};
use crate::packet::quote::quote;
use crate::packet::{DropReason, FlowKey, Frame, Offload, Protocol, sip};
use crate::scheduler::Candidate;
use crate::service::Method;
use crate::table::{InterfaceId, Reach, Service};

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It left the director.
    Sent,
    /// It was given to the local stack.
    HandedBack,
    /// It went no further. What left then is the ICMP error about it.
    Dropped,
    /// A fragment that waits for the rest of its datagram.
    Held,
}

/// A frame that left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Interface.
    pub interface: String,
    /// What it is, in a line.
    pub packet: String,
    /// The link address that it went to.
    pub to: String,
    /// Its bytes in hexadecimal.
    pub hex: String,
}

/// What became of one frame, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Account {
    /// What became of it.
    pub fate: Fate,
    /// Name of the drop reason, as in `uvs stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<&'static str>,
    /// In a sentence.
    pub why: String,
    /// Virtual service, such as `TCP 192.0.2.1:80`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Its scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// Real server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<SocketAddr>,
    /// Forwarding method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'static str>,
    /// State of the connection before the frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_before: Option<&'static str>,
    /// State of the connection after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
    /// Seconds until the connection expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u32>,
    /// What left.
    pub left: Vec<Left>,
}

/// Looks on while frames go through a director.
#[derive(Default)]
pub struct Observer {
    /// Puts fragments together as the data plane does, to know what they are of.
    fragments: Reassembly,
}

/// What the frame is about.
enum About {
    /// A packet of a flow, and the Call-ID in it.
    Flow(Parsed, Option<Vec<u8>>),
    /// An ICMP error about this flow, in the direction in which a packet of its connection has it.
    Error(FlowKey),
    /// A fragment of a datagram that is not whole.
    Piece,
    /// Nothing that a service can be about.
    Nothing,
}

/// What the table says at one moment.
#[derive(Clone, Copy)]
struct Seen {
    connection: Option<(Connection, Direction)>,
    template: bool,
    /// An FTP control connection has announced it.
    expected: bool,
}

impl Observer {
    /// Puts one frame into the director.
    pub fn inject(
        &mut self,
        director: &mut MemoryDirector,
        interface: InterfaceId,
        bytes: &[u8],
    ) -> (Outcome, Account) {
        let about = self.about(bytes, director.now_ns);
        let (flow, call) = match &about {
            About::Flow(parsed, call) => (Some(parsed.flow), call.as_deref()),
            About::Error(flow) => (Some(*flow), None),
            _ => (None, None),
        };
        let before = flow.map(|flow| look(director, &flow, call, interface));
        let counts = director.counts().clone();
        let packets = packets_in(director);
        let outcome = director.inject(interface, bytes, Offload::default());
        let after = flow.map(|flow| look(director, &flow, call, interface));
        let (fate, reason) = fate(&counts, director.counts());
        let taken = packets_in(director)
            .iter()
            .zip(&packets)
            .position(|(now, then)| now > then);
        let scene = Scene {
            director,
            interface,
            about: &about,
            flow,
            before,
            after,
            taken,
        };
        let mut account = scene.account(fate, reason);
        account.left = outcome.sent.iter().map(|sent| left(director, sent)).collect();
        (outcome, account)
    }

    fn about(&mut self, bytes: &[u8], now_ns: u64) -> About {
        match parse(bytes, Offload::default()) {
            Ok(Packet::Fragment(fragment)) => {
                self.fragments.expire(now_ns);
                match self.fragments.insert(bytes, &fragment, now_ns) {
                    Inserted::Complete(datagram) => {
                        let about = about(datagram.bytes());
                        self.fragments.release(datagram);
                        about
                    }
                    _ => About::Piece,
                }
            }
            _ => about(bytes),
        }
    }
}

fn about(bytes: &[u8]) -> About {
    match parse(bytes, Offload::default()) {
        Ok(Packet::Flow(parsed)) => About::Flow(parsed, sip::call_id(parsed.datagram(bytes)).map(<[u8]>::to_vec)),
        Ok(Packet::IcmpError(parsed)) => match quote(bytes, &parsed) {
            Ok(quote) if quote.outer.is_some() => About::Error(quote.flow),
            Ok(quote) => About::Error(quote.flow.reversed()),
            Err(_) => About::Nothing,
        },
        _ => About::Nothing,
    }
}

fn look(director: &MemoryDirector, flow: &FlowKey, call: Option<&[u8]>, interface: InterfaceId) -> Seen {
    let connections = director.connection_table();
    let hit = connections.lookup(connections.hash(flow), flow);
    let template = director.table().service_at(flow, interface).and_then(|service| {
        Some(TemplateKey {
            flow: service.template_key(flow)?,
            call_id: call.filter(|_| service.sip).map(|text| connections.call_id(text)),
        })
    });
    Seen {
        connection: hit.and_then(|hit| Some((hit.entry.read()?, hit.direction))),
        template: template.is_some_and(|key| connections.lookup_template(&key).is_some()),
        expected: connections.lookup_expected(flow).is_some(),
    }
}

/// Packets from clients that each destination got so far.
fn packets_in(director: &MemoryDirector) -> Vec<u64> {
    let slots = director.table().destinations.iter();
    slots
        .map(|slot| {
            let counters = slot.iter().flat_map(|destination| destination.counters.iter());
            counters
                .map(|counters| counters.packets_in.load(Ordering::Relaxed))
                .sum()
        })
        .collect()
}

fn left(director: &MemoryDirector, (interface, bytes): &(InterfaceId, Vec<u8>)) -> Left {
    let [a, b, c, d, e, f] = *bytes.first_chunk().unwrap_or(&[0; 6]);
    Left {
        interface: director.network().interfaces()[interface.0 as usize].name.clone(),
        packet: summary::describe(bytes),
        to: crate::packet::Mac([a, b, c, d, e, f]).to_string(),
        hex: hex(bytes),
    }
}

/// What became of the one frame between two states of the counts.
fn fate(before: &FrameCounts, after: &FrameCounts) -> (Fate, Option<DropReason>) {
    let reasons = DropReason::ALL.iter().zip(after.dropped.iter().zip(&before.dropped));
    let reason = reasons
        .filter(|(_, (after, before))| after > before)
        .map(|(reason, _)| *reason)
        .next();
    // What uvs made itself, an ICMP error or further pieces, is no sign that the frame went on.
    let made = after.generated - before.generated;
    if after.transmitted - before.transmitted > made {
        (Fate::Sent, None)
    } else if after.handed_back > before.handed_back {
        (Fate::HandedBack, None)
    } else if let Some(reason) = reason {
        (Fate::Dropped, Some(reason))
    } else if after.held > before.held {
        (Fate::Held, None)
    } else {
        // All its pieces were made by us: a super-frame that was cut for a tunnel.
        (Fate::Sent, None)
    }
}

/// All that is known about a frame.
struct Scene<'a> {
    director: &'a MemoryDirector,
    interface: InterfaceId,
    about: &'a About,
    flow: Option<FlowKey>,
    before: Option<Seen>,
    after: Option<Seen>,
    /// Slot of the destination that counted the frame.
    taken: Option<usize>,
}

impl Scene<'_> {
    fn account(&self, fate: Fate, reason: Option<DropReason>) -> Account {
        let before = self.before.and_then(|seen| seen.connection);
        let after = self.after.and_then(|seen| seen.connection);
        let connection = after.or(before).map(|(connection, _)| connection);
        let service = self.service(connection.as_ref());
        let destination = connection
            .map(|connection| (connection.destination, connection.method))
            .or_else(|| self.one_packet());
        let same = before.zip(after).is_some_and(|((b, _), (a, _))| b.number == a.number);
        Account {
            fate,
            drop_reason: reason.map(DropReason::name),
            why: match fate {
                Fate::Sent => self.sent(),
                Fate::HandedBack => self.handed_back(),
                Fate::Held => "a fragment, held until its datagram is whole".to_owned(),
                Fate::Dropped => self.dropped(reason),
            },
            scheduler: service.and_then(|service| self.scheduler(service)),
            service: service.map(|service| service_name(&service.key)),
            server: destination.map(|((address, port), _)| SocketAddr::new(address, port)),
            method: destination.map(|(_, method)| method_name(method)),
            state_before: before.filter(|_| same || after.is_none()).map(|(c, _)| c.state.name()),
            state: after.map(|(c, _)| c.state.name()),
            expires_s: after.map(|(c, _)| c.deadline.seconds_left(self.director.now())),
            left: Vec::new(),
        }
    }

    /// The service that the packet asks for, or that its connection is of.
    fn service(&self, connection: Option<&Connection>) -> Option<&Service> {
        let table = self.director.table();
        let service = match connection {
            Some(connection) => table.service_of(connection),
            None => table.service_at(&self.flow?, self.interface),
        };
        service.map(|service| &**service)
    }

    fn scheduler(&self, service: &Service) -> Option<String> {
        let entry = self.director.state().service(&service.key)?;
        Some(entry.service.scheduler.clone())
    }

    /// The destination of a packet that left no connection behind.
    fn one_packet(&self) -> Option<((std::net::IpAddr, u16), Method)> {
        let destination = self.director.table().destinations.get(self.taken?)?.as_ref()?;
        let port = match destination.key.port {
            0 => self.flow?.destination_port(),
            port => port,
        };
        Some(((destination.key.address, port), destination.method))
    }

    fn sent(&self) -> String {
        let before = self.before.and_then(|seen| seen.connection);
        let after = self.after.and_then(|seen| seen.connection);
        if matches!(self.about, About::Error(_)) {
            return match after {
                Some((c, Direction::Forward)) if c.method == Method::Tunnel && self.taken.is_none() => {
                    "an ICMP error about a tunnel, turned into one for the client".to_owned()
                }
                Some((c, Direction::Forward)) => format!("an ICMP error about a connection to {}", server(&c)),
                Some((c, Direction::Reply)) => format!("an ICMP error about what {} sent", server(&c)),
                None => "an ICMP error".to_owned(),
            };
        }
        if matches!(self.about, About::Nothing) {
            return "AH or ESP, which follows the connection of its key exchange".to_owned();
        }
        match (before, after) {
            (Some((b, _)), Some((a, direction))) if b.number == a.number => {
                let way = match direction {
                    Direction::Forward => "client to server",
                    Direction::Reply => "server to client",
                };
                format!("known connection, {way}")
            }
            (None, Some((c, Direction::Reply))) => format!("new connection, which {} began", server(&c)),
            (None, Some((c, _))) => format!("new connection: {}", self.choice(&c)),
            (Some(_), Some((c, _))) => format!("the connection begins anew: {}", self.choice(&c)),
            (Some((c, _)), None) => format!("the last packet of a connection to {}", server(&c)),
            (None, None) => "one-packet scheduling, which leaves no connection".to_owned(),
        }
    }

    fn choice(&self, connection: &Connection) -> String {
        if self.before.is_some_and(|seen| seen.expected) {
            return format!("an FTP control connection has announced it, to {}", server(connection));
        }
        if self.before.is_some_and(|seen| seen.template) {
            return format!("the client's persistence template leads to {}", server(connection));
        }
        let scheduler = self
            .service(Some(connection))
            .and_then(|service| self.scheduler(service));
        let scheduler = scheduler.unwrap_or_else(|| "the scheduler".to_owned());
        let kept = match self.after.is_some_and(|seen| seen.template) {
            true => ", and a persistence template keeps the client there",
            false => "",
        };
        format!("{scheduler} chose {}{kept}", server(connection))
    }

    fn dropped(&self, reason: Option<DropReason>) -> String {
        let Some(reason) = reason else { return String::new() };
        let explanation = reason.explanation().trim().trim_end_matches('.');
        match self.service(None) {
            Some(service) if reason == DropReason::NoDestination => format!("{explanation}{}", unavailable(service)),
            _ => explanation.to_owned(),
        }
    }

    fn handed_back(&self) -> String {
        let table = self.director.table();
        if let Some((_, direction)) = self.after.and_then(|seen| seen.connection) {
            return match direction {
                _ if table.is_empty() => "there is no service any more: all is the local stack's".to_owned(),
                Direction::Forward => "the director itself is the real server".to_owned(),
                Direction::Reply => {
                    "translated; where the client is is not known yet, so the kernel routes it".to_owned()
                }
            };
        }
        let parsed = match self.about {
            About::Flow(parsed, _) => parsed,
            About::Error(_) => return "an ICMP error about no known connection: the local stack's".to_owned(),
            About::Piece => return "a fragment for the local stack".to_owned(),
            About::Nothing => return "nothing that a service can be about: the local stack's".to_owned(),
        };
        let Some(service) = self.service(None) else {
            if table.service_of_caller(&parsed.flow).is_some() && table.is_nat_source(&parsed.flow) {
                return "one-packet scheduling: a server's packet, translated; the kernel routes it".to_owned();
            }
            return "no service has this address, port and protocol: the local stack's".to_owned();
        };
        if !service.schedules(&parsed.flow) {
            return "of no FTP data connection that is expected: the local stack's".to_owned();
        }
        if parsed.flow.protocol == Protocol::TCP {
            let sloppy = table.sysctls.sloppy_tcp != 0;
            if sloppy && !tcp::may_create_sloppy(parsed.tcp_flags) {
                return "a RST begins no connection: the local stack's".to_owned();
            }
            if !sloppy && !tcp::may_create(parsed.tcp_flags) {
                return "no SYN, so it begins no connection of the service (sloppy_tcp is 0): the local stack's"
                    .to_owned();
            }
        }
        if parsed.flow.protocol == Protocol::SCTP {
            let sloppy = table.sysctls.sloppy_sctp != 0;
            if !parsed.chunk.is_some_and(|chunk| sctp::may_create(chunk, sloppy)) {
                return "no INIT, so it begins no connection of the service (sloppy_sctp is 0): the local stack's"
                    .to_owned();
            }
        }
        let local = service.ids.iter().filter_map(|id| table.destination(*id));
        if local.into_iter().any(|destination| destination.reach == Reach::Local) {
            return "the director itself is the real server".to_owned();
        }
        "the local stack's".to_owned()
    }
}

/// Why each server takes no new connection.
fn unavailable(service: &Service) -> String {
    let reason = |candidate: &Candidate| {
        let server = SocketAddr::new(candidate.key.address, candidate.key.port);
        match candidate.weight {
            0 => format!("; {server} has weight 0"),
            _ if candidate.load.is_overloaded() => format!("; {server} is over its threshold"),
            _ => format!("; {server} was not chosen"),
        }
    };
    service.candidates.iter().map(reason).collect()
}

fn server(connection: &Connection) -> String {
    let (address, port) = connection.destination;
    format!(
        "{} ({})",
        SocketAddr::new(address, port),
        method_name(connection.method)
    )
}
