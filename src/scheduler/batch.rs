//! What a worker takes ahead and remembers for one batch. A cache line goes from one CPU to another in 30 to 170 ns, and a new
//! connection takes 120: workers that write to and read each other's lines at each connection are no faster than one.
//!
//! With one worker, and with one new connection a batch, all is as if nothing were taken ahead.

use super::load::View;
use super::packed::Packed;
use super::rr::{Rr, Turns};

/// A batch of one worker.
#[derive(Debug)]
pub struct Batch<'s> {
    worker: u16,
    turns: Turns<'s>,
    /// Whose servers were looked at in this batch.
    looked: Option<&'s Packed>,
}

impl<'s> Batch<'s> {
    /// One that begins.
    pub fn new(worker: u16) -> Batch<'s> {
        Batch {
            worker,
            turns: Turns::default(),
            looked: None,
        }
    }

    /// The next turn of this scheduler.
    #[inline]
    pub(super) fn turn(&mut self, of: &'s Rr) -> u64 {
        self.turns.next(of)
    }

    /// How the worker sees these servers: its own connections as they are, those of others as they were at the first pick.
    #[inline]
    pub(super) fn view(&mut self, servers: &'s Packed) -> View {
        if !self.looked.is_some_and(|looked| std::ptr::eq(looked, servers)) {
            self.looked = Some(servers);
            servers.look(self.worker);
        }
        View::By(self.worker)
    }
}
