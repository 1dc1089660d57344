//! A small eBPF assembler with labels: enough for a packet filter.
//!
//! Instructions are 64 bits each (RFC 9669 section 3): opcode, two registers, a 16-bit offset, a 32-bit immediate.
//! Jumps name a [`Label`], which may be bound before or after; [`Assembler::finish`] fills in the distances.
//! A label that was never bound, or a distance that does not fit, is our bug and panics there.

/// One instruction as the kernel takes it (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation, operand source and class.
    pub code: u8,
    /// Destination register in one nibble, source register in the other.
    pub registers: u8,
    /// Memory offset in bytes, or jump distance in instructions.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u8);

/// Result of calls and of the program.
pub const R0: Register = Register(0);
/// First argument; calls destroy R1 to R5.
pub const R1: Register = Register(1);
/// Second argument.
pub const R2: Register = Register(2);
/// Third argument.
pub const R3: Register = Register(3);
/// Fourth argument.
pub const R4: Register = Register(4);
/// Kept over calls.
pub const R6: Register = Register(6);
/// Kept over calls.
pub const R7: Register = Register(7);
/// Kept over calls.
pub const R8: Register = Register(8);
/// Kept over calls.
pub const R9: Register = Register(9);
/// End of the stack (512 bytes below it), read-only.
pub const R10: Register = Register(10);

/// Width of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    B1,
    /// 16 bits.
    B2,
    /// 32 bits.
    B4,
    /// 64 bits.
    B8,
}

impl Width {
    /// The width of that many bytes.
    pub fn of(bytes: usize) -> Width {
        match bytes {
            1 => Width::B1,
            2 => Width::B2,
            4 => Width::B4,
            8 => Width::B8,
            other => panic!("no memory access is {other} bytes wide"),
        }
    }

    /// The BPF_SIZE bits of the opcode.
    fn bits(self) -> u8 {
        match self {
            Width::B4 => 0x00,
            Width::B2 => 0x08,
            Width::B1 => 0x10,
            Width::B8 => 0x18,
        }
    }
}

/// Condition of a jump, unsigned 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum If {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// Greater.
    Greater,
    /// Less.
    Less,
    /// Any bit in common.
    AnyBit,
}

impl If {
    fn bits(self) -> u8 {
        match self {
            If::Equal => 0x10,
            If::Greater => 0x20,
            If::AnyBit => 0x40,
            If::NotEqual => 0x50,
            If::Less => 0xa0,
        }
    }
}

/// Arithmetic on 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Addition.
    Add,
    /// Multiplication.
    Multiply,
    /// Remainder of an unsigned division.
    Modulo,
    /// Bitwise and.
    And,
    /// Bitwise exclusive or.
    Xor,
    /// Left shift.
    ShiftLeft,
    /// Logical right shift.
    ShiftRight,
    /// Assignment.
    Move,
}

impl Operation {
    fn bits(self) -> u8 {
        match self {
            Operation::Add => 0x00,
            Operation::Multiply => 0x20,
            Operation::Modulo => 0x90,
            Operation::Xor => 0xa0,
            Operation::And => 0x50,
            Operation::ShiftLeft => 0x60,
            Operation::ShiftRight => 0x70,
            Operation::Move => 0xb0,
        }
    }
}

/// A place in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

// Opcode classes and modes, RFC 9669 sections 3.1 and 5.
const CLASS_LD: u8 = 0x00;
const CLASS_LDX: u8 = 0x01;
const CLASS_ST: u8 = 0x02;
const CLASS_STX: u8 = 0x03;
const CLASS_JMP: u8 = 0x05;
const CLASS_ALU64: u8 = 0x07;
const MODE_IMM: u8 = 0x00;
const MODE_MEM: u8 = 0x60;
const SOURCE_REGISTER: u8 = 0x08;
const JUMP_ALWAYS: u8 = 0x00;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// The source register of a 64-bit immediate load that says: the immediate is a map's file descriptor.
const PSEUDO_MAP_FD: Register = Register(1);

/// Collects instructions.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// Where each label stands.
    labels: Vec<Option<usize>>,
    /// Jumps and their targets.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// An empty program.
    pub fn new() -> Assembler {
        Assembler::default()
    }

    /// A label to be bound later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label stands here, in front of the next instruction.
    pub fn bind(&mut self, label: Label) {
        let place = self.labels[label.0].replace(self.code.len());
        assert!(place.is_none(), "label {} is bound twice", label.0);
    }

    /// `to = to OPERATION from`.
    pub fn alu(&mut self, operation: Operation, to: Register, from: Register) {
        self.emit(CLASS_ALU64 | SOURCE_REGISTER | operation.bits(), to, from, 0, 0);
    }

    /// `to = to OPERATION value`.
    pub fn alu_imm(&mut self, operation: Operation, to: Register, value: i32) {
        self.emit(CLASS_ALU64 | operation.bits(), to, R0, 0, value);
    }

    /// `to = from`.
    pub fn mov(&mut self, to: Register, from: Register) {
        self.alu(Operation::Move, to, from);
    }

    /// `to = value`, sign-extended.
    pub fn mov_imm(&mut self, to: Register, value: i32) {
        self.alu_imm(Operation::Move, to, value);
    }

    /// `to = address of the map` whose file descriptor this is.
    pub fn load_map(&mut self, to: Register, map_fd: i32) {
        self.emit(CLASS_LD | MODE_IMM | Width::B8.bits(), to, PSEUDO_MAP_FD, 0, map_fd);
        self.emit(0, R0, R0, 0, 0);
    }

    /// `to = memory[base + offset]`, zero-extended.
    pub fn load(&mut self, width: Width, to: Register, base: Register, offset: i16) {
        self.emit(CLASS_LDX | MODE_MEM | width.bits(), to, base, offset, 0);
    }

    /// `memory[base + offset] = from`.
    pub fn store(&mut self, width: Width, base: Register, offset: i16, from: Register) {
        self.emit(CLASS_STX | MODE_MEM | width.bits(), base, from, offset, 0);
    }

    /// `memory[base + offset] = value`.
    pub fn store_imm(&mut self, width: Width, base: Register, offset: i16, value: i32) {
        self.emit(CLASS_ST | MODE_MEM | width.bits(), base, R0, offset, value);
    }

    /// Goes to `label`.
    pub fn jump(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(CLASS_JMP | JUMP_ALWAYS, R0, R0, 0, 0);
    }

    /// Goes to `label` if `left CONDITION right`.
    pub fn jump_if(&mut self, left: Register, condition: If, right: Register, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(CLASS_JMP | SOURCE_REGISTER | condition.bits(), left, right, 0, 0);
    }

    /// Goes to `label` if `left CONDITION value`.
    pub fn jump_if_imm(&mut self, left: Register, condition: If, value: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(CLASS_JMP | condition.bits(), left, R0, 0, value);
    }

    /// Calls the kernel's helper of that number: arguments R1 to R5, result R0.
    pub fn call(&mut self, helper: i32) {
        self.emit(CLASS_JMP | CALL, R0, R0, 0, helper);
    }

    /// Ends the program with R0.
    pub fn exit(&mut self) {
        self.emit(CLASS_JMP | EXIT, R0, R0, 0, 0);
    }

    /// The program, its jumps filled in.
    pub fn finish(mut self) -> Vec<Instruction> {
        for (place, label) in self.jumps {
            let target = self.labels[label.0].unwrap_or_else(|| panic!("label {} is bound nowhere", label.0));
            let distance = target as isize - place as isize - 1;
            self.code[place].offset = i16::try_from(distance).expect("a filter has no jump of 32768 instructions");
        }
        self.code
    }

    fn emit(&mut self, code: u8, destination: Register, source: Register, offset: i16, immediate: i32) {
        let registers = if cfg!(target_endian = "little") {
            source.0 << 4 | destination.0
        } else {
            destination.0 << 4 | source.0
        };
        self.code.push(Instruction {
            code,
            registers,
            offset,
            immediate,
        });
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    /// The bytes of a program, an instruction a string, as disassemblers print them.
    fn hex(program: &[Instruction]) -> Vec<String> {
        let line = |i: &Instruction| {
            let [o0, o1] = i.offset.to_le_bytes();
            let [a, b, c, d] = i.immediate.to_le_bytes();
            format!(
                "{:02x} {:02x} {o0:02x} {o1:02x} {a:02x} {b:02x} {c:02x} {d:02x}",
                i.code, i.registers
            )
        };
        program.iter().map(line).collect()
    }

    /// How: one instruction of each kind. Goal: the encodings of RFC 9669, as llvm-objdump prints the same text.
    #[test]
    fn each_kind_of_instruction_has_its_encoding() {
        let mut a = Assembler::new();
        a.mov(R6, R1);
        a.mov_imm(R0, -1);
        a.alu(Operation::Add, R2, R3);
        a.alu_imm(Operation::Modulo, R2, 64);
        a.alu_imm(Operation::Xor, R2, 255);
        a.alu_imm(Operation::And, R7, 15);
        a.alu_imm(Operation::ShiftLeft, R7, 2);
        a.alu_imm(Operation::ShiftRight, R1, 4);
        a.load(Width::B1, R1, R10, -88);
        a.load(Width::B2, R1, R10, -8);
        a.load(Width::B4, R2, R6, 4);
        a.load(Width::B8, R3, R2, 24);
        a.store(Width::B4, R10, -24, R4);
        a.store(Width::B8, R0, 0, R1);
        a.store_imm(Width::B2, R10, -8, 7);
        a.call(51);
        a.exit();
        let expected = [
            "bf 16 00 00 00 00 00 00",
            "b7 00 00 00 ff ff ff ff",
            "0f 32 00 00 00 00 00 00",
            "97 02 00 00 40 00 00 00",
            "a7 02 00 00 ff 00 00 00",
            "57 07 00 00 0f 00 00 00",
            "67 07 00 00 02 00 00 00",
            "77 01 00 00 04 00 00 00",
            "71 a1 a8 ff 00 00 00 00",
            "69 a1 f8 ff 00 00 00 00",
            "61 62 04 00 00 00 00 00",
            "79 23 18 00 00 00 00 00",
            "63 4a e8 ff 00 00 00 00",
            "7b 10 00 00 00 00 00 00",
            "6a 0a f8 ff 07 00 00 00",
            "85 00 00 00 33 00 00 00",
            "95 00 00 00 00 00 00 00",
        ];
        assert_eq!(hex(&a.finish()), expected);
    }

    /// How: jumps over one another, forward and back, and over a map load (two slots). Goal: distances count slots
    /// from the next instruction.
    #[test]
    fn jumps_reach_their_labels() {
        let mut a = Assembler::new();
        let (back, out) = (a.label(), a.label());
        a.bind(back);
        a.jump_if_imm(R1, If::Equal, 6, out);
        a.load_map(R1, 9);
        a.jump_if(R2, If::Greater, R3, back);
        a.jump_if_imm(R1, If::AnyBit, 2, out);
        a.jump_if_imm(R7, If::Less, 34, back);
        a.jump_if_imm(R7, If::NotEqual, 0, back);
        a.jump(out);
        a.bind(out);
        a.exit();
        let expected = [
            "15 01 07 00 06 00 00 00",
            "18 11 00 00 09 00 00 00",
            "00 00 00 00 00 00 00 00",
            "2d 32 fc ff 00 00 00 00",
            "45 01 03 00 02 00 00 00",
            "a5 07 fa ff 22 00 00 00",
            "55 07 f9 ff 00 00 00 00",
            "05 00 00 00 00 00 00 00",
            "95 00 00 00 00 00 00 00",
        ];
        assert_eq!(hex(&a.finish()), expected);
    }

    #[test]
    #[should_panic(expected = "bound nowhere")]
    fn a_label_must_be_bound() {
        let mut a = Assembler::new();
        let label = a.label();
        a.jump(label);
        a.finish();
    }

    #[test]
    #[should_panic(expected = "bound twice")]
    fn a_label_is_bound_once() {
        let mut a = Assembler::new();
        let label = a.label();
        a.bind(label);
        a.bind(label);
    }
}
