//! Schedulers: which destination gets a new connection.
//!
//! One file a scheduler, named as `ipvsadm -s` names it. A scheduler is built on the control thread each time its
//! service's destinations change, and asked on the workers: [`Schedule::pick`]. The list it is given is in the
//! kernel's order, **newest destination first**, and ties go to the first in that list.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};

use crate::packet::FlowKey;
use crate::service::DestinationKey;

/// Live numbers of one destination, shared by all workers. They outlast the table: a destination that is removed
/// and added again while connections live finds its counts again.
#[derive(Debug, Default)]
pub struct Load {
    /// ActiveConn.
    pub active: AtomicU32,
    /// InActConn.
    pub inactive: AtomicU32,
    /// PersistConn: persistence templates.
    pub persistent: AtomicU32,
    /// Over its upper threshold, and not yet below its lower one.
    pub overloaded: AtomicBool,
}

/// One destination as a scheduler sees it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Address and port (mh hashes them).
    pub key: DestinationKey,
    /// Weight; 0 = quiesced.
    pub weight: u32,
    /// `-x`; 0 = no limit.
    pub upper_threshold: u32,
    /// `-y`.
    pub lower_threshold: u32,
    /// Its live numbers.
    pub load: Arc<Load>,
}

/// What every scheduler can do on a worker. Lock-free, no allocation; cursors are atomics.
pub trait Schedule {
    /// Index into `candidates` of the destination for a new connection with this flow (source = client,
    /// destination = virtual address), or `None` when none may take it. `candidates` is the list the scheduler
    /// was built with.
    fn pick(&self, candidates: &[Candidate], flow: &FlowKey) -> Option<usize>;
}
