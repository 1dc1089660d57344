//! What the filter's straight way asks instead of hash maps: an array in which each IPv4 service and NAT destination with a port has
//! the place that its word gives. A hash map of the kernel takes as long as all the rest of that way together.
//!
//! Of two rules with the same place only one is there; the other one's frames go the long way, as if there were no array.
//!
//! ```text
//!  word   address:32 | port:16 | protocol:8 | kind:8     address and port as a load reads them from the frame; 0: nobody's place
//!  place  the upper bits of its product with a constant
//! ```

use std::collections::HashMap;
use std::net::IpAddr;

use super::maps::Rule;
use crate::io::bpf::map::MapType;
use crate::io::bpf::{BpfError, Map};
use crate::service::TransportProtocol;

/// Bits of a place.
const PLACE_BITS: u32 = 16;
/// How far a product's upper bits are from being a place.
pub(super) const PLACE_SHIFT: i32 = 64 - PLACE_BITS as i32;
/// Odd, and its bits in no order (2^32 over the golden ratio). Programs extend its sign.
pub(super) const MULTIPLIER: i32 = 0x9e37_79b1_u32 as i32;
/// Where port, protocol and kind begin.
pub(super) const PORT_SHIFT: i32 = 32;
/// As above, behind the port.
pub(super) const PROTOCOL_SHIFT: i32 = 16;
/// As above, behind the protocol.
pub(super) const KIND_SHIFT: i32 = 8;
/// A service, by its own address and port.
pub(super) const SERVICE: i32 = 1;
/// A NAT destination.
pub(super) const NAT_DESTINATION: i32 = 2;

/// The array, and whose the places are.
#[derive(Debug)]
pub(super) struct Quick {
    pub map: Map,
    owners: HashMap<u32, u64>,
}

impl Quick {
    pub fn new() -> Result<Quick, BpfError> {
        Ok(Quick {
            map: Map::create(MapType::Array, "uvs_quick", 4, 8, 1 << PLACE_BITS)?,
            owners: HashMap::new(),
        })
    }

    /// The rule has its place from now on, if it has one and nobody is there.
    pub fn insert(&mut self, rule: Rule) -> Result<(), BpfError> {
        let Some(word) = word(rule) else { return Ok(()) };
        let place = place(word);
        if !self.owners.contains_key(&place) {
            self.map.insert(&place.to_ne_bytes(), &word.to_ne_bytes())?;
            self.owners.insert(place, word);
        }
        Ok(())
    }

    /// The rule has no place any more.
    pub fn remove(&mut self, rule: Rule) -> Result<(), BpfError> {
        let Some(word) = word(rule) else { return Ok(()) };
        let place = place(word);
        if self.owners.get(&place) == Some(&word) {
            self.map.insert(&place.to_ne_bytes(), &[0; 8])?;
            self.owners.remove(&place);
        }
        Ok(())
    }
}

/// As a program makes it of a frame. `None`: the straight way does not look for such.
fn word(rule: Rule) -> Option<u64> {
    let (protocol, address, port, kind) = match rule {
        Rule::Service {
            protocol,
            address,
            port,
        } => (protocol, address, port, SERVICE),
        Rule::NatDestination {
            protocol,
            address,
            port,
        } => (protocol, address, port, NAT_DESTINATION),
        Rule::Local(_) | Rule::TunnelDestination(_) => return None,
    };
    match address {
        IpAddr::V4(v4) if port != 0 && protocol != TransportProtocol::Sctp => {
            let rest = (kind as u64) << KIND_SHIFT | protocol.number().0 as u64;
            let rest = rest << PROTOCOL_SHIFT | u16::from_ne_bytes(port.to_be_bytes()) as u64;
            Some(rest << PORT_SHIFT | u32::from_ne_bytes(v4.octets()) as u64)
        }
        _ => None,
    }
}

fn place(word: u64) -> u32 {
    (word.wrapping_mul(MULTIPLIER as i64 as u64) >> PLACE_SHIFT) as u32
}

#[cfg(test)]
mod tests {
    use super::super::keys::{address_key, endpoint_key};
    use super::super::tests::{is_match, maps, ports, v4};
    use super::super::{Filter, FilterMaps, Flavour};
    use super::*;
    use crate::io::testing::in_namespace;
    use crate::service::TransportProtocol::{Sctp, Tcp, Udp};

    const TCP: u8 = 6;
    const VIP: &str = "10.9.0.1";

    fn service(protocol: TransportProtocol, address: &str, port: u16) -> Rule {
        Rule::Service {
            protocol,
            address: address.parse().unwrap(),
            port,
        }
    }

    /// Goal: the straight way goes by the array alone. How: the hash maps forget a service and a NAT destination.
    #[test]
    fn straight_way_asks_no_hash_map() {
        in_namespace(|| {
            let maps = maps();
            let [xdp, tc] = [Flavour::Xdp, Flavour::TcIngress].map(|flavour| Filter::load(flavour, &maps).unwrap());
            let server = "172.16.0.11".parse().unwrap();
            let frames = [
                v4(TCP, "10.0.0.9", VIP, &ports(1, 80)),
                v4(TCP, "172.16.0.11", "10.0.0.9", &ports(8080, 1)),
            ];
            assert!(frames.iter().all(|frame| is_match(&tc, frame)));
            let vip = VIP.parse().unwrap();
            assert!(maps.services.remove(&endpoint_key(Tcp, vip, 80)).unwrap());
            assert!(maps.nat_destinations.remove(&endpoint_key(Tcp, server, 8080)).unwrap());
            for address in [vip, server] {
                assert!(maps.addresses.remove(&address_key(address)).unwrap());
            }
            assert!(frames.iter().all(|frame| is_match(&xdp, frame)));
            assert!(!frames.iter().any(|frame| is_match(&tc, frame)));
        });
    }

    /// Goal: rules with one place for two are in force as all others, until they are removed. How: two such, removed in both orders.
    #[test]
    fn two_rules_with_one_place() {
        let place_of = |port| place(word(service(Tcp, VIP, port)).unwrap());
        let mut ports_of = HashMap::new();
        let (first, second) = (1..=u16::MAX)
            .find_map(|port| ports_of.insert(place_of(port), port).map(|other| (other, port)))
            .expect("two of 65,535 ports with one place");
        in_namespace(|| {
            let mut maps = FilterMaps::new().unwrap();
            let filter = Filter::load(Flavour::Xdp, &maps).unwrap();
            let ours = || [first, second].map(|port| is_match(&filter, &v4(TCP, "10.0.0.9", VIP, &ports(1, port))));
            for (leaves, then) in [(first, [false, true]), (second, [true, false])] {
                for port in [first, second] {
                    maps.insert(service(Tcp, VIP, port)).unwrap();
                }
                assert_eq!((ours(), maps.quick.owners.len()), ([true; 2], 1));
                maps.remove(service(Tcp, VIP, leaves)).unwrap();
                assert_eq!(ours(), then);
                maps.shrink_to(&[].into()).unwrap();
                assert_eq!((ours(), maps.quick.owners.len()), ([false; 2], 0));
            }
        });
    }

    /// Goal: no place for what the straight way does not look for.
    #[test]
    fn some_rules_have_no_place() {
        let none = [
            service(Udp, VIP, 0),
            service(Sctp, VIP, 9),
            service(Tcp, "fd00:9::1", 80),
            Rule::Local(VIP.parse().unwrap()),
        ];
        assert!(none.into_iter().all(|rule| word(rule).is_none()));
        let nat = Rule::NatDestination {
            protocol: Tcp,
            address: VIP.parse().unwrap(),
            port: 80,
        };
        assert_ne!(word(nat), word(service(Tcp, VIP, 80)));
        assert_ne!(word(service(Udp, VIP, 80)), word(service(Tcp, VIP, 80)));
    }
}
