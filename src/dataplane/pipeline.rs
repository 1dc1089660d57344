//! What happens to each frame of a batch. No I/O beyond the [`Driver`]'s, no lock, no clock, no allocation.
//!
//! A batch goes through passes, so that the latencies of memory overlap instead of adding up:
//!
//! 1. parse every frame and hash its flow, prefetch the buckets of the index;
//! 2. guess by the buckets which entries they are;
//! 3. prefetch the entries of later frames, look up, decide and rewrite this one: `express` for most packets, `flow` for all
//!    of connections known, `begin` for new ones, `related` for ICMP errors about them, `pieces` for fragments;
//! 4. write what waited for the end: deadlines that are due, and the second keys of new connections.
//!
//! Each frame ends as one verdict, carried out and counted in one place: `Round::settle`.

use std::sync::Arc;

use super::counters::{FrameCounts, WorkerShared};
use super::driver::{BATCH_MAX, Driver, Received};
use super::pieces;
use super::round::Round;
use super::waiting::Waiting;
use crate::conn::{ConnectionTable, Guess, Hash, State, Tick, TimeoutTable, WorkerId};
use crate::forward::Identifications;
use crate::forward::fragment::Reassembly;
use crate::packet::parse::{Packet, parse};
use crate::packet::steady::{self, Steady, Tcp, Udp};
use crate::packet::{DropReason, Frame};
use crate::scheduler::Batch;
use crate::table::defence::PacketDropper;
use crate::table::{Finder, Hops, Table};

/// What a frame is.
#[derive(Clone, Copy)]
pub(super) enum Finding {
    /// What [`steady::read`] knows of TCP.
    SteadyTcp(Steady<Tcp>),
    /// What it knows of UDP.
    SteadyUdp(Steady<Udp>),
    /// What only [`parse`] knows.
    Other(Result<Packet, DropReason>),
}

/// What the first passes found out about a frame.
#[derive(Clone, Copy)]
pub(super) struct Looked {
    pub finding: Finding,
    /// Of a flow, with the entry that it most likely has. Of others anything.
    pub hash: Hash,
    pub guess: Guess,
}

impl Looked {
    /// Any frame but TCP that is steady.
    #[inline(always)]
    fn look_on<F: Frame>(&mut self, frame: &F, connections: &ConnectionTable) {
        let Some(datagram) = steady::read::<Udp>(frame.bytes(), frame.offload()) else {
            return self.look_closer(frame, connections);
        };
        self.hash = connections.hash(&datagram.flow());
        self.finding = Finding::SteadyUdp(datagram);
    }

    /// Any frame.
    #[inline(never)]
    fn look_closer<F: Frame>(&mut self, frame: &F, connections: &ConnectionTable) {
        let packet = parse(frame.bytes(), frame.offload());
        if let Ok(Packet::Flow(parsed)) = &packet {
            self.hash = connections.hash(&parsed.flow);
        }
        self.finding = Finding::Other(packet);
    }

    const NOTHING: Looked = Looked {
        finding: Finding::Other(Ok(Packet::Other)),
        hash: Hash::NONE,
        guess: Guess::NONE,
    };
}

/// So many buckets are asked for at once, and entries about so many frames before their own. All 64 at once would be more than a CPU
/// can wait for (about 24 lines): many had not come when they were read.
const AHEAD: usize = 16;

/// So many entries are asked for one right after the other. Where other work has thrown page tables out of the caches, each takes a
/// walk through them; side by side such walks go on at the same time, with a frame's work between them they do not. Figures of both
/// are in perf/README.md.
const GROUP: usize = 4;

/// The state of one worker between batches.
pub struct Pipeline {
    connections: Arc<ConnectionTable>,
    hops: Arc<Hops>,
    worker: WorkerId,
    counts: FrameCounts,
    published: FrameCounts,
    looked: Box<[Looked; BATCH_MAX]>,
    fragments: Reassembly,
    /// Of the table's `--set`; made anew when a new table comes.
    timeouts: TimeoutTable,
    generation: u64,
    ids: Identifications,
    errors: ErrorBudget,
    dropper: PacketDropper,
    waiting: Waiting,
    long_way_only: bool,
}

/// ICMP errors that a worker sends in a second at most (RFC 4443 section 2.4 (f); the number is Linux's
/// `icmp_msgs_per_sec`): a flood of packets to nowhere is not answered one by one.
const ERRORS_PER_S: u32 = 1000;

/// What is left of [`ERRORS_PER_S`].
#[derive(Default)]
pub(super) struct ErrorBudget {
    second: u64,
    spent: u32,
}

impl ErrorBudget {
    /// Whether one more may be sent now.
    pub fn spend(&mut self, now_ns: u64) -> bool {
        let second = now_ns / 1_000_000_000;
        if second != self.second {
            *self = ErrorBudget { second, spent: 0 };
        }
        self.spent += 1;
        self.spent <= ERRORS_PER_S
    }
}

impl Pipeline {
    /// A pipeline for one worker over the shared connections and client hops. `ids` begin elsewhere for each worker and at
    /// each start, so that fragments of two packets are not taken for those of one.
    pub fn new(connections: Arc<ConnectionTable>, hops: Arc<Hops>, worker: WorkerId, ids: Identifications) -> Pipeline {
        Pipeline {
            connections,
            hops,
            worker,
            counts: FrameCounts::default(),
            published: FrameCounts::default(),
            looked: Box::new([Looked::NOTHING; BATCH_MAX]),
            fragments: Reassembly::new(),
            timeouts: TimeoutTable::default(),
            generation: 0,
            ids,
            errors: ErrorBudget::default(),
            dropper: PacketDropper::default(),
            waiting: Waiting::default(),
            long_way_only: false,
        }
    }

    /// The same without the short way, which must make no difference: for tests of that.
    pub fn long_way_only(self) -> Pipeline {
        Pipeline {
            long_way_only: true,
            ..self
        }
    }

    /// Decides about every frame of `batch` (at most [`BATCH_MAX`]) and gives it to the driver; `batch` is empty
    /// afterwards. `now_ns` is the time since boot.
    pub fn process<D: Driver>(
        &mut self,
        driver: &mut D,
        batch: &mut Vec<Received<D::Frame>>,
        table: &Table,
        now_ns: u64,
    ) {
        assert!(batch.len() <= BATCH_MAX, "a batch of {} frames", batch.len());
        debug_assert!(
            self.connections.is_online(self.worker),
            "what it looks up could be used again"
        );
        self.follow(table);
        self.counts.received += batch.len() as u64;
        self.look(batch);
        let now = Tick::from_boot_ns(now_ns);
        let mut round = Round {
            connections: &self.connections,
            reader: self.connections.reader(),
            hops: &self.hops,
            table,
            services: Finder::new(table),
            timeouts: &self.timeouts,
            now,
            now_ns,
            established_until: now.after(self.timeouts.ticks(State::Established)),
            datagrams_until: now.after(self.timeouts.ticks(State::Udp)),
            worker: self.worker,
            counts: &mut self.counts,
            ids: &mut self.ids,
            errors: &mut self.errors,
            dropper: &mut self.dropper,
            waiting: &mut self.waiting,
            renewals: 0,
            ahead: Batch::new(self.worker.0),
            driver,
        };
        let looked = &self.looked[..batch.len()];
        let entries = round.reader;
        let (later, rest) = looked.get(AHEAD..).unwrap_or_default().as_chunks::<GROUP>();
        let first = looked.iter().take(AHEAD);
        first.chain(rest).for_each(|looked| entries.prefetch(looked.guess));
        let mut later = later.iter();
        for (n, (received, now)) in batch.drain(..).zip(looked).enumerate() {
            if n % GROUP == 0
                && let Some(group) = later.next()
            {
                group.iter().for_each(|looked| entries.prefetch(looked.guess));
            }
            round.one(received, now, n, &mut self.fragments);
        }
        round.renew(looked);
        round.link_waiting();
        // Here schedulers get back what was taken ahead.
        drop(round);
        self.fragments.expire(now_ns);
        pieces::count_fragments(&mut self.counts, &mut self.fragments);
        self.connections.quiescent(self.worker);
    }

    /// Passes 1 and 2.
    #[inline(always)]
    fn look<F: Frame>(&mut self, batch: &[Received<F>]) {
        let connections = &*self.connections;
        for (frames, looked) in batch.chunks(AHEAD).zip(self.looked.chunks_mut(AHEAD)) {
            for (received, looked) in frames.iter().zip(looked.iter_mut()) {
                match steady::read::<Tcp>(received.frame.bytes(), received.frame.offload()) {
                    Some(steady) => {
                        looked.hash = connections.hash(&steady.flow());
                        looked.finding = Finding::SteadyTcp(steady);
                    }
                    None => looked.look_on(&received.frame, connections),
                }
            }
            // Whole groups, the last one with buckets of earlier batches: to count takes three instructions a packet, and a frame that
            // comes alone is as quick.
            looked
                .iter()
                .for_each(|looked| connections.prefetch_bucket(looked.hash));
        }
        let reader = connections.reader();
        for looked in &mut self.looked[..batch.len()] {
            looked.guess = reader.guess(looked.hash);
        }
        if self.long_way_only {
            self.look_closer_at_all(batch);
        }
    }

    /// Nothing is steady, and without a guess the index is searched.
    #[cold]
    fn look_closer_at_all<F: Frame>(&mut self, batch: &[Received<F>]) {
        for (received, looked) in batch.iter().zip(self.looked.iter_mut()) {
            looked.look_closer(&received.frame, &self.connections);
            looked.guess = Guess::NONE;
        }
    }

    fn follow(&mut self, table: &Table) {
        if self.generation != table.generation {
            self.generation = table.generation;
            self.timeouts = TimeoutTable::new(&table.timeouts).with_secure_tcp(table.defence.secure_tcp);
        }
    }

    /// Nothing came for a while: lets go of fragments whose datagram will not become whole.
    pub fn idle(&mut self, now_ns: u64) {
        self.fragments.expire(now_ns);
        pieces::count_fragments(&mut self.counts, &mut self.fragments);
    }

    /// So many frames that were transmitted in this batch did not leave after all.
    pub fn transmit_failed(&mut self, frames: u64) {
        if frames != 0 {
            self.counts.transmit_failed(frames);
        }
    }

    /// Before the worker sleeps: it holds nothing that it looked up.
    pub fn offline(&self) {
        self.connections.offline(self.worker);
    }

    /// The worker is awake again; also before its first batch.
    pub fn online(&self) {
        self.connections.online(self.worker);
    }

    /// Shows the numbers to the control thread.
    pub fn publish(&mut self, shared: &WorkerShared) {
        shared.publish(&mut self.published, &self.counts);
    }

    /// The numbers as they are now.
    pub fn counts(&self) -> &FrameCounts {
        &self.counts
    }
}
