//! Against the real kernel, in namespaces of their own.

use std::net::IpAddr;

use super::*;
use crate::packet::Mac;

fn namespace(what: &str) -> Option<Namespace> {
    if !netns::can_test() {
        return None;
    }
    Some(Namespace::create(&format!("uvs-{}-{what}", std::process::id())).unwrap())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_veth_pair_between_namespaces_with_queues_addresses_routes_and_neighbours() {
    let (Some(left), Some(right)) = (namespace("nl-left"), namespace("nl-right")) else {
        return;
    };
    // Else the link-local addresses, from which the kernel solicits, are tentative for two seconds.
    for namespace in [&left, &right] {
        namespace.set_sysctl("net.ipv6.conf.default.accept_dad", "0").unwrap();
    }
    let mut a = Netlink::open_in(&left).unwrap();
    let mut b = Netlink::open_in(&right).unwrap();
    let mac = Mac([2, 0, 0, 0, 0, 7]);
    let ends = [
        VethEnd {
            name: "eth0",
            namespace: None,
            mac: None,
        },
        VethEnd {
            name: "eth0",
            namespace: Some(&right),
            mac: Some(mac),
        },
    ];
    a.create_veth(ends, 2).unwrap();
    let (left_link, right_link) = (a.link("eth0").unwrap(), b.link("eth0").unwrap());
    assert_eq!((left_link.rx_queues, left_link.tx_queues), (2, 2));
    assert_eq!((right_link.rx_queues, right_link.tx_queues), (2, 2));
    assert_eq!(right_link.mac, Some(mac));
    assert_eq!(left_link.kind.as_deref(), Some("veth"));
    assert!(!left_link.up);

    for (netlink, index, v4, v6) in [
        (&mut a, left_link.index, "10.1.0.1", "fd01::1"),
        (&mut b, right_link.index, "10.1.0.2", "fd01::2"),
    ] {
        netlink.set_mtu(index, 1400).unwrap();
        netlink.set_up(index, true).unwrap();
        netlink.add_address(index, ip(v4), 24).unwrap();
        netlink.add_address(index, ip(v6), 64).unwrap();
        let addresses = netlink.addresses().unwrap();
        for wanted in [v4, v6] {
            let found = addresses.iter().find(|address| address.address == ip(wanted)).unwrap();
            assert!(found.usable && found.link == index);
        }
    }
    assert!(
        a.wait_running(left_link.index, std::time::Duration::from_secs(5))
            .unwrap()
    );
    assert!(
        b.wait_running(right_link.index, std::time::Duration::from_secs(5))
            .unwrap()
    );
    assert_eq!(a.link_by_index(left_link.index).unwrap().mtu, 1400);

    // Resolution on demand.
    let index = left_link.index;
    for peer in ["10.1.0.2", "fd01::2"] {
        a.use_neighbour(index, ip(peer)).unwrap();
        let mut found = None;
        for _ in 0..200 {
            found = a
                .neighbours()
                .unwrap()
                .into_iter()
                .find(|n| n.address == ip(peer) && n.mac.is_some());
            if found.is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(found.and_then(|n| n.mac), Some(mac), "{peer}: {:?}", a.neighbours());
    }

    // Routes.
    assert_eq!(a.route_to(ip("192.0.2.1")).unwrap(), None);
    a.add_route(&Route::default_via(ip("10.1.0.2"))).unwrap();
    let answer = a.route_to(ip("192.0.2.1")).unwrap().unwrap();
    assert_eq!((answer.kind, answer.link), (RouteKind::Unicast, index));
    assert_eq!(
        (answer.gateway, answer.source),
        (Some(ip("10.1.0.2")), Some(ip("10.1.0.1")))
    );
    a.add_route(&Route {
        mtu: 1300,
        ..Route::via(ip("fd09::"), 16, ip("fd01::2"))
    })
    .unwrap();
    let answer = a.route_to(ip("fd09::1")).unwrap().unwrap();
    assert_eq!((answer.gateway, answer.mtu), (Some(ip("fd01::2")), 1300));
    assert_eq!(a.route_to(ip("10.1.0.1")).unwrap().unwrap().kind, RouteKind::Local);
    a.delete_route(&Route::default_via(ip("10.1.0.2"))).unwrap();
    assert_eq!(a.route_to(ip("192.0.2.1")).unwrap(), None);

    a.add_neighbour(index, ip("10.1.0.9"), Mac([2, 0, 0, 0, 0, 9])).unwrap();
    assert!(
        a.neighbours()
            .unwrap()
            .iter()
            .any(|n| n.address == ip("10.1.0.9") && n.state == NeighbourState::Fresh)
    );
    a.delete_neighbour(index, ip("10.1.0.9")).unwrap();
    a.delete_address(index, ip("10.1.0.1"), 24).unwrap();
    a.delete_link(index).unwrap();
    assert!(
        matches!(b.link("eth0"), Err(Error::NoSuchLink(_))),
        "the other end goes too"
    );
}

#[test]
fn a_local_route_makes_an_address_ours_without_being_on_a_link() {
    let Some(inside) = namespace("nl-local") else { return };
    let mut netlink = Netlink::open_in(&inside).unwrap();
    let lo = netlink.link("lo").unwrap();
    assert!(lo.loopback);
    netlink.set_up(lo.index, true).unwrap();
    for vip in ["192.0.2.80", "2001:db8::80"] {
        assert_eq!(netlink.route_to(ip(vip)).unwrap(), None);
        netlink.add_route(&Route::local(ip(vip), lo.index)).unwrap();
        assert_eq!(netlink.route_to(ip(vip)).unwrap().unwrap().kind, RouteKind::Local);
        assert!(
            netlink
                .routes()
                .unwrap()
                .iter()
                .any(|route| route.destination == ip(vip))
        );
    }
}

#[test]
fn a_bridge_joins_links() {
    let Some(inside) = namespace("nl-bridge") else { return };
    let mut netlink = Netlink::open_in(&inside).unwrap();
    netlink.create_bridge("br0").unwrap();
    let bridge = netlink.link("br0").unwrap().index;
    let end = |name| VethEnd {
        name,
        namespace: None,
        mac: None,
    };
    netlink.create_veth([end("a"), end("b")], 1).unwrap();
    let link = netlink.link("a").unwrap().index;
    netlink.set_controller(link, Some(bridge)).unwrap();
    assert_eq!(netlink.link("a").unwrap().controller, Some(bridge));
    netlink.set_controller(link, None).unwrap();
    assert_eq!(netlink.link("a").unwrap().controller, None);
}

#[test]
fn errors_name_what_and_why() {
    let Some(inside) = namespace("nl-errors") else { return };
    let mut netlink = Netlink::open_in(&inside).unwrap();
    assert_eq!(
        netlink.link("nothere").unwrap_err().to_string(),
        "no interface nothere in this network namespace"
    );
    let long = "a".repeat(40);
    assert!(matches!(netlink.link(&long), Err(Error::NoSuchLink(_))));
    let error = netlink.add_address(99, ip("10.0.0.1"), 24).unwrap_err();
    assert_eq!(
        error.to_string(),
        "add address 10.0.0.1/24 to interface 99: No such device (os error 19)"
    );
}

#[test]
fn a_cut_datagram_gives_what_is_whole_and_no_panic() {
    // Goal: bytes from the socket never panic. Method: every prefix of a real answer.
    let Ok(mut netlink) = Netlink::open() else { return };
    netlink.links().unwrap();
    let datagram = netlink.buffer.clone();
    let whole = split(&datagram).len();
    for length in 0..datagram.len() {
        assert!(split(&datagram[..length]).len() <= whole);
    }
}
