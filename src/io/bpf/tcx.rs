//! Programs at an interface's tc ingress (tcx, Linux 6.6 and later), attached by BPF_PROG_ATTACH: so attached they
//! stay when their process dies, which a tcx bpf_link does not.
#![allow(unsafe_code, reason = "bpf(2) takes a pointer to the list of ids")]

use std::os::fd::AsRawFd;

use super::{BpfError, Command, Program, ProgramInfo, bpf};

/// `BPF_TCX_INGRESS` of `enum bpf_attach_type`.
const TCX_INGRESS: u32 = 46;
/// Put it in place of `old`.
const F_REPLACE: u32 = 1 << 2;
/// Put it in front: of all, when no other is named.
const F_BEFORE: u32 = 1 << 3;
/// The kernel allows 63.
const PROGRAMS_MAX: usize = 64;

#[derive(Default)]
#[repr(C)]
struct Attach {
    ifindex: u32,
    program_fd: u32,
    kind: u32,
    flags: u32,
    old_fd: u32,
    relative_fd: u32,
    expected_revision: u64,
}

#[derive(Default)]
#[repr(C)]
struct Query {
    ifindex: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Attaches the program: in place of `old` if given, otherwise in front of all others.
pub fn attach(ifindex: u32, program: &Program, old: Option<&Program>) -> Result<(), BpfError> {
    let mut attribute = Attach {
        ifindex,
        program_fd: program.as_raw_fd() as u32,
        kind: TCX_INGRESS,
        flags: if old.is_some() { F_REPLACE } else { F_BEFORE },
        old_fd: old.map_or(0, |p| p.as_raw_fd() as u32),
        ..Attach::default()
    };
    // SAFETY: BPF_PROG_ATTACH takes no pointers.
    match unsafe { bpf(Command::ProgramAttach, &mut attribute) } {
        Ok(_) => Ok(()),
        Err(e) => {
            let hint = match e.raw_os_error() {
                Some(libc::EINVAL) => " (tcx needs Linux 6.6)",
                _ => "",
            };
            Err(BpfError::new(
                format!("attach a program to the tc ingress of interface {ifindex}{hint}"),
                e,
            ))
        }
    }
}

/// Detaches the program.
pub fn detach(ifindex: u32, program: &Program) -> Result<(), BpfError> {
    let mut attribute = Attach {
        ifindex,
        program_fd: program.as_raw_fd() as u32,
        kind: TCX_INGRESS,
        ..Attach::default()
    };
    // SAFETY: BPF_PROG_DETACH takes no pointers.
    match unsafe { bpf(Command::ProgramDetach, &mut attribute) } {
        Ok(_) => Ok(()),
        Err(e) => Err(BpfError::new(
            format!("detach a program from the tc ingress of interface {ifindex}"),
            e,
        )),
    }
}

/// What is attached, in the order of running. Empty on kernels without tcx.
pub fn query(ifindex: u32) -> Result<Vec<ProgramInfo>, BpfError> {
    let mut ids = [0u32; PROGRAMS_MAX];
    let mut attribute = Query {
        ifindex,
        kind: TCX_INGRESS,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..Query::default()
    };
    // SAFETY: `ids` is writable for `count` entries; the other pointers are null.
    match unsafe { bpf(Command::ProgramQuery, &mut attribute) } {
        Ok(_) => {}
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => return Ok(Vec::new()),
        Err(e) => {
            return Err(BpfError::new(
                format!("ask about the tc ingress of interface {ifindex}"),
                e,
            ));
        }
    }
    let ids = &ids[..(attribute.count as usize).min(PROGRAMS_MAX)];
    ids.iter().map(|&id| Program::by_id(id)?.info()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ProgramType;
    use super::super::asm::{Assembler, R0};
    use super::*;
    use crate::io::testing::{in_namespace, ip};

    fn next(name: &str) -> Program {
        let mut a = Assembler::new();
        a.mov_imm(R0, -1);
        a.exit();
        Program::load(ProgramType::SchedCls, name, &a.finish()).unwrap()
    }

    /// How: two programs on a veth, replaced and detached. Goal: ours is first, and is replaced in its place.
    #[test]
    fn ours_comes_first_and_is_replaced_in_place() {
        in_namespace(|| {
            ip("link add a0 type veth peer name b0");
            // SAFETY: a C string.
            let a = unsafe { libc::if_nametoindex(c"a0".as_ptr()) };
            let (foreign, ours, newer) = (next("foreign"), next("uvs_a"), next("uvs_b"));
            attach(a, &foreign, None).unwrap();
            attach(a, &ours, None).unwrap();
            attach(a, &newer, Some(&ours)).unwrap();
            let names: Vec<String> = query(a).unwrap().into_iter().map(|p| p.name).collect();
            assert_eq!(names, ["uvs_b", "foreign"]);
            assert!(detach(a, &ours).is_err());
            detach(a, &newer).unwrap();
            assert_eq!(query(a).unwrap(), [foreign.info().unwrap()]);
            let error = attach(4711, &ours, None).unwrap_err();
            assert_eq!(error.errno(), libc::ENODEV, "{error}");
        });
    }
}
