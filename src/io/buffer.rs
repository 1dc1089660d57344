//! A frame in heap memory with headroom, and the pool that owns such buffers.
//!
//! ```text
//! memory:  | headroom (128)   | frame                      | tail room |
//!          0                  start                        start + len
//! ```
//! Used by the memory driver and by the packet-socket driver. A buffer belongs to exactly one pool, which is why a
//! lost one shows: [`Pool::outstanding`] counts those that are out.

use bytes::BytesMut;

use crate::packet::frame::HEADROOM_MIN;
use crate::packet::{Frame, NoRoom, Offload, Window, memory};

/// Longest frame: offsets in it are 16 bits wide. Super-frames of TCP stay below it (the kernel takes its largest
/// possible headers off 65536 first).
pub const FRAME_LEN_MAX: usize = u16::MAX as usize;

/// Headroom of a buffer fresh from the pool.
pub const HEADROOM: usize = 128;

const _: () = assert!(HEADROOM >= HEADROOM_MIN);

/// A frame in heap memory. Growing or shrinking its front leaves the [`Offload`] as it is: who moves headers
/// moves its offsets too.
#[derive(Debug)]
pub struct FrameBuffer {
    memory: BytesMut,
    window: Window,
    offload: Offload,
}

impl FrameBuffer {
    /// An empty frame that can hold `len_max` bytes behind its headroom.
    pub fn new(len_max: usize) -> FrameBuffer {
        FrameBuffer::over(BytesMut::zeroed(memory_len(len_max)))
    }

    fn over(memory: BytesMut) -> FrameBuffer {
        FrameBuffer {
            memory,
            window: Window::new(HEADROOM, 0),
            offload: Offload::default(),
        }
    }

    /// Empties it and gives it its headroom back.
    pub fn reset(&mut self) {
        self.window = Window::new(HEADROOM, 0);
        self.offload = Offload::default();
    }

    /// The room from the frame's start to the end of the buffer: where a driver receives into.
    pub fn room_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.window.start()..]
    }

    /// Makes it a copy of `bytes`; fails when they do not fit.
    pub fn fill(&mut self, bytes: &[u8], offload: Offload) -> Result<(), NoRoom> {
        self.reset();
        self.set_len(bytes.len())?;
        self.bytes_mut().copy_from_slice(bytes);
        self.offload = offload;
        Ok(())
    }
}

impl Frame for FrameBuffer {
    #[inline]
    fn bytes(&self) -> &[u8] {
        self.window.of(&self.memory)
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.window.of_mut(&mut self.memory)
    }

    #[inline]
    fn grow_front(&mut self, n: usize) -> Result<(), NoRoom> {
        if n > FRAME_LEN_MAX - self.window.len() {
            return Err(NoRoom);
        }
        self.window.grow_front(n)
    }

    #[inline]
    fn shrink_front(&mut self, n: usize) {
        self.window.shrink_front(n);
    }

    #[inline]
    fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        if len > FRAME_LEN_MAX {
            return Err(NoRoom);
        }
        self.window.set_len(len, self.memory.len())
    }

    #[inline]
    fn offload(&self) -> Offload {
        self.offload
    }

    #[inline]
    fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }
}

/// Bytes of memory of a frame of up to `len_max` bytes.
fn memory_len(len_max: usize) -> usize {
    assert!(
        len_max <= FRAME_LEN_MAX,
        "a frame has at most {FRAME_LEN_MAX} bytes, not {len_max}"
    );
    HEADROOM + len_max
}

/// A fixed number of buffers of one size. Last returned, first given: the one still in the cache.
#[derive(Debug)]
pub struct Pool {
    free: Vec<FrameBuffer>,
    buffers: usize,
}

impl Pool {
    /// `buffers` frames of up to `len_max` bytes each. Nothing is allocated afterwards.
    pub fn new(buffers: usize, len_max: usize) -> Pool {
        Pool {
            free: memory::pieces(buffers, memory_len(len_max))
                .map(FrameBuffer::over)
                .collect(),
            buffers,
        }
    }

    /// An empty frame, or `None` when all are out.
    #[inline]
    pub fn take(&mut self) -> Option<FrameBuffer> {
        self.free.pop()
    }

    /// Takes a frame back, whatever it holds.
    #[inline]
    pub fn give(&mut self, mut frame: FrameBuffer) {
        frame.reset();
        debug_assert!(self.free.len() < self.buffers, "more frames came back than went out");
        self.free.push(frame);
    }

    /// Buffers that are out.
    pub fn outstanding(&self) -> usize {
        self.buffers - self.free.len()
    }

    /// Buffers left to take.
    pub fn available(&self) -> usize {
        self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::ChecksumOffload;

    #[test]
    fn moves_its_start_within_the_headroom() {
        let mut frame = FrameBuffer::new(100);
        frame.fill(&[1, 2, 3], Offload::default()).unwrap();
        assert_eq!(frame.grow_front(HEADROOM + 1), Err(NoRoom));
        frame.grow_front(HEADROOM).unwrap();
        assert_eq!(frame.bytes().len(), HEADROOM + 3);
        assert_eq!(frame.grow_front(1), Err(NoRoom));
        frame.shrink_front(HEADROOM + 1);
        assert_eq!(frame.bytes(), [2, 3]);
    }

    #[test]
    fn grows_at_the_tail_to_its_room() {
        let mut frame = FrameBuffer::new(100);
        frame.set_len(100).unwrap();
        assert_eq!(frame.set_len(101), Err(NoRoom));
        assert_eq!(frame.bytes().len(), 100, "a refused length changes nothing");
        frame.shrink_front(90);
        frame.set_len(10).unwrap();
        assert_eq!(frame.set_len(11), Err(NoRoom));
    }

    #[test]
    fn never_gets_longer_than_16_bit_offsets_reach() {
        let mut frame = FrameBuffer::new(FRAME_LEN_MAX);
        frame.set_len(FRAME_LEN_MAX).unwrap();
        assert_eq!(frame.grow_front(1), Err(NoRoom));
        frame.set_len(FRAME_LEN_MAX - 20).unwrap();
        frame.grow_front(20).unwrap();
    }

    #[test]
    #[should_panic(expected = "shrink_front")]
    fn cannot_start_after_its_end() {
        let mut frame = FrameBuffer::new(100);
        frame.set_len(10).unwrap();
        frame.shrink_front(11);
    }

    #[test]
    fn a_pool_counts_what_is_out_and_gives_clean_frames() {
        let mut pool = Pool::new(2, 64);
        let mut a = pool.take().unwrap();
        let b = pool.take().unwrap();
        assert!(pool.take().is_none());
        assert_eq!(pool.outstanding(), 2);
        let unfinished = Offload {
            checksum: ChecksumOffload::Unfinished { start: 34, offset: 16 },
            segmentation: None,
        };
        a.fill(&[9; 64], unfinished).unwrap();
        a.grow_front(4).unwrap();
        pool.give(a);
        drop(b);
        assert_eq!(pool.outstanding(), 1, "a dropped frame stays missing");
        let mut a = pool.take().unwrap();
        assert!(a.bytes().is_empty());
        assert_eq!(a.offload(), Offload::default());
        assert_eq!(a.grow_front(HEADROOM), Ok(()));
    }
}
