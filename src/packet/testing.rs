//! For tests of this crate: hexadecimal and ready-made packets.

use etherparse::{PacketBuilder, PacketBuilderStep};

pub use super::vec_frame::VecFrame as TestFrame;

/// Bytes of hexadecimal digits; blanks are skipped.
pub fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let digit = |b: u8| (b as char).to_digit(16).expect("hexadecimal") as u8;
    digits
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

/// Hexadecimal digits of bytes.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The client's and the virtual address of ready-made packets.
pub const CLIENT_V4: [u8; 4] = [198, 51, 100, 7];
/// The VIP.
pub const VIP_V4: [u8; 4] = [10, 200, 1, 1];
/// The client.
pub const CLIENT_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
/// The VIP.
pub const VIP_V6: [u8; 16] = [0xfd, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Ethernet and IPv4 of a ready-made packet, client to VIP.
pub fn ipv4() -> PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xc0], [2, 0, 0, 0, 0, 0xd0]).ipv4(CLIENT_V4, VIP_V4, 64)
}

/// Ethernet and IPv6 of a ready-made packet, client to VIP.
pub fn ipv6() -> PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0xc0], [2, 0, 0, 0, 0, 0xd0]).ipv6(CLIENT_V6, VIP_V6, 64)
}

/// TCP from port 20001 to port 80 on top.
pub fn tcp(ip: PacketBuilderStep<etherparse::IpHeaders>, payload: &[u8]) -> Vec<u8> {
    let builder = ip.tcp(20001, 80, 1000, 0xfaf0).syn();
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).expect("a vector takes everything");
    bytes
}

/// UDP from port 20001 to port 53 on top.
pub fn udp(ip: PacketBuilderStep<etherparse::IpHeaders>, payload: &[u8]) -> Vec<u8> {
    let builder = ip.udp(20001, 53);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).expect("a vector takes everything");
    bytes
}

/// SCTP from port 20001 to port 80 on top, with these chunks.
pub fn sctp(ip: PacketBuilderStep<etherparse::IpHeaders>, chunks: &[u8]) -> Vec<u8> {
    let mut transport = hex("4e210050 01020304 00000000");
    transport.extend(chunks);
    let checksum = super::checksum::sctp(&transport);
    transport[8..12].copy_from_slice(&checksum);
    let mut bytes = Vec::new();
    let written = ip.write(&mut bytes, etherparse::IpNumber::SCTP, &transport);
    written.expect("a vector takes everything");
    bytes
}

/// Makes the IPv4 header checksum right again.
pub fn fix_ipv4(bytes: &mut [u8]) {
    let end = 14 + (bytes[14] & 15) as usize * 4;
    bytes[24..26].fill(0);
    let checksum = super::checksum::of(&bytes[14..end]);
    bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
}
