//! Workers, filter, kernel and clock as the control thread sees them: the real [`Outside`].

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use hdrhistogram::Histogram;

use super::outside::{FindConnections, ListConnections, Outside, Stuck};
use super::protocol::ConnectionListing;
use super::registry::Routes;
use super::report::{InterfaceReport, Report};
use crate::conn::{CallId, Connection, ConnectionTable, EntryDropper, Tick, TimeoutTable, WorkerId};
use crate::dataplane::counters::{FrameCounts, WorkerShared};
use crate::dataplane::worker::{LATENCY_MAX_NS, SlowStatistics, WorkerCommand, WorkerTable};
use crate::io::bpf::BpfError;
use crate::io::clock;
use crate::io::filter::{FilterCounters, FilterMaps, Rule};
use crate::io::free_memory;
use crate::io::netlink::Resolver;
use crate::io::poll::Waker;
use crate::packet::Mac;
use crate::table::{self, Destination, Interface, LocalAddresses, Reach, Supplies, Table};

/// A worker that does not take a new table for so long is stuck.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A worker whose heartbeat stands still at so many looks, a second apart, is stuck.
const BEATS_MISSED_MAX: u64 = 5;
/// Numbers are not worth waiting longer for.
const STATISTICS_MAX: Duration = Duration::from_secs(2);
/// Entries that a sweep reads at most.
const SWEEP_BUDGET: usize = 200_000;
/// Between two looks at neighbours that are being resolved.
const NETWORK_WAIT: Duration = Duration::from_millis(5);

/// A worker thread, seen from the control thread.
pub struct WorkerHandle {
    /// Its orders.
    pub commands: Sender<WorkerCommand>,
    /// Ends its sleep.
    pub waker: Waker,
    /// What it works by.
    pub table: WorkerTable,
    /// Its numbers.
    pub shared: Arc<WorkerShared>,
    /// The thread.
    pub thread: JoinHandle<()>,
}

impl WorkerHandle {
    /// `false`: the thread has ended.
    fn order(&self, command: WorkerCommand) -> bool {
        let sent = self.commands.send(command).is_ok();
        self.waker.wake();
        sent
    }

    /// Gives a worker that sleeps its next table. `false`: it is awake, and must be asked.
    fn change_asleep(&self, table: &Arc<Table>) -> bool {
        let Ok(mut asleep) = self.table.try_lock() else {
            return false;
        };
        let old = std::mem::replace(&mut *asleep, table.clone());
        drop(asleep);
        // After the lock: the worker does not wait while it is taken apart, if this was the last of it.
        drop(old);
        true
    }
}

/// An interface in use.
pub struct ServedInterface {
    /// As the workers see it.
    pub interface: Interface,
    /// `xdp`, `afxdp` or `raw`.
    pub driver: &'static str,
    /// What the driver got, such as `native`.
    pub mode: String,
    /// Its filter.
    pub filter: Box<dyn ServedFilter>,
    /// The longest IP packet that the driver takes, in bytes: by the MTUs at its start.
    pub packet_len_max: usize,
    /// The kernel's interface was deleted.
    pub gone: bool,
}

/// The filter of an interface in use.
pub trait ServedFilter {
    /// What it counted.
    fn counters(&self) -> Result<FilterCounters, BpfError>;
    /// The interface's link address has changed.
    fn set_link_address(&self, address: Mac) -> Result<(), BpfError>;
}

impl ServedInterface {
    /// Says so where longer packets may come than the driver takes.
    pub fn check_mtu(&self, mtu: u16) {
        if mtu as usize > self.packet_len_max {
            log::warn!(
                "interface {}: MTU {mtu}: of packets received, those longer than {} are lost by driver {} as it was started \
                 (counted as rx_dropped): uvs run --takeover chooses anew",
                self.interface.name,
                self.packet_len_max,
                self.driver
            );
        }
    }

    /// Frames to a link address that the filter does not know are the kernel's: it must be today's.
    fn follow(&self, interface: &Interface) {
        if let Err(error) = self.filter.set_link_address(interface.mac) {
            log::error!(
                "{}: the filter does not learn its address {}: {error}",
                interface.name,
                interface.mac
            );
        }
    }
}

/// A worker's heartbeat as it was last seen.
#[derive(Default)]
struct Beat {
    last: u64,
    /// Looks, a second apart, since it changed.
    missed: u64,
}

/// Everything beyond the control thread.
pub struct Director {
    workers: Vec<WorkerHandle>,
    beats: Vec<Beat>,
    served: Vec<ServedInterface>,
    interfaces: Arc<[Interface]>,
    indexes: Vec<u32>,
    local: Arc<LocalAddresses>,
    maps: FilterMaps,
    connections: Arc<ConnectionTable>,
    resolver: Resolver,
    dropper: EntryDropper,
    started: Instant,
    network_failed: bool,
}

impl Director {
    /// Before any worker runs.
    pub fn new(
        interfaces: Vec<Interface>,
        maps: FilterMaps,
        connections: Arc<ConnectionTable>,
        resolver: Resolver,
    ) -> Director {
        let mut director = Director {
            workers: Vec::new(),
            beats: Vec::new(),
            served: Vec::new(),
            indexes: interfaces.iter().map(|i| i.index).collect(),
            interfaces: interfaces.into(),
            local: Arc::default(),
            maps,
            connections,
            resolver,
            dropper: EntryDropper::new(clock::boot_ns()),
            started: Instant::now(),
            network_failed: false,
        };
        director.read_network();
        director
    }

    /// The interfaces as they are served, and the threads that do it.
    pub fn set_running(&mut self, served: Vec<ServedInterface>, workers: Vec<WorkerHandle>) {
        self.beats = workers.iter().map(|_| Beat::default()).collect();
        self.served = served;
        self.workers = workers;
    }

    /// The filter's maps.
    pub fn maps(&self) -> &FilterMaps {
        &self.maps
    }

    /// Ends the workers; interfaces and filters stay as they are.
    pub fn stop_workers(&mut self) {
        for worker in &self.workers {
            worker.order(WorkerCommand::Stop);
        }
        for worker in self.workers.drain(..) {
            if worker.thread.join().is_err() {
                log::error!("a worker panicked");
            }
        }
    }

    /// Makes links and addresses what was last read.
    fn read_network(&mut self) {
        let hosts = self.resolver.local_addresses().iter().map(|a| a.address);
        let local = LocalAddresses::new(hosts, self.resolver.local_prefixes().iter().copied());
        if *self.local != local {
            self.local = Arc::new(local);
        }
        let current = |old: &Interface| {
            let addresses = self.resolver.local_addresses().iter().filter(|a| a.link == old.index);
            let link = self.resolver.link(old.index);
            Interface {
                mac: link.and_then(|l| l.mac).unwrap_or(old.mac),
                mtu: link.map_or(old.mtu, |l| u16::try_from(l.mtu).unwrap_or(u16::MAX)),
                addresses: addresses.map(|a| a.address).collect(),
                ..old.clone()
            }
        };
        let interfaces: Vec<Interface> = self.interfaces.iter().map(current).collect();
        for served in &mut self.served {
            let gone = self.resolver.link(served.interface.index).is_none();
            if gone && !served.gone {
                let name = &served.interface.name;
                log::error!("interface {name} is gone: nothing is served there until there is one of that name again");
            }
            served.gone = gone;
        }
        if *self.interfaces != *interfaces {
            for ((served, old), new) in self.served.iter().zip(self.interfaces.iter()).zip(&interfaces) {
                served.follow(new);
                if old.mtu != new.mtu {
                    served.check_mtu(new.mtu);
                }
            }
            self.interfaces = interfaces.into();
        }
    }

    fn refresh(&mut self) {
        match self.resolver.refresh(Instant::now()) {
            Ok(()) => {
                self.network_failed = false;
                self.read_network();
            }
            Err(error) => self.network_failure(&error),
        }
    }

    /// Said once until it works again.
    fn network_failure(&mut self, error: &crate::io::netlink::Error) {
        if !self.network_failed {
            log::error!("cannot follow the network, next hops stay as they are: {error}");
        }
        self.network_failed = true;
    }

    fn frames(&self) -> FrameCounts {
        let mut sum = FrameCounts::default();
        self.workers.iter().for_each(|worker| sum.add(&worker.shared.read()));
        sum
    }

    fn slow_statistics(&self) -> Vec<SlowStatistics> {
        let (sender, receiver) = bounded(self.workers.len());
        let asked = self
            .workers
            .iter()
            .filter(|w| w.order(WorkerCommand::Statistics(sender.clone())))
            .count();
        let until = Instant::now() + STATISTICS_MAX;
        (0..asked).filter_map(|_| receiver.recv_deadline(until).ok()).collect()
    }
}

impl Routes for Director {
    fn reach(&mut self, destination: IpAddr) -> Reach {
        match self.resolver.resolve(destination, &self.indexes, Instant::now()) {
            Ok(reach) => reach,
            Err(error) => {
                self.network_failure(&error);
                Reach::Resolving
            }
        }
    }
}

impl Outside for Director {
    fn now_ms(&self) -> u64 {
        clock::boot_ns() / 1_000_000
    }

    fn interfaces(&self) -> Arc<[Interface]> {
        self.interfaces.clone()
    }

    fn interface_is_back(&self) -> bool {
        let back = |served: &ServedInterface| {
            let link = self.resolver.link_named(&served.interface.name);
            link.is_some_and(|link| link.up && link.mac.is_some())
        };
        self.served.iter().any(|served| served.gone && back(served))
    }

    fn local_addresses(&self) -> Arc<LocalAddresses> {
        self.local.clone()
    }

    fn network_changed(&mut self) {
        self.refresh();
    }

    fn network_tick(&mut self) -> bool {
        if self.network_failed {
            self.refresh();
        }
        match self.resolver.tick(Instant::now()) {
            Ok(changed) => changed,
            Err(error) => {
                self.network_failure(&error);
                false
            }
        }
    }

    fn network_wait(&mut self) {
        std::thread::sleep(NETWORK_WAIT);
        self.refresh();
    }

    fn shrink_filter(&mut self, wanted: &HashSet<Rule>) -> Result<(), String> {
        self.maps.shrink_to(wanted).map_err(|error| error.to_string())
    }

    fn grow_filter(&mut self, wanted: &HashSet<Rule>) -> Result<(), String> {
        self.maps.grow_to(wanted).map_err(|error| error.to_string())
    }

    fn publish(&mut self, table: Arc<Table>) -> Result<(), Stuck> {
        if table.has_calls() {
            self.connections.keep_call_ids();
        }
        hand_out(&self.workers, &table)
    }

    fn check_workers(&mut self) -> Result<(), Stuck> {
        for (number, (worker, beat)) in self.workers.iter().zip(&mut self.beats).enumerate() {
            let now = worker.shared.heartbeat.load(std::sync::atomic::Ordering::Relaxed);
            beat.missed = if now == beat.last { beat.missed + 1 } else { 0 };
            beat.last = now;
            // Not at the first: after a pause of the whole process the control thread may wake before the workers.
            if beat.missed >= BEATS_MISSED_MAX || worker.thread.is_finished() {
                return Err(Stuck {
                    worker: number,
                    seconds: beat.missed.max(1),
                });
            }
        }
        Ok(())
    }

    fn sweep(&mut self, destinations: &[Option<Arc<Destination>>]) {
        let now = Tick::from_boot_ns(clock::boot_ns());
        self.connections.sweep(now, SWEEP_BUDGET, &mut |gone| {
            table::count_off(destinations, WorkerId::CONTROL, gone)
        });
    }

    fn supplies(&self) -> Supplies {
        Supplies {
            pages_free: free_memory::pages(),
            slots: self.connections.capacity().into(),
            slots_free: self.connections.free().into(),
        }
    }

    fn drop_entries(&mut self, destinations: &[Option<Arc<Destination>>], timeouts: &TimeoutTable) {
        let now = Tick::from_boot_ns(clock::boot_ns());
        let dropped = self
            .connections
            .drop_entries(&mut self.dropper, now, timeouts, &mut |gone| {
                table::count_off(destinations, WorkerId::CONTROL, gone);
            });
        if dropped > 0 {
            log::debug!("drop_entry: {dropped} connections");
        }
    }

    fn connections(&self) -> ListConnections {
        let connections = self.connections.clone();
        Box::new(move || {
            let now = Tick::from_boot_ns(clock::boot_ns());
            let mut list = Vec::new();
            connections.for_each(|connection| list.push(listing(connection, &connections, now)));
            list
        })
    }

    fn call_id(&self, text: &str) -> CallId {
        self.connections.call_id(text.as_bytes())
    }

    fn find_connections(&self) -> FindConnections {
        let connections = self.connections.clone();
        Box::new(move |wanted| {
            let mut found = Vec::new();
            connections.for_each(|connection| {
                if wanted(connection) {
                    found.push(*connection);
                }
            });
            (found, Tick::from_boot_ns(clock::boot_ns()))
        })
    }

    fn report(&mut self) -> Report {
        let mut report = Report {
            frames: self.frames(),
            interfaces: self.served.iter().map(interface_report).collect(),
            connections_capacity: self.connections.capacity().into(),
            connections_used: self.connections.used(),
            latency_ns: Histogram::new_with_max(LATENCY_MAX_NS, 3).expect("1 s at 3 digits is a legal histogram"),
            batch_sizes: Histogram::new(3).expect("3 digits are legal"),
            received_by_worker: self.workers.iter().map(|w| w.shared.read().received).collect(),
            generation: 0,
            uptime_s: self.started.elapsed().as_secs(),
            unsaved: None,
        };
        for slow in self.slow_statistics() {
            report
                .latency_ns
                .add(&slow.latency_ns)
                .expect("histograms of one maximum");
            report
                .batch_sizes
                .add(&slow.batch_sizes)
                .expect("the sum grows as needed");
            for (sum, one) in report.interfaces.iter_mut().zip(&slow.interfaces) {
                sum.statistics.add(one);
            }
        }
        report
    }
}

/// Gives all workers their next table; when this returns, none works by the one before, which is the registry's alone again.
fn hand_out(workers: &[WorkerHandle], table: &Arc<Table>) -> Result<(), Stuck> {
    let until = Instant::now() + ANSWER_MAX;
    let stuck = |worker| Stuck {
        worker,
        seconds: ANSWER_MAX.as_secs(),
    };
    let mut answers = Vec::with_capacity(workers.len());
    for (number, worker) in workers.iter().enumerate() {
        if worker.change_asleep(table) {
            continue;
        }
        let (done, answer) = bounded(1);
        if !worker.order(WorkerCommand::Table(table.clone(), done)) {
            return Err(stuck(number));
        }
        answers.push((number, answer));
    }
    for (number, answer) in answers {
        // The worker has given the old table back.
        answer.recv_deadline(until).map_err(|_| stuck(number))?;
    }
    Ok(())
}

fn interface_report(served: &ServedInterface) -> InterfaceReport {
    let filter = served.filter.counters().unwrap_or_default();
    InterfaceReport {
        name: served.interface.name.clone(),
        driver: served.driver.to_owned(),
        mode: if served.gone { "gone" } else { &served.mode }.to_owned(),
        filter_matched: filter.matched,
        filter_passed: filter.passed,
        ..InterfaceReport::default()
    }
}

fn listing(connection: &Connection, connections: &ConnectionTable, now: Tick) -> ConnectionListing {
    let text = |id| connections.call_id_text(id).unwrap_or_default();
    ConnectionListing {
        protocol: connection.protocol.0,
        expires_s: connection.deadline.seconds_left(now),
        state: connection.state.name().to_owned(),
        client: connection.client,
        virtual_address: connection.virtual_address,
        destination: connection.destination,
        // A Call-ID is ASCII.
        call_id: connection
            .call_id
            .map(|id| String::from_utf8_lossy(&text(id)).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::pipeline::Pipeline;
    use crate::dataplane::worker::Worker;
    use crate::forward::Identifications;
    use crate::io::memory::MemoryDriver;

    /// A worker without interfaces, which sleeps after so many empty rounds.
    fn worker(spin_rounds: u32) -> WorkerHandle {
        let (commands, orders) = crossbeam_channel::unbounded();
        let connections = Arc::new(ConnectionTable::anonymous(1024, 1).unwrap());
        let pipeline = Pipeline::new(connections, Arc::default(), WorkerId(0), Identifications::new(0));
        let (table, shared) = (WorkerTable::default(), Arc::new(WorkerShared::default()));
        let driver = MemoryDriver::new(0, 1, 64);
        let (of_worker, numbers) = (table.clone(), shared.clone());
        let run = move || {
            Worker::new(
                driver,
                pipeline,
                of_worker,
                orders,
                numbers,
                clock::boot_ns,
                spin_rounds,
            )
            .run()
        };
        WorkerHandle {
            commands,
            waker: Waker::new().unwrap(),
            table,
            shared,
            thread: std::thread::spawn(run),
        }
    }

    fn heartbeat(worker: &WorkerHandle) -> u64 {
        worker.shared.heartbeat.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Goal: a sleeping worker has the new table without having looked up, and goes on with it.
    #[test]
    fn a_table_is_changed_while_the_worker_sleeps() {
        let worker = worker(0);
        let start = Instant::now();
        let before = loop {
            let (beats, table) = (heartbeat(&worker), Arc::new(Table::default()));
            let changed = beats > 0 && worker.change_asleep(&table);
            // It may have looked up, as it does four times a second, just when the table was changed.
            if changed && heartbeat(&worker) == beats {
                assert!(Arc::ptr_eq(&worker.table.lock().unwrap(), &table));
                break beats;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "it never sleeps");
        };
        while heartbeat(&worker) < before + 2 {
            assert!(start.elapsed() < Duration::from_secs(10), "it does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(worker.order(WorkerCommand::Stop));
        worker.thread.join().unwrap();
    }

    /// How: a worker that never sleeps. Goal: nobody takes its table from it; when asked it goes on with the new one.
    #[test]
    fn a_worker_that_is_awake_is_asked() {
        let worker = worker(u32::MAX);
        let start = Instant::now();
        while heartbeat(&worker) == 0 {
            assert!(start.elapsed() < Duration::from_secs(10), "it does not begin");
        }
        let table = Arc::new(Table::default());
        assert!(!worker.change_asleep(&table));
        let (done, answer) = bounded(1);
        assert!(worker.order(WorkerCommand::Table(table.clone(), done)));
        let old = answer.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!Arc::ptr_eq(&old, &table));
        assert!(worker.order(WorkerCommand::Stop));
        worker.thread.join().unwrap();
        assert!(Arc::ptr_eq(&worker.table.lock().unwrap(), &table));
    }

    /// How: of two workers one sleeps most of the time and one never does; a hundred tables. Goal: when a table has been handed out, both
    /// have it, and nobody the one before.
    #[test]
    fn workers_asleep_and_awake_have_the_same_table() {
        let workers = [worker(0), worker(u32::MAX)];
        let start = Instant::now();
        while workers.iter().any(|worker| heartbeat(worker) == 0) {
            assert!(start.elapsed() < Duration::from_secs(10), "they do not begin");
        }
        let mut table = Arc::new(Table::default());
        hand_out(&workers, &table).unwrap();
        for _ in 0..100 {
            let before = std::mem::replace(&mut table, Arc::new(Table::default()));
            hand_out(&workers, &table).unwrap();
            assert_eq!(Arc::strong_count(&before), 1, "a worker still has the table before");
            assert_eq!(Arc::strong_count(&table), 1 + workers.len());
        }
        for worker in workers {
            assert!(worker.order(WorkerCommand::Stop));
            worker.thread.join().unwrap();
            assert!(Arc::ptr_eq(&worker.table.lock().unwrap(), &table));
        }
    }
}
