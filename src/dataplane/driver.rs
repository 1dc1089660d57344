//! What a worker needs of the outside: one [`Driver`] a worker, over all its queues of all interfaces.

use std::time::Duration;

use crate::packet::Frame;
use crate::table::InterfaceId;

/// Frames that one call of [`Driver::receive`] returns at most.
pub const BATCH_MAX: usize = 64;

/// A received frame and where it came in.
pub struct Received<F> {
    /// The frame.
    pub frame: F,
    /// Its interface.
    pub interface: InterfaceId,
}

/// Kernel-side statistics of one interface as this worker's driver sees it (cumulative).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceStatistics {
    /// Frames the kernel dropped because our receive ring was full.
    pub rx_ring_full: u64,
    /// Frames it dropped because our fill ring was empty.
    pub fill_ring_empty: u64,
    /// Other receive drops of the socket.
    pub rx_dropped: u64,
    /// Transmit descriptors it refused.
    pub tx_invalid: u64,
    /// Frames that we could not put on the transmit ring or that the driver refused.
    pub tx_failed: u64,
}

impl InterfaceStatistics {
    /// Adds another worker's numbers.
    pub fn add(&mut self, other: &InterfaceStatistics) {
        self.rx_ring_full += other.rx_ring_full;
        self.fill_ring_empty += other.fill_ring_empty;
        self.rx_dropped += other.rx_dropped;
        self.tx_invalid += other.tx_invalid;
        self.tx_failed += other.tx_failed;
    }
}

/// The driver of one worker: every queue it owns, of every interface, in one frame memory, so that what comes in
/// at one interface leaves at another without a copy. Every frame handed out by `receive` or `allocate` comes
/// back by exactly one of `transmit`, `hand_back` or `free`.
pub trait Driver {
    /// Its buffer type.
    type Frame: Frame;

    /// Appends up to [`BATCH_MAX`] received frames to `batch` (which has that much spare capacity); 0 when none
    /// wait. Never blocks. Interfaces take turns, so that none starves.
    fn receive(&mut self, batch: &mut Vec<Received<Self::Frame>>) -> usize;

    /// An empty frame (length 0) with headroom, for what uvs itself sends; `None` when memory is used up.
    fn allocate(&mut self) -> Option<Self::Frame>;

    /// Queues the frame to leave at `interface`. `false`: the ring stayed full or the kernel refused (the frame is
    /// freed, and the caller counts it).
    fn transmit(&mut self, interface: InterfaceId, frame: Self::Frame) -> bool;

    /// Gives the frame to the local stack through the tun device. `false`: not taken (the frame is freed).
    fn hand_back(&mut self, frame: Self::Frame) -> bool;

    /// Returns the buffer.
    fn free(&mut self, frame: Self::Frame);

    /// Kicks what was queued, once per interface, reaps completions, refills. Called once a batch. Returns how many of the
    /// frames that `transmit` took since the last time did not leave after all.
    fn flush(&mut self) -> u64;

    /// Sleeps until a frame or a wake-up (table change) comes, or the time is over.
    fn wait(&mut self, timeout: Duration);

    /// Statistics of each interface, in the order of [`InterfaceId`]. Not called per packet.
    fn statistics(&mut self) -> Vec<InterfaceStatistics>;
}
