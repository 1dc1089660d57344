//! The filter against a table of frames, in each flavour, by BPF_PROG_TEST_RUN; and filters on interfaces.

use std::net::IpAddr;

use super::attach::{self, AttachError};
use super::*;
use crate::io::bpf::asm::{Assembler, R0};
use crate::io::bpf::xdp_link::{self, AttachMode};
use crate::io::bpf::{ProgramType, tcx};
use crate::io::testing::{in_namespace, index_of, ip};
use crate::service::TransportProtocol::{Sctp, Tcp, Udp};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The rules of all cases. 10.0.0.0/24 and fd00:10::/64 are clients, .1 the director; VIPs 10.9.0.1 and fd00:9::1.
pub(super) fn maps() -> FilterMaps {
    let mut maps = FilterMaps::new().unwrap();
    let service = |protocol, a, port| Rule::Service {
        protocol,
        address: address(a),
        port,
    };
    let nat = |protocol, a, port| Rule::NatDestination {
        protocol,
        address: address(a),
        port,
    };
    let rules = [
        service(Tcp, "10.9.0.1", 80),
        service(Tcp, "fd00:9::1", 80),
        service(Udp, "10.9.0.2", 0),
        service(Sctp, "10.9.0.3", 9),
        service(Udp, "10.9.0.4", 53),
        nat(Tcp, "172.16.0.11", 8080),
        nat(Tcp, "fd00:16::11", 8080),
        nat(Udp, "172.16.0.12", 0),
        Rule::Local(address("10.0.0.1")),
        Rule::Local(address("fd00:10::1")),
        Rule::Local(address("10.9.0.1")),
        Rule::Local(address("172.16.0.1")),
        Rule::TunnelDestination(address("172.16.0.13")),
    ];
    rules.into_iter().for_each(|rule| maps.insert(rule).unwrap());
    maps
}

/// Ethernet to link address 0 (that of lo, on which test runs take place).
fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn v4_packet(protocol: u8, source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
    p[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    for text in [source, destination] {
        let IpAddr::V4(a) = address(text) else {
            panic!("{text} is not IPv4")
        };
        p.extend(a.octets());
    }
    p.extend(payload);
    p
}

fn v6_packet(next_header: u8, source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0, 0, 0, next_header, 64];
    p[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    for text in [source, destination] {
        let IpAddr::V6(a) = address(text) else {
            panic!("{text} is not IPv6")
        };
        p.extend(a.octets());
    }
    p.extend(payload);
    p
}

pub(super) fn v4(protocol: u8, source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    ethernet(0x0800, &v4_packet(protocol, source, destination, payload))
}

fn v6(next_header: u8, source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    ethernet(0x86dd, &v6_packet(next_header, source, destination, payload))
}

/// Ports and enough behind them: a length for UDP, a data offset for TCP.
pub(super) fn ports(source: u16, destination: u16) -> Vec<u8> {
    let mut l4 = [source.to_be_bytes(), destination.to_be_bytes(), [0, 20]].concat();
    l4.resize(20, 0);
    l4[12] = 0x50;
    l4
}

fn icmp(kind: u8, quote: &[u8]) -> Vec<u8> {
    let mut l4 = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    l4.extend(quote);
    l4
}

/// The frame with one byte changed.
fn with(mut frame: Vec<u8>, offset: usize, value: u8) -> Vec<u8> {
    frame[offset] = value;
    frame
}

fn cut(mut frame: Vec<u8>, len: usize) -> Vec<u8> {
    frame.truncate(len);
    frame
}

/// A chain of extension headers `kinds` of 8 bytes each, then `payload` of protocol `last`.
fn extended(kinds: &[u8], last: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..kinds.len() {
        out.extend([*kinds.get(i + 1).unwrap_or(&last), 0, 0, 0, 0, 0, 0, 0]);
    }
    out.extend(payload);
    out
}

const OURS: bool = true;
const KERNEL: bool = false;

/// A line of prose, the frame, whose it is.
pub(super) type Case = (&'static str, Vec<u8>, bool);

pub(super) fn cases_v4() -> Vec<Case> {
    let syn = || v4(TCP, "10.0.0.9", "10.9.0.1", &ports(5000, 80));
    let with_options = {
        let mut p = v4_packet(TCP, "10.0.0.9", "10.9.0.1", &[&[1; 8][..], &ports(5000, 80)].concat());
        p[0] = 0x47;
        ethernet(0x0800, &p)
    };
    vec![
        ("TCP to a service", syn(), OURS),
        (
            "TCP to another port of the VIP",
            v4(TCP, "10.0.0.9", "10.9.0.1", &ports(80, 22)),
            KERNEL,
        ),
        (
            "UDP to the port of a TCP service",
            v4(UDP, "10.0.0.9", "10.9.0.1", &ports(5000, 80)),
            KERNEL,
        ),
        ("TCP with IP options", with_options, OURS),
        (
            "UDP to a service on all ports",
            v4(UDP, "10.0.0.9", "10.9.0.2", &ports(1, 777)),
            OURS,
        ),
        ("SCTP to a service", v4(132, "10.0.0.9", "10.9.0.3", &ports(1, 9)), OURS),
        (
            "TCP to an address nobody serves",
            v4(TCP, "10.0.0.9", "10.9.0.7", &ports(1, 80)),
            KERNEL,
        ),
        (
            "SSH to the director",
            v4(TCP, "10.0.0.9", "10.0.0.1", &ports(1, 22)),
            KERNEL,
        ),
        (
            "ping to the VIP",
            v4(ICMP, "10.0.0.9", "10.9.0.1", &icmp(8, &[0; 32])),
            KERNEL,
        ),
        ("VRRP", v4(112, "10.0.0.9", "224.0.0.18", &[0; 20]), KERNEL),
        (
            "ESP to a VIP without UDP",
            v4(50, "10.0.0.9", "10.9.0.1", &ports(5000, 80)),
            KERNEL,
        ),
        (
            "ESP where UDP port 500 is served",
            v4(50, "10.0.0.9", "10.9.0.2", &[1]),
            OURS,
        ),
        (
            "AH where UDP port 500 is served",
            v4(51, "10.0.0.9", "10.9.0.2", &[1]),
            OURS,
        ),
        (
            "ESP where another port is served",
            v4(50, "10.0.0.9", "10.9.0.4", &ports(500, 500)),
            KERNEL,
        ),
        (
            "a fragment of ESP there",
            with(v4(50, "10.0.0.9", "10.9.0.4", &[1; 8]), 20, 0x20),
            KERNEL,
        ),
        (
            "a fragment of ESP where UDP port 500 is served",
            with(v4(50, "10.0.0.9", "10.9.0.2", &[1; 8]), 21, 0x10),
            OURS,
        ),
        (
            "ESP of a NAT destination of all ports",
            v4(50, "172.16.0.12", "10.0.0.9", &[1]),
            OURS,
        ),
        ("ESP of another", v4(50, "172.16.0.11", "10.0.0.9", &[1]), KERNEL),
        (
            "ESP of it to the director",
            v4(50, "172.16.0.12", "10.0.0.1", &[1]),
            KERNEL,
        ),
        ("ARP", ethernet(0x0806, &[0; 28]), KERNEL),
        (
            "a VLAN tag",
            ethernet(0x8100, &[&[0, 5, 8, 0][..], &syn()[14..]].concat()),
            KERNEL,
        ),
        ("first fragment to the VIP", with(syn(), 20, 0x20), OURS),
        ("last fragment to the VIP", with(syn(), 21, 0x10), OURS),
        (
            "don't fragment is no fragment",
            with(v4(TCP, "10.0.0.9", "10.9.0.1", &ports(80, 22)), 20, 0x40),
            KERNEL,
        ),
        (
            "UDP fragment to a VIP that serves TCP only",
            with(v4(UDP, "10.0.0.9", "10.9.0.1", &ports(1, 80)), 20, 0x20),
            KERNEL,
        ),
        (
            "fragment of a ping to the VIP",
            with(v4(ICMP, "10.0.0.9", "10.9.0.1", &icmp(8, &[0; 32])), 20, 0x20),
            KERNEL,
        ),
        ("IHL below 5 to the VIP", with(syn(), 14, 0x44), OURS),
        ("version 5 to the VIP", with(syn(), 14, 0x55), OURS),
        ("IHL past the end to the VIP", with(syn(), 14, 0x4f), OURS),
        (
            "IHL below 5 to nobody",
            with(v4(TCP, "10.0.0.9", "10.9.0.7", &ports(1, 80)), 14, 0x44),
            KERNEL,
        ),
        ("total length wrong, ports right", with(syn(), 17, 10), OURS),
        ("no room for the ports", cut(syn(), 14 + 20 + 3), OURS),
        ("IP header cut", cut(syn(), 14 + 19), KERNEL),
        ("nothing but Ethernet", cut(syn(), 14), KERNEL),
        (
            "reply of a NAT destination",
            v4(TCP, "172.16.0.11", "10.0.0.9", &ports(8080, 5000)),
            OURS,
        ),
        (
            "from another port of it",
            v4(TCP, "172.16.0.11", "10.0.0.9", &ports(22, 5000)),
            KERNEL,
        ),
        (
            "its reply to the director's own connection",
            v4(TCP, "172.16.0.11", "172.16.0.1", &ports(8080, 5000)),
            KERNEL,
        ),
        (
            "its reply to a connection from the VIP",
            v4(TCP, "172.16.0.11", "10.9.0.1", &ports(8080, 5000)),
            OURS,
        ),
        (
            "its fragment",
            with(v4(TCP, "172.16.0.11", "10.0.0.9", &ports(0, 0)), 21, 0x10),
            OURS,
        ),
        (
            "its fragment to the director",
            with(v4(TCP, "172.16.0.11", "10.0.0.1", &ports(0, 0)), 21, 0x10),
            KERNEL,
        ),
        (
            "its UDP, where TCP is translated",
            v4(UDP, "172.16.0.11", "10.0.0.9", &ports(8080, 1)),
            KERNEL,
        ),
        (
            "UDP of a NAT destination of all ports",
            v4(UDP, "172.16.0.12", "10.0.0.9", &ports(4, 5)),
            OURS,
        ),
        (
            "a NAT destination as a client of others",
            v4(TCP, "172.16.0.11", "8.8.8.8", &ports(5000, 443)),
            KERNEL,
        ),
    ]
}

pub(super) fn cases_icmp() -> Vec<Case> {
    let to_client = v4_packet(TCP, "10.9.0.1", "10.0.0.9", &ports(80, 5000));
    let to_nat = |port| v4_packet(TCP, "10.0.0.9", "172.16.0.11", &ports(5000, port));
    let ipip = |to| {
        v4_packet(
            4,
            "172.16.0.1",
            to,
            &v4_packet(TCP, "10.0.0.9", "10.9.0.1", &ports(1, 80)),
        )
    };
    let error = |from, to, quote: &[u8]| v4(ICMP, from, to, &icmp(3, quote));
    let to_nat_v6 = v6_packet(TCP, "fd00:10::9", "fd00:16::11", &ports(5000, 8080));
    vec![
        (
            "unreachable to the VIP",
            error("10.0.0.7", "10.9.0.1", &to_client),
            OURS,
        ),
        (
            "time exceeded to the VIP",
            v4(ICMP, "10.0.0.7", "10.9.0.1", &icmp(11, &to_client)),
            OURS,
        ),
        (
            "redirect to the VIP",
            v4(ICMP, "10.0.0.7", "10.9.0.1", &icmp(5, &to_client)),
            OURS,
        ),
        (
            "timestamp request to the VIP",
            v4(ICMP, "10.0.0.7", "10.9.0.1", &icmp(13, &[0; 12])),
            KERNEL,
        ),
        (
            "unreachable to the director",
            error("10.0.0.7", "10.0.0.1", &to_client),
            KERNEL,
        ),
        (
            "unreachable to the director about a NAT destination",
            error("172.16.0.11", "172.16.0.1", &to_nat(8080)),
            KERNEL,
        ),
        (
            "NAT destination to the client",
            error("172.16.0.11", "10.0.0.9", &to_nat(8080)),
            OURS,
        ),
        (
            "router behind the director to the client",
            error("172.16.0.254", "10.0.0.9", &to_nat(8080)),
            OURS,
        ),
        (
            "NAT destination about another port",
            error("172.16.0.11", "10.0.0.9", &to_nat(22)),
            KERNEL,
        ),
        (
            "NAT destination with a cut quote",
            error("172.16.0.11", "10.0.0.9", &to_nat(8080)[..23]),
            OURS,
        ),
        (
            "a cut quote from elsewhere",
            error("172.16.0.254", "10.0.0.9", &to_nat(8080)[..23]),
            KERNEL,
        ),
        (
            "a quoted fragment from a NAT destination",
            error("172.16.0.11", "10.0.0.9", &with(to_nat(8080), 7, 3)),
            OURS,
        ),
        (
            "to the director about a tunnel",
            error("172.16.0.254", "172.16.0.1", &ipip("172.16.0.13")),
            OURS,
        ),
        (
            "to the director about another tunnel",
            error("172.16.0.254", "172.16.0.1", &ipip("172.16.0.14")),
            KERNEL,
        ),
        ("no type", v4(ICMP, "10.0.0.7", "10.9.0.1", &[]), KERNEL),
        (
            "v6: too big to the VIP",
            v6(ICMPV6, "fd00:10::7", "fd00:9::1", &icmp(2, &[0; 60])),
            OURS,
        ),
        (
            "v6: ping to the VIP",
            v6(ICMPV6, "fd00:10::7", "fd00:9::1", &icmp(128, &[0; 60])),
            KERNEL,
        ),
        (
            "v6: neighbour solicitation",
            v6(ICMPV6, "fd00:10::7", "ff02::1:ff00:1", &icmp(135, &[0; 24])),
            KERNEL,
        ),
        (
            "v6: NAT destination to the client",
            v6(ICMPV6, "fd00:16::11", "fd00:10::9", &icmp(1, &to_nat_v6)),
            OURS,
        ),
        (
            "v6: router to the client",
            v6(ICMPV6, "fd00:16::99", "fd00:10::9", &icmp(3, &to_nat_v6)),
            OURS,
        ),
        (
            "v6: cut quote",
            v6(ICMPV6, "fd00:16::11", "fd00:10::9", &icmp(1, &to_nat_v6[..41])),
            OURS,
        ),
        (
            "ICMP number in IPv6",
            v6(ICMP, "fd00:10::7", "fd00:9::1", &icmp(3, &[0; 60])),
            KERNEL,
        ),
        (
            "ICMPv6 number in IPv4",
            v4(ICMPV6, "10.0.0.7", "10.9.0.1", &icmp(3, &[0; 60])),
            KERNEL,
        ),
    ]
}

pub(super) fn cases_v6() -> Vec<Case> {
    let syn = ports(5000, 80);
    let to_vip = |next, payload: &[u8]| v6(next, "fd00:10::9", "fd00:9::1", payload);
    let long = [&[TCP, 120, 0, 0][..], &[0; 964], &syn].concat();
    let too_long = [&[TCP, 121, 0, 0][..], &[0; 972], &syn].concat();
    vec![
        ("TCP to a service", to_vip(TCP, &syn), OURS),
        ("TCP to another port", to_vip(TCP, &ports(80, 22)), KERNEL),
        (
            "hop-by-hop, routing, destination options",
            to_vip(0, &extended(&[0, 43, 60], TCP, &syn)),
            OURS,
        ),
        (
            "the same to another port",
            to_vip(0, &extended(&[0, 43, 60], TCP, &ports(80, 22))),
            KERNEL,
        ),
        (
            "eight extension headers",
            to_vip(60, &extended(&[60; 8], TCP, &ports(80, 22))),
            KERNEL,
        ),
        (
            "nine to a port nobody serves: whatever it is, ours",
            to_vip(60, &extended(&[60; 9], TCP, &ports(80, 22))),
            OURS,
        ),
        (
            "nine to nobody",
            v6(60, "fd00:10::9", "fd00:9::7", &extended(&[60; 9], TCP, &syn)),
            KERNEL,
        ),
        ("a long extension header", to_vip(60, &long), OURS),
        ("one too long to look behind", to_vip(60, &too_long), OURS),
        ("an extension header cut short", to_vip(60, &[TCP]), OURS),
        ("a fragment", to_vip(44, &extended(&[44], TCP, &syn)), OURS),
        (
            "a fragment of UDP, where TCP is served",
            to_vip(44, &extended(&[44], UDP, &syn)),
            KERNEL,
        ),
        (
            "a fragment behind options",
            to_vip(0, &extended(&[0, 44], TCP, &syn)),
            OURS,
        ),
        (
            "a fragment that begins with options",
            to_vip(44, &extended(&[44, 60], TCP, &syn)),
            OURS,
        ),
        ("version 4 in an IPv6 frame", with(to_vip(TCP, &syn), 14, 0x45), KERNEL),
        ("no next header", to_vip(59, &[]), KERNEL),
        ("AH", to_vip(51, &extended(&[51], TCP, &syn)), KERNEL),
        ("header cut", cut(to_vip(TCP, &syn), 14 + 39), KERNEL),
        ("ports cut", cut(to_vip(TCP, &syn), 14 + 42), OURS),
        (
            "reply of a NAT destination",
            v6(TCP, "fd00:16::11", "fd00:10::9", &ports(8080, 5)),
            OURS,
        ),
        (
            "its reply to the director",
            v6(TCP, "fd00:16::11", "fd00:10::1", &ports(8080, 5)),
            KERNEL,
        ),
        (
            "an IPv4 VIP's bytes in an IPv6 address",
            v6(TCP, "fd00:10::9", "a09:1::", &syn),
            KERNEL,
        ),
    ]
}

/// The verdict, from what each flavour returns.
pub(super) fn is_match(filter: &Filter, frame: &[u8]) -> bool {
    let run = |frame: &[u8]| filter.program.run_once(frame).unwrap();
    match filter.flavour {
        // No sockets here: dropped.
        Flavour::Xdp => match run(frame) {
            1 => OURS,
            2 => KERNEL,
            other => panic!("XDP verdict {other}"),
        },
        Flavour::TcIngress => match run(frame) as i32 {
            2 => OURS,
            -1 => KERNEL,
            other => panic!("tc verdict {other}"),
        },
        // Such test runs take the first 14 bytes off, after they have compared the link address.
        Flavour::Socket => match run(&[&frame[..12], &[0; 2], frame].concat()) as i32 {
            -1 => OURS,
            0 => KERNEL,
            other => panic!("socket verdict {other}"),
        },
    }
}

/// How: each frame of the tables through each flavour. Goal: the same verdict, the expected one, and counted.
#[test]
fn frames_are_told_apart() {
    in_namespace(|| {
        ip("link set lo up");
        let maps = maps();
        for flavour in [Flavour::Xdp, Flavour::TcIngress, Flavour::Socket] {
            let filter = Filter::load(flavour, &maps).unwrap();
            let mut expected = FilterCounters::default();
            let mut wrong = Vec::new();
            for (prose, frame, verdict) in [cases_v4(), cases_icmp(), cases_v6()].concat() {
                let header_len = if frame[12] == 0x86 { 14 + 40 } else { 14 + 20 };
                if flavour == Flavour::TcIngress && frame.len() < header_len {
                    continue; // BPF_PROG_TEST_RUN makes no packet without a whole IP header.
                }
                if is_match(&filter, &frame) != verdict {
                    wrong.push(format!(
                        "{prose}: should be {}",
                        if verdict { "ours" } else { "the kernel's" }
                    ));
                }
                expected.matched += verdict as u64;
                expected.passed += !verdict as u64;
            }
            assert_eq!(wrong, Vec::<String>::new(), "{flavour:?}");
            if flavour != Flavour::Socket {
                assert_eq!(filter.counters().unwrap(), expected, "{flavour:?}");
            }
        }
    });
}

/// How: the same frame to another link address. Goal: such frames are the kernel's, which ignores them.
#[test]
fn frames_to_another_link_address_pass() {
    in_namespace(|| {
        ip("link set lo up");
        let maps = maps();
        let syn = v4(TCP, "10.0.0.9", "10.9.0.1", &ports(5000, 80));
        let elsewhere = with(syn.clone(), 5, 7);
        let xdp = Filter::load(Flavour::Xdp, &maps).unwrap();
        assert!(is_match(&xdp, &elsewhere), "no link address is known yet");
        xdp.set_link_address(Mac([0; 6])).unwrap();
        for filter in [
            xdp,
            Filter::load(Flavour::TcIngress, &maps).unwrap(),
            Filter::load(Flavour::Socket, &maps).unwrap(),
        ] {
            assert!(is_match(&filter, &syn), "{:?}", filter.flavour);
            assert!(!is_match(&filter, &elsewhere), "{:?}", filter.flavour);
        }
    });
}

/// How: two rules on one address come and go. Goal: roles are shared rightly, and nothing is left behind.
#[test]
fn rules_come_and_go() {
    in_namespace(|| {
        let mut maps = FilterMaps::new().unwrap();
        let filter = Filter::load(Flavour::Xdp, &maps).unwrap();
        let rule = |port| Rule::Service {
            protocol: Tcp,
            address: address("10.9.0.1"),
            port,
        };
        let ours = |port| is_match(&filter, &v4(TCP, "10.0.0.9", "10.9.0.1", &ports(1, port)));
        maps.insert(Rule::Local(address("10.9.0.1"))).unwrap();
        assert!(!ours(80));
        maps.grow_to(&[rule(80), rule(443)].into()).unwrap();
        maps.insert(rule(80)).unwrap();
        assert!(ours(80) && ours(443) && !ours(22));
        maps.remove(rule(80)).unwrap();
        maps.remove(rule(80)).unwrap();
        assert!(!ours(80) && ours(443));
        maps.shrink_to(&[].into()).unwrap();
        assert!(!ours(443));
        assert!(maps.rules().is_empty());
        assert!(
            !maps.addresses.remove(&keys::address_key(address("10.9.0.1"))).unwrap(),
            "the address is left"
        );
    });
}

/// How: one filter after another in each mode. Goal: ours replaces ours, over a change of mode too, and one remains.
#[test]
fn a_filter_takes_the_place_of_an_older_one() {
    in_namespace(|| {
        ip("link add a0 type veth peer name b0");
        let (a, maps) = (index_of("a0"), maps());
        for mode in [
            AttachMode::Native,
            AttachMode::Native,
            AttachMode::Generic,
            AttachMode::Native,
        ] {
            let filter = Filter::load(Flavour::Xdp, &maps).unwrap();
            attach::attach_xdp(a, mode, &filter, &maps).unwrap();
            let found = attach::query_xdp(a).unwrap();
            assert_eq!(found.len(), 1);
            assert!(found[0].is_ours());
            assert_eq!((found[0].mode, &found[0].info), (mode, &filter.program.info().unwrap()));
            assert_eq!(attach::query_tc(a).unwrap(), [], "the cover is gone");
        }
        assert_eq!(attach::detach_xdp(a).unwrap(), 1);
        assert_eq!(attach::detach_xdp(a).unwrap(), 0);

        for _ in 0..2 {
            attach::attach_tc(a, &Filter::load(Flavour::TcIngress, &maps).unwrap()).unwrap();
            assert_eq!(attach::query_tc(a).unwrap().len(), 1);
        }
        assert_eq!(attach::detach_tc(a).unwrap(), 1);
    });
}

/// How: somebody else's programs on the interface. Goal: refused by name, and left alone.
#[test]
fn foreign_programs_are_named_and_left_alone() {
    in_namespace(|| {
        ip("link add a0 type veth peer name b0");
        let (a, maps) = (index_of("a0"), maps());
        let mut text = Assembler::new();
        text.mov_imm(R0, 2);
        text.exit();
        let text = text.finish();
        let foreign = Program::load(ProgramType::Xdp, "their_filter", &text).unwrap();
        xdp_link::attach(a, AttachMode::Generic, &foreign, None).unwrap();
        let their_tc = Program::load(ProgramType::SchedCls, "their_tc", &text).unwrap();
        tcx::attach(a, &their_tc, None).unwrap();

        let filter = Filter::load(Flavour::Xdp, &maps).unwrap();
        let error = attach::attach_xdp(a, AttachMode::Native, &filter, &maps).unwrap_err();
        assert!(matches!(error, AttachError::Foreign { .. }));
        let text = error.to_string();
        assert!(
            text.contains("interface a0 has the generic XDP program their_filter (id "),
            "{text}"
        );
        assert_eq!(attach::detach_xdp(a).unwrap(), 0);
        assert_eq!(attach::detach_tc(a).unwrap(), 0);
        assert_eq!(attach::query_xdp(a).unwrap().len(), 1);
        assert_eq!(tcx::query(a).unwrap().len(), 1);
    });
}
