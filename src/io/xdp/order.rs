//! The order in which the kernel gets frames to receive into, where chunks are aligned: by address, round and round.
//!
//! The kernel keeps a table about all chunks (`struct xdp_buff_xsk`, 128 bytes each), in the order of their addresses if they are
//! aligned, and touches a chunk's entry whenever it takes it. In order, the processor has the next ones ready; out of order, each is a
//! cache miss: 100 ns a frame, measured in copy mode. The free frames are a stack, so batches of different lengths, and frames dropped
//! or held, would mix them up within seconds.

use std::cmp::Reverse;

use super::rings::FrameMemory;
use crate::dataplane::driver::BATCH_MAX;

/// Free frames among which is chosen when those at hand are not all neighbours: with as many, frames in no order at all are in
/// order after some tens of rounds.
const CHOICE: usize = 3 * BATCH_MAX;

/// One in so many may be no neighbour of the one before: to sort takes as long as some 25 cache misses (by its share of a profile), and
/// with frames on their ways out for longer or shorter a few are always out of order.
const APART: usize = 32;

/// Of one fill ring.
pub(super) struct Order {
    /// Where the round goes on: behind the frame given last.
    next: usize,
    /// From one frame to its neighbour.
    step: usize,
}

impl Order {
    /// Of frames that are so far apart.
    pub fn new(step: usize) -> Order {
        Order { next: 0, step }
    }

    /// Arranges the free chunks that are taken next, `n` of them but [`BATCH_MAX`] at most: how many.
    #[inline]
    pub fn arrange<M: FrameMemory>(&mut self, memory: &mut M, n: usize) -> usize {
        let free = memory.free_chunks();
        let n = n.min(BATCH_MAX).min(free.len());
        // The last one back was the last one out.
        let (_, back) = free.split_at_mut(free.len() - n);
        let apart = |pair: &&[M::Chunk]| M::address(&pair[1]) != M::address(&pair[0]) + self.step;
        if back.windows(2).filter(apart).count() <= n / APART {
            self.next = back.last().map_or(self.next, |last| M::address(last) + 1);
            back.reverse();
        } else {
            self.sort::<M>(free, n);
        }
        n
    }

    /// Puts those that come next on the round, `n` of them, where they are taken next, in its order.
    #[inline(never)]
    fn sort<M: FrameMemory>(&mut self, free: &mut [M::Chunk], n: usize) {
        let (_, choice) = free.split_at_mut(free.len().saturating_sub(CHOICE));
        choice.sort_unstable_by_key(|chunk| Reverse(M::address(chunk).wrapping_sub(self.next)));
        self.next = M::address(&choice[choice.len() - n]) + 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::super::XdpError;
    use super::*;

    /// Numbers for frames.
    struct Numbers(Vec<usize>);

    impl FrameMemory for Numbers {
        type Frame = usize;
        type Chunk = usize;

        fn map(chunks: u32, _: usize) -> Result<Numbers, XdpError> {
            Ok(Numbers((0..chunks as usize).rev().collect()))
        }

        fn for_copying(self) -> Numbers {
            self
        }

        fn step(&self) -> Option<usize> {
            Some(1)
        }

        fn allocate(&mut self) -> Option<usize> {
            self.0.pop()
        }

        fn free(&mut self, frame: usize) {
            self.0.push(frame);
        }

        fn free_chunks(&mut self) -> &mut [usize] {
            &mut self.0
        }

        fn address(chunk: &usize) -> usize {
            *chunk
        }

        fn outstanding(&self) -> usize {
            0
        }
    }

    const RING: usize = 2048;

    /// A ring full of frames, and others.
    struct Ring {
        memory: Numbers,
        order: Order,
        frames: VecDeque<usize>,
    }

    impl Ring {
        /// Filled from a stack of free frames whose top is at the end.
        fn new(free: Vec<usize>) -> Ring {
            let mut ring = Ring {
                memory: Numbers(free),
                order: Order::new(1),
                frames: VecDeque::new(),
            };
            ring.fill();
            ring
        }

        fn fill(&mut self) {
            while self.frames.len() < RING {
                let n = self.order.arrange(&mut self.memory, RING - self.frames.len());
                assert!(n > 0, "no frame is lost");
                let memory = &mut self.memory;
                self.frames.extend(std::iter::from_fn(|| memory.allocate()).take(n));
            }
        }

        /// A batch comes and goes; those with a bit set are dropped at once.
        fn batch(&mut self, len: usize, dropped: u64) {
            let frames = self.frames.drain(..len).enumerate();
            let (dropped, sent): (Vec<_>, Vec<_>) = frames.partition(|(n, _)| dropped >> n & 1 != 0);
            let back = dropped.into_iter().chain(sent);
            back.for_each(|(_, frame)| self.memory.free(frame));
            self.fill();
        }

        /// Neighbours in the ring that are none in memory.
        fn apart(&self) -> usize {
            let pairs = self.frames.iter().zip(self.frames.iter().skip(1));
            pairs.filter(|(a, b)| **a + 1 != **b).count()
        }
    }

    proptest! {
        /// Goal: whatever the batches, frames stay in order. How: batches of any length, some of their frames freed before the
        /// others, which come back in the order in which they were sent.
        #[test]
        fn frames_stay_in_order(batches in proptest::collection::vec((1usize..=BATCH_MAX, any::<u64>()), 200)) {
            let mut ring = Ring::new((0..4 * RING).rev().collect());
            for (len, dropped) in batches {
                ring.batch(len, dropped);
                prop_assert!(ring.apart() < RING / 50, "{}", ring.apart());
            }
        }
    }

    /// Goal: frames that were away for long find their place again. How: a ring in no order at all, and rounds.
    #[test]
    fn order_comes_back() {
        let mut ring = Ring::new((0..4 * RING).rev().collect());
        assert_eq!(ring.apart(), 0);
        ring.frames = (0..RING).map(|n| n * 77 % RING).collect();
        assert!(ring.apart() > RING / 2);
        for batch in 0..4000 {
            ring.batch(1 + batch * 13 % BATCH_MAX, 0);
        }
        assert!(ring.apart() < RING / 10, "{}", ring.apart());
    }

    /// Goal: a memory with few free frames is no trouble. How: none but those of the ring.
    #[test]
    fn nothing_to_choose_from() {
        let mut ring = Ring::new((0..RING).rev().collect());
        for batch in 0..100 {
            ring.batch(1 + batch * 13 % BATCH_MAX, 0x5a5a);
        }
        let mut all: Vec<_> = ring.frames.into();
        all.sort_unstable();
        assert_eq!(all, (0..RING).collect::<Vec<_>>());
    }
}
