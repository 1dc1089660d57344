//! The XDP program of an interface: attach, replace, detach and ask, by rtnetlink.
//!
//! Attached this way a program outlives the process that attached it, which a bpf_link does not. Replacing names the
//! program that is to be replaced by its file descriptor, so the kernel exchanges the two in one step and refuses
//! when somebody else was faster. All in the calling thread's network namespace.

use std::io;
use std::os::fd::AsFd;

use super::{BpfError, Program};
use crate::io::netlink::{Error, Link, Netlink};

pub use crate::io::netlink::AttachMode;

/// Asks the kernel about the interface.
pub fn query(ifindex: u32) -> Result<Link, BpfError> {
    Netlink::open()
        .and_then(|mut netlink| netlink.link_by_index(ifindex))
        .map_err(|e| failed(format!("ask about interface {ifindex}"), e))
}

/// Attaches the program, in place of `old` if given and otherwise only where none is.
pub fn attach(ifindex: u32, mode: AttachMode, program: &Program, old: Option<&Program>) -> Result<(), BpfError> {
    Netlink::open()
        .and_then(|mut netlink| netlink.set_xdp(ifindex, mode, Some(program.as_fd()), old.map(AsFd::as_fd)))
        .map_err(|e| failed(format!("attach a {mode} XDP program to interface {ifindex}"), e))
}

/// Detaches the program, if it is the one attached.
pub fn detach(ifindex: u32, mode: AttachMode, program: &Program) -> Result<(), BpfError> {
    Netlink::open()
        .and_then(|mut netlink| netlink.set_xdp(ifindex, mode, None, Some(program.as_fd())))
        .map_err(|e| failed(format!("detach the {mode} XDP program of interface {ifindex}"), e))
}

fn failed(what: String, error: Error) -> BpfError {
    let (source, log) = match error {
        Error::Refused { source, words, .. } => (source, words),
        other => {
            let source = other.errno().map(io::Error::from_raw_os_error);
            (source.unwrap_or_else(|| io::Error::other(other)), String::new())
        }
    };
    BpfError {
        log,
        ..BpfError::new(what, source)
    }
}

#[cfg(test)]
mod tests {
    use super::super::asm::{Assembler, R0};
    use super::super::{Program, ProgramType};
    use super::*;
    use crate::io::testing::{in_namespace, ip};

    fn pass() -> Program {
        let mut a = Assembler::new();
        a.mov_imm(R0, 2);
        a.exit();
        Program::load(ProgramType::Xdp, "uvs_test", &a.finish()).unwrap()
    }

    fn ifindex(name: &str) -> u32 {
        Netlink::open().unwrap().link(name).unwrap().index
    }

    /// How: attaches, replaces by the right and by a wrong predecessor, detaches, on a veth pair.
    /// Goal: one program at a time, never replaced by surprise, always found again by asking.
    #[test]
    fn programs_replace_each_other_only_by_name_of_the_old() {
        in_namespace(|| {
            ip("link add a0 type veth peer name b0 numrxqueues 2");
            let (a, b) = (ifindex("a0"), ifindex("b0"));
            for mode in [AttachMode::Native, AttachMode::Generic] {
                let (first, second) = (pass(), pass());
                attach(a, mode, &first, None).unwrap();
                assert_eq!(attach(a, mode, &second, None).unwrap_err().errno(), libc::EBUSY);
                assert_eq!(
                    attach(a, mode, &second, Some(&second)).unwrap_err().errno(),
                    libc::EEXIST
                );
                attach(a, mode, &second, Some(&first)).unwrap();
                assert_eq!(query(a).unwrap().xdp_programs, [(mode, second.info().unwrap().id)]);
                assert_eq!(detach(a, mode, &first).unwrap_err().errno(), libc::EEXIST);
                detach(a, mode, &second).unwrap();
                assert_eq!(query(a).unwrap().xdp_programs, []);
            }
            let link = query(b).unwrap();
            assert_eq!((link.name.as_str(), link.rx_queues), ("b0", 2));
        });
    }

    #[test]
    fn refusals_carry_the_kernels_words() {
        in_namespace(|| {
            ip("link add a0 type veth peer name b0");
            let a = ifindex("a0");
            let program = pass();
            attach(a, AttachMode::Native, &program, None).unwrap();
            let error = attach(a, AttachMode::Generic, &pass(), None).unwrap_err();
            assert!(error.to_string().contains("at the same time"), "{error}");
            let error = query(4711).unwrap_err();
            assert_eq!(error.errno(), libc::ENODEV, "{error}");
        });
    }
}
