//! A frame in the memory that a worker shares with the kernel.
//!
//! ```text
//! chunk:  | headroom (256) | frame              | tail room |
//!         0                start                start + len
//! ```
#![allow(unsafe_code, reason = "bytes of a chunk, which belongs to whoever has its frame")]

use std::ptr::NonNull;

use crate::packet::frame::HEADROOM_MIN;
use crate::packet::{ChecksumOffload, Frame, NoRoom, Offload, Window};

/// Headroom of received and allocated frames: what the kernel leaves in front of a frame (`XDP_PACKET_HEADROOM`), which is ours once the
/// frame is. No more is asked of it: where chunks are not aligned, Linux 6.13 to 6.14.5 says the wrong place then (its commit bf20af079099).
pub const HEADROOM: usize = 256;

const _: () = assert!(HEADROOM >= HEADROOM_MIN);

/// Longest frame that is received or can be sent, in a chunk of that length.
pub(super) const fn len_max(chunk_len: usize) -> usize {
    chunk_len - HEADROOM
}

/// A chunk of a worker's frame memory. It has no owner but the driver that handed it out, and must come back to it: so there is
/// never a second frame of its chunk, and the memory is there as long as it is.
pub struct XdpFrame {
    /// The chunk.
    room: NonNull<u8>,
    room_len: u16,
    window: Window,
    checksum: ChecksumOffload,
}

impl XdpFrame {
    /// `len` bytes from `start` on, in a chunk of `chunk_len` bytes that nobody else has.
    #[inline(always)]
    pub(super) fn new(chunk: NonNull<u8>, chunk_len: usize, start: usize, len: usize) -> XdpFrame {
        XdpFrame {
            room: chunk,
            room_len: chunk_len as u16,
            window: Window::new(start, len),
            checksum: ChecksumOffload::default(),
        }
    }

    /// The first byte of its chunk.
    #[inline(always)]
    pub(super) fn room(&self) -> NonNull<u8> {
        self.room
    }

    /// Its first byte.
    #[inline(always)]
    pub(super) fn first(&self) -> NonNull<u8> {
        // SAFETY: a window begins within its buffer.
        unsafe { self.room.add(self.window.start()) }
    }

    /// Its length.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.window.len()
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        // SAFETY: see XdpFrame: the memory is there, and nobody else writes to this chunk.
        self.window
            .of(unsafe { std::slice::from_raw_parts(self.room.as_ptr(), self.room_len as usize) })
    }

    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the same, and nobody else reads it.
        self.window
            .of_mut(unsafe { std::slice::from_raw_parts_mut(self.room.as_ptr(), self.room_len as usize) })
    }

    #[inline(always)]
    fn grow_front(&mut self, n: usize) -> Result<(), NoRoom> {
        self.window.grow_front(n)
    }

    #[inline(always)]
    fn shrink_front(&mut self, n: usize) {
        self.window.shrink_front(n);
    }

    #[inline(always)]
    fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        self.window.set_len(len, self.room_len as usize)
    }

    #[inline(always)]
    fn offload(&self) -> Offload {
        Offload {
            checksum: self.checksum,
            segmentation: None,
        }
    }

    /// Counts only when the frame is handed back to the local stack: AF_XDP sends frames as they are. Super-frames are longer than
    /// a chunk.
    #[inline(always)]
    fn set_offload(&mut self, offload: Offload) {
        debug_assert_eq!(offload.segmentation, None, "no super-frame is in a chunk");
        self.checksum = offload.checksum;
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::XdpMemory;
    use super::super::rings::FrameMemory;
    use super::super::{CHUNK_LEN_MAX, CHUNK_LEN_MIN};
    use super::*;

    #[test]
    fn grows_into_headroom_and_tail_room_and_no_further() {
        [CHUNK_LEN_MIN, CHUNK_LEN_MAX].into_iter().for_each(grows_no_further);
    }

    fn grows_no_further(chunk_len: usize) {
        let mut memory = XdpMemory::map(2, chunk_len).unwrap();
        let mut frame = memory.allocate().unwrap();
        assert_eq!(frame.bytes().len(), 0);
        frame.set_len(len_max(chunk_len)).unwrap();
        assert_eq!(frame.set_len(len_max(chunk_len) + 1), Err(NoRoom));
        frame.set_len(60).unwrap();
        frame.bytes_mut().fill(7);
        frame.grow_front(HEADROOM).unwrap();
        assert_eq!(frame.grow_front(1), Err(NoRoom));
        assert_eq!(frame.bytes().len(), HEADROOM + 60);
        frame.shrink_front(HEADROOM);
        assert_eq!(frame.bytes(), [7; 60]);
        assert_eq!(frame.grow_front(usize::MAX), Err(NoRoom));
        assert_eq!(frame.set_len(usize::MAX), Err(NoRoom));
    }
}
