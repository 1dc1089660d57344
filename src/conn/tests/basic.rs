//! One worker, one entry after the other.

use std::net::IpAddr;

use crate::conn::*;
use crate::packet::{FlowKey, Protocol, TcpFlags};
use crate::service::{DestinationKey, Method};

pub const W: WorkerId = WorkerId(0);
pub const SYN: TcpFlags = TcpFlags(TcpFlags::SYN);

/// TCP by any address family, `client` numbers the client's address and port.
pub fn flow(v6: bool, client: u32) -> FlowKey {
    let port = 1024 + (client % 50_000) as u16;
    if v6 {
        let source = (0x2001_0db8u128 << 96) + client as u128;
        FlowKey::v6(
            Protocol::TCP,
            source,
            (0x2001_0db8u128 << 96) + (1 << 64),
            (port as u32) << 16 | 80,
        )
    } else {
        FlowKey::v4(
            Protocol::TCP,
            0x0a00_0000 + client,
            0xc0a8_0001,
            (port as u32) << 16 | 80,
        )
    }
}

pub fn server(v6: bool, n: u32) -> DestinationKey {
    let address: IpAddr = if v6 {
        std::net::Ipv6Addr::from_bits((0xfd00u128 << 112) + n as u128).into()
    } else {
        std::net::Ipv4Addr::from_bits(0xac10_0000 + n).into()
    };
    DestinationKey { address, port: 8080 }
}

pub fn new<'t>(flow: FlowKey, destination: DestinationKey, method: Method) -> NewConnection<'t> {
    let state = State::first(flow.protocol, method, SYN);
    NewConnection {
        flow,
        destination,
        destination_id: 7,
        method,
        state,
        timeout_ticks: TimeoutTable::default().ticks(state),
        client_hop: 3,
        fwmark: 0,
        controller: None,
        helped: false,
    }
}

/// The reply of a connection to this server.
pub fn reply(flow: &FlowKey, server: &DestinationKey) -> FlowKey {
    FlowKey::new(
        flow.protocol,
        (server.address, server.port),
        (flow.source(), flow.source_port()),
    )
}

pub fn none(_: &Connection) {
    panic!("nothing was to be replaced or expire");
}

pub fn insert<'t>(table: &'t ConnectionTable, new: &NewConnection<'t>, now: Tick) -> EntryRef<'t> {
    table.insert(W, table.hash(&new.flow), new, now, &mut none).unwrap()
}

pub fn lookup<'t>(table: &'t ConnectionTable, key: &FlowKey) -> Option<Hit<'t>> {
    table.lookup(table.hash(key), key)
}

#[test]
fn found_by_the_keys_of_its_method_and_no_other() {
    let table = ConnectionTable::anonymous(1000, 1).unwrap();
    let now = Tick(1000);
    for (n, (method, client_v6, server_v6)) in [
        (Method::Masq, false, false),
        (Method::Masq, true, true),
        (Method::Route, false, false),
        (Method::Route, true, true),
        (Method::Tunnel, false, true),
        (Method::Tunnel, true, false),
    ]
    .into_iter()
    .enumerate()
    {
        let (flow, server) = (flow(client_v6, n as u32), server(server_v6, n as u32));
        assert!(lookup(&table, &flow).is_none());
        let entry = insert(&table, &new(flow, server, method), now);
        let hit = lookup(&table, &flow).unwrap();
        assert_eq!((hit.entry, hit.direction), (entry, Direction::Forward));
        if client_v6 == server_v6 {
            let back = lookup(&table, &reply(&flow, &server)).map(|h| h.direction);
            assert_eq!(back, (method == Method::Masq).then_some(Direction::Reply), "{method:?}");
        }
        assert!(lookup(&table, &flow.reversed()).is_none());
        let udp = FlowKey {
            protocol: Protocol::UDP,
            ..flow
        };
        assert!(lookup(&table, &udp).is_none());
        assert!(table.lookup_template(&flow.into()).is_none());

        assert_eq!(entry.flow(), flow);
        assert_eq!(
            (entry.client(), entry.client_port()),
            (flow.source(), flow.source_port())
        );
        assert_eq!(
            (entry.virtual_address(), entry.virtual_port()),
            (flow.destination(), 80)
        );
        assert_eq!((entry.destination(), entry.destination_port()), (server.address, 8080));
        assert_eq!((entry.method(), entry.protocol()), (method, Protocol::TCP));
        assert_eq!((entry.destination_id(), entry.client_hop()), (7, 3));
        assert_eq!((entry.state(), entry.deadline()), (State::SynRecv, now.after(60 * 16)));
        entry.set_client_hop(9);
        entry.set_destination_id(11);
        assert_eq!((entry.destination_id(), entry.client_hop()), (11, 9));
    }
    assert_eq!(table.used(), 6);
}

#[test]
fn the_same_flow_is_there_once() {
    let table = ConnectionTable::anonymous(100, 1).unwrap();
    let first = new(flow(false, 1), server(false, 1), Method::Masq);
    let entry = insert(&table, &first, Tick(0));
    let second = new(flow(false, 1), server(false, 2), Method::Route);
    let again = table.insert(W, table.hash(&second.flow), &second, Tick(0), &mut none);
    assert_eq!(again, Err(InsertError::Exists(entry)));
    assert_eq!((table.used(), table.index.references()), (1, 2));
    // The slot that was not needed is dealt again.
    let other = insert(&table, &new(flow(false, 2), server(false, 2), Method::Route), Tick(0));
    assert_eq!(other.number(), entry.number() + 1);
}

/// Two services share a server and port, and a client uses the same port for both: the reply is of the entry made last,
/// and of the one before it when that ends.
#[test]
fn of_connections_with_the_same_reply_the_newest_is_found() {
    let table = ConnectionTable::anonymous(100, 1).unwrap();
    let to = |port: u32| {
        let flow = flow(false, 1);
        FlowKey {
            ports: flow.ports & 0xffff_0000 | port,
            ..flow
        }
    };
    let server = server(false, 1);
    let back = reply(&to(80), &server);
    // Others with other keys between them, so that places differ.
    let entries: Vec<_> = (0..20)
        .map(|n| {
            insert(&table, &new(flow(false, 100 + n), server, Method::Masq), Tick(0));
            insert(&table, &new(to(80 + n), server, Method::Masq), Tick(0))
        })
        .collect();
    for (n, entry) in entries.iter().enumerate().rev() {
        let hit = lookup(&table, &back).unwrap();
        assert_eq!((hit.entry, hit.direction), (*entry, Direction::Reply), "{n}");
        assert_eq!(lookup(&table, &to(80 + n as u32)).unwrap().entry, *entry);
        table.remove(*entry);
        if n % 2 == 0 {
            table.sweep(Tick(0), 1000, &mut none);
        }
    }
    assert!(lookup(&table, &back).is_none());
    table.sweep(Tick(0), 1000, &mut none);
    assert_eq!((table.used(), table.index.references()), (20, 40));
}

#[test]
fn a_table_can_be_filled_to_its_capacity() {
    for capacity in [1, 63, 64, 65, 1000, 50_000] {
        let table = ConnectionTable::anonymous(capacity, 1).unwrap();
        for client in 0..capacity {
            insert(
                &table,
                &new(flow(false, client), server(false, client % 3), Method::Masq),
                Tick(0),
            );
        }
        assert_eq!(table.used(), capacity as u64);
        for client in 0..capacity {
            let (flow, server) = (flow(false, client), server(false, client % 3));
            assert!(lookup(&table, &flow).is_some() && lookup(&table, &reply(&flow, &server)).is_some());
        }
    }
}

/// Goal: the first look finds nearly all, also those that are not in their home bucket (1.7 % of a full table). How: what two
/// keys with one tag in one bucket may cost is far below that.
#[test]
fn guesses_are_almost_always_right() {
    const CLIENTS: u32 = 50_000;
    let table = ConnectionTable::anonymous(CLIENTS, 1).unwrap();
    let connection = |client| (flow(false, client), server(false, client % 3));
    for (flow, server) in (0..CLIENTS).map(connection) {
        insert(&table, &new(flow, server, Method::Masq), Tick(0));
    }
    let reader = table.reader();
    let is_wrong = |key: &FlowKey| {
        let guess = reader.guess(table.hash(key));
        table.confirm(guess, key).is_none()
    };
    let keys = (0..CLIENTS)
        .map(connection)
        .flat_map(|(flow, server)| [flow, reply(&flow, &server)]);
    let wrong = keys.filter(is_wrong).count();
    assert!(wrong < CLIENTS as usize / 250, "{wrong} of {}", 2 * CLIENTS);
}

/// Goal: what is there is never called absent, what is not most often is. How: a full table, where some keys are not at home and some
/// buckets are full.
#[test]
fn absent_is_only_what_is_not_there() {
    let table = ConnectionTable::anonymous(4096, 1).unwrap();
    for client in 0..4096 {
        insert(
            &table,
            &new(flow(false, client), server(false, 1), Method::Masq),
            Tick(1),
        );
    }
    let absent = |clients: std::ops::Range<u32>| {
        let is_absent = |client: &u32| table.is_absent(table.hash(&flow(false, *client)));
        clients.filter(is_absent).count()
    };
    assert_eq!(absent(0..4096), 0);
    assert!(absent(10_000..11_000) > 800, "{}", absent(10_000..11_000));
}

#[test]
fn listing_shows_every_entry() {
    let table = ConnectionTable::anonymous(500, 1).unwrap();
    for client in 0..100 {
        insert(
            &table,
            &new(flow(client % 2 == 0, client), server(client % 2 == 0, 1), Method::Masq),
            Tick(client),
        );
    }
    let mut ports = Vec::new();
    table.for_each(|c| {
        assert_eq!(c.deadline, Tick(c.client.1 as u32 - 1024).after(60 * 16));
        ports.push(c.client.1);
    });
    ports.sort_unstable();
    assert_eq!(ports, (1024..1124).collect::<Vec<u16>>());
}

/// How: templates of one client and service, each of another call or of none, in both families. Goal: each is found by its
/// own Call-ID only, reads as it was written, and leaves nothing behind.
#[test]
fn templates_of_calls() {
    let table = ConnectionTable::anonymous(200, 1).unwrap();
    for v6 in [false, true] {
        let calls = [None, Some("a@b"), Some("a@c"), Some("d")].map(|text| text.map(|t| table.call_id(t.as_bytes())));
        for (n, call_id) in calls.into_iter().enumerate() {
            let key = TemplateKey {
                flow: flow(v6, 1),
                call_id,
            };
            let new = NewTemplate {
                key,
                destination: server(v6, n as u32 + 1),
                destination_id: n as u32,
                method: Method::Masq,
                timeout_ticks: 100,
                fwmark: 0,
            };
            assert_eq!(table.lookup_template(&key), None);
            let made = table.insert_template(W, &new, Tick(0), &mut none).unwrap();
            assert_eq!(
                table.insert_template(W, &new, Tick(0), &mut none),
                Err(InsertError::Exists(made))
            );
            assert_eq!(made.call_id(), call_id);
            assert_eq!(made.flow(), key.flow);
            assert_eq!(
                (made.destination(), made.destination_port()),
                (new.destination.address, new.destination.port)
            );
            assert!(lookup(&table, &key.flow).is_none(), "no packet is a template");
        }
        for (n, call_id) in calls.into_iter().enumerate() {
            let key = TemplateKey {
                flow: flow(v6, 1),
                call_id,
            };
            assert_eq!(table.lookup_template(&key).map(|t| t.destination_id()), Some(n as u32));
        }
    }
    let mut ended = 0;
    table.sweep(Tick(101), usize::MAX, &mut |_| ended += 1);
    assert_eq!((ended, table.used(), table.index.references()), (8, 0, 0));
}

/// How: a NAT connection is entered in two steps, and ends between them or not. Goal: replies find it after the second, and one
/// that has ended leaves nothing behind.
#[test]
fn the_second_key_may_come_later() {
    for ends_between in [false, true] {
        let table = ConnectionTable::anonymous(100, 1).unwrap();
        table.online(W);
        let (flow, server) = (flow(false, 1), server(false, 1));
        let new = new(flow, server, Method::Masq);
        let now = Tick(1000);
        let (entry, link) = table
            .insert_one_way(W, table.hash(&flow), &new, now, &mut none)
            .unwrap();
        let reply = reply(&flow, &server);
        assert!(lookup(&table, &flow).is_some() && lookup(&table, &reply).is_none());
        if ends_between {
            assert!(table.remove(entry).is_some());
            table.quiescent(W);
            while table.reclaim(1) {}
        }
        assert!(table.link_replies(link.unwrap()).is_none());
        let found = lookup(&table, &reply).map(|hit| hit.entry.number());
        assert_eq!(found, (!ends_between).then_some(entry.number()));
        assert_eq!(table.index.references(), if ends_between { 0 } else { 2 });
    }
    let table = ConnectionTable::anonymous(100, 1).unwrap();
    let new = new(flow(false, 1), server(false, 1), Method::Route);
    let inserted = table.insert_one_way(W, table.hash(&new.flow), &new, Tick(1000), &mut none);
    assert!(inserted.unwrap().1.is_none(), "no reply comes this way");
}
