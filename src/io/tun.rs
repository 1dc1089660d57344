//! Frames for the local stack: one tun device a daemon, one queue of it a worker.
//!
//! The filter keeps every frame of a virtual service away from the kernel. What turns out to be the kernel's after
//! all (a port nobody serves on the VIP, a local real server) is written into this device, with its unfinished
//! checksum or as a super-frame if that is how it came, and the local stack takes it as received there.
//!
//! Its source address is reachable by another interface, so reverse path filtering would drop it, silently: strict
//! always, loose when the device has no address. The higher of the device's own setting and that of `all` counts, and
//! loose (2) is higher than strict (1). So the device is set to loose and gets an address (a loopback one, which is the
//! host's anyway): then it works whatever `all` says. [`RpFilter`] reads the settings and says if that was undone.
#![allow(unsafe_code, reason = "tun and interface ioctls, writev")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::netlink::{self, Netlink};
use super::virtio;
use crate::packet::{ETHERNET_HEADER_LEN, Offload};

/// Name of the daemon's device.
pub const NAME: &str = "uvs0";

/// The device's own address, so that loose reverse path filtering lets frames in. Of the network that is local anyway.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 117, 118, 115);

/// Largest MTU the kernel gives a tun device: a super-frame must fit.
const MTU: i32 = 65535;

const TUN_PATH: &str = "/dev/net/tun";

/// Why there is no tun device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel has no tun driver, or the container does not show it.
    #[error("cannot open {TUN_PATH}: {0} (is the tun module there, and the device in this container?)")]
    Open(#[source] io::Error),
    /// No valid interface name.
    #[error("'{0}' is no interface name")]
    Name(String),
    /// The device cannot be made or joined.
    #[error("cannot create tun device {name}: {source}{}", hint(.source))]
    Create {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It cannot get its address.
    #[error("tun device {name}: {source}")]
    Address {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: netlink::Error,
    },
    /// The device is there and cannot be set up.
    #[error("cannot {what} of tun device {name}: {source}")]
    Configure {
        /// Its name.
        name: String,
        /// What failed.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (needs CAP_NET_ADMIN)",
        Some(libc::EINVAL) | Some(libc::EBUSY) => " (an interface of that name exists and is something else)",
        _ => "",
    }
}

/// The device. It lives as long as this or one of its queues.
#[derive(Debug)]
pub struct Tun {
    name: String,
    /// Keeps the device.
    _fd: OwnedFd,
}

impl Tun {
    /// Makes the device in the calling thread's network namespace (or joins it: a daemon that takes over finds the
    /// old one's), sees to it that no reverse path filter is in the way, and brings it up.
    pub fn create(name: &str) -> Result<Tun, TunError> {
        let fd = open_queue(name)?;
        let configure = |what, source| TunError::Configure {
            name: name.into(),
            what,
            source,
        };
        // May be read-only in a container; then what it says already decides, below.
        set_conf("ipv4", name, "rp_filter", "2").unwrap_or_else(|e| log::debug!("{name}: rp_filter: {e}"));
        // Replies of NAT destinations come this way as well when their client's hop is not known, and are from an address of
        // the director's own by then.
        set_conf("ipv4", name, "accept_local", "1").unwrap_or_else(|e| log::debug!("{name}: accept_local: {e}"));
        // IPv6 may be absent or off; then there is nothing to hand back. A link-local address would only make noise.
        set_conf("ipv6", name, "addr_gen_mode", "1").unwrap_or_else(|e| log::debug!("{name}: addr_gen_mode: {e}"));
        set_conf("ipv6", name, "accept_ra", "0").unwrap_or_else(|e| log::debug!("{name}: accept_ra: {e}"));
        let ioctl = InterfaceIoctl::new(name).map_err(|e| configure("reach the settings", e))?;
        ioctl.set_mtu(MTU).map_err(|e| configure("set the MTU", e))?;
        ioctl.bring_up().map_err(|e| configure("set the state", e))?;
        give_address(name)?;
        match RpFilter::read(name) {
            Ok(filter) => filter.problem().iter().for_each(|problem| log::error!("{problem}")),
            Err(error) => log::warn!("cannot tell whether a reverse path filter is in the way: {error}"),
        }
        Ok(Tun {
            name: name.into(),
            _fd: fd,
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One more queue, for one worker. To be called in the namespace of the device.
    pub fn queue(&self) -> Result<TunQueue, TunError> {
        Ok(TunQueue {
            fd: open_queue(&self.name)?,
        })
    }
}

/// A worker's way into the local stack.
#[derive(Debug)]
pub struct TunQueue {
    fd: OwnedFd,
}

impl TunQueue {
    /// Gives an IP packet (no Ethernet header) to the local stack. Offsets in `offload` count from the start of the
    /// Ethernet frame that it came in. `false`: the device did not take it (down, malformed, no memory).
    pub fn write(&mut self, ip_packet: &[u8], offload: Offload) -> bool {
        let header = virtio::encode(offload, ETHERNET_HEADER_LEN as u16);
        let parts = [&header[..], ip_packet].map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        });
        // SAFETY: both parts are live slices, which writev(2) only reads.
        let written = unsafe { libc::writev(self.fd.as_raw_fd(), parts.as_ptr(), parts.len() as i32) };
        written == (header.len() + ip_packet.len()) as isize
    }
}

fn give_address(name: &str) -> Result<(), TunError> {
    let give = || {
        let mut netlink = Netlink::open()?;
        let index = netlink.link(name)?.index;
        netlink.add_address(index, ADDRESS.into(), 32)
    };
    give().map_err(|source| TunError::Address {
        name: name.into(),
        source,
    })
}

fn open_queue(name: &str) -> Result<OwnedFd, TunError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(TUN_PATH)
        .map_err(TunError::Open)?;
    let mut request = interface_request(name).ok_or_else(|| TunError::Name(name.into()))?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, and `request` is one.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) } < 0 {
        return Err(TunError::Create {
            name: name.into(),
            source: io::Error::last_os_error(),
        });
    }
    Ok(OwnedFd::from(file))
}

/// An `ifreq` with the name set and the rest zero; `None` when no interface can have that name.
fn interface_request(name: &str) -> Option<libc::ifreq> {
    let bytes = name.as_bytes();
    let legal = |&b: &u8| b.is_ascii_graphic() && b != b'/' && b != b'%';
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || !bytes.iter().all(legal) || name == "." || name == ".." {
        return None;
    }
    // SAFETY: ifreq is plain data, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, &from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from as libc::c_char;
    }
    Some(request)
}

/// A socket to set an interface up by ioctl.
struct InterfaceIoctl {
    socket: OwnedFd,
    request: libc::ifreq,
}

impl InterfaceIoctl {
    fn new(name: &str) -> io::Result<InterfaceIoctl> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let request = interface_request(name).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(InterfaceIoctl { socket, request })
    }

    fn call(&self, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the SIOC[GS]IF* calls used here read and write one ifreq, and `request` is one.
        match unsafe { libc::ioctl(self.socket.as_raw_fd(), number, request) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn set_mtu(&self, mtu: i32) -> io::Result<()> {
        let mut request = self.request;
        request.ifr_ifru.ifru_mtu = mtu;
        self.call(libc::SIOCSIFMTU, &mut request)
    }

    fn bring_up(&self) -> io::Result<()> {
        let mut request = self.request;
        self.call(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: SIOCGIFFLAGS filled in `ifru_flags`; it is an integer, of which any value is valid.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        self.call(libc::SIOCSIFFLAGS, &mut request)
    }
}

/// Writes `/proc/sys/net/FAMILY/conf/DEVICE/KEY` of the calling thread's namespace, unless it says so already
/// (it may be read-only in a container).
fn set_conf(family: &str, device: &str, key: &str, value: &str) -> io::Result<()> {
    let path = conf_path(family, device, key);
    if fs::read_to_string(&path)?.trim() == value {
        return Ok(());
    }
    // Opened before written, so that nothing is created where /proc is not mounted.
    use io::Write;
    let mut file: File = OpenOptions::new().write(true).open(&path)?;
    file.write_all(value.as_bytes())
}

fn conf_path(family: &str, device: &str, key: &str) -> String {
    format!("/proc/sys/net/{family}/conf/{device}/{key}")
}

/// The reverse path filter that the IPv4 packets of one of our devices meet (IPv6 has none): the higher of its own
/// setting and that of `all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpFilter {
    /// The device.
    pub device: String,
    /// `net.ipv4.conf.all.rp_filter`: 0 off, 1 strict, 2 loose.
    pub all: u8,
    /// `net.ipv4.conf.DEVICE.rp_filter`.
    pub own: u8,
}

impl RpFilter {
    /// Reads both settings in the calling thread's network namespace.
    pub fn read(device: &str) -> io::Result<RpFilter> {
        let value = |device: &str| -> io::Result<u8> {
            let path = conf_path("ipv4", device, "rp_filter");
            let text = fs::read_to_string(&path).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))?;
            text.trim()
                .parse()
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{path}: '{text}'")))
        };
        Ok(RpFilter {
            device: device.into(),
            all: value("all")?,
            own: value(device)?,
        })
    }

    /// What drops the packets written into this device, and how to stop it; `None` when nothing does.
    pub fn problem(&self) -> Option<String> {
        if self.all.max(self.own) != 1 {
            return None;
        }
        let RpFilter { device, all, own } = self;
        Some(format!(
            "net.ipv4.conf.{device}.rp_filter is {own} and net.ipv4.conf.all.rp_filter is {all}, together strict: the kernel \
             silently drops what it is handed through {device}; set the device to loose: \
             sysctl -w net.ipv4.conf.{device}.rp_filter=2 (other interfaces keep their own)"
        ))
    }
}

#[cfg(test)]
mod tests;
