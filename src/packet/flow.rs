//! The identity of a flow: family, protocol, addresses and ports, in a shape that compares and hashes in a few words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// An IP protocol number (IANA "Assigned Internet Protocol Numbers"). Unknown values are legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// The protocol of templates of fwmark services (printed as `IP`).
    pub const IP: Protocol = Protocol(0);
    /// ICMP for IPv4.
    pub const ICMP: Protocol = Protocol(1);
    /// IPv4 in IP.
    pub const IPIP: Protocol = Protocol(4);
    /// TCP.
    pub const TCP: Protocol = Protocol(6);
    /// UDP.
    pub const UDP: Protocol = Protocol(17);
    /// IPv6 in IP.
    pub const IPV6: Protocol = Protocol(41);
    /// Encapsulating security payload.
    pub const ESP: Protocol = Protocol(50);
    /// Authentication header.
    pub const AH: Protocol = Protocol(51);
    /// ICMP for IPv6.
    pub const ICMPV6: Protocol = Protocol(58);
    /// SCTP.
    pub const SCTP: Protocol = Protocol(132);
}

/// Who talks to whom, as seen in one frame.
///
/// IPv4 uses the first address word only: `source << 32 | destination`. IPv6 uses all four: source (high, low),
/// destination (high, low). Words are numbers in host order of the big-endian bytes, so they print naturally.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The addresses, packed as described above.
    pub addresses: [u64; 4],
    /// `source port << 16 | destination port`.
    pub ports: u32,
    /// IP protocol.
    pub protocol: Protocol,
    /// Address family.
    pub family: Family,
}

impl FlowKey {
    /// Packs an IPv4 flow.
    #[inline]
    pub fn v4(protocol: Protocol, source: u32, destination: u32, ports: u32) -> FlowKey {
        FlowKey {
            addresses: [(source as u64) << 32 | destination as u64, 0, 0, 0],
            ports,
            protocol,
            family: Family::V4,
        }
    }

    /// Packs an IPv6 flow.
    #[inline]
    pub fn v6(protocol: Protocol, source: u128, destination: u128, ports: u32) -> FlowKey {
        FlowKey {
            addresses: [
                (source >> 64) as u64,
                source as u64,
                (destination >> 64) as u64,
                destination as u64,
            ],
            ports,
            protocol,
            family: Family::V6,
        }
    }

    /// Packs a flow from standard types. Both addresses must be of one family.
    pub fn new(protocol: Protocol, source: (IpAddr, u16), destination: (IpAddr, u16)) -> FlowKey {
        let ports = (source.1 as u32) << 16 | destination.1 as u32;
        match (source.0, destination.0) {
            (IpAddr::V4(s), IpAddr::V4(d)) => FlowKey::v4(protocol, s.to_bits(), d.to_bits(), ports),
            (IpAddr::V6(s), IpAddr::V6(d)) => FlowKey::v6(protocol, s.to_bits(), d.to_bits(), ports),
            (s, d) => panic!("a flow has one family, not {s} and {d}"),
        }
    }

    /// Source address.
    pub fn source(&self) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::from_bits((self.addresses[0] >> 32) as u32).into(),
            Family::V6 => Ipv6Addr::from_bits((self.addresses[0] as u128) << 64 | self.addresses[1] as u128).into(),
        }
    }

    /// Destination address.
    pub fn destination(&self) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::from_bits(self.addresses[0] as u32).into(),
            Family::V6 => Ipv6Addr::from_bits((self.addresses[2] as u128) << 64 | self.addresses[3] as u128).into(),
        }
    }

    /// Source port (0 for protocols without ports).
    #[inline]
    pub fn source_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }

    /// Destination port (0 for protocols without ports).
    #[inline]
    pub fn destination_port(&self) -> u16 {
        self.ports as u16
    }

    /// The same flow seen from the other side.
    #[inline]
    pub fn reversed(&self) -> FlowKey {
        let a = self.addresses;
        let addresses = match self.family {
            Family::V4 => [a[0].rotate_left(32), 0, 0, 0],
            Family::V6 => [a[2], a[3], a[0], a[1]],
        };
        FlowKey {
            addresses,
            ports: self.ports.rotate_left(16),
            ..*self
        }
    }
}
