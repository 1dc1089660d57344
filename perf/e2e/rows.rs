//! The rows by name, and what they have in common.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uvs::demo::cluster::Error;

use crate::report::{Row, Series};
use crate::rig::Peer;
use crate::{cluster, control, datagrams, latency, takeover, tcp};

/// How it is measured.
#[derive(Clone)]
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

/// When a row has its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So many in each pass through the rows: a bad minute of the machine meets some runs of each row, and not all runs of one.
    /// Several where runs differ by more than what their goal leaves, each with namespaces and memory of its own.
    Each(usize),
    /// All in the first, as what comes before them takes long.
    First,
}

/// Name, what it shows, how and when.
pub const ROWS: &[(&str, &str, Measure, When)] = &[
    (
        "packet",
        "CPU per packet at 64 UDP flows, over the bare forwarder and nft",
        datagrams::packet,
        When::Each(3),
    ),
    (
        "flows",
        "the same at 200,000 flows over nft, at a million over itself",
        datagrams::flows,
        When::Each(2),
    ),
    (
        "onepacket",
        "UDP flows of one packet a second, over nft",
        datagrams::one_packet,
        When::Each(1),
    ),
    (
        "connections",
        "new TCP connections a second, over haproxy and the bare forwarder",
        tcp::connections,
        When::Each(1),
    ),
    ("bulk", "bulk TCP by NAT, over nft", tcp::bulk, When::Each(1)),
    (
        "download",
        "bulk download by direct routing, over the direct path",
        tcp::download,
        When::Each(1),
    ),
    (
        "latency",
        "p50 at 10,000 frames a second, above the bare forwarder",
        latency::latency,
        When::Each(1),
    ),
    (
        "overload",
        "delivered at 4 x overload, over peak and the bare forwarder",
        datagrams::overload,
        When::Each(1),
    ),
    ("idle", "CPU of an idle director", control::idle, When::Each(1)),
    (
        "takeover",
        "frames lost when a new uvs takes over",
        takeover::takeover,
        When::First,
    ),
    (
        "rules",
        "1,000 services x 10 servers, and one weight among them",
        control::rules,
        When::Each(1),
    ),
    (
        "efficiency",
        "clusters of 2 and 8 bounded servers over a single one",
        cluster::efficiency,
        When::Each(1),
    ),
    (
        "ab",
        "the documents' benchmark: ab -n 50000 -c 1000, load raised stepwise",
        cluster::documents,
        When::First,
    ),
];
