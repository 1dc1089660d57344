//! The persistence engine `sip` through a director in memory: a template for each client address and Call-ID, nothing for what has
//! no Call-ID, and calls that a NAT server begins. How: messages of clients and servers, and what comes out, by what the
//! kernel's IPVS (`ip_vs_pe_sip`) does.

#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;

use std::net::{IpAddr, SocketAddr};

use memory_director::{CLIENT_SIDE, MemoryDirector, Outcome, SERVER_SIDE};
use packets::{FAMILIES, METHODS, addresses, client_port, datagram, flow, host_unreachable, tcp};
use uvs::conn::{Connection, Kind, Tick};
use uvs::control::explain::{Question, Way};
use uvs::packet::{DropReason, Family, Offload};

const SECOND: u64 = 1_000_000_000;

fn message(call: &str) -> Vec<u8> {
    format!("INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP h\r\nCall-ID: {call}\r\nCSeq: 1 INVITE\r\n\r\n")
        .into()
}

/// A service on port 5060 with three servers, and what it takes to talk to it.
struct Scene {
    director: MemoryDirector,
    client: IpAddr,
    service: SocketAddr,
    servers: [SocketAddr; 3],
}

impl Scene {
    fn new(family: Family, options: &str, method: &str) -> Scene {
        let who = addresses(family);
        let service = SocketAddr::from((who.vip, 5060));
        let servers = ["11", "12", "13"].map(|n| {
            let net = if family == Family::V4 { "172.16.0." } else { "fd00:16::" };
            let address: IpAddr = format!("{net}{n}").parse().expect("an address");
            SocketAddr::from((address, if method == "-m" { 5070 } else { 5060 }))
        });
        let mut director = MemoryDirector::new(1024);
        director.ipvsadm(&format!("-A -u {service} -s rr --pe sip {options}"));
        for server in servers {
            director.ipvsadm(&format!("-a -u {service} -r {server} {method}"));
        }
        Scene {
            director,
            client: who.client,
            service,
            servers,
        }
    }

    fn send(&mut self, from: SocketAddr, payload: &[u8]) -> Outcome {
        let frame = datagram(from, self.service, payload);
        self.director.inject(CLIENT_SIDE, &frame, Offload::default())
    }

    /// The link address of the server that gets a message, which tells them apart with every method.
    fn call_from(&mut self, from: SocketAddr, call: &str) -> [u8; 6] {
        let out = self.send(from, &message(call));
        let [(SERVER_SIDE, frame)] = &out.sent[..] else {
            panic!("{call}: {out:?}")
        };
        *frame.first_chunk().expect("a frame")
    }

    /// From the client's port of that number.
    fn call(&mut self, number: usize, call: &str) -> [u8; 6] {
        self.call_from((self.client, client_port(number)).into(), call)
    }

    /// What a server sends to the client's port 5060.
    fn server_sends(&mut self, server: usize, payload: &[u8]) -> Outcome {
        let frame = datagram(self.servers[server], (self.client, 5060).into(), payload);
        self.director.inject(SERVER_SIDE, &frame, Offload::default())
    }

    fn entries(&self, kind: Kind) -> Vec<Connection> {
        let all = self.director.connections().into_iter();
        all.filter(|entry| entry.kind == kind).collect()
    }

    fn no_call_id(&self) -> u64 {
        self.director.counts().dropped[DropReason::NoCallId as usize]
    }

    /// Texts of the templates' Call-IDs, as `ipvsadm -Lnc --persistent-conn` shows them.
    fn calls(&self) -> Vec<String> {
        let table = self.director.connection_table();
        let texts = self.entries(Kind::Template).into_iter().map(|template| {
            let text = template.call_id.and_then(|id| table.call_id_text(id));
            String::from_utf8(text.unwrap_or_default()).expect("ASCII")
        });
        let mut texts: Vec<_> = texts.collect();
        texts.sort_unstable();
        texts
    }
}

#[test]
fn a_call_stays_with_its_server() {
    for family in FAMILIES {
        for method in METHODS {
            let mut scene = Scene::new(family, "-p 100", method);
            let first = scene.call(1, "a84b4c76@pc33");
            let second = scene.call(2, "another@pc33");
            assert_ne!(first, second, "{family:?} {method}: a new call is scheduled");
            // The same call from another port, and written otherwise.
            assert_eq!(scene.call(3, "a84b4c76@pc33"), first, "{family:?} {method}");
            let from = (scene.client, client_port(4)).into();
            let out = scene.send(from, b"BYE sip:a@b SIP/2.0\ni:a84b4c76@pc33\n\n");
            assert_eq!(out.sent[0].1[..6], first, "{family:?} {method}: compact");
            // Another call between the same two sockets belongs to the connection that is there.
            assert_eq!(scene.call(1, "third@pc33"), first);
            assert_eq!(scene.calls(), ["a84b4c76@pc33", "another@pc33"]);
            let templates = scene.entries(Kind::Template);
            assert!(templates.iter().all(|t| t.client == (scene.client, 0)), "{templates:?}");
            assert!(
                templates
                    .iter()
                    .all(|t| t.virtual_address == (scene.service.ip(), 5060))
            );
            let mut controlled: Vec<_> = templates.iter().map(|t| t.controlled).collect();
            controlled.sort_unstable();
            assert_eq!(controlled, [1, 3], "{family:?} {method}");
        }
    }
}

#[test]
fn another_client_address_is_another_call_unless_the_mask_joins_them() {
    for family in FAMILIES {
        let neighbour: IpAddr = match family {
            Family::V4 => "198.51.100.200",
            Family::V6 => "2001:db8::ffff:1",
        }
        .parse()
        .expect("an address");
        let mask = if family == Family::V4 { "255.255.255.0" } else { "64" };
        for (options, joined) in [("-p 100".to_owned(), false), (format!("-p 100 -M {mask}"), true)] {
            let mut scene = Scene::new(family, &options, "-m");
            let first = scene.call(1, "one@h");
            let same = scene.call_from((neighbour, 5060).into(), "one@h") == first;
            assert_eq!(same, joined, "{family:?} {options}");
            assert_ne!(scene.call_from((neighbour, 5061).into(), "two@h"), first);
        }
    }
}

#[test]
fn without_a_call_id_nothing_begins_and_nobody_is_told() {
    for family in FAMILIES {
        let mut scene = Scene::new(family, "-p 100", "-m");
        let from = SocketAddr::from((scene.client, client_port(1)));
        let too_long = message(&"x".repeat(256));
        let bad: [&[u8]; 5] = [
            b"",
            b"\r\n\r\n",
            b"OPTIONS sip:a@b SIP/2.0\r\nCSeq: 1 OPTIONS\r\n\r\n",
            b"OPTIONS sip:a@b SIP/2.0\r\nCall-ID: cut@off",
            &too_long,
        ];
        for (n, payload) in bad.into_iter().enumerate() {
            let out = scene.send(from, payload);
            assert_eq!((out.sent.len(), out.handed_back), (0, 0), "{family:?} {payload:?}");
            assert_eq!(scene.no_call_id(), n as u64 + 1);
        }
        assert!(scene.director.connections().is_empty());
        // Of a known connection everything goes.
        scene.call(1, "one@h");
        assert_eq!(scene.send(from, b"\r\n\r\n").sent.len(), 1, "a keep-alive");
        // No server at all is for those to hear that might have had one.
        scene
            .director
            .ipvsadm(&format!("-E -u {} -s none -p 100 --pe sip", scene.service));
        let other = SocketAddr::from((scene.client, client_port(2)));
        assert_eq!(scene.send(other, b"no call").sent.len(), 0);
        assert_eq!(scene.send(other, &message("new@h")).sent.len(), 1, "port unreachable");
    }
}

#[test]
fn an_icmp_error_and_tcp_have_no_call_id() {
    let mut scene = Scene::new(Family::V4, "-p 100", "-m");
    scene.director.sysctl("schedule_icmp", "1");
    let client = SocketAddr::from((scene.client, client_port(1)));
    let about = datagram(scene.service, client, &message("one@h"));
    let error = host_unreachable(scene.client, scene.service.ip(), &about);
    let out = scene.director.inject(CLIENT_SIDE, &error, Offload::default());
    assert_eq!((out.sent.len(), out.handed_back, scene.no_call_id()), (0, 0, 1));
    let service = scene.service;
    scene
        .director
        .ipvsadm(&format!("-A -t {service} -s rr -p 100 --pe sip"));
    scene
        .director
        .ipvsadm(&format!("-a -t {service} -r {} -m", scene.servers[0]));
    let out = scene
        .director
        .inject(CLIENT_SIDE, &tcp(client, service, "S"), Offload::default());
    assert_eq!((out.sent.len(), out.handed_back, scene.no_call_id()), (0, 0, 2));
}

/// Without -p the engine is accepted and chooses nothing.
#[test]
fn without_persistence_call_ids_do_not_count() {
    let mut scene = Scene::new(Family::V4, "", "-m");
    let from = SocketAddr::from((scene.client, client_port(1)));
    assert_eq!(scene.send(from, b"hello").sent.len(), 1);
    assert_ne!(scene.call(2, "one@h"), scene.call(3, "one@h"));
    assert!(scene.entries(Kind::Template).is_empty());
}

#[test]
fn a_template_of_a_call_lives_as_any() {
    let mut scene = Scene::new(Family::V4, "-p 400", "-m");
    let first = scene.call(1, "one@h");
    let wait = |scene: &mut Scene, seconds: u64| {
        scene.director.now_ns += seconds * SECOND;
        scene.director.sweep();
    };
    wait(&mut scene, 350);
    assert_eq!(scene.entries(Kind::Connection).len(), 0);
    assert_eq!(scene.call(1, "one@h"), first);
    let now = Tick::from_boot_ns(scene.director.now_ns);
    assert_eq!(scene.entries(Kind::Template)[0].deadline.seconds_left(now), 399);
    // A quiesced server keeps its calls, unless told otherwise; then the old template reads 65535 and still has its call.
    let server = scene.entries(Kind::Template)[0].destination;
    let rule = format!("-e -u {} -r {} -m -w 0", scene.service, SocketAddr::from(server));
    scene.director.ipvsadm(&rule);
    assert_eq!(scene.call(2, "one@h"), first);
    scene.director.sysctl("expire_quiescent_template", "1");
    assert_ne!(scene.call(3, "one@h"), first);
    assert_eq!(scene.calls(), ["one@h", "one@h"]);
    wait(&mut scene, 801);
    wait(&mut scene, 61);
    assert!(scene.director.connections().is_empty());
    assert_eq!(scene.director.load_of(server.0)[2], 0);
}

#[test]
fn one_packet_scheduling_by_call() {
    let mut scene = Scene::new(Family::V4, "-p 100 -o", "-m");
    // Two calls between the same sockets: each datagram goes by its own call.
    let (one, two) = (scene.call(1, "one@h"), scene.call(1, "two@h"));
    assert_ne!(one, two);
    for _ in 0..3 {
        assert_eq!((scene.call(1, "one@h"), scene.call(1, "two@h")), (one, two));
    }
    assert!(scene.entries(Kind::Connection).is_empty());
    // And what the servers send leaves as from the service.
    let out = scene.server_sends(0, &message("one@h"));
    assert_eq!((out.sent.len(), out.handed_back), (0, 1));
    assert!(scene.entries(Kind::Connection).is_empty());
}

#[test]
fn a_nat_server_calls_a_client() {
    for family in FAMILIES {
        for options in ["-p 100", ""] {
            let mut scene = Scene::new(family, options, "-m");
            // Which way the client is nobody knows yet, so the local stack sends it on.
            let out = scene.server_sends(1, &message("out@server"));
            assert_eq!((out.sent.len(), out.handed_back), (0, 1), "{family:?} {options}");
            let known = scene.entries(Kind::Connection);
            assert_eq!(known.len(), 1);
            assert_eq!(known[0].client, (scene.client, 5060));
            assert_eq!(known[0].virtual_address, (scene.service.ip(), 5060));
            assert_eq!(SocketAddr::from(known[0].destination), scene.servers[1]);
            // What the client answers reaches that server, and then the server's next leaves at once.
            let out = scene.send((scene.client, 5060).into(), b"SIP/2.0 200 OK\r\n\r\n");
            assert_eq!(SocketAddr::from(to(&out)), scene.servers[1]);
            let out = scene.server_sends(1, b"ACK\r\n\r\n");
            let [(CLIENT_SIDE, frame)] = &out.sent[..] else {
                panic!("{out:?}")
            };
            let left = flow(frame).flow;
            assert_eq!((left.source(), left.source_port()), (scene.service.ip(), 5060));
            // The call is known from any port of the client.
            if !options.is_empty() {
                assert_eq!(scene.calls(), ["out@server"]);
                scene.call(7, "out@server");
                let templates = scene.entries(Kind::Template);
                assert_eq!(SocketAddr::from(templates[0].destination), scene.servers[1]);
                assert_eq!(templates[0].controlled, 2);
            }
        }
    }
}

/// A client endpoint talks with the server that began last; calls that were there stay known.
#[test]
fn another_server_calls_the_same_client() {
    let mut scene = Scene::new(Family::V4, "-p 100", "-m");
    let from = SocketAddr::from((scene.client, 5060));
    let (mine, other) = ("mine@h", "other@server");
    scene.call_from(from, mine);
    let first = SocketAddr::from(scene.entries(Kind::Connection)[0].destination);
    let caller = scene.servers.iter().position(|server| *server != first).expect("three");
    let out = scene.server_sends(caller, &message(other));
    let [(CLIENT_SIDE, _)] = &out.sent[..] else {
        panic!("the client's way is known: {out:?}")
    };
    assert_eq!(scene.entries(Kind::Connection).len(), 1);
    let out = scene.send(from, b"SIP/2.0 200 OK\r\n\r\n");
    assert_eq!(SocketAddr::from(to(&out)), scene.servers[caller]);
    assert_eq!(scene.calls(), [mine, other]);
    // A call that another server takes over: its template leads there from now on.
    scene.server_sends(caller, &message(mine));
    scene.server_sends((caller + 1) % 3, &message(other));
    assert_eq!(scene.director.load_of(scene.servers[caller].ip())[..2], [0, 0]);
    let live = scene.entries(Kind::Template);
    let mut ports: Vec<_> = live.iter().map(|t| t.virtual_address.1).collect();
    ports.sort_unstable();
    assert_eq!(ports, [5060, 5060, 65_535]);
}

#[test]
fn strays_that_are_no_calls_stay_dropped() {
    let mut scene = Scene::new(Family::V4, "-p 100", "-m");
    let dropped = |scene: &Scene| scene.director.counts().dropped[DropReason::NoConnection as usize];
    let out = scene.server_sends(0, b"no call");
    assert_eq!((out.sent.len(), out.handed_back, dropped(&scene)), (0, 0, 1));
    // A server with DR has its own way to the client.
    let mut direct = Scene::new(Family::V4, "-p 100", "-g");
    let out = direct.server_sends(0, &message("one@h"));
    assert_eq!(
        (out.handed_back, direct.director.connections().len()),
        (1, 0),
        "{out:?}"
    );
    // Without the engine a stray is one.
    let service = scene.service;
    scene.director.ipvsadm(&format!("-E -u {service} -s rr -p 100"));
    let out = scene.server_sends(0, &message("one@h"));
    assert_eq!((out.sent.len(), out.handed_back, dropped(&scene)), (0, 0, 2));
}

#[test]
fn explain_knows_calls() {
    let mut scene = Scene::new(Family::V4, "-p 100", "-m");
    let ask = |scene: &Scene, protocol: &str, from: SocketAddr, to: SocketAddr, call: Option<&str>| {
        let mut question = Question::parse(protocol, &from.to_string(), &to.to_string()).expect("a question");
        question.call_id = call.map(str::to_owned);
        scene.director.explain(&question)
    };
    let (client, service) = (SocketAddr::from((scene.client, client_port(9))), scene.service);
    scene.call(1, "one@h");
    let server = SocketAddr::from(scene.entries(Kind::Connection)[0].destination);
    let known = ask(&scene, "udp", client, service, Some("one@h"));
    assert_eq!(
        (known.way, known.server.map(|s| s.server)),
        (Way::Template, Some(server))
    );
    let new = ask(&scene, "udp", client, service, Some("two@h"));
    assert_eq!((new.way, new.notes.len()), (Way::Scheduler, 0));
    let unsaid = ask(&scene, "udp", client, service, None);
    assert_eq!((unsaid.way, &unsaid.server), (Way::Scheduler, &new.server));
    assert!(unsaid.notes[0].contains("--call-id"), "{unsaid}");
    let none = ask(&scene, "udp", client, service, Some("no call"));
    assert_eq!(
        (none.way, none.drop_reason.as_deref()),
        (Way::Dropped, Some("no_call_id"))
    );
    let out = ask(&scene, "udp", server, client, None);
    assert_eq!(out.way, Way::Reply, "{out}");
    // And so it comes.
    let chosen = new.server.map(|s| s.server);
    scene.call(9, "two@h");
    let latest = scene
        .entries(Kind::Connection)
        .into_iter()
        .find(|c| c.client.1 == client.port());
    assert_eq!(latest.map(|c| SocketAddr::from(c.destination)), chosen);
}

/// Where the only frame that left goes.
fn to(out: &Outcome) -> (IpAddr, u16) {
    let [(SERVER_SIDE, frame)] = &out.sent[..] else {
        panic!("{out:?}")
    };
    let flow = flow(frame).flow;
    (flow.destination(), flow.destination_port())
}
