//! A complete little cluster in network namespaces: client, director, real servers.
//!
//! | module | what |
//! |---|---|
//! | [`cluster`] | hosts and segments |
//! | [`topology`] | the scenarios' networks |
//! | [`director`] | `uvs run` as a child, and its commands |
//! | [`scenario`] | all of them together, step by step |
//! | [`show`] | `uvs demo` |
//! | [`http`], [`udp`] | servers and clients |

pub mod cluster;
pub mod director;
pub mod http;
pub mod scenario;
pub mod show;
pub mod topology;
pub mod udp;

pub use show::run;
