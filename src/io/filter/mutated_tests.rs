//! The filter against damaged frames.

use super::tests::{cases_icmp, cases_v4, cases_v6, is_match, maps};
use super::*;
use crate::io::testing::in_namespace;
use crate::packet::parse::{Packet, parse};
use crate::packet::{Offload, Protocol};

/// Frames made of each good one.
const MUTANTS: u64 = 60;

/// A small generator (xorshift64): the same frames in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

/// How: every frame of the tables, some bytes behind its addresses changed or its end cut, through each flavour and
/// through the data plane's parser. Goal: the flavours, which read frames in two ways, agree; and what the parser
/// takes for a packet of a service never passes.
#[test]
fn flavours_agree_and_no_packet_of_a_service_slips_through() {
    in_namespace(|| {
        let maps = maps();
        let load = |flavour| Filter::load(flavour, &maps).unwrap();
        let xdp = load(Flavour::Xdp);
        let others = [load(Flavour::TcIngress), load(Flavour::Socket)];
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let (mut matched, mut services) = (0, 0);
        for (prose, frame, _) in [cases_v4(), cases_icmp(), cases_v6()].concat() {
            for _ in 0..MUTANTS {
                let mut frame = frame.clone();
                for _ in 0..1 + dice.roll(3) {
                    if frame.len() > 14 {
                        let place = 14 + dice.roll(frame.len() - 14);
                        frame[place] = [dice.roll(256), dice.roll(70), 0, 0xff][dice.roll(4)] as u8;
                    }
                }
                if dice.roll(4) == 0 {
                    frame.truncate(55 + dice.roll(60));
                }
                if frame.len() < 14 + 40 {
                    continue; // BPF_PROG_TEST_RUN makes no packet without a whole IP header.
                }
                let ours = is_match(&xdp, &frame);
                for other in &others {
                    assert_eq!(
                        is_match(other, &frame),
                        ours,
                        "{prose}: {:?} differs on {frame:02x?}",
                        other.flavour
                    );
                }
                if is_service(&frame) {
                    assert!(ours, "{prose}: passes {frame:02x?}");
                    services += 1;
                }
                matched += ours as u32;
            }
        }
        assert!(
            matched > 500 && services > 100,
            "{matched} matched, {services} to services: too few to say anything"
        );
    });
}

/// To one of the services of `maps`, says the parser, once the header checksum is right.
fn is_service(frame: &[u8]) -> bool {
    let mut frame = frame.to_vec();
    if frame[12] == 0x08 {
        let header = 14..14 + (frame[14] as usize & 15) * 4;
        frame[24..26].fill(0);
        let words = frame.get(header).unwrap_or_default().chunks(2);
        let sum: u32 = words.map(|w| u32::from_be_bytes([0, 0, w[0], w[1]])).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        frame[24..26].copy_from_slice(&(!(folded + (folded >> 16)) as u16).to_be_bytes());
    }
    let Ok(Packet::Flow(parsed)) = parse(&frame, Offload::default()) else {
        return false;
    };
    let flow = parsed.flow;
    let to = flow.destination().to_string();
    matches!(
        (to.as_str(), flow.protocol, flow.destination_port()),
        ("10.9.0.1" | "fd00:9::1", Protocol::TCP, 80)
            | ("10.9.0.2", Protocol::UDP, _)
            | ("10.9.0.3", Protocol::SCTP, 9)
    )
}
