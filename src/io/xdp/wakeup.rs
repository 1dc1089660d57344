//! Waking the kernel, what a socket really got, and what was counted on it.
//!
//! In copy mode the kernel always wants to be woken to send; on zero-copy cards that are busy anyway, a kick is saved.
#![allow(unsafe_code, reason = "sendto and recvfrom without data, socket options")]

use std::io;
use std::os::fd::RawFd;

/// Tells the kernel that the transmit ring has frames.
pub(super) fn kick_transmit(socket: RawFd) -> io::Result<()> {
    let none = std::ptr::null::<u8>();
    // By its number: where a program has threads, `sendto` of glibc also writes down, before and after, that the thread may be
    // cancelled in it.
    // SAFETY: no data and no address.
    match unsafe { libc::syscall(libc::SYS_sendto, socket, none, 0usize, libc::MSG_DONTWAIT, none, 0) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells the kernel that the fill ring has frames again. Failure shows at the next call that matters.
pub(super) fn kick_fill(socket: RawFd) {
    let none = std::ptr::null_mut();
    // SAFETY: no buffer and no address.
    unsafe {
        libc::recvfrom(
            socket,
            none,
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
}

/// Lets one kick send that many frames in copy mode, where the kernel knows this (Linux 6.18; before, 32).
pub(super) fn raise_transmit_budget(socket: RawFd, frames: u32) {
    const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
    // SAFETY: the pointer is to a 32-bit number. Older kernels refuse, and then there are more kicks.
    unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            (&raw const frames).cast(),
            4,
        )
    };
}

/// The bound socket works without copying.
pub(super) fn is_zero_copy(socket: RawFd) -> io::Result<bool> {
    Ok(option(socket, libc::SOL_XDP, libc::XDP_OPTIONS)? & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// What the kernel counted on the socket.
pub(super) fn statistics(socket: RawFd) -> io::Result<libc::xdp_statistics> {
    // SAFETY: plain numbers, for which zero is valid.
    let mut statistics: libc::xdp_statistics = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::xdp_statistics>() as libc::socklen_t;
    let (level, option) = (libc::SOL_XDP, libc::XDP_STATISTICS);
    // SAFETY: the pointers are to the structure of that option and to its length.
    match unsafe { libc::getsockopt(socket, level, option, (&raw mut statistics).cast(), &raw mut len) } {
        0 => Ok(statistics),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the socket's pending error: set when its interface was deleted.
pub(super) fn pending_error(socket: RawFd) -> io::Result<Option<io::Error>> {
    match option(socket, libc::SOL_SOCKET, libc::SO_ERROR)? {
        0 => Ok(None),
        errno => Ok(Some(io::Error::from_raw_os_error(errno as i32))),
    }
}

fn option(socket: RawFd, level: i32, option: i32) -> io::Result<u32> {
    let (mut value, mut len) = (0u32, 4);
    // SAFETY: the pointers are to a 32-bit number and its length.
    match unsafe { libc::getsockopt(socket, level, option, (&raw mut value).cast(), &raw mut len) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}
