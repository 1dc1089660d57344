//! One AF_XDP socket: one receive queue of one interface, with its four rings.
//!
//! Frames are counted where they are, so that every ring always has room for what is put on it: rings do not look.

use std::io;
use std::os::fd::RawFd;

use super::order::Order;
use super::ring::RING;
use super::rings::{FrameMemory, Rings};
use super::{QueueBinding, XdpError, wakeup};
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
    /// Where it counts in which order the kernel gets chunks.
    order: Option<Order>,
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
        Ok(Socket::over(rings, memory, binding, sharing))
    }

    fn over(rings: R, memory: &R::Memory, binding: &QueueBinding, sharing: Sharing) -> Self {
        Socket {
            binding: binding.clone(),
            sharing,
            rings,
            order: memory.step().map(Order::new),
            filled: 0,
            sending: 0,
            to_kick: false,
            dead: false,
            transmit_failed: 0,
            lost_counted: false,
            last: InterfaceStatistics::default(),
        }
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
            let room = (RING - self.filled) as usize;
            let n = self.order.as_mut().map_or(room, |order| order.arrange(memory, room));
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
            self.submit(memory);
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
            self.flush(memory);
            self.reap(memory);
        }
        !self.is_full()
    }

    /// Shows queued frames to the kernel. There is room: [`Socket::queue`] has counted.
    fn submit(&mut self, memory: &mut R::Memory) {
        let queued = self.rings.queued();
        if queued > 0 {
            self.rings.submit(memory);
            debug_assert_eq!(self.rings.queued(), 0);
            self.sending += queued as u32;
            self.to_kick = true;
        }
    }

    /// Sends what is queued: one kick, or as many as the kernel needs to take all.
    #[inline]
    pub fn flush(&mut self, memory: &mut R::Memory) {
        self.submit(memory);
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    use proptest::prelude::*;

    use super::super::{CHUNK_LEN_MIN, HEADROOM, XdpFrame, XdpMemory};
    use super::*;
    use crate::table::InterfaceId;

    const FRAMES: u32 = 2 * RING + 256;

    /// Rings without a kernel: chunks by their addresses. A kick is an empty datagram; a few that nobody takes, and it is refused as
    /// a busy card would.
    struct Lists {
        ours: UnixDatagram,
        fill: VecDeque<u64>,
        arrived: VecDeque<u64>,
        queued: Vec<u64>,
        transmit: VecDeque<u64>,
        sent: VecDeque<u64>,
    }

    impl Rings for Lists {
        type Memory = XdpMemory;
        type Frame = XdpFrame;

        fn open(_: &XdpMemory, binding: &QueueBinding, _: Sharing) -> Result<Lists, XdpError> {
            Err(XdpError::NoQueue(binding.interface.0))
        }

        fn fd(&self) -> RawFd {
            self.ours.as_raw_fd()
        }

        fn receive(
            &mut self,
            memory: &XdpMemory,
            batch: &mut Vec<Received<XdpFrame>>,
            interface: InterfaceId,
            room: usize,
        ) -> usize {
            let n = room.min(self.arrived.len());
            let frames = self.arrived.drain(..n).map(|address| memory.frame(address, 60));
            batch.extend(frames.map(|frame| Received { frame, interface }));
            n
        }

        fn fill(&mut self, memory: &mut XdpMemory, n: usize) -> usize {
            let before = self.fill.len();
            self.fill.extend(memory.take(n));
            self.fill.len() - before
        }

        fn queue(&mut self, memory: &XdpMemory, frame: XdpFrame) {
            self.queued.push(memory.address_of(&frame));
        }

        fn queued(&self) -> usize {
            self.queued.len()
        }

        fn submit(&mut self, _: &mut XdpMemory) {
            self.transmit.extend(self.queued.drain(..));
        }

        fn complete(&mut self, memory: &mut XdpMemory, n: usize) -> usize {
            let n = n.min(self.sent.len());
            self.sent.drain(..n).for_each(|address| memory.give_back(address));
            n
        }

        fn fill_wants_wakeup(&mut self) -> bool {
            false
        }

        fn transmit_wants_wakeup(&mut self) -> bool {
            true
        }
    }

    /// A socket, its memory, what the data plane holds, and the kernel's end.
    struct Rig {
        memory: XdpMemory,
        socket: Socket<Lists>,
        held: Vec<XdpFrame>,
        kernel: UnixDatagram,
        /// By address.
        chunks: Vec<u64>,
    }

    impl Rig {
        fn new(sharing: Sharing) -> Rig {
            let (ours, kernel) = UnixDatagram::pair().unwrap();
            kernel.set_nonblocking(true).unwrap();
            let rings = Lists {
                ours,
                fill: VecDeque::new(),
                arrived: VecDeque::new(),
                queued: Vec::new(),
                transmit: VecDeque::new(),
                sent: VecDeque::new(),
            };
            let binding = QueueBinding {
                interface: InterfaceId(0),
                ifindex: 1,
                name: "test0".to_owned(),
                queue: 0,
                native: true,
            };
            let mut memory = XdpMemory::map_for(sharing, FRAMES, CHUNK_LEN_MIN);
            Rig {
                socket: Socket::over(rings, &memory, &binding, sharing),
                chunks: memory.free_chunks().iter().rev().copied().collect(),
                memory,
                held: Vec::new(),
                kernel,
            }
        }

        /// Frames to be sent, of 60 bytes.
        fn allocate(&mut self, n: u32) {
            for _ in 0..n {
                let mut frame = self.memory.allocate().expect("there are enough");
                frame.set_len(60).unwrap();
                self.held.push(frame);
            }
        }

        /// How many of the held frames found room. The others are free again.
        fn send(&mut self, n: usize) -> usize {
            let n = n.min(self.held.len());
            let mut refused = 0;
            for frame in self.held.drain(..n) {
                if let Err(frame) = self.socket.queue(&mut self.memory, frame) {
                    self.memory.free(frame);
                    refused += 1;
                }
            }
            n - refused
        }

        /// The kernel hears kicks, and puts arriving frames into chunks.
        fn arrive(&mut self, n: usize) {
            self.hear();
            let rings = &mut self.socket.rings;
            let chunks = rings.fill.drain(..n.min(rings.fill.len()));
            let aligned = self.memory.step().is_some();
            let behind = (HEADROOM as u64)
                << if aligned {
                    0
                } else {
                    libc::XSK_UNALIGNED_BUF_OFFSET_SHIFT
                };
            rings.arrived.extend(chunks.map(|chunk| chunk + behind));
        }

        fn hear(&self) {
            while self.kernel.recv(&mut []).is_ok() {}
        }

        /// The kernel sends, and says so in another order.
        fn leave(&mut self, n: usize) {
            let rings = &mut self.socket.rings;
            let sent = rings.transmit.drain(..n.min(rings.transmit.len()));
            rings.sent.extend(sent.rev());
        }

        /// Each is in one place.
        fn finds_every_chunk(&mut self) {
            let rings = &self.socket.rings;
            let lists = [&rings.fill, &rings.arrived, &rings.transmit, &rings.sent];
            let in_rings = lists.into_iter().flatten().chain(&rings.queued).copied();
            let held = self.held.iter().map(|frame| self.memory.address_of(frame));
            let mut all: Vec<u64> = in_rings.chain(held).collect();
            all.extend(self.memory.free_chunks().iter());
            let mut chunks: Vec<u64> = all.iter().map(|&address| self.memory.chunk_of(address)).collect();
            chunks.sort_unstable();
            assert!(chunks == self.chunks, "a chunk is lost, or in two places");
        }
    }

    proptest! {
        /// Goal: no chunk is lost, none is with two, and no ring overflows, however late the kernel is and in whatever order. How: the
        /// steps of both sides in any order, and where all chunks are.
        #[test]
        fn no_chunk_is_lost(
            sharing in prop_oneof![Just(Sharing::Copy), Just(Sharing::ZeroCopy)],
            steps in proptest::collection::vec((0..8u8, 0..800usize), 1..300),
        ) {
            let mut rig = Rig::new(sharing);
            for (step, n) in steps {
                match step {
                    0 => rig.arrive(n),
                    1 => {
                        let mut batch = Vec::new();
                        rig.socket.receive(&rig.memory, &mut batch, n.min(BATCH_MAX));
                        rig.held.extend(batch.into_iter().map(|received| received.frame));
                    }
                    2 => _ = rig.send(n),
                    3 => rig.held.drain(n.min(rig.held.len())..).for_each(|frame| rig.memory.free(frame)),
                    4 => rig.socket.flush(&mut rig.memory),
                    5 => rig.leave(n),
                    6 => rig.socket.reap(&mut rig.memory),
                    _ => rig.socket.refill(&mut rig.memory),
                }
                let rings = &rig.socket.rings;
                let to_send = rings.queued.len() + rings.transmit.len() + rings.sent.len();
                prop_assert!(to_send <= RING as usize && rings.queued.len() <= BATCH_MAX);
                prop_assert!(rings.fill.len() + rings.arrived.len() <= RING as usize);
                prop_assert_eq!(rig.memory.outstanding(), rig.socket.frames() as usize + rig.held.len());
            }
            rig.finds_every_chunk();
        }
    }

    /// Goal: a kernel that is behind costs frames, which are counted, and nothing else. How: one more than the ring has room for, then
    /// one comes back.
    #[test]
    fn a_full_ring_refuses_until_a_frame_is_back() {
        let mut rig = Rig::new(Sharing::Copy);
        rig.allocate(RING + 2);
        assert_eq!(rig.send(RING as usize + 1), RING as usize);
        assert_eq!(rig.socket.statistics().tx_failed, 1);
        rig.leave(1);
        assert_eq!(rig.send(1), 1);
        assert_eq!(rig.socket.statistics().tx_failed, 1);
        rig.finds_every_chunk();
    }

    /// Goal: no system call where there is room but for the asking. How: a full ring of which a frame has long been sent.
    #[test]
    fn a_frame_that_is_back_makes_room_without_a_kick() {
        let mut rig = Rig::new(Sharing::Copy);
        rig.allocate(RING + 1);
        rig.send(1);
        rig.socket.flush(&mut rig.memory);
        rig.hear();
        rig.leave(1);
        assert_eq!(rig.send(RING as usize), RING as usize);
        assert!(rig.kernel.recv(&mut []).is_err());
    }

    /// Goal: what the kernel did not hear of, it is told again. How: kicks that nobody takes.
    #[test]
    fn a_kick_that_was_refused_is_made_again() {
        let mut rig = Rig::new(Sharing::Copy);
        // An empty datagram each, of which a socket holds a few (net.unix.max_dgram_qlen).
        for _ in 0..RING {
            rig.allocate(1);
            rig.send(1);
            rig.socket.flush(&mut rig.memory);
        }
        assert!(rig.socket.is_stuck());
        rig.hear();
        rig.socket.flush(&mut rig.memory);
        assert!(!rig.socket.is_stuck());
        assert_eq!(rig.kernel.recv(&mut []).unwrap(), 0, "a kick");
    }

    /// Goal: an interface that goes away while a frame wants room is no end of the others: what it took along is counted once, and
    /// what comes back late is no loss. How: a full ring without a kernel.
    #[test]
    fn the_end_of_an_interface_while_room_is_made() {
        let mut rig = Rig::new(Sharing::Copy);
        rig.allocate(RING + 2);
        assert_eq!(rig.send(RING as usize), RING as usize);
        rig.kernel = UnixDatagram::unbound().unwrap();
        assert_eq!(rig.send(1), 0);
        assert!(rig.socket.is_dead() && !rig.socket.is_stuck());
        rig.leave(3);
        rig.socket.reap(&mut rig.memory);
        assert_eq!(rig.socket.take_lost(), RING as u64 - 3);
        assert_eq!(rig.socket.take_lost(), 0);
        assert_eq!(rig.send(1), 0);
        rig.socket.refill(&mut rig.memory);
        assert!(rig.socket.rings.fill.is_empty());
        // Two that were refused besides.
        assert_eq!(rig.socket.statistics().tx_failed, RING as u64 - 3 + 2);
        rig.finds_every_chunk();
    }
}
