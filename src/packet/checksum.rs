//! Internet checksums (RFC 1071), their incremental update (RFC 1624), and SCTP's CRC32c (RFC 9260 appendix A).
//!
//! Sums are numbers in host order of the big-endian 16-bit words, unfolded in a `u64`, so that words of any size up to
//! 32 bits can be added to one another (2^16 = 1 modulo 2^16 - 1). A `u64` holds the sum of far more than a frame.

use super::flow::{Family, FlowKey};

/// Folds a sum into 16 bits: the one's complement sum itself, not its complement.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let (sum, carry) = (sum as u32).overflowing_add((sum >> 32) as u32);
    fold_short(sum + carry as u32)
}

/// The same of a sum of words whose carries have room in 32 bits.
#[inline(always)]
pub fn fold_short(sum: u32) -> u16 {
    // Both halves swapped and added: the upper half is their sum with its carry brought round.
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// Whether `sum` folds to `field`, in fewer instructions than folding takes. (2^16 = 1 modulo 2^16 - 1, so folding changes
/// nothing modulo that.) Says yes of 0 where 0xffff would be right, and the other way round.
#[inline(always)]
pub fn may_be_sum(sum: u64, field: u16) -> bool {
    (sum + 0xffff - field as u64).is_multiple_of(0xffff)
}

/// Sum of some bytes; an odd last byte counts as the high half of a word (RFC 1071 section 4.1).
pub fn sum(bytes: &[u8]) -> u64 {
    // Summed in memory order and swapped once at the end (RFC 1071 section 2 B).
    let (words, rest) = bytes.as_chunks::<8>();
    let mut total = 0u64;
    for word in words {
        let word = u64::from_ne_bytes(*word);
        total += (word >> 32) + (word & 0xffff_ffff);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let last = u64::from_ne_bytes(last);
    total += (last >> 32) + (last & 0xffff_ffff);
    u16::from_be(fold(total)) as u64
}

/// Sum of an IPv4 header without options: `0xffff` when its checksum is right.
#[inline(always)]
pub fn ipv4_header_20(header: &[u8; 20]) -> u16 {
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as u64;
    fold(word(0) + word(4) + word(8) + word(12) + word(16))
}

/// Whether the checksum of an IPv4 header without options is right: its sum is then a multiple of 0xffff, and not 0.
#[inline(always)]
pub fn is_ipv4_header_20_right(header: &[u8; 20]) -> bool {
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as u64;
    let sum = word(0) + word(4) + word(8) + word(12) + word(16);
    sum.is_multiple_of(0xffff) && sum != 0
}

/// The checksum of some bytes whose checksum field holds 0: what belongs into the field.
pub fn of(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// Sum of the pseudo-header of a transport packet of `len` bytes (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
pub fn pseudo_header(flow: &FlowKey, len: u32) -> u64 {
    let halves = |word: u64| (word >> 32) + (word & 0xffff_ffff);
    let a = &flow.addresses;
    let addresses = match flow.family {
        Family::V4 => halves(a[0]),
        Family::V6 => halves(a[0]) + halves(a[1]) + halves(a[2]) + halves(a[3]),
    };
    addresses + flow.protocol.0 as u64 + len as u64
}

/// What replaced words do to a checksum that covers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// Nothing replaced.
    pub const NONE: Delta = Delta(0);

    /// One 16-bit word.
    #[inline]
    pub fn u16(self, old: u16, new: u16) -> Delta {
        Delta(self.0 + (!old) as u64 + new as u64)
    }

    /// One 32-bit word, at an even offset.
    #[inline]
    pub fn u32(self, old: u32, new: u32) -> Delta {
        Delta(self.0 + (!old) as u64 + new as u64)
    }

    /// One 64-bit word, at an even offset.
    #[inline]
    pub fn u64(self, old: u64, new: u64) -> Delta {
        let halves = |word: u64| (word >> 32) + (word & 0xffff_ffff);
        Delta(self.0 + halves(!old) + halves(new))
    }

    /// Both changes.
    #[inline]
    pub fn and(self, other: Delta) -> Delta {
        Delta(self.0 + other.0)
    }

    /// A change given as what it adds: the complements of the old words and the new words.
    pub const fn from_sum(sum: u16) -> Delta {
        Delta(sum as u64)
    }

    /// The new value of a checksum field. A wrong checksum stays wrong by as much.
    #[inline]
    pub fn apply(self, field: u16) -> u16 {
        // RFC 1624 eqn. 3: HC' = ~(~HC + ~m + m').
        !fold((!field) as u64 + self.0)
    }

    /// The new value of a field that holds a pseudo-header sum, not complemented.
    #[inline]
    pub fn apply_unfinished(self, field: u16) -> u16 {
        fold(field as u64 + self.0)
    }
}

/// The checksum of an SCTP packet, whatever its field holds: the CRC32c of all of it with 0 in the field, which is at offset
/// 8, as it goes there (RFC 9260 section 6.8 and appendix A). The packet has its common header.
pub fn sctp(packet: &[u8]) -> [u8; 4] {
    let (before, after) = (&packet[..8], &packet[12..]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    // The low byte goes first: appendix A has the CRC's bits the other way round in each byte.
    crc32c::crc32c_append(crc, after).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::Protocol;

    /// A second implementation: word by word, carry by carry.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u16;
        for pair in bytes.chunks(2) {
            let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
            let (s, carry) = sum.overflowing_add(word);
            sum = s + carry as u16;
        }
        sum
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
        assert_eq!(of(&[]), 0xffff);
    }

    #[test]
    fn rfc_1624_example() {
        // Section 4: 0x5555 becomes 0x3285 in a header whose checksum is 0xDD2F.
        assert_eq!(Delta::NONE.u16(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    /// A second implementation: bit by bit. 0x82f63b78 is the Castagnoli polynomial, bits reversed.
    fn slow_crc32c(bytes: &[u8]) -> u32 {
        let bit = |crc: u32, _| (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78);
        !bytes
            .iter()
            .fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ *byte as u32, bit))
    }

    #[test]
    fn crc32c_check_values() {
        assert_eq!(slow_crc32c(b"123456789"), 0xe306_9283);
        // RFC 3720 appendix B.4: 32 bytes of zeros, of ones.
        assert_eq!(slow_crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(slow_crc32c(&[0xff; 32]), 0x62a8_ab43);
        // The crate takes long inputs in three strands.
        let long: Vec<u8> = (0..40_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
        for len in [0, 1, 7, 8, 255, 1500, 3072, 9000, 40_000] {
            assert_eq!(crc32c::crc32c(&long[..len]), slow_crc32c(&long[..len]), "{len} bytes");
        }
    }

    #[test]
    fn largest_frame_does_not_overflow() {
        assert_eq!(fold(sum(&[0xff; 0x1_0010])), 0xffff);
        assert_eq!(fold(u64::MAX), 0xffff);
    }

    proptest! {
        #[test]
        fn sum_agrees_with_the_slow_one(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(fold(sum(&bytes)), slow(&bytes));
        }

        #[test]
        fn ipv4_header_agrees(header in any::<[u8; 20]>()) {
            prop_assert_eq!(u16::from_be(ipv4_header_20(&header)), slow(&header));
        }

        #[test]
        fn sctp_agrees_with_the_slow_one(mut packet in proptest::collection::vec(any::<u8>(), 12..1500)) {
            let got = sctp(&packet);
            packet[8..12].fill(0);
            prop_assert_eq!(got, slow_crc32c(&packet).to_le_bytes());
            prop_assert_eq!(got, sctp(&packet), "the field does not matter");
        }

        #[test]
        fn pseudo_header_agrees(source: u128, destination: u128, len in 0u32..0x10000) {
            let flow = FlowKey::v6(Protocol::TCP, source, destination, 0);
            let mut bytes = source.to_be_bytes().to_vec();
            bytes.extend(destination.to_be_bytes());
            bytes.extend(len.to_be_bytes());
            bytes.extend([0, 0, 0, 6]);
            prop_assert_eq!(fold(pseudo_header(&flow, len)), slow(&bytes));
        }

        #[test]
        fn incremental_agrees_with_full(
            mut bytes in proptest::collection::vec(any::<u8>(), 40..80), word: u16, long: u32, huge: u64,
        ) {
            let field = of(&bytes);
            let at = |b: &[u8], n: usize| u16::from_be_bytes([b[n], b[n + 1]]);
            let old_long = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
            let old_huge = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
            let delta = Delta::NONE.u16(at(&bytes, 0), word).u32(old_long, long).u64(old_huge, huge);
            let unfinished = fold(sum(&bytes));
            bytes[0..2].copy_from_slice(&word.to_be_bytes());
            bytes[4..8].copy_from_slice(&long.to_be_bytes());
            bytes[8..16].copy_from_slice(&huge.to_be_bytes());
            // Words of a real packet are never all zero, where 0 and 0xffff differ.
            prop_assume!(slow(&bytes) != 0 && unfinished != 0);
            prop_assert_eq!(delta.apply(field), of(&bytes));
            prop_assert_eq!(delta.apply_unfinished(unfinished), slow(&bytes));
        }
    }
}
