//! Persistence through a director in memory, line by line as FACTS of the kernel's IPVS say. How: clients come, time passes, and
//! the templates are read.

#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;

use std::net::{IpAddr, SocketAddr};

use memory_director::{CLIENT_SIDE, MemoryDirector, SERVER_SIDE};
use packets::{FAMILIES, addresses, client_port, tcp};
use uvs::conn::{Connection, Kind, Tick};
use uvs::packet::{Family, Offload};

const SECOND: u64 = 1_000_000_000;
const V4: &str = "10.200.1.1:80";

/// `-p` as given, and two servers.
fn director(persistent: &str) -> MemoryDirector {
    let mut director = MemoryDirector::new(1024);
    director.ipvsadm(&format!("-A -t {V4} -s rr {persistent}"));
    for server in ["172.16.0.11:8080", "172.16.0.12:8080"] {
        director.ipvsadm(&format!("-a -t {V4} -r {server} -m"));
    }
    director
}

/// A client's SYN from the port of this number; which server got it.
fn connect(director: &mut MemoryDirector, client: IpAddr, number: usize, service: SocketAddr) -> IpAddr {
    let frame = tcp((client, client_port(number)).into(), service, "S");
    let out = director.inject(CLIENT_SIDE, &frame, Offload::default());
    let [(SERVER_SIDE, forwarded)] = &out.sent[..] else {
        panic!("{out:?}")
    };
    packets::flow(forwarded).flow.destination()
}

fn establish(director: &mut MemoryDirector, client: IpAddr, number: usize, service: SocketAddr) {
    let frame = tcp((client, client_port(number)).into(), service, "A");
    let out = director.inject(CLIENT_SIDE, &frame, Offload::default());
    assert_eq!(out.sent.len(), 1);
}

fn wait(director: &mut MemoryDirector, seconds: u64) {
    director.now_ns += seconds * SECOND;
    director.sweep();
}

fn templates(director: &MemoryDirector) -> Vec<Connection> {
    let all = director.connections().into_iter();
    all.filter(|entry| entry.kind == Kind::Template).collect()
}

/// Seconds left of the only template, as listed.
fn left(director: &MemoryDirector) -> u32 {
    let templates = templates(director);
    assert_eq!(templates.len(), 1, "{templates:?}");
    templates[0].deadline.seconds_left(Tick::from_boot_ns(director.now_ns))
}

#[test]
fn a_client_keeps_its_server_for_360_seconds_by_default() {
    let (client, service) = (addresses(Family::V4).client, V4.parse().expect("an address"));
    let mut director = director("-p");
    let first = connect(&mut director, client, 1, service);
    assert_eq!(left(&director), 359);
    // Each new connection restarts the time; packets of known ones do not.
    wait(&mut director, 50);
    establish(&mut director, client, 1, service);
    assert_eq!(left(&director), 309);
    assert_eq!(connect(&mut director, client, 2, service), first);
    assert_eq!(left(&director), 359);
    // `TCP 05:59 NONE 198.51.100.7:0 10.200.1.1:80 172.16.0.12:8080`, in none of the counts but PersistConn.
    let template = templates(&director)[0];
    assert_eq!((template.state.name(), template.client), ("NONE", (client, 0)));
    assert_eq!(template.virtual_address, (service.ip(), 80));
    assert_eq!(template.destination, (first, 8080));
    assert_eq!(template.controlled, 2);
    assert_eq!(director.controlled(), [2, 2]);
}

#[test]
fn a_template_keeps_the_time_of_its_beginning() {
    let (client, service) = (addresses(Family::V4).client, V4.parse().expect("an address"));
    let mut director = director("-p 100");
    connect(&mut director, client, 1, service);
    director.ipvsadm(&format!("-E -t {V4} -s rr -p 500"));
    wait(&mut director, 10);
    connect(&mut director, client, 2, service);
    assert_eq!(left(&director), 99, "as its service said when it began");
    let other: IpAddr = "198.51.100.8".parse().expect("an address");
    connect(&mut director, other, 3, service);
    let deadlines: Vec<u32> = templates(&director)
        .iter()
        .map(|template| template.deadline.seconds_left(Tick::from_boot_ns(director.now_ns)))
        .collect();
    assert_eq!(deadlines, [99, 499]);
}

#[test]
fn a_template_that_waits_for_connections_lasts_60_seconds_from_then_on() {
    let (client, service) = (addresses(Family::V4).client, V4.parse().expect("an address"));
    let mut director = director("-p 100");
    let first = connect(&mut director, client, 1, service);
    establish(&mut director, client, 1, service);
    wait(&mut director, 100);
    assert_eq!(left(&director), 59);
    wait(&mut director, 60);
    assert_eq!(left(&director), 59, "and again");
    wait(&mut director, 20);
    assert_eq!(connect(&mut director, client, 2, service), first);
    assert_eq!(left(&director), 59, "a new connection does not bring back the 100");
    // Without connections it ends: 900 s after the last packet of the first at most.
    for _ in 0..20 {
        wait(&mut director, 60);
    }
    assert!(director.connections().is_empty());
    connect(&mut director, client, 3, service);
    assert_eq!(left(&director), 99, "a new one has the service's time");
}

#[test]
fn a_mask_joins_clients_and_port_0_joins_ports() {
    for family in FAMILIES {
        let who = addresses(family);
        let (mask, neighbour, masked): (&str, &str, &str) = match family {
            Family::V4 => ("255.255.255.0", "198.51.100.200", "198.51.100.0"),
            Family::V6 => ("64", "2001:db8::ffff:1", "2001:db8::"),
        };
        let neighbour: IpAddr = neighbour.parse().expect("an address");
        let mut director = MemoryDirector::new(1024);
        let any = SocketAddr::from((who.vip, 0));
        director.ipvsadm(&format!("-A -t {any} -s rr -p 100 -M {mask}"));
        let others: IpAddr = match family {
            Family::V4 => "172.16.0.12",
            Family::V6 => "fd00:16::12",
        }
        .parse()
        .expect("an address");
        for server in [who.server, others] {
            director.ipvsadm(&format!("-a -t {any} -r {} -m", SocketAddr::from((server, 0))));
        }
        let first = connect(&mut director, who.client, 1, (who.vip, 80).into());
        for (number, port) in [(2, 80), (3, 443), (4, 22)] {
            let got = connect(&mut director, neighbour, number, (who.vip, port).into());
            assert_eq!(got, first, "{family:?} port {port}");
        }
        let templates = templates(&director);
        assert_eq!(templates.len(), 1, "{family:?}");
        let masked: IpAddr = masked.parse().expect("an address");
        assert_eq!(templates[0].client, (masked, 0), "{family:?}");
        assert_eq!(templates[0].virtual_address, (who.vip, 0), "{family:?}");
        assert_eq!(templates[0].destination, (first, 0), "{family:?}");
    }
}

#[test]
fn quiesced_servers_keep_their_clients_unless_told_otherwise() {
    let (client, service) = (addresses(Family::V4).client, V4.parse().expect("an address"));
    let mut director = director("-p 100");
    let first = connect(&mut director, client, 1, service);
    director.ipvsadm(&format!("-e -t {V4} -r {first}:8080 -m -w 0"));
    assert_eq!(connect(&mut director, client, 2, service), first);
    director.sysctl("expire_quiescent_template", "1");
    wait(&mut director, 10);
    assert_ne!(connect(&mut director, client, 3, service), first);
    // The old template reads 65535 until its time is over.
    let now = Tick::from_boot_ns(director.now_ns);
    let mut listed: Vec<_> = templates(&director)
        .iter()
        .map(|entry| {
            (
                entry.virtual_address.1,
                entry.destination.1,
                entry.deadline.seconds_left(now),
            )
        })
        .collect();
    listed.sort_unstable();
    assert_eq!(listed, [(80, 8080, 99), (65_535, 65_535, 89)]);
    // And then it goes, though a connection that it began lives on: it decides nothing any more.
    establish(&mut director, client, 1, service);
    wait(&mut director, 91);
    assert_eq!(templates(&director).len(), 1);
    assert_eq!(templates(&director)[0].virtual_address.1, 80);
    assert!(
        director
            .connections()
            .iter()
            .any(|entry| entry.state.name() == "ESTABLISHED")
    );
}
