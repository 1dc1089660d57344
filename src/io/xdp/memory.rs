//! The memory that all sockets of a worker share with the kernel, and its free chunks.
#![allow(
    unsafe_code,
    reason = "addresses of the kernel's are places in memory that is mapped here"
)]

use std::ptr::NonNull;

use libc::{XSK_UNALIGNED_BUF_ADDR_MASK, XSK_UNALIGNED_BUF_OFFSET_SHIFT, xdp_desc};
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::net::xdp::{XdpUmemReg, XdpUmemRegFlags};

use super::XdpError;
use super::frame::{HEADROOM, XdpFrame};
use super::rings::FrameMemory;

/// Chunks one behind the other, and stand-ins behind them.
///
/// An address, as the kernel has them, counts bytes from the beginning. Where the kernel copies, chunks begin anywhere
/// (`XDP_UMEM_UNALIGNED_CHUNK_FLAG`): then its lower 48 bits are where the chunk begins, and its upper 16 how far behind that.
pub struct XdpMemory {
    memory: MmapRaw,
    /// Addresses of chunks.
    free: Vec<u64>,
    chunks: usize,
    /// A power of two.
    chunk_len: usize,
    /// From a chunk to the next.
    apart: usize,
    stand_ins: StandIns,
}

/// Bytes between chunks that need not be aligned. Without them all headers would be in few sets of a processor's cache, which does not hold
/// a ring of them then (perf/README.md).
const GAP: usize = 64;

/// Short frames that the kernel copies are sent from few places that are used over and over. It has each page of the memory mapped by
/// itself, and a ring of chunks is more pages than the processor remembers: to walk to a frame's took it a fifth of what
/// the frame costs (perf/README.md).
struct StandIns {
    /// Address of the first, behind all chunks.
    first: u64,
    /// Numbers of those that are free; the last is taken next.
    free: Vec<u16>,
    /// The chunk that each stands in for, which comes back when it does.
    chunks: Box<[u64]>,
}

/// How many there are: where they do not come back at once, frames beyond are sent from where they are.
const STAND_INS: usize = 1024;
/// Bytes of one: longer frames are sent from where they are.
const STAND_IN_LEN: usize = 256;

const _: () = assert!(STAND_INS <= u16::MAX as usize);

/// Memory is registered in whole chunks, if they are aligned, and mapped in whole pages, the longest of which this is.
const PAGE_LEN_MAX: usize = 1 << 16;

impl StandIns {
    fn new(first: u64) -> StandIns {
        StandIns {
            first,
            free: (0..STAND_INS as u16).rev().collect(),
            chunks: vec![0; STAND_INS].into(),
        }
    }

    /// Takes back the one of that address: the chunk that it stood for. `None`: it is none.
    #[inline(always)]
    fn give_back(&mut self, address: u64) -> Option<u64> {
        let number = address.checked_sub(self.first)? as usize / STAND_IN_LEN;
        self.free.push(number as u16);
        Some(self.chunks[number])
    }
}

impl XdpMemory {
    fn laid_out(memory: MmapRaw, chunks: usize, chunk_len: usize, gap: usize) -> XdpMemory {
        let apart = chunk_len + gap;
        let end = (chunks * apart).next_multiple_of(STAND_IN_LEN);
        XdpMemory {
            memory,
            free: (0..chunks).rev().map(|n| (n * apart) as u64).collect(),
            chunks,
            chunk_len,
            apart,
            stand_ins: StandIns::new(end as u64),
        }
    }

    #[inline(always)]
    fn is_aligned(&self) -> bool {
        self.apart == self.chunk_len
    }

    /// As sockets register it.
    pub(super) fn registration(&self) -> XdpUmemReg {
        XdpUmemReg {
            addr: self.memory.as_ptr().addr() as u64,
            len: self.memory.len() as u64,
            chunk_size: self.chunk_len as u32,
            headroom: 0,
            flags: match self.is_aligned() {
                true => XdpUmemRegFlags::empty(),
                false => XdpUmemRegFlags::XDP_UMEM_UNALIGNED_CHUNK_FLAG,
            },
            tx_metadata_len: 0,
        }
    }

    /// A frame of which the kernel said where it is.
    #[inline(always)]
    pub(super) fn frame(&self, address: u64, len: u32) -> XdpFrame {
        let chunk = self.chunk_of(address);
        let at = (place(address) - chunk) as usize;
        XdpFrame::new(self.at(chunk), self.chunk_len, at, len as usize)
    }

    /// The chunk of that address, as the kernel and `address_of` have those of frames.
    #[inline(always)]
    pub(super) fn chunk_of(&self, address: u64) -> u64 {
        match self.is_aligned() {
            true => address & !(self.chunk_len as u64 - 1),
            false => address & XSK_UNALIGNED_BUF_ADDR_MASK,
        }
    }

    /// Where the kernel finds a frame.
    #[inline(always)]
    pub(super) fn address_of(&self, frame: &XdpFrame) -> u64 {
        let place = self.distance(frame.first());
        match self.is_aligned() {
            true => place,
            false => {
                let chunk = self.distance(frame.room());
                chunk | (place - chunk) << XSK_UNALIGNED_BUF_OFFSET_SHIFT
            }
        }
    }

    #[inline(always)]
    fn distance(&self, to: NonNull<u8>) -> u64 {
        (to.addr().get() - self.memory.as_ptr().addr()) as u64
    }

    /// Takes back the chunk of that address, or the chunk whose stand-in has that address.
    #[inline(always)]
    pub(super) fn give_back(&mut self, address: u64) {
        let chunk = self.stand_ins.give_back(address & XSK_UNALIGNED_BUF_ADDR_MASK);
        self.free.push(chunk.unwrap_or_else(|| self.chunk_of(address)));
    }

    /// Has a frame that is to be sent, and that nobody changes any more, sent from elsewhere, if it is short and there is room.
    #[inline(always)]
    pub(super) fn stand_in(&mut self, frame: &mut xdp_desc) {
        if frame.len as usize > STAND_IN_LEN {
            return;
        }
        let Some(number) = self.stand_ins.free.pop() else {
            return;
        };
        let to = self.stand_ins.first + number as u64 * STAND_IN_LEN as u64;
        self.stand_ins.chunks[number as usize] = self.chunk_of(frame.addr);
        let base = self.memory.as_mut_ptr();
        // SAFETY: both are in the memory: the one a frame of ours, the other as long at least, and ours while it is not free.
        unsafe {
            let (from, to) = (base.add(place(frame.addr) as usize), base.add(to as usize));
            to.copy_from_nonoverlapping(from, frame.len as usize);
        }
        frame.addr = to;
    }

    /// Takes the free chunks that come next, `n` of them or all.
    #[inline(always)]
    pub(super) fn take(&mut self, n: usize) -> impl Iterator<Item = u64> {
        self.free.drain(self.free.len().saturating_sub(n)..).rev()
    }

    #[inline(always)]
    fn at(&self, chunk: u64) -> NonNull<u8> {
        debug_assert!(
            chunk < self.stand_ins.first && chunk.is_multiple_of(self.apart as u64),
            "no chunk at {chunk}"
        );
        // SAFETY: addresses come from `free`, or from the kernel for frames that it had from there: all in the memory, which is not at 0.
        unsafe { NonNull::new_unchecked(self.memory.as_mut_ptr().add(chunk as usize)) }
    }
}

/// How many bytes from the beginning an address is.
#[inline(always)]
fn place(address: u64) -> u64 {
    (address & XSK_UNALIGNED_BUF_ADDR_MASK) + (address >> XSK_UNALIGNED_BUF_OFFSET_SHIFT)
}

impl FrameMemory for XdpMemory {
    type Frame = XdpFrame;
    type Chunk = u64;

    fn map(chunks: u32, chunk_len: usize) -> Result<XdpMemory, XdpError> {
        // As long as either layout needs.
        let len = chunks as usize * (chunk_len + GAP) + (STAND_INS + 1) * STAND_IN_LEN;
        let len = len.next_multiple_of(PAGE_LEN_MAX);
        let failed = |source| XdpError::Memory {
            mib: (len / (1 << 20)) as u64,
            source,
        };
        let memory = MmapRaw::from(MmapOptions::new().len(len).map_anon().map_err(failed)?);
        // Of small pages there are more than the processor remembers. Its result is of no interest: without, it is slower, not wrong.
        _ = memory.advise(Advice::HugePage);
        Ok(XdpMemory::laid_out(memory, chunks as usize, chunk_len, 0))
    }

    fn for_copying(self) -> XdpMemory {
        debug_assert_eq!(self.outstanding(), 0);
        XdpMemory::laid_out(self.memory, self.chunks, self.chunk_len, GAP)
    }

    #[inline]
    fn allocate(&mut self) -> Option<XdpFrame> {
        let chunk = self.free.pop()?;
        Some(XdpFrame::new(self.at(chunk), self.chunk_len, HEADROOM, 0))
    }

    #[inline]
    fn free(&mut self, frame: XdpFrame) {
        self.free.push(self.distance(frame.room()));
    }

    fn step(&self) -> Option<usize> {
        self.is_aligned().then_some(self.chunk_len)
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
    use super::super::frame::len_max;
    use super::super::{CHUNK_LEN_MAX, CHUNK_LEN_MIN, Sharing};
    use super::*;
    use crate::packet::Frame;

    impl XdpMemory {
        /// A new one, laid out for such sockets.
        pub(in crate::io::xdp) fn map_for(sharing: Sharing, chunks: u32, chunk_len: usize) -> XdpMemory {
            let memory = XdpMemory::map(chunks, chunk_len).unwrap();
            match sharing {
                Sharing::ZeroCopy => memory,
                Sharing::Copy => memory.for_copying(),
            }
        }
    }

    /// Goal: no chunk is lost, and none is handed out twice. How: all of them, written to and looked at again; then frames that begin
    /// and end anywhere in their chunks, by their addresses and back.
    #[test]
    fn each_chunk_comes_back_as_itself() {
        for sharing in [Sharing::ZeroCopy, Sharing::Copy] {
            each_comes_back(CHUNK_LEN_MIN, sharing);
            each_comes_back(CHUNK_LEN_MAX, sharing);
        }
    }

    fn each_comes_back(chunk_len: usize, sharing: Sharing) {
        let len_max = len_max(chunk_len);
        let mut memory = XdpMemory::map_for(sharing, 8, chunk_len);
        let chunks: Vec<u64> = memory.free_chunks().iter().rev().copied().collect();
        assert!(chunks.windows(2).all(|pair| pair[0] + chunk_len as u64 <= pair[1]));
        let mut frames: Vec<XdpFrame> = std::iter::from_fn(|| memory.allocate()).collect();
        assert_eq!((frames.len(), memory.outstanding()), (8, 8));
        for (frame, n) in frames.iter_mut().zip(0u8..) {
            frame.set_len(60).unwrap();
            frame.bytes_mut().fill(n);
            // As the kernel has it of a frame that it received.
            let behind = HEADROOM as u64;
            let address = match sharing {
                Sharing::ZeroCopy => chunks[n as usize] + behind,
                Sharing::Copy => chunks[n as usize] | behind << XSK_UNALIGNED_BUF_OFFSET_SHIFT,
            };
            assert_eq!(memory.address_of(frame), address);
        }
        let ends: [&dyn Fn(&mut XdpFrame); 4] = [
            &|frame| frame.grow_front(HEADROOM).unwrap(),
            &|frame| frame.shrink_front(60),
            &|frame| frame.set_len(len_max).unwrap(),
            &|frame| {
                frame.set_len(len_max).unwrap();
                frame.shrink_front(len_max);
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
            assert_eq!(memory.free_chunks().last(), Some(&chunks[n as usize]));
        }
        assert_eq!(memory.outstanding(), 0);
        assert!(memory.take(9).eq(chunks.into_iter().rev()));
        assert!(memory.allocate().is_none());
    }

    fn sorted(chunks: &[u64]) -> Vec<u64> {
        let mut chunks = chunks.to_vec();
        chunks.sort_unstable();
        chunks
    }

    fn bytes_at<'m>(memory: &'m XdpMemory, frame: &xdp_desc) -> &'m [u8] {
        // SAFETY: in the memory, which nobody writes to meanwhile.
        unsafe {
            std::slice::from_raw_parts(
                memory.memory.as_ptr().add(place(frame.addr) as usize),
                frame.len as usize,
            )
        }
    }

    /// Goal: a short frame is sent from elsewhere, as it is, and its chunk comes back; a longer one, and one for which there is no room,
    /// is sent from where it is. How: more frames than stand-ins, of lengths on both sides of the limit, each with its number in it.
    #[test]
    fn short_frames_have_stand_ins() {
        const FRAMES: usize = 2 * STAND_INS;
        let mut memory = XdpMemory::map_for(Sharing::Copy, FRAMES as u32, CHUNK_LEN_MIN);
        let all = sorted(&memory.free);
        let lens = [60, STAND_IN_LEN + 1, 1, STAND_IN_LEN];
        for _ in 0..2 {
            let mut sent = Vec::new();
            for number in 0..FRAMES {
                let mut frame = memory.allocate().unwrap();
                frame.set_len(lens[number % lens.len()]).unwrap();
                frame.bytes_mut().fill(number as u8);
                let addr = memory.address_of(&frame);
                let len = frame.len() as u32;
                let mut descriptor = xdp_desc { addr, len, options: 0 };
                memory.stand_in(&mut descriptor);
                assert_eq!(descriptor.len, len);
                sent.push((descriptor, addr));
            }
            let moved = |(descriptor, addr): &&(xdp_desc, u64)| descriptor.addr != *addr;
            assert_eq!(sent.iter().filter(moved).count(), STAND_INS);
            assert!(
                sent.iter()
                    .filter(moved)
                    .all(|(frame, _)| frame.len as usize <= STAND_IN_LEN)
            );
            let mut places: Vec<u64> = sent.iter().map(|(frame, _)| frame.addr).collect();
            places.sort_unstable();
            assert!(
                places.windows(2).all(|pair| pair[0] != pair[1]),
                "two frames in one place"
            );
            for (number, (frame, _)) in sent.iter().enumerate() {
                assert!(bytes_at(&memory, frame).iter().all(|byte| *byte == number as u8));
            }
            sent.iter().for_each(|(frame, _)| memory.give_back(frame.addr));
            assert_eq!(sorted(&memory.free), all);
            assert_eq!(memory.stand_ins.free.len(), STAND_INS);
        }
    }
}
