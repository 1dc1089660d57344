//! uvs, a userspace virtual server: the director of Linux Virtual Server without the kernel's `ip_vs`.
//!
//! Words are IPVS's: a **virtual service** (address, port) is served by **destinations** (real servers), to which a **forwarding
//! method** (Route, Masq, Tunnel) takes the packets of a **connection**; the **scheduler** chooses the destination of a new one.
//! An **interface** is a network interface; a **port** is a TCP, UDP or SCTP port.
//!
//! # Layers
//!
//! Each module names only those above it in this table (a test checks that):
//!
//! | layer | holds |
//! |---|---|
//! | [`packet`], [`service`], [`options`] | bytes to meaning and back; the nouns as plain data; the command line as plain data |
//! | [`scheduler`], [`conn`] | who gets a new connection; the connection table |
//! | [`table`], [`forward`] | what the workers read; what happens to bytes once the destination is known |
//! | [`dataplane`] | the batch pipeline, the worker loop, the trait of the drivers |
//! | [`io`] | drivers, packet filter, netlink, tun, namespaces: all that is unsafe |
//! | [`control`] | the one writer |
//! | [`ipvsadm`] | the dialect |
//! | [`replay`] | frames of files through a director in memory |
//! | [`demo`] | a cluster in network namespaces |
//! | [`cli`] | the commands |
//!
//! # One frame's way
//!
//! The XDP program of [`io::filter`] sends it to the AF_XDP socket of its queue; the driver ([`io::xdp`]) hands it over in a batch;
//! [`dataplane::pipeline`] parses it ([`packet::parse`]), finds its connection ([`conn`]) or makes one ([`scheduler`]), has it rewritten
//! ([`forward`]), and gives it back to the driver for another interface, to the local stack ([`io::tun`]), or drops it for a
//! [`packet::DropReason`].
//!
//! # One command's way
//!
//! `ipvsadm -a …` is parsed ([`ipvsadm`]) into a [`control::protocol::Request`], goes through the control socket ([`control::server`]) to
//! the control thread ([`control::daemon`]), which makes the new [`control::state::State`] or refuses, builds a [`table::Table`], gives it
//! to every worker and waits until all work by it. Then the filter follows, the rules are saved, and the caller is answered.
//!
//! # One counter's way
//!
//! A worker adds to [`table::Counters`] of the destination, which only it writes. The control thread sums them when asked
//! ([`control::statistics`]); `ipvsadm --stats` prints them. Frames are counted in [`dataplane::counters`], where
//! received + generated = transmitted + handed back + dropped + held.

pub mod cli;
pub mod conn;
pub mod control;
pub mod dataplane;
pub mod demo;
pub mod forward;
pub mod io;
pub mod ipvsadm;
pub mod options;
pub mod packet;
pub mod prefetch;
pub mod random;
pub mod replay;
pub mod scheduler;
pub mod service;
pub mod table;
