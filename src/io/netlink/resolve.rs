//! From an address to the next hop: route, neighbour, link, as the kernel itself would send.
//!
//! A [`Resolver`] belongs to the control thread. [`Resolver::resolve`] answers for one address from what was read
//! last and asks the kernel for what is missing; [`Resolver::refresh`] reads anew after a
//! [`NetworkEvent`](super::NetworkEvent); [`Resolver::tick`], called about once a second, keeps what is in use
//! fresh: our frames bypass the kernel, so it does not see that its neighbour entries are used, and would let them
//! go stale and be collected.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Address, Error, Link, Neighbour, NeighbourState, Netlink, RouteAnswer, RouteKind};
use crate::packet::{Family, Mac};
use crate::table::{InterfaceId, NextHop, Reach};

/// How long a neighbour that did not answer is left alone: the kernel asks three times, a second apart.
pub const RETRY: Duration = Duration::from_secs(3);

/// How long a route looked up is believed without having heard of a change (nexthop objects and VRFs change without
/// a notification that we hear).
pub const ROUTE_MAX_AGE: Duration = Duration::from_secs(30);

/// How long a neighbour is kept fresh after it was last asked for.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// Answers "where does a frame for this address go next".
pub struct Resolver {
    netlink: Netlink,
    links: HashMap<u32, Link>,
    addresses: Vec<Address>,
    local_prefixes: Vec<(IpAddr, u8)>,
    neighbours: HashMap<(u32, IpAddr), Neighbour>,
    /// The kernel's answers since the last change.
    routes: HashMap<IpAddr, Option<RouteAnswer>>,
    routes_read: Instant,
    /// Neighbours that somebody needs.
    wanted: HashMap<(u32, IpAddr), Wanted>,
}

/// A neighbour that is needed.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    /// Asked for last.
    needed: Instant,
    /// The kernel was last told to resolve or confirm it.
    used: Option<Instant>,
    /// And would not (its table is full, the link is going).
    refused: bool,
    /// It did not answer, and has not answered since.
    failed: bool,
}

impl Wanted {
    /// Notes what was last read of it; whether the kernel is to ask.
    fn is_due(&mut self, state: Option<NeighbourState>, now: Instant) -> bool {
        match state {
            Some(NeighbourState::Failed) => self.failed = true,
            Some(NeighbourState::Fresh | NeighbourState::Stale | NeighbourState::Probing) => self.failed = false,
            Some(NeighbourState::Incomplete) | None => {}
        }
        let after_a_while = || self.used.is_none_or(|used| now.duration_since(used) >= RETRY);
        match state {
            // Being asked, or sure.
            Some(NeighbourState::Fresh | NeighbourState::Probing | NeighbourState::Incomplete) => false,
            Some(NeighbourState::Stale | NeighbourState::Failed) => after_a_while(),
            // Not yet asked for, or forgotten (the link got another address), and with it the kernel's question.
            None => !self.refused || after_a_while(),
        }
    }
}

impl Resolver {
    /// Reads everything, in the network namespace of the calling thread.
    pub fn open(now: Instant) -> Result<Resolver, Error> {
        let mut resolver = Resolver {
            netlink: Netlink::open()?,
            links: HashMap::new(),
            addresses: Vec::new(),
            local_prefixes: Vec::new(),
            neighbours: HashMap::new(),
            routes: HashMap::new(),
            routes_read: now,
            wanted: HashMap::new(),
        };
        resolver.refresh(now)?;
        Ok(resolver)
    }

    /// Reads links, addresses and neighbours anew and forgets routes. Destinations are to be resolved again.
    pub fn refresh(&mut self, now: Instant) -> Result<(), Error> {
        // All or nothing: half of an answer would be believed.
        let links = self.netlink.links()?;
        let mut addresses = self.netlink.addresses()?;
        let mut local_prefixes = Vec::new();
        for route in self.netlink.local_routes()? {
            let whole = route.prefix_len == super::bits_of(route.destination);
            if !whole {
                local_prefixes.push((route.destination, route.prefix_len));
            }
            let known = addresses.iter().any(|address| address.address == route.destination);
            if whole && !known {
                addresses.push(Address {
                    link: route.link.unwrap_or(0),
                    address: route.destination,
                    prefix_len: route.prefix_len,
                    usable: true,
                });
            }
        }
        self.read_neighbours()?;
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        self.addresses = addresses;
        self.local_prefixes = local_prefixes;
        self.routes.clear();
        self.routes_read = now;
        Ok(())
    }

    /// Has stale neighbours confirmed and failed ones asked again, and forgets those that nobody needs any more.
    /// `true`: something changed, resolve again.
    pub fn tick(&mut self, now: Instant) -> Result<bool, Error> {
        let before: Vec<_> = self.wanted.keys().map(|key| (*key, self.mac_of(*key))).collect();
        self.read_neighbours()?;
        let mut changed = before.iter().any(|(key, mac)| self.mac_of(*key) != *mac);
        if now.duration_since(self.routes_read) >= ROUTE_MAX_AGE {
            self.routes.clear();
            self.routes_read = now;
            changed = true;
        }
        self.wanted
            .retain(|_, wanted| now.duration_since(wanted.needed) < IDLE_MAX);
        let keys: Vec<_> = self.wanted.keys().copied().collect();
        for key in keys {
            let state = self.neighbours.get(&key).map(|neighbour| neighbour.state);
            let failed = self.wanted[&key].failed;
            if state == Some(NeighbourState::Failed) && !failed {
                changed = true;
            }
            // It may find the neighbour, which nobody would notice the next time.
            let mac = self.mac_of(key);
            self.keep(key, now);
            changed |= self.mac_of(key) != mac;
        }
        Ok(changed)
    }

    /// How `destination` is reached. `interfaces` are the indexes of the links that uvs owns, in the order of
    /// [`InterfaceId`].
    pub fn resolve(&mut self, destination: IpAddr, interfaces: &[u32], now: Instant) -> Result<Reach, Error> {
        let route = match self.routes.get(&destination) {
            Some(route) => *route,
            None => {
                let route = self.netlink.route_to(destination)?;
                self.routes.insert(destination, route);
                route
            }
        };
        let Some(route) = route else {
            return Ok(Reach::Unreachable);
        };
        match route.kind {
            RouteKind::Local => return Ok(Reach::Local),
            RouteKind::Unicast => {}
            RouteKind::Group | RouteKind::Refuse => return Ok(Reach::Unreachable),
        }
        let Some(link) = self.links.get(&route.link).filter(|link| link.up) else {
            return Ok(Reach::Unreachable);
        };
        let Some(position) = interfaces.iter().position(|index| *index == link.index) else {
            return Ok(Reach::ForeignInterface);
        };
        let (Ok(interface), Some(source_mac)) = (u8::try_from(position), link.mac) else {
            return Ok(Reach::ForeignInterface);
        };
        let Some(source) = route
            .source
            .or_else(|| self.source_on(link.index, Family::of(destination)))
        else {
            return Ok(Reach::Unreachable);
        };
        let mtu = if route.mtu == 0 {
            link.mtu
        } else {
            route.mtu.min(link.mtu)
        };
        // On a link without ARP the kernel writes the link's own address (arp_constructor, ndisc_constructor).
        let no_arp_mac = link.no_arp.then_some(source_mac);
        let key = (link.index, route.gateway.unwrap_or(destination));
        let neighbour_mac = match no_arp_mac {
            Some(mac) => Ok(mac),
            None => self.neighbour(key, now),
        };
        Ok(match neighbour_mac {
            Err(reach) => reach,
            Ok(mac) => Reach::Hop {
                hop: NextHop {
                    interface: InterfaceId(interface),
                    source: source_mac,
                    destination: mac,
                    mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
                },
                source,
            },
        })
    }

    /// The links, as last read; one that was deleted is missing.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The link of that name, as last read.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// Addresses that the local stack takes as its own: those on links, and those of `local` routes.
    pub fn local_addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Prefixes that the local stack takes as its own, with their lengths in bits.
    pub fn local_prefixes(&self) -> &[(IpAddr, u8)] {
        &self.local_prefixes
    }

    /// Where a neighbour is, or why that is not known.
    fn neighbour(&mut self, key: (u32, IpAddr), now: Instant) -> Result<Mac, Reach> {
        let wanted = self.wanted.entry(key).or_insert(Wanted {
            needed: now,
            used: None,
            refused: false,
            failed: false,
        });
        wanted.needed = now;
        self.keep(key, now);
        match self.mac_of(key) {
            Some(mac) => Ok(mac),
            None if self.wanted[&key].failed => Err(Reach::Silent),
            None => Err(Reach::Resolving),
        }
    }

    /// Notes what became of a needed neighbour, and has the kernel ask where that is due.
    fn keep(&mut self, key: (u32, IpAddr), now: Instant) {
        if !self.is_due(key, now) {
            return;
        }
        // What we read last may be old, and asking for one that was made permanent meanwhile would undo that.
        let (link, address) = key;
        match self.netlink.neighbour(link, address) {
            Ok(Some(neighbour)) => drop(self.neighbours.insert(key, neighbour)),
            Ok(None) => drop(self.neighbours.remove(&key)),
            // The link may have gone meanwhile; the next refresh will tell.
            Err(error) => return log::debug!("{error}"),
        }
        if !self.is_due(key, now) {
            return;
        }
        let refused = self.netlink.use_neighbour(link, address);
        if let Some(wanted) = self.wanted.get_mut(&key) {
            wanted.used = Some(now);
            wanted.refused = refused.is_err();
        }
        if let Err(error) = refused {
            log::debug!("{error}");
        }
    }

    /// Whether the kernel is to ask for a needed neighbour, by what was last read of it.
    fn is_due(&mut self, key: (u32, IpAddr), now: Instant) -> bool {
        let state = self.neighbours.get(&key).map(|neighbour| neighbour.state);
        let wanted = self.wanted.get_mut(&key);
        wanted.is_some_and(|wanted| wanted.is_due(state, now))
    }

    fn mac_of(&self, key: (u32, IpAddr)) -> Option<Mac> {
        self.neighbours.get(&key).and_then(|neighbour| neighbour.mac)
    }

    fn read_neighbours(&mut self) -> Result<(), Error> {
        let neighbours = self.netlink.neighbours()?;
        self.neighbours = neighbours
            .into_iter()
            .map(|neighbour| ((neighbour.link, neighbour.address), neighbour))
            .collect();
        Ok(())
    }

    /// An address of ours to send from, for routes that name none.
    fn source_on(&self, link: u32, family: Family) -> Option<IpAddr> {
        let usable = |address: &&Address| address.usable && Family::of(address.address) == family;
        let on_link = self
            .addresses
            .iter()
            .filter(usable)
            .find(|address| address.link == link);
        let anywhere = || {
            self.addresses
                .iter()
                .filter(usable)
                .find(|address| !address.address.is_loopback())
        };
        on_link.or_else(anywhere).map(|address| address.address)
    }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
