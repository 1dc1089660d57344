//! Time as the table keeps it: sixteenths of a second since the machine booted.

/// A point in time: CLOCK_BOOTTIME in units of 1/16 s. It goes on over a restart of the daemon, which is why deadlines in
/// the mapped entries stay true. 32 bits last eight and a half years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u32);

impl Tick {
    /// Ticks in a second.
    pub const PER_SECOND: u32 = 16;

    const NANOSECONDS: u64 = 1_000_000_000 / Tick::PER_SECOND as u64;

    /// From nanoseconds of CLOCK_BOOTTIME.
    #[inline]
    pub fn from_boot_ns(ns: u64) -> Tick {
        Tick((ns / Tick::NANOSECONDS) as u32)
    }

    /// This many ticks later.
    #[inline]
    pub fn after(self, ticks: u32) -> Tick {
        Tick(self.0.saturating_add(ticks))
    }

    /// Ticks from `now` to this point; 0 when it is past.
    #[inline]
    pub fn ticks_left(self, now: Tick) -> u32 {
        self.0.saturating_sub(now.0)
    }

    /// Whole seconds from `now` to this point as the kernel lists them: rounded down, and some of the current tick is
    /// always gone, so that 60 s read 59 from the first moment on.
    #[inline]
    pub fn seconds_left(self, now: Tick) -> u32 {
        self.ticks_left(now).saturating_sub(1) / Tick::PER_SECOND
    }
}

/// Seconds as ticks; what does not fit is the largest.
#[inline]
pub const fn ticks_of_seconds(seconds: u32) -> u32 {
    seconds.saturating_mul(Tick::PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_round_down() {
        let now = Tick::from_boot_ns(3_000_000_000);
        assert_eq!(now, Tick(48));
        let deadline = now.after(ticks_of_seconds(60));
        assert_eq!(deadline.seconds_left(now), 59);
        assert_eq!(deadline.seconds_left(now.after(15)), 59);
        assert_eq!(deadline.seconds_left(now.after(16)), 58);
        assert_eq!(deadline.seconds_left(now.after(ticks_of_seconds(59))), 0);
        assert_eq!(now.seconds_left(deadline), 0);
        assert_eq!(ticks_of_seconds(u32::MAX), u32::MAX);
    }
}
