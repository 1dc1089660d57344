//! The order in which the kernel gets frames to receive into: by address, round and round.
//!
//! The kernel keeps a table about all chunks (`struct xdp_buff_xsk`, 128 bytes each) and touches a chunk's entry whenever it
//! takes it. In order, the processor has the next ones ready; out of order, each is a cache miss: 100 ns a frame, measured in
//! copy mode. The free frames are a stack, so batches of different lengths, and frames dropped or held, would mix them up
//! within seconds.

use arrayvec::ArrayVec;

use super::rings::FrameMemory;
use crate::dataplane::driver::BATCH_MAX;

/// Free frames among which is chosen when those at hand are not all neighbours: with as many, frames in no order at all are in
/// order after some tens of rounds.
const CHOICE: usize = 3 * BATCH_MAX;

/// One in so many may be no neighbour of the one before: to sort takes as long as some 25 cache misses (by its share of a profile), and
/// with frames on their ways out for longer or shorter a few are always out of order.
const APART: usize = 32;

const _: () = assert!(CHOICE <= 1 << 8, "which of them is eight bits");

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

    /// Arranges the free frames that are taken next, `n` of them but [`BATCH_MAX`] at most: how many. `address` says where one
    /// is.
    #[inline]
    pub fn arrange<M: FrameMemory>(&mut self, memory: &mut M, n: usize, address: impl Fn(&M::Frame) -> usize) -> usize {
        // The last one back was the first out.
        let mut frames: ArrayVec<M::Frame, CHOICE> = ArrayVec::new();
        let n = take(memory, &mut frames, n.min(BATCH_MAX));
        let apart = |pair: &&[M::Frame]| address(&pair[0]) != address(&pair[1]) + self.step;
        if frames.windows(2).filter(apart).count() <= n / APART {
            self.next = frames.first().map_or(self.next, |last| address(last) + 1);
            frames.drain(..).for_each(|frame| memory.free(frame));
        } else {
            take(memory, &mut frames, CHOICE);
            self.sort(memory, frames, n, address);
        }
        n
    }

    /// Gives these frames back so that those that come next on the round, `n` of them, are taken next, in its order.
    #[inline(never)]
    fn sort<M: FrameMemory>(
        &mut self,
        memory: &mut M,
        frames: ArrayVec<M::Frame, CHOICE>,
        n: usize,
        address: impl Fn(&M::Frame) -> usize,
    ) {
        // Numbers instead of whole frames: how far on the round, and behind it which of them. Addresses have fewer bits than the
        // shift leaves.
        let far = |frame: &M::Frame| (address(frame).wrapping_sub(self.next) as u64) << 8;
        let mut places: ArrayVec<u64, CHOICE> = frames.iter().zip(0..).map(|(frame, n)| far(frame) | n).collect();
        places.sort_unstable();
        let which = |place: &u64| (*place % (1 << 8)) as usize;
        if let Some(last) = places[..n].last() {
            self.next = address(&frames[which(last)]) + 1;
        }
        let mut frames: ArrayVec<Option<M::Frame>, CHOICE> = frames.into_iter().map(Some).collect();
        let in_order = places.iter().rev().filter_map(|place| frames[which(place)].take());
        in_order.for_each(|frame| memory.free(frame));
    }
}

/// Takes free frames until there are so many, or no more: how many there are.
#[inline]
fn take<M: FrameMemory>(memory: &mut M, frames: &mut ArrayVec<M::Frame, CHOICE>, until: usize) -> usize {
    while frames.len() < until
        && let Some(frame) = memory.allocate()
    {
        frames.push(frame);
    }
    frames.len()
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

        fn map(chunks: u32) -> Result<Numbers, XdpError> {
            Ok(Numbers((0..chunks as usize).rev().collect()))
        }

        fn allocate(&mut self) -> Option<usize> {
            self.0.pop()
        }

        fn free(&mut self, frame: usize) {
            self.0.push(frame);
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
                let n = self
                    .order
                    .arrange(&mut self.memory, RING - self.frames.len(), |number| *number);
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
