//! Frames through the whole director in memory where no recording is at hand: fragments, lengths, ICMP errors, checksums left to
//! hardware that is not there. How: a line of prose, rules, a frame in, and what comes out, by facts observed on the kernel's IPVS.

#[path = "support/memory_director.rs"]
mod memory_director;
#[path = "support/packets.rs"]
mod packets;

use std::net::IpAddr;

use etherparse::{IpNumber, Ipv6FragmentHeader};
use memory_director::{CLIENT_SIDE, MemoryDirector, Outcome, SERVER_SIDE};
use packets::{FAMILIES, METHODS, flow, host_unreachable, ip, transport_checksum_is_right, unwrap_tunnel};
use uvs::packet::parse::{Packet, parse};
use uvs::packet::{ChecksumOffload, DropReason, Family, Offload, checksum};

fn addresses(family: Family) -> (IpAddr, IpAddr, IpAddr) {
    let texts = match family {
        Family::V4 => ("198.51.100.7", "10.200.1.1", "172.16.0.11"),
        Family::V6 => ("2001:db8::7", "fd00:200::1", "fd00:16::11"),
    };
    let address = |text: &str| text.parse().expect("an address");
    (address(texts.0), address(texts.1), address(texts.2))
}

/// A director with one UDP service on port 53 and one TCP service on port 80, each with one destination.
fn director(family: Family, method: &str) -> MemoryDirector {
    let (_, vip, server) = addresses(family);
    let at = |address: IpAddr, port: u16| std::net::SocketAddr::from((address, port));
    let (udp, tcp) = if method == "-m" { (5353, 8080) } else { (53, 80) };
    let mut director = MemoryDirector::new(1024);
    director.ipvsadm(&format!(
        "-A -u {} -s rr; -a -u {} -r {} {method}",
        at(vip, 53),
        at(vip, 53),
        at(server, udp)
    ));
    director.ipvsadm(&format!(
        "-A -t {} -s rr; -a -t {} -r {} {method}",
        at(vip, 80),
        at(vip, 80),
        at(server, tcp)
    ));
    director
}

fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    packets::datagram(from.into(), to.into(), payload)
}

fn syn(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    packets::segment(from.into(), to.into(), "S", payload)
}

fn set_dont_fragment(bytes: &mut [u8]) {
    bytes[20] |= 0x40;
    fix_ipv4(bytes);
}

fn fix_ipv4(bytes: &mut [u8]) {
    bytes[24..26].fill(0);
    let sum = checksum::of(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Cuts a packet without options into fragments of `size` payload bytes.
fn fragments(bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
    let header = if bytes[14] >> 4 == 4 { 34 } else { 54 };
    let payload = &bytes[header..];
    let cut = |(number, piece): (usize, &[u8])| {
        let more = (number + 1) * size < payload.len();
        let mut out = bytes[..header].to_vec();
        if header == 34 {
            out[16..18].copy_from_slice(&(20 + piece.len() as u16).to_be_bytes());
            out[20..22].copy_from_slice(&((number * size / 8) as u16 | if more { 0x2000 } else { 0 }).to_be_bytes());
            fix_ipv4(&mut out);
        } else {
            let offset = ((number * size / 8) as u16).try_into().expect("an offset");
            let fragment = Ipv6FragmentHeader::new(IpNumber(bytes[20]), offset, more, 0x55);
            out[18..20].copy_from_slice(&(8 + piece.len() as u16).to_be_bytes());
            out[20] = 44;
            out.extend(fragment.to_bytes());
        }
        out.extend(piece);
        out
    };
    payload.chunks(size).enumerate().map(cut).collect()
}

/// Puts what came out together again, unless it was never cut.
fn join(frames: &[Vec<u8>]) -> Vec<u8> {
    use uvs::forward::fragment::{Inserted, Reassembly};
    use uvs::packet::Frame;
    let mut reassembly = Reassembly::with_datagrams(1);
    for bytes in frames {
        let Ok(Packet::Fragment(fragment)) = parse(bytes, Offload::default()) else {
            return bytes.clone();
        };
        if let Inserted::Complete(datagram) = reassembly.insert(bytes, &fragment, 0) {
            return datagram.bytes().to_vec();
        }
    }
    panic!("{} frames are no datagram", frames.len());
}

fn sent(outcome: &Outcome) -> Vec<Vec<u8>> {
    outcome.sent.iter().map(|(_, frame)| frame.clone()).collect()
}

#[test]
fn fragments_are_forwarded_as_whole_datagrams_and_cut_as_they_came() {
    for family in FAMILIES {
        let (client, vip, server) = addresses(family);
        let datagram = udp((client, 20001), (vip, 53), &[7; 3000]);
        for method in METHODS {
            for reverse in [false, true] {
                let mut director = director(family, method);
                let mut pieces = fragments(&datagram, 1024);
                let longest = pieces[0].len();
                if reverse {
                    pieces.reverse();
                }
                let (last, others) = pieces.split_last().expect("three fragments");
                for piece in others {
                    let outcome = director.inject(CLIENT_SIDE, piece, Offload::default());
                    assert!(outcome.sent.is_empty() && outcome.handed_back == 0);
                }
                assert_eq!(director.counts().held, 2);
                let out = sent(&director.inject(CLIENT_SIDE, last, Offload::default()));
                let name = format!("{family:?} {method}, reversed: {reverse}");
                // A tunnel over IPv6 has its outer header within the first fragment.
                let room = if (family, method) == (Family::V6, "-i") { 40 } else { 0 };
                assert!(
                    out.len() >= 3 && out[0].len() == longest + room,
                    "{name}: {}",
                    out.len()
                );
                assert!(out[1..].iter().all(|frame| frame.len() <= longest), "{name}");
                let mut whole = join(&out);
                if method == "-i" {
                    whole = unwrap_tunnel(&whole);
                }
                assert!(transport_checksum_is_right(&whole), "{name}");
                let expected = if method == "-m" { (server, 5353) } else { (vip, 53) };
                let parsed = flow(&whole);
                assert_eq!(
                    (parsed.flow.destination(), parsed.flow.destination_port()),
                    expected,
                    "{name}"
                );
                assert_eq!((parsed.ttl, director.counts().held), (63, 0), "{name}");
            }
        }
    }
}

#[test]
fn replies_in_fragments_are_translated_whole() {
    for family in FAMILIES {
        let (client, vip, server) = addresses(family);
        let mut director = director(family, "-m");
        director.inject(CLIENT_SIDE, &udp((client, 20001), (vip, 53), b"?"), Offload::default());
        let reply = udp((server, 5353), (client, 20001), &[9; 2500]);
        let mut out = Vec::new();
        for piece in fragments(&reply, 1400) {
            out.extend(director.inject(SERVER_SIDE, &piece, Offload::default()).sent);
        }
        assert!(out.iter().all(|(interface, _)| *interface == CLIENT_SIDE), "{family:?}");
        let frames: Vec<_> = out.into_iter().map(|(_, frame)| frame).collect();
        let whole = join(&frames);
        let parsed = flow(&whole);
        assert_eq!(
            (parsed.flow.source(), parsed.flow.source_port()),
            (vip, 53),
            "{family:?}"
        );
        assert!(frames.len() == 2 && transport_checksum_is_right(&whole), "{family:?}");
    }
}

#[test]
fn fragments_that_stay_alone_time_out() {
    let (client, vip, _) = addresses(Family::V4);
    let mut director = director(Family::V4, "-g");
    let pieces = fragments(&udp((client, 20001), (vip, 53), &[7; 2000]), 1024);
    director.inject(CLIENT_SIDE, &pieces[1], Offload::default());
    assert_eq!(director.counts().held, 1);
    director.now_ns += 31_000_000_000;
    director.inject(
        CLIENT_SIDE,
        &udp((client, 20002), (vip, 53), b"later"),
        Offload::default(),
    );
    assert_eq!(
        (
            director.counts().held,
            director.counts().dropped[DropReason::Fragment as usize]
        ),
        (0, 1)
    );
}

#[test]
fn too_long_for_the_tunnel() {
    for (family, limit, quoted) in [(Family::V4, 1480u16, 576), (Family::V6, 1460, 1280)] {
        let (client, vip, _) = addresses(family);
        let mut director = director(family, "-i");
        let headers = if family == Family::V4 { 40 } else { 60 };
        let mut fits = syn((client, 20001), (vip, 80), &vec![7; limit as usize - headers]);
        let mut long = syn((client, 20002), (vip, 80), &vec![7; limit as usize + 1 - headers]);
        if family == Family::V4 {
            set_dont_fragment(&mut fits);
            set_dont_fragment(&mut long);
        }
        let out = director.inject(CLIENT_SIDE, &fits, Offload::default());
        assert_eq!(
            (out.sent.len(), out.sent[0].0, out.sent[0].1.len()),
            (1, SERVER_SIDE, 1514),
            "{family:?}"
        );
        let out = director.inject(CLIENT_SIDE, &long, Offload::default());
        assert_eq!((out.sent.len(), out.sent[0].0), (1, CLIENT_SIDE), "{family:?}");
        let answer = &out.sent[0].1;
        let Ok(Packet::IcmpError(parsed)) = parse(answer, Offload::default()) else {
            panic!("{family:?}: no error")
        };
        assert_eq!(
            (parsed.flow.source(), parsed.flow.destination()),
            (vip, client),
            "{family:?}"
        );
        let icmp = &answer[parsed.l4 as usize..];
        let expected = if family == Family::V4 { [3, 4] } else { [2, 0] };
        assert_eq!(
            (icmp[..2].to_vec(), u16::from_be_bytes([icmp[6], icmp[7]])),
            (expected.to_vec(), limit),
            "{family:?}"
        );
        assert_eq!(answer.len(), 14 + quoted, "{family:?}");
        assert_eq!(director.counts().dropped[DropReason::TooBig as usize], 1, "{family:?}");
    }
}

#[test]
fn too_long_without_dont_fragment_is_cut_after_the_outer_header() {
    let (client, vip, _) = addresses(Family::V4);
    let mut director = director(Family::V4, "-i");
    let long = syn((client, 20001), (vip, 80), &[7; 1460]);
    let out = sent(&director.inject(CLIENT_SIDE, &long, Offload::default()));
    assert_eq!(out.iter().map(Vec::len).collect::<Vec<_>>(), [1514, 14 + 20 + 20]);
    assert!(transport_checksum_is_right(&unwrap_tunnel(&join(&out))));
}

/// A SYN with Ethernet's MSS by each method, without and with `mss_clamp`; then the connection's next SYN and plain packet.
#[test]
fn the_mss_of_a_syn_is_made_to_fit_only_through_tunnels_and_only_when_asked() {
    for family in FAMILIES {
        let (client, vip, _) = addresses(family);
        for method in METHODS {
            for clamp in [false, true] {
                let mut director = director(family, method);
                if clamp {
                    let command = uvs::control::protocol::Command::SetMssClamp { on: true };
                    director.apply(&[command]).expect("a command that is never refused");
                }
                let builder = ip(client, vip).tcp(20001, 80, 1, 9000).syn();
                let builder = builder.options_raw(&[1, 2, 4, 0x23, 0, 3, 3, 7]).expect("options");
                let mut syn = Vec::new();
                builder.write(&mut syn, &[]).expect("a vector takes everything");
                for _ in 0..2 {
                    let mut out = sent(&director.inject(CLIENT_SIDE, &syn, Offload::default())).remove(0);
                    if method == "-i" {
                        out = unwrap_tunnel(&out);
                    }
                    let l4 = flow(&out).l4 as usize;
                    let mss = u16::from_be_bytes([out[l4 + 23], out[l4 + 24]]);
                    let expected = match (clamp && method == "-i", family) {
                        (false, _) => 0x2300,
                        (true, Family::V4) => 1440,
                        (true, Family::V6) => 1400,
                    };
                    let name = format!("{family:?} {method} clamp {clamp}");
                    assert!(transport_checksum_is_right(&out), "{name}");
                    assert_eq!(mss, expected, "{name}");
                }
            }
        }
    }
}

#[test]
fn an_error_from_a_router_before_the_destination_comes_from_the_vip() {
    for family in FAMILIES {
        let (client, vip, _) = addresses(family);
        let mut director = director(family, "-m");
        let query = udp((client, 20001), (vip, 53), b"where?");
        let forwarded = director
            .inject(CLIENT_SIDE, &query, Offload::default())
            .sent
            .remove(0)
            .1;
        let router: IpAddr = if family == Family::V4 {
            "172.16.9.9"
        } else {
            "fd00:16::99"
        }
        .parse()
        .expect("an address");
        let error = host_unreachable(router, client, &forwarded);
        let out = director.inject(SERVER_SIDE, &error, Offload::default());
        assert_eq!((out.sent.len(), out.sent[0].0), (1, CLIENT_SIDE), "{family:?}");
        let answer = &out.sent[0].1;
        let Ok(Packet::IcmpError(parsed)) = parse(answer, Offload::default()) else {
            panic!("{family:?}: no error")
        };
        assert_eq!(
            (parsed.flow.source(), parsed.flow.destination()),
            (vip, client),
            "{family:?}"
        );
        let quoted = uvs::packet::quote::quote(answer, &parsed).expect("a quote").flow;
        assert_eq!(quoted, flow(&query).flow, "{family:?}: in the client's terms");
    }
}

#[test]
fn redirects_and_parameter_problems_are_the_local_stacks() {
    let (client, vip, _) = addresses(Family::V4);
    let mut director = director(Family::V4, "-m");
    let query = udp((client, 20001), (vip, 53), b"?");
    director.inject(CLIENT_SIDE, &query, Offload::default());
    let reply = udp((vip, 53), (client, 20001), b"!");
    for kind in [5, 12] {
        let mut error = host_unreachable("203.0.113.9".parse().expect("an address"), vip, &reply[14..]);
        error[34] = kind;
        error[36..38].fill(0);
        let sum = checksum::of(&error[34..]);
        error[36..38].copy_from_slice(&sum.to_be_bytes());
        let out = director.inject(CLIENT_SIDE, &error, Offload::default());
        assert_eq!((out.sent.len(), out.handed_back), (0, 1), "type {kind}");
    }
}

#[test]
fn checksums_left_to_hardware_that_is_not_there_are_finished() {
    for family in FAMILIES {
        let (client, vip, _) = addresses(family);
        for method in METHODS {
            for good in [
                udp((client, 20001), (vip, 53), b"hello"),
                syn((client, 20001), (vip, 80), b"hello"),
            ] {
                let parsed = flow(&good);
                let at = parsed.l4 as usize + if parsed.flow.destination_port() == 80 { 16 } else { 6 };
                let pseudo = checksum::fold(checksum::pseudo_header(&parsed.flow, parsed.end - parsed.l4 as u32));
                let mut bytes = good.clone();
                bytes[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
                let name = format!("{family:?} {method} port {}", parsed.flow.destination_port());
                // AF_XDP: nothing is known of the frame.
                let mut out = sent(&director(family, method).inject(CLIENT_SIDE, &bytes, Offload::default())).remove(0);
                if method == "-i" {
                    out = unwrap_tunnel(&out);
                }
                assert!(transport_checksum_is_right(&out), "{name}");
                // Packet socket: it stays the kernel's to finish.
                let offset = at as u16 - parsed.l4;
                let unfinished = ChecksumOffload::Unfinished {
                    start: parsed.l4,
                    offset,
                };
                let offload = Offload {
                    checksum: unfinished,
                    segmentation: None,
                };
                let mut out = sent(&director(family, method).inject(CLIENT_SIDE, &bytes, offload)).remove(0);
                if method == "-i" {
                    out = unwrap_tunnel(&out);
                }
                let after = flow(&out);
                let pseudo = checksum::fold(checksum::pseudo_header(&after.flow, after.end - after.l4 as u32));
                assert_eq!(out[at..at + 2], pseudo.to_be_bytes(), "{name}");
            }
        }
    }
}
