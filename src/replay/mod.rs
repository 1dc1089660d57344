//! Frames through the data plane without a network.
//!
//! [`director`] is a director in memory over the [memory driver](crate::io::memory), [`network`] what is around it. Tests
//! drive it frame by frame.

pub mod director;
pub mod network;
