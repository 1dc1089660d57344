//! Packets of an FTP control connection by NAT: read, and rewritten to another length with all that follows from it.
//!
//! Only addresses that the server announces are rewritten (`packet::ftp`), as in the kernel: a NAT leaves the client's alone. From
//! then on the server's sequence numbers and the client's acknowledgements are shifted ([`Shift`]).

use std::ops::Range;

use crate::conn::{Direction, Shift};
use crate::packet::{ChecksumOffload, DropReason, Family, Frame, Offload, Parsed, checksum, rewrite, tcp_options};

/// Offsets in a TCP header.
const SEQUENCE: usize = 4;
const ACKNOWLEDGEMENT: usize = 8;
const DATA_OFFSET: usize = 12;
const CHECKSUM: usize = 16;

/// Makes a TCP packet fit to be read: its checksum is looked at, and finished if a local stack left that to a card.
pub fn admit<F: Frame>(frame: &mut F, parsed: &Parsed) -> Result<(), DropReason> {
    let offload = frame.offload();
    if matches!(offload.checksum, ChecksumOffload::Unfinished { .. }) {
        return Ok(());
    }
    if offload.checksum == ChecksumOffload::Unknown {
        rewrite::finish(frame.bytes_mut(), parsed);
    }
    let tcp = &frame.bytes()[parsed.l4 as usize..parsed.end as usize];
    let sum = checksum::pseudo_header(&parsed.flow, tcp.len() as u32) + checksum::sum(tcp);
    if checksum::fold(sum) != 0xffff {
        return Err(DropReason::FtpControl);
    }
    Ok(())
}

/// What a TCP packet carries.
pub fn payload<'f, F: Frame>(frame: &'f F, parsed: &Parsed) -> &'f [u8] {
    let bytes = frame.bytes();
    &bytes[payload_start(bytes, parsed).min(parsed.end as usize)..parsed.end as usize]
}

/// Sequence number of a TCP packet.
pub fn sequence<F: Frame>(frame: &F, parsed: &Parsed) -> u32 {
    word(frame.bytes(), parsed.l4 as usize + SEQUENCE)
}

/// Writes `text` in the place of that part of the payload, and shifts what `shift` says of packets in this direction. For
/// what [`admit`] has let pass. Returns what is to be known of the packet as it is now.
pub fn edit<F: Frame>(
    frame: &mut F,
    parsed: &Parsed,
    direction: Direction,
    shift: Shift,
    replacement: Option<(Range<usize>, &[u8])>,
) -> Result<Parsed, DropReason> {
    let mut parsed = *parsed;
    if let Some((place, text)) = replacement {
        replace(frame, &mut parsed, place, text).ok_or(DropReason::FtpControl)?;
    }
    let bytes = frame.bytes_mut();
    if !shift.is_none() {
        shift_numbers(&mut bytes[parsed.l4 as usize..parsed.end as usize], direction, shift);
    }
    let field = parsed.l4 as usize + CHECKSUM;
    let len = parsed.end - parsed.l4 as u32;
    let pseudo = checksum::pseudo_header(&parsed.flow, len);
    let checksum = match frame.offload().checksum {
        ChecksumOffload::Unfinished { .. } => checksum::fold(pseudo),
        _ => {
            let bytes = frame.bytes_mut();
            bytes[field..field + 2].fill(0);
            let tcp = &bytes[parsed.l4 as usize..parsed.end as usize];
            !checksum::fold(pseudo + checksum::sum(tcp))
        }
    };
    frame.bytes_mut()[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    if frame.offload().checksum == ChecksumOffload::Unknown {
        let offload = Offload {
            checksum: ChecksumOffload::Finished,
            ..frame.offload()
        };
        frame.set_offload(offload);
    }
    Ok(parsed)
}

/// Payload and lengths; the IPv4 header's checksum with them.
fn replace<F: Frame>(frame: &mut F, parsed: &mut Parsed, place: Range<usize>, text: &[u8]) -> Option<()> {
    let start = payload_start(frame.bytes(), parsed) + place.start;
    let old_end = start + place.len();
    let end = parsed.end as usize;
    let new_end = end - place.len() + text.len();
    frame.set_len(end.max(new_end)).ok()?;
    let bytes = frame.bytes_mut();
    bytes.copy_within(old_end..end, start + text.len());
    bytes[start..start + text.len()].copy_from_slice(text);
    frame.set_len(new_end).ok()?;
    parsed.end = new_end as u32;
    let l3 = parsed.l3 as usize;
    let bytes = frame.bytes_mut();
    match parsed.flow.family {
        Family::V4 => {
            let total = u16::try_from(new_end - l3).ok()?;
            let header = &mut bytes[l3..parsed.l4 as usize];
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header[10..12].fill(0);
            let checksum = checksum::of(header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        Family::V6 => {
            let behind = u16::try_from(new_end - l3 - crate::packet::parse::IPV6_HEADER_LEN).ok()?;
            bytes[l3 + 4..l3 + 6].copy_from_slice(&behind.to_be_bytes());
        }
    }
    Some(())
}

/// Sequence numbers of the server, or acknowledgements of the client, those in SACK (RFC 2018) with them.
fn shift_numbers(tcp: &mut [u8], direction: Direction, shift: Shift) {
    match direction {
        Direction::Reply => set_word(tcp, SEQUENCE, shift.sequence(word(tcp, SEQUENCE))),
        Direction::Forward => {
            set_word(tcp, ACKNOWLEDGEMENT, shift.acknowledgement(word(tcp, ACKNOWLEDGEMENT)));
            let edges = tcp_options::find(tcp, tcp_options::SACK).unwrap_or_default();
            for edge in edges.clone().step_by(4).filter(|edge| edge + 4 <= edges.end) {
                set_word(tcp, edge, shift.acknowledgement(word(tcp, edge)));
            }
        }
    }
}

fn payload_start(bytes: &[u8], parsed: &Parsed) -> usize {
    let tcp = parsed.l4 as usize;
    tcp + usize::from(bytes[tcp + DATA_OFFSET] >> 4) * 4
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*bytes[at..].first_chunk().expect("behind it a whole TCP header"))
}

fn set_word(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
