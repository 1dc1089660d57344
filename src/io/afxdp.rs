//! The driver `afxdp`: the same as [`xdp`](super::xdp), on the rings of the crate `afxdp` (feature of that name).
//!
//! What that crate needs, and what it gets here:
//!
//! | the crate | here |
//! |---|---|
//! | frees its handles wrongly when they drop | they are never dropped: a driver's rings live as long as the process, and its queues are not free for another socket before |
//! | panics when an interface disappears while it sends | the descriptor that it kicks is a harmless one; the real kicks are the driver's, which look at errors |
//! | has no headroom | growing in front moves the frame within its chunk |
//! | knows no statistics, and no socket | the socket is asked by its own descriptor |
//! | attaches a program of its own unless one is there | opens only behind a filter of ours, whose socket map has the name it looks for |
//!
//! libbpf inside needs make, pkg-config and libelf-dev to build.
#![allow(unsafe_code, reason = "libbpf's descriptor of a socket, dup and dup2")]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, OnceLock};

use afxdp::PENDING_LEN;
use afxdp::buf::Buf;
use afxdp::buf_mmap::BufMmap;
use afxdp::mmap_area::{MmapArea, MmapAreaOptions};
use afxdp::socket::{Socket, SocketNewError, SocketOptions, SocketRx, SocketTx};
use afxdp::umem::{Umem, UmemCompletionQueue, UmemFillQueue, UmemNewError};
use arraydeque::{ArrayDeque, Wrapping};

use super::filter::attach::{Found, query_xdp};
use super::xdp::{FrameMemory, QueueBinding, RING, Rings, Sharing, XdpError, XskDriver};
use crate::dataplane::driver::Received;
use crate::packet::{Frame, NoRoom, Offload, Window};
use crate::table::InterfaceId;

/// The driver on the crate `afxdp`.
pub type AfxdpDriver = XskDriver<AfxdpRings>;

type Chunk = BufMmap<'static, ()>;
type Chunks = ArrayDeque<[Chunk; PENDING_LEN], Wrapping>;

/// A frame in a chunk. The crate sends a chunk from its beginning only, so there the frame is moved before it leaves.
pub struct AfxdpFrame {
    chunk: Chunk,
    window: Window,
    offload: Offload,
}

impl AfxdpFrame {
    fn new(chunk: Chunk) -> AfxdpFrame {
        AfxdpFrame {
            window: Window::new(0, chunk.get_len() as usize),
            chunk,
            offload: Offload::default(),
        }
    }

    /// The chunk with the frame at its beginning.
    fn into_chunk(mut self) -> Chunk {
        let (start, len) = (self.window.start(), self.window.len());
        if start != 0 {
            self.chunk.get_data_mut().copy_within(start..start + len, 0);
        }
        self.chunk.set_len(len as u16);
        self.chunk
    }
}

impl Frame for AfxdpFrame {
    #[inline]
    fn bytes(&self) -> &[u8] {
        self.window.of(self.chunk.get_data())
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.window.of_mut(self.chunk.get_data_mut())
    }

    fn grow_front(&mut self, n: usize) -> Result<(), NoRoom> {
        let (start, len) = (self.window.start(), self.window.len());
        let shift = n.saturating_sub(start);
        if shift > 0 {
            let end = start + len;
            let room = self.chunk.get_data().len() - end;
            if shift > room {
                return Err(NoRoom);
            }
            self.chunk.get_data_mut().copy_within(start..end, start + shift);
            self.window = Window::new(start + shift, len);
        }
        self.window.grow_front(n)
    }

    #[inline]
    fn shrink_front(&mut self, n: usize) {
        self.window.shrink_front(n);
    }

    #[inline]
    fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        self.window.set_len(len, self.chunk.get_data().len())
    }

    #[inline]
    fn offload(&self) -> Offload {
        self.offload
    }

    /// Counts only when the frame is handed back to the local stack.
    #[inline]
    fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }
}

/// The frame memory of a worker. Stays mapped: rings that are never dropped know of it.
pub struct AfxdpMemory {
    area: ManuallyDrop<Arc<MmapArea<'static, ()>>>,
    free: Vec<Chunk>,
    chunks: usize,
    chunk_len: usize,
}

impl FrameMemory for AfxdpMemory {
    type Frame = AfxdpFrame;
    type Chunk = Chunk;

    fn map(chunks: u32, chunk_len: usize) -> Result<AfxdpMemory, XdpError> {
        let chunks = chunks as usize;
        match MmapArea::new(chunks, chunk_len, MmapAreaOptions { huge_tlb: false }) {
            Ok((area, free)) => Ok(AfxdpMemory {
                area: ManuallyDrop::new(area),
                free,
                chunks,
                chunk_len,
            }),
            // The crate does not say why; nothing has come between.
            Err(_) => Err(XdpError::Memory {
                mib: (chunks * chunk_len / (1 << 20)) as u64,
                source: io::Error::last_os_error(),
            }),
        }
    }

    fn for_copying(self) -> AfxdpMemory {
        self
    }

    fn step(&self) -> Option<usize> {
        Some(self.chunk_len)
    }

    #[inline]
    fn allocate(&mut self) -> Option<AfxdpFrame> {
        let mut chunk = self.free.pop()?;
        chunk.set_len(0);
        Some(AfxdpFrame::new(chunk))
    }

    #[inline]
    fn free(&mut self, frame: AfxdpFrame) {
        self.free.push(frame.chunk);
    }

    #[inline]
    fn free_chunks(&mut self) -> &mut [Chunk] {
        &mut self.free
    }

    #[inline]
    fn address(chunk: &Chunk) -> usize {
        chunk.get_data().as_ptr().addr()
    }

    fn outstanding(&self) -> usize {
        self.chunks - self.free.len()
    }
}

/// Rings of the crate `afxdp`. Each socket has a Umem of its own over the one memory.
pub struct AfxdpRings {
    fd: OwnedFd,
    receive: ManuallyDrop<SocketRx<'static, ()>>,
    transmit: ManuallyDrop<SocketTx<'static, ()>>,
    fill: ManuallyDrop<UmemFillQueue<'static, ()>>,
    completion: ManuallyDrop<UmemCompletionQueue<'static, ()>>,
    received: Box<Chunks>,
    queued: Box<Chunks>,
}

impl Rings for AfxdpRings {
    type Memory = AfxdpMemory;
    type Frame = AfxdpFrame;

    fn open(memory: &AfxdpMemory, binding: &QueueBinding, sharing: Sharing) -> Result<AfxdpRings, XdpError> {
        let failed = |what, source| XdpError::system(binding, what, source);
        let filters = query_xdp(binding.ifindex).map_err(|e| failed("open", io::Error::other(e)))?;
        if !filters.iter().any(Found::is_ours) {
            return Err(failed(
                "open",
                io::Error::other("the interface has no filter of uvs yet"),
            ));
        }
        let area = Arc::clone(&memory.area);
        let (umem, completion, fill) = Umem::new(area, RING, RING).map_err(|e| failed("set up", umem_error(e)))?;
        // Never dropped, also when the socket fails: see the head of this file.
        let (completion, fill) = (ManuallyDrop::new(completion), ManuallyDrop::new(fill));
        let options = SocketOptions {
            zero_copy_mode: sharing == Sharing::ZeroCopy,
            copy_mode: sharing == Sharing::Copy,
            ..SocketOptions::default()
        };
        let shared = ManuallyDrop::new(Arc::clone(&umem));
        let (socket, receive, transmit) = Socket::new(umem, &binding.name, binding.queue as usize, RING, RING, options)
            .map_err(|e| failed("bind", socket_error(e)))?;
        std::mem::forget(socket);
        // SAFETY: the Umem is alive, as it is never dropped.
        let number = unsafe { xsk_umem__fd(shared.get_ptr().cast()) };
        Ok(AfxdpRings {
            fd: take_socket(number).map_err(|e| failed("set up", e))?,
            receive: ManuallyDrop::new(receive),
            transmit: ManuallyDrop::new(transmit),
            fill,
            completion,
            received: Box::new(Chunks::new()),
            queued: Box::new(Chunks::new()),
        })
    }

    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    #[inline]
    fn receive(
        &mut self,
        _memory: &AfxdpMemory,
        batch: &mut Vec<Received<AfxdpFrame>>,
        interface: InterfaceId,
        room: usize,
    ) -> usize {
        let n = self.receive.try_recv(&mut self.received, room, ()).unwrap_or(0);
        batch.extend(self.received.drain(..).map(|chunk| Received {
            frame: AfxdpFrame::new(chunk),
            interface,
        }));
        n
    }

    #[inline]
    fn fill(&mut self, memory: &mut AfxdpMemory, n: usize) -> usize {
        self.fill.fill(&mut memory.free, n).unwrap_or(0)
    }

    #[inline]
    fn queue(&mut self, _memory: &AfxdpMemory, frame: AfxdpFrame) {
        let lost = self.queued.push_back(frame.into_chunk());
        debug_assert!(lost.is_none(), "more than {PENDING_LEN} frames");
    }

    #[inline]
    fn queued(&self) -> usize {
        self.queued.len()
    }

    fn submit(&mut self, _memory: &mut AfxdpMemory) {
        let all = self.queued.len();
        // It cannot fail; what it does not take shows in queued().
        self.transmit.try_send(&mut self.queued, all).unwrap_or(0);
    }

    #[inline]
    fn complete(&mut self, memory: &mut AfxdpMemory, n: usize) -> usize {
        self.completion.service(&mut memory.free, n).unwrap_or(0)
    }

    fn fill_wants_wakeup(&mut self) -> bool {
        self.fill.needs_wakeup()
    }

    fn transmit_wants_wakeup(&mut self) -> bool {
        self.transmit.needs_wakeup()
    }
}

unsafe extern "C" {
    /// libbpf's: the descriptor of a Umem, which is that of its first socket.
    fn xsk_umem__fd(umem: *const libc::c_void) -> libc::c_int;
}

/// Moves the socket to a descriptor that only we know, and leaves a harmless socket under the number that the crate
/// knows: it panics on errors of the real one.
fn take_socket(number: RawFd) -> io::Result<OwnedFd> {
    static HARMLESS: OnceLock<(UnixDatagram, UnixDatagram)> = OnceLock::new();
    let pair = UnixDatagram::pair()?;
    // A queue of empty datagrams that nobody reads: sending succeeds, or it is full, and the crate knows EAGAIN.
    let harmless = HARMLESS.get_or_init(|| pair).0.as_raw_fd();
    // SAFETY: duplicates a descriptor; the result is checked.
    let own = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let own = unsafe { OwnedFd::from_raw_fd(own) };
    // SAFETY: both are open; `number` belongs to libbpf, which goes on using it, as a socket, for kicks only.
    match unsafe { libc::dup3(harmless, number, libc::O_CLOEXEC) } {
        0.. => Ok(own),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The crate takes libbpf's negative numbers for error numbers.
fn positive(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number.abs()),
        None => error,
    }
}

fn umem_error(error: UmemNewError) -> io::Error {
    match error {
        UmemNewError::Create(source) => positive(source),
        other => io::Error::other(other.to_string()),
    }
}

fn socket_error(error: SocketNewError) -> io::Error {
    match error {
        SocketNewError::Create(source) => positive(source),
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_grow_in_front_by_moving() {
        let mut memory = AfxdpMemory::map(1, 2048).unwrap();
        let mut frame = memory.allocate().unwrap();
        assert!(memory.allocate().is_none());
        let capacity = memory.chunk_len - 256;
        assert_eq!(frame.set_len(capacity + 1), Err(NoRoom));
        frame.set_len(60).unwrap();
        frame.bytes_mut().fill(7);
        frame.grow_front(20).unwrap();
        frame.bytes_mut()[..20].fill(1);
        assert_eq!(frame.bytes(), [&[1; 20][..], &[7; 60]].concat());
        frame.shrink_front(30);
        assert_eq!(frame.bytes(), [7; 50]);
        frame.grow_front(10).unwrap();
        assert_eq!(frame.bytes(), [7; 60]);
        frame.set_len(capacity - 20).unwrap();
        assert_eq!(frame.grow_front(21), Err(NoRoom));
        frame.set_len(60).unwrap();
        assert_eq!(frame.into_chunk().get_data()[..60], [7; 60]);
    }
}
