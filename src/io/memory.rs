//! The driver without an outside: queues of buffers, for tests, fuzzing, benches and replay.
//!
//! Frames are pushed in as if an interface had received them, and what the data plane transmits or hands back is
//! kept to be looked at until [`MemoryDriver::clear`]. Buffers are counted exactly: between batches
//! [`MemoryDriver::outstanding`] must be what the data plane holds on purpose. Nothing is allocated after the start.

use std::collections::VecDeque;
use std::time::Duration;

use super::buffer::{FrameBuffer, Pool};
use crate::dataplane::driver::{BATCH_MAX, Driver, InterfaceStatistics, Received};
use crate::packet::Offload;
use crate::table::InterfaceId;

/// Frames in, frames out, in memory.
#[derive(Debug)]
pub struct MemoryDriver {
    pool: Pool,
    interfaces: Vec<Interface>,
    /// Who receives first in the next batch.
    turn: usize,
    handed_back: Vec<FrameBuffer>,
    hand_back_refused: bool,
}

#[derive(Debug)]
struct Interface {
    received: VecDeque<FrameBuffer>,
    transmitted: Vec<FrameBuffer>,
    transmit_refused: bool,
    statistics: InterfaceStatistics,
}

impl MemoryDriver {
    /// A driver of `interfaces` interfaces, with `buffers` buffers for frames of up to `frame_len_max` bytes.
    pub fn new(interfaces: usize, buffers: usize, frame_len_max: usize) -> MemoryDriver {
        let interface = || Interface {
            received: VecDeque::with_capacity(buffers),
            transmitted: Vec::with_capacity(buffers),
            transmit_refused: false,
            statistics: InterfaceStatistics::default(),
        };
        MemoryDriver {
            pool: Pool::new(buffers, frame_len_max),
            interfaces: std::iter::repeat_with(interface).take(interfaces).collect(),
            turn: 0,
            handed_back: Vec::with_capacity(buffers),
            hand_back_refused: false,
        }
    }

    /// Makes `interface` receive a frame. `false`: no free buffer, or too long; counted as dropped on receive.
    pub fn push(&mut self, interface: InterfaceId, bytes: &[u8], offload: Offload) -> bool {
        let queues = &mut self.interfaces[interface.0 as usize];
        let Some(mut frame) = self.pool.take() else {
            queues.statistics.fill_ring_empty += 1;
            return false;
        };
        if frame.fill(bytes, offload).is_err() {
            queues.statistics.rx_dropped += 1;
            self.pool.give(frame);
            return false;
        }
        queues.received.push_back(frame);
        true
    }

    /// Frames that left at `interface` since the last [`clear`](Self::clear), oldest first.
    pub fn transmitted(&self, interface: InterfaceId) -> &[FrameBuffer] {
        &self.interfaces[interface.0 as usize].transmitted
    }

    /// Frames handed back since the last [`clear`](Self::clear), oldest first.
    pub fn handed_back(&self) -> &[FrameBuffer] {
        &self.handed_back
    }

    /// Returns the transmitted and the handed back frames to the pool.
    pub fn clear(&mut self) {
        let left = self.interfaces.iter_mut().flat_map(|i| i.transmitted.drain(..));
        left.chain(self.handed_back.drain(..))
            .for_each(|frame| self.pool.give(frame));
    }

    /// Buffers in the data plane's hands: received or allocated, and not yet transmitted, handed back or freed.
    pub fn outstanding(&self) -> usize {
        let kept: usize = self
            .interfaces
            .iter()
            .map(|i| i.received.len() + i.transmitted.len())
            .sum();
        self.pool.outstanding() - kept - self.handed_back.len()
    }

    /// Frames pushed and not yet received.
    pub fn waiting(&self) -> usize {
        self.interfaces.iter().map(|i| i.received.len()).sum()
    }

    /// From now on `interface` refuses to transmit, as one that is down.
    pub fn refuse_transmit(&mut self, interface: InterfaceId, refuse: bool) {
        self.interfaces[interface.0 as usize].transmit_refused = refuse;
    }

    /// From now on the local stack takes nothing.
    pub fn refuse_hand_back(&mut self, refuse: bool) {
        self.hand_back_refused = refuse;
    }
}

impl Driver for MemoryDriver {
    type Frame = FrameBuffer;

    fn receive(&mut self, batch: &mut Vec<Received<FrameBuffer>>) -> usize {
        let interfaces = self.interfaces.len();
        let before = batch.len();
        let mut free = BATCH_MAX;
        for i in 0..interfaces {
            let index = (self.turn + i) % interfaces;
            let queue = &mut self.interfaces[index].received;
            let n = queue.len().min(free);
            let interface = InterfaceId(index as u8);
            batch.extend(queue.drain(..n).map(|frame| Received { frame, interface }));
            free -= n;
        }
        self.turn = (self.turn + 1) % interfaces.max(1);
        batch.len() - before
    }

    fn allocate(&mut self) -> Option<FrameBuffer> {
        self.pool.take()
    }

    fn transmit(&mut self, interface: InterfaceId, frame: FrameBuffer) -> bool {
        let queues = &mut self.interfaces[interface.0 as usize];
        if queues.transmit_refused {
            queues.statistics.tx_failed += 1;
            self.pool.give(frame);
            return false;
        }
        queues.transmitted.push(frame);
        true
    }

    fn hand_back(&mut self, frame: FrameBuffer) -> bool {
        if self.hand_back_refused {
            self.pool.give(frame);
            return false;
        }
        self.handed_back.push(frame);
        true
    }

    fn free(&mut self, frame: FrameBuffer) {
        self.pool.give(frame);
    }

    fn flush(&mut self) -> u64 {
        0
    }

    fn wait(&mut self, timeout: Duration) {
        if self.waiting() == 0 {
            std::thread::sleep(timeout);
        }
    }

    fn statistics(&mut self) -> Vec<InterfaceStatistics> {
        self.interfaces.iter().map(|i| i.statistics).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Frame;

    const A: InterfaceId = InterfaceId(0);
    const B: InterfaceId = InterfaceId(1);

    #[test]
    fn every_frame_is_accounted_for() {
        let mut driver = MemoryDriver::new(2, 8, 128);
        for i in 0..8 {
            assert!(driver.push(if i % 2 == 0 { A } else { B }, &[i], Offload::default()));
        }
        assert!(!driver.push(A, &[9], Offload::default()), "the pool is used up");
        assert!(driver.allocate().is_none());
        let mut batch = Vec::with_capacity(BATCH_MAX);
        assert_eq!(driver.receive(&mut batch), 8);
        assert_eq!(driver.outstanding(), 8);
        driver.refuse_transmit(B, true);
        for (i, received) in batch.drain(..).enumerate() {
            let first = received.frame.bytes()[0];
            assert_eq!(received.interface, if first % 2 == 0 { A } else { B });
            match i {
                0..3 => assert!(driver.transmit(A, received.frame)),
                3 => assert!(!driver.transmit(B, received.frame)),
                4 => assert!(driver.hand_back(received.frame)),
                5 => driver.free(received.frame),
                6 => drop(received.frame),
                _ => {
                    driver.refuse_hand_back(true);
                    assert!(!driver.hand_back(received.frame));
                }
            }
        }
        assert_eq!(driver.outstanding(), 1, "the dropped one is missing, and no other");
        assert_eq!(driver.transmitted(A).len(), 3);
        assert_eq!(driver.handed_back().len(), 1);
        driver.clear();
        assert_eq!(driver.transmitted(A).len() + driver.handed_back().len(), 0);
        assert_eq!(driver.outstanding(), 1);
        assert_eq!(driver.statistics()[1].tx_failed, 1);
        assert_eq!(driver.statistics()[0].fill_ring_empty, 1);
    }

    #[test]
    fn interfaces_take_turns() {
        let mut driver = MemoryDriver::new(2, 4 * BATCH_MAX, 16);
        for _ in 0..BATCH_MAX + 1 {
            driver.push(A, &[0], Offload::default());
            driver.push(B, &[1], Offload::default());
        }
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut seen = [0; 2];
        for _ in 0..2 {
            assert_eq!(driver.receive(&mut batch), BATCH_MAX);
            batch.drain(..).for_each(|r| {
                seen[r.interface.0 as usize] += 1;
                driver.free(r.frame);
            });
        }
        assert_eq!(seen, [BATCH_MAX, BATCH_MAX]);
        assert_eq!(driver.receive(&mut batch), 2);
    }

    #[test]
    fn a_frame_that_does_not_fit_is_not_received() {
        let mut driver = MemoryDriver::new(1, 1, 60);
        assert!(!driver.push(A, &[0; 61], Offload::default()));
        assert_eq!(driver.statistics()[0].rx_dropped, 1);
        assert!(driver.push(A, &[0; 60], Offload::default()));
    }
}
