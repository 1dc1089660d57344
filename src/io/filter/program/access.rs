//! How the program gets at things: bytes of the frame onto the stack, keys made of them there, what maps have for a key.

use std::os::fd::AsRawFd;

use super::{Flavour, PROTOCOL, Text};
use crate::io::bpf::Map;
use crate::io::bpf::asm::{If, Label, Operation, R0, R1, R2, R3, R4, R6, R7, R10, Register, Width};
use crate::io::filter::keys::{KEY_ADDRESS, KEY_FAMILY, KEY_PORT, KEY_PROTOCOL};

// Kernel helpers (`enum bpf_func_id`).
const HELPER_MAP_LOOKUP: i32 = 1;
const HELPER_SKB_LOAD_BYTES: i32 = 26;

// `struct xdp_md`.
pub(super) const XDP_DATA: i16 = 0;
pub(super) const XDP_DATA_END: i16 = 4;

/// Offsets that the verifier shall know to be small.
const OFFSET_MAX: i32 = 1023;

/// Where a read begins, from the frame's first byte.
#[derive(Clone, Copy)]
pub(super) enum Offset {
    Constant(i32),
    /// R7 plus that many bytes.
    R7(i32),
}

impl Text<'_> {
    /// Copies `len` bytes of the frame to the stack, or goes to `short` where it has less. Keeps R6 to R9, and R0
    /// in XDP.
    pub(super) fn read(&mut self, offset: Offset, len: usize, to: i16, short: Label) {
        if self.flavour != Flavour::Xdp {
            self.a.mov(R1, R6);
            match offset {
                Offset::Constant(n) => self.a.mov_imm(R2, n),
                Offset::R7(n) => {
                    self.a.mov(R2, R7);
                    self.a.alu_imm(Operation::Add, R2, n);
                }
            }
            self.stack_address(R3, to);
            self.a.mov_imm(R4, len as i32);
            self.a.call(HELPER_SKB_LOAD_BYTES);
            self.a.jump_if_imm(R0, If::NotEqual, 0, short);
            return;
        }
        let mut start = 0;
        self.a.load(Width::B4, R2, R6, XDP_DATA);
        self.a.load(Width::B4, R3, R6, XDP_DATA_END);
        match offset {
            Offset::Constant(n) => start = n,
            Offset::R7(n) => {
                self.a.jump_if_imm(R7, If::Greater, OFFSET_MAX, short);
                self.a.alu(Operation::Add, R2, R7);
                start += n;
            }
        }
        self.a.mov(R1, R2);
        self.a.alu_imm(Operation::Add, R1, start + len as i32);
        self.a.jump_if(R1, If::Greater, R3, short);
        let mut done = 0;
        while done < len {
            let step = [4, 2, 1].into_iter().find(|step| done + step <= len).expect("1 fits");
            self.a.load(Width::of(step), R1, R2, (start as usize + done) as i16);
            self.a.store(Width::of(step), R10, to + done as i16, R1);
            done += step;
        }
    }

    /// R0 = pointer to the value, or 0. Destroys R1 to R5.
    pub(super) fn look_up(&mut self, map: &Map, key: i16) {
        self.a.load_map(R1, map.as_raw_fd());
        self.stack_address(R2, key);
        self.a.call(HELPER_MAP_LOOKUP);
    }

    /// Completes a key by the protocol in its slot.
    pub(super) fn set_protocol(&mut self, key: i16) {
        self.a.load(Width::B4, R1, R10, PROTOCOL);
        self.a.store(Width::B1, R10, key + KEY_PROTOCOL, R1);
    }

    /// A key of an IPv4 address in a header on the stack.
    pub(super) fn key_from_ipv4(&mut self, key: i16, address: i16) {
        self.a.load(Width::B4, R1, R10, address);
        self.a.store_imm(Width::B8, R10, key + KEY_ADDRESS, 0);
        self.a.store_imm(Width::B8, R10, key + KEY_ADDRESS + 8, 0);
        self.a.store(Width::B4, R10, key + KEY_ADDRESS, R1);
        self.key_tail(key, 4);
    }

    /// A key of an IPv6 address in a header on the stack.
    pub(super) fn key_from_ipv6(&mut self, key: i16, address: i16) {
        for half in [0, 8] {
            self.a.load(Width::B8, R1, R10, address + half);
            self.a.store(Width::B8, R10, key + KEY_ADDRESS + half, R1);
        }
        self.key_tail(key, 6);
    }

    fn key_tail(&mut self, key: i16, family: i32) {
        self.a.store_imm(Width::B4, R10, key + KEY_PORT, 0);
        self.a.store_imm(Width::B1, R10, key + KEY_FAMILY, family);
    }

    fn stack_address(&mut self, to: Register, slot: i16) {
        self.a.mov(to, R10);
        self.a.alu_imm(Operation::Add, to, slot as i32);
    }
}
