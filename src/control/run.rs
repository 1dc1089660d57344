//! `uvs run`: from options to a running director, and its end.
//!
//! Start: configuration, interfaces claimed, rules and connections of before, filter and workers, control socket, ready.
//! End: a plain stop gives the virtual addresses back to the kernel and leaves nothing; with `keep`, and after a crash, the
//! filter stays and drops what is for services, and the entries stay for the next start.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::client::{Client, ClientError, Transport};
use super::config::{self, Config, INTERFACES_MAX, RulesParser};
use super::connections::{self, EntriesFile};
use super::daemon::{Control, Ending, Events, Signal, TICK, here};
use super::director::Director;
use super::drivers::{self, Shared};
use super::outside::Outside;
use super::protocol::{Reply, Request};
use super::registry::{Registry, build_scheduler};
use super::run_error::RunError;
use super::saver::Saver;
use super::server::Server;
use super::state::State;
use super::store::{self, Found, Store};
use crate::conn::{ConnectionTable, Tick};
use crate::io::clock;
use crate::io::filter::FilterMaps;
use crate::io::filter::attach::{self};
use crate::io::liveness::{self, Claim, ClaimError};
use crate::io::netlink::{Follower, Netlink, Resolver};
use crate::io::tun::{self, Tun};
use crate::options::{CONNECTIONS_DEFAULT, RunOptions, STATE_DIR_DEFAULT};
use crate::packet::Mac;
use crate::table::{Hops, Interface};

/// One that does not answer any more may be about to end.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// A daemon that hands over must be gone after this.
const HANDOVER_MAX: Duration = Duration::from_secs(10);

/// Runs until told to stop.
pub fn run(options: &RunOptions, rules: RulesParser) -> Result<(), RunError> {
    // A thread that panics takes the process along, whatever the build: the filter drops, the next start takes over.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
    let settings = Settings::of(options, rules)?;
    if !crate::io::netns::is_root() {
        return Err(RunError::NotRoot);
    }
    let signals = signals()?;
    // Before anything is read, so that no change afterwards is missed.
    let (_follower, network) = Follower::start()?;
    let mut resolver = Resolver::open(Instant::now())?;
    // Whatever can be wrong is best found before a running daemon is told to go.
    let (interfaces, workers) = prepare(&settings, &mut resolver)?;
    store::make_directory(&settings.state_dir)?;
    let entries = EntriesFile::place(settings.run_dir.as_deref(), &settings.state_dir)?;
    let handed_over = settings.takeover && take_over(&settings, &interfaces)?;
    let claims = claim(&interfaces, &settings, handed_over)?;
    let store = Store::open(
        &settings.state_dir,
        if settings.takeover {
            HANDOVER_MAX
        } else {
            Duration::ZERO
        },
    )?;
    // Before anything is attached, so that a socket in use disturbs nothing. Requests wait until they are served.
    let (asked, requests) = unbounded();
    let server = Server::start(&settings.socket, asked)?;
    let started = Started::new(&settings, interfaces, workers, entries, resolver, store)?;
    let may_start = || {
        let settings = Settings::of(options, rules)?;
        prepare(&settings, &mut Resolver::open(Instant::now())?)?;
        Ok(())
    };
    let events = Events {
        requests,
        signals,
        network,
        ticks: crossbeam_channel::tick(TICK),
    };
    if started.serve(&settings, rules, server, events, &may_start)? {
        // The claims are held until then.
        return Err(RunError::Again(start_again()));
    }
    drop(claims);
    Ok(())
}

/// The interfaces and the number of workers, or what is wrong with them.
fn prepare(settings: &Settings, resolver: &mut Resolver) -> Result<(Vec<Interface>, usize), RunError> {
    let interfaces = find_interfaces(&settings.interfaces, resolver)?;
    let workers = drivers::workers(settings.workers, settings.driver, &interfaces)?;
    Ok((interfaces, workers))
}

/// Becomes a new start of the same program, as the same process. Returns only when that fails.
fn start_again() -> std::io::Error {
    let mut arguments = std::env::args_os();
    let mut program = std::process::Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        program.arg0(name);
    }
    program.args(arguments).exec()
}

/// Takes off the filters that daemons which are dead have left in this network namespace: their virtual addresses are the
/// kernel's again. Returns the interfaces' names.
pub fn take_off_dead_filters() -> Result<Vec<String>, RunError> {
    if !crate::io::netns::is_root() {
        return Ok(Vec::new());
    }
    let mut taken_off = Vec::new();
    for link in Netlink::open()?.links()? {
        // Whose daemon lives, or begins to live meanwhile, keeps its filter.
        let Ok(_claim) = liveness::claim(link.index) else {
            continue;
        };
        let detached = [attach::detach_xdp(link.index), attach::detach_tc(link.index)];
        if detached.iter().any(|result| matches!(result, Ok(1..))) {
            taken_off.push(link.name.clone());
        }
        for error in detached.into_iter().filter_map(Result::err) {
            log::debug!("interface {}: {error}", link.name);
        }
    }
    Ok(taken_off)
}

/// Options and configuration in one.
struct Settings {
    interfaces: Vec<String>,
    driver: crate::options::DriverChoice,
    workers: Option<u16>,
    connections: u32,
    state_dir: PathBuf,
    run_dir: Option<PathBuf>,
    socket: PathBuf,
    takeover: bool,
    config_path: Option<PathBuf>,
    config: Option<Config>,
}

impl Settings {
    /// What the command line says goes before what the configuration says.
    fn of(options: &RunOptions, rules: RulesParser) -> Result<Settings, RunError> {
        let config = options
            .config
            .as_deref()
            .map(|path| config::load(path, rules))
            .transpose()?;
        let file = config.as_ref().map(|c| c.daemon.clone()).unwrap_or_default();
        let given = |interfaces: &Vec<String>| {
            if interfaces.is_empty() {
                file.interfaces.clone()
            } else {
                interfaces.clone()
            }
        };
        let interfaces = given(&options.interfaces);
        if interfaces.is_empty() {
            return Err(RunError::NoInterface);
        }
        let state_dir = options.state_dir.clone().or(file.state_dir);
        Ok(Settings {
            interfaces,
            driver: options.driver.or(file.driver).unwrap_or_default(),
            workers: options.workers.or(file.workers),
            connections: options.connections.or(file.connections).unwrap_or(CONNECTIONS_DEFAULT),
            state_dir: state_dir.unwrap_or_else(|| PathBuf::from(STATE_DIR_DEFAULT)),
            run_dir: options.run_dir.clone().or(file.run_dir),
            socket: options.socket.resolve_or(file.socket),
            takeover: options.takeover,
            config_path: options.config.clone(),
            config,
        })
    }
}

fn find_interfaces(names: &[String], resolver: &mut Resolver) -> Result<Vec<Interface>, RunError> {
    if names.len() > INTERFACES_MAX {
        return Err(RunError::TooManyInterfaces(names.len()));
    }
    let mut interfaces: Vec<Interface> = Vec::with_capacity(names.len());
    for name in names {
        let link = resolver
            .link_named(name)
            .ok_or_else(|| RunError::NoSuchInterface(name.clone()))?;
        if interfaces.iter().any(|i| i.index == link.index) {
            return Err(RunError::InterfaceTwice(name.clone()));
        }
        let mac: Mac = link
            .mac
            .filter(|_| !link.loopback)
            .ok_or_else(|| RunError::NotEthernet(name.clone()))?;
        if !link.up {
            return Err(RunError::Down(name.clone()));
        }
        interfaces.push(Interface {
            name: name.clone(),
            index: link.index,
            mac,
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
            addresses: Vec::new(),
        });
    }
    Ok(interfaces)
}

/// Tells the running daemon to stop and keep. `false`: there is none to take over from, which is fine. One that does not have
/// all the interfaces that are wanted is left alone, if another has them.
fn take_over(settings: &Settings, interfaces: &[Interface]) -> Result<bool, RunError> {
    let socket = &settings.socket;
    let mut client = Client::new(socket.clone());
    let other = |interface: &Interface, pid| RunError::OtherSocket {
        interface: interface.name.clone(),
        pid,
        socket: socket.clone(),
    };
    if let Ok(Reply::Ok { pid, .. }) = client.call(&Request::Ping) {
        for interface in interfaces {
            match liveness::holder(interface.index) {
                Ok(Some(holder)) if holder != 0 && holder != pid as i32 => return Err(other(interface, holder)),
                _ => {}
            }
        }
    }
    match client.call(&Request::Stop { keep: true }) {
        Ok(Reply::Ok { pid, version }) => {
            log::info!("took over from process {pid} (uvs {version})");
            Ok(true)
        }
        Ok(Reply::Error { message }) => Err(RunError::Takeover(message)),
        Ok(other) => Err(RunError::Takeover(format!("unexpected answer {other:?}"))),
        Err(ClientError::NotRunning { .. }) => {
            log::info!("no daemon answers at {}: nothing to take over from", socket.display());
            Ok(false)
        }
        Err(error) => Err(RunError::Takeover(error.to_string())),
    }
}

/// Claims every interface; one that hands over gets some time to be gone, one that may just have ended a moment.
fn claim(interfaces: &[Interface], settings: &Settings, handed_over: bool) -> Result<Vec<Claim>, RunError> {
    let patience = match (settings.takeover, handed_over) {
        (true, true) => HANDOVER_MAX,
        (true, false) => LINGER_MAX,
        (false, _) => Duration::ZERO,
    };
    let until = Instant::now() + patience;
    let mut claims = Vec::with_capacity(interfaces.len());
    for interface in interfaces {
        loop {
            if Instant::now() < until {
                // Nobody is asked who has it: that would fill its queue.
                match liveness::try_claim(interface.index) {
                    Some(claim) => break claims.push(claim),
                    None => thread::sleep(Duration::from_millis(2)),
                }
                continue;
            }
            match liveness::claim(interface.index) {
                Ok(claim) => break claims.push(claim),
                Err(ClaimError::Taken { pid, .. }) if settings.takeover && !handed_over => {
                    return Err(RunError::OtherSocket {
                        interface: interface.name.clone(),
                        pid,
                        socket: settings.socket.clone(),
                    });
                }
                Err(source) => {
                    let interface = interface.name.clone();
                    return Err(RunError::Claim { interface, source });
                }
            }
        }
    }
    Ok(claims)
}

/// Everything that was started, frames flowing.
struct Started {
    state: State,
    registry: Registry,
    director: Director,
    store: Store,
    /// Fingerprint of the configuration last applied.
    applied: Option<u64>,
    connections: Arc<ConnectionTable>,
    entries: EntriesFile,
    indexes: Vec<u32>,
}

impl Started {
    fn new(
        settings: &Settings,
        interfaces: Vec<Interface>,
        workers: usize,
        file: EntriesFile,
        resolver: Resolver,
        mut store: Store,
    ) -> Result<Started, RunError> {
        let (entries, left) = file.open(settings.connections)?;
        let connections = Arc::new(ConnectionTable::new(entries, workers));
        let (state, applied) = starting_state(settings, &mut store)?;
        let mut registry = Registry::new(workers, build_scheduler);
        let mut director = Director::new(interfaces.clone(), FilterMaps::new()?, connections.clone(), resolver);
        registry.update(&State::default(), &state, &mut director);
        if left {
            let now = Tick::from_boot_ns(clock::boot_ns());
            let recovered = connections::recover(&connections, now, &mut registry, &mut director);
            log::info!(
                "{} connections go on ({} expired, {} of no service, {} damaged or without room)",
                recovered.kept,
                recovered.expired,
                recovered.dropped,
                recovered.damaged
            );
        }
        let local = director.local_addresses();
        let table = registry.table(&state, director.interfaces(), local.clone());
        connections::relate(&connections, &table);
        let rules = registry.filter_rules(&local, &Default::default());
        director.grow_filter(&rules).map_err(RunError::Rules)?;
        let shared = Shared {
            connections: connections.clone(),
            hops: Arc::new(Hops::default()),
            table,
            tun: Tun::create(tun::NAME)?,
        };
        let (served, handles) = drivers::start(settings.driver, &interfaces, director.maps(), workers, &shared)?;
        director.set_running(served, handles);
        let indexes = interfaces.iter().map(|i| i.index).collect();
        Ok(Started {
            state,
            registry,
            director,
            store,
            applied,
            connections,
            entries: file,
            indexes,
        })
    }

    /// Serves until told to stop, then ends as told. `true`: to be started again at once.
    fn serve(
        self,
        settings: &Settings,
        rules: RulesParser,
        server: Server,
        events: Events,
        may_start: &dyn Fn() -> Result<(), RunError>,
    ) -> Result<bool, RunError> {
        let stop_asked = {
            let signals = events.signals.clone();
            move || signals.try_iter().any(|signal| signal == Signal::Stop)
        };
        let saver = Saver::start(self.store).map_err(|source| RunError::Thread { what: "saving", source })?;
        let daemon = settings.config.as_ref().map(|c| c.daemon.clone()).unwrap_or_default();
        let mut control = Control::new(self.state, self.registry, self.director)
            .with_saver(saver)
            .with_config(reload(settings, rules), daemon, self.applied)
            .with_watchdog(Box::new(|| notify(&[sd_notify::NotifyState::Watchdog])))
            .with_new_starts(Box::new(|| may_start().map_err(|error| error.to_string())));
        control.save_now();
        control.settle_start()?;
        println!(
            "uvs {} ready on {}",
            env!("CARGO_PKG_VERSION"),
            settings.interfaces.join(", ")
        );
        notify(&[sd_notify::NotifyState::Ready]);
        let ended = with_huge_pages(&self.connections, || control.run(events));
        // Whoever is told of the end may open their file.
        drop(self.connections);
        let mut ending = match ended {
            Ok(ending) => ending,
            Err(stuck) => {
                log::error!("{}", RunError::from(stuck));
                std::process::abort();
            }
        };
        if ending.again && stop_asked() {
            (ending.again, ending.keep) = (false, false);
        }
        let again = ending.again;
        if !again {
            notify(&[sd_notify::NotifyState::Stopping]);
        }
        finish(ending, control.finish(), &self.entries, &self.indexes, server);
        Ok(again)
    }
}

/// Makes huge pages under the connections while `run` runs. Fresh ones can take ms each; only frames wait whose connections are in
/// the one being made.
fn with_huge_pages<T>(connections: &ConnectionTable, run: impl FnOnce() -> T) -> T {
    let ended = AtomicBool::new(false);
    let go_on = |n: &usize| !ended.load(Ordering::Relaxed) && connections.make_huge_page(*n);
    let make = || (0..).take_while(go_on).for_each(drop);
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("uvs-huge-pages".to_owned());
        if let Err(error) = thread.spawn_scoped(scope, make) {
            log::warn!("connections stay in small pages: no thread: {error}");
        }
        let result = run();
        ended.store(true, Ordering::Relaxed);
        result
    })
}

/// Ends: what was promised to whoever asked is true when they are answered.
fn finish(ending: Ending, mut director: Director, entries: &EntriesFile, indexes: &[u32], mut server: Server) {
    if !ending.keep {
        for index in indexes {
            for detached in [attach::detach_xdp(*index), attach::detach_tc(*index)] {
                detached.map(|_| ()).unwrap_or_else(|error| log::error!("{error}"));
            }
        }
    }
    director.stop_workers();
    if !ending.keep {
        entries.remove();
    }
    drop(director);
    server.close(ending.keep);
    if let Some(answering) = ending.answering {
        answering.reply(here());
    }
}

/// The rules to start with: those of last time, unless the configuration says something new.
fn starting_state(settings: &Settings, store: &mut Store) -> Result<(State, Option<u64>), RunError> {
    let saved = match store.load()? {
        Found::Nothing => Default::default(),
        Found::Saved { saved, remark } => {
            if let Some(remark) = remark {
                log::error!("{remark}");
            }
            saved
        }
        Found::Refused { reason } => {
            log::error!("{reason}");
            Default::default()
        }
    };
    let news = settings.config.as_ref().filter(|c| saved.config != Some(c.fingerprint));
    match news.and_then(|config| Some((config, config.changes(&saved.state)?))) {
        Some((config, commands)) => {
            let applied = saved.state.apply_all(&commands, true);
            if let Some(error) = applied.results.into_iter().flatten().next() {
                return Err(RunError::Unappliable(error));
            }
            log::info!("configuration applied: {} changes", commands.len());
            Ok((applied.state, Some(config.fingerprint)))
        }
        _ => Ok((saved.state, saved.config)),
    }
}

fn reload(settings: &Settings, rules: RulesParser) -> Option<super::daemon::Reload> {
    let path = settings.config_path.clone()?;
    Some(Box::new(move || config::load(&path, rules)))
}

/// Signals as a channel.
fn signals() -> Result<Receiver<Signal>, RunError> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(RunError::Signals)?;
    let (sender, receiver) = bounded(16);
    let listen = move || {
        for signal in signals.forever() {
            let signal = if signal == SIGHUP { Signal::Reload } else { Signal::Stop };
            if sender.send(signal).is_err() {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("uvs-signals".to_owned()).spawn(listen);
    thread.map_err(|source| RunError::Thread {
        what: "signals",
        source,
    })?;
    Ok(receiver)
}

/// Tells systemd, where it started us.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log::debug!("systemd is not told: {error}");
    }
}
