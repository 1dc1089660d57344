//! Where clients' frames came from, so that replies (NAT), and errors about tunnels, leave the same way: (interface, link
//! address) pairs, interned.
//!
//! A connection keeps a 16-bit [`HopId`] instead of the pair. Workers intern without a lock; ids are never taken back,
//! as there is one for each router (or neighbour) that ever sent to a VIP. Private memory: after a restart an entry
//! has [`HopId::UNKNOWN`] until its client's next frame.

use std::sync::atomic::{AtomicU64, Ordering};

use super::InterfaceId;
use crate::packet::{ETHERNET_HEADER_LEN, Mac};

/// Number of an interned hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HopId(pub u16);

impl HopId {
    /// Not known (yet): the kernel's routing table decides.
    pub const UNKNOWN: HopId = HopId(0);
}

/// All hops that clients' frames came from; at most [`Hops::CAPACITY`].
#[derive(Debug)]
pub struct Hops {
    /// Interface, [`Hops::USED`] and link address, in this order in memory; 0 = free. Number 0 stays free.
    slots: Box<[AtomicU64; Hops::CAPACITY]>,
}

impl Default for Hops {
    fn default() -> Self {
        Hops {
            slots: Box::new([const { AtomicU64::new(0) }; Hops::CAPACITY]),
        }
    }
}

impl Hops {
    /// Ids, [`HopId::UNKNOWN`] included.
    pub const CAPACITY: usize = 1 << 14;
    /// Slots that a search looks at before it gives up.
    const PROBES: usize = 64;
    const USED: u8 = 1;

    /// The id of this interface and the source of this Ethernet header, given now if they have none; [`HopId::UNKNOWN`] when
    /// there is no room for it.
    pub fn intern(&self, interface: InterfaceId, link: &[u8; ETHERNET_HEADER_LEN]) -> HopId {
        let word = pair(interface, link);
        let first = (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;
        for probe in 0..Hops::PROBES {
            let n = ((first + probe) % Hops::CAPACITY).max(1);
            let seen = match self.slots[n].load(Ordering::Relaxed) {
                0 => self.slots[n]
                    .compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed)
                    .unwrap_or_else(|w| w),
                seen => seen,
            };
            if seen == word || seen == 0 {
                return HopId(n as u16);
            }
        }
        HopId::UNKNOWN
    }

    /// Whether `id` is this interface and the source of this Ethernet header: one load, for each frame of a client.
    #[inline(always)]
    pub fn is(&self, id: HopId, interface: InterfaceId, link: &[u8; ETHERNET_HEADER_LEN]) -> bool {
        self.slots[id.0 as usize % Hops::CAPACITY].load(Ordering::Relaxed) == pair(interface, link)
    }

    /// The pair of an id.
    #[inline]
    pub fn get(&self, id: HopId) -> Option<(InterfaceId, Mac)> {
        let word = self.slots[id.0 as usize % Hops::CAPACITY].load(Ordering::Relaxed);
        let [interface, used, a, b, c, d, e, f] = word.to_ne_bytes();
        (used == Hops::USED).then_some((InterfaceId(interface), Mac([a, b, c, d, e, f])))
    }
}

/// What a slot holds of such a frame.
#[inline(always)]
fn pair(interface: InterfaceId, link: &[u8; ETHERNET_HEADER_LEN]) -> u64 {
    // The source, and the type behind it, which is shifted out.
    let [.., a, b, c, d, e, f, g, h] = *link;
    let lowest = (Hops::USED as u64) << 8 | interface.0 as u64;
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]) << 16 | lowest).to_le()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a frame from there.
    fn link(mac: Mac) -> [u8; ETHERNET_HEADER_LEN] {
        let mut link = [0xee; ETHERNET_HEADER_LEN];
        link[6..12].copy_from_slice(&mac.0);
        link
    }

    #[test]
    fn interned_once_and_found_again() {
        let hops = Hops::default();
        let mac = Mac([2, 0, 0, 0, 0, 0xc0]);
        let id = hops.intern(InterfaceId(1), &link(mac));
        assert_ne!(id, HopId::UNKNOWN);
        assert_eq!(hops.intern(InterfaceId(1), &link(mac)), id);
        assert_ne!(hops.intern(InterfaceId(0), &link(mac)), id);
        assert_eq!(hops.get(id), Some((InterfaceId(1), mac)));
        assert!(hops.is(id, InterfaceId(1), &link(mac)) && !hops.is(id, InterfaceId(0), &link(mac)));
        assert!(!hops.is(id, InterfaceId(1), &link(Mac([2, 0, 0, 0, 0, 0xc1]))));
        assert_eq!(hops.get(HopId::UNKNOWN), None);
        assert!(!hops.is(HopId::UNKNOWN, InterfaceId(0), &link(Mac::default())));
    }

    #[test]
    fn full_is_unknown_not_wrong() {
        let hops = Hops::default();
        let mut unknown = 0;
        for n in 0..Hops::CAPACITY as u32 + 100 {
            let b = n.to_be_bytes();
            let mac = Mac([2, 0, b[0], b[1], b[2], b[3]]);
            match hops.intern(InterfaceId(0), &link(mac)) {
                HopId::UNKNOWN => unknown += 1,
                id => assert_eq!(hops.get(id), Some((InterfaceId(0), mac))),
            }
        }
        assert!(unknown >= 101, "more ids than room: {unknown}");
    }
}
