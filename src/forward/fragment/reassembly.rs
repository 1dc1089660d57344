//! Holding fragments until their datagram is whole (RFC 791 section 3.2, RFC 8200 section 4.5).
//!
//! ```text
//! a slot's buffer:  | headroom | Ethernet and IP header of the first fragment | payload, each piece in its place ... |
//!                                                                             ^ PAYLOAD_AT
//! ```
//! Pieces are copied, so their frames return to the driver at once; they count as held until the datagram leaves or is dropped.
//! Overlapping pieces make the whole datagram worthless (RFC 5722), a piece that is there already does not. All memory is
//! reserved at the start: [`DATAGRAMS_MAX`] datagrams; when all are taken, the oldest one goes.

use std::collections::HashMap;

use bytes::BytesMut;

use crate::packet::checksum;
use crate::packet::frame::HEADROOM_MIN;
use crate::packet::parse::DONT_FRAGMENT;
use crate::packet::{
    ChecksumOffload, ETHERNET_HEADER_LEN, Family, FlowKey, Fragment, Frame, NoRoom, Offload, Reassembled, Window,
    memory,
};

/// Datagrams that are held at most.
pub const DATAGRAMS_MAX: usize = 128;
/// How long the first fragment of a datagram waits for the last (net.ipv4.ipfrag_time).
pub const TIMEOUT_NS: u64 = 30_000_000_000;
/// How often timeouts are looked for.
const SWEEP_NS: u64 = 250_000_000;
/// Ethernet and IP headers in front of the payload, longer ones are dropped.
const HEADERS_MAX: usize = 272;
const PAYLOAD_AT: usize = HEADROOM_MIN + HEADERS_MAX;
const PAYLOAD_MAX: usize = u16::MAX as usize;
/// Stretches of a payload that are there, with gaps between them.
const RUNS_MAX: usize = 64;

/// What became of a fragment.
#[derive(Debug)]
#[must_use]
pub enum Inserted {
    /// It waits for others.
    Held,
    /// It was the last that was missing. Give the datagram back by [`Reassembly::release`].
    Complete(Datagram),
    /// It was dropped, perhaps with others: see [`Reassembly::take_dropped`].
    Dropped,
}

/// Fragments dropped, to be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// As [`DropReason::Fragment`](crate::packet::DropReason::Fragment).
    pub fragment: u64,
    /// As [`DropReason::FragmentMemory`](crate::packet::DropReason::FragmentMemory).
    pub memory: u64,
}

/// Whose piece a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    flow: FlowKey,
    id: u32,
}

/// The fragments that one worker holds.
#[derive(Debug)]
pub struct Reassembly {
    slots: Vec<Slot>,
    index: HashMap<Key, u16, foldhash::fast::RandomState>,
    free: Vec<u16>,
    /// Buffers of slots whose datagram is out.
    buffers: Vec<BytesMut>,
    held: u64,
    dropped: Dropped,
    next_sweep_ns: u64,
}

#[derive(Debug)]
struct Slot {
    key: Option<Key>,
    buffer: Option<BytesMut>,
    /// Sorted stretches of the payload that are there: start and end, not touching.
    runs: Vec<(u32, u32)>,
    /// Length of the payload, once the last piece came.
    len: Option<u32>,
    pieces: u16,
    /// Length of the largest fragment as an IP packet, and of the largest with Don't Fragment.
    largest: u16,
    largest_dont_fragment: u16,
    /// Ethernet and IP headers before the payload, once the first piece came; where the next header is to be set.
    headers: usize,
    next_header_at: usize,
    deadline_ns: u64,
}

impl Default for Reassembly {
    fn default() -> Reassembly {
        Reassembly::new()
    }
}

impl Reassembly {
    /// Reserves memory for [`DATAGRAMS_MAX`] datagrams; it is touched when used.
    pub fn new() -> Reassembly {
        Reassembly::with_datagrams(DATAGRAMS_MAX)
    }

    /// The same for another number of datagrams, of at most 65,535.
    pub fn with_datagrams(datagrams: usize) -> Reassembly {
        let slot = || Slot {
            key: None,
            buffer: None,
            runs: Vec::with_capacity(RUNS_MAX),
            len: None,
            pieces: 0,
            largest: 0,
            largest_dont_fragment: 0,
            headers: 0,
            next_header_at: 0,
            deadline_ns: 0,
        };
        Reassembly {
            slots: std::iter::repeat_with(slot).take(datagrams).collect(),
            // With that much spare room it never grows, whatever comes and goes.
            index: HashMap::with_capacity_and_hasher(datagrams * 4, foldhash::fast::RandomState::default()),
            free: (0..datagrams as u16).rev().collect(),
            buffers: memory::pieces(datagrams, PAYLOAD_AT + PAYLOAD_MAX).collect(),
            held: 0,
            dropped: Dropped::default(),
            next_sweep_ns: 0,
        }
    }

    /// Fragments that wait at the moment.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Fragments dropped since the last call.
    pub fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }

    /// Takes a copy of a fragment.
    pub fn insert(&mut self, bytes: &[u8], fragment: &Fragment, now_ns: u64) -> Inserted {
        let key = Key {
            flow: fragment.flow,
            id: fragment.id,
        };
        let Some(number) = self.slot_for(key, now_ns) else {
            self.dropped.memory += 1;
            return Inserted::Dropped;
        };
        let slot = &mut self.slots[number as usize];
        match slot.add(bytes, fragment) {
            Added::Piece => {
                self.held += 1;
                if slot.is_whole() {
                    return self.complete(number);
                }
                Inserted::Held
            }
            Added::Again => {
                self.dropped.fragment += 1;
                Inserted::Dropped
            }
            Added::Bad => {
                self.dropped.fragment += 1 + self.discard(number);
                Inserted::Dropped
            }
            Added::NoRoom => {
                self.dropped.memory += 1 + self.discard(number);
                Inserted::Dropped
            }
        }
    }

    /// Takes a datagram's buffer back.
    pub fn release(&mut self, datagram: Datagram) {
        self.buffers.push(datagram.buffer);
    }

    /// Drops what has waited too long. Cheap when called often.
    pub fn expire(&mut self, now_ns: u64) {
        if now_ns < self.next_sweep_ns {
            return;
        }
        self.next_sweep_ns = now_ns + SWEEP_NS;
        for number in 0..self.slots.len() {
            let slot = &self.slots[number];
            if slot.key.is_some() && slot.deadline_ns <= now_ns {
                self.dropped.fragment += self.discard(number as u16);
            }
        }
    }

    /// The slot of a datagram, a fresh one if need be.
    fn slot_for(&mut self, key: Key, now_ns: u64) -> Option<u16> {
        if let Some(&number) = self.index.get(&key) {
            if self.slots[number as usize].deadline_ns > now_ns {
                return Some(number);
            }
            self.dropped.fragment += self.discard(number);
        }
        if self.free.is_empty() || self.buffers.is_empty() {
            let slots = self.slots.iter().enumerate().filter(|(_, slot)| slot.key.is_some());
            let (oldest, _) = slots.min_by_key(|(_, slot)| slot.deadline_ns)?;
            self.dropped.memory += self.discard(oldest as u16);
        }
        let buffer = self.buffers.pop()?;
        let number = self.free.pop().expect("as many slots as buffers");
        let slot = &mut self.slots[number as usize];
        slot.key = Some(key);
        slot.buffer = Some(buffer);
        slot.deadline_ns = now_ns.saturating_add(TIMEOUT_NS);
        self.index.insert(key, number);
        Some(number)
    }

    /// Empties a slot; says how many fragments it held.
    fn discard(&mut self, number: u16) -> u64 {
        let slot = &mut self.slots[number as usize];
        let pieces = slot.pieces as u64;
        self.buffers.extend(slot.buffer.take());
        if let Some(key) = slot.key.take() {
            self.index.remove(&key);
            self.free.push(number);
        }
        slot.runs.clear();
        slot.len = None;
        slot.pieces = 0;
        slot.largest = 0;
        slot.largest_dont_fragment = 0;
        slot.headers = 0;
        self.held -= pieces;
        pieces
    }

    fn complete(&mut self, number: u16) -> Inserted {
        let slot = &mut self.slots[number as usize];
        let whole = slot.assemble();
        let pieces = self.discard(number);
        match whole {
            Some(datagram) => Inserted::Complete(datagram),
            None => {
                self.dropped.fragment += pieces;
                Inserted::Dropped
            }
        }
    }
}

/// What a piece did to its datagram.
enum Added {
    Piece,
    /// It was there already.
    Again,
    /// It overlaps another, or contradicts the length.
    Bad,
    /// Too many gaps, or too long a header.
    NoRoom,
}

impl Slot {
    fn add(&mut self, bytes: &[u8], fragment: &Fragment) -> Added {
        let piece = &bytes[fragment.payload as usize..fragment.end as usize];
        let start = fragment.offset as u32;
        let end = start + piece.len() as u32;
        let seen = self.runs.last().map_or(0, |run| run.1);
        match self.len {
            Some(len) if end > len || !fragment.more && end != len => return Added::Bad,
            None if !fragment.more && end < seen => return Added::Bad,
            _ => {}
        }
        match self.add_run(start, end) {
            Added::Piece => {}
            other => return other,
        }
        if !fragment.more {
            self.len = Some(end);
        }
        let Some(buffer) = &mut self.buffer else {
            return Added::Bad;
        };
        buffer[PAYLOAD_AT + start as usize..][..piece.len()].copy_from_slice(piece);
        if start == 0 {
            let headers = &bytes[..fragment.header_end as usize];
            if headers.len() > HEADERS_MAX {
                return Added::NoRoom;
            }
            buffer[PAYLOAD_AT - headers.len()..PAYLOAD_AT].copy_from_slice(headers);
            self.headers = headers.len();
            self.next_header_at = fragment.next_header_at as usize;
        }
        let len = u16::try_from(fragment.end - fragment.l3 as u32).unwrap_or(u16::MAX);
        self.pieces += 1;
        self.largest = self.largest.max(len);
        if fragment.dont_fragment {
            self.largest_dont_fragment = self.largest_dont_fragment.max(len);
        }
        Added::Piece
    }

    /// Notes a stretch as there.
    fn add_run(&mut self, start: u32, end: u32) -> Added {
        let at = self.runs.partition_point(|run| run.1 < start);
        match self.runs.get(at).copied() {
            // Touches or meets the run at `at`.
            Some(run) if run.0 <= end => {
                if run.0 <= start && end <= run.1 {
                    return Added::Again;
                }
                if run.1 == start {
                    // Behind it; perhaps also touching the next.
                    return self.append(at, end);
                }
                if run.0 == end {
                    self.runs[at].0 = start;
                    return Added::Piece;
                }
                Added::Bad
            }
            _ => {
                if self.runs.len() == RUNS_MAX {
                    return Added::NoRoom;
                }
                self.runs.insert(at, (start, end));
                Added::Piece
            }
        }
    }

    fn append(&mut self, at: usize, end: u32) -> Added {
        match self.runs.get(at + 1).copied() {
            Some(next) if next.0 < end => Added::Bad,
            Some(next) if next.0 == end => {
                self.runs[at].1 = next.1;
                self.runs.remove(at + 1);
                Added::Piece
            }
            _ => {
                self.runs[at].1 = end;
                Added::Piece
            }
        }
    }

    fn is_whole(&self) -> bool {
        matches!((self.runs.as_slice(), self.len), (&[(0, end)], Some(len)) if end == len)
    }

    /// Writes the header of the whole datagram. `None`: it would be longer than an IP packet can be.
    fn assemble(&mut self) -> Option<Datagram> {
        let payload = self.len? as usize;
        let family = self.key?.flow.family;
        let l3 = ETHERNET_HEADER_LEN;
        let start = PAYLOAD_AT - self.headers;
        let ip_len = self.headers - l3 + payload;
        let buffer = self.buffer.as_mut()?;
        let headers = &mut buffer[start..PAYLOAD_AT];
        match family {
            Family::V4 => {
                let ip = &mut headers[l3..];
                ip[2..4].copy_from_slice(&u16::try_from(ip_len).ok()?.to_be_bytes());
                let dont_fragment = self.largest_dont_fragment == self.largest;
                ip[6..8].copy_from_slice(&if dont_fragment { DONT_FRAGMENT } else { 0 }.to_be_bytes());
                ip[10..12].fill(0);
                let checksum = checksum::of(ip);
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            Family::V6 => {
                let payload_len = u16::try_from(ip_len - 40).ok()?;
                headers[l3 + 4..l3 + 6].copy_from_slice(&payload_len.to_be_bytes());
                headers[self.next_header_at] = self.key?.flow.protocol.0;
            }
        }
        Some(Datagram {
            buffer: self.buffer.take()?,
            window: Window::new(start, self.headers + payload),
            offload: Offload {
                checksum: ChecksumOffload::Finished,
                segmentation: None,
            },
            whole: Reassembled {
                largest: self.largest,
                pieces: self.pieces,
            },
        })
    }
}

/// A datagram put together from fragments: a [`Frame`] in memory of its own.
#[derive(Debug)]
pub struct Datagram {
    buffer: BytesMut,
    window: Window,
    offload: Offload,
    whole: Reassembled,
}

impl Frame for Datagram {
    fn bytes(&self) -> &[u8] {
        self.window.of(&self.buffer)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.window.of_mut(&mut self.buffer)
    }

    fn grow_front(&mut self, n: usize) -> Result<(), NoRoom> {
        self.window.grow_front(n)
    }

    fn shrink_front(&mut self, n: usize) {
        self.window.shrink_front(n);
    }

    fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        self.window.set_len(len, self.buffer.len())
    }

    fn offload(&self) -> Offload {
        self.offload
    }

    fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }

    fn reassembled(&self) -> Option<Reassembled> {
        Some(self.whole)
    }
}

#[cfg(test)]
#[path = "reassembly_tests.rs"]
mod tests;
