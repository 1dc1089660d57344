//! What the standard library does before `main`, as far as `uvs` needs it. The rest, a read of `/proc/self/maps` and a stack of its own
//! for the message that a stack has overflown, takes 0.15 ms: `uvs --version` 0.87 ms without, 1.02 with
//! (perf/results/2026-11-26-07bb2f8-start.md).
#![allow(unsafe_code, reason = "SIGPIPE, fcntl and open by libc")]

/// Makes the process what Rust code expects: writing to a pipe that nobody reads is an error and no signal, and standard input,
/// output and error are open, so that no other file gets their numbers. To be called first, before any thread.
pub fn prepare() {
    // SAFETY: SIG_IGN is no function of ours; nothing else in this process knows of signals yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    for fd in 0..3 {
        // SAFETY: no pointers; a number that is closed is what is asked for.
        let closed = unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0;
        // SAFETY: a string of C. The kernel gives the lowest free number, which is this one; children have it too, as any of the three.
        if closed && unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } != fd {
            std::process::abort();
        }
    }
}
