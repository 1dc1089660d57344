//! The driver `xdp`: AF_XDP sockets on the crate `xdp`, one for each queue that a worker owns.
//!
//! ```text
//!  control thread                              worker
//!  XdpInterface::attach   filter in front
//!                                              XdpDriver::open   memory, sockets, bound to queues
//!  XdpInterface::add_socket  ◄── XdpDriver::sockets
//!                                              receive … transmit … flush
//! ```
//! All sockets of a worker register the same memory, so a frame that came in at one interface leaves at another by
//! its address alone. A frame lives in a chunk of 4096 bytes: interfaces with a larger MTU are for the driver `raw`.
//! The worker sends at each interface by the first queue that it owns there, so it must own one on each.
//!
//! Memory is taken once: [`RING`](socket) chunks to receive into and as many to send for each queue, and some to
//! spare for frames that the data plane holds.
#![allow(unsafe_code, reason = "the crate's frame memory leaves the lifetime of frames to us")]

mod frame;
mod interface;
mod socket;
mod wakeup;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use xdp::slab::Slab;
use xdp::socket::SocketError;
use xdp::umem::{FrameSize, UmemCfgBuilder};
use xdp::{Packet, Umem};

use super::poll::{PollSet, Waker, Woken};
use super::tun::TunQueue;
use crate::dataplane::driver::{BATCH_MAX, Driver, InterfaceStatistics, Received};
use crate::packet::{ETHERNET_HEADER_LEN, Frame};
use crate::table::InterfaceId;
use socket::{RING, Sharing, Socket};

pub use frame::{FRAME_LEN_MAX, HEADROOM, XdpFrame};
pub use interface::{XdpInterface, XdpMode};

/// A retry is due this soon when the kernel did not take all frames.
const STUCK_RETRY: Duration = Duration::from_millis(1);

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
    #[error("cannot {what} an AF_XDP socket on queue {queue} of interface {interface}: {source}{}", hint(.source))]
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
}

impl XdpError {
    fn socket(binding: &QueueBinding, what: &'static str, error: SocketError) -> XdpError {
        let source = match error {
            SocketError::SocketCreation(source) | SocketError::Bind(source) => source,
            SocketError::SetSockOpt { inner, option } => io::Error::new(inner.kind(), format!("{option:?}: {inner}")),
            SocketError::GetSockOpt { inner, option } => io::Error::new(inner.kind(), format!("{option:?}: {inner}")),
            SocketError::RingMap { inner, ring } => io::Error::new(inner.kind(), format!("{ring:?} ring: {inner}")),
        };
        XdpError::system(binding, what, source)
    }

    fn system(binding: &QueueBinding, what: &'static str, source: io::Error) -> XdpError {
        XdpError::Socket {
            interface: binding.name.clone(),
            queue: binding.queue,
            what,
            source,
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => " (another AF_XDP socket has this queue)",
        Some(libc::EINVAL) => " (no such queue, or its ring is too small)",
        Some(libc::ENETDOWN) => " (the interface is down)",
        Some(libc::ENODEV) => " (there is no such interface)",
        Some(libc::EOPNOTSUPP) => " (the interface's driver cannot)",
        Some(libc::EAFNOSUPPORT) => " (the kernel has no AF_XDP: use --driver raw)",
        Some(libc::EPERM) => " (needs CAP_NET_RAW)",
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

/// The AF_XDP driver of one worker.
pub struct XdpDriver {
    // Declared before the memory, so that no ring outlives it.
    sockets: Vec<Socket>,
    memory: Umem,
    /// The socket to send by, for each interface.
    senders: Vec<usize>,
    /// Whose turn it is to be received from first.
    turn: usize,
    reasons: Vec<Option<String>>,
    tun: TunQueue,
    poll: PollSet,
}

// SAFETY: its pointers are to its own frame memory and rings; frames handed out, which point there too, are not Send,
// and none is out before it has reached its thread.
unsafe impl Send for XdpDriver {}

impl XdpDriver {
    /// Maps the memory, opens a socket for each queue, and fills the rings. To be called in the network namespace of
    /// the interfaces, with their filters attached.
    pub fn open(config: XdpConfig) -> Result<XdpDriver, XdpError> {
        let senders = senders(&config.queues)?;
        let mut memory = map_memory(config.queues.len(), config.frames_spare)?;
        let (mut sockets, mut reasons) = (Vec::new(), Vec::new());
        for binding in &config.queues {
            let (mut socket, reason) = open_socket(&memory, binding)?;
            socket.refill(&mut memory);
            sockets.push(socket);
            reasons.push(reason);
        }
        let fds: Vec<RawFd> = sockets.iter().map(Socket::fd).collect();
        Ok(XdpDriver {
            sockets,
            memory,
            senders,
            turn: 0,
            reasons,
            tun: config.tun,
            poll: PollSet::new(config.waker, &fds),
        })
    }

    /// What each queue got, in the order of the configuration.
    pub fn sockets(&self) -> Vec<BoundQueue> {
        let describe = |(s, reason): (&Socket, &Option<String>)| BoundQueue {
            binding: s.binding.clone(),
            socket: s.fd(),
            mode: match (s.sharing, s.binding.native) {
                (Sharing::ZeroCopy, _) => XdpMode::ZeroCopy,
                (Sharing::Copy, true) => XdpMode::Native,
                (Sharing::Copy, false) => XdpMode::Generic,
            },
            reason: reason.clone(),
        };
        self.sockets.iter().zip(&self.reasons).map(describe).collect()
    }

    /// Frames that are neither in the pool nor in a ring: those handed out. For tests of the accounting.
    pub fn outstanding(&self) -> usize {
        let in_rings: u32 = self.sockets.iter().map(Socket::frames).sum();
        self.memory.outstanding() - in_rings as usize
    }

    /// Stops sleeping on sockets whose interface is gone.
    fn check_sockets(&mut self) {
        for socket in &mut self.sockets {
            socket.check();
            if socket.is_dead() {
                self.poll.remove(socket.fd());
            }
        }
    }
}

/// For each interface the first of its queues.
fn senders(queues: &[QueueBinding]) -> Result<Vec<usize>, XdpError> {
    let interfaces = queues.iter().map(|q| q.interface.0 + 1).max().unwrap_or(0);
    let first = |i| {
        queues
            .iter()
            .position(|q| q.interface.0 == i)
            .ok_or(XdpError::NoQueue(i))
    };
    (0..interfaces).map(first).collect()
}

fn map_memory(queues: usize, frames_spare: u32) -> Result<Umem, XdpError> {
    let frame_count = queues as u32 * 2 * RING + frames_spare + 2 * BATCH_MAX as u32;
    let configuration = UmemCfgBuilder {
        frame_size: FrameSize::FourK,
        head_room: HEADROOM,
        frame_count,
        ..UmemCfgBuilder::default()
    };
    let configuration = configuration.build().expect("constants within their limits");
    Umem::map(configuration).map_err(|source| XdpError::Memory {
        mib: frame_count as u64 * 4096 / (1 << 20),
        source,
    })
}

/// Zero-copy where the filter is native and the card can; with the reason where it cannot.
fn open_socket(memory: &Umem, binding: &QueueBinding) -> Result<(Socket, Option<String>), XdpError> {
    if !binding.native {
        return Ok((Socket::open(memory, binding, Sharing::Copy)?, None));
    }
    match Socket::open(memory, binding, Sharing::ZeroCopy) {
        Ok(socket) => Ok((socket, None)),
        Err(error) => {
            let socket = Socket::open(memory, binding, Sharing::Copy)?;
            Ok((socket, Some(format!("not zero-copy: {error}"))))
        }
    }
}

/// Lets a receive ring push right into the batch.
struct Into<'a> {
    batch: &'a mut Vec<Received<XdpFrame>>,
    interface: InterfaceId,
    room: usize,
}

impl Slab for Into<'_> {
    #[inline]
    fn available(&self) -> usize {
        self.room
    }

    fn len(&self) -> usize {
        self.batch.len()
    }

    fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    #[inline]
    fn push_front(&mut self, packet: Packet) -> Option<Packet> {
        self.batch.push(Received {
            frame: XdpFrame::new(packet),
            interface: self.interface,
        });
        None
    }

    fn pop_back(&mut self) -> Option<Packet> {
        self.batch.pop().map(|received| received.frame.packet)
    }
}

impl Driver for XdpDriver {
    type Frame = XdpFrame;

    fn receive(&mut self, batch: &mut Vec<Received<XdpFrame>>) -> usize {
        let (mut room, count) = (BATCH_MAX, self.sockets.len());
        for i in 0..count {
            let socket = &mut self.sockets[(self.turn + i) % count];
            let interface = socket.binding.interface;
            room -= socket.receive(&self.memory, &mut Into { batch, interface, room });
            if room == 0 {
                break;
            }
        }
        self.turn = (self.turn + 1) % count.max(1);
        BATCH_MAX - room
    }

    fn allocate(&mut self) -> Option<XdpFrame> {
        // SAFETY: frames come back to this driver, which owns the memory (contract of Driver).
        unsafe { self.memory.alloc() }.map(XdpFrame::new)
    }

    #[inline]
    fn transmit(&mut self, interface: InterfaceId, frame: XdpFrame) -> bool {
        let socket = &mut self.sockets[self.senders[interface.0 as usize]];
        match socket.queue(&mut self.memory, frame.packet) {
            Ok(()) => true,
            Err(packet) => {
                self.memory.free_packet(packet);
                false
            }
        }
    }

    fn hand_back(&mut self, frame: XdpFrame) -> bool {
        let taken = match frame.bytes().get(ETHERNET_HEADER_LEN..) {
            Some(packet) => self.tun.write(packet, frame.offload()),
            None => false,
        };
        self.free(frame);
        taken
    }

    #[inline]
    fn free(&mut self, frame: XdpFrame) {
        self.memory.free_packet(frame.packet);
    }

    fn flush(&mut self) {
        for socket in &mut self.sockets {
            socket.flush();
            socket.reap(&mut self.memory);
            socket.refill(&mut self.memory);
        }
    }

    fn wait(&mut self, timeout: Duration) {
        let stuck = self.sockets.iter().any(Socket::is_stuck);
        let woken = self.poll.wait(if stuck { timeout.min(STUCK_RETRY) } else { timeout });
        if stuck {
            self.flush();
        } else if woken == Woken::Timeout {
            // Nothing to do: time to look whether the interfaces are still there.
            self.check_sockets();
        }
    }

    fn statistics(&mut self) -> Vec<InterfaceStatistics> {
        let mut all = vec![InterfaceStatistics::default(); self.senders.len()];
        for socket in &mut self.sockets {
            let (sum, one) = (&mut all[socket.binding.interface.0 as usize], socket.statistics());
            sum.rx_ring_full += one.rx_ring_full;
            sum.fill_ring_empty += one.fill_ring_empty;
            sum.rx_dropped += one.rx_dropped;
            sum.tx_invalid += one.tx_invalid;
            sum.tx_failed += one.tx_failed;
        }
        all
    }
}
