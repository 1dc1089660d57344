//! What survives a crash. A crash is a table that is forgotten: nothing is written at its end.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::basic::*;
use crate::conn::*;
use crate::packet::{FlowKey, Protocol, TcpFlags};
use crate::service::Method;

const ACK: TcpFlags = TcpFlags(TcpFlags::ACK);
const CAPACITY: u32 = 2000;
const BOOT: [u8; 16] = [7; 16];
const SLOTS_AT: u64 = 4096;

struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    assert!(is_tmpfs(folder.path()).unwrap(), "/dev/shm is no tmpfs");
    let path = folder.path().join("connections");
    Place { _folder: folder, path }
}

fn create(path: &Path) -> ConnectionTable {
    let entries = Entries::create(path, ConnectionTable::slots_for(CAPACITY), BOOT).unwrap();
    ConnectionTable::new(entries, 1)
}

fn open(path: &Path) -> Result<ConnectionTable, EntriesError> {
    let entries = Entries::open(path, BOOT)?;
    Ok(ConnectionTable::new(entries, 1))
}

fn keep(_: &Connection) -> Recovery {
    Recovery::Keep {
        destination_id: 99,
        client_hop: 5,
    }
}

#[test]
fn everything_is_there_again() {
    let place = place();
    let methods = [Method::Masq, Method::Route, Method::Tunnel];
    let mut before = Vec::new();
    {
        let table = create(&place.path);
        for client in 0..900 {
            let (v6, method) = (client % 4 == 3, methods[client as usize % 3]);
            let mut new = new(flow(v6, client), server(v6, client % 7), method);
            new.fwmark = client % 2;
            new.helped = method == Method::Masq && client % 5 == 0;
            let entry = insert(&table, &new, Tick(1000));
            if new.helped {
                assert!(entry.shift_by(client, -5));
                entry.set_passive(Passive::Extended);
                entry.control_one_more(); // means nothing after the crash
            }
            if client % 2 == 0 {
                entry.touch(Direction::Forward, ACK, Tick(1010), &TimeoutTable::default());
            }
            if client % 10 == 9 {
                table.remove(entry);
            } else {
                before.push(entry.read().unwrap());
            }
        }
        let key = FlowKey::v4(Protocol::IP, 0x0a00_0000, 5, 0);
        let template = NewTemplate {
            key: key.into(),
            destination: server(false, 1),
            destination_id: 1,
            method: Method::Masq,
            timeout_ticks: 5000,
            fwmark: 5,
        };
        let template = table.insert_template(W, &template, Tick(1000), &mut none).unwrap();
        before.push(template.read().unwrap());
        template.control_one_more(); // means nothing after the crash
        for (v6, call) in [(false, "a"), (false, "b"), (true, "a"), (true, "b")] {
            let template = NewTemplate {
                key: TemplateKey {
                    flow: flow(v6, 1),
                    call_id: Some(table.call_id(call.as_bytes())),
                },
                destination: server(v6, 1),
                destination_id: 1,
                method: Method::Masq,
                timeout_ticks: 5000,
                fwmark: 0,
            };
            let template = table.insert_template(W, &template, Tick(1000), &mut none).unwrap();
            before.push(template.read().unwrap());
        }
    }
    let table = open(&place.path).unwrap();
    let mut seen = Vec::new();
    let report = table.recover(Tick(1100), &mut |c| {
        seen.push(*c);
        keep(c)
    });
    assert_eq!(
        report,
        Recovered {
            kept: before.len(),
            ..Recovered::default()
        }
    );
    assert_eq!(table.used(), before.len() as u64);
    before.sort_by_key(|c| c.number);
    let mut helped = 0;
    for (seen, before) in seen.iter().zip(&before) {
        let runtime_aside = Connection {
            destination_id: before.destination_id,
            controlled: before.controlled,
            ..*seen
        };
        assert_eq!(runtime_aside, *before);
        let protocol = before.protocol;
        let flow = FlowKey::new(protocol, before.client, before.virtual_address);
        let entry = match before.kind {
            Kind::Template => {
                let call_id = before.call_id;
                table.lookup_template(&TemplateKey { flow, call_id }).unwrap()
            }
            Kind::Connection => lookup(&table, &flow).unwrap().entry,
        };
        assert_eq!((entry.destination_id(), entry.client_hop()), (99, 5));
        assert_eq!(entry.controlled(), 0);
        if before.helped {
            helped += 1;
            let shift = entry.shift();
            assert_eq!((shift.sequence(0), shift.sequence(90_000)), (0, 89_995));
            assert_eq!(entry.passive(), Passive::Extended);
        }
        if before.method == Method::Masq && before.kind == Kind::Connection {
            let back = FlowKey::new(protocol, before.destination, before.client);
            assert_eq!(lookup(&table, &back).map(|h| h.direction), Some(Direction::Reply));
        }
    }
    assert!(helped > 40, "{helped}");
    // A template lasts as long again as its service said when it began.
    let template = table
        .lookup_template(&FlowKey::v4(Protocol::IP, 0x0a00_0000, 5, 0).into())
        .unwrap();
    template.rearm(Tick(2000));
    assert_eq!(template.deadline(), Tick(7000));
    // And they end as they should have.
    let mut ended = 0;
    table.sweep(Tick(1010 + 900 * 16), usize::MAX, &mut |_| ended += 1);
    assert_eq!((ended, table.used(), table.index.references()), (before.len(), 0, 0));
    // New ones take no slot of old ones: all slots are free again.
    for client in 0..CAPACITY {
        insert(
            &table,
            &new(flow(false, client), server(false, 1), Method::Masq),
            Tick(1),
        );
    }
}

#[test]
fn expired_and_unknown_ones_go() {
    let place = place();
    {
        let table = create(&place.path);
        for client in 0..30 {
            insert(
                &table,
                &new(flow(false, client), server(false, 1), Method::Masq),
                Tick(client * 100),
            );
        }
    }
    let table = open(&place.path).unwrap();
    let now = Tick(60 * 16 + 1000);
    let report = table.recover(now, &mut |c| if c.client.1 % 2 == 0 { keep(c) } else { Recovery::Drop });
    assert_eq!(
        report,
        Recovered {
            kept: 9,
            expired: 11,
            dropped: 10,
            damaged: 0
        }
    );
    assert_eq!(table.used(), 9);
}

#[test]
fn damaged_entries_are_skipped_and_counted() {
    let place = place();
    let mut numbers = Vec::new();
    {
        let table = create(&place.path);
        for client in 0..20 {
            let v6 = client >= 10;
            let entry = insert(&table, &new(flow(v6, client), server(v6, 1), Method::Masq), Tick(1000));
            numbers.push(entry.number() as u64);
        }
    }
    let file = std::fs::OpenOptions::new().write(true).open(&place.path).unwrap();
    let write = |slot: u64, word: u64, bytes: &[u8]| {
        file.write_all_at(bytes, SLOTS_AT + slot * 64 + word * 8).unwrap();
    };
    write(numbers[0], 0, &[0x07]); // no such kind
    write(numbers[1], 0, &[0x41, 6, 0x55]); // no such state
    write(numbers[2], 0, &[0x41, 17, 1]); // a TCP state on UDP
    write(numbers[3], 0, &[0x41, 6, 1, 0, 0, 0, 0, 0xff]); // ends in the far future
    write(numbers[4], 0, &[0; 8]); // never finished: free
    write(numbers[10], 8, &[0; 8]); // its second half is gone
    // The same connection twice.
    let mut copy = [0; 64];
    std::fs::File::open(&place.path)
        .unwrap()
        .read_exact_at(&mut copy, SLOTS_AT + numbers[5] * 64)
        .unwrap();
    write(numbers[6], 0, &copy);
    // And a slot full of rubbish.
    write(1500, 0, &[0xa5; 64]);
    drop(file);

    let table = open(&place.path).unwrap();
    let report = table.recover(Tick(1000), &mut keep);
    assert_eq!(
        report,
        Recovered {
            kept: 13,
            expired: 0,
            dropped: 0,
            damaged: 7
        }
    );
    for client in [7, 8, 9, 11, 19] {
        assert!(lookup(&table, &flow(client >= 10, client)).is_some(), "{client}");
    }
    assert!(lookup(&table, &flow(false, 5)).is_some(), "one of the two");
    for client in [0, 1, 2, 3, 4, 6, 10] {
        assert!(lookup(&table, &flow(client >= 10, client)).is_none(), "{client}");
    }
    // Nothing of the damage is left: a third start finds the whole ones only.
    drop(table);
    let report = open(&place.path).unwrap().recover(Tick(1000), &mut keep);
    assert_eq!(
        report,
        Recovered {
            kept: 13,
            ..Recovered::default()
        }
    );
}

/// A start with more or fewer slots takes the entries along, wide ones at even places; those without room are counted.
#[test]
fn entries_move_to_a_file_of_another_size() {
    let place = place();
    {
        let table = create(&place.path);
        for client in 0..200 {
            let v6 = client % 3 == 0;
            let entry = insert(&table, &new(flow(v6, client), server(v6, 1), Method::Masq), Tick(1000));
            if client % 7 == 0 {
                table.remove(entry);
            }
        }
    }
    let before = Entries::open(&place.path, BOOT).unwrap();
    for (capacity, fits) in [(1500, true), (4000, true), (100, false)] {
        let moved = Entries::anonymous(ConnectionTable::slots_for(capacity)).unwrap();
        let lost = move_entries(&before, &moved);
        let table = ConnectionTable::new(moved, 1);
        let recovered = table.recover(Tick(1000), &mut keep);
        assert_eq!((lost, recovered.damaged == 0), (0, fits), "{capacity}: {recovered:?}");
        if fits {
            assert_eq!(recovered.kept, 171);
            for client in (0..200).filter(|client| client % 7 != 0) {
                assert!(lookup(&table, &flow(client % 3 == 0, client)).is_some(), "{client}");
            }
        }
    }
    let tiny = Entries::anonymous(50).unwrap();
    let lost = move_entries(&before, &tiny);
    assert!((171 - 50..=171 - 25).contains(&lost), "{lost}");
}

#[test]
fn refuses_what_is_not_its_own() {
    let place = place();
    let slots = ConnectionTable::slots_for(CAPACITY);
    let write = |at: u64, bytes: &[u8]| {
        let file = std::fs::OpenOptions::new().write(true).open(&place.path).unwrap();
        file.write_all_at(bytes, at).unwrap();
    };
    let error = |boot: [u8; 16]| Entries::open(&place.path, boot).unwrap_err();
    let missing = error(BOOT);
    assert!(matches!(missing, EntriesError::Io { ref source, .. } if source.kind() == std::io::ErrorKind::NotFound));

    drop(create(&place.path));
    assert!(matches!(error([8; 16]), EntriesError::OtherBoot { .. }));
    write(8, &[9]);
    assert!(matches!(error(BOOT), EntriesError::Version { found: 9, .. }));
    write(0, b"garbage!");
    assert!(matches!(error(BOOT), EntriesError::NotEntries { .. }));
    std::fs::remove_file(&place.path).unwrap();

    drop(create(&place.path));
    let file = std::fs::OpenOptions::new().write(true).open(&place.path).unwrap();
    file.set_len(SLOTS_AT + 64 * 100).unwrap();
    assert!(matches!(error(BOOT), EntriesError::Length { .. }));
    file.set_len(0).unwrap();
    assert!(matches!(error(BOOT), EntriesError::NotEntries { .. }));

    // One that is there is never written over.
    let error = Entries::create(&place.path, slots, BOOT).unwrap_err();
    assert!(matches!(error, EntriesError::Io { ref source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists));
}

#[test]
fn one_daemon_at_a_time() {
    let place = place();
    let table = create(&place.path);
    assert!(matches!(open(&place.path).err(), Some(EntriesError::InUse { .. })));
    drop(table);
    assert!(open(&place.path).is_ok());
}

#[test]
fn no_room_and_no_tmpfs_are_told_apart() {
    let place = place();
    // More than any machine's tmpfs: 64 GiB and some. Nothing is left behind.
    let error = Entries::create(&place.path, u32::MAX / 4, BOOT).unwrap_err();
    let EntriesError::NoRoom { bytes, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(bytes, 4096 + 64 * (u32::MAX as u64 / 4));
    assert!(!place.path.exists());
    if !is_tmpfs(Path::new(".")).unwrap() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let error = Entries::create(&folder.path().join("connections"), 10, BOOT).unwrap_err();
        assert!(matches!(error, EntriesError::NotTmpfs { .. }), "{error}");
    }
}

#[test]
fn boot_id_is_read() {
    assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    assert_ne!(boot_id().unwrap(), [0; 16]);
}

#[test]
fn states_of_sctp_are_there_again() {
    let place = place();
    let of_sctp = |state: &State| state.is_of(Protocol::SCTP);
    let states: Vec<State> = State::ALL.iter().copied().filter(of_sctp).collect();
    assert_eq!(states.len(), 14);
    let flow = |client: usize| FlowKey {
        protocol: Protocol::SCTP,
        ..flow(client % 2 == 1, client as u32)
    };
    {
        let table = create(&place.path);
        for (client, state) in states.iter().enumerate() {
            let mut new = new(flow(client), server(client % 2 == 1, 1), Method::Masq);
            new.state = *state;
            insert(&table, &new, Tick(1000));
        }
        // A state of TCP, as damage would make it.
        let mut damaged = new(flow(99), server(true, 1), Method::Masq);
        damaged.state = State::Established;
        insert(&table, &damaged, Tick(1000));
    }
    let table = open(&place.path).unwrap();
    let report = table.recover(Tick(1001), &mut |c| keep(c));
    assert_eq!((report.kept, report.damaged), (states.len(), 1));
    for (client, state) in states.into_iter().enumerate() {
        let entry = lookup(&table, &flow(client)).unwrap().entry;
        assert_eq!((entry.state(), entry.protocol()), (state, Protocol::SCTP));
        let back = FlowKey::new(
            Protocol::SCTP,
            (entry.destination(), entry.destination_port()),
            (entry.client(), entry.client_port()),
        );
        assert_eq!(lookup(&table, &back).unwrap().entry, entry, "{state:?} by its replies");
    }
}

#[test]
fn connections_survive_huge_pages_made_under_them() {
    const CLIENTS: u32 = 60_000;
    let place = place();
    let entries = Entries::create(&place.path, ConnectionTable::slots_for(100_000), BOOT).unwrap();
    let table = ConnectionTable::new(entries, 1);
    let file = std::fs::metadata(&place.path).unwrap().len();
    let pages = std::thread::scope(|scope| {
        let pages = scope.spawn(|| (0..).take_while(|n| table.make_huge_page(*n)).count());
        for client in 0..CLIENTS {
            insert(
                &table,
                &new(flow(false, client), server(false, 1), Method::Masq),
                Tick(1000),
            );
        }
        pages.join().unwrap()
    });
    assert_eq!(pages as u64, file / (2 << 20));
    assert!(pages >= 3, "{file} bytes");
    for client in 0..CLIENTS {
        assert!(lookup(&table, &flow(false, client)).is_some(), "{client}");
    }
    let anonymous = ConnectionTable::anonymous(100_000, 1).unwrap();
    assert!(!anonymous.make_huge_page(0), "it has them from the start");
}
