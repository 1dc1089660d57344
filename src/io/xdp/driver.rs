//! The driver of one worker, over the rings of whichever crate.

use std::os::fd::RawFd;
use std::time::Duration;

use super::ring::RING;
use super::rings::{FrameMemory, Rings};
use super::socket::{Sharing, Socket};
use super::{BoundQueue, QueueBinding, XdpConfig, XdpError, XdpMode, chunk_len};
use crate::dataplane::driver::{BATCH_MAX, Driver, InterfaceStatistics, Received};
use crate::io::ethtool;
use crate::io::poll::{PollSet, Woken};
use crate::io::tun::TunQueue;
use crate::packet::{ETHERNET_HEADER_LEN, Frame};
use crate::table::InterfaceId;

/// A retry is due this soon when the kernel did not take all frames.
const STUCK_RETRY: Duration = Duration::from_millis(1);

/// The AF_XDP driver of one worker.
pub struct XskDriver<R: Rings> {
    // Declared before the memory, so that no ring outlives it.
    sockets: Vec<Socket<R>>,
    memory: R::Memory,
    /// The socket to send by, for each interface.
    senders: Vec<usize>,
    /// Whose turn it is to be received from first.
    turn: usize,
    reasons: Vec<Option<String>>,
    tun: TunQueue,
    poll: PollSet,
    /// Frames that did not leave, told by no flush yet.
    lost: u64,
}

impl<R: Rings> XskDriver<R> {
    /// Maps the memory, opens a socket for each queue, and fills the rings. To be called in the network namespace of
    /// the interfaces, with their filters attached.
    pub fn open(config: XdpConfig) -> Result<XskDriver<R>, XdpError> {
        let senders = senders(&config.queues)?;
        let (mut memory, sockets) = open_sockets::<R>(&config)?;
        let (mut sockets, reasons): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
        sockets.iter_mut().for_each(|socket| socket.refill(&mut memory));
        senders
            .iter()
            .try_for_each(|&sender| check_can_send(&config.queues[sender]))?;
        let fds: Vec<RawFd> = sockets.iter().map(Socket::fd).collect();
        Ok(XskDriver {
            sockets,
            memory,
            senders,
            turn: 0,
            reasons,
            tun: config.tun,
            poll: PollSet::new(config.waker, &fds),
            lost: 0,
        })
    }

    /// What each queue got, in the order of the configuration.
    pub fn sockets(&self) -> Vec<BoundQueue> {
        let describe = |(s, reason): (&Socket<R>, &Option<String>)| BoundQueue {
            binding: s.binding.clone(),
            socket: s.fd(),
            mode: match (s.sharing, s.binding.native) {
                (Sharing::ZeroCopy, _) => XdpMode::ZeroCopy,
                (Sharing::Copy, true) => XdpMode::Native,
                (Sharing::Copy, false) => XdpMode::Generic,
            },
            reason: reason.clone(),
        };
        self.sockets.iter().zip(&self.reasons).map(describe).collect()
    }

    /// Frames that are neither in the pool nor in a ring: those handed out. For tests of the accounting.
    pub fn outstanding(&self) -> usize {
        let in_rings: u32 = self.sockets.iter().map(Socket::frames).sum();
        self.memory.outstanding() - in_rings as usize
    }

    /// A frame that finds no room stays here.
    #[cold]
    fn refuse(&mut self, frame: R::Frame) -> bool {
        self.memory.free(frame);
        false
    }

    /// Stops sleeping on sockets whose interface is gone.
    fn check_sockets(&mut self) {
        for socket in &mut self.sockets {
            socket.check();
            if socket.is_dead() {
                self.poll.remove(socket.fd());
            }
        }
    }
}

/// For each interface the first of its queues.
fn senders(queues: &[QueueBinding]) -> Result<Vec<usize>, XdpError> {
    let interfaces = queues.iter().map(|q| q.interface.0 + 1).max().unwrap_or(0);
    let first = |i| {
        queues
            .iter()
            .position(|q| q.interface.0 == i)
            .ok_or(XdpError::NoQueue(i))
    };
    (0..interfaces).map(first).collect()
}

/// The kernel takes frames on a queue that has no transmit side, and never sends them.
fn check_can_send(binding: &QueueBinding) -> Result<(), XdpError> {
    let failed = |source| XdpError::system(binding, "send by", source);
    match ethtool::channels(&binding.name)
        .map_err(failed)?
        .map_or(u32::MAX, |channels| channels.tx)
    {
        tx if binding.queue < tx => Ok(()),
        tx => Err(XdpError::NoTransmitQueue {
            interface: binding.name.clone(),
            queue: binding.queue,
            tx,
        }),
    }
}

fn chunks(config: &XdpConfig) -> u32 {
    config.queues.len() as u32 * 2 * RING + config.frames_spare + 2 * BATCH_MAX as u32
}

/// A socket, and why it is not zero-copy, if that was tried.
type Opened<R> = (Socket<R>, Option<String>);

/// A socket for each queue over one memory. Zero-copy where the filter is native and the card can; where none can, the memory is laid out
/// for the kernel to copy.
fn open_sockets<R: Rings>(config: &XdpConfig) -> Result<(R::Memory, Vec<Opened<R>>), XdpError> {
    let mut memory = R::Memory::map(chunks(config), chunk_len(config.frame_len))?;
    let attempt = |binding: &QueueBinding| {
        let open = || Socket::open(&memory, binding, Sharing::ZeroCopy);
        binding.native.then(open).transpose()
    };
    let attempts: Vec<_> = config.queues.iter().map(attempt).collect();
    if !attempts.iter().any(|attempt| matches!(attempt, Ok(Some(_)))) {
        memory = memory.for_copying();
    }
    let open = |(binding, attempt)| {
        let reason = match attempt {
            Ok(Some(socket)) => return Ok((socket, None)),
            Ok(None) => None,
            Err(error) => Some(format!("not zero-copy: {error}")),
        };
        Ok((Socket::open(&memory, binding, Sharing::Copy)?, reason))
    };
    let sockets = config.queues.iter().zip(attempts).map(open).collect::<Result<_, _>>()?;
    Ok((memory, sockets))
}

impl<R: Rings> Driver for XskDriver<R> {
    type Frame = R::Frame;

    fn receive(&mut self, batch: &mut Vec<Received<R::Frame>>) -> usize {
        let (mut room, count) = (BATCH_MAX, self.sockets.len());
        for i in 0..count {
            let socket = &mut self.sockets[(self.turn + i) % count];
            room -= socket.receive(&self.memory, batch, room);
            if room == 0 {
                break;
            }
        }
        self.turn = (self.turn + 1) % count.max(1);
        BATCH_MAX - room
    }

    fn allocate(&mut self) -> Option<R::Frame> {
        self.memory.allocate()
    }

    #[inline]
    fn transmit(&mut self, interface: InterfaceId, frame: R::Frame) -> bool {
        let socket = &mut self.sockets[self.senders[interface.0 as usize]];
        match socket.queue(&mut self.memory, frame) {
            Ok(()) => true,
            Err(frame) => self.refuse(frame),
        }
    }

    fn hand_back(&mut self, frame: R::Frame) -> bool {
        let taken = match frame.bytes().get(ETHERNET_HEADER_LEN..) {
            Some(packet) => self.tun.write(packet, frame.offload()),
            None => false,
        };
        self.free(frame);
        taken
    }

    #[inline]
    fn free(&mut self, frame: R::Frame) {
        self.memory.free(frame);
    }

    /// What is on a ring leaves, or counts as invalid there, unless the interface is deleted first.
    fn flush(&mut self) -> u64 {
        let mut lost = std::mem::take(&mut self.lost);
        for socket in &mut self.sockets {
            socket.flush(&mut self.memory);
            socket.reap(&mut self.memory);
            lost += socket.take_lost();
        }
        // After all have given back: what a ring received and another sent is what the first gets again.
        for socket in &mut self.sockets {
            socket.refill(&mut self.memory);
        }
        lost
    }

    fn wait(&mut self, timeout: Duration) {
        let stuck = self.sockets.iter().any(Socket::is_stuck);
        let woken = self.poll.wait(if stuck { timeout.min(STUCK_RETRY) } else { timeout });
        if stuck {
            self.lost = self.flush();
        } else if woken == Woken::Timeout {
            // Nothing to do: time to look whether the interfaces are still there.
            self.check_sockets();
        }
    }

    fn statistics(&mut self) -> Vec<InterfaceStatistics> {
        let mut all = vec![InterfaceStatistics::default(); self.senders.len()];
        for socket in &mut self.sockets {
            let (sum, one) = (&mut all[socket.binding.interface.0 as usize], socket.statistics());
            sum.rx_ring_full += one.rx_ring_full;
            sum.fill_ring_empty += one.fill_ring_empty;
            sum.rx_dropped += one.rx_dropped;
            sum.tx_invalid += one.tx_invalid;
            sum.tx_failed += one.tx_failed;
        }
        all
    }
}
