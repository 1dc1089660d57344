//! Bytes to meaning and back: parsing, rewriting, checksums, flow keys, and why a frame was dropped.
//!
//! A [`Frame`] is an Ethernet frame in a buffer with headroom. [`parse`](parse::parse) turns its bytes into a
//! [`Parsed`]; only that function makes one, so afterwards its offsets are trusted. Nothing here knows a service,
//! a table or a driver.

pub mod build;
pub mod checksum;
pub mod drop_reason;
pub mod flow;
pub mod frame;
pub mod ftp;
pub mod memory;
pub mod parse;
pub mod quote;
pub mod rewrite;
pub mod segment;
pub mod sip;
pub mod steady;
pub mod tcp_options;
#[cfg(test)]
pub mod testing;
pub mod vec_frame;
pub mod window;

pub use drop_reason::DropReason;
pub use flow::{Family, FlowKey, Protocol};
pub use frame::{ChecksumOffload, Frame, NoRoom, Offload, Reassembled, Segmentation, SegmentationKind};
pub use parse::{ChunkType, Fragment, Packet, Parsed, Signals, TcpFlags};
pub use quote::Quote;
pub use rewrite::Endpoint;
pub use window::Window;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let m = self.0;
        write!(
            f,
            "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
            m[0], m[1], m[2], m[3], m[4], m[5]
        )
    }
}

/// Bytes of an Ethernet header without VLAN tag.
pub const ETHERNET_HEADER_LEN: usize = 14;
