//! The rows by name, and what they have in common.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uvs::demo::cluster::Error;

use crate::report::{Row, Series};
use crate::rig::Peer;
use crate::{cluster, control, datagrams, latency, takeover, tcp};

/// How it is measured.
pub struct Setup {
    /// The program `uvs`.
    pub uvs: PathBuf,
    pub runs: usize,
    pub quick: bool,
    /// Set by a signal.
    pub stop: Arc<AtomicBool>,
}

impl Setup {
    /// An error once it is to end.
    pub fn go_on(&self) -> Result<(), Error> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Error::Wrong("interrupted".to_owned())),
            false => Ok(()),
        }
    }

    /// Whether a peer is there; if not, the row says so.
    pub fn can_run(&self, peer: Peer, row: &mut Row) -> bool {
        let missing = peer.missing();
        let runs = missing.is_none();
        if !runs {
            row.series.push(Series {
                peer: peer.name(),
                values: Vec::new(),
                missing,
            });
        }
        runs
    }
}

type Measure = fn(&Setup) -> Result<Row, Error>;

/// Name, what it shows, how.
pub const ROWS: &[(&str, &str, Measure)] = &[
    (
        "packet",
        "CPU per packet at 64 UDP flows, over the bare forwarder and nft",
        datagrams::packet,
    ),
    (
        "flows",
        "the same at 200,000 flows over nft, at a million over itself",
        datagrams::flows,
    ),
    (
        "onepacket",
        "UDP flows of one packet a second, over nft",
        datagrams::one_packet,
    ),
    (
        "connections",
        "new TCP connections a second, over haproxy and the bare forwarder",
        tcp::connections,
    ),
    ("bulk", "bulk TCP by NAT, over nft", tcp::bulk),
    (
        "download",
        "bulk download by direct routing, over the direct path",
        tcp::download,
    ),
    (
        "latency",
        "p50 at 10,000 frames a second, above the bare forwarder",
        latency::latency,
    ),
    (
        "overload",
        "delivered at 4 x overload, over peak and the bare forwarder",
        datagrams::overload,
    ),
    ("idle", "CPU of an idle director", control::idle),
    ("takeover", "frames lost when a new uvs takes over", takeover::takeover),
    (
        "rules",
        "1,000 services x 10 servers, and one weight among them",
        control::rules,
    ),
    (
        "efficiency",
        "clusters of 2 and 8 bounded servers over a single one",
        cluster::efficiency,
    ),
    (
        "ab",
        "the documents' benchmark: ab -n 50000 -c 1000, load raised stepwise",
        cluster::documents,
    ),
];
