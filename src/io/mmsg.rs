//! Batches of frames through a packet socket: recvmmsg(2) and sendmmsg(2) with everything laid out before.
//!
//! ```text
//! slot:  mmsghdr -> iovec[0] -> virtio header (10 bytes)
//!                   iovec[1] -> the frame's buffer
//!                -> sender's address (kind of frame), control message (VLAN tag); receive only
//! ```
//! Only `iovec[1]` changes from frame to frame. A receiver's filled slots are always the last ones, so that it can go
//! on with few when the pool is used up.
#![allow(unsafe_code, reason = "recvmmsg and sendmmsg over arrays that point into each other")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::buffer::{FrameBuffer, Pool};
use super::virtio::{self, HEADER_LEN, Header};
use crate::dataplane::driver::BATCH_MAX;
use crate::packet::Frame;

/// Room for one control message with a `tpacket_auxdata`.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_LEN]);
// SAFETY: CMSG_SPACE is arithmetic.
const CONTROL_LEN: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::tpacket_auxdata>() as u32) } as usize;

/// What became of one received frame.
pub enum Arrival {
    /// A frame for this host.
    Frame(FrameBuffer),
    /// Not to be looked at: longer than a buffer, tagged for a VLAN, for another host, or with a header that makes
    /// no sense. Its buffer is in the pool again.
    Refused,
}

/// Receives into buffers that were taken from a pool before.
pub struct Receiver {
    messages: Box<[libc::mmsghdr; BATCH_MAX]>,
    vectors: Box<[[libc::iovec; 2]; BATCH_MAX]>,
    headers: Box<[Header; BATCH_MAX]>,
    senders: Box<[libc::sockaddr_ll; BATCH_MAX]>,
    controls: Box<[Control; BATCH_MAX]>,
    frames: Box<[Option<FrameBuffer>; BATCH_MAX]>,
    /// Slots from here on have a frame to receive into.
    first: usize,
}

// SAFETY: the pointers are to this value's own boxes and to its frames' memory, all of which move with it.
unsafe impl Send for Receiver {}

impl Receiver {
    /// One without buffers: the first receive takes them.
    pub fn new() -> Receiver {
        // SAFETY: mmsghdr, iovec and sockaddr_ll are plain data with nullable pointers, for which zero is valid.
        let (messages, vectors, senders) = unsafe { std::mem::zeroed() };
        Receiver {
            messages: Box::new(messages),
            vectors: Box::new(vectors),
            headers: Box::new([[0; HEADER_LEN]; BATCH_MAX]),
            senders: Box::new(senders),
            controls: Box::new([Control([0; CONTROL_LEN]); BATCH_MAX]),
            frames: Box::new([const { None }; BATCH_MAX]),
            first: BATCH_MAX,
        }
    }

    /// Receives up to `max` frames that wait at `socket` and gives each to `arrived`. Returns how many came
    /// (refused ones too). Never blocks: `WouldBlock` when none wait, `OutOfMemory` when the pool is used up.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        max: usize,
        pool: &mut Pool,
        mut arrived: impl FnMut(Arrival),
    ) -> io::Result<usize> {
        self.fill(pool);
        let slots = (BATCH_MAX - self.first).min(max);
        if slots == 0 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let messages = self.messages[self.first..].as_mut_ptr();
        // SAFETY: `slots` messages from `first` on were laid out by `lay_out`: they point into our boxes and into the
        // room of frames that we hold, with the lengths of these.
        let count = unsafe {
            let none = std::ptr::null_mut();
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages,
                slots as u32,
                libc::MSG_DONTWAIT as _,
                none,
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for slot in self.first..self.first + count as usize {
            let frame = self.frames[slot].take().expect("slots from `first` on have frames");
            arrived(self.arrival(slot, frame, pool));
        }
        self.first += count as usize;
        Ok(count as usize)
    }

    /// Gives the buffers it holds back to their pool.
    pub fn release(&mut self, pool: &mut Pool) {
        self.frames
            .iter_mut()
            .filter_map(Option::take)
            .for_each(|frame| pool.give(frame));
        self.first = BATCH_MAX;
    }

    /// Buffers it holds.
    pub fn held(&self) -> usize {
        BATCH_MAX - self.first
    }

    fn fill(&mut self, pool: &mut Pool) {
        while self.first > 0 {
            let Some(frame) = pool.take() else { return };
            self.first -= 1;
            self.lay_out(self.first, frame);
        }
    }

    /// Makes the slot ready to receive into `frame`.
    fn lay_out(&mut self, slot: usize, mut frame: FrameBuffer) {
        let room = frame.room_mut();
        self.vectors[slot] = [
            libc::iovec {
                iov_base: self.headers[slot].as_mut_ptr().cast(),
                iov_len: HEADER_LEN,
            },
            libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: room.len(),
            },
        ];
        let message = &mut self.messages[slot].msg_hdr;
        message.msg_name = (&raw mut self.senders[slot]).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
        message.msg_iov = self.vectors[slot].as_mut_ptr();
        message.msg_iovlen = 2;
        message.msg_control = self.controls[slot].0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_LEN as _;
        self.frames[slot] = Some(frame);
    }

    /// What the kernel says of the frame in `slot`.
    fn arrival(&self, slot: usize, mut frame: FrameBuffer, pool: &mut Pool) -> Arrival {
        let message = &self.messages[slot];
        let len = (message.msg_len as usize).checked_sub(HEADER_LEN);
        let whole = message.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        let ours = self.senders[slot].sll_pkttype == libc::PACKET_HOST;
        if let Some(len) = len.filter(|_| whole && ours && !self.vlan_tagged(slot))
            && frame.set_len(len).is_ok()
            && let Ok(offload) = virtio::decode(&self.headers[slot], frame.bytes())
        {
            frame.set_offload(offload);
            return Arrival::Frame(frame);
        }
        pool.give(frame);
        Arrival::Refused
    }

    /// The kernel takes a VLAN tag out of the frame and tells of it beside.
    fn vlan_tagged(&self, slot: usize) -> bool {
        let message = &self.messages[slot].msg_hdr;
        // SAFETY: recvmsg(2) left well-formed control messages in msg_control, of msg_controllen bytes.
        let control = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() };
        let Some(control) = control.filter(|c| (c.cmsg_level, c.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA))
        else {
            return false;
        };
        // SAFETY: a control message of this type holds one tpacket_auxdata, which may be unaligned.
        let auxdata = unsafe {
            libc::CMSG_DATA(control)
                .cast::<libc::tpacket_auxdata>()
                .read_unaligned()
        };
        auxdata.tp_status & libc::TP_STATUS_VLAN_VALID != 0
    }
}

impl Default for Receiver {
    fn default() -> Self {
        Receiver::new()
    }
}

/// Sends frames that others own.
pub struct Sender {
    messages: Box<[libc::mmsghdr; BATCH_MAX]>,
    vectors: Box<[[libc::iovec; 2]; BATCH_MAX]>,
    headers: Box<[Header; BATCH_MAX]>,
}

// SAFETY: the pointers are to this value's own boxes, which move with it; those to frames are not used after `send`.
unsafe impl Send for Sender {}

impl Sender {
    /// One that is ready.
    pub fn new() -> Sender {
        // SAFETY: mmsghdr and iovec are plain data with nullable pointers, for which zero is valid.
        let (messages, vectors) = unsafe { std::mem::zeroed() };
        Sender {
            messages: Box::new(messages),
            vectors: Box::new(vectors),
            headers: Box::new([[0; HEADER_LEN]; BATCH_MAX]),
        }
    }

    /// Sends the first frames and returns how many went, at least one; an error is about the first. Never blocks.
    /// At most [`BATCH_MAX`] are looked at.
    pub fn send(&mut self, socket: BorrowedFd<'_>, frames: &[FrameBuffer]) -> io::Result<usize> {
        let count = frames.len().min(BATCH_MAX);
        for (slot, frame) in frames[..count].iter().enumerate() {
            self.headers[slot] = virtio::encode(frame.offload(), 0);
            self.vectors[slot] = [
                libc::iovec {
                    iov_base: self.headers[slot].as_mut_ptr().cast(),
                    iov_len: HEADER_LEN,
                },
                libc::iovec {
                    iov_base: frame.bytes().as_ptr().cast_mut().cast(),
                    iov_len: frame.bytes().len(),
                },
            ];
            self.messages[slot].msg_hdr.msg_iov = self.vectors[slot].as_mut_ptr();
            self.messages[slot].msg_hdr.msg_iovlen = 2;
        }
        let messages = self.messages.as_mut_ptr();
        // SAFETY: the first `count` messages point into our boxes and into `frames`, which sendmmsg(2) only reads.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages, count as u32, libc::MSG_DONTWAIT as _) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(sent as usize)
        }
    }
}

impl Default for Sender {
    fn default() -> Self {
        Sender::new()
    }
}
