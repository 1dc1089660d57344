//! Services by key, and where NAT replies come from: what the addresses of a packet find.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use super::Service;
use crate::packet::{Family, FlowKey};
use crate::service::{FTP_PORT, ServiceKey, TransportProtocol};

/// Services by key, and what follows from them.
#[derive(Debug, Default)]
pub struct Services {
    /// By exact key; port 0 is a key of its own.
    pub(super) exact: HashMap<Endpoint, Arc<Service>, foldhash::fast::RandomState>,
    /// How many of them have port 0.
    pub(super) of_any_port: usize,
    /// How many are FTP's.
    pub(super) of_ftp: usize,
    /// Those of them with the persistence engine `sip`: their NAT destinations may begin connections to clients.
    pub(super) callers: Vec<Arc<Service>>,
    /// Services of firewall marks.
    pub(super) marks: HashMap<(u32, Family), Arc<Service>, foldhash::fast::RandomState>,
}

impl FromIterator<Arc<Service>> for Services {
    fn from_iter<S: IntoIterator<Item = Arc<Service>>>(services: S) -> Services {
        let services = services.into_iter();
        let mut all = Services::default();
        all.exact.reserve(services.size_hint().0);
        services.for_each(|service| all.put(service));
        all
    }
}

impl Services {
    /// Adds a service, in the place of that with its key.
    pub fn put(&mut self, service: Arc<Service>) {
        let key = service.key;
        self.remove(&key);
        match key {
            ServiceKey::Address {
                protocol,
                address,
                port,
            } => {
                self.of_any_port += usize::from(port == 0);
                self.of_ftp += usize::from(port == FTP_PORT);
                if service.sip {
                    self.callers.push(service.clone());
                }
                let endpoint = Endpoint::new(protocol.number().0, address, port);
                self.exact.insert(endpoint, service);
            }
            ServiceKey::FwMark { mark, .. } => {
                self.marks.insert((mark, key.family()), service);
            }
        }
    }

    /// Takes out the service with this key, if there is one.
    pub fn remove(&mut self, key: &ServiceKey) {
        match *key {
            ServiceKey::Address {
                protocol,
                address,
                port,
            } => {
                let endpoint = Endpoint::new(protocol.number().0, address, port);
                let Some(gone) = self.exact.remove(&endpoint) else {
                    return;
                };
                self.of_any_port -= usize::from(port == 0);
                self.of_ftp -= usize::from(port == FTP_PORT);
                if gone.sip
                    && let Some(place) = self.callers.iter().position(|caller| Arc::ptr_eq(caller, &gone))
                {
                    self.callers.swap_remove(place);
                }
            }
            ServiceKey::FwMark { mark, .. } => {
                self.marks.remove(&(mark, key.family()));
            }
        }
    }

    /// Every service.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.exact.values().chain(self.marks.values())
    }

    /// Both have the very same services, not only equal ones.
    pub fn shares_all_with(&self, other: &Services) -> bool {
        let all = |services: &Services| -> HashSet<_> { services.iter().map(Arc::as_ptr).collect() };
        let callers = |services: &Services| -> HashSet<_> { services.callers.iter().map(Arc::as_ptr).collect() };
        let numbers = |services: &Services| (services.of_any_port, services.of_ftp, services.callers.len());
        all(self) == all(other) && callers(self) == callers(other) && numbers(self) == numbers(other)
    }
}

/// An address in two words, as [`destination_words`] has them.
pub(super) fn address_words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [v4.to_bits() as u64, 0],
        IpAddr::V6(v6) => [(v6.to_bits() >> 64) as u64, v6.to_bits() as u64],
    }
}

/// The destination address of a flow in two words.
#[inline]
pub(super) fn destination_words(flow: &FlowKey) -> [u64; 2] {
    match flow.family {
        Family::V4 => [flow.addresses[0] & 0xffff_ffff, 0],
        Family::V6 => [flow.addresses[2], flow.addresses[3]],
    }
}

/// Protocol, address and port in a shape that compares and hashes in a few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    address: [u64; 2],
    pub(super) port: u16,
    protocol: u8,
    family: Family,
}

impl Hash for Endpoint {
    /// An IPv4 one in one step.
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let rest = (self.port as u64) << 16 | (self.protocol as u64) << 8 | self.family as u64;
        state.write_u128(self.address[0] as u128 | (rest as u128) << 64);
        if self.address[1] != 0 {
            state.write_u64(self.address[1]);
        }
    }
}

impl Endpoint {
    fn new(protocol: u8, address: IpAddr, port: u16) -> Endpoint {
        Endpoint {
            address: address_words(address),
            port,
            protocol,
            family: Family::of(address),
        }
    }

    #[inline]
    pub(super) fn destination(flow: &FlowKey) -> Endpoint {
        Endpoint {
            address: destination_words(flow),
            port: flow.destination_port(),
            protocol: flow.protocol.0,
            family: flow.family,
        }
    }

    #[inline]
    pub(super) fn source(flow: &FlowKey) -> Endpoint {
        Endpoint::destination(&flow.reversed())
    }
}

/// Where NAT replies come from, and the addresses that services have.
#[derive(Debug, Default)]
pub struct NatSources {
    pub(super) endpoints: HashSet<Endpoint, foldhash::fast::RandomState>,
    pub(super) any_port: bool,
    pub(super) virtual_addresses: HashSet<IpAddr, foldhash::fast::RandomState>,
}

impl NatSources {
    /// Notes an address that a service has.
    pub fn add_virtual_address(&mut self, address: IpAddr) {
        self.virtual_addresses.insert(address);
    }

    /// Notes where the replies of a NAT destination come from; port 0 stands for every port.
    pub fn add_endpoint(&mut self, protocol: TransportProtocol, address: IpAddr, port: u16) {
        self.any_port |= port == 0;
        let protocol = protocol.number().0;
        self.endpoints.insert(Endpoint::new(protocol, address, port));
    }
}
