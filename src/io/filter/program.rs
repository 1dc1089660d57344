//! The text of the packet filter: which frames are ours, and which the kernel's.
//!
//! One text in three [`Flavour`]s, which differ in how they read the frame and in what they return; XDP has a straight way
//! through it besides (`straight`). It is constant: what it looks for stands in maps.
//!
//! ```text
//!  not IPv4/IPv6, VLAN tag, runt ──────────────────────────────────────────────► pass
//!  protocol other than TCP, UDP, SCTP, ICMP error ─────────────────────────────► pass
//!  destination is a VIP:    ICMP error ────────────────────────────────────────► match
//!                           odd (fragment, malformed) of a served protocol ────► match
//!                           AH or ESP, and UDP port 500 is served ─────────────► match
//!                           its (protocol, address, port) or port 0 is served ─► match
//!  destination is the director's own, no VIP ──────────────────────────────────► pass
//!       but ICMP errors about our tunnels to a known destination ──────────────► match
//!  source is a NAT destination: odd, of its protocol ──────────────────────────► match
//!                           its (protocol, address, port) or port 0 ───────────► match
//!  ICMP error about a packet to a NAT destination, from whomever ──────────────► match
//!  all else ───────────────────────────────────────────────────────────────────► pass
//! ```
//! A match counts only if the frame is addressed to this interface's own link address, as for the kernel and IPVS:
//! frames that merely come by (promiscuous mode, flooding) stay the kernel's, which ignores them.
//!
//! *Odd* are frames whose ports cannot be read: fragments (also an IPv6 atomic one), IPv4 with a wrong version or
//! header length, a transport header cut short, too many IPv6 extension headers. The rule behind it: a TCP, UDP or
//! SCTP packet for a service must never reach the kernel, whatever it looks like; so those to a VIP that serves
//! the protocol are ours, and the data plane counts why it drops them. What is wrong in other ways (total length,
//! checksums, data offset) is matched like a good frame.
//!
//! Limits: as many IPv6 extension headers as the data plane looks behind, of 969 bytes together. A VLAN tag
//! that the card has taken off before XDP sees the frame cannot be seen here (switch off rx-vlan-offload).

mod access;
mod straight;

use std::os::fd::AsRawFd;

use super::keys::{
    KEY_FAMILY, KEY_LEN, KEY_PORT, ROLE_LOCAL, ROLE_NAT_SHIFT, ROLE_NAT_TCP_UDP_SCTP, ROLE_SCTP, ROLE_TCP, ROLE_TUNNEL,
    ROLE_UDP, ROLE_VIP,
};
use crate::io::bpf::asm::{Assembler, If, Label, Operation, R0, R1, R2, R3, R6, R7, R8, R9, R10, Width};
use crate::io::bpf::{Instruction, Map, ProgramType};
use crate::packet::parse::EXTENSION_HEADERS_MAX;
use access::{Offset, XDP_DATA, XDP_DATA_END};

/// Where a filter runs and what it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// XDP: matched frames go to the AF_XDP socket of their queue, and are dropped when there is none.
    Xdp,
    /// tc ingress: matched frames are dropped, so that the kernel is silent about them.
    TcIngress,
    /// On a packet socket: matched frames are taken, all others not.
    Socket,
}

impl Flavour {
    /// The kernel's type of such a program.
    pub fn program_type(self) -> ProgramType {
        match self {
            Flavour::Xdp => ProgramType::Xdp,
            Flavour::TcIngress => ProgramType::SchedCls,
            Flavour::Socket => ProgramType::SocketFilter,
        }
    }
}

/// The maps a filter reads and counts in. See [`super::keys`] for what is in them.
pub(super) struct ProgramMaps<'a> {
    pub addresses: &'a Map,
    pub services: &'a Map,
    pub nat_destinations: &'a Map,
    /// For the straight way.
    pub quick: &'a Map,
    /// Of this interface: one entry, its link address.
    pub interface: &'a Map,
    /// Of this interface, if it counts.
    pub counters: Option<&'a Map>,
    /// Of this interface, for XDP.
    pub sockets: Option<&'a Map>,
}

/// Index of frames taken in the counter map.
pub(super) const COUNTER_MATCHED: u32 = 0;
/// Index of frames left to the kernel.
pub(super) const COUNTER_PASSED: u32 = 1;

// Kernel helpers (`enum bpf_func_id`).
const HELPER_REDIRECT_MAP: i32 = 51;

// What programs return.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const TC_DROP: i32 = 2;
const TC_NEXT: i32 = -1;
const SOCKET_NONE: i32 = 0;
const SOCKET_ALL: i32 = -1;

// `struct xdp_md` and `struct __sk_buff`.
const XDP_QUEUE: i16 = 16;
const SKB_KIND: i16 = 4;
const SKB_VLAN_PRESENT: i16 = 20;
const SKB_KIND_HOST: i32 = 0;

// Stack, relative to R10. Every slot is aligned for the widest access to it.
/// Key about the destination address; later about a quoted destination.
const KEY_DESTINATION: i16 = -24;
/// Key about the source address.
const KEY_SOURCE: i16 = -48;
/// IP header.
const HEADER: i16 = -88;
/// What was read last: two bytes of an extension header, the ICMP type, or both ports.
const SMALL: i16 = -96;
/// IP protocol number, 32 bits.
const PROTOCOL: i16 = -100;
/// Array index, 32 bits.
const INDEX: i16 = -104;
/// Roles of the source address, 32 bits.
const SOURCE_ROLES: i16 = -108;

const _: () = assert!(KEY_LEN <= 24);

/// Offset of the IP header.
const L3: i32 = 14;
/// An IPv6 header.
const IPV6_HEADER: i32 = 40;

const IPPROTO_HOP_BY_HOP: i32 = 0;
const IPPROTO_ICMP: i32 = 1;
const IPPROTO_IPIP: i32 = 4;
const IPPROTO_TCP: i32 = 6;
const IPPROTO_UDP: i32 = 17;
const IPPROTO_IPV6: i32 = 41;
const IPPROTO_ROUTING: i32 = 43;
const IPPROTO_FRAGMENT: i32 = 44;
const IPPROTO_GRE: i32 = 47;
const IPPROTO_ESP: i32 = 50;
const IPPROTO_AH: i32 = 51;
const IPPROTO_ICMPV6: i32 = 58;
const IPPROTO_DESTINATION_OPTIONS: i32 = 60;
const IPPROTO_SCTP: i32 = 132;

/// Both ports of the key exchange of AH and ESP (RFC 2408 section 2.5.1), which they go with.
const ISAKMP: u16 = 500;

/// Values of R9.
const ODD: i32 = 1;
/// AH or ESP: its ports are those of its key exchange.
const SECURED: i32 = 2;

/// ICMP errors: destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792).
const ICMP_ERRORS: [i32; 5] = [3, 4, 5, 11, 12];
/// ICMPv6 errors: unreachable, too big, time exceeded, parameter problem (RFC 4443).
const ICMPV6_ERRORS: [i32; 4] = [1, 2, 3, 4];

/// Writes the program.
pub(super) fn program(flavour: Flavour, maps: &ProgramMaps<'_>) -> Vec<Instruction> {
    let mut a = Assembler::new();
    let l = Labels::new(&mut a);
    let mut text = Text { a, l, flavour, maps };
    text.straight();
    text.start();
    text.ipv4();
    text.ipv6();
    text.classify();
    text.by_destination();
    text.by_source();
    text.by_quote();
    text.verdicts();
    text.a.finish()
}

/// Places that several parts go to.
#[derive(Clone, Copy)]
struct Labels {
    ipv4: Label,
    ipv6: Label,
    /// R1 = protocol, R7 = its header's offset, R9 = [`ODD`] or 0.
    classify: Label,
    /// R8 = role bit of the protocol (0: ICMP error), R7 and R9 as above, both keys' addresses set.
    look_up: Label,
    by_source: Label,
    /// R9 = 1: about a tunnel, 0: about NAT, with the roles of the source in its slot.
    by_quote: Label,
    matched: Label,
    /// The same of XDP when R7 is the frame's first byte, and its Ethernet header is known to be there.
    matched_at: Label,
    passed: Label,
}

impl Labels {
    fn new(a: &mut Assembler) -> Labels {
        Labels {
            ipv4: a.label(),
            ipv6: a.label(),
            classify: a.label(),
            look_up: a.label(),
            by_source: a.label(),
            by_quote: a.label(),
            matched: a.label(),
            matched_at: a.label(),
            passed: a.label(),
        }
    }
}

/// The writer of the text. Registers: R6 context, R7 offset, R8 role bit, R9 odd or secured.
struct Text<'a> {
    a: Assembler,
    l: Labels,
    flavour: Flavour,
    maps: &'a ProgramMaps<'a>,
}

impl Text<'_> {
    fn start(&mut self) {
        let l = self.l;
        if self.flavour != Flavour::Xdp {
            self.a.load(Width::B4, R1, R6, SKB_VLAN_PRESENT);
            self.a.jump_if_imm(R1, If::NotEqual, 0, l.passed);
        }
        self.read(Offset::Constant(12), 2, SMALL, l.passed);
        self.a.load(Width::B2, R1, R10, SMALL);
        self.a.jump_if_imm(R1, If::Equal, wire16(0x0800), l.ipv4);
        self.a.jump_if_imm(R1, If::Equal, wire16(0x86dd), l.ipv6);
        self.a.jump(l.passed);
    }

    fn ipv4(&mut self) {
        let l = self.l;
        self.a.bind(l.ipv4);
        self.read(Offset::Constant(L3), 20, HEADER, l.passed);
        self.key_from_ipv4(KEY_DESTINATION, HEADER + 16);
        self.key_from_ipv4(KEY_SOURCE, HEADER + 12);
        let (odd, fine) = (self.a.label(), self.a.label());
        self.a.mov_imm(R9, 0);
        self.a.load(Width::B1, R1, R10, HEADER);
        self.a.mov(R7, R1);
        self.a.alu_imm(Operation::And, R7, 0x0f);
        self.a.alu_imm(Operation::ShiftLeft, R7, 2);
        self.a.jump_if_imm(R7, If::Less, 20, odd);
        self.a.alu_imm(Operation::Add, R7, L3);
        self.a.alu_imm(Operation::ShiftRight, R1, 4);
        self.a.jump_if_imm(R1, If::NotEqual, 4, odd);
        // More fragments, or an offset.
        self.a.load(Width::B2, R1, R10, HEADER + 6);
        self.a.jump_if_imm(R1, If::AnyBit, wire16(0x3fff), odd);
        self.a.jump(fine);
        self.a.bind(odd);
        self.a.mov_imm(R9, 1);
        self.a.bind(fine);
        self.a.load(Width::B1, R1, R10, HEADER + 9);
        self.a.jump(l.classify);
    }

    fn ipv6(&mut self) {
        let l = self.l;
        let (fragment, odd) = (self.a.label(), self.a.label());
        self.a.bind(l.ipv6);
        self.read(Offset::Constant(L3), IPV6_HEADER as usize, HEADER, l.passed);
        self.key_from_ipv6(KEY_DESTINATION, HEADER + 24);
        self.key_from_ipv6(KEY_SOURCE, HEADER + 8);
        self.a.mov_imm(R9, 0);
        self.a.mov_imm(R7, L3 + IPV6_HEADER);
        // The kernel drops another version, and nothing in such a header says where it would go.
        self.a.load(Width::B1, R1, R10, HEADER);
        self.a.alu_imm(Operation::ShiftRight, R1, 4);
        self.a.jump_if_imm(R1, If::NotEqual, 6, l.passed);
        self.a.load(Width::B1, R1, R10, HEADER + 6);
        for _ in 0..EXTENSION_HEADERS_MAX {
            let extension = self.a.label();
            self.if_extension(extension);
            self.a.jump_if_imm(R1, If::Equal, IPPROTO_FRAGMENT, fragment);
            self.a.jump(l.classify);
            // RFC 8200 section 4.3: next header, then the length in 8 bytes, not counting the first 8.
            self.a.bind(extension);
            self.read(Offset::R7(0), 2, SMALL, odd);
            self.a.load(Width::B1, R1, R10, SMALL);
            self.a.load(Width::B1, R2, R10, SMALL + 1);
            self.a.alu_imm(Operation::Add, R2, 1);
            self.a.alu_imm(Operation::ShiftLeft, R2, 3);
            self.a.alu(Operation::Add, R7, R2);
        }
        self.if_extension(odd);
        self.a.jump_if_imm(R1, If::Equal, IPPROTO_FRAGMENT, fragment);
        self.a.jump(l.classify);
        self.a.bind(fragment);
        self.read(Offset::R7(0), 2, SMALL, odd);
        self.a.mov_imm(R9, 1);
        self.a.load(Width::B1, R1, R10, SMALL);
        self.if_extension(odd);
        self.a.jump(l.classify);
        // Which protocol it is remains unknown: any that is served.
        self.a.bind(odd);
        self.a.mov_imm(R9, 1);
        self.a.mov_imm(R8, ROLE_TCP | ROLE_UDP | ROLE_SCTP);
        self.a.jump(l.look_up);
    }

    /// Goes to `label` if R1 is an extension header with a length.
    fn if_extension(&mut self, label: Label) {
        for header in [IPPROTO_HOP_BY_HOP, IPPROTO_ROUTING, IPPROTO_DESTINATION_OPTIONS] {
            self.a.jump_if_imm(R1, If::Equal, header, label);
        }
    }

    fn classify(&mut self) {
        let l = self.l;
        self.a.bind(l.classify);
        self.a.store(Width::B4, R10, PROTOCOL, R1);
        for (protocol, role) in [
            (IPPROTO_TCP, ROLE_TCP),
            (IPPROTO_UDP, ROLE_UDP),
            (IPPROTO_SCTP, ROLE_SCTP),
        ] {
            self.a.mov_imm(R8, role);
            self.a.jump_if_imm(R1, If::Equal, protocol, l.look_up);
        }
        let (secured, others) = (self.a.label(), self.a.label());
        for protocol in [IPPROTO_ESP, IPPROTO_AH] {
            self.a.jump_if_imm(R1, If::Equal, protocol, secured);
        }
        self.a.jump(others);
        self.a.bind(secured);
        self.a.store_imm(Width::B4, R10, PROTOCOL, IPPROTO_UDP);
        self.a.mov_imm(R8, ROLE_UDP);
        self.a.mov_imm(R9, SECURED);
        self.a.jump(l.look_up);
        self.a.bind(others);
        // ICMP errors remain; fragments of ICMP are echoes.
        self.a.jump_if_imm(R9, If::NotEqual, 0, l.passed);
        self.a.mov_imm(R8, 0);
        let icmpv6 = self.a.label();
        self.a.load(Width::B1, R2, R10, KEY_DESTINATION + KEY_FAMILY);
        self.a.jump_if_imm(R2, If::Equal, 6, icmpv6);
        self.a.jump_if_imm(R1, If::NotEqual, IPPROTO_ICMP, l.passed);
        self.icmp_error_of(&ICMP_ERRORS);
        self.a.bind(icmpv6);
        self.a.jump_if_imm(R1, If::NotEqual, IPPROTO_ICMPV6, l.passed);
        self.icmp_error_of(&ICMPV6_ERRORS);
    }

    fn icmp_error_of(&mut self, types: &[i32]) {
        let l = self.l;
        self.read(Offset::R7(0), 1, SMALL, l.passed);
        self.a.load(Width::B1, R1, R10, SMALL);
        for &kind in types {
            self.a.jump_if_imm(R1, If::Equal, kind, l.look_up);
        }
        self.a.jump(l.passed);
    }

    fn by_destination(&mut self) {
        let l = self.l;
        let (vip, local) = (self.a.label(), self.a.label());
        self.a.bind(l.look_up);
        self.look_up(self.maps.addresses, KEY_DESTINATION);
        self.a.jump_if_imm(R0, If::Equal, 0, l.by_source);
        self.a.load(Width::B4, R1, R0, 0);
        self.a.jump_if_imm(R1, If::AnyBit, ROLE_VIP, vip);
        self.a.jump_if_imm(R1, If::AnyBit, ROLE_LOCAL, local);
        self.a.jump(l.by_source);

        self.a.bind(local);
        self.a.jump_if_imm(R8, If::NotEqual, 0, l.passed);
        self.a.mov_imm(R9, 1);
        self.a.jump(l.by_quote);

        self.a.bind(vip);
        self.a.jump_if_imm(R8, If::Equal, 0, l.matched);
        self.a.alu(Operation::And, R1, R8);
        self.a.jump_if_imm(R1, If::Equal, 0, l.by_source);
        self.ports();
        self.set_protocol(KEY_DESTINATION);
        self.match_port(self.maps.services, KEY_DESTINATION, SMALL + 2);
    }

    /// Both ports into their slot; what is odd, and what has none where they should be, matches.
    fn ports(&mut self) {
        let l = self.l;
        let (secured, done) = (self.a.label(), self.a.label());
        self.a.jump_if_imm(R9, If::Equal, ODD, l.matched);
        self.a.jump_if_imm(R9, If::Equal, SECURED, secured);
        self.read(Offset::R7(0), 4, SMALL, l.matched);
        self.a.jump(done);
        self.a.bind(secured);
        self.a.store_imm(Width::B2, R10, SMALL, wire16(ISAKMP));
        self.a.store_imm(Width::B2, R10, SMALL + 2, wire16(ISAKMP));
        self.a.bind(done);
    }

    fn by_source(&mut self) {
        let l = self.l;
        let (unknown, known) = (self.a.label(), self.a.label());
        self.a.bind(l.by_source);
        self.look_up(self.maps.addresses, KEY_SOURCE);
        self.a.jump_if_imm(R0, If::Equal, 0, unknown);
        self.a.load(Width::B4, R1, R0, 0);
        self.a.jump(known);
        self.a.bind(unknown);
        self.a.mov_imm(R1, 0);
        self.a.bind(known);
        self.a.store(Width::B4, R10, SOURCE_ROLES, R1);
        self.a.jump_if_imm(R8, If::Equal, 0, l.by_quote);
        self.a.mov(R2, R8);
        self.a.alu_imm(Operation::ShiftLeft, R2, ROLE_NAT_SHIFT);
        self.a.alu(Operation::And, R1, R2);
        self.a.jump_if_imm(R1, If::Equal, 0, l.passed);
        self.ports();
        self.set_protocol(KEY_SOURCE);
        self.match_port(self.maps.nat_destinations, KEY_SOURCE, SMALL);
        self.a.jump(l.passed);
    }

    /// An ICMP error: whom was the packet for that it is about?
    fn by_quote(&mut self) {
        let l = self.l;
        let (ipv6, quoted, cut, tunnel, is_tunnel) = (
            self.a.label(),
            self.a.label(),
            self.a.label(),
            self.a.label(),
            self.a.label(),
        );
        self.a.bind(l.by_quote);
        // Of ICMP and ICMPv6 alike, the quote begins after 8 bytes.
        self.a.alu_imm(Operation::Add, R7, 8);
        self.a.load(Width::B1, R1, R10, KEY_DESTINATION + KEY_FAMILY);
        self.a.jump_if_imm(R1, If::Equal, 6, ipv6);
        self.read(Offset::R7(0), 20, HEADER, cut);
        self.key_from_ipv4(KEY_DESTINATION, HEADER + 16);
        self.a.load(Width::B2, R1, R10, HEADER + 6);
        self.a.jump_if_imm(R1, If::AnyBit, wire16(0x1fff), cut);
        self.a.load(Width::B1, R1, R10, HEADER);
        self.a.alu_imm(Operation::And, R1, 0x0f);
        self.a.alu_imm(Operation::ShiftLeft, R1, 2);
        self.a.jump_if_imm(R1, If::Less, 20, cut);
        self.a.alu(Operation::Add, R7, R1);
        self.a.load(Width::B1, R1, R10, HEADER + 9);
        self.a.jump(quoted);
        self.a.bind(ipv6);
        self.read(Offset::R7(0), IPV6_HEADER as usize, HEADER, cut);
        self.key_from_ipv6(KEY_DESTINATION, HEADER + 24);
        self.a.alu_imm(Operation::Add, R7, IPV6_HEADER);
        self.a.load(Width::B1, R1, R10, HEADER + 6);

        self.a.bind(quoted);
        self.a.store(Width::B4, R10, PROTOCOL, R1);
        self.a.jump_if_imm(R9, If::NotEqual, 0, tunnel);
        self.read(Offset::R7(0), 4, SMALL, cut);
        self.set_protocol(KEY_DESTINATION);
        self.match_port(self.maps.nat_destinations, KEY_DESTINATION, SMALL + 2);
        self.a.jump(l.passed);

        // A NAT destination that quotes too little: never sent on with its private address.
        self.a.bind(cut);
        self.a.jump_if_imm(R9, If::NotEqual, 0, l.passed);
        self.a.load(Width::B4, R1, R10, SOURCE_ROLES);
        self.a.jump_if_imm(R1, If::AnyBit, ROLE_NAT_TCP_UDP_SCTP, l.matched);
        self.a.jump(l.passed);

        self.a.bind(tunnel);
        for outer in [IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_GRE, IPPROTO_UDP] {
            self.a.jump_if_imm(R1, If::Equal, outer, is_tunnel);
        }
        self.a.jump(l.passed);
        self.a.bind(is_tunnel);
        self.look_up(self.maps.addresses, KEY_DESTINATION);
        self.a.jump_if_imm(R0, If::Equal, 0, l.passed);
        self.a.load(Width::B4, R1, R0, 0);
        self.a.jump_if_imm(R1, If::AnyBit, ROLE_TUNNEL, l.matched);
        self.a.jump(l.passed);
    }

    fn verdicts(&mut self) {
        let l = self.l;
        self.a.bind(l.matched);
        self.only_own_link_address();
        self.count(COUNTER_MATCHED);
        match self.flavour {
            Flavour::Xdp => {
                let sockets = self.maps.sockets.expect("an XDP filter has a socket map");
                self.a.load_map(R1, sockets.as_raw_fd());
                self.a.load(Width::B4, R2, R6, XDP_QUEUE);
                // The low bits of the flags are the verdict when the queue has no socket (Linux 5.3).
                self.a.mov_imm(R3, XDP_DROP);
                self.a.call(HELPER_REDIRECT_MAP);
            }
            Flavour::TcIngress => self.a.mov_imm(R0, TC_DROP),
            Flavour::Socket => self.a.mov_imm(R0, SOCKET_ALL),
        }
        self.a.exit();

        self.a.bind(l.passed);
        self.count(COUNTER_PASSED);
        self.a.mov_imm(
            R0,
            match self.flavour {
                Flavour::Xdp => XDP_PASS,
                Flavour::TcIngress => TC_NEXT,
                Flavour::Socket => SOCKET_NONE,
            },
        );
        self.a.exit();
    }

    /// Passes frames that are not addressed to this interface. The kernel has told skbs apart already.
    fn only_own_link_address(&mut self) {
        let l = self.l;
        if self.flavour != Flavour::Xdp {
            self.a.load(Width::B4, R1, R6, SKB_KIND);
            self.a.jump_if_imm(R1, If::NotEqual, SKB_KIND_HOST, l.passed);
            return;
        }
        let fine = self.a.label();
        self.a.load(Width::B4, R7, R6, XDP_DATA);
        self.a.load(Width::B4, R2, R6, XDP_DATA_END);
        self.a.mov(R1, R7);
        self.a.alu_imm(Operation::Add, R1, L3);
        self.a.jump_if(R1, If::Greater, R2, l.passed);
        self.a.bind(l.matched_at);
        self.a.store_imm(Width::B4, R10, INDEX, 0);
        self.look_up(self.maps.interface, INDEX);
        self.a.jump_if_imm(R0, If::Equal, 0, fine);
        // The value: link address, then 16 bits that are 0 while it is not known.
        self.a.load(Width::B2, R1, R0, 6);
        self.a.jump_if_imm(R1, If::Equal, 0, fine);
        for (width, at) in [(Width::B4, 0), (Width::B2, 4)] {
            self.a.load(width, R1, R0, at);
            self.a.load(width, R2, R7, at);
            self.a.jump_if(R1, If::NotEqual, R2, l.passed);
        }
        self.a.bind(fine);
    }

    fn count(&mut self, counter: u32) {
        let Some(counters) = self.maps.counters else { return };
        let done = self.a.label();
        self.a.store_imm(Width::B4, R10, INDEX, counter as i32);
        self.look_up(counters, INDEX);
        self.a.jump_if_imm(R0, If::Equal, 0, done);
        self.a.load(Width::B8, R1, R0, 0);
        self.a.alu_imm(Operation::Add, R1, 1);
        self.a.store(Width::B8, R0, 0, R1);
        self.a.bind(done);
    }

    /// Goes to `matched` if the map has the key with the port at `port`, or with port 0.
    fn match_port(&mut self, map: &Map, key: i16, port: i16) {
        let l = self.l;
        self.a.load(Width::B2, R1, R10, port);
        self.a.store(Width::B2, R10, key + KEY_PORT, R1);
        self.look_up(map, key);
        self.a.jump_if_imm(R0, If::NotEqual, 0, l.matched);
        self.a.store_imm(Width::B2, R10, key + KEY_PORT, 0);
        self.look_up(map, key);
        self.a.jump_if_imm(R0, If::NotEqual, 0, l.matched);
    }
}

/// A 16-bit number as a load of its two bytes on the wire sees it.
fn wire16(value: u16) -> i32 {
    value.to_be() as i32
}
