//! The outer header: checked, and taken off. Pure functions on bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use crate::packet::checksum::{Delta, fold, sum};
use crate::packet::{ChecksumOffload, ETHERNET_HEADER_LEN, Offload};

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// Why a tunnel packet was not unwrapped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Refusal { $($(#[doc = $doc])+ $variant,)+ }

        impl Refusal {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$variant,)+];

            /// The name in the counters.
            pub fn name(self) -> &'static str {
                match self { $(Refusal::$variant => $name,)+ }
            }
        }
    };
}

refusals! {
    /// Longer than 64 KiB, VLAN-tagged, or with an impossible virtio header.
    BadFrame => "bad_frame",
    /// The outer header's version, length or checksum is wrong.
    BadOuterHeader => "bad_outer_header",
    /// The outer destination is not an address of this host.
    NotOurs => "not_ours",
    /// A piece of an outer packet that fits no other, or that there is no room for.
    OuterFragment => "outer_fragment",
    /// The inner header's version or length is wrong, or longer than the outer packet.
    BadInnerHeader => "bad_inner_header",
    /// Congestion was marked on the way, and the inner packet cannot carry that (RFC 6040 section 4.2).
    EcnMismatch => "ecn_mismatch",
    /// The tun device refused it.
    NotTaken => "not_taken",
}

const L3: usize = ETHERNET_HEADER_LEN;
const IPIP: u8 = 4;
const IPV6: u8 = 41;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Both ECN bits: congestion experienced (RFC 3168 section 5).
const CE: u8 = 3;

/// A checked outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Whom the tunnel packet is for.
    pub destination: IpAddr,
    /// 4 or 41.
    protocol: u8,
    ecn: u8,
    /// Where the inner packet starts.
    start: usize,
    /// Where the outer packet ends: what follows is Ethernet padding.
    end: usize,
}

impl Outer {
    /// Reads the outer header of an Ethernet frame.
    pub fn read(frame: &[u8]) -> Result<Outer, Refusal> {
        match frame.get(L3).ok_or(Refusal::BadOuterHeader)? >> 4 {
            4 => Outer::read_v4(frame),
            6 => Outer::read_v6(frame),
            _ => Err(Refusal::BadOuterHeader),
        }
    }

    fn read_v4(frame: &[u8]) -> Result<Outer, Refusal> {
        let header_len = (frame[L3] & 0xf) as usize * 4;
        let start = L3 + header_len;
        let header = frame
            .get(L3..start)
            .filter(|h| h.len() >= 20)
            .ok_or(Refusal::BadOuterHeader)?;
        let end = L3 + word(header, 2);
        if end < start || end > frame.len() || fold(sum(header)) != 0xffff {
            return Err(Refusal::BadOuterHeader);
        }
        // More fragments, or not the first.
        if word(header, 6) & 0x3fff != 0 {
            return Err(Refusal::OuterFragment);
        }
        let address: [u8; 4] = header[16..20].try_into().expect("four bytes of twenty");
        let destination = Ipv4Addr::from(address).into();
        Ok(Outer {
            destination,
            protocol: header[9],
            ecn: header[1] & CE,
            start,
            end,
        })
    }

    fn read_v6(frame: &[u8]) -> Result<Outer, Refusal> {
        let header = frame.get(L3..L3 + 40).ok_or(Refusal::BadOuterHeader)?;
        let end = L3 + 40 + word(header, 4);
        let packet = frame.get(..end).ok_or(Refusal::BadOuterHeader)?;
        let (mut protocol, mut start) = (header[6], L3 + 40);
        if protocol == DESTINATION_OPTIONS {
            // RFC 8200 section 4.6: next header, length in 8 bytes without the first 8.
            let options = packet.get(start..start + 2).ok_or(Refusal::BadOuterHeader)?;
            protocol = options[0];
            start += 8 + options[1] as usize * 8;
        }
        if protocol == FRAGMENT {
            return Err(Refusal::OuterFragment);
        }
        if start > end {
            return Err(Refusal::BadOuterHeader);
        }
        let address: [u8; 16] = header[24..40].try_into().expect("sixteen bytes of forty");
        let destination = Ipv6Addr::from(address).into();
        // The traffic class lies across the first two bytes.
        Ok(Outer {
            destination,
            protocol,
            ecn: header[1] >> 4 & CE,
            start,
            end,
        })
    }

    /// Where the inner packet is. Takes a congestion mark over into it.
    pub fn unwrap(&self, frame: &mut [u8]) -> Result<Range<usize>, Refusal> {
        let inner = &mut frame[self.start..self.end];
        let len = match (self.protocol, inner.first().ok_or(Refusal::BadInnerHeader)? >> 4) {
            (IPIP, 4) if inner.len() >= 20 => word(inner, 2),
            (IPV6, 6) if inner.len() >= 40 => 40 + word(inner, 4),
            _ => return Err(Refusal::BadInnerHeader),
        };
        let header_len = if self.protocol == IPIP {
            (inner[0] & 0xf) as usize * 4
        } else {
            40
        };
        if header_len < 20 || len < header_len || len > inner.len() {
            return Err(Refusal::BadInnerHeader);
        }
        if self.ecn == CE {
            mark_congestion(inner)?;
        }
        Ok(self.start..self.start + len)
    }
}

/// RFC 6040 section 4.2: a mark on the outer header goes into an inner packet whose transport knows ECN; one whose
/// transport does not is dropped, as congestion would have done.
fn mark_congestion(inner: &mut [u8]) -> Result<(), Refusal> {
    if inner[0] >> 4 == 6 {
        if inner[1] >> 4 & CE == 0 {
            return Err(Refusal::EcnMismatch);
        }
        inner[1] |= CE << 4;
        return Ok(());
    }
    if inner[1] & CE == 0 {
        return Err(Refusal::EcnMismatch);
    }
    let old = word(inner, 0) as u16;
    inner[1] |= CE;
    let checksum = Delta::NONE
        .u16(old, word(inner, 0) as u16)
        .apply(word(inner, 10) as u16);
    inner[10..12].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

/// The offsets of `offload`, which count from the outer frame's start, for a frame in which the inner packet starts at
/// `to` instead of `from`.
pub fn move_offload(offload: Offload, from: usize, to: usize) -> Result<Offload, Refusal> {
    let moved = |at: u16| match (at as usize).checked_sub(from) {
        Some(offset) if offset >= 20 => Ok((offset + to) as u16),
        _ => Err(Refusal::BadFrame),
    };
    let checksum = match offload.checksum {
        ChecksumOffload::Unfinished { start, offset } => ChecksumOffload::Unfinished {
            start: moved(start)?,
            offset,
        },
        other => other,
    };
    let segmentation = match offload.segmentation {
        Some(mut segmentation) => {
            segmentation.header_len = moved(segmentation.header_len)?;
            Some(segmentation)
        }
        None => None,
    };
    Ok(Offload { checksum, segmentation })
}

fn word(bytes: &[u8], at: usize) -> usize {
    u16::from_be_bytes([bytes[at], bytes[at + 1]]) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Segmentation, SegmentationKind};
    use etherparse::{IpEcn, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, PacketBuilder};

    const DIRECTOR: [u8; 4] = [192, 0, 2, 100];
    const SERVER: [u8; 4] = [192, 0, 2, 2];
    const SERVER6: [u8; 16] = [0xfd; 16];

    fn inner4() -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([198, 51, 100, 1], [192, 0, 2, 80], 63)
            .udp(4000, 53)
            .write(&mut packet, b"ask")
            .unwrap();
        packet
    }

    fn inner6() -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 63)
            .udp(4000, 53)
            .write(&mut packet, b"ask")
            .unwrap();
        packet
    }

    fn outer4(inner: &[u8], protocol: u8, ecn: u8) -> Vec<u8> {
        let mut header = Ipv4Header::new(inner.len() as u16, 64, IpNumber(protocol), DIRECTOR, SERVER).unwrap();
        header.ecn = IpEcn::try_new(ecn).unwrap();
        header.header_checksum = header.calc_header_checksum();
        let mut frame = [[2; 12].as_slice(), &[8, 0]].concat();
        header.write(&mut frame).unwrap();
        [frame.as_slice(), inner].concat()
    }

    fn outer6(inner: &[u8], next: u8, ecn: u8) -> Vec<u8> {
        let header = Ipv6Header {
            traffic_class: ecn,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: inner.len() as u16,
            next_header: IpNumber(next),
            hop_limit: 64,
            source: [9; 16],
            destination: SERVER6,
        };
        let mut frame = [[2; 12].as_slice(), &[0x86, 0xdd]].concat();
        header.write(&mut frame).unwrap();
        [frame.as_slice(), inner].concat()
    }

    fn take_off(mut frame: Vec<u8>) -> Result<(IpAddr, Vec<u8>), Refusal> {
        let outer = Outer::read(&frame)?;
        let range = outer.unwrap(&mut frame)?;
        Ok((outer.destination, frame[range].to_vec()))
    }

    #[test]
    fn all_four_combinations_come_out_as_they_went_in() {
        for (inner, protocol) in [(inner4(), IPIP), (inner6(), IPV6)] {
            assert_eq!(
                take_off(outer4(&inner, protocol, 0)),
                Ok((SERVER.into(), inner.clone()))
            );
            assert_eq!(
                take_off(outer6(&inner, protocol, 0)),
                Ok((SERVER6.into(), inner.clone()))
            );
            // A destination options header with the encapsulation limit, as Linux sends it.
            let behind_options = [&[protocol, 0, 4, 1, 4, 1, 1, 0], inner.as_slice()].concat();
            assert_eq!(
                take_off(outer6(&behind_options, DESTINATION_OPTIONS, 0)),
                Ok((SERVER6.into(), inner.clone()))
            );
            // Ethernet padding.
            let padded = [outer4(&inner, protocol, 0), vec![0xee; 9]].concat();
            assert_eq!(take_off(padded), Ok((SERVER.into(), inner)));
        }
    }

    #[test]
    fn every_refusal_has_its_cause() {
        let inner = inner4();
        let good = || outer4(&inner, IPIP, 0);
        let changed = |at: usize, value: u8| {
            let mut frame = good();
            frame[at] = value;
            let header = Ipv4Header::from_slice(&frame[14..34])
                .map(|(h, _)| h.calc_header_checksum())
                .unwrap_or(0);
            frame[24..26].copy_from_slice(&header.to_be_bytes());
            frame
        };
        let inner_changed = |at: usize, value: u8| {
            let mut frame = good();
            frame[34 + at] = value;
            frame
        };
        let mut wrong_checksum = good();
        wrong_checksum[24] ^= 1;
        use Refusal::*;
        let cases = [
            ("an empty frame", vec![], BadOuterHeader),
            ("a runt", good()[..33].to_vec(), BadOuterHeader),
            ("cut short", good()[..50].to_vec(), BadOuterHeader),
            ("version 5", changed(14, 0x55), BadOuterHeader),
            ("header length 4", changed(14, 0x44), BadOuterHeader),
            ("wrong outer checksum", wrong_checksum, BadOuterHeader),
            ("IPv6 cut short", outer6(&inner, IPIP, 0)[..70].to_vec(), BadOuterHeader),
            (
                "options past the end",
                outer6(&[IPIP, 200], DESTINATION_OPTIONS, 0),
                BadOuterHeader,
            ),
            ("first fragment", changed(20, 0x20), OuterFragment),
            ("last fragment", changed(21, 9), OuterFragment),
            ("IPv6 fragment", outer6(&[IPIP; 8], FRAGMENT, 0), OuterFragment),
            (
                "IPv6 fragment behind options",
                outer6(&[FRAGMENT, 0, 1, 4, 0, 0, 0, 0], DESTINATION_OPTIONS, 0),
                OuterFragment,
            ),
            ("nothing inside", outer4(&[], IPIP, 0), BadInnerHeader),
            ("inner runt", outer4(&inner[..19], IPIP, 0), BadInnerHeader),
            ("inner longer than outer", outer4(&inner[..25], IPIP, 0), BadInnerHeader),
            ("IPv6 in protocol 4", outer4(&inner6(), IPIP, 0), BadInnerHeader),
            ("IPv4 in protocol 41", outer4(&inner, IPV6, 0), BadInnerHeader),
            ("protocol 6", outer4(&inner, 6, 0), BadInnerHeader),
            ("inner header length 4", inner_changed(0, 0x44), BadInnerHeader),
            (
                "inner header longer than packet",
                inner_changed(0, 0x4f),
                BadInnerHeader,
            ),
            ("inner total length 0", inner_changed(3, 0), BadInnerHeader),
            (
                "congestion, inner IPv4 without ECN",
                outer4(&inner, IPIP, CE),
                EcnMismatch,
            ),
            (
                "congestion, inner IPv6 without ECN",
                outer4(&inner6(), IPV6, CE),
                EcnMismatch,
            ),
        ];
        for (what, frame, refusal) in cases {
            assert_eq!(take_off(frame), Err(refusal), "{what}");
        }
    }

    #[test]
    fn a_congestion_mark_goes_inside() {
        let mut inner = inner4();
        inner[1] |= 2;
        let checksum = Ipv4Header::from_slice(&inner).unwrap().0.calc_header_checksum();
        inner[10..12].copy_from_slice(&checksum.to_be_bytes());
        for frame in [outer4(&inner, IPIP, CE), outer6(&inner, IPIP, CE)] {
            let (_, out) = take_off(frame).unwrap();
            let header = Ipv4Header::from_slice(&out).unwrap().0;
            assert_eq!(header.ecn.value(), CE);
            assert_eq!(header.header_checksum, header.calc_header_checksum());
        }
        let mut inner = inner6();
        inner[1] |= 1 << 4;
        let (_, out) = take_off(outer6(&inner, IPV6, CE)).unwrap();
        assert_eq!(Ipv6Header::from_slice(&out).unwrap().0.traffic_class, CE);
        // Without congestion the inner mark stays as it is.
        assert_eq!(take_off(outer6(&inner, IPV6, 1)).unwrap().1, inner);
    }

    #[test]
    fn offsets_move_with_the_packet() {
        let offload = |start, header_len| Offload {
            checksum: ChecksumOffload::Unfinished { start, offset: 16 },
            segmentation: Some(Segmentation {
                kind: SegmentationKind::TcpV4,
                size: 1400,
                header_len,
            }),
        };
        assert_eq!(move_offload(offload(54, 86), 34, 14), Ok(offload(34, 66)));
        assert_eq!(
            move_offload(offload(53, 86), 34, 14),
            Err(Refusal::BadFrame),
            "inside the inner IP header"
        );
        assert_eq!(
            move_offload(offload(20, 86), 34, 14),
            Err(Refusal::BadFrame),
            "inside the outer IP header"
        );
        let finished = Offload {
            checksum: ChecksumOffload::Finished,
            segmentation: None,
        };
        assert_eq!(move_offload(finished, 34, 14), Ok(finished));
    }
}
