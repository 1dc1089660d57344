//! Frames that are wrong, or only odd, on the wire in front of a running director: each has its drop reason, or is left to
//! the kernel, or is served all the same. After each the accounting comes out even, to the frame.

pub mod build;

use std::net::IpAddr;
use std::time::Duration;

use super::dropped;
use super::support::{Accounting, FAMILIES, Family, FrameSocket, Layout, Method, Plan, Scenario, scenario, with_port};
use build::{Ends, FIRST, ICMP, LAST, MORE, TCP, UDP, icmp_error, icmpv6_error, ip, ip_with, resum, tcp, tcp_at, udp};
use uvs::packet::Mac;

/// A service of real servers that answer.
const SERVED: u16 = 80;
/// A UDP service whose only real server takes everything and says nothing.
const SILENT: u16 = 9;
/// A service without real servers.
const EMPTY: u16 = 10;
/// No service.
const FREE: u16 = 81;

/// What one frame must lead to.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The filter leaves it to the kernel.
    Passed,
    /// Dropped for this reason, nothing sent.
    Dropped(&'static str),
    /// Dropped, and its sender gets an ICMP error.
    Answered(&'static str),
    /// Sent to a real server.
    Forwarded,
    /// Given to the local stack.
    HandedBack,
    /// Kept, for what may still come.
    Held,
}

type Case = (&'static str, Vec<u8>, Fate);

/// IPv4 frames from client to VIP.
fn ipv4(e: &Ends) -> Vec<Case> {
    use Fate::*;
    let syn = || ip(e, TCP, &tcp(SERVED));
    let query = || ip(e, UDP, &udp(SILENT, 8));
    let changed = |mut frame: Vec<u8>, at: usize, value: u8| {
        frame[at] = value;
        resum(&mut frame);
        frame
    };
    let lengthened = |mut frame: Vec<u8>, by: i16| {
        let length = u16::from_be_bytes([frame[16], frame[17]]).wrapping_add_signed(by);
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        resum(&mut frame);
        frame
    };
    let vlan = || {
        let mut frame = syn();
        frame.splice(12..12, [0x81, 0, 0, 5]);
        frame
    };
    vec![
        ("an Ethernet header alone", syn()[..14].to_vec(), Passed),
        ("runt: half an IP header", syn()[..24].to_vec(), Passed),
        ("IP header alone", syn()[..34].to_vec(), Dropped("truncated")),
        ("cut in the ports", syn()[..36].to_vec(), Dropped("truncated")),
        ("version 5", changed(syn(), 14, 0x55), Dropped("bad_ip_header")),
        ("IHL 0", changed(syn(), 14, 0x40), Dropped("bad_ip_header")),
        ("IHL 4", changed(syn(), 14, 0x44), Dropped("bad_ip_header")),
        ("IHL past the end", changed(syn(), 14, 0x4f), Dropped("truncated")),
        (
            "total length below the header",
            lengthened(syn(), -30),
            Dropped("bad_ip_header"),
        ),
        ("total length past the end", lengthened(syn(), 1), Dropped("truncated")),
        (
            "total length cuts TCP",
            lengthened(syn(), -1),
            Dropped("bad_tcp_header"),
        ),
        (
            "header checksum",
            {
                let mut f = syn();
                f[24] ^= 1;
                f
            },
            Dropped("bad_ip_checksum"),
        ),
        (
            "data offset 0",
            ip(e, TCP, &tcp_at(SERVED, 0)),
            Dropped("bad_tcp_header"),
        ),
        (
            "data offset 4",
            ip(e, TCP, &tcp_at(SERVED, 4)),
            Dropped("bad_tcp_header"),
        ),
        (
            "data offset past the end",
            ip(e, TCP, &tcp_at(SERVED, 6)),
            Dropped("bad_tcp_header"),
        ),
        (
            "TCP of 19 bytes",
            ip(e, TCP, &tcp(SERVED)[..19]),
            Dropped("bad_tcp_header"),
        ),
        (
            "TCP of 3 bytes",
            ip(e, TCP, &tcp(SERVED)[..3]),
            Dropped("bad_tcp_header"),
        ),
        (
            "UDP of 7 bytes",
            ip(e, UDP, &udp(SERVED, 8)[..7]),
            Dropped("bad_udp_header"),
        ),
        ("UDP length 7", ip(e, UDP, &udp(SERVED, 7)), Dropped("bad_udp_header")),
        (
            "UDP length past the end",
            ip(e, UDP, &udp(SERVED, 9)),
            Dropped("bad_udp_header"),
        ),
        ("a port without service", ip(e, TCP, &tcp(FREE)), Passed),
        ("VLAN tag", vlan(), Passed),
        (
            "padding",
            {
                let mut f = query();
                f.resize(60, 0xee);
                f
            },
            Forwarded,
        ),
        ("TTL 1", changed(query(), 22, 1), Answered("ttl_expired")),
        (
            "a service without servers",
            ip(e, UDP, &udp(EMPTY, 8)),
            Answered("no_destination"),
        ),
        (
            "TCP without SYN, of no connection",
            {
                let mut f = syn();
                f[47] = 0x10;
                f
            },
            HandedBack,
        ),
    ]
}

/// IPv4 options, fragments and ICMP errors from client to VIP.
fn ipv4_rare(e: &Ends) -> Vec<Case> {
    use Fate::*;
    let option = |bytes: &[u8]| ip_with(e, UDP, bytes, 0, &udp(SILENT, 8));
    let fragment = |id: u16, place: u16, payload: &[u8]| {
        let mut frame = ip_with(e, UDP, &[], place, payload);
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        resum(&mut frame);
        frame
    };
    // A packet of the VIP as its reader would quote it, of a connection that is not known.
    let quoted = ip(&e.back(), UDP, &udp(7777, 8))[14..].to_vec();
    let error = |quote: &[u8]| ip(e, ICMP, &icmp_error(quote));
    vec![
        ("record route", option(&[7, 7, 4, 0, 0, 0, 0, 0]), Forwarded),
        ("no operation", option(&[1, 1, 1, 0]), Forwarded),
        (
            "loose source route",
            option(&[131, 7, 4, 10, 0, 0, 9, 0]),
            Dropped("source_route"),
        ),
        (
            "strict source route",
            option(&[137, 7, 4, 10, 0, 0, 9, 0]),
            Dropped("source_route"),
        ),
        ("option length 0", option(&[7, 0, 0, 0]), Dropped("bad_ip_header")),
        (
            "option past the header",
            option(&[7, 9, 4, 0]),
            Dropped("bad_ip_header"),
        ),
        ("lone first fragment", fragment(1, FIRST, &udp(SILENT, 64)), Held),
        ("lone last fragment", fragment(2, LAST, &[0; 16]), Held),
        ("fragment of nothing", fragment(3, MORE, &[]), Dropped("fragment")),
        (
            "fragment beyond 64 KiB",
            fragment(4, 0x1fff, &[0; 64]),
            Dropped("fragment"),
        ),
        ("ICMP error without quote", error(&[]), Dropped("bad_icmp")),
        (
            "ICMP error, quote cut in the header",
            error(&quoted[..12]),
            Dropped("bad_icmp"),
        ),
        (
            "ICMP error, quote cut in the ports",
            error(&quoted[..23]),
            Dropped("bad_icmp"),
        ),
        (
            "ICMP error, wrong checksum",
            {
                let mut f = error(&quoted);
                f[36] ^= 1;
                f
            },
            Dropped("bad_icmp"),
        ),
        ("ICMP error about nothing known", error(&quoted), HandedBack),
        (
            "ICMP error of 4 bytes",
            ip(e, ICMP, &icmp_error(&[])[..4]),
            Dropped("bad_icmp"),
        ),
        ("ping, cut", ip(e, ICMP, &[8, 0, 0]), Passed),
    ]
}

/// IPv6 frames from client to VIP.
fn ipv6(e: &Ends) -> Vec<Case> {
    use Fate::*;
    const DESTINATION_OPTIONS: u8 = 60;
    const FRAGMENT: u8 = 44;
    let syn = || ip(e, TCP, &tcp(SERVED));
    let with = |mut frame: Vec<u8>, at: usize, value: u8| {
        frame[at] = value;
        frame
    };
    let extended = |count: usize, last: u8, payload: &[u8]| {
        let mut bytes = Vec::new();
        for n in 1..=count {
            let next = if n == count { last } else { DESTINATION_OPTIONS };
            bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        }
        bytes.extend(payload);
        ip(e, DESTINATION_OPTIONS, &bytes)
    };
    let fragment = |place: [u8; 2], payload: &[u8]| {
        let header = [UDP, 0, place[0], place[1], 0, 0, 0, 9];
        ip(e, FRAGMENT, &[&header, payload].concat())
    };
    let quoted = ip(&e.back(), UDP, &udp(7777, 8))[14..].to_vec();
    vec![
        ("runt: half an IPv6 header", syn()[..34].to_vec(), Passed),
        ("version 4", with(syn(), 14, 0x40), Passed),
        ("IPv6 header alone", syn()[..54].to_vec(), Dropped("truncated")),
        ("payload length past the end", with(syn(), 19, 21), Dropped("truncated")),
        (
            "payload length cuts TCP",
            with(syn(), 19, 19),
            Dropped("bad_tcp_header"),
        ),
        (
            "data offset 4",
            ip(e, TCP, &tcp_at(SERVED, 4)),
            Dropped("bad_tcp_header"),
        ),
        (
            "data offset past the end",
            ip(e, TCP, &tcp_at(SERVED, 15)),
            Dropped("bad_tcp_header"),
        ),
        ("UDP length 7", ip(e, UDP, &udp(SERVED, 7)), Dropped("bad_udp_header")),
        (
            "UDP length past the end",
            ip(e, UDP, &udp(SERVED, 9)),
            Dropped("bad_udp_header"),
        ),
        ("one extension header", extended(1, UDP, &udp(SILENT, 8)), Forwarded),
        (
            "extension header past the end",
            ip(e, DESTINATION_OPTIONS, &[UDP, 9, 1, 4]),
            Dropped("truncated"),
        ),
        (
            "too many extension headers",
            extended(12, UDP, &udp(SILENT, 8)),
            Dropped("bad_ip_header"),
        ),
        (
            "padding",
            {
                let mut f = ip(e, UDP, &udp(SILENT, 8));
                f.extend([0xee; 9]);
                f
            },
            Forwarded,
        ),
        ("lone first fragment", fragment([0, 1], &udp(SILENT, 64)), Held),
        (
            "fragment of 7 bytes, more to come",
            fragment([0, 1], &[0; 7]),
            Dropped("fragment"),
        ),
        (
            "hop limit 1",
            with(ip(e, UDP, &udp(SILENT, 8)), 21, 1),
            Answered("ttl_expired"),
        ),
        ("ICMPv6 error without quote", icmpv6_error(e, &[]), Dropped("bad_icmp")),
        (
            "ICMPv6 error, quote cut in the header",
            icmpv6_error(e, &quoted[..30]),
            Dropped("bad_icmp"),
        ),
        (
            "ICMPv6 error, quote cut in the ports",
            icmpv6_error(e, &quoted[..42]),
            Dropped("bad_icmp"),
        ),
        ("ICMPv6 error about nothing known", icmpv6_error(e, &quoted), HandedBack),
        (
            "ICMPv6 error, wrong checksum",
            with(icmpv6_error(e, &quoted), 56, 0x55),
            Dropped("bad_icmp"),
        ),
    ]
}

/// The accounting that `fate` makes of `before`.
fn after(before: &Accounting, fate: Fate) -> Accounting {
    let mut expected = before.clone();
    expected.received += 1;
    match fate {
        Fate::Passed => expected.received -= 1,
        Fate::Dropped(reason) | Fate::Answered(reason) => {
            *expected.dropped.entry(reason.to_owned()).or_insert(0) += 1;
            expected.dropped_total += 1;
        }
        Fate::Forwarded => expected.transmitted += 1,
        Fate::HandedBack => expected.handed_back += 1,
        Fate::Held => expected.held += 1,
    }
    if matches!(fate, Fate::Answered(_)) {
        expected.generated += 1;
        expected.transmitted += 1;
    }
    expected
}

/// Two-armed NAT, both families, with the services that the frames are for.
fn director(driver: &str) -> Option<Scenario> {
    let mut s = scenario(&format!("frames-{driver}"), Plan::new(Layout::TwoArmed))?;
    for family in FAMILIES {
        s.offer(Method::Masq, family).unwrap();
    }
    s.start(&["--driver", driver]).unwrap();
    let silent: [IpAddr; 2] = ["192.168.0.99".parse().unwrap(), "fd00:192::99".parse().unwrap()];
    let link = s.topology.director.link("eth1").unwrap().index;
    for (family, silent) in FAMILIES.into_iter().zip(silent) {
        let netlink = s.topology.director.netlink();
        netlink.add_neighbour(link, silent, Mac([2, 0, 0, 0, 0, 0x99])).unwrap();
        s.add_service(Method::Masq, family, "-s rr").unwrap();
        let vip = |port| with_port(s.topology.vip(Method::Masq, family), port);
        let rules = [
            format!("-A -u {} -s rr", vip(SERVED)),
            format!("-A -u {} -s rr", vip(SILENT)),
            format!("-a -u {} -r {} -m", vip(SILENT), with_port(silent, SILENT)),
            format!("-A -u {} -s rr", vip(EMPTY)),
        ];
        for rule in rules {
            s.director().unwrap().ipvsadm(&rule).unwrap();
        }
    }
    Some(s)
}

/// The end of the director's cable in a switch: a switch itself looks into frames, and drops some.
fn wire(s: &mut Scenario, segment: usize) -> FrameSocket {
    let switch = s.topology.segments[segment].switch();
    // The client came first to its switch, the director first to the servers'.
    let port = switch.link(["port2", "port1"][segment]).unwrap().index;
    FrameSocket::open_in(switch.namespace(), port).unwrap()
}

/// Puts one frame on the wire and waits until the accounting is as its fate wants it.
fn check(s: &mut Scenario, wire: &FrameSocket, marker: &[u8], case: &Case) {
    let (name, frame, fate) = case;
    let before = s.accounting().unwrap();
    wire.send(frame).unwrap();
    let mut expected = after(&before, *fate);
    if matches!(fate, Fate::Passed) {
        // Nothing is to be seen of it; so of a frame behind it.
        wire.send(marker).unwrap();
        expected = after(&before, Fate::Dropped("bad_udp_header"));
    }
    let start = std::time::Instant::now();
    loop {
        let found = s.accounting().unwrap();
        if found == expected {
            return;
        }
        let moved = found.received >= expected.received && start.elapsed() > Duration::from_millis(500);
        assert!(
            !moved && start.elapsed() < Duration::from_secs(3),
            "{name}: {fate:?} makes\n{expected}\nfound\n{found}\nbefore\n{before}"
        );
    }
}

fn every_frame_has_its_reason(driver: &str) {
    let Some(mut s) = director(driver) else { return };
    let mut open: Vec<_> = FAMILIES
        .map(|family| s.connect(Method::Masq, family, None).unwrap())
        .into_iter()
        .collect();
    let names: Vec<_> = open.iter_mut().map(|client| client.get("/").unwrap()).collect();
    let here = s.topology.client.link("eth0").unwrap();
    let there = s.topology.director.link("eth0").unwrap();
    let wire = wire(&mut s, 0);
    let ends = |s: &Scenario, family| Ends {
        macs: [here.mac.unwrap(), there.mac.unwrap()],
        source: s.topology.client_address(Method::Masq, family),
        destination: s.topology.vip(Method::Masq, family),
    };
    let (v4, v6) = (ends(&s, Family::V4), ends(&s, Family::V6));
    let marker = ip(&v4, UDP, &udp(SERVED, 7));
    for case in ipv4(&v4).iter().chain(&ipv4_rare(&v4)).chain(&ipv6(&v6)) {
        check(&mut s, &wire, &marker, case);
    }
    // Normal traffic goes on, on connections of before and on new ones.
    for (client, name) in open.iter_mut().zip(&names) {
        assert_eq!(client.get("/").unwrap(), *name);
    }
    for family in FAMILIES {
        s.request(Method::Masq, family).unwrap();
    }
    stray_answers(&mut s);
    super::support::assert_balanced(&mut s);
}

/// A NAT destination's packet of no connection never leaves with its private address.
fn stray_answers(s: &mut Scenario) {
    let here = s.topology.servers[0].link("eth0").unwrap();
    let there = s.topology.director.link("eth1").unwrap();
    let wire = wire(s, 1);
    let client = s.topology.client.link("eth0").unwrap().index;
    let mut outside = FrameSocket::open_in(s.topology.client.namespace(), client).unwrap();
    let ends = Ends {
        macs: [here.mac.unwrap(), there.mac.unwrap()],
        source: s.topology.server_address(0, Family::V4),
        destination: s.topology.client_address(Method::Masq, Family::V4),
    };
    let before = s.accounting().unwrap();
    let mut segment = tcp_at(4000, 5);
    segment[..2].copy_from_slice(&SERVED.to_be_bytes());
    wire.send(&ip(&ends, TCP, &segment)).unwrap();
    let found = super::wait_until(
        Duration::from_secs(3),
        || s.accounting().unwrap(),
        |found| dropped(found, "no_connection") > dropped(&before, "no_connection"),
    );
    assert!(found.balanced(), "{found}");
    let source = match ends.source {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => unreachable!("an IPv4 address"),
    };
    let leaked = |frame: &[u8]| frame.get(26..30) == Some(&source[..]);
    let seen = outside.receive_matching(Duration::from_millis(100), leaked).unwrap();
    assert_eq!(seen, None);
}

#[test]
fn every_frame_has_its_reason_xdp() {
    every_frame_has_its_reason("xdp");
}

#[test]
fn every_frame_has_its_reason_raw() {
    every_frame_has_its_reason("raw");
}
