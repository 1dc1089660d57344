//! rtnetlink: links, addresses, routes and neighbours, without an asynchronous runtime.
//!
//! A [`Netlink`] is a socket of the network namespace of the thread that opens it ([`Netlink::open`],
//! [`Netlink::open_in`]); it stays with that namespace wherever it is used from. One request at a time, each
//! answered before the call returns. What belongs to one kernel object is in the file of its name: [`link`],
//! [`address`], [`route`], [`neighbour`]; [`resolve`] makes next hops of them all, and [`follow`] hears when they change.
//!
//! Words: *link* = network interface as the kernel numbers it (`ifindex`, always a `u32` here).

pub mod address;
pub mod follow;
pub mod link;
pub mod neighbour;
pub mod resolve;
pub mod route;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::io::netns::{self, Namespace};

pub use address::Address;
pub use follow::{Follower, NetworkEvent};
pub use link::{AttachMode, Link, VethEnd};
pub use neighbour::{Neighbour, NeighbourState};
pub use resolve::Resolver;
pub use route::{Route, RouteAnswer, RouteKind};

/// Bytes of one netlink datagram that we are ready to take; the kernel sends at most 32 KiB at once.
/// Lists that change while they are told are asked for again so often.
const DUMPS_MAX: u32 = 10;
const DATAGRAM_MAX: usize = 64 * 1024;

/// Bytes of a message's header.
const HEADER_LEN: usize = 16;

/// What could not be done by netlink, and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the request or the socket failed.
    #[error("{action}: {source}")]
    Refused {
        /// What was asked, about what.
        action: String,
        /// What the kernel said.
        source: io::Error,
        /// The same in words, where the kernel has some (its extended acknowledgement).
        words: String,
    },
    /// There is no such link.
    #[error("no interface {0} in this network namespace")]
    NoSuchLink(String),
    /// An answer that could not be understood.
    #[error("{action}: answer not understood: {reason}")]
    Answer {
        /// What was asked.
        action: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A namespace could not be entered or read.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
}

impl Error {
    fn refused(action: impl Into<String>, source: io::Error) -> Error {
        Error::Refused {
            action: action.into(),
            source,
            words: String::new(),
        }
    }

    /// The kernel's error number, where it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Refused { source, .. } => source.raw_os_error(),
            Error::Namespace(error) => error.source.raw_os_error(),
            Error::NoSuchLink(_) => Some(libc::ENODEV),
            Error::Answer { .. } => None,
        }
    }
}

/// An rtnetlink socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket in the namespace of the calling thread.
    pub fn open() -> Result<Netlink, Error> {
        Netlink::with_groups(&[])
    }

    /// A socket in `namespace`, wherever the caller is.
    pub fn open_in(namespace: &Namespace) -> Result<Netlink, Error> {
        namespace.run(Netlink::open)?
    }

    /// A socket that also hears the multicast groups (`RTNLGRP_*`).
    pub(crate) fn with_groups(groups: &[u32]) -> Result<Netlink, Error> {
        let opened = (|| {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Dumps sorted out by the kernel, where it can (4.20); we sort ourselves as well.
            if let Err(error) = socket.set_netlink_get_strict_chk(true) {
                log::debug!("netlink: no strict checking: {error}");
            }
            // So that a refusal says why, and does not repeat the request.
            if let Err(error) = socket.set_ext_ack(true).and_then(|()| socket.set_cap_ack(true)) {
                log::debug!("netlink: no extended acknowledgements: {error}");
            }
            for group in groups {
                socket.add_membership(*group)?;
            }
            Ok(socket)
        })();
        let socket = opened.map_err(|source| Error::refused("open a netlink socket", source))?;
        Ok(Netlink {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM_MAX),
        })
    }

    /// Asks for a change and waits for the kernel's word on it.
    pub(crate) fn change(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl Fn() -> String,
    ) -> Result<(), Error> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags, &action)
            .map(drop)
    }

    /// Asks for one object.
    pub(crate) fn get(
        &mut self,
        message: RouteNetlinkMessage,
        action: impl Fn() -> String,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        Ok(self
            .exchange(message, NLM_F_REQUEST | NLM_F_ACK, &action)?
            .into_iter()
            .next())
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        action: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        // A list that changed while it was told may lack what did not change.
        for _ in 0..DUMPS_MAX {
            match self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP, &action) {
                Err(Error::Refused { source, .. }) if source.kind() == io::ErrorKind::Interrupted => {}
                answer => return answer,
            }
        }
        Err(Error::refused(action(), io::ErrorKind::Interrupted.into()))
    }

    /// Sends one request and collects its answers, until the acknowledgement or the end of the dump.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: &dyn Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let refused = |source| Error::refused(action(), source);
        self.socket.send(&bytes, 0).map_err(refused)?;

        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let messages = self.receive().map_err(refused)?;
            for (header, payload) in messages {
                if header.sequence_number != self.sequence {
                    continue; // A notification, or the rest of an earlier answer.
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match payload {
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answers),
                        Some(_) => {
                            return Err(Error::Refused {
                                action: action(),
                                source: error.to_io(),
                                words: words_of(&error),
                            });
                        }
                    },
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(refused(io::Error::from_raw_os_error(-done.code)));
                    }
                    NetlinkPayload::Done(_) if interrupted => {
                        return Err(refused(io::ErrorKind::Interrupted.into()));
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
            }
        }
    }

    /// One datagram's messages. A message that the decoder does not know (a newer kernel) is logged and left out:
    /// it must not cost us the others.
    pub(crate) fn receive(&mut self) -> io::Result<Vec<(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)>> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, 0) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(split(&self.buffer))
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The text of an extended acknowledgement: behind the error number and the request's header.
fn words_of(error: &ErrorMessage) -> String {
    const NLMSGERR_ATTR_MSG: u16 = 1; // include/uapi/linux/netlink.h
    let behind = error.header.get(HEADER_LEN..).unwrap_or_default();
    let message = NlasIterator::new(behind)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG);
    let text = message.as_ref().map_or(&[][..], |attribute| attribute.value());
    String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned()
}

/// Splits a datagram into its messages (RFC 3549 section 2.3.2: each begins at a multiple of four bytes).
fn split(datagram: &[u8]) -> Vec<(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)> {
    let mut messages = Vec::new();
    let mut rest = datagram;
    while rest.len() >= HEADER_LEN {
        let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        if length < HEADER_LEN || length > rest.len() {
            log::warn!(
                "netlink: a message of {length} bytes in the last {} of a datagram",
                rest.len()
            );
            break;
        }
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length]) {
            Ok(message) => messages.push(message.into_parts()),
            Err(error) => log::warn!("netlink: message left out: {error}"),
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    messages
}

/// The address family of an address.
fn family_of(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Bits of a whole address.
fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

#[cfg(test)]
mod tests;
