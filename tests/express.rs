//! The short way of common packets does what the long way does. How: two directors in memory get the same random traffic, one
//! of them by the long way only. Goal: the same bytes leave, the same is counted, the same connections remain.

#[path = "support/memory_director.rs"]
mod memory_director;

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use memory_director::{CLIENT_SIDE, MemoryDirector, Outcome, SERVER_SIDE};
use uvs::dataplane::driver::BATCH_MAX;
use uvs::packet::parse::{Packet, parse};
use uvs::packet::{ChecksumOffload, Offload, TcpFlags, checksum};
use uvs::table::InterfaceId;

const RULES: &str =
    "-A -t 10.200.1.1:80 -s rr; -a -t 10.200.1.1:80 -r 172.16.0.11:8080 -m; -a -t 10.200.1.1:80 -r 172.16.0.12:80 -m;
-A -t 10.200.1.1:81 -s rr; -a -t 10.200.1.1:81 -r 172.16.0.11:81 -g; -a -t 10.200.1.1:81 -r 172.16.0.12:81 -g;
-A -t 10.200.1.1:82 -s rr; -a -t 10.200.1.1:82 -r 172.16.0.11:82 -i; -a -t 10.200.1.1:82 -r 172.16.0.12:82 -i;
-A -u 10.200.1.1:80 -s rr; -a -u 10.200.1.1:80 -r 172.16.0.11:8080 -m; -a -u 10.200.1.1:80 -r 172.16.0.12:80 -m;
-A -u 10.200.1.1:81 -s rr -o; -a -u 10.200.1.1:81 -r 172.16.0.11:81 -g; -a -u 10.200.1.1:81 -r 172.16.0.12:81 -g;
-A -u 10.200.1.1:82 -s rr; -a -u 10.200.1.1:82 -r 172.16.0.11:82 -i; -a -u 10.200.1.1:82 -r 172.16.0.12:82 -g";
const STEPS: usize = 30_000;
const CLIENTS: usize = 8;

#[test]
fn both_ways_are_one() {
    let mut directors = [MemoryDirector::new(1024), MemoryDirector::new(1024).long_way_only()];
    directors.iter_mut().for_each(|director| director.ipvsadm(RULES));
    let mut traffic = Traffic::new();
    for step in 0..STEPS {
        traffic.disturb_rules(&mut directors);
        let Some(arrival) = traffic.arrival() else {
            continue;
        };
        let Arrival {
            side, bytes, offload, ..
        } = &arrival;
        let [a, b] = directors
            .each_mut()
            .map(|director| director.inject(*side, bytes, *offload));
        let same = (&a.sent, a.handed_back) == (&b.sent, b.handed_back);
        assert!(
            same,
            "step {step}, {} bytes from {side:?}: {:02x?}\nleft {:?}\nand {:?}",
            bytes.len(),
            &bytes[..54.min(bytes.len())],
            directors[0].counts(),
            directors[1].counts()
        );
        traffic.note(&arrival, a);
        if step % 64 == 0 {
            directors.iter_mut().for_each(|director| director.sweep());
        }
        traffic.wait(&mut directors);
    }
    assert_same(&directors);
    traffic.assert_steady(STEPS);
    assert!(directors[0].connections().len() > CLIENTS);
}

/// How: one director gets batches, of one frame to as many as there can be and from both sides, the other the same frames one by one.
/// Goal: as above, and after each batch the same connections, with their deadlines.
#[test]
fn a_batch_is_as_its_frames_one_by_one() {
    let mut directors = [(); 2].map(|()| MemoryDirector::new(1024));
    directors.iter_mut().for_each(|director| director.ipvsadm(RULES));
    let mut traffic = Traffic::new();
    let mut frames = 0;
    for step in 0..STEPS / 8 {
        traffic.disturb_rules(&mut directors);
        let most = traffic.random.of(&[1, 2, 4, 8, 16, BATCH_MAX]);
        // Where a connection begins in the same batch, a SYN from its server is too early (`dataplane/waiting.rs`).
        let is_possible =
            |a: &Arrival| a.side == CLIENT_SIDE || is_udp(&a.bytes) || flags_of(&a.bytes) != TcpFlags::SYN;
        let arrivals = (0..most).filter_map(|_| traffic.arrival()).filter(is_possible);
        let arrivals: Vec<Arrival> = arrivals.collect();
        frames += arrivals.len();
        let [whole, single] = &mut directors;
        let batch: Vec<_> = arrivals.iter().map(|a| (a.side, &a.bytes[..], a.offload)).collect();
        let at_once = whole.inject_batch(&batch);
        let mut in_turn = Outcome::default();
        for arrival in &arrivals {
            let outcome = single.inject(arrival.side, &arrival.bytes, arrival.offload);
            in_turn.sent.extend(outcome.sent.iter().cloned());
            in_turn.handed_back += outcome.handed_back;
            traffic.note(arrival, outcome);
        }
        in_turn.sent.sort_by_key(|(interface, _)| *interface);
        assert_same(&directors);
        assert!(at_once == in_turn, "step {step}: {} frames", arrivals.len());
        if step % 16 == 0 {
            directors.iter_mut().for_each(|director| director.sweep());
        }
        traffic.wait(&mut directors);
    }
    traffic.assert_steady(frames);
    assert!(directors[0].connections().len() > CLIENTS);
}

fn assert_same([a, b]: &[MemoryDirector; 2]) {
    assert_eq!(a.counts(), b.counts());
    assert_eq!(a.destinations(), b.destinations());
    assert_eq!(a.connections(), b.connections());
}

/// What comes to the directors.
struct Traffic {
    random: Random,
    /// What each NAT client's packet became, to be answered.
    translated: Vec<Option<Vec<u8>>>,
    /// Acknowledgements and datagrams that were forwarded.
    plain: usize,
    datagrams: usize,
}

/// A frame, of a client or in answer to it.
struct Arrival {
    client: usize,
    side: InterfaceId,
    bytes: Vec<u8>,
    offload: Offload,
}

impl Traffic {
    fn new() -> Traffic {
        Traffic {
            random: Random(0x1234_5678_9abc_def1),
            translated: vec![None; CLIENTS],
            plain: 0,
            datagrams: 0,
        }
    }

    /// Sometimes another setting, or a destination that goes and comes.
    fn disturb_rules(&mut self, directors: &mut [MemoryDirector; 2]) {
        if self.random.one_in(500) {
            let (name, value) = self.random.of(&[
                ("pmtu_disc", "0"),
                ("pmtu_disc", "1"),
                ("secure_tcp", "0"),
                ("secure_tcp", "3"),
                ("drop_packet", "0"),
                ("drop_packet", "3"),
                ("nat_icmp_send", "0"),
                ("nat_icmp_send", "1"),
            ]);
            directors.iter_mut().for_each(|director| director.sysctl(name, value));
        }
        if self.random.one_in(3000) {
            for lines in [
                "-d -t 10.200.1.1:81 -r 172.16.0.12:81",
                "-a -t 10.200.1.1:81 -r 172.16.0.12:81 -g",
            ] {
                directors.iter_mut().for_each(|director| director.ipvsadm(lines));
            }
        }
    }

    /// The next frame; `None`: it was to be an answer, and there is nothing to answer.
    fn arrival(&mut self) -> Option<Arrival> {
        let side = self.random.of(&[CLIENT_SIDE, CLIENT_SIDE, SERVER_SIDE]);
        let client = self.random.below(CLIENTS);
        let mut bytes = if side == CLIENT_SIDE {
            ask(&mut self.random, client)
        } else {
            answer(&mut self.random, self.translated[client].as_ref()?)
        };
        let offload = disturb(&mut self.random, &mut bytes);
        Some(Arrival {
            client,
            side,
            bytes,
            offload,
        })
    }

    /// What became of it.
    fn note(&mut self, arrival: &Arrival, outcome: Outcome) {
        let Arrival { client, bytes, .. } = arrival;
        let sent = outcome.sent.len() == 1;
        self.datagrams += (is_udp(bytes) && sent) as usize;
        self.plain += (!is_udp(bytes) && flags_of(bytes) == TcpFlags::ACK && sent) as usize;
        if destination_port(bytes) == 80 {
            let mut sent = outcome.sent.into_iter();
            let forwarded = sent.find(|(interface, _)| *interface == SERVER_SIDE);
            let kept = self.translated[*client].take();
            self.translated[*client] = forwarded.map(|(_, bytes)| bytes).or(kept);
        }
    }

    /// Of so many frames, enough took the short way.
    fn assert_steady(&self, frames: usize) {
        let Traffic { plain, datagrams, .. } = self;
        assert!(*plain > frames / 6, "{plain} plain acknowledgements were forwarded");
        assert!(*datagrams > frames / 6, "{datagrams} datagrams were forwarded");
    }

    fn wait(&mut self, directors: &mut [MemoryDirector; 2]) {
        let later = self.random.below(400) as u64 * 1_000_000;
        directors.iter_mut().for_each(|director| director.now_ns += later);
    }
}

/// A client's packet to one of the services.
fn ask(random: &mut Random, client: usize) -> Vec<u8> {
    let mac = random.of(&[0xc0, 0xc0, 0xc0, 0xc1]);
    let address = [10, 0, 0, 10 + client as u8];
    let ports = (20_000 + client as u16, random.of(&[80, 80, 81, 82, 82]));
    let udp = random.one_in(3);
    packet(
        random,
        ([2, 0, 0, 0, 0, mac], [2, 0, 0, 0, 0, 0xd0]),
        (address, [10, 200, 1, 1]),
        ports,
        udp,
    )
}

/// A NAT destination's packet in answer to one that it got.
fn answer(random: &mut Random, seen: &[u8]) -> Vec<u8> {
    let address = |at: usize| [seen[at], seen[at + 1], seen[at + 2], seen[at + 3]];
    let port = |at: usize| u16::from_be_bytes([seen[at], seen[at + 1]]);
    let macs = ([2, 0, 0, 0, 0, 0xa1], [2, 0, 0, 0, 0, 0xd1]);
    let ports = (port(36), port(34));
    packet(random, macs, (address(30), address(26)), ports, is_udp(seen))
}

fn packet(
    random: &mut Random,
    macs: ([u8; 6], [u8; 6]),
    addresses: ([u8; 4], [u8; 4]),
    ports: (u16, u16),
    udp: bool,
) -> Vec<u8> {
    let ttl = random.of(&[64, 64, 64, 64, 2, 1]);
    let payload = vec![0x5a; random.of(&[0, 0, 0, 5, 11, 12, 700, 1440, 1460, 1461, 1472, 1473])];
    let flags = random.of(&["S", "A", "A", "A", "A", "A", "PA", "PA", "FA", "R", "AU", ""]);
    let ip = PacketBuilder::ethernet2(macs.0, macs.1).ipv4(addresses.0, addresses.1, ttl);
    let mut bytes = Vec::new();
    if udp {
        let udp = ip.udp(ports.0, ports.1);
        udp.write(&mut bytes, &payload).expect("a vector takes everything");
    } else {
        write_tcp(random, ip, ports, flags, &payload, &mut bytes);
    }
    bytes[15] = random.of(&[0, 0, 3, 0xb8]);
    bytes[20] = random.of(&[0x40, 0x40, 0]);
    bytes[24..26].fill(0);
    let header = checksum::of(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&header.to_be_bytes());
    bytes
}

fn write_tcp(
    random: &mut Random,
    ip: PacketBuilderStep<IpHeaders>,
    ports: (u16, u16),
    flags: &str,
    payload: &[u8],
    bytes: &mut Vec<u8>,
) {
    let mut tcp = ip.tcp(ports.0, ports.1, random.next() as u32, 0xfaf0);
    for flag in flags.chars() {
        tcp = match flag {
            'S' => tcp.syn(),
            'A' => tcp.ack(random.next() as u32),
            'P' => tcp.psh(),
            'F' => tcp.fin(),
            'R' => tcp.rst(),
            _ => tcp.urg(1),
        };
    }
    tcp.write(bytes, payload).expect("a vector takes everything");
}

/// What wires, cards and local stacks do to frames.
fn disturb(random: &mut Random, bytes: &mut Vec<u8>) -> Offload {
    let mut offload = Offload::default();
    let Ok(Packet::Flow(parsed)) = parse(bytes, offload) else {
        panic!("not a flow: {bytes:02x?}");
    };
    let offset = if is_udp(bytes) { 6 } else { 16 };
    let field = 34 + offset..36 + offset;
    match random.below(9) {
        0 => {
            let pseudo = checksum::fold(checksum::pseudo_header(&parsed.flow, parsed.end - 34));
            bytes[field].copy_from_slice(&pseudo.to_be_bytes());
            if random.one_in(2) {
                let offset = offset as u16;
                offload.checksum = ChecksumOffload::Unfinished { start: 34, offset };
            }
        }
        1 => bytes[field.start] ^= 1,
        2 => bytes[field].fill(random.of(&[0, 0xff])),
        3 => offload.checksum = ChecksumOffload::Finished,
        4 => bytes[24] ^= random.of(&[0, 0, 1]),
        // Of UDP a length that leaves something behind the datagram; of TCP a sequence number.
        5 => bytes[39] ^= random.of(&[0, 1, 2]),
        _ => {}
    }
    if bytes.len() < 60 && !random.one_in(3) {
        bytes.resize(60, 0);
    }
    offload
}

fn is_udp(bytes: &[u8]) -> bool {
    bytes[23] == 17
}

fn flags_of(bytes: &[u8]) -> u8 {
    bytes[47] & 0x17
}

fn destination_port(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[36], bytes[37]])
}

/// Xorshift: the same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}
