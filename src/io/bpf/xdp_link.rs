//! The XDP program of an interface: attach, replace, detach and ask, by rtnetlink.
//!
//! Attached this way a program outlives the process that attached it, which a bpf_link does not. Replacing names the
//! program that is to be replaced by its file descriptor, so the kernel exchanges the two in one step and refuses
//! when somebody else was faster.
#![allow(unsafe_code, reason = "netlink socket by libc")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{BpfError, Program};

/// Where in the receive path an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttachMode {
    /// In the interface's own driver.
    Native,
    /// In the stack, after an skb was made: works everywhere.
    Generic,
    /// On the card's own processor.
    Hardware,
}

impl std::fmt::Display for AttachMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            AttachMode::Native => "native",
            AttachMode::Generic => "generic",
            AttachMode::Hardware => "hardware",
        })
    }
}

// include/uapi/linux/if_link.h
const IFLA_IFNAME: u16 = 3;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
const IFLA_XDP_EXPECTED_FD: u16 = 8;
const FLAG_IF_NOEXIST: u32 = 1;
const FLAG_REPLACE: u32 = 1 << 4;
// include/uapi/linux/netlink.h
const NLMSGERR_ATTR_MSG: u16 = 1;
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

fn mode_flag(mode: AttachMode) -> u32 {
    match mode {
        AttachMode::Generic => 1 << 1,
        AttachMode::Native => 1 << 2,
        AttachMode::Hardware => 1 << 3,
    }
}

/// What an interface says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Receive queues it was made with (it may use fewer).
    pub rx_queues: u32,
    /// Attached XDP programs by id: at most one a mode.
    pub programs: Vec<(AttachMode, u32)>,
}

/// Asks the kernel about the interface, in the calling thread's network namespace.
pub fn query(ifindex: u32) -> Result<Link, BpfError> {
    let what = || format!("ask about interface {ifindex}");
    let reply = exchange(Message::new(libc::RTM_GETLINK, 0, ifindex)).map_err(|(e, log)| BpfError {
        log,
        ..BpfError::new(what(), e)
    })?;
    let mut link = Link::default();
    for (kind, value) in attributes(reply.get(INTERFACE_INFO_LEN..).unwrap_or_default()) {
        match kind {
            IFLA_IFNAME => link.name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned(),
            IFLA_NUM_RX_QUEUES => link.rx_queues = number(value),
            IFLA_XDP => link.programs = attributes(value).filter_map(program).collect(),
            _ => {}
        }
    }
    Ok(link)
}

fn program((kind, value): (u16, &[u8])) -> Option<(AttachMode, u32)> {
    let mode = match kind {
        IFLA_XDP_DRV_PROG_ID => AttachMode::Native,
        IFLA_XDP_SKB_PROG_ID => AttachMode::Generic,
        IFLA_XDP_HW_PROG_ID => AttachMode::Hardware,
        _ => return None,
    };
    Some((mode, number(value))).filter(|(_, id)| *id != 0)
}

/// Attaches the program, in place of `old` if given and otherwise only where none is.
pub fn attach(ifindex: u32, mode: AttachMode, program: &Program, old: Option<&Program>) -> Result<(), BpfError> {
    set(ifindex, mode, program.as_raw_fd(), old).map_err(|(e, log)| BpfError {
        log,
        ..BpfError::new(format!("attach a {mode} XDP program to interface {ifindex}"), e)
    })
}

/// Detaches the program, if it is the one attached.
pub fn detach(ifindex: u32, mode: AttachMode, program: &Program) -> Result<(), BpfError> {
    set(ifindex, mode, -1, Some(program)).map_err(|(e, log)| BpfError {
        log,
        ..BpfError::new(format!("detach the {mode} XDP program of interface {ifindex}"), e)
    })
}

type Refusal = (io::Error, String);

fn set(ifindex: u32, mode: AttachMode, fd: RawFd, old: Option<&Program>) -> Result<(), Refusal> {
    let replace = if old.is_some() { FLAG_REPLACE } else { FLAG_IF_NOEXIST };
    let mut message = Message::new(libc::RTM_SETLINK, libc::NLM_F_ACK as u16, ifindex);
    let nest = message.begin(IFLA_XDP);
    message.attribute(IFLA_XDP_FD, &fd.to_ne_bytes());
    message.attribute(IFLA_XDP_FLAGS, &(mode_flag(mode) | replace).to_ne_bytes());
    if let Some(old) = old {
        message.attribute(IFLA_XDP_EXPECTED_FD, &old.as_raw_fd().to_ne_bytes());
    }
    message.end(nest);
    exchange(message).map(|_| ())
}

/// A request: netlink header, `struct ifinfomsg`, attributes.
struct Message(Vec<u8>);

const NETLINK_HEADER_LEN: usize = 16;
const INTERFACE_INFO_LEN: usize = 16;

impl Message {
    fn new(kind: u16, flags: u16, ifindex: u32) -> Message {
        let mut bytes = vec![0; NETLINK_HEADER_LEN + INTERFACE_INFO_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes[8..12].copy_from_slice(&1u32.to_ne_bytes());
        bytes[20..24].copy_from_slice(&ifindex.to_ne_bytes());
        Message(bytes)
    }

    /// Opens a nested attribute.
    fn begin(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.attribute(kind | libc::NLA_F_NESTED as u16, &[]);
        start
    }

    fn end(&mut self, start: usize) {
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Sends the request and returns the payload of its answer, or the error with the kernel's explanation.
fn exchange(mut message: Message) -> Result<Vec<u8>, Refusal> {
    let plain = |e| (e, String::new());
    let len = message.0.len() as u32;
    message.0[0..4].copy_from_slice(&len.to_ne_bytes());
    let socket = open().map_err(plain)?;
    // SAFETY: the buffer is live and of the length given.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.0.as_ptr().cast(), message.0.len(), 0) };
    if sent < 0 {
        return Err(plain(io::Error::last_os_error()));
    }
    let mut reply = vec![0u8; 1 << 16];
    // SAFETY: the buffer is writable for the length given.
    let received = unsafe { libc::recv(socket.as_raw_fd(), reply.as_mut_ptr().cast(), reply.len(), 0) };
    if received < 0 {
        return Err(plain(io::Error::last_os_error()));
    }
    reply.truncate(received as usize);
    if reply.len() < NETLINK_HEADER_LEN {
        return Err(plain(io::ErrorKind::UnexpectedEof.into()));
    }
    let kind = u16::from_ne_bytes([reply[4], reply[5]]);
    let payload = reply.split_off(NETLINK_HEADER_LEN);
    if kind == libc::NLMSG_ERROR as u16 {
        let errno = number(&payload) as i32;
        return match errno {
            0 => Ok(payload),
            _ => Err((io::Error::from_raw_os_error(-errno), explanation(&payload))),
        };
    }
    Ok(payload)
}

/// The text of an extended acknowledgement: behind the error number and the request's header.
fn explanation(payload: &[u8]) -> String {
    let behind = payload.get(4 + NETLINK_HEADER_LEN..).unwrap_or_default();
    let text = attributes(behind)
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, text)| text);
    let text = text.unwrap_or_default();
    String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned()
}

fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on = 1i32;
        // SAFETY: the pointer is to an int of the size given. Without these options errors only say less.
        unsafe { libc::setsockopt(fd, libc::SOL_NETLINK, option, (&raw const on).cast(), 4) };
    }
    Ok(socket)
}

/// The attributes in a payload; stops at one that is cut.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]) as usize;
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & ATTRIBUTE_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A 32-bit number; 0 when there are fewer bytes.
fn number(value: &[u8]) -> u32 {
    value.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::super::asm::{Assembler, R0};
    use super::super::{Program, ProgramType};
    use super::*;
    use crate::io::testing::{in_namespace, ip};

    fn pass() -> Program {
        let mut a = Assembler::new();
        a.mov_imm(R0, 2);
        a.exit();
        Program::load(ProgramType::Xdp, "uvs_test", &a.finish()).unwrap()
    }

    fn ifindex(name: &str) -> u32 {
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: a C string.
        unsafe { libc::if_nametoindex(name.as_ptr()) }
    }

    /// How: attaches, replaces by the right and by a wrong predecessor, detaches, on a veth pair.
    /// Goal: one program at a time, never replaced by surprise, always found again by asking.
    #[test]
    fn programs_replace_each_other_only_by_name_of_the_old() {
        in_namespace(|| {
            ip("link add a0 type veth peer name b0 numrxqueues 2");
            let (a, b) = (ifindex("a0"), ifindex("b0"));
            for mode in [AttachMode::Native, AttachMode::Generic] {
                let (first, second) = (pass(), pass());
                attach(a, mode, &first, None).unwrap();
                assert_eq!(attach(a, mode, &second, None).unwrap_err().errno(), libc::EBUSY);
                assert_eq!(
                    attach(a, mode, &second, Some(&second)).unwrap_err().errno(),
                    libc::EEXIST
                );
                attach(a, mode, &second, Some(&first)).unwrap();
                assert_eq!(query(a).unwrap().programs, [(mode, second.info().unwrap().id)]);
                assert_eq!(detach(a, mode, &first).unwrap_err().errno(), libc::EEXIST);
                detach(a, mode, &second).unwrap();
                assert_eq!(query(a).unwrap().programs, []);
            }
            let link = query(b).unwrap();
            assert_eq!((link.name.as_str(), link.rx_queues), ("b0", 2));
        });
    }

    #[test]
    fn refusals_carry_the_kernels_words() {
        in_namespace(|| {
            ip("link add a0 type veth peer name b0");
            let a = ifindex("a0");
            let program = pass();
            attach(a, AttachMode::Native, &program, None).unwrap();
            let error = attach(a, AttachMode::Generic, &pass(), None).unwrap_err();
            assert!(error.to_string().contains("at the same time"), "{error}");
            let error = query(4711).unwrap_err();
            assert_eq!(error.errno(), libc::ENODEV, "{error}");
        });
    }
}
