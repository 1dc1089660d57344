//! Whole frames by packet socket, past the local stack: for tests that put a frame on a wire and look what comes out.
//!
//! A [`FrameSocket`] sends frames as they are and collects what *arrives* at its interface (not what leaves it).

#![allow(unsafe_code, reason = "packet sockets take structures by pointer")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::netns::Namespace;
use super::virtio;
use crate::packet::{ChecksumOffload, Offload};

/// Longest frame taken: a merged super-frame with its headers.
const FRAME_MAX: usize = 65_536 + 64;

/// A packet socket on one interface.
#[derive(Debug)]
pub struct FrameSocket {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl FrameSocket {
    /// Opens one on the interface of that index, in the network namespace of the calling thread. The interface is
    /// promiscuous as long as it is open.
    pub fn open(link: u32) -> io::Result<FrameSocket> {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: socket takes numbers; the result is checked below. Protocol 0: nothing arrives before bind.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every_protocol;
        address.sll_ifindex = link.cast_signed();
        set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &1i32)?;
        // SAFETY: the pointer is to a sockaddr_ll of the length given.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        let membership = libc::packet_mreq {
            mr_ifindex: link.cast_signed(),
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set_option(&socket, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
        Ok(FrameSocket {
            socket,
            buffer: vec![0; FRAME_MAX],
        })
    }

    /// Opens one in another namespace.
    pub fn open_in(namespace: &Namespace, link: u32) -> io::Result<FrameSocket> {
        namespace.run(|| FrameSocket::open(link)).map_err(io::Error::other)?
    }

    /// Puts a frame on the wire as it is (Ethernet header first, no check sequence).
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: pointer and length are those of a live slice.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        match usize::try_from(sent) {
            Ok(sent) if sent == frame.len() => Ok(()),
            Ok(sent) => Err(io::Error::other(format!("{sent} of {} bytes sent", frame.len()))),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// The same, with the checksum at `start + offset` left to a device, as local stacks do on virtual interfaces.
    pub fn send_unfinished(&self, frame: &[u8], start: u16, offset: u16) -> io::Result<()> {
        let checksum = ChecksumOffload::Unfinished { start, offset };
        let header = virtio::encode(
            Offload {
                checksum,
                segmentation: None,
            },
            0,
        );
        // What arrives meanwhile gets its header only when it is read.
        set_option(&self.socket, libc::PACKET_VNET_HDR, &1i32)?;
        let sent = self.send(&[&header[..], frame].concat());
        set_option(&self.socket, libc::PACKET_VNET_HDR, &0i32)?;
        sent
    }

    /// The next frame that arrives, or `None` when the time is over.
    pub fn receive(&mut self, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
        let end = Instant::now() + timeout;
        loop {
            // SAFETY: pointer and length are those of a live buffer.
            let received = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    0,
                )
            };
            if let Ok(length) = usize::try_from(received) {
                return Ok(Some(self.buffer[..length].to_vec()));
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => {}
                io::ErrorKind::Interrupted => continue,
                _ => return Err(error),
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.sleep(left);
        }
    }

    /// The next frame that `wanted` says yes to, within the time; others are left out.
    pub fn receive_matching(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Option<Vec<u8>>> {
        let end = Instant::now() + timeout;
        loop {
            match self.receive(end.saturating_duration_since(Instant::now()))? {
                Some(frame) if wanted(&frame) => return Ok(Some(frame)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Everything that arrives until nothing has come for `quiet`.
    pub fn collect(&mut self, quiet: Duration) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.receive(quiet)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// Sleeps until a frame comes or the time is over; an error shows at the next receive.
    fn sleep(&self, timeout: Duration) {
        let ms = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let mut entry = libc::pollfd {
            fd: self.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the pointer is to one live pollfd.
        unsafe { libc::poll(&raw mut entry, 1, ms) };
    }
}

fn set_option<T>(socket: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: pointer and length are those of a live value, of the type that `option` takes (see the callers).
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::netlink::{Netlink, VethEnd};
    use crate::io::testing::in_namespace;

    #[test]
    fn a_frame_goes_over_the_wire_as_it_is_and_is_not_heard_where_it_was_sent() {
        in_namespace(|| {
            let mut netlink = Netlink::open().unwrap();
            let end = |name| VethEnd {
                name,
                namespace: None,
                mac: None,
            };
            netlink.create_veth([end("a"), end("b")], 1).unwrap();
            let index = |netlink: &mut Netlink, name| netlink.link(name).unwrap().index;
            let (a, b) = (index(&mut netlink, "a"), index(&mut netlink, "b"));
            for link in [a, b] {
                netlink.set_up(link, true).unwrap();
            }
            for link in [a, b] {
                assert!(netlink.wait_running(link, Duration::from_secs(5)).unwrap());
            }
            let mut left = FrameSocket::open(a).unwrap();
            let mut right = FrameSocket::open(b).unwrap();
            // Not for us by its address, a protocol nobody knows: only the socket may see it.
            let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x88, 0xb5];
            frame.extend(0..200u8);
            left.send(&frame).unwrap();
            let wait = Duration::from_secs(5);
            assert_eq!(
                right.receive_matching(wait, |f| f[12..14] == [0x88, 0xb5]).unwrap(),
                Some(frame.clone())
            );
            let back = left.collect(Duration::from_millis(50)).unwrap();
            assert!(back.iter().all(|f| *f != frame));
        });
    }
}
