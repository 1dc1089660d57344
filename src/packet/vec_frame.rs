//! A frame in a vector: for fuzzing, replay and tests, where no driver is.

use super::frame::{Frame, HEADROOM_MIN, NoRoom, Offload};

/// A frame in a vector, with the headroom that drivers guarantee.
#[derive(Clone, Debug)]
pub struct VecFrame {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
    offload: Offload,
}

impl VecFrame {
    /// A frame with the given bytes, room for `capacity` bytes, and nothing known about checksums.
    pub fn new(bytes: &[u8], capacity: usize) -> VecFrame {
        // New room holds anything, as drivers' does.
        let mut buffer = vec![0xee; HEADROOM_MIN + capacity.max(bytes.len())];
        buffer[HEADROOM_MIN..][..bytes.len()].copy_from_slice(bytes);
        VecFrame {
            buffer,
            start: HEADROOM_MIN,
            len: bytes.len(),
            offload: Offload::default(),
        }
    }
}

impl From<&[u8]> for VecFrame {
    fn from(bytes: &[u8]) -> VecFrame {
        VecFrame::new(bytes, 2048)
    }
}

impl Frame for VecFrame {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..][..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..][..self.len]
    }

    fn grow_front(&mut self, n: usize) -> Result<(), NoRoom> {
        self.start = self.start.checked_sub(n).ok_or(NoRoom)?;
        self.len += n;
        Ok(())
    }

    fn shrink_front(&mut self, n: usize) {
        assert!(n <= self.len, "a frame of {} bytes cannot lose {n}", self.len);
        self.start += n;
        self.len -= n;
    }

    fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        if self.start + len > self.buffer.len() {
            return Err(NoRoom);
        }
        self.len = len;
        Ok(())
    }

    fn offload(&self) -> Offload {
        self.offload
    }

    fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }
}
