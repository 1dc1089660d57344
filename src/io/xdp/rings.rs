//! The rings of a socket and the memory behind them: what the driver needs, and sockets of the crate `xdp` that give it.

use std::os::fd::{AsRawFd, RawFd};

use libc::xdp_desc;
use xdp::RingConfigBuilder;
use xdp::socket::{SocketError, XdpSocket, XdpSocketBuilder};

use super::frame::XdpFrame;
use super::memory::XdpMemory;
use super::ring::{RING, SocketRings};
use super::{QueueBinding, Sharing, XdpError};
use crate::dataplane::driver::Received;
use crate::packet::Frame;
use crate::table::InterfaceId;

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

    /// Takes a frame to be sent, [`BATCH_MAX`](crate::dataplane::driver::BATCH_MAX) at most.
    fn queue(&mut self, memory: &Self::Memory, frame: Self::Frame);

    /// Frames taken that the kernel does not know of.
    fn queued(&self) -> usize;

    /// Shows them to the kernel.
    fn submit(&mut self, memory: &mut Self::Memory);

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
    /// What is known of a free chunk.
    type Chunk;

    /// That many chunks of so many bytes.
    fn map(chunks: u32, chunk_len: usize) -> Result<Self, XdpError>;

    /// Bytes of a chunk.
    fn chunk_len(&self) -> usize;

    /// A free chunk as an empty frame.
    fn allocate(&mut self) -> Option<Self::Frame>;

    /// Takes a frame back.
    fn free(&mut self, frame: Self::Frame);

    /// Those that are free; the last is taken next.
    fn free_chunks(&mut self) -> &mut [Self::Chunk];

    /// Where a chunk is.
    fn address(chunk: &Self::Chunk) -> usize;

    /// Chunks that are not free.
    fn outstanding(&self) -> usize;
}

/// A socket that the crate `xdp` has opened.
pub struct XdpRings {
    // Dropped in this order: what is bound goes last.
    rings: SocketRings,
    socket: XdpSocket,
    sharing: Sharing,
}

impl Rings for XdpRings {
    type Memory = XdpMemory;
    type Frame = XdpFrame;

    fn open(memory: &XdpMemory, binding: &QueueBinding, sharing: Sharing) -> Result<XdpRings, XdpError> {
        let failed = |what, error| socket_error(binding, what, error);
        let mut builder = XdpSocketBuilder::new().map_err(|e| failed("open", e))?;
        let sizes = RingConfigBuilder {
            rx_count: RING,
            tx_count: RING,
            fill_count: RING,
            completion_count: RING,
        };
        let sizes = sizes.build().expect("powers of two");
        // The crate's own view of the rings goes at once.
        let (_, mut flags) = builder
            .build_wakable_rings(memory.umem(), sizes)
            .map_err(|e| failed("set up", e))?;
        let rings = SocketRings::map(builder.as_raw_fd()).map_err(|e| XdpError::system(binding, "map", e))?;
        match sharing {
            Sharing::ZeroCopy => flags.force_zerocopy(),
            Sharing::Copy => flags.force_copy(),
        }
        let socket = builder.bind(xdp::nic::NicIndex::new(binding.ifindex), binding.queue, flags);
        Ok(XdpRings {
            rings,
            socket: socket.map_err(|e| failed("bind", e))?,
            sharing,
        })
    }

    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    #[inline]
    fn receive(
        &mut self,
        memory: &XdpMemory,
        batch: &mut Vec<Received<XdpFrame>>,
        interface: InterfaceId,
        room: usize,
    ) -> usize {
        let arrived = |entry: xdp_desc| {
            let frame = memory.frame(entry.addr, entry.len);
            batch.push(Received { frame, interface });
        };
        self.rings.receive.take(room as u32, arrived) as usize
    }

    #[inline]
    fn fill(&mut self, memory: &mut XdpMemory, n: usize) -> usize {
        let fill = &mut self.rings.fill;
        memory.take(n).for_each(|chunk| fill.put(chunk));
        let given = fill.unpublished();
        fill.publish();
        given as usize
    }

    #[inline]
    fn queue(&mut self, memory: &XdpMemory, frame: XdpFrame) {
        self.rings.transmit.put(xdp_desc {
            addr: memory.address_of(&frame),
            len: frame.len() as u32,
            options: 0,
        });
    }

    #[inline]
    fn queued(&self) -> usize {
        self.rings.transmit.unpublished() as usize
    }

    #[inline]
    fn submit(&mut self, memory: &mut XdpMemory) {
        // All at once, and not each when it is queued: it has just been written then, by bytes and words, and would be waited for.
        if self.sharing == Sharing::Copy {
            self.rings.transmit.revise(|frame| memory.stand_in(frame));
        }
        self.rings.transmit.publish();
    }

    #[inline]
    fn complete(&mut self, memory: &mut XdpMemory, n: usize) -> usize {
        let sent = |address| memory.give_back(address);
        self.rings.completion.take(n as u32, sent) as usize
    }

    fn fill_wants_wakeup(&mut self) -> bool {
        self.rings.fill.wants_wakeup()
    }

    fn transmit_wants_wakeup(&mut self) -> bool {
        self.rings.transmit.wants_wakeup()
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
