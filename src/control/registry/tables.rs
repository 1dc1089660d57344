//! What the tables of the workers are made of, and the last two of them. A table that the workers have given back becomes the next
//! one, by what was touched since: to copy all pointers of all destinations took longer than all else that a command costs.

use std::collections::HashMap;
use std::mem;
use std::ops::Deref;
use std::sync::Arc;

use super::LiveService;
use crate::control::statistics::Account;
use crate::service::ServiceKey;
use crate::table::{Destination, DestinationId, Table};

/// What the workers see of each slot, and which of them were touched.
#[derive(Default)]
pub(super) struct Live {
    slots: Vec<Option<Arc<Destination>>>,
    touched: Vec<DestinationId>,
}

impl Deref for Live {
    type Target = [Option<Arc<Destination>>];

    fn deref(&self) -> &[Option<Arc<Destination>>] {
        &self.slots
    }
}

impl Live {
    /// A further slot.
    pub(super) fn push(&mut self, destination: Destination) -> DestinationId {
        let id = DestinationId(self.slots.len() as u32);
        self.slots.push(None);
        self.put(id, Some(destination));
        id
    }

    /// A slot gets another destination, or none.
    pub(super) fn put(&mut self, id: DestinationId, destination: Option<Destination>) {
        self.slots[id.0 as usize] = destination.map(|destination| Arc::new(destination.prepared()));
        self.touched.push(id);
    }

    /// Changes a destination, and what follows from it.
    pub(super) fn change(&mut self, id: DestinationId, change: impl FnOnce(&mut Destination)) {
        if let Some(live) = &mut self.slots[id.0 as usize] {
            let live = Arc::make_mut(live);
            change(live);
            live.prepare();
            self.touched.push(id);
        }
    }
}

/// The services, and which of them were touched.
#[derive(Default)]
pub(super) struct LiveServices {
    services: HashMap<ServiceKey, LiveService>,
    /// Taken out by a change that may be undone.
    removed: HashMap<ServiceKey, LiveService>,
    touched: Vec<ServiceKey>,
}

impl Deref for LiveServices {
    type Target = HashMap<ServiceKey, LiveService>;

    fn deref(&self) -> &HashMap<ServiceKey, LiveService> {
        &self.services
    }
}

impl LiveServices {
    /// Adds a service, in the place of that with its key.
    pub(super) fn insert(&mut self, key: ServiceKey, service: LiveService) {
        self.services.insert(key, service);
        self.touched.push(key);
    }

    /// Takes a service out, which comes back by `take` when the change is undone.
    pub(super) fn remove(&mut self, key: &ServiceKey) {
        self.touched.push(*key);
        self.removed.extend(self.services.remove_entry(key));
    }

    /// Takes out this incarnation of a service, for another to come in its place.
    pub(super) fn take(&mut self, key: &ServiceKey, incarnation: u64) -> Option<LiveService> {
        self.touched.push(*key);
        let all = [&mut self.services, &mut self.removed];
        let mut found = all.into_iter().filter_map(|services| services.remove(key));
        found.find(|service| service.incarnation == incarnation)
    }

    /// No change is undone any more.
    pub(super) fn settle(&mut self) {
        self.removed = HashMap::new();
    }

    /// Their accounts, which no table has.
    pub(super) fn accounts(&mut self) -> impl Iterator<Item = (&ServiceKey, &mut Account)> {
        self.services
            .iter_mut()
            .map(|(key, service)| (key, &mut service.account))
    }

    /// The account of a service while it is this incarnation.
    pub(super) fn account(&mut self, key: &ServiceKey, incarnation: u64) -> Option<&mut Account> {
        let service = self.services.get_mut(key)?;
        (service.incarnation == incarnation).then_some(&mut service.account)
    }
}

/// What a table does not know yet.
#[derive(Default)]
struct Touched {
    slots: Vec<DestinationId>,
    services: Vec<ServiceKey>,
}

impl Touched {
    fn bring_into(&self, table: &mut Table, live: &Live, services: &LiveServices) {
        table.destinations.resize(live.len(), None);
        for id in &self.slots {
            let place = id.0 as usize;
            table.destinations[place].clone_from(&live[place]);
        }
        for key in &self.services {
            match services.get(key) {
                Some(service) => table.services.put(service.table.clone()),
                None => table.services.remove(key),
            }
        }
    }
}

/// The last two tables.
#[derive(Default)]
pub(super) struct Tables {
    current: Arc<Table>,
    /// The one before. Nobody else's, when the workers have taken the current one.
    spare: Arc<Table>,
    /// What the spare does not know of the current one.
    behind: Touched,
}

impl Tables {
    /// The next table: destinations and services as they are now, and the rest of `rest`.
    pub(super) fn next(&mut self, live: &mut Live, services: &mut LiveServices, rest: Table) -> Arc<Table> {
        let touched = Touched {
            slots: mem::take(&mut live.touched),
            services: mem::take(&mut services.touched),
        };
        let next = match Arc::get_mut(&mut self.spare) {
            Some(spare) => {
                self.behind.bring_into(spare, live, services);
                touched.bring_into(spare, live, services);
                debug_assert!(spare.shares_all_with(&table(live, services, Table::default())));
                Table {
                    services: mem::take(&mut spare.services),
                    destinations: mem::take(&mut spare.destinations),
                    ..rest
                }
            }
            None => table(live, services, rest),
        };
        let next = Arc::new(next);
        self.spare = mem::replace(&mut self.current, next.clone());
        self.behind = touched;
        next
    }

    /// Makes the spare what the current table is, when nobody else has it any more: it keeps nothing that is gone, and the next
    /// change finds it ready.
    pub(super) fn recycle(&mut self, live: &Live, services: &LiveServices) {
        if let Some(spare) = Arc::get_mut(&mut self.spare) {
            mem::take(&mut self.behind).bring_into(spare, live, services);
            *spare = Table {
                services: mem::take(&mut spare.services),
                destinations: mem::take(&mut spare.destinations),
                ..Table::default()
            };
        }
    }
}

/// A table made from the start.
pub(super) fn table(live: &Live, services: &LiveServices, rest: Table) -> Table {
    debug_assert!(live.iter().flatten().all(|live| live.is_prepared()));
    Table {
        services: services.values().map(|service| service.table.clone()).collect(),
        destinations: live.to_vec(),
        ..rest
    }
}
