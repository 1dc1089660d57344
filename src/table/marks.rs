//! The classifier: which firewall mark a packet has, as the workers ask it.
//!
//! Asked of packets without a connection only. Rules for one destination address stand in hash tables, by port where they
//! have a single one, so that a packet meets the few rules that could match; the rules that are left are gone through.

use std::collections::HashMap;

use super::{Interface, InterfaceId};
use crate::packet::{Family, FlowKey};
use crate::service::{MarkRule, PortRange, Prefix};

/// The rules of the classifier, compiled.
#[derive(Debug, Default)]
pub struct Classifier {
    /// In order: the first that matches decides.
    rules: Vec<Compiled>,
    /// Rules of a single destination address and port; numbers ascend, as in the other two.
    by_endpoint: HashMap<(Words, u16), Vec<u32>, foldhash::fast::RandomState>,
    /// Rules of a single destination address and several ports.
    by_address: HashMap<Words, Vec<u32>, foldhash::fast::RandomState>,
    /// All others.
    wide: Vec<u32>,
}

/// An address as [`FlowKey`] holds it, IPv4 in the low bits of the first word, and its family.
type Words = ([u64; 2], Family);

#[derive(Debug)]
struct Compiled {
    mark: u32,
    /// `None`: any.
    protocol: Option<u8>,
    family: Option<Family>,
    source: Network,
    destination: Network,
    source_port: PortRange,
    destination_port: PortRange,
    interface: Option<InterfaceId>,
}

/// Addresses whose bits under the mask are these.
#[derive(Clone, Copy, Debug, Default)]
struct Network {
    bits: [u64; 2],
    mask: [u64; 2],
}

impl Network {
    fn of(prefix: &Prefix) -> Network {
        let mask = match prefix.family() {
            Family::V4 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix.length())).unwrap_or(0);
                [mask.into(), 0]
            }
            Family::V6 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix.length())).unwrap_or(0);
                [(mask >> 64) as u64, mask as u64]
            }
        };
        Network {
            bits: super::services::address_words(prefix.address()),
            mask,
        }
    }

    fn contains(&self, address: [u64; 2]) -> bool {
        address[0] & self.mask[0] == self.bits[0] && address[1] & self.mask[1] == self.bits[1]
    }
}

impl Classifier {
    /// Compiles the rules for interfaces of these names. A rule of an interface that is not among them matches nothing.
    pub fn new(rules: &[MarkRule], interfaces: &[Interface]) -> Classifier {
        let mut all = Classifier::default();
        for rule in rules {
            let named = |name: &String| interfaces.iter().position(|interface| interface.name == *name);
            let interface = match &rule.interface {
                None => None,
                Some(name) => match named(name) {
                    Some(position) => Some(InterfaceId(position as u8)),
                    None => continue,
                },
            };
            let number = all.rules.len() as u32;
            let ports = rule.destination_port.unwrap_or(PortRange::ALL);
            match rule.destination.and_then(|prefix| prefix.host()) {
                Some(host) => {
                    let words = (super::services::address_words(host), Family::of(host));
                    match ports.first() == ports.last() {
                        true => all.by_endpoint.entry((words, ports.first())).or_default().push(number),
                        false => all.by_address.entry(words).or_default().push(number),
                    }
                }
                None => all.wide.push(number),
            }
            all.rules.push(Compiled {
                mark: rule.mark,
                protocol: rule.protocol.map(|protocol| protocol.number().0),
                family: rule.family(),
                source: rule.source.as_ref().map(Network::of).unwrap_or_default(),
                destination: rule.destination.as_ref().map(Network::of).unwrap_or_default(),
                source_port: rule.source_port.unwrap_or(PortRange::ALL),
                destination_port: ports,
                interface,
            });
        }
        all
    }

    /// No rule at all.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The mark of a packet that came in there.
    pub fn mark(&self, flow: &FlowKey, interface: InterfaceId) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        let destination = super::services::destination_words(flow);
        let key = (destination, flow.family);
        let lists = [
            self.by_endpoint.get(&(key, flow.destination_port())),
            self.by_address.get(&key),
            Some(&self.wide),
        ];
        let mut first = u32::MAX;
        for list in lists.into_iter().flatten() {
            let earlier = list.iter().take_while(|number| **number < first);
            let matches = |number: &&u32| self.rules[**number as usize].matches(flow, destination, interface);
            if let Some(number) = earlier.clone().find(matches) {
                first = *number;
            }
        }
        self.rules.get(first as usize).map(|rule| rule.mark)
    }
}

impl Compiled {
    fn matches(&self, flow: &FlowKey, destination: [u64; 2], interface: InterfaceId) -> bool {
        let source = super::services::destination_words(&flow.reversed());
        self.protocol.is_none_or(|protocol| protocol == flow.protocol.0)
            && self.family.is_none_or(|family| family == flow.family)
            && self.interface.is_none_or(|wanted| wanted == interface)
            && self.destination_port.ports().contains(&flow.destination_port())
            && self.source_port.ports().contains(&flow.source_port())
            && self.destination.contains(destination)
            && self.source.contains(source)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::{Mac, Protocol};
    use crate::service::TransportProtocol;

    fn interfaces() -> Vec<Interface> {
        let named = |name: &str| Interface {
            name: name.to_owned(),
            index: 1,
            mac: Mac::default(),
            mtu: 1500,
            addresses: Vec::new(),
        };
        vec![named("eth0"), named("eth1")]
    }

    /// The options of `uvs mark add`, in pairs.
    fn rule(text: &str) -> MarkRule {
        let mut words = text.split_ascii_whitespace();
        let mut rule = MarkRule {
            mark: words.next().unwrap().parse().unwrap(),
            protocol: None,
            source: None,
            source_port: None,
            destination: None,
            destination_port: None,
            interface: None,
        };
        while let Some(option) = words.next() {
            let value = words.next().unwrap();
            match option {
                "proto" => rule.protocol = TransportProtocol::ALL.into_iter().find(|p| p.to_string() == value),
                "from" => rule.source = Some(value.parse().unwrap()),
                "sport" => rule.source_port = Some(value.parse().unwrap()),
                "to" => rule.destination = Some(value.parse().unwrap()),
                "dport" => rule.destination_port = Some(value.parse().unwrap()),
                "in" => rule.interface = Some(value.to_owned()),
                other => panic!("{other}"),
            }
        }
        rule
    }

    fn flow(protocol: Protocol, from: (&str, u16), to: (&str, u16)) -> FlowKey {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        FlowKey::new(protocol, (address(from.0), from.1), (address(to.0), to.1))
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = [
            "9 to 192.0.2.1 from 203.0.113.0/24",
            "1 proto tcp to 192.0.2.1 dport 80",
            "2 proto tcp to 192.0.2.1 dport 80-443",
            "3 to 192.0.2.0/24 in eth1",
            "4 proto udp dport 53",
            "5 to 2001:db8::/64 sport 1024-65535",
            "6 to 192.0.2.1 dport 80",
            "7 in eth7",
        ]
        .map(rule);
        let classifier = Classifier::new(&rules, &interfaces());
        let (tcp, udp) = (Protocol::TCP, Protocol::UDP);
        let v4 = |protocol, port| flow(protocol, ("198.51.100.1", 999), ("192.0.2.1", port));
        let at = |flow: &FlowKey, interface| classifier.mark(flow, InterfaceId(interface));
        assert_eq!(at(&v4(tcp, 80), 0), Some(1));
        assert_eq!(at(&v4(tcp, 80), 1), Some(1));
        assert_eq!(at(&v4(tcp, 443), 0), Some(2));
        assert_eq!(at(&v4(tcp, 444), 0), None);
        assert_eq!(at(&v4(tcp, 444), 1), Some(3));
        assert_eq!(at(&v4(udp, 53), 0), Some(4));
        assert_eq!(at(&v4(udp, 53), 1), Some(3));
        assert_eq!(at(&v4(udp, 80), 0), Some(6));
        assert_eq!(at(&v4(Protocol::SCTP, 80), 0), Some(6));
        let from_there = flow(tcp, ("203.0.113.9", 1), ("192.0.2.1", 80));
        assert_eq!(at(&from_there, 0), Some(9));
        let v6 = |port| flow(tcp, ("2001:db8:1::1", port), ("2001:db8::1", 80));
        assert_eq!((at(&v6(1024), 0), at(&v6(1023), 0)), (Some(5), None));
        // 192.0.2.1 as a number, and another address.
        assert_eq!(at(&flow(tcp, ("::1", 9), ("::c000:201", 80)), 0), None);
    }

    /// As the rules are meant, without tables.
    fn plainly(rules: &[MarkRule], flow: &FlowKey, interface: &str) -> Option<u32> {
        let inside = |prefix: Option<Prefix>, address| prefix.is_none_or(|prefix| prefix.contains(address));
        let among = |ports: Option<PortRange>, port| ports.is_none_or(|ports| ports.ports().contains(&port));
        let found = rules.iter().find(|rule| {
            rule.protocol.is_none_or(|protocol| protocol.number() == flow.protocol)
                && inside(rule.source, flow.source())
                && inside(rule.destination, flow.destination())
                && among(rule.source_port, flow.source_port())
                && among(rule.destination_port, flow.destination_port())
                && rule.interface.as_deref().is_none_or(|name| name == interface)
        });
        found.map(|rule| rule.mark)
    }

    fn some_rule() -> impl Strategy<Value = String> {
        let protocol = prop_oneof![Just(""), Just("proto tcp"), Just("proto udp")];
        let to = prop_oneof![
            Just(""),
            Just("to 10.0.0.1"),
            Just("to 10.0.0.2"),
            Just("to 10.0.0.0/30"),
            Just("to ::a00:1"),
            Just("to ::a00:0/126")
        ];
        let dport = prop_oneof![Just(""), Just("dport 1"), Just("dport 2"), Just("dport 1-2")];
        let sport = prop_oneof![Just(""), Just("sport 1"), Just("sport 2-3")];
        let interface = prop_oneof![Just(""), Just("in eth0"), Just("in eth1"), Just("in eth9")];
        (protocol, to, dport, sport, interface).prop_map(|(a, b, c, d, e)| format!("{a} {b} {c} {d} {e}"))
    }

    proptest! {
        #[test]
        fn tables_change_nothing(
            rules in proptest::collection::vec(some_rule(), 0..12),
            (v6, udp, to, sport, dport, interface) in (any::<bool>(), any::<bool>(), 1u8..4, 1u16..4, 1u16..4, 0u8..2),
        ) {
            let rules: Vec<MarkRule> =
                rules.iter().enumerate().map(|(n, text)| rule(&format!("{} {text}", n + 1))).collect();
            let interfaces = interfaces();
            let classifier = Classifier::new(&rules, &interfaces);
            let protocol = if udp { Protocol::UDP } else { Protocol::TCP };
            let flow = match v6 {
                false => flow(protocol, ("10.0.0.9", sport), (&format!("10.0.0.{to}"), dport)),
                true => flow(protocol, ("::9", sport), (&format!("::a00:{to}"), dport)),
            };
            let expected = plainly(&rules, &flow, &interfaces[interface as usize].name);
            prop_assert_eq!(classifier.mark(&flow, InterfaceId(interface)), expected);
        }
    }
}
