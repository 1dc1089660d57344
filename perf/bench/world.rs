//! A director that exists in memory only: one virtual service, its destinations, live connections, and their packets.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::driver::{BenchDriver, BenchFrame, CLIENT_LINK, VIP, flow};
use uvs::conn::{ConnectionTable, NewConnection, State, Tick, TimeoutTable, WorkerId};
use uvs::dataplane::driver::{BATCH_MAX, Received};
use uvs::dataplane::pipeline::Pipeline;
use uvs::forward::Identifications;
use uvs::packet::{DropReason, Mac, Protocol, TcpFlags};
use uvs::scheduler::{Candidate, Load, Loads, build};
use uvs::service::{DestinationKey, Method, ServiceKey, Timeouts, TransportProtocol, Tunnel};
use uvs::table::{
    Counters, Destination, DestinationId, Hops, Interface, InterfaceId, LocalAddresses, NextHop, Reach, Service,
    Services, Table, Way,
};

/// What the worker's clock goes on by for each packet, batch by batch. A clock of its own makes every run the same, instruction by
/// instruction.
const PACKET_NS: u64 = 50;
const BATCH_NS: u64 = PACKET_NS * BATCH_MAX as u64;
/// A connection's deadline is written again when it is eight ticks old (`REFRESH_TICKS` in `src/conn/layout.rs`). Half a tick less:
/// connections become due where a tick begins, and what is measured begins amid one.
const REFRESH_NS: u64 = 1_000_000_000 / Tick::PER_SECOND as u64 * 15 / 2;
/// Up to so many connections each begins as a client begins it, by SYN and ACK; more are inserted right into the table.
const BY_PACKETS_MAX: u32 = 1_000_000;
/// Longer than a half-open connection lasts, and less than an established one.
const HALF_OPEN_NS: u64 = 121_000_000_000;

const DIRECTOR: Ipv4Addr = Ipv4Addr::new(10, 100, 255, 254);
const OUTSIDE: InterfaceId = InterfaceId(0);
const INSIDE: InterfaceId = InterfaceId(1);

/// What a director is to be.
#[derive(Clone, Copy)]
pub struct Plan {
    pub method: Method,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Room for so many connections.
    pub capacity: u32,
    pub workers: u16,
    pub destinations: u32,
    pub scheduler: &'static str,
}

/// A worker of the director, and what is needed to send it packets.
pub struct World {
    connections: Arc<ConnectionTable>,
    hops: Arc<Hops>,
    table: Arc<Table>,
    plan: Plan,
    worker: WorkerId,
    pipeline: Pipeline,
    driver: BenchDriver,
    batch: Vec<Received<BenchFrame>>,
    live: u32,
    now_ns: u64,
}

impl World {
    /// The first worker of a director that has no connection yet.
    pub fn of(plan: &Plan) -> World {
        let table = ConnectionTable::anonymous(plan.capacity, plan.workers.into());
        let connections = Arc::new(table.expect("memory for the connections"));
        let (hops, table) = (Arc::default(), Arc::new(director(plan)));
        World::worker(connections, hops, table, *plan, WorkerId(0))
    }

    /// Another worker of the same director, that knows its connections.
    pub fn colleague(&self, worker: u16) -> World {
        let (connections, hops, table) = (self.connections.clone(), self.hops.clone(), self.table.clone());
        World {
            live: self.live,
            now_ns: self.now_ns,
            ..World::worker(connections, hops, table, self.plan, WorkerId(worker))
        }
    }

    fn worker(
        connections: Arc<ConnectionTable>,
        hops: Arc<Hops>,
        table: Arc<Table>,
        plan: Plan,
        worker: WorkerId,
    ) -> World {
        let pipeline = Pipeline::new(connections.clone(), hops.clone(), worker, Identifications::new(0));
        pipeline.online();
        World {
            connections,
            hops,
            table,
            plan,
            worker,
            pipeline,
            driver: BenchDriver::new(plan.protocol),
            batch: Vec::with_capacity(BATCH_MAX),
            live: 0,
            now_ns: 1_000_000_000_000,
        }
    }

    /// Connections that were [established](World::establish).
    pub fn live(&self) -> u32 {
        self.live
    }

    /// Makes `count` more connections, all established. It takes as long, by the worker's clock, as deadlines are old that packets of
    /// random connections write: then as many are written from the start as later on.
    pub fn establish(&mut self, count: u32) {
        let start_ns = self.now_ns;
        let lasts_ns = REFRESH_NS + count as u64 * PACKET_NS;
        let is_at_ns = |done: u64| start_ns + lasts_ns * done / count as u64;
        let new = self.live..self.live + count;
        if count > BY_PACKETS_MAX {
            for (done, client) in (0..).zip(new) {
                self.now_ns = is_at_ns(done);
                self.insert(client);
            }
        } else {
            let all: Vec<u32> = new.collect();
            for (n, clients) in (0..).zip(all.chunks(BATCH_MAX)) {
                self.now_ns = is_at_ns(n * BATCH_MAX as u64);
                for flags in [TcpFlags::SYN, TcpFlags::ACK] {
                    self.fill(clients.iter().copied(), flags);
                    self.process();
                    self.drain();
                }
            }
        }
        self.live += count;
        assert_eq!(self.connections.used(), self.live as u64, "live connections");
    }

    fn insert(&mut self, client: u32) {
        let flow = flow(self.plan.protocol, client);
        let state = match self.plan.protocol {
            Protocol::UDP => State::Udp,
            _ => State::Established,
        };
        let id = client % self.table.destinations.len() as u32;
        let destination = self.table.destinations[id as usize]
            .as_ref()
            .expect("made with the table");
        destination.load.add(0, state.is_active(), 0);
        let new = NewConnection {
            flow,
            destination: destination.key,
            destination_id: id,
            method: self.plan.method,
            state,
            timeout_ticks: TimeoutTable::default().ticks(state),
            client_hop: self.hops.intern(OUTSIDE, &CLIENT_LINK).0,
            fwmark: 0,
            controller: None,
            helped: false,
        };
        let (hash, now) = (self.connections.hash(&flow), Tick::from_boot_ns(self.now_ns));
        let inserted = self.connections.insert(self.worker, hash, &new, now, &mut |_| {});
        assert!(inserted.is_ok(), "connection {client} does not fit");
    }

    /// Makes the next batch: a packet of each of these clients' connections; of UDP without flags.
    pub fn fill(&mut self, clients: impl Iterator<Item = u32>, tcp_flags: u8) {
        for client in clients {
            let frame = self.driver.received(client, tcp_flags);
            self.batch.push(Received {
                frame,
                interface: OUTSIDE,
            });
        }
    }

    /// A batch of packets of random live connections: acknowledgements or datagrams.
    pub fn fill_random(&mut self, random: &mut Random) {
        let live = self.live;
        self.fill((0..BATCH_MAX).map(|_| random.below(live)), TcpFlags::ACK);
    }

    /// The batch in which each of these clients begins a connection.
    pub fn fill_new(&mut self, clients: impl Iterator<Item = u32>) {
        self.fill(clients, TcpFlags::SYN);
    }

    /// Ends the half-open connections: two minutes go by for them. Every worker is [asleep](World::sleep).
    pub fn expire_half_open(&self) {
        let later = Tick::from_boot_ns(self.now_ns + HALF_OPEN_NS);
        self.connections.sweep(later, usize::MAX, &mut |gone| {
            self.table.count_off(WorkerId::CONTROL, gone)
        });
        assert_eq!(self.connections.used(), self.live as u64, "live connections");
    }

    /// Holds nothing of the table, until it [wakes](World::wake).
    pub fn sleep(&self) {
        self.pipeline.offline();
    }

    /// Works again.
    pub fn wake(&self) {
        self.pipeline.online();
    }

    /// The data plane's work on the batch.
    pub fn process(&mut self) {
        self.now_ns += BATCH_NS;
        self.pipeline
            .process(&mut self.driver, &mut self.batch, &self.table, self.now_ns);
    }

    /// The same, as what is measured: a function that a profiler can tell from all else.
    #[inline(never)]
    pub fn process_measured(&mut self) {
        self.process();
    }

    /// Takes back what was sent.
    pub fn drain(&mut self) {
        self.driver.drain();
    }

    /// Frames transmitted since the start; panics when any had another fate. Beside another worker one in ten thousand may:
    /// a new connection is dropped when the other one is preempted while it holds the lock of a bucket.
    pub fn transmitted(&self) -> u64 {
        let counts = self.pipeline.counts();
        let lost = counts.received - counts.transmitted;
        let may_be_lost = match self.plan.workers {
            1 => 0,
            _ => counts.received / 10_000,
        };
        assert!(
            counts.balanced() && lost <= may_be_lost && lost == counts.dropped[DropReason::TableFull as usize],
            "not all were forwarded: {counts:?}"
        );
        counts.transmitted
    }

    /// Bytes of entries and index for each connection.
    pub fn bytes_per_connection(&self) -> f64 {
        self.connections.bytes() as f64 / self.live as f64
    }
}

/// Numbers that look random (xorshift, as in floor/mb.c).
pub struct Random(u32);

impl Random {
    /// Always the same sequence.
    pub fn new() -> Random {
        Random::seeded(12345)
    }

    /// One of the sequences, by a number above 0.
    pub fn seeded(seed: u32) -> Random {
        Random(seed)
    }

    /// The next one, below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        ((self.0 as u64 * end as u64) >> 32) as u32
    }
}

/// A table with one service.
fn director(plan: &Plan) -> Table {
    let numbers = 0..plan.destinations;
    let mut loads = Loads::new(plan.workers.into());
    let destinations = numbers.clone().map(|n| Arc::new(destination(plan, n, loads.make())));
    let destinations: Vec<_> = destinations.collect();
    let candidate = |d: &Arc<Destination>| Candidate {
        key: d.key,
        weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
        last_weight: 1,
        edits: 0,
        load: d.load.clone(),
    };
    // As in a service's list: the newest first.
    let candidates: Vec<_> = destinations.iter().rev().map(candidate).collect();
    let scheduler = build(plan.scheduler, &[], &candidates, None).expect("a scheduler's name");
    let service = Service {
        key: ServiceKey::Address {
            protocol: match plan.protocol {
                Protocol::UDP => TransportProtocol::Udp,
                _ => TransportProtocol::Tcp,
            },
            address: VIP.into(),
            port: 80,
        },
        scheduler: Box::new(scheduler),
        candidates,
        ids: numbers.rev().map(DestinationId).collect(),
        persistence: None,
        one_packet: false,
        sip: false,
    };
    let interface = |n: u8, address: Ipv4Addr| Interface {
        name: format!("bench{n}"),
        index: n as u32 + 1,
        mac: Mac([2, 0, 0, 0, 0, 0xd0 + n]),
        mtu: 1500,
        addresses: vec![address.into()],
    };
    Table {
        generation: 1,
        services: Services::from_iter([Arc::new(service)]),
        destinations: destinations.into_iter().map(Some).collect(),
        interfaces: Arc::new([interface(0, VIP), interface(1, DIRECTOR)]),
        local: Arc::new(LocalAddresses::new([VIP.into(), DIRECTOR.into()], [])),
        timeouts: Timeouts::default(),
        sysctls: Arc::default(),
        defence: Default::default(),
        ..Table::default()
    }
}

fn destination(plan: &Plan, n: u32, load: Load) -> Destination {
    let method = plan.method;
    let address = IpAddr::from(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 1)) + n));
    let port = if method == Method::Masq { 8080 } else { 80 };
    Destination {
        key: DestinationKey { address, port },
        method,
        tunnel: Tunnel::default(),
        reach: Reach::Hop {
            hop: NextHop {
                interface: INSIDE,
                source: Mac([2, 0, 0, 0, 0, 0xd1]),
                destination: Mac([2, 0, 0, 1, (n >> 8) as u8, n as u8]),
                mtu: 1500,
            },
            source: DIRECTOR.into(),
        },
        present: true,
        weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
        way: Way::default(),
        load: Arc::new(load),
        counters: (0..plan.workers).map(|_| Counters::default()).collect(),
    }
    .prepared()
}
