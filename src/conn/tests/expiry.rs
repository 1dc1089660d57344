//! Deadlines, the sweep, templates. Time is an argument, so nothing here waits.

use super::basic::*;
use crate::conn::*;
use crate::packet::steady::{Tcp, Udp};
use crate::packet::{FlowKey, Protocol, TcpFlags};
use crate::service::Method;

const ACK: TcpFlags = TcpFlags(TcpFlags::ACK);
const FIN: TcpFlags = TcpFlags(TcpFlags::FIN | TcpFlags::ACK);
const RST: TcpFlags = TcpFlags(TcpFlags::RST);
/// Each with the side it comes from.
type Segments = &'static [(Direction, TcpFlags)];

const EVERYTHING: usize = usize::MAX;

/// Numbers of the clients whose connections expire at this tick.
fn expired(table: &ConnectionTable, now: Tick) -> Vec<u16> {
    let mut ports = Vec::new();
    let report = table.sweep(now, EVERYTHING, &mut |c| ports.push(c.client.1));
    assert_eq!(
        report,
        SweepReport {
            expired: ports.len(),
            complete: true
        }
    );
    ports
}

#[test]
fn each_state_lasts_as_long_as_the_kernel_says() {
    let timeouts = TimeoutTable::default();
    // Segments after the SYN, with their direction, and the seconds that the state they lead to lasts.
    let cases: [(Segments, State, u32); 6] = [
        (&[], State::SynRecv, 60),
        (&[(Direction::Forward, ACK)], State::Established, 900),
        (
            &[(Direction::Forward, ACK), (Direction::Reply, FIN)],
            State::FinWait,
            120,
        ),
        (
            &[(Direction::Forward, ACK), (Direction::Forward, FIN)],
            State::CloseWait,
            60,
        ),
        (
            &[
                (Direction::Forward, ACK),
                (Direction::Reply, FIN),
                (Direction::Forward, FIN),
            ],
            State::TimeWait,
            120,
        ),
        (&[(Direction::Forward, ACK), (Direction::Reply, RST)], State::Close, 10),
    ];
    for (segments, state, seconds) in cases {
        let table = ConnectionTable::anonymous(100, 1).unwrap();
        let start = Tick(16_000);
        let entry = insert(&table, &new(flow(false, 1), server(false, 1), Method::Masq), start);
        // Each segment a second after the one before.
        let mut now = start;
        for (direction, flags) in segments {
            now = now.after(16);
            entry.touch(*direction, *flags, now, &timeouts);
        }
        assert_eq!(entry.state(), state);
        let end = now.after(seconds * 16);
        assert_eq!(expired(&table, Tick(end.0 - 1)), [0; 0], "{state:?} a tick early");
        assert_eq!(expired(&table, end), [1025], "{state:?}");
        assert!(lookup(&table, &flow(false, 1)).is_none());
        assert!(lookup(&table, &reply(&flow(false, 1), &server(false, 1))).is_none());
        assert_eq!(
            (table.used(), table.index.references(), table.index.control_sum()),
            (0, 0, 0)
        );
    }
}

#[test]
fn every_packet_re_arms_in_steps_of_half_a_second() {
    let table = ConnectionTable::anonymous(100, 1).unwrap();
    let timeouts = TimeoutTable::default();
    let start = Tick(1000);
    let entry = insert(&table, &new(flow(false, 1), server(false, 1), Method::Route), start);
    let change = entry.touch(Direction::Forward, ACK, start, &timeouts);
    assert_eq!(
        change,
        Some(StateChange {
            from: State::SynRecv,
            to: State::Established
        })
    );
    let first = entry.deadline();
    assert_eq!(first, start.after(900 * 16));
    assert_eq!(entry.touch(Direction::Forward, ACK, start.after(7), &timeouts), None);
    assert_eq!(entry.deadline(), first, "written for less than half a second");
    assert_eq!(entry.touch(Direction::Forward, ACK, start.after(8), &timeouts), None);
    assert_eq!(entry.deadline(), first.after(8));
    // A shorter --set holds from the next packet on, and the sweep knows.
    let shorter = TimeoutTable::new(&crate::service::Timeouts {
        tcp: 30,
        tcp_fin: 7,
        udp: 11,
    });
    entry.touch(Direction::Forward, ACK, start.after(9), &shorter);
    assert_eq!(entry.deadline(), start.after(9 + 30 * 16));
    assert_eq!(expired(&table, start.after(9 + 30 * 16)), [1025]);
}

/// Goal: what is written for a steady packet afterwards is written if it moves the deadline by half a second, once, and never over that
/// of a later packet that changed the state.
#[test]
fn a_renewal_writes_once_and_only_what_is_still_steady() {
    let table = ConnectionTable::anonymous(100, 1).unwrap();
    let timeouts = TimeoutTable::default();
    let flow = flow(false, 1);
    let entry = insert(&table, &new(flow, server(false, 1), Method::Masq), Tick(0));
    entry.touch(Direction::Forward, ACK, Tick(0), &timeouts);
    let reader = table.reader();
    let guess = reader.guess(table.hash(&flow));
    let begun = (entry.deadline(), entry.control().touches());
    let renewed = |until| {
        reader.renew_steady::<Tcp>(guess, until);
        (entry.deadline(), entry.control().touches())
    };
    assert_eq!(renewed(begun.0.after(7)), begun, "hardly later");
    let later = begun.0.after(8);
    reader.renew_steady::<Udp>(guess, later);
    assert_eq!(entry.deadline(), begun.0, "of another protocol");
    assert_eq!(renewed(later), (later, begun.1 + 1));
    assert_eq!(renewed(later), (later, begun.1 + 1), "two packets in a batch");
    // `--set` said less since.
    assert_eq!(renewed(Tick(50)), (Tick(50), begun.1 + 2));
    entry.touch(Direction::Forward, FIN, Tick(0), &timeouts);
    let closing = (entry.deadline(), entry.control().touches());
    assert_eq!(renewed(later.after(100)), closing, "a FIN came after it");
    table.remove(entry);
    let retired = entry.control();
    reader.renew_steady::<Tcp>(guess, later);
    assert_eq!(entry.control(), retired);
}

#[test]
fn a_retired_entry_does_not_come_back() {
    let table = ConnectionTable::anonymous(100, 1).unwrap();
    table.online(W);
    let entry = insert(&table, &new(flow(false, 1), server(false, 1), Method::Masq), Tick(1));
    let gone = table.remove(entry).unwrap();
    assert_eq!(
        (gone.state, gone.destination_id, gone.client.1),
        (State::SynRecv, 7, 1025)
    );
    assert!(table.remove(entry).is_none(), "only one thread gets it");
    assert!(!entry.is_live());
    assert_eq!(
        entry.touch(Direction::Forward, ACK, Tick(1000), &TimeoutTable::default()),
        None
    );
    assert!(!entry.is_live());
    // It can still be read until the end of the batch, and its place is free for the same flow at once.
    assert_eq!(entry.flow(), flow(false, 1));
    assert_eq!(table.used(), 0);
    let again = insert(&table, &new(flow(false, 1), server(false, 2), Method::Masq), Tick(2));
    assert!(again != entry);
    assert_eq!(lookup(&table, &flow(false, 1)).unwrap().entry, again);
}

/// A slot is used again only when the worker that may hold it has passed a batch boundary.
#[test]
fn slots_wait_for_the_workers() {
    let table = ConnectionTable::anonymous(1, 2).unwrap();
    table.online(W);
    table.online(WorkerId(1));
    let first = insert(&table, &new(flow(false, 1), server(false, 1), Method::Masq), Tick(1));
    table.remove(first);
    let slots: Vec<u32> = (0..3000)
        .map_while(|n| {
            let new = new(flow(false, 2 + n), server(false, 1), Method::Masq);
            let entry = table.insert(W, table.hash(&new.flow), &new, Tick(1), &mut none).ok()?;
            table.remove(entry);
            table.sweep(Tick(1), EVERYTHING, &mut none);
            table.quiescent(W);
            Some(entry.number())
        })
        .collect();
    assert!(!slots.contains(&first.number()), "worker 1 may still hold it");
    assert_eq!(slots.len() as u32, slots::RESERVE_MIN, "and then there is none left");
    table.quiescent(WorkerId(1));
    table.sweep(Tick(1), EVERYTHING, &mut none);
    insert(&table, &new(flow(false, 5000), server(false, 1), Method::Masq), Tick(1));
}

fn template(client: u32) -> NewTemplate {
    let key = FlowKey::v4(Protocol::TCP, client, 0xc0a8_0001, 80);
    NewTemplate {
        key: key.into(),
        destination: server(false, 1),
        destination_id: 1,
        method: Method::Masq,
        timeout_ticks: 360 * 16,
        fwmark: 9,
    }
}

#[test]
fn a_template_lives_as_long_as_what_it_controls() {
    let table = ConnectionTable::anonymous(100, 1).unwrap();
    let timeouts = TimeoutTable::default();
    let new_template = template(0x0a00_0000);
    let template = table.insert_template(W, &new_template, Tick(0), &mut none).unwrap();
    assert_eq!(table.lookup_template(&new_template.key), Some(template));
    assert!(
        lookup(&table, &new_template.key.flow).is_none(),
        "no packet is a template"
    );
    let mut new = new(flow(false, 1), server(false, 1), Method::Masq);
    new.controller = Some(template);
    let entry = insert(&table, &new, Tick(0));
    assert!(entry.is_controlled());
    assert_eq!(template.read().unwrap().controlled, 1);
    entry.touch(Direction::Forward, ACK, Tick(0), &timeouts);

    // 360 s: the template goes on for 60 s, and again, while the connection (900 s) lives.
    assert_eq!(expired(&table, Tick(360 * 16)), [0; 0]);
    assert_eq!(template.deadline(), Tick(420 * 16));
    assert_eq!(expired(&table, Tick(420 * 16)), [0; 0]);
    assert_eq!(template.deadline(), Tick(480 * 16));
    // And so it stays: a new connection gives it 60 s too.
    template.rearm(Tick(430 * 16));
    assert_eq!(template.deadline(), Tick(490 * 16));
    assert_eq!(template.fwmark(), new_template.fwmark);
    assert_eq!(expired(&table, Tick(900 * 16)), [1025]);
    let end = template.deadline();
    assert_eq!(template.read().map(|c| c.controlled), Some(0));
    assert_eq!(expired(&table, end), [0], "the template's port");
    assert_eq!(table.lookup_template(&new_template.key), None);
    assert_eq!(table.used(), 0);
}

#[test]
fn a_new_connection_re_arms_its_template() {
    let table = ConnectionTable::anonymous(100, 1).unwrap();
    let entry = table.insert_template(W, &template(1), Tick(0), &mut none).unwrap();
    entry.rearm(Tick(100 * 16));
    assert_eq!(expired(&table, Tick(400 * 16)), [0; 0]);
    assert_eq!(expired(&table, Tick(460 * 16)), [0]);
}

/// The template ends first (removed), its slot serves another template: the connection's end must not count there.
#[test]
fn a_connection_outlives_its_template() {
    let table = ConnectionTable::anonymous(1, 1).unwrap();
    let slots = slots::RESERVE_MIN + 1;
    let old = table.insert_template(W, &template(1), Tick(0), &mut none).unwrap();
    let mut connection = new(flow(false, 1), server(false, 1), Method::Route);
    connection.controller = Some(old);
    table.remove(old);
    let entry = insert(&table, &connection, Tick(0));
    table.sweep(Tick(0), EVERYTHING, &mut none);
    table.remove(entry);
    for client in 0..2 * slots {
        let new_template = table
            .insert_template(W, &template(2 + client), Tick(0), &mut none)
            .unwrap();
        new_template.control_one_more();
        table.control_one_less((1 << 32) | (new_template.number() as u64 + 1));
        assert_eq!(new_template.read().unwrap().controlled, 1, "counted off by a stranger");
        table.remove(new_template);
        table.sweep(Tick(0), EVERYTHING, &mut none);
    }
}

#[test]
fn the_sweep_keeps_to_its_budget_and_misses_none() {
    let table = ConnectionTable::anonymous(10_000, 1).unwrap();
    for client in 0..10_000 {
        insert(
            &table,
            &new(flow(false, client), server(false, 1), Method::Masq),
            Tick(client % 160),
        );
    }
    let mut gone = 0;
    for round in 1.. {
        let report = table.sweep(Tick(1000 + 160), 640, &mut |_| gone += 1);
        assert!(report.expired <= 640 + 64, "round {round}: {report:?}");
        if report.complete {
            break;
        }
        assert!(round < 100);
    }
    assert_eq!((gone, table.used(), table.index.references()), (10_000, 0, 0));
}

/// Chunks whose entries are not due are passed without being read.
#[test]
fn the_sweep_passes_what_is_not_due() {
    let table = ConnectionTable::anonymous(10_000, 1).unwrap();
    for client in 0..10_000 {
        insert(
            &table,
            &new(flow(false, client), server(false, 1), Method::Masq),
            Tick(0),
        );
    }
    // A budget of 60 entries is enough to see that nothing is due in 172 chunks.
    assert!(table.sweep(Tick(10), 60, &mut none).complete);
    let entry = lookup(&table, &flow(false, 5000)).unwrap().entry;
    entry.touch(Direction::Reply, RST, Tick(16), &TimeoutTable::default());
    assert_eq!(expired(&table, Tick(16 + 160)), [1024 + 5000]);
}
