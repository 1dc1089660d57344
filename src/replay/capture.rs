//! Captures: frames of pcap and pcapng files in, frames out as pcap.
//!
//! Read are files of Ethernet frames by `tcpdump`, `dumpcap` and their like, in either byte order, with micro- or nanoseconds.
//! They are read block by block, so they may be of any length; a single block may not (see [`BLOCK_BYTES_MAX`]).

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pcap_parser::pcapng::Block;
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Linktype, PcapBlockOwned, PcapError, create_reader};

use super::error::ReplayError;
use crate::io::buffer::FRAME_LEN_MAX;

/// Longest block: a frame with whatever a program wrote beside it.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Interfaces that a pcapng file may describe.
const INTERFACES_MAX: usize = 4096;

/// Magic number of pcap files whose timestamps are in nanoseconds (draft-ietf-opsawg-pcap section 4).
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const NS_PER_S: u64 = 1_000_000_000;

/// One captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The first is 1.
    pub number: u64,
    /// Since 1970; 0 when the file does not say.
    pub time_ns: u64,
    /// Interface as the file names it.
    pub interface: Option<String>,
    /// What was captured of it.
    pub bytes: Vec<u8>,
    /// How long it was on the wire.
    pub wire_len: usize,
}

/// An interface of a pcapng file.
struct Source {
    name: Option<String>,
    is_ethernet: bool,
    units_per_s: u64,
    offset_s: i64,
}

/// A file being read.
pub struct Reader {
    path: PathBuf,
    blocks: Box<dyn PcapReaderIterator + Send>,
    /// Of the pcapng section under way.
    sources: Vec<Source>,
    nanoseconds: bool,
    number: u64,
}

/// What a block was.
enum Found {
    Frame(Captured),
    Nothing,
}

impl Reader {
    /// Opens a file of either kind.
    pub fn open(path: &Path) -> Result<Reader, ReplayError> {
        let file = File::open(path).map_err(|error| ReplayError::file(path, error))?;
        let blocks = create_reader(BLOCK_BYTES_MAX, file).map_err(|error| {
            ReplayError::file(
                path,
                match error {
                    PcapError::Eof => "the file is empty".to_owned(),
                    PcapError::ReadError => "cannot be read".to_owned(),
                    _ => "neither recorded cases (JSON) nor a capture (pcap, pcapng)".to_owned(),
                },
            )
        })?;
        Ok(Reader {
            path: path.to_owned(),
            blocks,
            sources: Vec::new(),
            nanoseconds: false,
            number: 0,
        })
    }

    /// The next frame; `None` at the end.
    pub fn next_frame(&mut self) -> Result<Option<Captured>, ReplayError> {
        loop {
            let (used, found) = match self.blocks.next() {
                Ok((used, block)) => {
                    let found = take(block, &mut self.sources, &mut self.nanoseconds, self.number + 1);
                    (used, found)
                }
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(_)) => {
                    if self.blocks.reader_exhausted() {
                        return Err(self.wrong("the file ends in the middle of a frame"));
                    }
                    if self.blocks.refill().is_err() {
                        return Err(self.wrong(format!("cannot be read, or is longer than {BLOCK_BYTES_MAX} bytes")));
                    }
                    continue;
                }
                Err(PcapError::UnexpectedEof) => return Err(self.wrong("the file ends in the middle of a frame")),
                Err(PcapError::BufferTooSmall) => {
                    return Err(self.wrong(format!("a block of more than {BLOCK_BYTES_MAX} bytes")));
                }
                Err(_) => return Err(self.wrong("no block of a capture")),
            };
            let found = found.map_err(|reason| self.wrong(reason))?;
            self.blocks.consume(used);
            if let Found::Frame(frame) = found {
                self.number += 1;
                return Ok(Some(frame));
            }
        }
    }

    fn wrong(&self, reason: impl Into<String>) -> ReplayError {
        ReplayError::file(&self.path, format!("frame {}: {}", self.number + 1, reason.into()))
    }
}

fn take(
    block: PcapBlockOwned<'_>,
    sources: &mut Vec<Source>,
    nanoseconds: &mut bool,
    number: u64,
) -> Result<Found, String> {
    let frame = |time_ns, interface, bytes: &[u8], wire_len: u32| {
        if bytes.len() > FRAME_LEN_MAX {
            return Err(format!("{} bytes are more than {FRAME_LEN_MAX}", bytes.len()));
        }
        Ok(Found::Frame(Captured {
            number,
            time_ns,
            interface,
            bytes: bytes.to_vec(),
            wire_len: wire_len as usize,
        }))
    };
    match block {
        PcapBlockOwned::LegacyHeader(header) => {
            *nanoseconds = [NANOSECONDS, NANOSECONDS.swap_bytes()].contains(&header.magic_number);
            ethernet(header.network == Linktype::ETHERNET, header.network)?;
            Ok(Found::Nothing)
        }
        PcapBlockOwned::Legacy(block) => {
            let unit = if *nanoseconds { 1 } else { 1000 };
            let time_ns = u64::from(block.ts_sec) * NS_PER_S + u64::from(block.ts_usec) * unit;
            let bytes = block.data.get(..block.caplen as usize).unwrap_or(block.data);
            frame(time_ns, None, bytes, block.origlen)
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            sources.clear();
            Ok(Found::Nothing)
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
            if sources.len() >= INTERFACES_MAX {
                return Err(format!("more than {INTERFACES_MAX} interfaces"));
            }
            sources.push(Source {
                name: block.if_name().and_then(Result::ok).map(str::to_owned),
                is_ethernet: block.linktype == Linktype::ETHERNET,
                units_per_s: units_per_s(block.if_tsresol)?,
                offset_s: block.if_tsoffset,
            });
            Ok(Found::Nothing)
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(block)) => {
            let source = sources.get(block.if_id as usize);
            let source = source.ok_or_else(|| format!("it is of interface {}, which is not described", block.if_id))?;
            ethernet(source.is_ethernet, "another")?;
            let units = u64::from(block.ts_high) << 32 | u64::from(block.ts_low);
            let time_ns = u128::from(units) * u128::from(NS_PER_S) / u128::from(source.units_per_s);
            let offset_ns = i128::from(source.offset_s) * i128::from(NS_PER_S);
            let time_ns = i128::try_from(time_ns).unwrap_or(0) + offset_ns;
            let time_ns = u64::try_from(time_ns).map_err(|_| "a time before 1970 or after 2554".to_owned())?;
            frame(time_ns, source.name.clone(), block.packet_data(), block.origlen)
        }
        PcapBlockOwned::NG(Block::SimplePacket(block)) => {
            let source = sources.first().ok_or("no interface is described before it")?;
            ethernet(source.is_ethernet, "another")?;
            frame(0, source.name.clone(), block.packet_data(), block.origlen)
        }
        PcapBlockOwned::NG(_) => Ok(Found::Nothing),
    }
}

fn ethernet(is: bool, other: impl std::fmt::Display) -> Result<(), String> {
    match is {
        true => Ok(()),
        false => Err(format!(
            "link type {other}: only frames of Ethernet are read (capture on one interface, not on `any')"
        )),
    }
}

/// `if_tsresol` (draft-ietf-opsawg-pcapng section 4.2): a power of ten, or with its highest bit of two.
fn units_per_s(resolution: u8) -> Result<u64, String> {
    let exponent = u32::from(resolution & 0x7f);
    let units = match resolution & 0x80 {
        0 => 10u64.checked_pow(exponent),
        _ => 1u64.checked_shl(exponent),
    };
    units.ok_or_else(|| format!("an interface with time stamps in steps of {resolution:#x}"))
}

/// A pcap file being written, with nanoseconds.
pub struct Writer<W: Write> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Writes the file header.
    pub fn new(mut out: W) -> io::Result<Writer<W>> {
        let mut header = Vec::with_capacity(24);
        header.extend(NANOSECONDS.to_le_bytes());
        header.extend([2, 0, 4, 0]);
        header.extend([0; 8]);
        header.extend((FRAME_LEN_MAX as u32).to_le_bytes());
        header.extend(1u32.to_le_bytes());
        out.write_all(&header)?;
        Ok(Writer { out })
    }

    /// One more frame.
    pub fn frame(&mut self, time_ns: u64, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u32;
        for word in [(time_ns / NS_PER_S) as u32, (time_ns % NS_PER_S) as u32, len, len] {
            self.out.write_all(&word.to_le_bytes())?;
        }
        self.out.write_all(bytes)
    }

    /// Everything is in the file.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> (Vec<Captured>, Option<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pcap");
        std::fs::write(&path, bytes).unwrap();
        let mut frames = Vec::new();
        let mut reader = match Reader::open(&path) {
            Ok(reader) => reader,
            Err(error) => return (frames, Some(error.to_string())),
        };
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, None),
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
    }

    fn written() -> Vec<u8> {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file).unwrap();
        writer.frame(1_700_000_000_123_456_789, &[1; 60]).unwrap();
        writer.frame(1_700_000_001_000_000_000, &[2; 61]).unwrap();
        writer.finish().unwrap();
        file
    }

    fn ng_block(kind: u32, body: &[u8]) -> Vec<u8> {
        let len = 12 + body.len() as u32;
        [&kind.to_le_bytes()[..], &len.to_le_bytes(), body, &len.to_le_bytes()].concat()
    }

    /// A section, an interface `eth7` with nanoseconds, and one frame of 61 bytes, cut from 100.
    fn ng(link_type: u8, interface: u8) -> Vec<u8> {
        let section = [&0x1a2b_3c4du32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
        let description = [
            &[link_type, 0, 0, 0, 0, 0, 4, 0][..],
            &[2, 0, 4, 0],
            b"eth7",
            &[9, 0, 1, 0, 9, 0, 0, 0],
            &[0; 4],
        ]
        .concat();
        let time = 1_700_000_000_123_456_789u64;
        let mut packet = vec![interface, 0, 0, 0];
        for word in [(time >> 32) as u32, time as u32, 61, 100] {
            packet.extend(word.to_le_bytes());
        }
        packet.extend([3; 61]);
        packet.extend([0; 3]);
        [
            ng_block(0x0a0d_0d0a, &section),
            ng_block(1, &description),
            ng_block(6, &packet),
        ]
        .concat()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let (frames, error) = read(&written());
        assert_eq!(error, None);
        assert_eq!(
            frames.iter().map(|f| (f.number, f.bytes.len())).collect::<Vec<_>>(),
            [(1, 60), (2, 61)]
        );
        assert_eq!(frames[0].time_ns, 1_700_000_000_123_456_789);
    }

    #[test]
    fn microseconds_and_the_other_byte_order() {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4u32, 2 << 16 | 4, 0, 0, 65535, 1, 7, 8, 60, 60] {
            file.extend(word.to_be_bytes());
        }
        file.extend([9; 60]);
        let (frames, error) = read(&file);
        assert_eq!(error, None);
        assert_eq!((frames[0].time_ns, frames[0].bytes.len()), (7_000_008_000, 60));
    }

    #[test]
    fn pcapng_tells_interface_and_length() {
        let (frames, error) = read(&ng(1, 0));
        assert_eq!(error, None);
        let frame = &frames[0];
        assert_eq!((frame.interface.as_deref(), frame.wire_len), (Some("eth7"), 100));
        assert_eq!(
            (frame.bytes.clone(), frame.time_ns),
            (vec![3; 61], 1_700_000_000_123_456_789)
        );
    }

    #[test]
    fn a_bad_file_is_refused_with_place_and_reason() {
        let good = written();
        let mut cooked = good.clone();
        cooked[20] = 113;
        let mut long = good.clone();
        long[32..36].copy_from_slice(&(2u32 << 20).to_le_bytes());
        for (bytes, expected) in [
            (vec![], "the file is empty"),
            (
                b"hello, this is no capture at all".to_vec(),
                "neither recorded cases (JSON) nor a capture",
            ),
            (cooked, "only frames of Ethernet are read"),
            (
                good[..good.len() - 1].to_vec(),
                "frame 2: the file ends in the middle of a frame",
            ),
            (long, "frame 1: "),
            (ng(113, 0), "frame 1: link type another: only frames of Ethernet"),
            (ng(1, 3), "frame 1: it is of interface 3, which is not described"),
        ] {
            let error = read(&bytes).1.expect("refused");
            assert!(
                error.contains("x.pcap: ") && error.contains(expected),
                "{expected}: {error}"
            );
        }
    }

    /// How: every single byte of both kinds of file changed, and every length. Goal: frames or a reason, never a panic.
    #[test]
    fn damage_does_no_harm() {
        for good in [written(), ng(1, 0)] {
            for at in 0..good.len().min(160) {
                for value in [0, 0x7f, 0xff] {
                    let mut bad = good.clone();
                    bad[at] = value;
                    read(&bad);
                }
                read(&good[..at]);
            }
        }
    }
}
