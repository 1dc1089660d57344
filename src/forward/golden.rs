//! What the kernel's IPVS did with recorded packets (`tests/kernel/packets.json`), against the functions of this module.
//!
//! The scheduler and the connection table are not here: which destination was meant is read from the recorded output, and
//! everything else, to the byte, is computed. The whole director is held against the same file in `tests/`.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::Value;

use super::fragment::{Inserted, Reassembly, Splitter};
use super::tunnel::Outer;
use super::{Cut, Identifications, Outcome, icmp, masq, related, route, tunnel};
use crate::packet::parse::{self, Packet};
use crate::packet::quote::quote;
use crate::packet::testing::{TestFrame, hex, to_hex};
use crate::packet::{Endpoint, FlowKey, Frame, Mac, Offload, Parsed, Protocol, checksum};
use crate::service::{Method, Tunnel, TunnelKind};
use crate::table::{InterfaceId, NextHop};

const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xc0]);
const DIRECTOR_CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xd0]);
const DIRECTOR_SERVER_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xd1]);

/// The director as set up by one vector, with the connections that its packets made.
struct Director {
    /// Service and its destinations.
    services: Vec<(Endpoint, IpAddr, Vec<Server>)>,
    connections: HashMap<FlowKey, (Server, Endpoint)>,
    reassembly: Reassembly,
    ids: Identifications,
}

#[derive(Clone, Debug)]
struct Server {
    endpoint: Endpoint,
    address: IpAddr,
    method: Method,
    tunnel: Tunnel,
}

impl Director {
    fn new(setup: &[Value]) -> Director {
        let mut director = Director {
            services: Vec::new(),
            connections: HashMap::new(),
            reassembly: Reassembly::new(),
            ids: Identifications::new(0x1234),
        };
        for line in setup {
            let words: Vec<&str> = line.as_str().unwrap().split_whitespace().collect();
            let after = |option: &str| words.iter().position(|word| *word == option).map(|at| words[at + 1]);
            let (vip, port) = address(words[2]);
            if words[0] == "-A" {
                director.services.push(((vip, port).into(), vip, Vec::new()));
                continue;
            }
            let (server, port) = address(after("-r").unwrap());
            let method = match () {
                _ if words.contains(&"-m") => Method::Masq,
                _ if words.contains(&"-i") => Method::Tunnel,
                _ => Method::Route,
            };
            let kind = match after("--tun-type") {
                Some("gue") => TunnelKind::Gue,
                Some("gre") => TunnelKind::Gre,
                _ => TunnelKind::Ipip,
            };
            let tunnel = Tunnel {
                kind,
                port: after("--tun-port").map_or(0, |p| p.parse().unwrap()),
                ..Tunnel::default()
            };
            let server = Server {
                endpoint: (server, port).into(),
                address: server,
                method,
                tunnel,
            };
            let service = director
                .services
                .iter_mut()
                .find(|service| service.1 == vip && service.0.port == address(words[2]).1);
            service.unwrap().2.push(server);
        }
        director
    }

    /// What comes out for a frame in. `meant` is where the recorded output went.
    fn process(&mut self, bytes: &[u8], from_client: bool, meant: Option<[u8; 6]>) -> Vec<Vec<u8>> {
        let mut frame = TestFrame::from(bytes);
        match parse::parse(bytes, Offload::default()) {
            Ok(Packet::Flow(parsed)) => self.flow(&mut frame, &parsed, from_client, meant),
            Ok(Packet::IcmpError(parsed)) => self.icmp(&mut frame, &parsed, from_client),
            Ok(Packet::Fragment(fragment)) => match self.reassembly.insert(bytes, &fragment, 0) {
                Inserted::Complete(mut datagram) => {
                    let Ok(Packet::Flow(parsed)) = parse::parse(datagram.bytes(), datagram.offload()) else {
                        panic!("not whole: {}", to_hex(datagram.bytes()));
                    };
                    let out = self.flow(&mut datagram, &parsed, from_client, meant);
                    self.reassembly.release(datagram);
                    out
                }
                Inserted::Held | Inserted::Dropped => vec![],
            },
            Ok(Packet::Other) | Err(_) => vec![],
        }
    }

    fn flow<F: Frame>(
        &mut self,
        frame: &mut F,
        parsed: &Parsed,
        from_client: bool,
        meant: Option<[u8; 6]>,
    ) -> Vec<Vec<u8>> {
        if !from_client {
            let Some((_, vip)) = self.connections.get(&parsed.flow.reversed()).cloned() else {
                return vec![];
            };
            let outcome = masq::forward_out(frame, parsed, vip, &client_hop());
            return self.settle(frame, parsed, outcome, server_side_address(&parsed.flow));
        }
        let destination = Endpoint::from((parsed.flow.destination(), parsed.flow.destination_port()));
        let Some((vip, _, servers)) = self.services.iter().find(|service| service.0 == destination) else {
            return vec![];
        };
        let server = servers
            .iter()
            .find(|server| servers.len() == 1 || meant == Some(server_mac(server.address).0))
            .cloned();
        let Some(server) = server.filter(|_| meant.is_some()) else {
            return self.error(icmp::Error::PortUnreachable, frame, parsed, parsed.flow.destination());
        };
        let mut key = parsed.flow;
        if server.method == Method::Masq {
            key = FlowKey::new(
                key.protocol,
                (key.source(), key.source_port()),
                (server.address, server.endpoint.port),
            );
        }
        self.connections.insert(key, (server.clone(), *vip));
        self.connections.insert(parsed.flow, (server.clone(), *vip));
        let outcome = self.forward(frame, parsed, &server);
        self.settle(frame, parsed, outcome, parsed.flow.destination())
    }

    fn forward<F: Frame>(&mut self, frame: &mut F, parsed: &Parsed, server: &Server) -> Outcome {
        let hop = server_hop(server.address);
        match server.method {
            Method::Route => route::forward(frame, parsed, &hop),
            Method::Masq => masq::forward_in(frame, parsed, server.endpoint, &hop),
            Method::Tunnel => {
                let source = if server.address.is_ipv4() {
                    "172.16.0.1"
                } else {
                    "fd00:16::1"
                }
                .parse()
                .unwrap();
                let outer = Outer {
                    hop,
                    source,
                    destination: server.address,
                    tunnel: server.tunnel,
                    path_mtu_discovery: true,
                };
                tunnel::forward(frame, parsed, &outer, &mut self.ids)
            }
        }
    }

    fn icmp(&mut self, frame: &mut TestFrame, parsed: &Parsed, from_client: bool) -> Vec<Vec<u8>> {
        let Ok(quote) = quote(frame.bytes(), parsed) else {
            return vec![];
        };
        let Some((server, vip)) = self
            .connections
            .get(&quote.flow.reversed())
            .or(self.connections.get(&quote.flow))
            .cloned()
        else {
            return vec![];
        };
        let outcome = match (from_client, server.method) {
            (true, Method::Masq) => {
                related::masq_in(frame, parsed, &quote, server.endpoint, &server_hop(server.address))
            }
            (true, _) => self.forward(frame, parsed, &server),
            (false, _) => related::masq_out(frame, parsed, &quote, vip, &client_hop()),
        };
        self.settle(frame, parsed, outcome, parsed.flow.destination())
    }

    fn settle<F: Frame>(&mut self, frame: &mut F, parsed: &Parsed, outcome: Outcome, source: IpAddr) -> Vec<Vec<u8>> {
        match outcome {
            Outcome::Ready => vec![frame.bytes().to_vec()],
            Outcome::Fragment(cut) => self.split(frame, cut),
            Outcome::TtlExpired => self.error(icmp::Error::TimeExceeded, frame, parsed, source),
            Outcome::TooBig { mtu } => self.error(icmp::Error::TooBig { mtu }, frame, parsed, source),
            other => panic!("{other:?}"),
        }
    }

    fn split<F: Frame>(&mut self, frame: &F, cut: Cut) -> Vec<Vec<u8>> {
        let mut splitter = Splitter::new(frame, cut, &mut self.ids);
        let mut out = Vec::new();
        while !splitter.is_done() {
            let mut piece = TestFrame::from(&[][..]);
            splitter.write_next(&mut piece).unwrap();
            out.push(piece.bytes().to_vec());
        }
        assert!(
            frame
                .reassembled()
                .is_none_or(|whole| out.len() >= whole.pieces as usize)
        );
        out
    }

    fn error<F: Frame>(&mut self, error: icmp::Error, frame: &F, parsed: &Parsed, source: IpAddr) -> Vec<Vec<u8>> {
        let mut answer = TestFrame::from(&[][..]);
        if icmp::error(error, frame, parsed, source, &mut answer, &mut self.ids) {
            vec![answer.bytes().to_vec()]
        } else {
            vec![]
        }
    }
}

fn address(text: &str) -> (IpAddr, u16) {
    let (address, port) = text.rsplit_once(':').unwrap();
    (address.trim_matches(['[', ']']).parse().unwrap(), port.parse().unwrap())
}

fn server_mac(address: IpAddr) -> Mac {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3] - 11,
        IpAddr::V6(v6) => v6.octets()[15] - 0x11,
    };
    Mac([2, 0, 0, 0, 0, 0xa1 + last])
}

fn server_hop(address: IpAddr) -> NextHop {
    NextHop {
        interface: InterfaceId(1),
        source: DIRECTOR_SERVER_MAC,
        destination: server_mac(address),
        mtu: 1500,
    }
}

fn client_hop() -> NextHop {
    NextHop {
        interface: InterfaceId(0),
        source: DIRECTOR_CLIENT_MAC,
        destination: CLIENT_MAC,
        mtu: 1500,
    }
}

/// The director's own address towards a destination: what it tells errors with.
fn server_side_address(flow: &FlowKey) -> IpAddr {
    if flow.source().is_ipv4() {
        "172.16.0.1"
    } else {
        "fd00:16::1"
    }
    .parse()
    .unwrap()
}

/// Frames are the same but for the volatile bytes; `None` in the file: identification and header checksum of outer headers.
fn assert_same(name: &str, got: &[u8], want: &[u8], volatile: &Value) {
    let offsets: Vec<usize> = match volatile.as_array() {
        Some(offsets) => offsets.iter().map(|offset| offset.as_u64().unwrap() as usize).collect(),
        None if want[12..14] == [8, 0] => vec![18, 19, 24, 25],
        None => vec![],
    };
    let mask = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        offsets
            .iter()
            .filter(|at| **at < want.len())
            .for_each(|at| bytes[*at] = 0);
        to_hex(&bytes)
    };
    assert_eq!(mask(got), mask(want), "{name}");
    if got[12..14] == [8, 0] {
        let header = 14 + (got[14] & 15) as usize * 4;
        assert_eq!(checksum::of(&got[14..header]), 0, "{name}: header checksum");
    }
}

/// The kernel leaves the checksum of an ICMPv6 error that it rewrites to the device, and the recording device had none: the
/// recorded field is the pseudo-header's sum. On a wire it is what this makes of it.
fn as_on_a_wire(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes[12..14] == [0x86, 0xdd] && bytes[20] == 58 {
        let pseudo = |bytes: &[u8]| {
            let address = |at: usize| u128::from_be_bytes(*bytes[at..].first_chunk().unwrap());
            let flow = FlowKey::v6(Protocol::ICMPV6, address(22), address(38), 0);
            checksum::pseudo_header(&flow, bytes.len() as u32 - 54)
        };
        if checksum::fold(pseudo(&bytes)).to_be_bytes() == bytes[56..58] {
            let checksum = checksum::of(&bytes[54..]);
            bytes[56..58].copy_from_slice(&checksum.to_be_bytes());
        }
    }
    bytes
}

/// Decided elsewhere: by the connection table, the schedulers, or the local stack.
fn is_elsewhere(name: &str, want: &[&Value]) -> bool {
    // The kernel forwards these; uvs drops them as malformed.
    let deviations = ["doff-beyond", "udp-bad-len"];
    let not_here = [
        "-noconn",
        "removed-real",
        "readded-real",
        "real-readded",
        "service-deleted",
        "icmp-echo",
        "reply-nat-noconn",
    ];
    deviations.iter().chain(&not_here).any(|part| name.contains(part))
        || want.iter().any(|out| {
            // A TCP reset of the local stack.
            let bytes = hex(out["hex"].as_str().unwrap());
            out["seen_on"] == "client_side" && bytes[23] == 6 && bytes[47] & 4 != 0 && !name.contains("reply")
        })
}

#[test]
fn as_the_kernel_does() {
    let file: Value = serde_json::from_str(include_str!("../../tests/kernel/packets.json")).unwrap();
    let mut compared = 0;
    for vector in file["vectors"].as_array().unwrap() {
        let name = vector["name"].as_str().unwrap();
        let mut director = Director::new(vector["setup"].as_array().unwrap());
        for step in vector["steps"].as_array().unwrap() {
            let Some(side) = step["inject_on"].as_str() else {
                continue;
            };
            let want: Vec<&Value> = step["outputs"].as_array().unwrap().iter().collect();
            if is_elsewhere(name, &want) {
                break;
            }
            let meant = match (want.first(), name.contains("ttl1") || name.contains("hlim1")) {
                (_, true) => Some([0; 6]),
                (Some(out), _) if out["seen_on"] == "real_side" => {
                    hex(out["hex"].as_str().unwrap()).first_chunk().copied()
                }
                _ => None,
            };
            let input = hex(step["input_hex"].as_str().unwrap());
            let got = director.process(&input, side == "client_side", meant);
            let list = |frames: &[Vec<u8>]| frames.iter().map(|frame| to_hex(frame)).collect::<Vec<_>>().join("\n");
            assert_eq!(got.len(), want.len(), "{name}: got {}\nwant {want:?}", list(&got));
            for (got, want) in got.iter().zip(&want) {
                assert_same(
                    name,
                    got,
                    &as_on_a_wire(hex(want["hex"].as_str().unwrap())),
                    &want["volatile_offsets"],
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "only {compared} frames compared");
}
