//! What the standard library does not have of Unix sockets and files: who is at the other end, connecting and sending without
//! waiting, and locks.
#![allow(
    unsafe_code,
    reason = "SO_PEERCRED, connect and send without waiting, flock and geteuid by libc"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
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

/// Connects to the abstract name without waiting: `WouldBlock` when as many wait there as may.
pub fn connect_abstract(name: &str) -> io::Result<UnixStream> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe {
        libc::socket(
            libc::AF_UNIX,
            libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            0,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let stream = unsafe { UnixStream::from_raw_fd(fd) };
    // SAFETY: sockaddr_un is plain data, for which zero is valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // An abstract name begins with a NUL.
    let Some(room) = address.sun_path.get_mut(1..=name.len()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    for (to, from) in room.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    // SAFETY: the pointer is to a sockaddr_un of ours, of which `length` bytes are set.
    let result = unsafe { libc::connect(fd, (&raw const address).cast(), length as libc::socklen_t) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stream)
}

/// Sends what there is room for at once, and returns how many bytes that is.
pub fn send_now(stream: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer is to as many bytes as are told.
    let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
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
