//! What lblc and lblcr remember of each address that clients want. Shared by the workers, of fixed size, never waited for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;

/// Addresses remembered at most; others are scheduled anew each time.
const ADDRESSES_MAX: usize = 4096;

/// By address. The lock is only ever tried: a worker that finds it taken decides without memory.
#[derive(Debug)]
pub(super) struct Cache<V>(Mutex<HashMap<IpAddr, V, foldhash::fast::RandomState>>);

impl<V> Default for Cache<V> {
    fn default() -> Self {
        // Nothing is allocated later.
        Cache(Mutex::new(HashMap::with_capacity_and_hasher(
            ADDRESSES_MAX,
            Default::default(),
        )))
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

    /// A copy with every value changed, or left out. For the control thread, which does wait.
    pub fn map(&self, change: impl Fn(&V) -> Option<V>) -> Cache<V> {
        let copy = Cache::default();
        let values = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let mut changed = copy.0.lock().unwrap_or_else(|e| e.into_inner());
        changed.extend(
            values
                .iter()
                .filter_map(|(address, value)| Some((*address, change(value)?))),
        );
        drop(changed);
        copy
    }
}
