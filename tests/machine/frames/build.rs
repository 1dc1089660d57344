//! Frames byte by byte, right unless asked otherwise.

use std::net::IpAddr;

use uvs::packet::{FlowKey, Mac, Protocol, checksum};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// First fragment, more to come.
pub const FIRST: u16 = 0x2000;
/// A middle one.
pub const MORE: u16 = 0x2004;
/// The last, of a datagram of more than 32 bytes.
pub const LAST: u16 = 0x0004;

/// From whom, to whom.
pub struct Ends {
    /// Source and destination.
    pub macs: [Mac; 2],
    pub source: IpAddr,
    pub destination: IpAddr,
}

impl Ends {
    /// The other way.
    pub fn back(&self) -> Ends {
        Ends {
            macs: [self.macs[1], self.macs[0]],
            source: self.destination,
            destination: self.source,
        }
    }
}

/// A packet without options.
pub fn ip(ends: &Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ip_with(ends, protocol, &[], 0, payload)
}

/// With IPv4 options (a multiple of four bytes) and the word of flags and fragment offset; IPv6 has neither.
pub fn ip_with(ends: &Ends, protocol: u8, options: &[u8], fragmentation: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [ends.macs[1].0, ends.macs[0].0].concat();
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = 20 + options.len();
            frame.extend([0x08, 0x00, 0x40 | (header / 4) as u8, 0]);
            frame.extend(((header + payload.len()) as u16).to_be_bytes());
            frame.extend([0, 0]);
            frame.extend(fragmentation.to_be_bytes());
            frame.extend([64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
            frame.extend(options);
            resum(&mut frame);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => unreachable!("one family"),
    }
    frame.extend(payload);
    frame
}

/// Makes the IPv4 header checksum right again, as far as there is a header.
pub fn resum(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 0x0f) * 4;
    if end < 34 || end > frame.len() {
        return;
    }
    frame[24..26].fill(0);
    let sum = checksum::of(&frame[14..end]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// A SYN, 20 bytes.
pub fn tcp(port: u16) -> Vec<u8> {
    tcp_at(port, 5)
}

/// A SYN of 20 bytes with that data offset in it. Its checksum is not looked at: nobody is to get it.
pub fn tcp_at(port: u16, data_offset: u8) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&4321u16.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[12] = data_offset << 4;
    segment[13] = 0x02;
    segment
}

/// A datagram without payload and checksum that claims to have that length.
pub fn udp(port: u16, length: u16) -> Vec<u8> {
    let words = [4321, port, length, 0];
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// Destination unreachable (port) that quotes this.
pub fn icmp_error(quote: &[u8]) -> Vec<u8> {
    let mut icmp = [&[3, 3, 0, 0, 0, 0, 0, 0], quote].concat();
    let sum = checksum::of(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    icmp
}

/// The same for IPv6, as a frame: its checksum covers the addresses.
pub fn icmpv6_error(ends: &Ends, quote: &[u8]) -> Vec<u8> {
    let mut icmp = [&[1, 4, 0, 0, 0, 0, 0, 0], quote].concat();
    let flow = FlowKey::new(Protocol(ICMPV6), (ends.source, 0), (ends.destination, 0));
    let pseudo = checksum::pseudo_header(&flow, icmp.len() as u32);
    let sum = !checksum::fold(pseudo + checksum::sum(&icmp));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(ends, ICMPV6, &icmp)
}
