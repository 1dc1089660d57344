//! The few questions and settings of ethtool that uvs needs: queues in use, and offloads.
//!
//! By ioctl on a socket of the calling thread's network namespace.

#![allow(unsafe_code, reason = "SIOCETHTOOL is an ioctl on structures")]

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

/// Receive and transmit queues in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// Receive queues.
    pub rx: u32,
    /// Transmit queues.
    pub tx: u32,
}

/// What a card or its driver does for the stack, and that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums of received frames.
    RxChecksum,
    /// Checksums of sent frames.
    TxChecksum,
    /// TCP segmentation.
    Tso,
    /// Generic segmentation.
    Gso,
    /// Generic receive merging.
    Gro,
}

impl Offload {
    /// All of them.
    pub const ALL: [Offload; 5] = [
        Offload::RxChecksum,
        Offload::TxChecksum,
        Offload::Tso,
        Offload::Gso,
        Offload::Gro,
    ];

    /// `ETHTOOL_S…` (linux/ethtool.h).
    fn set_command(self) -> u32 {
        match self {
            Offload::RxChecksum => 0x15,
            Offload::TxChecksum => 0x17,
            Offload::Tso => 0x1f,
            Offload::Gso => 0x24,
            Offload::Gro => 0x2c,
        }
    }

    /// `ETHTOOL_G…`: one below the setting, for each of these.
    fn get_command(self) -> u32 {
        self.set_command() - 1
    }
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct ChannelsRequest {
    command: u32,
    rx_max: u32,
    tx_max: u32,
    other_max: u32,
    combined_max: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_value`.
#[repr(C)]
struct ValueRequest {
    command: u32,
    value: u32,
}

/// Queues in use on `interface`; `None` when its driver does not say.
pub fn channels(interface: &str) -> io::Result<Option<Channels>> {
    const GET_CHANNELS: u32 = 0x3c;
    let mut request = ChannelsRequest {
        command: GET_CHANNELS,
        ..ChannelsRequest::default()
    };
    match ioctl(interface, &mut request) {
        Ok(()) => Ok(Some(Channels {
            rx: (request.rx + request.combined).max(1),
            tx: (request.tx + request.combined).max(1),
        })),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Switches an offload of `interface` on or off.
pub fn set_offload(interface: &str, offload: Offload, on: bool) -> io::Result<()> {
    let mut request = ValueRequest {
        command: offload.set_command(),
        value: on.into(),
    };
    ioctl(interface, &mut request)
}

/// Whether an offload of `interface` is on.
pub fn offload(interface: &str, offload: Offload) -> io::Result<bool> {
    let mut request = ValueRequest {
        command: offload.get_command(),
        value: 0,
    };
    ioctl(interface, &mut request)?;
    Ok(request.value != 0)
}

/// `request` begins with its command and is as long as that command says.
fn ioctl<T>(interface: &str, request: &mut T) -> io::Result<()> {
    // An unconnected UDP socket: any socket of the namespace serves.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: an all-zero ifreq is valid: bytes, integers and pointers that nobody follows.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays NUL.
    if interface.is_empty() || interface.len() >= ifreq.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_data = std::ptr::from_mut(request).cast();
    // SAFETY: the kernel reads the command at `ifru_data` and then reads and writes the structure of that command,
    // which is what the two callers pass; `request` and `ifreq` live until the call returns.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifreq) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::netlink::{Netlink, VethEnd};
    use crate::io::testing::in_namespace;

    #[test]
    fn queues_and_offloads_of_a_veth() {
        in_namespace(|| {
            let end = |name| VethEnd {
                name,
                namespace: None,
                mac: None,
            };
            Netlink::open().unwrap().create_veth([end("a"), end("b")], 2).unwrap();
            assert_eq!(channels("a").unwrap(), Some(Channels { rx: 2, tx: 2 }));
            for which in Offload::ALL {
                set_offload("a", which, true).unwrap();
                set_offload("a", which, false).unwrap();
                assert!(!offload("a", which).unwrap(), "{which:?}");
            }
            assert_eq!(channels("lo").unwrap(), None);
            assert_eq!(channels("nothere").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        });
    }
}
