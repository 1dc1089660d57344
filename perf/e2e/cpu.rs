//! Which CPU who runs on, and how much of it was used.

use std::fs;
use std::process::Command;
use std::time::Duration;

use uvs::demo::cluster::Error;

/// The CPU of clients and servers in rows with a TCP program, and of whoever watches.
pub const OURS: usize = 0;
/// The CPU of directors.
pub const THEIRS: usize = 1;

/// Has the processes that `work` starts use that CPU only. They live as long as the thread that starts them, so this
/// moves the calling one there, and back to [`OURS`].
pub fn on<T>(cpu: usize, work: impl FnOnce() -> T) -> T {
    pin(cpu);
    let result = work();
    pin(OURS);
    result
}

/// Pins the calling thread.
pub fn pin(cpu: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
}

/// Gives every thread of a process real-time priority.
pub fn realtime(pid: u32) -> Result<(), Error> {
    let mut command = Command::new("chrt");
    crate::rig::run(command.args(["-a", "-f", "-p", "10", &pid.to_string()])).map(drop)
}

/// Runs `work`, on the main thread, with real-time priority; what others do on this CPU meanwhile waits.
pub fn undisturbed<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    let own = std::process::id().to_string();
    let set = |arguments: &[&str]| crate::rig::run(Command::new("chrt").args(arguments).arg(&own)).map(drop);
    set(&["-f", "-p", "10"])?;
    let result = work();
    set(&["-o", "-p", "0"])?;
    Ok(result)
}

/// CPU time of all threads of a process, up to now.
pub fn of_process(pid: u32) -> Duration {
    of_threads(pid, |_| true)
}

/// CPU time of the threads of a process that handle packets: uvs's workers, all threads of any other.
pub fn of_packets(pid: u32) -> Duration {
    match of_threads(pid, |name| name.starts_with("uvs-worker")) {
        Duration::ZERO => of_process(pid),
        workers => workers,
    }
}

fn of_threads(pid: u32, counts: impl Fn(&str) -> bool) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let folders = tasks.flatten().map(|task| task.path().display().to_string());
    let counted = folders.filter(|folder| counts(&fs::read_to_string(format!("{folder}/comm")).unwrap_or_default()));
    counted.map(|folder| schedstat(&format!("{folder}/schedstat"))).sum()
}

/// CPU time of the calling thread, up to now.
pub fn of_this_thread() -> Duration {
    schedstat("/proc/thread-self/schedstat")
}

/// CPU time of the kernel's thread that goes on with what interrupts left, on the directors' CPU.
pub fn of_softirqs() -> Duration {
    let name = format!("ksoftirqd/{THEIRS}");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = processes
        .filter(|entry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name))
        .map(|entry| schedstat(&format!("{}/schedstat", entry.path().display())));
    found.sum()
}

/// The first number is nanoseconds on a CPU.
fn schedstat(file: &str) -> Duration {
    let text = fs::read_to_string(file).unwrap_or_default();
    let ns = text.split_ascii_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(ns.unwrap_or(0))
}

/// Resident memory of a process in MiB.
pub fn memory_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<f64> = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    kib.unwrap_or(0.0) / 1024.0
}
