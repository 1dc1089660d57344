//! What one process measures: the table is made of such runs. Each prints one line of numbers.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use uvs::control::protocol::Command;
use uvs::control::registry::{Registry, Routes, build_scheduler};
use uvs::control::state::State;
use uvs::dataplane::driver::BATCH_MAX;
use uvs::packet::{FlowKey, Mac, Protocol};
use uvs::scheduler::{Batch, Candidate, Loads, Schedule, build};
use uvs::service::{Destination, DestinationKey, Method, Service, ServiceKey, TransportProtocol, Tunnel};
use uvs::table::{InterfaceId, LocalAddresses, NextHop, Reach};

use super::Mode;
use super::world::{Plan, Random, World};

/// A batch that took longer was interrupted by another program, and counts neither here nor in floor/mb.c.
const INTERRUPTED_NS: u128 = 50_000;

/// One run, in this process.
#[derive(Clone, Debug, Subcommand)]
pub enum Run {
    /// Packets of random live connections: nanoseconds a packet, bytes a connection, packets measured.
    Hits(Traffic),
    /// SYNs of unknown flows, while so many connections live: prints the same. Not of UDP.
    New(Traffic),
    /// Picks of a scheduler by itself, each connection counted and another ended: nanoseconds a pick.
    Picks {
        /// Its name.
        #[arg(long, default_value = "wlc")]
        scheduler: String,
        /// Servers to pick from.
        #[arg(long, default_value_t = 1000)]
        servers: u32,
    },
    /// A cache line that goes back and forth between two CPUs: nanoseconds a way.
    Handover {
        /// The two.
        #[arg(long, value_name = "CPU", required = true)]
        cpu: Vec<usize>,
    },
    /// The XDP filter by itself, as root: nanoseconds for a client's frame, for a real server's reply, for a frame of the kernel's, and
    /// of a program that only drops.
    Filter,
    /// Rules applied, and one weight changed among them: milliseconds each.
    Control {
        /// Services of 10 servers each.
        #[arg(long, default_value_t = 1000)]
        services: u32,
    },
}

/// Packets, and what they meet.
#[derive(Args, Clone, Debug)]
pub struct Traffic {
    /// What is forwarded, and how.
    #[arg(long, default_value = "nat")]
    pub mode: Mode,
    /// Live connections.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(64..=100_000_000))]
    pub connections: u32,
    /// The scheduler.
    #[arg(long, default_value = "rr", value_parser = known_scheduler)]
    pub scheduler: &'static str,
    /// Servers of the service.
    #[arg(long, default_value_t = 16)]
    pub servers: u32,
    /// Packets that each worker measures.
    #[arg(long, default_value_t = 4_000_000)]
    pub packets: u64,
    /// The workers' CPUs: a worker on each. Without, one worker anywhere.
    #[arg(long, value_name = "CPU")]
    pub cpu: Vec<usize>,
    /// Each worker has a director of its own: they share nothing but the machine. For new connections.
    #[arg(long, requires = "cpu")]
    pub apart: bool,
}

fn known_scheduler(name: &str) -> Result<&'static str, String> {
    let known = uvs::scheduler::NAMES.iter().find(|known| **known == name);
    known.copied().ok_or_else(|| format!("no scheduler {name:?}"))
}

impl Run {
    /// Measures and prints.
    pub fn run(&self) {
        match self {
            Run::Hits(traffic) if traffic.apart => refuse("hits are of connections that all workers share"),
            Run::Hits(traffic) => print_traffic(traffic, traffic.connections, hits),
            Run::New(traffic) if traffic.mode.protocol() != Protocol::TCP => {
                // Those that live would expire with them.
                refuse("new connections are measured by TCP")
            }
            Run::New(traffic) => print_traffic(traffic, traffic.connections + 2 * traffic.new_a_round(), begins),
            Run::Picks { scheduler, servers } => println!("{}", picks(scheduler, *servers)),
            Run::Handover { cpu } => println!("{}", handover(cpu)),
            Run::Filter => match super::filter::measure() {
                Ok([service, reply, other, drop]) => println!("{service} {reply} {other} {drop}"),
                Err(error) => refuse(&format!("the filter: {error}")),
            },
            Run::Control { services } => {
                let (applied, edited) = control(*services);
                println!("{} {}", milliseconds(applied), milliseconds(edited));
            }
        }
    }
}

impl Traffic {
    fn workers(&self) -> u16 {
        self.cpu.len().max(1) as u16
    }

    /// Connections that begin before they are ended again, all workers together: a tenth of those that live.
    fn new_a_round(&self) -> u32 {
        let batches = (self.connections / 10).div_ceil(BATCH_MAX as u32 * self.workers() as u32);
        batches * BATCH_MAX as u32 * self.workers() as u32
    }
}

/// What one worker measured.
#[derive(Default)]
struct Stopwatch {
    /// Of batches that nobody interrupted.
    spent_ns: u128,
    batches: u64,
    interrupted: u64,
}

impl Stopwatch {
    fn measure(&mut self, world: &mut World) {
        let start = Instant::now();
        world.process_measured();
        let ns = start.elapsed().as_nanos();
        world.drain();
        if ns < INTERRUPTED_NS {
            self.spent_ns += ns;
            self.batches += 1;
        } else {
            self.interrupted += 1;
        }
    }

    fn ns_per_packet(&self) -> f64 {
        self.spent_ns as f64 / (self.batches.max(1) * BATCH_MAX as u64) as f64
    }
}

/// What the workers of a run have in common.
struct Team<'a> {
    traffic: &'a Traffic,
    barrier: Barrier,
    finished: AtomicUsize,
    packets: AtomicU64,
}

type Work = fn(&Team<'_>, &mut World, u16) -> Stopwatch;

/// Runs `work` on every worker, and prints nanoseconds a packet of all together, bytes a connection, and how many packets were
/// measured.
fn print_traffic(traffic: &Traffic, capacity: u32, work: Work) {
    check_cpus(&traffic.cpu);
    let workers = traffic.workers();
    let establish = || {
        let mut world = World::of(&Plan {
            method: traffic.mode.method(),
            protocol: traffic.mode.protocol(),
            capacity,
            workers: if traffic.apart { 1 } else { workers },
            destinations: traffic.servers,
            scheduler: traffic.scheduler,
        });
        world.establish(traffic.connections);
        world
    };
    let mut first = establish();
    let other = |worker| {
        if traffic.apart {
            establish()
        } else {
            first.colleague(worker)
        }
    };
    let team = Team {
        traffic,
        barrier: Barrier::new(workers.into()),
        finished: AtomicUsize::new(0),
        packets: AtomicU64::new(0),
    };
    let others: Vec<World> = (1..workers).map(other).collect();
    let packets_a_ns: f64 = std::thread::scope(|scope| {
        let team = &team;
        let others: Vec<_> = (1..workers)
            .zip(others)
            .map(|(worker, mut world)| scope.spawn(move || team.rate(&mut world, worker, work)))
            .collect();
        let own = team.rate(&mut first, 0, work);
        let join = |thread: std::thread::ScopedJoinHandle<'_, f64>| thread.join().expect("a worker panicked");
        own + others.into_iter().map(join).sum::<f64>()
    });
    let packets = team.packets.load(Ordering::Relaxed);
    println!("{} {} {packets}", 1.0 / packets_a_ns, first.bytes_per_connection());
}

impl Team<'_> {
    /// Packets a nanosecond of one worker.
    fn rate(&self, world: &mut World, worker: u16, work: Work) -> f64 {
        if let Some(cpu) = self.traffic.cpu.get(worker as usize) {
            pin(*cpu);
        }
        self.barrier.wait();
        let watch = work(self, world, worker);
        let measured = (watch.batches + watch.interrupted) * BATCH_MAX as u64;
        assert!(world.transmitted() > 0, "nothing was forwarded");
        self.packets.fetch_add(measured, Ordering::Relaxed);
        1.0 / watch.ns_per_packet()
    }

    /// Batches that each worker measures.
    fn batches(&self) -> u64 {
        self.traffic.packets.div_ceil(BATCH_MAX as u64)
    }
}

/// Packets of random live connections.
fn hits(team: &Team<'_>, world: &mut World, worker: u16) -> Stopwatch {
    let mut random = Random::seeded(12345 + worker as u32);
    let mut watch = Stopwatch::default();
    // The first fifth warms caches up.
    for _ in 0..team.batches() / 5 {
        world.fill_random(&mut random);
        world.process();
        world.drain();
    }
    team.barrier.wait();
    for _ in 0..team.batches() {
        world.fill_random(&mut random);
        watch.measure(world);
    }
    team.finished.fetch_add(1, Ordering::Relaxed);
    // Nobody is measured alone.
    while team.finished.load(Ordering::Relaxed) < team.traffic.workers() as usize {
        world.fill_random(&mut random);
        world.process();
        world.drain();
    }
    watch
}

/// New connections, in rounds: the workers begin them, then they are ended, which is not measured.
fn begins(team: &Team<'_>, world: &mut World, worker: u16) -> Stopwatch {
    let mut watch = Stopwatch::default();
    let mine = team.traffic.new_a_round() / team.traffic.workers() as u32;
    let start = world.live() + worker as u32 * mine;
    let rounds = team.batches().div_ceil(mine as u64 / BATCH_MAX as u64);
    // The first round warms caches up.
    for round in 0..=rounds {
        world.wake();
        for batch in (start..start + mine).step_by(BATCH_MAX) {
            world.fill_new(batch..batch + BATCH_MAX as u32);
            if round == 0 {
                world.process();
                world.drain();
            } else {
                watch.measure(world);
            }
        }
        world.sleep();
        if team.barrier.wait().is_leader() || team.traffic.apart {
            world.expire_half_open();
        }
        team.barrier.wait();
    }
    watch
}

/// As many connections begin as end, all the time.
fn picks(scheduler: &str, servers: u32) -> f64 {
    const STRETCH: u32 = BATCH_MAX as u32;
    const STRETCHES: u32 = 3000;
    let mut random = Random::new();
    let mut loads = Loads::new(1);
    let candidate = |n: u32| Candidate {
        key: DestinationKey {
            address: Ipv4Addr::from(0x0a64_0001 + n).into(),
            port: 8080,
        },
        weight: 100,
        upper_threshold: 0,
        lower_threshold: 0,
        last_weight: 100,
        edits: 0,
        load: Arc::new(loads.make()),
    };
    let mut candidates: Vec<Candidate> = (0..servers).map(candidate).collect();
    // As in a service's list: the newest first.
    candidates.reverse();
    for candidate in &candidates {
        (0..100 + random.below(100)).for_each(|_| candidate.load.add(0, true, 0));
    }
    let scheduler = build(scheduler, &[], &candidates, None).expect("a scheduler's name");
    // Of many short stretches the median: a few are interrupted by other programs.
    let mut stretch = |n: u32| {
        let start = Instant::now();
        let mut batch = Batch::new(0);
        for n in n * STRETCH..(n + 1) * STRETCH {
            let flow = FlowKey::v4(Protocol::TCP, 0x0a00_0000 + n, 0xc0a8_0001, 40_000 << 16 | 80);
            // ovf refuses at times.
            if let Some(n) = black_box(scheduler.pick(&candidates, &flow, &mut batch)) {
                candidates[n].load.add(0, true, 0);
                candidates[random.below(servers) as usize].load.remove(0, true, 0, 0);
            }
        }
        drop(batch);
        start.elapsed().as_nanos()
    };
    let mut spent: Vec<u128> = (0..STRETCHES).map(&mut stretch).collect();
    spent.sort_unstable();
    spent[spent.len() / 2] as f64 / STRETCH as f64
}

/// Each of two threads waits for the other's write and writes then. What two workers share costs by this.
fn handover(cpus: &[usize]) -> f64 {
    const WAYS: u64 = 400_000;
    check_cpus(cpus);
    let &[first, second] = cpus else {
        refuse("a handover is between two CPUs")
    };
    let ways = Alone(AtomicU64::new(0));
    let begin = Barrier::new(2);
    let play = |cpu: usize, parity: u64| {
        pin(cpu);
        begin.wait();
        let start = Instant::now();
        for way in (parity..WAYS).step_by(2) {
            while ways.0.load(Ordering::Acquire) != way {
                std::hint::spin_loop();
            }
            ways.0.store(way + 1, Ordering::Release);
        }
        start.elapsed().as_nanos() as f64 / WAYS as f64
    };
    std::thread::scope(|scope| {
        scope.spawn(|| play(second, 1));
        play(first, 0)
    })
}

/// In cache lines of its own.
#[repr(align(128))]
struct Alone<T>(T);

/// Threads that wait for each other need a CPU each.
fn check_cpus(cpus: &[usize]) {
    let known = core_affinity::get_core_ids().unwrap_or_default();
    for (n, cpu) in cpus.iter().enumerate() {
        if !known.iter().any(|core| core.id == *cpu) || cpus[..n].contains(cpu) {
            refuse(&format!("CPU {cpu} is not to be had, or twice"));
        }
    }
}

/// Ends the program.
fn refuse(why: &str) -> ! {
    eprintln!("perf/dataplane: {why}");
    std::process::exit(2);
}

fn pin(cpu: usize) {
    let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
    assert!(pinned, "CPU {cpu} is not to be had");
}

struct OneHop;

impl Routes for OneHop {
    fn reach(&mut self, _: IpAddr) -> Reach {
        let hop = NextHop {
            interface: InterfaceId(0),
            source: Mac([2, 0, 0, 0, 0, 1]),
            destination: Mac([2, 0, 0, 0, 0, 2]),
            mtu: 1500,
        };
        let source = Ipv4Addr::new(10, 0, 0, 1).into();
        Reach::Hop { hop, source }
    }
}

fn server(service: u32, n: u32) -> Destination {
    Destination {
        key: DestinationKey {
            address: Ipv4Addr::from(0x0a64_0001 + service * 16 + n).into(),
            port: 8080,
        },
        method: Method::Masq,
        weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
        tunnel: Tunnel::default(),
    }
}

/// From commands to the workers' table, and the same of one command more.
fn control(services: u32) -> (Duration, Duration) {
    const EDITS: u32 = 20;
    let key = |n: u32| ServiceKey::Address {
        protocol: TransportProtocol::Tcp,
        address: Ipv4Addr::from(0xc0a8_0001 + n / 1000).into(),
        port: 1 + (n % 1000) as u16,
    };
    let mut commands = Vec::new();
    for n in 0..services {
        commands.push(Command::AddService(Service {
            key: key(n),
            scheduler: "wlc".to_owned(),
            scheduler_flags: Vec::new(),
            persistence: None,
            one_packet: false,
            persistence_engine: None,
        }));
        commands.extend((0..10).map(|m| Command::AddDestination {
            service: key(n),
            destination: server(n, m),
        }));
    }
    let local: Arc<LocalAddresses> = Arc::default();
    let (mut state, mut registry) = (State::default(), Registry::new(2, build_scheduler));
    let mut live = None;
    let mut apply = |commands: &[Command]| {
        let start = Instant::now();
        let applied = state.apply_all(commands, true);
        assert!(applied.results.iter().all(Option::is_none), "a command was refused");
        registry.update(&state, &applied.state, &mut OneHop);
        state = applied.state;
        live = Some(registry.table(&state, Arc::new([]), local.clone()));
        registry.taken();
        start.elapsed()
    };
    let applied = apply(&commands);
    let edit = |n: u32| Command::EditDestination {
        service: key(n % services),
        destination: Destination {
            weight: 2 + n,
            ..server(n % services, 5)
        },
    };
    let edits: Duration = (0..EDITS).map(|n| apply(&[edit(n * 37)])).sum();
    (applied, edits / EDITS)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
