//! Several workers and the control thread at once. What each thread knows of its own connections must hold at any time,
//! and at the end the numbers must come out.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::basic::*;
use crate::conn::*;
use crate::packet::TcpFlags;
use crate::packet::steady::Tcp;
use crate::service::Method;

const ACK: TcpFlags = TcpFlags(TcpFlags::ACK);

/// A small generator of numbers (xorshift32), the same ones at every run.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        ((self.0 as u64 * below as u64) >> 32) as u32
    }
}

/// Counts down at its end.
struct Countdown<'a>(&'a AtomicU32);

impl Drop for Countdown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Each worker inserts, finds and removes connections of its own; the control thread sweeps. None may be lost or
/// belong to someone else, although slots and lanes are used again all the time.
#[test]
fn own_connections_are_never_lost() {
    own_connections(3000, 1500);
}

/// The same with 27 buckets for all: workers meet in them all the time.
#[test]
fn own_connections_are_never_lost_in_few_buckets() {
    own_connections(20, 4000);
}

fn own_connections(clients: u32, rounds: u32) {
    const WORKERS: u32 = 3;
    let table = ConnectionTable::anonymous(clients * WORKERS, WORKERS as usize).unwrap();
    let running = AtomicU32::new(WORKERS);
    let expired = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (table, running) = (&table, &running);
            scope.spawn(move || {
                // Also when it fails, so that the test ends.
                let _done = Countdown(running);
                own_worker(table, worker, clients, rounds);
            });
        }
        scope.spawn(|| {
            while running.load(Ordering::Acquire) != 0 {
                // Nothing is due: only retired ones are brought back to use.
                table.sweep(Tick(10), 2000, &mut |_| {
                    expired.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
    });
    assert_eq!(expired.load(Ordering::Relaxed), 0);
    let mut listed = 0;
    table.for_each(|_| listed += 1);
    assert_eq!(listed, table.used());
    table.sweep(Tick(u32::MAX), usize::MAX, &mut |_| ());
    assert_eq!(
        (table.used(), table.index.references(), table.index.control_sum()),
        (0, 0, 0)
    );
}

fn own_worker(table: &ConnectionTable, worker: u32, clients: u32, rounds: u32) {
    let id = WorkerId(worker as u16);
    let mut numbers = Numbers(worker + 1);
    let mut mine = vec![false; clients as usize];
    table.online(id);
    for round in 0..rounds {
        for _ in 0..64 {
            let n = numbers.next(clients);
            own_step(table, id, worker * clients + n, &mut mine[n as usize]);
        }
        if round % 100 == 99 {
            table.offline(id);
            std::thread::yield_now();
            table.online(id);
        } else {
            table.quiescent(id);
        }
    }
    table.offline(id);
}

fn own_step(table: &ConnectionTable, id: WorkerId, client: u32, mine: &mut bool) {
    let v6 = client.is_multiple_of(5);
    let (flow, server) = (flow(v6, client), server(v6, client % 100));
    let hash = table.hash(&flow);
    let guess = table.reader().guess(hash);
    let hit = table.confirm(guess, &flow).or_else(|| table.lookup(hash, &flow));
    assert_eq!(hit.is_some(), *mine, "client {client}");
    let back = reply(&flow, &server);
    let reply = table.lookup(table.hash(&back), &back);
    assert_eq!(reply.is_some(), *mine, "reply of client {client}");
    match hit {
        Some(hit) => {
            assert_eq!(hit.entry.flow(), flow);
            assert_eq!(reply.map(|r| r.entry), Some(hit.entry));
            assert_eq!(hit.entry.destination(), server.address);
            assert!(table.remove(hit.entry).is_some());
            assert_eq!(hit.entry.flow(), flow, "it stays readable");
        }
        None => {
            let new = new(flow, server, Method::Masq);
            // All slots may be in limbo for a moment.
            if table.insert(id, hash, &new, Tick(1), &mut none).is_err() {
                return;
            }
        }
    }
    *mine = !*mine;
}

/// Workers insert the same connections at the same time: each is there once, and all workers get that one.
#[test]
fn the_same_connection_is_inserted_once() {
    const WORKERS: usize = 3;
    const CLIENTS: u32 = 20_000;
    let table = ConnectionTable::anonymous(CLIENTS, WORKERS).unwrap();
    let inserted = AtomicU64::new(0);
    let line = std::sync::Barrier::new(WORKERS);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (table, inserted, line) = (&table, &inserted, &line);
            scope.spawn(move || {
                let id = WorkerId(worker as u16);
                table.online(id);
                line.wait();
                for client in 0..CLIENTS - 200 {
                    let new = new(flow(false, client), server(false, client % 3), Method::Masq);
                    let entry = loop {
                        match table.insert(id, table.hash(&new.flow), &new, Tick(1), &mut none) {
                            Ok(entry) => {
                                inserted.fetch_add(1, Ordering::Relaxed);
                                break entry;
                            }
                            Err(InsertError::Exists(there)) => break there,
                            // There are slots: the holder of a bucket's lock does not run.
                            Err(InsertError::Full) => {
                                assert!(table.slots.left() > 0, "full at {client}");
                                table.quiescent(id);
                                std::thread::yield_now();
                            }
                        }
                    };
                    assert_eq!(entry.flow(), new.flow);
                    // Whoever inserted it takes it back where its replies' bucket stays locked.
                    let found = lookup(table, &new.flow).map(|h| h.entry);
                    assert!(found == Some(entry) || !entry.is_live(), "client {client}: {found:?}");
                    if client.is_multiple_of(64) {
                        table.quiescent(id);
                    }
                }
                table.offline(id);
            });
        }
    });
    // Nothing is due: what was taken back leaves the index.
    table.sweep(Tick(1), usize::MAX, &mut |_| panic!("due at once"));
    assert_eq!(inserted.load(Ordering::Relaxed), (CLIENTS - 200) as u64);
    assert_eq!(table.used(), (CLIENTS - 200) as u64);
    assert_eq!(table.index.references(), 2 * (CLIENTS as usize - 200));
}

/// Two workers see the two directions of the same connections while the sweep ends some: every state change and every
/// end is told to exactly one thread, so the counts come out.
#[test]
fn state_changes_and_ends_are_counted_once() {
    const CLIENTS: u32 = 2000;
    let table = ConnectionTable::anonymous(CLIENTS * 2, 2).unwrap();
    let load = crate::scheduler::Loads::new(2).make();
    let running = AtomicU32::new(2);
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (table, load, running) = (&table, &load, &running);
            scope.spawn(move || {
                let _done = Countdown(running);
                let id = WorkerId(worker);
                let timeouts = TimeoutTable::new(&crate::service::Timeouts {
                    tcp: 1,
                    tcp_fin: 1,
                    udp: 1,
                });
                let mut numbers = Numbers(worker as u32 + 77);
                table.online(id);
                for n in 0..300_000u32 {
                    let now = Tick(n / 500);
                    let (client, flags) = (numbers.next(CLIENTS), TcpFlags(numbers.next(32) as u8));
                    let flow = flow(false, client);
                    let server = server(false, 1);
                    let key = if worker == 0 { flow } else { reply(&flow, &server) };
                    if let Some(hit) = lookup(table, &key) {
                        if let Some(change) = hit.entry.touch(hit.direction, flags, now, &timeouts) {
                            change.count_on(load, id);
                        }
                        if n.is_multiple_of(50)
                            && let Some(gone) = table.remove(hit.entry)
                        {
                            load.remove(worker, gone.state.is_active(), 0, 0);
                        }
                    } else if worker == 0 {
                        let new = new(flow, server, Method::Masq);
                        load.add(worker, true, 0);
                        if table.insert(id, table.hash(&flow), &new, now, &mut none).is_err() {
                            load.remove(worker, true, 0, 0);
                        }
                    }
                    if n.is_multiple_of(64) {
                        table.quiescent(id);
                    }
                }
                table.offline(id);
            });
        }
        scope.spawn(|| {
            let mut n = 0;
            while running.load(Ordering::Acquire) != 0 {
                n += 1;
                table.sweep(Tick(n / 100), 1000, &mut |gone| {
                    load.remove(9, gone.state.is_active(), 0, 0)
                });
            }
        });
    });
    let mut by_state = [0, 0];
    table.for_each(|c| by_state[c.state.is_active() as usize] += 1);
    assert_eq!([load.inactive(), load.active()], by_state);
    table.sweep(Tick(u32::MAX), usize::MAX, &mut |gone| {
        load.remove(9, gone.state.is_active(), 0, 0)
    });
    assert_eq!((load.total(), table.used()), (0, 0));
}

/// Goal: a renewal takes back no change of state. How: one worker renews all the time, another changes states and looks.
#[test]
fn renewals_take_back_nothing() {
    let table = ConnectionTable::anonymous(100, 2).unwrap();
    let timeouts = TimeoutTable::default();
    let flow = flow(false, 1);
    let entry = insert(&table, &new(flow, server(false, 1), Method::Masq), Tick(0));
    let running = AtomicU32::new(1);
    let renewals = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = table.reader();
            let guess = reader.guess(table.hash(&flow));
            for n in 0.. {
                reader.renew_steady::<Tcp>(guess, Tick(1000 + n % 2 * 100));
                renewals.store(n, Ordering::Relaxed);
                if running.load(Ordering::Relaxed) == 0 {
                    break;
                }
            }
        });
        let _done = Countdown(&running);
        let fin = TcpFlags(TcpFlags::FIN | TcpFlags::ACK);
        let mut rounds = 0;
        while rounds < 300_000 || renewals.load(Ordering::Relaxed) < 500_000 {
            rounds += 1;
            for (direction, flags, to) in [
                (Direction::Forward, ACK, State::Established),
                (Direction::Reply, fin, State::FinWait),
                (Direction::Forward, SYN, State::SynRecv),
            ] {
                let change = entry.touch(direction, flags, Tick(0), &timeouts);
                assert_eq!(change.map(|change| change.to), Some(to));
                assert_eq!(entry.state(), to);
            }
        }
    });
}

/// The flood from several workers at once against established connections of a third.
#[test]
fn a_flood_by_several_workers_leaves_established_alone() {
    const CAPACITY: u32 = 8000;
    let table = ConnectionTable::anonymous(CAPACITY, 3).unwrap();
    let timeouts = TimeoutTable::default();
    for client in 0..CAPACITY / 2 {
        let entry = insert(
            &table,
            &new(flow(false, client), server(false, 1), Method::Masq),
            Tick(1),
        );
        entry.touch(Direction::Forward, ACK, Tick(1), &timeouts);
    }
    let replaced = AtomicU64::new(0);
    let inserted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..2u16 {
            let (table, replaced, inserted) = (&table, &replaced, &inserted);
            scope.spawn(move || {
                let id = WorkerId(worker);
                table.online(id);
                for n in 0..60_000u32 {
                    let new = new(
                        flow(false, CAPACITY * (worker as u32 + 1) * 10 + n),
                        server(false, 2),
                        Method::Masq,
                    );
                    let mut evicted = |c: &Connection| {
                        assert!(c.state.gives_way());
                        replaced.fetch_add(1, Ordering::Relaxed);
                    };
                    if table
                        .insert(id, table.hash(&new.flow), &new, Tick(2 + n / 500), &mut evicted)
                        .is_ok()
                    {
                        inserted.fetch_add(1, Ordering::Relaxed);
                    } else {
                        // All slots are in limbo: some worker does not run.
                        table.quiescent(id);
                        std::thread::yield_now();
                    }
                    if n % 64 == 63 {
                        table.quiescent(id);
                    }
                }
                table.offline(id);
            });
        }
        scope.spawn(|| {
            let id = WorkerId(2);
            table.online(id);
            for n in 0..200_000 {
                let client = n % (CAPACITY / 2);
                let hit = lookup(&table, &flow(false, client)).expect("established");
                assert_eq!(hit.entry.state(), State::Established);
                if n % 64 == 63 {
                    table.quiescent(id);
                }
            }
            table.offline(id);
        });
    });
    let (inserted, replaced) = (inserted.into_inner(), replaced.into_inner());
    assert_eq!(table.used(), CAPACITY as u64 / 2 + inserted - replaced);
    assert!(table.used() <= CAPACITY as u64);
    assert!(
        inserted > CAPACITY as u64,
        "nearly all of the flood was refused: {inserted}"
    );
    let mut giving_way = 0;
    table.for_each(|c| giving_way += c.state.gives_way() as u64);
    let chunks = 0..table.slots.chunks();
    let counted: u64 = chunks.map(|n| table.chunks.get(n).giving_way() as u64).sum();
    assert_eq!((giving_way, counted), (inserted - replaced, inserted - replaced));
}
