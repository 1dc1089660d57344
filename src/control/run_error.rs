//! Why `uvs run` did not start, or ended: one message an operator can act on each.

use std::io;
use std::path::PathBuf;

use super::config::{ConfigError, INTERFACES_MAX};
use super::connections::RunDirError;
use super::outside::Stuck;
use super::protocol::CommandError;
use super::server::ServerError;
use super::store::StoreError;
use crate::io::bpf::BpfError;
use crate::io::filter::attach::AttachError;
use crate::io::liveness::ClaimError;
use crate::io::netlink;
use crate::io::packet_socket::SocketError;
use crate::io::tun::TunError;
use crate::io::xdp::XdpError;

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error("needs root: run it with sudo")]
    NotRoot,
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("no interface given: --interface IF, or `interfaces` in the configuration")]
    NoInterface,
    #[error("{0} interfaces are more than {INTERFACES_MAX}")]
    TooManyInterfaces(usize),
    #[error("interface {0} is given twice")]
    InterfaceTwice(String),
    #[error("there is no interface {0}")]
    NoSuchInterface(String),
    #[error("interface {0} has no Ethernet address: uvs serves Ethernet interfaces only")]
    NotEthernet(String),
    #[error("interface {0} is down: ip link set {0} up")]
    Down(String),
    #[error(
        "{wanted} workers are more than the {queues} receive queues of interface {interface}: a worker must own one on each"
    )]
    TooManyWorkers {
        wanted: usize,
        queues: usize,
        interface: String,
    },
    #[error("cannot read the queues of interface {interface}: {source}")]
    Queues { interface: String, source: io::Error },
    #[error("this uvs was built without the driver afxdp (cargo feature `afxdp`)")]
    NoAfxdp,
    #[error("{0}")]
    RunDir(#[from] RunDirError),
    #[error("interface {interface}: {source}")]
    Claim { interface: String, source: ClaimError },
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Server(#[from] ServerError),
    #[error("{0}")]
    Filter(#[from] AttachError),
    #[error("{0}")]
    Netlink(#[from] netlink::Error),
    #[error("{0}")]
    Tun(#[from] TunError),
    #[error("{0}")]
    Xdp(#[from] XdpError),
    #[error("{0}")]
    Raw(#[from] SocketError),
    #[error("cannot make an eventfd: {0}")]
    Waker(io::Error),
    #[error("cannot start the thread of {what}: {source}")]
    Thread { what: &'static str, source: io::Error },
    #[error("cannot listen to signals: {0}")]
    Signals(io::Error),
    #[error("the filter refuses the rules: {0}")]
    Rules(String),
    #[error("the configuration cannot be applied to the saved rules: {0}")]
    Unappliable(CommandError),
    #[error(
        "interface {interface} is served by another uvs (process {pid}) than the one at {}, if any: \
         give the --socket that it was started with",
        socket.display()
    )]
    OtherSocket {
        interface: String,
        pid: i32,
        socket: PathBuf,
    },
    #[error("cannot start again in place: {0}")]
    Again(io::Error),
    #[error("takeover: {0}")]
    Takeover(String),
    #[error("{0}: ends at once, the filter drops until the next start")]
    Stuck(#[from] Stuck),
}

impl From<BpfError> for RunError {
    fn from(error: BpfError) -> RunError {
        RunError::Filter(error.into())
    }
}
