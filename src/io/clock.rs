//! The clock that goes on over restarts of the daemon and sleep of the machine.
#![allow(unsafe_code, reason = "clock_gettime by libc")]

/// Nanoseconds since the machine booted (CLOCK_BOOTTIME).
pub fn boot_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec, which the call fills.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    // It fails only for a clock that the kernel does not have; every kernel since 2.6.39 has this one.
    assert_eq!(result, 0, "CLOCK_BOOTTIME");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_in_nanoseconds() {
        let (before, start) = (boot_ns(), std::time::Instant::now());
        std::thread::sleep(std::time::Duration::from_millis(20));
        let (gone, measured) = (boot_ns() - before, start.elapsed().as_nanos() as u64);
        assert!(gone >= 20_000_000 && gone <= measured, "{gone} {measured}");
    }
}
