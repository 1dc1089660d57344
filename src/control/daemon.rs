//! The control thread's loop: requests, signals, changes of the network and ticks, one after the other.
//!
//! Adding: the workers' table first, then the filter. Deleting: the filter first. So no frame reaches a worker that
//! does not know its service yet or any more. A request is answered when its change is live on every worker and the
//! rules are on the disk.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, never, select};

use super::config::{Config, ConfigError, DaemonConfig};
use super::explain::{self, Question};
use super::outside::{Outside, Stuck};
use super::protocol::{Command, CommandError, Reply, Request};
use super::registry::Registry;
use super::report::Report;
use super::saver::Saver;
use super::server::{Answering, Asked};
use super::state::State;
use super::statistics::ESTIMATOR_PERIOD_MS;
use super::store::Saved;
use crate::conn::TimeoutTable;
use crate::io::netlink::follow::NetworkEvent;
use crate::service::ServiceKey;
use crate::table::{Interface, LocalAddresses};

/// How often connections are swept.
pub const TICK: Duration = Duration::from_millis(100);
/// Once-a-second work.
const SECOND_MS: u64 = 1000;
/// How long services of an address count that is the director's no more.
const LOST_MS: u64 = 5000;
/// How long a change waits for new destinations' neighbours to answer.
const SETTLE_MS: u64 = 300;

/// Signals that the loop knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: stop, and give the virtual addresses back to the kernel.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// What the loop listens to.
pub struct Events {
    /// Of the control socket.
    pub requests: Receiver<Asked>,
    /// Of the process.
    pub signals: Receiver<Signal>,
    /// Of rtnetlink.
    pub network: Receiver<NetworkEvent>,
    /// Every [`TICK`].
    pub ticks: Receiver<std::time::Instant>,
}

/// How the loop ended.
pub struct Ending {
    /// Leave the filter and the connection entries.
    pub keep: bool,
    /// Who asked for it, to be answered when it is done.
    pub answering: Option<Answering>,
    /// To start again at once: an interface is there again that was gone.
    pub again: bool,
}

/// Reads the configuration again.
pub type Reload = Box<dyn FnMut() -> Result<Config, ConfigError>>;

/// Says why a new start would fail.
pub type MayStart<'a> = Box<dyn FnMut() -> Result<(), String> + 'a>;

/// The control thread.
pub struct Control<'a, O: Outside> {
    state: State,
    registry: Registry,
    outside: O,
    saver: Option<Saver>,
    reload: Option<Reload>,
    /// Of the configuration that was last applied.
    config: Option<u64>,
    daemon_config: DaemonConfig,
    interfaces: Arc<[Interface]>,
    local: Arc<LocalAddresses>,
    /// Addresses that were the director's, and until when their services still count: they may be back at once.
    lost: HashMap<IpAddr, u64>,
    /// Nothing tells of changes of the network any more.
    deaf: bool,
    estimated_ms: u64,
    second_ms: u64,
    /// Called once a second when all is well.
    watchdog: Box<dyn FnMut()>,
    /// Whether a new start would go well.
    may_start: MayStart<'a>,
    /// Why it would not, and when it was last asked.
    refused: (String, u64),
}

impl<'a, O: Outside> Control<'a, O> {
    /// Takes over what was started: workers with a table of `registry`, filter with its rules.
    pub fn new(state: State, registry: Registry, outside: O) -> Control<'a, O> {
        let now_ms = outside.now_ms();
        Control {
            interfaces: outside.interfaces(),
            local: outside.local_addresses(),
            lost: HashMap::new(),
            state,
            registry,
            outside,
            saver: None,
            reload: None,
            config: None,
            daemon_config: DaemonConfig::default(),
            deaf: false,
            estimated_ms: now_ms,
            second_ms: now_ms,
            watchdog: Box::new(|| {}),
            may_start: Box::new(|| Ok(())),
            refused: (String::new(), 0),
        }
    }

    /// Saves the rules at each change.
    pub fn with_saver(mut self, saver: Saver) -> Control<'a, O> {
        self.saver = Some(saver);
        self
    }

    /// Reads the configuration by `reload` on SIGHUP; `daemon` is what it said at start, `applied` the fingerprint of
    /// the one last applied.
    pub fn with_config(mut self, reload: Option<Reload>, daemon: DaemonConfig, applied: Option<u64>) -> Control<'a, O> {
        self.reload = reload;
        self.daemon_config = daemon;
        self.config = applied;
        self
    }

    /// Calls this once a second as long as all is well.
    pub fn with_watchdog(mut self, watchdog: Box<dyn FnMut()>) -> Control<'a, O> {
        self.watchdog = watchdog;
        self
    }

    /// Asks this before it ends to be started again.
    pub fn with_new_starts(mut self, may_start: MayStart<'a>) -> Control<'a, O> {
        self.may_start = may_start;
        self
    }

    /// At most once a second; what is in the way is said once.
    fn may_start_again(&mut self) -> bool {
        let now_ms = self.outside.now_ms();
        if now_ms.saturating_sub(self.refused.1) < SECOND_MS {
            return false;
        }
        match (self.may_start)() {
            Ok(()) => {
                log::info!("an interface is there again: starting again in place");
                true
            }
            Err(reason) => {
                if reason != self.refused.0 {
                    log::error!("an interface is there again, and it cannot be served yet: {reason}");
                }
                self.refused = (reason, now_ms);
                false
            }
        }
    }

    /// Runs until told to stop. An error means that the process must end at once, without cleaning up.
    pub fn run(&mut self, mut events: Events) -> Result<Ending, Stuck> {
        loop {
            if self.outside.interface_is_back() && self.may_start_again() {
                return Ok(Ending {
                    keep: true,
                    answering: None,
                    again: true,
                });
            }
            select! {
                recv(events.requests) -> asked => match asked {
                    Ok(asked) => if let Some(ending) = self.answer(asked)? {
                        return Ok(ending);
                    },
                    Err(_) => events.requests = never(),
                },
                recv(events.signals) -> signal => match signal {
                    Ok(Signal::Stop) => return Ok(Ending { keep: false, answering: None, again: false }),
                    Ok(Signal::Reload) => self.reload()?,
                    Err(_) => events.signals = never(),
                },
                recv(events.network) -> event => match event {
                    Ok(NetworkEvent::Changed) => {
                        self.outside.network_changed();
                        self.follow_network()?;
                    }
                    Err(_) => {
                        self.deaf = true;
                        log::error!("changes of the network are noticed once a second only");
                        events.network = never();
                    }
                },
                recv(events.ticks) -> tick => match tick {
                    Ok(_) => self.tick()?,
                    Err(_) => events.ticks = never(),
                },
            }
        }
    }

    /// Takes the outside back, to stop it, when everything is saved.
    pub fn finish(self) -> O {
        drop(self.saver);
        self.outside
    }

    /// Carries out one request.
    fn answer(&mut self, asked: Asked) -> Result<Option<Ending>, Stuck> {
        let (request, answering) = asked.into_parts();
        match request {
            Request::Apply {
                commands,
                all_or_nothing,
            } => self.apply(commands, all_or_nothing, answering)?,
            Request::List { service } => {
                // A long one becomes text on the client's thread.
                let list = self.list(service.as_ref());
                answering.reply_with(move || list);
            }
            Request::Connections => {
                let list = self.outside.connections();
                answering.reply_with(move || Reply::Connections { connections: list() });
            }
            Request::Timeouts => answering.reply(Reply::Timeouts(self.state.timeouts)),
            Request::Marks => {
                let rules = self.state.marks().to_vec();
                answering.reply_with(move || Reply::Marks { rules });
            }
            Request::Statistics => {
                let report = self.report();
                answering.reply_with(move || Reply::Statistics {
                    statistics: report.json(),
                });
            }
            Request::Sysctl { name } => answering.reply(match self.state.sysctls.get(&name) {
                Ok(value) => Reply::Sysctl { value },
                Err(error) => Reply::Error {
                    message: error.to_string(),
                },
            }),
            Request::Explain { question } => self.explain(question, answering),
            Request::Ping => answering.reply(here()),
            Request::Stop { keep } => {
                let answering = Some(answering);
                return Ok(Some(Ending {
                    keep,
                    answering,
                    again: false,
                }));
            }
        }
        Ok(None)
    }

    fn list(&mut self, service: Option<&ServiceKey>) -> Reply {
        Reply::Services {
            services: self.registry.list(&self.state, service),
        }
    }

    /// From copies, on the client's thread: a look through a million connections takes a moment.
    fn explain(&self, question: Question, answering: Answering) {
        let table = self
            .registry
            .view(&self.state, self.interfaces.clone(), self.local.clone());
        let (state, find) = (self.state.clone(), self.outside.find_connections());
        let call_id = question.call_id.as_ref().map(|text| self.outside.call_id(text));
        answering.reply_with(move || {
            let template = explain::template_key(&question, call_id, &table);
            let (entries, now) = find(&|connection| question.is_about(template.as_ref(), connection));
            let explanation = Box::new(explain::explain(&question, &table, &state, &entries, now));
            Reply::Explained { explanation }
        });
    }

    fn report(&mut self) -> Report {
        Report {
            generation: self.registry.generation(),
            unsaved: self.saver.as_ref().and_then(Saver::failure),
            ..self.outside.report()
        }
    }

    fn apply(&mut self, commands: Vec<Command>, all_or_nothing: bool, answering: Answering) -> Result<(), Stuck> {
        let applied = self.state.apply_all(&commands, all_or_nothing);
        let changed = applied.state != self.state;
        let mut results = applied.results;
        let refusal = if changed { self.commit(applied.state)? } else { None };
        if let Some(reason) = refusal {
            // Nothing was done: that is the answer to each.
            results.fill(Some(CommandError::Limit(reason)));
            answering.reply(Reply::Applied { results, unsaved: None });
            return Ok(());
        }
        applied.effects.iter().for_each(|effect| self.registry.zero(effect));
        if changed {
            let done = commands
                .into_iter()
                .zip(&results)
                .filter(|(_, result)| result.is_none());
            let done = done.map(|(command, _)| command).collect();
            self.save(done, |unsaved| answering.reply(Reply::Applied { results, unsaved }));
        } else {
            answering.reply(Reply::Applied { results, unsaved: None });
        }
        Ok(())
    }

    /// Saves the rules as they are.
    pub fn save_now(&mut self) {
        self.save(Vec::new(), |_| {});
    }

    /// Saves the state, which these commands led to, then does what is to be done.
    fn save(&mut self, commands: Vec<Command>, then: impl FnOnce(Option<String>) + Send + 'static) {
        match &self.saver {
            Some(saver) => {
                let saved = Saved {
                    state: self.state.clone(),
                    config: self.config,
                };
                saver.save(saved, commands, then);
            }
            None => then(None),
        }
    }

    /// Makes a new state live. `Some(reason)`: the filter would not have it, and all is as before.
    fn commit(&mut self, after: State) -> Result<Option<String>, Stuck> {
        let before = std::mem::replace(&mut self.state, after);
        self.registry.settle_modes(&mut self.state);
        let rules_changed = self.registry.update(&before, &self.state, &mut self.outside);
        self.settle();
        let Some(reason) = self.go_live(rules_changed)? else {
            self.registry.settle();
            return Ok(None);
        };
        log::error!("the filter refused a change, which is undone: {reason}");
        let refused = std::mem::replace(&mut self.state, before);
        self.registry.update(&refused, &self.state, &mut self.outside);
        if let Some(again) = self.go_live(true)? {
            log::error!("and undoing it: {again}");
        }
        self.registry.settle();
        Ok(Some(reason))
    }

    /// Filter and workers follow the registry.
    fn go_live(&mut self, rules_changed: bool) -> Result<Option<String>, Stuck> {
        let rules_changed = self.follow_addresses() || rules_changed;
        let lost = self.lost.keys().copied().collect();
        let rules = rules_changed.then(|| self.registry.filter_rules(&self.local, &lost));
        if let Some(rules) = &rules
            && let Err(reason) = self.outside.shrink_filter(rules)
        {
            return Ok(Some(reason));
        }
        self.publish()?;
        if let Some(rules) = &rules
            && let Err(reason) = self.outside.grow_filter(rules)
        {
            return Ok(Some(reason));
        }
        Ok(None)
    }

    /// `true`: the director's own addresses have changed.
    fn follow_addresses(&mut self) -> bool {
        let local = self.outside.local_addresses();
        if local == self.local {
            return false;
        }
        let until_ms = self.outside.now_ms() + LOST_MS;
        let gone = self.local.hosts().filter(|address| !local.contains(address));
        self.lost.extend(gone.map(|address| (address, until_ms)));
        self.lost.retain(|address, _| !local.contains(address));
        self.local = local;
        true
    }

    /// Gives the neighbours of new destinations a moment to answer, so that the first client does not have to wait. Until
    /// then everything goes on as before.
    fn settle(&mut self) {
        let start_ms = self.outside.now_ms();
        while self.registry.is_resolving() && self.outside.now_ms() - start_ms < SETTLE_MS {
            self.outside.network_wait();
            self.registry.refresh_reach(&mut self.outside);
        }
    }

    /// The same at the start, when the table is live already.
    pub fn settle_start(&mut self) -> Result<(), Stuck> {
        self.settle();
        self.publish()
    }

    fn publish(&mut self) -> Result<(), Stuck> {
        let table = self
            .registry
            .table(&self.state, self.interfaces.clone(), self.local.clone());
        self.outside.publish(table)?;
        self.registry.taken();
        Ok(())
    }

    /// Looks again at interfaces, addresses and next hops, and makes live what changed.
    fn follow_network(&mut self) -> Result<(), Stuck> {
        let mut changed = self.registry.refresh_reach(&mut self.outside);
        let interfaces = self.outside.interfaces();
        if interfaces != self.interfaces {
            self.interfaces = interfaces;
            changed = true;
        }
        changed |= self.outside.local_addresses() != self.local;
        if changed && let Some(reason) = self.go_live(false)? {
            log::error!("the filter does not follow the director's addresses: {reason}");
        }
        Ok(())
    }

    /// SIGHUP. A bad file changes nothing.
    fn reload(&mut self) -> Result<(), Stuck> {
        let Some(reload) = &mut self.reload else {
            log::warn!("SIGHUP: there is no configuration file to read again");
            return Ok(());
        };
        let config = match reload() {
            Ok(config) => config,
            Err(error) => {
                log::error!("configuration not applied: {error}");
                return Ok(());
            }
        };
        if config.daemon != self.daemon_config {
            log::warn!("configuration: interfaces, driver, workers, connections and paths change at the next start");
        }
        self.apply_config(&config)
    }

    /// Makes live what the configuration has different from what runs.
    pub fn apply_config(&mut self, config: &Config) -> Result<(), Stuck> {
        let Some(commands) = config.changes(&self.state) else {
            return Ok(());
        };
        let applied = self.state.apply_all(&commands, true);
        if let Some(error) = applied.results.iter().flatten().next() {
            // The desired state is legal and differences lead to it, so this is a mistake of ours; still nothing changed.
            log::error!("configuration not applied: {error}");
            return Ok(());
        }
        if !commands.is_empty()
            && let Some(reason) = self.commit(applied.state)?
        {
            log::error!("configuration not applied: {reason}");
            return Ok(());
        }
        log::info!("configuration applied: {} changes", commands.len());
        self.config = Some(config.fingerprint);
        self.save(commands, |_| {});
        Ok(())
    }

    fn tick(&mut self) -> Result<(), Stuck> {
        self.outside.sweep(self.registry.destinations());
        let now_ms = self.outside.now_ms();
        if now_ms - self.estimated_ms >= ESTIMATOR_PERIOD_MS {
            // After a long pause the ticks that were missed are not made up for: rates are of the last period.
            let behind = now_ms - self.estimated_ms;
            self.estimated_ms += behind - behind % ESTIMATOR_PERIOD_MS;
            if self.state.sysctls.run_estimation != 0 {
                self.registry.tick_estimator();
            }
        }
        if now_ms - self.second_ms >= SECOND_MS {
            self.second_ms = now_ms;
            self.every_second(now_ms)?;
        }
        Ok(())
    }

    fn every_second(&mut self, now_ms: u64) -> Result<(), Stuck> {
        self.outside.check_workers()?;
        if self.deaf {
            self.outside.network_changed();
        }
        if self.outside.network_tick() || self.deaf {
            self.follow_network()?;
        }
        let lost = self.lost.len();
        self.lost.retain(|_, until_ms| *until_ms > now_ms);
        if (self.registry.sweep_trash(now_ms) || self.lost.len() != lost)
            && let Some(reason) = self.go_live(true)?
        {
            log::error!("the filter does not forget removed destinations: {reason}");
        }
        self.defend()?;
        (self.watchdog)();
        Ok(())
    }

    /// The defences against overload follow what is left of memory and connection table.
    fn defend(&mut self) -> Result<(), Stuck> {
        let supplies = self.outside.supplies();
        let before = self.registry.defence(&self.state);
        if self.registry.defend(&mut self.state, supplies) {
            self.publish()?;
        }
        let defence = self.registry.defence(&self.state);
        if defence.at_work() != before.at_work() {
            let [entries, packets, secure] = defence.at_work().map(|works| if works { "at work" } else { "at rest" });
            log::warn!("drop_entry {entries}, drop_packet {packets}, secure_tcp {secure}: {supplies:?}");
        }
        if defence.drop_entry {
            let timeouts = TimeoutTable::new(&self.state.timeouts);
            self.outside.drop_entries(self.registry.destinations(), &timeouts);
        }
        Ok(())
    }
}

/// The answer to a ping, and to a stop that is done.
pub fn here() -> Reply {
    Reply::Ok {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    }
}

#[cfg(test)]
#[path = "daemon_tests.rs"]
mod tests;
