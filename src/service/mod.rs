//! The nouns of IPVS as plain data: virtual service, destination (real server), forwarding method.
//!
//! These are what the control thread owns, what the configuration and the control socket carry, and what the
//! `ipvsadm` dialect reads and prints. No counters, no table, no I/O.

mod mark;

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::packet::{Family, Protocol};

pub use mark::{MarkError, MarkRule, PortRange, Prefix};

/// FTP's control port. A service of it (`-t VIP:21`) is also about the data connections.
pub const FTP_PORT: u16 = 21;
/// The port that FTP servers open data connections from (RFC 959 section 5.2).
pub const FTP_DATA_PORT: u16 = 20;
/// Ports from here on need no privilege (`net.ipv4.ip_unprivileged_port_start`).
const UNPRIVILEGED_PORT_MIN: u16 = 1024;

/// Whether clients' data connections of FTP may go to this port: that of the server, or one that any program may have.
pub fn may_be_ftp_data(port: u16) -> bool {
    port == FTP_DATA_PORT || port >= UNPRIVILEGED_PORT_MIN
}

/// What names a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceKey {
    /// Protocol, address and port (`-t`, `-u`, `--sctp-service`). Port 0 serves every port; persistent services only.
    Address {
        /// `TCP`, `UDP` or `SCTP`.
        protocol: TransportProtocol,
        /// The virtual address (VIP).
        address: IpAddr,
        /// The virtual port.
        port: u16,
    },
    /// A firewall mark (`-f`), of one family.
    FwMark {
        /// The mark, above 0.
        mark: u32,
        /// IPv6 (`-6`).
        ipv6: bool,
    },
}

impl ServiceKey {
    /// The address family of the service's clients.
    pub fn family(&self) -> Family {
        match *self {
            ServiceKey::Address { address, .. } => Family::of(address),
            ServiceKey::FwMark { ipv6: false, .. } => Family::V4,
            ServiceKey::FwMark { ipv6: true, .. } => Family::V6,
        }
    }

    /// It is FTP's: data connections belong to it too.
    pub fn is_ftp(&self) -> bool {
        let tcp = matches!(
            self,
            ServiceKey::Address {
                protocol: TransportProtocol::Tcp,
                ..
            }
        );
        tcp && self.port() == FTP_PORT
    }

    /// The virtual port; 0 for firewall marks.
    pub fn port(&self) -> u16 {
        match *self {
            ServiceKey::Address { port, .. } => port,
            ServiceKey::FwMark { .. } => 0,
        }
    }
}

/// The transport protocols that a service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl TransportProtocol {
    /// All of them.
    pub const ALL: [TransportProtocol; 3] = [TransportProtocol::Tcp, TransportProtocol::Udp, TransportProtocol::Sctp];

    /// Its IP protocol number.
    pub fn number(self) -> Protocol {
        match self {
            TransportProtocol::Tcp => Protocol::TCP,
            TransportProtocol::Udp => Protocol::UDP,
            TransportProtocol::Sctp => Protocol::SCTP,
        }
    }
}

impl std::str::FromStr for TransportProtocol {
    type Err = MarkError;

    fn from_str(name: &str) -> Result<TransportProtocol, MarkError> {
        let found = TransportProtocol::ALL
            .into_iter()
            .find(|protocol| protocol.to_string() == name);
        found.ok_or_else(|| MarkError(format!("{name:?} is none of tcp, udp, sctp")))
    }
}

impl fmt::Display for TransportProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TransportProtocol::Tcp => "tcp",
            TransportProtocol::Udp => "udp",
            TransportProtocol::Sctp => "sctp",
        })
    }
}

/// The persistence engine that goes by the Call-ID of SIP messages.
pub const SIP: &str = "sip";

/// Every persistence engine.
pub const PERSISTENCE_ENGINES: &[&str] = &[SIP];

/// A virtual service as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What names it.
    pub key: ServiceKey,
    /// Name of the scheduler (`-s`): see [`crate::scheduler`].
    pub scheduler: String,
    /// Scheduler flags (`-b`), by their listed names, such as `sh-port`.
    #[serde(default)]
    pub scheduler_flags: Vec<String>,
    /// Persistence (`-p`), none by default.
    #[serde(default)]
    pub persistence: Option<Persistence>,
    /// One-packet scheduling (`-o`).
    #[serde(default)]
    pub one_packet: bool,
    /// Persistence engine (`--pe`): one of [`PERSISTENCE_ENGINES`].
    #[serde(default)]
    pub persistence_engine: Option<String>,
}

/// Persistence of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persistence {
    /// Seconds that a template lives after its last new connection; 1 to 2678400.
    pub timeout_s: u32,
    /// Bits of the client address that count (`-M`): 0 to 32, or 1 to 128. IPv4 masks need not be contiguous,
    /// so this is the mask itself for IPv4 (as a number) and the prefix length for IPv6.
    pub mask: u32,
}

impl Persistence {
    /// Largest timeout, in seconds (31 days).
    pub const TIMEOUT_MAX_S: u32 = 2_678_400;
    /// The kernel's default timeout for `-p` without a value.
    pub const TIMEOUT_DEFAULT_S: u32 = 360;

    /// The mask that keeps the whole address: /32 or /128.
    pub fn mask_full(family: Family) -> u32 {
        match family {
            Family::V4 => u32::MAX,
            Family::V6 => 128,
        }
    }
}

/// What names a destination within its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DestinationKey {
    /// Address of the real server.
    pub address: IpAddr,
    /// Port of the real server; the service's port for Route and Tunnel.
    pub port: u16,
}

/// A destination (real server) as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// What names it.
    pub key: DestinationKey,
    /// Forwarding method (`-g`, `-m`, `-i`).
    pub method: Method,
    /// Weight (`-w`), 0 to 2147483647; 0 = quiesced.
    pub weight: u32,
    /// No new connections at this many (`-x`); 0 = no limit.
    #[serde(default)]
    pub upper_threshold: u32,
    /// New connections again below this many (`-y`).
    #[serde(default)]
    pub lower_threshold: u32,
    /// Tunnel details; ignored unless the method is Tunnel.
    #[serde(default)]
    pub tunnel: Tunnel,
}

/// Forwarding method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Direct routing (`-g`, "Route"): new link addresses, nothing else but TTL.
    Route,
    /// NAT (`-m`, "Masq"): destination address and port, and back for the replies.
    Masq,
    /// Tunnel (`-i`): an outer header in front.
    Tunnel,
}

/// Tunnel type and options (`--tun-type`, `--tun-port`, `--tun-nocsum|csum|remcsum`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tunnel {
    /// Encapsulation.
    #[serde(default)]
    pub kind: TunnelKind,
    /// UDP port of GUE.
    #[serde(default)]
    pub port: u16,
    /// Checksum option.
    #[serde(default)]
    pub checksum: TunnelChecksum,
}

/// Encapsulation of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213).
    #[default]
    Ipip,
    /// Generic UDP encapsulation.
    Gue,
    /// Generic routing encapsulation (RFC 2784).
    Gre,
}

/// Checksum option of GUE and GRE tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelChecksum {
    /// None.
    #[default]
    NoCsum,
    /// Outer checksum.
    Csum,
    /// Remote checksum offload.
    RemCsum,
}

/// The timeouts of `--set`, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// ESTABLISHED.
    pub tcp: u32,
    /// FIN_WAIT.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

impl Timeouts {
    /// Largest value of each, in seconds (31 days).
    pub const MAX_S: u32 = 2_678_400;
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            tcp: 900,
            tcp_fin: 120,
            udp: 300,
        }
    }
}
