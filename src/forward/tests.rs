//! Limits of length, super-frames, checksums left to others, and who is told what: a line of prose, a packet, what happens.

use std::net::IpAddr;

use super::tunnel::Outer;
use super::*;
use crate::packet::parse::{Packet, parse};
use crate::packet::quote::quote;
use crate::packet::testing::*;
use crate::packet::{Endpoint, Mac, Protocol, Reassembled, Segmentation, checksum};
use crate::service::{Tunnel, TunnelChecksum, TunnelKind};
use crate::table::{InterfaceId, NextHop};

const fn hop(mtu: u16) -> NextHop {
    NextHop {
        interface: InterfaceId(1),
        source: Mac([2, 0, 0, 0, 0, 0xd1]),
        destination: Mac([2, 0, 0, 0, 0, 0xa1]),
        mtu,
    }
}

fn flow(frame: &TestFrame) -> Parsed {
    match parse(frame.bytes(), frame.offload()) {
        Ok(Packet::Flow(parsed)) => parsed,
        other => panic!("not a flow: {other:?}"),
    }
}

/// TCP of so many bytes as an IP packet.
fn sized(family: Family, len: usize, dont_fragment: bool) -> TestFrame {
    let bytes = match family {
        Family::V4 => {
            let mut bytes = tcp(ipv4(), &vec![7; len - 40]);
            bytes[20] = if dont_fragment { 0x40 } else { 0 };
            fix_ipv4(&mut bytes);
            bytes
        }
        Family::V6 => tcp(ipv6(), &vec![7; len - 60]),
    };
    TestFrame::new(&bytes, 70_000)
}

const HOP: NextHop = hop(1500);

fn outer(destination: &str, kind: TunnelKind, checksum: TunnelChecksum) -> Outer<'static> {
    let destination: IpAddr = destination.parse().unwrap();
    let source = if destination.is_ipv4() {
        "172.16.0.1"
    } else {
        "fd00:16::1"
    };
    Outer {
        hop: &HOP,
        source: source.parse().unwrap(),
        destination,
        tunnel: Tunnel {
            kind,
            port: 6080,
            checksum,
        },
        path_mtu_discovery: true,
    }
}

fn encapsulate(frame: &mut TestFrame, outer: &Outer<'_>) -> Outcome {
    let parsed = flow(frame);
    tunnel::forward(frame, &parsed, outer, &mut Identifications::new(0x77))
}

#[test]
fn longest_packet_of_each_tunnel_on_a_link_of_1500() {
    use TunnelChecksum::{Csum, NoCsum, RemCsum};
    use TunnelKind::{Gre, Gue, Ipip};
    let (v4, v6) = ("172.16.0.11", "fd00:16::11");
    let cases = [
        ("IPv4 in IPv4", Family::V4, outer(v4, Ipip, NoCsum), 1480),
        ("IPv4 in IPv6", Family::V4, outer(v6, Ipip, NoCsum), 1460),
        ("IPv6 in IPv6", Family::V6, outer(v6, Ipip, NoCsum), 1460),
        ("IPv6 in IPv4", Family::V6, outer(v4, Ipip, NoCsum), 1480),
        ("GRE", Family::V4, outer(v4, Gre, NoCsum), 1476),
        ("GRE with checksum", Family::V4, outer(v4, Gre, Csum), 1472),
        ("GUE", Family::V4, outer(v4, Gue, NoCsum), 1468),
        ("GUE with remote checksum", Family::V4, outer(v4, Gue, RemCsum), 1468),
    ];
    for (name, family, outer, limit) in cases {
        let mut fits = sized(family, limit as usize, true);
        assert_eq!(encapsulate(&mut fits, &outer), Outcome::Ready, "{name}");
        assert_eq!(fits.bytes().len(), 14 + 1500, "{name}");
        let mut long = sized(family, limit as usize + 1, true);
        assert_eq!(encapsulate(&mut long, &outer), Outcome::TooBig { mtu: limit }, "{name}");
        // Ready to be quoted: one hop older.
        assert_eq!(flow(&long).ttl, 63, "{name}");
    }
}

#[test]
fn what_may_be_cut_is_cut_behind_the_outer_header() {
    let mut ipip = outer("172.16.0.11", TunnelKind::Ipip, TunnelChecksum::NoCsum);
    let mut frame = sized(Family::V4, 1481, false);
    assert_eq!(encapsulate(&mut frame, &ipip), Outcome::Fragment(Cut::even(1500)));
    assert_eq!(frame.bytes()[20] & 0x40, 0);
    // Without path MTU discovery also with Don't Fragment, which the outer header then never has.
    ipip.path_mtu_discovery = false;
    let mut frame = sized(Family::V4, 1481, true);
    assert_eq!(encapsulate(&mut frame, &ipip), Outcome::Fragment(Cut::even(1500)));
    assert_eq!((frame.bytes()[20], frame.bytes()[40] & 0x40), (0, 0x40));
}

#[test]
fn outer_header_of_ipip() {
    let mut bytes = tcp(ipv4(), b"");
    // Congestion experienced, and a DSCP.
    bytes[15] = 0xbb;
    fix_ipv4(&mut bytes);
    let mut frame = TestFrame::from(&bytes[..]);
    let ipip = outer("172.16.0.11", TunnelKind::Ipip, TunnelChecksum::NoCsum);
    assert_eq!(encapsulate(&mut frame, &ipip), Outcome::Ready);
    let head = to_hex(&frame.bytes()[..34]);
    assert_eq!(
        head[28..48],
        *"45ba003c000040003f04",
        "ECT(0), id 0 with DF, TTL, protocol 4"
    );
    assert_eq!(head[52..], *"ac100001ac10000b");
    assert_eq!(checksum::of(&frame.bytes()[14..34]), 0);
    // The inner one keeps its mark.
    assert_eq!(frame.bytes()[35], 0xbb);
    // Without Don't Fragment the identification is a new one.
    let mut frame = sized(Family::V4, 40, false);
    assert_eq!(encapsulate(&mut frame, &ipip), Outcome::Ready);
    assert_eq!(frame.bytes()[18..22], [0, 0x78, 0, 0]);
}

#[test]
fn checksums_of_gre_and_gue_cover_a_finished_inner_packet() {
    for kind in [TunnelKind::Gre, TunnelKind::Gue] {
        for destination in ["172.16.0.11", "fd00:16::11"] {
            let mut frame = sized(Family::V4, 45, true);
            let parsed = flow(&frame);
            let pseudo = checksum::fold(checksum::pseudo_header(&parsed.flow, 25));
            frame.bytes_mut()[50..52].copy_from_slice(&pseudo.to_be_bytes());
            let unfinished = ChecksumOffload::Unfinished { start: 34, offset: 16 };
            frame.set_offload(Offload {
                checksum: unfinished,
                segmentation: None,
            });
            let outer = outer(destination, kind, TunnelChecksum::Csum);
            assert_eq!(encapsulate(&mut frame, &outer), Outcome::Ready);
            assert_eq!(frame.offload().checksum, ChecksumOffload::Finished);
            let at = if destination.contains('.') { 34 } else { 54 };
            let rest = &frame.bytes()[at..];
            let pseudo = match kind {
                TunnelKind::Gre => 0,
                _ => {
                    let flow = crate::packet::FlowKey::new(Protocol::UDP, (outer.source, 0), (outer.destination, 0));
                    checksum::pseudo_header(&flow, rest.len() as u32)
                }
            };
            assert_eq!(
                checksum::fold(pseudo + checksum::sum(rest)),
                0xffff,
                "{kind:?} to {destination}"
            );
        }
    }
}

#[test]
fn unfinished_checksums_move_with_the_outer_header() {
    let mut frame = sized(Family::V4, 45, true);
    let unfinished = |start| Offload {
        checksum: ChecksumOffload::Unfinished { start, offset: 16 },
        segmentation: None,
    };
    frame.set_offload(unfinished(34));
    let ipip = outer("fd00:16::11", TunnelKind::Ipip, TunnelChecksum::NoCsum);
    assert_eq!(encapsulate(&mut frame, &ipip), Outcome::Ready);
    assert_eq!(frame.offload(), unfinished(74));
}

/// A super-frame that will be cut into segments of `size` payload bytes.
fn super_frame(family: Family, kind: SegmentationKind, size: u16, dont_fragment: bool) -> TestFrame {
    let mut frame = sized(family, 9000, dont_fragment);
    let header_len = if family == Family::V4 { 54 } else { 74 };
    let segmentation = Some(Segmentation { kind, size, header_len });
    frame.set_offload(Offload {
        checksum: ChecksumOffload::Finished,
        segmentation,
    });
    frame
}

#[test]
fn super_frames_are_as_long_as_their_segments() {
    use SegmentationKind::{TcpV4, TcpV6, UdpL4};
    let cases = [
        ("segments fit", Family::V4, TcpV4, 1460, true, Outcome::Ready, 1460),
        (
            "too long, may not be cut",
            Family::V4,
            TcpV4,
            1461,
            true,
            Outcome::TooBig { mtu: 1500 },
            1461,
        ),
        (
            "too long, made shorter",
            Family::V4,
            TcpV4,
            1461,
            false,
            Outcome::Ready,
            1460,
        ),
        (
            "datagrams keep their length",
            Family::V4,
            UdpL4,
            1461,
            false,
            Outcome::TooBig { mtu: 1500 },
            1461,
        ),
        (
            "segments fit, IPv6",
            Family::V6,
            TcpV6,
            1440,
            true,
            Outcome::Ready,
            1440,
        ),
        (
            "too long, IPv6",
            Family::V6,
            TcpV6,
            1441,
            true,
            Outcome::TooBig { mtu: 1500 },
            1441,
        ),
    ];
    for (name, family, kind, size, dont_fragment, outcome, size_after) in cases {
        let mut frame = super_frame(family, kind, size, dont_fragment);
        let parsed = flow(&frame);
        assert_eq!(route::forward(&mut frame, &parsed, &hop(1500)), outcome, "{name}");
        assert_eq!(frame.offload().segmentation.unwrap().size, size_after, "{name}");
    }
    let mut frame = super_frame(Family::V4, TcpV4, 1400, true);
    let before = frame.bytes().to_vec();
    let ipip = outer("172.16.0.11", TunnelKind::Ipip, TunnelChecksum::NoCsum);
    assert_eq!(encapsulate(&mut frame, &ipip), Outcome::Segment);
    assert_eq!(frame.bytes(), before, "not touched");
}

#[test]
fn on_the_way_in_an_error_quotes_the_ttl_after_and_on_the_way_out_the_one_before() {
    let endpoint = Endpoint::v4(0xac10_000b, 8080);
    let mut frame = sized(Family::V4, 1401, true);
    let parsed = flow(&frame);
    let outcome = masq::forward_in(&mut frame, &parsed, endpoint, &hop(1400));
    assert_eq!((outcome, flow(&frame).ttl), (Outcome::TooBig { mtu: 1400 }, 63));
    assert_eq!(flow(&frame).flow, parsed.flow, "not translated yet");
    let mut frame = sized(Family::V4, 1401, true);
    let outcome = masq::forward_out(&mut frame, &parsed, endpoint, &hop(1400));
    assert_eq!((outcome, flow(&frame).ttl), (Outcome::TooBig { mtu: 1400 }, 64));
}

#[test]
fn a_datagram_to_be_cut_gets_its_checksum_first() {
    let mut bytes = udp(ipv4(), &[7; 1480]);
    bytes[20] = 0;
    fix_ipv4(&mut bytes);
    let mut frame = TestFrame::from(&bytes[..]);
    let parsed = flow(&frame);
    let pseudo = checksum::fold(checksum::pseudo_header(&parsed.flow, 1488));
    frame.bytes_mut()[40..42].copy_from_slice(&pseudo.to_be_bytes());
    let unfinished = ChecksumOffload::Unfinished { start: 34, offset: 6 };
    frame.set_offload(Offload {
        checksum: unfinished,
        segmentation: None,
    });
    assert_eq!(
        route::forward(&mut frame, &parsed, &hop(1500)),
        Outcome::Fragment(Cut::even(1500))
    );
    assert_eq!(frame.offload().checksum, ChecksumOffload::Finished);
    assert_eq!(frame.bytes()[40..42], bytes[40..42]);
}

/// A datagram that came in fragments.
struct Whole(TestFrame, Reassembled);

impl Frame for Whole {
    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
    fn grow_front(&mut self, n: usize) -> Result<(), crate::packet::NoRoom> {
        self.0.grow_front(n)
    }
    fn shrink_front(&mut self, n: usize) {
        self.0.shrink_front(n);
    }
    fn set_len(&mut self, len: usize) -> Result<(), crate::packet::NoRoom> {
        self.0.set_len(len)
    }
    fn offload(&self) -> Offload {
        self.0.offload()
    }
    fn set_offload(&mut self, offload: Offload) {
        self.0.set_offload(offload);
    }
    fn reassembled(&self) -> Option<Reassembled> {
        Some(self.1)
    }
}

#[test]
fn datagrams_leave_in_the_fragments_they_came_in() {
    let cases = [
        // family, length, largest fragment, mtu, as it is, in an IPv4 tunnel, in an IPv6 tunnel
        (
            "IPv4",
            Family::V4,
            3000,
            1044,
            1500,
            Cut::even(1044),
            Cut::even(1044),
            Cut::even(1500),
        ),
        (
            "IPv4, smaller way",
            Family::V4,
            3000,
            1500,
            1400,
            Cut::even(1400),
            Cut::even(1400),
            Cut::even(1400),
        ),
        (
            "IPv6, small",
            Family::V6,
            3000,
            1000,
            1500,
            Cut::even(1000),
            Cut::even(1500),
            Cut {
                first: 1040,
                rest: 1000,
            },
        ),
        (
            "IPv6, large",
            Family::V6,
            3000,
            1400,
            1500,
            Cut::even(1400),
            Cut::even(1500),
            Cut::even(1400),
        ),
    ];
    for (name, family, len, largest, mtu, plain, in_v4, in_v6) in cases {
        let whole = || Whole(sized(family, len, false), Reassembled { largest, pieces: 3 });
        let mut frame = whole();
        let parsed = flow(&frame.0);
        assert_eq!(
            route::forward(&mut frame, &parsed, &hop(mtu)),
            Outcome::Fragment(plain),
            "{name}"
        );
        for (destination, cut) in [("172.16.0.11", in_v4), ("fd00:16::11", in_v6)] {
            let outer = Outer {
                hop: &hop(mtu),
                ..outer(destination, TunnelKind::Ipip, TunnelChecksum::NoCsum)
            };
            let outcome = tunnel::forward(&mut whole(), &parsed, &outer, &mut Identifications::default());
            assert_eq!(outcome, Outcome::Fragment(cut), "{name} to {destination}");
        }
    }
    // IPv6 fragments that were larger than the way allows: the sender is told.
    let mut frame = Whole(
        sized(Family::V6, 3000, false),
        Reassembled {
            largest: 1500,
            pieces: 2,
        },
    );
    let parsed = flow(&frame.0);
    assert_eq!(
        route::forward(&mut frame, &parsed, &hop(1400)),
        Outcome::TooBig { mtu: 1400 }
    );
}

fn error(error: icmp::Error, about: &TestFrame, source: &str) -> Option<TestFrame> {
    let mut into = TestFrame::from(&[][..]);
    let parsed = flow(about);
    let source = source.parse().unwrap();
    icmp::error(error, about, &parsed, source, &mut into, &mut Identifications::new(0)).then_some(into)
}

#[test]
fn errors_have_the_kernels_lengths() {
    let about = sized(Family::V4, 1481, true);
    let answer = error(icmp::Error::TooBig { mtu: 1480 }, &about, "10.200.1.1").unwrap();
    let bytes = answer.bytes();
    assert_eq!(bytes.len(), 14 + 576);
    // Link addresses turned round; type of service, identification, no Don't Fragment, TTL, protocol.
    assert_eq!(
        to_hex(&bytes[..24]),
        "0200000000c00200000000d0080045c0024000010000400 1".replace(' ', "")
    );
    assert_eq!(to_hex(&bytes[34..36]) + &to_hex(&bytes[38..42]), "0304000005c8");
    assert_eq!((checksum::of(&bytes[14..34]), checksum::of(&bytes[34..])), (0, 0));
    assert_eq!(bytes[42..], about.bytes()[14..14 + 548]);

    let about = sized(Family::V6, 1461, true);
    let answer = error(icmp::Error::TooBig { mtu: 1460 }, &about, "fd00:200::1").unwrap();
    assert_eq!(answer.bytes().len(), 14 + 1280);
    assert_eq!(
        to_hex(&answer.bytes()[54..56]) + &to_hex(&answer.bytes()[58..62]),
        "0200000005b4"
    );
    let Ok(Packet::IcmpError(parsed)) = parse(answer.bytes(), Offload::default()) else {
        panic!("a wrong checksum")
    };
    assert_eq!(quote(answer.bytes(), &parsed).unwrap().flow, flow(&about).flow);
}

#[test]
fn types_and_codes() {
    use icmp::Error::*;
    let cases = [
        (PortUnreachable, [3, 3], [1, 4]),
        (HostUnreachable, [3, 1], [1, 3]),
        (TimeExceeded, [11, 0], [3, 0]),
        (TooBig { mtu: 1400 }, [3, 4], [2, 0]),
    ];
    for (kind, v4, v6) in cases {
        let answer = error(kind, &sized(Family::V4, 60, true), "10.200.1.1").unwrap();
        assert_eq!(answer.bytes()[34..36], v4, "{kind:?}");
        let answer = error(kind, &sized(Family::V6, 80, true), "fd00:200::1").unwrap();
        assert_eq!(answer.bytes()[54..56], v6, "{kind:?}");
    }
}

#[test]
fn about_some_packets_nothing_is_said() {
    let sender = |octets: [u8; 4]| {
        let mut frame = sized(Family::V4, 60, true);
        frame.bytes_mut()[26..30].copy_from_slice(&octets);
        fix_ipv4(frame.bytes_mut());
        frame
    };
    for octets in [[0, 0, 0, 0], [224, 0, 0, 1], [255, 255, 255, 255]] {
        assert!(
            error(icmp::Error::TimeExceeded, &sender(octets), "10.200.1.1").is_none(),
            "{octets:?}"
        );
    }
    let mut to_all = sender([198, 51, 100, 7]);
    assert!(error(icmp::Error::TimeExceeded, &to_all, "10.200.1.1").is_some());
    to_all.bytes_mut()[..6].fill(0xff);
    assert!(error(icmp::Error::TimeExceeded, &to_all, "10.200.1.1").is_none());
    // A source of the other family is a mistake of ours, and said to nobody.
    assert!(error(icmp::Error::TimeExceeded, &sender([198, 51, 100, 7]), "fd00:200::1").is_none());
}

/// An error from a router about a tunnelled packet, with its quote.
fn about_tunnelled(kind: u8, code: u8, mtu: u16, about: &TestFrame) -> TestFrame {
    let mut into = TestFrame::from(&[][..]);
    let word = mtu as u32;
    let packet = &about.bytes()[14..];
    let router = "172.16.0.254".parse().unwrap();
    let director = "172.16.0.1".parse().unwrap();
    assert!(icmp::write(
        &mut into,
        router,
        director,
        (kind, code, word),
        packet,
        &mut Identifications::default()
    ));
    into.bytes_mut()[12..14].copy_from_slice(&[8, 0]);
    into
}

#[test]
fn errors_about_outer_packets_reach_the_client() {
    let cases = [
        ("host unreachable", (3, 1, 0), Some((3, 1, 0))),
        ("protocol unreachable", (3, 2, 0), Some((3, 2, 0))),
        ("time exceeded", (11, 0, 0), Some((11, 0, 0))),
        ("fragmentation needed", (3, 4, 1300), Some((3, 4, 1280))),
        ("fragmentation needed, without a length", (3, 4, 0), None),
        ("source quench", (4, 0, 0), None),
    ];
    for (name, (kind, code, mtu), expected) in cases {
        let mut about = sized(Family::V4, 400, true);
        let ipip = outer("172.16.0.11", TunnelKind::Ipip, TunnelChecksum::NoCsum);
        let inner = flow(&about).flow;
        assert_eq!(encapsulate(&mut about, &ipip), Outcome::Ready);
        let mut frame = about_tunnelled(kind, code, mtu, &about);
        let Ok(Packet::IcmpError(parsed)) = parse(frame.bytes(), Offload::default()) else {
            panic!("{name}")
        };
        let quoted = quote(frame.bytes(), &parsed).unwrap();
        assert_eq!((quoted.flow, quoted.outer), (inner, Some(42)), "{name}");
        let sent = related::from_tunnel(
            &mut frame,
            &parsed,
            &quoted,
            20,
            &hop(1500),
            &mut Identifications::default(),
        );
        assert_eq!(sent, expected.is_some(), "{name}");
        let Some((kind, code, mtu)) = expected else { continue };
        let Ok(Packet::IcmpError(after)) = parse(frame.bytes(), Offload::default()) else {
            panic!("{name}")
        };
        assert_eq!(frame.bytes()[34..36], [kind, code], "{name}");
        assert_eq!(
            u16::from_be_bytes([frame.bytes()[40], frame.bytes()[41]]),
            mtu,
            "{name}"
        );
        assert_eq!(
            (after.flow.source(), after.flow.destination()),
            (inner.destination(), inner.source()),
            "{name}"
        );
        let quoted = quote(frame.bytes(), &after).unwrap();
        assert_eq!((quoted.flow, quoted.outer), (inner, None), "{name}");
    }
}
