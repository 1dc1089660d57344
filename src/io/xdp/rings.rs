//! The rings of a socket and the memory behind them: what a crate for AF_XDP has to give, and how `xdp` gives it.
#![allow(
    unsafe_code,
    reason = "the crate leaves it to us that frame memory outlives rings and frames"
)]

use std::os::fd::{AsRawFd, RawFd};

use xdp::slab::{HeapSlab, Slab};
use xdp::socket::{SocketError, XdpSocket, XdpSocketBuilder};
use xdp::umem::{FrameSize, UmemCfgBuilder};
use xdp::{Packet, RingConfigBuilder, Umem, WakableRings};

use super::frame::{HEADROOM, XdpFrame};
use super::wakeup::WakeupFlag;
use super::{CHUNK, QueueBinding, Sharing, XdpError};
use crate::dataplane::driver::{BATCH_MAX, Received};
use crate::packet::Frame;
use crate::table::InterfaceId;

/// Descriptors of each ring: a power of two.
pub const RING: u32 = 2048;

/// The four rings of a bound socket, of [`RING`] descriptors each. The caller counts, and never asks for more than
/// there is room for.
pub trait Rings: Sized {
    /// What the frames are in.
    type Memory: FrameMemory<Frame = Self::Frame>;
    /// A frame outside of the rings.
    type Frame: Frame;

    /// Opens a socket over `memory` and binds it. The interface has a filter of ours in front.
    fn open(memory: &Self::Memory, binding: &QueueBinding, sharing: Sharing) -> Result<Self, XdpError>;

    /// The socket.
    fn fd(&self) -> RawFd;

    /// Appends up to `room` received frames to the batch.
    fn receive(
        &mut self,
        memory: &Self::Memory,
        batch: &mut Vec<Received<Self::Frame>>,
        interface: InterfaceId,
        room: usize,
    ) -> usize;

    /// Gives the kernel `n` free frames to receive into, or as many as there are.
    fn fill(&mut self, memory: &mut Self::Memory, n: usize) -> usize;

    /// Remembers a frame to be sent, [`BATCH_MAX`] at most.
    fn queue(&mut self, frame: Self::Frame);

    /// Frames remembered.
    fn queued(&self) -> usize;

    /// Puts them on the transmit ring.
    fn submit(&mut self);

    /// Takes back up to `n` sent frames.
    fn complete(&mut self, memory: &mut Self::Memory, n: usize) -> usize;

    /// The kernel sleeps until it is told that the fill ring has frames.
    fn fill_wants_wakeup(&mut self) -> bool;

    /// The kernel sleeps until it is told that the transmit ring has frames.
    fn transmit_wants_wakeup(&mut self) -> bool;
}

/// The frame memory of one worker.
pub trait FrameMemory: Sized {
    /// A frame outside of the rings.
    type Frame;

    /// That many chunks.
    fn map(chunks: u32) -> Result<Self, XdpError>;

    /// A free chunk as an empty frame.
    fn allocate(&mut self) -> Option<Self::Frame>;

    /// Takes a frame back.
    fn free(&mut self, frame: Self::Frame);

    /// Chunks that are not free.
    fn outstanding(&self) -> usize;
}

impl FrameMemory for Umem {
    type Frame = XdpFrame;

    fn map(chunks: u32) -> Result<Umem, XdpError> {
        let configuration = UmemCfgBuilder {
            frame_size: FrameSize::FourK,
            head_room: HEADROOM,
            frame_count: chunks,
            ..UmemCfgBuilder::default()
        };
        let configuration = configuration.build().expect("constants within their limits");
        let mut memory = Umem::map(configuration).map_err(|source| XdpError::Memory {
            mib: chunks as u64 * CHUNK as u64 / (1 << 20),
            source,
        })?;
        advise_huge_pages(&mut memory, chunks);
        Ok(memory)
    }

    #[inline]
    fn allocate(&mut self) -> Option<XdpFrame> {
        // SAFETY: frames come back to their driver, which owns the memory (contract of Driver).
        unsafe { self.alloc() }.map(XdpFrame::new)
    }

    #[inline]
    fn free(&mut self, frame: XdpFrame) {
        self.free_packet(frame.packet);
    }

    fn outstanding(&self) -> usize {
        Umem::outstanding(self)
    }
}

/// Asks for huge pages under memory that is still untouched: each frame is in a page of its own, and of small pages there are
/// more than the processor remembers.
fn advise_huge_pages(memory: &mut Umem, chunks: u32) {
    // The lowest one: nothing was taken yet.
    let Some(first) = FrameMemory::allocate(memory) else {
        return;
    };
    let start = first.bytes().as_ptr() as usize & !(CHUNK - 1);
    // SAFETY: MADV_HUGEPAGE changes no content, whosever memory it is about. Its result is of no interest: without huge pages
    // it is slower, not wrong.
    unsafe { libc::madvise(start as *mut libc::c_void, chunks as usize * CHUNK, libc::MADV_HUGEPAGE) };
    FrameMemory::free(memory, first);
}

/// Rings of the crate `xdp`.
pub struct CrateRings {
    socket: XdpSocket,
    rings: WakableRings,
    fill_flag: WakeupFlag,
    transmit_flag: WakeupFlag,
    /// Frames to be put on the transmit ring.
    queued: HeapSlab,
}

// SAFETY: the raw pointers are those of queued frames, to the memory that moves with them in the same driver.
unsafe impl Send for CrateRings {}

impl Rings for CrateRings {
    type Memory = Umem;
    type Frame = XdpFrame;

    fn open(memory: &Umem, binding: &QueueBinding, sharing: Sharing) -> Result<CrateRings, XdpError> {
        let failed = |what, error| socket_error(binding, what, error);
        let mut builder = XdpSocketBuilder::new().map_err(|e| failed("open", e))?;
        let sizes = RingConfigBuilder {
            rx_count: RING,
            tx_count: RING,
            fill_count: RING,
            completion_count: RING,
        };
        let sizes = sizes.build().expect("powers of two");
        let (rings, mut flags) = builder
            .build_wakable_rings(memory, sizes)
            .map_err(|e| failed("set up", e))?;
        let (fill_flag, transmit_flag) =
            WakeupFlag::map(builder.as_raw_fd()).map_err(|e| XdpError::system(binding, "map", e))?;
        match sharing {
            Sharing::ZeroCopy => flags.force_zerocopy(),
            Sharing::Copy => flags.force_copy(),
        }
        let socket = builder.bind(xdp::nic::NicIndex::new(binding.ifindex), binding.queue, flags);
        Ok(CrateRings {
            socket: socket.map_err(|e| failed("bind", e))?,
            rings,
            fill_flag,
            transmit_flag,
            queued: HeapSlab::with_capacity(BATCH_MAX),
        })
    }

    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    #[inline]
    fn receive(
        &mut self,
        memory: &Umem,
        batch: &mut Vec<Received<XdpFrame>>,
        interface: InterfaceId,
        room: usize,
    ) -> usize {
        let ring = self.rings.rx_ring.as_mut().expect("it was made with one");
        // SAFETY: frames come back to their driver, which owns the memory (contract of Driver).
        unsafe { ring.recv(memory, &mut BatchSlab { batch, interface, room }) }
    }

    #[inline]
    fn fill(&mut self, memory: &mut Umem, n: usize) -> usize {
        // SAFETY: the driver keeps the memory longer than its sockets. Without wake-up there is no error.
        unsafe { self.rings.fill_ring.enqueue(memory, n, false) }.unwrap_or(0)
    }

    #[inline]
    fn queue(&mut self, frame: XdpFrame) {
        let refused = self.queued.push_front(frame.packet);
        debug_assert!(refused.is_none(), "more than {BATCH_MAX} frames");
    }

    #[inline]
    fn queued(&self) -> usize {
        self.queued.len()
    }

    fn submit(&mut self) {
        let ring = self.rings.tx_ring.as_mut().expect("it was made with one");
        // SAFETY: the driver keeps the memory longer than its sockets. Without wake-up there is no error.
        unsafe { ring.send(&mut self.queued, false) }.unwrap_or(0);
    }

    #[inline]
    fn complete(&mut self, memory: &mut Umem, n: usize) -> usize {
        self.rings.completion_ring.dequeue(memory, n)
    }

    fn fill_wants_wakeup(&mut self) -> bool {
        self.fill_flag.is_set()
    }

    fn transmit_wants_wakeup(&mut self) -> bool {
        self.transmit_flag.is_set()
    }
}

fn socket_error(binding: &QueueBinding, what: &'static str, error: SocketError) -> XdpError {
    let source = match error {
        SocketError::SocketCreation(source) | SocketError::Bind(source) => source,
        SocketError::SetSockOpt { inner, .. } | SocketError::GetSockOpt { inner, .. } => inner,
        SocketError::RingMap { inner, .. } => inner,
    };
    XdpError::system(binding, what, source)
}

/// Lets a receive ring push right into the batch.
struct BatchSlab<'a> {
    batch: &'a mut Vec<Received<XdpFrame>>,
    interface: InterfaceId,
    room: usize,
}

impl Slab for BatchSlab<'_> {
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
