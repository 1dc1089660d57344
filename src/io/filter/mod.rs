//! The packet filter in front of the kernel: which frames of an interface are for us.
//!
//! [`FilterMaps`] holds what to look for, shared by all interfaces of the daemon; a [`Filter`] is the program on one
//! interface with its counters and AF_XDP sockets. Words: a frame *matches* when it is ours and *passes* when it is
//! the kernel's. The rules of matching stand in `program.rs`.
//!
//! Where it is attached it stays, also when the process dies: [`attach`] says how it is replaced and told apart.

pub mod attach;
mod keys;
mod maps;
#[cfg(test)]
mod mutated_tests;
mod program;
mod quick;
#[cfg(test)]
mod tests;

use std::os::fd::RawFd;

use super::bpf::map::MapType;
use super::bpf::{BpfError, Map, Program};
use crate::packet::Mac;

pub use maps::{FilterMaps, RULES_MAX, Rule};
pub use program::Flavour;

/// Name of every filter program: by it a daemon knows another's.
pub const PROGRAM_NAME: &str = "uvs_filter";

/// Most receive queues of an interface: size of the socket map.
pub const QUEUES_MAX: u32 = 1024;

/// A loaded filter for one interface.
#[derive(Debug)]
pub struct Filter {
    flavour: Flavour,
    program: Program,
    interface: Map,
    counters: Option<Map>,
    sockets: Option<Map>,
}

/// Frames that a filter has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterCounters {
    /// Ours.
    pub matched: u64,
    /// The kernel's.
    pub passed: u64,
}

impl Filter {
    /// Loads it. It sees what is and comes into `maps`. Those on packet sockets do not count: the one at tc
    /// ingress, which sees the same frames, does.
    pub fn load(flavour: Flavour, maps: &FilterMaps) -> Result<Filter, BpfError> {
        let interface = Map::create(MapType::Array, "uvs_interface", 4, 8, 1)?;
        let counters = match flavour {
            Flavour::Socket => None,
            _ => Some(Map::create(MapType::PerCpuArray, "uvs_counters", 4, 8, 2)?),
        };
        let sockets = match flavour {
            // libbpf, inside the crate afxdp, looks for a map of this name.
            Flavour::Xdp => Some(Map::create(MapType::XskMap, "xsks_map", 4, 4, QUEUES_MAX)?),
            _ => None,
        };
        let text = program::program(
            flavour,
            &program::ProgramMaps {
                addresses: &maps.addresses,
                services: &maps.services,
                nat_destinations: &maps.nat_destinations,
                quick: &maps.quick.map,
                interface: &interface,
                counters: counters.as_ref(),
                sockets: sockets.as_ref(),
            },
        );
        Ok(Filter {
            flavour,
            program: Program::load(flavour.program_type(), PROGRAM_NAME, &text)?,
            interface,
            counters,
            sockets,
        })
    }

    /// The program, to attach it to a packet socket.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// What it was made for.
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// Frames to other link addresses pass, as the kernel too ignores them. Without this call every link address
    /// matches: so leave it for an interface that has several (VRRP's virtual link address on a macvlan).
    /// Only XDP needs it: later on, the kernel has told frames apart already.
    pub fn set_link_address(&self, address: Mac) -> Result<(), BpfError> {
        let mut value = [0, 0, 0, 0, 0, 0, 1, 1];
        value[..6].copy_from_slice(&address.0);
        self.interface.insert(&0u32.to_ne_bytes(), &value)
    }

    /// Frames of that receive queue go to this AF_XDP socket from now on. It leaves the map by being closed.
    pub fn set_socket(&self, queue: u32, socket: RawFd) -> Result<(), BpfError> {
        let sockets = self.sockets.as_ref().expect("only an XDP filter has sockets");
        let result = sockets.insert(&queue.to_ne_bytes(), &socket.to_ne_bytes());
        result.map_err(|e| BpfError {
            what: format!("{} for queue {queue}", e.what),
            ..e
        })
    }

    /// What it counted, over all CPUs.
    pub fn counters(&self) -> Result<FilterCounters, BpfError> {
        let Some(counters) = &self.counters else {
            return Ok(FilterCounters::default());
        };
        Ok(FilterCounters {
            matched: counters.sum(program::COUNTER_MATCHED)?,
            passed: counters.sum(program::COUNTER_PASSED)?,
        })
    }
}
