//! The bench's driver, which only keeps frames: what is measured is the data plane.
//!
//! ```text
//! chunk (2048, as in AF_XDP and in floor/mb.c): | headroom (256) | frame (60) | not used |
//! ```
//! Frames lie in one memory with huge pages and are used in turn, so that a packet is met as a card would leave it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use memmap2::{Advice, MmapMut};
use uvs::dataplane::driver::{Driver, InterfaceStatistics, Received};
use uvs::packet::{FlowKey, Frame, NoRoom, Offload, Protocol, TcpFlags, Window, checksum};
use uvs::table::InterfaceId;

pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
/// The Ethernet header of a client's frame.
pub const CLIENT_LINK: [u8; 14] = [2, 0, 0, 0, 0, 0xd0, 2, 0, 0, 0, 0, 0xc0, 8, 0];

const CHUNK: usize = 2048;
const CHUNKS: usize = 4096;
const HEADROOM: usize = 256;
/// The shortest Ethernet frame without its checksum: an acknowledgement and six bytes of padding, or a datagram of 18 bytes.
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
pub struct BenchDriver {
    protocol: Protocol,
    free: VecDeque<BenchFrame>,
    sent: Vec<BenchFrame>,
}

impl BenchDriver {
    /// One whose packets are of TCP or UDP.
    pub fn new(protocol: Protocol) -> BenchDriver {
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
            protocol,
            free: memory.as_chunks_mut().0.iter_mut().map(frame).collect(),
            sent: Vec::with_capacity(CHUNKS),
        }
    }

    /// A packet of a client as it comes off the wire.
    pub fn received(&mut self, client: u32, tcp_flags: u8) -> BenchFrame {
        let mut frame = self.free.pop_front().expect("frames come back");
        frame.window = Window::new(HEADROOM, FRAME_LEN);
        write_packet(frame.bytes_mut(), &flow(self.protocol, client), tcp_flags);
        frame
    }

    pub fn drain(&mut self) {
        self.free.extend(self.sent.drain(..));
    }
}

/// Address and port of a client.
fn endpoint(client: u32) -> (Ipv4Addr, u16) {
    let address = u32::from(Ipv4Addr::new(10, 0, 0, 2)) + client / 40_000;
    (address.into(), 1024 + (client % 40_000) as u16)
}

/// A client's connection.
pub fn flow(protocol: Protocol, client: u32) -> FlowKey {
    let (address, port) = endpoint(client);
    FlowKey::new(protocol, (address.into(), port), (VIP.into(), 80))
}

/// The frame of a client's acknowledgement or datagram.
pub fn packet(flow: &FlowKey) -> [u8; FRAME_LEN] {
    let mut bytes = [0; FRAME_LEN];
    write_packet(&mut bytes, flow, TcpFlags::ACK);
    bytes
}

/// A segment of no data, or a datagram of 18 bytes, with whole checksums.
fn write_packet(bytes: &mut [u8], flow: &FlowKey, tcp_flags: u8) {
    let of_tcp = [0, 0, 1, 0, 0, 0, 2, 0, 0x50, tcp_flags, 0xfa, 0xf0, 0, 0, 0, 0];
    let (header, segment, checksum_at): (&[u8], _, _) = match flow.protocol {
        Protocol::UDP => (&[0, 26, 0, 0], 34..34 + 26, 40),
        _ => (&of_tcp, 34..34 + 20, 50),
    };
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (flow.source(), flow.destination()) else {
        unreachable!("clients and VIP are IPv4")
    };
    bytes.fill(0);
    bytes[..14].copy_from_slice(&CLIENT_LINK);
    bytes[14..18].copy_from_slice(&[0x45, 0, 0, (segment.end - 14) as u8]);
    bytes[18..24].copy_from_slice(&[0x12, 0x34, 0x40, 0, 64, flow.protocol.0]);
    bytes[26..30].copy_from_slice(&source.octets());
    bytes[30..34].copy_from_slice(&destination.octets());
    bytes[34..36].copy_from_slice(&flow.source_port().to_be_bytes());
    bytes[36..38].copy_from_slice(&flow.destination_port().to_be_bytes());
    bytes[38..38 + header.len()].copy_from_slice(header);
    let of_header = checksum::of(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&of_header.to_be_bytes());
    let pseudo = checksum::pseudo_header(flow, segment.len() as u32);
    let of_segment = !checksum::fold(pseudo + checksum::sum(&bytes[segment]));
    bytes[checksum_at..][..2].copy_from_slice(&of_segment.to_be_bytes());
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
