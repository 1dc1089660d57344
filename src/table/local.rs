//! Addresses that the director's own stack takes as its own.

use std::collections::HashSet;
use std::net::IpAddr;

/// The director's own addresses: single ones, and whole prefixes (`ip route add local PREFIX dev lo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalAddresses {
    hosts: HashSet<IpAddr, foldhash::fast::RandomState>,
    prefixes: Vec<(IpAddr, u8)>,
    /// Bit n: a host has the number n of [`bucket`]. Asked for each new connection: most clients' addresses go no further.
    some: [u64; 16],
}

impl LocalAddresses {
    /// Of these addresses, and these prefixes with their lengths in bits.
    pub fn new(
        hosts: impl IntoIterator<Item = IpAddr>,
        prefixes: impl IntoIterator<Item = (IpAddr, u8)>,
    ) -> LocalAddresses {
        let mut prefixes: Vec<_> = prefixes.into_iter().collect();
        // In one order, so that equal ones compare so.
        prefixes.sort_unstable();
        prefixes.dedup();
        LocalAddresses::of(hosts.into_iter().collect(), prefixes)
    }

    fn of(hosts: HashSet<IpAddr, foldhash::fast::RandomState>, prefixes: Vec<(IpAddr, u8)>) -> LocalAddresses {
        let mut some = [0; 16];
        for host in &hosts {
            let n = bucket(host);
            some[n / 64] |= 1 << (n % 64);
        }
        LocalAddresses { hosts, prefixes, some }
    }

    /// Whether it is one of them.
    #[inline(always)]
    pub fn contains(&self, address: &IpAddr) -> bool {
        let n = bucket(address);
        let may_be_host = self.some[n / 64] >> (n % 64) & 1 != 0;
        (may_be_host || !self.prefixes.is_empty()) && self.has(address)
    }

    #[inline(never)]
    fn has(&self, address: &IpAddr) -> bool {
        self.hosts.contains(address) || self.prefixes.iter().any(|prefix| within(*address, *prefix))
    }

    /// The same and these.
    pub fn with(&self, more: &HashSet<IpAddr>) -> LocalAddresses {
        let hosts = self.hosts.iter().chain(more).copied().collect();
        LocalAddresses::of(hosts, self.prefixes.clone())
    }

    /// The prefixes, with their lengths in bits.
    pub fn prefixes(&self) -> impl Iterator<Item = (IpAddr, u8)> {
        self.prefixes.iter().copied()
    }

    /// The single ones.
    pub fn hosts(&self) -> impl Iterator<Item = IpAddr> {
        self.hosts.iter().copied()
    }
}

/// A number below 1024, of hosts side by side different ones.
#[inline(always)]
fn bucket(address: &IpAddr) -> usize {
    let bits = match address {
        IpAddr::V4(v4) => v4.to_bits() as u64,
        IpAddr::V6(v6) => v6.to_bits() as u64 ^ (v6.to_bits() >> 64) as u64,
    };
    (bits ^ bits >> 10 ^ bits >> 20) as usize % 1024
}

fn within(address: IpAddr, (network, length): (IpAddr, u8)) -> bool {
    let (bits, difference) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (32, u128::from(a.to_bits() ^ b.to_bits())),
        (IpAddr::V6(a), IpAddr::V6(b)) => (128, a.to_bits() ^ b.to_bits()),
        _ => return false,
    };
    let host_bits = bits - u32::from(length).min(bits);
    difference.checked_shr(host_bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_prefixes() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let prefixes = [
            (ip("127.0.0.0"), 8),
            (ip("198.51.100.128"), 25),
            (ip("2001:db8:1::"), 48),
        ];
        let local = LocalAddresses::new([ip("192.0.2.1")], prefixes);
        for ours in ["192.0.2.1", "127.9.9.9", "198.51.100.129", "2001:db8:1:2::3"] {
            assert!(local.contains(&ip(ours)), "{ours}");
        }
        for other in ["192.0.2.2", "128.0.0.1", "198.51.100.127", "2001:db8:2::1", "::1"] {
            assert!(!local.contains(&ip(other)), "{other}");
        }
        assert!(LocalAddresses::new([], [(ip("0.0.0.0"), 0)]).contains(&ip("192.0.2.9")));
        assert!(!LocalAddresses::new([], [(ip("::"), 0)]).contains(&ip("192.0.2.9")));
    }
}
