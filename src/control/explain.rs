//! `uvs explain`: which way a flow goes, and why, without touching it.
//!
//! Everything is read: the table that the workers have, copies of the connection entries that matter, and what the
//! scheduler would do ([`Schedule::peek`](crate::scheduler::Schedule::peek)). The order of the questions is the data plane's
//! (`dataplane::flow`, `dataplane::begin`).

mod print;
mod question;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::state::State;
use crate::conn::{CallId, Connection, Kind, TemplateKey, Tick, sctp, tcp};
use crate::packet::{ChunkType, DropReason, Family, FlowKey, Protocol, TcpFlags, sip};
use crate::scheduler::{Candidate, Peek};
use crate::service::{DestinationKey, FTP_DATA_PORT, FTP_PORT, Method, ServiceKey, TransportProtocol};
use crate::table::{Destination, DestinationId, InterfaceId, Reach, Service, Table};

pub use question::Question;

/// The key of the template that the flow would use; `call_id` is that of the question.
pub fn template_key(question: &Question, call_id: Option<CallId>, table: &Table) -> Option<TemplateKey> {
    let flow = question.flow();
    let service = service_of_flow(table, &flow)?;
    Some(TemplateKey {
        flow: service.template_key(&flow)?,
        call_id: call_id.filter(|_| service.sip),
    })
}

/// The service that a flow asks for, by a firewall mark or by its address. A question names no interface, so the first that
/// gives the flow a mark counts.
fn service_of_flow<'t>(table: &'t Table, flow: &FlowKey) -> Option<&'t Arc<Service>> {
    let mut interfaces = (0..table.interfaces.len()).map(|n| InterfaceId(n as u8));
    let marked = interfaces.find_map(|interface| table.classifier.mark(flow, interface));
    let marked = marked.and_then(|mark| table.service_of_mark(mark, flow.family));
    marked.or_else(|| table.service(flow))
}

/// Which way a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// It is of a known connection, and goes to its server.
    Connection,
    /// It is what a NAT server of a known connection sends, and goes to the client, as from the virtual service.
    Reply,
    /// A new connection that goes where the client's persistence template leads.
    Template,
    /// A new connection that the scheduler gives to a server.
    Scheduler,
    /// A new connection of a scheduler that draws lots: any of the available servers.
    Chance,
    /// Refused: no server may take a new connection. Or dropped, see the reason.
    Dropped,
    /// It is the local stack's.
    LocalStack,
    /// The kernel never gives it to uvs.
    Kernel,
}

/// A way, and what leads to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked.
    pub question: Question,
    /// The way.
    pub way: Way,
    /// In a sentence.
    pub why: String,
    /// More that one should know, a sentence each.
    pub notes: Vec<String>,
    /// Name of the drop reason, as in `uvs stats`.
    pub drop_reason: Option<String>,
    /// Virtual service.
    pub service: Option<String>,
    /// Its scheduler.
    pub scheduler: Option<String>,
    /// The known connection, or the template.
    pub entry: Option<EntryReport>,
    /// The server that gets it.
    pub server: Option<ServerReport>,
    /// Every server of the service, in the scheduler's order.
    pub servers: Vec<ServerReport>,
}

/// A connection entry or template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryReport {
    /// State.
    pub state: String,
    /// Seconds left.
    pub expires_s: u32,
    /// Client; of a template masked.
    pub client: SocketAddr,
    /// Virtual address.
    pub virtual_address: SocketAddr,
    /// Its server.
    pub server: SocketAddr,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReport {
    /// Address and port.
    pub server: SocketAddr,
    /// Forwarding method.
    pub method: String,
    /// Weight.
    pub weight: u32,
    /// ActiveConn.
    pub active: u32,
    /// InActConn.
    pub inactive: u32,
    /// Why it may not take new connections.
    pub unavailable: Option<String>,
    /// How it is reached.
    pub next_hop: HopReport,
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HopReport {
    /// By this hop.
    Hop {
        /// Interface that it leaves by.
        interface: String,
        /// Link address that it goes to.
        to: String,
        /// Our address on that way.
        source: IpAddr,
        /// Longest IP packet, in bytes.
        mtu: u16,
    },
    /// Not at the moment, or not over a wire.
    Otherwise {
        /// In a few words.
        no_hop: String,
    },
}

/// Explains. `entries` are those that the question [is about](Question::is_about).
pub fn explain(question: &Question, table: &Table, state: &State, entries: &[Connection], now: Tick) -> Explanation {
    let scene = Scene {
        question,
        table,
        state,
        entries,
        now,
        flow: question.flow(),
    };
    scene.explain()
}

struct Scene<'a> {
    question: &'a Question,
    table: &'a Table,
    state: &'a State,
    entries: &'a [Connection],
    now: Tick,
    flow: FlowKey,
}

impl Scene<'_> {
    fn explain(&self) -> Explanation {
        if let Some(reply) = self.entries.iter().find(|entry| self.question.is_reply(entry)) {
            return self.reply(reply);
        }
        let find = |wanted: fn(&Question, &Connection) -> bool| {
            let mut entries = self.entries.iter();
            entries.find(|entry| wanted(self.question, entry))
        };
        let known = find(Question::is_forward).or_else(|| find(Question::is_expected));
        let vip = self.question.virtual_address.ip();
        if self.table.is_empty() {
            return self.plain(Way::LocalStack, "there is no service at all".to_owned());
        }
        if !self.table.local.contains(&vip) {
            return self.not_local(vip);
        }
        let mut notes = Vec::new();
        if let Some(known) = known {
            match self.table.destination(DestinationId(known.destination_id)) {
                Some(destination) if destination.present => return self.connection(known, destination),
                Some(_) if self.table.sysctls.expire_nodest_conn == 0 => return self.gone(known),
                _ => {
                    notes.push("its connection is forgotten, as its server was removed (expire_nodest_conn)".to_owned())
                }
            }
        }
        let Some(service) = service_of_flow(self.table, &self.flow) else {
            let why = format!(
                "no service has {} {}",
                name_of(self.question.protocol),
                self.question.virtual_address
            );
            return self.plain(Way::LocalStack, why);
        };
        let mut answer = match service.schedules(&self.flow) {
            true => self.new_connection(service),
            false => self.of_service(Some(service), self.not_scheduled()),
        };
        answer.notes.splice(0..0, notes);
        answer
    }

    /// What looks like FTP's data and is not.
    fn not_scheduled(&self) -> Explanation {
        let why = match self.flow.source_port() {
            FTP_DATA_PORT => "nobody but an FTP server connects from port 20: no connection begins",
            _ => "no FTP control connection has announced this port, and the service is not persistent",
        };
        self.plain(Way::LocalStack, why.to_owned())
    }

    /// An answer without servers.
    fn plain(&self, way: Way, why: String) -> Explanation {
        Explanation {
            question: self.question.clone(),
            way,
            why,
            notes: Vec::new(),
            drop_reason: None,
            service: None,
            scheduler: None,
            entry: None,
            server: None,
            servers: Vec::new(),
        }
    }

    fn not_local(&self, vip: IpAddr) -> Explanation {
        if let Some((service, _, destination)) = self.table.service_of_caller(&self.flow) {
            let why = format!(
                "a NAT server begins a connection, unless its packet has no Call-ID: to the client, as from {}",
                service_name(&service.key)
            );
            let answer = Explanation {
                server: Some(self.server(destination, destination.key, destination.method, None)),
                ..self.plain(Way::Reply, why)
            };
            return self.of_service(Some(service), answer);
        }
        if self.table.is_nat_source(&self.flow) {
            let reason = DropReason::NoConnection;
            return self.dropped(reason, reason.explanation().trim().trim_end_matches('.').to_owned());
        }
        let why = format!("{vip} is no address of the director, so its packets are the kernel's to forward");
        self.plain(Way::Kernel, why)
    }

    fn dropped(&self, reason: DropReason, why: String) -> Explanation {
        Explanation {
            drop_reason: Some(reason.name().to_owned()),
            ..self.plain(Way::Dropped, why)
        }
    }

    /// With the service of a connection, and its servers.
    fn of_service(&self, service: Option<&Service>, answer: Explanation) -> Explanation {
        let Some(service) = service else { return answer };
        let scheduler = self.state.service(&service.key);
        Explanation {
            service: Some(service_name(&service.key)),
            scheduler: scheduler.map(|entry| entry.service.scheduler.clone()),
            servers: self.servers(service),
            ..answer
        }
    }

    fn servers(&self, service: &Service) -> Vec<ServerReport> {
        let all = service.ids.iter().zip(&service.candidates);
        all.filter_map(|(id, candidate)| {
            let destination = self.table.destination(*id)?;
            Some(self.server(destination, destination.key, destination.method, Some(candidate)))
        })
        .collect()
    }

    fn server(
        &self,
        destination: &Destination,
        key: DestinationKey,
        method: Method,
        candidate: Option<&Candidate>,
    ) -> ServerReport {
        let unavailable = match candidate {
            _ if !destination.present => Some("removed from its service".to_owned()),
            Some(candidate) if candidate.weight == 0 => Some("weight 0: quiesced".to_owned()),
            Some(candidate) if candidate.load.is_overloaded() => {
                let (upper, lower) = (candidate.upper_threshold, candidate.lower_threshold);
                Some(format!("overloaded: thresholds -x {upper} -y {lower}"))
            }
            _ => None,
        };
        ServerReport {
            server: SocketAddr::new(key.address, key.port),
            method: method_name(method).to_owned(),
            weight: destination.weight,
            active: destination.load.active(),
            inactive: destination.load.inactive(),
            unavailable,
            next_hop: self.hop(destination, method),
        }
    }

    fn hop(&self, destination: &Destination, method: Method) -> HopReport {
        let no_hop = match &destination.reach {
            Reach::Hop { hop, source } => {
                let interface = self.table.interfaces.get(hop.interface.0 as usize);
                return HopReport::Hop {
                    interface: interface.map_or_else(|| "?".to_owned(), |interface| interface.name.clone()),
                    to: hop.destination.to_string(),
                    source: *source,
                    mtu: hop.mtu,
                };
            }
            Reach::Local if destination.is_local_on_another_port(method, self.flow.destination_port()) => {
                "the director itself, by NAT to another port: dropped (local_port)"
            }
            Reach::Local => "the director itself: its local stack",
            Reach::Resolving => "the neighbour is being asked for: dropped until it answers (no_neighbour)",
            Reach::Unreachable => "no route: dropped, host unreachable (no_route)",
            Reach::Silent => "the neighbour does not answer: dropped (no_neighbour)",
            Reach::ForeignInterface => "by an interface that uvs does not serve: dropped (foreign_interface)",
        };
        HopReport::Otherwise {
            no_hop: no_hop.to_owned(),
        }
    }

    fn entry(&self, connection: &Connection) -> EntryReport {
        let at = |(address, port): (IpAddr, u16)| SocketAddr::new(address, port);
        EntryReport {
            state: connection.state.name().to_owned(),
            expires_s: connection.deadline.seconds_left(self.now),
            client: at(connection.client),
            virtual_address: at(connection.virtual_address),
            server: at(connection.destination),
        }
    }

    /// The service of a connection, as clients ask for it.
    fn service_of(&self, connection: &Connection) -> Option<&Service> {
        self.table.service_of(connection).map(|service| &**service)
    }

    fn reply(&self, connection: &Connection) -> Explanation {
        let (address, port) = connection.virtual_address;
        let at = SocketAddr::new(address, port);
        let why = format!("a NAT server's packet of a known connection: to the client, as from {at}");
        let answer = Explanation {
            entry: Some(self.entry(connection)),
            ..self.plain(Way::Reply, why)
        };
        self.of_service(self.service_of(connection), answer)
    }

    fn connection(&self, connection: &Connection, destination: &Destination) -> Explanation {
        let (address, port) = connection.destination;
        let key = DestinationKey { address, port };
        let mut answer = Explanation {
            entry: Some(self.entry(connection)),
            server: Some(self.server(destination, key, connection.method, None)),
            ..self.plain(
                Way::Connection,
                match self.question.is_forward(connection) {
                    true => "a known connection, which stays with its server".to_owned(),
                    false => "a data connection that an FTP control connection has announced".to_owned(),
                },
            )
        };
        let service = self.service_of(connection);
        let (state, mode) = (connection.state, self.table.sysctls.conn_reuse_mode);
        // By a template, or by an FTP control connection: such a one keeps its server.
        let of_ftp = service.is_some_and(|service| service.key.is_ftp()) && connection.virtual_address.1 != FTP_PORT;
        let controlled = of_ftp || service.is_some_and(|service| service.persistence.is_some());
        if self.table.sysctls.expire_nodest_conn != 0 && destination.weight == 0 {
            let note = "a SYN or INIT begins it anew, as its server has weight 0 (expire_nodest_conn)";
            answer.notes.push(note.to_owned());
        }
        let beginner = match connection.protocol {
            Protocol::TCP if tcp::reusable(state, connection.method, TcpFlags(TcpFlags::SYN), mode) => Some("a SYN"),
            Protocol::SCTP if sctp::reusable(state, Some(ChunkType::INIT), mode) => Some("an INIT"),
            _ => None,
        };
        if let Some(packet) = beginner.filter(|_| !controlled) {
            answer
                .notes
                .push(format!("{packet} begins it anew, as it is in {}", state.name()));
        }
        self.of_service(service, answer)
    }

    /// Its server was removed.
    fn gone(&self, connection: &Connection) -> Explanation {
        let (address, port) = connection.destination;
        let server = SocketAddr::new(address, port);
        let why = format!("a known connection, whose server {server} was removed from its service");
        let answer = Explanation {
            entry: Some(self.entry(connection)),
            ..self.dropped(DropReason::DestinationGone, why)
        };
        self.of_service(self.service_of(connection), answer)
    }

    fn new_connection(&self, service: &Service) -> Explanation {
        let mut answer = self.of_service(Some(service), self.chosen(service));
        if self.question.protocol == TransportProtocol::Tcp && answer.way != Way::Dropped {
            answer.notes.push(match self.table.sysctls.sloppy_tcp {
                0 => "only a SYN begins a connection; other packets are the local stack's".to_owned(),
                _ => "any packet but a RST begins a connection (sloppy_tcp)".to_owned(),
            });
        }
        if self.question.protocol == TransportProtocol::Sctp
            && answer.way != Way::Dropped
            && self.table.sysctls.sloppy_sctp == 0
        {
            let note = "only an INIT begins an association; other packets are the local stack's";
            answer.notes.push(note.to_owned());
        }
        if service.one_packet && self.question.protocol == TransportProtocol::Udp {
            answer
                .notes
                .push("one-packet scheduling: each datagram is scheduled by itself".to_owned());
        }
        answer
    }

    /// What a service that goes by Call-IDs drops: nothing of it begins a connection.
    fn no_call(&self) -> Option<Explanation> {
        let id = self.question.call_id.as_ref();
        let why = match id {
            _ if self.question.protocol != TransportProtocol::Udp => "the service goes by Call-IDs, of UDP only",
            Some(id) if !sip::is_call_id(id.as_bytes()) => "that is no Call-ID, and without one a datagram is dropped",
            _ => return None,
        };
        Some(self.dropped(DropReason::NoCallId, why.to_owned()))
    }

    fn chosen(&self, service: &Service) -> Explanation {
        let mut notes = Vec::new();
        if service.sip && service.persistence.is_some() {
            if let Some(answer) = self.no_call() {
                return answer;
            }
            if self.question.call_id.is_none() {
                let note = "the Call-ID decides: this is for one that is new; ask for another with --call-id. Without one a \
                            datagram is dropped (no_call_id)";
                notes.push(note.to_owned());
            }
        }
        // Of templates the question is about one.
        let template = self.entries.iter().find(|entry| entry.kind == Kind::Template);
        if let Some(template) = template {
            let destination = self.table.destination(DestinationId(template.destination_id));
            let expired = |d: &Destination| d.weight == 0 && self.table.sysctls.expire_quiescent_template != 0;
            match destination {
                Some(destination) if destination.present && !expired(destination) => {
                    return Explanation {
                        entry: Some(self.entry(template)),
                        server: Some(self.first_server(service, destination)),
                        ..self.plain(
                            Way::Template,
                            "the client's persistence template leads there".to_owned(),
                        )
                    };
                }
                _ => notes.push("the client's persistence template holds no more".to_owned()),
            }
        }
        let mut answer = match service.peek(&self.flow) {
            Peek::Sure(Some(id)) => match self.table.destination(id) {
                Some(destination) => Explanation {
                    server: Some(self.first_server(service, destination)),
                    ..self.plain(
                        Way::Scheduler,
                        "a new connection: the scheduler's choice, were it to come now".to_owned(),
                    )
                },
                None => self.nobody(),
            },
            Peek::Sure(None) => self.nobody(),
            Peek::Chance => {
                let why = "a new connection: the scheduler draws lots among the servers that are available";
                self.plain(Way::Chance, why.to_owned())
            }
        };
        answer.notes = notes;
        answer
    }

    fn nobody(&self) -> Explanation {
        let why = "a new connection, and no server may take it: refused with port unreachable";
        self.dropped(DropReason::NoDestination, why.to_owned())
    }

    /// The server as a new connection gets it: a service for several ports keeps the client's.
    fn first_server(&self, service: &Service, destination: &Destination) -> ServerReport {
        let key = service.endpoint_of(&destination.key, &self.flow);
        self.server(destination, key, destination.method, None)
    }
}

fn name_of(protocol: TransportProtocol) -> &'static str {
    match protocol {
        TransportProtocol::Tcp => "TCP",
        TransportProtocol::Udp => "UDP",
        TransportProtocol::Sctp => "SCTP",
    }
}

/// As IPVS lists a service: `TCP 192.0.2.1:80`, `FWM 7`.
pub fn service_name(key: &ServiceKey) -> String {
    match *key {
        ServiceKey::Address {
            protocol,
            address,
            port,
        } => format!("{} {}", name_of(protocol), SocketAddr::new(address, port)),
        ServiceKey::FwMark { mark, .. } => match key.family() {
            Family::V4 => format!("FWM {mark}"),
            Family::V6 => format!("FWM {mark} IPv6"),
        },
    }
}

/// As ipvsadm lists a forwarding method.
pub fn method_name(method: Method) -> &'static str {
    match method {
        Method::Route => "Route",
        Method::Masq => "Masq",
        Method::Tunnel => "Tunnel",
    }
}
