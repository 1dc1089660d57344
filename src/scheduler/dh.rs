//! Destination hashing: the address that the client wants chooses one of 256 buckets, which the destinations fill in turn.

use super::hash::{available, fold, hash_8};
use super::{Batch, Candidate, Schedule};
use crate::packet::FlowKey;

const BUCKETS: usize = 256;

/// The buckets: indexes of candidates.
#[derive(Debug)]
pub struct Dh {
    buckets: Box<[u16; BUCKETS]>,
}

impl Dh {
    pub(super) fn new(candidates: &[Candidate]) -> Dh {
        let mut buckets = Box::new([u16::MAX; BUCKETS]);
        for (bucket, candidate) in buckets.iter_mut().zip((0..candidates.len()).cycle()) {
            *bucket = candidate as u16;
        }
        Dh { buckets }
    }
}

impl Schedule for Dh {
    fn pick<'s>(&'s self, candidates: &[Candidate], flow: &FlowKey, _: &mut Batch<'s>) -> Option<usize> {
        available(candidates, self.buckets[hash_8(fold(flow.destination()))])
    }
}
