//! The documents' scenarios with real clients and servers: S0 (install note), S2 (seminar), S3 (RHEL), S4 (Piranha).
//!
//! How: each on its own network of namespaces, with the director as a child process. Goal: what those documents show
//! on their screens comes out here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

mod support;

use support::{
    FAMILIES, Family, HttpClient, Layout, METHODS, Method, PORT, Plan, REQUEST_MAX, Scenario, UdpClient,
    assert_balanced, method_flag, scenario, with_port,
};

/// Rows of `ipvsadm -ln`, each as its words.
fn table(scenario: &mut Scenario) -> Vec<Vec<String>> {
    let text = scenario
        .director()
        .expect("a director")
        .ipvsadm("-ln")
        .expect("a table");
    text.lines()
        .map(|line| line.split_ascii_whitespace().map(str::to_owned).collect())
        .collect()
}

/// Waits until the table has the row, at most three seconds.
fn assert_row(scenario: &mut Scenario, row: &str) {
    let wanted: Vec<_> = row.split_ascii_whitespace().collect();
    let start = Instant::now();
    loop {
        let rows = table(scenario);
        if rows.iter().any(|found| *found == wanted) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(3), "no row `{row}` in {rows:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn listed(method: Method) -> &'static str {
    match method {
        Method::Masq => "Masq",
        Method::Tunnel => "Tunnel",
        Method::Route => "Route",
    }
}

fn requests(scenario: &Scenario, method: Method, family: Family, count: usize) -> Vec<String> {
    let request = |_| scenario.request(method, family).expect("an answer");
    (0..count).map(request).collect()
}

fn ipvsadm(scenario: &mut Scenario, arguments: &str) {
    scenario
        .director()
        .expect("a director")
        .ipvsadm(arguments)
        .expect("accepted");
}

/// A scenario with one method's VIP offered and the director running.
fn started(label: &str, plan: Plan, method: Method, family: Family, arguments: &[&str]) -> Option<Scenario> {
    let mut scenario = scenario(label, plan)?;
    scenario.offer(method, family).expect("the VIP");
    scenario.start(arguments).expect("the director starts");
    Some(scenario)
}

#[test]
fn s0a_direct_routing_rr() {
    let plan = Plan::new(Layout::OneSegment);
    let Some(mut s) = started("s0a", plan, Method::Route, Family::V4, &[]) else {
        return;
    };
    let empty = s.director().unwrap().ipvsadm("-ln").unwrap();
    assert_eq!(
        empty,
        "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> \
         RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
    );
    s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
    assert_eq!(
        requests(&s, Method::Route, Family::V4, 4),
        ["server4-hk", "server3-hk", "server4-hk", "server3-hk"]
    );
    assert_balanced(&mut s);
}

#[test]
fn s0b_nat_two_armed_lc() {
    let plan = Plan::new(Layout::TwoArmed);
    for family in FAMILIES {
        let label = format!("s0b{}", family as u8);
        let Some(mut s) = started(&label, plan, Method::Masq, family, &[]) else {
            return;
        };
        s.add_service(Method::Masq, family, "-s lc").unwrap();
        // Connections that stay open: the next goes where fewer are.
        let mut open: Vec<_> = (0..6).map(|_| s.connect(Method::Masq, family, None).unwrap()).collect();
        let mut counts = BTreeMap::new();
        for client in &mut open {
            *counts.entry(client.get("/").unwrap()).or_insert(0) += 1;
            // The server sees the client's own address.
            assert_eq!(client.get("/client").unwrap(), client.local().to_string());
        }
        assert_eq!(
            counts,
            BTreeMap::from([("server1-hk".to_owned(), 3), ("server2-hk".to_owned(), 3)])
        );
        for n in 0..2 {
            let real = with_port(s.topology.server_address(n, family), PORT);
            assert_row(&mut s, &format!("-> {real} Masq 1 3 0"));
        }
        drop(open);
        for n in 0..2 {
            let real = with_port(s.topology.server_address(n, family), PORT);
            assert_row(&mut s, &format!("-> {real} Masq 1 0 3"));
        }
        assert_balanced(&mut s);
    }
}

#[test]
fn s0c_tunnel_wlc() {
    let plan = Plan::new(Layout::OneSegment);
    let Some(mut s) = started("s0c", plan, Method::Tunnel, Family::V4, &[]) else {
        return;
    };
    let vip = with_port(s.topology.vip(Method::Tunnel, Family::V4), PORT);
    ipvsadm(&mut s, &format!("-A -t {vip} -s wlc"));
    for (n, weight) in [(0, 1), (1, 2)] {
        let real = s.topology.server_address(n, Family::V4);
        ipvsadm(&mut s, &format!("-a -t {vip} -r {real} -i -w {weight}"));
    }
    let open: Vec<_> = (0..9)
        .map(|_| s.connect(Method::Tunnel, Family::V4, None).unwrap())
        .collect();
    assert_row(&mut s, "-> 172.25.7.3:80 Tunnel 1 3 0");
    assert_row(&mut s, "-> 172.25.7.4:80 Tunnel 2 6 0");
    drop(open);
    assert_balanced(&mut s);
}

#[test]
fn s2a_two_persistent_services_on_one_vip() {
    let plan = Plan::new(Layout::OneSegment);
    let Some(mut s) = started("s2a", plan, Method::Route, Family::V4, &[]) else {
        return;
    };
    for port in [80, 22] {
        ipvsadm(&mut s, &format!("-A -t 172.25.7.200:{port} -s wlc -p 360"));
        for real in ["172.25.7.3", "172.25.7.4"] {
            ipvsadm(&mut s, &format!("-a -t 172.25.7.200:{port} -r {real} -g -w 100"));
        }
    }
    assert_row(&mut s, "TCP 172.25.7.200:80 wlc persistent 360");
    assert_row(&mut s, "TCP 172.25.7.200:22 wlc persistent 360");
    assert_row(&mut s, "-> 172.25.7.3:22 Route 100 0 0");
    let names = s.director().unwrap().ipvsadm("-l").unwrap();
    assert!(names.contains(":http") && names.contains(":ssh"), "{names}");
    let answers = requests(&s, Method::Route, Family::V4, 6);
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "one client stays with one server: {answers:?}"
    );
    assert_balanced(&mut s);
}

#[test]
fn s2b_a_hundred_requests_alternate_strictly() {
    let plan = Plan::new(Layout::OneSegment);
    let Some(mut s) = started("s2b", plan, Method::Route, Family::V4, &[]) else {
        return;
    };
    s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
    let answers = requests(&s, Method::Route, Family::V4, 100);
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(
            answer,
            if n % 2 == 0 { "server4-hk" } else { "server3-hk" },
            "request {n}"
        );
    }
    assert_row(&mut s, "-> 172.25.7.3:80 Route 1 0 50");
    assert_balanced(&mut s);
}

#[test]
fn s3_every_method_and_family_by_tcp_and_udp() {
    let Some(mut s) = scenario("s3", Plan::new(Layout::OneSegment)) else {
        return;
    };
    for method in METHODS {
        for family in FAMILIES {
            s.offer(method, family).unwrap();
        }
    }
    s.start(&[]).unwrap();
    for method in METHODS {
        for family in FAMILIES {
            for protocol in ["-t", "-u"] {
                for rule in s.rules(method, family, protocol, "-s rr", "") {
                    ipvsadm(&mut s, &rule);
                }
            }
            let answers = requests(&s, method, family, 6);
            let expected: Vec<_> = ["server4-hk", "server3-hk"].into_iter().cycle().take(6).collect();
            assert_eq!(answers, expected, "{method:?} {family:?}");
            // UDP: a new client socket, a new connection.
            let to = s.service_address(method, family);
            for name in ["server4-hk", "server3-hk"] {
                let client = UdpClient::connect(s.topology.client.namespace(), None, to, REQUEST_MAX).unwrap();
                let expected = format!("{name} {}: hello", client.local().unwrap());
                assert_eq!(
                    String::from_utf8(client.ask(b"hello").unwrap()).unwrap(),
                    expected,
                    "{method:?} {family:?}"
                );
                assert_eq!(
                    String::from_utf8(client.ask(b"hello").unwrap()).unwrap(),
                    expected,
                    "it stays there"
                );
            }
            for n in 0..2 {
                let real = with_port(s.topology.server_address(n, family), PORT);
                assert_row(&mut s, &format!("-> {real} {} 1 0 3", listed(method)));
            }
        }
    }
    assert_balanced(&mut s);
}

#[test]
fn s4a_five_servers_balance_within_ten_percent() {
    const CLIENTS: u16 = 250;
    let plan = Plan {
        servers: 5,
        ..Plan::new(Layout::OneSegment)
    };
    let Some(mut s) = started("s4a", plan, Method::Route, Family::V4, &[]) else {
        return;
    };
    // Many clients, each an address of its own behind the client's interface.
    let client = |n: u16| IpAddr::from([10, 77, (n >> 8) as u8, n as u8]);
    let link = s.topology.client.link("eth0").unwrap().index;
    for n in 1..=CLIENTS {
        s.topology.client.netlink().add_address(link, client(n), 32).unwrap();
    }
    for host in s.topology.servers.iter_mut().chain([&mut s.topology.director]) {
        let link = host.link("eth0").unwrap().index;
        host.add_route(&uvs::io::netlink::Route::on_link(client(0), 16, link))
            .unwrap();
    }
    s.add_service(Method::Route, Family::V4, "-s wlc -p 10").unwrap();
    let mut open: Vec<HttpClient> = Vec::new();
    for n in 1..=CLIENTS {
        for _ in 0..1 + n % 3 {
            open.push(s.connect(Method::Route, Family::V4, Some(client(n))).unwrap());
        }
    }
    let total = open.len() as f64;
    let rows = table(&mut s);
    let active: Vec<f64> = rows
        .iter()
        .filter(|row| row.len() == 6 && row[2] == "Route")
        .map(|row| row[4].parse().unwrap())
        .collect();
    assert_eq!((active.len(), active.iter().sum::<f64>()), (5, total));
    for count in &active {
        assert!(
            (count - total / 5.0).abs() <= total / 50.0,
            "{active:?} are not within 10 % of {}",
            total / 5.0
        );
    }
    drop(open);
    assert_balanced(&mut s);
}

#[test]
fn servers_behind_a_router() {
    let Some(mut s) = scenario("gate", Plan::new(Layout::Gateway)) else {
        return;
    };
    for method in [Method::Masq, Method::Tunnel] {
        for family in FAMILIES {
            s.offer(method, family).unwrap();
        }
    }
    s.start(&[]).unwrap();
    for method in [Method::Masq, Method::Tunnel] {
        for family in FAMILIES {
            s.add_service(method, family, "-s rr").unwrap();
            assert_eq!(
                requests(&s, method, family, 2),
                ["server4-hk", "server3-hk"],
                "{method:?} {family:?}"
            );
        }
    }
    assert_balanced(&mut s);
}

/// Both workers get a part of the frames, and schedule together.
#[test]
fn two_queues_and_two_workers() {
    for driver in ["xdp", "raw"] {
        let plan = Plan {
            queues: 2,
            ..Plan::new(Layout::TwoArmed)
        };
        let arguments = ["--workers", "2", "--driver", driver];
        let label = format!("queues-{driver}");
        let Some(mut s) = started(&label, plan, Method::Masq, Family::V4, &arguments) else {
            return;
        };
        s.add_service(Method::Masq, Family::V4, "-s rr").unwrap();
        let answers = requests(&s, Method::Masq, Family::V4, 60);
        assert_eq!(answers.iter().filter(|answer| *answer == "server1-hk").count(), 30);
        for n in [11, 12] {
            assert_row(&mut s, &format!("-> 192.168.0.{n}:80 Masq 1 0 30"));
        }
        assert_balanced(&mut s);
        let statistics = s.director().unwrap().statistics().unwrap();
        let by_worker: Vec<u64> = serde_json::from_value(statistics["received_by_worker"].clone()).unwrap();
        assert_eq!(by_worker.len(), 2);
        assert!(by_worker.iter().all(|frames| *frames > 50), "{driver}: {by_worker:?}");
    }
}

#[test]
fn the_director_as_its_own_real_server() {
    // D2's dual role: a destination whose address is the director's own.
    for method in [Method::Masq, Method::Route] {
        let label = format!("dual{}", method_flag(method).trim_start_matches('-'));
        let plan = Plan {
            servers: 1,
            ..Plan::new(Layout::OneSegment)
        };
        let Some(mut s) = started(&label, plan, method, Family::V4, &[]) else {
            return;
        };
        let everywhere = "0.0.0.0:80".parse().unwrap();
        let _web = support::HttpServer::start(s.topology.director.namespace(), everywhere, "director").unwrap();
        let vip = with_port(s.topology.vip(method, Family::V4), PORT);
        ipvsadm(&mut s, &format!("-A -t {vip} -s rr"));
        for real in ["172.25.7.3", "172.25.7.2"] {
            ipvsadm(&mut s, &format!("-a -t {vip} -r {real} {}", method_flag(method)));
        }
        assert_eq!(
            requests(&s, method, Family::V4, 4),
            ["director", "server3-hk", "director", "server3-hk"],
            "{method:?}"
        );
        assert_balanced(&mut s);
    }
}
