//! What a call of ipvsadm asks for, and why one is not understood.

use std::net::IpAddr;

use crate::control::protocol::Command;
use crate::service::ServiceKey;

/// What a call of ipvsadm asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// One change.
    Change(Command),
    /// `-L`.
    List {
        /// What.
        what: Listed,
        /// How.
        format: Format,
    },
    /// `-S`.
    Save {
        /// `-n`.
        numeric: bool,
    },
    /// `-R`: rules from standard input.
    Restore,
    /// `--start-daemon`.
    StartDaemon(SyncDaemon),
    /// `--stop-daemon`.
    StopDaemon(SyncDaemon),
    /// `-h`.
    Help,
    /// `-v`.
    Version,
}

/// What `-L` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The whole table.
    All,
    /// One service.
    Service(ServiceKey),
    /// Connection entries (`-c`).
    Connections,
    /// `--timeout`.
    Timeouts,
    /// `--daemon`.
    Daemon,
}

/// How `-L` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// `-n`.
    pub numeric: bool,
    /// `--exact`.
    pub exact: bool,
    /// `--nosort`: the daemon's order.
    pub unsorted: bool,
    /// Which columns.
    pub columns: Columns,
    /// `--persistent-conn`, which also widens `-c`, whatever the columns.
    pub persistent_conn: bool,
}

/// Which columns a listing has. Of several that are asked for, the first in this order is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Columns {
    /// `--stats`.
    Statistics,
    /// `--rate`.
    Rates,
    /// `--thresholds`.
    Thresholds,
    /// `--persistent-conn`.
    Persistent,
    /// `--tun-info`.
    Tunnels,
    /// Forwarding method, weight, connections.
    #[default]
    Plain,
}

/// A connection sync daemon as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncDaemon {
    /// `backup` instead of `master`.
    pub backup: bool,
    /// `--mcast-interface`.
    pub interface: Option<String>,
    /// `--syncid`.
    pub sync_id: Option<u8>,
    /// `--mcast-group`.
    pub group: Option<IpAddr>,
    /// `--mcast-port`.
    pub port: Option<u16>,
    /// `--mcast-ttl`.
    pub ttl: Option<u8>,
    /// `--sync-maxlen`, bytes.
    pub len_max: Option<u16>,
}

/// A call that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UsageError {
    /// What ipvsadm prints, without the last newline.
    pub message: String,
    /// Its exit code: 2, or 255 where popt or the command itself was not understood.
    pub exit_code: u8,
    /// Whether it also ends a restore. Only popt's own complaints do not.
    pub ends_restore: bool,
}

impl UsageError {
    /// A wrong value or combination.
    pub fn usage(message: impl Into<String>) -> UsageError {
        UsageError {
            message: message.into(),
            exit_code: 2,
            ends_restore: true,
        }
    }

    /// No command, or not one at the first place.
    pub fn try_help(program: &str) -> UsageError {
        UsageError {
            message: format!("Try `{program} -h' or '{program} --help' for more information."),
            exit_code: 255,
            ends_restore: true,
        }
    }
}
