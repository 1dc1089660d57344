//! A frame in the memory that a worker shares with the kernel.
//!
//! ```text
//! chunk (4096):  | kernel (256) | headroom (128) | frame              | tail room |
//!                               0                head                 tail        3840
//! ```

use xdp::Packet;

use crate::packet::frame::HEADROOM_MIN;
use crate::packet::{Frame, NoRoom, Offload};

/// Headroom of received and allocated frames.
pub const HEADROOM: u32 = 128;

const _: () = assert!(HEADROOM as usize >= HEADROOM_MIN);

/// Longest frame that is received or can be sent.
pub const FRAME_LEN_MAX: usize = 4096 - 256 - HEADROOM as usize;

/// A chunk of a worker's frame memory. It has no owner but the driver that handed it out, and must come back to it.
pub struct XdpFrame {
    pub(super) packet: Packet,
    offload: Offload,
}

impl XdpFrame {
    pub(super) fn new(packet: Packet) -> XdpFrame {
        XdpFrame {
            packet,
            offload: Offload::default(),
        }
    }
}

impl Frame for XdpFrame {
    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.packet
    }

    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.packet
    }

    #[inline]
    fn grow_front(&mut self, n: usize) -> Result<(), NoRoom> {
        let n = i32::try_from(n).map_err(|_| NoRoom)?;
        self.packet.adjust_head(-n).map_err(|_| NoRoom)
    }

    #[inline]
    fn shrink_front(&mut self, n: usize) {
        assert!(
            n <= self.packet.len(),
            "a frame of {} bytes cannot start {n} later",
            self.packet.len()
        );
        self.packet.adjust_head(n as i32).expect("it is long enough");
    }

    #[inline]
    fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        let difference = i32::try_from(len as i64 - self.packet.len() as i64).map_err(|_| NoRoom)?;
        self.packet.adjust_tail(difference).map_err(|_| NoRoom)
    }

    #[inline]
    fn offload(&self) -> Offload {
        self.offload
    }

    /// Counts only when the frame is handed back to the local stack: AF_XDP sends frames as they are.
    #[inline]
    fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame in memory of its own, as the driver lays them out.
    fn frame() -> (xdp::Umem, XdpFrame) {
        let configuration = xdp::umem::UmemCfgBuilder {
            head_room: HEADROOM,
            frame_count: 2,
            ..Default::default()
        };
        let mut memory = xdp::Umem::map(configuration.build().unwrap()).unwrap();
        // SAFETY: the packet is dropped together with its memory, at the end of the test.
        #[allow(unsafe_code, reason = "allocation in a test")]
        let packet = unsafe { memory.alloc() }.unwrap();
        (memory, XdpFrame::new(packet))
    }

    #[test]
    fn grows_into_headroom_and_tail_room_and_no_further() {
        let (_memory, mut frame) = frame();
        assert_eq!(frame.bytes().len(), 0);
        frame.set_len(FRAME_LEN_MAX).unwrap();
        assert_eq!(frame.set_len(FRAME_LEN_MAX + 1), Err(NoRoom));
        frame.set_len(60).unwrap();
        frame.bytes_mut().fill(7);
        frame.grow_front(HEADROOM as usize).unwrap();
        assert_eq!(frame.grow_front(1), Err(NoRoom));
        assert_eq!(frame.bytes().len(), 188);
        frame.shrink_front(128);
        assert_eq!(frame.bytes(), [7; 60]);
        assert_eq!(frame.grow_front(usize::MAX), Err(NoRoom));
        assert_eq!(frame.set_len(usize::MAX), Err(NoRoom));
    }
}
