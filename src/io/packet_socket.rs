//! One packet socket on one interface: opened so that not one unwanted frame gets in.
//!
//! A packet socket receives from the moment that it is bound, and a fan-out group can only be joined after that. So
//! the order is: refuse everything, bind, join, and only then let the real filter decide. Frames carry a
//! `virtio_net_hdr` in front (see [`super::virtio`]), so super-frames and unfinished checksums come and go as they are.
//!
//! `PACKET_QDISC_BYPASS` stays off: the bypass drops every super-frame that the card does not segment itself.
#![allow(unsafe_code, reason = "socket, bind and socket options by libc")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Kernel memory for frames that wait to be received, in bytes: some 200 super-frames, or 20,000 small frames.
const RECEIVE_BUFFER: i32 = 16 << 20;
/// Kernel memory for frames that wait in the interface's queue.
const SEND_BUFFER: i32 = 8 << 20;

/// Which step failed, on which interface.
#[derive(Debug, thiserror::Error)]
#[error("packet socket on {interface}: cannot {what}: {source}{}", if source.raw_os_error() == Some(libc::EPERM) { " (needs CAP_NET_RAW and CAP_NET_ADMIN)" } else { "" })]
pub struct SocketError {
    /// Name of the interface.
    pub interface: String,
    /// The step.
    pub what: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

/// A packet socket bound to one interface.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    interface: String,
}

impl PacketSocket {
    /// A socket on the interface that refuses every frame until [`PacketSocket::filter`].
    pub fn open(interface: &str, index: u32) -> Result<PacketSocket, SocketError> {
        let failed = |what, source| SocketError {
            interface: interface.into(),
            what,
            source,
        };
        // Protocol 0: nothing is received before bind.
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if fd < 0 {
            return Err(failed("open it", io::Error::last_os_error()));
        }
        // SAFETY: `fd` was just opened and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = PacketSocket {
            fd,
            interface: interface.into(),
        };
        socket.refuse_all()?;
        socket.packet_option("carry virtio headers", libc::PACKET_VNET_HDR, 1)?;
        socket.packet_option("see VLAN tags", libc::PACKET_AUXDATA, 1)?;
        socket.packet_option("ignore outgoing frames", libc::PACKET_IGNORE_OUTGOING, 1)?;
        socket.option(
            "size the receive buffer",
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            &RECEIVE_BUFFER,
        )?;
        socket.option(
            "size the send buffer",
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            &SEND_BUFFER,
        )?;
        socket.bind(index)?;
        Ok(socket)
    }

    /// Shares the interface's frames with other sockets by a hash of the flow, each frame to one of them. `group` is
    /// what the first one's call returned; `None` makes a new group.
    pub fn join_fanout(&self, group: Option<u16>, defragment: bool) -> Result<u16, SocketError> {
        let mut flags = libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
        if group.is_none() {
            flags |= libc::PACKET_FANOUT_FLAG_UNIQUEID;
        }
        if defragment {
            flags |= libc::PACKET_FANOUT_FLAG_DEFRAG;
        }
        let request = group.unwrap_or(0) as u32 | (libc::PACKET_FANOUT_HASH | flags) << 16;
        self.packet_option("join the fan-out group", libc::PACKET_FANOUT, request as i32)?;
        let mut value = 0i32;
        self.get("read the fan-out group", libc::PACKET_FANOUT, &mut value)?;
        Ok(value as u16)
    }

    /// From now on receives what this BPF program (of type socket filter) keeps, and nothing else.
    pub fn filter(&self, program: BorrowedFd<'_>) -> Result<(), SocketError> {
        self.option(
            "attach its filter",
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            &program.as_raw_fd(),
        )
    }

    /// The same with a classic BPF program.
    pub fn filter_classic(&self, program: &mut [libc::sock_filter]) -> Result<(), SocketError> {
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        self.option("attach its filter", libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    /// Frames dropped since the last call because the receive buffer was full.
    pub fn take_drops(&self) -> u64 {
        let mut statistics = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        match self.get("read its statistics", libc::PACKET_STATISTICS, &mut statistics) {
            Ok(()) => statistics.tp_drops.into(),
            // Only a broken descriptor refuses, and that shows elsewhere.
            Err(_) => 0,
        }
    }

    /// Name of its interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    fn refuse_all(&self) -> Result<(), SocketError> {
        self.filter_classic(&mut [classic::keep(0)])
    }

    fn bind(&self, index: u32) -> Result<(), SocketError> {
        // SAFETY: sockaddr_ll is plain data, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        // All protocols: then frames are seen before traffic control, which keeps the kernel from answering them.
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: pointer and length are those of a live sockaddr_ll.
        let result = unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), len) };
        self.check("bind it", result)
    }

    fn packet_option(&self, what: &'static str, option: i32, value: i32) -> Result<(), SocketError> {
        self.option(what, libc::SOL_PACKET, option, &value)
    }

    fn option<T: Copy>(&self, what: &'static str, level: i32, option: i32, value: &T) -> Result<(), SocketError> {
        let len = size_of::<T>() as libc::socklen_t;
        // SAFETY: pointer and length are those of a live value, which the kernel only reads (a sock_fprog's own
        // pointer is to a slice that the caller holds).
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                len,
            )
        };
        self.check(what, result)
    }

    fn get<T: Copy>(&self, what: &'static str, option: i32, value: &mut T) -> Result<(), SocketError> {
        let mut len = size_of::<T>() as libc::socklen_t;
        let to = std::ptr::from_mut(value).cast();
        // SAFETY: pointer and length are those of a live value of integers, of which any content is valid.
        let result = unsafe { libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_PACKET, option, to, &mut len) };
        self.check(what, result)
    }

    fn check(&self, what: &'static str, result: i32) -> Result<(), SocketError> {
        if result == 0 {
            return Ok(());
        }
        let source = io::Error::last_os_error();
        Err(SocketError {
            interface: self.interface.clone(),
            what,
            source,
        })
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Instructions of classic BPF programs, which see a frame from its Ethernet header on.
pub mod classic {
    use libc::sock_filter;

    /// Loads a byte.
    pub fn load_byte(at: u32) -> sock_filter {
        // BPF_LD | BPF_B | BPF_ABS.
        sock_filter {
            code: 0x30,
            jt: 0,
            jf: 0,
            k: at,
        }
    }

    /// Loads two bytes.
    pub fn load_half(at: u32) -> sock_filter {
        // BPF_LD | BPF_H | BPF_ABS.
        sock_filter {
            code: 0x28,
            jt: 0,
            jf: 0,
            k: at,
        }
    }

    /// Loads whom the frame is for (`PACKET_HOST` and company).
    pub fn load_packet_kind() -> sock_filter {
        // BPF_LD | BPF_W | BPF_ABS of SKF_AD_OFF + SKF_AD_PKTTYPE.
        sock_filter {
            code: 0x20,
            jt: 0,
            jf: 0,
            k: 0xffff_f004,
        }
    }

    /// Skips `then` instructions if what was loaded equals `value`, else `otherwise`.
    pub fn if_equal(value: u32, then: u8, otherwise: u8) -> sock_filter {
        // BPF_JMP | BPF_JEQ | BPF_K.
        sock_filter {
            code: 0x15,
            jt: then,
            jf: otherwise,
            k: value,
        }
    }

    /// Ends: keeps up to `bytes` of the frame; 0 refuses it.
    pub fn keep(bytes: u32) -> sock_filter {
        // BPF_RET | BPF_K.
        sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: bytes,
        }
    }
}
