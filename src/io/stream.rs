//! TCP connections from a chosen address: the standard library cannot bind before it connects.

#![allow(unsafe_code, reason = "socket, bind and connect take addresses by pointer")]

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Connects to `to` from `from` (port 0: the kernel's choice), in the network namespace of the calling thread.
pub fn connect(from: Option<SocketAddr>, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let Some(from) = from else {
        return TcpStream::connect_timeout(&to, timeout);
    };
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes numbers; the result is checked below.
    let fd = unsafe { libc::socket(family, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (address, length) = raw_address(from);
    // SAFETY: the pointer is to a sockaddr of at least `length` bytes.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let (address, length) = raw_address(to);
    // SAFETY: as above.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
        wait_writable(&socket, timeout)?;
    }
    let stream = TcpStream::from(socket);
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn wait_writable(socket: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let mut entry = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the pointer is to one live pollfd.
    match unsafe { libc::poll(&raw mut entry, 1, ms) } {
        0 => Err(io::Error::from(io::ErrorKind::TimedOut)),
        n if n < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The address as the kernel takes it, and its length.
fn raw_address(address: SocketAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_in6.
    let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    match address.ip() {
        IpAddr::V6(ip) => {
            raw.sin6_family = libc::AF_INET6 as u16;
            raw.sin6_port = address.port().to_be();
            raw.sin6_addr.s6_addr = ip.octets();
            (raw, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
        IpAddr::V4(ip) => {
            // sockaddr_in begins as sockaddr_in6 does: family, port, then the address where the flow label is.
            raw.sin6_family = libc::AF_INET as u16;
            raw.sin6_port = address.port().to_be();
            raw.sin6_flowinfo = u32::from_ne_bytes(ip.octets());
            (raw, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn connects_from_the_address_given() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let from: SocketAddr = "127.0.0.77:0".parse().unwrap();
        let _stream = connect(Some(from), to, Duration::from_secs(5)).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), from.ip());
        // Nobody listens at this address of the loopback network.
        let nobody: SocketAddr = (std::net::Ipv4Addr::new(127, 117, 1, 77), to.port()).into();
        let refused = connect(Some(from), nobody, Duration::from_secs(5)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
