//! What `net.ipv4.vs.*` do to frames. How: a director in memory, a setting, frames in, and what comes out, by what the kernel's
//! IPVS (Linux 6.1) does with the same setting.

#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;

use std::net::{IpAddr, SocketAddr};

use memory_director::{CLIENT_SIDE, MemoryDirector, Outcome, SERVER_SIDE};
use packets::{FAMILIES, METHODS, addresses, client_port, flow, host_unreachable, icmp_error, tcp, udp};
use uvs::packet::{DropReason, Family, Offload};

fn at(address: IpAddr, port: u16) -> SocketAddr {
    (address, port).into()
}

/// A director with a TCP service on port 80 and a UDP service on port 53, each with one destination; with NAT on ports
/// 8080 and 5353.
fn director(family: Family, method: &str) -> MemoryDirector {
    let who = addresses(family);
    let mut director = MemoryDirector::new(1024);
    for (option, port, nat_port) in [("-t", 80, 8080), ("-u", 53, 5353)] {
        let real = if method == "-m" { nat_port } else { port };
        let (service, server) = (at(who.vip, port), at(who.server, real));
        director.ipvsadm(&format!(
            "-A {option} {service} -s rr; -a {option} {service} -r {server} {method}"
        ));
    }
    director
}

fn inject(director: &mut MemoryDirector, frame: &[u8]) -> Outcome {
    director.inject(CLIENT_SIDE, frame, Offload::default())
}

fn dropped(director: &MemoryDirector, reason: DropReason) -> u64 {
    director.counts().dropped[reason as usize]
}

#[test]
fn nat_icmp_send_tells_the_server_of_a_stray() {
    for family in FAMILIES {
        let who = addresses(family);
        let client = at(who.client, 999);
        let mut director = director(family, "-m");
        let strays = [
            tcp(at(who.server, 8080), client, "A"),
            udp(at(who.server, 5353), client),
        ];
        for stray in &strays {
            let out = director.inject(SERVER_SIDE, stray, Offload::default());
            assert_eq!(
                (out.sent.len(), out.handed_back),
                (0, 0),
                "{family:?}: silent by default"
            );
        }
        director.sysctl("nat_icmp_send", "1");
        for stray in &strays {
            let out = director.inject(SERVER_SIDE, stray, Offload::default());
            assert_eq!((out.sent.len(), out.handed_back), (1, 0), "{family:?}");
            let (interface, answer) = &out.sent[0];
            let (parsed, kind) = icmp_error(answer);
            let expected = if family == Family::V4 { [3, 3] } else { [1, 4] };
            assert_eq!((*interface, kind), (SERVER_SIDE, expected), "{family:?}");
            let ends = (parsed.flow.source(), parsed.flow.destination());
            assert_eq!(ends, (who.director, who.server), "{family:?}");
            let quote = uvs::packet::quote::quote(answer, &parsed).expect("a quote");
            assert_eq!(quote.flow, flow(stray).flow, "{family:?}");
        }
        // A reset is not answered, and neither is what a server says from another port.
        let reset = director.inject(SERVER_SIDE, &tcp(at(who.server, 8080), client, "R"), Offload::default());
        assert_eq!((reset.sent.len(), reset.handed_back), (0, 0), "{family:?}");
        assert_eq!(dropped(&director, DropReason::NoConnection), 5, "{family:?}");
        let other = director.inject(SERVER_SIDE, &tcp(at(who.server, 22), client, "A"), Offload::default());
        assert_eq!((other.sent.len(), other.handed_back), (0, 1), "{family:?}");
    }
}

#[test]
fn schedule_icmp_begins_a_connection_with_an_error() {
    for family in FAMILIES {
        let who = addresses(family);
        for (method, protocol, port, real) in METHODS
            .iter()
            .flat_map(|method| [(*method, "tcp", 80, 8080), (*method, "udp", 53, 5353)])
        {
            let name = format!("{family:?} {method} {protocol}");
            let mut director = director(family, method);
            let (client, service) = (at(who.client, client_port(1)), at(who.vip, port));
            // What the service, or another director for it, may have sent to the client.
            let sent = match protocol {
                "tcp" => tcp(service, client, "A"),
                _ => udp(service, client),
            };
            let error = host_unreachable(who.router, who.vip, &sent);
            let out = inject(&mut director, &error);
            assert_eq!((out.sent.len(), out.handed_back), (0, 1), "{name}: off by default");
            assert!(director.connections().is_empty(), "{name}");

            director.sysctl("schedule_icmp", "1");
            let out = inject(&mut director, &error);
            assert_eq!((out.sent.len(), out.handed_back), (1, 0), "{name}");
            assert_eq!(out.sent[0].0, SERVER_SIDE, "{name}");
            if method == "-m" {
                let (parsed, _) = icmp_error(&out.sent[0].1);
                let quoted = uvs::packet::quote::quote(&out.sent[0].1, &parsed)
                    .expect("a quote")
                    .flow;
                assert_eq!(parsed.flow.destination(), who.server, "{name}");
                assert_eq!((quoted.source(), quoted.source_port()), (who.server, real), "{name}");
            }
            // FACTS: the entry reads NONE, 2 s.
            let connections = director.connections();
            let [entry] = &connections[..] else {
                panic!("{name}: {connections:?}")
            };
            let state = if protocol == "tcp" { "NONE" } else { "UDP" };
            let now = uvs::conn::Tick::from_boot_ns(director.now_ns);
            assert_eq!(
                (entry.state.name(), entry.deadline.seconds_left(now)),
                (state, 2),
                "{name}"
            );
            assert_eq!((entry.client.0, entry.client.1), (who.client, client_port(1)), "{name}");
            // A second error is of the same connection and does not lengthen it; what the client sends does.
            director.now_ns += 1_000_000_000;
            assert_eq!(inject(&mut director, &error).sent.len(), 1, "{name}");
            assert_eq!(director.connections()[..], connections[..], "{name}");
            if protocol == "tcp" {
                inject(&mut director, &tcp(client, service, "S"));
                assert_eq!(director.connections()[0].state.name(), "SYN_RECV", "{name}");
            } else {
                director.now_ns += 2_000_000_000;
                director.sweep();
                assert!(director.connections().is_empty(), "{name}");
            }
        }
    }
}

#[test]
fn schedule_icmp_without_a_destination_is_silent() {
    for family in FAMILIES {
        let who = addresses(family);
        let mut director = MemoryDirector::new(1024);
        director.ipvsadm(&format!("-A -t {} -s rr", at(who.vip, 80)));
        director.sysctl("schedule_icmp", "1");
        let client = at(who.client, client_port(1));
        let about = |port| host_unreachable(who.router, who.vip, &tcp(at(who.vip, port), client, "A"));
        let out = inject(&mut director, &about(80));
        assert_eq!((out.sent.len(), out.handed_back), (0, 0), "{family:?}");
        assert_eq!(dropped(&director, DropReason::NoDestination), 1, "{family:?}");
        // Of no service at all: the local stack's.
        let out = inject(&mut director, &about(81));
        assert_eq!((out.sent.len(), out.handed_back), (0, 1), "{family:?}");
    }
}
