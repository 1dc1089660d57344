//! What lblc and lblcr remember of each address that clients want. Shared by the workers, of fixed size, waited for briefly.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// Addresses remembered at most; others are scheduled anew each time.
const ADDRESSES_MAX: usize = 4096;

/// Tries of a lock that another worker holds for as long as a choice takes. Who holds it longer does not run.
const TRIES: usize = 10_000;

/// By address. A worker sleeps for no lock: if its holder does not run, it decides without memory. A clone is the same memory, so
/// the scheduler of a changed list has what the one before it had.
#[derive(Debug)]
pub(super) struct Cache<V>(Arc<Mutex<HashMap<IpAddr, V, foldhash::fast::RandomState>>>);

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Cache(self.0.clone())
    }
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        // Nothing is allocated later.
        let map = HashMap::with_capacity_and_hasher(ADDRESSES_MAX, Default::default());
        Cache(Arc::new(Mutex::new(map)))
    }
}

impl<V> Cache<V> {
    /// Gives `decide` what is remembered of the address, and remembers the second value that it returns.
    pub fn update<R>(&self, address: IpAddr, decide: impl FnOnce(Option<&V>) -> (R, Option<V>)) -> R {
        let mut tries = (0..TRIES).inspect(|_| std::hint::spin_loop());
        let locked = self
            .0
            .try_lock()
            .ok()
            .or_else(|| tries.find_map(|_| self.0.try_lock().ok()));
        let Some(mut map) = locked else {
            return decide(None).0;
        };
        let (result, value) = decide(map.get(&address));
        if let Some(value) = value
            && (map.len() < ADDRESSES_MAX || map.contains_key(&address))
        {
            map.insert(address, value);
        }
        result
    }

    /// What is remembered of the address. For the control thread: a worker that comes in this moment decides without memory.
    pub fn peek<R>(&self, address: IpAddr, look: impl FnOnce(Option<&V>) -> R) -> R {
        let map = self.0.lock().unwrap_or_else(|e| e.into_inner());
        look(map.get(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_beyond_the_bound_are_not_remembered() {
        let cache = Cache::default();
        let remembered = |n: u32| {
            let address = IpAddr::from(std::net::Ipv4Addr::from_bits(n));
            cache.update(address, |before| (before.copied(), Some(n)))
        };
        let all = ADDRESSES_MAX as u32;
        assert!((0..all + 10).all(|n| remembered(n).is_none()));
        assert!((0..all).all(|n| remembered(n) == Some(n)));
        assert!((all..all + 10).all(|n| remembered(n).is_none()));
    }
}
