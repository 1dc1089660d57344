//! The batch pipeline (no I/O), the worker loop, the driver trait, counters.
//!
//! [`pipeline`] decides what happens to each frame of a batch; [`worker`] runs it on one pinned thread over a
//! [`driver::Driver`]; [`counters`] says afterwards where every frame went.

pub mod counters;
pub mod driver;
// pub mod worker; // with the pipeline
