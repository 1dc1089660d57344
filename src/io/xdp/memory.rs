//! The memory that all sockets of a worker share with the kernel, and its free chunks.
#![allow(
    unsafe_code,
    reason = "addresses of the kernel's are places in memory that the crate maps"
)]

use std::ptr::NonNull;

use libc::xdp_desc;
use xdp::Umem;
use xdp::umem::{FrameSize, UmemCfgBuilder};

use super::frame::{HEADROOM, KERNEL_LEN, XdpFrame};
use super::rings::FrameMemory;
use super::{CHUNK_LEN_MIN, XdpError};

/// Chunks of the crate `xdp`, all taken from it: in its own list of free ones none can be looked at, which `Order` must.
pub struct XdpMemory {
    umem: Umem,
    /// Where chunk 0 is.
    base: NonNull<u8>,
    /// Addresses, which count from `base`.
    free: Vec<u64>,
    chunks: usize,
    /// A power of two.
    chunk_len: usize,
    stand_ins: StandIns,
}

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

const _: () =
    assert!((STAND_INS * STAND_IN_LEN).is_multiple_of(super::CHUNK_LEN_MAX) && STAND_INS <= u16::MAX as usize);

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
        let chunk = self.chunk_of(address);
        let at = (address - chunk) as usize;
        debug_assert!(at >= KERNEL_LEN, "a frame at {at} of its chunk");
        XdpFrame::new(self.at(chunk), self.chunk_len, at - KERNEL_LEN, len as usize)
    }

    #[inline(always)]
    fn chunk_of(&self, address: u64) -> u64 {
        address & !(self.chunk_len as u64 - 1)
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

    /// Takes back the chunk of that address, or of one in it, or the chunk whose stand-in has that address.
    #[inline(always)]
    pub(super) fn give_back(&mut self, address: u64) {
        let chunk = self.stand_ins.give_back(address);
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
        // SAFETY: both are in the memory behind `base`: the one a frame of ours, the other as long at least, and ours while it is not free.
        unsafe {
            let (from, to) = (self.base.add(frame.addr as usize), self.base.add(to as usize));
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
        debug_assert!(chunk < self.stand_ins.first, "no chunk at {chunk}");
        // SAFETY: addresses come from `free`, or from the kernel for frames that it had from there: all in the memory behind `base`.
        unsafe { self.base.add(chunk as usize) }
    }

    /// Asks for huge pages under memory that is still untouched: of small ones there are more than the processor remembers.
    fn advise_huge_pages(&self) {
        let len = self.stand_ins.first as usize + STAND_INS * STAND_IN_LEN;
        // SAFETY: MADV_HUGEPAGE changes no content. Its result is of no interest: without huge pages it is slower, not wrong.
        unsafe { libc::madvise(self.base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
    }
}

impl FrameMemory for XdpMemory {
    type Frame = XdpFrame;
    type Chunk = u64;

    fn map(chunks: u32, chunk_len: usize) -> Result<XdpMemory, XdpError> {
        let all = chunks as usize + STAND_INS * STAND_IN_LEN / chunk_len;
        let configuration = UmemCfgBuilder {
            frame_size: match chunk_len {
                CHUNK_LEN_MIN => FrameSize::TwoK,
                _ => FrameSize::FourK,
            },
            head_room: HEADROOM as u32,
            frame_count: all as u32,
            ..UmemCfgBuilder::default()
        };
        let configuration = configuration.build().expect("constants within their limits");
        let mut umem = Umem::map(configuration).map_err(|source| XdpError::Memory {
            mib: (all * chunk_len / (1 << 20)) as u64,
            source,
        })?;
        // SAFETY: packets are where chunks are, no more; nobody reads or writes by them.
        let packets = std::iter::from_fn(|| unsafe { umem.alloc() });
        let start = |packet: xdp::Packet| packet.as_ptr().expose_provenance() & !(chunk_len - 1);
        let starts: Vec<usize> = packets.map(start).collect();
        let base = *starts.iter().min().expect("there are chunks");
        assert_eq!(
            starts.iter().max(),
            Some(&(base + (all - 1) * chunk_len)),
            "one behind the other"
        );
        let addresses = (0..chunks as u64).map(|n| n * chunk_len as u64);
        let memory = XdpMemory {
            umem,
            base: NonNull::new(std::ptr::with_exposed_provenance_mut(base)).expect("memory is not at 0"),
            free: addresses.rev().collect(),
            chunks: chunks as usize,
            chunk_len,
            stand_ins: StandIns::new(chunks as u64 * chunk_len as u64),
        };
        memory.advise_huge_pages();
        Ok(memory)
    }

    #[inline]
    fn allocate(&mut self) -> Option<XdpFrame> {
        let chunk = self.free.pop()?;
        Some(XdpFrame::new(self.at(chunk), self.chunk_len, HEADROOM, 0))
    }

    #[inline]
    fn free(&mut self, frame: XdpFrame) {
        self.give_back(self.distance(frame.room()));
    }

    fn chunk_len(&self) -> usize {
        self.chunk_len
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
    use super::super::CHUNK_LEN_MAX;
    use super::super::frame::len_max;
    use super::*;
    use crate::packet::Frame;

    /// Goal: no chunk is lost, and none is handed out twice. How: all of them, written to and looked at again; then frames that begin
    /// and end anywhere in their chunks, by their addresses and back.
    #[test]
    fn each_chunk_comes_back_as_itself() {
        [CHUNK_LEN_MIN, CHUNK_LEN_MAX].into_iter().for_each(each_comes_back);
    }

    fn each_comes_back(chunk_len: usize) {
        let len_max = len_max(chunk_len);
        let mut memory = XdpMemory::map(8, chunk_len).unwrap();
        let mut frames: Vec<XdpFrame> = std::iter::from_fn(|| memory.allocate()).collect();
        assert_eq!((frames.len(), memory.outstanding()), (8, 8));
        for (frame, n) in frames.iter_mut().zip(0u8..) {
            frame.set_len(60).unwrap();
            frame.bytes_mut().fill(n);
            assert_eq!(
                memory.address_of(frame),
                n as u64 * chunk_len as u64 + (KERNEL_LEN + HEADROOM) as u64
            );
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
            assert_eq!(memory.free_chunks().last(), Some(&(n as u64 * chunk_len as u64)));
        }
        assert_eq!(memory.outstanding(), 0);
        let all: Vec<u64> = memory.take(9).collect();
        assert_eq!(all, (0..8).rev().map(|n| n * chunk_len as u64).collect::<Vec<_>>());
        assert!(memory.allocate().is_none());
    }

    fn bytes_at<'m>(memory: &'m XdpMemory, frame: &xdp_desc) -> &'m [u8] {
        // SAFETY: in the memory, which nobody writes to meanwhile.
        unsafe { std::slice::from_raw_parts(memory.base.add(frame.addr as usize).as_ptr(), frame.len as usize) }
    }

    /// Goal: a short frame is sent from elsewhere, as it is, and its chunk comes back; a longer one, and one for which there is no room,
    /// is sent from where it is. How: more frames than stand-ins, of lengths on both sides of the limit, each with its number in it.
    #[test]
    fn short_frames_have_stand_ins() {
        const FRAMES: usize = 2 * STAND_INS;
        let mut memory = XdpMemory::map(FRAMES as u32, CHUNK_LEN_MIN).unwrap();
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
            let mut free = memory.free.clone();
            free.sort_unstable();
            assert!(
                free.into_iter()
                    .eq((0..FRAMES as u64).map(|n| n * CHUNK_LEN_MIN as u64))
            );
            assert_eq!(memory.stand_ins.free.len(), STAND_INS);
        }
    }
}
