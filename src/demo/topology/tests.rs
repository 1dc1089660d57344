//! The networks carry traffic by themselves, before any director runs.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::demo::http::{self, HttpServer};
use crate::demo::udp::{UdpClient, UdpEcho};
use crate::io::netns;

const WAIT: Duration = Duration::from_secs(5);

fn build(label: &str, layout: Layout) -> Option<Topology> {
    if !netns::can_test() {
        return None;
    }
    Some(
        Topology::build(
            label,
            Plan {
                queues: 2,
                ..Plan::new(layout)
            },
        )
        .unwrap(),
    )
}

/// Every server answers the director, by web and UDP, in both families.
fn director_reaches_servers(topology: &Topology) {
    for (n, server) in topology.servers.iter().enumerate() {
        for family in FAMILIES {
            let at = SocketAddr::new(topology.server_address(n, family), 80);
            let _http = HttpServer::start(server.namespace(), at, server.name()).unwrap();
            let _udp = UdpEcho::start(server.namespace(), at, server.name()).unwrap();
            let director = topology.director.namespace();
            assert_eq!(http::get(director, at, WAIT).unwrap(), server.name());
            let client = UdpClient::connect(director, None, at, WAIT).unwrap();
            assert!(client.ask(b"x").unwrap().starts_with(server.name().as_bytes()));
        }
    }
}

#[test]
fn one_segment_and_nothing_left() {
    let Some(mut topology) = build("t-one", Layout::OneSegment) else {
        return;
    };
    director_reaches_servers(&topology);
    for method in [Method::Masq, Method::Tunnel, Method::Route] {
        for family in FAMILIES {
            topology.set_up_vip(method, family).unwrap();
            // The VIP answers from the director and from nobody else.
            let vip = SocketAddr::new(topology.vip(method, family), 80);
            let _http = HttpServer::start(topology.director.namespace(), vip, "director").unwrap();
            let _others: Vec<_> = topology
                .servers
                .iter()
                .filter(|_| method != Method::Masq)
                .map(|server| HttpServer::start(server.namespace(), vip, server.name()).unwrap())
                .collect();
            let mut client = http::HttpClient::connect(topology.client.namespace(), None, vip, WAIT).unwrap();
            assert_eq!(client.get("/").unwrap(), "director");
            assert_eq!(client.local().ip(), topology.client_address(method, family));
        }
    }
    let link = topology.director.link("eth0").unwrap();
    assert_eq!((link.rx_queues, link.mtu), (2, 1500));
    topology.director.set_offloads("eth0", false).unwrap();
    let (prefix, directory) = (
        topology.cluster.prefix().to_owned(),
        topology.cluster.directory().to_owned(),
    );
    assert_eq!(netns::list(&prefix).unwrap().len(), 5);
    drop(topology);
    assert_eq!(netns::list(&prefix).unwrap(), Vec::<String>::new());
    assert!(!directory.exists());
}

#[test]
fn two_armed_servers_answer_clients_through_the_director() {
    let Some(mut topology) = build("t-two", Layout::TwoArmed) else {
        return;
    };
    director_reaches_servers(&topology);
    // Straight through the director's kernel, to see that the server's way back leads there.
    for family in FAMILIES {
        topology
            .client
            .add_route(&Route::default_via(PUBLIC.address(family, 1)))
            .unwrap();
        let at = SocketAddr::new(topology.server_address(0, family), 80);
        let _http = HttpServer::start(topology.servers[0].namespace(), at, "server1").unwrap();
        assert_eq!(http::get(topology.client.namespace(), at, WAIT).unwrap(), "server1");
    }
}

#[test]
fn servers_behind_a_router() {
    let Some(topology) = build("t-gate", Layout::Gateway) else {
        return;
    };
    director_reaches_servers(&topology);
}
