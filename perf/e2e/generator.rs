//! A source of UDP frames: an XDP program that writes each one anew and redirects it into the client's interface, so that the
//! director's meets it as it would a card's. So many flows, in turn or at random; at a set rate, or in bursts.
//!
//! Flow f comes from 10.16.x.y and a port, all different; its packets are equal. Limit: 2^20 flows.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uvs::demo::cluster::Error;
use uvs::io::bpf::asm::{Assembler, If, Label, Operation, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Width};
use uvs::io::bpf::map::MapType;
use uvs::io::bpf::{Instruction, Map, Program, ProgramType};
use uvs::io::netns::Namespace;
use uvs::packet::checksum;

use crate::cpu;
use crate::rig::{CLIENT_MAC, CLIENTS_MAC, DATAGRAMS, Rig, VIP, wrong};

const HELPER_MAP_LOOKUP: i32 = 1;
const HELPER_KTIME_NS: i32 = 5;
const HELPER_RANDOM: i32 = 7;
const HELPER_REDIRECT: i32 = 23;
const XDP_DROP: i32 = 1;

/// The shortest Ethernet frame without its checksum.
pub const FRAME_LEN: usize = 60;
/// Of the frame: where what differs from flow to flow stands.
const IP_CHECKSUM: i16 = 24;
const SOURCE_LOW: i16 = 28;
const SOURCE_PORT: i16 = 34;
const UDP_CHECKSUM: i16 = 40;

/// Frames that a burst has: less than the 2048 that the director's receive ring holds.
pub const BURST: u32 = 1800;
/// How far a paced source that fell behind may catch up.
const CATCH_UP_NS: i32 = 200_000;
/// Repetitions of one call: long enough to measure within, short enough to end soon when told to.
const CALL: u32 = 24_000_000;
/// What the state's two values are.
const SENT: i32 = 0;
const NEXT_NS: i32 = 1;

/// Which flow's frame comes after which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One after the other, each once before any comes again.
    InTurn,
    /// At random.
    Random,
}

/// Which frames.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// How many flows.
    pub flows: u32,
    /// Which of them is next.
    pub order: Order,
    /// Frames a second; as many as possible, if none.
    pub rate: Option<u32>,
}

/// A source at a client.
pub struct Generator {
    program: Program,
    state: Map,
    stop: Map,
    frame: [u8; FRAME_LEN],
    namespace: Namespace,
}

impl Generator {
    /// One that sends to the VIP from the rig's client.
    pub fn new(rig: &mut Rig, traffic: Traffic) -> Result<Generator, Error> {
        let interface = rig.client.link("eth0")?.index;
        let state = Map::create(MapType::PerCpuArray, "generator", 4, 8, 2).map_err(wrong)?;
        let stop = Map::create(MapType::Array, "stop", 4, 8, 1).map_err(wrong)?;
        let code = program(&state, &stop, interface as i32, traffic);
        Ok(Generator {
            program: Program::load(ProgramType::Xdp, "perf_generator", &code).map_err(wrong)?,
            state,
            stop,
            frame: template(),
            namespace: rig.client.namespace().try_clone()?,
        })
    }

    /// Sends bursts until `frames` are sent, from the directors' CPU, with `between` after each. Returns the CPU time it took.
    pub fn bursts(&self, frames: u32, between: Duration) -> Result<Duration, Error> {
        let work = || {
            cpu::pin(cpu::THEIRS);
            let before = cpu::of_this_thread();
            for _ in 0..frames.div_ceil(BURST) {
                self.program.run_live(&self.frame, BURST)?;
                std::thread::sleep(between);
            }
            Ok(cpu::of_this_thread() - before)
        };
        self.namespace.run(work)?.map_err(Error::io("send a burst"))
    }

    /// Sends from that CPU while `watch` runs.
    pub fn during<T>(&self, cpu: usize, watch: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let flag = AtomicBool::new(false);
        self.stop(false)?;
        let send = || {
            cpu::pin(cpu);
            while !flag.load(Ordering::Relaxed) {
                self.program.run_live(&self.frame, CALL)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| self.namespace.run(send));
            let result = watch();
            flag.store(true, Ordering::Relaxed);
            self.stop(true)?;
            let sent = sender.join().map_err(|_| wrong("the generator panicked"))?;
            sent?.map_err(Error::io("send"))?;
            result
        })
    }

    /// Frames redirected so far.
    pub fn sent(&self) -> Result<u64, Error> {
        self.state.sum(SENT as u32).map_err(wrong)
    }

    fn stop(&self, stop: bool) -> Result<(), Error> {
        self.stop.insert(&[0; 4], &u64::from(stop).to_ne_bytes()).map_err(wrong)
    }
}

/// A whole frame of a flow, as the program writes it; without a UDP checksum, so that its content may be anything.
pub fn flow_frame(flow: u32) -> [u8; FRAME_LEN] {
    let mut frame = template();
    frame[28..30].copy_from_slice(&((flow >> 10) as u16).to_le_bytes());
    frame[34..36].copy_from_slice(&((flow & 1023) as u16 + 16).to_le_bytes());
    let header = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&header.to_be_bytes());
    frame
}

/// The frame of flow 0 but for what the program writes; checksum fields hold the sum of all that stays.
fn template() -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&CLIENTS_MAC.0);
    frame[6..12].copy_from_slice(&CLIENT_MAC.0);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17]);
    frame[26..28].copy_from_slice(&[10, 16]);
    frame[30..34].copy_from_slice(&VIP.octets());
    frame[36..38].copy_from_slice(&DATAGRAMS.to_be_bytes());
    frame[38..40].copy_from_slice(&26u16.to_be_bytes());
    frame
}

/// Sums of the halfwords as this machine reads them (the sum does not care, RFC 1071 section 2(B)).
fn sums(frame: &[u8; FRAME_LEN]) -> (i32, i32) {
    let sum = |bytes: &[u8]| i32::from(u16::from_be(!checksum::of(bytes)));
    let header = sum(&frame[14..34]);
    let mut pseudo = [0, 17, 0, 26].to_vec();
    pseudo.extend_from_slice(&frame[26..FRAME_LEN]);
    (header, sum(&pseudo))
}

fn program(state: &Map, stop: &Map, interface: i32, traffic: Traffic) -> Vec<Instruction> {
    let frame = template();
    let (header, datagram) = sums(&frame);
    let mut a = Assembler::new();
    let drop = a.label();
    // R7 = the frame.
    a.load(Width::B4, R7, R1, 0);
    a.load(Width::B4, R8, R1, 4);
    a.mov(R2, R7);
    a.alu_imm(Operation::Add, R2, FRAME_LEN as i32);
    a.jump_if(R2, If::Greater, R8, drop);
    lookup(&mut a, stop, 0, drop);
    a.load(Width::B8, R1, R0, 0);
    a.jump_if_imm(R1, If::NotEqual, 0, drop);
    if let Some(rate) = traffic.rate {
        lookup(&mut a, state, NEXT_NS, drop);
        a.mov(R9, R0);
        pace(&mut a, (1_000_000_000 / rate.max(1)) as i32, drop);
    }
    lookup(&mut a, state, SENT, drop);
    a.load(Width::B8, R9, R0, 0);
    a.mov(R2, R9);
    a.alu_imm(Operation::Add, R2, 1);
    a.store(Width::B8, R0, 0, R2);
    // R1 = the flow; R3, R4 = low halves of its address and port.
    if traffic.order == Order::Random {
        a.call(HELPER_RANDOM);
        a.mov(R9, R0);
    }
    a.mov(R1, R9);
    a.alu_imm(Operation::Modulo, R1, traffic.flows as i32);
    a.mov(R3, R1);
    a.alu_imm(Operation::ShiftRight, R3, 10);
    a.mov(R4, R1);
    a.alu_imm(Operation::And, R4, 1023);
    a.alu_imm(Operation::Add, R4, 16);
    for (at, word) in frame[..56].as_chunks::<4>().0.iter().enumerate() {
        a.store_imm(Width::B4, R7, 4 * at as i16, i32::from_ne_bytes(*word));
    }
    a.store(Width::B2, R7, SOURCE_LOW, R3);
    a.store(Width::B2, R7, SOURCE_PORT, R4);
    a.mov_imm(R6, header);
    a.alu(Operation::Add, R6, R3);
    write_checksum(&mut a, IP_CHECKSUM);
    a.mov_imm(R6, datagram);
    a.alu(Operation::Add, R6, R3);
    a.alu(Operation::Add, R6, R4);
    write_checksum(&mut a, UDP_CHECKSUM);
    a.mov_imm(R1, interface);
    a.mov_imm(R2, 0);
    a.call(HELPER_REDIRECT);
    a.exit();
    a.bind(drop);
    a.mov_imm(R0, XDP_DROP);
    a.exit();
    a.finish()
}

/// R0 = that value of the map.
fn lookup(a: &mut Assembler, map: &Map, key: i32, none: Label) {
    a.store_imm(Width::B4, R10, -4, key);
    a.load_map(R1, map.as_raw_fd());
    a.mov(R2, R10);
    a.alu_imm(Operation::Add, R2, -4);
    a.call(HELPER_MAP_LOOKUP);
    a.jump_if_imm(R0, If::Equal, 0, none);
}

/// Goes on when the frame is due whose time R9 points to, and says when the next is.
fn pace(a: &mut Assembler, interval_ns: i32, not_yet: Label) {
    let in_time = a.label();
    a.call(HELPER_KTIME_NS);
    a.load(Width::B8, R1, R9, 0);
    a.jump_if(R0, If::Less, R1, not_yet);
    a.alu_imm(Operation::Add, R0, -CATCH_UP_NS);
    a.jump_if(R1, If::Greater, R0, in_time);
    a.mov(R1, R0);
    a.bind(in_time);
    a.alu_imm(Operation::Add, R1, interval_ns);
    a.store(Width::B8, R9, 0, R1);
}

/// Stores the complement of R6, folded; R2 is used.
fn write_checksum(a: &mut Assembler, at: i16) {
    for _ in 0..2 {
        a.mov(R2, R6);
        a.alu_imm(Operation::ShiftRight, R2, 16);
        a.alu_imm(Operation::And, R6, 0xffff);
        a.alu(Operation::Add, R6, R2);
    }
    a.alu_imm(Operation::Xor, R6, 0xffff);
    a.store(Width::B2, R7, at, R6);
}
