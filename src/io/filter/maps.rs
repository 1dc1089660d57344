//! What the filters of one daemon look for, in maps that all its interfaces share.
//!
//! The maps of a new daemon are its own and empty: it fills them before it puts its filter in the place of an old
//! one, so no frame of a service slips through meanwhile.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::keys::{
    KEY_LEN, Key, ROLE_LOCAL, ROLE_NAT_SHIFT, ROLE_TUNNEL, ROLE_VIP, address_key, endpoint_key, protocol_role,
};
use super::quick::Quick;
use crate::io::bpf::map::MapType;
use crate::io::bpf::{BpfError, Map};
use crate::service::TransportProtocol;

/// Services, NAT destinations and addresses that fit, each.
pub const RULES_MAX: u32 = 65536;

/// One thing the filter looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// Frames to a virtual service are ours; port 0 stands for every port.
    Service {
        /// Its protocol.
        protocol: TransportProtocol,
        /// The VIP.
        address: IpAddr,
        /// Its port.
        port: u16,
    },
    /// Frames from a NAT destination are ours (its replies); port 0 stands for every port.
    NatDestination {
        /// Its protocol.
        protocol: TransportProtocol,
        /// The real server.
        address: IpAddr,
        /// Its port.
        port: u16,
    },
    /// An address of the director: frames to it are the kernel's, whoever sent them, unless it is a VIP.
    Local(IpAddr),
    /// Where tunnels lead to: ICMP errors to the director about them are ours.
    TunnelDestination(IpAddr),
}

/// The filter's maps, and what stands in them.
#[derive(Debug)]
pub struct FilterMaps {
    pub(super) addresses: Map,
    pub(super) services: Map,
    pub(super) nat_destinations: Map,
    pub(super) quick: Quick,
    rules: HashSet<Rule>,
    uses: HashMap<IpAddr, Uses>,
}

/// How often an address occurs in the rules, by role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Uses {
    local: bool,
    tunnel: bool,
    /// By protocol: TCP, UDP, SCTP.
    services: [u32; 3],
    nat_destinations: [u32; 3],
}

const PROTOCOLS: [TransportProtocol; 3] = [TransportProtocol::Tcp, TransportProtocol::Udp, TransportProtocol::Sctp];

impl Uses {
    fn change(&mut self, rule: Rule, there: bool) {
        let step = |counts: &mut [u32; 3], protocol: TransportProtocol| {
            let count = &mut counts[protocol as usize];
            *count = if there { *count + 1 } else { *count - 1 };
        };
        match rule {
            Rule::Service { protocol, .. } => step(&mut self.services, protocol),
            Rule::NatDestination { protocol, .. } => step(&mut self.nat_destinations, protocol),
            Rule::Local(_) => self.local = there,
            Rule::TunnelDestination(_) => self.tunnel = there,
        }
    }

    /// The roles that stand for it in the map; 0 when there are none.
    fn roles(&self) -> i32 {
        let mut roles = 0;
        for protocol in PROTOCOLS {
            if self.services[protocol as usize] > 0 {
                roles |= ROLE_VIP | protocol_role(protocol);
            }
            if self.nat_destinations[protocol as usize] > 0 {
                roles |= protocol_role(protocol) << ROLE_NAT_SHIFT;
            }
        }
        roles | if self.local { ROLE_LOCAL } else { 0 } | if self.tunnel { ROLE_TUNNEL } else { 0 }
    }
}

impl FilterMaps {
    /// Empty maps: a filter with them passes everything.
    pub fn new() -> Result<FilterMaps, BpfError> {
        Ok(FilterMaps {
            addresses: Map::create(MapType::Hash, "uvs_addresses", KEY_LEN, 4, RULES_MAX)?,
            services: Map::create(MapType::Hash, "uvs_services", KEY_LEN, 1, RULES_MAX)?,
            nat_destinations: Map::create(MapType::Hash, "uvs_nat", KEY_LEN, 1, RULES_MAX)?,
            quick: Quick::new()?,
            rules: HashSet::new(),
            uses: HashMap::new(),
        })
    }

    /// What the filter looks for at present.
    pub fn rules(&self) -> &HashSet<Rule> {
        &self.rules
    }

    /// Adds a rule; one that is there already changes nothing. In force when this returns.
    pub fn insert(&mut self, rule: Rule) -> Result<(), BpfError> {
        if self.rules.contains(&rule) {
            return Ok(());
        }
        // The port before the address: by the long text nothing matches before both are there.
        if let Some((map, key)) = self.endpoint(rule) {
            map.insert(&key, &[1]).map_err(|e| full(e, rule))?;
        }
        if let Err(error) = self.change_roles(rule, true) {
            if let Some((map, key)) = self.endpoint(rule) {
                // The error at hand is the one to tell.
                drop(map.remove(&key));
            }
            return Err(full(error, rule));
        }
        self.rules.insert(rule);
        if let Err(error) = self.quick.insert(rule) {
            // The error at hand is the one to tell.
            drop(self.remove(rule));
            return Err(full(error, rule));
        }
        Ok(())
    }

    /// Removes a rule, if it is there. No longer in force when this returns.
    pub fn remove(&mut self, rule: Rule) -> Result<(), BpfError> {
        if !self.rules.contains(&rule) {
            return Ok(());
        }
        self.quick.remove(rule)?;
        self.change_roles(rule, false)?;
        if let Some((map, key)) = self.endpoint(rule) {
            map.remove(&key)?;
        }
        self.rules.remove(&rule);
        Ok(())
    }

    /// Removes every rule that is not in `wanted`: to be called before the workers' table forgets what it means.
    pub fn shrink_to(&mut self, wanted: &HashSet<Rule>) -> Result<(), BpfError> {
        let gone: Vec<Rule> = self.rules.difference(wanted).copied().collect();
        gone.into_iter().try_for_each(|rule| self.remove(rule))
    }

    /// Adds every rule of `wanted` that is missing: to be called when every worker knows what it means.
    pub fn grow_to(&mut self, wanted: &HashSet<Rule>) -> Result<(), BpfError> {
        let new: Vec<Rule> = wanted.difference(&self.rules).copied().collect();
        new.into_iter().try_for_each(|rule| self.insert(rule))
    }

    /// Where a rule stands besides the addresses.
    fn endpoint(&self, rule: Rule) -> Option<(&Map, Key)> {
        match rule {
            Rule::Service {
                protocol,
                address,
                port,
            } => Some((&self.services, endpoint_key(protocol, address, port))),
            Rule::NatDestination {
                protocol,
                address,
                port,
            } => Some((&self.nat_destinations, endpoint_key(protocol, address, port))),
            Rule::Local(_) | Rule::TunnelDestination(_) => None,
        }
    }

    /// Writes the roles of the rule's address if the rule's coming or going changes them.
    fn change_roles(&mut self, rule: Rule, there: bool) -> Result<(), BpfError> {
        let (Rule::Service { address, .. }
        | Rule::NatDestination { address, .. }
        | Rule::Local(address)
        | Rule::TunnelDestination(address)) = rule;
        let old = self.uses.get(&address).copied().unwrap_or_default();
        let mut new = old;
        new.change(rule, there);
        let key = address_key(address);
        if new.roles() == 0 {
            self.addresses.remove(&key)?;
        } else if new.roles() != old.roles() {
            self.addresses.insert(&key, &new.roles().to_ne_bytes())?;
        }
        match new == Uses::default() {
            true => self.uses.remove(&address),
            false => self.uses.insert(address, new),
        };
        Ok(())
    }
}

fn full(error: BpfError, rule: Rule) -> BpfError {
    let what = match error.errno() {
        libc::E2BIG => format!("{} for {rule:?}: it is full ({RULES_MAX} entries)", error.what),
        _ => format!("{} for {rule:?}", error.what),
    };
    BpfError { what, ..error }
}
