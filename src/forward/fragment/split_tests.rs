use proptest::prelude::*;

use super::*;
use crate::forward::fragment::{Inserted, Reassembly};
use crate::packet::parse::{Packet, parse};
use crate::packet::testing::*;

fn split(bytes: &[u8], cut: Cut) -> Vec<Vec<u8>> {
    let frame = TestFrame::new(bytes, 70_000);
    let mut splitter = Splitter::new(&frame, cut, &mut Identifications::new(7));
    let pieces = splitter.pieces();
    let mut out = Vec::new();
    while !splitter.is_done() {
        let mut piece = TestFrame::from(&[][..]);
        splitter.write_next(&mut piece).unwrap();
        out.push(piece.bytes().to_vec());
    }
    assert_eq!(out.len(), pieces);
    out
}

/// Puts fragments together again; each must be a good one.
fn join(reassembly: &mut Reassembly, fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = None;
    for bytes in fragments {
        let fragment = match parse(bytes, Offload::default()) {
            Ok(Packet::Fragment(fragment)) => fragment,
            other => panic!("{other:?}: {}", to_hex(bytes)),
        };
        match reassembly.insert(bytes, &fragment, 0) {
            Inserted::Complete(datagram) => whole = Some(datagram),
            other => assert!(matches!(other, Inserted::Held), "{other:?}"),
        }
    }
    let datagram = whole.expect("whole after the last one");
    let bytes = datagram.bytes().to_vec();
    reassembly.release(datagram);
    assert_eq!((reassembly.held(), reassembly.take_dropped()), (0, Default::default()));
    bytes
}

#[test]
fn ipv4_lengths_offsets_and_flags() {
    let out = split(&udp(ipv4(), &[9; 100]), Cut::even(20 + 45));
    let seen: Vec<_> = out
        .iter()
        .map(|b| (b.len() - 34, u16::from_be_bytes([b[20], b[21]])))
        .collect();
    // 45 bytes of room are 40 but for the last, which has 28 left. Don't Fragment is repeated.
    assert_eq!(seen, [(40, 0x6000), (40, 0x6005), (28, 0x400a)]);
}

#[test]
fn later_ipv4_fragments_repeat_only_options_with_the_copied_flag() {
    let mut bytes = udp(ipv4(), &[9; 100]);
    // Record route (not copied), then security (copied).
    let options = hex("070704000000 00 82050102 03 000000 00");
    bytes[14] += (options.len() / 4) as u8;
    bytes[17] += options.len() as u8;
    bytes.splice(34..34, options.iter().copied());
    fix_ipv4(&mut bytes);
    let out = split(&bytes, Cut::even(100));
    assert_eq!(out[0][34..34 + options.len()], options);
    assert_eq!(
        to_hex(&out[1][34..34 + options.len()]),
        "010101010101018205010203000000 00".replace(' ', "")
    );
}

#[test]
fn ipv6_extension_headers_stay_in_front() {
    // Hop-by-hop, then destination options (which belong to the payload), then UDP.
    let mut bytes = udp(ipv6(), &[9; 100]);
    bytes[20] = 0;
    bytes[19] += 16;
    bytes.splice(54..54, hex("3c00010400000000 1100010400000000"));
    let out = split(&bytes, Cut::even(112));
    assert_eq!((out[0][20], out[0][54], out[0][62]), (0, 44, 60));
    assert_eq!(join(&mut Reassembly::new(), &out), bytes);
}

proptest! {
    #[test]
    fn cut_and_joined_is_the_same(
        v6: bool, payload in proptest::collection::vec(any::<u8>(), 300..1400), cut in 60u16..300, first in 60u16..300,
        seed: u64,
    ) {
        let bytes = if v6 { udp(ipv6(), &payload) } else { udp(ipv4(), &payload) };
        let cut = Cut { first, rest: cut };
        let mut out = split(&bytes, cut);
        prop_assert!(out.len() >= 2);
        for (i, piece) in out.iter().enumerate() {
            let max = if i == 0 { cut.first } else { cut.rest };
            prop_assert!(piece.len() - 14 <= max as usize);
        }
        // In any order.
        let mut state = seed | 1;
        for i in (1..out.len()).rev() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            out.swap(i, (state >> 33) as usize % (i + 1));
        }
        prop_assert_eq!(to_hex(&join(&mut Reassembly::new(), &out)), to_hex(&bytes));
    }
}
