//! One worker: a pinned thread that owns its queues of every interface and runs the pipeline over them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use hdrhistogram::Histogram;

use super::counters::WorkerShared;
use super::driver::{BATCH_MAX, Driver, InterfaceStatistics, Received};
use super::pipeline::Pipeline;
use crate::table::Table;

/// How often an idle worker looks up by itself: expiry of held fragments, heartbeat.
const SLEEP_MAX: Duration = Duration::from_millis(250);
/// Latencies above this are recorded as this (1 s).
pub const LATENCY_MAX_NS: u64 = 1_000_000_000;

/// What the control thread asks of a worker. Each is answered between two batches.
pub enum WorkerCommand {
    /// Work by this table from now on; the old one comes back: the next but one is made of it.
    Table(Arc<Table>, Sender<Arc<Table>>),
    /// Send a copy of the slow numbers.
    Statistics(Sender<SlowStatistics>),
    /// Leave the loop after the current batch.
    Stop,
}

/// Numbers that are copied on request, because they are large or cost a system call.
pub struct SlowStatistics {
    /// Nanoseconds from receive to transmit, one count a frame.
    pub latency_ns: Histogram<u64>,
    /// Frames a batch.
    pub batch_sizes: Histogram<u64>,
    /// Of each interface, in the order of [`crate::table::InterfaceId`].
    pub interfaces: Vec<InterfaceStatistics>,
}

/// The table that a worker works by. The worker holds the lock while it is awake; while it sleeps the control thread may change the
/// table without waking it: to wake a thread and to be woken by it takes longer than the change.
pub type WorkerTable = Arc<Mutex<Arc<Table>>>;

/// Everything that one worker thread owns.
pub struct Worker<D: Driver> {
    driver: D,
    pipeline: Pipeline,
    table: WorkerTable,
    commands: Receiver<WorkerCommand>,
    shared: Arc<WorkerShared>,
    /// Nanoseconds of CLOCK_BOOTTIME.
    clock: fn() -> u64,
    /// Empty rounds before it sleeps.
    spin_rounds: u32,
    latency_ns: Histogram<u64>,
    batch_sizes: Histogram<u64>,
}

impl<D: Driver> Worker<D> {
    /// A worker ready to [`run`](Worker::run) on the thread that will own it.
    pub fn new(
        driver: D,
        pipeline: Pipeline,
        table: WorkerTable,
        commands: Receiver<WorkerCommand>,
        shared: Arc<WorkerShared>,
        clock: fn() -> u64,
        spin_rounds: u32,
    ) -> Worker<D> {
        let latency_ns = Histogram::new_with_max(LATENCY_MAX_NS, 3).expect("1 s at 3 digits is a legal histogram");
        let batch_sizes = Histogram::new_with_max(BATCH_MAX as u64 * 2, 3).expect("128 at 3 digits is legal");
        Worker {
            driver,
            pipeline,
            table,
            commands,
            shared,
            clock,
            spin_rounds,
            latency_ns,
            batch_sizes,
        }
    }

    /// Works until told to stop. Everything that can fail has been done before.
    pub fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut idle_rounds = 0;
        let lock = self.table.clone();
        let mut table = taken(&lock);
        self.pipeline.online();
        loop {
            WorkerShared::bump(&self.shared.heartbeat);
            // `try_recv` of an empty channel is a fence; to look first is none (perf/README.md, of each batch).
            while !self.commands.is_empty()
                && let Ok(command) = self.commands.try_recv()
            {
                if self.obey(command, &mut table) {
                    return;
                }
            }
            if self.round(&mut batch, &table) > 0 {
                idle_rounds = 0;
            } else if idle_rounds < self.spin_rounds {
                idle_rounds += 1;
                std::hint::spin_loop();
            } else {
                self.pipeline.idle((self.clock)());
                self.flush();
                self.pipeline.publish(&self.shared);
                self.pipeline.offline();
                drop(table);
                self.driver.wait(SLEEP_MAX);
                table = taken(&lock);
                self.pipeline.online();
                idle_rounds = 0;
            }
        }
    }

    /// One batch: receive, process, transmit, count. Returns how many frames came.
    fn round(&mut self, batch: &mut Vec<Received<D::Frame>>, table: &Table) -> usize {
        let received = self.driver.receive(batch);
        if received == 0 {
            return 0;
        }
        let start_ns = (self.clock)();
        self.pipeline.process(&mut self.driver, batch, table, start_ns);
        self.flush();
        self.pipeline.publish(&self.shared);
        let spent_ns = (self.clock)().saturating_sub(start_ns);
        self.latency_ns.saturating_record_n(spent_ns.max(1), received as u64);
        self.batch_sizes.saturating_record(received as u64);
        WorkerShared::bump(&self.shared.batches);
        received
    }

    fn flush(&mut self) {
        let failed = self.driver.flush();
        self.pipeline.transmit_failed(failed);
    }

    /// Carries out a command; `true` = stop.
    fn obey(&mut self, command: WorkerCommand, table: &mut Arc<Table>) -> bool {
        match command {
            WorkerCommand::Table(new, done) => {
                let old = std::mem::replace(table, new);
                // The control thread may have given up waiting: it ends the process then.
                drop(done.send(old));
            }
            WorkerCommand::Statistics(reply) => {
                self.pipeline.publish(&self.shared);
                let statistics = SlowStatistics {
                    latency_ns: self.latency_ns.clone(),
                    batch_sizes: self.batch_sizes.clone(),
                    interfaces: self.driver.statistics(),
                };
                // As above: nobody waits any more, nothing is lost.
                drop(reply.send(statistics));
            }
            WorkerCommand::Stop => return true,
        }
        false
    }
}

/// An `Arc` in another's place leaves nothing half done, so a panic elsewhere does no harm here.
fn taken(lock: &Mutex<Arc<Table>>) -> MutexGuard<'_, Arc<Table>> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
