//! The way to a destination as steady packets need it: the bytes that are the same for each of them, prepared when the
//! destination is made or changes, not when a packet comes.

use std::net::IpAddr;

use super::{Destination, InterfaceId, NextHop, Reach};
use crate::packet::build::OuterIpv4;
use crate::packet::parse::IPV4_HEADER_LEN;
use crate::packet::rewrite::Link;
use crate::service::{TunnelChecksum, TunnelKind};

/// What a packet needs that is sent on as it is. Follows from a [`Destination`]: see [`Destination::prepare`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Longest IP packet that goes by direct routing and NAT. 0: none does, and who asks has to look why.
    pub len_max: u32,
    /// The same of packets that go through a tunnel, IPv4 in IPv4.
    pub tunnel_len_max: u32,
    /// Where they leave.
    pub interface: InterfaceId,
    /// Their link addresses.
    pub link: Link,
    /// What goes in front of them in a tunnel.
    pub outer: OuterIpv4,
}

impl Way {
    /// The way to a destination as it is now.
    fn to(destination: &Destination) -> Way {
        match &destination.reach {
            Reach::Hop { hop, source } if destination.present => Way::by(destination, hop, *source),
            _ => Way::default(),
        }
    }

    fn by(destination: &Destination, hop: &NextHop, source: IpAddr) -> Way {
        let way = Way {
            len_max: hop.mtu as u32,
            tunnel_len_max: 0,
            interface: hop.interface,
            link: Link::new(hop.source, hop.destination),
            outer: OuterIpv4::default(),
        };
        let tunnel = &destination.tunnel;
        match (source, destination.key.address) {
            (IpAddr::V4(source), IpAddr::V4(address))
                if tunnel.kind == TunnelKind::Ipip && tunnel.checksum == TunnelChecksum::NoCsum =>
            {
                Way {
                    tunnel_len_max: (hop.mtu as u32).saturating_sub(IPV4_HEADER_LEN as u32),
                    outer: OuterIpv4::new(source, address),
                    ..way
                }
            }
            _ => way,
        }
    }
}

impl Destination {
    /// Makes [`Destination::way`] what it must be. To be called whenever anything else has changed.
    pub fn prepare(&mut self) {
        self.way = Way::to(self);
    }

    /// As [`prepare`](Destination::prepare), of a new one.
    pub fn prepared(mut self) -> Destination {
        self.prepare();
        self
    }

    /// Nothing has changed since it was prepared.
    pub fn is_prepared(&self) -> bool {
        self.way == Way::to(self)
    }
}
