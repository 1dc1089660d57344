//! Ethernet, IPv4 or IPv6, TCP, UDP or ICMP: from bytes to [`Parsed`].

use super::flow::FlowKey;

/// TCP flag bits as on the wire (RFC 9293 section 3.1), low byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgment.
    pub const ACK: u8 = 0x10;

    /// Any of the given bits set.
    #[inline]
    pub fn any(self, bits: u8) -> bool {
        self.0 & bits != 0
    }
}

/// What a frame is, with the offsets needed to rewrite it. Offsets count from the frame's first byte.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// The flow: for ICMP errors that of the outer packet, with ports 0.
    pub flow: FlowKey,
    /// Where the IP header starts (14).
    pub l3: u16,
    /// Where the transport header starts.
    pub l4: u16,
    /// Where the IP packet ends: the frame may be longer by Ethernet padding.
    pub end: u16,
    /// TCP flags; 0 for others.
    pub tcp_flags: TcpFlags,
    /// TTL or hop limit as received.
    pub ttl: u8,
}

impl Parsed {
    /// Length of the IP packet in bytes: what counts as bytes in the statistics.
    #[inline]
    pub fn ip_len(&self) -> u16 {
        self.end - self.l3
    }
}
