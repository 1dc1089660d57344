//! ipvsadm's options: names, values, and which legality rule each falls under.

use super::legal::{self, OptionKind, Rules};
use super::popt::{Known, Value};

/// An option or command by what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the option of that name: see KNOWN")]
pub enum Opt {
    AddService,
    EditService,
    DeleteService,
    Clear,
    List,
    Zero,
    AddServer,
    EditServer,
    DeleteServer,
    Set,
    Help,
    Version,
    Restore,
    Save,
    StartDaemon,
    StopDaemon,
    Tcp,
    Udp,
    Sctp,
    FwMark,
    Ipv6,
    Scheduler,
    SchedulerFlags,
    Persistent,
    Netmask,
    PersistenceEngine,
    OnePacket,
    RealServer,
    Masquerading,
    Ipip,
    Gatewaying,
    Weight,
    UpperThreshold,
    LowerThreshold,
    TunType,
    TunPort,
    TunNoCsum,
    TunCsum,
    TunRemCsum,
    Numeric,
    Connection,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    TunInfo,
    NoSort,
    Sort,
    Exact,
    McastInterface,
    McastGroup,
    McastPort,
    McastTtl,
    SyncId,
    SyncMaxLen,
}

const fn plain(long: &'static str, short: char, meaning: Opt) -> Known<Opt> {
    Known {
        long,
        short: if short == '-' { None } else { Some(short) },
        value: Value::None,
        meaning,
    }
}

const fn valued(long: &'static str, short: char, meaning: Opt) -> Known<Opt> {
    Known {
        value: Value::Required,
        ..plain(long, short, meaning)
    }
}

/// All options; `-` stands for "no short name".
pub const KNOWN: &[Known<Opt>] = &[
    plain("add-service", 'A', Opt::AddService),
    plain("edit-service", 'E', Opt::EditService),
    plain("delete-service", 'D', Opt::DeleteService),
    plain("clear", 'C', Opt::Clear),
    plain("list", 'L', Opt::List),
    plain("list", 'l', Opt::List),
    plain("zero", 'Z', Opt::Zero),
    plain("add-server", 'a', Opt::AddServer),
    plain("edit-server", 'e', Opt::EditServer),
    plain("delete-server", 'd', Opt::DeleteServer),
    plain("set", '-', Opt::Set),
    plain("help", 'h', Opt::Help),
    plain("version", 'v', Opt::Version),
    plain("restore", 'R', Opt::Restore),
    plain("save", 'S', Opt::Save),
    valued("start-daemon", '-', Opt::StartDaemon),
    valued("stop-daemon", '-', Opt::StopDaemon),
    valued("tcp-service", 't', Opt::Tcp),
    valued("udp-service", 'u', Opt::Udp),
    valued("sctp-service", '-', Opt::Sctp),
    valued("fwmark-service", 'f', Opt::FwMark),
    plain("ipv6", '6', Opt::Ipv6),
    valued("scheduler", 's', Opt::Scheduler),
    valued("sched-flags", 'b', Opt::SchedulerFlags),
    Known {
        value: Value::Optional,
        ..plain("persistent", 'p', Opt::Persistent)
    },
    valued("netmask", 'M', Opt::Netmask),
    valued("pe", '-', Opt::PersistenceEngine),
    plain("ops", 'o', Opt::OnePacket),
    valued("real-server", 'r', Opt::RealServer),
    plain("masquerading", 'm', Opt::Masquerading),
    plain("ipip", 'i', Opt::Ipip),
    plain("gatewaying", 'g', Opt::Gatewaying),
    valued("weight", 'w', Opt::Weight),
    valued("u-threshold", 'x', Opt::UpperThreshold),
    valued("l-threshold", 'y', Opt::LowerThreshold),
    valued("tun-type", '-', Opt::TunType),
    valued("tun-port", '-', Opt::TunPort),
    plain("tun-nocsum", '-', Opt::TunNoCsum),
    plain("tun-csum", '-', Opt::TunCsum),
    plain("tun-remcsum", '-', Opt::TunRemCsum),
    plain("numeric", 'n', Opt::Numeric),
    plain("connection", 'c', Opt::Connection),
    plain("timeout", '-', Opt::Timeout),
    plain("daemon", '-', Opt::Daemon),
    plain("stats", '-', Opt::Stats),
    plain("rate", '-', Opt::Rate),
    plain("thresholds", '-', Opt::Thresholds),
    plain("persistent-conn", '-', Opt::PersistentConn),
    plain("tun-info", '-', Opt::TunInfo),
    plain("nosort", '-', Opt::NoSort),
    plain("sort", '-', Opt::Sort),
    plain("exact", 'X', Opt::Exact),
    valued("mcast-interface", '-', Opt::McastInterface),
    valued("mcast-group", '-', Opt::McastGroup),
    valued("mcast-port", '-', Opt::McastPort),
    valued("mcast-ttl", '-', Opt::McastTtl),
    valued("syncid", '-', Opt::SyncId),
    valued("sync-maxlen", '-', Opt::SyncMaxLen),
];

impl Opt {
    /// Whether it is one of the commands, of which exactly one stands first.
    pub fn is_command(self) -> bool {
        self.kind().is_none() && !matches!(self, Opt::Ipv6 | Opt::Sort)
    }

    /// The rules of a command's options.
    pub fn rules(self) -> &'static Rules {
        match self {
            Opt::AddService => &legal::ADD_SERVICE,
            Opt::EditService => &legal::EDIT_SERVICE,
            Opt::DeleteService => &legal::DELETE_SERVICE,
            Opt::Clear => &legal::CLEAR,
            Opt::Zero => &legal::ZERO,
            Opt::AddServer => &legal::ADD_SERVER,
            Opt::EditServer => &legal::EDIT_SERVER,
            Opt::DeleteServer => &legal::DELETE_SERVER,
            Opt::Set => &legal::SET,
            Opt::Restore => &legal::RESTORE,
            Opt::Save => &legal::SAVE,
            Opt::StartDaemon => &legal::START_DAEMON,
            Opt::StopDaemon => &legal::STOP_DAEMON,
            _ => &legal::LIST,
        }
    }

    /// Which legality rule it falls under; none for commands, and for `-6` and `--sort`, which are always legal.
    pub fn kind(self) -> Option<OptionKind> {
        Some(match self {
            Opt::Tcp | Opt::Udp | Opt::Sctp | Opt::FwMark => OptionKind::ServiceAddress,
            Opt::Masquerading | Opt::Ipip | Opt::Gatewaying => OptionKind::ForwardingMethod,
            Opt::Scheduler => OptionKind::Scheduler,
            Opt::SchedulerFlags => OptionKind::SchedulerFlags,
            Opt::Persistent => OptionKind::Persistent,
            Opt::Netmask => OptionKind::Netmask,
            Opt::PersistenceEngine => OptionKind::PersistenceEngine,
            Opt::OnePacket => OptionKind::OnePacket,
            Opt::RealServer => OptionKind::RealServer,
            Opt::Weight => OptionKind::Weight,
            Opt::UpperThreshold => OptionKind::UpperThreshold,
            Opt::LowerThreshold => OptionKind::LowerThreshold,
            Opt::TunType => OptionKind::TunType,
            Opt::TunPort => OptionKind::TunPort,
            Opt::TunNoCsum => OptionKind::TunNoCsum,
            Opt::TunCsum => OptionKind::TunCsum,
            Opt::TunRemCsum => OptionKind::TunRemCsum,
            Opt::Numeric => OptionKind::Numeric,
            Opt::Connection => OptionKind::Connection,
            Opt::Timeout => OptionKind::Timeout,
            Opt::Daemon => OptionKind::Daemon,
            Opt::Stats => OptionKind::Stats,
            Opt::Rate => OptionKind::Rate,
            Opt::Thresholds => OptionKind::Thresholds,
            Opt::PersistentConn => OptionKind::PersistentConn,
            Opt::TunInfo => OptionKind::TunInfo,
            Opt::NoSort => OptionKind::NoSort,
            Opt::Exact => OptionKind::Exact,
            Opt::McastInterface => OptionKind::McastInterface,
            Opt::McastGroup => OptionKind::McastGroup,
            Opt::McastPort => OptionKind::McastPort,
            Opt::McastTtl => OptionKind::McastTtl,
            Opt::SyncId => OptionKind::SyncId,
            Opt::SyncMaxLen => OptionKind::SyncMaxLen,
            _ => return None,
        })
    }
}
