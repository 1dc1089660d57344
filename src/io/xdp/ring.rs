//! The rings that a socket shares with the kernel, as its documentation has them (Documentation/networking/af_xdp.rst): one side
//! writes entries and says how far, the other reads them and says how far.
//!
//! Crates for AF_XDP have rings too. Those of `xdp` 0.8 hold frames of 48 bytes that are moved from ring to batch, from batch to queue
//! and from there to the other ring, and none of the free ones can be looked at without being taken: that was a quarter of a worker's own time
//! (perf/README.md). Nor has it chunks that are not aligned (`memory`).
#![allow(
    unsafe_code,
    reason = "counters and entries lie in memory that the kernel writes too"
)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use libc::{xdp_desc, xdp_ring_offset};
use memmap2::{MmapOptions, MmapRaw};
use rustix::net::sockopt::xdp_mmap_offsets;
use rustix::net::xdp::XdpRingOffset;

/// Descriptors of each ring: a power of two.
pub const RING: u32 = 2048;

/// What entries are.
///
/// # Safety
///
/// The kernel has the same type there, and any bytes are a value of it.
pub unsafe trait Entry: Copy {}
// SAFETY: a number: the address of a chunk in the frame memory.
unsafe impl Entry for u64 {}
// SAFETY: three numbers, the kernel's own structure: the address of a frame, its length, and options.
unsafe impl Entry for xdp_desc {}

/// The four rings of a socket.
pub struct SocketRings {
    /// Chunks to receive into.
    pub fill: Producer<u64>,
    /// Frames received.
    pub receive: Consumer<xdp_desc>,
    /// Frames to send.
    pub transmit: Producer<xdp_desc>,
    /// Frames sent.
    pub completion: Consumer<u64>,
}

impl SocketRings {
    /// Maps the rings of a socket, which has them, of [`RING`] entries each, and is not bound yet: then the kernel refuses.
    pub fn map(socket: &OwnedFd) -> io::Result<SocketRings> {
        let offsets = xdp_mmap_offsets(socket)?;
        let socket = socket.as_raw_fd();
        Ok(SocketRings {
            fill: Producer::new(Ring::map(socket, libc::XDP_UMEM_PGOFF_FILL_RING, offsets.fr)?),
            receive: Consumer::new(Ring::map(socket, libc::XDP_PGOFF_RX_RING as u64, offsets.rx)?),
            transmit: Producer::new(Ring::map(socket, libc::XDP_PGOFF_TX_RING as u64, offsets.tx)?),
            completion: Consumer::new(Ring::map(socket, libc::XDP_UMEM_PGOFF_COMPLETION_RING, offsets.cr)?),
        })
    }
}

/// Where in a ring's memory things are, if the kernel has them all.
fn all_of(offsets: XdpRingOffset) -> io::Result<xdp_ring_offset> {
    let flags = offsets.flags;
    let flags = flags.ok_or_else(|| io::Error::other("this kernel's rings do not say when it sleeps (Linux 5.4)"))?;
    let XdpRingOffset {
        producer,
        consumer,
        desc,
        ..
    } = offsets;
    Ok(xdp_ring_offset {
        producer,
        consumer,
        desc,
        flags,
    })
}

/// A ring's memory, and how far we are in it.
struct Ring<T> {
    memory: MmapRaw,
    offsets: xdp_ring_offset,
    /// The entry that we write or read next, counted from the beginning; runs over, as the kernel's counts do.
    next: u32,
    entries: PhantomData<T>,
}

impl<T: Entry> Ring<T> {
    fn map(socket: RawFd, page: u64, offsets: XdpRingOffset) -> io::Result<Ring<T>> {
        let offsets = all_of(offsets)?;
        let len = offsets.desc as usize + RING as usize * size_of::<T>();
        let counters = [offsets.producer, offsets.consumer, offsets.flags];
        let inside = |&at: &u64| at.is_multiple_of(4) && at as usize + size_of::<AtomicU32>() <= len;
        assert!(
            counters.iter().all(inside) && offsets.desc.is_multiple_of(8),
            "counters at {counters:?}, entries at {}",
            offsets.desc
        );
        let memory = MmapOptions::new().offset(page).len(len).populate().map_raw(socket)?;
        Ok(Ring {
            memory,
            offsets,
            next: 0,
            entries: PhantomData,
        })
    }

    #[inline(always)]
    fn counter(&self, at: u64) -> &AtomicU32 {
        // SAFETY: within the mapping and aligned (looked at when it was made), which lives as long as `self`; both sides write it
        // atomically.
        unsafe { &*self.memory.as_ptr().add(at as usize).cast() }
    }

    #[inline(always)]
    fn produced(&self) -> &AtomicU32 {
        self.counter(self.offsets.producer)
    }

    #[inline(always)]
    fn consumed(&self) -> &AtomicU32 {
        self.counter(self.offsets.consumer)
    }

    /// Entry `n`, counted from the beginning.
    #[inline(always)]
    fn entry(&self, n: u32) -> *mut T {
        let entries = self.memory.as_mut_ptr().wrapping_add(self.offsets.desc as usize);
        entries.cast::<T>().wrapping_add((n % RING) as usize)
    }
}

/// A ring whose entries we write and the kernel reads.
pub struct Producer<T> {
    ring: Ring<T>,
    /// Entries from here on the kernel does not know of.
    published: u32,
}

impl<T: Entry> Producer<T> {
    fn new(ring: Ring<T>) -> Producer<T> {
        Producer { ring, published: 0 }
    }

    /// Writes an entry. The caller has counted that there is room: the kernel shows late how far it has read.
    #[inline(always)]
    pub fn put(&mut self, entry: T) {
        let next = self.ring.next;
        // SAFETY: in the mapping, and the kernel does not read it before it is published.
        unsafe { self.ring.entry(next).write(entry) };
        self.ring.next = next.wrapping_add(1);
    }

    /// Entries written and not yet published.
    #[inline(always)]
    pub fn unpublished(&self) -> u32 {
        self.ring.next.wrapping_sub(self.published)
    }

    /// Changes the entries that are not published.
    #[inline(always)]
    pub fn revise(&mut self, mut each: impl FnMut(&mut T)) {
        for i in 0..self.unpublished() {
            // SAFETY: in the mapping, written by `put`, and the kernel does not read it before it is published.
            each(unsafe { &mut *self.ring.entry(self.published.wrapping_add(i)) });
        }
    }

    /// Tells the kernel of all.
    #[inline(always)]
    pub fn publish(&mut self) {
        self.published = self.ring.next;
        self.ring.produced().store(self.published, Ordering::Release);
    }

    /// The kernel sleeps until it is told (`XDP_USE_NEED_WAKEUP`).
    #[inline]
    pub fn wants_wakeup(&self) -> bool {
        // What was published is seen before the flag is read: else the kernel could miss the one, and we the other.
        fence(Ordering::SeqCst);
        self.ring.counter(self.ring.offsets.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A ring whose entries the kernel writes and we read.
pub struct Consumer<T> {
    ring: Ring<T>,
    /// How far the kernel was when we last looked: it writes that on another CPU, and each look takes its line away from there.
    written: u32,
}

impl<T: Entry> Consumer<T> {
    fn new(ring: Ring<T>) -> Consumer<T> {
        Consumer {
            written: ring.next,
            ring,
        }
    }

    /// Takes the entries that are there, `max` of them at most: how many.
    #[inline(always)]
    pub fn take(&mut self, max: u32, mut each: impl FnMut(T)) -> u32 {
        let ring = &mut self.ring;
        if self.written.wrapping_sub(ring.next) < max {
            self.written = ring.produced().load(Ordering::Acquire);
        }
        let n = self.written.wrapping_sub(ring.next).min(max);
        if n == 0 {
            return 0;
        }
        for i in 0..n {
            // SAFETY: in the mapping, written before the kernel said so, and not written again before we say that it is read.
            each(unsafe { ring.entry(ring.next.wrapping_add(i)).read() });
        }
        ring.next = ring.next.wrapping_add(n);
        ring.consumed().store(ring.next, Ordering::Release);
        n
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// A ring and its other side, both of which have come so far.
    fn both_sides(at: u32) -> (Producer<u64>, Consumer<u64>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096 + u64::from(RING) * 8).unwrap();
        // As the kernel lays them out: counters in cache lines of their own.
        let offsets = XdpRingOffset {
            producer: 0,
            consumer: 64,
            desc: 320,
            flags: Some(4),
        };
        let ring = || Ring {
            next: at,
            ..Ring::map(file.as_raw_fd(), 0, offsets).unwrap()
        };
        let mut producer = Producer::new(ring());
        producer.publish();
        producer.ring.consumed().store(at, Ordering::Release);
        (producer, Consumer::new(ring()))
    }

    /// Goal: nothing is lost, changed or seen early, also where counts run over. How: batches of several lengths, from shortly before
    /// that, three rounds long.
    #[test]
    fn what_goes_in_comes_out() {
        let (mut producer, mut consumer) = both_sides(u32::MAX - 1000);
        let (mut put, mut taken) = (0u64, 0u64);
        for batch in (1..=64).cycle().take(200) {
            (0..batch).for_each(|n| producer.put(put + n));
            assert_eq!((producer.unpublished(), consumer.take(64, |_| {})), (batch as u32, 0));
            producer.publish();
            put += batch;
            assert_eq!(producer.unpublished(), 0);
            let most = 1 + batch as u32 / 2;
            while taken < put {
                let left = (put - taken) as u32;
                let n = consumer.take(most, |entry| {
                    assert_eq!(entry, taken);
                    taken += 1;
                });
                assert_eq!(n, most.min(left));
            }
        }
        assert!(put > 3 * u64::from(RING));
    }

    /// Goal: the flag is the kernel's, not ours. How: set and cleared as the kernel does.
    #[test]
    fn wakeup_is_told_by_the_flag() {
        let (producer, _consumer) = both_sides(0);
        assert!(!producer.wants_wakeup());
        let flags = producer.ring.counter(producer.ring.offsets.flags);
        flags.store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
        assert!(producer.wants_wakeup());
        flags.store(0, Ordering::Relaxed);
        assert!(!producer.wants_wakeup());
    }
}
