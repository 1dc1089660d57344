//! Goal: what arrives in a tunnel is served byte-exact, the kernel does not complain to the director, and nothing is left
//! behind.
//! Method: a client and a server that has the virtual addresses on `lo`; between them a relay that puts what the
//! client sends to those into an outer header, and passes the replies as they are.

use std::net::UdpSocket;
use std::sync::mpsc;

use etherparse::PacketBuilder;

use super::*;
use crate::dataplane::driver::{Driver, Received};
use crate::io::raw::{self, RawDriver, RawInterface, RawWorker};
use crate::io::testing::hosts::{CLIENT_MAC, Host, LONG, MIDDLE, SERVER_MAC, between_two_hosts, transfer};
use crate::io::testing::{Sniffer, index_of, ip, keep_all};
use crate::packet::segment::segment;
use crate::packet::{ChecksumOffload, checksum};
use crate::table::InterfaceId;

const TO_CLIENT: InterfaceId = InterfaceId(0);
const TO_SERVER: InterfaceId = InterfaceId(1);
const RELAY: [u8; 4] = [192, 0, 2, 100];
const SERVER: [u8; 4] = [192, 0, 2, 2];
const SERVER6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const RELAY6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// The relay's thread, and the server's decap.
struct Tunnel {
    stop: Arc<AtomicBool>,
    control: DecapControl,
    counted: mpsc::Receiver<DecapCounters>,
}

/// Starts `Decap` on the server.
fn start_decap(server: &Host) -> (DecapControl, mpsc::Receiver<DecapCounters>) {
    let control = DecapControl::new().unwrap();
    let (counted, counters) = mpsc::channel();
    let used = control.clone();
    server.run(move || {
        let decap = Decap::open("eth0", &used).unwrap();
        std::thread::spawn(move || counted.send(decap.run(&used, |_| {})).unwrap());
    });
    (control, counters)
}

impl Tunnel {
    fn start(client: &Host, server: &Host, outer_ipv6: bool) -> Tunnel {
        client.run(|| {
            ip(&format!(
                "neigh replace 192.0.2.80 lladdr {MIDDLE} dev eth0 nud permanent"
            ));
            ip(&format!(
                "neigh replace 2001:db8::80 lladdr {MIDDLE} dev eth0 nud permanent"
            ));
            ip("link set eth0 mtu 1500");
        });
        server.run(|| {
            ip("addr replace 192.0.2.80/32 dev lo");
            ip("addr replace 2001:db8::80/128 dev lo nodad");
            // Room for the outer header: the way to the server is wider than the client's.
            ip("link set eth0 mtu 1600");
        });
        ip("link set toserver mtu 1600");
        let (control, counted) = start_decap(server);
        let filter = keep_all();
        let interfaces = ["toclient", "toserver"];
        let interfaces = interfaces.map(|name| RawInterface {
            name,
            index: index_of(name),
            filter: filter.as_fd(),
        });
        let tun = Tun::create("uvs0").unwrap();
        let worker = RawWorker {
            waker: Waker::new().unwrap(),
            tun: tun.queue().unwrap(),
        };
        let mut driver = raw::open(&interfaces, vec![worker], 256).unwrap().remove(0);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                relay(&mut driver, outer_ipv6);
            }
        });
        Tunnel { stop, control, counted }
    }

    fn stop(self) -> DecapCounters {
        self.stop.store(true, Ordering::Relaxed);
        self.control.stop();
        self.counted.recv_timeout(LONG).unwrap()
    }
}

fn relay(driver: &mut RawDriver, outer_ipv6: bool) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    if driver.receive(&mut batch) == 0 {
        driver.wait(Duration::from_millis(10));
    }
    for Received { mut frame, interface } in batch {
        if interface == TO_SERVER {
            frame.bytes_mut()[..6].copy_from_slice(&CLIENT_MAC);
            driver.transmit(TO_CLIENT, frame);
            continue;
        }
        match frame.offload().segmentation {
            // A director does the same: the kernel refuses a super-frame in a tunnel (EINVAL, Linux 6.18).
            Some(segmentation) => {
                let cut = segment(frame.bytes(), segmentation, |header, payload| {
                    let mut part = driver.allocate().expect("256 buffers are enough for one super-frame");
                    part.fill(&[header, payload].concat(), Offload::default()).unwrap();
                    put_into_tunnel(&mut part, outer_ipv6);
                    driver.transmit(TO_SERVER, part);
                });
                cut.unwrap();
                driver.free(frame);
            }
            None => {
                put_into_tunnel(&mut frame, outer_ipv6);
                driver.transmit(TO_SERVER, frame);
            }
        }
    }
    driver.flush();
}

/// Puts an outer header in front of the packet, addressed to the server.
fn put_into_tunnel(frame: &mut FrameBuffer, outer_ipv6: bool) {
    let outer_len = if outer_ipv6 { 40 } else { 20 };
    let inner_len = (frame.bytes().len() - 14) as u16;
    let protocol = if frame.bytes()[14] >> 4 == 4 { 4 } else { 41 };
    let mut offload = frame.offload();
    if let ChecksumOffload::Unfinished { start, .. } = &mut offload.checksum {
        *start += outer_len;
    }
    frame.set_offload(offload);
    frame.grow_front(outer_len as usize).unwrap();
    let bytes = frame.bytes_mut();
    bytes[..6].copy_from_slice(&SERVER_MAC);
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0xd]);
    if outer_ipv6 {
        bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
        bytes[14..22].copy_from_slice(&[0x60, 0, 0, 0, (inner_len >> 8) as u8, inner_len as u8, protocol, 64]);
        bytes[22..38].copy_from_slice(&RELAY6);
        bytes[38..54].copy_from_slice(&SERVER6);
    } else {
        bytes[12..14].copy_from_slice(&[8, 0]);
        let header = outer_header(protocol, inner_len, 0x4000);
        bytes[14..34].copy_from_slice(&header);
    }
}

/// An outer IPv4 header for the server; `fragment`: flags and offset.
fn outer_header(protocol: u8, payload_len: u16, fragment: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(20 + payload_len).to_be_bytes());
    header[4..6].copy_from_slice(&7u16.to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    (header[8], header[9]) = (64, protocol);
    header[12..16].copy_from_slice(&RELAY);
    header[16..20].copy_from_slice(&SERVER);
    let sum = checksum::of(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

const VIP4: &str = "192.0.2.80:80";
const VIP6: &str = "[2001:db8::80]:80";

#[test]
fn tcp_is_served_byte_exact_in_every_combination_of_families() {
    between_two_hosts(|client, server| {
        for outer_ipv6 in [false, true] {
            let tunnel = Tunnel::start(&client, &server, outer_ipv6);
            transfer(&client, &server, VIP4, 5 << 20);
            transfer(&client, &server, VIP6, 5 << 20);
            let counters = tunnel.stop();
            let refused: u64 = counters.refused.iter().sum();
            assert_eq!(counters.received, counters.unwrapped + refused);
            // The relay wraps the client's IPv6 multicast too.
            assert!(counters.unwrapped > 7000 && refused < 50, "{counters}");
        }
    });
}

/// An Ethernet frame for the server with a UDP datagram from the client to the VIP in a tunnel.
fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut inner = Vec::new();
    PacketBuilder::ipv4([192, 0, 2, 1], [192, 0, 2, 80], 63)
        .udp(4000, port)
        .write(&mut inner, payload)
        .unwrap();
    inner
}

fn ethernet(ethertype: [u8; 2], packet: &[&[u8]]) -> Vec<u8> {
    [
        &SERVER_MAC,
        [2, 0, 0, 0, 0, 0xd].as_slice(),
        &ethertype,
        &packet.concat(),
    ]
    .concat()
}

fn server_socket(server: &Host) {
    server.run(|| ip("addr replace 192.0.2.80/32 dev lo"));
}

/// Goal: the director hears no ICMP error about its tunnel packets. Method: first without decap, where it must hear one.
#[test]
fn the_kernel_does_not_complain_to_the_director() {
    between_two_hosts(|_client, server| {
        let sniffer = Sniffer::new("toserver");
        server.run(|| {
            ip("neigh add 192.0.2.100 lladdr 02:00:00:00:00:0d dev eth0 nud permanent");
            ip("neigh add 2001:db8::100 lladdr 02:00:00:00:00:0d dev eth0 nud permanent");
        });
        let inner = datagram(53, b"ask");
        let mut header6 = vec![0x60, 0, 0, 0, 0, inner.len() as u8, 4, 64];
        header6.extend([RELAY6, SERVER6].concat());
        let packets = [
            ethernet([8, 0], &[&outer_header(4, inner.len() as u16, 0), &inner]),
            ethernet([8, 0], &[&outer_header(41, 40, 0), &[0x60; 40]]),
            ethernet([0x86, 0xdd], &[&header6, &inner]),
        ];
        let complaint =
            |f: &[u8]| (f[12..14] == [8, 0] && f[23] == 1) || (f[12..14] == [0x86, 0xdd] && f[20] == 58 && f[54] < 128);
        for packet in &packets {
            sniffer.send(packet);
            assert!(sniffer.next(complaint).is_some(), "without decap the kernel complains");
        }
        let (control, counted) = start_decap(&server);
        for packet in &packets {
            sniffer.send(packet);
            let heard = sniffer.within(Duration::from_millis(300), complaint);
            assert_eq!(heard, None, "with decap it is silent");
        }
        control.stop();
        let counters = counted.recv_timeout(LONG).unwrap();
        assert_eq!(counters.received, 3, "{counters}");
        let gone = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            server.run(|| index_of(DEVICE) == 0)
        });
        assert!(gone, "the device outlives it");
        // The kernel limits how often it complains (net.ipv4.icmp_ratelimit, 1 s a destination).
        let complains = (0..30).any(|_| {
            sniffer.send(&packets[0]);
            sniffer.within(Duration::from_millis(100), complaint).is_some()
        });
        assert!(complains, "afterwards everything is as before");
    });
}

#[test]
fn outer_fragments_are_put_together_and_strangers_refused() {
    between_two_hosts(|_client, server| {
        server_socket(&server);
        let (control, counted) = start_decap(&server);
        let sniffer = Sniffer::new("toserver");
        let answers = server.run(|| {
            let socket = UdpSocket::bind("192.0.2.80:53").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let (sent, received) = mpsc::channel();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 5000];
                while let Ok(n) = socket.recv(&mut buffer) {
                    sent.send(buffer[..n].to_vec()).unwrap();
                }
            });
            received
        });
        let payload = crate::io::testing::hosts::content(3000);
        let inner = datagram(53, &payload);
        for (index, part) in inner.chunks(1400).enumerate() {
            let more = if (index + 1) * 1400 < inner.len() { 0x2000 } else { 0 };
            let header = outer_header(4, part.len() as u16, more | (index * 1400 / 8) as u16);
            sniffer.send(&ethernet([8, 0], &[&header, part]));
        }
        assert_eq!(answers.recv_timeout(LONG).unwrap(), payload);

        let inner6 = crate::io::testing::hosts::content(3000);
        let inner6 = datagram(53, &inner6);
        for (index, part) in inner6.chunks(1400).enumerate().rev() {
            let more = ((index + 1) * 1400 < inner6.len()) as u16;
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((8 + part.len() as u16).to_be_bytes());
            header.extend([44, 64]);
            header.extend([RELAY6, SERVER6].concat());
            header.extend([4, 0]);
            header.extend(((index * 1400) as u16 | more).to_be_bytes());
            header.extend([0, 0, 0, 9]);
            sniffer.send(&ethernet([0x86, 0xdd], &[&header, part]));
        }
        assert_eq!(
            answers.recv_timeout(LONG).unwrap(),
            payload,
            "IPv6, the last piece first"
        );

        // To an address that the server does not have, then to the same after it got it.
        let small = datagram(53, b"ask");
        let mut header = outer_header(4, small.len() as u16, 0);
        header[19] = 3;
        header[10..12].fill(0);
        let sum = checksum::of(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let stranger = ethernet([8, 0], &[&header, &small]);
        sniffer.send(&stranger);
        std::thread::sleep(Duration::from_millis(100));
        server.run(|| ip("addr add 192.0.2.3/24 dev eth0"));
        std::thread::sleep(ADDRESSES_AGE_MIN);
        sniffer.send(&stranger);
        assert_eq!(answers.recv_timeout(LONG).unwrap(), b"ask", "a new address is noticed");
        control.stop();
        let counters = counted.recv_timeout(LONG).unwrap();
        assert_eq!(
            (counters.received, counters.unwrapped, counters.fragments),
            (6, 3, 2),
            "{counters}"
        );
        assert_eq!(counters.refused[Refusal::NotOurs as usize], 1, "{counters}");
        assert_eq!(counters.to_string(), "received 6 unwrapped 3 fragments 2 not_ours 1");
    });
}

#[test]
fn says_what_is_wrong_with_an_interface() {
    crate::io::testing::in_namespace(|| {
        let control = DecapControl::new().unwrap();
        let error = Decap::open("nowhere", &control).err().unwrap().to_string();
        assert!(error.contains("nowhere"), "{error}");
        let _tun = Tun::create("uvs0").unwrap();
        let error = Decap::open("uvs0", &control).err().unwrap().to_string();
        assert!(error.contains("uvs0") && error.contains("Ethernet"), "{error}");
    });
}
