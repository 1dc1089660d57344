//! Cleaning up even when this process is killed: a child that waits for our end.
//!
//! `Drop` runs on a return and on an unwinding panic, but not on SIGKILL nor where a panic aborts. A [`Guardian`]
//! forks early; the child does nothing but wait until our end of a pipe is closed, by us or by the kernel after our
//! death, and then runs the clean-up.

#![allow(unsafe_code, reason = "fork, pipe, waitpid")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The parent's side.
#[derive(Debug)]
pub struct Guardian {
    /// Closed first, which is the sign.
    pipe: Option<OwnedFd>,
    child: libc::pid_t,
}

impl Guardian {
    /// Forks the guardian. `cleanup` runs in it after this process ended or dropped the guardian. Refused with
    /// several threads, since a forked child has only one of them and whatever locks the others held.
    pub fn start(cleanup: impl FnOnce()) -> io::Result<Guardian> {
        if fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::other("a guardian must be started before any thread"));
        }
        let mut ends = [0; 2];
        // SAFETY: pipe2 writes two descriptors to the array.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both were just opened and nothing else owns them.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        // SAFETY: this process has one thread (checked above), so the child is a whole copy of it.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(write);
                wait_for_end(&read);
                cleanup();
                // SAFETY: ends the child at once, without the parent's exit handlers and buffered output.
                unsafe { libc::_exit(0) }
            }
            child => Ok(Guardian {
                pipe: Some(write),
                child,
            }),
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // SAFETY: no pointer to a status is given; the child is ours and not waited for elsewhere.
        unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
    }
}

/// In the child: sleeps until nobody holds the other end of the pipe.
fn wait_for_end(pipe: &OwnedFd) {
    // A session of its own: Ctrl-C and the end of the terminal are for the parent.
    // SAFETY: takes and touches nothing; fails only for a group leader, which a fresh child is not.
    unsafe { libc::setsid() };
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let mut byte = 0u8;
    loop {
        // SAFETY: the pointer is to one writable byte.
        let read = unsafe { libc::read(pipe.as_raw_fd(), (&raw mut byte).cast(), 1) };
        let interrupted = read < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if !interrupted {
            return;
        }
    }
}
