//! What must hold for any bytes that come in: one function, run by the fuzz target (`fuzz/`), by the replay of its corpus and
//! by property tests. It panics where something does not hold.
//!
//! Reading says the same twice. Whatever a forwarding method makes of a frame can be read again, is one hop older, goes where
//! it was sent, and has right checksums wherever those of the input were right. Fragments of it become the same datagram again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::fragment::{Inserted, Reassembly, Splitter};
use super::{Identifications, Outcome, icmp, masq, related, route, tunnel};
use crate::packet::checksum;
use crate::packet::parse::{Packet, parse};
use crate::packet::quote::quote;
use crate::packet::rewrite::Endpoint;
use crate::packet::vec_frame::VecFrame;
use crate::packet::{Family, Frame, Mac, Offload, Parsed, Protocol};
use crate::service::{Tunnel, TunnelChecksum, TunnelKind};
use crate::table::{InterfaceId, NextHop};

/// Checks everything above for one frame.
pub fn check(bytes: &[u8]) {
    let verdict = parse(bytes, Offload::default());
    assert_eq!(verdict, parse(bytes, Offload::default()), "the same verdict twice");
    match verdict {
        Ok(Packet::Flow(parsed) | Packet::Secured(parsed)) => check_flow(bytes, &parsed),
        Ok(Packet::IcmpError(parsed)) => check_icmp(bytes, &parsed),
        Ok(Packet::Fragment(fragment)) => {
            let mut reassembly = Reassembly::with_datagrams(1);
            let inserted = reassembly.insert(bytes, &fragment, 0);
            let whole = matches!(inserted, Inserted::Complete(_)) as u64;
            let dropped = reassembly.take_dropped();
            assert_eq!(
                reassembly.held() + dropped.fragment + dropped.memory + whole,
                1,
                "every fragment is accounted for"
            );
        }
        Ok(Packet::Other) | Err(_) => {}
    }
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 16, 0, 11));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x11));
const PORT: u16 = 8080;

fn hop(mtu: u16) -> NextHop {
    NextHop {
        interface: InterfaceId(0),
        source: Mac([2, 0, 0, 0, 0, 1]),
        destination: Mac([2, 0, 0, 0, 0, 2]),
        mtu,
    }
}

fn server(family: Family) -> IpAddr {
    match family {
        Family::V4 => V4,
        Family::V6 => V6,
    }
}

/// One way of forwarding, and what it does to the flow.
type Forwarding<'a> = (&'a str, &'a dyn Fn(&mut VecFrame) -> Outcome);

fn check_flow(bytes: &[u8], parsed: &Parsed) {
    let endpoint = Endpoint::from((server(parsed.flow.family), PORT));
    let tunnel = |destination: IpAddr, kind, checksum, mtu| {
        move |frame: &mut VecFrame| {
            let outer = tunnel::Outer {
                hop: &hop(mtu),
                source: destination,
                destination,
                tunnel: Tunnel {
                    kind,
                    port: 6080,
                    checksum,
                },
                path_mtu_discovery: true,
            };
            tunnel::forward(frame, parsed, &outer, &mut Identifications::default())
        }
    };
    use TunnelChecksum::{Csum, NoCsum};
    use TunnelKind::{Gre, Gue, Ipip};
    for mtu in [1500, 600] {
        let methods: [Forwarding<'_>; 9] = [
            ("route", &|frame| route::forward(frame, parsed, &hop(mtu))),
            ("in", &|frame| masq::forward_in(frame, parsed, endpoint, &hop(mtu))),
            ("out", &|frame| masq::forward_out(frame, parsed, endpoint, &hop(mtu))),
            ("ipip", &tunnel(V4, Ipip, NoCsum, mtu)),
            ("ip6ip6", &tunnel(V6, Ipip, NoCsum, mtu)),
            ("gre", &tunnel(V4, Gre, NoCsum, mtu)),
            ("gre, checksum", &tunnel(V6, Gre, Csum, mtu)),
            ("gue", &tunnel(V6, Gue, NoCsum, mtu)),
            ("gue, checksum", &tunnel(V4, Gue, Csum, mtu)),
        ];
        for (name, forward) in methods {
            let mut frame = VecFrame::from(bytes);
            let outcome = forward(&mut frame);
            check_outcome(name, bytes, parsed, frame, outcome, mtu);
        }
    }
}

fn check_outcome(name: &str, bytes: &[u8], parsed: &Parsed, frame: VecFrame, outcome: Outcome, mtu: u16) {
    match outcome {
        Outcome::Ready => {
            assert!(
                frame.bytes().len() <= 14 + mtu as usize,
                "{name}: no longer than the MTU"
            );
            check_forwarded(name, bytes, parsed, &frame);
        }
        Outcome::Fragment(cut) => {
            check_forwarded(name, bytes, parsed, &frame);
            check_pieces(name, &frame, cut, mtu);
        }
        Outcome::TtlExpired => {
            assert!(parsed.ttl <= 1 && frame.bytes() == bytes, "{name}: not touched");
            check_error(icmp::Error::TimeExceeded, &frame, parsed);
        }
        Outcome::TooBig { mtu: limit } => {
            assert!(parsed.ip_len() > limit as u32, "{name}: too long");
            check_error(icmp::Error::TooBig { mtu: limit }, &frame, parsed);
        }
        Outcome::Segment | Outcome::NoHeadroom => panic!("{name}: {outcome:?}"),
    }
}

/// The inner packet of a tunnel, or the packet itself.
fn inner_of(name: &str, frame: &VecFrame) -> Vec<u8> {
    let bytes = frame.bytes();
    let ip = if bytes[14] >> 4 == 4 { 20 } else { 40 };
    let overhead = match name {
        "route" | "in" | "out" => return bytes.to_vec(),
        "ipip" | "ip6ip6" => ip,
        "gre" => ip + 4,
        "gre, checksum" => ip + 8,
        _ => ip + 12,
    };
    let mut inner = bytes[..14].to_vec();
    inner.extend(&bytes[14 + overhead..]);
    let ether_type = if inner[14] >> 4 == 4 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    inner[12..14].copy_from_slice(&ether_type);
    inner
}

fn check_forwarded(name: &str, bytes: &[u8], parsed: &Parsed, frame: &VecFrame) {
    let inner = inner_of(name, frame);
    let after = match parse(&inner, Offload::default()) {
        Ok(Packet::Flow(after) | Packet::Secured(after)) => after,
        other => panic!("{name}: {other:?} after forwarding"),
    };
    assert_eq!(after.ttl, parsed.ttl - 1, "{name}: one hop older");
    assert_eq!(
        inner.len(),
        parsed.end as usize,
        "{name}: without padding, nothing lost"
    );
    let mut expected = parsed.flow;
    match name {
        "in" => expected = with_destination(expected),
        "out" => expected = with_destination(expected.reversed()).reversed(),
        _ => {}
    }
    assert_eq!(after.flow, expected, "{name}: where it goes");
    if transport_checksum_is_right(bytes, parsed) {
        assert!(
            transport_checksum_is_right(&inner, &after),
            "{name}: the transport checksum follows"
        );
    }
    if name != "in" && name != "out" {
        // The payload is what it was, but for a checksum that had to be finished.
        let payload = (parsed.l4 as usize + 20).min(inner.len());
        assert_eq!(
            inner[payload..],
            bytes[payload..parsed.end as usize],
            "{name}: the payload stays"
        );
    }
}

fn with_destination(flow: crate::packet::FlowKey) -> crate::packet::FlowKey {
    let port = if is_secured(flow.protocol) { 0 } else { PORT };
    crate::packet::FlowKey::new(
        flow.protocol,
        (flow.source(), flow.source_port()),
        (server(flow.family), port),
    )
}

fn is_secured(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::AH | Protocol::ESP)
}

/// `true` also for UDP without one, and where there is none like it.
fn transport_checksum_is_right(bytes: &[u8], parsed: &Parsed) -> bool {
    let transport = &bytes[parsed.l4 as usize..parsed.end as usize];
    let len = match parsed.flow.protocol {
        Protocol::TCP => transport.len(),
        Protocol::UDP if transport[6..8] == [0, 0] => return true,
        Protocol::UDP => u16::from_be_bytes([transport[4], transport[5]]) as usize,
        Protocol::SCTP => return transport[8..12] == checksum::sctp(transport),
        _ => return true,
    };
    let sum = checksum::pseudo_header(&parsed.flow, len as u32) + checksum::sum(&transport[..len]);
    checksum::fold(sum) == 0xffff
}

/// Fragments are short enough, good, and make the same datagram again.
fn check_pieces(name: &str, frame: &VecFrame, cut: super::Cut, mtu: u16) {
    let mut splitter = Splitter::new(frame, cut, &mut Identifications::default());
    let mut reassembly = Reassembly::with_datagrams(1);
    let mut pieces = splitter.pieces();
    while !splitter.is_done() {
        let mut piece = VecFrame::from(&[][..]);
        splitter.write_next(&mut piece).expect("2 KiB are enough");
        pieces -= 1;
        assert!(piece.bytes().len() <= 14 + mtu as usize, "{name}: a piece fits");
        let Ok(Packet::Fragment(fragment)) = parse(piece.bytes(), Offload::default()) else {
            panic!("{name}: a piece is no fragment");
        };
        match reassembly.insert(piece.bytes(), &fragment, 0) {
            Inserted::Held => assert_ne!(pieces, 0),
            Inserted::Complete(datagram) => {
                assert_eq!(pieces, 0);
                // The reserved bit of IPv4 is not kept.
                let reserved = frame.bytes()[14] >> 4 == 4 && frame.bytes()[20] & 0x80 != 0;
                assert!(reserved || datagram.bytes() == frame.bytes(), "{name}: the same again");
            }
            Inserted::Dropped => panic!("{name}: a piece is refused"),
        }
    }
}

/// An error about a packet is one that names it.
fn check_error(error: icmp::Error, about: &VecFrame, parsed: &Parsed) {
    let mut answer = VecFrame::from(&[][..]);
    let source = parsed.flow.destination();
    if !icmp::error(
        error,
        about,
        parsed,
        source,
        &mut answer,
        &mut Identifications::default(),
    ) {
        return;
    }
    let Ok(Packet::IcmpError(outer)) = parse(answer.bytes(), Offload::default()) else {
        panic!("{error:?}: {:?}", parse(answer.bytes(), Offload::default()));
    };
    assert_eq!(
        (outer.flow.source(), outer.flow.destination()),
        (source, parsed.flow.source())
    );
    if let Ok(quoted) = quote(answer.bytes(), &outer)
        && !is_secured(parsed.flow.protocol)
    {
        assert_eq!(quoted.flow, parsed.flow, "{error:?}: quotes the packet");
    }
}

fn check_icmp(bytes: &[u8], parsed: &Parsed) {
    let Ok(quoted) = quote(bytes, parsed) else { return };
    let endpoint = Endpoint::from((server(parsed.flow.family), PORT));
    if quoted.outer.is_some() {
        let mut frame = VecFrame::from(bytes);
        let translated = related::from_tunnel(
            &mut frame,
            parsed,
            &quoted,
            20,
            &hop(1500),
            &mut Identifications::default(),
        );
        if translated {
            let Ok(Packet::IcmpError(after)) = parse(frame.bytes(), Offload::default()) else {
                panic!("not an error after translation");
            };
            assert_eq!(after.flow.destination(), quoted.flow.source());
        }
        return;
    }
    if quoted.flow.family != parsed.flow.family {
        return;
    }
    for inbound in [true, false] {
        let mut frame = VecFrame::from(bytes);
        let forward = if inbound { related::masq_in } else { related::masq_out };
        if forward(&mut frame, parsed, &quoted, endpoint, &hop(1500)) != Outcome::Ready {
            continue;
        }
        let Ok(Packet::IcmpError(after)) = parse(frame.bytes(), Offload::default()) else {
            panic!(
                "not an error after translation: {:?}",
                parse(frame.bytes(), Offload::default())
            );
        };
        let again = quote(frame.bytes(), &after).expect("the quote is still there");
        let ours = (server(parsed.flow.family), PORT);
        let (outer, inner) = if inbound {
            (
                after.flow.destination(),
                (again.flow.source(), again.flow.source_port()),
            )
        } else {
            (
                after.flow.source(),
                (again.flow.destination(), again.flow.destination_port()),
            )
        };
        assert_eq!((outer, inner), (ours.0, ours));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::testing::*;

    proptest! {
        #[test]
        fn holds_for_good_packets(which in 0usize..4, payload in proptest::collection::vec(any::<u8>(), 0..1500), ttl: u8) {
            let mut bytes = match which {
                0 => tcp(ipv4(), &payload),
                1 => udp(ipv4(), &payload),
                2 => tcp(ipv6(), &payload),
                _ => udp(ipv6(), &payload),
            };
            if which < 2 {
                // Without Don't Fragment, so that it is cut.
                (bytes[20], bytes[22]) = (0, ttl);
                fix_ipv4(&mut bytes);
            } else {
                bytes[21] = ttl;
            }
            check(&bytes);
        }

        #[test]
        fn holds_for_changed_packets(
            which in 0usize..4, payload in proptest::collection::vec(any::<u8>(), 0..100),
            changes in proptest::collection::vec((0usize..80, any::<u8>()), 0..5),
        ) {
            let mut bytes = match which {
                0 => tcp(ipv4(), &payload),
                1 => udp(ipv4(), &payload),
                2 => tcp(ipv6(), &payload),
                _ => udp(ipv6(), &payload),
            };
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            if bytes[14] & 15 >= 5 && bytes.len() >= 74 {
                fix_ipv4(&mut bytes);
            }
            check(&bytes);
        }
    }
}
