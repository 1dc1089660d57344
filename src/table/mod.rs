//! What the workers read: services with their schedulers and next hops, immutable.
//!
//! The control thread builds a new [`Table`] for each change and sends it to every worker; services and
//! destinations that did not change are shared by `Arc`. Live numbers ([`Load`], [`Counters`], scheduler cursors)
//! hang off it by `Arc` and outlast it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::packet::{Family, Mac};
use crate::scheduler::Load;
use crate::service::{DestinationKey, Method, Tunnel};

/// Index of an interface in the daemon's list (order of `--interface`), not the kernel's ifindex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// Resolution failed, or the kernel has no route: host unreachable.
    Unreachable,
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
    /// ActiveConn and company.
    pub load: Arc<Load>,
    /// Traffic, one block a worker.
    pub counters: Arc<[Counters]>,
    /// Family of the address, for speed.
    pub family: Family,
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
