//! A frame in a vector: for fuzzing, replay and tests, where no driver is.

use super::frame::{Frame, HEADROOM_MIN, NoRoom, Offload};
use super::window::Window;

/// A frame in a vector, with the headroom that drivers guarantee.
#[derive(Clone, Debug)]
pub struct VecFrame {
    buffer: Vec<u8>,
    window: Window,
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
            window: Window::new(HEADROOM_MIN, bytes.len()),
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
        self.window.of(&self.buffer)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.window.of_mut(&mut self.buffer)
    }

    fn grow_front(&mut self, n: usize) -> Result<(), NoRoom> {
        self.window.grow_front(n)
    }

    fn shrink_front(&mut self, n: usize) {
        self.window.shrink_front(n);
    }

    fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        self.window.set_len(len, self.buffer.len())
    }

    fn offload(&self) -> Offload {
        self.offload
    }

    fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }
}
