//! Next hops against the real kernel, in namespaces of their own.

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
        assert_eq!(settle(&mut resolver, "10.9.0.77", &[eth0]), Reach::Silent);
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
                other => assert_eq!(other, Reach::Silent),
            }
            assert!(start.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    pair.near.run(work).unwrap();
}

/// As the kernel does with all of a link's when the link gets another address. Asked for a moment ago, the neighbour
/// would else be left alone for as long as one that does not answer.
#[test]
fn a_neighbour_that_the_kernel_forgot_is_asked_for_at_once() {
    let Some(pair) = Pair::new("forgot") else { return };
    let work = || {
        let mut resolver = Resolver::open(Instant::now()).unwrap();
        let eth0 = resolver.link_named("eth0").unwrap().index;
        let mut netlink = Netlink::open().unwrap();
        let now = Instant::now();
        for _ in 0..3 {
            // The resolver's clock stands still.
            let reached = |resolver: &mut Resolver| {
                resolver.refresh(now).unwrap();
                let reach = resolver.resolve(ip("10.9.0.2"), &[eth0], now).unwrap();
                matches!(reach, Reach::Hop { .. })
            };
            let start = Instant::now();
            while !reached(&mut resolver) {
                assert!(start.elapsed() < Duration::from_secs(5), "not asked for");
                std::thread::sleep(Duration::from_millis(5));
            }
            netlink.delete_neighbour(eth0, ip("10.9.0.2")).unwrap();
            assert!(!reached(&mut resolver), "gone");
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

/// Goal: a neighbour is asked for when that can help. How: what the kernel last said of it, a moment after it was told to ask and a
/// while after.
#[test]
fn a_neighbour_is_asked_for_when_it_can_help() {
    let told = Instant::now();
    let (soon, later) = (told + Duration::from_millis(5), told + RETRY);
    let due = |used, refused, state, now| {
        let mut wanted = Wanted {
            needed: told,
            used,
            refused,
            failed: false,
        };
        wanted.is_due(state, now)
    };
    for state in [
        NeighbourState::Fresh,
        NeighbourState::Probing,
        NeighbourState::Incomplete,
    ] {
        assert!(!due(None, false, Some(state), later), "{state:?}");
    }
    for state in [NeighbourState::Stale, NeighbourState::Failed] {
        assert!(due(None, false, Some(state), soon), "{state:?}");
        assert!(!due(Some(told), false, Some(state), soon), "{state:?}");
        assert!(due(Some(told), false, Some(state), later), "{state:?}");
    }
    assert!(due(None, false, None, soon));
    assert!(due(Some(told), false, None, soon), "forgotten");
    assert!(!due(Some(told), true, None, soon), "the kernel would not");
    assert!(due(Some(told), true, None, later));
}
