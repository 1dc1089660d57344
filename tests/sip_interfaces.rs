//! The persistence engine `sip` on real interfaces, through the programs of the command line.
//!
//! How: a director between clients and two NAT servers, SIP messages by UDP sockets. Goal: calls stay with their server whatever port
//! they come from, a server's own call comes from the virtual address, a start again knows the calls, and all frames are
//! accounted for.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use support::{Family, Host, Layout, Method, Plan, Scenario, assert_balanced, scenario};

fn message(call: &str) -> Vec<u8> {
    format!("INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/UDP h\r\nCall-ID: {call}\r\n\r\n").into()
}

fn socket(host: &Host, at: SocketAddr) -> UdpSocket {
    let socket = host.namespace().run(|| UdpSocket::bind(at)).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    socket
}

/// The server that a message reaches, and where it is from.
fn receive(servers: &[UdpSocket]) -> Option<(usize, SocketAddr)> {
    let mut buffer = [0; 2000];
    for _ in 0..75 {
        for (n, server) in servers.iter().enumerate() {
            match server.recv_from(&mut buffer) {
                Ok((_, from)) => return Some((n, from)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }
    None
}

struct Bench {
    scenario: Scenario,
    servers: Vec<UdpSocket>,
    client: SocketAddr,
    service: SocketAddr,
}

impl Bench {
    fn call(&self, port: u16, call: &str) -> Option<usize> {
        let from = socket(&self.scenario.topology.client, SocketAddr::new(self.client.ip(), port));
        from.send_to(&message(call), self.service).unwrap();
        let (n, seen) = receive(&self.servers)?;
        assert_eq!(
            seen,
            SocketAddr::new(self.client.ip(), port),
            "NAT leaves the client's address"
        );
        Some(n)
    }

    fn ipvsadm(&mut self, arguments: &str) -> String {
        self.scenario.director().unwrap().ipvsadm(arguments).unwrap()
    }
}

#[test]
fn calls_both_ways_and_over_a_restart() {
    for family in [Family::V4, Family::V6] {
        let Some(mut scenario) = scenario("sip", Plan::new(Layout::TwoArmed)) else {
            return;
        };
        scenario.topology.set_up_vip(Method::Masq, family).unwrap();
        let topology = &scenario.topology;
        let service = SocketAddr::new(topology.vip(Method::Masq, family), 5060);
        let reals = [0, 1].map(|n| SocketAddr::new(topology.server_address(n, family), 5060));
        let client = SocketAddr::new(topology.client_address(Method::Masq, family), 5060);
        let servers = reals
            .iter()
            .zip(&topology.servers)
            .map(|(at, host)| socket(host, *at))
            .collect();
        scenario.start(&[]).unwrap();
        let mut bench = Bench {
            scenario,
            servers,
            client,
            service,
        };
        bench.ipvsadm(&format!("-A -u {service} -s rr -p 300 --pe sip"));
        for real in reals {
            bench.ipvsadm(&format!("-a -u {service} -r {real} -m"));
        }
        let listing = bench.ipvsadm("-Ln");
        assert!(
            listing.contains(&format!("UDP  {service} rr persistent 300 pe sip\n")),
            "{listing}"
        );
        assert!(bench.ipvsadm("-Sn").contains(" -s rr -p 300 --pe sip\n"));

        let first = bench.call(6001, "first@client").expect("it arrives");
        assert_eq!(bench.call(6002, "second@client"), Some(1 - first));
        assert_eq!(bench.call(6003, "first@client"), Some(first));
        let listing = bench.ipvsadm("-Lnc --persistent-conn");
        for call in ["first@client", "second@client"] {
            let line = listing.lines().find(|line| line.ends_with(call)).expect(&listing);
            assert!(line.contains(" sip                "), "{line}");
        }
        let from = socket(&bench.scenario.topology.client, SocketAddr::new(client.ip(), 6004));
        from.send_to(b"no call at all", service).unwrap();
        assert_eq!(receive(&bench.servers), None);
        let statistics = bench.scenario.director().unwrap().statistics().unwrap();
        assert_eq!(
            statistics["frames"]["dropped"]["reasons"]["no_call_id"], 1,
            "{statistics}"
        );

        // A server calls: the client sees the virtual address, and what it answers reaches that server.
        let phone = socket(&bench.scenario.topology.client, client);
        phone.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        bench.servers[1].send_to(&message("third@server"), client).unwrap();
        let mut buffer = [0; 2000];
        let (_, seen) = phone.recv_from(&mut buffer).expect("the server's call arrives");
        assert_eq!(seen, service);
        phone.send_to(b"SIP/2.0 200 OK\r\n\r\n", service).unwrap();
        assert_eq!(receive(&bench.servers), Some((1, client)));
        bench.servers[1]
            .send_to(b"ACK sip:a@b SIP/2.0\r\n\r\n", client)
            .unwrap();
        let (_, seen) = phone.recv_from(&mut buffer).expect("the next one too");
        assert_eq!(seen, service);
        assert_eq!(bench.call(6005, "third@server"), Some(1));
        assert_balanced(&mut bench.scenario);

        // Killed and started again: the calls are known, from new ports too.
        bench.scenario.director().unwrap().process().kill().unwrap();
        bench.scenario.start(&[]).unwrap();
        for (port, call, server) in [
            (6006, "first@client", first),
            (6007, "second@client", 1 - first),
            (6008, "third@server", 1),
        ] {
            assert_eq!(bench.call(port, call), Some(server), "{call} after a crash");
        }
        assert_balanced(&mut bench.scenario);
    }
}
