//! Destinations and tables by turns: the next table is made of the one before the last, which no worker has any more, with
//! what was touched since. So a change costs what it changes and not what there is.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use super::LiveService;
use crate::service::ServiceKey;
use crate::table::{Destination, DestinationId, Table};

type LiveServices = HashMap<ServiceKey, LiveService>;

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
        self.slots.push(Some(Arc::new(destination)));
        self.touched.push(id);
        id
    }

    /// A slot gets another destination, or none.
    pub(super) fn put(&mut self, id: DestinationId, destination: Option<Destination>) {
        self.slots[id.0 as usize] = destination.map(Arc::new);
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

/// What a table does not know yet.
#[derive(Default)]
struct Touched {
    slots: Vec<DestinationId>,
    services: Vec<ServiceKey>,
}

/// The last two tables.
#[derive(Default)]
pub(super) struct Turns {
    last: Arc<Table>,
    /// Nobody else's, when the workers have taken the last.
    before: Arc<Table>,
    /// Since the last.
    touched: Touched,
    /// Between the two.
    touched_before: Touched,
}

impl Turns {
    /// A service came, changed or went.
    pub(super) fn touch(&mut self, service: &ServiceKey) {
        self.touched.services.push(*service);
    }

    /// The next table, with destinations and services as they are now.
    pub(super) fn next(&mut self, live: &mut Live, services: &LiveServices, rest: Table) -> Arc<Table> {
        self.touched.slots.append(&mut live.touched);
        let next = match Arc::get_mut(&mut self.before) {
            Some(before) => {
                self.touched_before.bring_into(before, live, services);
                self.touched.bring_into(before, live, services);
                debug_assert!(shares_all(before, &table(live, services, Table::default())));
                Table {
                    services: std::mem::take(&mut before.services),
                    destinations: std::mem::take(&mut before.destinations),
                    ..rest
                }
            }
            None => table(live, services, rest),
        };
        let next = Arc::new(next);
        self.before = std::mem::replace(&mut self.last, next.clone());
        self.touched_before = std::mem::take(&mut self.touched);
        next
    }
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

/// The table from the start.
pub(super) fn table(live: &Live, services: &LiveServices, rest: Table) -> Table {
    debug_assert!(live.iter().flatten().all(|live| live.is_prepared()));
    Table {
        services: services.values().map(|service| service.table.clone()).collect(),
        destinations: live.to_vec(),
        ..rest
    }
}

/// Both have the very same destinations and services.
pub(super) fn shares_all(a: &Table, b: &Table) -> bool {
    let destinations = |table: &Table| -> Vec<_> {
        let places = table.destinations.iter();
        places.map(|place| place.as_ref().map(Arc::as_ptr)).collect()
    };
    let services = |table: &Table| -> HashSet<_> { table.services.iter().map(Arc::as_ptr).collect() };
    destinations(a) == destinations(b) && services(a) == services(b)
}
