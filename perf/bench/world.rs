//! A director that exists in memory only: one virtual service, its destinations, live connections, and their packets.
//!
//! ```text
//! chunk (2048, as in AF_XDP and in floor/mb.c): | headroom (256) | frame (60) | not used |
//! ```
//! Frames lie in one memory with huge pages and are used in turn, so that a packet is met as a card would leave it. The
//! driver does nothing but keep them: what is measured is the data plane.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use memmap2::{Advice, MmapMut};
use uvs::conn::{ConnectionTable, NewConnection, State, TimeoutTable, WorkerId};
use uvs::dataplane::driver::{BATCH_MAX, Driver, InterfaceStatistics, Received};
use uvs::dataplane::pipeline::Pipeline;
use uvs::forward::Identifications;
use uvs::packet::{FlowKey, Frame, Mac, NoRoom, Offload, Protocol, TcpFlags, Window, checksum};
use uvs::scheduler::{Candidate, Load, build};
use uvs::service::{DestinationKey, Method, ServiceKey, Timeouts, TransportProtocol, Tunnel};
use uvs::table::{
    Counters, Destination, DestinationId, Hops, Interface, InterfaceId, LocalAddresses, NextHop, Reach, Service,
    Services, Table, Way,
};

/// Destinations of the service.
const DESTINATIONS: u32 = 16;
/// What the worker's clock goes on with each batch: the speed of 50 ns a packet. A clock of its own makes every run the
/// same, instruction by instruction.
const BATCH_NS: u64 = 50 * BATCH_MAX as u64;
/// Up to so many connections each begins as a client begins it, by SYN and ACK; more are inserted right into the table.
const BY_PACKETS_MAX: u32 = 1_000_000;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const DIRECTOR: Ipv4Addr = Ipv4Addr::new(10, 100, 255, 254);
const CLIENTS: Mac = Mac([2, 0, 0, 0, 0, 0xc0]);
const OUTSIDE: InterfaceId = InterfaceId(0);
const INSIDE: InterfaceId = InterfaceId(1);
const WORKER: WorkerId = WorkerId(0);

/// The director and what is needed to send it packets.
pub struct World {
    connections: Arc<ConnectionTable>,
    hops: Arc<Hops>,
    pipeline: Pipeline,
    table: Table,
    driver: BenchDriver,
    batch: Vec<Received<BenchFrame>>,
    method: Method,
    live: u32,
    now_ns: u64,
}

impl World {
    /// A director with room for `capacity` connections and none yet.
    pub fn new(method: Method, capacity: u32) -> World {
        let table = ConnectionTable::anonymous(capacity, 1).expect("memory for the connections");
        let (connections, hops) = (Arc::new(table), Arc::new(Hops::default()));
        let pipeline = Pipeline::new(connections.clone(), hops.clone(), WORKER, Identifications::new(0));
        pipeline.online();
        World {
            connections,
            hops,
            pipeline,
            table: director(method),
            driver: BenchDriver::new(),
            batch: Vec::with_capacity(BATCH_MAX),
            method,
            live: 0,
            now_ns: 1_000_000_000_000,
        }
    }

    /// Makes `count` more connections, all established.
    pub fn establish(&mut self, count: u32) {
        let new = self.live..self.live + count;
        if count > BY_PACKETS_MAX {
            new.for_each(|client| self.insert(client));
        } else {
            let all: Vec<u32> = new.collect();
            for clients in all.chunks(BATCH_MAX) {
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
        let flow = flow(client);
        let id = client % DESTINATIONS;
        let destination = self.table.destinations[id as usize]
            .as_ref()
            .expect("made with the table");
        destination.load.add(true, 0);
        let new = NewConnection {
            flow,
            destination: destination.key,
            destination_id: id,
            method: self.method,
            state: State::Established,
            timeout_ticks: TimeoutTable::default().ticks(State::Established),
            client_hop: self.hops.intern(OUTSIDE, CLIENTS).0,
            fwmark: 0,
            controller: None,
            helped: false,
        };
        let (hash, now) = (self.connections.hash(&flow), uvs::conn::Tick::from_boot_ns(self.now_ns));
        let inserted = self.connections.insert(WORKER, hash, &new, now, &mut |_| {});
        assert!(inserted.is_ok(), "connection {client} does not fit");
    }

    /// Makes the next batch: a packet of each of these clients' connections.
    pub fn fill(&mut self, clients: impl Iterator<Item = u32>, tcp_flags: u8) {
        for client in clients {
            let frame = self.driver.received(client, tcp_flags);
            self.batch.push(Received {
                frame,
                interface: OUTSIDE,
            });
        }
    }

    /// A batch of random live connections' acknowledgements.
    pub fn fill_random(&mut self, random: &mut Random) {
        let live = self.live;
        self.fill((0..BATCH_MAX).map(|_| random.below(live)), TcpFlags::ACK);
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

    /// Frames transmitted since the start; panics when any had another fate.
    pub fn transmitted(&self) -> u64 {
        let counts = self.pipeline.counts();
        assert!(
            counts.balanced() && counts.transmitted == counts.received,
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
        Random(12345)
    }

    /// The next one, below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        ((self.0 as u64 * end as u64) >> 32) as u32
    }
}

/// Address and port of a client.
fn endpoint(client: u32) -> (Ipv4Addr, u16) {
    let address = u32::from(Ipv4Addr::new(10, 0, 0, 2)) + client / 40_000;
    (address.into(), 1024 + (client % 40_000) as u16)
}

fn flow(client: u32) -> FlowKey {
    let (address, port) = endpoint(client);
    FlowKey::new(Protocol::TCP, (address.into(), port), (VIP.into(), 80))
}

/// A table with one service.
fn director(method: Method) -> Table {
    let destinations: Vec<_> = (0..DESTINATIONS).map(|n| Arc::new(destination(method, n))).collect();
    let candidate = |d: &Arc<Destination>| Candidate {
        key: d.key,
        weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
        last_weight: 1,
        edits: 0,
        load: d.load.clone(),
    };
    let candidates: Vec<_> = destinations.iter().map(candidate).collect();
    let scheduler = build("rr", &[], &candidates, None).expect("rr is a scheduler");
    let service = Service {
        key: ServiceKey::Address {
            protocol: TransportProtocol::Tcp,
            address: VIP.into(),
            port: 80,
        },
        scheduler: Box::new(scheduler),
        candidates,
        ids: (0..DESTINATIONS).map(DestinationId).collect(),
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
        services: Services::new([Arc::new(service)], Arc::default()),
        destinations: destinations.into_iter().map(Some).collect(),
        interfaces: Arc::new([interface(0, VIP), interface(1, DIRECTOR)]),
        local: Arc::new(LocalAddresses::new([VIP.into(), DIRECTOR.into()], [])),
        timeouts: Timeouts::default(),
        sysctls: Arc::default(),
        defence: Default::default(),
        ..Table::default()
    }
}

fn destination(method: Method, n: u32) -> Destination {
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
                destination: Mac([2, 0, 0, 0, 1, n as u8]),
                mtu: 1500,
            },
            source: DIRECTOR.into(),
        },
        present: true,
        weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
        way: Way::default(),
        load: Arc::new(Load::default()),
        counters: Arc::new([Counters::default()]),
    }
    .prepared()
}

const CHUNK: usize = 2048;
const CHUNKS: usize = 4096;
const HEADROOM: usize = 256;
/// The shortest Ethernet frame without its checksum: an acknowledgement and six bytes of padding.
const FRAME_LEN: usize = 60;

/// A frame in its chunk.
pub struct BenchFrame {
    chunk: &'static mut [u8; CHUNK],
    window: Window,
}

impl Frame for BenchFrame {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        self.window.of(self.chunk)
    }

    #[inline(always)]
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.window.of_mut(self.chunk)
    }

    #[inline(always)]
    fn grow_front(&mut self, n: usize) -> Result<(), NoRoom> {
        self.window.grow_front(n)
    }

    #[inline(always)]
    fn shrink_front(&mut self, n: usize) {
        self.window.shrink_front(n);
    }

    #[inline(always)]
    fn set_len(&mut self, len: usize) -> Result<(), NoRoom> {
        self.window.set_len(len, CHUNK)
    }

    /// Nothing is known of the checksum, as with AF_XDP: the data plane has to look.
    #[inline(always)]
    fn offload(&self) -> Offload {
        Offload::default()
    }

    fn set_offload(&mut self, _: Offload) {}
}

/// Keeps frames, and takes back what the data plane sends.
struct BenchDriver {
    free: VecDeque<BenchFrame>,
    sent: Vec<BenchFrame>,
}

impl BenchDriver {
    fn new() -> BenchDriver {
        let mut memory = MmapMut::map_anon(CHUNKS * CHUNK).expect("memory for frames");
        // Without huge pages it is slower, not wrong.
        drop(memory.advise(Advice::HugePage));
        memory.fill(0);
        // Kept to the end of the program.
        let memory: &'static mut MmapMut = Box::leak(Box::new(memory));
        let frame = |chunk: &'static mut [u8; CHUNK]| BenchFrame {
            chunk,
            window: Window::new(HEADROOM, 0),
        };
        BenchDriver {
            free: memory.as_chunks_mut().0.iter_mut().map(frame).collect(),
            sent: Vec::with_capacity(CHUNKS),
        }
    }

    /// A packet of a client as it comes off the wire.
    fn received(&mut self, client: u32, tcp_flags: u8) -> BenchFrame {
        let mut frame = self.free.pop_front().expect("frames come back");
        frame.window = Window::new(HEADROOM, FRAME_LEN);
        write_packet(frame.bytes_mut(), client, tcp_flags);
        frame
    }

    fn drain(&mut self) {
        self.free.extend(self.sent.drain(..));
    }
}

fn write_packet(bytes: &mut [u8], client: u32, tcp_flags: u8) {
    let (address, port) = endpoint(client);
    bytes[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0xd0]);
    bytes[6..12].copy_from_slice(&CLIENTS.0);
    bytes[12..26].copy_from_slice(&[8, 0, 0x45, 0, 0, 40, 0x12, 0x34, 0x40, 0, 64, Protocol::TCP.0, 0, 0]);
    bytes[26..30].copy_from_slice(&address.octets());
    bytes[30..34].copy_from_slice(&VIP.octets());
    bytes[34..36].copy_from_slice(&port.to_be_bytes());
    bytes[36..38].copy_from_slice(&80u16.to_be_bytes());
    bytes[38..54].copy_from_slice(&[0, 0, 1, 0, 0, 0, 2, 0, 0x50, tcp_flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    bytes[54..].fill(0);
    let header = checksum::of(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&header.to_be_bytes());
    let pseudo = checksum::pseudo_header(&flow(client), 20);
    let segment = !checksum::fold(pseudo + checksum::sum(&bytes[34..54]));
    bytes[50..52].copy_from_slice(&segment.to_be_bytes());
}

impl Driver for BenchDriver {
    type Frame = BenchFrame;

    fn receive(&mut self, _: &mut Vec<Received<BenchFrame>>) -> usize {
        0
    }

    fn allocate(&mut self) -> Option<BenchFrame> {
        self.free.pop_front()
    }

    #[inline(always)]
    fn transmit(&mut self, _: InterfaceId, frame: BenchFrame) -> bool {
        self.sent.push(frame);
        true
    }

    fn hand_back(&mut self, frame: BenchFrame) -> bool {
        self.sent.push(frame);
        true
    }

    fn free(&mut self, frame: BenchFrame) {
        self.sent.push(frame);
    }

    fn flush(&mut self) -> u64 {
        0
    }

    fn wait(&mut self, _: Duration) {}

    fn statistics(&mut self) -> Vec<InterfaceStatistics> {
        Vec::new()
    }
}
