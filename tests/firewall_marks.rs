//! Services of firewall marks: the classifier's rules, from frames in memory to real clients.
//!
//! How: the director in memory for each decision, and one network of namespaces a driver for what operators use marks for:
//! one service for ports 80 and 443. Goal: packets go where the kernel's IPVS sends those that netfilter marked.

#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;
mod support;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use memory_director::{CLIENT_SIDE, MemoryDirector, Outcome, SERVER_SIDE};
use support::{
    FAMILIES, Family, HttpClient, HttpServer, Layout, METHODS, Method, Plan, REQUEST_MAX, Scenario, UdpClient,
    assert_balanced, method_flag, scenario,
};
use uvs::conn::{Connection, Kind};
use uvs::io::filter::Rule;
use uvs::packet::parse::{Packet, Parsed, parse};
use uvs::packet::{Offload, Protocol};
use uvs::service::TransportProtocol;

/// One mark for ports 80 and 443 of both VIPs.
const WEB: &str = r#"
    [[mark]]
    mark = 7
    protocol = "tcp"
    destination = "10.200.1.1"
    destination_port = 80
    [[mark]]
    mark = 7
    protocol = "tcp"
    destination = "10.200.1.1"
    destination_port = 443
    [[mark]]
    mark = 7
    destination = "fd00:200::1"
    destination_port = "80-443"
"#;

const VIPS: [&str; 2] = ["10.200.1.1", "fd00:200::1"];
const CLIENTS: [&str; 2] = ["198.51.100.7", "2001:db8::7"];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn frame(protocol: Protocol, from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    let (from, to) = ((ip(from.0), from.1).into(), (ip(to.0), to.1).into());
    match protocol {
        Protocol::TCP => packets::tcp(from, to, "S"),
        _ => packets::udp(from, to),
    }
}

fn tcp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    frame(Protocol::TCP, from, to)
}

fn inject(director: &mut MemoryDirector, bytes: &[u8]) -> Outcome {
    director.inject(CLIENT_SIDE, bytes, Offload::default())
}

fn only_sent(outcome: &Outcome) -> Parsed {
    assert_eq!((outcome.sent.len(), outcome.handed_back), (1, 0), "{outcome:?}");
    match parse(&outcome.sent[0].1, Offload::default()) {
        Ok(Packet::Flow(parsed)) => parsed,
        other => panic!("{other:?}"),
    }
}

/// Where the NAT director sends it.
fn sent_to(director: &mut MemoryDirector, bytes: &[u8]) -> String {
    let flow = only_sent(&inject(director, bytes)).flow;
    SocketAddr::new(flow.destination(), flow.destination_port()).to_string()
}

fn is_handed_back(director: &mut MemoryDirector, bytes: &[u8]) -> bool {
    let outcome = inject(director, bytes);
    outcome.sent.is_empty() && outcome.handed_back == 1
}

fn entries(director: &MemoryDirector, kind: Kind) -> Vec<Connection> {
    let mut all = director.connections();
    all.retain(|connection| connection.kind == kind);
    all
}

#[test]
fn one_service_for_two_ports_keeps_a_client_on_one_server() {
    for (n, servers) in [["172.16.0.11", "172.16.0.12"], ["[fd00:16::11]", "[fd00:16::12]"]]
        .iter()
        .enumerate()
    {
        let mut director = MemoryDirector::new(1024);
        director.marks(WEB);
        let family = ["", " -6"][n];
        director.ipvsadm(&format!(
            "-A -f 7{family} -s rr -p 300; -a -f 7{family} -r {}:0 -m; -a -f 7{family} -r {}:0 -m",
            servers[0], servers[1]
        ));
        let (client, vip) = (CLIENTS[n], VIPS[n]);
        // The second server was added last, so it is the first in turn; the port asked for stays.
        assert_eq!(
            sent_to(&mut director, &tcp((client, 1000), (vip, 80))),
            format!("{}:80", servers[1])
        );
        assert_eq!(
            sent_to(&mut director, &tcp((client, 1001), (vip, 443))),
            format!("{}:443", servers[1])
        );
        let other = ["198.51.100.8", "2001:db8::8"][n];
        assert_eq!(
            sent_to(&mut director, &tcp((other, 1000), (vip, 443))),
            format!("{}:443", servers[0])
        );
        assert!(
            is_handed_back(&mut director, &tcp((client, 1002), (vip, 22))),
            "no mark, no service"
        );

        // FACTS: the template's protocol is IP, its virtual address the mark.
        let templates = entries(&director, Kind::Template);
        let marked = [ip("0.0.0.7"), ip("0:7::")][n];
        assert_eq!(templates.len(), 2);
        for template in &templates {
            assert_eq!(
                (template.protocol, template.virtual_address, template.client.1),
                (Protocol::IP, (marked, 0), 0)
            );
            assert_eq!((template.destination.1, template.fwmark), (0, 7));
        }
        let connections = entries(&director, Kind::Connection);
        assert_eq!(connections.len(), 3);
        for connection in &connections {
            assert_eq!((connection.fwmark, connection.virtual_address.0), (7, ip(vip)));
        }

        // Back from the port that the client asked for.
        let server = servers[1].trim_matches(['[', ']']);
        let reply = director.inject(SERVER_SIDE, &tcp((server, 443), (client, 1001)), Offload::default());
        let flow = only_sent(&reply).flow;
        assert_eq!((flow.source(), flow.source_port()), (ip(vip), 443));
    }
}

#[test]
fn templates_are_of_the_mark_whatever_the_protocol() {
    let mut director = MemoryDirector::new(1024);
    director.marks("[[mark]]\nmark = 5\ndestination = \"10.200.1.1\"");
    director.ipvsadm("-A -f 5 -s rr -p 60; -a -f 5 -r 172.16.0.11:0 -m; -a -f 5 -r 172.16.0.12:0 -m");
    let (client, vip) = (CLIENTS[0], VIPS[0]);
    assert_eq!(sent_to(&mut director, &tcp((client, 1), (vip, 80))), "172.16.0.12:80");
    let datagram = frame(Protocol::UDP, (client, 1), (vip, 53));
    assert_eq!(sent_to(&mut director, &datagram), "172.16.0.12:53");
    assert_eq!(entries(&director, Kind::Template).len(), 1);
}

#[test]
fn a_marks_service_comes_before_that_of_the_address() {
    let mut director = MemoryDirector::new(1024);
    director.ipvsadm("-A -t 10.200.1.1:80 -s rr; -a -t 10.200.1.1:80 -r 172.16.0.11:8080 -m");
    director.marks(WEB);
    let (client, vip) = (CLIENTS[0], VIPS[0]);
    // A mark without a service is no reason to refuse.
    assert_eq!(sent_to(&mut director, &tcp((client, 1), (vip, 80))), "172.16.0.11:8080");
    director.ipvsadm("-A -f 7 -s rr; -a -f 7 -r 172.16.0.12:0 -m");
    assert_eq!(sent_to(&mut director, &tcp((client, 2), (vip, 80))), "172.16.0.12:80");
    // Of the other family is another service.
    assert!(is_handed_back(&mut director, &tcp((CLIENTS[1], 2), (VIPS[1], 80))));
    director.marks("");
    assert_eq!(sent_to(&mut director, &tcp((client, 3), (vip, 80))), "172.16.0.11:8080");
    // What began before goes on as it began.
    assert_eq!(sent_to(&mut director, &tcp((client, 2), (vip, 80))), "172.16.0.12:80");
}

#[test]
fn a_destinations_own_port_counts_without_persistence_only() {
    for (persistence, expected) in [("", "172.16.0.11:8080"), ("-p 60", "172.16.0.11:443")] {
        let mut director = MemoryDirector::new(1024);
        director.marks(WEB);
        director.ipvsadm(&format!("-A -f 7 -s rr {persistence}; -a -f 7 -r 172.16.0.11:8080 -m"));
        assert_eq!(sent_to(&mut director, &tcp((CLIENTS[0], 1), (VIPS[0], 443))), expected);
    }
}

#[test]
fn one_packet_scheduling_of_a_mark_is_for_datagrams() {
    let mut director = MemoryDirector::new(1024);
    director.marks("[[mark]]\nmark = 9\ndestination = \"10.200.1.1\"\ndestination_port = \"50-60\"");
    director.ipvsadm("-A -f 9 -s rr -o; -a -f 9 -r 172.16.0.11:0 -m; -a -f 9 -r 172.16.0.12:0 -m");
    let datagram = frame(Protocol::UDP, (CLIENTS[0], 1), (VIPS[0], 53));
    assert_eq!(sent_to(&mut director, &datagram), "172.16.0.12:53");
    assert_eq!(sent_to(&mut director, &datagram), "172.16.0.11:53");
    assert!(director.connections().is_empty());
    let segment = tcp((CLIENTS[0], 1), (VIPS[0], 53));
    let first = sent_to(&mut director, &segment);
    assert_eq!(sent_to(&mut director, &segment), first);
    assert_eq!(director.connections().len(), 1);
}

#[test]
fn every_method_forwards_what_is_marked() {
    for (flag, protocol) in [("-g", 6u8), ("-i", 4)] {
        let mut director = MemoryDirector::new(1024);
        director.marks(WEB);
        director.ipvsadm(&format!("-A -f 7 -s rr; -a -f 7 -r 172.16.0.11 {flag}"));
        let outcome = inject(&mut director, &tcp((CLIENTS[0], 1), (VIPS[0], 443)));
        assert_eq!(outcome.sent.len(), 1, "{flag}");
        let (interface, bytes) = &outcome.sent[0];
        assert_eq!(
            (*interface, bytes[5], bytes[23]),
            (SERVER_SIDE, 0xa1, protocol),
            "{flag}"
        );
    }
}

/// An ESP packet of this length behind the IP header.
fn esp(from: &str, to: &str, len: usize) -> Vec<u8> {
    let mut bytes = frame(Protocol::UDP, (from, 1), (to, 1));
    let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
    if bytes[14] >> 4 == 4 {
        bytes.truncate(34);
        bytes[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
        bytes[23] = 50;
        bytes[24..26].fill(0);
        let sum = uvs::packet::checksum::of(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        bytes.truncate(54);
        bytes[18..20].copy_from_slice(&(len as u16).to_be_bytes());
        bytes[20] = 50;
    }
    bytes.extend(payload);
    bytes
}

#[test]
fn esp_follows_its_key_exchange() {
    for (n, servers) in [["172.16.0.11", "172.16.0.12"], ["[fd00:16::11]", "[fd00:16::12]"]]
        .iter()
        .enumerate()
    {
        let (client, vip, family) = (CLIENTS[n], VIPS[n], ["", " -6"][n]);
        for flag in ["-m", "-g", "-i"] {
            let mut director = MemoryDirector::new(1024);
            director.marks(&format!(
                "[[mark]]\nmark = 4\nprotocol = \"udp\"\ndestination = \"{vip}\"\ndestination_port = 500\n\
                 [[mark]]\nmark = 4\nprotocol = \"udp\"\ndestination = \"{vip}\"\ndestination_port = 4500"
            ));
            director.ipvsadm(&format!(
                "-A -f 4{family} -s rr -p 60; -a -f 4{family} -r {}:0 {flag}; -a -f 4{family} -r {}:0 {flag}",
                servers[0], servers[1]
            ));
            let packet = esp(client, vip, 99);
            assert!(
                is_handed_back(&mut director, &packet),
                "no exchange yet: the director's own"
            );
            let exchange = frame(Protocol::UDP, (client, 500), (vip, 500));
            assert_eq!(inject(&mut director, &exchange).sent.len(), 1);
            let outcome = inject(&mut director, &packet);
            assert_eq!(
                (outcome.sent.len(), director.connections().len()),
                (1, 2),
                "{flag} {vip}"
            );
            let (interface, sent) = &outcome.sent[0];
            // The second server was added last, so it is the first in turn.
            assert_eq!((*interface, sent[5]), (SERVER_SIDE, 0xa2), "{flag} {vip}");
            assert_eq!(
                sent[sent.len() - 99..],
                packet[packet.len() - 99..],
                "{flag} {vip}: untouched"
            );
            if flag != "-m" {
                continue;
            }
            let server = servers[1].trim_matches(['[', ']']);
            assert!(matches!(
                parse(sent, Offload::default()),
                Ok(Packet::Secured(parsed)) if parsed.flow.destination() == ip(server) && parsed.ttl == 63
            ));
            let back = director.inject(SERVER_SIDE, &esp(server, client, 50), Offload::default());
            let (interface, sent) = &back.sent[0];
            assert_eq!(*interface, CLIENT_SIDE);
            assert!(matches!(
                parse(sent, Offload::default()),
                Ok(Packet::Secured(parsed)) if parsed.flow.source() == ip(vip)
            ));
            // Its server's ESP to somebody else does not leave with the private address.
            let stray = ["198.51.100.99", "2001:db8::99"][n];
            let stray = director.inject(SERVER_SIDE, &esp(server, stray, 50), Offload::default());
            assert!(stray.sent.is_empty() && stray.handed_back == 0);
        }
    }
}

fn service(protocol: TransportProtocol, address: &str, port: u16) -> Rule {
    Rule::Service {
        protocol,
        address: ip(address),
        port,
    }
}

#[test]
fn the_filter_lets_through_what_a_mark_can_match() {
    use TransportProtocol::{Sctp, Tcp, Udp};
    let services = |director: &MemoryDirector| -> HashSet<Rule> {
        let mut rules = director.filter_rules();
        rules.retain(|rule| matches!(rule, Rule::Service { .. }));
        rules
    };
    let mut director = MemoryDirector::new(1024);
    director.marks(WEB);
    assert_eq!(services(&director), HashSet::new(), "no service, no frames");
    director.ipvsadm("-A -f 7 -s rr; -a -f 7 -r 172.16.0.11:0 -m");
    let web = HashSet::from([80, 443].map(|port| service(Tcp, VIPS[0], port)));
    assert_eq!(services(&director), web);
    // Replies come from the same ports.
    for port in [80, 443] {
        assert!(director.filter_rules().contains(&Rule::NatDestination {
            protocol: Tcp,
            address: ip("172.16.0.11"),
            port
        }));
    }
    // A wide range stands for all ports, and a rule without protocol for all.
    director.ipvsadm("-A -f 7 -6 -s rr");
    let wide: HashSet<Rule> = [Tcp, Udp, Sctp].map(|protocol| service(protocol, VIPS[1], 0)).into();
    assert_eq!(services(&director), web.union(&wide).copied().collect());

    // Addresses that are not the director's are not IPVS's.
    director.ipvsadm("-C");
    director.ipvsadm("-A -f 1 -s rr");
    director.marks("[[mark]]\nmark = 1\nprotocol = \"udp\"\ndestination = \"192.0.2.9\"");
    assert_eq!(services(&director), HashSet::new());
    director.marks(
        "[[mark]]\nmark = 1\nprotocol = \"udp\"\ndestination = \"10.0.0.0/8\"\ndestination_port = \"7-9\"\n\
         [[mark]]\nmark = 2\ndestination_port = 1",
    );
    let mut expected = HashSet::new();
    for port in 7..=9 {
        expected.extend(["10.0.0.1", VIPS[0]].map(|address| service(Udp, address, port)));
    }
    assert_eq!(services(&director), expected);

    // A rule that goes leaves its frames to us as long as the mark's service has connections.
    director.marks("[[mark]]\nmark = 1\nprotocol = \"udp\"\ndestination = \"10.200.1.1\"\ndestination_port = 53");
    director.ipvsadm("-a -f 1 -r 172.16.0.11:0 -m");
    let datagram = frame(Protocol::UDP, (CLIENTS[0], 1), (VIPS[0], 53));
    assert_eq!(sent_to(&mut director, &datagram), "172.16.0.11:53");
    director.marks("");
    let kept = HashSet::from([service(Udp, VIPS[0], 53)]);
    assert_eq!(services(&director), kept);
    assert_eq!(sent_to(&mut director, &datagram), "172.16.0.11:53");
    director.ipvsadm("-A -t 10.200.1.1:22 -s rr; -D -f 1");
    assert!(services(&director).contains(&service(Udp, VIPS[0], 53)));
}

// --- with real clients --------------------------------------------------------------------------------------------

fn ipvsadm(s: &mut Scenario, arguments: &str) -> String {
    let director = s.director().expect("a director");
    director
        .ipvsadm(arguments)
        .unwrap_or_else(|error| panic!("{arguments}: {error}"))
}

/// `uvs mark …` at the running director.
fn mark(s: &mut Scenario, arguments: &str) -> String {
    let arguments: Vec<&str> = ["mark"].into_iter().chain(arguments.split(' ')).collect();
    let output = s
        .director()
        .expect("a director")
        .output(&arguments)
        .expect("uvs mark runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn get(s: &Scenario, to: SocketAddr) -> std::io::Result<String> {
    HttpClient::connect(s.topology.client.namespace(), None, to, REQUEST_MAX)?.get("/")
}

/// Rows of `-Lnc`, without the time that they have left.
fn connection_rows(s: &mut Scenario) -> Vec<String> {
    let text = ipvsadm(s, "-Lnc");
    let without_time = |line: &str| format!("{}{}", &line[..4], &line[11..]);
    text.lines().skip(2).map(without_time).collect()
}

/// The mark of a method's service.
fn mark_of(method: Method) -> usize {
    1 + METHODS.iter().position(|other| *other == method).expect("a method")
}

const BOTH: [u16; 2] = [80, 443];

#[test]
fn ports_80_and_443_are_one_persistent_service() {
    for driver in ["xdp", "raw"] {
        let Some(mut s) = scenario(&format!("mark-{driver}"), Plan::new(Layout::OneSegment)) else {
            return;
        };
        let secure = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 443));
        let start = |host: &support::Host| HttpServer::start(host.namespace(), secure, &format!("{}-hk", host.name()));
        let _secure: Vec<HttpServer> = s
            .topology
            .servers
            .iter()
            .map(|host| start(host).expect("port 443"))
            .collect();
        for method in METHODS {
            for family in FAMILIES {
                s.offer(method, family).expect("a VIP");
            }
        }
        s.start(&["--driver", driver]).expect("the director starts");
        for method in METHODS {
            let number = mark_of(method);
            for family in FAMILIES {
                let vip = s.topology.vip(method, family);
                for port in BOTH {
                    mark(&mut s, &format!("add {number} -p tcp -d {vip} --dport {port}"));
                }
                let six = if family == Family::V6 { " -6" } else { "" };
                ipvsadm(&mut s, &format!("-A -f {number}{six} -s rr -p 300"));
                for n in 0..2 {
                    let server = SocketAddr::new(s.topology.server_address(n, family), 0);
                    ipvsadm(
                        &mut s,
                        &format!("-a -f {number}{six} -r {server} {}", method_flag(method)),
                    );
                }
            }
        }
        let mut open = everyone_stays(&s);
        listings(&mut s);

        // Killed and started again: rules, connections and templates are there.
        let saved = (
            mark(&mut s, "list --json"),
            ipvsadm(&mut s, "-Sn"),
            connection_rows(&mut s),
        );
        s.director().expect("a director").process().kill().expect("killed");
        s.start(&["--driver", driver]).expect("it starts again");
        assert_eq!(mark(&mut s, "list --json"), saved.0);
        assert_eq!(ipvsadm(&mut s, "-Sn"), saved.1);
        let sorted = |mut rows: Vec<String>| {
            rows.sort();
            rows
        };
        assert_eq!(sorted(connection_rows(&mut s)), sorted(saved.2));
        for (client, server) in &mut open {
            assert_eq!(client.get("/").expect("the connection goes on"), *server);
        }
        drop(open);
        let again = everyone_stays(&s);
        drop(again);
        assert_balanced(&mut s);

        // Rules that go take nothing from connections that are there, and new ones find the local stack.
        let to = SocketAddr::new(s.topology.vip(Method::Masq, Family::V4), 443);
        let mut client =
            HttpClient::connect(s.topology.client.namespace(), None, to, REQUEST_MAX).expect("a connection");
        let server = client.get("/").expect("an answer");
        mark(&mut s, "clear");
        assert_eq!(client.get("/").expect("it goes on"), server);
        s.director().expect("a director").process().kill().expect("killed");
        s.start(&["--driver", driver]).expect("it starts again");
        assert_eq!(client.get("/").expect("it goes on"), server);
        let refused = get(&s, to).expect_err("nobody serves it");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

/// The same client is served by one server at both ports, of each method and family. The connections stay open.
fn everyone_stays(s: &Scenario) -> Vec<(HttpClient, String)> {
    let mut open = Vec::new();
    for method in METHODS {
        for family in FAMILIES {
            let mut servers = HashSet::new();
            for port in [80, 443, 80, 443] {
                let to = SocketAddr::new(s.topology.vip(method, family), port);
                let client = HttpClient::connect(s.topology.client.namespace(), None, to, REQUEST_MAX);
                let mut client = client.unwrap_or_else(|error| panic!("{method:?} {to}: {error}"));
                let server = client
                    .get("/")
                    .unwrap_or_else(|error| panic!("{method:?} {to}: {error}"));
                servers.insert(server.clone());
                open.push((client, server));
            }
            assert_eq!(servers.len(), 1, "{method:?} {family:?}: {servers:?}");
        }
    }
    open
}

/// What ipvsadm shows of them, to the byte.
fn listings(s: &mut Scenario) {
    let number = mark_of(Method::Masq);
    let text = ipvsadm(s, &format!("-Ln -f {number}"));
    assert_eq!(
        text,
        format!(
            "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
             FWM  {number} rr persistent 300\n  \
             -> 172.25.7.3:0                 Masq    1      0          0         \n  \
             -> 172.25.7.4:0                 Masq    1      4          0         \n"
        )
    );
    let text = ipvsadm(s, &format!("-Ln --persistent-conn -f {number}"));
    assert!(
        text.contains("  -> 172.25.7.4:0                 1         1           4          0         \n"),
        "{text}"
    );
    let text = ipvsadm(s, &format!("-Ln --stats -f {number}"));
    let row = |start: &str| -> Vec<u64> {
        let line = text.lines().find(|line| line.trim_start().starts_with(start));
        let line = line.unwrap_or_else(|| panic!("no {start} in {text}"));
        line[33..]
            .split_ascii_whitespace()
            .map(|word| word.parse().expect("a number"))
            .collect()
    };
    let (service, server) = (row("FWM"), row("-> 172.25.7.4:0"));
    assert_eq!((service[0], &service), (4, &server), "{text}");
    assert!(service[1] >= 12 && service[2] >= 8, "{text}");

    let rows = connection_rows(s);
    let client = s.topology.client_address(Method::Masq, Family::V4);
    let client = SocketAddr::new(client, 0).to_string();
    let template = format!("IP  NONE        {client:<18} 0.0.0.{number}:0          172.25.7.4:0");
    assert!(rows.contains(&template), "no `{template}` in {rows:#?}");
    assert!(
        rows.iter()
            .any(|row| row.starts_with("IP  NONE        [fd00:") && row.contains(&format!("[0:{number}::]:0"))),
        "{rows:#?}"
    );
    let vip = s.topology.vip(Method::Masq, Family::V4);
    for port in BOTH {
        let end = format!("{:<18} 172.25.7.4:{port}", SocketAddr::new(vip, port).to_string());
        let found = rows
            .iter()
            .filter(|row| row.starts_with("TCP ESTABLISHED ") && row.ends_with(&end));
        assert_eq!(found.count(), 2, "{end}: {rows:#?}");
    }
}

#[test]
fn a_reload_changes_the_classifier_and_restored_rules_find_it() {
    let Some(mut s) = scenario("mark-reload", Plan::new(Layout::TwoArmed)) else {
        return;
    };
    s.offer(Method::Masq, Family::V4).expect("the VIP");
    let vip = s.topology.vip(Method::Masq, Family::V4);
    let configuration = |ports: &str| {
        let mut text = "interfaces = [\"eth0\", \"eth1\"]\n".to_owned();
        text +=
            &format!("[[mark]]\nmark = 7\ninterface = \"eth0\"\ndestination = \"{vip}\"\ndestination_port = {ports}\n");
        text += "[[service]]\nfwmark = 7\nscheduler = \"rr\"\n";
        for n in 0..2 {
            let server = s.topology.server_address(n, Family::V4);
            text += &format!("[[service.destination]]\naddress = \"{server}\"\nmethod = \"masq\"\n");
        }
        text
    };
    let (narrow, wide) = (configuration("81"), configuration("\"80-1079\""));
    let file = s.topology.cluster.directory().join("uvs.toml");
    std::fs::write(&file, narrow).expect("written");
    s.start(&["--config", &file.display().to_string()])
        .expect("the director starts");
    let to = SocketAddr::new(vip, 80);
    let refused = get(&s, to).expect_err("port 80 has no mark");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    std::fs::write(&file, wide).expect("written");
    s.director().expect("a director").process().signal(1).expect("SIGHUP");
    let start = Instant::now();
    while !mark(&mut s, "list").contains("80-1079") {
        assert!(start.elapsed() < Duration::from_secs(3), "{}", mark(&mut s, "list"));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(get(&s, to).expect("an answer"), "server2-hk");
    assert_eq!(get(&s, to).expect("an answer"), "server1-hk");
    let echo = UdpClient::connect(s.topology.client.namespace(), None, to, REQUEST_MAX).expect("a socket");
    let answer = echo.ask(b"hello").expect("an answer");
    assert!(
        answer.starts_with(b"server2-hk "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    // The range stands for all ports in the filter: what nobody serves is the local stack's, which answers.
    let other = SocketAddr::new(vip, 22);
    let everywhere: SocketAddr = "0.0.0.0:22".parse().expect("an address");
    let _own = HttpServer::start(s.topology.director.namespace(), everywhere, "director").expect("a server");
    assert_eq!(get(&s, other).expect("an answer"), "director");
    assert_balanced(&mut s);

    // What ipvsadm saves and restores is the services; the classifier is not its affair.
    let saved = ipvsadm(&mut s, "-Sn");
    assert_eq!(
        saved,
        "-A -f 7 -s rr\n-a -f 7 -r 192.168.0.11:0 -m -w 1\n-a -f 7 -r 192.168.0.12:0 -m -w 1\n"
    );
    ipvsadm(&mut s, "-C");
    let rules = s.topology.cluster.directory().join("rules");
    std::fs::write(&rules, saved).expect("written");
    let director = s.director().expect("a director");
    let stdin = std::fs::File::open(&rules).expect("the rules");
    let status = director
        .command(&["ipvsadm", "-R"])
        .stdin(stdin)
        .status()
        .expect("ipvsadm runs");
    assert!(status.success());
    assert!(get(&s, to).is_ok());
    // A mistake is answered, and changes nothing.
    let before = mark(&mut s, "list");
    let output = s
        .director()
        .expect("a director")
        .output(&["mark", "add", "7", "-d", "10.0.0.1/8"])
        .expect("runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("10.0.0.0/8 is meant"),
        "{output:?}"
    );
    let output = s
        .director()
        .expect("a director")
        .output(&["mark", "delete", "-n", "9"])
        .expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(mark(&mut s, "list"), before);
}
