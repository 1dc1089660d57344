//! None (`-s none`): nobody gets a new connection, as of a service of the kernel's that has no scheduler.

use super::{Batch, Candidate, Schedule};
use crate::packet::FlowKey;

/// Has no state of its own.
#[derive(Debug)]
pub struct Nobody;

impl Schedule for Nobody {
    fn pick<'s>(&'s self, _: &[Candidate], _: &FlowKey, _: &mut Batch<'s>) -> Option<usize> {
        None
    }
}
