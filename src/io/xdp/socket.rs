//! One AF_XDP socket: one receive queue of one interface, with its four rings.
//!
//! Frames are counted where they are, so that every ring always has room for what is put on it: rings do not look.

use std::io;
use std::os::fd::RawFd;

use super::order::Order;
use super::ring::RING;
use super::rings::Rings;
use super::{CHUNK, QueueBinding, XdpError, wakeup};
use crate::dataplane::driver::{BATCH_MAX, InterfaceStatistics, Received};
use crate::packet::Frame;
use crate::prefetch;

/// Frames that one kick sends at least, in copy mode (TX_BATCH_SIZE of the kernel).
const KICK_FRAMES: u32 = 32;

/// How frames are shared with the kernel on one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The card reads and writes them.
    ZeroCopy,
    /// The kernel copies them.
    Copy,
}

/// A bound socket.
pub(super) struct Socket<R: Rings> {
    pub binding: QueueBinding,
    pub sharing: Sharing,
    rings: R,
    order: Order,
    /// Frames with the kernel to receive into, or received and not yet taken.
    filled: u32,
    /// Frames given to the kernel to send and not yet back.
    sending: u32,
    /// The kernel may not know of all frames on the transmit ring.
    to_kick: bool,
    /// Its interface is gone.
    dead: bool,
    transmit_failed: u64,
    /// What it took along when it died is in `transmit_failed`.
    lost_counted: bool,
    last: InterfaceStatistics,
}

impl<R: Rings> Socket<R> {
    /// Opens and binds it over `memory`.
    pub fn open(memory: &R::Memory, binding: &QueueBinding, sharing: Sharing) -> Result<Self, XdpError> {
        let rings = R::open(memory, binding, sharing)?;
        let zero_copy = wakeup::is_zero_copy(rings.fd()).map_err(|e| XdpError::system(binding, "ask", e))?;
        assert_eq!(
            zero_copy,
            sharing == Sharing::ZeroCopy,
            "the kernel does as it is forced"
        );
        wakeup::raise_transmit_budget(rings.fd(), RING);
        Ok(Socket {
            binding: binding.clone(),
            sharing,
            rings,
            order: Order::new(CHUNK),
            filled: 0,
            sending: 0,
            to_kick: false,
            dead: false,
            transmit_failed: 0,
            lost_counted: false,
            last: InterfaceStatistics::default(),
        })
    }

    pub fn fd(&self) -> RawFd {
        self.rings.fd()
    }

    /// Takes received frames, `room` at most.
    #[inline]
    pub fn receive(&mut self, memory: &R::Memory, batch: &mut Vec<Received<R::Frame>>, room: usize) -> usize {
        let first = batch.len();
        let n = self.rings.receive(memory, batch, self.binding.interface, room);
        self.filled -= n as u32;
        // The kernel wrote them, but many others since: to wait for one header after the other took a quarter of a batch's time
        // (perf/README.md).
        let frames = batch[first..].iter().map(|received| received.frame.bytes());
        frames.for_each(|bytes| prefetch::to_read(bytes, 0));
        n
    }

    /// Gives the kernel frames to receive into, until it has a ring full.
    #[inline]
    pub fn refill(&mut self, memory: &mut R::Memory) {
        if self.filled == RING || self.dead {
            return;
        }
        while self.filled < RING {
            let n = self.order.arrange(memory, (RING - self.filled) as usize);
            let given = self.rings.fill(memory, n);
            self.filled += given as u32;
            debug_assert!(self.filled <= RING, "{} frames on a ring of {RING}", self.filled);
            if given == 0 {
                break;
            }
        }
        if self.sharing == Sharing::ZeroCopy && self.rings.fill_wants_wakeup() {
            wakeup::kick_fill(self.fd());
        }
    }

    /// Queues a frame to be sent at the next flush, or gives it back because there is no room.
    #[inline]
    pub fn queue(&mut self, memory: &mut R::Memory, frame: R::Frame) -> Result<(), R::Frame> {
        if self.dead || self.is_full() && !self.make_room(memory) {
            self.transmit_failed += 1;
            return Err(frame);
        }
        if self.rings.queued() >= BATCH_MAX {
            self.submit();
        }
        self.rings.queue(memory, frame);
        debug_assert!(
            self.sending + self.rings.queued() as u32 <= RING,
            "{} frames on a ring of {RING}",
            self.sending
        );
        Ok(())
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.sending + self.rings.queued() as u32 >= RING
    }

    /// Whether there was some to make.
    #[cold]
    fn make_room(&mut self, memory: &mut R::Memory) -> bool {
        self.reap(memory);
        if self.is_full() {
            self.flush();
            self.reap(memory);
        }
        !self.is_full()
    }

    /// Shows queued frames to the kernel. There is room: [`Socket::queue`] has counted.
    fn submit(&mut self) {
        let queued = self.rings.queued();
        if queued > 0 {
            self.rings.submit();
            debug_assert_eq!(self.rings.queued(), 0);
            self.sending += queued as u32;
            self.to_kick = true;
        }
    }

    /// Sends what is queued: one kick, or as many as the kernel needs to take all.
    #[inline]
    pub fn flush(&mut self) {
        self.submit();
        if !self.to_kick || self.dead {
            return;
        }
        self.to_kick = false;
        if !self.rings.transmit_wants_wakeup() {
            return;
        }
        for _ in 0..=RING / KICK_FRAMES {
            let Err(error) = wakeup::kick_transmit(self.fd()) else {
                return;
            };
            match error.raw_os_error() {
                // It has sent its share, or dropped a frame (EBUSY), and there is more.
                Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => {}
                // No memory, or the interface is down at the moment: once more at the next flush.
                Some(libc::ENOBUFS | libc::ENOMEM | libc::ENETDOWN) => break,
                _ => return self.die(error),
            }
        }
        self.to_kick = true;
    }

    /// Frames wait that the kernel has not taken.
    pub fn is_stuck(&self) -> bool {
        self.to_kick && !self.dead
    }

    /// Takes back frames that were sent.
    #[inline]
    pub fn reap(&mut self, memory: &mut R::Memory) {
        if self.sending > 0 {
            self.sending -= self.rings.complete(memory, self.sending as usize) as u32;
        }
    }

    /// Frames in its rings and queue.
    pub fn frames(&self) -> u32 {
        self.filled + self.sending + self.rings.queued() as u32
    }

    /// Looks whether the interface is gone. A system call.
    pub fn check(&mut self) {
        if self.dead {
            return;
        }
        match wakeup::pending_error(self.fd()) {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => self.die(error),
        }
    }

    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// Once: from now on nothing is received or sent here. Frames in its rings are lost to the memory.
    fn die(&mut self, error: io::Error) {
        self.dead = true;
        let QueueBinding { name, queue, .. } = &self.binding;
        log::error!("interface {name}: queue {queue} is gone ({error}); frames to it are dropped from now on");
    }

    /// Once after its end, when what was sent is taken back: the frames that were queued and did not leave.
    pub fn take_lost(&mut self) -> u64 {
        if !self.dead || self.lost_counted {
            return 0;
        }
        self.lost_counted = true;
        let lost = u64::from(self.sending) + self.rings.queued() as u64;
        self.transmit_failed += lost;
        lost
    }

    /// What the kernel counted, and we.
    pub fn statistics(&mut self) -> InterfaceStatistics {
        // A socket without interface keeps its last numbers.
        if let Ok(s) = wakeup::statistics(self.fd()) {
            self.last = InterfaceStatistics {
                rx_ring_full: s.rx_ring_full,
                fill_ring_empty: s.rx_fill_ring_empty_descs,
                rx_dropped: s.rx_dropped + s.rx_invalid_descs,
                tx_invalid: s.tx_invalid_descs,
                tx_failed: 0,
            };
        }
        InterfaceStatistics {
            tx_failed: self.transmit_failed,
            ..self.last
        }
    }
}
