//! The data plane allocates nothing once it runs. How: an allocator that counts what this thread asks of it, and the bench's
//! director in memory: new connections, then packets of known ones, by each method. A test binary of its own, as there is one
//! allocator in a program.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unsafe_code, reason = "an allocator is unsafe to be; this one counts and passes on")]

#[path = "../perf/bench/driver.rs"]
#[allow(dead_code, reason = "the bench needs more of it")]
mod driver;
#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;
#[path = "../perf/bench/world.rs"]
#[allow(dead_code, reason = "the bench needs more of it")]
mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use memory_director::{CLIENT_SIDE, MemoryDirector, SERVER_SIDE};
use packets::{FAMILIES, addresses, segment};
use serde_json::Value;
use uvs::packet::{Offload, Protocol, TcpFlags};
use uvs::service::Method;
use world::{Plan, Random, World};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends is not the one that is watched.
    ALLOCATIONS.try_with(|n| n.set(n.get() + 1)).unwrap_or_default();
}

// SAFETY: every call goes to the system's allocator as it came; counting touches a thread-local number only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above, and `memory` came from `System`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

const CONNECTIONS: u32 = 6400;

#[test]
fn no_allocation_for_new_connections_nor_for_known_ones() {
    assert_eq!(
        allocations(|| drop(std::hint::black_box(Box::new(1)))),
        1,
        "the allocator that is watched is the one in use"
    );
    for (method, protocol) in [
        (Method::Masq, Protocol::TCP),
        (Method::Route, Protocol::TCP),
        (Method::Tunnel, Protocol::TCP),
        (Method::Masq, Protocol::UDP),
    ] {
        let mut world = World::of(&Plan {
            method,
            protocol,
            capacity: CONNECTIONS,
            workers: 1,
            destinations: 16,
            scheduler: "wlc",
        });
        let new = allocations(|| world.establish(CONNECTIONS));
        // `establish` itself makes a list of the clients.
        assert!(
            new <= 1,
            "{protocol:?} by {method:?}: {new} allocations for {CONNECTIONS} connections"
        );
        let mut random = Random::new();
        for flags in [TcpFlags::ACK, TcpFlags::FIN | TcpFlags::ACK, TcpFlags::SYN] {
            let known = allocations(|| {
                for _ in 0..200 {
                    let clients = std::array::from_fn::<u32, 64, _>(|_| random.below(CONNECTIONS));
                    world.fill(clients.into_iter(), flags);
                    world.process();
                    world.drain();
                }
            });
            assert_eq!(known, 0, "{protocol:?} by {method:?}, flags {flags:#x}");
        }
        assert!(world.transmitted() > 3 * 200 * 64);
    }
}

/// The same for every kind of packet that the kernel was recorded with: both families, TCP and UDP, errors in and out,
/// fragments, tunnels, damage.
#[test]
fn no_allocation_for_any_recorded_packet() {
    thread_local! {
        static FRAMES: Cell<u64> = const { Cell::new(0) };
    }
    let file: Value = serde_json::from_str(include_str!("kernel/packets.json")).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    // Once more with a classifier that knows every packet.
    for (marked, vector) in [false, true]
        .into_iter()
        .flat_map(|marked| vectors.iter().map(move |v| (marked, v)))
    {
        let mut director = MemoryDirector::new(1024);
        if marked {
            director.marks("[[mark]]\nmark = 1\nsource_port = 9\n[[mark]]\nmark = 1\ninterface = \"d0\"");
            director.ipvsadm("-A -f 1 -s rr -p 60; -a -f 1 -r 172.16.0.11:0 -m");
            director.ipvsadm("-A -f 1 -6 -s sh; -a -f 1 -6 -r [fd00:16::11]:0 -m");
        }
        director.around = |work| {
            FRAMES.set(FRAMES.get() + 1);
            let made = allocations(work);
            assert_eq!(made, 0, "allocations for frame {}", FRAMES.get());
        };
        let lines = |key: &str| {
            vector[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|line| line.as_str().unwrap())
        };
        for line in lines("pre") {
            let (name, value) = line.rsplit(' ').next().unwrap().split_once('=').unwrap();
            director.sysctl(name.trim_start_matches("net.ipv4.vs."), value);
        }
        lines("setup").for_each(|line| director.ipvsadm(line));
        for step in vector["steps"].as_array().unwrap() {
            if let Some(command) = step["command"].as_str() {
                director.ipvsadm(command);
                continue;
            }
            let hex = step["input_hex"].as_str().unwrap();
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let frame: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            let from_client = step["inject_on"] == "client_side";
            director.inject(
                if from_client { CLIENT_SIDE } else { SERVER_SIDE },
                &frame,
                Offload::default(),
            );
        }
    }
    assert!(FRAMES.get() > 150, "only {} frames", FRAMES.get());
}

/// FTP's control connections, whose payload is read and rewritten, and what they announce.
#[test]
fn no_allocation_for_ftp() {
    for family in FAMILIES {
        let who = addresses(family);
        let at = |address, port| std::net::SocketAddr::new(address, port);
        let (client, vip, server) = (at(who.client, 40_000), at(who.vip, 21), at(who.server, 21));
        let mut director = MemoryDirector::new(1024);
        director.ipvsadm(&format!("-A -t {vip} -s rr; -a -t {vip} -r {server} -m"));
        director.around = |work| assert_eq!(allocations(work), 0);
        let commands = b"NOOP\r\nport 198,51,100,7,200,13\r\nEPRT |2|2001:db8::7|51213|\r\nPASV\r\n";
        let reply = b"227 Entering Passive Mode (172,16,0,11,195,80).\r\n";
        for (side, from, to, flags, text) in [
            (CLIENT_SIDE, client, vip, "S", &b""[..]),
            (SERVER_SIDE, server, client, "SA", b""),
            (CLIENT_SIDE, client, vip, "A", b""),
            (CLIENT_SIDE, client, vip, "A", commands),
            (SERVER_SIDE, server, client, "A", reply),
            (CLIENT_SIDE, client, vip, "A", b"EPSV\r\n"),
            (SERVER_SIDE, server, client, "A", b"229 x (|||50001|)\r\n"),
            (CLIENT_SIDE, at(who.client, 41_000), at(who.vip, 50_001), "S", b""),
        ] {
            let out = director.inject(side, &segment(from, to, flags, text), Offload::default());
            assert_eq!(out.sent.len(), 1, "{family:?} {from} {to} {flags}");
        }
        assert!(director.connections().len() >= 3, "{:?}", director.connections());
    }
}
