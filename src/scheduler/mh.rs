//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): each destination has a permutation of the lookup table made of its
//! address and port, and they take places by turns, as many a turn as their weight. A change of the list moves few clients.

use super::hash::{available, client_port, fold};
use super::{Batch, Candidate, Schedule};
use crate::packet::FlowKey;

/// Places of the lookup table: a prime.
const PLACES: usize = 4093;
/// Bits that hold a place number: weights are scaled down to fit.
const PLACE_BITS: u32 = 12;
/// Keys of the kernel's two hashes.
const LOOKUP_KEY: u64 = 2_654_435_761;
const SKIP_KEY: u64 = 2_654_446_892;

/// The lookup table: indexes of candidates.
#[derive(Debug)]
pub struct Mh {
    places: Box<[u16]>,
    fallback: bool,
    port: bool,
}

impl Mh {
    /// `fallback` (mh-fallback): clients of an unavailable destination go to another. `port` (mh-port): the client's
    /// port counts too.
    pub(super) fn new(candidates: &[Candidate], fallback: bool, port: bool) -> Mh {
        Mh {
            places: fill(candidates),
            fallback,
            port,
        }
    }

    fn place(&self, client: u32, offset: usize) -> usize {
        hash(client.wrapping_add(offset as u32), LOOKUP_KEY) as usize % PLACES
    }
}

impl Schedule for Mh {
    fn pick<'s>(&'s self, candidates: &[Candidate], flow: &FlowKey, _: &mut Batch<'s>) -> Option<usize> {
        let client = client_port(flow, self.port).wrapping_add(fold(flow.source()));
        let first = self.place(client, 0);
        let at = |place: usize| available(candidates, self.places[place]);
        if at(first).is_some() || !self.fallback {
            return at(first);
        }
        (0..PLACES).find_map(|offset| at(self.place(client, (offset + first) % PLACES)))
    }
}

/// A destination's permutation: start and stride, and how many places it takes a turn.
struct Turn {
    place: usize,
    skip: usize,
    places_a_turn: u32,
}

fn fill(candidates: &[Candidate]) -> Box<[u16]> {
    let mut places = vec![u16::MAX; PLACES].into_boxed_slice();
    let mut turns = turns(candidates);
    if turns.iter().all(|t| t.places_a_turn == 0) {
        return places;
    }
    let mut left = PLACES;
    for n in (0..turns.len()).cycle() {
        let turn = &mut turns[n];
        for _ in 0..turn.places_a_turn {
            if left == 0 {
                return places;
            }
            while places[turn.place] != u16::MAX {
                turn.place = (turn.place + turn.skip) % PLACES;
            }
            places[turn.place] = n as u16;
            turn.place = (turn.place + turn.skip) % PLACES;
            left -= 1;
        }
    }
    places
}

fn turns(candidates: &[Candidate]) -> Vec<Turn> {
    let weights = || candidates.iter().map(|candidate| candidate.last_weight);
    let divisor = weights().fold(0, super::gcd).max(1);
    let largest = weights().max().unwrap_or(0) / divisor;
    let shift = (u32::BITS - largest.leading_zeros()).saturating_sub(PLACE_BITS);
    let turn = |candidate: &Candidate| {
        let weight = candidate.last_weight;
        let number = fold(candidate.key.address).wrapping_add(candidate.key.port as u32);
        let scaled = (weight / divisor) >> shift;
        Turn {
            place: hash(number, LOOKUP_KEY) as usize % PLACES,
            skip: hash(number, SKIP_KEY) as usize % (PLACES - 1) + 1,
            places_a_turn: if weight > 0 { scaled.max(1) } else { 0 },
        }
    };
    candidates.iter().map(turn).collect()
}

/// SipHash-1-3 (Aumasson and Bernstein) of four bytes under the key (`key`, `key`), low half: the kernel's hsiphash on
/// 64-bit machines.
fn hash(value: u32, key: u64) -> u32 {
    let mut v = [
        0x736f_6d65_7073_6575 ^ key,
        0x646f_7261_6e64_6f6d ^ key,
        0x6c79_6765_6e65_7261 ^ key,
        0x7465_6462_7974_6573 ^ key,
    ];
    let block = 4 << 56 | value as u64;
    v[3] ^= block;
    round(&mut v);
    v[0] ^= block;
    v[2] ^= 0xff;
    for _ in 0..3 {
        round(&mut v);
    }
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u32
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}
