//! What a worker takes ahead and remembers for one batch. A cache line goes from one CPU to another in 30 to 170 ns, and a new
//! connection takes 120: workers that write to and read each other's lines at each connection are no faster than one.
//!
//! With one worker, and with one new connection a batch, all is as if nothing were taken ahead.

use super::load::View;
use super::packed::Packed;
use super::rr::{Rr, Turns};

/// Schedulers that are remembered, each in the place that its address gives. Two whose place is the same make each other
/// be forgotten, which costs time only.
const PLACES: usize = 4;

/// A batch of one worker; by default of nobody, who sees all and takes nothing ahead of what is asked for.
#[derive(Debug, Default)]
pub struct Batch<'s> {
    worker: Option<u16>,
    turns: [Turns<'s>; PLACES],
    /// Whose servers were looked at.
    looked: [Option<&'s Packed>; PLACES],
}

impl<'s> Batch<'s> {
    /// One that begins.
    pub fn new(worker: u16) -> Batch<'s> {
        Batch {
            worker: Some(worker),
            ..Batch::default()
        }
    }

    /// The next turn of this scheduler.
    #[inline]
    pub(super) fn turn(&mut self, of: &'s Rr) -> u64 {
        self.turns[place(of)].next(of)
    }

    /// How the worker sees these servers: its own connections as they are, those of others as they were at the first pick.
    #[inline]
    pub(super) fn view(&mut self, servers: &'s Packed) -> View {
        let Some(worker) = self.worker else {
            return View::Whole;
        };
        if servers.is_of_one() {
            return View::Alone;
        }
        let looked = &mut self.looked[place(servers)];
        if !looked.is_some_and(|looked| std::ptr::eq(looked, servers)) {
            *looked = Some(servers);
            servers.look(worker);
        }
        View::By(worker)
    }
}

/// [`Scheduler`](super::Scheduler)s are at multiples of 128.
#[inline]
fn place<T>(of: &T) -> usize {
    std::ptr::from_ref(of).addr() / align_of::<super::Scheduler>() % PLACES
}

const _: () = assert!(align_of::<super::Scheduler>() == 128);
