//! The worker threads as the control thread sees them: commands to them, tables there and back, their hearts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use hdrhistogram::Histogram;

use super::outside::Stuck;
use crate::dataplane::counters::{FrameCounts, WorkerShared};
use crate::dataplane::driver::InterfaceStatistics;
use crate::dataplane::worker::{SlowStatistics, WorkerCommand};
use crate::io::poll::Waker;
use crate::table::Table;

/// A worker answers within this time, or is stuck. It looks up at least every 250 ms.
pub const ANSWER_MAX: Duration = Duration::from_secs(5);

/// One worker.
pub struct WorkerHandle {
    commands: Sender<WorkerCommand>,
    waker: Waker,
    shared: Arc<WorkerShared>,
    thread: Option<JoinHandle<()>>,
    /// Its heartbeat when last looked at, and when that was new.
    beat: (u64, Instant),
}

/// What a worker is made with.
pub struct WorkerEnds {
    /// Its commands come from here.
    pub commands: Receiver<WorkerCommand>,
    /// Ends its sleep.
    pub waker: Waker,
    /// Its numbers.
    pub shared: Arc<WorkerShared>,
}

impl WorkerHandle {
    /// A handle and the ends that belong into the worker.
    pub fn new() -> std::io::Result<(WorkerHandle, WorkerEnds)> {
        let (sender, commands) = crossbeam_channel::unbounded();
        let waker = Waker::new()?;
        let shared = Arc::new(WorkerShared::default());
        let ends = WorkerEnds {
            commands,
            waker: waker.clone(),
            shared: shared.clone(),
        };
        let handle = WorkerHandle {
            commands: sender,
            waker,
            shared,
            thread: None,
            beat: (0, Instant::now()),
        };
        Ok((handle, ends))
    }

    /// The thread that it runs on.
    pub fn set_thread(&mut self, thread: JoinHandle<()>) {
        self.thread = Some(thread);
    }

    fn send(&self, command: WorkerCommand) {
        // A worker whose channel is closed has ended: noticed by its missing answer or heartbeat.
        let _ = self.commands.send(command);
        self.waker.wake();
    }
}

/// All workers.
#[derive(Default)]
pub struct Workers {
    handles: Vec<WorkerHandle>,
}

/// What all workers counted.
pub struct WorkerNumbers {
    /// Frames, summed.
    pub frames: FrameCounts,
    /// Latencies, merged.
    pub latency_ns: Histogram<u64>,
    /// Batch sizes, merged.
    pub batch_sizes: Histogram<u64>,
    /// By interface, summed.
    pub interfaces: Vec<InterfaceStatistics>,
}

impl Workers {
    /// These workers, in the order of their numbers.
    pub fn new(handles: Vec<WorkerHandle>) -> Workers {
        Workers { handles }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Gives every worker the table and waits until each has sent its old one back: then all work by the new one.
    pub fn publish(&self, table: &Arc<Table>) -> Result<(), Stuck> {
        let answers: Vec<Receiver<Arc<Table>>> = self
            .handles
            .iter()
            .map(|handle| {
                let (done, old) = crossbeam_channel::bounded(1);
                handle.send(WorkerCommand::Table(table.clone(), done));
                old
            })
            .collect();
        let deadline = Instant::now() + ANSWER_MAX;
        for (worker, answer) in answers.iter().enumerate() {
            // The old table is freed here, not on the worker.
            drop(answer.recv_deadline(deadline).map_err(|_| stuck(worker, ANSWER_MAX))?);
        }
        Ok(())
    }

    /// Whether every heart has beaten lately. To be called about once a second.
    pub fn check(&mut self) -> Result<(), Stuck> {
        for (worker, handle) in self.handles.iter_mut().enumerate() {
            let beat = handle.shared.heartbeat.load(Ordering::Relaxed);
            if beat != handle.beat.0 {
                handle.beat = (beat, Instant::now());
            }
            let since = handle.beat.1.elapsed();
            if since >= 2 * ANSWER_MAX {
                return Err(stuck(worker, since));
            }
        }
        Ok(())
    }

    /// What all counted. Numbers of a worker that does not answer in time are missing.
    pub fn numbers(&self, interfaces: usize) -> WorkerNumbers {
        let answers: Vec<Receiver<SlowStatistics>> = self
            .handles
            .iter()
            .map(|handle| {
                let (reply, answer) = crossbeam_channel::bounded(1);
                handle.send(WorkerCommand::Statistics(reply));
                answer
            })
            .collect();
        let deadline = Instant::now() + ANSWER_MAX;
        let slow: Vec<_> = answers
            .iter()
            .filter_map(|answer| answer.recv_deadline(deadline).ok())
            .collect();
        let mut numbers = WorkerNumbers {
            frames: FrameCounts::default(),
            latency_ns: merged(slow.iter().map(|s| &s.latency_ns)),
            batch_sizes: merged(slow.iter().map(|s| &s.batch_sizes)),
            interfaces: vec![InterfaceStatistics::default(); interfaces],
        };
        for handle in &self.handles {
            numbers.frames.add(&handle.shared.read());
        }
        for statistics in &slow {
            for (sum, one) in numbers.interfaces.iter_mut().zip(&statistics.interfaces) {
                sum.rx_ring_full += one.rx_ring_full;
                sum.fill_ring_empty += one.fill_ring_empty;
                sum.rx_dropped += one.rx_dropped;
                sum.tx_invalid += one.tx_invalid;
                sum.tx_failed += one.tx_failed;
            }
        }
        numbers
    }

    /// Lets every worker leave its loop and waits for its end.
    pub fn stop(&mut self) {
        self.handles.iter().for_each(|handle| handle.send(WorkerCommand::Stop));
        for (worker, handle) in self.handles.iter_mut().enumerate() {
            if let Some(thread) = handle.thread.take()
                && thread.join().is_err()
            {
                log::error!("worker {worker} panicked");
            }
        }
    }
}

fn stuck(worker: usize, time: Duration) -> Stuck {
    Stuck {
        worker,
        seconds: time.as_secs(),
    }
}

fn merged<'a>(histograms: impl Iterator<Item = &'a Histogram<u64>>) -> Histogram<u64> {
    let mut sum = Histogram::new(3).expect("3 digits are legal");
    for histogram in histograms {
        // An auto-resizing histogram takes every value of another.
        if let Err(error) = sum.add(histogram) {
            log::error!("adding histograms: {error}");
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that obeys until told to stop, and counts one frame.
    fn obedient(ends: WorkerEnds) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let mut table: Arc<Table> = Arc::default();
            let mut shown = FrameCounts::default();
            let counts = FrameCounts {
                received: 1,
                transmitted: 1,
                ..FrameCounts::default()
            };
            ends.shared.publish(&mut shown, &counts);
            for command in ends.commands {
                WorkerShared::bump(&ends.shared.heartbeat);
                match command {
                    WorkerCommand::Table(new, done) => done.send(std::mem::replace(&mut table, new)).unwrap(),
                    WorkerCommand::Statistics(reply) => {
                        let mut latency_ns = Histogram::new_with_max(1000, 3).unwrap();
                        latency_ns.record(100).unwrap();
                        let statistics = SlowStatistics {
                            batch_sizes: latency_ns.clone(),
                            latency_ns,
                            interfaces: vec![InterfaceStatistics {
                                rx_ring_full: 3,
                                ..InterfaceStatistics::default()
                            }],
                        };
                        assert!(reply.send(statistics).is_ok());
                    }
                    WorkerCommand::Stop => return,
                }
            }
        })
    }

    #[test]
    fn tables_go_to_all_and_come_back() {
        let mut handles = Vec::new();
        for _ in 0..3 {
            let (mut handle, ends) = WorkerHandle::new().unwrap();
            handle.set_thread(obedient(ends));
            handles.push(handle);
        }
        let mut workers = Workers::new(handles);
        let (first, second) = (Arc::new(Table::default()), Arc::new(Table::default()));
        workers.publish(&first).unwrap();
        assert_eq!(Arc::strong_count(&first), 4);
        workers.publish(&second).unwrap();
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (1, 4));
        let numbers = workers.numbers(1);
        assert_eq!((numbers.frames.received, numbers.latency_ns.len()), (3, 3));
        assert_eq!(numbers.interfaces[0].rx_ring_full, 9);
        workers.check().unwrap();
        workers.stop();
    }

    #[test]
    fn a_worker_that_ended_is_noticed_at_once() {
        let (handle, ends) = WorkerHandle::new().unwrap();
        drop(ends);
        let workers = Workers::new(vec![handle]);
        assert_eq!(workers.publish(&Arc::default()).unwrap_err().worker, 0);
    }
}
