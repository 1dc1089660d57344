//! What the control socket carries: one JSON [`Request`] a line, one JSON [`Reply`] a line.

use serde::{Deserialize, Serialize};

use super::explain::{Explanation, Question};
pub use crate::service::Timeouts;
use crate::service::{Destination, DestinationKey, MarkRule, Service, ServiceKey};

/// Bytes of a request line: about 200,000 rules.
pub const REQUEST_LEN_MAX: usize = 64 << 20;

/// Bytes of a reply line: about 4 million connection entries.
pub const REPLY_LEN_MAX: usize = 1 << 30;

/// A command or a question to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// Changes, applied one after the other in one table change; the reply has one result each.
    /// With `all_or_nothing` the first error undoes all.
    Apply {
        /// What to do.
        commands: Vec<Command>,
        /// Undo all at the first error.
        #[serde(default)]
        all_or_nothing: bool,
    },
    /// Services with destinations and their numbers; of one service, or all.
    List {
        /// Only this one.
        #[serde(default)]
        service: Option<ServiceKey>,
    },
    /// Connection entries (`-L -c`), templates included.
    Connections,
    /// The three timeouts (`-L --timeout`).
    Timeouts,
    /// The rules of the classifier (`uvs mark list`).
    Marks,
    /// Everything `uvs stats` prints.
    Statistics,
    /// Reads one `net.ipv4.vs.` setting.
    Sysctl {
        /// Name below `net.ipv4.vs.`.
        name: String,
    },
    /// Stops the daemon; with `keep` the dropping filter and the connection entries stay.
    Stop {
        /// Leave filter and entries for the next start.
        keep: bool,
    },
    /// Which way a flow goes, and why (`uvs explain`). Changes nothing.
    Explain {
        /// Of which.
        question: Question,
    },
    /// Version and process id, to see that it lives.
    Ping,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command")]
pub enum Command {
    /// `-A`.
    AddService(Service),
    /// `-E`.
    EditService(Service),
    /// `-D`.
    DeleteService {
        /// Which.
        service: ServiceKey,
    },
    /// `-C`.
    Clear,
    /// `-a`.
    AddDestination {
        /// Where.
        service: ServiceKey,
        /// What.
        destination: Destination,
    },
    /// `-e`.
    EditDestination {
        /// Where.
        service: ServiceKey,
        /// What.
        destination: Destination,
    },
    /// `-d`.
    DeleteDestination {
        /// Where.
        service: ServiceKey,
        /// Which.
        destination: DestinationKey,
    },
    /// `-Z`, of one service or all.
    Zero {
        /// Only this one.
        service: Option<ServiceKey>,
    },
    /// `--set`; 0 leaves a value as it is. Seconds.
    SetTimeouts(Timeouts),
    /// `uvs sysctl -w net.ipv4.vs.NAME=VALUE`.
    SetSysctl {
        /// Name below `net.ipv4.vs.`.
        name: String,
        /// Value as written.
        value: String,
    },
    /// `uvs mark add`.
    AddMark {
        /// What.
        rule: MarkRule,
        /// Before which rule, counted from 1; none: at the end.
        #[serde(default)]
        at: Option<u32>,
    },
    /// `uvs mark delete`.
    DeleteMark {
        /// Which.
        which: WhichMark,
    },
    /// `mss_clamp` of the configuration: SYNs through tunnels announce an MSS that fits.
    SetMssClamp {
        /// Whether they do.
        on: bool,
    },
    /// All rules of the classifier at once, in the place of those that are there (`uvs mark clear`, configuration).
    SetMarks {
        /// In order.
        rules: Vec<MarkRule>,
    },
}

/// Names a rule of the classifier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhichMark {
    /// By its place, counted from 1.
    Number(u32),
    /// By what it says.
    Rule(MarkRule),
}

/// Why a command was refused, as the kernel would have refused it; `ipvsadm` prints the matching words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "kind", content = "detail")]
pub enum CommandError {
    /// EEXIST on a service.
    #[error("Service already exists")]
    ServiceExists,
    /// ESRCH.
    #[error("No such service")]
    NoSuchService,
    /// EEXIST on a destination.
    #[error("Destination already exists")]
    DestinationExists,
    /// ENOENT on a destination.
    #[error("No such destination")]
    NoSuchDestination,
    /// ENOENT on a service command.
    #[error("Scheduler or persistence engine not found")]
    NoSuchScheduler,
    /// ERANGE: a threshold or value outside its range.
    #[error("Numerical result out of range")]
    OutOfRange,
    /// EINVAL, with what is wrong.
    #[error("Invalid argument: {0}")]
    Invalid(String),
    /// A limit of uvs's own, with which.
    #[error("{0}")]
    Limit(String),
    /// A rule of the classifier, with what is wrong.
    #[error("{0}")]
    Mark(String),
}

/// Answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    /// To `Apply`: one result a command, in order; the change is live on every worker.
    Applied {
        /// `None` = done.
        results: Vec<Option<CommandError>>,
        /// Why the rules, live as they are, could not be saved.
        #[serde(default)]
        unsaved: Option<String>,
    },
    /// To `List`, in the kernel's order of services; destinations newest first.
    Services {
        /// The services.
        services: Vec<ServiceListing>,
    },
    /// To `Connections`.
    Connections {
        /// The entries.
        connections: Vec<ConnectionListing>,
    },
    /// To `Timeouts`.
    Timeouts(Timeouts),
    /// To `Marks`.
    Marks {
        /// The rules in order.
        rules: Vec<MarkRule>,
    },
    /// To `Statistics`: the JSON of `uvs stats --json`.
    Statistics {
        /// As DESIGN fixes it.
        statistics: serde_json::Value,
    },
    /// To `Sysctl`.
    Sysctl {
        /// Its value.
        value: String,
    },
    /// To `Explain`.
    Explained {
        /// The way.
        explanation: Box<Explanation>,
    },
    /// To `Stop` and `Ping`.
    Ok {
        /// `CARGO_PKG_VERSION`.
        version: String,
        /// Of the daemon.
        pid: u32,
    },
    /// The request itself was refused.
    Error {
        /// What, where and why.
        message: String,
    },
}

/// A service with its numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceListing {
    /// As configured.
    pub service: Service,
    /// Its numbers.
    pub statistics: TrafficStatistics,
    /// Its destinations, newest first.
    pub destinations: Vec<DestinationListing>,
}

/// A destination with its numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationListing {
    /// As configured.
    pub destination: Destination,
    /// ActiveConn.
    pub active: u32,
    /// InActConn.
    pub inactive: u32,
    /// PersistConn.
    pub persistent: u32,
    /// Its numbers.
    pub statistics: TrafficStatistics,
}

/// Totals since the last `-Z` and rates as the kernel's estimator has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficStatistics {
    /// Conns.
    pub connections: u64,
    /// InPkts.
    pub packets_in: u64,
    /// OutPkts.
    pub packets_out: u64,
    /// InBytes.
    pub bytes_in: u64,
    /// OutBytes.
    pub bytes_out: u64,
    /// CPS.
    pub connections_per_s: u64,
    /// InPPS.
    pub packets_in_per_s: u64,
    /// OutPPS.
    pub packets_out_per_s: u64,
    /// InBPS.
    pub bytes_in_per_s: u64,
    /// OutBPS.
    pub bytes_out_per_s: u64,
}

/// One connection entry or template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionListing {
    /// IP protocol number; 0 prints as `IP` (templates of fwmark services).
    pub protocol: u8,
    /// Whole seconds left, rounded down.
    pub expires_s: u32,
    /// State as listed, such as `ESTABLISHED`, `UDP`, `NONE`.
    pub state: String,
    /// Client.
    pub client: (std::net::IpAddr, u16),
    /// Virtual address and port.
    pub virtual_address: (std::net::IpAddr, u16),
    /// Destination.
    pub destination: (std::net::IpAddr, u16),
    /// Of a template of the persistence engine `sip`: the Call-ID, empty when it is not known any more.
    #[serde(default)]
    pub call_id: Option<String>,
}
