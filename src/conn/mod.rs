//! The connection table: entries, TCP and UDP states, persistence templates, expiry.
//!
//! All workers share one [`table::ConnectionTable`] of fixed capacity.
pub mod table;
