//! What happens to the director's interfaces while it serves.
//! How: the built-in network with a real client and real servers; its settings are changed under the running director.

mod support;

use std::time::{Duration, Instant};

use support::{Family, Layout, Method, Plan, scenario};
use uvs::packet::Mac;

/// The XDP filter leaves frames to other link addresses alone, so it must learn the new one: else the kernel would answer
/// the clients of the services with resets.
#[test]
fn a_new_link_address_of_the_director() {
    let Some(mut s) = scenario("mac", Plan::new(Layout::OneSegment)) else {
        return;
    };
    s.offer(Method::Route, Family::V4).unwrap();
    for driver in ["xdp", "raw"] {
        s.start(&["--driver", driver]).unwrap();
        if driver == "xdp" {
            s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
        }
        s.request(Method::Route, Family::V4).expect("an answer before");

        let link = s.topology.director.link("eth0").unwrap();
        let mut address = link.mac.expect("Ethernet");
        address = Mac([2, 0x5e, 0, 0, 0, address.0[5].wrapping_add(1)]);
        s.topology.director.netlink().set_mac(link.index, address).unwrap();
        let vip = s.topology.vip(Method::Route, Family::V4);
        let client = &mut s.topology.client;
        let to_director = client.link("eth0").unwrap().index;
        client.netlink().delete_neighbour(to_director, vip).unwrap();

        // The director hears of it by a message of the kernel, within milliseconds.
        let start = Instant::now();
        while s.request(Method::Route, Family::V4).is_err() {
            assert!(start.elapsed() < Duration::from_secs(2), "{driver}: no answer any more");
        }
        for _ in 0..4 {
            s.request(Method::Route, Family::V4).expect("an answer after");
        }
        support::assert_balanced(&mut s);
        drop(s.take_director());
    }
}

/// Chunks are chosen by the MTUs at the start. A larger one is told of while uvs runs, and not once it has started by it.
#[test]
fn a_larger_mtu_of_the_director() {
    let Some(mut s) = scenario("mtu", Plan::new(Layout::OneSegment)) else {
        return;
    };
    s.offer(Method::Route, Family::V4).unwrap();
    s.start(&["--driver", "xdp"]).unwrap();
    s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
    let index = s.topology.director.link("eth0").unwrap().index;
    s.topology.director.netlink().set_mtu(index, 3000).unwrap();
    let director = s.director().unwrap().process();
    let is_told = |line: &str| line.contains("interface eth0: MTU 3000") && line.contains("longer than 1778 ");
    director.wait_for_line(Duration::from_secs(5), is_told).unwrap();
    s.request(Method::Route, Family::V4).expect("an answer");
    drop(s.take_director());

    s.start(&["--driver", "xdp"]).unwrap();
    s.request(Method::Route, Family::V4).expect("an answer after");
    let said = s.director().unwrap().process().output();
    assert!(!said.contains("MTU"), "{said}");
    support::assert_balanced(&mut s);
}
