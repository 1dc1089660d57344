//! `drop_entry`: which entries go, and how many. How: one connection of each kind in a table, dropped from until none goes any
//! more, by what the kernel does.

use super::basic::*;
use crate::conn::*;
use crate::packet::{FlowKey, Protocol, TcpFlags};
use crate::service::Method;

const ACK: TcpFlags = TcpFlags(TcpFlags::ACK);
const FIN: TcpFlags = TcpFlags(TcpFlags::FIN | TcpFlags::ACK);

/// Drops until surely each entry was looked at.
fn drop_all(table: &ConnectionTable, now: Tick) -> Vec<u16> {
    let mut ports = Vec::new();
    let mut dropper = EntryDropper::new(7);
    for _ in 0..2000 {
        let mut each = |gone: &Connection| ports.push(gone.client.1);
        table.drop_entries(&mut dropper, now, &TimeoutTable::default(), &mut each);
    }
    ports.sort_unstable();
    ports
}

fn udp(client: u32) -> NewConnection<'static> {
    let flow = FlowKey {
        protocol: Protocol::UDP,
        ..flow(false, client)
    };
    NewConnection {
        state: State::Udp,
        timeout_ticks: TimeoutTable::default().ticks(State::Udp),
        ..new(flow, server(false, 1), Method::Masq)
    }
}

#[test]
fn half_open_and_idle_connections_go() {
    let timeouts = TimeoutTable::default();
    let table = ConnectionTable::anonymous(1000, 1).unwrap();
    let start = Tick(16_000);
    let open = |client| insert(&table, &new(flow(false, client), server(false, 1), Method::Masq), start);
    let _half_open = open(1);
    let established = open(2);
    established.touch(Direction::Forward, ACK, start, &timeouts);
    let closing = open(3);
    closing.touch(Direction::Forward, ACK, start, &timeouts);
    closing.touch(Direction::Reply, FIN, start, &timeouts);
    let busy = open(4);
    for second in 0..12 {
        busy.touch(Direction::Forward, ACK, start.after(second * 16), &timeouts);
    }
    insert(&table, &udp(5), start);
    let template = NewTemplate {
        key: flow(false, 6).into(),
        destination: server(false, 1),
        destination_id: 7,
        method: Method::Masq,
        timeout_ticks: 360 * 16,
        fwmark: 0,
    };
    table.insert_template(W, &template, start, &mut none).unwrap();

    assert_eq!(drop_all(&table, start.after(59 * 16)), [1025], "half-open only");
    // After a minute without a packet. The one that had many stays, and so do the template and what is closing.
    assert_eq!(drop_all(&table, start.after(80 * 16)), [1026, 1029]);
    assert!(busy.is_live() && closing.is_live());
    assert_eq!(table.used(), 3);
    table.sweep(start, usize::MAX, &mut none);
    assert_eq!(table.used(), 3, "the index is whole");
}

#[test]
fn half_open_with_secure_tcp() {
    let timeouts = TimeoutTable::default().with_secure_tcp(true);
    let table = ConnectionTable::anonymous(1000, 1).unwrap();
    let entry = insert(&table, &new(flow(false, 1), server(false, 1), Method::Masq), Tick(16));
    entry.touch(
        Direction::Reply,
        TcpFlags(TcpFlags::SYN | TcpFlags::ACK),
        Tick(16),
        &timeouts,
    );
    entry.touch(Direction::Forward, ACK, Tick(16), &timeouts);
    assert_eq!(entry.state(), State::SynAck);
    assert_eq!(drop_all(&table, Tick(17)), [1025]);
}

/// A thirty-second of the entries a second, on average.
#[test]
fn a_part_of_the_table_a_second() {
    let table = ConnectionTable::anonymous(65_536, 1).unwrap();
    for client in 0..50_000 {
        insert(
            &table,
            &new(flow(false, client), server(false, 1), Method::Route),
            Tick(16),
        );
    }
    let mut dropper = EntryDropper::new(1);
    let mut gone = 0;
    for _ in 0..8 {
        gone += table.drop_entries(&mut dropper, Tick(16), &TimeoutTable::default(), &mut |_| {});
    }
    // 8/32 with replacement: 1 - (31/32)^8 = 22 %.
    assert!((9_000..13_500).contains(&gone), "{gone}");
    assert_eq!(table.used(), 50_000 - gone as u64);
}

/// Of connections that had n packets, one in n goes.
#[test]
fn one_in_so_many_packets() {
    let timeouts = TimeoutTable::default();
    let table = ConnectionTable::anonymous(60, 1).unwrap();
    let start = Tick(16_000);
    for client in 0..40 {
        let entry = insert(&table, &udp(client), start);
        for second in 1..4 {
            entry.touch(Direction::Forward, TcpFlags(0), start.after(second * 16), &timeouts);
        }
    }
    // The whole chunk is looked at: of 40 connections with four packets ten go.
    let mut dropper = EntryDropper::new(1);
    let mut gone = 0;
    while gone == 0 {
        gone = table.drop_entries(&mut dropper, start.after(64 * 16), &timeouts, &mut |_| {});
    }
    assert_eq!(gone, 10);
}
