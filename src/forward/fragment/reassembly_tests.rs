use super::*;
use crate::packet::parse::{MORE_FRAGMENTS, Packet, parse};
use crate::packet::testing::*;

/// A piece of a UDP datagram: payload bytes from `offset`, filled with `fill`.
fn piece(id: u16, offset: u16, len: usize, more: bool, fill: u8) -> Vec<u8> {
    let mut bytes = udp(ipv4(), &vec![fill; len - 8]);
    bytes[18..20].copy_from_slice(&id.to_be_bytes());
    let word = (offset / 8) | if more { MORE_FRAGMENTS } else { 0 };
    bytes[20..22].copy_from_slice(&word.to_be_bytes());
    fix_ipv4(&mut bytes);
    bytes
}

fn insert(reassembly: &mut Reassembly, bytes: &[u8], now_ns: u64) -> Inserted {
    let Ok(Packet::Fragment(fragment)) = parse(bytes, Offload::default()) else {
        panic!("no fragment")
    };
    reassembly.insert(bytes, &fragment, now_ns)
}

/// Inserts pieces given as (offset, length, more); says what came of each.
fn sequence(pieces: &[(u16, usize, bool)]) -> (Vec<char>, Dropped, u64) {
    let mut reassembly = Reassembly::new();
    let verdicts = pieces
        .iter()
        .map(
            |&(offset, len, more)| match insert(&mut reassembly, &piece(1, offset, len, more, 7), 0) {
                Inserted::Held => 'h',
                Inserted::Dropped => 'd',
                Inserted::Complete(datagram) => {
                    reassembly.release(datagram);
                    'c'
                }
            },
        )
        .collect();
    (verdicts, reassembly.take_dropped(), reassembly.held())
}

#[test]
fn orders_gaps_and_overlaps() {
    let dropped = |fragment| Dropped { fragment, memory: 0 };
    let cases = [
        (
            "in order",
            vec![(0, 16, true), (16, 16, true), (32, 9, false)],
            "hhc",
            0,
            0,
        ),
        (
            "last first",
            vec![(32, 9, false), (16, 16, true), (0, 16, true)],
            "hhc",
            0,
            0,
        ),
        (
            "filling a gap",
            vec![(0, 16, true), (32, 9, false), (16, 16, true)],
            "hhc",
            0,
            0,
        ),
        ("last alone", vec![(32, 9, false)], "h", 0, 1),
        (
            "the same twice",
            vec![(0, 16, true), (0, 16, true), (16, 8, false)],
            "hdc",
            1,
            0,
        ),
        (
            "inside another",
            vec![(0, 32, true), (8, 16, true), (32, 8, false)],
            "hdc",
            1,
            0,
        ),
        // Kills the datagram, so that the third begins a new one.
        (
            "overlapping behind",
            vec![(0, 16, true), (8, 16, true), (24, 8, false)],
            "hdh",
            2,
            1,
        ),
        (
            "overlapping in front",
            vec![(8, 16, true), (0, 16, true), (24, 8, false)],
            "hdh",
            2,
            1,
        ),
        (
            "overlapping the next",
            vec![(0, 16, true), (24, 16, true), (16, 16, true)],
            "hhd",
            3,
            0,
        ),
        ("around another", vec![(8, 8, true), (0, 32, true)], "hd", 2, 0),
        ("beyond the last", vec![(16, 8, false), (24, 8, true)], "hd", 2, 0),
        ("two lasts", vec![(16, 8, false), (24, 8, false)], "hd", 2, 0),
        ("last before others", vec![(24, 8, true), (8, 8, false)], "hd", 2, 0),
    ];
    for (name, pieces, verdicts, drops, held) in cases {
        let got = sequence(&pieces);
        assert_eq!(got, (verdicts.chars().collect(), dropped(drops), held), "{name}");
    }
}

#[test]
fn header_of_the_first_size_of_the_largest() {
    let mut reassembly = Reassembly::new();
    let mut last = piece(9, 48, 9, false, 2);
    last[22] = 9; // another TTL, of no account
    fix_ipv4(&mut last);
    assert!(matches!(insert(&mut reassembly, &last, 0), Inserted::Held));
    let Inserted::Complete(datagram) = insert(&mut reassembly, &piece(9, 0, 48, true, 1), 0) else {
        panic!()
    };
    assert_eq!(datagram.reassembled(), Some(Reassembled { largest: 68, pieces: 2 }));
    assert_eq!(datagram.bytes().len(), 14 + 20 + 57);
    assert_eq!((datagram.bytes()[22], datagram.bytes()[20]), (64, 0));
    assert_eq!(checksum::of(&datagram.bytes()[14..34]), 0);
}

#[test]
fn dont_fragment_when_the_largest_had_it() {
    for (on_first, on_last, expected) in [
        (true, true, 0x40),
        (true, false, 0x40),
        (false, true, 0),
        (false, false, 0),
    ] {
        let mut reassembly = Reassembly::new();
        let mut pieces = [piece(9, 0, 48, true, 1), piece(9, 48, 16, false, 2)];
        for (bytes, set) in pieces.iter_mut().zip([on_first, on_last]) {
            bytes[20] |= if set { 0x40 } else { 0 };
            fix_ipv4(bytes);
        }
        assert!(matches!(insert(&mut reassembly, &pieces[0], 0), Inserted::Held));
        let Inserted::Complete(datagram) = insert(&mut reassembly, &pieces[1], 0) else {
            panic!()
        };
        assert_eq!(datagram.bytes()[20], expected);
    }
}

#[test]
fn timeouts() {
    let mut reassembly = Reassembly::new();
    assert!(matches!(
        insert(&mut reassembly, &piece(1, 0, 16, true, 0), 5),
        Inserted::Held
    ));
    reassembly.expire(TIMEOUT_NS + 4);
    assert_eq!((reassembly.held(), reassembly.take_dropped().fragment), (1, 0));
    reassembly.expire(TIMEOUT_NS + 4 + SWEEP_NS);
    assert_eq!((reassembly.held(), reassembly.take_dropped().fragment), (0, 1));
    // Also without a sweep: the old piece is not joined with the new one.
    assert!(matches!(
        insert(&mut reassembly, &piece(2, 0, 16, true, 0), 5),
        Inserted::Held
    ));
    assert!(matches!(
        insert(&mut reassembly, &piece(2, 16, 16, false, 0), 6 + TIMEOUT_NS),
        Inserted::Held
    ));
    assert_eq!((reassembly.held(), reassembly.take_dropped().fragment), (1, 1));
}

#[test]
fn full_memory_lets_the_oldest_go() {
    let mut reassembly = Reassembly::new();
    let capacity = reassembly.index.capacity();
    for id in 0..DATAGRAMS_MAX as u16 * 40 {
        let _: Inserted = insert(&mut reassembly, &piece(id, 0, 16, true, 0), id as u64);
    }
    let dropped = reassembly.take_dropped();
    assert_eq!(
        dropped,
        Dropped {
            fragment: 0,
            memory: DATAGRAMS_MAX as u64 * 39
        }
    );
    assert_eq!(reassembly.held(), DATAGRAMS_MAX as u64);
    // `capacity` counts what still goes in before the map is tidied up in place; only growing would allocate.
    assert!(
        reassembly.index.capacity() <= capacity,
        "nothing is allocated after the start"
    );
    let newest = DATAGRAMS_MAX as u16 * 40 - 1;
    assert!(matches!(
        insert(&mut reassembly, &piece(newest, 16, 16, false, 0), 9999),
        Inserted::Complete(_)
    ));
}

#[test]
fn too_many_gaps() {
    let mut reassembly = Reassembly::new();
    for gap in 0..RUNS_MAX as u16 {
        assert!(matches!(
            insert(&mut reassembly, &piece(1, gap * 16, 8, true, 0), 0),
            Inserted::Held
        ));
    }
    assert!(matches!(
        insert(&mut reassembly, &piece(1, 4096, 8, true, 0), 0),
        Inserted::Dropped
    ));
    assert_eq!(
        reassembly.take_dropped(),
        Dropped {
            fragment: 0,
            memory: RUNS_MAX as u64 + 1
        }
    );
    assert_eq!(reassembly.held(), 0);
}

#[test]
fn largest_datagram() {
    let mut reassembly = Reassembly::new();
    let mut offset = 0;
    while offset < 65_000 {
        assert!(matches!(
            insert(&mut reassembly, &piece(1, offset, 1480, true, 3), 0),
            Inserted::Held
        ));
        offset += 1480;
    }
    let last = u16::MAX - 20 - offset;
    let Inserted::Complete(mut datagram) = insert(&mut reassembly, &piece(1, offset, last as usize, false, 3), 0)
    else {
        panic!("not whole at {offset}")
    };
    assert_eq!(datagram.bytes().len(), 14 + 65535);
    assert_eq!(datagram.grow_front(HEADROOM_MIN), Ok(()));
}
