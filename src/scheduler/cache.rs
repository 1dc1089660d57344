//! What lblc and lblcr remember of each address that clients want. Shared by the workers, of fixed size, never waited for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// Addresses remembered at most; others are scheduled anew each time.
const ADDRESSES_MAX: usize = 4096;

/// By address. The lock is only ever tried: a worker that finds it taken decides without memory. A clone is the same memory, so
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
        let Ok(mut map) = self.0.try_lock() else {
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
