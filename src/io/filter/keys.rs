//! What stands in the filter's hash maps: one key layout for all of them, and the roles an address can have. The array of the
//! straight way has its own (`quick`).
//!
//! ```text
//!  0               16      18         19       20
//!  | address        | port  | protocol | family |     IPv4 in the first 4 bytes; port in network order; family 4 or 6
//! ```
//! - `addresses`: port and protocol 0; the value is the address's roles (32 bits).
//! - `services`: virtual services by (protocol, VIP, port), port 0 for all ports; no value.
//! - `nat destinations`: the same of real servers whose replies are translated.

use std::net::IpAddr;

use crate::service::TransportProtocol;

pub(super) const KEY_ADDRESS: i16 = 0;
pub(super) const KEY_PORT: i16 = 16;
pub(super) const KEY_PROTOCOL: i16 = 18;
pub(super) const KEY_FAMILY: i16 = 19;
pub(super) const KEY_LEN: usize = 20;

/// An address of the director.
pub(super) const ROLE_LOCAL: i32 = 0x01;
/// Outer destination of a tunnel.
pub(super) const ROLE_TUNNEL: i32 = 0x02;
/// Address of a virtual service, with the protocols below. 0x08 and 0x80 are free (port ranges, firewall marks).
pub(super) const ROLE_VIP: i32 = 0x04;
/// Serves TCP.
pub(super) const ROLE_TCP: i32 = 0x10;
/// Serves UDP.
pub(super) const ROLE_UDP: i32 = 0x20;
/// Serves SCTP.
pub(super) const ROLE_SCTP: i32 = 0x40;
/// The same bits, this much higher: it is a NAT destination of that protocol.
pub(super) const ROLE_NAT_SHIFT: i32 = 4;
/// NAT destination of any protocol.
pub(super) const ROLE_NAT_TCP_UDP_SCTP: i32 = (ROLE_TCP | ROLE_UDP | ROLE_SCTP) << ROLE_NAT_SHIFT;

pub(super) type Key = [u8; KEY_LEN];

/// A key for the services and NAT destinations.
pub(super) fn endpoint_key(protocol: TransportProtocol, address: IpAddr, port: u16) -> Key {
    let mut key = address_key(address);
    key[KEY_PORT as usize..][..2].copy_from_slice(&port.to_be_bytes());
    key[KEY_PROTOCOL as usize] = protocol.number().0;
    key
}

/// A key for the addresses.
pub(super) fn address_key(address: IpAddr) -> Key {
    let mut key = [0; KEY_LEN];
    match address {
        IpAddr::V4(v4) => key[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => key[..16].copy_from_slice(&v6.octets()),
    }
    key[KEY_FAMILY as usize] = if address.is_ipv4() { 4 } else { 6 };
    key
}

/// The role of the VIP of a service of that protocol.
pub(super) fn protocol_role(protocol: TransportProtocol) -> i32 {
    match protocol {
        TransportProtocol::Tcp => ROLE_TCP,
        TransportProtocol::Udp => ROLE_UDP,
        TransportProtocol::Sctp => ROLE_SCTP,
    }
}
