//! FTP through NAT in memory: control connections word by word, and the data connections that come of them.
//! How: a client and a server that keep their own sequence numbers, each seeing only what the director lets through. Goal: what
//! Linux's `ip_vs_ftp` does, with numbers that fit on both sides whatever is lost and sent again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;

use std::net::{IpAddr, SocketAddr};

use etherparse::TcpOptionElement;
use memory_director::{CLIENT_SIDE, MemoryDirector, SERVER_SIDE};
use packets::{FAMILIES, addresses, flow, ip, tcp, transport_checksum_is_right};
use uvs::conn::Tick;
use uvs::control::explain::{Question, Way};
use uvs::packet::{ChecksumOffload, DropReason, Family, Offload, Segmentation, SegmentationKind, checksum};
use uvs::table::InterfaceId;

const SECOND: u64 = 1_000_000_000;

/// What a packet says, as its receiver sees it.
#[derive(Debug, PartialEq)]
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
    sack: Option<(u32, u32)>,
    text: String,
}

fn frame(segment: &Segment) -> Vec<u8> {
    let (from, to) = (segment.from, segment.to);
    let mut builder = ip(from.ip(), to.ip())
        .tcp(from.port(), to.port(), segment.sequence, 9000)
        .ack(segment.acknowledgement);
    if let Some(edges) = segment.sack {
        let options = [TcpOptionElement::SelectiveAcknowledgement(edges, [None; 3])];
        builder = builder.options(&options).expect("it fits");
    }
    let mut bytes = Vec::new();
    builder.write(&mut bytes, segment.text.as_bytes()).expect("a vector");
    bytes
}

/// Panics when a length or checksum is wrong.
fn read(bytes: &[u8]) -> Segment {
    let parsed = flow(bytes);
    assert_eq!(bytes.len(), parsed.end as usize, "nothing behind the packet");
    assert!(transport_checksum_is_right(bytes));
    let headers = etherparse::PacketHeaders::from_ethernet_slice(bytes).expect("a packet");
    let header = headers.transport.expect("TCP").tcp().expect("TCP");
    let sack = header.options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::SelectiveAcknowledgement(edges, _)) => Some(edges),
        _ => None,
    });
    Segment {
        from: (parsed.flow.source(), parsed.flow.source_port()).into(),
        to: (parsed.flow.destination(), parsed.flow.destination_port()).into(),
        sequence: header.sequence_number,
        acknowledgement: header.acknowledgment_number,
        sack,
        text: String::from_utf8_lossy(headers.payload.slice()).into_owned(),
    }
}

/// One control connection: what client and server have sent and received.
struct Session {
    director: MemoryDirector,
    client: SocketAddr,
    vip: SocketAddr,
    server: SocketAddr,
    /// Next numbers: of the client, of the server by its own count, and of the server as the client has it.
    client_next: u32,
    server_next: u32,
    seen_next: u32,
}

impl Session {
    fn new(family: Family, options: &str) -> Session {
        let mut session = Session::unserved(family);
        let (vip, server) = (session.vip, session.server);
        session
            .director
            .ipvsadm(&format!("-A -t {vip} -s rr {options}; -a -t {vip} -r {server} -m"));
        session.open(session.client, session.vip, session.server);
        session
    }

    /// Without a service, and before the first packet.
    fn unserved(family: Family) -> Session {
        let who = addresses(family);
        Session {
            director: MemoryDirector::new(1024),
            client: (who.client, 40_000).into(),
            vip: (who.vip, 21).into(),
            server: (who.server, 21).into(),
            client_next: 5000,
            // Near the wrap-around.
            server_next: u32::MAX - 60,
            seen_next: u32::MAX - 60,
        }
    }

    /// The handshake of a connection from a client; frames go through.
    fn open(&mut self, client: SocketAddr, to: SocketAddr, arrives: SocketAddr) {
        for (side, from, to, flags, seen) in [
            (CLIENT_SIDE, client, to, "S", (client, arrives)),
            (SERVER_SIDE, arrives, client, "SA", (to, client)),
            (CLIENT_SIDE, client, to, "A", (client, arrives)),
        ] {
            let out = self.through(side, &tcp(from, to, flags));
            assert_eq!((out.from, out.to), seen, "{flags}");
        }
    }

    /// What comes out of a frame, which must be one.
    fn through(&mut self, side: InterfaceId, bytes: &[u8]) -> Segment {
        let out = self.director.inject(side, bytes, Offload::default());
        assert_eq!(
            (out.sent.len(), out.handed_back),
            (1, 0),
            "{:?}",
            self.director.counts()
        );
        read(&out.sent[0].1)
    }

    fn client_segment(&self, text: &str) -> Segment {
        Segment {
            from: self.client,
            to: self.vip,
            sequence: self.client_next,
            acknowledgement: self.seen_next,
            sack: None,
            text: text.into(),
        }
    }

    fn server_segment(&self, text: &str) -> Segment {
        Segment {
            from: self.server,
            to: self.client,
            sequence: self.server_next,
            acknowledgement: self.client_next,
            sack: None,
            text: text.into(),
        }
    }

    /// The client sends a line; it arrives unchanged, and acknowledges just what the server has sent.
    fn client_says(&mut self, text: &str) {
        let out = self.through(CLIENT_SIDE, &frame(&self.client_segment(text)));
        let expected = Segment {
            to: self.server,
            acknowledgement: self.server_next,
            ..self.client_segment(text)
        };
        assert_eq!(out, expected);
        self.client_next = self.client_next.wrapping_add(text.len() as u32);
    }

    /// The server sends a line; it comes where the client expects it. Returns what the client reads.
    fn server_says(&mut self, text: &str) -> String {
        let out = self.through(SERVER_SIDE, &frame(&self.server_segment(text)));
        assert_eq!((out.from, out.to), (self.vip, self.client));
        assert_eq!((out.sequence, out.acknowledgement), (self.seen_next, self.client_next));
        self.server_next = self.server_next.wrapping_add(text.len() as u32);
        self.seen_next = self.seen_next.wrapping_add(out.text.len() as u32);
        out.text
    }

    /// The entries but the control connection: `119 LISTEN client virtual destination` (seconds left, rounded down).
    fn listed(&self) -> Vec<String> {
        let now = Tick::from_boot_ns(self.director.now_ns);
        let all = self.director.connections();
        let others = all.iter().filter(|entry| !entry.helped);
        others
            .map(|entry| {
                let left = entry.deadline.seconds_left(now);
                let [client, service, server] =
                    [entry.client, entry.virtual_address, entry.destination].map(SocketAddr::from);
                format!("{left} {} {client} {service} {server}", entry.state.name())
            })
            .collect()
    }
}

fn at(address: SocketAddr, port: u16) -> SocketAddr {
    (address.ip(), port).into()
}

#[test]
fn passive() {
    let mut s = Session::new(Family::V4, "");
    s.server_says("220 ready\r\n");
    for port in [50000u16, 2049, 65535] {
        s.client_says("PASV\r\n");
        let [high, low] = port.to_be_bytes();
        let said = s.server_says(&format!("227 Entering Passive Mode (172,16,0,11,{high},{low}).\r\n"));
        assert_eq!(
            said,
            format!("227 Entering Passive Mode (10,200,1,1,{high},{low}).\r\n")
        );
        let (vip, server) = (at(s.vip, port), at(s.server, port));
        let expected = format!("119 LISTEN {} {vip} {server}", at(s.client, 0));
        assert!(s.listed().contains(&expected), "{:?}", s.listed());
        // It is of the same address, from whatever port.
        let client = at(s.client, port - 1000);
        let question = Question::parse("tcp", &client.to_string(), &vip.to_string()).unwrap();
        let answer = s.director.explain(&question);
        assert_eq!((answer.way, answer.server.unwrap().server), (Way::Connection, server));
        let stranger = tcp((addresses(Family::V4).router, 1).into(), vip, "S");
        assert_eq!(
            s.director
                .inject(CLIENT_SIDE, &stranger, Offload::default())
                .handed_back,
            1
        );
        s.open(client, vip, server);
        let expected = format!("899 ESTABLISHED {client} {vip} {server}");
        assert!(s.listed().contains(&expected), "{:?}", s.listed());
        // Only one.
        let again = tcp(at(s.client, 1), vip, "S");
        assert_eq!(
            s.director.inject(CLIENT_SIDE, &again, Offload::default()).handed_back,
            1
        );
        s.server_says("150 here it comes\r\n");
        s.client_says("NOOP\r\n");
        s.server_says("226 done\r\n");
    }
    assert_eq!(s.listed().len(), 3);
    assert_eq!(s.director.load_of(s.server.ip()), [4, 0, 0]);
    assert_eq!(
        s.director.controlled(),
        [3, 3],
        "data connections by their control connection"
    );
}

#[test]
fn extended_passive() {
    for family in FAMILIES {
        let mut s = Session::new(family, "");
        s.client_says("EPSV\r\n");
        let line = "229 Entering Extended Passive Mode (|||50000|)\r\n";
        assert_eq!(s.server_says(line), line);
        s.open(at(s.client, 41000), at(s.vip, 50000), at(s.server, 50000));
        s.client_says("QUIT\r\n");
    }
}

#[test]
fn active() {
    for family in FAMILIES {
        let mut s = Session::new(family, "");
        let port = |port: u16| match s.client.ip() {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                format!("PORT {a},{b},{c},{d},{},{}\r\n", port >> 8, port & 255)
            }
            IpAddr::V6(v6) => format!("EPRT |2|{v6}|{port}|\r\n"),
        };
        let commands = [port(51213), port(51214)];
        for (n, command) in commands.iter().enumerate() {
            s.client_says(command);
            s.server_says("200 fine\r\n");
            let client = at(s.client, 51213 + n as u16);
            let expected = format!("119 LISTEN {client} {} {}", at(s.vip, 20), at(s.server, 20));
            assert!(s.listed().contains(&expected), "{:?}", s.listed());
            // The server opens.
            for (side, from, to, flags, seen) in [
                (SERVER_SIDE, at(s.server, 20), client, "S", (at(s.vip, 20), client)),
                (CLIENT_SIDE, client, at(s.vip, 20), "SA", (client, at(s.server, 20))),
                (SERVER_SIDE, at(s.server, 20), client, "A", (at(s.vip, 20), client)),
            ] {
                let out = s.through(side, &tcp(from, to, flags));
                assert_eq!((out.from, out.to), seen, "{flags}");
            }
        }
        // To a port that was not announced, and from another: the first must not leave with its address.
        let stray = |from, to| tcp(at(s.server, from), at(s.client, to), "S");
        let (unannounced, own_business) = (stray(20, 999), stray(3333, 999));
        let out = s.director.inject(SERVER_SIDE, &unannounced, Offload::default());
        assert_eq!((out.sent.len(), out.handed_back), (0, 0));
        assert_eq!(s.director.counts().dropped[DropReason::NoConnection as usize], 1);
        let out = s.director.inject(SERVER_SIDE, &own_business, Offload::default());
        assert_eq!((out.sent.len(), out.handed_back), (0, 1));
    }
}

/// A client can ask for a data connection to somebody else, as servers between which it has files sent.
#[test]
fn active_to_another_host() {
    let mut s = Session::new(Family::V4, "");
    s.client_says("PORT 203,0,113,9,200,13\r\n");
    let expected = format!("119 LISTEN 203.0.113.9:51213 {} {}", at(s.vip, 20), at(s.server, 20));
    assert_eq!(s.listed(), [expected]);
    // How that is reached is the kernel's to know.
    let syn = tcp(at(s.server, 20), "203.0.113.9:51213".parse().unwrap(), "S");
    assert_eq!(s.director.inject(SERVER_SIDE, &syn, Offload::default()).handed_back, 1);
}

/// Sent again, acknowledged selectively, and late: numbers fit.
#[test]
fn lost_and_sent_again() {
    let mut s = Session::new(Family::V4, "");
    s.client_says("PASV\r\n");
    let reply = s.server_segment("227 ok (172,16,0,11,195,80)\r\n");
    let first = s.through(SERVER_SIDE, &frame(&reply));
    let again = s.through(SERVER_SIDE, &frame(&reply));
    assert_eq!(first, again);
    assert_eq!(first.text, "227 ok (10,200,1,1,195,80)\r\n");
    assert_eq!(s.listed().len(), 1);
    // What stood before the reply is acknowledged late.
    let late = s.through(CLIENT_SIDE, &frame(&s.client_segment("")));
    assert_eq!(late.acknowledgement, s.server_next);
    // The next line arrives before the reply does: SACK.
    let (start, seen_start) = (s.server_next, s.seen_next);
    s.server_next = s.server_next.wrapping_add(reply.text.len() as u32);
    s.seen_next = s.seen_next.wrapping_add(first.text.len() as u32);
    s.server_says("200 more\r\n");
    let block = (seen_start.wrapping_add(first.text.len() as u32), s.seen_next);
    let sack = Segment {
        acknowledgement: seen_start,
        sack: Some(block),
        ..s.client_segment("")
    };
    let out = s.through(CLIENT_SIDE, &frame(&sack));
    assert_eq!(out.acknowledgement, start);
    assert_eq!(
        out.sack,
        Some((start.wrapping_add(reply.text.len() as u32), s.server_next))
    );
    s.client_says("NOOP\r\n");
}

/// A reply at the begin of a super-frame whose checksum is left to a card: the card cuts and finishes what is right.
#[test]
fn in_a_super_frame() {
    let mut s = Session::new(Family::V4, "");
    s.client_says("PASV\r\n");
    let more = "x".repeat(1500);
    let mut bytes = frame(&s.server_segment(&format!("227 ok (172,16,0,11,195,80)\r\n{more}")));
    let unfinished = |bytes: &[u8]| {
        let parsed = flow(bytes);
        checksum::fold(checksum::pseudo_header(&parsed.flow, parsed.end - 34)).to_be_bytes()
    };
    let partial = unfinished(&bytes);
    bytes[50..52].copy_from_slice(&partial);
    let offload = Offload {
        checksum: ChecksumOffload::Unfinished { start: 34, offset: 16 },
        segmentation: Some(Segmentation {
            kind: SegmentationKind::TcpV4,
            size: 700,
            header_len: 54,
        }),
    };
    let out = s.director.inject(SERVER_SIDE, &bytes, offload);
    assert_eq!(out.sent.len(), 1, "{:?}", s.director.counts());
    let left = &out.sent[0].1;
    assert_eq!(
        String::from_utf8_lossy(&left[54..]),
        format!("227 ok (10,200,1,1,195,80)\r\n{more}")
    );
    assert_eq!(left[50..52], unfinished(left));
    assert_eq!(flow(left).end as usize, left.len());
}

#[test]
fn what_is_no_reply_stays() {
    for (command, reply) in [
        ("NOOP\r\n", "227 Entering Passive Mode (172,16,0,11,195,80).\r\n"),
        ("PASV\r\n", "227 Entering Passive Mode (203,0,113,9,195,80).\r\n"),
        ("PASV\r\n", "227 Entering Passive Mode (172,16,0,11,195"),
        ("PASV\r\n", "500 (172,16,0,11,195,80)\r\n"),
        ("EPSV\r\n", "227 Entering Passive Mode (172,16,0,11,195,80).\r\n"),
        ("PASV\r\n", "229 Entering Extended Passive Mode (|||50000|)\r\n"),
        ("XPASV\r\n", "227 Entering Passive Mode (172,16,0,11,195,80).\r\n"),
    ] {
        let mut s = Session::new(Family::V4, "");
        s.client_says(command);
        assert_eq!(s.server_says(reply), reply, "{command}");
        assert!(s.listed().is_empty(), "{command} {reply}");
    }
    // A server that knows the virtual address.
    let mut s = Session::new(Family::V4, "");
    s.client_says("PASV\r\n");
    let reply = "227 Entering Passive Mode (10,200,1,1,195,80).\r\n";
    assert_eq!(s.server_says(reply), reply);
    s.open(at(s.client, 41000), at(s.vip, 50000), at(s.server, 50000));
}

/// What cannot be followed is not passed on.
#[test]
fn damage_is_dropped() {
    let mut s = Session::new(Family::V4, "");
    let mut bytes = frame(&s.client_segment("PASV\r\n"));
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    let out = s.director.inject(CLIENT_SIDE, &bytes, Offload::default());
    assert_eq!((out.sent.len(), out.handed_back), (0, 0));
    assert_eq!(s.director.counts().dropped[DropReason::FtpControl as usize], 1);
    s.client_says("PASV\r\n");
}

/// Another port is no FTP, and DR and tunnels have no helper: the reply goes past the director.
#[test]
fn not_helped() {
    let who = addresses(Family::V4);
    for (port, method) in [(2121, "-m"), (21, "-g"), (21, "-i")] {
        let mut director = MemoryDirector::new(1024);
        let (vip, server) = (SocketAddr::new(who.vip, port), SocketAddr::new(who.server, port));
        director.ipvsadm(&format!("-A -t {vip} -s rr; -a -t {vip} -r {server} {method}"));
        director.inject(
            CLIENT_SIDE,
            &tcp((who.client, 40_000).into(), vip, "S"),
            Offload::default(),
        );
        let all = director.connections();
        assert_eq!(
            all.iter().map(|entry| entry.helped).collect::<Vec<_>>(),
            [false],
            "{port} {method}"
        );
    }
}

/// By DR and tunnels a persistent service takes data connections along by its template, of which it has one for all ports
/// (`ip_vs_sched_persist`).
#[test]
fn persistent_without_a_helper() {
    for family in FAMILIES {
        for method in ["-g", "-i"] {
            let who = addresses(family);
            let mut director = MemoryDirector::new(1024);
            let vip = SocketAddr::new(who.vip, 21);
            director.ipvsadm(&format!("-A -t {vip} -s rr -p 300"));
            let servers = ["11", "12"].map(|end| match family {
                Family::V4 => format!("172.16.0.{end}:21"),
                Family::V6 => format!("[fd00:16::{end}]:21"),
            });
            for server in &servers {
                director.ipvsadm(&format!("-a -t {vip} -r {server} {method}"));
            }
            let mut send = |client_port: u16, port: u16, flags: &str| {
                let segment = tcp((who.client, client_port).into(), (who.vip, port).into(), flags);
                let out = director.inject(CLIENT_SIDE, &segment, Offload::default());
                (out.sent.len(), out.handed_back)
            };
            assert_eq!(send(40_000, 21, "S"), (1, 0));
            assert_eq!(send(40_001, 30_000, "S"), (1, 0), "passive");
            assert_eq!(send(40_002, 20, "SA"), (1, 0), "active: the answer to the server's SYN");
            assert_eq!(send(40_003, 22, "S"), (0, 1), "another service of the director's own");
            let all = director.connections();
            let servers: std::collections::HashSet<IpAddr> = all.iter().map(|entry| entry.destination.0).collect();
            assert_eq!((all.len(), servers.len()), (4, 1), "{all:?}");
            let template = all.iter().find(|entry| entry.client.1 == 0).expect("a template");
            assert_eq!((template.virtual_address.1, template.destination.1), (0, 0));
            assert_eq!(template.controlled, 3);
            assert_eq!(director.controlled(), [3, 3]);
            let passive = all.iter().find(|entry| entry.client.1 == 40_001).expect("it");
            assert_eq!(passive.destination.1, 30_000);
        }
    }
}

/// A transfer may take longer than the control connection lasts without a word.
#[test]
fn data_connections_keep_their_control_connection() {
    let mut s = Session::new(Family::V4, "-p 50");
    s.client_says("EPSV\r\n");
    s.server_says("229 x (|||50000|)\r\n");
    let (client, vip, server) = (at(s.client, 41000), at(s.vip, 50000), at(s.server, 50000));
    s.open(client, vip, server);
    // The control connection by the template, the data connection by that.
    assert_eq!(s.director.controlled(), [2, 2]);
    for _ in 0..20 {
        s.director.now_ns += 100 * SECOND;
        s.director.sweep();
        s.through(SERVER_SIDE, &tcp(server, client, "A"));
        s.director.sweep();
    }
    s.client_says("NOOP\r\n");
    assert_eq!(s.director.connections().len(), 3, "with its template");
    s.through(CLIENT_SIDE, &tcp(client, vip, "R"));
    s.director.now_ns += 11 * SECOND;
    s.director.sweep();
    assert_eq!(s.director.connections().len(), 2);
    s.director.now_ns += 901 * SECOND;
    s.director.sweep();
    s.director.now_ns += 61 * SECOND;
    s.director.sweep();
    assert!(s.director.connections().is_empty());
    assert_eq!(s.director.load_of(s.server.ip()), [0, 0, 0]);
}

/// A service of a firewall mark is FTP's where it is asked for port 21.
#[test]
fn by_a_firewall_mark() {
    for family in FAMILIES {
        let mut s = Session::unserved(family);
        let ipv6 = if family == Family::V6 { "-6" } else { "" };
        let (vip, server) = (s.vip, s.server);
        let rule = format!(
            "[[mark]]\nmark = 7\nprotocol = \"tcp\"\ndestination = \"{}\"\n",
            vip.ip()
        );
        s.director.marks(&format!("{rule}destination_port = \"21\"\n"));
        s.director
            .ipvsadm(&format!("-A -f 7 {ipv6} -s rr; -a -f 7 {ipv6} -r {server} -m"));
        s.open(s.client, vip, server);
        s.client_says("EPSV\r\n");
        s.server_says("229 x (|||50000|)\r\n");
        s.open(at(s.client, 41000), at(vip, 50000), at(server, 50000));
        let stranger = tcp(at(s.client, 41001), at(vip, 50001), "S");
        assert_eq!(
            s.director
                .inject(CLIENT_SIDE, &stranger, Offload::default())
                .handed_back,
            1
        );
    }
}

/// What was announced and never used ends, and is announced again to somebody else's server.
#[test]
fn announced_in_vain() {
    let mut s = Session::new(Family::V4, "");
    s.client_says("EPSV\r\n");
    s.server_says("229 x (|||50000|)\r\n");
    s.director.now_ns += 100 * SECOND;
    s.client_says("EPSV\r\n");
    s.server_says("229 x (|||50000|)\r\n");
    let expected = |server: &str, s: &Session| format!("119 LISTEN {} {} {server}", at(s.client, 0), at(s.vip, 50000));
    assert_eq!(s.listed(), [expected("172.16.0.11:50000", &s)]);
    // Another session of the same client, at another server that has the same port free.
    let vip = s.vip;
    s.director.ipvsadm(&format!("-a -t {vip} -r 172.16.0.12:21 -m"));
    s.director.ipvsadm(&format!("-e -t {vip} -r 172.16.0.11:21 -m -w 0"));
    (s.client, s.server) = (at(s.client, 40_007), "172.16.0.12:21".parse().unwrap());
    (s.client_next, s.server_next, s.seen_next) = (5000, 7000, 7000);
    s.open(s.client, s.vip, s.server);
    s.client_says("EPSV\r\n");
    s.server_says("229 x (|||50000|)\r\n");
    assert_eq!(s.listed(), [expected("172.16.0.12:50000", &s)]);
    assert_eq!(s.director.load_of("172.16.0.11".parse().unwrap()), [1, 0, 0]);
    s.director.now_ns += 121 * SECOND;
    s.director.sweep();
    assert!(s.listed().is_empty());
    assert_eq!(s.director.load_of(s.server.ip()), [1, 0, 0]);
}

/// The server of an announced connection is removed: as of any other connection.
#[test]
fn removed_meanwhile() {
    let mut s = Session::new(Family::V4, "");
    s.client_says("EPSV\r\n");
    s.server_says("229 x (|||50000|)\r\n");
    let vip = s.vip;
    s.director.ipvsadm(&format!("-d -t {vip} -r {}", s.server));
    let syn = tcp(at(s.client, 41000), at(s.vip, 50000), "S");
    let out = s.director.inject(CLIENT_SIDE, &syn, Offload::default());
    assert_eq!((out.sent.len(), out.handed_back), (0, 0));
    assert_eq!(s.director.counts().dropped[DropReason::DestinationGone as usize], 1);
    s.director.ipvsadm(&format!("-a -t {vip} -r {} -m", s.server));
    s.open(at(s.client, 41000), at(s.vip, 50000), at(s.server, 50000));
}

/// Frames for data connections get past the filter, in both directions.
#[test]
fn the_filter_lets_data_connections_through() {
    use uvs::io::filter::Rule;
    use uvs::service::TransportProtocol::Tcp;
    for family in FAMILIES {
        let s = Session::new(family, "");
        let rules = s.director.filter_rules();
        for port in [0, 21] {
            let (vip, server) = (s.vip.ip(), s.server.ip());
            let service = Rule::Service {
                protocol: Tcp,
                address: vip,
                port,
            };
            let replies = Rule::NatDestination {
                protocol: Tcp,
                address: server,
                port,
            };
            assert!(rules.contains(&service) && rules.contains(&replies), "{rules:?}");
        }
    }
}
