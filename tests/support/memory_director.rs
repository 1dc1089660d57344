//! A director in memory: rules as `ipvsadm` takes them, frames in and out, no kernel. Time stands still unless it is moved.
//!
//! The topology is that of `tests/kernel/packets.json`: clients behind interface 0, real servers behind interface 1.

#![allow(dead_code, reason = "each test file uses a part")]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use uvs::conn::WorkerId;
use uvs::conn::{Connection, ConnectionTable, EntryDropper, Tick, TimeoutTable};
use uvs::control::protocol::Command;
use uvs::control::registry::{Registry, Routes, build_scheduler};
use uvs::control::state::State;
use uvs::dataplane::counters::FrameCounts;
use uvs::dataplane::driver::{BATCH_MAX, Driver};
use uvs::dataplane::pipeline::Pipeline;
use uvs::forward::Identifications;
use uvs::io::memory::MemoryDriver;
use uvs::packet::{Frame, Mac, Offload};
use uvs::table::{Hops, Interface, InterfaceId, LocalAddresses, NextHop, Reach, Supplies, Table};

/// Where clients are.
pub const CLIENT_SIDE: InterfaceId = InterfaceId(0);
/// Where real servers are.
pub const SERVER_SIDE: InterfaceId = InterfaceId(1);

const INTERFACE_MACS: [Mac; 2] = [Mac([2, 0, 0, 0, 0, 0xd0]), Mac([2, 0, 0, 0, 0, 0xd1])];

/// What one frame led to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Frames that left, with their interface, in order for each.
    pub sent: Vec<(InterfaceId, Vec<u8>)>,
    /// Frames given to the local stack.
    pub handed_back: usize,
}

/// The director.
pub struct MemoryDirector {
    state: State,
    registry: Registry,
    routes: Neighbours,
    table: Arc<Table>,
    driver: MemoryDriver,
    pipeline: Pipeline,
    connections: Arc<ConnectionTable>,
    /// Time since boot.
    pub now_ns: u64,
    /// Runs the data plane's work on each frame; for watching what it does besides.
    pub around: fn(&mut dyn FnMut()),
}

/// Every real server is a neighbour on the server side: its link address ends as its address does.
struct Neighbours;

impl Routes for Neighbours {
    fn reach(&mut self, destination: IpAddr) -> Reach {
        let (source, last) = match destination {
            IpAddr::V4(v4) => ("172.16.0.1", v4.octets()[3] - 11),
            IpAddr::V6(v6) => ("fd00:16::1", v6.octets()[15] - 0x11),
        };
        let hop = NextHop {
            interface: SERVER_SIDE,
            source: INTERFACE_MACS[1],
            destination: Mac([2, 0, 0, 0, 0, 0xa1 + last]),
            mtu: 1500,
        };
        Reach::Hop {
            hop,
            source: source.parse().expect("an address"),
        }
    }
}

impl MemoryDirector {
    /// A director without rules, for `connections` connections.
    pub fn new(connections: u32) -> MemoryDirector {
        let connections = Arc::new(ConnectionTable::anonymous(connections, 1).expect("memory for the table"));
        let mut director = MemoryDirector {
            state: State::default(),
            registry: Registry::new(1, build_scheduler),
            routes: Neighbours,
            table: Arc::default(),
            driver: MemoryDriver::new(2, 256, 2048),
            pipeline: Pipeline::new(
                connections.clone(),
                Arc::new(Hops::default()),
                WorkerId(0),
                Identifications::new(0),
            ),
            connections,
            now_ns: 1_000_000_000_000,
            around: |work| work(),
        };
        director.pipeline.online();
        director.change_to(State::default());
        director
    }

    /// Carries out lines of `ipvsadm`, with or without that word in front, separated by `;` or ends of line.
    pub fn ipvsadm(&mut self, lines: &str) {
        let lines = lines.replace(';', "\n");
        let commands = uvs::ipvsadm::rules::parse_file(&lines).expect("rules that ipvsadm takes");
        let commands: Vec<Command> = commands.into_iter().map(|(_, command)| command).collect();
        let applied = self.state.apply_all(&commands, true);
        assert!(
            applied.results.iter().all(Option::is_none),
            "{lines}: {:?}",
            applied.results
        );
        self.change_to(applied.state);
    }

    /// The classifier's rules, as `[[mark]]` in a configuration.
    #[allow(dead_code, reason = "as below")]
    pub fn marks(&mut self, toml: &str) {
        let config = uvs::control::config::parse("marks".as_ref(), toml, |_| Ok(vec![]));
        let rules = config
            .unwrap_or_else(|error| panic!("{error}"))
            .desired
            .marks()
            .to_vec();
        let applied = self.state.apply(&Command::SetMarks { rules });
        let (state, _) = applied.unwrap_or_else(|error| panic!("{error}"));
        self.change_to(state);
    }

    /// `sysctl -w net.ipv4.vs.NAME=VALUE`.
    pub fn sysctl(&mut self, name: &str, value: &str) {
        let command = Command::SetSysctl {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let (state, _) = self
            .state
            .apply(&command)
            .unwrap_or_else(|error| panic!("{name}={value}: {error}"));
        self.change_to(state);
    }

    fn change_to(&mut self, state: State) {
        self.registry.update(&self.state, &state, &mut self.routes);
        self.state = state;
        let interface = |name: &str, index: usize, addresses: [&str; 2]| Interface {
            name: name.to_owned(),
            index: index as u32 + 1,
            mac: INTERFACE_MACS[index],
            mtu: 1500,
            addresses: addresses.map(|address| address.parse().expect("an address")).to_vec(),
        };
        let interfaces = [
            interface("d0", 0, ["10.0.0.1", "fd00:10::1"]),
            interface("d1", 1, ["172.16.0.1", "fd00:16::1"]),
        ];
        let vips = ["10.200.1.1", "fd00:200::1"].map(|vip| vip.parse().expect("an address"));
        let hosts: Vec<IpAddr> = interfaces
            .iter()
            .flat_map(|interface| interface.addresses.iter().copied())
            .chain(vips)
            .collect();
        self.table = Arc::new(self.registry.table(
            &self.state,
            interfaces.to_vec().into(),
            Arc::new(LocalAddresses::new(hosts, [])),
        ));
    }

    /// What the filter in front of this director would look for.
    #[allow(dead_code, reason = "as below")]
    pub fn filter_rules(&self) -> std::collections::HashSet<uvs::io::filter::Rule> {
        self.registry.filter_rules(&self.table.local, &Default::default())
    }

    /// One frame in. Its accounting must come out even.
    pub fn inject(&mut self, interface: InterfaceId, bytes: &[u8], offload: Offload) -> Outcome {
        assert!(self.driver.push(interface, bytes, offload), "no buffer left");
        let mut batch = Vec::with_capacity(BATCH_MAX);
        assert_eq!(self.driver.receive(&mut batch), 1);
        (self.around)(&mut || {
            self.pipeline
                .process(&mut self.driver, &mut batch, &self.table, self.now_ns);
            self.driver.flush();
        });
        assert!(self.counts().balanced(), "{:?}", self.counts());
        let mut outcome = Outcome {
            sent: Vec::new(),
            handed_back: self.driver.handed_back().len(),
        };
        for interface in [CLIENT_SIDE, SERVER_SIDE] {
            let sent = self.driver.transmitted(interface);
            outcome
                .sent
                .extend(sent.iter().map(|frame| (interface, frame.bytes().to_vec())));
        }
        self.driver.clear();
        assert_eq!(self.driver.outstanding(), 0, "every buffer is back");
        outcome
    }

    /// The same, whose packets all take the long way.
    #[allow(
        dead_code,
        reason = "only some of the tests that have this module compare the two ways"
    )]
    pub fn long_way_only(self) -> MemoryDirector {
        MemoryDirector {
            pipeline: self.pipeline.long_way_only(),
            ..self
        }
    }

    /// Ends the connections whose time has come, as the control thread does.
    #[allow(dead_code, reason = "as above")]
    pub fn sweep(&self) {
        let now = Tick::from_boot_ns(self.now_ns);
        self.connections
            .sweep(now, usize::MAX / 2, &mut |gone| self.table.count_off(gone));
    }

    /// So much is left of memory and connection table from now on.
    #[allow(dead_code, reason = "as above")]
    pub fn supplies(&mut self, supplies: Supplies) {
        let mut state = self.state.clone();
        self.registry.defend(&mut state, supplies);
        self.change_to(state);
    }

    /// What `drop_entry` does in this many seconds.
    #[allow(dead_code, reason = "as above")]
    pub fn drop_entries(&self, seconds: usize) -> usize {
        if !self.table.defence.drop_entry {
            return 0;
        }
        let (now, timeouts) = (Tick::from_boot_ns(self.now_ns), TimeoutTable::new(&self.table.timeouts));
        let mut dropper = EntryDropper::new(1);
        let mut count_off = |gone: &Connection| self.table.count_off(gone);
        (0..seconds)
            .map(|_| {
                self.connections
                    .drop_entries(&mut dropper, now, &timeouts, &mut count_off)
            })
            .sum()
    }

    /// Every connection, in a fixed order.
    #[allow(dead_code, reason = "as above")]
    pub fn connections(&self) -> Vec<Connection> {
        let mut all = Vec::new();
        self.connections.for_each(|connection| all.push(*connection));
        all.sort_by_key(|connection| (connection.client, connection.virtual_address));
        all
    }

    /// The destinations with their numbers, as text.
    #[allow(dead_code, reason = "as above")]
    pub fn destinations(&self) -> String {
        format!("{:?}", self.table.destinations)
    }

    /// ActiveConn, InActConn and PersistConn of the destinations at this address.
    #[allow(dead_code, reason = "as above")]
    pub fn load_of(&self, address: IpAddr) -> [u32; 3] {
        let all = self.table.destinations.iter().flatten();
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

    /// Where every frame went so far.
    pub fn counts(&self) -> &FrameCounts {
        self.pipeline.counts()
    }
}
