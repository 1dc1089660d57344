//! The loop over an outside in memory that writes down what it was asked to do.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;

use hdrhistogram::Histogram;

use super::super::client::{Client, Transport};
use super::super::config;
use super::super::outside::{FindConnections, ListConnections};
use super::super::registry::Routes;
use super::super::server::{Rest, Server};
use super::super::store::{Found, Store, found_at_a_start};
use super::*;
use crate::dataplane::counters::FrameCounts;
use crate::io::filter::Rule;
use crate::packet::{FlowKey, Mac};
use crate::scheduler::{Batch, Candidate, Schedule};
use crate::table::{self, Destination, InterfaceId, NextHop, Reach, Supplies, Table};

/// What happened outside, and how the outside behaves.
struct World {
    log: Vec<String>,
    rules: HashSet<Rule>,
    table: Arc<Table>,
    now_ms: u64,
    /// Neighbours answer after so many waits.
    waits_until_resolved: u32,
    local: HashSet<IpAddr>,
    filter_full: bool,
    stuck: bool,
    interface_is_back: bool,
    supplies: Supplies,
}

#[derive(Clone)]
struct Fake(Rc<RefCell<World>>);

impl Routes for Fake {
    fn reach(&mut self, _: IpAddr) -> Reach {
        if self.0.borrow().waits_until_resolved > 0 {
            return Reach::Resolving;
        }
        Reach::Hop {
            hop: NextHop {
                interface: InterfaceId(0),
                source: Mac([2; 6]),
                destination: Mac([4; 6]),
                mtu: 1500,
            },
            source: IpAddr::from([10, 0, 0, 1]),
        }
    }
}

impl Outside for Fake {
    fn now_ms(&self) -> u64 {
        self.0.borrow().now_ms
    }

    fn interfaces(&self) -> Arc<[Interface]> {
        Arc::new([])
    }

    fn interface_is_back(&self) -> bool {
        self.0.borrow().interface_is_back
    }

    fn local_addresses(&self) -> Arc<LocalAddresses> {
        let prefix = (IpAddr::from([10, 0, 0, 0]), 24);
        Arc::new(LocalAddresses::new(self.0.borrow().local.clone(), [prefix]))
    }

    fn network_changed(&mut self) {
        self.0.borrow_mut().log.push("network".to_owned());
    }

    fn network_tick(&mut self) -> bool {
        false
    }

    fn network_wait(&mut self) {
        let mut world = self.0.borrow_mut();
        world.now_ms += 5;
        world.waits_until_resolved = world.waits_until_resolved.saturating_sub(1);
    }

    fn shrink_filter(&mut self, wanted: &HashSet<Rule>) -> Result<(), String> {
        let mut world = self.0.borrow_mut();
        let gone = world.rules.difference(wanted).count();
        if gone > 0 {
            world.log.push(format!("filter -{gone}"));
        }
        world.rules.retain(|rule| wanted.contains(rule));
        Ok(())
    }

    fn grow_filter(&mut self, wanted: &HashSet<Rule>) -> Result<(), String> {
        let mut world = self.0.borrow_mut();
        let new = wanted.difference(&world.rules).count();
        if new > 0 && world.filter_full {
            return Err("the map is full".to_owned());
        }
        if new > 0 {
            world.log.push(format!("filter +{new}"));
        }
        world.rules.extend(wanted);
        Ok(())
    }

    fn publish(&mut self, table: Arc<Table>) -> Result<(), Stuck> {
        let mut world = self.0.borrow_mut();
        if world.stuck {
            return Err(Stuck { worker: 1, seconds: 5 });
        }
        let services = table.services.iter().count();
        world.log.push(format!("table of {services}"));
        assert!(table.generation > world.table.generation);
        world.table = table;
        Ok(())
    }

    fn check_workers(&mut self) -> Result<(), Stuck> {
        if self.0.borrow().stuck {
            Err(Stuck { worker: 1, seconds: 5 })
        } else {
            Ok(())
        }
    }

    fn sweep(&mut self, _: &[Option<Arc<Destination>>]) {
        self.0.borrow_mut().log.push("sweep".to_owned());
    }

    fn supplies(&self) -> Supplies {
        self.0.borrow().supplies
    }

    fn drop_entries(&mut self, _: &[Option<Arc<Destination>>], _: &TimeoutTable) {
        self.0.borrow_mut().log.push("drop entries".to_owned());
    }

    fn connections(&self) -> ListConnections {
        Box::new(Vec::new)
    }

    fn find_connections(&self) -> FindConnections {
        Box::new(|_| (Vec::new(), crate::conn::Tick::from_boot_ns(0)))
    }

    fn call_id(&self, text: &str) -> crate::conn::CallId {
        let table = crate::conn::ConnectionTable::anonymous(64, 1).unwrap();
        table.call_id(text.as_bytes())
    }

    fn report(&mut self) -> Report {
        let histogram = Histogram::new_with_max(1000, 3).unwrap();
        Report {
            frames: FrameCounts::default(),
            interfaces: vec![],
            connections_capacity: 1,
            connections_used: 0,
            latency_ns: histogram.clone(),
            batch_sizes: histogram,
            received_by_worker: vec![0, 0],
            generation: 0,
            uptime_s: 0,
            unsaved: None,
        }
    }
}

struct First;

impl Schedule for First {
    fn pick<'s>(&'s self, candidates: &[Candidate], _: &FlowKey, _: &mut Batch<'s>) -> Option<usize> {
        (!candidates.is_empty()).then_some(0)
    }
}

fn first(_: &crate::service::Service, _: &[Candidate], _: Option<&table::Service>) -> Box<dyn Schedule + Send + Sync> {
    Box::new(First)
}

/// Who asks, and gets the answer.
struct Asker {
    client: UnixStream,
    rest: Receiver<Rest>,
}

/// A request, and where its answer will be.
fn by_a_client(request: Request) -> (Asked, Asker) {
    let (client, servers) = UnixStream::pair().unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (asked, rest) = Asked::new(request, Arc::new(servers));
    (asked, Asker { client, rest })
}

impl Asker {
    fn reply(mut self) -> Reply {
        let rest = self.rest.recv_timeout(Duration::from_secs(20)).unwrap()().unwrap();
        let mut line = Vec::new();
        self.client.read_to_end(&mut line).unwrap();
        line.extend(rest);
        serde_json::from_slice(&line).unwrap()
    }
}

struct Fixture {
    world: Rc<RefCell<World>>,
    control: Control<'static, Fake>,
}

impl Fixture {
    fn new() -> Fixture {
        let world = Rc::new(RefCell::new(World {
            log: vec![],
            rules: HashSet::new(),
            table: Arc::default(),
            now_ms: 1_000_000,
            waits_until_resolved: 0,
            local: HashSet::new(),
            filter_full: false,
            stuck: false,
            interface_is_back: false,
            supplies: Supplies::default(),
        }));
        let registry = Registry::new(2, first);
        let control = Control::new(State::default(), registry, Fake(world.clone()));
        Fixture { world, control }
    }

    /// Lets the control thread answer one request.
    fn ask(&mut self, request: Request) -> Reply {
        let (asked, client) = by_a_client(request);
        assert!(self.control.answer(asked).unwrap().is_none());
        client.reply()
    }

    fn apply(&mut self, commands: Vec<Command>) -> Vec<Option<CommandError>> {
        let request = Request::Apply {
            commands,
            all_or_nothing: false,
        };
        match self.ask(request) {
            Reply::Applied { results, .. } => results,
            other => panic!("{other:?}"),
        }
    }

    fn config(&mut self, toml: &str) {
        let config = parse(toml);
        self.control.apply_config(&config).unwrap();
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.world.borrow_mut().log)
    }
}

fn parse(toml: &str) -> Config {
    config::parse(Path::new("test.toml"), toml, |_| Ok(vec![])).unwrap_or_else(|error| panic!("{error}"))
}

const WEB: &str = "[[service]]\ntcp = \"10.0.0.1:80\"\n";
const SERVER: &str = "[[service.destination]]\naddress = \"10.1.0.1\"\nmethod = \"masq\"\n";
const OTHER: &str = "[[service]]\nudp = \"10.0.0.1:53\"\n";

fn commands(toml: &str) -> Vec<Command> {
    parse(toml).desired.commands()
}

#[test]
fn adding_tells_the_workers_first_and_deleting_the_filter_first() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.apply(commands(&format!("{WEB}{SERVER}"))), [None, None]);
    assert_eq!(fixture.log(), ["table of 1", "filter +2"]);
    assert_eq!(fixture.apply(vec![Command::Clear]), [None]);
    assert_eq!(fixture.log(), ["filter -2", "table of 0"]);
    // Both at once.
    fixture.apply(commands(WEB));
    fixture.log();
    let mut both = vec![Command::Clear];
    both.extend(commands(OTHER));
    fixture.apply(both);
    assert_eq!(fixture.log(), ["filter -1", "table of 1", "filter +1"]);
}

#[test]
fn a_weight_does_not_touch_the_filter_and_refusals_touch_nothing() {
    let mut fixture = Fixture::new();
    fixture.apply(commands(&format!("{WEB}{SERVER}")));
    fixture.log();
    let heavier = commands(&format!("{WEB}{SERVER}weight = 5\n")).remove(1);
    let Command::AddDestination { service, destination } = heavier else {
        panic!()
    };
    assert_eq!(
        fixture.apply(vec![Command::EditDestination { service, destination }]),
        [None]
    );
    assert_eq!(fixture.log(), ["table of 1"]);
    assert_eq!(fixture.apply(commands(WEB)), [Some(CommandError::ServiceExists)]);
    assert_eq!(fixture.apply(vec![Command::Zero { service: None }]), [None]);
    assert!(fixture.log().is_empty());
    let Reply::Services { services } = fixture.ask(Request::List { service: None }) else {
        panic!()
    };
    assert_eq!(services[0].destinations[0].destination.weight, 5);
}

#[test]
fn a_full_filter_undoes_the_change_and_says_so() {
    let mut fixture = Fixture::new();
    fixture.apply(commands(WEB));
    fixture.world.borrow_mut().filter_full = true;
    fixture.log();
    let results = fixture.apply(commands(OTHER));
    assert_eq!(results, [Some(CommandError::Limit("the map is full".to_owned()))]);
    assert_eq!(fixture.log(), ["table of 2", "table of 1"]);
    let Reply::Services { services } = fixture.ask(Request::List { service: None }) else {
        panic!()
    };
    assert_eq!(services.len(), 1);
}

#[test]
fn what_a_refused_change_removed_has_its_numbers_again() {
    let mut fixture = Fixture::new();
    fixture.apply(commands(&format!("{WEB}{SERVER}")));
    let table = fixture.world.borrow().table.clone();
    table.destinations[0].as_ref().unwrap().counters[1].count_in(60);
    drop(table);
    let packets = |fixture: &mut Fixture| {
        let Reply::Services { services } = fixture.ask(Request::List { service: None }) else {
            panic!()
        };
        let [web] = &services[..] else { panic!("{services:?}") };
        let server = &web.destinations[0];
        (web.statistics.packets_in, server.statistics.packets_in)
    };
    assert_eq!(packets(&mut fixture), (1, 1));
    fixture.world.borrow_mut().filter_full = true;
    let mut both = vec![Command::Clear];
    both.extend(commands(OTHER));
    assert!(fixture.apply(both).iter().all(Option::is_some));
    assert_eq!(packets(&mut fixture), (1, 1));
}

#[test]
fn a_change_waits_for_new_neighbours_but_not_for_ever() {
    let mut fixture = Fixture::new();
    fixture.world.borrow_mut().waits_until_resolved = 3;
    fixture.apply(commands(&format!("{WEB}{SERVER}")));
    // Workers hear of it when it is resolved, once.
    assert_eq!(fixture.log(), ["table of 1", "filter +2"]);
    let table = fixture.world.borrow().table.clone();
    assert!(matches!(
        table.destinations[0].as_ref().unwrap().reach,
        Reach::Hop { .. }
    ));

    fixture.world.borrow_mut().waits_until_resolved = 1_000_000;
    let start = fixture.world.borrow().now_ms;
    let second = SERVER.replace("10.1.0.1", "10.1.0.2");
    fixture.apply(commands(&format!("{WEB}{second}")).split_off(1));
    assert!((SETTLE_MS..SETTLE_MS + 100).contains(&(fixture.world.borrow().now_ms - start)));

    // What was waited for in vain holds up no later change, neither of itself nor of its service's other servers.
    let start = fixture.world.borrow().now_ms;
    for server in [&second, SERVER] {
        let heavier = commands(&format!("{WEB}{server}weight = 7\n")).split_off(1).remove(0);
        let Command::AddDestination { service, destination } = heavier else {
            panic!("{heavier:?}");
        };
        assert_eq!(
            fixture.apply(vec![Command::EditDestination { service, destination }]),
            [None]
        );
    }
    assert_eq!(fixture.world.borrow().now_ms, start);
    // One that goes and comes back is new.
    let [add] = <[Command; 1]>::try_from(commands(&format!("{WEB}{second}")).split_off(1)).unwrap();
    let Command::AddDestination { service, destination } = add.clone() else {
        panic!("{add:?}");
    };
    let destination = destination.key;
    assert_eq!(
        fixture.apply(vec![Command::DeleteDestination { service, destination }]),
        [None]
    );
    assert_eq!(fixture.world.borrow().now_ms, start);
    assert_eq!(fixture.apply(vec![add]), [None]);
    assert!(fixture.world.borrow().now_ms >= start + SETTLE_MS);
}

#[test]
fn questions_are_answered() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.ask(Request::Timeouts), Reply::Timeouts(Default::default()));
    assert_eq!(fixture.ask(Request::Ping), here());
    let sysctl = |name: &str| Request::Sysctl { name: name.to_owned() };
    assert_eq!(
        fixture.ask(sysctl("conn_reuse_mode")),
        Reply::Sysctl { value: "1".to_owned() }
    );
    assert!(matches!(fixture.ask(sysctl("nonsense")), Reply::Error { .. }));
    assert_eq!(
        fixture.ask(Request::Connections),
        Reply::Connections { connections: vec![] }
    );
    let Reply::Statistics { statistics } = fixture.ask(Request::Statistics) else {
        panic!()
    };
    assert_eq!(statistics["workers"], 2);
}

#[test]
fn a_reload_changes_what_differs_and_a_bad_file_nothing() {
    let mut fixture = Fixture::new();
    fixture.config(&format!("{WEB}{SERVER}"));
    fixture.log();
    let table = fixture.world.borrow().table.clone();
    let texts = Rc::new(RefCell::new(format!("{WEB}{SERVER}{OTHER}")));
    let source = texts.clone();
    let reload: Reload = Box::new(move || {
        let text = source.borrow().clone();
        config::parse(Path::new("test.toml"), &text, |_| Ok(vec![]))
    });
    let control = std::mem::replace(&mut fixture.control, Fixture::new().control);
    fixture.control = control.with_config(Some(reload), DaemonConfig::default(), None);

    fixture.control.reload().unwrap();
    assert_eq!(fixture.log(), ["table of 2", "filter +1"]);
    let after = fixture.world.borrow().table.clone();
    assert!(Arc::ptr_eq(
        table.destinations[0].as_ref().unwrap(),
        after.destinations[0].as_ref().unwrap()
    ));
    assert_eq!(fixture.control.config, Some(config::fingerprint(&texts.borrow())));

    for bad in ["[[service]]\ntcp = \"10.0.0.1\"\n", "nonsense"] {
        *texts.borrow_mut() = bad.to_owned();
        fixture.control.reload().unwrap();
        assert!(fixture.log().is_empty(), "{bad:?} changed something");
    }
}

/// The frames of a service whose address is not the director's are the kernel's, until it is.
#[test]
fn services_of_others_addresses_wait_for_them() {
    let mut fixture = Fixture::new();
    fixture.apply(commands("[[service]]\ntcp = \"192.0.2.1:80\"\n"));
    assert_eq!(fixture.log(), ["table of 1"]);
    fixture.world.borrow_mut().local.insert(IpAddr::from([192, 0, 2, 1]));
    fixture.control.follow_network().unwrap();
    assert_eq!(fixture.log(), ["table of 1", "filter +2"]);
    // Lost, and back: its connections must not meet the kernel in between.
    fixture.world.borrow_mut().local.clear();
    fixture.control.follow_network().unwrap();
    assert_eq!(fixture.log(), ["filter -1", "table of 1"]);
    fixture.world.borrow_mut().local.insert(IpAddr::from([192, 0, 2, 1]));
    fixture.control.follow_network().unwrap();
    assert_eq!(fixture.log(), ["table of 1", "filter +1"]);
    // Lost for good.
    fixture.world.borrow_mut().local.clear();
    fixture.control.follow_network().unwrap();
    fixture.log();
    fixture.world.borrow_mut().now_ms += LOST_MS;
    fixture.control.tick().unwrap();
    let log = fixture.log();
    assert!(log.contains(&"filter -1".to_owned()), "{log:?}");
}

#[test]
fn an_interface_that_is_back_ends_the_loop_to_begin_again() {
    let mut fixture = Fixture::new();
    fixture.world.borrow_mut().interface_is_back = true;
    let events = Events {
        requests: crossbeam_channel::never(),
        signals: crossbeam_channel::never(),
        network: crossbeam_channel::never(),
        ticks: crossbeam_channel::never(),
    };
    let ending = fixture.control.run(events).unwrap();
    assert!(ending.keep && ending.again && ending.answering.is_none());
    // Not while a start would fail; that is asked once a second.
    let mut asked = 0;
    {
        let control = std::mem::replace(&mut fixture.control, Fixture::new().control);
        let mut control = control.with_new_starts(Box::new(|| {
            asked += 1;
            if asked < 2 { Err("not yet".to_owned()) } else { Ok(()) }
        }));
        assert!(!control.may_start_again() && !control.may_start_again());
        fixture.world.borrow_mut().now_ms += SECOND_MS;
        assert!(control.may_start_again());
    }
    assert_eq!(asked, 2);
}

#[test]
fn new_addresses_of_the_director_reach_the_filter() {
    let mut fixture = Fixture::new();
    fixture.apply(commands(WEB));
    fixture.log();
    fixture.world.borrow_mut().local.insert(IpAddr::from([10, 0, 0, 1]));
    fixture.control.follow_network().unwrap();
    assert_eq!(fixture.log(), ["table of 1", "filter +1"]);
    fixture.control.follow_network().unwrap();
    assert!(fixture.log().is_empty());
}

#[test]
fn ticks_sweep_estimate_and_feed_the_watchdog() {
    let mut fixture = Fixture::new();
    let fed = Rc::new(RefCell::new(0));
    let count = fed.clone();
    let control = std::mem::replace(&mut fixture.control, Fixture::new().control);
    fixture.control = control.with_watchdog(Box::new(move || *count.borrow_mut() += 1));
    for _ in 0..50 {
        fixture.world.borrow_mut().now_ms += 100;
        fixture.control.tick().unwrap();
    }
    assert_eq!(fixture.log(), vec!["sweep"; 50]);
    assert_eq!(*fed.borrow(), 5);
    fixture.world.borrow_mut().stuck = true;
    fixture.world.borrow_mut().now_ms += 1000;
    assert_eq!(fixture.control.tick(), Err(Stuck { worker: 1, seconds: 5 }));
    assert_eq!(*fed.borrow(), 5, "a watchdog that is fed with a stuck worker");
}

#[test]
fn the_loop_ends_by_request_and_by_signal() {
    for keep in [true, false] {
        let mut fixture = Fixture::new();
        let (requests, receiver) = crossbeam_channel::unbounded();
        let (asked, client) = by_a_client(Request::Stop { keep });
        requests.send(asked).unwrap();
        let events = Events {
            requests: receiver,
            signals: never(),
            network: never(),
            ticks: never(),
        };
        let ending = fixture.control.run(events).unwrap();
        assert_eq!(ending.keep, keep);
        assert!(client.rest.is_empty(), "answered before it was done");
        ending.answering.unwrap().reply(here());
        assert_eq!(client.reply(), here());
    }
    let mut fixture = Fixture::new();
    let (signals, receiver) = crossbeam_channel::unbounded();
    // Without a configuration SIGHUP is harmless.
    signals.send(Signal::Reload).unwrap();
    signals.send(Signal::Stop).unwrap();
    let events = Events {
        requests: never(),
        signals: receiver,
        network: never(),
        ticks: never(),
    };
    let ending = fixture.control.run(events).unwrap();
    assert!(!ending.keep && ending.answering.is_none());
}

/// Goal: the automatic defences begin and end with the pressure, and read so. How: a second, with less and more left.
#[test]
fn defences_follow_what_is_left() {
    let mut fixture = Fixture::new();
    let settings = ["drop_entry", "drop_packet", "secure_tcp"];
    fixture.config(&format!("[sysctl]\n{} = 1\n", settings.join(" = 2\n")));
    let read = |fixture: &mut Fixture| {
        settings.map(|name| match fixture.ask(Request::Sysctl { name: name.to_owned() }) {
            Reply::Sysctl { value } => value,
            other => panic!("{other:?}"),
        })
    };
    let second = |fixture: &mut Fixture, slots_free| {
        fixture.world.borrow_mut().supplies = Supplies {
            slots: 1024,
            slots_free,
            ..Supplies::default()
        };
        fixture.world.borrow_mut().now_ms += 1000;
        fixture.control.tick().unwrap();
        fixture.log()
    };
    assert_eq!(read(&mut fixture), ["1", "1", "1"], "nothing is short, so 2 is 1");
    fixture.log();
    assert_eq!(second(&mut fixture, 500), ["sweep"]);
    assert_eq!(second(&mut fixture, 48), ["sweep", "table of 0", "drop entries"]);
    let defence = |fixture: &Fixture| fixture.world.borrow().table.defence;
    let at_work = table::Defence {
        drop_entry: true,
        drop_rate: 4,
        secure_tcp: true,
    };
    assert_eq!(defence(&fixture), at_work);
    assert_eq!(read(&mut fixture), ["2", "2", "2"]);
    assert_eq!(second(&mut fixture, 48), ["sweep", "drop entries"], "as before");
    assert_eq!(second(&mut fixture, 64), ["sweep", "table of 0"]);
    assert_eq!(defence(&fixture), table::Defence::default());
    assert_eq!(read(&mut fixture), ["1", "1", "1"]);
    // A mode that is set meanwhile counts at once.
    second(&mut fixture, 0);
    fixture.config("[sysctl]\ndrop_packet = 1\n");
    assert_eq!(defence(&fixture).drop_rate, 1);
    fixture.config("[sysctl]\ndrop_packet = 3\nam_droprate = 5\n");
    assert_eq!((defence(&fixture).drop_rate, defence(&fixture).drop_entry), (5, false));
}

/// From the client's socket to the saved file, with the loop in between.
#[test]
fn a_client_through_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("uvs.sock");
    let (sender, requests) = crossbeam_channel::unbounded();
    let server = Server::start(&socket, sender).unwrap();
    let store = Store::open(folder.path(), Duration::ZERO).unwrap();
    let mut fixture = Fixture::new();
    let control = std::mem::replace(&mut fixture.control, Fixture::new().control);
    let mut control = control.with_saver(Saver::start(store).unwrap());

    let state_dir = folder.path().to_owned();
    let saved = move || found_at_a_start(&state_dir).state;
    let client = std::thread::spawn(move || {
        let mut client = Client::new(socket);
        let mut ask = |request| client.call(&request).unwrap_or_else(|error| panic!("{error}"));
        let reply = ask(Request::Apply {
            commands: commands(&format!("{WEB}{SERVER}")),
            all_or_nothing: true,
        });
        assert_eq!(
            reply,
            Reply::Applied {
                results: vec![None, None],
                unsaved: None,
            }
        );
        // Asker means saved.
        assert_eq!(saved().destinations_count(), 1);
        // Of a request that is refused in part, what was done.
        let mut again = commands(&format!("{WEB}{SERVER}"));
        again.push(Command::SetMssClamp { on: true });
        let reply = ask(Request::Apply {
            commands: again,
            all_or_nothing: false,
        });
        assert!(matches!(reply, Reply::Applied { results, .. } if results[0].is_some() && results[2].is_none()));
        assert!(saved().mss_clamp);
        let Reply::Services { services } = ask(Request::List { service: None }) else {
            panic!()
        };
        assert_eq!(services[0].destinations.len(), 1);
        ask(Request::Stop { keep: true })
    });
    let events = Events {
        requests,
        signals: never(),
        network: never(),
        ticks: crossbeam_channel::tick(TICK),
    };
    let ending = control.run(events).unwrap();
    assert!(ending.keep);
    drop(control.finish());
    ending.answering.unwrap().reply(here());
    drop(server);
    assert_eq!(client.join().unwrap(), here());

    let mut store = Store::open(folder.path(), Duration::ZERO).unwrap();
    let Found::Saved { saved, .. } = store.load().unwrap() else {
        panic!()
    };
    assert_eq!(saved.state.destinations_count(), 1);
}
