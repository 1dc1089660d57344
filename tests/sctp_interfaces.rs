//! SCTP through `uvs run` on real interfaces, by each driver: as local stacks on virtual interfaces send it, with the CRC left
//! to a device that is not there; its states and counts as `ipvsadm` lists them.
//!
//! How: frames on the wires of the recorded topology. (The stacks are made by hand: whether the kernel has SCTP does not matter.)
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/sctp_chunks.rs"]
mod sctp_chunks;
mod support;

use std::net::SocketAddr;

use etherparse::{IpNumber, PacketBuilder};
use sctp_chunks::{COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE};
use support::recorded::{Bench, Side, checksums};
use uvs::packet::checksum;

/// An SCTP packet whose checksum is not finished: 0.
fn sctp(side: Side, from: &str, to: &str, chunks: &[&[u8]]) -> Vec<u8> {
    let [from, to]: [SocketAddr; 2] = [from, to].map(|end| end.parse().unwrap());
    let mut packet = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    packet.extend([0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0]);
    packet.extend(chunks.concat());
    let links = match side {
        Side::Client => (0xc0, 0xd0),
        Side::Real => (0xa1, 0xd1),
    };
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, links.0], [2, 0, 0, 0, 0, links.1]);
    let mut bytes = Vec::new();
    let written =
        match (from, to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => ethernet
                .ipv4(from.ip().octets(), to.ip().octets(), 64)
                .write(&mut bytes, IpNumber::SCTP, &packet),
            (SocketAddr::V6(from), SocketAddr::V6(to)) => ethernet
                .ipv6(from.ip().octets(), to.ip().octets(), 64)
                .write(&mut bytes, IpNumber::SCTP, &packet),
            _ => panic!("one family"),
        };
    written.unwrap();
    bytes
}

/// Puts an unfinished frame on a wire and returns the one that comes out at the other, whose checksums are right.
fn through(bench: &mut Bench, side: Side, frame: &[u8]) -> Vec<u8> {
    // IPv6 headers have no checksum.
    let (start, checksums_min) = if frame[12..14] == [8, 0] { (34, 2) } else { (54, 1) };
    bench.put_unfinished(side, frame, start, 8);
    let mut seen = bench.collect(1);
    assert_eq!(seen.len(), 1, "{seen:?}");
    let (left, out) = seen.remove(0);
    assert_ne!(left, side);
    let right = checksums(&out);
    assert!(right.len() >= checksums_min && right.iter().all(|ok| *ok), "{right:?}");
    out
}

/// The only entry, in columns: protocol, time, state, client, service, server.
fn entry(bench: &Bench) -> Vec<String> {
    let listed = bench.director.ipvsadm("-Lnc").unwrap();
    let lines: Vec<_> = listed.lines().skip(2).collect();
    assert_eq!(lines.len(), 1, "{listed}");
    lines[0].split_whitespace().map(str::to_owned).collect()
}

/// A whole association by NAT.
fn association(bench: &mut Bench, [client, service, server]: [&str; 3]) {
    bench.ipvsadm(&format!(
        "-A --sctp-service {service} -s rr; -a --sctp-service {service} -r {server} -m"
    ));
    for (side, chunks, state) in [
        (Side::Client, &[INIT][..], "INIT1"),
        (Side::Real, &[INIT_ACK], "C-SENT"),
        (Side::Client, &[COOKIE_ECHO, DATA], "C-REPLIED"),
        (Side::Real, &[COOKIE_ACK], "ESTABLISHED"),
        (Side::Client, &[DATA], "ESTABLISHED"),
        (Side::Client, &[SHUTDOWN], "S-RECEIVED"),
        (Side::Real, &[SHUTDOWN_ACK], "S-ACK-SENT"),
        (Side::Client, &[SHUTDOWN_COMPLETE], "CLOSED"),
    ] {
        let frame = match side {
            Side::Client => sctp(side, client, service, chunks),
            Side::Real => sctp(side, server, client, chunks),
        };
        through(bench, side, &frame);
        let columns = entry(bench);
        assert_eq!([&columns[0], &columns[2]], ["SCTP", state]);
        assert_eq!(columns[3..], [client, service, server]);
        let table = bench
            .director
            .ipvsadm(&format!("-Ln --sctp-service {service}"))
            .unwrap();
        let counts: Vec<_> = table.lines().last().unwrap().split_whitespace().skip(4).collect();
        let expected = if state == "ESTABLISHED" { ["1", "0"] } else { ["0", "1"] };
        assert_eq!(counts, expected, "{state}: {table}");
    }
}

fn by(driver: &str) {
    if !uvs::io::netns::can_test() {
        return;
    }
    let mut bench = Bench::start(&format!("sctp-{driver}"), driver);
    association(
        &mut bench,
        ["198.51.100.7:20001", "10.200.1.1:3868", "172.16.0.11:9900"],
    );
    // The other methods change neither ports nor chunks, but the checksum has to be finished all the same.
    for (method, port) in [("-g", 3869), ("-i", 3870)] {
        let service = format!("10.200.1.1:{port}");
        bench.ipvsadm(&format!(
            "-A --sctp-service {service} -s rr; -a --sctp-service {service} -r 172.16.0.11 {method}"
        ));
        let out = through(
            &mut bench,
            Side::Client,
            &sctp(Side::Client, "198.51.100.7:20002", &service, &[INIT]),
        );
        assert_eq!(out.len(), 14 + 20 * (1 + usize::from(method == "-i")) + 12 + INIT.len());
    }
    // A finished one comes through as it is, and what begins nothing is the local stack's: no SCTP there, so it says so.
    let mut finished = sctp(Side::Client, "198.51.100.7:20003", "10.200.1.1:3869", &[INIT]);
    let crc = checksum::sctp(&finished[34..]);
    finished[42..46].copy_from_slice(&crc);
    let seen = bench.inject(Side::Client, &finished, 1);
    assert_eq!((seen.len(), seen[0].0), (1, Side::Real));
    assert_eq!(seen[0].1[34..], finished[34..]);
    // Without SCTP the local stack knows no such protocol (type 3 code 2); with it, it aborts.
    let stray = sctp(Side::Client, "198.51.100.7:20004", "10.200.1.1:3869", &[DATA]);
    let seen = bench.inject(Side::Client, &stray, 1);
    assert_eq!((seen.len(), seen[0].0), (1, Side::Client));
    let answer = &seen[0].1;
    assert!(answer[23] == 132 || answer[34..36] == [3, 2], "{answer:?}");
    // Rules come back as they were saved; an association lives on meanwhile.
    let saved = bench.director.ipvsadm("-Sn").unwrap();
    let expected = "-A --sctp-service 10.200.1.1:3868 -s rr\n\
                    -a --sctp-service 10.200.1.1:3868 -r 172.16.0.11:9900 -m -w 1\n";
    assert!(saved.starts_with(expected), "{saved}");
    let before = bench.director.ipvsadm("-Lnc").unwrap().lines().count();
    bench.ipvsadm("-C");
    for line in saved.lines() {
        bench.ipvsadm(line);
    }
    assert_eq!(bench.director.ipvsadm("-Sn").unwrap(), saved);
    assert_eq!(bench.director.ipvsadm("-Lnc").unwrap().lines().count(), before);
    let statistics = bench.director.statistics().unwrap();
    assert_eq!(statistics["frames"]["dropped"]["total"], 0, "{statistics}");
    assert_eq!(statistics["frames"]["handed_back"], 1, "{statistics}");
}

#[test]
fn by_xdp() {
    by("xdp");
}

#[test]
fn by_raw() {
    by("raw");
}

#[test]
fn over_ipv6() {
    if !uvs::io::netns::can_test() {
        return;
    }
    let mut bench = Bench::start("sctp-v6", "xdp");
    association(
        &mut bench,
        ["[2001:db8::7]:20001", "[fd00:200::1]:3868", "[fd00:16::11]:9900"],
    );
}
