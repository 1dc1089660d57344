//! The memory that all sockets of a worker share with the kernel, and its free chunks.
#![allow(
    unsafe_code,
    reason = "addresses of the kernel's are places in memory that the crate maps"
)]

use std::ptr::NonNull;

use xdp::Umem;
use xdp::umem::{FrameSize, UmemCfgBuilder};

use super::frame::{HEADROOM, KERNEL_LEN, XdpFrame};
use super::rings::FrameMemory;
use super::{CHUNK, XdpError};

/// Chunks of the crate `xdp`, all taken from it: in its own list of free ones none can be looked at, which `Order` must.
pub struct XdpMemory {
    umem: Umem,
    /// Where chunk 0 is.
    base: NonNull<u8>,
    /// Addresses, which count from `base`.
    free: Vec<u64>,
    chunks: usize,
}

// SAFETY: `base` points into `umem`, which goes with it.
unsafe impl Send for XdpMemory {}

impl XdpMemory {
    /// To be registered with sockets.
    pub(super) fn umem(&self) -> &Umem {
        &self.umem
    }

    /// A frame of which the kernel said where it is.
    #[inline(always)]
    pub(super) fn frame(&self, address: u64, len: u32) -> XdpFrame {
        let (chunk, at) = (address & !(CHUNK as u64 - 1), address as usize % CHUNK);
        debug_assert!(at >= KERNEL_LEN, "a frame at {at} of its chunk");
        XdpFrame::new(self.at(chunk), at - KERNEL_LEN, len as usize)
    }

    /// Where the kernel finds a frame.
    #[inline(always)]
    pub(super) fn address_of(&self, frame: &XdpFrame) -> u64 {
        self.distance(frame.first())
    }

    #[inline(always)]
    fn distance(&self, to: NonNull<u8>) -> u64 {
        (to.addr().get() - self.base.addr().get()) as u64
    }

    /// Takes back the chunk of that address, or of one in it.
    #[inline(always)]
    pub(super) fn give_back(&mut self, address: u64) {
        self.free.push(address & !(CHUNK as u64 - 1));
    }

    /// Takes the free chunks that come next, `n` of them or all.
    #[inline(always)]
    pub(super) fn take(&mut self, n: usize) -> impl Iterator<Item = u64> {
        self.free.drain(self.free.len().saturating_sub(n)..).rev()
    }

    #[inline(always)]
    fn at(&self, chunk: u64) -> NonNull<u8> {
        debug_assert!(chunk < (self.chunks * CHUNK) as u64, "no chunk at {chunk}");
        // SAFETY: addresses come from `free`, or from the kernel for frames that it had from there: all in the memory behind `base`.
        unsafe { self.base.add(chunk as usize) }
    }

    /// Asks for huge pages under memory that is still untouched: each frame is in a page of its own, and of small pages there are
    /// more than the processor remembers.
    fn advise_huge_pages(&self) {
        // SAFETY: MADV_HUGEPAGE changes no content. Its result is of no interest: without huge pages it is slower, not wrong.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.chunks * CHUNK, libc::MADV_HUGEPAGE) };
    }
}

impl FrameMemory for XdpMemory {
    type Frame = XdpFrame;
    type Chunk = u64;

    fn map(chunks: u32) -> Result<XdpMemory, XdpError> {
        let configuration = UmemCfgBuilder {
            frame_size: FrameSize::FourK,
            head_room: HEADROOM as u32,
            frame_count: chunks,
            ..UmemCfgBuilder::default()
        };
        let configuration = configuration.build().expect("constants within their limits");
        let mut umem = Umem::map(configuration).map_err(|source| XdpError::Memory {
            mib: chunks as u64 * CHUNK as u64 / (1 << 20),
            source,
        })?;
        // SAFETY: packets are where chunks are, no more; nobody reads or writes by them.
        let packets = std::iter::from_fn(|| unsafe { umem.alloc() });
        let start = |packet: xdp::Packet| packet.as_ptr().expose_provenance() & !(CHUNK - 1);
        let starts: Vec<usize> = packets.map(start).collect();
        let base = *starts.iter().min().expect("there are chunks");
        let memory = XdpMemory {
            umem,
            base: NonNull::new(std::ptr::with_exposed_provenance_mut(base)).expect("memory is not at 0"),
            free: starts.iter().rev().map(|start| (start - base) as u64).collect(),
            chunks: starts.len(),
        };
        memory.advise_huge_pages();
        Ok(memory)
    }

    #[inline]
    fn allocate(&mut self) -> Option<XdpFrame> {
        let chunk = self.free.pop()?;
        Some(XdpFrame::new(self.at(chunk), HEADROOM, 0))
    }

    #[inline]
    fn free(&mut self, frame: XdpFrame) {
        self.give_back(self.distance(frame.room()));
    }

    #[inline]
    fn free_chunks(&mut self) -> &mut [u64] {
        &mut self.free
    }

    #[inline]
    fn address(chunk: &u64) -> usize {
        *chunk as usize
    }

    fn outstanding(&self) -> usize {
        self.chunks - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Frame;

    /// Goal: no chunk is lost, and none is handed out twice. How: all of them, written to and looked at again; then frames that begin
    /// and end anywhere in their chunks, by their addresses and back.
    #[test]
    fn each_chunk_comes_back_as_itself() {
        let mut memory = XdpMemory::map(8).unwrap();
        let mut frames: Vec<XdpFrame> = std::iter::from_fn(|| memory.allocate()).collect();
        assert_eq!((frames.len(), memory.outstanding()), (8, 8));
        for (frame, n) in frames.iter_mut().zip(0u8..) {
            frame.set_len(60).unwrap();
            frame.bytes_mut().fill(n);
            assert_eq!(
                memory.address_of(frame),
                (n as u64 * CHUNK as u64) + (KERNEL_LEN + HEADROOM) as u64
            );
        }
        let ends: [fn(&mut XdpFrame); 4] = [
            |frame| frame.grow_front(HEADROOM).unwrap(),
            |frame| frame.shrink_front(60),
            |frame| frame.set_len(super::super::FRAME_LEN_MAX).unwrap(),
            |frame| {
                frame.set_len(super::super::FRAME_LEN_MAX).unwrap();
                frame.shrink_front(super::super::FRAME_LEN_MAX);
            },
        ];
        for ((mut frame, n), end) in frames.into_iter().zip(0u8..).zip(ends.into_iter().cycle()) {
            assert_eq!(frame.bytes(), [n; 60]);
            end(&mut frame);
            let (address, len) = (memory.address_of(&frame), frame.bytes().len());
            let place = frame.bytes().as_ptr_range();
            if len > 0 {
                assert_eq!(memory.frame(address, len as u32).bytes().as_ptr_range(), place);
            }
            memory.free(frame);
            assert_eq!(memory.free_chunks().last(), Some(&(n as u64 * CHUNK as u64)));
        }
        assert_eq!(memory.outstanding(), 0);
        let all: Vec<u64> = memory.take(9).collect();
        assert_eq!(all, (0..8).rev().map(|n| n * CHUNK as u64).collect::<Vec<_>>());
        assert!(memory.allocate().is_none());
    }
}
