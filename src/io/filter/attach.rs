//! Putting a filter in front of the kernel so that it stays there when the daemon dies, and taking over one that
//! was left.
//!
//! | there already | what [`attach_xdp`] does |
//! |---|---|
//! | nothing | attaches |
//! | a filter of ours, same mode | replaces it in one step: no frame sees neither |
//! | a filter of ours, other mode | the kernel cannot do that in one step (EEXIST); a dropping filter at tc ingress covers the moment between detaching the old and attaching the new (Linux 6.6; before, frames of services reach the kernel in it) |
//! | another program | refuses, naming it |
//!
//! From one driver to another there is no gap either: first attach the new filter ([`attach_xdp`], [`attach_tc`]), then
//! [`detach_tc`] or [`detach_xdp`] the other kind.
//!
//! Whether the daemon of a filter lives is another question: see [`crate::io::liveness`].

use super::{Filter, FilterMaps, Flavour, PROGRAM_NAME};
use crate::io::bpf::xdp_link::{self, AttachMode};
use crate::io::bpf::{BpfError, Program, ProgramInfo, tcx};

/// Why a filter is not in its place.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Somebody else's XDP program.
    #[error(
        "interface {interface} has the {mode} XDP program {program}, which is not of uvs: detach it \
         (ip link set dev {interface} xdp off) or use --driver raw"
    )]
    Foreign {
        /// Name of the interface.
        interface: String,
        /// Where the program runs.
        mode: AttachMode,
        /// What it is.
        program: ProgramInfo,
    },
    /// The kernel refused.
    #[error("{}{}", .0, hint(.0))]
    Kernel(#[from] BpfError),
}

/// What a mode of XDP asks of the interface, when it refused.
fn hint(error: &BpfError) -> &'static str {
    match error.errno() {
        libc::EOPNOTSUPP => " (its driver has no XDP: use generic mode or --driver raw)",
        libc::ERANGE => " (its MTU is too large for XDP: one frame must fit into a page)",
        libc::ENODEV => " (there is no such interface)",
        libc::EPERM => " (needs root)",
        _ => "",
    }
}

/// A filter found on an interface.
#[derive(Debug)]
pub struct Found {
    /// Where it runs.
    pub mode: AttachMode,
    /// What it is.
    pub info: ProgramInfo,
    program: Program,
}

impl Found {
    /// Made by a uvs, this one or another.
    pub fn is_ours(&self) -> bool {
        self.info.name == PROGRAM_NAME
    }
}

/// The XDP programs on an interface, ours and others'. To be called in its network namespace.
pub fn query_xdp(ifindex: u32) -> Result<Vec<Found>, BpfError> {
    let link = xdp_link::query(ifindex)?;
    let found = |(mode, id)| {
        let program = Program::by_id(id)?;
        let info = program.info()?;
        Ok(Found { mode, info, program })
    };
    link.xdp_programs.into_iter().map(found).collect()
}

/// Attaches an XDP filter, in place of one of ours if there is any.
pub fn attach_xdp(ifindex: u32, mode: AttachMode, filter: &Filter, maps: &FilterMaps) -> Result<(), AttachError> {
    assert_eq!(filter.flavour, Flavour::Xdp);
    let present = query_xdp(ifindex)?;
    if let Some(foreign) = present.iter().find(|p| !p.is_ours()) {
        return Err(AttachError::Foreign {
            interface: xdp_link::query(ifindex)?.name,
            mode: foreign.mode,
            program: foreign.info.clone(),
        });
    }
    match present.iter().find(|p| p.mode == mode) {
        Some(old) => Ok(xdp_link::attach(ifindex, mode, &filter.program, Some(&old.program))?),
        None if present.is_empty() => Ok(xdp_link::attach(ifindex, mode, &filter.program, None)?),
        None => change_mode(ifindex, mode, filter, maps, &present),
    }
}

/// Puts the filter where only filters of other modes are. If that fails the old ones are back, without a gap.
fn change_mode(
    ifindex: u32,
    mode: AttachMode,
    filter: &Filter,
    maps: &FilterMaps,
    present: &[Found],
) -> Result<(), AttachError> {
    let cover = Filter::load(Flavour::TcIngress, maps)?;
    let covered = match tcx::attach(ifindex, &cover.program, None) {
        Ok(()) => true,
        Err(e) => {
            log::warn!("{e}: for a moment, frames of services on interface {ifindex} reach the kernel");
            false
        }
    };
    let exchange = || {
        for old in present {
            xdp_link::detach(ifindex, old.mode, &old.program)?;
        }
        let result = xdp_link::attach(ifindex, mode, &filter.program, None);
        if result.is_err() {
            for old in present {
                xdp_link::attach(ifindex, old.mode, &old.program, None)?;
            }
        }
        result
    };
    let result = exchange();
    if covered {
        tcx::detach(ifindex, &cover.program)?;
    }
    Ok(result?)
}

/// Detaches our XDP filters, also those of a daemon that died: VIP and services are the kernel's again.
/// Says how many there were.
pub fn detach_xdp(ifindex: u32) -> Result<usize, BpfError> {
    let ours: Vec<Found> = query_xdp(ifindex)?.into_iter().filter(Found::is_ours).collect();
    for found in &ours {
        xdp_link::detach(ifindex, found.mode, &found.program)?;
    }
    Ok(ours.len())
}

/// Attaches a filter at tc ingress, in front of others' programs, in place of ours if there are any.
pub fn attach_tc(ifindex: u32, filter: &Filter) -> Result<(), BpfError> {
    assert_eq!(filter.flavour, Flavour::TcIngress);
    let mut ours = query_tc(ifindex)?.into_iter();
    match ours.next() {
        None => tcx::attach(ifindex, &filter.program, None)?,
        Some(old) => tcx::attach(ifindex, &filter.program, Some(&Program::by_id(old.id)?))?,
    }
    // More than one only if a daemon died while it changed modes.
    ours.try_for_each(|old| tcx::detach(ifindex, &Program::by_id(old.id)?))
}

/// Our filters at tc ingress.
pub fn query_tc(ifindex: u32) -> Result<Vec<ProgramInfo>, BpfError> {
    let all = tcx::query(ifindex)?.into_iter();
    Ok(all.filter(|p| p.name == PROGRAM_NAME).collect())
}

/// Detaches our filters at tc ingress, also those of a daemon that died. Says how many there were.
pub fn detach_tc(ifindex: u32) -> Result<usize, BpfError> {
    let ours = query_tc(ifindex)?;
    ours.iter()
        .try_for_each(|old| tcx::detach(ifindex, &Program::by_id(old.id)?))?;
    Ok(ours.len())
}
