//! The live numbers of a destination, and the thresholds that hang on them.

use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// Live numbers of one destination, shared by all workers. They outlast the table: a destination that is removed
/// and added again while connections live finds its counts again.
#[derive(Debug)]
pub struct Load {
    counts: Counts,
    /// PersistConn: persistence templates.
    pub persistent: AtomicU32,
    /// Over its upper threshold, and not yet below its lower one.
    pub overloaded: AtomicBool,
}

/// Connections of a destination: `ACTIVE` times the active ones and `INACTIVE` times the inactive ones, modulo 2^64. So their overhead,
/// which schedulers ask for at each new connection, is one shift away. Either number may be below 0 for a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections(u64);

/// How far up the overhead is.
pub(super) const OVERHEAD_SHIFT: u32 = 24;
const INACTIVE: u64 = 1 << OVERHEAD_SHIFT;
/// As much overhead as 256 inactive ones (`ip_vs_dest_conn_overhead`), and one more in the lowest bits, to tell them apart.
const ACTIVE: u64 = 256 * INACTIVE + 1;

impl Connections {
    /// ActiveConn. Another worker may take a connection off before the one that made it has counted it: then 0.
    #[inline]
    pub fn active(self) -> u32 {
        self.signed_active().max(0) as u32
    }

    /// InActConn. The same holds.
    #[inline]
    pub fn inactive(self) -> u32 {
        self.signed_inactive().max(0) as u32
    }

    /// What a destination has to do: an active one weighs 256 inactive ones (and each 2^24 active ones one inactive one more).
    #[inline(always)]
    pub fn overhead(self) -> u64 {
        self.signed_overhead().max(0) as u64
    }

    /// The same, but below 0 when more were taken off than have been counted; one less than that while the active ones are.
    #[inline(always)]
    pub fn signed_overhead(self) -> i64 {
        self.0 as i64 >> OVERHEAD_SHIFT
    }

    #[inline(always)]
    fn signed_active(self) -> i64 {
        // A 256th of the overhead is off by a 256th of the inactive ones, of which there are less than 2^30: by 2^22 at most. The
        // lowest bits, those of the active ones, say by how much; as a number with a sign they reach to 2^23.
        let word = self.0 as i64;
        let nearly = word >> 32;
        nearly + (word.wrapping_sub(nearly) << 40 >> 40)
    }

    #[inline(always)]
    fn signed_inactive(self) -> i64 {
        let active = self.signed_active() as u64;
        self.0.wrapping_sub(active.wrapping_mul(ACTIVE)) as i64 >> OVERHEAD_SHIFT
    }
}

impl Add for Connections {
    type Output = Connections;

    #[inline(always)]
    fn add(self, other: Connections) -> Connections {
        Connections(self.0.wrapping_add(other.0))
    }
}

/// Where a destination's connections are counted: by each worker in a cache line of its own, which has the numbers of seven more
/// destinations too. The sum is the number; a line's own is none, as another may take off what one has counted.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    lines: Arc<[Lines]>,
    /// Below [`LANES`].
    lane: usize,
}

/// Destinations in a line.
const LANES: usize = 8;

/// For each what it adds to its [`Connections`], which only the sum over all lines is.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU64; LANES]);

impl Line {
    #[inline(always)]
    fn connections(&self, lane: usize) -> Connections {
        Connections(self.0[lane % LANES].load(Ordering::Relaxed))
    }
}

/// Of one worker. Processors load lines in pairs: the next worker's are in another.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lines {
    /// What it has counted.
    own: Line,
    /// What all others had counted when it looked. No other worker reads it.
    others: Line,
}

/// Folds `n` lanes from that one on; `fold` is given how many came before, and the lane. Of a whole line the compiler need not count
/// them.
#[inline(always)]
fn fold_lanes<T>(first: usize, n: usize, init: T, mut fold: impl FnMut(T, usize, usize) -> T) -> T {
    if n == LANES {
        debug_assert_eq!(first, 0, "a whole line");
        (0..LANES).fold(init, |so_far, lane| fold(so_far, lane, lane))
    } else {
        (0..n).fold(init, |so_far, before| fold(so_far, before, first + before))
    }
}

/// Who looks at connections.
#[derive(Clone, Copy, Debug)]
pub(super) enum View {
    /// Anybody, who sees all.
    Whole,
    /// This worker, which sees of others what it saw when it [looked](Counts::look).
    By(u16),
    /// The only worker there is: what its line has is the sum.
    Alone,
}

impl Counts {
    #[inline]
    fn sum(&self) -> Connections {
        self.sum_of(self.lane)
    }

    #[inline(always)]
    fn sum_of(&self, lane: usize) -> Connections {
        let all = self.lines.iter().map(|lines| lines.own.connections(lane));
        all.fold(Connections::default(), Add::add)
    }

    /// Folds the numbers of its destination and of those that follow it in the same lines, `n` in all; `fold` is given how many came
    /// before, and the numbers.
    #[inline(always)]
    pub fn fold<T>(&self, n: usize, view: View, init: T, mut fold: impl FnMut(T, usize, Connections) -> T) -> T {
        match view {
            View::Alone => {
                let own = &self.lines_of(0).own;
                fold_lanes(self.lane, n, init, |so_far, before, lane| {
                    fold(so_far, before, own.connections(lane))
                })
            }
            View::By(worker) => {
                let Lines { own, others } = self.lines_of(worker);
                fold_lanes(self.lane, n, init, |so_far, before, lane| {
                    fold(so_far, before, own.connections(lane) + others.connections(lane))
                })
            }
            View::Whole => self.fold_whole(n, init, fold),
        }
    }

    /// The same as all see them. Not inlined: no packet comes here, and the registers that it needs would be saved for all.
    #[inline(never)]
    fn fold_whole<T>(&self, n: usize, init: T, mut fold: impl FnMut(T, usize, Connections) -> T) -> T {
        fold_lanes(self.lane, n, init, |so_far, before, lane| {
            fold(so_far, before, self.sum_of(lane))
        })
    }

    /// The worker looks at what others have counted of the same `n` destinations.
    pub fn look(&self, n: usize, worker: u16) {
        let ours = self.lines_of(worker);
        for lane in self.lane..self.lane + n {
            let theirs = self.lines.iter().filter(|lines| !std::ptr::eq(*lines, ours));
            let theirs = theirs.map(|lines| lines.own.connections(lane));
            let sum = theirs.fold(Connections::default(), Add::add);
            ours.others.0[lane % LANES].store(sum.0, Ordering::Relaxed);
        }
    }

    /// All count in one line.
    pub fn is_of_one(&self) -> bool {
        self.lines.len() == 1
    }

    /// The numbers of `other` are in the same lines, and `n` behind.
    pub fn is_followed_by(&self, n: usize, other: &Counts) -> bool {
        Arc::ptr_eq(&self.lines, &other.lines) && other.lane == self.lane + n
    }

    #[inline]
    fn add(&self, by: u16, change: u64) {
        self.lines_of(by).own.0[self.lane % LANES].fetch_add(change, Ordering::Relaxed);
    }

    #[inline(always)]
    fn lines_of(&self, by: u16) -> &Lines {
        &self.lines[(by as usize).min(self.lines.len() - 1)]
    }
}

/// Makes [`Load`]s for so many workers. From one to the next lanes go down, as in a service's list the newest destination is the first:
/// those that are made one after another lie there in the order of the list.
#[derive(Debug)]
pub struct Loads {
    workers: usize,
    /// The lines of the next one, and its lane.
    next: Option<Counts>,
}

impl Loads {
    /// Whoever counts by a higher number, as the control thread does, counts with the last of them.
    pub fn new(workers: usize) -> Loads {
        let workers = workers.max(1);
        Loads { workers, next: None }
    }

    /// One of nothing.
    pub fn make(&mut self) -> Load {
        let counts = self.next.take().unwrap_or_else(|| Counts {
            lines: (0..self.workers).map(|_| Lines::default()).collect(),
            lane: LANES - 1,
        });
        self.next = counts.lane.checked_sub(1).map(|lane| Counts {
            lines: counts.lines.clone(),
            lane,
        });
        Load {
            counts,
            persistent: AtomicU32::new(0),
            overloaded: AtomicBool::new(false),
        }
    }
}

impl Default for Load {
    /// One that all count together.
    fn default() -> Load {
        Loads::new(1).make()
    }
}

/// In all of these `by` is who counts: the number of a worker, any above for the control thread.
impl Load {
    /// Both numbers at once.
    #[inline]
    pub fn connections(&self) -> Connections {
        self.counts.sum()
    }

    /// ActiveConn.
    #[inline]
    pub fn active(&self) -> u32 {
        self.connections().active()
    }

    /// InActConn.
    #[inline]
    pub fn inactive(&self) -> u32 {
        self.connections().inactive()
    }

    /// Both: what the thresholds limit.
    #[inline]
    pub fn total(&self) -> u32 {
        let connections = self.connections();
        connections.active().saturating_add(connections.inactive())
    }

    /// Takes no new connections because of its thresholds.
    #[inline]
    pub fn is_overloaded(&self) -> bool {
        self.overloaded.load(Ordering::Relaxed)
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Counts a new connection; at `upper` (`-x`, 0 = no limit) of them no more are taken.
    #[inline]
    pub fn add(&self, by: u16, is_active: bool, upper: u32) {
        self.counts.add(by, unit(is_active));
        self.check_upper(upper);
    }

    /// A connection changed its state.
    pub fn change(&self, by: u16, was_active: bool, is_active: bool) {
        if was_active != is_active {
            self.counts.add(by, unit(is_active).wrapping_sub(unit(was_active)));
        }
    }

    /// A connection ended (not: was closed): below `lower` (`-y`), or three quarters of `upper` without one, new ones
    /// are taken again.
    pub fn remove(&self, by: u16, was_active: bool, upper: u32, lower: u32) {
        self.counts.add(by, unit(was_active).wrapping_neg());
        self.check_lower(upper, lower);
    }

    /// Counts a persistence template.
    pub fn add_template(&self, upper: u32) {
        self.persistent.fetch_add(1, Ordering::Relaxed);
        self.check_upper(upper);
    }

    /// A persistence template ended.
    pub fn remove_template(&self, upper: u32, lower: u32) {
        self.persistent.fetch_sub(1, Ordering::Relaxed);
        self.check_lower(upper, lower);
    }

    fn check_upper(&self, upper: u32) {
        if upper == 0 {
            return;
        }
        // Of two workers that count at once, one sees both.
        fence(Ordering::SeqCst);
        if self.total() >= upper {
            self.overloaded.store(true, Ordering::Relaxed);
        }
    }

    fn check_lower(&self, upper: u32, lower: u32) {
        if upper | lower != 0 {
            // As above.
            fence(Ordering::SeqCst);
        }
        if !self.is_overloaded() {
            return;
        }
        let below = match (lower, upper) {
            (0, 0) => true,
            (0, upper) => (self.total() as u64) * 4 < upper as u64 * 3,
            (lower, _) => self.total() < lower,
        };
        if below {
            self.overloaded.store(false, Ordering::Relaxed);
        }
    }
}

fn unit(is_active: bool) -> u64 {
    if is_active { ACTIVE } else { INACTIVE }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Opens up to the limit, then ends one after the other: at which totals are new ones refused?
    fn refused_while_ending(upper: u32, lower: u32) -> Vec<u32> {
        let load = Load::default();
        for n in 0..upper {
            assert!(!load.is_overloaded(), "refused at {n}");
            load.add(0, true, upper);
        }
        assert!(load.is_overloaded());
        load.change(0, true, false);
        assert!(load.is_overloaded(), "closing is not ending");
        let mut refused = Vec::new();
        load.remove(0, false, upper, lower);
        for _ in 1..upper {
            if load.is_overloaded() {
                refused.push(load.total());
            }
            load.remove(0, true, upper, lower);
        }
        assert_eq!(load.total(), 0);
        refused
    }

    #[test]
    fn thresholds_as_recorded() {
        // Without -y: x = 8 refuses at 7 and 6, accepts at 5. With -y 2: refused until the total is 1.
        assert_eq!(refused_while_ending(8, 0), [7, 6]);
        assert_eq!(refused_while_ending(8, 2), [7, 6, 5, 4, 3, 2]);
    }

    #[test]
    fn no_limit_never_refuses_and_lifting_it_clears() {
        let load = Load::default();
        for _ in 0..1000 {
            load.add(0, false, 0);
        }
        assert!(!load.is_overloaded());
        load.add(0, false, 1001);
        assert!(load.is_overloaded());
        load.remove(0, false, 0, 0);
        assert!(!load.is_overloaded());
    }

    #[test]
    fn templates_count_apart() {
        let load = Load::default();
        load.add_template(1);
        assert!(!load.is_overloaded() && load.total() == 0);
        load.remove_template(1, 0);
        assert_eq!(load.persistent.load(Ordering::Relaxed), 0);
    }

    /// Goal: the sum is right whoever counts and takes off, and destinations of one line do not meet. How: ten destinations, every
    /// sequence of three counters.
    #[test]
    fn each_counts_in_its_own_line() {
        let mut loads = Loads::new(2);
        let all: Vec<Load> = (0..10).map(|_| loads.make()).collect();
        for (n, load) in all.iter().enumerate() {
            for by in [0, 1, 2, 9, u16::MAX] {
                (0..=n).for_each(|_| load.add(by, true, 0));
                load.change(by.wrapping_add(1) % 3, true, false);
            }
            // More inactive ones are taken off than this one has counted.
            (0..3).for_each(|_| load.remove(1, false, 0, 0));
        }
        for (n, load) in (0..).zip(&all) {
            assert_eq!(
                (load.active(), load.inactive(), load.total()),
                (5 * n, 2, 5 * n + 2),
                "number {n}"
            );
            assert_eq!(load.connections().overhead(), 256 * 5 * n as u64 + 2);
        }
    }

    proptest! {
        /// Goal: both numbers come out of the word as they were counted, also where one or both are below 0, and so does the
        /// overhead, with what active ones add to it from 2^24 on and take off it below 0. How: few and very many of each.
        #[test]
        fn word_keeps_both_numbers(
            active in prop_oneof![-300i64..300, (-300i64..300).prop_map(|n| n + (1 << 24)), -(1i64 << 29)..1 << 30],
            inactive in prop_oneof![-300i64..300, -(1i64 << 29)..1 << 30],
        ) {
            kept(active, inactive);
        }
    }

    fn kept(active: i64, inactive: i64) {
        let of = |number: i64, unit: u64| Connections((number as u64).wrapping_mul(unit));
        let connections = of(active, ACTIVE) + of(inactive, INACTIVE);
        let numbers = (connections.signed_active(), connections.signed_inactive());
        assert_eq!(numbers, (active, inactive));
        assert_eq!(connections.signed_overhead(), 256 * active + inactive + (active >> 24));
    }

    /// The same at the edges of the word's parts.
    #[test]
    fn word_keeps_both_numbers_at_its_edges() {
        for active in [0, 1, (1 << 23) - 1, 1 << 23, (1 << 24) - 1, 1 << 24, (1 << 30) - 1] {
            for inactive in [0, 1, 255, 256, 257, (1 << 30) - 1] {
                [
                    (active, inactive),
                    (-active, inactive),
                    (active, -inactive),
                    (-active, -inactive),
                ]
                .into_iter()
                .for_each(|(active, inactive)| kept(active, inactive));
            }
        }
    }

    #[test]
    fn taken_off_before_it_was_counted_is_none() {
        let load = Load::default();
        load.remove(0, true, 0, 0);
        assert_eq!((load.active(), load.total()), (0, 0));
        load.add(0, false, 0);
        assert_eq!((load.active(), load.inactive()), (0, 1));
        load.add(0, true, 0);
        assert_eq!(load.active(), 0);
    }
}
