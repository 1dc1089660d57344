//! SCTP through the whole director in memory: associations from INIT to their end, by each method and family.
//! How: frames made by hand go in, and what comes out is read: its bytes, its CRC, the entries as `ipvsadm -Lnc` lists them, and
//! ActiveConn and InActConn. Goal: what Linux's `ip_vs_proto_sctp` does.

#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/sctp_chunks.rs"]
mod sctp_chunks;

use std::net::{IpAddr, SocketAddr};

use etherparse::IpNumber;
use memory_director::{CLIENT_SIDE, MemoryDirector, Outcome, SERVER_SIDE};
use packets::{FAMILIES, flow, host_unreachable, ip, unwrap_tunnel};
use sctp_chunks::{COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE};
use uvs::conn::{Connection, Tick};
use uvs::packet::parse::{Packet, parse};
use uvs::packet::{DropReason, Family, Offload, Protocol, checksum};

const SECOND: u64 = 1_000_000_000;

const ABORT: &[u8] = &[6, 0, 0, 4];

/// Client, VIP, and the real servers.
fn addresses(family: Family) -> (IpAddr, IpAddr, [IpAddr; 2]) {
    let texts = match family {
        Family::V4 => ["198.51.100.7", "10.200.1.1", "172.16.0.11", "172.16.0.12"],
        Family::V6 => ["2001:db8::7", "fd00:200::1", "fd00:16::11", "fd00:16::12"],
    };
    let [client, vip, first, second] = texts.map(|text| text.parse().expect("an address"));
    (client, vip, [first, second])
}

/// A packet in a director's life: who sends it to whom.
struct World {
    director: MemoryDirector,
    client: SocketAddr,
    service: SocketAddr,
    servers: [SocketAddr; 2],
}

impl World {
    /// A service at port 3868 with one destination; by NAT that has another port.
    fn new(family: Family, method: &str) -> World {
        let (client, vip, servers) = addresses(family);
        let port = if method == "-m" { 9900 } else { 3868 };
        let mut world = World {
            director: MemoryDirector::new(1024),
            client: SocketAddr::new(client, 20001),
            service: SocketAddr::new(vip, 3868),
            servers: servers.map(|server| SocketAddr::new(server, port)),
        };
        world.ipvsadm(&format!("-A SERVICE -s rr; -a SERVICE -r SERVER0 {method}"));
        world
    }

    /// Lines of `ipvsadm` with SERVICE, SERVER0 and SERVER1 for the addresses.
    fn ipvsadm(&mut self, lines: &str) {
        let lines = lines
            .replace("SERVICE", &format!("--sctp-service {}", self.service))
            .replace("SERVER0", &self.servers[0].to_string())
            .replace("SERVER1", &self.servers[1].to_string());
        self.director.ipvsadm(&lines);
    }

    fn client_sends(&mut self, chunks: &[&[u8]]) -> Outcome {
        let frame = self.clients_frame(chunks);
        self.director.inject(CLIENT_SIDE, &frame, Offload::default())
    }

    fn server_sends(&mut self, chunks: &[&[u8]]) -> Outcome {
        let frame = sctp(self.servers[0], self.client, chunks);
        self.director.inject(SERVER_SIDE, &frame, Offload::default())
    }

    fn clients_frame(&self, chunks: &[&[u8]]) -> Vec<u8> {
        sctp(self.client, self.service, chunks)
    }

    /// The entries, in the words of `ipvsadm -Lnc`.
    fn listed(&self) -> Vec<String> {
        let now = Tick::from_boot_ns(self.director.now_ns);
        let line = |entry: &Connection| {
            assert_eq!(entry.protocol, Protocol::SCTP);
            let left = entry.deadline.seconds_left(now);
            let [client, service, server] =
                [entry.client, entry.virtual_address, entry.destination].map(SocketAddr::from);
            let (minutes, seconds, state) = (left / 60, left % 60, entry.state.name());
            format!("{minutes:02}:{seconds:02} {state} {client} {service} {server}")
        };
        self.director.connections().iter().map(line).collect()
    }

    /// State and time of the only entry, with ActiveConn and InActConn: `01:00 C-SENT 0/1`.
    fn state(&self) -> String {
        let lines = self.listed();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let words: Vec<_> = lines[0].split_whitespace().collect();
        let [active, inactive, _] = self.director.load_of(self.servers[0].ip());
        format!("{} {} {active}/{inactive}", words[0], words[1])
    }
}

/// An SCTP packet with a right checksum.
fn sctp(from: SocketAddr, to: SocketAddr, chunks: &[&[u8]]) -> Vec<u8> {
    let mut packet = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    packet.extend([0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0]);
    packet.extend(chunks.concat());
    let crc = checksum::sctp(&packet);
    packet[8..12].copy_from_slice(&crc);
    let mut bytes = Vec::new();
    ip(from.ip(), to.ip())
        .write(&mut bytes, IpNumber::SCTP, &packet)
        .expect("a vector takes everything");
    bytes
}

fn crc_is_right(bytes: &[u8]) -> bool {
    let parsed = flow(bytes);
    let packet = &bytes[parsed.l4 as usize..parsed.end as usize];
    packet[8..12] == checksum::sctp(packet)
}

/// Source and destination.
fn ends(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let flow = flow(bytes).flow;
    let (from, to) = (flow.source(), flow.destination());
    (
        SocketAddr::new(from, flow.source_port()),
        SocketAddr::new(to, flow.destination_port()),
    )
}

/// From the verification tag on, without the checksum.
fn rest(bytes: &[u8]) -> Vec<u8> {
    let l4 = flow(bytes).l4 as usize;
    [&bytes[l4 + 4..l4 + 8], &bytes[l4 + 12..]].concat()
}

/// The one frame that came out, which left there.
fn only(outcome: Outcome, side: uvs::table::InterfaceId) -> Vec<u8> {
    assert_eq!(outcome.sent.len(), 1, "{outcome:?}");
    let (left, bytes) = outcome.sent.into_iter().next().expect("one");
    assert_eq!(left, side);
    bytes
}

#[test]
fn nat_from_both_sides_through_every_state() {
    for family in FAMILIES {
        let mut world = World::new(family, "-m");
        // Who sends what, and what is listed then.
        for (who, chunks, expected) in [
            ("client", &[INIT][..], "00:03 INIT1 0/1"),
            ("client", &[INIT], "01:00 INIT 0/1"),
            ("server", &[INIT_ACK], "01:00 C-SENT 0/1"),
            ("client", &[COOKIE_ECHO, DATA], "01:00 C-REPLIED 0/1"),
            ("server", &[COOKIE_ACK, DATA], "14:59 ESTABLISHED 1/0"),
            ("client", &[DATA], "14:59 ESTABLISHED 1/0"),
            ("server", &[DATA], "14:59 ESTABLISHED 1/0"),
            ("client", &[SHUTDOWN], "01:00 S-RECEIVED 0/1"),
            ("server", &[SHUTDOWN_ACK], "01:00 S-ACK-SENT 0/1"),
            ("client", &[SHUTDOWN_COMPLETE], "01:00 CLOSED 0/1"),
            // Again from its begin, ended by the server.
            ("client", &[INIT], "00:03 INIT1 0/1"),
            ("server", &[INIT_ACK], "01:00 C-SENT 0/1"),
            ("client", &[COOKIE_ECHO], "01:00 C-REPLIED 0/1"),
            ("server", &[COOKIE_ACK], "14:59 ESTABLISHED 1/0"),
            ("server", &[SHUTDOWN], "01:00 S-SENT 0/1"),
            ("client", &[SHUTDOWN_ACK], "01:00 CLOSED 0/1"),
            ("server", &[SHUTDOWN_COMPLETE], "01:00 CLOSED 0/1"),
            // Again, refused.
            ("client", &[INIT], "00:03 INIT1 0/1"),
            ("server", &[ABORT], "00:03 REJECTED 0/1"),
            ("client", &[INIT], "01:00 INIT 0/1"),
            ("server", &[INIT_ACK], "01:00 C-SENT 0/1"),
            ("client", &[COOKIE_ECHO, ABORT], "01:00 CLOSED 0/1"),
        ] {
            let (out, from, to) = if who == "client" {
                let out = only(world.client_sends(chunks), SERVER_SIDE);
                (out, world.client, world.servers[0])
            } else {
                let out = only(world.server_sends(chunks), CLIENT_SIDE);
                (out, world.service, world.client)
            };
            let step = format!("{family:?} {who} {chunks:?}");
            assert_eq!(world.state(), expected, "{step}");
            assert_eq!((ends(&out), flow(&out).ttl), ((from, to), 63), "{step}");
            assert!(crc_is_right(&out), "{step}");
            assert_eq!(rest(&out)[4..], chunks.concat(), "{step}");
        }
    }
}

#[test]
fn one_sided_methods_leave_the_packet_alone() {
    for family in FAMILIES {
        for method in ["-g", "-i"] {
            let mut world = World::new(family, method);
            for (chunks, expected) in [
                (&[INIT][..], "00:03 INIT1 0/1"),
                (&[COOKIE_ECHO, DATA], "14:59 ESTABLISHED 1/0"),
                (&[DATA], "14:59 ESTABLISHED 1/0"),
                (&[SHUTDOWN], "01:00 S-RECEIVED 0/1"),
                (&[SHUTDOWN_COMPLETE], "01:00 CLOSED 0/1"),
                (&[INIT], "00:03 INIT1 0/1"),
                (&[INIT], "01:00 INIT 0/1"),
                (&[COOKIE_ECHO], "14:59 ESTABLISHED 1/0"),
                (&[SHUTDOWN_ACK], "01:00 CLOSED 0/1"),
                (&[INIT], "00:03 INIT1 0/1"),
                (&[ABORT], "01:00 CLOSED 0/1"),
            ] {
                let frame = world.clients_frame(chunks);
                let mut out = only(world.client_sends(chunks), SERVER_SIDE);
                if method == "-i" {
                    out = unwrap_tunnel(&out);
                }
                let l4 = flow(&frame).l4 as usize;
                assert_eq!(out[l4..], frame[l4..], "{family:?} {method}: checksum and all");
                assert_eq!((ends(&out), flow(&out).ttl), (ends(&frame), 63));
                assert_eq!(world.state(), expected, "{family:?} {method} {chunks:?}");
            }
        }
    }
}

#[test]
fn what_may_begin_a_connection() {
    for method in ["-g", "-m", "-i"] {
        for (sloppy, chunks, begins) in [
            ("0", &[INIT][..], true),
            ("0", &[DATA], false),
            ("0", &[COOKIE_ECHO], false),
            ("0", &[SHUTDOWN_ACK], false),
            ("0", &[ABORT], false),
            ("1", &[INIT], true),
            ("1", &[DATA], true),
            ("1", &[COOKIE_ECHO], true),
            ("1", &[ABORT], false),
        ] {
            let mut world = World::new(Family::V4, method);
            world.director.sysctl("sloppy_sctp", sloppy);
            let outcome = world.client_sends(chunks);
            let got = (outcome.sent.len(), outcome.handed_back, world.listed().len());
            // What may not is the local stack's to answer.
            let expected = if begins { (1, 0, 1) } else { (0, 1, 0) };
            assert_eq!(got, expected, "{method} sloppy_sctp={sloppy} {chunks:?}");
        }
    }
    // Sloppy: data says that it stands already.
    for (method, cookie) in [("-g", "14:59 ESTABLISHED 1/0"), ("-m", "01:00 C-REPLIED 0/1")] {
        let mut world = World::new(Family::V4, method);
        world.director.sysctl("sloppy_sctp", "1");
        world.client_sends(&[COOKIE_ECHO]);
        assert_eq!(world.state(), cookie);
        let mut world = World::new(Family::V4, method);
        world.director.sysctl("sloppy_sctp", "1");
        world.client_sends(&[DATA]);
        assert_eq!(world.state(), "14:59 ESTABLISHED 1/0");
    }
}

#[test]
fn a_packet_without_a_chunk_begins_nothing_and_changes_nothing() {
    let mut world = World::new(Family::V6, "-m");
    let outcome = world.client_sends(&[]);
    assert_eq!((outcome.sent.len(), outcome.handed_back), (0, 0));
    assert_eq!(world.director.counts().dropped[DropReason::Truncated as usize], 1);
    world.client_sends(&[INIT]);
    world.director.now_ns += 2 * SECOND;
    assert_eq!(world.state(), "00:01 INIT1 0/1");
    assert!(crc_is_right(&only(world.client_sends(&[]), SERVER_SIDE)));
    assert_eq!(world.state(), "00:03 INIT1 0/1", "it lives on, as by any packet");
}

#[test]
fn entries_expire_by_their_state() {
    let mut world = World::new(Family::V4, "-m");
    world.client_sends(&[INIT]);
    world.director.now_ns += 3 * SECOND;
    world.director.sweep();
    assert_eq!(world.listed().len(), 1);
    world.director.now_ns += SECOND;
    world.director.sweep();
    assert_eq!(
        (world.listed().len(), world.director.load_of(world.servers[0].ip())),
        (0, [0; 3])
    );
    // `--set` is of TCP and UDP.
    world.ipvsadm("--set 5 5 5");
    for chunks in [INIT, COOKIE_ECHO] {
        world.client_sends(&[chunks]);
        world.server_sends(&[if chunks == INIT { INIT_ACK } else { COOKIE_ACK }]);
    }
    assert_eq!(world.state(), "14:59 ESTABLISHED 1/0");
    world.director.now_ns += 900 * SECOND;
    world.director.sweep();
    assert_eq!(world.listed().len(), 0);
}

#[test]
fn an_init_on_a_closed_entry_chooses_anew() {
    let server_of = |outcome| ends(&only(outcome, SERVER_SIDE)).1;
    let close = |world: &mut World| {
        let first = server_of(world.client_sends(&[INIT]));
        world.client_sends(&[ABORT]);
        first
    };
    for (mode, anew) in [("1", true), ("0", false), ("2", true)] {
        let mut world = World::new(Family::V4, "-m");
        world.ipvsadm("-a SERVICE -r SERVER1 -m");
        world.director.sysctl("conn_reuse_mode", mode);
        let first = close(&mut world);
        let again = server_of(world.client_sends(&[INIT]));
        assert_eq!(again != first, anew, "conn_reuse_mode {mode}");
        assert_eq!(world.listed().len(), 1, "one entry, in place of the other");
        // Not while it is under way, and not by another chunk.
        assert_eq!(server_of(world.client_sends(&[INIT])), again);
        world.client_sends(&[ABORT]);
        assert_eq!(server_of(world.client_sends(&[DATA])), again);
    }
    // A template keeps it where it is.
    let mut world = World::new(Family::V4, "-m");
    world.ipvsadm("-E SERVICE -s rr -p 300; -a SERVICE -r SERVER1 -m");
    let first = close(&mut world);
    assert_eq!(server_of(world.client_sends(&[INIT])), first);
}

#[test]
fn persistence_has_its_template() {
    let mut world = World::new(Family::V4, "-m");
    world.ipvsadm("-E SERVICE -s rr -p 300; -a SERVICE -r SERVER1 -m");
    let first = ends(&only(world.client_sends(&[INIT]), SERVER_SIDE)).1;
    world.client.set_port(20002);
    assert_eq!(ends(&only(world.client_sends(&[INIT]), SERVER_SIDE)).1, first);
    let first = first.to_string();
    assert_eq!(
        world.listed(),
        [
            format!("04:59 NONE 198.51.100.7:0 10.200.1.1:3868 {first}"),
            format!("00:03 INIT1 198.51.100.7:20001 10.200.1.1:3868 {first}"),
            format!("00:03 INIT1 198.51.100.7:20002 10.200.1.1:3868 {first}"),
        ]
    );
    let address = first.parse::<SocketAddr>().expect("an address").ip();
    assert_eq!(world.director.load_of(address), [0, 2, 1]);
}

#[test]
fn without_a_destination_the_client_is_told() {
    for (family, kind) in [(Family::V4, [3, 3]), (Family::V6, [1, 4])] {
        let mut world = World::new(family, "-m");
        world.ipvsadm("-e SERVICE -r SERVER0 -m -w 0");
        let frame = world.clients_frame(&[INIT]);
        let answer = only(world.client_sends(&[INIT]), CLIENT_SIDE);
        let Ok(Packet::IcmpError(parsed)) = parse(&answer, Offload::default()) else {
            panic!("{family:?}: no error")
        };
        assert_eq!(
            (parsed.flow.source(), parsed.flow.destination()),
            (world.service.ip(), world.client.ip())
        );
        let icmp = &answer[parsed.l4 as usize..];
        assert_eq!((&icmp[..2], &icmp[8..]), (&kind[..], &frame[14..]), "{family:?}");
        assert_eq!(world.listed().len(), 0);
    }
}

#[test]
fn icmp_errors_are_translated_both_ways() {
    let quoted = |bytes: &[u8]| {
        let Ok(Packet::IcmpError(parsed)) = parse(bytes, Offload::default()) else {
            panic!("no error: {bytes:?}")
        };
        let quote = uvs::packet::quote::quote(bytes, &parsed).expect("a quote").flow;
        let ends = [
            (quote.source(), quote.source_port()),
            (quote.destination(), quote.destination_port()),
        ];
        (
            parsed.flow.source(),
            parsed.flow.destination(),
            ends.map(SocketAddr::from),
        )
    };
    for family in FAMILIES {
        // A long packet and the least that a router quotes: 8 bytes of SCTP.
        for len in [usize::MAX, 8] {
            let mut world = World::new(family, "-m");
            let router: IpAddr = if family == Family::V4 {
                "203.0.113.9"
            } else {
                "2001:db8:9::9"
            }
            .parse()
            .expect("an address");
            let forwarded = only(world.client_sends(&[INIT]), SERVER_SIDE);
            let reply = only(world.server_sends(&[INIT_ACK]), CLIENT_SIDE);
            let cut = |bytes: &[u8]| {
                let end = bytes.len().min((flow(bytes).l4 as usize).saturating_add(len));
                bytes[..end].to_vec()
            };
            // From behind the director: what the client sent did not arrive.
            let frame = host_unreachable(router, world.client.ip(), &cut(&forwarded));
            let out = only(
                world.director.inject(SERVER_SIDE, &frame, Offload::default()),
                CLIENT_SIDE,
            );
            let expected = (world.service.ip(), world.client.ip(), [world.client, world.service]);
            assert_eq!(quoted(&out), expected, "{family:?}");
            // From before it: what the server sent did not.
            let frame = host_unreachable(router, world.service.ip(), &cut(&reply));
            let out = only(
                world.director.inject(CLIENT_SIDE, &frame, Offload::default()),
                SERVER_SIDE,
            );
            let expected = (router, world.servers[0].ip(), [world.servers[0], world.client]);
            assert_eq!(quoted(&out), expected, "{family:?}");
            assert_eq!(world.state(), "01:00 C-SENT 0/1", "errors change no state");
        }
    }
}

#[test]
fn fragments_are_put_together_translated_and_cut_again() {
    let mut world = World::new(Family::V4, "-m");
    world.client_sends(&[INIT]);
    let long = [&[0, 3, 0x07, 0xd0][..], &[7; 1996]].concat();
    let whole = world.clients_frame(&[&long]);
    let payload = &whole[34..];
    let mut out = Vec::new();
    for (number, piece) in payload.chunks(1000).enumerate() {
        let mut frame = [&whole[..34], piece].concat();
        let more = (number + 1) * 1000 < payload.len();
        frame[16..18].copy_from_slice(&(20 + piece.len() as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&((number * 125) as u16 | if more { 0x2000 } else { 0 }).to_be_bytes());
        frame[24..26].fill(0);
        let sum = checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        let sent = world.director.inject(CLIENT_SIDE, &frame, Offload::default()).sent;
        out.extend(sent.into_iter().map(|(_, frame)| frame));
    }
    assert_eq!(out.len(), 3);
    let packet = out.iter().flat_map(|frame| &frame[34..]).copied().collect::<Vec<_>>();
    assert_eq!(packet[2..4], world.servers[0].port().to_be_bytes());
    assert_eq!(
        (&packet[8..12], packet.len()),
        (&checksum::sctp(&packet)[..], payload.len())
    );
}

#[test]
fn checksums_left_to_a_device_are_finished() {
    // A local stack that leaves the CRC to a device leaves 0 in the field.
    let unfinished = |mut frame: Vec<u8>| {
        let field = flow(&frame).l4 as usize + 8;
        frame[field..field + 4].fill(0);
        frame
    };
    for family in FAMILIES {
        for method in ["-g", "-m", "-i"] {
            let mut world = World::new(family, method);
            let frame = unfinished(world.clients_frame(&[INIT]));
            let mut out = only(
                world.director.inject(CLIENT_SIDE, &frame, Offload::default()),
                SERVER_SIDE,
            );
            if method == "-i" {
                out = unwrap_tunnel(&out);
            }
            assert!(crc_is_right(&out), "{family:?} {method}");
            if method == "-m" {
                let frame = unfinished(sctp(world.servers[0], world.client, &[INIT_ACK]));
                let out = only(
                    world.director.inject(SERVER_SIDE, &frame, Offload::default()),
                    CLIENT_SIDE,
                );
                assert!(crc_is_right(&out), "{family:?} back");
            }
        }
    }
}

#[test]
fn damage_stays_damage() {
    let mut world = World::new(Family::V4, "-m");
    let mut frame = world.clients_frame(&[INIT]);
    let last = frame.len() - 1;
    frame[last] ^= 0x10;
    let mut out = only(
        world.director.inject(CLIENT_SIDE, &frame, Offload::default()),
        SERVER_SIDE,
    );
    assert!(!crc_is_right(&out));
    out[last] ^= 0x10;
    assert!(crc_is_right(&out));
}
