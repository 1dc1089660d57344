//! The live side of the [`State`]: slots of destinations, their loads and counters, schedulers, and the table.
//!
//! Words: a *slot* is the place of a destination in [`Table::destinations`]; it is *present* while the destination
//! is in its service, afterwards it is *trash* as long as connections to it live and a while longer. Adding the
//! same destination to the same service again revives the slot with its counts, as in the kernel.
//!
//! [`Registry::update`] takes the difference of two states; what did not change is shared with the table before.

mod counts;
mod defence;
mod marks;
mod tables;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::state::{ServiceEntry, State};
use super::statistics::{Account, Totals};
use crate::io::filter::Rule;
use crate::scheduler::{self, Candidate, Load, Loads, Schedule};
use crate::service::{self, DestinationKey, Method, ServiceKey, Tunnel};
use crate::table::{
    self, Counters, DestinationId, Interface, LocalAddresses, NatSources, Reach, Services, Supplies, Table, Way,
};

/// How long an idle removed destination can still be revived (IP_VS_DEST_TRASH_PERIOD).
const TRASH_MS: u64 = 120_000;

/// Makes the scheduler of a service for its candidates. `before` is the service as it was with the same scheduler, so
/// that a cursor can be carried over.
pub type BuildScheduler =
    fn(&service::Service, &[Candidate], before: Option<&table::Service>) -> Box<dyn Schedule + Send + Sync>;

/// The schedulers of [`crate::scheduler`], whose names [`State`] has checked.
pub fn build_scheduler(
    service: &service::Service,
    candidates: &[Candidate],
    before: Option<&table::Service>,
) -> Box<dyn Schedule + Send + Sync> {
    let before = before.map(|before| (&*before.scheduler as &dyn Schedule, &before.candidates[..]));
    let built = scheduler::build(&service.scheduler, &service.scheduler_flags, candidates, before);
    Box::new(built.expect("a state has schedulers of known names only"))
}

/// How destinations are reached.
pub trait Routes {
    /// How this address is reached at the moment; asks the kernel to resolve it when that is not known.
    fn reach(&mut self, destination: IpAddr) -> Reach;
}

/// All live numbers of services and destinations. Owned by the control thread.
pub struct Registry {
    workers: usize,
    loads: Loads,
    build: BuildScheduler,
    slots: Vec<Option<Slot>>,
    live: tables::Live,
    free: Vec<DestinationId>,
    trash: HashSet<DestinationId>,
    by_key: HashMap<(ServiceKey, DestinationKey), DestinationId, foldhash::fast::RandomState>,
    services: tables::LiveServices,
    nat_sources: Arc<NatSources>,
    supplies: Supplies,
    marks: marks::Marks,
    generation: u64,
    tables: tables::Tables,
    /// Destinations that came with the last change.
    awaited: Vec<DestinationId>,
}

struct Slot {
    service: ServiceKey,
    /// Of the service it was last present in.
    incarnation: u64,
    account: Account,
    /// Where the workers' counters stood when last collected.
    collected: Totals,
    /// When it was first seen as trash without connections.
    idle_since_ms: Option<u64>,
    /// Connections may still have the method that it had before: their replies are to be translated.
    was_nat: bool,
    /// Its weight, or while that is 0 the last above it since it was added.
    last_weight: u32,
}

struct LiveService {
    incarnation: u64,
    table: Arc<table::Service>,
    account: Account,
}

impl Registry {
    /// Nothing yet, for this many workers.
    pub fn new(workers: usize, build: BuildScheduler) -> Registry {
        Registry {
            workers,
            loads: Loads::new(workers),
            build,
            slots: Vec::new(),
            live: tables::Live::default(),
            free: Vec::new(),
            trash: HashSet::new(),
            by_key: HashMap::default(),
            services: tables::LiveServices::default(),
            nat_sources: Arc::default(),
            supplies: Supplies::default(),
            marks: marks::Marks::default(),
            generation: 0,
            tables: tables::Tables::default(),
            awaited: Vec::new(),
        }
    }

    /// Follows the change from one state to the next. `true`: what the filter must look for may have changed.
    pub fn update(&mut self, before: &State, after: &State, routes: &mut dyn Routes) -> bool {
        let mut nat_changed = self.forget_old_marks() | self.marks.follow(after.marks());
        self.awaited.clear();
        for old in before.services_changed(after) {
            let key = &old.service.key;
            match after.service(key) {
                Some(new) if new.incarnation == old.incarnation => {
                    nat_changed |= endpoints(old).ne(endpoints(new));
                    self.retire_missing(old, Some(new));
                }
                replacement => {
                    nat_changed = true;
                    self.retire_missing(old, replacement.map(|entry| &**entry));
                    self.services.remove(key);
                }
            }
        }
        for new in after.services_changed(before) {
            nat_changed |= !self.services.contains_key(&new.service.key);
            self.bring_in(new, routes);
        }
        if nat_changed {
            self.nat_sources = Arc::new(self.nat_sources_of(after));
        }
        nat_changed
    }

    /// What the filter must look for, `local` being the director's own addresses. Removed services and destinations
    /// count as long as connections to them live and there is any service at all: as in the kernel, which drops
    /// such clients' packets silently, and gives all back to the local stack when the last service is gone.
    ///
    /// Only services of the director's own addresses count, and of those that it `lost` a moment ago: the frames of others are
    /// the kernel's to forward, as those of a director that stands by for another are.
    pub fn filter_rules(&self, local: &LocalAddresses, lost: &HashSet<IpAddr>) -> HashSet<Rule> {
        let mut rules: HashSet<Rule> = local.hosts().map(Rule::Local).collect();
        if self.services.is_empty() {
            return rules;
        }
        let counted = local.with(lost);
        let ours = |service: &ServiceKey| match service {
            ServiceKey::Address { address, .. } => counted.contains(address),
            ServiceKey::FwMark { .. } => true,
        };
        let mut wanted = marks::Wanted::default();
        for key in self.services.keys() {
            wanted.add(key, false);
        }
        for (slot, live) in self.slots.iter().zip(self.live.iter()) {
            let (Some(slot), Some(live)) = (slot, live) else {
                continue;
            };
            let (ours, connected) = (ours(&slot.service), connections(&live.load) > 0);
            let used = live.present && ours || connected;
            if connected {
                wanted.add(&slot.service, true);
            }
            if used && (live.method == Method::Masq || slot.was_nat) {
                rules.extend(self.nat_rules(&slot.service, &live.key));
            }
            if used && live.method == Method::Tunnel {
                rules.insert(Rule::TunnelDestination(live.key.address));
            }
        }
        rules.extend(self.marks.service_rules(&wanted, &counted));
        rules
    }

    /// The neighbour of a destination that came with the last change is being resolved.
    pub fn is_resolving(&self) -> bool {
        let live = self.awaited.iter().filter_map(|id| self.destination(*id));
        live.into_iter()
            .any(|live| live.present && live.reach == Reach::Resolving)
    }

    /// Generation of the last table.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The next table. It is made of the one before the last, by what has changed, unless somebody still has that.
    pub fn table(&mut self, state: &State, interfaces: Arc<[Interface]>, local: Arc<LocalAddresses>) -> Arc<Table> {
        self.generation += 1;
        self.marks.compile(&interfaces);
        let rest = self.rest(state, interfaces, local);
        self.tables.next(&mut self.live, &mut self.services, rest)
    }

    /// The last changes stay: what they removed need not come back with its numbers.
    pub fn settle(&mut self) {
        self.services.settle();
    }

    /// The workers have the last table, and have given back the one before.
    pub fn taken(&mut self) {
        self.tables.recycle(&self.live, &self.services);
    }

    /// The table as it is, to be looked at.
    pub fn view(&self, state: &State, interfaces: Arc<[Interface]>, local: Arc<LocalAddresses>) -> Table {
        tables::table(&self.live, &self.services, self.rest(state, interfaces, local))
    }

    /// A table but for services and destinations.
    fn rest(&self, state: &State, interfaces: Arc<[Interface]>, local: Arc<LocalAddresses>) -> Table {
        Table {
            generation: self.generation,
            services: Services::default(),
            destinations: Vec::new(),
            nat_sources: self.nat_sources.clone(),
            interfaces,
            local,
            timeouts: state.timeouts,
            sysctls: state.sysctls.clone(),
            defence: self.defence(state),
            classifier: self.marks.compiled(),
            mss_clamp: state.mss_clamp,
        }
    }

    /// Asks anew how every destination is reached; `true` when any answer changed, so that a new table is due.
    pub fn refresh_reach(&mut self, routes: &mut dyn Routes) -> bool {
        let mut answers: HashMap<IpAddr, Reach> = HashMap::new();
        let mut changed = false;
        for place in 0..self.live.len() {
            let Some(live) = &self.live[place] else { continue };
            let address = live.key.address;
            let reach = *answers.entry(address).or_insert_with(|| routes.reach(address));
            if live.reach != reach {
                self.live.change(DestinationId(place as u32), |live| live.reach = reach);
                changed = true;
            }
        }
        changed
    }

    /// Forgets removed destinations that nobody came back to, about once a second. `true` when the filter's rules
    /// or the slots changed: tell filter and workers.
    pub fn sweep_trash(&mut self, now_ms: u64) -> bool {
        let mut gone = Vec::new();
        let mut idle = self.forget_old_marks();
        for (slot, live) in self.slots.iter_mut().zip(self.live.iter()) {
            if let (Some(slot), Some(live)) = (slot, live)
                && slot.was_nat
                && connections(&live.load) == 0
            {
                slot.was_nat = false;
                idle = true;
            }
        }
        for id in &self.trash {
            let index = id.0 as usize;
            let (Some(slot), Some(live)) = (&mut self.slots[index], &self.live[index]) else {
                continue;
            };
            if connections(&live.load) > 0 {
                slot.idle_since_ms = None;
                continue;
            }
            idle |= slot.idle_since_ms.is_none();
            if now_ms.saturating_sub(*slot.idle_since_ms.get_or_insert(now_ms)) >= TRASH_MS {
                gone.push((*id, slot.service, live.key));
            }
        }
        for (id, service, key) in &gone {
            self.trash.remove(id);
            self.by_key.remove(&(*service, *key));
            self.slots[id.0 as usize] = None;
            self.live.put(*id, None);
            self.free.push(*id);
        }
        idle || !gone.is_empty()
    }

    /// The slot of the destination that a recovered connection entry belongs to, `services` being those that it can
    /// belong to, the likeliest first. A trash slot is made for one that no service has any more. Call before the
    /// workers start.
    pub fn slot_of_entry(
        &mut self,
        services: &[ServiceKey],
        destination: DestinationKey,
        method: Method,
        routes: &mut dyn Routes,
    ) -> DestinationId {
        // Destinations of services with port 0 keep the client's port unless they have their own.
        let any_port = DestinationKey { port: 0, ..destination };
        let candidates = services
            .iter()
            .flat_map(|service| [(*service, destination), (*service, any_port)]);
        for candidate in candidates {
            if let Some(id) = self.by_key.get(&candidate) {
                if let Some(slot) = &mut self.slots[id.0 as usize] {
                    slot.was_nat |= method == Method::Masq;
                }
                return *id;
            }
        }
        if let Some(id) = services
            .iter()
            .find_map(|service| self.by_address_alone(service, &destination))
        {
            return id;
        }
        let gone = service::Destination {
            key: destination,
            method,
            weight: 0,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: Tunnel::default(),
        };
        let id = self.new_slot(services[0], u64::MAX, &gone, routes);
        self.set_absent(id);
        id
    }

    /// A persistent service that is for several ports keeps the client's port, and FTP's data connections have one of their
    /// own: they do not tell their destination's.
    fn by_address_alone(&mut self, key: &ServiceKey, destination: &DestinationKey) -> Option<DestinationId> {
        let service = &self.services.get(key)?.table;
        let several_ports = key.port() == 0 && service.persistence.is_some() || key.is_ftp();
        if !several_ports {
            return None;
        }
        let mut candidates = service.candidates.iter();
        let place = candidates.position(|candidate| candidate.key.address == destination.address)?;
        service.ids.get(place).copied()
    }

    /// A destination by its slot, as the workers see it.
    pub fn destination(&self, id: DestinationId) -> Option<&Arc<table::Destination>> {
        self.live.get(id.0 as usize)?.as_ref()
    }

    /// Slots by number, those of removed destinations included.
    pub fn destinations(&self) -> &[Option<Arc<table::Destination>>] {
        &self.live
    }

    /// Destinations of `old` that `new` has no more become trash.
    fn retire_missing(&mut self, old: &ServiceEntry, new: Option<&ServiceEntry>) {
        let kept: HashSet<DestinationKey> = new
            .map(|entry| entry.destinations().map(|d| d.key).collect())
            .unwrap_or_default();
        for destination in old.destinations().filter(|d| !kept.contains(&d.key)) {
            if let Some(id) = self.by_key.get(&(old.service.key, destination.key)) {
                self.set_absent(*id);
            }
        }
    }

    fn set_absent(&mut self, id: DestinationId) {
        self.live.change(id, |live| live.present = false);
        self.trash.insert(id);
    }

    /// A new or changed service with all its destinations.
    fn bring_in(&mut self, entry: &ServiceEntry, routes: &mut dyn Routes) {
        let key = entry.service.key;
        let mut ids = Vec::with_capacity(entry.destinations().len());
        let mut candidates = Vec::with_capacity(entry.destinations().len());
        // Oldest first, as if they came one by one: so their loads lie in the order of the list (see `Loads`).
        for destination in entry.destinations().rev() {
            let id = self.bring_in_destination(key, entry.incarnation, destination, routes);
            let Some(live) = self.destination(id) else { continue };
            let load = live.load.clone();
            candidates.push(Candidate {
                key: destination.key,
                weight: destination.weight,
                upper_threshold: destination.upper_threshold,
                lower_threshold: destination.lower_threshold,
                last_weight: self.last_weight(id),
                edits: entry.edits,
                load,
            });
            ids.push(id);
        }
        candidates.reverse();
        ids.reverse();
        let before = self.services.take(&key, entry.incarnation);
        let scheduler = (self.build)(&entry.service, &candidates, before.as_ref().map(|s| &*s.table));
        let table = Arc::new(table::Service {
            key,
            scheduler,
            candidates,
            ids,
            persistence: entry.service.persistence,
            one_packet: entry.service.one_packet,
            sip: entry.service.persistence_engine.as_deref() == Some(service::SIP),
        });
        let live = LiveService {
            incarnation: entry.incarnation,
            table,
            account: before.map(|s| s.account).unwrap_or_default(),
        };
        self.services.insert(key, live);
    }

    fn bring_in_destination(
        &mut self,
        service: ServiceKey,
        incarnation: u64,
        wanted: &service::Destination,
        routes: &mut dyn Routes,
    ) -> DestinationId {
        let Some(&id) = self.by_key.get(&(service, wanted.key)) else {
            let id = self.new_slot(service, incarnation, wanted, routes);
            self.awaited.push(id);
            return id;
        };
        self.trash.remove(&id);
        // Traffic so far belongs to the service that was there before.
        self.collect_slot(id.0 as usize);
        let was_present = self.destination(id).is_some_and(|live| live.present);
        if !was_present {
            self.awaited.push(id);
        }
        if let Some(slot) = &mut self.slots[id.0 as usize] {
            if wanted.weight > 0 || !was_present || slot.incarnation != incarnation {
                slot.last_weight = wanted.weight;
            }
            slot.idle_since_ms = None;
            if slot.incarnation != incarnation {
                // Another service of the same name: connections and their counts stay, statistics do not.
                slot.incarnation = incarnation;
                slot.account.zero();
            }
        }
        if let Some(live) = &self.live[id.0 as usize]
            && !same(live, wanted)
        {
            // The kernel lifts the overload when the limit goes up or away.
            if wanted.upper_threshold == 0 || wanted.upper_threshold > live.upper_threshold {
                live.load.overloaded.store(false, Ordering::Relaxed);
            }
            if let Some(slot) = &mut self.slots[id.0 as usize] {
                slot.was_nat |= live.method == Method::Masq && wanted.method != Method::Masq;
            }
            self.live.change(id, |live| {
                live.present = true;
                live.method = wanted.method;
                live.tunnel = wanted.tunnel;
                live.weight = wanted.weight;
                live.upper_threshold = wanted.upper_threshold;
                live.lower_threshold = wanted.lower_threshold;
                live.reach = routes.reach(wanted.key.address);
            });
        }
        id
    }

    fn last_weight(&self, id: DestinationId) -> u32 {
        let slot = self.slots[id.0 as usize].as_ref();
        slot.map_or(0, |slot| slot.last_weight)
    }

    fn new_slot(
        &mut self,
        service: ServiceKey,
        incarnation: u64,
        wanted: &service::Destination,
        routes: &mut dyn Routes,
    ) -> DestinationId {
        let slot = Slot {
            service,
            incarnation,
            account: Account::default(),
            collected: Totals::default(),
            idle_since_ms: None,
            was_nat: false,
            last_weight: wanted.weight,
        };
        let live = table::Destination {
            key: wanted.key,
            method: wanted.method,
            tunnel: wanted.tunnel,
            reach: routes.reach(wanted.key.address),
            present: true,
            weight: wanted.weight,
            upper_threshold: wanted.upper_threshold,
            lower_threshold: wanted.lower_threshold,
            way: Way::default(),
            load: Arc::new(self.loads.make()),
            counters: (0..self.workers).map(|_| Counters::default()).collect(),
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id.0 as usize] = Some(slot);
                self.live.put(id, Some(live));
                id
            }
            None => {
                self.slots.push(Some(slot));
                self.live.push(live)
            }
        };
        self.by_key.insert((service, wanted.key), id);
        id
    }
}

/// The workers already see it so.
fn same(live: &table::Destination, wanted: &service::Destination) -> bool {
    live.present
        && live.method == wanted.method
        && live.tunnel == wanted.tunnel
        && live.weight == wanted.weight
        && live.upper_threshold == wanted.upper_threshold
        && live.lower_threshold == wanted.lower_threshold
}

/// Entries that belong to the destination.
fn connections(load: &Load) -> u64 {
    load.total() as u64 + load.persistent.load(Ordering::Relaxed) as u64
}

fn endpoints(entry: &ServiceEntry) -> impl Iterator<Item = (DestinationKey, Method)> {
    entry.destinations().map(|d| (d.key, d.method))
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
