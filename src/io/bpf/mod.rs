//! The bpf(2) system call: maps, programs, and where programs are attached.
//!
//! | module | what |
//! |---|---|
//! | [`asm`] | instructions from Rust, with labels |
//! | [`map`] | hash tables, counters and socket maps shared with a program |
//! | [`run`] | running a program by hand: a source of frames |
//! | [`xdp_link`] | the XDP program of an interface, by rtnetlink |
//! | [`tcx`] | programs at an interface's tc ingress |
//!
//! No bpffs, no libbpf, no ELF: a program is an array of instructions and lives as long as a file descriptor or an
//! attachment holds it. Structures are those of `include/uapi/linux/bpf.h`; each command passes only the prefix it
//! needs, which every kernel takes.
#![allow(unsafe_code, reason = "bpf(2) takes pointers inside a union")]

pub mod asm;
pub mod map;
pub mod run;
pub mod tcx;
pub mod xdp_link;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub use asm::Instruction;
pub use map::Map;

/// What the kernel refused, with all it said.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}{}{log}", if log.is_empty() { "" } else { "\n" })]
pub struct BpfError {
    /// What was to be done.
    pub what: String,
    /// The kernel's error.
    pub source: io::Error,
    /// The verifier's or netlink's own words, if any.
    pub log: String,
}

impl BpfError {
    fn new(what: impl Into<String>, source: io::Error) -> BpfError {
        BpfError {
            what: what.into(),
            source,
            log: String::new(),
        }
    }

    /// The kernel's error number.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

/// bpf(2) commands (`enum bpf_cmd`).
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ProgramLoad = 5,
    ProgramAttach = 8,
    ProgramDetach = 9,
    ProgramTestRun = 10,
    ProgramFdById = 13,
    ObjectInfo = 15,
    ProgramQuery = 16,
}

/// Calls bpf(2) with a prefix of `union bpf_attr`.
///
/// # Safety
/// `attribute` must be the structure of `command`, and every pointer in it must be good for what the command does.
unsafe fn bpf<T>(command: Command, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the size is that of the structure passed; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, attribute as *mut T, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

/// The same, for commands that return a file descriptor.
///
/// # Safety
/// As for [`bpf`], and the command must be one that opens a file descriptor.
unsafe fn bpf_open<T>(command: Command, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attribute) }?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Program types (`enum bpf_prog_type`) that a filter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProgramType {
    /// On a packet socket.
    SocketFilter = 1,
    /// At tc ingress.
    SchedCls = 3,
    /// In front of the kernel.
    Xdp = 6,
}

/// Most of the verifier's log that is asked for.
const LOG_BYTES: usize = 1 << 20;

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
}

impl Program {
    /// Verifies and loads it. The name has at most 15 letters, digits, `_` and `.`.
    pub fn load(kind: ProgramType, name: &str, code: &[Instruction]) -> Result<Program, BpfError> {
        match Program::try_load(kind, name, code, &mut []) {
            Ok(program) => Ok(program),
            Err(source) if is_verifier_error(&source) => {
                // Once more, to hear why.
                let mut log = vec![0u8; LOG_BYTES];
                match Program::try_load(kind, name, code, &mut log) {
                    Ok(program) => Ok(program),
                    Err(source) => Err(BpfError {
                        log: last_lines(&log),
                        ..load_error(kind, name, source)
                    }),
                }
            }
            Err(source) => Err(load_error(kind, name, source)),
        }
    }

    fn try_load(kind: ProgramType, name: &str, code: &[Instruction], log: &mut [u8]) -> io::Result<Program> {
        // Not GPL: the filter calls no helper that asks for it.
        let license = c"MIT OR Apache-2.0";
        let mut attribute = ProgramLoad {
            kind: kind as u32,
            instruction_count: code.len() as u32,
            instructions: code.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: if log.is_empty() { 0 } else { 1 },
            log_size: log.len() as u32,
            log_buffer: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            kernel_version: 0,
            flags: 0,
            name: object_name(name),
        };
        // SAFETY: all pointers are to live memory of the sizes given; a null log buffer goes with size 0.
        let fd = unsafe { bpf_open(Command::ProgramLoad, &mut attribute) }?;
        Ok(Program { fd })
    }

    /// Opens a loaded program by its id.
    pub fn by_id(id: u32) -> Result<Program, BpfError> {
        let mut attribute = [id, 0, 0];
        // SAFETY: BPF_PROG_GET_FD_BY_ID takes id, next id and flags, no pointers.
        match unsafe { bpf_open(Command::ProgramFdById, &mut attribute) } {
            Ok(fd) => Ok(Program { fd }),
            Err(e) => Err(BpfError::new(format!("open BPF program {id}"), e)),
        }
    }

    /// Its id and name.
    pub fn info(&self) -> Result<ProgramInfo, BpfError> {
        let mut info = ProgramInfoRaw::default();
        let mut attribute = ObjectInfo {
            fd: self.fd.as_raw_fd() as u32,
            len: size_of::<ProgramInfoRaw>() as u32,
            info: &raw mut info as u64,
        };
        // SAFETY: the pointer is to a writable structure of the length given.
        unsafe { bpf(Command::ObjectInfo, &mut attribute) }.map_err(|e| BpfError::new("ask about a BPF program", e))?;
        let name = info.name.split(|&b| b == 0).next().unwrap_or_default();
        Ok(ProgramInfo {
            id: info.id,
            name: String::from_utf8_lossy(name).into_owned(),
        })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Program {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// What identifies a loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// The kernel's id.
    pub id: u32,
    /// As given at load; may be empty.
    pub name: String,
}

impl std::fmt::Display for ProgramInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = if self.name.is_empty() { "(no name)" } else { &self.name };
        write!(f, "{name} (id {})", self.id)
    }
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct ObjectInfo {
    fd: u32,
    len: u32,
    info: u64,
}

/// The head of `struct bpf_prog_info`; the kernel fills as much as fits.
#[derive(Default)]
#[repr(C)]
struct ProgramInfoRaw {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    translated_len: u32,
    jited: u64,
    translated: u64,
    load_time: u64,
    created_by: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

fn load_error(kind: ProgramType, name: &str, source: io::Error) -> BpfError {
    let hint = match source.raw_os_error() {
        Some(libc::EPERM) => " (needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)",
        Some(libc::ENOSYS) => " (the kernel has no bpf(2))",
        _ => "",
    };
    BpfError::new(format!("load the {kind:?} program {name}{hint}"), source)
}

fn is_verifier_error(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EACCES | libc::E2BIG | libc::ENOSPC | libc::EFAULT)
    )
}

/// The end of the verifier's log: what it objected to, with the instructions before it.
fn last_lines(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log.split(|&b| b == 0).next().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A name as `bpf_attr` holds it. Longer ones are cut: names are ours.
fn object_name(name: &str) -> [u8; 16] {
    let name = CString::new(name).expect("our own names have no zero byte");
    let bytes = name.as_bytes();
    assert!(bytes.len() < 16, "{name:?} is too long for a BPF object");
    let mut out = [0; 16];
    out[..bytes.len()].copy_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::asm::{Assembler, R0, R1, Width};
    use super::*;
    use crate::io::testing::in_namespace;

    #[test]
    fn a_program_loads_runs_and_tells_its_name() {
        in_namespace(|| {
            let mut a = Assembler::new();
            a.mov_imm(R0, 2);
            a.exit();
            let program = Program::load(ProgramType::Xdp, "uvs_test", &a.finish()).unwrap();
            assert_eq!(program.run_once(&[0; 64]).unwrap(), 2);
            let info = program.info().unwrap();
            assert_eq!(info.name, "uvs_test");
            assert_eq!(Program::by_id(info.id).unwrap().info().unwrap(), info);
        });
    }

    /// How: reads past its argument. Goal: the error carries the verifier's words.
    #[test]
    fn a_bad_program_is_refused_with_the_verifiers_reason() {
        in_namespace(|| {
            let mut a = Assembler::new();
            a.load(Width::B4, R0, R1, 4000);
            a.exit();
            let error = Program::load(ProgramType::Xdp, "uvs_test", &a.finish()).unwrap_err();
            assert!(
                error.to_string().contains("invalid bpf_context access off=4000"),
                "{error}"
            );
        });
    }
}
