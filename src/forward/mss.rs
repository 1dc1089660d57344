//! The maximum segment size that a SYN announces, made small enough for a tunnel (`mss_clamp`; off by default, as the kernel
//! leaves it alone).
//!
//! Only the client's SYN (or SYN/ACK) is seen here: a real server behind a tunnel answers past the director. What it announces
//! itself, which limits what clients send through the tunnel, is set on it (`ip route … advmss`).

use super::tunnel::Outer;
use crate::packet::parse::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};
use crate::packet::rewrite;
use crate::packet::{ChecksumOffload, Family, Frame, Parsed, checksum, tcp_options};

const TCP_HEADER_LEN: usize = 20;
const TCP_CHECKSUM: usize = 16;

/// Lowers the MSS option of a TCP packet to what fits through the tunnel. One that is small enough, or not there, stays.
#[cold]
#[inline(never)]
pub fn clamp<F: Frame>(frame: &mut F, parsed: &Parsed, outer: &Outer<'_>) {
    let ip = match parsed.flow.family {
        Family::V4 => IPV4_HEADER_LEN,
        Family::V6 => IPV6_HEADER_LEN,
    };
    let headers = ip + TCP_HEADER_LEN + usize::from(outer.overhead());
    let largest = usize::from(outer.hop.mtu).saturating_sub(headers) as u16;
    let tcp = parsed.l4 as usize;
    let found = tcp_options::find(&frame.bytes()[tcp..parsed.end as usize], tcp_options::MSS);
    let Some(at) = found.filter(|value| value.len() == 2).map(|value| value.start) else {
        return;
    };
    let announced = u16::from_be_bytes([frame.bytes()[tcp + at], frame.bytes()[tcp + at + 1]]);
    if announced <= largest || largest == 0 {
        return;
    }
    let offload = frame.offload().checksum;
    let bytes = frame.bytes_mut();
    if offload == ChecksumOffload::Unknown {
        rewrite::finish(bytes, parsed);
    }
    // The sum is of words of two bytes, and an option may begin anywhere: these two words hold the value in either case.
    let start = tcp + ((at - 1) & !1);
    let words = start..start + 4;
    let word = |bytes: &[u8]| u32::from_be_bytes(*bytes[words.clone()].first_chunk().expect("four bytes"));
    let before = word(bytes);
    bytes[tcp + at..tcp + at + 2].copy_from_slice(&largest.to_be_bytes());
    let after = word(bytes);
    if matches!(offload, ChecksumOffload::Unfinished { .. }) {
        // The field holds the pseudo-header's sum, which stays.
        return;
    }
    let field = tcp + TCP_CHECKSUM..tcp + TCP_CHECKSUM + 2;
    let sum = u16::from_be_bytes([bytes[field.start], bytes[field.start + 1]]);
    let sum = checksum::Delta::default().u32(before, after).apply(sum);
    bytes[field].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, TcpOptionElement};

    use super::*;
    use crate::packet::parse::{Packet, parse};
    use crate::packet::vec_frame::VecFrame;
    use crate::packet::{Mac, Offload};
    use crate::service::{Tunnel, TunnelChecksum, TunnelKind};
    use crate::table::{InterfaceId, NextHop};

    const HOP: NextHop = NextHop {
        interface: InterfaceId(0),
        source: Mac([2; 6]),
        destination: Mac([4; 6]),
        mtu: 1500,
    };

    fn outer(destination: &str, kind: TunnelKind) -> Outer<'static> {
        Outer {
            hop: &HOP,
            source: "10.0.0.1".parse().unwrap(),
            destination: destination.parse().unwrap(),
            tunnel: Tunnel {
                kind,
                port: 6080,
                checksum: TunnelChecksum::NoCsum,
            },
            path_mtu_discovery: true,
        }
    }

    fn syn(ipv6: bool, options: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([1; 6], [2; 6]);
        let ip = match ipv6 {
            false => ethernet.ipv4([198, 51, 100, 7], [10, 200, 1, 1], 64),
            true => ethernet.ipv6([0x20; 16], [0xfd; 16], 64),
        };
        let tcp = ip.tcp(20001, 80, 1, 9000).syn().options_raw(options).unwrap();
        let mut bytes = Vec::new();
        tcp.write(&mut bytes, b"fast open").unwrap();
        bytes
    }

    fn clamped(bytes: &[u8], outer: &Outer<'_>, offload: Offload) -> Vec<u8> {
        let Ok(Packet::Flow(parsed)) = parse(bytes, offload) else {
            panic!()
        };
        let mut frame = VecFrame::new(bytes, 2048);
        frame.set_offload(offload);
        clamp(&mut frame, &parsed, outer);
        frame.bytes().to_vec()
    }

    fn mss_of(bytes: &[u8]) -> Option<u16> {
        let packet = etherparse::PacketHeaders::from_ethernet_slice(bytes).unwrap();
        let tcp = packet.transport.unwrap().tcp().unwrap();
        let mut options = tcp.options_iterator();
        options.find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        })
    }

    fn checksum_is_right(bytes: &[u8]) -> bool {
        let Ok(Packet::Flow(parsed)) = parse(bytes, Offload::default()) else {
            panic!()
        };
        let tcp = &bytes[parsed.l4 as usize..parsed.end as usize];
        checksum::fold(checksum::pseudo_header(&parsed.flow, tcp.len() as u32) + checksum::sum(tcp)) == 0xffff
    }

    #[test]
    fn what_a_syn_announces_fits_through_the_tunnel() {
        for (ipv6, destination, kind, expected) in [
            (false, "10.1.0.1", TunnelKind::Ipip, 1440),
            (false, "10.1.0.1", TunnelKind::Gre, 1436),
            (false, "10.1.0.1", TunnelKind::Gue, 1428),
            (false, "fd00::1", TunnelKind::Ipip, 1420),
            (true, "10.1.0.1", TunnelKind::Ipip, 1420),
            (true, "fd00::1", TunnelKind::Ipip, 1400),
        ] {
            // The option at an even and at an odd place, alone and between others.
            for options in [
                &[2, 4, 5, 0xb4][..],
                &[1, 2, 4, 5, 0xb4, 3, 3, 7],
                &[1, 1, 1, 2, 4, 0x23, 0x00, 0],
                &[4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 2, 4, 5, 0xb4],
                &[3, 3, 7, 2, 4, 5, 0xb4, 0],
            ] {
                let before = syn(ipv6, options);
                let after = clamped(&before, &outer(destination, kind), Offload::default());
                assert_eq!(mss_of(&after), Some(expected), "{destination} {kind:?} {options:?}");
                assert!(checksum_is_right(&after), "{destination} {kind:?} {options:?}");
                let changed = before.iter().zip(&after).filter(|(a, b)| a != b).count();
                assert!(changed <= 4, "value and checksum, nothing else");
            }
        }
    }

    #[test]
    fn small_ones_missing_ones_and_nonsense_stay() {
        for options in [
            &[][..],
            &[2, 4, 5, 0xa0],
            &[2, 4, 2, 0x18],
            &[1, 1, 1, 1],
            &[0, 2, 4, 5],
            &[2, 3, 5, 0xb4],
            &[2, 0, 5, 0xb4],
            &[8, 0xff, 2, 4],
            &[3, 3, 7, 2],
            &[1, 1, 2, 4],
        ] {
            let before = syn(false, options);
            let after = clamped(&before, &outer("10.1.0.1", TunnelKind::Ipip), Offload::default());
            assert_eq!(before, after, "{options:?}");
        }
    }

    #[test]
    fn checksums_that_are_not_finished_and_wrong_ones_stay_so() {
        let good = syn(false, &[2, 4, 5, 0xb4]);
        let way = outer("10.1.0.1", TunnelKind::Ipip);
        let mut wrong = good.clone();
        wrong[50] ^= 0x55;
        let after = clamped(&wrong, &way, Offload::default());
        assert!(mss_of(&after) == Some(1440) && !checksum_is_right(&after));
        let mut unfinished = good.clone();
        let Ok(Packet::Flow(parsed)) = parse(&good, Offload::default()) else {
            panic!()
        };
        let pseudo = checksum::fold(checksum::pseudo_header(&parsed.flow, parsed.end - 34));
        unfinished[50..52].copy_from_slice(&pseudo.to_be_bytes());
        // Of a card that says so, and of one that says nothing.
        let offload = Offload {
            checksum: ChecksumOffload::Unfinished { start: 34, offset: 16 },
            segmentation: None,
        };
        let after = clamped(&unfinished, &way, offload);
        assert_eq!((mss_of(&after), &after[50..52]), (Some(1440), &unfinished[50..52]));
        let after = clamped(&unfinished, &way, Offload::default());
        assert!(mss_of(&after) == Some(1440) && checksum_is_right(&after));
    }
}
