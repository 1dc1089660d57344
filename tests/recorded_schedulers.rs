//! Which real server the kernel's IPVS gave each new connection (`tests/kernel/schedulers.json`), given by `uvs run`.
//!
//! How: every recorded service through one daemon, one connection after the other as frames on a wire, the real server
//! told by the link address that the frame leaves for; the listing at the end. Goal: every choice as recorded.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::Ipv4Addr;

use serde_json::Value;

mod support;

use support::recorded::{Bench, Side};
use uvs::packet::{FlowKey, Protocol, checksum};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 200, 1, 1);

/// Here the recording lost a SYN: its own listing at the end counts 47 of the 48 connections.
const LOST: (&str, usize) = ("ipvs-sched/fo/w321/srcs", 6);

#[test]
fn every_recorded_choice() {
    if !uvs::io::netns::can_test() {
        return;
    }
    let file: Value = serde_json::from_str(include_str!("kernel/schedulers.json")).unwrap();
    let mut bench = Bench::start("sched", "xdp");
    let mut wrong = Vec::new();
    let mut services = 0;
    for vector in file["vectors"].as_array().unwrap() {
        services += 1;
        wrong.extend(replay(&mut bench, vector));
    }
    assert_eq!(services, 42, "the recorded file lost or gained services");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs one service; what came out otherwise.
fn replay(bench: &mut Bench, vector: &Value) -> Vec<String> {
    let name = vector["name"].as_str().unwrap();
    let tcp = vector["proto"] == "t";
    let flag = if tcp { "-t" } else { "-u" };
    let service = format!("{flag} {VIP}:80");
    bench.ipvsadm("-C");
    bench.ipvsadm(&format!(
        "-A {service} -s {} {}",
        vector["scheduler"].as_str().unwrap(),
        vector["extra"].as_str().unwrap()
    ));
    for real in vector["reals"].as_array().unwrap() {
        let address = real[0].as_str().unwrap();
        let last = address.rsplit('.').next().unwrap().parse::<u8>().unwrap();
        bench.real_neighbour(address, 0xa0 + last - 10);
        bench.ipvsadm(&format!("-a {service} -r {address}:80 -g -w {}", real[1]));
    }
    let mut wrong = Vec::new();
    let flows = vector["flows"].as_array().unwrap();
    for (n, flow) in flows.iter().enumerate() {
        for line in vector["mid"][n.to_string()].as_array().into_iter().flatten() {
            bench.ipvsadm(line.as_str().unwrap());
        }
        if (name, n) == LOST {
            continue;
        }
        let client: Ipv4Addr = flow[0].as_str().unwrap().parse().unwrap();
        let port = flow[1].as_u64().unwrap() as u16;
        let first = if tcp {
            tcp_frame(client, port, 2)
        } else {
            udp_frame(client, port)
        };
        bench.put(Side::Client, &first);
        let chosen = server_of(
            &bench
                .next()
                .unwrap_or_else(|| panic!("{name}, connection {n}: nothing comes out")),
        );
        let recorded = flow[2]
            .as_str()
            .map(|a| a.rsplit('.').next().unwrap().parse::<u8>().unwrap());
        if chosen != recorded {
            wrong.push(format!("{name}, connection {n}: server {chosen:?}, not {recorded:?}"));
        }
        if vector["established"] == true && chosen.is_some() {
            bench.put(Side::Client, &tcp_frame(client, port, 16));
            assert_eq!(server_of(&bench.next().expect("the ACK comes out")), chosen);
        }
    }
    if wrong.is_empty() && name != LOST.0 {
        let listed = bench.director.ipvsadm("-Ln").expect("listed");
        let recorded = vector["ipvsadm"].as_str().unwrap();
        // The header tells the size of the kernel's table.
        let body = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        if body(&listed) != body(recorded) {
            wrong.push(format!("{name}: listing\n{listed}not\n{recorded}"));
        }
    }
    wrong
}

/// The last byte of the real server's address, by its link address; `None`: a refusal to the client.
fn server_of((side, frame): &(Side, Vec<u8>)) -> Option<u8> {
    match side {
        Side::Real => Some(frame[5] - 0xa0 + 10),
        Side::Client => {
            assert_eq!((frame[23], frame[34], frame[35]), (1, 3, 3), "a port unreachable");
            None
        }
    }
}

fn tcp_frame(client: Ipv4Addr, port: u16, flags: u8) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[0..2].copy_from_slice(&port.to_be_bytes());
    segment[2..4].copy_from_slice(&80u16.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    frame(client, Protocol::TCP, segment, 16)
}

fn udp_frame(client: Ipv4Addr, port: u16) -> Vec<u8> {
    let mut datagram = vec![0; 12];
    datagram[0..2].copy_from_slice(&port.to_be_bytes());
    datagram[2..4].copy_from_slice(&80u16.to_be_bytes());
    datagram[5] = 12;
    frame(client, Protocol::UDP, datagram, 6)
}

fn frame(client: Ipv4Addr, protocol: Protocol, mut payload: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let flow = FlowKey::v4(protocol, client.to_bits(), VIP.to_bits(), 0);
    let sum = checksum::pseudo_header(&flow, payload.len() as u32) + checksum::sum(&payload);
    let sum = !checksum::fold(sum);
    payload[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![2, 0, 0, 0, 0, 0xd0, 2, 0, 0, 0, 0, 0xc0, 8, 0];
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    header.extend_from_slice(&[0, 1, 0, 0, 64, protocol.0, 0, 0]);
    header.extend_from_slice(&client.octets());
    header.extend_from_slice(&VIP.octets());
    let sum = checksum::of(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend(payload);
    frame
}
