//! The rings of a socket and the memory behind them: what the driver needs, and sockets that give it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use libc::xdp_desc;
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use super::frame::XdpFrame;
use super::memory::XdpMemory;
use super::ring::{RING, SocketRings};
use super::{QueueBinding, Sharing, XdpError};
use crate::dataplane::driver::Received;
use crate::packet::Frame;
use crate::table::InterfaceId;

/// The four rings of a bound socket, of [`RING`] descriptors each. The caller counts, and never asks for more than
/// there is room for.
pub trait Rings: Sized {
    /// What the frames are in.
    type Memory: FrameMemory<Frame = Self::Frame>;
    /// A frame outside of the rings.
    type Frame: Frame;

    /// Opens a socket over `memory` and binds it. The interface has a filter of ours in front.
    fn open(memory: &Self::Memory, binding: &QueueBinding, sharing: Sharing) -> Result<Self, XdpError>;

    /// The socket.
    fn fd(&self) -> RawFd;

    /// Appends up to `room` received frames to the batch.
    fn receive(
        &mut self,
        memory: &Self::Memory,
        batch: &mut Vec<Received<Self::Frame>>,
        interface: InterfaceId,
        room: usize,
    ) -> usize;

    /// Gives the kernel `n` free frames to receive into, or as many as there are.
    fn fill(&mut self, memory: &mut Self::Memory, n: usize) -> usize;

    /// Takes a frame to be sent, [`BATCH_MAX`](crate::dataplane::driver::BATCH_MAX) at most.
    fn queue(&mut self, memory: &Self::Memory, frame: Self::Frame);

    /// Frames taken that the kernel does not know of.
    fn queued(&self) -> usize;

    /// Shows them to the kernel.
    fn submit(&mut self, memory: &mut Self::Memory);

    /// Takes back up to `n` sent frames.
    fn complete(&mut self, memory: &mut Self::Memory, n: usize) -> usize;

    /// The kernel sleeps until it is told that the fill ring has frames.
    fn fill_wants_wakeup(&mut self) -> bool;

    /// The kernel sleeps until it is told that the transmit ring has frames.
    fn transmit_wants_wakeup(&mut self) -> bool;
}

/// The frame memory of one worker.
pub trait FrameMemory: Sized {
    /// A frame outside of the rings.
    type Frame;
    /// What is known of a free chunk.
    type Chunk;

    /// That many chunks of so many bytes, for sockets of which some may be zero-copy.
    fn map(chunks: u32, chunk_len: usize) -> Result<Self, XdpError>;

    /// The same memory for sockets for all of which the kernel copies. It has no socket yet, and all chunks are free.
    fn for_copying(self) -> Self;

    /// From the address of a chunk to its neighbour's, where the kernel finds what it knows of a chunk by that. `None`: it does not.
    fn step(&self) -> Option<usize>;

    /// A free chunk as an empty frame.
    fn allocate(&mut self) -> Option<Self::Frame>;

    /// Takes a frame back.
    fn free(&mut self, frame: Self::Frame);

    /// Those that are free; the last is taken next.
    fn free_chunks(&mut self) -> &mut [Self::Chunk];

    /// Where a chunk is.
    fn address(chunk: &Self::Chunk) -> usize;

    /// Chunks that are not free.
    fn outstanding(&self) -> usize;
}

/// A socket of ours.
pub struct XdpRings {
    // Dropped in this order: what is bound goes last.
    rings: SocketRings,
    socket: OwnedFd,
    sharing: Sharing,
}

impl Rings for XdpRings {
    type Memory = XdpMemory;
    type Frame = XdpFrame;

    fn open(memory: &XdpMemory, binding: &QueueBinding, sharing: Sharing) -> Result<XdpRings, XdpError> {
        let failed = |what, error: io::Error| XdpError::system(binding, what, error);
        let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None);
        let socket = socket.map_err(|e| failed("open", e.into()))?;
        sockopt::set_xdp_umem_reg(&socket, memory.registration()).map_err(|e| failed("give memory to", e.into()))?;
        for set_len in [
            sockopt::set_xdp_umem_fill_ring_size,
            sockopt::set_xdp_umem_completion_ring_size,
            sockopt::set_xdp_rx_ring_size,
            sockopt::set_xdp_tx_ring_size,
        ] {
            set_len(&socket, RING).map_err(|e| failed("set up", e.into()))?;
        }
        let rings = SocketRings::map(&socket).map_err(|e| failed("map", e))?;
        let flags = match sharing {
            Sharing::ZeroCopy => SocketAddrXdpFlags::XDP_ZEROCOPY,
            Sharing::Copy => SocketAddrXdpFlags::XDP_COPY,
        };
        let flags = flags | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        bind(&socket, &SocketAddrXdp::new(flags, binding.ifindex, binding.queue))
            .map_err(|e| failed("bind", e.into()))?;
        Ok(XdpRings { rings, socket, sharing })
    }

    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    #[inline]
    fn receive(
        &mut self,
        memory: &XdpMemory,
        batch: &mut Vec<Received<XdpFrame>>,
        interface: InterfaceId,
        room: usize,
    ) -> usize {
        let arrived = |entry: xdp_desc| {
            let frame = memory.frame(entry.addr, entry.len);
            batch.push(Received { frame, interface });
        };
        self.rings.receive.take(room as u32, arrived) as usize
    }

    #[inline]
    fn fill(&mut self, memory: &mut XdpMemory, n: usize) -> usize {
        let fill = &mut self.rings.fill;
        memory.take(n).for_each(|chunk| fill.put(chunk));
        let given = fill.unpublished();
        fill.publish();
        given as usize
    }

    #[inline]
    fn queue(&mut self, memory: &XdpMemory, frame: XdpFrame) {
        self.rings.transmit.put(xdp_desc {
            addr: memory.address_of(&frame),
            len: frame.len() as u32,
            options: 0,
        });
    }

    #[inline]
    fn queued(&self) -> usize {
        self.rings.transmit.unpublished() as usize
    }

    #[inline]
    fn submit(&mut self, memory: &mut XdpMemory) {
        // All at once, and not each when it is queued: it has just been written then, by bytes and words, and would be waited for.
        if self.sharing == Sharing::Copy {
            self.rings.transmit.revise(|frame| memory.stand_in(frame));
        }
        self.rings.transmit.publish();
    }

    #[inline]
    fn complete(&mut self, memory: &mut XdpMemory, n: usize) -> usize {
        let sent = |address| memory.give_back(address);
        self.rings.completion.take(n as u32, sent) as usize
    }

    fn fill_wants_wakeup(&mut self) -> bool {
        self.rings.fill.wants_wakeup()
    }

    fn transmit_wants_wakeup(&mut self) -> bool {
        self.rings.transmit.wants_wakeup()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::{CHUNK_LEN_MAX, CHUNK_LEN_MIN, XdpInterface, wakeup};
    use super::*;
    use crate::io::filter::{FilterMaps, Rule};
    use crate::io::testing::{Sniffer, in_namespace, index_of, ip, wait_up};
    use crate::service::TransportProtocol::Udp;

    const PORT: u16 = 7;

    /// A frame to the service, whose content has a number.
    fn datagram(number: u8, len: usize) -> Vec<u8> {
        let headers = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let headers = headers.ipv4([10, 0, 0, 9], [10, 9, 0, 1], 64).udp(9, PORT);
        let mut frame = Vec::new();
        headers.write(&mut frame, &vec![number; len - 42]).unwrap();
        frame
    }

    /// Goal: the kernel puts frames where we take them from, and sends what we wrote, from memory laid out for zero-copy (a worker may have
    /// such a socket beside others) as from the other, in chunks of both lengths. How: all chunks at once hold frames that came in at a veth,
    /// shorter and longer than a stand-in, some over the end of a page; some become longer or shorter in front; all go back.
    #[test]
    fn frames_go_through_either_memory() {
        for sharing in [Sharing::Copy, Sharing::ZeroCopy] {
            in_namespace(|| go_through(sharing, CHUNK_LEN_MIN, 1500));
            in_namespace(|| go_through(sharing, CHUNK_LEN_MAX, 3400));
        }
    }

    /// The same with its header so many bytes further in front, or behind.
    fn moved(mut frame: Vec<u8>, longer: isize) -> Vec<u8> {
        let link: Vec<u8> = frame.drain(..14).collect();
        match longer {
            0.. => _ = frame.splice(..0, vec![0; longer as usize]),
            _ => _ = frame.drain(..-longer as usize),
        }
        [link, frame].concat()
    }

    fn go_through(sharing: Sharing, chunk_len: usize, mtu: usize) {
        ip("link add a0 type veth peer name b0");
        for end in ["a0", "b0"] {
            ip(&format!("link set {end} mtu {mtu} up"));
        }
        wait_up("a0");
        let mut maps = FilterMaps::new().unwrap();
        let (protocol, address, port) = (Udp, "10.9.0.1".parse().unwrap(), PORT);
        maps.insert(Rule::Service {
            protocol,
            address,
            port,
        })
        .unwrap();
        let interface = XdpInterface::attach(index_of("a0"), &maps, None, None).unwrap();
        let binding = QueueBinding {
            interface: InterfaceId(0),
            ifindex: interface.ifindex(),
            name: "a0".to_owned(),
            queue: 0,
            native: true,
        };
        let mut memory = XdpMemory::map_for(sharing, 8, chunk_len);
        let mut rings = XdpRings::open(&memory, &binding, Sharing::Copy).unwrap();
        interface.add_socket(0, rings.fd()).unwrap();
        assert_eq!(rings.fill(&mut memory, 9), 8);
        let client = Sniffer::new("b0");
        let mut over_a_page = 0;
        for round in 0..4 {
            let sent: Vec<Vec<u8>> = (0..8u8)
                .zip([60, mtu + 14, 257, mtu + 10, 256].into_iter().cycle().skip(round))
                .map(|(number, len)| datagram(number, len))
                .collect();
            sent.iter().for_each(|frame| client.send(frame));
            let (mut batch, end) = (Vec::new(), Instant::now() + Duration::from_secs(2));
            while batch.len() < 8 {
                rings.receive(&memory, &mut batch, InterfaceId(0), 64);
                assert!(Instant::now() < end, "{} of 8 frames come", batch.len());
            }
            assert!(batch.iter().map(|received| received.frame.bytes()).eq(&sent));
            let longer = [0, 4, -4];
            for (Received { mut frame, .. }, longer) in batch.into_iter().zip(longer.into_iter().cycle()) {
                let place = frame.bytes().as_ptr().addr();
                over_a_page += usize::from(place / 4096 != (place + frame.len() - 1) / 4096);
                let new = moved(frame.bytes().to_vec(), longer);
                match longer {
                    0.. => frame.grow_front(longer as usize).unwrap(),
                    _ => frame.shrink_front(-longer as usize),
                }
                frame.bytes_mut().copy_from_slice(&new);
                rings.queue(&memory, frame);
            }
            rings.submit(&mut memory);
            wakeup::kick_transmit(rings.fd()).unwrap();
            for (frame, longer) in sent.into_iter().zip(longer.into_iter().cycle()) {
                let new = moved(frame, longer);
                assert!(
                    client.next(|frame| frame == new).is_some(),
                    "{} bytes are not sent",
                    new.len()
                );
            }
            let mut back = 0;
            while back < 8 {
                back += rings.complete(&mut memory, 8);
                assert!(Instant::now() < end, "{back} of 8 frames come back");
            }
            assert_eq!(rings.fill(&mut memory, 9), 8, "their chunks");
        }
        assert!(
            over_a_page > 0 || sharing == Sharing::ZeroCopy,
            "no frame is in two pages"
        );
        interface.detach().unwrap();
    }
}
