//! One AF_XDP socket: one receive queue of one interface, with its four rings.
//!
//! Frames are counted where they are, so that every ring always has room for what is put on it: the crate's rings
//! take all of a request or nothing.
#![allow(
    unsafe_code,
    reason = "the crate's rings leave the lifetime of the frame memory to us"
)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use xdp::slab::{HeapSlab, Slab};
use xdp::socket::{SocketError, XdpSocket, XdpSocketBuilder};
use xdp::{Packet, RingConfigBuilder, RxRing, Umem, WakableRings, WakableTxRing};

use super::wakeup::{self, WakeupFlag};
use super::{QueueBinding, XdpError};
use crate::dataplane::driver::{BATCH_MAX, InterfaceStatistics};

/// Descriptors of each ring: a power of two.
pub(super) const RING: u32 = 2048;

/// Frames that one kick sends at least, in copy mode (TX_BATCH_SIZE of the kernel).
const KICK_FRAMES: u32 = 32;

/// How frames are shared with the kernel on one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    ZeroCopy,
    Copy,
}

/// A bound socket.
pub(super) struct Socket {
    pub binding: QueueBinding,
    pub sharing: Sharing,
    socket: XdpSocket,
    rings: WakableRings,
    fill_flag: WakeupFlag,
    transmit_flag: WakeupFlag,
    /// Frames with the kernel to receive into, or received and not yet taken.
    filled: u32,
    /// Frames given to the kernel to send and not yet back.
    sending: u32,
    /// Frames to be put on the transmit ring by the next flush.
    queued: HeapSlab,
    /// The kernel may not know of all frames on the transmit ring.
    to_kick: bool,
    /// Its interface is gone.
    dead: bool,
    transmit_failed: u64,
    last: InterfaceStatistics,
}

impl Socket {
    /// Opens and binds it over `memory`, which must outlive it.
    pub fn open(memory: &Umem, binding: &QueueBinding, sharing: Sharing) -> Result<Socket, XdpError> {
        let failed = |what, source: SocketError| XdpError::socket(binding, what, source);
        let system = |what, source| XdpError::system(binding, what, source);
        let mut builder = XdpSocketBuilder::new().map_err(|e| failed("open", e))?;
        let sizes = RingConfigBuilder {
            rx_count: RING,
            tx_count: RING,
            fill_count: RING,
            completion_count: RING,
        };
        let sizes = sizes.build().expect("a power of two");
        let (rings, mut flags) = builder
            .build_wakable_rings(memory, sizes)
            .map_err(|e| failed("set up", e))?;
        let (fill_flag, transmit_flag) = WakeupFlag::map(builder.as_raw_fd()).map_err(|e| system("map", e))?;
        match sharing {
            Sharing::ZeroCopy => flags.force_zerocopy(),
            Sharing::Copy => flags.force_copy(),
        }
        let socket = builder.bind(xdp::nic::NicIndex::new(binding.ifindex), binding.queue, flags);
        let socket = socket.map_err(|e| failed("bind", e))?;
        wakeup::raise_transmit_budget(socket.as_raw_fd(), RING);
        let zero_copy = wakeup::is_zero_copy(socket.as_raw_fd()).map_err(|e| system("ask", e))?;
        assert_eq!(
            zero_copy,
            sharing == Sharing::ZeroCopy,
            "the kernel does as it is forced"
        );
        Ok(Socket {
            binding: binding.clone(),
            sharing,
            socket,
            rings,
            fill_flag,
            transmit_flag,
            filled: 0,
            sending: 0,
            queued: HeapSlab::with_capacity(BATCH_MAX),
            to_kick: false,
            dead: false,
            transmit_failed: 0,
            last: InterfaceStatistics::default(),
        })
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Takes received frames, as many as `into` has room for.
    #[inline]
    pub fn receive(&mut self, memory: &Umem, into: &mut impl Slab) -> usize {
        let ring: &mut RxRing = self.rings.rx_ring.as_mut().expect("it was made with one");
        // SAFETY: the driver keeps the memory longer than any frame that it hands out may live.
        let n = unsafe { ring.recv(memory, into) };
        self.filled -= n as u32;
        n
    }

    /// Gives the kernel frames to receive into, until it has a ring full.
    #[inline]
    pub fn refill(&mut self, memory: &mut Umem) {
        let missing = RING - self.filled;
        if missing == 0 || self.dead {
            return;
        }
        // SAFETY: the driver keeps the memory longer than its sockets. Without wake-up there is no error.
        let n = unsafe { self.rings.fill_ring.enqueue(memory, missing as usize, false) }.unwrap_or(0);
        self.filled += n as u32;
        if self.sharing == Sharing::ZeroCopy && self.fill_flag.is_set() {
            wakeup::kick_fill(self.fd());
        }
    }

    /// Queues a frame to be sent at the next flush, or gives it back because there is no room.
    #[inline]
    pub fn queue(&mut self, memory: &mut Umem, packet: Packet) -> Result<(), Packet> {
        if self.dead || self.is_full(memory) {
            self.transmit_failed += 1;
            return Err(packet);
        }
        if self.queued.available() == 0 {
            self.submit();
        }
        let refused = self.queued.push_front(packet);
        debug_assert!(refused.is_none(), "submitting makes room");
        Ok(())
    }

    fn is_full(&mut self, memory: &mut Umem) -> bool {
        let full = |s: &Socket| s.sending + s.queued.len() as u32 >= RING;
        if full(self) {
            self.reap(memory);
            if full(self) {
                self.flush();
                self.reap(memory);
            }
        }
        full(self)
    }

    /// Puts queued frames on the transmit ring. There is room: [`Socket::queue`] has counted.
    fn submit(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        let ring: &mut WakableTxRing = self.rings.tx_ring.as_mut().expect("it was made with one");
        // SAFETY: the driver keeps the memory longer than its sockets. Without wake-up there is no error.
        let n = unsafe { ring.send(&mut self.queued, false) }.unwrap_or(0);
        debug_assert!(self.queued.is_empty(), "{} frames left", self.queued.len());
        self.sending += n as u32;
        self.to_kick = true;
    }

    /// Sends what is queued: one kick, or as many as the kernel needs to take all.
    #[inline]
    pub fn flush(&mut self) {
        self.submit();
        if !self.to_kick || self.dead {
            return;
        }
        self.to_kick = false;
        if !self.transmit_flag.is_set() {
            return;
        }
        for _ in 0..=RING / KICK_FRAMES {
            let Err(error) = wakeup::kick_transmit(self.fd()) else {
                return;
            };
            match error.raw_os_error() {
                // It has sent its share, and there is more.
                Some(libc::EAGAIN | libc::EINTR) => {}
                // Its own queue is full, or the interface is down at the moment: once more at the next flush.
                Some(libc::EBUSY | libc::ENOBUFS | libc::ENOMEM | libc::ENETDOWN) => break,
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
    pub fn reap(&mut self, memory: &mut Umem) {
        if self.sending > 0 {
            self.sending -= self.rings.completion_ring.dequeue(memory, self.sending as usize) as u32;
        }
    }

    /// Frames in its rings and queue.
    pub fn frames(&self) -> u32 {
        self.filled + self.sending + self.queued.len() as u32
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

    /// What the kernel counted, and we.
    pub fn statistics(&mut self) -> InterfaceStatistics {
        // A socket without interface keeps its last numbers.
        if let Ok(s) = self.socket.statistics() {
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
