//! Changes under load, and the director itself while it directs: its own clients, its own servers, its own addresses.
//!
//! How: clients that never rest, while configuration and rules change in every way. Goal: no request fails, and nothing
//! but the virtual services is taken from the director's own stack.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

mod support;

use support::load::Load;
use support::{
    FAMILIES, Family, FrameSocket, Host, HttpClient, HttpServer, Layout, METHODS, Method, PORT, Plan, REQUEST_MAX,
    Scenario, method_flag, scenario,
};

const SIGHUP: i32 = 1;

/// Every method, and both families among them.
const SERVICES: [(Method, Family, &str); 4] = [
    (Method::Masq, Family::V4, "masq"),
    (Method::Route, Family::V4, "route"),
    (Method::Tunnel, Family::V4, "tunnel"),
    (Method::Masq, Family::V6, "masq"),
];

/// A configuration: the services with these weights of their three servers; `None` = not a server.
fn configuration(s: &Scenario, weights: [Option<u32>; 3]) -> String {
    let mut text = "interfaces = [\"eth0\"]\n".to_owned();
    for (method, family, name) in SERVICES {
        let vip = s.service_address(method, family);
        writeln!(text, "\n[[service]]\ntcp = \"{vip}\"\nscheduler = \"wrr\"").unwrap();
        for (n, weight) in weights.iter().enumerate() {
            let Some(weight) = weight else { continue };
            let address = s.topology.server_address(n, family);
            writeln!(
                text,
                "\n[[service.destination]]\naddress = \"{address}\"\nmethod = \"{name}\"\nweight = {weight}"
            )
            .unwrap();
        }
    }
    text
}

/// Sends SIGHUP and waits until the director says something with `words`.
fn reload(s: &mut Scenario, words: &str) -> String {
    let process = s.director().unwrap().process();
    let before = process.output().len();
    process.signal(SIGHUP).unwrap();
    let start = Instant::now();
    loop {
        let said = process.output();
        if said[before..].contains(words) {
            return said[before..].to_owned();
        }
        assert!(start.elapsed() < Duration::from_secs(5), "no `{words}` in {said}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

#[test]
fn no_request_fails_while_the_rules_change() {
    for driver in ["xdp", "raw"] {
        let plan = Plan {
            servers: 3,
            ..Plan::new(Layout::OneSegment)
        };
        let Some(mut s) = scenario(&format!("reload-{driver}"), plan) else {
            return;
        };
        for (method, family, _) in SERVICES {
            s.offer(method, family).unwrap();
        }
        let file = s.topology.cluster.directory().join("uvs.toml");
        write(&file, &configuration(&s, [Some(1), Some(1), None]));
        let path = file.display().to_string();
        // Its log, so that the test sees when a reload is done.
        let arguments = ["--driver", driver, "--config", &path];
        s.start(&arguments).unwrap();
        let targets = SERVICES.map(|(method, family, _)| s.service_address(method, family));
        let load = Load::start(s.topology.client.namespace(), &targets);

        // Weights, a new server, a quiesced one, which is removed when its connections are over.
        for weights in [
            [Some(3), Some(1), None],
            [Some(1), Some(5), Some(2)],
            [Some(2), Some(1), Some(0)],
            [Some(2), Some(1), Some(1)],
            [Some(0), Some(1), Some(1)],
            [None, Some(1), Some(1)],
            [Some(1), Some(1), Some(1)],
        ] {
            write(&file, &configuration(&s, weights));
            s.director().unwrap().process().signal(SIGHUP).unwrap();
            wait_for_weights(&mut s, weights);
            std::thread::sleep(Duration::from_millis(700));
        }
        // By hand, many times.
        for round in 0..40u32 {
            for (method, family, _) in SERVICES {
                let target = s.service_address(method, family);
                let server = SocketAddr::new(s.topology.server_address((round % 3) as usize, family), PORT);
                let weight = 1 + round % 7;
                let edit = format!("-e -t {target} -r {server} {} -w {weight}", method_flag(method));
                s.director().unwrap().ipvsadm(&edit).unwrap();
            }
        }
        s.director()
            .unwrap()
            .ipvsadm(&format!("-E -t {} -s wlc", targets[0]))
            .unwrap();
        s.director()
            .unwrap()
            .ipvsadm(&format!("-E -t {} -s rr", targets[1]))
            .unwrap();
        std::thread::sleep(Duration::from_millis(200));

        // A bad file changes nothing.
        let before = s.director().unwrap().ipvsadm("-Sn").unwrap();
        let bad = configuration(&s, [Some(1), Some(1), None]).replacen("weight = 1", "weight = 9999999999", 1);
        let line = 1 + bad.lines().position(|l| l.contains("9999999999")).unwrap();
        write(&file, &bad);
        let said = reload(&mut s, "not applied");
        for words in [&format!("{path}:{line}"), "weight", "9999999999"] {
            assert!(said.contains(words), "no `{words}` in: {said}");
        }
        write(&file, "interfaces = [\"eth0\"]\n[[service]\n");
        let said = reload(&mut s, "not applied");
        assert!(said.contains(&format!("{path}:2")), "{said}");
        write(&file, "# emptied\n");
        reload(&mut s, "there is nothing in the file");
        assert_eq!(s.director().unwrap().ipvsadm("-Sn").unwrap(), before);

        let report = load.stop_without_failure(&format!("{driver}: rules change"));
        assert_eq!(report.answers.len(), 3, "every server had a turn: {report:?}");
        // Not one frame: a new server gets none before its link address is known.
        let accounting = support::assert_balanced(&mut s);
        assert_eq!(accounting.dropped_total, 0, "{driver}: {accounting}");

        // Rules by hand survive a restart; the file counts again only when it says something new.
        write(&file, &configuration(&s, [Some(1), Some(1), Some(1)]));
        s.director().unwrap().process().signal(SIGHUP).unwrap();
        wait_for_weights(&mut s, [Some(1), Some(1), Some(1)]);
        s.director()
            .unwrap()
            .ipvsadm("-A -t 172.25.7.200:81 -s sh -b sh-port")
            .unwrap();
        s.director().unwrap().ipvsadm(&format!("-D -t {}", targets[0])).unwrap();
        let before = s.director().unwrap().ipvsadm("-Sn").unwrap();
        s.director().unwrap().process().terminate().unwrap();
        s.start(&arguments).unwrap();
        assert_eq!(s.director().unwrap().ipvsadm("-Sn").unwrap(), before);
        s.director().unwrap().process().terminate().unwrap();
        write(&file, &configuration(&s, [Some(4), None, None]));
        s.start(&arguments).unwrap();
        wait_for_weights(&mut s, [Some(4), None, None]);
        assert!(!s.director().unwrap().ipvsadm("-Sn").unwrap().contains(":81"));
    }
}

/// Waits until the table shows these weights for every service.
fn wait_for_weights(s: &mut Scenario, weights: [Option<u32>; 3]) {
    let start = Instant::now();
    loop {
        let rules = s.director().unwrap().ipvsadm("-Sn").unwrap();
        let servers = |n: usize| FAMILIES.map(|f| SocketAddr::new(s.topology.server_address(n, f), PORT));
        let right = (0..3).all(|n| {
            let names = servers(n).map(|server| format!("-r {server} "));
            let lines: Vec<&str> = rules
                .lines()
                .filter(|l| names.iter().any(|name| l.contains(name)))
                .collect();
            match weights[n] {
                None => lines.is_empty(),
                Some(weight) => {
                    let end = format!("-w {weight}");
                    lines.len() == SERVICES.len() && lines.iter().all(|l| l.contains(&end))
                }
            }
        });
        if right {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "not {weights:?}: {rules}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_director_is_reached_and_reaches_others_all_the_time() {
    for driver in ["xdp", "raw"] {
        let Some(mut s) = scenario(&format!("own-{driver}"), Plan::new(Layout::OneSegment)) else {
            return;
        };
        for family in FAMILIES {
            for method in METHODS {
                s.offer(method, family).unwrap();
            }
        }
        // As sshd does: on every address of the director, VIPs included.
        let everywhere = |port| SocketAddr::new(IpAddr::from([0u16; 8]), port);
        let ssh = HttpServer::start(s.topology.director.namespace(), everywhere(22), "director").unwrap();
        s.start(&["--driver", driver]).unwrap();
        for family in FAMILIES {
            for method in METHODS {
                s.add_service(method, family, "-s rr").unwrap();
            }
        }
        for family in FAMILIES {
            let mut addresses: Vec<IpAddr> = METHODS.iter().map(|m| s.topology.vip(*m, family)).collect();
            addresses.push(own_address(family));
            for address in addresses {
                reached(&mut s, address);
            }
            // Its own requests to servers that it translates for, and theirs to it.
            for n in 0..2 {
                let server = SocketAddr::new(s.topology.server_address(n, family), PORT);
                let director = s.topology.director.namespace();
                // Of itself, the kernel takes an IPv6 VIP that is close to the server's address for the source.
                let own = Some(own_address(family));
                let mut client = HttpClient::connect(director, own, server, REQUEST_MAX)
                    .unwrap_or_else(|e| panic!("{driver}: the director to {server}: {e}"));
                assert_eq!(
                    client.get("/").unwrap(),
                    format!("server{}-hk", n + 3),
                    "{driver} {family:?}"
                );
                client.download(2_000_000).unwrap();
                client.upload(2_000_000).unwrap();
                let back = SocketAddr::new(own_address(family), 22);
                let answer = support::http::get(s.topology.servers[n].namespace(), back, REQUEST_MAX);
                assert_eq!(answer.unwrap(), "director");
            }
        }
        // And the services work beside it.
        for family in FAMILIES {
            for method in METHODS {
                s.request(method, family)
                    .unwrap_or_else(|e| panic!("{driver} {method:?} {family:?}: {e}"));
            }
        }
        support::assert_balanced(&mut s);
        drop(ssh);
    }
}

fn own_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => "172.25.7.2",
        Family::V6 => "fd00:7::2",
    }
    .parse()
    .unwrap()
}

/// ARP or ND, ping, a served port and a refused one.
fn reached(s: &mut Scenario, address: IpAddr) {
    let eth0 = s.topology.client.link("eth0").unwrap();
    // Without the cache the client has to ask. An address that it never talked to is not there.
    let _ = s.topology.client.netlink().delete_neighbour(eth0.index, address);
    let client = s.topology.client.namespace();
    let answer = support::http::get(client, SocketAddr::new(address, 22), REQUEST_MAX);
    assert_eq!(answer.unwrap_or_else(|e| panic!("{address}: {e}")), "director");
    let unserved = HttpClient::connect(client, None, SocketAddr::new(address, 9), REQUEST_MAX);
    let error = unserved.map(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{address}: {error}");
    ping(
        &mut s.topology.client,
        s.topology.director.link("eth0").unwrap().mac.unwrap().0,
        address,
    );
}

/// One echo request, and its reply.
fn ping(client: &mut Host, director: [u8; 6], to: IpAddr) {
    use uvs::packet::{FlowKey, Protocol, checksum};
    let eth0 = client.link("eth0").unwrap();
    let mut wire = FrameSocket::open_in(client.namespace(), eth0.index).unwrap();
    let mut frame = Vec::new();
    frame.extend_from_slice(&director);
    frame.extend_from_slice(&eth0.mac.unwrap().0);
    let payload = [0x12, 0x34, 0, 7, 1, 2, 3, 4];
    let reply_type = match to {
        IpAddr::V4(to) => {
            let from: [u8; 4] = match to.octets() {
                [172, 25, 254, _] => [172, 25, 254, 250],
                _ => [172, 25, 7, 250],
            };
            frame.extend_from_slice(&[8, 0, 0x45, 0, 0, 32, 0, 9, 0, 0, 64, 1, 0, 0]);
            frame.extend_from_slice(&from);
            frame.extend_from_slice(&to.octets());
            let sum = checksum::of(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            frame.extend_from_slice(&[8, 0, 0, 0]);
            frame.extend_from_slice(&payload);
            let sum = checksum::of(&frame[34..]);
            frame[36..38].copy_from_slice(&sum.to_be_bytes());
            (23, 1, 34, 0)
        }
        IpAddr::V6(to) => {
            let net = if to.segments()[1] == 0x254 {
                "fd00:254::250"
            } else {
                "fd00:7::250"
            };
            let from: std::net::Ipv6Addr = net.parse().unwrap();
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 12, 58, 64]);
            frame.extend_from_slice(&from.octets());
            frame.extend_from_slice(&to.octets());
            frame.extend_from_slice(&[128, 0, 0, 0]);
            frame.extend_from_slice(&payload);
            let flow = FlowKey::v6(Protocol::ICMPV6, from.to_bits(), to.to_bits(), 0);
            let sum = checksum::pseudo_header(&flow, 12) + checksum::sum(&frame[54..]);
            let sum = !checksum::fold(sum);
            frame[56..58].copy_from_slice(&sum.to_be_bytes());
            (20, 58, 54, 129)
        }
    };
    wire.send(&frame).unwrap();
    let (protocol_at, protocol, icmp_at, kind) = reply_type;
    let is_reply = |frame: &[u8]| {
        frame.len() >= icmp_at + 12
            && frame[protocol_at] == protocol
            && frame[icmp_at] == kind
            && frame[icmp_at + 4..icmp_at + 12] == payload
    };
    let reply = wire.receive_matching(Duration::from_secs(2), is_reply).unwrap();
    assert!(reply.is_some(), "no echo reply from {to}");
}

#[test]
fn the_director_is_a_real_server_too() {
    for driver in ["xdp", "raw"] {
        let Some(mut s) = scenario(&format!("dual-{driver}"), Plan::new(Layout::OneSegment)) else {
            return;
        };
        for family in FAMILIES {
            s.offer(Method::Route, family).unwrap();
        }
        let everywhere = SocketAddr::new(IpAddr::from([0u16; 8]), PORT);
        let local = HttpServer::start(s.topology.director.namespace(), everywhere, "director-hk").unwrap();
        s.start(&["--driver", driver]).unwrap();
        for family in FAMILIES {
            s.add_service(Method::Route, family, "-s rr").unwrap();
            let vip = s.service_address(Method::Route, family);
            let own = SocketAddr::new(own_address(family), PORT);
            s.director()
                .unwrap()
                .ipvsadm(&format!("-a -t {vip} -r {own} -g"))
                .unwrap();
        }
        for family in FAMILIES {
            let answers: Vec<String> = (0..6).map(|_| s.request(Method::Route, family).unwrap()).collect();
            let expected = ["director-hk", "server4-hk", "server3-hk"].repeat(2);
            assert_eq!(answers, expected, "{driver} {family:?}");
            // Much data both ways, through the director's own stack.
            let mut client = s.connect(Method::Route, family, None).unwrap();
            assert_eq!(client.get("/").unwrap(), "director-hk");
            client
                .upload(5_000_000)
                .unwrap_or_else(|e| panic!("{driver} {family:?}: {e}"));
            client
                .download(5_000_000)
                .unwrap_or_else(|e| panic!("{driver} {family:?}: {e}"));
        }
        assert!(local.requests() >= 10);
        let accounting = support::assert_balanced(&mut s);
        assert!(accounting.handed_back > 100, "{accounting}");
    }
}
