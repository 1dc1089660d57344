//! What the workers counted: taken over, estimated, zeroed, listed.

use std::sync::atomic::Ordering;

use super::Registry;
use crate::control::protocol::{DestinationListing, ServiceListing};
use crate::control::state::{Effect, ServiceEntry, State};
use crate::control::statistics::{Account, Totals};
use crate::service::{self, ServiceKey};

impl Registry {
    /// Takes over what the workers counted since the last time.
    pub fn collect(&mut self) {
        for index in 0..self.slots.len() {
            self.collect_slot(index);
        }
    }

    /// The estimator's tick, every 2 s. Collects first.
    pub fn tick_estimator(&mut self) {
        self.collect();
        self.slots.iter_mut().flatten().for_each(|slot| slot.account.tick());
        self.services.accounts().for_each(|(_, account)| account.tick());
    }

    /// `-Z`. Collects first.
    pub fn zero(&mut self, effect: &Effect) {
        let Effect::Zero(which) = effect else { return };
        self.collect();
        let all = which.is_none();
        for slot in self.slots.iter_mut().flatten() {
            if all || Some(slot.service) == *which {
                slot.account.zero();
            }
        }
        for (key, account) in self.services.accounts() {
            if all || Some(*key) == *which {
                account.zero();
            }
        }
    }

    /// The listing of one service or of all, in the order they were added. Collects first.
    pub fn list(&mut self, state: &State, only: Option<&ServiceKey>) -> Vec<ServiceListing> {
        self.collect();
        match only {
            Some(key) => state
                .service(key)
                .into_iter()
                .map(|entry| self.listing(entry))
                .collect(),
            None => state.services().map(|entry| self.listing(entry)).collect(),
        }
    }

    /// Takes over what the workers counted for one slot.
    pub(super) fn collect_slot(&mut self, index: usize) {
        let (Some(slot), Some(live)) = (&mut self.slots[index], &self.live[index]) else {
            return;
        };
        let now = Totals::sum(&live.counters);
        if now == slot.collected {
            return;
        }
        let came = now.since(slot.collected);
        slot.collected = now;
        slot.account.add(came);
        if let Some(account) = self.services.account(&slot.service, slot.incarnation) {
            account.add(came);
        }
    }

    fn listing(&self, entry: &ServiceEntry) -> ServiceListing {
        let key = entry.service.key;
        let account = self
            .services
            .get(&key)
            .map(|service| service.account)
            .unwrap_or_default();
        ServiceListing {
            service: entry.service.clone(),
            statistics: account.statistics(),
            destinations: entry
                .destinations()
                .map(|destination| self.destination_listing(key, destination))
                .collect(),
        }
    }

    fn destination_listing(&self, service: ServiceKey, destination: &service::Destination) -> DestinationListing {
        let mut listing = DestinationListing {
            destination: destination.clone(),
            active: 0,
            inactive: 0,
            persistent: 0,
            statistics: Account::default().statistics(),
        };
        let Some(id) = self.by_key.get(&(service, destination.key)) else {
            return listing;
        };
        if let (Some(slot), Some(live)) = (&self.slots[id.0 as usize], self.destination(*id)) {
            listing.active = live.load.active();
            listing.inactive = live.load.inactive();
            listing.persistent = live.load.persistent.load(Ordering::Relaxed);
            listing.statistics = slot.account.statistics();
        }
        listing
    }
}
