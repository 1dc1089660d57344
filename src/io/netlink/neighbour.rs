//! Neighbours (ARP, neighbour discovery): the table, permanent entries, and asking the kernel to resolve one.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState as WireState,
};

use super::{Error, Netlink, family_of};
use crate::packet::Mac;

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The link it is on.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its link address, where known.
    pub mac: Option<Mac>,
    /// How sure the kernel is.
    pub state: NeighbourState,
}

/// What the kernel knows about a neighbour (`NUD_*`), as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// Asked, no answer yet.
    Incomplete,
    /// Confirmed lately, or permanent.
    Fresh,
    /// Known, not confirmed lately: usable, and the next use has it confirmed.
    Stale,
    /// Being confirmed: usable.
    Probing,
    /// No answer.
    Failed,
}

impl Netlink {
    /// All neighbours of the namespace, both families.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, Error> {
        let answers = self.dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), || {
            "list neighbours".to_owned()
        })?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(message) => Neighbour::from_message(message),
                _ => None,
            })
            .collect())
    }

    /// One neighbour, as it is now.
    pub fn neighbour(&mut self, link: u32, address: IpAddr) -> Result<Option<Neighbour>, Error> {
        let answer = self.get(
            RouteNetlinkMessage::GetNeighbour(neighbour_message(link, address)),
            || format!("look up neighbour {address} on interface {link}"),
        );
        match answer {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(message))) => Ok(Neighbour::from_message(&message)),
            Ok(_) => Ok(None),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Adds a permanent neighbour, or replaces what is known.
    pub fn add_neighbour(&mut self, link: u32, address: IpAddr, mac: Mac) -> Result<(), Error> {
        let mut message = neighbour_message(link, address);
        message.header.state = WireState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.change(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            || format!("add neighbour {address} at {mac} on interface {link}"),
        )
    }

    /// Forgets a neighbour.
    pub fn delete_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), Error> {
        self.change(
            RouteNetlinkMessage::DelNeighbour(neighbour_message(link, address)),
            0,
            || format!("delete neighbour {address} on interface {link}"),
        )
    }

    /// Has the kernel resolve a neighbour, or confirm one that is stale, as sending to it would (`ip neighbour add …
    /// use`). Never for a permanent one: the kernel takes that for an order to forget it (`__neigh_update`).
    pub fn use_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = neighbour_message(link, address);
        message.header.flags = NeighbourFlags::Use;
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE, || {
            format!("resolve neighbour {address} on interface {link}")
        })
    }
}

fn neighbour_message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

impl Neighbour {
    pub(crate) fn from_message(message: &NeighbourMessage) -> Option<Neighbour> {
        // Entries of the bridge's forwarding table and proxy entries are no neighbours of ours.
        if message.header.flags.contains(NeighbourFlags::Proxy) {
            return None;
        }
        let mut address = None;
        let mut mac = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac)
                }
                _ => {}
            }
        }
        Some(Neighbour {
            link: message.header.ifindex,
            address: address?,
            mac,
            state: match message.header.state {
                WireState::Reachable | WireState::Permanent | WireState::Noarp => NeighbourState::Fresh,
                WireState::Stale => NeighbourState::Stale,
                WireState::Delay | WireState::Probe => NeighbourState::Probing,
                WireState::Failed => NeighbourState::Failed,
                _ => NeighbourState::Incomplete,
            },
        })
    }
}
