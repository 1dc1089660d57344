//! uvs, a userspace virtual server: see ARCHITECTURE.md.

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
pub mod scheduler;
pub mod service;
pub mod table;
