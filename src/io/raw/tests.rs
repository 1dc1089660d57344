//! Goal: real TCP and UDP pass through the driver byte-exact, as super-frames and with unfinished checksums, and nothing
//! that happens to an interface disturbs it.
//! Method: a client's and a server's namespace, and between them one with a driver that only writes new link addresses.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::io::ethtool::{self, Offload as Offloads};
use crate::io::testing::hosts::{CLIENT_MAC, SERVER_MAC, between_two_hosts, transfer};
use crate::io::testing::{Sniffer, index_of, ip, keep_all};
use crate::io::tun::Tun;
use crate::packet::{ChecksumOffload, Offload};

fn drivers(workers: usize) -> Vec<RawDriver> {
    let filter = keep_all();
    let interfaces = ["toclient", "toserver"].map(|name| RawInterface {
        name,
        index: index_of(name),
        filter: filter.as_fd(),
    });
    let tun = Tun::create("uvs0").unwrap();
    let worker = |_| RawWorker {
        waker: Waker::new().unwrap(),
        tun: tun.queue().unwrap(),
    };
    open(&interfaces, (0..workers).map(worker).collect(), 256).unwrap()
}

/// What a relay saw.
#[derive(Default, Debug)]
struct Seen {
    frames: [usize; 2],
    super_frames: usize,
    unfinished: usize,
}

/// Relays between the two interfaces until told to stop.
fn relay(mut driver: RawDriver, stop: &AtomicBool) -> (RawDriver, Seen) {
    let mut seen = Seen::default();
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while !stop.load(Ordering::Relaxed) {
        if driver.receive(&mut batch) == 0 {
            driver.wait(Duration::from_millis(10));
        }
        for Received { mut frame, interface } in batch.drain(..) {
            seen.frames[interface.0 as usize] += 1;
            let offload = frame.offload();
            seen.super_frames += offload.segmentation.is_some() as usize;
            seen.unfinished += matches!(offload.checksum, ChecksumOffload::Unfinished { .. }) as usize;
            frame.bytes_mut()[..6].copy_from_slice(if interface.0 == 0 { &SERVER_MAC } else { &CLIENT_MAC });
            driver.transmit(InterfaceId(1 - interface.0), frame);
        }
        driver.flush();
    }
    (driver, seen)
}

#[test]
fn tcp_of_both_families_passes_byte_exact_in_super_frames() {
    between_two_hosts(|client, server| {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let driver = drivers(1).remove(0);
            let relay = scope.spawn(|| relay(driver, &stop));
            let started = std::time::Instant::now();
            transfer(&client, &server, "192.0.2.2:80", 20 << 20);
            transfer(&client, &server, "[2001:db8::2]:80", 20 << 20);
            eprintln!("80 MB in {:?}", started.elapsed());
            stop.store(true, Ordering::Relaxed);
            let (mut driver, seen) = relay.join().unwrap();
            eprintln!("{seen:?} {:?}", driver.statistics());
            assert!(
                seen.super_frames > 100 && seen.unfinished > seen.super_frames,
                "{seen:?}"
            );
            assert!(
                seen.frames.iter().sum::<usize>() < 40_000,
                "they stay super-frames: {seen:?}"
            );
            assert_eq!(driver.outstanding(), 0);
            for statistics in driver.statistics() {
                assert_eq!(statistics.tx_invalid, 0);
                assert!(
                    statistics.rx_dropped < 20,
                    "multicast of the hosts' IPv6 only: {statistics:?}"
                );
            }
        });
    });
}

/// The kernel cuts super-frames and finishes checksums where an interface cannot: the driver's side here, then also the
/// hosts' side, so that no super-frame and no unfinished checksum is left.
#[test]
fn tcp_passes_byte_exact_without_offloads() {
    between_two_hosts(|client, server| {
        let off = |interface: &str| {
            for offload in [Offloads::Tso, Offloads::Gso, Offloads::TxChecksum] {
                ethtool::set_offload(interface, offload, false).unwrap();
            }
        };
        ["toclient", "toserver"].iter().for_each(|interface| off(interface));
        for hosts_too in [false, true] {
            if hosts_too {
                [&client, &server].iter().for_each(|host| host.run(move || off("eth0")));
            }
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let driver = drivers(1).remove(0);
                let relay = scope.spawn(|| relay(driver, &stop));
                transfer(&client, &server, "192.0.2.2:80", 20 << 20);
                transfer(&client, &server, "[2001:db8::2]:80", 20 << 20);
                stop.store(true, Ordering::Relaxed);
                let (mut driver, seen) = relay.join().unwrap();
                let statistics = driver.statistics();
                assert!(statistics.iter().all(|s| s.tx_invalid == 0), "{statistics:?}");
                assert_eq!(
                    (seen.super_frames > 100, seen.unfinished > 100),
                    (!hosts_too, !hosts_too),
                    "{seen:?}"
                );
            });
        }
    });
}

#[test]
fn two_workers_share_the_frames() {
    between_two_hosts(|client, server| {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let relays: Vec<_> = drivers(2)
                .into_iter()
                .map(|d| scope.spawn(|| relay(d, &stop)))
                .collect();
            server.run(|| {
                let socket = UdpSocket::bind("192.0.2.2:53").unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [0; 100];
                    while let Ok((n, from)) = socket.recv_from(&mut buffer) {
                        if n == 0 {
                            return;
                        }
                        socket.send_to(&buffer[..n], from).unwrap();
                    }
                });
            });
            let answers = client.run(|| {
                let ask = |_: &u32| {
                    let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                    socket.send_to(b"question", "192.0.2.2:53").unwrap();
                    let answered = socket.recv(&mut [0; 100]).is_ok();
                    // A second answer would mean that both workers got the frame.
                    socket.set_nonblocking(true).unwrap();
                    answered && socket.recv(&mut [0; 100]).is_err()
                };
                let answered = (0..64u32).filter(ask).count();
                UdpSocket::bind("192.0.2.1:0")
                    .unwrap()
                    .send_to(b"", "192.0.2.2:53")
                    .unwrap();
                answered
            });
            assert_eq!(answers, 64);
            std::thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
            for relay in relays {
                let (driver, seen) = relay.join().unwrap();
                assert!(seen.frames[0] > 8 && seen.frames[1] > 8, "an idle worker: {seen:?}");
                assert_eq!(driver.outstanding(), 0);
            }
        });
    });
}

#[test]
fn an_interface_that_goes_costs_its_frames_only() {
    between_two_hosts(|client, _server| {
        let mut driver = drivers(1).remove(0);
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let send = |driver: &mut RawDriver| {
            for _ in 0..3 {
                let mut frame = driver.allocate().unwrap();
                frame.fill(&[0xff; 60], Offload::default()).unwrap();
                assert!(driver.transmit(InterfaceId(1), frame));
            }
            (driver.flush(), driver.statistics()[1].tx_failed)
        };
        assert_eq!(send(&mut driver), (0, 0));
        ip("link set toserver down");
        assert_eq!(driver.receive(&mut batch), 0);
        assert_eq!(send(&mut driver), (3, 3), "down");
        ip("link set toserver up");
        assert_eq!(send(&mut driver), (0, 3), "up again");
        ip("link del toserver");
        assert_eq!(driver.receive(&mut batch), 0);
        assert_eq!(send(&mut driver), (3, 6), "gone");
        client.run(|| {
            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            socket.send_to(b"still there", "192.0.2.2:53").unwrap();
        });
        driver.wait(Duration::from_secs(2));
        for _ in 0..100 {
            driver.receive(&mut batch);
            if batch
                .iter()
                .any(|r| r.interface == InterfaceId(0) && r.frame.bytes().ends_with(b"still there"))
            {
                break;
            }
            batch.drain(..).for_each(|r| driver.free(r.frame));
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!batch.is_empty(), "the other interface goes on");
        batch.drain(..).for_each(|r| driver.free(r.frame));
        assert_eq!(driver.outstanding(), 0);
        // IPv6 noise may end some sleeps; a dead socket would end all of them.
        let slept = (0..50).any(|_| {
            while driver.receive(&mut batch) > 0 {
                batch.drain(..).for_each(|r| driver.free(r.frame));
            }
            let before = std::time::Instant::now();
            driver.wait(Duration::from_millis(50));
            before.elapsed() >= Duration::from_millis(40)
        });
        assert!(slept, "a dead socket does not end every sleep");
    });
}

#[test]
fn refuses_frames_that_are_not_for_it_and_survives_an_empty_pool() {
    between_two_hosts(|client, _server| {
        let mut driver = drivers(1).remove(0);
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let frame = |destination: [u8; 6], tag: &[u8], number: u8| {
            let mut bytes = destination.to_vec();
            bytes.extend([2, 0, 0, 0, 0, 1]);
            bytes.extend(tag);
            bytes.extend([0x08, 0x00]);
            bytes.extend([number; 50]);
            bytes
        };
        let ours = [2, 0, 0, 0, 0, 0x0d];
        let sent = [
            frame(ours, &[], 1),
            frame(ours, &[0x81, 0, 0, 5], 2),
            frame([2, 0, 0, 0, 9, 9], &[], 3),
            frame([0xff; 6], &[], 4),
            frame(ours, &[], 5),
        ];
        ip("link set toclient promisc on");
        client.run(move || {
            let sniffer = Sniffer::new("eth0");
            sent.iter().for_each(|f| sniffer.send(f));
        });
        driver.wait(Duration::from_secs(2));
        driver.receive(&mut batch);
        let numbers: Vec<u8> = batch.iter().map(|r| r.frame.bytes()[14]).filter(|&n| n <= 5).collect();
        assert_eq!(numbers, [1, 5], "no VLAN tag, nobody else's, no broadcast");
        assert!(driver.statistics()[0].rx_dropped >= 3);

        let mut taken: Vec<_> = std::iter::from_fn(|| driver.allocate()).collect();
        assert!(driver.allocate().is_none());
        let more = frame(ours, &[], 6);
        client.run(move || {
            let sniffer = Sniffer::new("eth0");
            (0..300).for_each(|_| sniffer.send(&more));
        });
        let mut held = std::mem::replace(&mut batch, Vec::with_capacity(BATCH_MAX));
        for _ in 0..300 {
            driver.receive(&mut batch);
            held.append(&mut batch);
        }
        assert_eq!(driver.outstanding(), 256, "every buffer is out, and the driver waits");
        driver.wait(Duration::from_millis(5));
        held.drain(..).for_each(|r| driver.free(r.frame));
        taken.drain(..).for_each(|f| driver.free(f));
        for _ in 0..10 {
            driver.receive(&mut batch);
        }
        assert!(
            batch.iter().filter(|r| r.frame.bytes()[14] == 6).count() > 100,
            "and goes on where it was"
        );
        batch.drain(..).for_each(|r| driver.free(r.frame));
        assert_eq!(driver.outstanding(), 0);
    });
}
