//! An interface with the filter in front of it, and which mode of AF_XDP it got and why.

use std::os::fd::RawFd;

use crate::io::bpf::BpfError;
use crate::io::bpf::xdp_link::{self, AttachMode};
use crate::io::filter::attach::{AttachError, attach_xdp, detach_xdp};
use crate::io::filter::{Filter, FilterCounters, FilterMaps, Flavour};
use crate::packet::Mac;

/// How frames come from the card to us, from fast to slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum XdpMode {
    /// The card writes into our memory.
    ZeroCopy,
    /// The interface's driver runs the filter, the kernel copies frames to our memory.
    Native,
    /// The stack makes an skb first. Loses super-frames: a peer that segments late (veth, virtio) must not.
    Generic,
}

impl std::fmt::Display for XdpMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            XdpMode::ZeroCopy => "zero-copy",
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
        })
    }
}

/// An interface whose frames pass our XDP filter.
#[derive(Debug)]
pub struct XdpInterface {
    ifindex: u32,
    name: String,
    filter: Filter,
    attached: AttachMode,
    reasons: Vec<String>,
}

impl XdpInterface {
    /// Loads the filter and attaches it: as `wanted`, or else native where the driver can and generic where not.
    /// From then on frames that match are dropped, until [`XdpInterface::add_socket`] says where they go.
    /// A filter of ours that is there already is replaced; a foreign program is an error. To be called in the
    /// interface's network namespace. Dropping this value leaves the filter attached.
    pub fn attach(
        ifindex: u32,
        maps: &FilterMaps,
        wanted: Option<AttachMode>,
        link_address: Option<Mac>,
    ) -> Result<XdpInterface, AttachError> {
        let name = xdp_link::query(ifindex)?.name;
        let filter = Filter::load(Flavour::Xdp, maps)?;
        if let Some(address) = link_address {
            filter.set_link_address(address)?;
        }
        let mut reasons = Vec::new();
        let attached = match attach_xdp(ifindex, wanted.unwrap_or(AttachMode::Native), &filter, maps) {
            Ok(()) => wanted.unwrap_or(AttachMode::Native),
            Err(AttachError::Kernel(error)) if wanted.is_none() => {
                reasons.push(format!("not native: {error}"));
                attach_xdp(ifindex, AttachMode::Generic, &filter, maps)?;
                AttachMode::Generic
            }
            Err(error) => return Err(error),
        };
        Ok(XdpInterface {
            ifindex,
            name,
            filter,
            attached,
            reasons,
        })
    }

    /// Its name when it was attached.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Where the filter runs.
    pub fn attached(&self) -> AttachMode {
        self.attached
    }

    /// Why it is not something faster; empty when native.
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }

    /// Frames of that queue go to this socket from now on.
    pub fn add_socket(&self, queue: u32, socket: RawFd) -> Result<(), BpfError> {
        self.filter.set_socket(queue, socket)
    }

    /// The interface's link address has changed.
    pub fn set_link_address(&self, address: Mac) -> Result<(), BpfError> {
        self.filter.set_link_address(address)
    }

    /// What the filter counted.
    pub fn counters(&self) -> Result<FilterCounters, BpfError> {
        self.filter.counters()
    }

    /// Gives the interface's frames back to the kernel.
    pub fn detach(self) -> Result<(), BpfError> {
        detach_xdp(self.ifindex).map(|_| ())
    }
}
