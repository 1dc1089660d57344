//! Schedulers: which destination gets a new connection.
//!
//! One file a scheduler, named as `ipvsadm -s` names it. A scheduler is [`build`]t on the control thread each time its
//! service's destinations change, and asked on the workers: [`Schedule::pick`]. The list it is given is in the
//! kernel's order, **newest destination first**, and ties go to the first in that list.
//!
//! To add one: a file with a type that implements [`Schedule`], a variant of [`Scheduler`], and its line in [`build`].

mod batch;
mod cache;
mod dh;
mod fo;
mod hash;
mod lblc;
mod lblcr;
mod lc;
mod load;
mod mh;
mod none;
mod nq;
mod ovf;
mod packed;
mod rr;
mod sed;
mod sh;
mod twos;
mod wlc;
mod wrr;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::packet::FlowKey;
use crate::service::DestinationKey;

pub use batch::Batch;
pub use load::{Connections, Load, Loads};

/// One destination as a scheduler sees it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Address and port (mh hashes them).
    pub key: DestinationKey,
    /// Weight; 0 = quiesced.
    pub weight: u32,
    /// `-x`; 0 = no limit.
    pub upper_threshold: u32,
    /// `-y`.
    pub lower_threshold: u32,
    /// Its last weight above 0 since it was added: with mh a quiesced destination keeps its places.
    pub last_weight: u32,
    /// How often a destination of the service was edited (`-e`) so far: wrr begins its round anew at each time.
    pub edits: u64,
    /// Its live numbers.
    pub load: Arc<Load>,
}

impl Candidate {
    /// May take a new connection: not quiesced, not over its threshold.
    #[inline]
    pub fn is_available(&self) -> bool {
        self.weight > 0 && !self.load.is_overloaded()
    }
}

/// What every scheduler can do on a worker. Lock-free, no allocation; cursors are atomics.
pub trait Schedule {
    /// Index into `candidates` of the destination for a new connection with this flow (source = client,
    /// destination = virtual address), or `None` when none may take it. `candidates` is the list the scheduler
    /// was built with. What workers would write to and read from each other at every pick is in `batch`.
    fn pick<'s>(&'s self, candidates: &[Candidate], flow: &FlowKey, batch: &mut Batch<'s>) -> Option<usize>;

    /// Whom [`pick`](Schedule::pick) would choose now, with nothing moved or remembered. As it stands here it is right for
    /// schedulers that keep nothing from one pick to the next.
    fn peek(&self, candidates: &[Candidate], flow: &FlowKey) -> Peek<usize> {
        Peek::Sure(self.pick(candidates, flow, &mut Batch::default()))
    }

    /// The scheduler behind a `dyn Schedule`, so that its successor can go on where it stands.
    fn as_scheduler(&self) -> Option<&Scheduler> {
        None
    }
}

/// What a scheduler would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek<T> {
    /// Choose this one, or none.
    Sure(Option<T>),
    /// Draw lots.
    Chance,
}

/// A scheduler as it was, and the list it was built with.
pub type Previous<'a> = (&'a dyn Schedule, &'a [Candidate]);

/// The name is of no scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such scheduler")]
pub struct NoSuchScheduler;

/// Every scheduler's name.
pub const NAMES: &[&str] = &[
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos", "none",
];

/// Any scheduler.
#[derive(Debug)]
pub enum Scheduler {
    /// Round robin.
    Rr(rr::Rr),
    /// Weighted round robin.
    Wrr(wrr::Wrr),
    /// Least connections.
    Lc(lc::Lc),
    /// Weighted least connections.
    Wlc(wlc::Wlc),
    /// Locality-based least connections.
    Lblc(lblc::Lblc),
    /// Locality-based least connections with replication.
    Lblcr(lblcr::Lblcr),
    /// Destination hashing.
    Dh(dh::Dh),
    /// Source hashing.
    Sh(sh::Sh),
    /// Maglev hashing.
    Mh(mh::Mh),
    /// Shortest expected delay.
    Sed(sed::Sed),
    /// Never queue.
    Nq(nq::Nq),
    /// Weighted failover.
    Fo(fo::Fo),
    /// Weighted overflow.
    Ovf(ovf::Ovf),
    /// Nobody.
    Nobody(none::Nobody),
    /// Power of two random choices.
    Twos(twos::Twos),
}

/// Makes the scheduler of that name (`-s`) with those flags (`-b`, by their listed names) for the candidates.
/// `previous` is the service's scheduler so far: one of the same name hands its position on, as in the kernel.
pub fn build(
    name: &str,
    flags: &[String],
    candidates: &[Candidate],
    previous: Option<Previous<'_>>,
) -> Result<Scheduler, NoSuchScheduler> {
    let has = |flag: &str| flags.iter().any(|f| f == flag);
    let previous = previous.and_then(|(schedule, list)| Some((schedule.as_scheduler()?, list)));
    Ok(match name {
        "rr" => Scheduler::Rr(match previous {
            Some((Scheduler::Rr(rr), list)) => rr.successor(list, candidates),
            _ => rr::Rr::default(),
        }),
        "wrr" => Scheduler::Wrr(match previous {
            Some((Scheduler::Wrr(wrr), list)) => wrr.successor(list, candidates),
            Some((_, list)) => wrr::Wrr::beginning(list).successor(list, candidates),
            None => wrr::Wrr::default().successor(&[], candidates),
        }),
        "lc" => Scheduler::Lc(lc::Lc::new(candidates)),
        "wlc" => Scheduler::Wlc(wlc::Wlc::new(candidates)),
        "lblc" => Scheduler::Lblc(match previous {
            Some((Scheduler::Lblc(lblc), _)) => lblc.successor(candidates),
            _ => lblc::Lblc::new(candidates),
        }),
        "lblcr" => Scheduler::Lblcr(match previous {
            Some((Scheduler::Lblcr(lblcr), _)) => lblcr.successor(candidates),
            _ => lblcr::Lblcr::new(candidates),
        }),
        "dh" => Scheduler::Dh(dh::Dh::new(candidates)),
        "sh" => Scheduler::Sh(sh::Sh::new(candidates, has("sh-fallback"), has("sh-port"))),
        "mh" => Scheduler::Mh(mh::Mh::new(candidates, has("mh-fallback"), has("mh-port"))),
        "sed" => Scheduler::Sed(sed::Sed::new(candidates)),
        "nq" => Scheduler::Nq(nq::Nq::new(candidates)),
        "fo" => Scheduler::Fo(fo::Fo),
        "ovf" => Scheduler::Ovf(ovf::Ovf),
        "none" => Scheduler::Nobody(none::Nobody),
        "twos" => Scheduler::Twos(match previous {
            Some((Scheduler::Twos(twos), _)) => twos.successor(),
            _ => twos::Twos::seeded(),
        }),
        _ => return Err(NoSuchScheduler),
    })
}

impl Schedule for Scheduler {
    fn pick<'s>(&'s self, candidates: &[Candidate], flow: &FlowKey, batch: &mut Batch<'s>) -> Option<usize> {
        /// Not inlined: a scheduler that needs few registers would save those that another needs.
        #[inline(never)]
        fn ask<'s, S: Schedule>(s: &'s S, of: &[Candidate], flow: &FlowKey, batch: &mut Batch<'s>) -> Option<usize> {
            s.pick(of, flow, batch)
        }
        match self {
            Scheduler::Rr(s) => ask(s, candidates, flow, batch),
            Scheduler::Wrr(s) => ask(s, candidates, flow, batch),
            Scheduler::Lc(s) => ask(s, candidates, flow, batch),
            Scheduler::Wlc(s) => ask(s, candidates, flow, batch),
            Scheduler::Lblc(s) => ask(s, candidates, flow, batch),
            Scheduler::Lblcr(s) => ask(s, candidates, flow, batch),
            Scheduler::Dh(s) => ask(s, candidates, flow, batch),
            Scheduler::Sh(s) => ask(s, candidates, flow, batch),
            Scheduler::Mh(s) => ask(s, candidates, flow, batch),
            Scheduler::Sed(s) => ask(s, candidates, flow, batch),
            Scheduler::Nq(s) => ask(s, candidates, flow, batch),
            Scheduler::Fo(s) => ask(s, candidates, flow, batch),
            Scheduler::Ovf(s) => ask(s, candidates, flow, batch),
            Scheduler::Nobody(s) => ask(s, candidates, flow, batch),
            Scheduler::Twos(s) => ask(s, candidates, flow, batch),
        }
    }

    fn peek(&self, candidates: &[Candidate], flow: &FlowKey) -> Peek<usize> {
        match self {
            Scheduler::Rr(s) => s.peek(candidates, flow),
            Scheduler::Wrr(s) => s.peek(candidates, flow),
            Scheduler::Lblc(s) => s.peek(candidates, flow),
            Scheduler::Lblcr(s) => s.peek(candidates, flow),
            Scheduler::Twos(s) => s.peek(candidates, flow),
            // These keep nothing.
            Scheduler::Lc(_)
            | Scheduler::Wlc(_)
            | Scheduler::Dh(_)
            | Scheduler::Sh(_)
            | Scheduler::Mh(_)
            | Scheduler::Sed(_)
            | Scheduler::Nq(_)
            | Scheduler::Fo(_)
            | Scheduler::Ovf(_)
            | Scheduler::Nobody(_) => Peek::Sure(self.pick(candidates, flow, &mut Batch::default())),
        }
    }

    fn as_scheduler(&self) -> Option<&Scheduler> {
        Some(self)
    }
}

/// The greatest common divisor, to which weights are reduced; 0 has every divisor.
fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
