//! Cutting a datagram into fragments (RFC 791 section 3.2, RFC 8200 section 4.5).

use crate::forward::{Cut, Identifications};
use crate::packet::checksum;
use crate::packet::parse::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, MORE_FRAGMENTS};
use crate::packet::{ChecksumOffload, ETHERNET_HEADER_LEN, Family, Frame, NoRoom, Offload};

/// Writes the fragments of a datagram, one after the other, into frames of the driver.
///
/// ```text
/// while !splitter.is_done() {
///     let frame = driver.allocate() ...;
///     splitter.write_next(&mut frame) ...;
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Splitter<'a> {
    bytes: &'a [u8],
    family: Family,
    /// Ethernet header and what every fragment repeats.
    headers: usize,
    /// Payload bytes that the first fragment and the others have room for; all but the last are a multiple of 8.
    first: usize,
    rest: usize,
    /// Payload written so far.
    position: usize,
    /// Bytes of the IPv6 fragment header; 0 for IPv4, and where there is nothing to cut.
    extra: usize,
    id: u32,
}

/// Bytes of an IPv6 fragment header.
const FRAGMENT_HEADER_LEN: usize = 8;
/// Its protocol number.
const FRAGMENT_HEADER: u8 = 44;

impl<'a> Splitter<'a> {
    /// Cuts a frame as `cut` says, into as many pieces at least as it came in. One that is no longer than the rest may be, and
    /// came in one piece, leaves as it is.
    pub fn new<F: Frame>(frame: &'a F, cut: Cut, ids: &mut Identifications) -> Splitter<'a> {
        let bytes = frame.bytes();
        let family = if bytes[ETHERNET_HEADER_LEN] >> 4 == 4 {
            Family::V4
        } else {
            Family::V6
        };
        let headers = match family {
            Family::V4 => ETHERNET_HEADER_LEN + (bytes[ETHERNET_HEADER_LEN] & 15) as usize * 4,
            Family::V6 => unfragmentable_ipv6(bytes),
        };
        let pieces_min = frame.reassembled().map_or(1, |whole| whole.pieces as usize);
        let is_short = bytes.len() - ETHERNET_HEADER_LEN <= cut.rest as usize;
        let extra = match family {
            Family::V6 if !is_short || pieces_min > 1 => FRAGMENT_HEADER_LEN,
            _ => 0,
        };
        let overhead = headers - ETHERNET_HEADER_LEN + extra;
        let room = |len: u16| ((len as usize).saturating_sub(overhead)).max(8);
        let mut splitter = Splitter {
            bytes,
            family,
            headers,
            first: room(cut.first),
            rest: room(cut.rest),
            position: 0,
            extra,
            id: if extra > 0 { ids.ipv6() } else { 0 },
        };
        if splitter.pieces() < pieces_min {
            let even = (((bytes.len() - headers) / pieces_min) & !7).max(8);
            (splitter.first, splitter.rest) = (even, even);
        }
        splitter
    }

    /// How many fragments there are in all.
    pub fn pieces(&self) -> usize {
        let payload = self.bytes.len() - self.headers;
        if payload <= self.first {
            return 1;
        }
        let left = payload - (self.first & !7);
        // The last piece may use the room beyond a multiple of 8.
        1 + left.saturating_sub(self.rest & 7).div_ceil(self.rest & !7).max(1)
    }

    /// Whether all of it has been written.
    pub fn is_done(&self) -> bool {
        self.position >= self.bytes.len() - self.headers
    }

    /// Writes the next fragment into an empty frame, Ethernet header included.
    pub fn write_next<G: Frame>(&mut self, into: &mut G) -> Result<(), NoRoom> {
        let payload = &self.bytes[self.headers..];
        let room = if self.position == 0 { self.first } else { self.rest };
        let more = payload.len() - self.position > room;
        let end = if more {
            self.position + (room & !7)
        } else {
            payload.len()
        };
        let piece = &payload[self.position..end];
        let extra = self.extra;
        into.set_len(self.headers + extra + piece.len())?;
        into.set_offload(Offload {
            checksum: ChecksumOffload::Finished,
            segmentation: None,
        });
        let bytes = into.bytes_mut();
        bytes[..self.headers].copy_from_slice(&self.bytes[..self.headers]);
        bytes[self.headers + extra..].copy_from_slice(piece);
        match self.family {
            Family::V4 => self.finish_ipv4(bytes, more),
            Family::V6 if extra > 0 => self.finish_ipv6(bytes, more),
            Family::V6 => {}
        }
        self.position = end;
        Ok(())
    }

    fn finish_ipv4(&self, bytes: &mut [u8], more: bool) {
        let total_len = (bytes.len() - ETHERNET_HEADER_LEN) as u16;
        let header = &mut bytes[ETHERNET_HEADER_LEN..self.headers];
        header[2..4].copy_from_slice(&total_len.to_be_bytes());
        let word = u16::from_be_bytes([header[6], header[7]]);
        let more = if more { MORE_FRAGMENTS } else { 0 };
        let word = word | more | (self.position / 8) as u16;
        header[6..8].copy_from_slice(&word.to_be_bytes());
        if self.position > 0 {
            blank_options(&mut header[IPV4_HEADER_LEN..]);
        }
        header[10..12].fill(0);
        let checksum = checksum::of(header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }

    fn finish_ipv6(&self, bytes: &mut [u8], more: bool) {
        let payload_len = (bytes.len() - ETHERNET_HEADER_LEN - IPV6_HEADER_LEN) as u16;
        bytes[18..20].copy_from_slice(&payload_len.to_be_bytes());
        let next_header_at = last_next_header(bytes, self.headers);
        let next_header = std::mem::replace(&mut bytes[next_header_at], FRAGMENT_HEADER);
        let fragment = &mut bytes[self.headers..self.headers + FRAGMENT_HEADER_LEN];
        fragment[0..2].copy_from_slice(&[next_header, 0]);
        fragment[2..4].copy_from_slice(&(self.position as u16 | more as u16).to_be_bytes());
        fragment[4..8].copy_from_slice(&self.id.to_be_bytes());
    }
}

/// Options that later fragments do not repeat become no-operations (RFC 791 section 3.1: the copied flag).
fn blank_options(options: &mut [u8]) {
    const COPIED: u8 = 0x80;
    let mut at = 0;
    while at < options.len() && options[at] != 0 {
        let len = if options[at] == 1 {
            1
        } else {
            options.get(at + 1).map_or(1, |len| (*len).max(1) as usize)
        };
        let end = options.len().min(at + len);
        if options[at] & COPIED == 0 {
            options[at..end].fill(1);
        }
        at = end;
    }
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// Where the part ends that every IPv6 fragment repeats: behind hop-by-hop options and routing header.
fn unfragmentable_ipv6(bytes: &[u8]) -> usize {
    let mut end = ETHERNET_HEADER_LEN + IPV6_HEADER_LEN;
    let mut at = end;
    let mut next = bytes[ETHERNET_HEADER_LEN + 6];
    while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) && at + 8 <= bytes.len() {
        let header_end = at + (bytes[at + 1] as usize + 1) * 8;
        if header_end > bytes.len() {
            break;
        }
        if next != DESTINATION_OPTIONS {
            end = header_end;
        }
        next = bytes[at];
        at = header_end;
    }
    end
}

/// Where the protocol number stands that says what comes at `end`.
fn last_next_header(bytes: &[u8], end: usize) -> usize {
    let mut next_at = ETHERNET_HEADER_LEN + 6;
    let mut at = ETHERNET_HEADER_LEN + IPV6_HEADER_LEN;
    while at < end {
        next_at = at;
        at += (bytes[at + 1] as usize + 1) * 8;
    }
    next_at
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
