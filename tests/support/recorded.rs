//! The machine of the recordings in `tests/kernel/*.json`: a director with a client side (`d0`) and a real side (`d1`),
//! neighbours that never move, VIPs on `lo`; a wire on each side where frames are put and looked for.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use uvs::demo::director::DirectorOptions;
use uvs::io::netlink::{Netlink, Route, VethEnd};
use uvs::packet::{Family, FlowKey, Mac, Protocol, checksum};

use super::{Cluster, Director, FrameSocket, Host, program};

/// How long something that is expected may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// How long nothing must come for silence. A frame through the director takes less than a millisecond.
const SILENCE: Duration = Duration::from_millis(25);

/// Where a frame is put or seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Real,
}

impl Side {
    /// As the recordings name it.
    pub fn named(name: &str) -> Side {
        match name {
            "client_side" => Side::Client,
            "real_side" => Side::Real,
            other => panic!("unknown side {other}"),
        }
    }
}

/// The director and its wires.
pub struct Bench {
    pub director: Director,
    pub host: Host,
    client: FrameSocket,
    real: FrameSocket,
    _wire: Host,
    _cluster: Cluster,
}

impl Bench {
    /// Builds it and starts `uvs run` with one more driver argument.
    pub fn start(label: &str, driver: &str) -> Bench {
        let cluster = Cluster::new(label).expect("root was checked");
        let mut host = cluster.host("director").expect("a namespace");
        let mut wire = cluster.host("wire").expect("a namespace");
        for (setting, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
            ("net.ipv4.icmp_ratelimit", "0"),
            ("net.ipv6.icmp.ratelimit", "0"),
        ] {
            host.set_sysctl(setting, value).expect("a setting");
        }
        for setting in ["all", "default"] {
            wire.set_sysctl(&format!("net.ipv6.conf.{setting}.disable_ipv6"), "1")
                .expect("a setting");
        }
        let client = connect(
            &mut host,
            &mut wire,
            "d0",
            0xd0,
            &[("10.0.0.1", 24), ("fd00:10::1", 64)],
        );
        let real = connect(
            &mut host,
            &mut wire,
            "d1",
            0xd1,
            &[("172.16.0.1", 16), ("fd00:16::1", 64)],
        );
        for vip in ["10.200.1.1", "fd00:200::1"] {
            let vip: IpAddr = vip.parse().unwrap();
            let bits = if vip.is_ipv4() { 32 } else { 128 };
            host.add_address("lo", vip, bits).expect("a VIP");
        }
        for gateway in ["10.0.0.254", "fd00:10::fe"] {
            neighbour(&mut host, "d0", gateway, 0xc0);
            host.add_route(&Route::default_via(gateway.parse().unwrap()))
                .expect("a route");
        }
        for n in 11..=14u8 {
            for address in [format!("172.16.0.{n}"), format!("fd00:16::{n}")] {
                neighbour(&mut host, "d1", &address, 0xa0 + n - 10);
            }
        }
        let options = DirectorOptions {
            program: program(),
            interfaces: &["d0", "d1"],
            directory: cluster.directory(),
            arguments: &["--driver", driver, "--connections", "65536"],
        };
        let director = Director::start(&host, &options).expect("uvs run is ready");
        Bench {
            director,
            host,
            client,
            real,
            _wire: wire,
            _cluster: cluster,
        }
    }

    /// One more neighbour on the real side.
    pub fn real_neighbour(&mut self, address: &str, last: u8) {
        neighbour(&mut self.host, "d1", address, last);
    }

    /// Runs a line of `ipvsadm`, with or without the program's name in front, or several with `;` between.
    pub fn ipvsadm(&self, line: &str) {
        for command in line.split(';').map(str::trim).filter(|c| !c.is_empty()) {
            let command = command.strip_prefix("ipvsadm ").unwrap_or(command);
            if let Err(error) = self.director.ipvsadm(command) {
                panic!("{command}: {error}");
            }
        }
    }

    /// Runs a shell line of a recording: `sysctl -qw net.ipv4.vs.NAME=VALUE`.
    pub fn shell(&self, line: &str) {
        let setting = line
            .strip_prefix("sysctl -qw ")
            .unwrap_or_else(|| panic!("do not know how to run: {line}"));
        let output = self
            .director
            .output(&["sysctl", "-w", setting])
            .expect("uvs sysctl runs");
        assert!(output.status.success(), "uvs sysctl -w {setting}: {output:?}");
    }

    /// Puts a frame on a wire and returns what comes out at both sides, once `expected` frames and then silence came.
    pub fn inject(&mut self, side: Side, frame: &[u8], expected: usize) -> Vec<(Side, Vec<u8>)> {
        self.put(side, frame);
        self.collect(expected)
    }

    /// Puts a frame on a wire.
    pub fn put(&mut self, side: Side, frame: &[u8]) {
        let wire = match side {
            Side::Client => &self.client,
            Side::Real => &self.real,
        };
        wire.send(frame).expect("the wire takes the frame");
    }

    /// The same with the checksum at `start + offset` left to a device.
    pub fn put_unfinished(&mut self, side: Side, frame: &[u8], start: u16, offset: u16) {
        let wire = match side {
            Side::Client => &self.client,
            Side::Real => &self.real,
        };
        wire.send_unfinished(frame, start, offset)
            .expect("the wire takes the frame");
    }

    /// The next frame that comes out.
    pub fn next(&mut self) -> Option<(Side, Vec<u8>)> {
        let until = Instant::now() + ANSWER_MAX;
        while Instant::now() < until {
            for (side, wire) in [(Side::Client, &mut self.client), (Side::Real, &mut self.real)] {
                if let Some(frame) = wire.receive(Duration::ZERO).expect("the wire works")
                    && !is_noise(&frame)
                {
                    return Some((side, frame));
                }
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        None
    }

    /// What comes out at both sides, once `expected` frames and then silence came.
    pub fn collect(&mut self, expected: usize) -> Vec<(Side, Vec<u8>)> {
        let mut seen = Vec::new();
        let until = Instant::now() + ANSWER_MAX;
        let mut quiet_since = Instant::now();
        loop {
            let before = seen.len();
            for (side, wire) in [(Side::Client, &mut self.client), (Side::Real, &mut self.real)] {
                while let Some(frame) = wire.receive(Duration::ZERO).expect("the wire works") {
                    if !is_noise(&frame) {
                        seen.push((side, frame));
                    }
                }
            }
            let now = Instant::now();
            if seen.len() > before {
                quiet_since = now;
            }
            let enough = seen.len() >= expected && now - quiet_since > SILENCE;
            if enough || now > until {
                return seen;
            }
            std::thread::sleep(Duration::from_micros(300));
        }
    }
}

/// A wire from `wire` to a new interface of `host`.
fn connect(host: &mut Host, wire: &mut Host, name: &str, mac: u8, addresses: &[(&str, u8)]) -> FrameSocket {
    let outer = format!("w{name}");
    let ends = [
        VethEnd {
            name: &outer,
            namespace: None,
            mac: None,
        },
        VethEnd {
            name,
            namespace: Some(host.namespace()),
            mac: Some(Mac([2, 0, 0, 0, 0, mac])),
        },
    ];
    wire.netlink().create_veth(ends, 1).expect("a veth pair");
    host.set_up(name, true).expect("up");
    wire.set_up(&outer, true).expect("up");
    for (address, bits) in addresses {
        host.add_address(name, address.parse().unwrap(), *bits)
            .expect("an address");
    }
    let index = wire.link(&outer).expect("a link").index;
    FrameSocket::open_in(wire.namespace(), index).expect("a packet socket")
}

fn neighbour(host: &mut Host, interface: &str, address: &str, last: u8) {
    let index = host.link(interface).expect("a link").index;
    let netlink: &mut Netlink = host.netlink();
    netlink
        .add_neighbour(index, address.parse().unwrap(), Mac([2, 0, 0, 0, 0, last]))
        .expect("a neighbour");
}

/// What an interface says of itself: ARP, and ICMPv6 of neighbour discovery and multicast listening.
fn is_noise(frame: &[u8]) -> bool {
    match (&frame[12..14], frame.get(20)) {
        ([0x08, 0x06], _) => true,
        ([0x86, 0xdd], Some(0)) => true,
        ([0x86, 0xdd], Some(58)) => matches!(frame.get(54), Some(130..=137 | 143)),
        _ => false,
    }
}

/// Which of a frame's checksums are right: each IP header's and each transport's, from the outside in.
pub fn checksums(frame: &[u8]) -> Vec<bool> {
    let mut right = Vec::new();
    let protocol = u16::from_be_bytes([frame[12], frame[13]]);
    let family = match protocol {
        0x0800 => Family::V4,
        0x86dd => Family::V6,
        _ => return right,
    };
    packet_checksums(&frame[14..], family, &mut right);
    right
}

fn packet_checksums(packet: &[u8], family: Family, right: &mut Vec<bool>) {
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let (protocol, start, end, fragment, flow) = match family {
        Family::V4 => {
            if packet.len() < 20 {
                return;
            }
            let start = usize::from(packet[0] & 15) * 4;
            let end = usize::from(word(2)).min(packet.len());
            if start < 20 || start > end {
                return;
            }
            right.push(checksum::of(&packet[..start]) == 0);
            let address = |at: usize| u32::from_be_bytes(*packet[at..].first_chunk().unwrap());
            let flow = FlowKey::v4(Protocol(packet[9]), address(12), address(16), 0);
            (packet[9], start, end, word(6) & 0x3fff != 0, flow)
        }
        Family::V6 => {
            if packet.len() < 40 {
                return;
            }
            let end = (40 + usize::from(word(4))).min(packet.len());
            let address = |at: usize| u128::from_be_bytes(*packet[at..].first_chunk().unwrap());
            let flow = FlowKey::v6(Protocol(packet[6]), address(8), address(24), 0);
            (packet[6], 40, end, false, flow)
        }
    };
    let payload = &packet[start..end];
    if fragment {
        return;
    }
    let pseudo = checksum::pseudo_header(&flow, payload.len() as u32);
    let whole = |with_pseudo: u64| checksum::fold(with_pseudo + checksum::sum(payload)) == 0xffff;
    match protocol {
        4 => packet_checksums(payload, Family::V4, right),
        41 => packet_checksums(payload, Family::V6, right),
        1 => right.push(whole(0)),
        6 | 17 | 58 => right.push(whole(pseudo)),
        132 if payload.len() >= 12 => right.push(payload[8..12] == checksum::sctp(payload)),
        _ => {}
    }
}
