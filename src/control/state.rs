//! What the operator asked for: services in the order they were added, their destinations, timeouts, settings.
//!
//! Plain data without live numbers, and [`State::apply`] is pure: a command gives a new state or an error, never
//! half of a change. Clones share everything by `Arc`, so a batch of thousands of commands copies the lists once
//! and a single edit among thousands of destinations copies pointers only.
//!
//! Refusals are the kernel's (`ip_vs_ctl.c` of Linux 6.1, by behaviour), plus limits of uvs's own.

mod marks;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::protocol::{Command, CommandError};
use crate::packet::Family;
use crate::scheduler;
use crate::service::{
    Destination, DestinationKey, MarkRule, Method, PERSISTENCE_ENGINES, Persistence, Service, ServiceKey, Timeouts,
    TunnelKind,
};
use crate::table::Sysctls;

/// Services at most.
pub const SERVICES_MAX: usize = 65_536;
/// Destinations at most, over all services.
pub const DESTINATIONS_MAX: usize = 65_536;
/// The largest weight.
pub const WEIGHT_MAX: u32 = i32::MAX as u32;

/// Scheduler flags by their listed names.
const SCHEDULER_FLAGS: &[&str] = &[
    "sh-fallback",
    "sh-port",
    "mh-fallback",
    "mh-port",
    "flag-1",
    "flag-2",
    "flag-3",
];

/// A service and its destinations. Another incarnation of the same key has another number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Number of the `-A` that made it: services are listed in this order.
    pub incarnation: u64,
    /// As configured.
    pub service: Service,
    /// How often a destination was edited.
    pub edits: u64,
    /// Oldest first, because adding at the end is cheap: [`ServiceEntry::destinations`] turns them round.
    oldest_first: Vec<Destination>,
}

impl ServiceEntry {
    /// The destinations in the kernel's order: newest first.
    pub fn destinations(&self) -> impl DoubleEndedIterator<Item = &Destination> + ExactSizeIterator {
        self.oldest_first.iter().rev()
    }

    /// One of them.
    pub fn destination(&self, key: &DestinationKey) -> Option<&Destination> {
        self.oldest_first.iter().find(|destination| destination.key == *key)
    }
}

/// What a command does beside changing the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Statistics start again at zero, of one service or of all.
    Zero(Option<ServiceKey>),
}

/// Everything the operator asked for. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct State {
    /// By incarnation, so in the order they were added.
    services: Arc<Vec<Arc<ServiceEntry>>>,
    index: Arc<HashMap<ServiceKey, u64>>,
    /// The next service's incarnation.
    next: u64,
    destinations: usize,
    /// `--set`.
    pub timeouts: Timeouts,
    /// `net.ipv4.vs.*`.
    pub sysctls: Arc<Sysctls>,
    /// Rules of the classifier, in order.
    marks: Arc<Vec<MarkRule>>,
    /// `mss_clamp`.
    pub mss_clamp: bool,
}

impl State {
    /// The services in the order they were added.
    pub fn services(&self) -> impl DoubleEndedIterator<Item = &Arc<ServiceEntry>> + ExactSizeIterator {
        self.services.iter()
    }

    /// One of them.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<ServiceEntry>> {
        self.services.get(self.place(*self.index.get(key)?)?)
    }

    /// The services that `other` does not have exactly so: all else was not touched in between. Compares numbers and
    /// pointers only.
    pub fn services_changed<'a>(&'a self, other: &'a State) -> impl Iterator<Item = &'a Arc<ServiceEntry>> {
        let mut there = other.services.iter().peekable();
        self.services.iter().filter(move |entry| {
            // What is shared is mostly in the same place; a look into it would be a cache line each.
            let is_same = |there: &&Arc<ServiceEntry>| Arc::ptr_eq(there, entry);
            if there.next_if(is_same).is_some() {
                return false;
            }
            while there.next_if(|there| there.incarnation < entry.incarnation).is_some() {}
            there.next_if(is_same).is_none()
        })
    }

    /// Destinations of all services.
    pub fn destinations_count(&self) -> usize {
        self.destinations
    }

    /// The state after one command.
    pub fn apply(&self, command: &Command) -> Result<(State, Effect), CommandError> {
        let mut state = self.clone();
        let effect = state.change(command)?;
        Ok((state, effect))
    }

    /// The state after many commands, one result each: a refused one changes nothing and the rest goes on, unless
    /// `all_or_nothing`, where the first refusal ends it and the state is as before.
    pub fn apply_all(&self, commands: &[Command], all_or_nothing: bool) -> Applied {
        let mut applied = Applied {
            state: self.clone(),
            results: Vec::with_capacity(commands.len()),
            effects: Vec::new(),
        };
        for command in commands {
            match applied.state.change(command) {
                Ok(Effect::None) => applied.results.push(None),
                Ok(effect) => {
                    applied.effects.push(effect);
                    applied.results.push(None);
                }
                Err(error) => {
                    applied.results.push(Some(error));
                    if all_or_nothing {
                        applied.state = self.clone();
                        applied.effects.clear();
                        return applied;
                    }
                }
            }
        }
        applied
    }

    /// The commands that make this state out of an empty one, oldest first.
    pub fn commands(&self) -> Vec<Command> {
        let mut commands = Vec::with_capacity(self.services.len() + self.destinations);
        if self.timeouts != Timeouts::default() {
            commands.push(Command::SetTimeouts(self.timeouts));
        }
        for (name, value) in self.sysctls.changed() {
            commands.push(Command::SetSysctl {
                name: name.to_owned(),
                value,
            });
        }
        if !self.marks.is_empty() {
            commands.push(Command::SetMarks {
                rules: self.marks.to_vec(),
            });
        }
        if self.mss_clamp {
            commands.push(Command::SetMssClamp { on: true });
        }
        for entry in self.services() {
            commands.push(Command::AddService(entry.service.clone()));
            commands.extend(entry.oldest_first.iter().map(|destination| Command::AddDestination {
                service: entry.service.key,
                destination: destination.clone(),
            }));
        }
        commands
    }

    /// Changes this state, or refuses and leaves it as it was.
    fn change(&mut self, command: &Command) -> Result<Effect, CommandError> {
        match command {
            Command::AddService(service) => self.add_service(service)?,
            Command::EditService(service) => self.edit_service(service)?,
            Command::DeleteService { service } => self.delete_service(service)?,
            Command::Clear => self.clear(),
            Command::AddDestination { service, destination } => self.add_destination(service, destination)?,
            Command::EditDestination { service, destination } => self.edit_destination(service, destination)?,
            Command::DeleteDestination { service, destination } => self.delete_destination(service, destination)?,
            Command::Zero { service } => {
                if let Some(key) = service {
                    self.service(key).ok_or(CommandError::NoSuchService)?;
                }
                return Ok(Effect::Zero(*service));
            }
            Command::SetTimeouts(timeouts) => self.set_timeouts(*timeouts)?,
            Command::SetSysctl { name, value } => {
                let mut sysctls = Sysctls::clone(&self.sysctls);
                let set = sysctls.set(name, value);
                set.map_err(|error| CommandError::Invalid(error.to_string()))?;
                self.sysctls = Arc::new(sysctls);
            }
            Command::AddMark { rule, at } => self.add_mark(rule, *at)?,
            Command::DeleteMark { which } => self.delete_mark(which)?,
            Command::SetMarks { rules } => self.set_marks(rules)?,
            Command::SetMssClamp { on } => self.mss_clamp = *on,
        }
        Ok(Effect::None)
    }

    fn add_service(&mut self, service: &Service) -> Result<(), CommandError> {
        if self.index.contains_key(&service.key) {
            return Err(CommandError::ServiceExists);
        }
        check_service(service)?;
        if self.services.len() >= SERVICES_MAX {
            return Err(CommandError::Limit(format!(
                "there are {SERVICES_MAX} services already"
            )));
        }
        let entry = ServiceEntry {
            incarnation: self.next,
            service: service.clone(),
            edits: 0,
            oldest_first: Vec::new(),
        };
        Arc::make_mut(&mut self.index).insert(service.key, self.next);
        Arc::make_mut(&mut self.services).push(Arc::new(entry));
        self.next += 1;
        Ok(())
    }

    fn edit_service(&mut self, service: &Service) -> Result<(), CommandError> {
        self.service(&service.key).ok_or(CommandError::NoSuchService)?;
        check_service(service)?;
        self.entry_mut(&service.key)?.service = service.clone();
        Ok(())
    }

    fn delete_service(&mut self, key: &ServiceKey) -> Result<(), CommandError> {
        let incarnation = *self.index.get(key).ok_or(CommandError::NoSuchService)?;
        Arc::make_mut(&mut self.index).remove(key);
        if let Some(place) = self.place(incarnation) {
            let gone = Arc::make_mut(&mut self.services).remove(place);
            self.destinations -= gone.oldest_first.len();
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.services = Arc::default();
        self.index = Arc::default();
        self.destinations = 0;
    }

    fn add_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), CommandError> {
        let entry = self.service(key).ok_or(CommandError::NoSuchService)?;
        let destination = checked_destination(key, destination)?;
        if entry.destination(&destination.key).is_some() {
            return Err(CommandError::DestinationExists);
        }
        if self.destinations >= DESTINATIONS_MAX {
            return Err(CommandError::Limit(format!(
                "there are {DESTINATIONS_MAX} destinations already"
            )));
        }
        self.entry_mut(key)?.oldest_first.push(destination);
        self.destinations += 1;
        Ok(())
    }

    fn edit_destination(&mut self, key: &ServiceKey, destination: &Destination) -> Result<(), CommandError> {
        self.service(key).ok_or(CommandError::NoSuchService)?;
        let destination = checked_destination(key, destination)?;
        let position = self.position(key, &destination.key)?;
        let entry = self.entry_mut(key)?;
        entry.oldest_first[position] = destination;
        entry.edits += 1;
        Ok(())
    }

    fn delete_destination(&mut self, key: &ServiceKey, destination: &DestinationKey) -> Result<(), CommandError> {
        let position = self.position(key, destination)?;
        self.entry_mut(key)?.oldest_first.remove(position);
        self.destinations -= 1;
        Ok(())
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), CommandError> {
        let Timeouts { tcp, tcp_fin, udp } = timeouts;
        if [tcp, tcp_fin, udp].iter().any(|value| *value > Timeouts::MAX_S) {
            let max = Timeouts::MAX_S;
            return Err(CommandError::Invalid(format!("a timeout is 0 to {max} seconds")));
        }
        let keep = |new: u32, old: u32| if new == 0 { old } else { new };
        self.timeouts = Timeouts {
            tcp: keep(tcp, self.timeouts.tcp),
            tcp_fin: keep(tcp_fin, self.timeouts.tcp_fin),
            udp: keep(udp, self.timeouts.udp),
        };
        Ok(())
    }

    fn position(&self, key: &ServiceKey, destination: &DestinationKey) -> Result<usize, CommandError> {
        let entry = self.service(key).ok_or(CommandError::NoSuchService)?;
        let mut all = entry.oldest_first.iter();
        all.position(|d| d.key == *destination)
            .ok_or(CommandError::NoSuchDestination)
    }

    /// The entry, of this state alone from now on.
    fn entry_mut(&mut self, key: &ServiceKey) -> Result<&mut ServiceEntry, CommandError> {
        let incarnation = *self.index.get(key).ok_or(CommandError::NoSuchService)?;
        let place = self.place(incarnation).ok_or(CommandError::NoSuchService)?;
        Ok(Arc::make_mut(&mut Arc::make_mut(&mut self.services)[place]))
    }

    fn place(&self, incarnation: u64) -> Option<usize> {
        self.services
            .binary_search_by_key(&incarnation, |entry| entry.incarnation)
            .ok()
    }
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The state after it.
    pub state: State,
    /// One a command; with `all_or_nothing` it ends at the first refusal.
    pub results: Vec<Option<CommandError>>,
    /// In the order of the commands.
    pub effects: Vec<Effect>,
}

fn invalid(what: impl Into<String>) -> CommandError {
    CommandError::Invalid(what.into())
}

fn check_service(service: &Service) -> Result<(), CommandError> {
    if !scheduler::NAMES.contains(&service.scheduler.as_str()) {
        return Err(CommandError::NoSuchScheduler);
    }
    if let Some(engine) = &service.persistence_engine
        && !PERSISTENCE_ENGINES.contains(&engine.as_str())
    {
        return Err(CommandError::NoSuchScheduler);
    }
    if let Some(flag) = service
        .scheduler_flags
        .iter()
        .find(|f| !SCHEDULER_FLAGS.contains(&f.as_str()))
    {
        return Err(invalid(format!("no scheduler flag {flag:?}")));
    }
    match service.key {
        ServiceKey::FwMark { mark: 0, .. } => return Err(invalid("a firewall mark is above 0")),
        ServiceKey::Address { port: 0, .. } if service.persistence.is_none() => {
            return Err(invalid("a service with port 0 must be persistent"));
        }
        _ => {}
    }
    match &service.persistence {
        Some(persistence) => check_persistence(persistence, service.key.family()),
        None => Ok(()),
    }
}

fn check_persistence(persistence: &Persistence, family: Family) -> Result<(), CommandError> {
    let max = Persistence::TIMEOUT_MAX_S;
    if !(1..=max).contains(&persistence.timeout_s) {
        return Err(invalid(format!("a persistence timeout is 1 to {max} seconds")));
    }
    if family == Family::V6 && !(1..=128).contains(&persistence.mask) {
        return Err(invalid("an IPv6 persistence mask is a prefix length from 1 to 128"));
    }
    Ok(())
}

/// The destination as it is kept: Route and Tunnel do not translate ports, so they have the service's.
fn checked_destination(service: &ServiceKey, destination: &Destination) -> Result<Destination, CommandError> {
    let mut destination = destination.clone();
    if destination.weight > WEIGHT_MAX || destination.lower_threshold > destination.upper_threshold {
        return Err(CommandError::OutOfRange);
    }
    let tunnel = destination.method == Method::Tunnel;
    if tunnel && destination.tunnel.kind == TunnelKind::Gue && destination.tunnel.port == 0 {
        return Err(invalid("a GUE tunnel needs a UDP port"));
    }
    if Family::of(destination.key.address) != service.family() && !tunnel {
        return Err(invalid(
            "only a tunnel leads to a destination of another address family",
        ));
    }
    if !is_unicast(destination.key.address) {
        return Err(invalid(format!("{} is no unicast address", destination.key.address)));
    }
    if let ServiceKey::Address { port, .. } = *service
        && destination.method != Method::Masq
    {
        destination.key.port = port;
    }
    Ok(destination)
}

/// What the kernel takes for a real server: not multicast, broadcast, unspecified, or IPv6 link-local.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_multicast() || v4.is_broadcast() || v4.octets()[0] == 0),
        IpAddr::V6(v6) => !(v6.is_multicast() || v6.is_unspecified() || v6.is_unicast_link_local()),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
