//! For tests of this crate: a frame in a vector, hexadecimal, ready-made packets.

use etherparse::{PacketBuilder, PacketBuilderStep};

use super::frame::{Frame, HEADROOM_MIN, NoRoom, Offload};

/// A frame in a vector, with the headroom that drivers guarantee.
#[derive(Clone, Debug)]
pub struct TestFrame {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
    offload: Offload,
}

impl TestFrame {
    /// A frame with the given bytes, room for `capacity` bytes, and nothing known about checksums.
    pub fn new(bytes: &[u8], capacity: usize) -> TestFrame {
        let mut buffer = vec![0xee; HEADROOM_MIN + capacity.max(bytes.len())];
        buffer[HEADROOM_MIN..][..bytes.len()].copy_from_slice(bytes);
        TestFrame {
            buffer,
            start: HEADROOM_MIN,
            len: bytes.len(),
            offload: Offload::default(),
        }
    }
}

impl From<&[u8]> for TestFrame {
    fn from(bytes: &[u8]) -> TestFrame {
        TestFrame::new(bytes, 2048)
    }
}

impl Frame for TestFrame {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..][..self.len]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..][..self.len]
    }
    fn grow_front(&mut self, n: usize) -> Result<(), NoRoom> {
        self.start = self.start.checked_sub(n).ok_or(NoRoom)?;
        self.len += n;
        Ok(())
    }
    fn shrink_front(&mut self, n: usize) {
        assert!(n <= self.len);
        self.start += n;
        self.len -= n;
    }
    fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        if self.start + len > self.buffer.len() {
            return Err(NoRoom);
        }
        self.len = len;
        Ok(())
    }
    fn offload(&self) -> Offload {
        self.offload
    }
    fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }
}

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

/// Makes the IPv4 header checksum right again.
pub fn fix_ipv4(bytes: &mut [u8]) {
    let end = 14 + (bytes[14] & 15) as usize * 4;
    bytes[24..26].fill(0);
    let checksum = super::checksum::of(&bytes[14..end]);
    bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
}
