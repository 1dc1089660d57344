//! What the standard library does before `main`, as far as `uvs` needs it. The rest, a read of `/proc/self/maps` and a stack of its own
//! for the message that a stack has overflown, would be a tenth of the time that a command like `ipvsadm -e` takes: 0.87 ms of a process
//! without, 1.02 with.
#![allow(unsafe_code, reason = "argc and argv of C's main, poll and SIGPIPE by libc")]

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::fs::OpenOptions;
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStrExt;

/// Makes the process what Rust code expects: writing to a pipe that nobody reads is an error and no signal, and standard input,
/// output and error are open, so that no other file gets their numbers. To be called first, before any thread.
pub fn prepare() {
    // SAFETY: SIG_IGN is no function of ours; nothing else in this process knows of signals yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let mut standard = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: the pointer is to three live pollfds.
    unsafe { libc::poll(standard.as_mut_ptr(), 3, 0) };
    for closed in standard.iter().filter(|fd| fd.revents & libc::POLLNVAL != 0) {
        // The kernel gives the lowest free number, which is this one.
        let opened = OpenOptions::new().read(true).write(true).open("/dev/null");
        if opened.map(IntoRawFd::into_raw_fd).ok() != Some(closed.fd) {
            std::process::abort();
        }
    }
}

/// The arguments of C's `main`, the program's name first.
///
/// # Safety
/// `argv` points to `argc` strings that end with NUL, as C promises to `main`.
pub unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<OsString> {
    let argument = |n| {
        // SAFETY: the caller's promise.
        let text = unsafe { CStr::from_ptr(*argv.add(n)) };
        OsStr::from_bytes(text.to_bytes()).to_owned()
    };
    (0..usize::try_from(argc).unwrap_or(0)).map(argument).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_bytes() {
        let argv = [c"uvs".as_ptr(), c"".as_ptr(), c"a\xffb".as_ptr()];
        // SAFETY: three strings of C.
        let arguments = unsafe { arguments(3, argv.as_ptr()) };
        assert_eq!(
            arguments,
            [OsStr::new("uvs"), OsStr::new(""), OsStr::from_bytes(b"a\xffb")]
        );
    }
}
