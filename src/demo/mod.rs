//! A complete little cluster in network namespaces: client, director, real servers.
//!
//! | module | what |
//! |---|---|
//! | [`cluster`] | hosts and segments |
//! | [`topology`] | the scenarios' networks |
//! | [`director`] | `uvs run` as a child, and its commands |
//! | [`http`], [`udp`] | servers and clients |

pub mod cluster;
pub mod director;
pub mod http;
pub mod topology;
pub mod udp;
