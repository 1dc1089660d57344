//! Routes: the table, and the kernel's answer for one destination.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
    RouteVia,
};

use super::{Error, Netlink, bits_of, family_of};

/// The kernel's table of local addresses.
pub const TABLE_LOCAL: u32 = 255;
/// The table that `ip route` shows.
pub const TABLE_MAIN: u32 = 254;

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Network it leads to.
    pub destination: IpAddr,
    /// Bits of that network; 0 = default route.
    pub prefix_len: u8,
    /// Router; none when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Link to leave by.
    pub link: Option<u32>,
    /// Our address on that way.
    pub preferred_source: Option<IpAddr>,
    /// Table.
    pub table: u32,
    /// What happens to packets.
    pub kind: RouteKind,
    /// Smaller comes first.
    pub priority: u32,
    /// Largest packet that the route is set to; 0 = the link's.
    pub mtu: u32,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends on.
    Unicast,
    /// Delivers here.
    Local,
    /// Broadcast, multicast, anycast: no single next hop.
    Group,
    /// Refuses (blackhole, unreachable, prohibit, throw).
    Refuse,
}

/// Where the kernel would send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteAnswer {
    /// What it does.
    pub kind: RouteKind,
    /// Link to leave by; the receiving link (often `lo`) when local.
    pub link: u32,
    /// Router on the way, if any.
    pub gateway: Option<IpAddr>,
    /// Our address towards it.
    pub source: Option<IpAddr>,
    /// Path MTU set on the route; 0 = the link's.
    pub mtu: u32,
}

impl Route {
    /// A route to a network by a router.
    pub fn via(destination: IpAddr, prefix_len: u8, gateway: IpAddr) -> Route {
        Route {
            gateway: Some(gateway),
            ..Route::on_link(destination, prefix_len, None)
        }
    }

    /// The default route of the router's family.
    pub fn default_via(gateway: IpAddr) -> Route {
        let any = match gateway {
            IpAddr::V4(_) => IpAddr::from([0u8; 4]),
            IpAddr::V6(_) => IpAddr::from([0u8; 16]),
        };
        Route::via(any, 0, gateway)
    }

    /// A route to a network on a link.
    pub fn on_link(destination: IpAddr, prefix_len: u8, link: impl Into<Option<u32>>) -> Route {
        Route {
            destination,
            prefix_len,
            gateway: None,
            link: link.into(),
            preferred_source: None,
            table: TABLE_MAIN,
            kind: RouteKind::Unicast,
            priority: 0,
            mtu: 0,
        }
    }

    /// `local ADDRESS dev lo`: the address is served here without being on a link.
    pub fn local(address: IpAddr, lo: u32) -> Route {
        Route {
            table: TABLE_LOCAL,
            kind: RouteKind::Local,
            ..Route::on_link(address, bits_of(address), lo)
        }
    }
}

impl Netlink {
    /// All routes of the namespace, of every table, both families, the cached ones of IPv6 left out.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        self.dump_routes(RouteHeader::RT_TABLE_UNSPEC)
    }

    /// The routes of the local table: what the local stack takes as its own. The kernel sorts them out, so that a
    /// full routing table costs nothing here.
    pub fn local_routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut routes = self.dump_routes(TABLE_LOCAL as u8)?;
        routes.retain(|route| route.table == TABLE_LOCAL && route.kind == RouteKind::Local);
        Ok(routes)
    }

    fn dump_routes(&mut self, table: u8) -> Result<Vec<Route>, Error> {
        let mut message = RouteMessage::default();
        message.header.table = table;
        let answers = self.dump(RouteNetlinkMessage::GetRoute(message), || "list routes".to_owned())?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(message) => Route::from_message(message),
                _ => None,
            })
            .collect())
    }

    /// Adds a route, or replaces the one with the same destination and priority.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        self.change(
            RouteNetlinkMessage::NewRoute(route_message(route)),
            NLM_F_CREATE | NLM_F_REPLACE,
            || format!("add route {}", describe(route)),
        )
    }

    /// Deletes a route.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        self.change(RouteNetlinkMessage::DelRoute(route_message(route)), 0, || {
            format!("delete route {}", describe(route))
        })
    }

    /// Where the kernel would send a packet for `destination`; `None` when it has no route or refuses.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Option<RouteAnswer>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(destination);
        message.header.destination_prefix_length = bits_of(destination);
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        let answer = self.get(RouteNetlinkMessage::GetRoute(message), || {
            format!("look up the route to {destination}")
        });
        match answer {
            Ok(Some(RouteNetlinkMessage::NewRoute(message))) => Ok(RouteAnswer::from_message(&message)),
            Ok(_) => Ok(None),
            // No route, an interface that is down, and the refusing kinds of routes.
            Err(error)
                if matches!(
                    error.errno(),
                    Some(
                        libc::ENETUNREACH
                            | libc::EHOSTUNREACH
                            | libc::EACCES
                            | libc::EINVAL
                            | libc::EAGAIN
                            | libc::ENETDOWN
                    )
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Route {
    pub(crate) fn from_message(message: &RouteMessage) -> Option<Route> {
        let header = &message.header;
        if header.flags.contains(netlink_packet_route::route::RouteFlags::Cloned) {
            return None;
        }
        let parts = Parts::of(message);
        let any = match header.address_family {
            netlink_packet_route::AddressFamily::Inet => IpAddr::from([0u8; 4]),
            netlink_packet_route::AddressFamily::Inet6 => IpAddr::from([0u8; 16]),
            _ => return None,
        };
        Some(Route {
            destination: parts.destination.unwrap_or(any),
            prefix_len: header.destination_prefix_length,
            gateway: parts.gateway,
            link: parts.link,
            preferred_source: parts.source,
            table: parts.table.unwrap_or(u32::from(header.table)),
            kind: kind_of(header.kind),
            priority: parts.priority,
            mtu: parts.mtu,
        })
    }
}

impl RouteAnswer {
    fn from_message(message: &RouteMessage) -> Option<RouteAnswer> {
        let parts = Parts::of(message);
        let kind = kind_of(message.header.kind);
        if kind == RouteKind::Refuse {
            return None;
        }
        Some(RouteAnswer {
            kind,
            link: parts.link?,
            gateway: parts.gateway,
            source: parts.source,
            mtu: parts.mtu,
        })
    }
}

/// The attributes that we read.
#[derive(Default)]
struct Parts {
    destination: Option<IpAddr>,
    gateway: Option<IpAddr>,
    link: Option<u32>,
    source: Option<IpAddr>,
    table: Option<u32>,
    priority: u32,
    mtu: u32,
}

impl Parts {
    fn of(message: &RouteMessage) -> Parts {
        let mut parts = Parts::default();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => parts.destination = ip(address),
                RouteAttribute::Gateway(address) => parts.gateway = ip(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => parts.gateway = Some((*address).into()),
                RouteAttribute::Via(RouteVia::Inet6(address)) => parts.gateway = Some((*address).into()),
                RouteAttribute::PrefSource(address) => parts.source = ip(address),
                RouteAttribute::Oif(index) => parts.link = Some(*index),
                RouteAttribute::Table(table) => parts.table = Some(*table),
                RouteAttribute::Priority(priority) => parts.priority = *priority,
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        if let RouteMetric::Mtu(mtu) = metric {
                            parts.mtu = *mtu;
                        }
                    }
                }
                _ => {}
            }
        }
        parts
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn kind_of(kind: RouteType) -> RouteKind {
    match kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => RouteKind::Group,
        _ => RouteKind::Refuse,
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family_of(route.destination);
    header.destination_prefix_length = route.prefix_len;
    header.protocol = RouteProtocol::Static;
    header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Group => RouteType::Multicast,
        RouteKind::Refuse => RouteType::Unreachable,
    };
    header.scope = match (route.kind, route.gateway) {
        (RouteKind::Local, _) => RouteScope::Host,
        (RouteKind::Unicast, None) if route.destination.is_ipv4() => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    if route.prefix_len > 0 {
        attributes.push(RouteAttribute::Destination(route.destination.into()));
    }
    attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    attributes.extend(route.link.map(RouteAttribute::Oif));
    attributes.extend(
        route
            .preferred_source
            .map(|source| RouteAttribute::PrefSource(source.into())),
    );
    if route.priority > 0 {
        attributes.push(RouteAttribute::Priority(route.priority));
    }
    if route.mtu > 0 {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    message
}

fn describe(route: &Route) -> String {
    let mut text = format!("{}/{}", route.destination, route.prefix_len);
    if let Some(gateway) = route.gateway {
        text += &format!(" via {gateway}");
    }
    if let Some(link) = route.link {
        text += &format!(" on interface {link}");
    }
    text
}
