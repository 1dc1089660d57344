//! `uvs decap`: IP in IP for real servers whose kernel has none (many containers and small virtual machines).
//!
//! ```text
//! eth0 ── packet socket (protocols 4, 41) ── unwrap ── tun device uvs-decap ── local stack
//!                                 eth0 ── raw IP sockets, which receive nothing: the kernel stays silent
//! ```
//! The outer packets reach the kernel's own IP input too, which would tell the director by ICMP that it has no such
//! protocol. It does not where a raw IP socket for the protocol is open; so one is, for each protocol and family, behind
//! a filter that keeps nothing. Nothing is attached to the interface and no firewall rule is needed: when the process
//! ends, however it does, everything is as before.
//!
//! Super-frames and unfinished inner checksums pass as they are. Outer IPv4 fragments are put together by the kernel
//! in front of the socket, outer IPv6 fragments here.
#![allow(unsafe_code, reason = "raw IP sockets and signal handlers")]

mod unwrap;

use std::collections::HashSet;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::buffer::{FRAME_LEN_MAX, FrameBuffer, Pool};
use super::mmsg::{Arrival, Receiver};
use super::netlink::{self, Netlink};
use super::packet_socket::{PacketSocket, SocketError, classic};
use super::poll::{PollSet, Waker};
use super::tun::{Tun, TunError, TunQueue};
use crate::dataplane::driver::BATCH_MAX;
use crate::forward::fragment::{Inserted, Reassembly};
use crate::packet::parse::parse;
use crate::packet::{ETHERNET_HEADER_LEN, Frame, Offload, Packet};
use unwrap::Outer;
pub use unwrap::Refusal;

/// Name of the device through which unwrapped packets reach the local stack.
pub const DEVICE: &str = "uvs-decap";

/// Buffers, of 64 KiB each where a frame needs it.
const BUFFERS: usize = 2 * BATCH_MAX;
/// A packet to an address that is not known makes us look again at which are ours, at most this often.
const ADDRESSES_AGE_MIN: Duration = Duration::from_secs(1);
/// Which addresses are ours is looked up again when known for this long and something comes.
const ADDRESSES_AGE_MAX: Duration = Duration::from_secs(10);
/// How long it sleeps at most.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Why it cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DecapError {
    /// Not allowed to do any of it.
    #[error("needs root: run it with sudo")]
    NotRoot,
    /// The interface or the addresses cannot be read.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// It has no Ethernet frames.
    #[error("interface {0} has no link addresses: decap needs an Ethernet interface")]
    NotEthernet(String),
    /// It would be done twice.
    #[error("the kernel unwraps IP in IP itself ({name} is a {kind} device): use {name} instead of uvs decap")]
    KernelTunnel {
        /// The kernel's device.
        name: String,
        /// Its kind.
        kind: String,
    },
    /// The packet socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The tun device cannot be made.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The kernel cannot be kept from answering.
    #[error("cannot open a raw socket for IP protocol {protocol}: {source}")]
    RawSocket {
        /// 4 or 41.
        protocol: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// No eventfd, or a signal cannot be handled.
    #[error("cannot handle signals: {0}")]
    Signals(#[source] io::Error),
}

/// What came and what became of it. `received = unwrapped + fragments + refused`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecapCounters {
    /// Tunnel packets that arrived at the socket.
    pub received: u64,
    /// Inner packets that the local stack took.
    pub unwrapped: u64,
    /// Outer IPv6 fragments that did not make a packet whole: they wait, went into one later, or timed out.
    pub fragments: u64,
    /// The others, in the order of [`Refusal::ALL`].
    pub refused: [u64; Refusal::ALL.len()],
    /// Not received at all: the socket's buffer was full.
    pub receive_buffer_full: u64,
}

impl std::fmt::Display for DecapCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "received {} unwrapped {}", self.received, self.unwrapped)?;
        if self.fragments > 0 {
            write!(f, " fragments {}", self.fragments)?;
        }
        for (refusal, count) in Refusal::ALL.iter().zip(self.refused).filter(|(_, count)| *count > 0) {
            write!(f, " {} {count}", refusal.name())?;
        }
        if self.receive_buffer_full > 0 {
            write!(f, " receive_buffer_full {}", self.receive_buffer_full)?;
        }
        Ok(())
    }
}

/// How a running [`Decap`] is told things from another thread, or from a signal handler.
#[derive(Clone, Debug)]
pub struct DecapControl {
    waker: Waker,
    stop: Arc<AtomicBool>,
    report: Arc<AtomicBool>,
}

impl DecapControl {
    /// One that nobody used yet.
    pub fn new() -> io::Result<DecapControl> {
        Ok(DecapControl {
            waker: Waker::new()?,
            stop: Arc::default(),
            report: Arc::default(),
        })
    }

    /// Ends [`Decap::run`] after the current batch.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
    }

    /// Makes it give its counters to `report`.
    pub fn report(&self) {
        self.report.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// Unwraps on `interface` until SIGINT or SIGTERM. Prints a line with `ready` when it works, and its counters on
/// SIGUSR1 and at the end.
pub fn run(interface: &str) -> Result<(), DecapError> {
    if !super::netns::is_root() {
        return Err(DecapError::NotRoot);
    }
    let control = DecapControl::new().map_err(DecapError::Signals)?;
    let decap = Decap::open(interface, &control)?;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let control = control.clone();
        on_signal(signal, move || control.stop())?;
    }
    let reported = control.clone();
    on_signal(libc::SIGUSR1, move || reported.report())?;
    say(&format_args!("ready on {interface}, into {DEVICE}"));
    let counters = decap.run(&control, |counters| say(counters));
    say(&counters);
    Ok(())
}

fn say(what: &dyn std::fmt::Display) {
    // Whoever listened may have gone; the work goes on.
    drop(writeln!(io::stdout(), "uvs decap: {what}"));
}

fn on_signal(signal: i32, action: impl Fn() + Send + Sync + 'static) -> Result<(), DecapError> {
    // SAFETY: the actions given here store to an atomic and write to an eventfd, both async-signal-safe.
    unsafe { signal_hook::low_level::register(signal, action) }
        .map(drop)
        .map_err(DecapError::Signals)
}

/// Everything open, ready to [`run`](Decap::run).
pub struct Decap {
    socket: PacketSocket,
    receiver: Receiver,
    pool: Pool,
    poll: PollSet,
    local: Local,
    counters: DecapCounters,
    _silence: Vec<OwnedFd>,
}

/// The way into the local stack.
struct Local {
    queue: TunQueue,
    addresses: Addresses,
    fragments: Reassembly,
    /// Fragments' time counts from here.
    started: Instant,
    _tun: Tun,
}

impl Decap {
    /// Opens it in the calling thread's network namespace.
    pub fn open(interface: &str, control: &DecapControl) -> Result<Decap, DecapError> {
        let mut netlink = Netlink::open()?;
        let link = netlink.link(interface)?;
        if link.mac.is_none() && !link.loopback {
            return Err(DecapError::NotEthernet(interface.into()));
        }
        for other in netlink.links()? {
            if let Some(kind) = other.kind.filter(|k| ["ipip", "sit", "ip6tnl"].contains(&k.as_str())) {
                return Err(DecapError::KernelTunnel { name: other.name, kind });
            }
        }
        let addresses = Addresses::read(netlink)?;
        let tun = Tun::create(DEVICE)?;
        let silence = silence_kernel(interface)?;
        let socket = PacketSocket::open(interface, link.index)?;
        socket.join_fanout(None, true)?;
        socket.filter_classic(&mut tunnel_filter())?;
        let poll = PollSet::new(control.waker.clone(), &[socket.as_raw_fd()]);
        Ok(Decap {
            socket,
            receiver: Receiver::new(),
            pool: Pool::new(BUFFERS, FRAME_LEN_MAX),
            poll,
            local: Local {
                queue: tun.queue()?,
                addresses,
                fragments: Reassembly::new(),
                started: Instant::now(),
                _tun: tun,
            },
            counters: DecapCounters::default(),
            _silence: silence,
        })
    }

    /// Unwraps until it is told to stop. Returns what it counted; `report` gets that whenever it is asked for.
    pub fn run(mut self, control: &DecapControl, mut report: impl FnMut(&DecapCounters)) -> DecapCounters {
        let mut frames = Vec::with_capacity(BATCH_MAX);
        let mut down = false;
        while !control.stop.load(Ordering::Relaxed) {
            if control.report.swap(false, Ordering::Relaxed) {
                report(self.count());
            }
            match self.batch(&mut frames) {
                Ok(_) => down = false,
                Err(error) => {
                    if matches!(error.raw_os_error(), Some(libc::ENETDOWN)) && !down {
                        log::warn!("{}: {error}: nothing arrives until it is up", self.socket.interface());
                        down = true;
                    }
                    self.poll.wait(SLEEP_MAX);
                }
            }
        }
        self.count().clone()
    }

    fn batch(&mut self, frames: &mut Vec<FrameBuffer>) -> io::Result<usize> {
        let counters = &mut self.counters;
        let result = self
            .receiver
            .receive(self.socket.as_fd(), BATCH_MAX, &mut self.pool, |arrival| {
                counters.received += 1;
                match arrival {
                    Arrival::Frame(frame) => frames.push(frame),
                    Arrival::Refused => counters.refused[Refusal::BadFrame as usize] += 1,
                }
            });
        if !frames.is_empty() {
            self.local.addresses.refresh(ADDRESSES_AGE_MAX);
        }
        for mut frame in frames.drain(..) {
            let counters = &mut self.counters;
            match self.local.give(&mut frame) {
                Ok(true) => counters.unwrapped += 1,
                Ok(false) => counters.fragments += 1,
                Err(refusal) => counters.refused[refusal as usize] += 1,
            }
            self.pool.give(frame);
        }
        result
    }

    fn count(&mut self) -> &DecapCounters {
        self.counters.receive_buffer_full += self.socket.take_drops();
        &self.counters
    }
}

impl Local {
    /// Unwraps one frame and gives what is inside to the local stack. `false`: it is a fragment, and others are missing.
    fn give(&mut self, frame: &mut FrameBuffer) -> Result<bool, Refusal> {
        match Outer::read(frame.bytes()) {
            Err(Refusal::OuterFragment) => self.give_fragment(frame.bytes()),
            outer => self.give_packet(outer?, frame).map(|()| true),
        }
    }

    fn give_packet<F: Frame>(&mut self, outer: Outer, frame: &mut F) -> Result<(), Refusal> {
        if !self.addresses.contain(outer.destination) {
            return Err(Refusal::NotOurs);
        }
        let inner = outer.unwrap(frame.bytes_mut())?;
        let offload = unwrap::move_offload(frame.offload(), inner.start, ETHERNET_HEADER_LEN)?;
        if self.queue.write(&frame.bytes()[inner], offload) {
            Ok(())
        } else {
            Err(Refusal::NotTaken)
        }
    }

    fn give_fragment(&mut self, bytes: &[u8]) -> Result<bool, Refusal> {
        let Ok(Packet::Fragment(fragment)) = parse(bytes, Offload::default()) else {
            return Err(Refusal::OuterFragment);
        };
        if !self.addresses.contain(fragment.flow.destination()) {
            return Err(Refusal::NotOurs);
        }
        let now_ns = self.started.elapsed().as_nanos() as u64;
        self.fragments.expire(now_ns);
        match self.fragments.insert(bytes, &fragment, now_ns) {
            Inserted::Held => Ok(false),
            Inserted::Dropped => Err(Refusal::OuterFragment),
            Inserted::Complete(mut datagram) => {
                let given = match Outer::read(datagram.bytes()) {
                    Ok(outer) => self.give_packet(outer, &mut datagram),
                    Err(refusal) => Err(refusal),
                };
                self.fragments.release(datagram);
                given.map(|()| true)
            }
        }
    }
}

/// The host's addresses.
struct Addresses {
    netlink: Netlink,
    ours: HashSet<IpAddr>,
    read: Instant,
}

impl Addresses {
    fn read(netlink: Netlink) -> Result<Addresses, DecapError> {
        let mut addresses = Addresses {
            netlink,
            ours: HashSet::new(),
            read: Instant::now(),
        };
        addresses.ours = addresses.list()?;
        Ok(addresses)
    }

    fn list(&mut self) -> Result<HashSet<IpAddr>, netlink::Error> {
        Ok(self.netlink.addresses()?.into_iter().map(|a| a.address).collect())
    }

    /// Reads them again if they are known for longer than `age`.
    fn refresh(&mut self, age: Duration) {
        if self.read.elapsed() < age {
            return;
        }
        self.read = Instant::now();
        match self.list() {
            Ok(ours) => self.ours = ours,
            Err(error) => log::warn!("goes on with the addresses known before: {error}"),
        }
    }

    fn contain(&mut self, address: IpAddr) -> bool {
        if self.ours.contains(&address) {
            return true;
        }
        self.refresh(ADDRESSES_AGE_MIN);
        self.ours.contains(&address)
    }
}

/// Opens raw IP sockets for the tunnel protocols on the interface, which receive nothing.
fn silence_kernel(interface: &str) -> Result<Vec<OwnedFd>, DecapError> {
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [libc::IPPROTO_IPIP, libc::IPPROTO_IPV6] {
            match silent_socket(family, protocol, interface) {
                Ok(socket) => sockets.push(socket),
                // A kernel without IPv6 has nothing to be silenced.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                Err(source) => return Err(DecapError::RawSocket { protocol, source }),
            }
        }
    }
    Ok(sockets)
}

fn silent_socket(family: i32, protocol: i32, interface: &str) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just opened and nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut none = [classic::keep(0)];
    let program = libc::sock_fprog {
        len: 1,
        filter: none.as_mut_ptr(),
    };
    let len = size_of::<libc::sock_fprog>() as u32;
    // SAFETY: `program` is a live sock_fprog of that size, and its filter points to one instruction.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = interface.as_bytes();
    // SAFETY: pointer and length are the name's.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            name.len() as u32,
        )
    };
    if result == 0 {
        Ok(socket)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Classic BPF: frames for this host with protocol 4 or 41 in IPv4, in IPv6, or in IPv6 behind a fragment header or
/// destination options (the tunnel encapsulation limit of RFC 2473, which Linux adds).
fn tunnel_filter() -> [libc::sock_filter; 20] {
    use classic::{if_equal, keep, load_byte, load_half, load_packet_kind};
    const YES: u8 = 18;
    const NO: u8 = 19;
    // Jumps count from the next instruction.
    let to = |from: u8, target: u8| target - from - 1;
    [
        load_packet_kind(),
        if_equal(libc::PACKET_HOST as u32, 0, to(1, NO)),
        load_half(12),
        if_equal(libc::ETH_P_IP as u32, 0, to(3, 7)),
        load_byte(14 + 9),
        if_equal(4, to(5, YES), 0),
        if_equal(41, to(6, YES), to(6, NO)),
        if_equal(libc::ETH_P_IPV6 as u32, 0, to(7, NO)),
        load_byte(14 + 6),
        if_equal(4, to(9, YES), 0),
        if_equal(41, to(10, YES), 0),
        if_equal(44, to(11, 13), 0),
        if_equal(60, 0, to(12, NO)),
        // The next header of either comes first in it. Behind options there may be a fragment header again.
        load_byte(14 + 40),
        if_equal(4, to(14, YES), 0),
        if_equal(41, to(15, YES), 0),
        if_equal(44, to(16, YES), 0),
        if_equal(60, to(17, YES), to(17, NO)),
        keep(u32::MAX),
        keep(0),
    ]
}

#[cfg(test)]
mod tests;
