//! What the classifier's rules mean beyond the workers' table: which frames the filter must let through to it, and where
//! replies of NAT destinations come from.
//!
//! The filter knows addresses and single ports, or all ports: what a rule has of ports in a small range stands there port
//! by port, any other as all ports. Frames that no service is for after all come back by the workers' hands.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Registry, connections};
use crate::conn::{Connection, Kind};
use crate::control::state::State;
use crate::io::filter::Rule;
use crate::packet::{Family, Protocol};
use crate::service::{
    DestinationKey, FTP_DATA_PORT, FTP_PORT, MarkRule, Method, PortRange, Prefix, ServiceKey, TransportProtocol,
};
use crate::table::{Classifier, Interface, LocalAddresses, NatSources};

/// A range of so many ports stands in the filter port by port.
const PORTS_MAX: usize = 64;
/// More entries than these together are too many for single ports: then every range stands for all ports.
const ENTRIES_MAX: usize = 16_384;
/// Addresses of the director's local prefixes (`ip route add local PREFIX`) that a rule gets at most.
const LOCAL_ADDRESSES_MAX: u64 = 4096;
/// Ports of removed rules, as recovered connections tell them, that are noted one by one.
const OLD_MAX: usize = 256;

/// The classifier's rules.
#[derive(Debug, Default)]
pub(super) struct Marks {
    rules: Arc<Vec<MarkRule>>,
    /// Removed ones whose mark's service still has connections: their frames must not reach the kernel.
    old: Vec<MarkRule>,
    compiled: Option<(Arc<[Interface]>, Arc<Classifier>)>,
}

/// Services whose frames are wanted, with whether they have connections.
#[derive(Debug, Default)]
pub(super) struct Wanted(HashMap<ServiceKey, bool>);

impl Wanted {
    pub(super) fn add(&mut self, service: &ServiceKey, has_connections: bool) {
        *self.0.entry(*service).or_default() |= has_connections;
    }
}

/// What a rule lets through the filter.
struct Passage<'a> {
    protocols: &'a [TransportProtocol],
    addresses: Vec<IpAddr>,
    ports: PortRange,
}

impl Passage<'_> {
    fn entries(&self) -> usize {
        self.protocols.len() * self.addresses.len() * single_ports(self.ports).unwrap_or(1)
    }
}

impl Marks {
    /// Takes over the rules of now. `true`: they are others.
    pub(super) fn follow(&mut self, rules: &Arc<Vec<MarkRule>>) -> bool {
        if self.rules == *rules {
            return false;
        }
        let before = std::mem::replace(&mut self.rules, rules.clone());
        self.old.extend(before.iter().cloned());
        // What is there again is not old.
        let now: HashSet<&MarkRule> = rules.iter().collect();
        let mut seen = HashSet::new();
        self.old.retain(|rule| !now.contains(rule) && seen.insert(rule.clone()));
        self.compiled = None;
        true
    }

    /// The rules as the workers have them, as last compiled.
    pub(super) fn compiled(&self) -> Arc<Classifier> {
        let compiled = self.compiled.as_ref();
        compiled.map(|(_, classifier)| classifier.clone()).unwrap_or_default()
    }

    /// Compiles the rules if they or the interfaces have changed.
    pub(super) fn compile(&mut self, interfaces: &Arc<[Interface]>) {
        if self.compiled.as_ref().is_some_and(|(of, _)| of == interfaces) {
            return;
        }
        for rule in self.rules.iter() {
            if let Some(name) = &rule.interface
                && !interfaces.iter().any(|interface| interface.name == *name)
            {
                log::warn!("mark `{rule}` matches nothing: {name} is none of the interfaces served");
            }
        }
        let classifier = Arc::new(Classifier::new(&self.rules, interfaces));
        self.compiled = Some((interfaces.clone(), classifier));
    }

    /// The rules that send packets to a mark's service; with those of before, if it has connections.
    fn of(&self, mark: u32, ipv6: bool, with_old: bool) -> impl Iterator<Item = &MarkRule> {
        let family = if ipv6 { Family::V6 } else { Family::V4 };
        let old = with_old.then_some(&self.old).into_iter().flatten();
        let fits = move |rule: &&MarkRule| rule.mark == mark && rule.family().is_none_or(|only| only == family);
        self.rules.iter().chain(old).filter(fits)
    }

    /// What the filter must look for, for the sake of these services.
    pub(super) fn service_rules(&self, wanted: &Wanted, local: &LocalAddresses) -> HashSet<Rule> {
        let mut rules = HashSet::new();
        let mut passages = Vec::new();
        for (key, has_connections) in &wanted.0 {
            match *key {
                ServiceKey::Address {
                    protocol,
                    address,
                    port,
                } if local.contains(&address) => {
                    rules.insert(Rule::Service {
                        protocol,
                        address,
                        port,
                    });
                    // Data connections go to any port.
                    rules.extend(key.is_ftp().then_some(Rule::Service {
                        protocol,
                        address,
                        port: 0,
                    }));
                }
                ServiceKey::Address { .. } => {}
                ServiceKey::FwMark { mark, ipv6 } => {
                    for rule in self.of(mark, ipv6, *has_connections) {
                        let passage = |protocols, ports| Passage {
                            protocols,
                            addresses: addresses(rule, ipv6, local),
                            ports,
                        };
                        let ports = rule.destination_port.unwrap_or(PortRange::ALL);
                        passages.push(passage(rule.protocols(), ports));
                        if covers_ftp(rule) {
                            passages.push(passage(&[TransportProtocol::Tcp], PortRange::ALL));
                        }
                    }
                }
            }
        }
        let entries: usize = passages.iter().map(Passage::entries).sum();
        for passage in &passages {
            let single = single_ports(passage.ports).is_some_and(|ports| ports == 1 || entries <= ENTRIES_MAX);
            let ports = if single { passage.ports } else { PortRange::from(0) };
            for &protocol in passage.protocols {
                for &address in &passage.addresses {
                    rules.extend(ports.ports().map(|port| Rule::Service {
                        protocol,
                        address,
                        port,
                    }));
                }
            }
        }
        rules
    }
}

/// How many ports it is, if they are few.
fn single_ports(ports: PortRange) -> Option<usize> {
    let count = ports.ports().len();
    (count <= PORTS_MAX).then_some(count)
}

/// The director's own addresses that packets to a rule's destination can have: IPVS sees no others. Those of a prefix that
/// is local as a whole count for rules that name a destination only.
fn addresses(rule: &MarkRule, ipv6: bool, local: &LocalAddresses) -> Vec<IpAddr> {
    let fits = |address: &IpAddr| address.is_ipv6() == ipv6 && !address.is_loopback();
    let hosts = local.hosts().filter(fits);
    let Some(destination) = rule.destination else {
        return hosts.collect();
    };
    if let Some(host) = destination.host() {
        return if local.contains(&host) { vec![host] } else { Vec::new() };
    }
    let mut all: Vec<IpAddr> = hosts.filter(|host| destination.contains(*host)).collect();
    for (network, length) in local.prefixes() {
        let local = Prefix::around(network, length);
        // One lies in the other, or they have nothing in common.
        let both = if destination.contains(local.address()) && local.length() >= destination.length() {
            local
        } else if local.contains(destination.address()) {
            destination
        } else {
            continue;
        };
        if both.address().is_ipv6() == ipv6 && !both.address().is_loopback() {
            all.extend(first_addresses(rule, both));
        }
    }
    all
}

fn first_addresses(rule: &MarkRule, prefix: Prefix) -> impl Iterator<Item = IpAddr> {
    let bits = if prefix.address().is_ipv6() { 128 } else { 32 };
    let all = 1u64.checked_shl(bits - u32::from(prefix.length()));
    let count = match all.filter(|all| *all <= LOCAL_ADDRESSES_MAX) {
        Some(all) => all,
        None => {
            log::warn!("mark `{rule}`: only the first {LOCAL_ADDRESSES_MAX} addresses of {prefix} are served");
            LOCAL_ADDRESSES_MAX
        }
    };
    (0..count).map(move |number| nth(prefix.address(), number))
}

fn nth(first: IpAddr, number: u64) -> IpAddr {
    match first {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().wrapping_add(number as u32).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().wrapping_add(number.into()).into()),
    }
}

/// Connections that it marks can be FTP's, with data connections of any port.
fn covers_ftp(rule: &MarkRule) -> bool {
    let covers = |ports: PortRange| ports.ports().contains(&FTP_PORT);
    rule.protocols().contains(&TransportProtocol::Tcp) && rule.destination_port.is_none_or(covers)
}

/// Protocols and ports from which a NAT destination of a mark's service answers; port 0: any. `persistent`: the service
/// keeps the client's port; `None`: that may have been so or not.
fn nat_ports<'a>(
    rules: impl Iterator<Item = &'a MarkRule>,
    own_port: u16,
    persistent: Option<bool>,
) -> HashSet<(TransportProtocol, u16)> {
    let own = own_port != 0 && persistent != Some(true);
    let asked = own_port == 0 || persistent != Some(false);
    let mut all = HashSet::new();
    for rule in rules {
        let ports = rule.destination_port.unwrap_or(PortRange::ALL);
        let ports = if single_ports(ports).is_some() {
            ports
        } else {
            PortRange::from(0)
        };
        for &protocol in rule.protocols() {
            all.extend(own.then_some((protocol, own_port)));
            all.extend(ports.ports().filter(|_| asked).map(|port| (protocol, port)));
        }
        if covers_ftp(rule) {
            all.extend(ftp_data_ports(persistent.is_none()));
        }
    }
    all
}

/// Where data connections of an FTP server come from. For the filter any port, as the server chooses one when it is asked
/// for passive mode; for workers only that of active mode: what else a server opens is not FTP's.
fn ftp_data_ports(passive: bool) -> impl Iterator<Item = (TransportProtocol, u16)> {
    std::iter::once((TransportProtocol::Tcp, if passive { 0 } else { FTP_DATA_PORT }))
}

/// The transport protocol of this number.
fn transport(protocol: Protocol) -> Option<TransportProtocol> {
    TransportProtocol::ALL.into_iter().find(|one| one.number() == protocol)
}

impl Registry {
    /// A recovered connection may be of a rule that was removed before the daemon ended: its frames are wanted all the
    /// same. Call before the workers start.
    pub(in crate::control) fn remember_mark(&mut self, connection: &Connection) {
        let (address, port) = connection.virtual_address;
        let Some(protocol) = transport(connection.protocol) else {
            return;
        };
        if connection.fwmark == 0 || connection.kind != Kind::Connection {
            return;
        }
        let covers = |rule: &MarkRule| {
            rule.mark == connection.fwmark
                && rule.protocols().contains(&protocol)
                && rule.destination.is_none_or(|prefix| prefix.contains(address))
                && rule.destination_port.is_none_or(|ports| ports.ports().contains(&port))
        };
        if self.marks.rules.iter().chain(&self.marks.old).any(covers) {
            return;
        }
        // Many ports of one address: all of them.
        let many = self.marks.old.len() >= OLD_MAX;
        self.marks.old.push(MarkRule {
            mark: connection.fwmark,
            protocol: Some(protocol),
            source: None,
            source_port: None,
            destination: Some(Prefix::host_of(address)),
            destination_port: (!many).then_some(port.into()),
            interface: None,
        });
    }

    /// Rules that were removed are forgotten when no connection is left of their mark's services. `true`: some were.
    pub(super) fn forget_old_marks(&mut self) -> bool {
        if self.marks.old.is_empty() {
            return false;
        }
        let mut live = HashSet::new();
        for (slot, destination) in self.slots.iter().zip(self.live.iter()) {
            if let (Some(slot), Some(destination)) = (slot, destination)
                && let ServiceKey::FwMark { mark, .. } = slot.service
                && connections(&destination.load) > 0
            {
                live.insert(mark);
            }
        }
        let before = self.marks.old.len();
        self.marks.old.retain(|rule| live.contains(&rule.mark));
        self.marks.old.len() != before
    }

    /// Where the replies of a NAT destination come from, for the filter.
    pub(super) fn nat_rules(&self, service: &ServiceKey, destination: &DestinationKey) -> Vec<Rule> {
        let rule = |(protocol, port)| Rule::NatDestination {
            protocol,
            address: destination.address,
            port,
        };
        match *service {
            ServiceKey::Address { protocol, .. } => {
                let data = ftp_data_ports(true).filter(|_| service.is_ftp());
                std::iter::once((protocol, destination.port))
                    .chain(data)
                    .map(rule)
                    .collect()
            }
            ServiceKey::FwMark { mark, ipv6 } => nat_ports(self.marks.of(mark, ipv6, true), destination.port, None)
                .into_iter()
                .map(rule)
                .collect(),
        }
    }

    /// The same, and the services' addresses, for the workers.
    pub(super) fn nat_sources_of(&self, state: &State) -> NatSources {
        let mut sources = NatSources::default();
        for entry in state.services() {
            let destinations = entry.destinations().filter(|d| d.method == Method::Masq);
            match entry.service.key {
                ServiceKey::Address { protocol, address, .. } => {
                    sources.add_virtual_address(address);
                    for destination in destinations {
                        let data = ftp_data_ports(false).filter(|_| entry.service.key.is_ftp());
                        for (protocol, port) in std::iter::once((protocol, destination.key.port)).chain(data) {
                            sources.add_endpoint(protocol, destination.key.address, port);
                        }
                    }
                }
                ServiceKey::FwMark { mark, ipv6 } => {
                    let rules = || self.marks.of(mark, ipv6, false);
                    let addresses = rules().filter_map(|rule| rule.destination?.host());
                    addresses.for_each(|address| sources.add_virtual_address(address));
                    let persistent = Some(entry.service.persistence.is_some());
                    for destination in destinations {
                        for (protocol, port) in nat_ports(rules(), destination.key.port, persistent) {
                            sources.add_endpoint(protocol, destination.key.address, port);
                        }
                    }
                }
            }
        }
        sources
    }
}
