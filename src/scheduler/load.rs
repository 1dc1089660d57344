//! The live numbers of a destination, and the thresholds that hang on them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Live numbers of one destination, shared by all workers. They outlast the table: a destination that is removed
/// and added again while connections live finds its counts again.
#[derive(Debug, Default)]
pub struct Load {
    /// ActiveConn.
    pub active: AtomicU32,
    /// InActConn.
    pub inactive: AtomicU32,
    /// PersistConn: persistence templates.
    pub persistent: AtomicU32,
    /// Over its upper threshold, and not yet below its lower one.
    pub overloaded: AtomicBool,
}

impl Load {
    /// ActiveConn. Another worker may take a connection off before the one that made it has counted it: then 0.
    #[inline]
    pub fn active(&self) -> u32 {
        (self.active.load(Ordering::Relaxed) as i32).max(0) as u32
    }

    /// InActConn.
    #[inline]
    pub fn inactive(&self) -> u32 {
        (self.inactive.load(Ordering::Relaxed) as i32).max(0) as u32
    }

    /// Both: what the thresholds limit.
    #[inline]
    pub fn total(&self) -> u32 {
        self.active().saturating_add(self.inactive())
    }

    /// Takes no new connections because of its thresholds.
    #[inline]
    pub fn is_overloaded(&self) -> bool {
        self.overloaded.load(Ordering::Relaxed)
    }

    /// Counts a new connection; at `upper` (`-x`, 0 = no limit) of them no more are taken.
    pub fn add(&self, is_active: bool, upper: u32) {
        self.number(is_active).fetch_add(1, Ordering::Relaxed);
        self.check_upper(upper);
    }

    /// A connection changed its state.
    pub fn change(&self, was_active: bool, is_active: bool) {
        if was_active != is_active {
            self.number(was_active).fetch_sub(1, Ordering::Relaxed);
            self.number(is_active).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A connection ended (not: was closed): below `lower` (`-y`), or three quarters of `upper` without one, new ones
    /// are taken again.
    pub fn remove(&self, was_active: bool, upper: u32, lower: u32) {
        self.number(was_active).fetch_sub(1, Ordering::Relaxed);
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
        if upper != 0 && self.total() >= upper {
            self.overloaded.store(true, Ordering::Relaxed);
        }
    }

    fn check_lower(&self, upper: u32, lower: u32) {
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

    fn number(&self, is_active: bool) -> &AtomicU32 {
        if is_active { &self.active } else { &self.inactive }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens up to the limit, then ends one after the other: at which totals are new ones refused?
    fn refused_while_ending(upper: u32, lower: u32) -> Vec<u32> {
        let load = Load::default();
        for n in 0..upper {
            assert!(!load.is_overloaded(), "refused at {n}");
            load.add(true, upper);
        }
        assert!(load.is_overloaded());
        load.change(true, false);
        assert!(load.is_overloaded(), "closing is not ending");
        let mut refused = Vec::new();
        load.remove(false, upper, lower);
        for _ in 1..upper {
            if load.is_overloaded() {
                refused.push(load.total());
            }
            load.remove(true, upper, lower);
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
            load.add(false, 0);
        }
        assert!(!load.is_overloaded());
        load.add(false, 1001);
        assert!(load.is_overloaded());
        load.remove(false, 0, 0);
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

    #[test]
    fn taken_off_before_it_was_counted_is_none() {
        let load = Load::default();
        load.remove(true, 0, 0);
        assert_eq!((load.active(), load.total()), (0, 0));
        load.add(true, 0);
        assert_eq!(load.active(), 0);
    }
}
