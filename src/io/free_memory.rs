//! How much memory the machine has left.
#![allow(unsafe_code, reason = "sysinfo: std does not know")]

/// Pages that are free or in buffers: what the kernel's IPVS compares with `amemthresh`. Everything, should the kernel not say.
pub fn pages() -> u64 {
    // SAFETY: an all-zero sysinfo is a valid one: it has only integers.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a sysinfo of ours, which the call fills.
    if unsafe { libc::sysinfo(&mut info) } != 0 {
        return u64::MAX;
    }
    let bytes = (info.freeram as u64 + info.bufferram as u64).saturating_mul(info.mem_unit.into());
    bytes / PAGE
}

/// What IPVS and `amemthresh` take a page for on x86-64.
const PAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    #[test]
    fn as_proc_meminfo_says() {
        let text = std::fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
        let kilobytes = |name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(name)).expect(name);
            let number = line.split_whitespace().nth(1).expect("a number");
            number.parse().expect("a number")
        };
        let expected = (kilobytes("MemFree:") + kilobytes("Buffers:")) / 4;
        // Others take and give meanwhile.
        let near = expected / 2..=expected * 2;
        assert!(
            near.contains(&super::pages()),
            "{} is not near {expected}",
            super::pages()
        );
    }
}
