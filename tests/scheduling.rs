//! What becomes of packets hangs on what happened before: removed and added again, quiesced, switched to another scheduler. How: a director in
//! memory, and what the kernel's IPVS (Linux 6.1) decides after the same commands.

#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;

use std::net::{IpAddr, SocketAddr};

use memory_director::{CLIENT_SIDE, MemoryDirector, Outcome};
use packets::{FAMILIES, addresses, client_port, flow, host_unreachable, icmp_error, tcp, udp};
use uvs::control::explain::{Question, Way};
use uvs::packet::{Family, Offload};

const SERVICE: &str = "10.200.1.1:80";

fn at(address: IpAddr, port: u16) -> SocketAddr {
    (address, port).into()
}

fn inject(director: &mut MemoryDirector, frame: &[u8]) -> Outcome {
    director.inject(CLIENT_SIDE, frame, Offload::default())
}

/// One TCP service with servers 172.16.0.11 and so on, all with NAT, of these weights.
fn director(scheduler: &str, weights: &[u32]) -> MemoryDirector {
    let mut director = MemoryDirector::new(1024);
    director.ipvsadm(&format!("-A -t {SERVICE} -s {scheduler}"));
    for (n, weight) in weights.iter().enumerate() {
        director.ipvsadm(&format!("-a -t {SERVICE} -r 172.16.0.{} -m -w {weight}", 11 + n));
    }
    director
}

/// Last byte of the server that each new client (by number) gets; 0: refused.
fn picks(director: &mut MemoryDirector, clients: std::ops::Range<usize>) -> Vec<u8> {
    let who = addresses(Family::V4);
    clients
        .map(|n| {
            let client = IpAddr::from([198, 51, 100, n as u8]);
            let out = inject(director, &tcp(at(client, client_port(n)), at(who.vip, 80), "S"));
            match &out.sent[..] {
                [(interface, frame)] if *interface != CLIENT_SIDE => match flow(frame).flow.destination() {
                    IpAddr::V4(server) => server.octets()[3],
                    other => panic!("{other}"),
                },
                _ => 0,
            }
        })
        .collect()
}

#[test]
fn mh_keeps_the_places_of_a_quiesced_server_over_a_change_of_scheduler() {
    let mut before = director("mh", &[1, 1]);
    let whole = picks(&mut before, 1..60);
    let kept: Vec<u8> = whole.iter().map(|n| if *n == 12 { 0 } else { *n }).collect();
    let quiesce = format!("-e -t {SERVICE} -r 172.16.0.12 -m -w 0");
    for (scheduler, changes) in [
        ("mh", vec![quiesce.clone()]),
        // Its last weight is the server's, not the scheduler's.
        ("rr", vec![quiesce.clone(), format!("-E -t {SERVICE} -s mh")]),
        (
            "mh",
            vec![
                quiesce.clone(),
                format!("-E -t {SERVICE} -s rr"),
                format!("-E -t {SERVICE} -s mh"),
            ],
        ),
    ] {
        let mut director = director(scheduler, &[1, 1]);
        changes.iter().for_each(|change| director.ipvsadm(change));
        assert_eq!(picks(&mut director, 1..60), kept, "{changes:?}");
    }
    // One that comes with weight 0 has none, be it new or back again.
    for changes in [
        vec![],
        vec![
            quiesce,
            format!("-d -t {SERVICE} -r 172.16.0.12"),
            format!("-a -t {SERVICE} -r 172.16.0.12 -m -w 0"),
        ],
    ] {
        let mut director = director("mh", if changes.is_empty() { &[1, 0] } else { &[1, 1] });
        changes.iter().for_each(|change| director.ipvsadm(change));
        assert_eq!(picks(&mut director, 1..60), [11; 59], "{changes:?}");
    }
}

#[test]
fn wrr_begins_with_the_heaviest_where_another_scheduler_was_before() {
    // As a new service its first round is for all: see tests/kernel, wrr/w321/ports.
    assert_eq!(picks(&mut director("wrr", &[5, 1, 2]), 1..4), [13, 12, 11]);
    let mut director = director("rr", &[5, 1, 2]);
    director.ipvsadm(&format!("-E -t {SERVICE} -s wrr"));
    assert_eq!(picks(&mut director, 1..10), [11, 11, 11, 13, 11, 13, 12, 11, 11]);
}

#[test]
fn lblc_and_lblcr_know_a_server_that_comes_back() {
    for scheduler in ["lblc", "lblcr"] {
        let mut director = director(scheduler, &[9, 9]);
        assert_eq!(picks(&mut director, 1..4), [12, 12, 12], "{scheduler}");
        director.ipvsadm(&format!("-d -t {SERVICE} -r 172.16.0.12"));
        director.ipvsadm(&format!("-a -t {SERVICE} -r 172.16.0.12 -m -w 9"));
        assert_eq!(
            picks(&mut director, 4..6),
            [12, 12],
            "{scheduler}: the VIP is still its"
        );
        director.ipvsadm(&format!("-d -t {SERVICE} -r 172.16.0.12"));
        assert_eq!(picks(&mut director, 6..8), [11, 11], "{scheduler}");
        director.ipvsadm(&format!("-a -t {SERVICE} -r 172.16.0.12 -m -w 9"));
        // lblc: the other one has the VIP now. lblcr: both are in its set, and the other one has less to do.
        assert_eq!(picks(&mut director, 8..10), [11, 11], "{scheduler}");
    }
}

#[test]
fn expire_nodest_conn_takes_new_clients_from_a_quiesced_server() {
    for (setting, reuse, expected) in [("0", "1", 12), ("1", "1", 11), ("1", "0", 11)] {
        let mut director = director("rr", &[1, 1]);
        director.sysctl("expire_nodest_conn", setting);
        director.sysctl("conn_reuse_mode", reuse);
        assert_eq!(picks(&mut director, 1..2), [12]);
        director.ipvsadm(&format!("-e -t {SERVICE} -r 172.16.0.12 -m -w 0"));
        // A SYN on a live connection, whatever state that is in.
        assert_eq!(picks(&mut director, 1..2), [expected], "{setting}");
        let who = addresses(Family::V4);
        let (client, vip) = (at([198, 51, 100, 1].into(), client_port(1)), at(who.vip, 80));
        let out = inject(&mut director, &tcp(client, vip, "A"));
        let server = IpAddr::from([172, 16, 0, expected]);
        assert_eq!(
            flow(&out.sent[0].1).flow.destination(),
            server,
            "its other packets stay"
        );
        assert_eq!(director.connections().len(), 1);
    }
}

#[test]
fn nothing_from_port_20_begins_a_connection() {
    for family in FAMILIES {
        let who = addresses(family);
        let mut director = MemoryDirector::new(1024);
        let (web, names) = (at(who.vip, 80), at(who.vip, 53));
        let server = |port| at(who.server, port);
        director.ipvsadm(&format!("-A -t {web}; -a -t {web} -r {} -m", server(80)));
        director.ipvsadm(&format!("-A -u {names}; -a -u {names} -r {} -m", server(53)));
        for frame in [tcp(at(who.client, 20), web, "S"), udp(at(who.client, 20), names)] {
            let out = inject(&mut director, &frame);
            assert_eq!((out.sent.len(), out.handed_back), (0, 1), "{family:?}");
        }
        assert!(director.connections().is_empty());
        let from_20 = Question::parse("tcp", &at(who.client, 20).to_string(), &web.to_string()).expect("a question");
        assert_eq!(director.explain(&from_20).way, Way::LocalStack, "{family:?}");
        assert_eq!(inject(&mut director, &tcp(at(who.client, 21), web, "S")).sent.len(), 1);
    }
}

#[test]
fn wrr_begins_with_the_heaviest_again_after_a_client_that_nobody_could_take() {
    let limit = |n: u8, w: u32, x: u32| format!("-e -t {SERVICE} -r 172.16.0.{n} -m -w {w} -x {x}");
    let mut director = director("wrr", &[1, 3]);
    director.ipvsadm(&limit(11, 1, 1));
    director.ipvsadm(&limit(12, 3, 1));
    assert_eq!(picks(&mut director, 1..3), [12, 11]);
    // This begins the round anew, at the head of the list.
    director.ipvsadm(&limit(11, 1, 1));
    assert_eq!(picks(&mut director, 3..4), [0]);
    director.ipvsadm(&limit(12, 3, 9));
    director.ipvsadm(&format!("-a -t {SERVICE} -r 172.16.0.13 -m -w 1"));
    assert_eq!(picks(&mut director, 4..9), [12, 12, 13, 12, 12]);
}

#[test]
fn an_icmp_error_reaches_a_removed_server_too() {
    for family in FAMILIES {
        let who = addresses(family);
        let web = at(who.vip, 80);
        let mut director = MemoryDirector::new(1024);
        director.ipvsadm(&format!(
            "-A -t {web}; -A -t {}; -a -t {web} -r {} -m",
            at(who.vip, 81),
            at(who.server, 80)
        ));
        let client = at(who.client, client_port(1));
        inject(&mut director, &tcp(client, web, "S"));
        director.ipvsadm(&format!("-d -t {web} -r {}", at(who.server, 80)));
        assert!(inject(&mut director, &tcp(client, web, "A")).sent.is_empty());
        let error = host_unreachable(who.router, who.vip, &tcp(web, client, "SA"));
        let out = inject(&mut director, &error);
        let (parsed, _) = icmp_error(&out.sent[0].1);
        assert_eq!(parsed.flow.destination(), who.server, "{family:?}");
        // Without any service it is the local stack's.
        director.ipvsadm("-C");
        let out = inject(&mut director, &error);
        assert_eq!((out.sent.len(), out.handed_back), (0, 1), "{family:?}");
    }
}
