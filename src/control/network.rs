//! The network as the daemon sees it: its interfaces, the director's addresses, and how destinations are reached.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::registry::Routes;
use crate::io::netlink::{Error, Resolver};
use crate::table::{Interface, Reach};

/// How long one wait for neighbours takes.
const NEIGHBOUR_WAIT: Duration = Duration::from_millis(3);

/// Why the network cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Of rtnetlink.
    #[error("{0}")]
    Netlink(#[from] Error),
    /// No such interface.
    #[error("there is no interface {name:?}; there are: {there}")]
    NoSuchInterface {
        /// As given.
        name: String,
        /// Those that are there.
        there: String,
    },
    /// Not one that frames can be taken off.
    #[error("interface {name:?} is no Ethernet interface")]
    NotEthernet {
        /// Its name.
        name: String,
    },
}

/// What rtnetlink says, as last read.
pub struct Network {
    resolver: Resolver,
    indexes: Vec<u32>,
    interfaces: Arc<[Interface]>,
    local: Arc<HashSet<IpAddr>>,
}

impl Network {
    /// Reads all, in the network namespace of the calling thread. `names` are the daemon's interfaces.
    pub fn open(names: &[String]) -> Result<Network, NetworkError> {
        let resolver = Resolver::open(Instant::now())?;
        let mut interfaces = Vec::new();
        for name in names {
            let Some(link) = resolver.link_named(name) else {
                return Err(NetworkError::NoSuchInterface {
                    name: name.clone(),
                    there: resolver.link_names().join(", "),
                });
            };
            let Some(mac) = link.mac.filter(|_| !link.loopback) else {
                return Err(NetworkError::NotEthernet { name: name.clone() });
            };
            interfaces.push(Interface {
                name: name.clone(),
                index: link.index,
                mac,
                mtu: mtu(link.mtu),
                addresses: Vec::new(),
            });
        }
        let mut network = Network {
            resolver,
            indexes: interfaces.iter().map(|interface| interface.index).collect(),
            interfaces: interfaces.into(),
            local: Arc::default(),
        };
        network.take();
        Ok(network)
    }

    /// The daemon's interfaces.
    pub fn interfaces(&self) -> &Arc<[Interface]> {
        &self.interfaces
    }

    /// The director's own addresses.
    pub fn local_addresses(&self) -> &Arc<HashSet<IpAddr>> {
        &self.local
    }

    /// Reads all anew.
    pub fn refresh(&mut self) {
        match self.resolver.refresh(Instant::now()) {
            Ok(()) => self.take(),
            Err(error) => log::error!("cannot read links, addresses and neighbours: {error}"),
        }
    }

    /// About once a second. `true`: look again how destinations are reached.
    pub fn tick(&mut self) -> bool {
        self.resolver.tick(Instant::now()).unwrap_or_else(|error| {
            log::error!("cannot keep neighbours fresh: {error}");
            false
        })
    }

    /// Waits a little for neighbours to answer.
    pub fn wait(&mut self) {
        std::thread::sleep(NEIGHBOUR_WAIT);
        self.refresh();
    }

    /// Takes over what the resolver read. An interface that is gone stays as it was last.
    fn take(&mut self) {
        let addresses = self.resolver.local_addresses();
        let interfaces: Vec<Interface> = self
            .interfaces
            .iter()
            .map(|old| {
                let link = self.resolver.link(old.index);
                Interface {
                    name: old.name.clone(),
                    index: old.index,
                    mac: link.and_then(|link| link.mac).unwrap_or(old.mac),
                    mtu: link.map_or(old.mtu, |link| mtu(link.mtu)),
                    addresses: addresses
                        .iter()
                        .filter(|a| a.link == old.index)
                        .map(|a| a.address)
                        .collect(),
                }
            })
            .collect();
        if *interfaces != *self.interfaces {
            self.interfaces = interfaces.into();
        }
        let local: HashSet<IpAddr> = addresses.iter().map(|address| address.address).collect();
        if local != *self.local {
            self.local = Arc::new(local);
        }
    }
}

impl Routes for Network {
    fn reach(&mut self, destination: IpAddr) -> Reach {
        let reach = self.resolver.resolve(destination, &self.indexes, Instant::now());
        reach.unwrap_or_else(|error| {
            log::error!("cannot find the way to {destination}: {error}");
            Reach::Unreachable
        })
    }
}

/// The table's MTU: frames are 64 KiB at most.
fn mtu(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}
