//! What the standard library does not have of Unix sockets and files: who is at the other end, and locks.
#![allow(unsafe_code, reason = "SO_PEERCRED, flock and geteuid by libc")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Who opened the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id, in our pid namespace (0 if it is not visible there).
    pub pid: i32,
    /// Effective user id when it connected.
    pub uid: u32,
}

/// The credentials of the peer, as the kernel noted them when the connection was made.
pub fn peer_credentials(stream: &UnixStream) -> io::Result<Credentials> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers are to a live ucred and its length, which the call may write.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Credentials {
        pid: found.pid,
        uid: found.uid,
    })
}

/// Our effective user id.
pub fn effective_uid() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

/// Locks the whole file for this open file alone, until it is closed. `false`: another has it.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: no pointers; the result is checked.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_is_known() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let found = peer_credentials(&ours).unwrap();
        assert_eq!(found.pid, std::process::id() as i32);
        assert_eq!(found.uid, effective_uid());
    }

    #[test]
    fn a_lock_keeps_others_out_until_closed() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(path.path()).unwrap();
        let first = open();
        assert!(try_lock(&first).unwrap());
        assert!(!try_lock(&open()).unwrap());
        drop(first);
        assert!(try_lock(&open()).unwrap());
    }
}
