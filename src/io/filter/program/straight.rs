//! The straight way through the XDP flavour, of what most frames are: TCP and UDP over plain IPv4, to a service or from a NAT
//! destination, each by its own port.
//!
//! Says "match" where the long text would, with fewer lookups and without copying headers; all else, and all it has no
//! rule for, goes on to the long text. The tests of the flavours compare the two: only XDP has this.

use super::access::{XDP_DATA, XDP_DATA_END};
use super::{Flavour, IPPROTO_TCP, IPPROTO_UDP, KEY_DESTINATION, KEY_SOURCE, L3, Text, wire16};
use crate::io::bpf::Map;
use crate::io::bpf::asm::{If, Operation, R0, R1, R2, R6, R7, R9, R10, Width};
use crate::io::filter::keys::{KEY_ADDRESS, KEY_PORT};

/// Offset of TCP's and UDP's ports.
const PORTS: i16 = L3 as i16 + 20;

/// How far a port in a register is from where it stands in the last word of a key.
const PORT_SHIFT: i32 = if cfg!(target_endian = "little") { 0 } else { 16 };

/// The other half of that word: protocol and family.
const fn key_tail(protocol: i32) -> i32 {
    i32::from_ne_bytes([0, 0, protocol as u8, 4])
}

impl Text<'_> {
    /// From the program's start. Leaves R6 = context.
    pub(super) fn straight(&mut self) {
        let l = self.l;
        self.a.mov(R6, R1);
        if self.flavour != Flavour::Xdp {
            return;
        }
        let (keys, long) = (self.a.label(), self.a.label());
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
        self.a.load(Width::B1, R1, R7, l3 + 9);
        self.a.mov_imm(R9, key_tail(IPPROTO_TCP));
        self.a.jump_if_imm(R1, If::Equal, IPPROTO_TCP, keys);
        self.a.jump_if_imm(R1, If::NotEqual, IPPROTO_UDP, long);
        self.a.mov_imm(R9, key_tail(IPPROTO_UDP));
        self.a.bind(keys);
        self.find(self.maps.services, KEY_DESTINATION, l3 + 16, PORTS + 2);
        self.a.jump_if_imm(R0, If::NotEqual, 0, l.matched);
        self.find(self.maps.nat_destinations, KEY_SOURCE, l3 + 12, PORTS);
        self.a.jump_if_imm(R0, If::Equal, 0, long);
        // Not what it says to the director itself.
        self.a.store_imm(
            Width::B4,
            R10,
            KEY_DESTINATION + KEY_PORT,
            i32::from_ne_bytes([0, 0, 0, 4]),
        );
        self.look_up(self.maps.addresses, KEY_DESTINATION);
        self.a.jump_if_imm(R0, If::Equal, 0, l.matched);
        self.a.bind(long);
    }

    /// R0 = what the map has for an address and a port of the frame at R7, the rest of the key's last word in R9. The key stands
    /// in that slot, in stores as wide as it is read: narrow ones would have to reach the cache before.
    fn find(&mut self, map: &Map, key: i16, address: i16, port: i16) {
        self.a.load(Width::B4, R1, R7, address);
        self.a.store(Width::B4, R10, key + KEY_ADDRESS, R1);
        self.a.store_imm(Width::B4, R10, key + KEY_ADDRESS + 4, 0);
        self.a.store_imm(Width::B8, R10, key + KEY_ADDRESS + 8, 0);
        self.a.load(Width::B2, R1, R7, port);
        if PORT_SHIFT != 0 {
            self.a.alu_imm(Operation::ShiftLeft, R1, PORT_SHIFT);
        }
        self.a.alu(Operation::Add, R1, R9);
        self.a.store(Width::B4, R10, key + KEY_PORT, R1);
        self.look_up(map, key);
    }
}
