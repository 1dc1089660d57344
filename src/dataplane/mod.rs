//! The batch pipeline (no I/O), the worker loop, the driver trait, counters.
//!
//! [`pipeline`] runs a batch through its passes; what happens to a frame is decided in `express` and `flow` (connections known),
//! `begin` (new ones), `related` (ICMP errors about them), `secured` (AH, ESP) and `pieces` (fragments), and carried out in
//! `round`.
//! [`worker`] runs the pipeline on one pinned thread over a [`driver::Driver`]; [`counters`] says afterwards where every
//! frame went.

mod begin;
mod caller;
pub mod counters;
pub mod driver;
mod express;
mod flow;
mod ftp;
mod pieces;
pub mod pipeline;
mod related;
mod round;
mod secured;
mod waiting;
pub mod worker;
