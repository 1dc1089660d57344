//! From commands to tables, with live numbers that outlast them.

use super::super::protocol::Command;
use super::*;
use crate::packet::{FlowKey, Protocol};
use crate::scheduler::Batch;
use crate::service::{Destination, Persistence, Service, TransportProtocol};

/// Gives every destination the same answer.
struct Everywhere(Reach);

impl Routes for Everywhere {
    fn reach(&mut self, _: IpAddr) -> Reach {
        self.0
    }
}

struct Turns(std::sync::atomic::AtomicUsize);

impl Schedule for Turns {
    fn pick<'s>(&'s self, candidates: &[Candidate], _: &FlowKey, _: &mut Batch<'s>) -> Option<usize> {
        (!candidates.is_empty()).then(|| self.0.fetch_add(1, Ordering::Relaxed) % candidates.len())
    }
}

fn turns(_: &Service, _: &[Candidate], _: Option<&table::Service>) -> Box<dyn Schedule + Send + Sync> {
    Box::new(Turns(0.into()))
}

const WEB: ServiceKey = ServiceKey::Address {
    protocol: TransportProtocol::Tcp,
    address: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
    port: 80,
};

fn service(key: ServiceKey) -> Service {
    Service {
        key,
        scheduler: "rr".to_owned(),
        scheduler_flags: vec![],
        persistence: None,
        one_packet: false,
        persistence_engine: None,
    }
}

fn add_service(key: ServiceKey) -> Command {
    Command::AddService(service(key))
}

fn server(last: u8, method: Method) -> Destination {
    Destination {
        key: DestinationKey {
            address: IpAddr::from([10, 1, 0, last]),
            port: 80,
        },
        method,
        weight: 1,
        upper_threshold: 0,
        lower_threshold: 0,
        tunnel: Tunnel::default(),
    }
}

fn add(last: u8) -> Command {
    Command::AddDestination {
        service: WEB,
        destination: server(last, Method::Masq),
    }
}

fn delete(last: u8) -> Command {
    Command::DeleteDestination {
        service: WEB,
        destination: server(last, Method::Masq).key,
    }
}

/// State and registry that move together.
struct World {
    state: State,
    registry: Registry,
}

impl World {
    fn new(commands: &[Command]) -> World {
        let mut world = World {
            state: State::default(),
            registry: Registry::new(2, turns),
        };
        world.run(commands);
        world
    }

    fn run(&mut self, commands: &[Command]) {
        let applied = self.state.apply_all(commands, false);
        assert_eq!(applied.results, vec![None; commands.len()]);
        let routes = &mut Everywhere(Reach::Resolving);
        self.registry.update(&self.state, &applied.state, routes);
        self.state = applied.state;
        applied.effects.iter().for_each(|effect| self.registry.zero(effect));
    }

    fn table(&mut self) -> Arc<Table> {
        self.registry.table(&self.state, Arc::new([]), Arc::default())
    }

    fn id(&self, last: u8) -> DestinationId {
        self.registry.by_key[&(WEB, server(last, Method::Masq).key)]
    }

    /// A worker counts a packet of the one connection to this destination.
    fn packet(&mut self, last: u8) {
        let live = self.registry.destination(self.id(last)).unwrap();
        live.counters[1].packets_in.fetch_add(1, Ordering::Relaxed);
        if live.load.total() == 0 {
            live.load.add(0, true, 0);
        }
    }

    /// Packets in: of the service, and of each destination newest first.
    fn packets(&mut self) -> (u64, Vec<u64>) {
        let listing = self.registry.list(&self.state, Some(&WEB)).remove(0);
        let each = listing.destinations.iter().map(|d| d.statistics.packets_in).collect();
        (listing.statistics.packets_in, each)
    }
}

fn client_flow() -> FlowKey {
    let client = (IpAddr::from([192, 0, 2, 1]), 999);
    FlowKey::new(Protocol::TCP, client, (IpAddr::from([10, 0, 0, 1]), 80))
}

#[test]
fn a_table_has_candidates_newest_first_and_shares_what_did_not_change() {
    let other = ServiceKey::FwMark { mark: 7, ipv6: false };
    let mut world = World::new(&[add_service(WEB), add_service(other), add(1), add(2)]);
    let first = world.table();
    let service = first.service(&client_flow()).unwrap();
    let addresses: Vec<_> = service.candidates.iter().map(|c| c.key.address.to_string()).collect();
    assert_eq!(addresses, ["10.1.0.2", "10.1.0.1"]);
    assert_eq!(service.ids, [world.id(2), world.id(1)]);
    assert_eq!(service.pick(&client_flow(), &mut Batch::default()), Some(world.id(2)));

    world.run(&[add(3)]);
    let second = world.table();
    assert!(!Arc::ptr_eq(second.service(&client_flow()).unwrap(), service));
    let mark = |table: &Table| {
        let mut services = table.services.iter();
        services.find(|service| service.key == other).unwrap().clone()
    };
    assert!(Arc::ptr_eq(&mark(&first), &mark(&second)));
    assert!(Arc::ptr_eq(
        first.destination(world.id(1)).unwrap(),
        second.destination(world.id(1)).unwrap()
    ));
    assert_eq!((first.generation, second.generation), (1, 2));

    let reply = FlowKey::new(
        Protocol::TCP,
        (IpAddr::from([10, 1, 0, 3]), 80),
        (IpAddr::from([192, 0, 2, 1]), 999),
    );
    assert!(!first.is_nat_source(&reply) && second.is_nat_source(&reply));
}

#[test]
fn a_removed_destination_keeps_its_slot_and_comes_back_with_its_counts() {
    let mut world = World::new(&[add_service(WEB), add(1), add(2)]);
    let id = world.id(1);
    world.packet(1);
    world.run(&[delete(1)]);
    let table = world.table();
    assert!(!table.destination(id).unwrap().present);
    assert_eq!(table.service(&client_flow()).unwrap().ids, [world.id(2)]);
    // Its connection lives: the slot stays however long it takes, and replies are still for us.
    assert!(!world.registry.sweep_trash(1_000));
    assert!(!world.registry.sweep_trash(1_000_000));
    assert_eq!(world.packets(), (1, vec![0]));

    world.run(&[add(1)]);
    assert_eq!(world.id(1), id);
    assert!(world.table().destination(id).unwrap().present);
    let listing = &world.registry.list(&world.state, None)[0].destinations[0];
    assert_eq!((listing.active, listing.statistics.packets_in), (1, 1));
}

#[test]
fn trash_without_connections_goes_after_two_minutes_and_its_slot_is_used_again() {
    let mut world = World::new(&[add_service(WEB), add(1)]);
    let id = world.id(1);
    world.run(&[delete(1)]);
    assert!(world.registry.sweep_trash(5_000), "seen idle for the first time");
    assert!(!world.registry.sweep_trash(5_000 + TRASH_MS - 1));
    assert!(world.registry.sweep_trash(5_000 + TRASH_MS));
    assert!(world.table().destination(id).is_none());
    world.run(&[add(9)]);
    assert_eq!(world.id(9), id);
    assert!(!world.registry.sweep_trash(u64::MAX));
    assert!(world.table().destination(id).unwrap().present);
}

#[test]
fn a_service_made_again_starts_its_statistics_but_not_its_connections() {
    let mut world = World::new(&[add_service(WEB), add(1)]);
    world.packet(1);
    // In one batch, so that only the incarnation tells.
    world.run(&[Command::Clear, add_service(WEB), add(1)]);
    assert_eq!(world.packets(), (0, vec![0]));
    let listing = &world.registry.list(&world.state, None)[0].destinations[0];
    assert_eq!(listing.active, 1);
    world.packet(1);
    assert_eq!(world.packets(), (1, vec![1]));
}

#[test]
fn zero_of_one_service_and_service_sums() {
    let mut world = World::new(&[add_service(WEB), add(1), add(2)]);
    world.packet(1);
    world.packet(2);
    world.packet(2);
    assert_eq!(world.packets(), (3, vec![2, 1]));
    world.run(&[Command::Zero { service: Some(WEB) }]);
    assert_eq!(world.packets(), (0, vec![0, 0]));
    world.packet(1);
    world.registry.tick_estimator();
    assert_eq!(world.packets(), (1, vec![0, 1]));
    // The connections of the removed one were the service's all the same.
    world.run(&[delete(1)]);
    assert_eq!(world.packets(), (1, vec![0]));
    let load = &world.registry.destination(world.id(2)).unwrap().load;
    assert_eq!(load.active(), 1);
}

#[test]
fn edits_reach_the_workers_and_lift_the_overload() {
    let mut world = World::new(&[add_service(WEB), add(1)]);
    let id = world.id(1);
    let edit = |upper_threshold| Command::EditDestination {
        service: WEB,
        destination: Destination {
            upper_threshold,
            ..server(1, Method::Masq)
        },
    };
    world.run(&[edit(5)]);
    let load = world.registry.destination(id).unwrap().load.clone();
    load.overloaded.store(true, Ordering::Relaxed);
    world.run(&[edit(4)]);
    assert!(load.overloaded.load(Ordering::Relaxed));
    world.run(&[edit(6)]);
    assert!(!load.overloaded.load(Ordering::Relaxed));
    assert_eq!(world.table().destination(id).unwrap().upper_threshold, 6);
}

#[test]
fn reach_is_asked_once_an_address_and_changes_are_seen() {
    let mut world = World::new(&[add_service(WEB), add(1), add(2)]);
    assert!(!world.registry.refresh_reach(&mut Everywhere(Reach::Resolving)));
    assert!(world.registry.refresh_reach(&mut Everywhere(Reach::Unreachable)));
    let id = world.id(1);
    assert_eq!(world.table().destination(id).unwrap().reach, Reach::Unreachable);
}

#[test]
fn recovered_entries_find_their_destination_or_get_a_trash_slot() {
    let mut world = World::new(&[add_service(WEB), add(1)]);
    let mut slot = |last: u8| {
        let routes = &mut Everywhere(Reach::Resolving);
        let key = server(last, Method::Masq).key;
        let registry = &mut world.registry;
        registry.slot_of_entry(&[WEB], key, Method::Masq, routes)
    };
    let (present, gone) = (slot(1), slot(9));
    assert_eq!(slot(9), gone);
    assert_eq!(present, world.id(1));
    assert!(!world.registry.destination(gone).unwrap().present);
    let load = world.registry.destination(gone).unwrap().load.clone();
    (0..3).for_each(|_| load.add(0, true, 0));
    // Adding the server later brings its connections back.
    world.run(&[add(9)]);
    assert_eq!(world.id(9), gone);
    let listing = world.registry.list(&world.state, Some(&WEB)).remove(0);
    assert_eq!(listing.destinations[0].active, 3);
}

#[test]
fn the_filter_looks_for_what_lives() {
    let own = IpAddr::from([10, 0, 0, 1]);
    let local = LocalAddresses::new([own], []);
    let service = Rule::Service {
        protocol: TransportProtocol::Tcp,
        address: own,
        port: 80,
    };
    let nat = |last: u8| Rule::NatDestination {
        protocol: TransportProtocol::Tcp,
        address: IpAddr::from([10, 1, 0, last]),
        port: 80,
    };
    let tunnel = Rule::TunnelDestination(IpAddr::from([10, 1, 0, 3]));
    let by_tunnel = |last| Destination {
        method: Method::Tunnel,
        ..server(last, Method::Masq)
    };
    let other = ServiceKey::FwMark { mark: 7, ipv6: false };
    let mut world = World::new(&[
        add_service(WEB),
        add_service(other),
        add(1),
        add(2),
        Command::AddDestination {
            service: WEB,
            destination: by_tunnel(3),
        },
    ]);
    let rules = |world: &World| world.registry.filter_rules(&local, &HashSet::new());
    let always = Rule::Local(own);
    assert_eq!(rules(&world), HashSet::from([always, service, nat(1), nat(2), tunnel]));

    // NAT connections outlive a change of the method, and the destination itself.
    world.packet(1);
    world.run(&[Command::EditDestination {
        service: WEB,
        destination: by_tunnel(1),
    }]);
    assert!(rules(&world).contains(&nat(1)));
    world.run(&[Command::DeleteService { service: WEB }]);
    let first = Rule::TunnelDestination(IpAddr::from([10, 1, 0, 1]));
    assert_eq!(rules(&world), HashSet::from([always, service, nat(1), first]));
    let load = world.registry.destination(world.id(1)).unwrap().load.clone();
    load.remove(0, true, 0, 0);
    assert!(world.registry.sweep_trash(0));
    assert_eq!(rules(&world), HashSet::from([always]));

    // The last service takes all with it.
    load.add(0, true, 0);
    assert!(rules(&world).contains(&service));
    world.run(&[Command::Clear]);
    assert_eq!(rules(&world), HashSet::from([always]));
}

/// 1,000 services with 10 destinations each: the first table, and the one after one weight changed.
#[test]
fn large_tables_are_quick() {
    let key = |n: u32| ServiceKey::Address {
        protocol: TransportProtocol::Tcp,
        address: std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into(),
        port: 80,
    };
    let mut commands = Vec::new();
    for n in 0..1000 {
        commands.push(add_service(key(n)));
        for last in 1..=10 {
            commands.push(Command::AddDestination {
                service: key(n),
                destination: server(last, Method::Masq),
            });
        }
    }
    let start = std::time::Instant::now();
    let mut world = World::new(&commands);
    let first = world.table();
    let restore = start.elapsed();
    let destination = Destination {
        weight: 7,
        ..server(5, Method::Masq)
    };
    let start = std::time::Instant::now();
    world.run(&[Command::EditDestination {
        service: key(500),
        destination,
    }]);
    let second = world.table();
    let edit = start.elapsed();
    println!("11,000 commands to a table: {restore:?}; one weight: {edit:?}");
    assert_eq!(second.destinations.len(), 10_000);
    let changed = |(a, b): (&Option<Arc<_>>, &Option<Arc<table::Destination>>)| {
        !Arc::ptr_eq(a.as_ref().unwrap(), b.as_ref().unwrap())
    };
    let pairs = first.destinations.iter().zip(&second.destinations);
    assert_eq!(pairs.filter(|pair| changed(*pair)).count(), 1);
}

proptest::proptest! {
    /// Goal: a table made of an older one is as one from the start, and who still has an older one sees it unchanged. How: services
    /// of all kinds and destinations come, change, go and are forgotten in any order; after some of it a table is due, which the
    /// workers take at once, or which is kept for a while.
    #[test]
    fn tables_out_of_older_ones(draw in proptest::collection::vec((0u8..9, 0usize..5, 1u8..4, 0usize..5), 1..60)) {
        let of = |protocol, port| ServiceKey::Address { protocol, address: IpAddr::from([10, 0, 0, 1]), port };
        let (tcp, udp) = (TransportProtocol::Tcp, TransportProtocol::Udp);
        let keys = [of(tcp, 80), of(tcp, 21), of(tcp, 0), of(udp, 5060), ServiceKey::FwMark { mark: 7, ipv6: false }];
        let mut world = World::new(&[]);
        let mut kept: Vec<(Arc<Table>, Table, usize)> = Vec::new();
        for (what, key, last, keep) in draw {
            let key = keys[key];
            let wanted = Service {
                persistence: Some(Persistence { timeout_s: 300, mask: u32::MAX }),
                persistence_engine: (key.port() == 5060).then(|| service::SIP.to_owned()),
                ..service(key)
            };
            let destination = server(last, Method::Masq);
            let command = match what {
                0 => Command::DeleteService { service: key },
                1 => Command::DeleteDestination { service: key, destination: destination.key },
                2 => {
                    let destination = Destination { weight: last.into(), ..destination };
                    Command::EditDestination { service: key, destination }
                }
                3 => Command::EditService(Service { scheduler: "wlc".to_owned(), ..wanted }),
                4 if last == 1 => Command::Clear,
                4 | 5 => Command::AddService(wanted),
                _ => Command::AddDestination { service: key, destination },
            };
            // Refused commands change nothing.
            let applied = world.state.apply_all(&[command], false);
            world.registry.update(&world.state, &applied.state, &mut Everywhere(Reach::Local));
            world.state = applied.state;
            match what {
                7 => drop(world.registry.refresh_reach(&mut Everywhere(Reach::Unreachable))),
                8 => drop((world.registry.sweep_trash(0), world.registry.sweep_trash(TRASH_MS))),
                _ => (),
            }
            if keep > 0 {
                let (table, view) = (world.table(), world.registry.view(&world.state, Arc::new([]), Arc::default()));
                proptest::prop_assert!(table.shares_all_with(&view));
                kept.push((table, view, keep));
            }
            kept.iter_mut().for_each(|(.., keep)| *keep -= 1);
            kept.retain(|(.., keep)| *keep > 0);
            if keep > 2 {
                world.registry.taken();
            }
            for (table, view, _) in &kept {
                proptest::prop_assert!(table.shares_all_with(view));
            }
        }
    }
}
