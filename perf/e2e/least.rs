//! The least that a director does: what the floor of ring 1 (`perf/floor/mb.c`) does to a frame, in the loop of the bare forwarder. A hash,
//! a bucket of eight, an entry of 64 bytes with its counters, NAT to one server by sums that are known; no scheduler, states, deadlines,
//! IPv6, nor any check beyond what finds the flow. Buckets are asked for a batch ahead, entries as uvs does it, some frames ahead.
//!
//! Memory is bytes in one mapping each, for huge pages; both kinds of line have 64.

use std::ops::Range;

use memmap2::{Advice, MmapMut};
use uvs::dataplane::driver::Received;
use uvs::demo::cluster::Error;
use uvs::packet::Frame;
use uvs::prefetch;
use uvs::table::InterfaceId;

use crate::forwarder::Work;
use crate::rig::{SERVER_MAC, SERVERS_MAC, VIP, server_address};

/// How many frames ahead entries are asked for, and how many at once.
const AHEAD: usize = 16;
const TOGETHER: usize = 4;
/// Bytes of a bucket and of an entry.
const LINE: usize = 64;
/// Keys that a bucket holds.
const LANES: usize = 8;
/// Of a bucket: where the entries' numbers stand, behind the tags.
const NUMBERS: usize = 2 * LANES;
/// Of an entry: packets, bytes, and when the last came, behind the key.
const COUNTS: usize = 16;

/// Client's and virtual address and ports as the packet has them.
type Key = [u8; 12];

/// The director: a table of flows.
pub struct Least {
    /// Of each frame of the batch.
    found: Vec<Option<(Key, u64)>>,
    buckets: MmapMut,
    mask: usize,
    entries: MmapMut,
    used: usize,
    now: u32,
    /// What the destination's address changes in a sum of ones' complements.
    difference: u16,
}

impl Least {
    /// For so many flows, with 1.25 to 2.5 lanes each.
    pub fn new(flows: usize) -> Result<Least, Error> {
        let buckets = (flows * 5 / 4 / LANES).next_power_of_two();
        let map = |lines: usize| -> Result<MmapMut, Error> {
            let map = MmapMut::map_anon(lines * LINE).map_err(Error::io("map memory"))?;
            // Without huge pages it is slower, and still what this kernel allows.
            let _ = map.advise(Advice::HugePage);
            Ok(map)
        };
        let (old, new) = (VIP.octets(), server_address(0).octets());
        let words = |a: [u8; 4]| [[a[0], a[1]], [a[2], a[3]]].map(u16::from_be_bytes);
        let minus = words(old).map(|word| u32::from(!word));
        let plus = words(new).map(u32::from);
        Ok(Least {
            found: Vec::new(),
            buckets: map(buckets)?,
            mask: buckets - 1,
            entries: map(flows)?,
            used: 0,
            now: 0,
            difference: folded(minus.iter().chain(&plus).sum()),
        })
    }

    /// The key of a frame, and its hash, whose bucket is asked for; none of what is no UDP in IPv4 without options.
    fn look(&self, frame: &[u8]) -> Option<(Key, u64)> {
        let flow = frame.get(..42)?;
        // Whole: fragments would have a port elsewhere.
        if flow[12..15] != [8, 0, 0x45] || flow[23] != 17 || flow[20] & 0x3f != 0 || flow[21] != 0 {
            return None;
        }
        let key: Key = flow[26..38].try_into().ok()?;
        let hash = hash(&key);
        prefetch::to_read(self.buckets.as_chunks::<LINE>().0, hash as usize & self.mask);
        Some((key, hash))
    }

    /// Asks for the entries of these frames of the batch.
    fn ask(&self, frames: Range<usize>) {
        let end = frames.end.min(self.found.len());
        let found = self.found.get(frames.start..end).unwrap_or_default();
        found.iter().flatten().for_each(|(_, hash)| self.guess(*hash));
    }

    /// Asks for the entry that the bucket's tags point to.
    fn guess(&self, hash: u64) {
        let bucket = &self.buckets.as_chunks::<LINE>().0[hash as usize & self.mask];
        let lanes = matching(bucket, tag(hash));
        if lanes != 0 {
            let entry = number(bucket, lanes.trailing_zeros() as usize);
            prefetch::to_read(self.entries.as_chunks::<LINE>().0, entry);
        }
    }

    /// Counts a frame to its flow, which is made when it is new, and writes its new addresses. `false`: no room.
    fn translate(&mut self, frame: &mut [u8], key: &Key, hash: u64) -> bool {
        let Some(entry) = self.find(key, hash) else {
            return false;
        };
        let entry = &mut self.entries.as_chunks_mut::<LINE>().0[entry];
        let [packets, bytes] = [COUNTS, COUNTS + 8].map(|at| u64_at(entry, at));
        entry[COUNTS..COUNTS + 8].copy_from_slice(&(packets + 1).to_ne_bytes());
        entry[COUNTS + 8..COUNTS + 16].copy_from_slice(&(bytes + frame.len() as u64).to_ne_bytes());
        entry[COUNTS + 16..COUNTS + 20].copy_from_slice(&self.now.to_ne_bytes());
        frame[..6].copy_from_slice(&SERVER_MAC.0);
        frame[6..12].copy_from_slice(&SERVERS_MAC.0);
        // One from the number of hops, which is the high half of its word.
        frame[22] -= 1;
        adjust(frame, 24, u32::from(self.difference) + u32::from(!0x0100u16));
        adjust(frame, 40, self.difference.into());
        frame[30..34].copy_from_slice(&server_address(0).octets());
        true
    }

    fn find(&mut self, key: &Key, hash: u64) -> Option<usize> {
        let (tag, mut place) = (tag(hash), hash as usize & self.mask);
        for _ in 0..=self.mask {
            let bucket = &mut self.buckets.as_chunks_mut::<LINE>().0[place];
            let mut lanes = matching(bucket, tag);
            while lanes != 0 {
                let entry = number(bucket, lanes.trailing_zeros() as usize);
                if self.entries.as_chunks::<LINE>().0[entry][..key.len()] == *key {
                    return Some(entry);
                }
                lanes &= lanes - 1;
            }
            let free = matching(bucket, 0);
            if free != 0 {
                let lane = free.trailing_zeros() as usize;
                let entry = self.entries.as_chunks_mut::<LINE>().0.get_mut(self.used)?;
                entry[..key.len()].copy_from_slice(key);
                bucket[2 * lane..2 * lane + 2].copy_from_slice(&tag.to_ne_bytes());
                let number = NUMBERS + 4 * lane;
                bucket[number..number + 4].copy_from_slice(&(self.used as u32).to_ne_bytes());
                self.used += 1;
                return Some(self.used - 1);
            }
            place = (place + 1) & self.mask;
        }
        None
    }
}

impl Work for Least {
    fn prepare<F: Frame>(&mut self, batch: &[Received<F>]) {
        self.now += 1;
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        found.extend(batch.iter().map(|received| self.look(received.frame.bytes())));
        self.found = found;
        self.ask(0..AHEAD);
    }

    /// Servers' replies are not its own.
    fn rewrite(&mut self, number: usize, from: InterfaceId, frame: &mut [u8]) -> bool {
        if number.is_multiple_of(TOGETHER) {
            self.ask(number + AHEAD..number + AHEAD + TOGETHER);
        }
        match self.found[number] {
            Some((key, hash)) if from.0 == 0 => self.translate(frame, &key, hash),
            _ => false,
        }
    }
}

fn hash(key: &Key) -> u64 {
    let low = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7]]);
    let high = u32::from_ne_bytes([key[8], key[9], key[10], key[11]]);
    let product = u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(u64::from(high) ^ 0xbf58_476d_1ce4_e5b9);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Never 0, which is an empty lane's.
fn tag(hash: u64) -> u16 {
    (hash >> 48) as u16 | 1
}

/// A bit for each lane of that tag.
fn matching(bucket: &[u8; LINE], tag: u16) -> u32 {
    let tags = bucket[..NUMBERS].as_chunks::<2>().0;
    let equal = |n: usize| u32::from(u16::from_ne_bytes(tags[n]) == tag) << n;
    (0..LANES).fold(0, |lanes, n| lanes | equal(n))
}

fn number(bucket: &[u8; LINE], lane: usize) -> usize {
    u32::from_ne_bytes(bucket[NUMBERS..].as_chunks::<4>().0[lane]) as usize
}

fn u64_at(entry: &[u8; LINE], at: usize) -> u64 {
    u64::from_ne_bytes(entry.as_chunks::<8>().0[at / 8])
}

fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A checksum after its sum grew by `difference` (RFC 1624).
fn adjust(frame: &mut [u8], at: usize, difference: u32) {
    let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let new = !folded(u32::from(!old) + difference);
    frame[at..at + 2].copy_from_slice(&new.to_be_bytes());
}
