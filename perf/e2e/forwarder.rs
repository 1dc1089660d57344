//! The bare forwarder: frames come and go by the drivers that uvs has, and nothing is done to them but new link
//! addresses. What uvs costs above it is its data plane and its filter.
//!
//! The same with the least that a director does to a frame is another peer (`least`): what no director on these drivers can go below.
//!
//! Its own filter takes each IPv4 frame. The loop is the worker's: batches of 64, a flush after each, some empty rounds before it
//! sleeps.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use uvs::dataplane::driver::{BATCH_MAX, Driver, Received};
use uvs::demo::cluster::Error;
use uvs::io::bpf::asm::{Assembler, If, Operation, R0, R1, R2, R3, R7, R8, Width};
use uvs::io::bpf::map::MapType;
use uvs::io::bpf::xdp_link::{self, AttachMode};
use uvs::io::bpf::{Map, Program, ProgramType, tcx};
use uvs::io::netlink::Netlink;
use uvs::io::poll::Waker;
use uvs::io::raw::{self, RawInterface, RawWorker};
use uvs::io::tun::Tun;
use uvs::io::xdp::{FRAMES_SPARE_DEFAULT, QueueBinding, XdpConfig, XdpDriver};
use uvs::packet::{ETHERNET_HEADER_LEN, Frame};
use uvs::table::InterfaceId;

use crate::least::Least;
use crate::rig::{CLIENT_MAC, CLIENTS_MAC, SERVER_MAC, SERVERS_MAC, wrong};

/// As a worker of uvs.
const SPIN_ROUNDS: u32 = 2;
const SLEEP_MAX: Duration = Duration::from_millis(250);

const INTERFACES: [&str; 2] = ["clients", "servers"];
const HELPER_REDIRECT_MAP: i32 = 51;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
/// The EtherType of IPv4 as two bytes read it.
const IPV4: i32 = u16::from_ne_bytes([8, 0]) as i32;

/// What is done to frames.
pub trait Work {
    /// Before the frames of a batch are rewritten.
    fn prepare<F: Frame>(&mut self, batch: &[Received<F>]);
    /// Rewrites the batch's frame of that number. `false`: it goes no further.
    fn rewrite(&mut self, number: usize, from: InterfaceId, frame: &mut [u8]) -> bool;
}

/// New link addresses for IPv4.
struct Bare;

impl Work for Bare {
    fn prepare<F: Frame>(&mut self, _: &[Received<F>]) {}

    fn rewrite(&mut self, _: usize, from: InterfaceId, frame: &mut [u8]) -> bool {
        let (source, destination) = match from.0 {
            0 => (SERVERS_MAC, SERVER_MAC),
            _ => (CLIENTS_MAC, CLIENT_MAC),
        };
        if frame.len() < ETHERNET_HEADER_LEN || frame[12..14] != [8, 0] {
            return false;
        }
        frame[..6].copy_from_slice(&destination.0);
        frame[6..12].copy_from_slice(&source.0);
        true
    }
}

/// Forwards for ever, in the namespace of this process: as the least director, if for so many `flows`.
pub fn run(driver: &str, flows: Option<usize>) -> Result<(), Error> {
    let mut netlink = Netlink::open().map_err(wrong)?;
    let indices = INTERFACES.map(|name| netlink.link(name).map(|link| link.index));
    let [clients, servers] = indices;
    let indices = [clients.map_err(wrong)?, servers.map_err(wrong)?];
    let tun = Tun::create("bare0").map_err(wrong)?;
    match (driver, flows) {
        ("raw", Some(_)) => Err(wrong("the least director is by xdp")),
        (_, Some(flows)) => forward(open_xdp(indices, &tun)?, Least::new(flows)?),
        ("raw", None) => forward(open_raw(indices, &tun)?, Bare),
        (_, None) => forward(open_xdp(indices, &tun)?, Bare),
    }
}

fn open_xdp(indices: [u32; 2], tun: &Tun) -> Result<XdpDriver, Error> {
    let mut maps = Vec::new();
    for index in indices {
        let map = Map::create(MapType::XskMap, "bare_sockets", 4, 4, 1).map_err(wrong)?;
        let filter = Program::load(ProgramType::Xdp, "perf_bare", &xdp_filter(&map)).map_err(wrong)?;
        xdp_link::attach(index, AttachMode::Native, &filter, None).map_err(wrong)?;
        maps.push(map);
    }
    let binding = |n: usize| QueueBinding {
        interface: InterfaceId(n as u8),
        ifindex: indices[n],
        name: INTERFACES[n].to_owned(),
        queue: 0,
        native: true,
    };
    let config = XdpConfig {
        queues: vec![binding(0), binding(1)],
        frames_spare: FRAMES_SPARE_DEFAULT,
        frame_len: ETHERNET_HEADER_LEN + 1500,
        tun: tun.queue().map_err(wrong)?,
        waker: Waker::new().map_err(Error::io("make a waker"))?,
    };
    let driver = XdpDriver::open(config).map_err(wrong)?;
    for (bound, map) in driver.sockets().iter().zip(&maps) {
        map.insert(&[0; 4], &bound.socket.to_ne_bytes()).map_err(wrong)?;
    }
    // The programs hold the maps.
    Ok(driver)
}

fn open_raw(indices: [u32; 2], tun: &Tun) -> Result<raw::RawDriver, Error> {
    let filter = Program::load(ProgramType::SocketFilter, "perf_bare", &all(-1)).map_err(wrong)?;
    // The kernel is kept silent as uvs keeps it, for IPv4.
    let silence = Program::load(ProgramType::SchedCls, "perf_bare", &tcx_filter()).map_err(wrong)?;
    for index in indices {
        tcx::attach(index, &silence, None).map_err(wrong)?;
    }
    let interface = |n: usize| RawInterface {
        name: INTERFACES[n],
        index: indices[n],
        filter: filter.as_fd(),
    };
    let worker = RawWorker {
        waker: Waker::new().map_err(Error::io("make a waker"))?,
        tun: tun.queue().map_err(wrong)?,
    };
    let drivers = raw::open(&[interface(0), interface(1)], vec![worker], raw::BUFFERS_DEFAULT).map_err(wrong)?;
    drivers.into_iter().next().ok_or_else(|| wrong("no driver"))
}

fn forward<D: Driver>(mut driver: D, mut work: impl Work) -> Result<(), Error> {
    println!("ready");
    let mut batch: Vec<Received<D::Frame>> = Vec::with_capacity(BATCH_MAX);
    let mut idle_rounds = 0;
    loop {
        if driver.receive(&mut batch) == 0 {
            idle_rounds += 1;
            if idle_rounds > SPIN_ROUNDS {
                driver.flush();
                driver.wait(SLEEP_MAX);
                idle_rounds = 0;
            }
            continue;
        }
        idle_rounds = 0;
        work.prepare(&batch);
        for (number, Received { mut frame, interface }) in batch.drain(..).enumerate() {
            if !work.rewrite(number, interface, frame.bytes_mut()) {
                driver.free(frame);
                continue;
            }
            // What the ring does not take is lost; the sink's count tells.
            driver.transmit(InterfaceId(1 - interface.0), frame);
        }
        driver.flush();
    }
}

/// IPv4 to the queue's socket, all else to the kernel.
fn xdp_filter(sockets: &Map) -> Vec<uvs::io::bpf::Instruction> {
    let mut a = Assembler::new();
    let pass = a.label();
    a.load(Width::B4, R7, R1, 0);
    a.load(Width::B4, R8, R1, 4);
    a.mov(R2, R7);
    a.alu_imm(Operation::Add, R2, ETHERNET_HEADER_LEN as i32);
    a.jump_if(R2, If::Greater, R8, pass);
    a.load(Width::B2, R3, R7, 12);
    a.jump_if_imm(R3, If::NotEqual, IPV4, pass);
    // `rx_queue_index` of struct xdp_md.
    a.load(Width::B4, R2, R1, 16);
    a.load_map(R1, sockets.as_raw_fd());
    a.mov_imm(R3, XDP_DROP);
    a.call(HELPER_REDIRECT_MAP);
    a.exit();
    a.bind(pass);
    a.mov_imm(R0, XDP_PASS);
    a.exit();
    a.finish()
}

/// Drops IPv4. `protocol` of struct __sk_buff is at 16.
fn tcx_filter() -> Vec<uvs::io::bpf::Instruction> {
    let mut a = Assembler::new();
    let next = a.label();
    a.load(Width::B4, R2, R1, 16);
    a.mov_imm(R0, 2);
    a.jump_if_imm(R2, If::Equal, IPV4, next);
    a.mov_imm(R0, -1);
    a.bind(next);
    a.exit();
    a.finish()
}

fn all(verdict: i32) -> Vec<uvs::io::bpf::Instruction> {
    let mut a = Assembler::new();
    a.mov_imm(R0, verdict);
    a.exit();
    a.finish()
}
