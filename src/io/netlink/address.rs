//! Addresses of links.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};

use super::{Error, Netlink, family_of};

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The link.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Bits of its network.
    pub prefix_len: u8,
    /// Usable: not an IPv6 address whose duplicate detection is under way or failed.
    pub usable: bool,
}

impl Netlink {
    /// All addresses of the namespace, both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let answers = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), || {
            "list addresses".to_owned()
        })?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => Address::from_message(message),
                _ => None,
            })
            .collect())
    }

    /// Adds an address, or takes it as it is when it is there. IPv6 without duplicate address detection, so that it
    /// can be used at once.
    pub fn add_address(&mut self, link: u32, address: IpAddr, prefix_len: u8) -> Result<(), Error> {
        let mut message = address_message(link, address, prefix_len);
        if address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        if let IpAddr::V4(v4) = address
            && prefix_len < 31
        {
            let host_bits = u32::MAX >> prefix_len;
            message
                .attributes
                .push(AddressAttribute::Broadcast((u32::from(v4) | host_bits).into()));
        }
        self.change(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            || format!("add address {address}/{prefix_len} to interface {link}"),
        )
    }

    /// Takes an address away.
    pub fn delete_address(&mut self, link: u32, address: IpAddr, prefix_len: u8) -> Result<(), Error> {
        let message = address_message(link, address, prefix_len);
        self.change(RouteNetlinkMessage::DelAddress(message), 0, || {
            format!("delete address {address}/{prefix_len} from interface {link}")
        })
    }
}

fn address_message(link: u32, address: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(address);
    message.header.prefix_len = prefix_len;
    message.header.index = link;
    message.header.scope = if address.is_loopback() {
        AddressScope::Host
    } else {
        AddressScope::Universe
    };
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}

impl Address {
    pub(crate) fn from_message(message: &AddressMessage) -> Option<Address> {
        // IFA_LOCAL is our side of a point-to-point link, IFA_ADDRESS the other; IPv6 without a peer has only the latter.
        let mut local = None;
        let mut plain = None;
        let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => plain = Some(*address),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        let optimistic = flags.contains(AddressFlags::Optimistic);
        let tentative = flags.contains(AddressFlags::Tentative) && !optimistic;
        Some(Address {
            link: message.header.index,
            address: local.or(plain)?,
            prefix_len: message.header.prefix_len,
            usable: !tentative && !flags.contains(AddressFlags::Dadfailed),
        })
    }
}
