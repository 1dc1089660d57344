//! The local stack answers what is written into the device, as if it had come from the wire.

use etherparse::PacketBuilder;

use super::*;
use crate::io::testing::{Sniffer, in_namespace, ip, sysctl, wait_up};
use crate::packet::{ChecksumOffload, Segmentation, SegmentationKind};

const CLIENT: [u8; 4] = [192, 0, 2, 2];
const VIP: [u8; 4] = [192, 0, 2, 1];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const VIP6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// `va` holds the VIP; what leaves it for the client arrives at `vb`.
fn director() -> Sniffer {
    ip("link set lo up");
    ip("link add va type veth peer name vb address 02:00:00:00:00:0b");
    ip("addr add 192.0.2.1/24 dev va");
    ip("addr add 2001:db8::1/64 dev va nodad");
    ip("link set va up");
    ip("link set vb up");
    ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:0b dev va nud permanent");
    ip("neigh add 2001:db8::2 lladdr 02:00:00:00:00:0b dev va nud permanent");
    wait_up("va");
    Sniffer::new("vb")
}

fn packet(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    build(&mut bytes);
    bytes
}

fn syn4(port: u16) -> Vec<u8> {
    packet(|to| {
        PacketBuilder::ipv4(CLIENT, VIP, 63)
            .tcp(40000, port, 7, 65535)
            .syn()
            .write(to, &[])
            .unwrap()
    })
}

fn syn6(port: u16) -> Vec<u8> {
    packet(|to| {
        PacketBuilder::ipv6(CLIENT6, VIP6, 63)
            .tcp(40000, port, 7, 65535)
            .syn()
            .write(to, &[])
            .unwrap()
    })
}

/// The flags of the TCP answer from port `port`.
fn answer(sniffer: &Sniffer, l4: usize, port: u16) -> Option<u8> {
    let from_port = |f: &[u8]| f.len() >= l4 + 20 && f[l4..l4 + 2] == port.to_be_bytes();
    sniffer.next(from_port).map(|f| f[l4 + 13])
}

/// Leaves the pseudo-header sum in the TCP checksum field, as a stack that counts on hardware does.
fn unfinish(packet: &mut [u8]) -> Offload {
    let l4 = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let addresses = if l4 == 20 { &packet[12..20] } else { &packet[8..40] };
    let mut sum: u32 = addresses
        .chunks(2)
        .map(|w| u16::from_be_bytes([w[0], w[1]]) as u32)
        .sum();
    sum += 6 + (packet.len() - l4) as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[l4 + 16..l4 + 18].copy_from_slice(&(sum as u16).to_be_bytes());
    Offload {
        checksum: ChecksumOffload::Unfinished {
            start: (l4 + 14) as u16,
            offset: 16,
        },
        segmentation: None,
    }
}

const SYN_ACK: u8 = 0x12;
const RST_ACK: u8 = 0x14;
const FINISHED: Offload = Offload {
    checksum: ChecksumOffload::Finished,
    segmentation: None,
};

#[test]
fn the_local_stack_answers_what_is_handed_back() {
    in_namespace(|| {
        let sniffer = director();
        let tun = Tun::create("uvs0").unwrap();
        let mut queue = tun.queue().unwrap();
        let listener = std::net::TcpListener::bind("[::]:80").unwrap();
        for (l4, syn) in [(34, syn4 as fn(u16) -> Vec<u8>), (54, syn6)] {
            assert!(queue.write(&syn(80), FINISHED));
            assert_eq!(answer(&sniffer, l4, 80), Some(SYN_ACK), "listening, l4 {l4}");
            assert!(queue.write(&syn(81), FINISHED));
            assert_eq!(answer(&sniffer, l4, 81), Some(RST_ACK), "nobody listens, l4 {l4}");
            let mut unfinished = syn(82);
            let offload = unfinish(&mut unfinished);
            assert!(queue.write(&unfinished, FINISHED));
            assert!(queue.write(&unfinished, offload));
            assert_eq!(answer(&sniffer, l4, 82), Some(RST_ACK), "unfinished checksum, l4 {l4}");
            assert_eq!(
                sniffer.within(std::time::Duration::from_millis(50), |f| f[l4..l4 + 2] == [0, 82]),
                None
            );
        }
        drop(listener);
    });
}

#[test]
fn takes_super_frames() {
    in_namespace(|| {
        let sniffer = director();
        let tun = Tun::create("uvs0").unwrap();
        let mut queue = tun.queue().unwrap();
        let socket = std::net::UdpSocket::bind("192.0.2.1:53").unwrap();
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .unwrap();
        let payload: Vec<u8> = (0..30_000u32).map(|i| i as u8).collect();
        let mut datagrams = packet(|to| {
            PacketBuilder::ipv4(CLIENT, VIP, 63)
                .udp(40000, 53)
                .write(to, &payload)
                .unwrap();
        });
        let mut sum: u32 = datagrams[12..20]
            .chunks(2)
            .map(|w| u16::from_be_bytes([w[0], w[1]]) as u32)
            .sum();
        sum += 17 + 30_008;
        sum = (sum & 0xffff) + (sum >> 16);
        datagrams[26..28].copy_from_slice(&((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes());
        let offload = Offload {
            checksum: ChecksumOffload::Unfinished { start: 34, offset: 6 },
            segmentation: Some(Segmentation {
                kind: SegmentationKind::UdpL4,
                size: 1000,
                header_len: 42,
            }),
        };
        assert!(queue.write(&datagrams, offload));
        let mut buffer = [0; 2000];
        for part in payload.chunks(1000) {
            let n = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], part);
        }
        drop(sniffer);
    });
}

/// Goal: a translated reply whose client's hop is not known is forwarded, though it comes from an address of the director's
/// own by then. Method: a reply of the VIP written into the device, with strict reverse path filtering elsewhere.
#[test]
fn replies_from_the_virtual_address_are_forwarded() {
    in_namespace(|| {
        let sniffer = director();
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        sysctl("ipv4/conf/all/rp_filter", "1");
        let tun = Tun::create("uvs0").unwrap();
        let mut queue = tun.queue().unwrap();
        let reply4 = packet(|to| {
            PacketBuilder::ipv4(VIP, CLIENT, 63)
                .tcp(80, 40000, 7, 65535)
                .ack(8)
                .write(to, &[])
                .unwrap()
        });
        let reply6 = packet(|to| {
            PacketBuilder::ipv6(VIP6, CLIENT6, 63)
                .tcp(80, 40000, 7, 65535)
                .ack(8)
                .write(to, &[])
                .unwrap()
        });
        for (reply, l4) in [(reply4, 34), (reply6, 54)] {
            assert!(queue.write(&reply, FINISHED));
            assert!(answer(&sniffer, l4, 80).is_some(), "not forwarded");
        }
    });
}

/// Goal: no reverse path filter keeps frames from the local stack, and when one is put in the way it is named.
/// Method: every combination of `all` and the device's own setting, and whether a SYN is answered.
#[test]
fn no_rp_filter_is_in_the_way_and_strict_is_named() {
    in_namespace(|| {
        let sniffer = director();
        sysctl("ipv4/conf/default/rp_filter", "1");
        let tun = Tun::create("uvs0").unwrap();
        let mut queue = tun.queue().unwrap();
        let mut port = 90;
        let mut answered = |all: &str| {
            sysctl("ipv4/conf/all/rp_filter", all);
            port += 1;
            assert!(queue.write(&syn4(port), FINISHED));
            let time = std::time::Duration::from_millis(300);
            sniffer.within(time, |f| f[34..36] == port.to_be_bytes()).is_some()
        };
        for all in ["0", "1", "2"] {
            assert!(answered(all), "all = {all}");
            let filter = RpFilter::read("uvs0").unwrap();
            assert_eq!(
                (filter.all.to_string().as_str(), filter.own, filter.problem()),
                (all, 2, None)
            );
        }
        for (own, all, strict) in [("0", "0", false), ("0", "1", true), ("1", "0", true), ("1", "2", false)] {
            sysctl("ipv4/conf/uvs0/rp_filter", own);
            assert_eq!(answered(all), !strict, "own = {own}, all = {all}");
            let problem = RpFilter::read("uvs0").unwrap().problem();
            assert_eq!(problem.is_some(), strict, "own = {own}, all = {all}");
            if let Some(problem) = problem {
                assert!(problem.contains("net.ipv4.conf.uvs0.rp_filter=2"), "{problem}");
            }
        }
    });
}

#[test]
fn the_device_goes_with_its_last_queue_and_names_are_checked() {
    in_namespace(|| {
        let tun = Tun::create("uvs0").unwrap();
        let again = Tun::create("uvs0").expect("a daemon that takes over joins the device");
        drop(tun);
        let queue = again.queue().unwrap();
        drop(again);
        RpFilter::read("uvs0").unwrap();
        drop(queue);
        // Another test's child may hold a copy of the descriptor until its exec.
        let gone = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            RpFilter::read("uvs0").is_err_and(|e| e.to_string().contains("uvs0"))
        });
        assert!(gone, "the device outlives its queues");
        assert!(matches!(Tun::create("much-too-long-a-name"), Err(TunError::Name(_))));
        assert!(matches!(Tun::create("uvs%d"), Err(TunError::Name(_))));
        ip("link add uvs0 type veth peer name other");
        let error = Tun::create("uvs0").unwrap_err().to_string();
        assert!(error.contains("uvs0") && error.contains("something else"), "{error}");
    });
}
