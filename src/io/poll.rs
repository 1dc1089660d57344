//! Sleeping on file descriptors, and waking who sleeps.
//!
//! A worker that has nothing to do sleeps in [`PollSet::wait`] on its sockets and on its [`Waker`], through which the
//! control thread tells it that a message waits in its channel.
#![allow(unsafe_code, reason = "eventfd, poll, read and write by libc")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

/// An eventfd: any number of wake-ups before the sleeper looks are one.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A new one; clones wake the same sleeper.
    pub fn new() -> io::Result<Waker> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and nothing else owns it.
        Ok(Waker(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Wakes the sleeper now, or at its next attempt to sleep.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the pointer is to 8 readable bytes. A write fails only when the counter is full, and then the
        // sleeper is awake already, so the result does not matter.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Forgets the wake-ups so far.
    fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: the pointer is to 8 writable bytes. A read fails only when nothing is there to forget.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

/// What ended a [`PollSet::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// One of the file descriptors has something (also an error, which the next call on it reports).
    Ready,
    /// The waker only.
    Waker,
    /// The time was over, or a signal came.
    Timeout,
}

/// File descriptors to sleep on, besides a waker.
#[derive(Debug)]
pub struct PollSet {
    /// The waker's comes first.
    fds: Vec<libc::pollfd>,
    waker: Waker,
}

impl PollSet {
    /// Sleeps on `waker` and on each of `fds` for something to read. The caller keeps `fds` open.
    pub fn new(waker: Waker, fds: &[RawFd]) -> PollSet {
        let entry = |&fd: &RawFd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let own = waker.0.as_raw_fd();
        PollSet {
            fds: std::iter::once(&own).chain(fds).map(entry).collect(),
            waker,
        }
    }

    /// Sleeps on `fd` no longer: one that is broken would end every sleep at once.
    pub fn remove(&mut self, fd: RawFd) {
        // poll(2) ignores negative descriptors.
        self.fds[1..].iter_mut().filter(|p| p.fd == fd).for_each(|p| p.fd = -1);
    }

    /// Sleeps until something comes or `timeout` is over (rounded up to milliseconds).
    pub fn wait(&mut self, timeout: Duration) -> Woken {
        let ms = timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
        // SAFETY: pointer and length are those of a live Vec of pollfd.
        let ready = unsafe { libc::poll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, ms) };
        if ready <= 0 {
            return Woken::Timeout;
        }
        let woken = self.fds[0].revents != 0;
        if woken {
            self.waker.clear();
        }
        if ready as usize > woken as usize {
            Woken::Ready
        } else {
            Woken::Waker
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn many_wake_ups_are_one() {
        let waker = Waker::new().unwrap();
        let mut set = PollSet::new(waker.clone(), &[]);
        waker.wake();
        waker.wake();
        assert_eq!(set.wait(LONG), Woken::Waker);
        assert_eq!(set.wait(Duration::ZERO), Woken::Timeout);
    }

    #[test]
    fn wakes_from_another_thread_and_on_data() {
        let waker = Waker::new().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut set = PollSet::new(waker.clone(), &[theirs.as_raw_fd()]);
        let started = Instant::now();
        let thread = std::thread::spawn(move || waker.wake());
        assert_eq!(set.wait(LONG), Woken::Waker);
        thread.join().unwrap();
        ours.write_all(b"x").unwrap();
        assert_eq!(set.wait(LONG), Woken::Ready);
        set.remove(theirs.as_raw_fd());
        assert_eq!(set.wait(Duration::from_millis(1)), Woken::Timeout);
        assert!(started.elapsed() < LONG);
    }
}
