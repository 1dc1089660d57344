use proptest::prelude::*;

use super::*;
use crate::packet::quote::quote;
use crate::packet::testing::*;

fn verdict(bytes: &[u8]) -> Result<Packet, DropReason> {
    parse(bytes, Offload::default())
}

fn flow(bytes: &[u8]) -> Parsed {
    match verdict(bytes) {
        Ok(Packet::Flow(parsed)) => parsed,
        other => panic!("not a flow: {other:?}"),
    }
}

#[test]
fn parsed_stays_small() {
    assert!(size_of::<Parsed>() <= 64, "{}", size_of::<Parsed>());
}

#[test]
fn tcp_over_ipv4() {
    let bytes = tcp(ipv4(), b"hello");
    let parsed = flow(&bytes);
    assert_eq!(parsed.flow.source().to_string(), "198.51.100.7");
    assert_eq!(parsed.flow.destination().to_string(), "10.200.1.1");
    assert_eq!((parsed.flow.source_port(), parsed.flow.destination_port()), (20001, 80));
    assert_eq!((parsed.l3, parsed.l4, parsed.end), (14, 34, 59));
    assert_eq!(parsed.ip_len(), 45);
    assert_eq!((parsed.ttl, parsed.tcp_flags), (64, TcpFlags(TcpFlags::SYN)));
    assert!(parsed.is_plain());
}

#[test]
fn udp_over_ipv6() {
    let bytes = udp(ipv6(), b"hello");
    let parsed = flow(&bytes);
    assert_eq!(parsed.flow.source().to_string(), "2001:db8::7");
    assert_eq!(parsed.flow.destination().to_string(), "fd00:200::1");
    assert_eq!((parsed.flow.source_port(), parsed.flow.destination_port()), (20001, 53));
    assert_eq!((parsed.l3, parsed.l4, parsed.end), (14, 54, 67));
}

#[test]
fn ethernet_padding_is_no_part_of_the_packet() {
    let mut bytes = tcp(ipv4(), b"");
    bytes.resize(60, 0);
    assert_eq!(flow(&bytes).end, 54);
    let mut bytes = udp(ipv6(), b"");
    bytes.resize(70, 0);
    assert_eq!(flow(&bytes).end, 62);
}

#[test]
fn extension_headers_are_skipped() {
    // Hop-by-hop, destination options, then TCP.
    let mut bytes = tcp(ipv6(), b"");
    bytes[20] = 0;
    bytes[19] += 16;
    bytes.splice(54..54, hex("3c00010400000000 0600010400000000"));
    let parsed = flow(&bytes);
    assert_eq!((parsed.l4, parsed.flow.protocol), (70, Protocol::TCP));
    assert!(!parsed.is_plain());
    // One more than we walk over.
    let mut bytes = tcp(ipv6(), b"");
    bytes[20] = 60;
    bytes[19] += 80;
    for _ in 0..9 {
        bytes.splice(54..54, hex("3c00010400000000"));
    }
    bytes.splice(54 + 72..54 + 72, hex("0600010400000000"));
    assert_eq!(verdict(&bytes), Err(DropReason::BadIpHeader));
}

/// One line a frame: what is done to a good one, and what comes of it.
type Case = (&'static str, Vec<u8>, fn(&mut Vec<u8>), Result<Packet, DropReason>);

#[test]
fn refusals() {
    use DropReason::*;
    let v4 = || tcp(ipv4(), b"x");
    let v6 = || tcp(ipv6(), b"x");
    let u4 = || udp(ipv4(), b"x");
    let cases: Vec<Case> = vec![
        ("nothing", vec![], |_| {}, Err(Truncated)),
        ("13 bytes", v4(), |b| b.truncate(13), Err(Truncated)),
        ("Ethernet header alone", v4(), |b| b.truncate(14), Err(Truncated)),
        ("half an IPv4 header", v4(), |b| b.truncate(24), Err(Truncated)),
        ("ARP", v4(), |b| b[13] = 6, Err(NotIp)),
        ("VLAN tag", v4(), |b| b[12] = 0x81, Err(NotIp)),
        ("IPv6 in an IPv4 frame", v4(), |b| b[14] = 0x65, Err(BadIpHeader)),
        ("IHL 4", v4(), |b| b[14] = 0x44, Err(BadIpHeader)),
        ("IHL past the frame", v4(), |b| b[14] = 0x4f, Err(Truncated)),
        ("total length below the header", v4(), |b| b[17] = 19, Err(BadIpHeader)),
        ("total length past the frame", v4(), |b| b[17] += 1, Err(Truncated)),
        ("wrong header checksum", v4(), |b| b[25] ^= 1, Err(BadIpChecksum)),
        ("half an IPv6 header", v6(), |b| b.truncate(40), Err(Truncated)),
        ("IPv4 in an IPv6 frame", v6(), |b| b[14] = 0x45, Err(BadIpHeader)),
        ("payload length past the frame", v6(), |b| b[19] += 1, Err(Truncated)),
        (
            "extension header past the frame",
            v6(),
            |b| (b[20], b[55]) = (60, 9),
            Err(Truncated),
        ),
        ("TCP cut to 8 bytes", v6(), |b| b[19] = 8, Err(BadTcpHeader)),
        ("data offset 4", v4(), |b| b[46] = 0x40, Err(BadTcpHeader)),
        ("data offset past the packet", v4(), |b| b[46] = 0xf0, Err(BadTcpHeader)),
        ("UDP length 7", u4(), |b| b[39] = 7, Err(BadUdpHeader)),
        ("UDP length past the packet", u4(), |b| b[39] = 10, Err(BadUdpHeader)),
        (
            "UDP of 3 bytes",
            u4(),
            |b| (b[17] = 23, fix_ipv4(b)).1,
            Err(BadUdpHeader),
        ),
        ("UDP shorter than its packet", u4(), |b| b[39] = 8, Ok(Packet::Other)),
        ("OSPF", v4(), |b| (b[23] = 89, fix_ipv4(b)).1, Ok(Packet::Other)),
        ("no next header", v6(), |b| b[20] = 59, Ok(Packet::Other)),
        (
            "SCTP of 11 bytes",
            v4(),
            |b| ((b[17], b[23]) = (31, 132), fix_ipv4(b)).1,
            Err(Truncated),
        ),
    ];
    for (name, mut bytes, change, expected) in cases {
        change(&mut bytes);
        match (verdict(&bytes), expected) {
            (Ok(Packet::Flow(parsed)), Ok(Packet::Other)) if parsed.flow.protocol == Protocol::UDP => {}
            (got, expected) => assert_eq!(got, expected, "{name}"),
        }
    }
}

#[test]
fn ah_and_esp_have_no_ports() {
    for (protocol, bytes, l4) in [(50, tcp(ipv4(), b""), 34), (51, tcp(ipv6(), b""), 54)] {
        let mut bytes = bytes;
        if l4 == 34 {
            bytes[23] = protocol;
            fix_ipv4(&mut bytes);
        } else {
            bytes[20] = protocol;
        }
        let Ok(Packet::Secured(parsed)) = verdict(&bytes) else {
            panic!("{:?}", verdict(&bytes))
        };
        assert_eq!((parsed.flow.protocol, parsed.flow.ports), (Protocol(protocol), 0));
        assert_eq!((parsed.l4, parsed.end as usize), (l4, bytes.len()));
        if l4 == 34 {
            bytes[17] = 27;
            fix_ipv4(&mut bytes);
            assert_eq!(
                verdict(&bytes),
                Err(DropReason::Truncated),
                "shorter than any such header"
            );
        }
    }
}

#[test]
fn source_routes_and_broken_options() {
    let with_options = |options: &str| {
        let mut bytes = tcp(ipv4(), b"");
        let options = hex(options);
        bytes[14] += (options.len() / 4) as u8;
        bytes[17] += options.len() as u8;
        bytes.splice(34..34, options);
        fix_ipv4(&mut bytes);
        verdict(&bytes)
    };
    assert_eq!(with_options("8307 04 ac10000c 00"), Err(DropReason::SourceRoute));
    assert_eq!(
        with_options("01018907 04 ac10000c 000000"),
        Err(DropReason::SourceRoute)
    );
    assert_eq!(with_options("07000000"), Err(DropReason::BadIpHeader));
    assert_eq!(with_options("07050000"), Err(DropReason::BadIpHeader));
    assert_eq!(with_options("01010107"), Err(DropReason::BadIpHeader));
    // After the end of options anything may stand.
    assert!(matches!(with_options("01000083"), Ok(Packet::Flow(parsed)) if parsed.l4 == 38));
}

#[test]
fn fragments() {
    let mut bytes = udp(ipv4(), &[7; 21]);
    // 8 + 21 bytes at offset 1000, more to come: cut to a multiple of 8.
    bytes[18..22].copy_from_slice(&[0x12, 0x34, 0x60, 125]);
    fix_ipv4(&mut bytes);
    let Ok(Packet::Fragment(fragment)) = verdict(&bytes) else {
        panic!("no fragment")
    };
    assert_eq!(
        (fragment.id, fragment.offset, fragment.more, fragment.dont_fragment),
        (0x1234, 1000, true, true)
    );
    assert_eq!((fragment.header_end, fragment.payload, fragment.end), (34, 34, 34 + 24));
    assert_eq!((fragment.flow.ports, fragment.flow.protocol), (0, Protocol::UDP));
    // Would end past what an IP packet can hold.
    bytes[20..22].copy_from_slice(&[0x1f, 0xff]);
    fix_ipv4(&mut bytes);
    assert_eq!(verdict(&bytes), Err(DropReason::Fragment));

    let mut bytes = udp(ipv6(), &[7; 16]);
    bytes[20] = 44;
    bytes[19] += 8;
    bytes.splice(54..54, hex("11 00 0009 00abcdef"));
    let Ok(Packet::Fragment(fragment)) = verdict(&bytes) else {
        panic!("no fragment")
    };
    assert_eq!((fragment.id, fragment.offset, fragment.more), (0xabcdef, 8, true));
    assert_eq!(
        (fragment.header_end, fragment.payload, fragment.next_header_at),
        (54, 62, 20)
    );
    assert_eq!(fragment.flow.protocol, Protocol::UDP);
    // Not the last, and not a multiple of 8.
    bytes[19] -= 1;
    assert_eq!(verdict(&bytes), Err(DropReason::Fragment));
}

/// A time-exceeded from a router about a VIP's packet, as recorded.
fn time_exceeded() -> Vec<u8> {
    hex(
        "0200000000d00200000000c008004500006c00030000400132bccb0071090ac801010b002b46000000004500005000994000\
         3c06080c0ac80101c633640700504e45000007d0000003e950102000e6410000414141414141414141414141414141414141\
         41414141414141414141414141414141414141414141",
    )
}

#[test]
fn icmp_errors_and_their_quotes() {
    let bytes = time_exceeded();
    let Ok(Packet::IcmpError(parsed)) = verdict(&bytes) else {
        panic!("{:?}", verdict(&bytes))
    };
    let quoted = quote(&bytes, &parsed).unwrap();
    assert_eq!((quoted.l3, quoted.l4, quoted.outer), (42, 62, None));
    assert_eq!(quoted.flow.source().to_string(), "10.200.1.1");
    assert_eq!(
        (quoted.flow.source_port(), quoted.flow.destination_port()),
        (80, 0x4e45)
    );

    let recut = |len: usize, change: fn(&mut Vec<u8>)| {
        let mut bytes = time_exceeded();
        change(&mut bytes);
        bytes.truncate(len);
        bytes[17] = (len - 14) as u8;
        fix_ipv4(&mut bytes);
        bytes[36..38].fill(0);
        let checksum = checksum::of(&bytes[34..]);
        bytes[36..38].copy_from_slice(&checksum.to_be_bytes());
        match verdict(&bytes).unwrap() {
            Packet::IcmpError(parsed) => quote(&bytes, &parsed),
            other => panic!("{other:?}"),
        }
    };
    assert!(recut(62 + 8, |_| {}).is_ok());
    assert!(recut(62 + 4, |_| {}).is_ok());
    assert_eq!(recut(62 + 3, |_| {}), Err(DropReason::BadIcmp));
    assert_eq!(recut(42 + 12, |_| {}), Err(DropReason::BadIcmp));
    assert_eq!(recut(42, |_| {}), Err(DropReason::BadIcmp));
    assert_eq!(recut(90, |b| b[51] = 1), Err(DropReason::IcmpUnrelated));
    assert_eq!(recut(90, |b| b[49] = 1), Err(DropReason::IcmpUnrelated));
    // About a tunnelled packet: ours is inside.
    let tunnelled = recut(110, |b| {
        drop(b.splice(42..42, hex("450000640000400040040000ac100001ac10000b")))
    });
    assert_eq!(tunnelled.map(|q| (q.outer, q.l3, q.l4)), Ok((Some(42), 62, 82)));

    let mut bad = time_exceeded();
    bad[60] ^= 1;
    assert_eq!(verdict(&bad), Err(DropReason::BadIcmp));
    let mut redirect = time_exceeded();
    redirect[34] = 5;
    assert_eq!(verdict(&redirect), Ok(Packet::Other));
}

#[test]
fn icmpv6_errors_and_their_quotes() {
    let bytes = hex(
        "0200000000d00200000000c086dd60000000006c3a4020010db8000900000000000000000009fd0002000000000000000000\
         00000001020065560000050060000000003c063cfd00020000000000000000000000000120010db800000000000000000000\
         000700504e51000007d0000003e950102000ef77000041414141414141414141414141414141414141414141414141414141\
         414141414141414141414141",
    );
    let Ok(Packet::IcmpError(parsed)) = verdict(&bytes) else {
        panic!("{:?}", verdict(&bytes))
    };
    let quoted = quote(&bytes, &parsed).unwrap();
    assert_eq!((quoted.l3, quoted.l4), (62, 102));
    assert_eq!(quoted.flow.source_port(), 80);
    let mut bad = bytes.clone();
    bad[60] ^= 1;
    assert_eq!(verdict(&bad), Err(DropReason::BadIcmp));
    let mut echo = bytes;
    echo[54] = 128;
    assert_eq!(verdict(&echo), Ok(Packet::Other));
}

#[test]
fn sctp_says_its_ports_and_its_chunk() {
    for ip in [ipv4, ipv6] {
        for (chunks, expected) in [
            ("01000014 00000001 000005dc 00010001 00000001", Some(ChunkType::INIT)),
            ("0a000004 06000004", Some(ChunkType::ABORT)),
            ("", None),
        ] {
            let bytes = sctp(ip(), &hex(chunks));
            let Ok(Packet::Flow(parsed)) = verdict(&bytes) else {
                panic!("{:?}", verdict(&bytes))
            };
            assert_eq!((parsed.flow.source_port(), parsed.flow.destination_port()), (20001, 80));
            assert_eq!((parsed.chunk, parsed.tcp_flags), (expected, TcpFlags(0)));
        }
    }
    // Padding of a short frame is no chunk.
    let mut padded = sctp(ipv4(), &[]);
    padded.extend([1; 14]);
    let Ok(Packet::Flow(parsed)) = verdict(&padded) else {
        panic!("{:?}", verdict(&padded))
    };
    assert_eq!(parsed.chunk, None);
}

/// What holds for every frame: offsets in order and inside, and the same verdict twice.
fn check(bytes: &[u8]) {
    let first = verdict(bytes);
    assert_eq!(first, verdict(bytes));
    // The short way and the long way agree.
    assert_eq!(first, parse_any(bytes, Offload::default()));
    match first {
        Ok(Packet::Flow(p) | Packet::IcmpError(p) | Packet::Secured(p)) => {
            assert!(14 == p.l3 && p.l3 < p.l4 && (p.l4 as u32) < p.end && p.end as usize <= bytes.len());
            if let Ok(Packet::IcmpError(_)) = first
                && let Ok(q) = quote(bytes, &p)
            {
                assert!(q.l3 < q.l4 && q.l4 as u32 + 4 <= p.end);
            }
        }
        Ok(Packet::Fragment(f)) => {
            assert!(f.l3 < f.header_end && f.header_end <= f.payload && (f.payload as u32) < f.end);
            assert!(f.end as usize <= bytes.len());
        }
        Ok(Packet::Other) | Err(_) => {}
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes);
    }

    #[test]
    fn mutated_packets_are_survived(
        which in 0usize..7, changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(), fix: bool,
    ) {
        let mut bytes = match which {
            0 => tcp(ipv4(), b"payload"),
            1 => udp(ipv4(), b"payload"),
            2 => tcp(ipv6(), b"payload"),
            3 => udp(ipv6(), b"payload"),
            4 => sctp(ipv4(), &hex("0a000004 06000004")),
            5 => sctp(ipv6(), &hex("0b000004 06000004")),
            _ => time_exceeded(),
        };
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if fix && bytes[14] & 15 >= 5 && bytes.len() >= 74 {
            fix_ipv4(&mut bytes);
        }
        check(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        check(&bytes);
    }
}
