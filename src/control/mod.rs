//! The one writer: commands become a new table, and the table goes to the workers.
//!
//! [`state`] is what the operator asked for, pure data; [`registry`] holds the live side of it and builds the
//! [`Table`](crate::table::Table) that the workers read; [`statistics`] sums and rates traffic; [`client`] is the
//! other end of the control socket.

pub mod client;
pub mod config;
pub mod connections;
pub mod daemon;
pub mod difference;
pub mod director;
pub mod drivers;
pub mod explain;
pub mod journal;
pub mod outside;
pub mod protocol;
pub mod registry;
pub mod report;
pub mod run;
pub mod run_error;
pub mod saver;
pub mod server;
pub mod state;
pub mod statistics;
pub mod store;
