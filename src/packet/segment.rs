//! Cutting a super-frame into the frames that it stands for, in software: TCP over IPv4 and IPv6, UDP datagrams.
//!
//! ```text
//! super-frame:  | Ethernet IP TCP | payload ............................ |
//! emitted:      | Ethernet IP TCP'| size |  | Ethernet IP TCP"| size |  | Ethernet IP TCP"'| rest |
//! ```
//! Needed where a super-frame cannot stay one: inside an outer header cards and kernels would no longer find what to
//! cut. Every emitted frame has finished checksums, whatever state those of the super-frame were in.
//!
//! Limits: IPv6 extension headers are refused (Linux makes no such super-frames), and headers of over 256 bytes.

use super::checksum::{fold, sum};
use super::{DropReason, ETHERNET_HEADER_LEN, Protocol, Segmentation, SegmentationKind, TcpFlags};

/// Longest header in front of the payload: Ethernet 14, IPv4 60, TCP 60, and room to spare.
const HEADER_LEN_MAX: usize = 256;

const L3: usize = ETHERNET_HEADER_LEN;

/// TCP flag: congestion window reduced (RFC 3168 section 6.1).
const CWR: u8 = 0x80;
/// TCP flag: push.
const PSH: u8 = 0x08;

/// Cuts `frame` into frames of at most `segmentation.size` bytes of payload each and gives the header and the payload
/// of each to `emit`, in order. Returns how many there were. When the frame is not what `segmentation` says, nothing
/// is emitted.
pub fn segment(
    frame: &[u8],
    segmentation: Segmentation,
    mut emit: impl FnMut(&[u8], &[u8]),
) -> Result<usize, DropReason> {
    let layout = Layout::read(frame, segmentation)?;
    let payload = &frame[layout.payload..layout.end];
    let size = segmentation.size as usize;
    let count = payload.len().div_ceil(size).max(1);
    let mut header = [0; HEADER_LEN_MAX];
    for index in 0..count {
        let at = index * size;
        let part = &payload[at..payload.len().min(at + size)];
        let header = &mut header[..layout.payload];
        header.copy_from_slice(&frame[..layout.payload]);
        layout.write_ip(header, index, part.len());
        match layout.transport {
            Protocol::TCP => layout.write_tcp(header, at as u32, index == 0, index + 1 == count, part),
            _ => layout.write_udp(header, part),
        }
        emit(header, part);
    }
    Ok(count)
}

/// Where everything is in a super-frame.
#[derive(Clone, Copy)]
struct Layout {
    ipv6: bool,
    transport: Protocol,
    l4: usize,
    payload: usize,
    /// End of the IP packet.
    end: usize,
}

impl Layout {
    fn read(frame: &[u8], segmentation: Segmentation) -> Result<Layout, DropReason> {
        use SegmentationKind::{TcpV4, TcpV4Ecn, TcpV6, TcpV6Ecn, UdpL4};
        let version = frame.get(L3).ok_or(DropReason::Truncated)? >> 4;
        let ipv6 = match (segmentation.kind, version) {
            (TcpV4 | TcpV4Ecn | UdpL4, 4) => false,
            (TcpV6 | TcpV6Ecn | UdpL4, 6) => true,
            _ => return Err(DropReason::BadIpHeader),
        };
        let l4 = if ipv6 {
            L3 + 40
        } else {
            L3 + (frame[L3] & 0xf) as usize * 4
        };
        let transport = if segmentation.kind == UdpL4 {
            Protocol::UDP
        } else {
            Protocol::TCP
        };
        let fixed = if transport == Protocol::TCP { 20 } else { 8 };
        if l4 < L3 + 20 || frame.len() < l4 + fixed {
            return Err(DropReason::Truncated);
        }
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]) as usize;
        let (protocol, end) = match ipv6 {
            true => (frame[L3 + 6], l4 + word(L3 + 4)),
            false => (frame[L3 + 9], L3 + word(L3 + 2)),
        };
        let payload = match transport {
            Protocol::TCP => l4 + (frame[l4 + 12] >> 4) as usize * 4,
            _ => l4 + 8,
        };
        if Protocol(protocol) != transport || segmentation.size == 0 {
            return Err(DropReason::BadIpHeader);
        }
        if payload < l4 + fixed || payload > end || payload > HEADER_LEN_MAX {
            return Err(if fixed == 20 {
                DropReason::BadTcpHeader
            } else {
                DropReason::BadUdpHeader
            });
        }
        if end > frame.len() {
            return Err(DropReason::Truncated);
        }
        Ok(Layout {
            ipv6,
            transport,
            l4,
            payload,
            end,
        })
    }

    /// Lengths, and for IPv4 the identification (one more each, as Linux does) and the header checksum.
    fn write_ip(&self, header: &mut [u8], index: usize, payload_len: usize) {
        if self.ipv6 {
            return put(header, L3 + 4, (self.payload - self.l4 + payload_len) as u16);
        }
        put(header, L3 + 2, (self.payload - L3 + payload_len) as u16);
        let id = u16::from_be_bytes([header[L3 + 4], header[L3 + 5]]);
        put(header, L3 + 4, id.wrapping_add(index as u16));
        put(header, L3 + 10, 0);
        let checksum = !fold(sum(&header[L3..self.l4]));
        put(header, L3 + 10, checksum);
    }

    fn write_tcp(&self, header: &mut [u8], offset: u32, first: bool, last: bool, payload: &[u8]) {
        let l4 = self.l4;
        let sequence = u32::from_be_bytes([header[l4 + 4], header[l4 + 5], header[l4 + 6], header[l4 + 7]]);
        header[l4 + 4..l4 + 8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
        if !last {
            header[l4 + 13] &= !(TcpFlags::FIN | PSH);
        }
        if !first {
            header[l4 + 13] &= !CWR;
        }
        put(header, l4 + 16, 0);
        let checksum = self.checksum(header, payload);
        put(header, l4 + 16, checksum);
    }

    fn write_udp(&self, header: &mut [u8], payload: &[u8]) {
        let l4 = self.l4;
        put(header, l4 + 4, (8 + payload.len()) as u16);
        // RFC 768: a field of 0 says that the sender made no checksum (a pseudo-header sum is never 0).
        if header[l4 + 6..l4 + 8] == [0, 0] {
            return;
        }
        put(header, l4 + 6, 0);
        // RFC 768: a checksum that comes out as 0 is sent as all ones.
        let checksum = match self.checksum(header, payload) {
            0 => 0xffff,
            other => other,
        };
        put(header, l4 + 6, checksum);
    }

    /// The transport checksum, its field being 0. The header has an even length, so the sums just add up.
    fn checksum(&self, header: &[u8], payload: &[u8]) -> u16 {
        let addresses = if self.ipv6 {
            &header[L3 + 8..L3 + 40]
        } else {
            &header[L3 + 12..L3 + 20]
        };
        let len = header.len() - self.l4 + payload.len();
        let pseudo = sum(addresses) + self.transport.0 as u64 + len as u64;
        !fold(pseudo + sum(&header[self.l4..]) + sum(payload))
    }
}

fn put(header: &mut [u8], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

    const V4: ([u8; 4], [u8; 4]) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    const V6: ([u8; 16], [u8; 16]) = ([0xfd; 16], [0xfe; 16]);

    fn payload(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn tcp(ipv6: bool, len: usize) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let builder = if ipv6 {
            builder.ipv6(V6.0, V6.1, 63)
        } else {
            builder.ipv4(V4.0, V4.1, 63)
        };
        let mut frame = Vec::new();
        let options = [etherparse::TcpOptionElement::Timestamp(1, 2)];
        let builder = builder.tcp(80, 40000, u32::MAX - 1000, 500).psh().fin().ack(9);
        builder
            .options(&options)
            .unwrap()
            .write(&mut frame, &payload(len))
            .unwrap();
        let l4 = if ipv6 { 54 } else { 34 };
        frame[l4 + 13] |= CWR;
        if !ipv6 {
            frame[18..20].copy_from_slice(&0xfffeu16.to_be_bytes());
        }
        frame
    }

    fn udp(ipv6: bool, len: usize) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let builder = if ipv6 {
            builder.ipv6(V6.0, V6.1, 63)
        } else {
            builder.ipv4(V4.0, V4.1, 63)
        };
        let mut frame = Vec::new();
        builder.udp(53, 40000).write(&mut frame, &payload(len)).unwrap();
        frame
    }

    fn cut(frame: &[u8], kind: SegmentationKind, size: u16) -> Result<Vec<Vec<u8>>, DropReason> {
        let mut frames = Vec::new();
        let segmentation = Segmentation {
            kind,
            size,
            header_len: 0,
        };
        let count = segment(frame, segmentation, |header, part| frames.push([header, part].concat()))?;
        assert_eq!(count, frames.len());
        Ok(frames)
    }

    /// Payload of a frame whose lengths and checksums etherparse agrees with.
    fn checked(frame: &[u8]) -> Vec<u8> {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let ip_len = match packet.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                assert_eq!(
                    ip.header().header_checksum(),
                    ip.header().to_header().calc_header_checksum()
                );
                ip.header().total_len() as usize
            }
            NetSlice::Ipv6(ip) => ip.header().payload_length() as usize + 40,
            NetSlice::Arp(_) => panic!("not ARP"),
        };
        assert_eq!(ip_len + 14, frame.len());
        match (packet.net.unwrap(), packet.transport.unwrap()) {
            (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
                assert_eq!(
                    Ok(tcp.checksum()),
                    tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
                );
                tcp.payload().to_vec()
            }
            (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
                assert_eq!(
                    Ok(tcp.checksum()),
                    tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
                );
                tcp.payload().to_vec()
            }
            (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
                let header = udp.to_header();
                assert_eq!(
                    Ok(udp.checksum()),
                    header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload())
                );
                assert_eq!(udp.length() as usize, 8 + udp.payload().len());
                udp.payload().to_vec()
            }
            (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
                let header = udp.to_header();
                assert_eq!(
                    Ok(udp.checksum()),
                    header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload())
                );
                udp.payload().to_vec()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Goal: every segment is a correct frame and together they are the super-frame. Method: etherparse checks
    /// lengths and checksums; sizes that divide the payload and that do not, odd and even.
    #[test]
    fn segments_are_correct_frames_and_hold_every_byte() {
        for (ipv6, kind) in [(false, SegmentationKind::TcpV4Ecn), (true, SegmentationKind::TcpV6)] {
            for (len, size) in [
                (5000, 1448),
                (2896, 1448),
                (1448, 1448),
                (1, 1448),
                (0, 1448),
                (999, 333),
                (60_000, 1),
            ] {
                let mut frame = tcp(ipv6, len);
                let l4 = if ipv6 { 54 } else { 34 };
                frame[l4 + 16..l4 + 18].fill(0xab); // an unfinished checksum
                let frames = cut(&frame, kind, size).unwrap();
                assert_eq!(frames.len(), len.div_ceil(size as usize).max(1));
                let together: Vec<u8> = frames.iter().flat_map(|f| checked(f)).collect();
                assert_eq!(together, payload(len), "len {len} size {size}");
            }
        }
        for ipv6 in [false, true] {
            let frames = cut(&udp(ipv6, 2500), SegmentationKind::UdpL4, 1000).unwrap();
            let parts: Vec<Vec<u8>> = frames.iter().map(|f| checked(f)).collect();
            assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 500]);
            assert_eq!(parts.concat(), payload(2500));
        }
    }

    #[test]
    fn sequence_numbers_flags_and_ids_go_on_from_segment_to_segment() {
        let frames = cut(&tcp(false, 3000), SegmentationKind::TcpV4, 1000).unwrap();
        let sequence: Vec<u32> = frames
            .iter()
            .map(|f| u32::from_be_bytes(f[38..42].try_into().unwrap()))
            .collect();
        assert_eq!(sequence, [u32::MAX - 1000, u32::MAX, 999], "wraps at 2^32");
        let flags: Vec<u8> = frames.iter().map(|f| f[47]).collect();
        assert_eq!(
            flags,
            [CWR | 0x10, 0x10, 0x10 | PSH | TcpFlags::FIN],
            "CWR first only, PSH and FIN last only"
        );
        let ids: Vec<u16> = frames.iter().map(|f| u16::from_be_bytes([f[18], f[19]])).collect();
        assert_eq!(ids, [0xfffe, 0xffff, 0], "wraps at 2^16");
        let one = cut(&tcp(false, 10), SegmentationKind::TcpV4, 1000).unwrap();
        assert_eq!(one[0][47], CWR | 0x10 | PSH | TcpFlags::FIN, "first and last at once");
    }

    #[test]
    fn a_datagram_without_checksum_stays_without() {
        let mut frame = udp(false, 2000);
        frame[40..42].fill(0);
        for part in cut(&frame, SegmentationKind::UdpL4, 600).unwrap() {
            assert_eq!(part[40..42], [0, 0]);
        }
    }

    #[test]
    fn padding_behind_the_packet_is_not_payload() {
        let mut frame = tcp(false, 100);
        frame.extend([0xee; 6]);
        let frames = cut(&frame, SegmentationKind::TcpV4, 60).unwrap();
        assert_eq!(
            frames.iter().flat_map(|f| checked(f)).collect::<Vec<u8>>(),
            payload(100)
        );
    }

    #[test]
    fn refuses_what_is_not_what_it_says() {
        use SegmentationKind::{TcpV4, TcpV6, UdpL4};
        let cases: [(&str, Vec<u8>, SegmentationKind, DropReason); 7] = [
            ("nothing", vec![], TcpV4, DropReason::Truncated),
            (
                "a header only half there",
                tcp(false, 0)[..40].to_vec(),
                TcpV4,
                DropReason::Truncated,
            ),
            (
                "half of the payload",
                tcp(false, 900)[..600].to_vec(),
                TcpV4,
                DropReason::Truncated,
            ),
            ("the other version", tcp(false, 9), TcpV6, DropReason::BadIpHeader),
            ("the other protocol", tcp(true, 9), UdpL4, DropReason::BadIpHeader),
            (
                "data offset 4",
                {
                    let mut f = tcp(false, 9);
                    f[46] = 0x40;
                    f
                },
                TcpV4,
                DropReason::BadTcpHeader,
            ),
            (
                "data offset past the end",
                {
                    let mut f = tcp(false, 0);
                    f[46] = 0xf0;
                    f
                },
                TcpV4,
                DropReason::BadTcpHeader,
            ),
        ];
        for (what, frame, kind, reason) in cases {
            assert_eq!(cut(&frame, kind, 500), Err(reason), "{what}");
        }
        assert_eq!(
            cut(&tcp(false, 9), TcpV4, 0),
            Err(DropReason::BadIpHeader),
            "segments of no bytes"
        );
    }
}
