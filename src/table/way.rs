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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Mac;
    use crate::service::{DestinationKey, Method, Tunnel};

    /// A destination of NAT at 172.16.0.11 behind a hop of MTU 1500.
    fn destination() -> Destination {
        let hop = NextHop {
            interface: InterfaceId(1),
            source: Mac([2, 0, 0, 0, 0, 1]),
            destination: Mac([2, 0, 0, 0, 0, 2]),
            mtu: 1500,
        };
        Destination {
            key: DestinationKey {
                address: "172.16.0.11".parse().expect("an address"),
                port: 80,
            },
            method: Method::Masq,
            tunnel: Tunnel::default(),
            reach: Reach::Hop {
                hop,
                source: "172.16.0.1".parse().expect("an address"),
            },
            present: true,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
            way: Way::default(),
            load: Default::default(),
            counters: Default::default(),
        }
        .prepared()
    }

    /// Goal: whatever the long way has to look at has no way here. How: one change each.
    #[test]
    fn no_way_where_there_is_something_to_decide() {
        let lengths = |change: &dyn Fn(&mut Destination)| {
            let mut destination = destination();
            let before = destination.way;
            change(&mut destination);
            assert_eq!(destination.is_prepared(), Way::to(&destination) == before);
            destination.prepare();
            assert!(destination.is_prepared());
            (destination.way.len_max, destination.way.tunnel_len_max)
        };
        assert_eq!(lengths(&|_| ()), (1500, 1480));
        assert_eq!(lengths(&|d| d.weight = 0), (1500, 1480), "quiesced, not gone");
        assert_eq!(lengths(&|d| d.present = false), (0, 0));
        for reach in [
            Reach::Local,
            Reach::Resolving,
            Reach::Unreachable,
            Reach::Silent,
            Reach::ForeignInterface,
        ] {
            assert_eq!(lengths(&|d| d.reach = reach), (0, 0), "{reach:?}");
        }
        for kind in [TunnelKind::Gue, TunnelKind::Gre] {
            assert_eq!(lengths(&|d| d.tunnel.kind = kind), (1500, 0), "{kind:?}");
        }
        assert_eq!(lengths(&|d| d.tunnel.checksum = TunnelChecksum::Csum), (1500, 0));
        assert_eq!(
            lengths(&|d| d.key.address = "fd00::11".parse().expect("an address")),
            (1500, 0)
        );
    }
}
