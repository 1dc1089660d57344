//! The batch pipeline (no I/O), the worker loop, the driver trait, counters.
pub mod driver;
