//! What routers between director and real server say about tunnelled packets reaches the client, in its terms.
//! How: a director in memory forwards a client's packet by Tunnel; a router's ICMP error that quotes what left comes in on the
//! servers' side; what goes out to the client is read byte by byte.

#[path = "support/memory_director.rs"]
mod memory_director;

use memory_director::{CLIENT_SIDE, MemoryDirector, SERVER_SIDE};
use uvs::packet::{Offload, checksum};

const CLIENT: [u8; 4] = [10, 0, 0, 9];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc9];
const VIP: [u8; 4] = [10, 200, 1, 1];
const DIRECTOR: [u8; 4] = [172, 16, 0, 1];
const ROUTER: [u8; 4] = [172, 16, 0, 254];

/// An Ethernet frame with an IPv4 packet, Don't Fragment set.
fn ipv4(link: ([u8; 6], [u8; 6]), protocol: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    ip[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    ip.extend(source.iter().chain(&destination));
    let sum = checksum::of(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&link.1[..], &link.0, &[8, 0], &ip, payload].concat()
}

/// A SYN from the client to port 80 of the VIP.
fn syn() -> Vec<u8> {
    let mut tcp = [0; 20];
    tcp[..4].copy_from_slice(&[0x4e, 0x21, 0, 80]);
    tcp[12..16].copy_from_slice(&[0x50, 2, 0x10, 0]);
    let pseudo = [&CLIENT[..], &VIP, &[0, 6, 0, 20], &tcp].concat();
    let sum = checksum::of(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4((CLIENT_MAC, [2, 0, 0, 0, 0, 0xd0]), 6, CLIENT, VIP, &tcp)
}

/// "Fragmentation needed and DF set", by the router, about what follows.
fn fragmentation_needed(mtu: u16, about: &[u8]) -> Vec<u8> {
    let mut icmp = [&[3, 4, 0, 0, 0, 0][..], &mtu.to_be_bytes(), about].concat();
    let sum = checksum::of(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let link = ([2, 0, 0, 0, 0, 0xfe], [2, 0, 0, 0, 0, 0xd1]);
    ipv4(link, 1, ROUTER, DIRECTOR, &icmp)
}

#[test]
fn the_mtu_of_a_router_reaches_the_client() {
    let mut director = MemoryDirector::new(1024);
    director.ipvsadm("-A -t 10.200.1.1:80 -s rr; -a -t 10.200.1.1:80 -r 172.16.0.11 -i");
    let syn = syn();
    let sent = director.inject(CLIENT_SIDE, &syn, Offload::default()).sent;
    assert_eq!((sent.len(), sent[0].0), (1, SERVER_SIDE));

    let error = fragmentation_needed(1400, &sent[0].1[14..]);
    let outcome = director.inject(SERVER_SIDE, &error, Offload::default());
    assert_eq!(outcome.sent.len(), 1, "{:?}", director.counts());
    let (interface, told) = &outcome.sent[0];
    assert_eq!(*interface, CLIENT_SIDE);
    assert_eq!(told[..6], CLIENT_MAC);
    assert_eq!((&told[26..30], &told[30..34]), (&VIP[..], &CLIENT[..]));
    // Type, code, and the router's MTU less the outer header.
    assert_eq!(
        (&told[34..36], &told[40..42]),
        (&[3, 4][..], &1380u16.to_be_bytes()[..])
    );
    assert_eq!(checksum::of(&told[34..]), 0);
    // The quote is the client's own packet.
    assert_eq!(told[42 + 12..42 + 28], syn[26..42]);
}

#[test]
fn an_error_about_no_connection_is_for_the_local_stack() {
    let mut director = MemoryDirector::new(1024);
    director.ipvsadm("-A -t 10.200.1.1:80 -s rr; -a -t 10.200.1.1:80 -r 172.16.0.11 -i");
    let sent = director.inject(CLIENT_SIDE, &syn(), Offload::default()).sent;
    let error = fragmentation_needed(1400, &sent[0].1[14..]);
    let mut stranger = MemoryDirector::new(1024);
    stranger.ipvsadm("-A -t 10.200.1.1:80 -s rr; -a -t 10.200.1.1:80 -r 172.16.0.11 -i");
    let outcome = stranger.inject(SERVER_SIDE, &error, Offload::default());
    assert_eq!((outcome.sent.len(), outcome.handed_back), (0, 1));
}
