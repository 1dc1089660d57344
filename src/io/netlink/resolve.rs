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
    /// It did not answer, and has not answered since.
    failed: bool,
}

impl Resolver {
    /// Reads everything, in the network namespace of the calling thread.
    pub fn open(now: Instant) -> Result<Resolver, Error> {
        let mut resolver = Resolver {
            netlink: Netlink::open()?,
            links: HashMap::new(),
            addresses: Vec::new(),
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
        self.links = self
            .netlink
            .links()?
            .into_iter()
            .map(|link| (link.index, link))
            .collect();
        let mut addresses = self.netlink.addresses()?;
        for route in self.netlink.local_routes()? {
            let whole = route.prefix_len == super::bits_of(route.destination);
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
        self.addresses = addresses;
        self.read_neighbours()?;
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

    /// Where a neighbour is, or why that is not known.
    fn neighbour(&mut self, key: (u32, IpAddr), now: Instant) -> Result<Mac, Reach> {
        let wanted = self.wanted.entry(key).or_insert(Wanted {
            needed: now,
            used: None,
            failed: false,
        });
        wanted.needed = now;
        self.keep(key, now);
        match self.mac_of(key) {
            Some(mac) => Ok(mac),
            None if self.wanted[&key].failed => Err(Reach::Unreachable),
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
        if let Some(wanted) = self.wanted.get_mut(&key) {
            wanted.used = Some(now);
        }
        if let Err(error) = self.netlink.use_neighbour(link, address) {
            log::debug!("{error}");
        }
    }

    /// Notes what was last read of a needed neighbour; whether the kernel is to ask.
    fn is_due(&mut self, key: (u32, IpAddr), now: Instant) -> bool {
        let state = self.neighbours.get(&key).map(|neighbour| neighbour.state);
        let Some(wanted) = self.wanted.get_mut(&key) else {
            return false;
        };
        match state {
            Some(NeighbourState::Failed) => wanted.failed = true,
            Some(NeighbourState::Fresh | NeighbourState::Stale | NeighbourState::Probing) => wanted.failed = false,
            Some(NeighbourState::Incomplete) | None => {}
        }
        match state {
            // Being asked, or sure.
            Some(NeighbourState::Fresh | NeighbourState::Probing | NeighbourState::Incomplete) => false,
            Some(NeighbourState::Stale | NeighbourState::Failed) | None => {
                wanted.used.is_none_or(|used| now.duration_since(used) >= RETRY)
            }
        }
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
mod tests {
    use super::super::{Follower, NetworkEvent, Route, VethEnd};
    use super::*;
    use crate::io::netns::{self, Namespace};

    /// Two namespaces joined by a veth pair: `eth0` at .1 and at .2, both families.
    struct Pair {
        near: Namespace,
        far: Namespace,
    }

    const FAR_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

    impl Pair {
        fn new(what: &str) -> Option<Pair> {
            if !netns::can_test() {
                return None;
            }
            let name = |side| format!("uvs-{}-{what}-{side}", std::process::id());
            let near = Namespace::create(&name("near")).unwrap();
            let far = Namespace::create(&name("far")).unwrap();
            // Else link-local addresses are tentative for two seconds, and the kernel solicits from them.
            near.set_sysctl("net.ipv6.conf.default.accept_dad", "0").unwrap();
            far.set_sysctl("net.ipv6.conf.default.accept_dad", "0").unwrap();
            let mut a = Netlink::open_in(&near).unwrap();
            let mut b = Netlink::open_in(&far).unwrap();
            let ends = [
                VethEnd {
                    name: "eth0",
                    namespace: None,
                    mac: Some(Mac([2, 0, 0, 0, 0, 1])),
                },
                VethEnd {
                    name: "eth0",
                    namespace: Some(&far),
                    mac: Some(FAR_MAC),
                },
            ];
            a.create_veth(ends, 1).unwrap();
            for (netlink, host) in [(&mut a, 1), (&mut b, 2)] {
                for name in ["lo", "eth0"] {
                    let index = netlink.link(name).unwrap().index;
                    netlink.set_up(index, true).unwrap();
                }
                let index = netlink.link("eth0").unwrap().index;
                netlink.add_address(index, IpAddr::from([10, 9, 0, host]), 24).unwrap();
                netlink
                    .add_address(index, IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, u16::from(host)]), 64)
                    .unwrap();
            }
            for netlink in [&mut a, &mut b] {
                let index = netlink.link("eth0").unwrap().index;
                assert!(netlink.wait_running(index, Duration::from_secs(5)).unwrap());
            }
            Some(Pair { near, far })
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Resolves until the answer is no longer `Resolving`, as the control thread would: on each event, and each tick.
    fn settle(resolver: &mut Resolver, destination: &str, interfaces: &[u32]) -> Reach {
        let start = Instant::now();
        loop {
            let now = Instant::now();
            resolver.refresh(now).unwrap();
            let reach = resolver.resolve(ip(destination), interfaces, now).unwrap();
            if reach != Reach::Resolving || now - start > Duration::from_secs(10) {
                return reach;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn next_hops_direct_by_gateway_local_foreign_and_none() {
        let Some(pair) = Pair::new("hops") else { return };
        let work = || {
            let mut resolver = Resolver::open(Instant::now()).unwrap();
            let eth0 = resolver.link_named("eth0").unwrap().index;
            let hop = |source: &str, mtu| Reach::Hop {
                hop: NextHop {
                    interface: InterfaceId(1),
                    source: Mac([2, 0, 0, 0, 0, 1]),
                    destination: FAR_MAC,
                    mtu,
                },
                source: ip(source),
            };
            let owned = [9999, eth0];
            assert_eq!(
                resolver.resolve(ip("10.9.0.2"), &owned, Instant::now()).unwrap(),
                Reach::Resolving
            );
            assert_eq!(settle(&mut resolver, "10.9.0.2", &owned), hop("10.9.0.1", 1500));
            assert_eq!(settle(&mut resolver, "fd09::2", &owned), hop("fd09::1", 1500));
            assert_eq!(settle(&mut resolver, "10.9.0.1", &owned), Reach::Local);
            assert_eq!(settle(&mut resolver, "fd09::1", &owned), Reach::Local);
            assert_eq!(settle(&mut resolver, "10.9.0.2", &[9999]), Reach::ForeignInterface);
            assert_eq!(
                settle(&mut resolver, "192.0.2.1", &owned),
                Reach::Unreachable,
                "no route"
            );

            let mut netlink = Netlink::open().unwrap();
            netlink
                .add_route(&Route {
                    mtu: 1400,
                    ..Route::via(ip("192.0.2.0"), 24, ip("10.9.0.2"))
                })
                .unwrap();
            netlink
                .add_route(&Route::via(ip("2001:db8::"), 32, ip("fd09::2")))
                .unwrap();
            assert_eq!(settle(&mut resolver, "192.0.2.1", &owned), hop("10.9.0.1", 1400));
            assert_eq!(settle(&mut resolver, "2001:db8::1", &owned), hop("fd09::1", 1500));

            // The director's own addresses, with and without a link.
            let lo = resolver.link_named("lo").unwrap().index;
            netlink.add_route(&Route::local(ip("198.51.100.1"), lo)).unwrap();
            assert_eq!(settle(&mut resolver, "198.51.100.1", &owned), Reach::Local);
            for own in ["10.9.0.1", "fd09::1", "198.51.100.1", "127.0.0.1"] {
                assert!(
                    resolver
                        .local_addresses()
                        .iter()
                        .any(|address| address.address == ip(own)),
                    "{own}"
                );
            }
            // Down, and gone.
            netlink.set_up(eth0, false).unwrap();
            assert_eq!(settle(&mut resolver, "10.9.0.2", &owned), Reach::Unreachable);
            netlink.delete_link(eth0).unwrap();
            assert_eq!(settle(&mut resolver, "10.9.0.2", &owned), Reach::Unreachable);
            assert!(resolver.link(eth0).is_none());
        };
        pair.near.run(work).unwrap();
    }

    #[test]
    fn a_server_that_does_not_answer_is_unreachable_until_it_does() {
        let Some(pair) = Pair::new("dead") else { return };
        let work = || {
            netns::set_sysctl("net.ipv4.neigh.eth0.retrans_time_ms", "50").unwrap();
            let mut resolver = Resolver::open(Instant::now()).unwrap();
            let eth0 = resolver.link_named("eth0").unwrap().index;
            assert_eq!(settle(&mut resolver, "10.9.0.77", &[eth0]), Reach::Unreachable);
            let mut far = Netlink::open_in(&pair.far).unwrap();
            let far_eth0 = far.link("eth0").unwrap().index;
            far.add_address(far_eth0, ip("10.9.0.77"), 24).unwrap();
            // Asked again after RETRY (the clock is ours), and meanwhile it stays unreachable: no flapping.
            let later = Instant::now() + RETRY;
            resolver.tick(later).unwrap();
            let start = Instant::now();
            loop {
                let changed = resolver.tick(later).unwrap();
                match resolver.resolve(ip("10.9.0.77"), &[eth0], later).unwrap() {
                    Reach::Hop { hop, .. } => {
                        assert!(changed, "the tick that finds it says so");
                        assert_eq!(hop.destination, FAR_MAC);
                        break;
                    }
                    other => assert_eq!(other, Reach::Unreachable),
                }
                assert!(start.elapsed() < Duration::from_secs(5));
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        pair.near.run(work).unwrap();
    }

    #[test]
    fn a_neighbour_made_permanent_stays_so() {
        let Some(pair) = Pair::new("permanent") else { return };
        let work = || {
            let mut resolver = Resolver::open(Instant::now()).unwrap();
            let eth0 = resolver.link_named("eth0").unwrap().index;
            let mut netlink = Netlink::open().unwrap();
            let mac = Mac([2, 0, 0, 0, 0, 0x88]);
            // After the resolver read everything, and nobody is there to answer.
            netlink.add_neighbour(eth0, ip("10.9.0.88"), mac).unwrap();
            match resolver.resolve(ip("10.9.0.88"), &[eth0], Instant::now()).unwrap() {
                Reach::Hop { hop, .. } => assert_eq!(hop.destination, mac),
                other => panic!("{other:?}"),
            }
            resolver.tick(Instant::now() + RETRY).unwrap();
            let now = netlink.neighbour(eth0, ip("10.9.0.88")).unwrap().unwrap();
            assert_eq!((now.mac, now.state), (Some(mac), NeighbourState::Fresh));
            assert_eq!(netlink.neighbour(eth0, ip("10.9.0.89")).unwrap(), None);
        };
        pair.near.run(work).unwrap();
    }

    #[test]
    fn a_stale_neighbour_is_confirmed_before_anybody_misses_it() {
        let Some(pair) = Pair::new("stale") else { return };
        let work = || {
            // Fresh for about 50 ms, then stale; confirmation begins 1 jiffy after use.
            netns::set_sysctl("net.ipv4.neigh.eth0.base_reachable_time_ms", "50").unwrap();
            netns::set_sysctl("net.ipv4.neigh.eth0.delay_first_probe_time", "0").unwrap();
            let mut resolver = Resolver::open(Instant::now()).unwrap();
            let eth0 = resolver.link_named("eth0").unwrap().index;
            assert!(matches!(settle(&mut resolver, "10.9.0.2", &[eth0]), Reach::Hop { .. }));
            let key = (eth0, ip("10.9.0.2"));
            let state = |resolver: &mut Resolver| {
                resolver.read_neighbours().unwrap();
                resolver.neighbours[&key].state
            };
            let wait_for = |resolver: &mut Resolver, wanted: &[NeighbourState]| {
                let start = Instant::now();
                while !wanted.contains(&state(resolver)) {
                    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", state(resolver));
                    std::thread::sleep(Duration::from_millis(5));
                }
            };
            wait_for(&mut resolver, &[NeighbourState::Stale]);
            resolver.tick(Instant::now() + RETRY).unwrap();
            wait_for(&mut resolver, &[NeighbourState::Fresh, NeighbourState::Probing]);
            // Nobody needs it any more: left alone.
            resolver.tick(Instant::now() + IDLE_MAX + RETRY).unwrap();
            assert!(resolver.wanted.is_empty());
        };
        pair.near.run(work).unwrap();
    }

    #[test]
    fn changes_are_heard_and_told_once() {
        let Some(pair) = Pair::new("hear") else { return };
        let work = || {
            let (follower, events) = Follower::start().unwrap();
            let quiet = |what: &str| {
                std::thread::sleep(Duration::from_millis(100));
                while events.try_recv().is_ok() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                assert!(events.recv_timeout(Duration::from_millis(200)).is_err(), "{what}");
            };
            let heard = |what: &str| {
                assert_eq!(
                    events.recv_timeout(Duration::from_secs(5)),
                    Ok(NetworkEvent::Changed),
                    "{what}"
                );
            };
            quiet("at the start");
            let mut netlink = Netlink::open().unwrap();
            let eth0 = netlink.link("eth0").unwrap().index;
            netlink.add_address(eth0, ip("10.9.0.50"), 24).unwrap();
            heard("address");
            quiet("after an address");
            netlink.use_neighbour(eth0, ip("10.9.0.2")).unwrap();
            heard("neighbour found");
            quiet("after a neighbour");
            for n in 0..200 {
                netlink
                    .add_route(&Route::via(IpAddr::from([192, 0, n, 0]), 24, ip("10.9.0.2")))
                    .unwrap();
            }
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(
                events.try_iter().count(),
                1,
                "a storm is one event while nobody listens"
            );
            netlink.delete_link(eth0).unwrap();
            heard("interface deleted");
            drop(follower);
        };
        pair.near.run(work).unwrap();
    }
}
