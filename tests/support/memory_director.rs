//! `uvs replay`'s director in memory, for tests: what it refuses fails the test.
//!
//! The topology is that of `tests/kernel/packets.json`: clients behind interface 0, real servers behind interface 1.

#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;

use uvs::conn::{Connection, ConnectionTable, Kind, NewConnection, NewTemplate, Tick, WorkerId};
use uvs::control::connections::relate;
use uvs::control::protocol::Command;
use uvs::packet::FlowKey;
use uvs::replay::director::MemoryDirector as Director;
pub use uvs::replay::director::Outcome;
use uvs::replay::network::Network;
use uvs::service::DestinationKey;
use uvs::table::InterfaceId;

/// Where clients are.
pub const CLIENT_SIDE: InterfaceId = InterfaceId(0);
/// Where real servers are.
pub const SERVER_SIDE: InterfaceId = InterfaceId(1);

/// Longest frame that goes in.
const FRAME_LEN_MAX: usize = 2048;

/// The director.
pub struct MemoryDirector(Director);

impl MemoryDirector {
    /// A director without rules, for `connections` connections.
    pub fn new(connections: u32) -> MemoryDirector {
        let director = Director::new(Network::recorded(), connections, FRAME_LEN_MAX);
        MemoryDirector(director.expect("memory for the table"))
    }

    /// Carries out lines of `ipvsadm`, with or without that word in front, separated by `;` or ends of line.
    pub fn ipvsadm(&mut self, lines: &str) {
        self.0
            .ipvsadm(lines)
            .unwrap_or_else(|reason| panic!("{lines}: {reason}"));
    }

    /// The classifier's rules, as `[[mark]]` in a configuration.
    pub fn marks(&mut self, toml: &str) {
        let config = uvs::control::config::parse("marks".as_ref(), toml, |_| Ok(vec![]));
        let rules = config
            .unwrap_or_else(|error| panic!("{error}"))
            .desired
            .marks()
            .to_vec();
        let applied = self.0.apply(&[Command::SetMarks { rules }]);
        applied.unwrap_or_else(|reason| panic!("{toml}: {reason}"));
    }

    /// `sysctl -w net.ipv4.vs.NAME=VALUE`.
    pub fn sysctl(&mut self, name: &str, value: &str) {
        let command = Command::SetSysctl {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let applied = self.0.apply(&[command]);
        applied.unwrap_or_else(|reason| panic!("{name}={value}: {reason}"));
    }

    /// What the filter in front of this director would look for.
    pub fn filter_rules(&self) -> std::collections::HashSet<uvs::io::filter::Rule> {
        self.0.filter_rules()
    }

    /// The same, whose packets all take the long way.
    pub fn long_way_only(self) -> MemoryDirector {
        MemoryDirector(self.0.long_way_only())
    }

    /// How many connections are controlled by another, a template or one of FTP: now, and after a restart, which has to find it out
    /// again.
    pub fn controlled(&self) -> [usize; 2] {
        let found = ConnectionTable::anonymous(1024, 1).expect("memory for the table");
        let (worker, now) = (WorkerId(0), Tick::from_boot_ns(self.now_ns));
        let (mut flows, none) = (Vec::new(), &mut |_: &Connection| ());
        for entry in self.connections() {
            let flow = FlowKey::new(entry.protocol, entry.client, entry.virtual_address);
            let (address, port) = entry.destination;
            let destination = DestinationKey { address, port };
            let is_new = if entry.kind == Kind::Template {
                let new = NewTemplate {
                    key: flow.into(),
                    destination,
                    destination_id: entry.destination_id,
                    method: entry.method,
                    timeout_ticks: 1000,
                    fwmark: entry.fwmark,
                };
                found.insert_template(worker, &new, now, none).is_ok()
            } else {
                flows.push(flow);
                let new = NewConnection {
                    flow,
                    destination,
                    destination_id: entry.destination_id,
                    method: entry.method,
                    state: entry.state,
                    timeout_ticks: 1000,
                    client_hop: 0,
                    fwmark: entry.fwmark,
                    controller: None,
                    helped: entry.helped,
                };
                found.insert(worker, found.hash(&flow), &new, now, none).is_ok()
            };
            assert!(is_new, "{entry:?}");
        }
        relate(&found, self.table());
        [self.connection_table(), &found].map(|table| {
            let entries = flows.iter().map(|flow| table.lookup(table.hash(flow), flow));
            entries
                .filter(|hit| hit.expect("it is there").entry.is_controlled())
                .count()
        })
    }

    /// ActiveConn, InActConn and PersistConn of the destinations at this address.
    pub fn load_of(&self, address: IpAddr) -> [u32; 3] {
        let all = self.table().destinations.iter().flatten();
        let here = all.filter(|destination| destination.key.address == address);
        here.fold([0; 3], |[active, inactive, persistent], destination| {
            let load = &destination.load;
            let templates = load.persistent.load(Ordering::Relaxed);
            [
                active + load.active(),
                inactive + load.inactive(),
                persistent + templates,
            ]
        })
    }
}

impl Deref for MemoryDirector {
    type Target = Director;

    fn deref(&self) -> &Director {
        &self.0
    }
}

impl DerefMut for MemoryDirector {
    fn deref_mut(&mut self) -> &mut Director {
        &mut self.0
    }
}
