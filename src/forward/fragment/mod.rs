//! Fragments: put together before they are forwarded, cut again on the way out.
//!
//! As in the kernel, a service sees whole datagrams only: [`Reassembly`] holds the fragments of one until it is a
//! [`Datagram`], which goes through the pipeline like any frame; [`Splitter`] then cuts it at the size it was received in,
//! or any other datagram at the MTU of its way. At least as many frames leave as fragments came.

mod reassembly;
mod split;

pub use reassembly::{DATAGRAMS_MAX, Datagram, Dropped, Inserted, Reassembly, TIMEOUT_NS};
pub use split::Splitter;
