//! What the workers read: services with their schedulers and next hops, immutable.
//!
//! The control thread makes another [`Table`] for each change and sends it to every worker; services and
//! destinations that did not change are shared by `Arc`. Live numbers ([`Load`], [`Counters`], scheduler cursors)
//! hang off it by `Arc` and outlast it.

pub mod defence;
pub mod finder;
pub mod hops;
pub mod local;
pub mod marks;
pub mod services;
pub mod sysctl;
pub mod way;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use services::Endpoint;

use crate::conn::{Connection, Kind, WorkerId};
use crate::packet::{Family, FlowKey, Mac, Protocol};
use crate::scheduler::{Batch, Candidate, Load, Peek, Schedule};
use crate::service::{
    DestinationKey, FTP_DATA_PORT, FTP_PORT, Method, Persistence, ServiceKey, Timeouts, TransportProtocol, Tunnel,
    may_be_ftp_data,
};

pub use defence::{Defence, Supplies};
pub use finder::Finder;
pub use hops::{HopId, Hops};
pub use local::LocalAddresses;
pub use marks::Classifier;
pub use services::{NatSources, Services};
pub use sysctl::Sysctls;
pub use way::Way;

/// Everything the workers know, immutable. One generation is one change (or batch of changes) made live.
#[derive(Debug, Default)]
pub struct Table {
    /// Counts the changes; the first table is 1.
    pub generation: u64,
    /// Services, asked through [`Table::service`] and its neighbours.
    pub services: Services,
    /// Destinations by [`DestinationId`], those removed from their service but with live connections included.
    pub destinations: Vec<Option<Arc<Destination>>>,
    /// Where NAT replies come from.
    pub nat_sources: Arc<NatSources>,
    /// The daemon's interfaces by [`InterfaceId`].
    pub interfaces: Arc<[Interface]>,
    /// Addresses of the director.
    pub local: Arc<LocalAddresses>,
    /// `--set`.
    pub timeouts: Timeouts,
    /// `net.ipv4.vs.*`.
    pub sysctls: Arc<Sysctls>,
    /// What of drop_entry, drop_packet and secure_tcp is at work.
    pub defence: Defence,
    /// Which packets have which firewall mark.
    pub classifier: Arc<Classifier>,
    /// The MSS that a SYN announces is made small enough for the tunnel that it goes through.
    pub mss_clamp: bool,
}

impl Table {
    /// The service of a client's packet that came in there: of its firewall mark, else of its address. In this order also
    /// the kernel looks (`ip_vs_service_find`).
    #[inline]
    pub fn service_at(&self, flow: &FlowKey, interface: InterfaceId) -> Option<&Arc<Service>> {
        let marked = || self.service_of_mark(self.classifier.mark(flow, interface)?, flow.family);
        match self.services.marks.is_empty() {
            true => self.service(flow),
            false => marked().or_else(|| self.service(flow)),
        }
    }

    /// The service of a firewall mark.
    pub fn service_of_mark(&self, mark: u32, family: Family) -> Option<&Arc<Service>> {
        self.services.marks.get(&(mark, family))
    }

    /// The service that a connection was made by, as clients ask for it.
    pub fn service_of(&self, connection: &Connection) -> Option<&Arc<Service>> {
        let flow = FlowKey::new(connection.protocol, connection.client, connection.virtual_address);
        match connection.fwmark {
            0 => self.service(&flow),
            mark => self.service_of_mark(mark, flow.family),
        }
    }

    /// The service of an address: that of exactly the flow's destination address and port, else that of FTP, if it can be a
    /// data connection, else the one with port 0 (`ip_vs_service_find`).
    #[inline]
    pub fn service(&self, flow: &FlowKey) -> Option<&Arc<Service>> {
        let mut endpoint = Endpoint::destination(flow);
        if let Some(service) = self.services.exact.get(&endpoint) {
            return Some(service);
        }
        let may_be_data = flow.protocol == Protocol::TCP && may_be_ftp_data(endpoint.port);
        if self.services.of_ftp > 0 && may_be_data {
            endpoint.port = FTP_PORT;
            if let Some(service) = self.services.exact.get(&endpoint) {
                return Some(service);
            }
        }
        if self.services.of_any_port == 0 {
            return None;
        }
        endpoint.port = 0;
        self.services.exact.get(&endpoint)
    }

    /// Some service has the flow's destination address, whatever the port.
    pub fn is_virtual(&self, address: IpAddr) -> bool {
        self.nat_sources.virtual_addresses.contains(&address)
    }

    /// The flow's source is a NAT destination of a present service: its packets never leave with that address.
    #[inline]
    pub fn is_nat_source(&self, flow: &FlowKey) -> bool {
        let mut endpoint = Endpoint::source(flow);
        let sources = &self.nat_sources.endpoints;
        if sources.contains(&endpoint) {
            return true;
        }
        if !self.nat_sources.any_port {
            return false;
        }
        endpoint.port = 0;
        sources.contains(&endpoint)
    }

    /// Whose connection a real server may begin: its packets of UDP that belong to none leave as from this service
    /// (`ip_vs_conn_out`). Only of the persistence engine `sip`, for NAT destinations of just this address and port.
    pub fn service_of_caller(&self, flow: &FlowKey) -> Option<(&Arc<Service>, DestinationId, &Arc<Destination>)> {
        if self.services.callers.is_empty() || flow.protocol != Protocol::UDP || flow.source_port() == 0 {
            return None;
        }
        let source = DestinationKey {
            address: flow.source(),
            port: flow.source_port(),
        };
        self.services.callers.iter().find_map(|service| {
            let udp =
                matches!(service.key, ServiceKey::Address { protocol: TransportProtocol::Udp, port, .. } if port != 0);
            let place = service.candidates.iter().position(|candidate| candidate.key == source);
            let id = *service.ids.get(place.filter(|_| udp)?)?;
            let destination = self.destination(id)?;
            (destination.method == Method::Masq).then_some((service, id, destination))
        })
    }

    /// Some service goes by Call-IDs.
    pub fn has_calls(&self) -> bool {
        !self.services.callers.is_empty() || self.services.marks.values().any(|service| service.sip)
    }

    /// A destination by its slot.
    #[inline]
    pub fn destination(&self, id: DestinationId) -> Option<&Arc<Destination>> {
        self.destinations.get(id.0 as usize)?.as_ref()
    }

    /// No service at all: everything is the local stack's.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.services.exact.is_empty() && self.services.marks.is_empty()
    }

    /// Both have the very same destinations and services, not only equal ones.
    pub fn shares_all_with(&self, other: &Table) -> bool {
        let places = |table: &Table| -> Vec<_> {
            let places = table.destinations.iter();
            places.map(|place| place.as_ref().map(Arc::as_ptr)).collect()
        };
        places(self) == places(other) && self.services.shares_all_with(&other.services)
    }

    /// Takes an entry that ended off its destination's numbers.
    pub fn count_off(&self, by: WorkerId, gone: &Connection) {
        count_off(&self.destinations, by, gone);
    }
}

/// Takes an entry that ended off its destination's numbers, `destinations` being [`Table::destinations`].
pub fn count_off(destinations: &[Option<Arc<Destination>>], by: WorkerId, gone: &Connection) {
    let Some(Some(destination)) = destinations.get(gone.destination_id as usize) else {
        return;
    };
    let (upper, lower) = (destination.upper_threshold, destination.lower_threshold);
    match gone.kind {
        Kind::Connection => destination.load.remove(by.0, gone.state.is_active(), upper, lower),
        Kind::Template => destination.load.remove_template(upper, lower),
    }
}

/// A virtual service as the workers see it.
pub struct Service {
    /// What names it.
    pub key: ServiceKey,
    /// Chooses among `candidates`.
    pub scheduler: Box<dyn Schedule + Send + Sync>,
    /// Its present destinations, newest first.
    pub candidates: Vec<Candidate>,
    /// Their slots, in the same order.
    pub ids: Vec<DestinationId>,
    /// Persistence.
    pub persistence: Option<Persistence>,
    /// One-packet scheduling.
    pub one_packet: bool,
    /// The persistence engine is `sip`: a template is for a call, and what has no Call-ID begins no connection.
    pub sip: bool,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("key", &self.key)
            .field("ids", &self.ids)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// What names a client's persistence template: its masked address, the virtual address, and the service's port. Of a
    /// mark's service it is no protocol's, and has the mark in the place of the address, in its first four bytes. With the
    /// persistence engine `sip`, the Call-ID besides.
    pub fn template_key(&self, flow: &FlowKey) -> Option<FlowKey> {
        let mask = self.persistence?.mask;
        let mut key = *flow;
        match flow.family {
            Family::V4 => key.addresses[0] &= (mask as u64) << 32 | 0xffff_ffff,
            Family::V6 => {
                let mask = u128::MAX.checked_shl(128 - mask.min(128)).unwrap_or(0);
                key.addresses[0] &= (mask >> 64) as u64;
                key.addresses[1] &= mask as u64;
            }
        }
        key.ports = self.template_port() as u32;
        if let ServiceKey::FwMark { mark, .. } = self.key {
            key.protocol = Protocol::IP;
            match flow.family {
                Family::V4 => key.addresses[0] = key.addresses[0] >> 32 << 32 | mark as u64,
                Family::V6 => (key.addresses[2], key.addresses[3]) = ((mark as u64) << 32, 0),
            }
        }
        Some(key)
    }

    /// Its connections may be controlled, by templates or by one of FTP. (Also of marks, which may be asked for FTP.)
    pub fn may_control(&self) -> bool {
        self.persistence.is_some() || self.template_port() == 0
    }

    /// The port in its templates: its own, or 0 when they are for several. Of FTP they are for data connections too.
    pub fn template_port(&self) -> u16 {
        match self.key.port() {
            FTP_PORT => 0,
            port => port,
        }
    }

    /// Whether it may begin a connection with this packet of a client; all else is the local stack's. Nobody connects from
    /// FTP's data port but a server, and what an FTP service does not expect and keeps no template for is of other programs
    /// (`ip_vs_schedule`, `ip_vs_leave`).
    pub fn schedules(&self, flow: &FlowKey) -> bool {
        let other_program =
            self.key.port() == FTP_PORT && self.persistence.is_none() && flow.destination_port() != FTP_PORT;
        flow.source_port() != FTP_DATA_PORT && !other_program
    }

    /// Its firewall mark; 0 = it has an address.
    pub fn mark(&self) -> u32 {
        match self.key {
            ServiceKey::FwMark { mark, .. } => mark,
            ServiceKey::Address { .. } => 0,
        }
    }

    /// Where a new connection to one of its destinations goes. A persistent service that is for several ports (port 0, a
    /// mark) keeps the port that the client asked for, whatever port the destination has (`ip_vs_sched_persist`).
    pub fn endpoint_of(&self, destination: &DestinationKey, flow: &FlowKey) -> DestinationKey {
        let asked = flow.destination_port();
        let several = self.persistence.is_some() && self.key.port() != asked;
        let keeps = several || destination.port == 0;
        DestinationKey {
            address: destination.address,
            port: if keeps { asked } else { destination.port },
        }
    }

    /// The destination for a new connection, or `None` when none may take it.
    #[inline]
    pub fn pick<'s>(&'s self, flow: &FlowKey, batch: &mut Batch<'s>) -> Option<DestinationId> {
        let index = self.scheduler.pick(&self.candidates, flow, batch)?;
        self.ids.get(index).copied()
    }

    /// The destination that [`pick`](Service::pick) would choose now, with nothing moved.
    pub fn peek(&self, flow: &FlowKey) -> Peek<DestinationId> {
        match self.scheduler.peek(&self.candidates, flow) {
            Peek::Sure(index) => Peek::Sure(index.and_then(|index| self.ids.get(index).copied())),
            Peek::Chance => Peek::Chance,
        }
    }
}

/// One of the daemon's interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name, for messages.
    pub name: String,
    /// The kernel's index.
    pub index: u32,
    /// Its link address.
    pub mac: Mac,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<IpAddr>,
}

/// Index of an interface in the daemon's list (order of `--interface`), not the kernel's ifindex.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceId(pub u8);

/// Slot of a destination in [`Table::destinations`]. Stays the same as long as the destination or any connection
/// to it lives, over every table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationId(pub u32);

/// Where a frame goes next, ready to be written into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Interface to leave by.
    pub interface: InterfaceId,
    /// Our link address there.
    pub source: Mac,
    /// The next hop's link address.
    pub destination: Mac,
    /// Largest IP packet there, in bytes.
    pub mtu: u16,
}

/// How a destination is reached at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By this hop; `source` is our address on that way (outer source of tunnels).
    Hop {
        /// The hop.
        hop: NextHop,
        /// Our address towards it.
        source: IpAddr,
    },
    /// An address of the director itself: its local stack serves it.
    Local,
    /// The neighbour is being resolved: drop for now.
    Resolving,
    /// The kernel has no route: host unreachable.
    Unreachable,
    /// The neighbour does not answer.
    Silent,
    /// The route leaves by an interface that uvs does not own.
    ForeignInterface,
}

/// A destination as the workers see it.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Address and port.
    pub key: DestinationKey,
    /// Forwarding method for new connections; a connection keeps the one it began with.
    pub method: Method,
    /// Tunnel options.
    pub tunnel: Tunnel,
    /// How it is reached.
    pub reach: Reach,
    /// Still in its service. When not, clients' packets of its connections are dropped silently while its own
    /// packets are still translated (FACTS: removal).
    pub present: bool,
    /// Weight; 0 = quiesced.
    pub weight: u32,
    /// `-x`; 0 = no limit.
    pub upper_threshold: u32,
    /// `-y`.
    pub lower_threshold: u32,
    /// What follows from the above for most packets: see [`Destination::prepare`].
    pub way: Way,
    /// ActiveConn and company.
    pub load: Arc<Load>,
    /// Traffic, one block a worker.
    pub counters: Arc<[Counters]>,
}

impl Destination {
    /// The director itself, by NAT on another port than the service's: its answers would never be seen here. A
    /// destination of port 0 takes the service's.
    pub fn is_local_on_another_port(&self, method: Method, service_port: u16) -> bool {
        let is_local = matches!(self.reach, Reach::Local);
        is_local && method == Method::Masq && ![0, service_port].contains(&self.key.port)
    }
}

/// Traffic of one destination through one worker: written by that worker only, read by anyone.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Counters {
    /// Connections scheduled.
    pub connections: AtomicU64,
    /// Packets client to destination.
    pub packets_in: AtomicU64,
    /// Packets destination to client (NAT) and our own ICMP about its connections.
    pub packets_out: AtomicU64,
    /// Bytes (IP total length) in.
    pub bytes_in: AtomicU64,
    /// Bytes out.
    pub bytes_out: AtomicU64,
}

impl Counters {
    /// A connection was scheduled.
    #[inline]
    pub fn count_connection(&self) {
        add(&self.connections, 1);
    }

    /// A packet of `bytes` (IP total length) went from client to destination.
    #[inline]
    pub fn count_in(&self, bytes: u64) {
        add(&self.packets_in, 1);
        add(&self.bytes_in, bytes);
    }

    /// A packet of `bytes` went to the client.
    #[inline]
    pub fn count_out(&self, bytes: u64) {
        add(&self.packets_out, 1);
        add(&self.bytes_out, bytes);
    }
}

/// Adds to a number that only this worker writes: no read-modify-write on the bus.
#[inline]
fn add(number: &AtomicU64, more: u64) {
    number.store(number.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
