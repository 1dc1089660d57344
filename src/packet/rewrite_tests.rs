use proptest::prelude::*;

use super::*;
use crate::packet::frame::Offload;
use crate::packet::parse::{Packet, parse};
use crate::packet::testing::*;

fn flow(bytes: &[u8]) -> Parsed {
    match parse(bytes, Offload::default()) {
        Ok(Packet::Flow(parsed)) => parsed,
        other => panic!("not a flow: {other:?}"),
    }
}

/// Where the transport checksum is.
fn field(parsed: &Parsed) -> usize {
    parsed.l4 as usize + if parsed.flow.protocol == Protocol::TCP { 16 } else { 6 }
}

/// Both checksums are right, summed in full.
fn assert_checksums(bytes: &[u8]) {
    let parsed = flow(bytes);
    let transport = &bytes[parsed.l4 as usize..parsed.end as usize];
    let sum = checksum::pseudo_header(&parsed.flow, transport.len() as u32) + checksum::sum(transport);
    assert_eq!(checksum::fold(sum), 0xffff, "transport checksum of {}", to_hex(bytes));
}

fn packet(which: usize, payload: &[u8]) -> Vec<u8> {
    match which {
        0 => tcp(ipv4(), payload),
        1 => udp(ipv4(), payload),
        2 => tcp(ipv6(), payload),
        _ => udp(ipv6(), payload),
    }
}

proptest! {
    #[test]
    fn translated_checksums_agree_with_full_ones(
        which in 0usize..4, payload in proptest::collection::vec(any::<u8>(), 0..60),
        address: [u64; 2], port: u16, source: bool, no_udp_checksum: bool,
    ) {
        let mut bytes = packet(which, &payload);
        let parsed = flow(&bytes);
        let address = if which < 2 { [address[0] as u32 as u64, 0] } else { address };
        let side = if source { Side::Source } else { Side::Destination };
        if no_udp_checksum && which % 2 == 1 {
            bytes[field(&parsed)..][..2].fill(0);
        }
        translate(&mut bytes, &parsed, side, Endpoint { address, port }, ChecksumOffload::Finished);
        assert_checksums(&bytes);
        let after = flow(&bytes);
        let seen = if source { after.flow.reversed() } else { after.flow };
        let words = if which < 2 { [seen.addresses[0] as u32 as u64, 0] } else { [seen.addresses[2], seen.addresses[3]] };
        prop_assert_eq!((words, seen.destination_port(), after.ttl), (address, port, 63));
        // Back again: the packet as it was, but for the TTL (and the computed checksum).
        let before = parsed.flow;
        let old = if source { before.reversed() } else { before };
        translate(&mut bytes, &after, side, (old.destination(), old.destination_port()).into(), ChecksumOffload::Finished);
        assert_checksums(&bytes);
        prop_assert_eq!(flow(&bytes).flow, before);
    }

    #[test]
    fn unfinished_checksums_stay_unfinished_and_finish_right(
        which in 0usize..4, payload in proptest::collection::vec(any::<u8>(), 0..60), address: [u64; 2], port: u16,
    ) {
        let mut bytes = packet(which, &payload);
        let parsed = flow(&bytes);
        let address = if which < 2 { [address[0] as u32 as u64, 0] } else { address };
        let len = parsed.end - parsed.l4 as u32;
        let pseudo = checksum::fold(checksum::pseudo_header(&parsed.flow, len));
        bytes[field(&parsed)..][..2].copy_from_slice(&pseudo.to_be_bytes());
        let offload = ChecksumOffload::Unfinished { start: parsed.l4, offset: (field(&parsed) - parsed.l4 as usize) as u16 };
        // Finished at once, or translated and then finished by the driver: the same bytes.
        let mut finished = bytes.clone();
        finish(&mut finished, &parsed);
        assert_checksums(&finished);
        translate(&mut finished, &parsed, Side::Destination, Endpoint { address, port }, ChecksumOffload::Finished);
        translate(&mut bytes, &parsed, Side::Destination, Endpoint { address, port }, offload);
        complete(&mut bytes, parsed.l4 as usize, field(&parsed), len as usize, parsed.flow.protocol);
        prop_assert_eq!(to_hex(&bytes), to_hex(&finished));
    }

    #[test]
    fn translated_sctp_checksums_agree_with_full_ones(
        six: bool, chunks in proptest::collection::vec(any::<u8>(), 0..200), address: [u64; 2], port: u16, source: bool,
    ) {
        let mut bytes = sctp(if six { ipv6() } else { ipv4() }, &chunks);
        let parsed = flow(&bytes);
        let address = if six { address } else { [address[0] as u32 as u64, 0] };
        let side = if source { Side::Source } else { Side::Destination };
        translate(&mut bytes, &parsed, side, Endpoint { address, port }, ChecksumOffload::Finished);
        let transport = &bytes[parsed.l4 as usize..];
        prop_assert_eq!(&transport[8..12], &checksum::sctp(transport)[..]);
        let after = flow(&bytes);
        let seen = if source { after.flow.source_port() } else { after.flow.destination_port() };
        prop_assert_eq!((seen, after.ttl, after.chunk), (port, 63, parsed.chunk));
    }

    #[test]
    fn finished_and_wrong_checksums_are_left_alone(which in 0usize..4, payload: [u8; 9], damage in 1u16..0xffff) {
        let mut bytes = packet(which, &payload);
        let parsed = flow(&bytes);
        let before = bytes.clone();
        finish(&mut bytes, &parsed);
        prop_assert_eq!(&bytes, &before);
        // Damaged: as wrong afterwards as before.
        let at = field(&parsed);
        let right = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let wrong = checksum::fold(right as u64 + damage as u64);
        prop_assume!(wrong != 0);
        bytes[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
        let mut translated = before;
        for bytes in [&mut bytes, &mut translated] {
            translate(bytes, &parsed, Side::Source, Endpoint::from((parsed.flow.destination(), 99)), ChecksumOffload::Finished);
        }
        let read = |bytes: &[u8]| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        prop_assert_eq!(checksum::fold(read(&translated) as u64 + damage as u64) % 0xffff, read(&bytes) % 0xffff);
    }
}

#[test]
fn udp_checksum_that_becomes_zero_is_sent_as_ones() {
    let bytes = udp(ipv4(), &[0, 0]);
    let parsed = flow(&bytes);
    // Every port makes another checksum, so one of them makes 0.
    let hits = (0..=u16::MAX)
        .filter(|port| {
            let mut bytes = bytes.clone();
            let to = Endpoint::v4(0x0a01_0002, *port);
            translate(&mut bytes, &parsed, Side::Destination, to, ChecksumOffload::Finished);
            assert_ne!(bytes[40..42], [0, 0]);
            bytes[40..42] == [0xff, 0xff]
        })
        .count();
    assert!(hits >= 1);
}

#[test]
fn sctp_checksum_follows_the_port_and_stays_wrong_when_wrong() {
    // The recorded INIT (`sctp-init` of the kernel's packets), from port 0x4ec0 to port 80.
    let init = hex(
        "0200000000d00200000000c00800450000340001000040844442c63364070ac801014ec00050000000002e618fa0\
                         0100001400000001000005dc0001000100000001",
    );
    let parsed = flow(&init);
    let right = |b: &[u8]| checksum::sctp(&b[34..66]) == b[42..46];
    assert!(right(&init), "as recorded");
    let to = |bytes: &mut [u8], side, port| {
        let to = Endpoint::v4(0x0a01_0002, port);
        translate(bytes, &parsed, side, to, ChecksumOffload::Finished);
    };
    for (side, port) in [(Side::Destination, 9), (Side::Source, 0xfffe)] {
        let mut bytes = init.clone();
        to(&mut bytes, side, port);
        assert!(right(&bytes) && bytes[42..46] != init[42..46]);
        let mut damaged = init.clone();
        damaged[60] ^= 4;
        to(&mut damaged, side, port);
        assert!(!right(&damaged));
        damaged[60] ^= 4;
        assert_eq!(to_hex(&damaged), to_hex(&bytes), "only the damage differs");
    }
    // The same port: nothing but addresses and TTL, even of a packet whose checksum is wrong.
    let mut same = init.clone();
    same[43] ^= 0x80;
    let before = same.clone();
    to(&mut same, Side::Destination, 80);
    assert_eq!(same[34..], before[34..]);
}

#[test]
fn sctp_checksum_that_was_left_to_a_device_is_finished() {
    for ip in [ipv4(), ipv6()] {
        let good = sctp(ip, &hex("00030014 00000001 00000000 00000000 68656c6c"));
        let parsed = flow(&good);
        let field = parsed.l4 as usize + 8;
        let mut finished = good.clone();
        finish(&mut finished, &parsed);
        assert_eq!(finished, good, "a finished one is left alone");
        let mut unfinished = good.clone();
        unfinished[field..field + 4].fill(0);
        // Ethernet padding is not part of it.
        unfinished.extend([0xee; 6]);
        finish(&mut unfinished, &parsed);
        assert_eq!(unfinished[..good.len()], good);
        let mut wrong = good;
        wrong[field] ^= 1;
        let before = wrong.clone();
        finish(&mut wrong, &parsed);
        assert_eq!(wrong, before, "a wrong one too");
    }
}

#[test]
fn link_addresses_and_ttl() {
    let mut bytes = tcp(ipv4(), b"");
    let parsed = flow(&bytes);
    set_link(&mut bytes, Mac([1, 2, 3, 4, 5, 6]), Mac([7, 8, 9, 10, 11, 12]));
    decrement_ttl(&mut bytes, &parsed);
    assert_eq!(to_hex(&bytes[..14]), "0708090a0b0c0102030405060800");
    assert_eq!(flow(&bytes).ttl, 63);
}

#[test]
fn record_route_only_where_there_is_room() {
    let with = |options: &str| {
        let options = hex(options);
        let mut bytes = tcp(ipv4(), b"");
        bytes[14] += (options.len() / 4) as u8;
        bytes[17] += options.len() as u8;
        bytes.splice(34..34, options.iter().copied());
        fix_ipv4(&mut bytes);
        let parsed = flow(&bytes);
        record_route(&mut bytes, &parsed, Ipv4Addr::new(10, 200, 1, 1));
        flow(&bytes); // still a right header checksum
        to_hex(&bytes[34..34 + options.len()])
    };
    assert_eq!(with("07070400000000 00"), "0707080ac8010100");
    assert_eq!(with("0107070400000000"), "010707080ac80101");
    assert_eq!(with("070b0801020304 00000000 00"), "070b0c010203040ac8010100");
    assert_eq!(with("07070801020304 00"), "0707080102030400");
    assert_eq!(with("07070500000000 00"), "0707050000000000");
    assert_eq!(with("0707000000000000"), "0707000000000000");
    assert_eq!(with("00070704"), "00070704");
}
