//! The real [`Outside`]: workers, filter, rtnetlink, connection entries and interfaces put together.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::connections::{self, EntriesFile};
use super::network::Network;
use super::outside::{ListConnections, Outside, Stuck};
use super::registry::Routes;
use super::report::{InterfaceReport, Report};
use super::workers::Workers;
use crate::conn::{ConnectionTable, Tick};
use crate::io::clock::boot_ns;
use crate::io::filter::{FilterMaps, Rule};
use crate::table::{Destination, Interface, Reach, Table};

/// What hangs on the interfaces: filters, and the sockets' side that the workers do not own.
pub trait Attached {
    /// Name, driver, mode and the filter's numbers of each, in the order of their ids; the kernel's statistics are
    /// added by the caller.
    fn report(&mut self) -> Vec<InterfaceReport>;

    /// Link addresses may have changed.
    fn follow(&mut self, interfaces: &[Interface]);

    /// Gives the interfaces back to the kernel.
    fn detach(&mut self);
}

/// Everything outside the control thread.
pub struct Machine {
    /// What rtnetlink says.
    pub network: Network,
    /// The worker threads.
    pub workers: Workers,
    /// What the filters look for.
    pub filter: FilterMaps,
    /// All connections.
    pub connections: Arc<ConnectionTable>,
    /// Their file.
    pub entries: EntriesFile,
    /// What hangs on the interfaces.
    pub attached: Box<dyn Attached>,
    /// When it began.
    pub started: Instant,
}

impl Machine {
    /// Ends the workers. With `keep` the filters go on dropping and the entries stay for the next start; else the
    /// kernel gets the virtual addresses back.
    pub fn stop(mut self, keep: bool) {
        // The filter first: what comes after the workers' end must not wait in their sockets.
        if !keep {
            self.attached.detach();
        }
        self.workers.stop();
        if !keep {
            self.entries.remove();
        }
    }
}

impl Routes for Machine {
    fn reach(&mut self, destination: IpAddr) -> Reach {
        self.network.reach(destination)
    }
}

impl Outside for Machine {
    fn now_ms(&self) -> u64 {
        boot_ns() / 1_000_000
    }

    fn interfaces(&self) -> Arc<[Interface]> {
        self.network.interfaces().clone()
    }

    fn local_addresses(&self) -> Arc<HashSet<IpAddr>> {
        self.network.local_addresses().clone()
    }

    fn network_changed(&mut self) {
        self.network.refresh();
        self.attached.follow(self.network.interfaces());
    }

    fn network_tick(&mut self) -> bool {
        self.network.tick()
    }

    fn network_wait(&mut self) {
        self.network.wait();
    }

    fn shrink_filter(&mut self, wanted: &HashSet<Rule>) -> Result<(), String> {
        self.filter.shrink_to(wanted).map_err(|error| error.to_string())
    }

    fn grow_filter(&mut self, wanted: &HashSet<Rule>) -> Result<(), String> {
        self.filter.grow_to(wanted).map_err(|error| error.to_string())
    }

    fn publish(&mut self, table: Arc<Table>) -> Result<(), Stuck> {
        self.workers.publish(&table)
    }

    fn check_workers(&mut self) -> Result<(), Stuck> {
        self.workers.check()
    }

    fn sweep(&mut self, destinations: &[Option<Arc<Destination>>]) {
        connections::sweep(&self.connections, Tick::from_boot_ns(boot_ns()), destinations);
    }

    fn connections(&self) -> ListConnections {
        connections::list(&self.connections, Tick::from_boot_ns(boot_ns()))
    }

    fn report(&mut self) -> Report {
        let mut interfaces = self.attached.report();
        let numbers = self.workers.numbers(interfaces.len());
        for (interface, statistics) in interfaces.iter_mut().zip(numbers.interfaces) {
            interface.statistics = statistics;
        }
        Report {
            frames: numbers.frames,
            interfaces,
            connections_capacity: u64::from(self.connections.capacity()),
            connections_used: self.connections.used(),
            latency_ns: numbers.latency_ns,
            batch_sizes: numbers.batch_sizes,
            workers: self.workers.len(),
            generation: 0,
            uptime_s: self.started.elapsed().as_secs(),
            unsaved: None,
        }
    }
}
