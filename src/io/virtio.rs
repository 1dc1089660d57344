//! `struct virtio_net_hdr`, by which packet sockets and tun devices tell about checksums and segmentation.
//!
//! ```text
//! 0       1         2         4          6            8             10
//! | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset |     host byte order
//! ```
//! Limits: `hdr_len` of the kernel is only a hint (how much of the frame is linear), so [`decode`] counts the
//! headers itself. UFO (`VIRTIO_NET_HDR_GSO_UDP`) is not known: Linux makes no such frames since 4.14.

use crate::packet::{ChecksumOffload, ETHERNET_HEADER_LEN, Offload, Segmentation, SegmentationKind};

/// Bytes of the header.
pub const HEADER_LEN: usize = 10;

/// The header.
pub type Header = [u8; HEADER_LEN];

const FLAG_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Where SCTP has its checksum, and nobody else who leaves one unfinished. It is a CRC, which the header cannot say: told to
/// finish it, the kernel would write an Internet checksum there. So of such a frame nothing is known, and whoever forwards it
/// finishes it.
const SCTP_CHECKSUM_OFFSET: u16 = 8;

/// Why a header and its frame make no sense together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader;

/// Reads the header of a received Ethernet `frame`. Without `NEEDS_CSUM` the checksum is in the frame already.
pub fn decode(header: &Header, frame: &[u8]) -> Result<Offload, BadHeader> {
    let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let checksum = if header[0] & FLAG_NEEDS_CSUM != 0 {
        let (start, offset) = (word(6), word(8));
        if start as usize + offset as usize + 2 > frame.len() {
            return Err(BadHeader);
        }
        match offset {
            SCTP_CHECKSUM_OFFSET => ChecksumOffload::Unknown,
            _ => ChecksumOffload::Unfinished { start, offset },
        }
    } else {
        ChecksumOffload::Finished
    };
    let kind = match header[1] {
        GSO_NONE => {
            return Ok(Offload {
                checksum,
                segmentation: None,
            });
        }
        GSO_TCPV4 => SegmentationKind::TcpV4,
        GSO_TCPV6 => SegmentationKind::TcpV6,
        GSO_UDP_L4 => SegmentationKind::UdpL4,
        ecn if ecn == GSO_TCPV4 | GSO_ECN => SegmentationKind::TcpV4Ecn,
        ecn if ecn == GSO_TCPV6 | GSO_ECN => SegmentationKind::TcpV6Ecn,
        _ => return Err(BadHeader),
    };
    let transport = match checksum {
        ChecksumOffload::Unfinished { start, .. } => start as usize,
        _ => transport_start(frame).ok_or(BadHeader)?,
    };
    let header_len = match kind {
        SegmentationKind::UdpL4 => transport + 8,
        _ => transport + (frame.get(transport + 12).ok_or(BadHeader)? >> 4) as usize * 4,
    };
    let size = word(4);
    if size == 0 || header_len > frame.len() {
        return Err(BadHeader);
    }
    let segmentation = Some(Segmentation {
        kind,
        size,
        header_len: header_len as u16,
    });
    Ok(Offload { checksum, segmentation })
}

/// Where the transport header starts; extension headers are not followed (no super-frame has them).
fn transport_start(frame: &[u8]) -> Option<usize> {
    match frame.get(ETHERNET_HEADER_LEN)? >> 4 {
        4 => Some(ETHERNET_HEADER_LEN + (frame[ETHERNET_HEADER_LEN] & 0xf) as usize * 4),
        6 => Some(ETHERNET_HEADER_LEN + 40),
        _ => None,
    }
}

/// Writes the header for a frame whose first `skipped` bytes are not sent: 0 on a packet socket, the Ethernet
/// header on a tun device. An unknown checksum is taken for a finished one.
pub fn encode(offload: Offload, skipped: u16) -> Header {
    let mut header = [0; HEADER_LEN];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    if let Some(s) = offload.segmentation {
        put(2, s.header_len.saturating_sub(skipped));
        put(4, s.size);
    }
    if let ChecksumOffload::Unfinished { start, offset } = offload.checksum {
        put(6, start.saturating_sub(skipped));
        put(8, offset);
        header[0] = FLAG_NEEDS_CSUM;
    }
    header[1] = match offload.segmentation.map(|s| s.kind) {
        None => GSO_NONE,
        Some(SegmentationKind::TcpV4) => GSO_TCPV4,
        Some(SegmentationKind::TcpV4Ecn) => GSO_TCPV4 | GSO_ECN,
        Some(SegmentationKind::TcpV6) => GSO_TCPV6,
        Some(SegmentationKind::TcpV6Ecn) => GSO_TCPV6 | GSO_ECN,
        Some(SegmentationKind::UdpL4) => GSO_UDP_L4,
    };
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet, IPv4 (20), TCP with 12 bytes of options, then payload.
    fn tcp_frame() -> Vec<u8> {
        let mut frame = vec![0; 14 + 20 + 32 + 3000];
        frame[14] = 0x45;
        frame[34 + 12] = 8 << 4;
        frame
    }

    #[test]
    fn what_is_written_is_read_again() {
        use SegmentationKind::*;
        let frame = tcp_frame();
        for kind in [TcpV4, TcpV4Ecn, TcpV6, TcpV6Ecn, UdpL4] {
            let header_len = if kind == UdpL4 { 42 } else { 66 };
            let offload = Offload {
                checksum: ChecksumOffload::Unfinished { start: 34, offset: 16 },
                segmentation: Some(Segmentation {
                    kind,
                    size: 1448,
                    header_len,
                }),
            };
            assert_eq!(decode(&encode(offload, 0), &frame), Ok(offload));
        }
        let plain = Offload {
            checksum: ChecksumOffload::Finished,
            segmentation: None,
        };
        assert_eq!(decode(&encode(plain, 0), &frame), Ok(plain));
    }

    #[test]
    fn unfinished_sctp_is_not_the_kernels_to_finish() {
        let mut frame = vec![0; 14 + 20 + 32];
        frame[14] = 0x45;
        let unfinished = Offload {
            checksum: ChecksumOffload::Unfinished { start: 34, offset: 8 },
            segmentation: None,
        };
        let read = decode(&encode(unfinished, 0), &frame).unwrap();
        assert_eq!(read, Offload::default());
        assert_eq!(encode(read, 0)[0], 0, "goes out as it is");
    }

    #[test]
    fn counts_the_headers_itself() {
        let mut header = [0; HEADER_LEN];
        header[1] = GSO_TCPV4;
        header[2..4].copy_from_slice(&1234u16.to_ne_bytes());
        header[4..6].copy_from_slice(&1448u16.to_ne_bytes());
        let offload = decode(&header, &tcp_frame()).unwrap();
        assert_eq!(offload.segmentation.unwrap().header_len, 66);
        assert_eq!(offload.checksum, ChecksumOffload::Finished);
    }

    #[test]
    fn counts_from_the_ip_header_on_a_tun_device() {
        let offload = Offload {
            checksum: ChecksumOffload::Unfinished { start: 34, offset: 16 },
            segmentation: None,
        };
        let header = encode(offload, 14);
        assert_eq!(u16::from_ne_bytes([header[6], header[7]]), 20);
        assert_eq!(u16::from_ne_bytes([header[8], header[9]]), 16);
    }

    #[test]
    fn refuses_what_points_outside() {
        let frame = tcp_frame();
        let checksum = ChecksumOffload::Unfinished {
            start: frame.len() as u16 - 17,
            offset: 16,
        };
        assert_eq!(
            decode(
                &encode(
                    Offload {
                        checksum,
                        segmentation: None
                    },
                    0
                ),
                &frame
            ),
            Err(BadHeader)
        );
        let mut header = [0; HEADER_LEN];
        header[1] = 3; // UFO
        assert_eq!(decode(&header, &frame), Err(BadHeader));
        header[1] = GSO_TCPV4; // gso_size 0
        assert_eq!(decode(&header, &frame), Err(BadHeader));
        assert_eq!(decode(&header, &[]), Err(BadHeader));
    }
}
