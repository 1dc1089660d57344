//! The `raw` driver: packet sockets, for cards and kernels without AF_XDP, and for bulk TCP on virtual cards.
//!
//! One socket an interface and worker; several workers share an interface's frames by a hash of the flow (fan-out).
//! Super-frames and unfinished checksums go through untouched. The kernel sees each frame too: a filter at its
//! traffic control drops there what this one keeps (see the `filter` module).
//!
//! What the kernel refuses to send after [`Driver::transmit`] took it is told by the next [`Driver::flush`]. An interface that is down or
//! gone costs its frames, nothing else, and is reported once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use super::buffer::{FRAME_LEN_MAX, FrameBuffer, Pool};
use super::mmsg::{Arrival, Receiver, Sender};
use super::packet_socket::{PacketSocket, SocketError};
use super::poll::{PollSet, Waker};
use super::tun::TunQueue;
use crate::dataplane::driver::{BATCH_MAX, Driver, InterfaceStatistics, Received};
use crate::packet::{ETHERNET_HEADER_LEN, Frame};
use crate::table::InterfaceId;

/// Buffers of a worker, of 64 KiB each; memory that no frame ever reached is not used.
pub const BUFFERS_DEFAULT: usize = 1024;

/// Attempts to send a batch again when the interface's queue is full. Each gives way to whoever empties it.
const SEND_RETRIES: u32 = 16;

/// Receives again at most this often in one round after an error about a single frame.
const RECEIVE_RETRIES: u32 = 8;

/// An interface to open.
#[derive(Clone, Copy, Debug)]
pub struct RawInterface<'a> {
    /// Its name.
    pub name: &'a str,
    /// The kernel's index of it.
    pub index: u32,
    /// BPF program of type socket filter: which frames are ours.
    pub filter: BorrowedFd<'a>,
}

/// What belongs to one worker.
#[derive(Debug)]
pub struct RawWorker {
    /// Ends its sleep.
    pub waker: Waker,
    /// Its way into the local stack.
    pub tun: TunQueue,
}

/// The packet sockets of one worker.
pub struct RawDriver {
    interfaces: Vec<Interface>,
    /// Who receives first in the next batch.
    turn: usize,
    pool: Pool,
    receiver: Receiver,
    sender: Sender,
    tun: TunQueue,
    poll: PollSet,
    /// Frames of this batch that the kernel refused.
    failed: u64,
}

struct Interface {
    socket: PacketSocket,
    /// Frames of this batch that leave here.
    queue: Vec<FrameBuffer>,
    statistics: InterfaceStatistics,
    /// The kernel said that it is down or gone, and nothing went through since.
    down: bool,
}

/// Opens every interface for every worker, in the calling thread's namespace. Frames arrive once this returns.
pub fn open(
    interfaces: &[RawInterface<'_>],
    workers: Vec<RawWorker>,
    buffers: usize,
) -> Result<Vec<RawDriver>, SocketError> {
    let shared = workers.len() > 1;
    let mut sockets: Vec<Vec<PacketSocket>> = workers.iter().map(|_| Vec::new()).collect();
    for interface in interfaces {
        let mut group = None;
        for of_worker in &mut sockets {
            let socket = PacketSocket::open(interface.name, interface.index)?;
            if shared {
                group = Some(socket.join_fanout(group, false)?);
            }
            of_worker.push(socket);
        }
    }
    // Every queue has its owner: now let the frames come.
    for of_worker in &sockets {
        for (socket, interface) in of_worker.iter().zip(interfaces) {
            socket.filter(interface.filter)?;
        }
    }
    let drivers = workers.into_iter().zip(sockets);
    Ok(drivers
        .map(|(worker, sockets)| RawDriver::new(worker, sockets, buffers))
        .collect())
}

impl RawDriver {
    fn new(worker: RawWorker, sockets: Vec<PacketSocket>, buffers: usize) -> RawDriver {
        let fds: Vec<_> = sockets.iter().map(|s| s.as_raw_fd()).collect();
        let interface = |socket| Interface {
            socket,
            queue: Vec::with_capacity(BATCH_MAX),
            statistics: InterfaceStatistics::default(),
            down: false,
        };
        RawDriver {
            interfaces: sockets.into_iter().map(interface).collect(),
            turn: 0,
            pool: Pool::new(buffers, FRAME_LEN_MAX),
            receiver: Receiver::new(),
            sender: Sender::new(),
            tun: worker.tun,
            poll: PollSet::new(worker.waker, &fds),
            failed: 0,
        }
    }

    /// Buffers in the data plane's hands: received or allocated, and not yet transmitted, handed back or freed.
    pub fn outstanding(&self) -> usize {
        let queued: usize = self.interfaces.iter().map(|i| i.queue.len()).sum();
        self.pool.outstanding() - self.receiver.held() - queued
    }

    fn receive_from(&mut self, index: usize, max: usize, batch: &mut Vec<Received<FrameBuffer>>) {
        let Interface {
            socket,
            statistics,
            down,
            ..
        } = &mut self.interfaces[index];
        let mut retries = RECEIVE_RETRIES;
        let result = loop {
            let result = self
                .receiver
                .receive(socket.as_fd(), max, &mut self.pool, |arrival| match arrival {
                    Arrival::Frame(frame) => batch.push(Received {
                        frame,
                        interface: InterfaceId(index as u8),
                    }),
                    Arrival::Refused => statistics.rx_dropped += 1,
                });
            match result {
                // One frame whose segmentation cannot be told by a virtio header: the kernel has dropped it.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => statistics.rx_dropped += 1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
            retries -= 1;
            if retries == 0 {
                return;
            }
        };
        match result {
            Ok(_) => back_up(socket, down),
            Err(error) if is_down(&error) => gone_down(socket, down, &error),
            // Nothing waits, or no buffer is free: then the kernel keeps the frames, or drops and counts them.
            Err(_) => {}
        }
    }
}

/// Sends what is queued at one interface; every frame returns to the pool. Returns how many did not leave.
fn send_queue(interface: &mut Interface, sender: &mut Sender, pool: &mut Pool) -> u64 {
    let Interface {
        socket,
        queue,
        statistics,
        down,
    } = interface;
    let mut retries = SEND_RETRIES;
    let mut done = 0;
    let mut failed = 0;
    while done < queue.len() {
        match sender.send(socket.as_fd(), &queue[done..]) {
            Ok(sent) => {
                done += sent;
                back_up(socket, down);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_full(&error) && retries > 0 => {
                retries -= 1;
                std::thread::yield_now();
            }
            Err(error) if is_down(&error) => {
                gone_down(socket, down, &error);
                let rest = (queue.len() - done) as u64;
                statistics.tx_failed += rest;
                failed += rest;
                break;
            }
            // The queue stays full, or the kernel refuses this one (larger than the MTU, for example).
            Err(error) => {
                statistics.tx_failed += is_full(&error) as u64;
                statistics.tx_invalid += !is_full(&error) as u64;
                failed += 1;
                done += 1;
            }
        }
    }
    queue.drain(..).for_each(|frame| pool.give(frame));
    failed
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS))
}

fn is_down(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV))
}

fn gone_down(socket: &PacketSocket, down: &mut bool, error: &io::Error) {
    if !*down {
        log::warn!("{}: {error}: its frames are dropped until it is up", socket.interface());
    }
    *down = true;
}

fn back_up(socket: &PacketSocket, down: &mut bool) {
    if *down {
        log::info!("{}: up again", socket.interface());
    }
    *down = false;
}

impl Driver for RawDriver {
    type Frame = FrameBuffer;

    fn receive(&mut self, batch: &mut Vec<Received<FrameBuffer>>) -> usize {
        let before = batch.len();
        let interfaces = self.interfaces.len();
        for i in 0..interfaces {
            let left = BATCH_MAX - (batch.len() - before);
            if left == 0 {
                break;
            }
            self.receive_from((self.turn + i) % interfaces, left, batch);
        }
        self.turn = (self.turn + 1) % interfaces.max(1);
        batch.len() - before
    }

    fn allocate(&mut self) -> Option<FrameBuffer> {
        self.pool.take()
    }

    fn transmit(&mut self, interface: InterfaceId, frame: FrameBuffer) -> bool {
        let interface = &mut self.interfaces[interface.0 as usize];
        interface.queue.push(frame);
        if interface.queue.len() == BATCH_MAX {
            self.failed += send_queue(interface, &mut self.sender, &mut self.pool);
        }
        true
    }

    fn hand_back(&mut self, frame: FrameBuffer) -> bool {
        let packet = frame.bytes().get(ETHERNET_HEADER_LEN..);
        let taken = packet.is_some_and(|packet| self.tun.write(packet, frame.offload()));
        self.pool.give(frame);
        taken
    }

    fn free(&mut self, frame: FrameBuffer) {
        self.pool.give(frame);
    }

    fn flush(&mut self) -> u64 {
        for interface in &mut self.interfaces {
            self.failed += send_queue(interface, &mut self.sender, &mut self.pool);
        }
        std::mem::take(&mut self.failed)
    }

    fn wait(&mut self, timeout: Duration) {
        if self.receiver.held() + self.pool.available() == 0 {
            // Frames may wait, but there is nowhere to receive them to: do not spin on that.
            std::thread::sleep(timeout.min(Duration::from_millis(1)));
            return;
        }
        self.poll.wait(timeout);
    }

    fn statistics(&mut self) -> Vec<InterfaceStatistics> {
        let update = |interface: &mut Interface| {
            interface.statistics.rx_ring_full += interface.socket.take_drops();
            interface.statistics
        };
        self.interfaces.iter_mut().map(update).collect()
    }
}

#[cfg(test)]
mod tests;
