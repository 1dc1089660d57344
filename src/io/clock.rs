//! The clock of the data plane.
#![allow(unsafe_code, reason = "clock_gettime: std has no CLOCK_BOOTTIME")]

/// Nanoseconds since the machine booted, sleep included (CLOCK_BOOTTIME): goes on over a restart of the daemon. Read
/// once or twice a batch, 22 ns each.
pub fn boot_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours. The call cannot fail: the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    #[test]
    fn goes_forward() {
        let before = super::boot_ns();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(super::boot_ns() - before >= 2_000_000);
    }
}
