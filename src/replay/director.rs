//! A director in memory: rules as `ipvsadm` takes them, frames in and out, no kernel. Time stands still unless it is moved.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::network::Network;
use crate::conn::{Connection, ConnectionTable, EntryDropper, Tick, TimeoutTable, WorkerId};
use crate::control::explain::{self, Explanation, Question};
use crate::control::protocol::Command;
use crate::control::registry::{Registry, build_scheduler};
use crate::control::state::State;
use crate::dataplane::counters::FrameCounts;
use crate::dataplane::driver::{BATCH_MAX, Driver};
use crate::dataplane::pipeline::Pipeline;
use crate::forward::Identifications;
use crate::io::filter::Rule;
use crate::io::memory::MemoryDriver;
use crate::ipvsadm;
use crate::packet::{Frame, Offload};
use crate::service::ServiceKey;
use crate::table::{Hops, InterfaceId, Supplies, Table};

/// Buffers of the driver: what one frame, cut into segments or fragments, or a batch of common ones can become.
const BUFFERS: usize = 256;
/// The clock at the start.
const START_NS: u64 = 1_000_000_000_000;

/// What a batch led to.
#[derive(Debug, Default, PartialEq, Eq)]
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
    network: Network,
    table: Arc<Table>,
    driver: MemoryDriver,
    pipeline: Pipeline,
    connections: Arc<ConnectionTable>,
    /// Time since boot.
    pub now_ns: u64,
    /// Runs the data plane's work on each batch; for watching what it does besides.
    pub around: fn(&mut dyn FnMut()),
}

impl MemoryDirector {
    /// A director without rules, for `connections` connections and frames of up to `frame_len_max` bytes.
    pub fn new(network: Network, connections: u32, frame_len_max: usize) -> io::Result<MemoryDirector> {
        let connections = Arc::new(ConnectionTable::anonymous(connections, 1)?);
        let mut director = MemoryDirector {
            state: State::default(),
            registry: Registry::new(1, build_scheduler),
            driver: MemoryDriver::new(network.interfaces().len(), BUFFERS, frame_len_max),
            network,
            table: Arc::default(),
            pipeline: Pipeline::new(
                connections.clone(),
                Arc::new(Hops::default()),
                WorkerId(0),
                Identifications::new(0),
            ),
            connections,
            now_ns: START_NS,
            around: |work| work(),
        };
        director.pipeline.online();
        director.change_to(State::default());
        Ok(director)
    }

    /// Carries out lines of `ipvsadm`, with or without that word in front, separated by `;` or ends of line, one after the
    /// other. One that is refused ends it; none is begun when one cannot be read.
    pub fn ipvsadm(&mut self, lines: &str) -> Result<(), String> {
        let lines = lines.replace(';', "\n");
        let commands = ipvsadm::rules::parse_file(&lines).map_err(|error| error.reason)?;
        let mut commands = commands.into_iter();
        commands.try_for_each(|(_, command)| self.apply(&[command]))
    }

    /// Carries out commands, all or none.
    pub fn apply(&mut self, commands: &[Command]) -> Result<(), String> {
        let applied = self.state.apply_all(commands, true);
        if let Some(error) = applied.results.iter().flatten().next() {
            return Err(error.to_string());
        }
        self.change_to(applied.state);
        Ok(())
    }

    /// An interface's MTU from now on.
    pub fn set_mtu(&mut self, interface: InterfaceId, mtu: u16) {
        self.network.set_mtu(interface, mtu);
        self.registry.refresh_reach(&mut self.network);
        self.change_to(self.state.clone());
    }

    /// What the filter in front of this director would look for.
    pub fn filter_rules(&self) -> HashSet<Rule> {
        self.registry.filter_rules(&self.table.local, &HashSet::new())
    }

    /// Takes over everything that a state says. The addresses of its services are the director's from then on.
    pub fn change_to(&mut self, state: State) {
        for entry in state.services() {
            if let ServiceKey::Address { address, .. } = entry.service.key {
                self.network.add_vip(address);
            }
        }
        self.registry.update(&self.state, &state, &mut self.network);
        self.state = state;
        self.table = self.registry.table(
            &self.state,
            self.network.interfaces().to_vec().into(),
            Arc::new(self.network.local()),
        );
        if self.table.has_calls() {
            self.connections.keep_call_ids();
        }
    }

    /// One frame in: as [`inject_batch`](MemoryDirector::inject_batch).
    pub fn inject(&mut self, interface: InterfaceId, bytes: &[u8], offload: Offload) -> Outcome {
        self.inject_batch(&[(interface, bytes, offload)])
    }

    /// Frames in, as one batch in this order. Their accounting must come out even.
    ///
    /// # Panics
    ///
    /// When a frame is longer than the director takes, or gets lost in it, and when the frames are more than a batch holds.
    pub fn inject_batch(&mut self, frames: &[(InterfaceId, &[u8], Offload)]) -> Outcome {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        for (interface, bytes, offload) in frames {
            assert!(
                self.driver.push(*interface, bytes, *offload),
                "no buffer for {} bytes",
                bytes.len()
            );
            assert_eq!(self.driver.receive(&mut batch), 1);
        }
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
        for number in 0..self.network.interfaces().len() {
            let interface = InterfaceId(number as u8);
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
    pub fn long_way_only(self) -> MemoryDirector {
        MemoryDirector {
            pipeline: self.pipeline.long_way_only(),
            ..self
        }
    }

    /// Ends the connections whose time has come, as the control thread does.
    pub fn sweep(&self) {
        self.connections.sweep(self.now(), usize::MAX / 2, &mut |gone| {
            self.table.count_off(WorkerId::CONTROL, gone)
        });
    }

    /// So much is left of memory and connection table from now on.
    pub fn supplies(&mut self, supplies: Supplies) {
        let mut state = self.state.clone();
        self.registry.defend(&mut state, supplies);
        self.change_to(state);
    }

    /// What `drop_entry` does in this many seconds.
    pub fn drop_entries(&self, seconds: usize) -> usize {
        if !self.table.defence.drop_entry {
            return 0;
        }
        let timeouts = TimeoutTable::new(&self.table.timeouts);
        let mut dropper = EntryDropper::new(1);
        let mut count_off = |gone: &Connection| self.table.count_off(WorkerId::CONTROL, gone);
        (0..seconds)
            .map(|_| {
                self.connections
                    .drop_entries(&mut dropper, self.now(), &timeouts, &mut count_off)
            })
            .sum()
    }

    /// The clock, as connections know it.
    pub fn now(&self) -> Tick {
        Tick::from_boot_ns(self.now_ns)
    }

    /// Every connection, in a fixed order.
    pub fn connections(&self) -> Vec<Connection> {
        let mut all = Vec::new();
        self.connections.for_each(|connection| all.push(*connection));
        all.sort_by_key(|connection| (connection.client, connection.virtual_address));
        all
    }

    /// The table of connections, to look something up between two frames.
    pub fn connection_table(&self) -> &ConnectionTable {
        &self.connections
    }

    /// Which way a flow would go, as `uvs explain` says it.
    pub fn explain(&self, question: &Question) -> Explanation {
        let call_id = question.call_id.as_ref();
        let call_id = call_id.map(|text| self.connections.call_id(text.as_bytes()));
        let template = explain::template_key(question, call_id, &self.table);
        let mut entries = Vec::new();
        self.connections.for_each(|connection| {
            if question.is_about(template.as_ref(), connection) {
                entries.push(*connection);
            }
        });
        explain::explain(question, &self.table, &self.state, &entries, self.now())
    }

    /// What the workers read.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What was asked for.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What is around it.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Whether the address is the director's.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.table.local.contains(&address)
    }

    /// The destinations with their numbers, as text.
    pub fn destinations(&self) -> String {
        format!("{:?}", self.table.destinations)
    }

    /// Where every frame went so far.
    pub fn counts(&self) -> &FrameCounts {
        self.pipeline.counts()
    }
}
