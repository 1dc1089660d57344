//! What `net.ipv4.vs.*` do to frames. How: a director in memory, a setting, frames in, and what comes out, by what the kernel's
//! IPVS (Linux 6.1) does with the same setting.

#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;
mod support;

use std::net::{IpAddr, SocketAddr};

use memory_director::{CLIENT_SIDE, MemoryDirector, Outcome, SERVER_SIDE};
use packets::{FAMILIES, METHODS, addresses, client_port, flow, host_unreachable, icmp_error, tcp, udp};
use uvs::packet::{DropReason, Family, Offload};
use uvs::table::Supplies;

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

/// A client's SYN, each from another port: what became of it.
fn syns(director: &mut MemoryDirector, family: Family, numbers: std::ops::Range<usize>) -> Vec<usize> {
    let who = addresses(family);
    let mut forwarded = Vec::new();
    for number in numbers {
        let frame = tcp(at(who.client, client_port(number)), at(who.vip, 80), "S");
        let out = inject(director, &frame);
        assert_eq!(out.handed_back, 0);
        if !out.sent.is_empty() {
            forwarded.push(number);
        }
    }
    forwarded
}

const SHORT: Supplies = Supplies {
    pages_free: u64::MAX,
    slots: 1024,
    slots_free: 32,
};

#[test]
fn drop_packet_always_drops_one_new_connection_in_am_droprate() {
    for family in FAMILIES {
        let who = addresses(family);
        let mut director = director(family, "-g");
        director.sysctl("drop_packet", "3");
        director.sysctl("am_droprate", "4");
        assert_eq!(syns(&mut director, family, 0..10), [1, 2, 3, 5, 6, 7, 9], "{family:?}");
        assert_eq!(dropped(&director, DropReason::DropPacket), 3, "{family:?}");
        // Only packets that would begin a connection: those of known ones pass, and what is nobody's is handed back.
        for _ in 0..20 {
            let known = tcp(at(who.client, client_port(1)), at(who.vip, 80), "A");
            assert_eq!(inject(&mut director, &known).sent.len(), 1, "{family:?}");
            let other = tcp(at(who.client, client_port(1)), at(who.vip, 81), "S");
            assert_eq!(inject(&mut director, &other).handed_back, 1, "{family:?}");
        }
        assert_eq!(dropped(&director, DropReason::DropPacket), 3, "{family:?}");
        // UDP likewise, and what errors begin with schedule_icmp. The rate of before runs out first.
        director.sysctl("am_droprate", "1");
        director.sysctl("schedule_icmp", "1");
        syns(&mut director, family, 20..24);
        let before = dropped(&director, DropReason::DropPacket);
        let query = udp(at(who.client, client_port(77)), at(who.vip, 53));
        let reply = tcp(at(who.vip, 80), at(who.client, client_port(78)), "A");
        let error = host_unreachable(who.router, who.vip, &reply);
        for frame in [&query, &error] {
            let out = inject(&mut director, frame);
            assert_eq!((out.sent.len(), out.handed_back), (0, 0), "{family:?}");
        }
        assert_eq!(dropped(&director, DropReason::DropPacket), before + 2, "{family:?}");
        director.sysctl("drop_packet", "0");
        assert_eq!(inject(&mut director, &query).sent.len(), 1, "{family:?}");
    }
}

#[test]
fn drop_packet_under_pressure_only() {
    let mut director = director(Family::V4, "-g");
    director.sysctl("drop_packet", "1");
    assert_eq!(syns(&mut director, Family::V4, 0..6).len(), 6);
    // Half of the last sixteenth is left: every second goes.
    director.supplies(SHORT);
    assert_eq!(syns(&mut director, Family::V4, 10..16), [11, 13, 15]);
    director.supplies(Supplies::default());
    assert_eq!(syns(&mut director, Family::V4, 20..26).len(), 6);
}

#[test]
fn drop_entry_under_pressure_ends_half_open_connections() {
    let family = Family::V4;
    let who = addresses(family);
    let mut director = director(family, "-m");
    director.sysctl("drop_entry", "1");
    syns(&mut director, family, 0..20);
    let service = at(who.vip, 80);
    inject(&mut director, &tcp(at(who.client, client_port(0)), service, "A"));
    assert_eq!(director.drop_entries(1000), 0);
    director.supplies(SHORT);
    assert_eq!(director.drop_entries(1000), 19);
    let connections = director.connections();
    assert_eq!((connections.len(), connections[0].state.name()), (1, "ESTABLISHED"));
    // The established one goes when it is idle for a minute: it had few packets.
    director.now_ns += 61_000_000_000;
    assert_eq!(director.drop_entries(1000), 1);
}

#[test]
fn secure_tcp_needs_the_server_to_establish() {
    for (mode, supplies, expected) in [
        ("0", SHORT, ["SYN_RECV", "ESTABLISHED", "ESTABLISHED"]),
        ("1", Supplies::default(), ["SYN_RECV", "ESTABLISHED", "ESTABLISHED"]),
        ("1", SHORT, ["SYNACK", "SYNACK", "ESTABLISHED"]),
        ("3", Supplies::default(), ["SYNACK", "SYNACK", "ESTABLISHED"]),
    ] {
        let who = addresses(Family::V4);
        let (client, service, server) = (at(who.client, client_port(1)), at(who.vip, 80), at(who.server, 8080));
        let mut director = director(Family::V4, "-m");
        director.sysctl("secure_tcp", mode);
        director.supplies(supplies);
        let state = |director: &MemoryDirector| director.connections()[0].state.name();
        inject(&mut director, &tcp(client, service, "S"));
        assert_eq!(state(&director), "SYN_RECV", "{mode}");
        let mut seen = Vec::new();
        for (side, frame) in [
            (SERVER_SIDE, tcp(server, client, "SA")),
            (CLIENT_SIDE, tcp(client, service, "A")),
            (SERVER_SIDE, tcp(server, client, "A")),
        ] {
            director.inject(side, &frame, Offload::default());
            seen.push(state(&director));
        }
        assert_eq!(seen, expected, "mode {mode}, {supplies:?}");
    }
    // Where the server is not seen, a SYN is enough for SYNACK, and the client's next packet establishes.
    for method in ["-g", "-i"] {
        let who = addresses(Family::V4);
        let mut director = director(Family::V4, method);
        director.sysctl("secure_tcp", "3");
        let (client, service) = (at(who.client, client_port(1)), at(who.vip, 80));
        for (flags, expected) in [
            ("S", "SYNACK"),
            ("A", "ESTABLISHED"),
            ("A", "ESTABLISHED"),
            ("FA", "FIN_WAIT"),
        ] {
            inject(&mut director, &tcp(client, service, flags));
            assert_eq!(director.connections()[0].state.name(), expected, "{method} {flags}");
        }
    }
}

#[test]
fn tunnelled_packets_are_the_local_stacks() {
    let who = addresses(Family::V4);
    let syn = tcp(at(who.client, client_port(1)), at(who.vip, 80), "S");
    // IP in IP to the VIP, as a director in front of this one would send it.
    let mut outer = syn[..34].to_vec();
    outer[16..18].copy_from_slice(&((syn.len() - 14 + 20) as u16).to_be_bytes());
    outer[23] = 4;
    outer[24..26].fill(0);
    let sum = uvs::packet::checksum::of(&outer[14..34]);
    outer[24..26].copy_from_slice(&sum.to_be_bytes());
    let tunnelled = [&outer[..], &syn[14..]].concat();
    for value in ["0", "1"] {
        let mut director = director(Family::V4, "-g");
        director.sysctl("ignore_tunneled", value);
        let out = inject(&mut director, &tunnelled);
        assert_eq!((out.sent.len(), out.handed_back), (0, 1), "{value}");
        assert!(director.connections().is_empty(), "{value}");
        assert_eq!(inject(&mut director, &syn).sent.len(), 1, "{value}");
    }
}

#[test]
fn settings_without_effect_change_nothing() {
    for family in FAMILIES {
        let who = addresses(family);
        for method in METHODS {
            let outcomes = |values: &[(&str, &str)]| {
                let mut director = director(family, method);
                director.ipvsadm(&format!("-A -t {} -s rr", at(who.vip, 82)));
                for (name, value) in values {
                    director.sysctl(name, value);
                }
                let client = at(who.client, client_port(1));
                let frames = [
                    (CLIENT_SIDE, tcp(client, at(who.vip, 80), "S")),
                    (SERVER_SIDE, tcp(at(who.server, 8080), client, "SA")),
                    (CLIENT_SIDE, tcp(client, at(who.vip, 80), "A")),
                    (CLIENT_SIDE, udp(client, at(who.vip, 53))),
                    // No destination is left.
                    (CLIENT_SIDE, tcp(client, at(who.vip, 82), "S")),
                ];
                let out = frames.map(|(side, frame)| director.inject(side, &frame, Offload::default()));
                format!("{out:?} {:?} {}", director.connections(), director.destinations())
            };
            let changed = [
                ("backup_only", "1"),
                ("cache_bypass", "1"),
                ("conntrack", "1"),
                ("ignore_tunneled", "1"),
                ("snat_reroute", "0"),
            ];
            assert_eq!(outcomes(&changed), outcomes(&[]), "{family:?} {method}");
        }
    }
}

/// Goal: the running daemon measures, defends and says so. How: in a namespace, with a threshold that no machine's memory reaches.
#[test]
fn a_running_director_defends_itself_at_run_time() {
    use support::{Layout, Method, Plan};
    let plan = Plan {
        servers: 1,
        ..Plan::new(Layout::OneSegment)
    };
    let Some(mut s) = support::scenario("defences", plan) else {
        return;
    };
    let (method, family) = (Method::Masq, Family::V4);
    s.offer(method, family).expect("a VIP");
    s.start(&[]).expect("uvs run");
    s.add_service(method, family, "-s rr").expect("a service");
    let sysctl = |s: &mut support::Scenario, arguments: &[&str]| -> String {
        let director = s.director().expect("a director");
        let output = director
            .output(&[&["sysctl"], arguments].concat())
            .expect("uvs sysctl runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let reads = |s: &mut support::Scenario, wanted: &str| {
        let start = std::time::Instant::now();
        loop {
            let text = sysctl(s, &["net.ipv4.vs.drop_packet"]);
            if text.trim().ends_with(wanted) {
                return;
            }
            assert!(start.elapsed().as_secs() < 5, "not {wanted}: {text}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    sysctl(&mut s, &["-w", "net.ipv4.vs.drop_packet=1"]);
    sysctl(&mut s, &["-w", "net.ipv4.vs.secure_tcp=1"]);
    s.request(method, family).expect("nothing is short");
    let mut open = s.connect(method, family, None).expect("a connection");
    sysctl(&mut s, &["-w", "net.ipv4.vs.amemthresh=2147483647"]);
    reads(&mut s, "= 2");
    // Of so many missing pages, every new connection goes; those that live stay.
    s.request(method, family).expect_err("dropped");
    open.get("/").expect("an answer on the open connection");
    let counts = support::assert_balanced(&mut s);
    assert!(
        counts.dropped.get("drop_packet").is_some_and(|count| *count > 0),
        "{counts}"
    );
    sysctl(&mut s, &["-w", "net.ipv4.vs.drop_packet=0"]);
    s.request(method, family).expect("an answer with secure_tcp");
    sysctl(&mut s, &["-w", "net.ipv4.vs.drop_packet=2"]);
    sysctl(&mut s, &["-w", "net.ipv4.vs.amemthresh=1024"]);
    reads(&mut s, "= 1");
    s.request(method, family).expect("an answer");
}
