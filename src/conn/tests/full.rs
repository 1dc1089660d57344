//! A table without room: what goes first, what never goes.

use super::basic::*;
use crate::conn::*;
use crate::packet::TcpFlags;
use crate::service::Method;

const ACK: TcpFlags = TcpFlags(TcpFlags::ACK);

fn establish(entry: EntryRef<'_>, now: Tick) {
    entry.touch(Direction::Forward, ACK, now, &TimeoutTable::default());
}

/// Fills the table; every client below `established` opens fully.
fn fill(table: &ConnectionTable, v6: bool, count: u32, established: u32) {
    for client in 0..count {
        let entry = insert(table, &new(flow(v6, client), server(v6, 1), Method::Masq), Tick(client));
        if client < established {
            establish(entry, Tick(client));
        }
    }
}

fn insert_one_more(table: &ConnectionTable, v6: bool, client: u32, now: Tick) -> Result<Vec<u16>, ()> {
    let mut replaced = Vec::new();
    let new = new(flow(v6, client), server(v6, 1), Method::Masq);
    let inserted = table.insert(W, table.hash(&new.flow), &new, now, &mut |c| {
        assert_eq!(c.state, State::SynRecv);
        replaced.push(c.client.1 - 1024);
    });
    match inserted {
        Ok(_) => Ok(replaced),
        Err(InsertError::Full) => Err(()),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn the_oldest_half_open_goes_first() {
    let table = ConnectionTable::anonymous(1024, 1).unwrap();
    fill(&table, false, 1024, 1000);
    assert_eq!((table.used(), table.capacity()), (1024, 1024));
    for n in 0..24 {
        let more = insert_one_more(&table, false, 2000 + n as u32, Tick(3000));
        assert_eq!(more, Ok(vec![1000 + n]));
        assert_eq!(table.used(), 1024);
        assert!(lookup(&table, &flow(false, 1000 + n as u32)).is_none());
    }
    // Then those that came just now; and established ones never.
    assert_eq!(insert_one_more(&table, false, 4000, Tick(3001)).map(|r| r.len()), Ok(1));
    assert!((0..1000).all(|client| lookup(&table, &flow(false, client)).is_some()));
}

#[test]
fn established_never_go() {
    let table = ConnectionTable::anonymous(1024, 1).unwrap();
    fill(&table, false, 1024, 1024);
    assert_eq!(insert_one_more(&table, false, 2000, Tick(3000)), Err(()));
    assert!(lookup(&table, &flow(false, 2000)).is_none());
    // Known at this tick; at the next, one that has become free is found.
    assert_eq!(insert_one_more(&table, false, 2001, Tick(3000)), Err(()));
    table.remove(lookup(&table, &flow(false, 5)).unwrap().entry);
    assert_eq!(insert_one_more(&table, false, 2002, Tick(3000)), Ok(vec![]));
    assert_eq!(table.used(), 1024);
    assert_eq!(
        table.index.references(),
        2 * 1024 + 2,
        "the removed one is still in the index"
    );
    table.sweep(Tick(3000), usize::MAX, &mut none);
    assert_eq!(table.index.references(), 2 * 1024);
}

/// A client of an FTP service can announce any number of data connections.
#[test]
fn announced_connections_make_room() {
    let table = ConnectionTable::anonymous(1024, 1).unwrap();
    for client in 0..1024 {
        let mut announced = new(flow(false, client), server(false, 1), Method::Masq);
        announced.state = State::Listen;
        insert(&table, &announced, Tick(client));
    }
    let more = new(flow(false, 2000), server(false, 1), Method::Masq);
    let mut replaced = Vec::new();
    let inserted = table.insert(W, table.hash(&more.flow), &more, Tick(3000), &mut |gone| {
        replaced.push(gone.state)
    });
    assert!(inserted.is_ok());
    assert_eq!(replaced, [State::Listen]);
}

/// TIME_WAIT and CLOSE hold nothing that anybody misses: a busy service of short connections goes on.
#[test]
fn what_is_over_makes_room() {
    let table = ConnectionTable::anonymous(1024, 1).unwrap();
    fill(&table, false, 1024, 1024);
    let timeouts = TimeoutTable::default();
    let fin = TcpFlags(TcpFlags::FIN | TcpFlags::ACK);
    let closed = lookup(&table, &flow(false, 5)).unwrap().entry;
    closed.touch(Direction::Reply, fin, Tick(2000), &timeouts);
    closed.touch(Direction::Forward, fin, Tick(2001), &timeouts);
    assert_eq!(closed.state(), State::TimeWait);
    let reset = lookup(&table, &flow(false, 6)).unwrap().entry;
    reset.touch(Direction::Reply, TcpFlags(TcpFlags::RST), Tick(2002), &timeouts);
    assert_eq!(reset.state(), State::Close);
    for (n, client) in [2000, 2001].into_iter().enumerate() {
        let new = new(flow(false, client), server(false, 1), Method::Masq);
        let mut replaced = Vec::new();
        let hash = table.hash(&new.flow);
        let inserted = table.insert(W, hash, &new, Tick(3000), &mut |c| replaced.push(c.state));
        assert!(inserted.is_ok());
        assert_eq!(replaced, [[State::Close], [State::TimeWait]][n]);
        establish(lookup(&table, &new.flow).unwrap().entry, Tick(3000));
    }
    assert_eq!(insert_one_more(&table, false, 2002, Tick(3001)), Err(()));
}

/// The attack: connections that are opened and never completed, far more than there is room for.
#[test]
fn a_flood_replaces_itself_without_end() {
    for capacity in [1024, 20_000] {
        let table = ConnectionTable::anonymous(capacity, 1).unwrap();
        table.online(W);
        fill(&table, false, capacity / 2, capacity / 2);
        let mut replaced = 0;
        for n in 0..capacity * 4 {
            let client = capacity + n;
            let more = insert_one_more(&table, false, client, Tick(100_000 + n / 1000)).unwrap();
            replaced += more.len() as u32;
            if n % 64 == 63 {
                table.quiescent(W);
            }
        }
        assert!((0..capacity / 2).all(|client| lookup(&table, &flow(false, client)).is_some()));
        assert!(
            table.used() <= capacity as u64 && table.used() > capacity as u64 - 32,
            "{}",
            table.used()
        );
        assert_eq!(
            table.used(),
            capacity as u64 / 2 + capacity as u64 * 4 - replaced as u64
        );
        // Of the flood, the newest are there.
        let newest = (0..capacity / 4).filter(|n| lookup(&table, &flow(false, capacity * 5 - 1 - n)).is_some());
        assert!(newest.count() as u32 > capacity / 5);
    }
}

#[test]
fn wide_entries_count_twice() {
    let table = ConnectionTable::anonymous(100, 1).unwrap();
    fill(&table, true, 50, 50);
    assert_eq!(insert_one_more(&table, true, 60, Tick(1000)), Err(()));
    assert_eq!(insert_one_more(&table, false, 61, Tick(1001)), Err(()));
    let table = ConnectionTable::anonymous(100, 1).unwrap();
    fill(&table, true, 50, 40);
    assert_eq!(
        insert_one_more(&table, true, 60, Tick(1000)),
        Ok(vec![40, 41]),
        "room for two"
    );
}

#[test]
fn at_most_100_bytes_a_connection() {
    for capacity in [100_000, 1_000_000] {
        let table = ConnectionTable::anonymous(capacity, 2).unwrap();
        let bytes = table.bytes() as f64 / capacity as f64;
        assert!(bytes <= 100.0, "{bytes} bytes a connection at {capacity}");
    }
}
