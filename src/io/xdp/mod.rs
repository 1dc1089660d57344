//! The driver `xdp`: AF_XDP sockets, one for each queue that a worker owns.
//!
//! ```text
//!  control thread                              worker
//!  XdpInterface::attach   filter in front
//!                                              XdpDriver::open   memory, sockets, bound to queues
//!  XdpInterface::add_socket  ◄── XdpDriver::sockets
//!                                              receive … transmit … flush
//! ```
//! All sockets of a worker register the same memory, so a frame that came in at one interface leaves at another by
//! its address alone. A frame lives in a chunk of 2048 bytes, or of 4096 where an interface's MTU asks for that: interfaces with a
//! larger one are for the driver `raw`.
//! [`XskDriver`] is the driver; [`Rings`] is what it needs: [`XdpRings`] are those of sockets that `rustix` opens,
//! and `io::afxdp` has those of another crate.
//! The worker sends at each interface by the first queue that it owns there, so it must own one on each.
//!
//! Memory is taken once: [`RING`] chunks to receive into and as many to send for each queue, and some to
//! spare for frames that the data plane holds.

mod driver;
mod frame;
mod interface;
mod memory;
mod order;
mod ring;
mod rings;
mod socket;
mod wakeup;

use std::io;
use std::os::fd::RawFd;

use super::poll::Waker;
use super::tun::TunQueue;
use crate::table::InterfaceId;

pub use driver::XskDriver;
pub use frame::{HEADROOM, XdpFrame};
pub use interface::{XdpInterface, XdpMode};
pub use memory::XdpMemory;
pub use ring::RING;
pub use rings::{FrameMemory, Rings, XdpRings};
pub use socket::Sharing;

/// The driver on rings of our own.
pub type XdpDriver = XskDriver<XdpRings>;

/// Bytes of a chunk: a frame, its headroom, and what the kernel keeps for itself. The shortest there is, as the kernel has each page of
/// the memory mapped by itself: two frames a page are half as many to walk to (perf/README.md).
const CHUNK_LEN_MIN: usize = 2048;
/// The longest there is.
const CHUNK_LEN_MAX: usize = 4096;

/// The longest frame that is received or can be sent, where chunks are chosen for frames of that length.
pub fn frame_len_max(wanted: usize) -> usize {
    frame::len_max(chunk_len(wanted))
}

/// Bytes of the chunks for frames of that length.
fn chunk_len(frame_len: usize) -> usize {
    match frame_len <= frame::len_max(CHUNK_LEN_MIN) {
        true => CHUNK_LEN_MIN,
        false => CHUNK_LEN_MAX,
    }
}

/// A queue that a worker shall own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueBinding {
    /// Which of the daemon's interfaces.
    pub interface: InterfaceId,
    /// The kernel's number of it.
    pub ifindex: u32,
    /// Its name, for messages.
    pub name: String,
    /// The receive queue.
    pub queue: u32,
    /// Where the filter runs: zero-copy is tried behind a native one only.
    pub native: bool,
}

/// Everything a driver needs.
#[derive(Debug)]
pub struct XdpConfig {
    /// The queues this worker owns: at least one of each interface.
    pub queues: Vec<QueueBinding>,
    /// Chunks beyond those for the rings: what the data plane may hold at a time.
    pub frames_spare: u32,
    /// Bytes of the longest frame at its interfaces, link header included.
    pub frame_len: usize,
    /// The way to the local stack.
    pub tun: TunQueue,
    /// Ends its sleep.
    pub waker: Waker,
}

/// Enough to spare for fragments that wait and errors that uvs sends.
pub const FRAMES_SPARE_DEFAULT: u32 = 2048;

/// Why there is no driver.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// No memory.
    #[error("cannot map {mib} MiB of frame memory: {source}")]
    Memory {
        /// How much.
        mib: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// A queue refused.
    #[error("cannot {what} an AF_XDP socket on queue {queue} of interface {interface}: {source}{}", hint(.what, .source))]
    Socket {
        /// Name of the interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// What failed.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A worker could not send at that interface.
    #[error("this worker owns no queue of interface number {0}: at most as many workers as the fewest queues")]
    NoQueue(u8),
    /// Frames sent by that queue would stay where they are.
    #[error(
        "queue {queue} of interface {interface} cannot send: it has {tx} transmit queues \
         (ethtool -L {interface} makes as many as receive queues)"
    )]
    NoTransmitQueue {
        /// Name of the interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// Transmit queues in use.
        tx: u32,
    },
}

impl XdpError {
    /// A failure on a queue.
    pub(in crate::io) fn system(binding: &QueueBinding, what: &'static str, source: io::Error) -> XdpError {
        XdpError::Socket {
            interface: binding.name.clone(),
            queue: binding.queue,
            what,
            source,
        }
    }
}

fn hint(what: &str, error: &io::Error) -> &'static str {
    let Some(errno) = error.raw_os_error() else { return "" };
    match (what, errno) {
        ("bind", libc::EBUSY) => " (another AF_XDP socket has this queue)",
        ("bind", libc::EINVAL) => " (no such queue, or its ring is too small)",
        ("give memory to", libc::ENOBUFS) => " (more memory would be locked than is allowed: ulimit -l)",
        (_, libc::ENETDOWN) => " (the interface is down)",
        (_, libc::ENODEV) => " (there is no such interface)",
        (_, libc::EOPNOTSUPP) => " (the interface's driver cannot)",
        (_, libc::EAFNOSUPPORT) => " (the kernel has no AF_XDP: use --driver raw)",
        (_, libc::EPERM) => " (needs CAP_NET_RAW)",
        _ => "",
    }
}

/// A socket of a driver: what it got, and why not something faster.
#[derive(Clone, Debug)]
pub struct BoundQueue {
    /// Whose it is.
    pub binding: QueueBinding,
    /// The socket, for [`XdpInterface::add_socket`].
    pub socket: RawFd,
    /// How frames come.
    pub mode: XdpMode,
    /// Why it is not zero-copy, if that was tried.
    pub reason: Option<String>,
}
