//! The straight way through the XDP flavour, of what most frames are: TCP and UDP over plain IPv4, to a service or from a NAT
//! destination, each by its own port.
//!
//! Says "match" where the long text would, with fewer lookups and without copying headers; all else, and all it has no
//! rule for, goes on to the long text. The tests of the flavours compare the two: only XDP has this.

use super::access::{XDP_DATA, XDP_DATA_END};
use super::{Flavour, INDEX, IPPROTO_TCP, IPPROTO_UDP, KEY_DESTINATION, L3, Text, wire16};
use crate::io::bpf::asm::{If, Label, Operation, R0, R1, R2, R3, R6, R7, R8, R9, R10, Width};
use crate::io::filter::keys::{KEY_ADDRESS, KEY_PORT};
use crate::io::filter::quick::{
    KIND_SHIFT, MULTIPLIER, NAT_DESTINATION, PLACE_SHIFT, PORT_SHIFT, PROTOCOL_SHIFT, SERVICE,
};

/// Offset of TCP's and UDP's ports.
const PORTS: i16 = L3 as i16 + 20;

impl Text<'_> {
    /// From the program's start. Leaves R6 = context.
    pub(super) fn straight(&mut self) {
        let l = self.l;
        self.a.mov(R6, R1);
        if self.flavour != Flavour::Xdp {
            return;
        }
        let (known, nat, long) = (self.a.label(), self.a.label(), self.a.label());
        let l3 = L3 as i16;
        self.a.load(Width::B4, R7, R6, XDP_DATA);
        self.a.load(Width::B4, R2, R6, XDP_DATA_END);
        self.a.mov(R1, R7);
        self.a.alu_imm(Operation::Add, R1, PORTS as i32 + 4);
        self.a.jump_if(R1, If::Greater, R2, long);
        // IPv4, version 4, five words of header, whole.
        self.a.load(Width::B4, R1, R7, l3 - 2);
        self.a
            .alu_imm(Operation::And, R1, i32::from_ne_bytes([0xff, 0xff, 0xff, 0]));
        self.a
            .jump_if_imm(R1, If::NotEqual, i32::from_ne_bytes([0x08, 0x00, 0x45, 0]), long);
        self.a.load(Width::B2, R1, R7, l3 + 6);
        self.a.jump_if_imm(R1, If::AnyBit, wire16(0x3fff), long);
        self.a.load(Width::B1, R9, R7, l3 + 9);
        self.a.jump_if_imm(R9, If::Equal, IPPROTO_TCP, known);
        self.a.jump_if_imm(R9, If::NotEqual, IPPROTO_UDP, long);
        self.a.bind(known);
        self.find(SERVICE, l3 + 16, PORTS + 2, l.matched_at);
        self.find(NAT_DESTINATION, l3 + 12, PORTS, nat);
        self.a.jump(long);
        // Not what it says to the director itself, or to a VIP: the long text tells those apart.
        self.a.bind(nat);
        self.a.load(Width::B4, R1, R7, l3 + 16);
        self.a.store(Width::B4, R10, KEY_DESTINATION + KEY_ADDRESS, R1);
        self.a.store_imm(Width::B4, R10, KEY_DESTINATION + KEY_ADDRESS + 4, 0);
        self.a.store_imm(Width::B8, R10, KEY_DESTINATION + KEY_ADDRESS + 8, 0);
        let tail = i32::from_ne_bytes([0, 0, 0, 4]);
        self.a.store_imm(Width::B4, R10, KEY_DESTINATION + KEY_PORT, tail);
        self.look_up(self.maps.addresses, KEY_DESTINATION);
        self.a.jump_if_imm(R0, If::Equal, 0, l.matched_at);
        self.a.bind(long);
    }

    /// Goes to `found` if that address and port of the frame at R7, with the protocol in R9, have their place in the array.
    fn find(&mut self, kind: i32, address: i16, port: i16, found: Label) {
        let other = self.a.label();
        self.a.mov(R8, R9);
        self.a.alu_imm(Operation::Add, R8, kind << KIND_SHIFT);
        self.a.alu_imm(Operation::ShiftLeft, R8, PROTOCOL_SHIFT);
        self.a.load(Width::B2, R1, R7, port);
        self.a.alu(Operation::Add, R8, R1);
        self.a.alu_imm(Operation::ShiftLeft, R8, PORT_SHIFT);
        self.a.load(Width::B4, R1, R7, address);
        self.a.alu(Operation::Add, R8, R1);
        self.a.mov(R3, R8);
        self.a.alu_imm(Operation::Multiply, R3, MULTIPLIER);
        self.a.alu_imm(Operation::ShiftRight, R3, PLACE_SHIFT);
        self.a.store(Width::B4, R10, INDEX, R3);
        self.look_up(self.maps.quick, INDEX);
        self.a.jump_if_imm(R0, If::Equal, 0, other);
        self.a.load(Width::B8, R1, R0, 0);
        self.a.jump_if(R1, If::Equal, R8, found);
        self.a.bind(other);
    }
}
