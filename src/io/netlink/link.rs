//! Links (network interfaces): what they are, making veth pairs and bridges, changing and deleting.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
};

use super::{Error, Netlink};
use crate::io::netns::Namespace;
use crate::packet::Mac;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its link address, where it is an Ethernet-like one.
    pub mac: Option<Mac>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// Up and with carrier.
    pub running: bool,
    /// `lo`.
    pub loopback: bool,
    /// Without ARP and neighbour discovery: frames need no neighbour.
    pub no_arp: bool,
    /// `veth`, `bridge`, `tun`, …; none for hardware.
    pub kind: Option<String>,
    /// The bridge or bond that it belongs to.
    pub controller: Option<u32>,
    /// Receive queues allocated (how many are in use, ethtool's channels tell).
    pub rx_queues: u32,
    /// Transmit queues allocated.
    pub tx_queues: u32,
    /// Attached XDP programs by id: at most one a mode.
    pub xdp_programs: Vec<(AttachMode, u32)>,
}

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

/// One end of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it is put; the socket's namespace if none.
    pub namespace: Option<&'a Namespace>,
    /// Its link address; the kernel's choice if none.
    pub mac: Option<Mac>,
}

impl Netlink {
    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), || {
            "list interfaces".to_owned()
        })?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
                _ => None,
            })
            .collect())
    }

    /// The link of that name.
    pub fn link(&mut self, name: &str) -> Result<Link, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.one_link(message, name)
    }

    /// The link of that index.
    pub fn link_by_index(&mut self, index: u32) -> Result<Link, Error> {
        self.one_link(link_message(index), &format!("with index {index}"))
    }

    fn one_link(&mut self, message: LinkMessage, name: &str) -> Result<Link, Error> {
        let answer = self.get(RouteNetlinkMessage::GetLink(message), || {
            format!("look up interface {name}")
        });
        match answer {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Link::from(&message)),
            // ERANGE and EINVAL: longer than an interface name can be.
            Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::ERANGE | libc::EINVAL)) => {
                Err(Error::NoSuchLink(name.to_owned()))
            }
            Err(error) => Err(error),
            Ok(_) => Err(Error::NoSuchLink(name.to_owned())),
        }
    }

    /// Makes a veth pair, each end with `queues` receive and transmit queues, and both down.
    pub fn create_veth(&mut self, ends: [VethEnd<'_>; 2], queues: u32) -> Result<(), Error> {
        let [first, second] = ends;
        let mut message = veth_end(&first, queues);
        let peer = veth_end(&second, queues);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.create_link(message, || format!("make veth pair {} and {}", first.name, second.name))
    }

    /// Makes a bridge (a learning switch, no spanning tree, no multicast snooping), down.
    pub fn create_bridge(&mut self, name: &str) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            // Snooping would hold back neighbour discovery until a querier is found.
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::ForwardDelay(0),
                InfoBridge::MulticastSnooping(false),
            ])),
        ]));
        self.create_link(message, || format!("make bridge {name}"))
    }

    fn create_link(&mut self, message: LinkMessage, action: impl Fn() -> String) -> Result<(), Error> {
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, action)
    }

    /// Sets a link up or down.
    pub fn set_up(&mut self, index: u32, up: bool) -> Result<(), Error> {
        let mut message = link_message(index);
        message.header.change_mask = LinkFlags::Up;
        if up {
            message.header.flags = LinkFlags::Up;
        }
        let direction = if up { "up" } else { "down" };
        self.change(RouteNetlinkMessage::SetLink(message), 0, || {
            format!("set interface {index} {direction}")
        })
    }

    /// Waits until a link that was set up has its carrier and its queues work: until then the kernel drops what is
    /// sent, without an error. `false` when the time is over.
    pub fn wait_running(&mut self, index: u32, timeout: Duration) -> Result<bool, Error> {
        let end = Instant::now() + timeout;
        loop {
            if self.link_by_index(index)?.running {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sets the largest IP packet.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), Error> {
        self.set_link(index, LinkAttribute::Mtu(mtu), || {
            format!("set MTU {mtu} on interface {index}")
        })
    }

    /// Sets the link address.
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<(), Error> {
        self.set_link(index, LinkAttribute::Address(mac.0.to_vec()), || {
            format!("set link address {mac} on interface {index}")
        })
    }

    /// Puts a link into a bridge, or takes it out.
    pub fn set_controller(&mut self, index: u32, bridge: Option<u32>) -> Result<(), Error> {
        self.set_link(index, LinkAttribute::Controller(bridge.unwrap_or(0)), || {
            format!("put interface {index} into bridge {bridge:?}")
        })
    }

    /// Attaches an XDP program, in place of `old` if given and otherwise only where none is; without a program, detaches
    /// `old`. The kernel refuses when another program than `old` is there.
    pub fn set_xdp(
        &mut self,
        index: u32,
        mode: AttachMode,
        program: Option<BorrowedFd<'_>>,
        old: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        // include/uapi/linux/if_link.h
        const FLAG_IF_NOEXIST: u32 = 1;
        const FLAG_REPLACE: u32 = 1 << 4;
        let mode_flag = match mode {
            AttachMode::Generic => 1 << 1,
            AttachMode::Native => 1 << 2,
            AttachMode::Hardware => 1 << 3,
        };
        let replace = if old.is_some() { FLAG_REPLACE } else { FLAG_IF_NOEXIST };
        let mut attributes = vec![
            LinkXdp::Fd(program.map_or(-1, |program| program.as_raw_fd())),
            LinkXdp::Flags(mode_flag | replace),
        ];
        attributes.extend(old.map(|old| LinkXdp::ExpectedFd(old.as_raw_fd() as u32)));
        self.set_link(index, LinkAttribute::Xdp(attributes), || {
            format!("set the {mode} XDP program of interface {index}")
        })
    }

    fn set_link(&mut self, index: u32, attribute: LinkAttribute, action: impl Fn() -> String) -> Result<(), Error> {
        let mut message = link_message(index);
        message.attributes.push(attribute);
        self.change(RouteNetlinkMessage::SetLink(message), 0, action)
    }

    /// Deletes a link; of a veth pair both ends go.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        self.change(RouteNetlinkMessage::DelLink(link_message(index)), 0, || {
            format!("delete interface {index}")
        })
    }
}

fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn veth_end(end: &VethEnd<'_>, queues: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(end.name.to_owned()));
    message.attributes.push(LinkAttribute::NumTxQueues(queues));
    message.attributes.push(LinkAttribute::NumRxQueues(queues));
    if let Some(mac) = end.mac {
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    if let Some(namespace) = end.namespace {
        message
            .attributes
            .push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
    }
    message
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Link {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Running),
            loopback: flags.contains(LinkFlags::Loopback),
            no_arp: flags.contains(LinkFlags::Noarp),
            rx_queues: 1,
            tx_queues: 1,
            ..Link::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::NumRxQueues(queues) => link.rx_queues = *queues,
                LinkAttribute::NumTxQueues(queues) => link.tx_queues = *queues,
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::Xdp(attributes) => {
                    link.xdp_programs = attributes.iter().filter_map(xdp_program).collect()
                }
                LinkAttribute::LinkInfo(info) => {
                    link.kind = info.iter().find_map(|item| match item {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

fn xdp_program(attribute: &LinkXdp) -> Option<(AttachMode, u32)> {
    let (mode, id) = match attribute {
        LinkXdp::DrvProgId(id) => (AttachMode::Native, *id),
        LinkXdp::SkbProgId(id) => (AttachMode::Generic, *id),
        LinkXdp::HwProgId(id) => (AttachMode::Hardware, *id),
        _ => return None,
    };
    (id != 0).then_some((mode, id))
}
