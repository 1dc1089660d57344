//! Source hashing: the client's address chooses one of 256 buckets, which the destinations fill in list order, each as
//! many in a row as its weight.

use super::hash::{available, client_port, fold, hash_8};
use super::{Batch, Candidate, Schedule};
use crate::packet::FlowKey;

const BUCKETS: usize = 256;

/// The buckets: indexes of candidates.
#[derive(Debug)]
pub struct Sh {
    buckets: Box<[u16; BUCKETS]>,
    fallback: bool,
    port: bool,
}

impl Sh {
    /// `fallback` (sh-fallback): clients of an unavailable destination go to another. `port` (sh-port): the client's
    /// port counts too.
    pub(super) fn new(candidates: &[Candidate], fallback: bool, port: bool) -> Sh {
        let mut buckets = Box::new([u16::MAX; BUCKETS]);
        let (mut candidate, mut filled) = (0, 0);
        for bucket in buckets.iter_mut() {
            let Some(c) = candidates.get(candidate) else { break };
            *bucket = candidate as u16;
            filled += 1;
            // A quiesced one has its one bucket.
            if filled >= c.weight {
                candidate = (candidate + 1) % candidates.len();
                filled = 0;
            }
        }
        Sh {
            buckets,
            fallback,
            port,
        }
    }
}

impl Schedule for Sh {
    fn pick<'s>(&'s self, candidates: &[Candidate], flow: &FlowKey, _: &mut Batch<'s>) -> Option<usize> {
        let hash = hash_8(client_port(flow, self.port).wrapping_add(fold(flow.source())));
        let at = |offset: usize| available(candidates, self.buckets[(offset + hash) % BUCKETS]);
        let first = at(0);
        if first.is_some() || !self.fallback {
            return first;
        }
        (0..BUCKETS).find_map(|offset| at((offset + hash) % BUCKETS))
    }
}
