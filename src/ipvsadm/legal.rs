//! Which options a command must, may and must not have, and what ipvsadm says otherwise.

use super::invocation::UsageError;

/// An option as the legality rules see it: `-t`, `-u`, `--sctp-service` and `-f` are one, `-g`, `-i` and `-m` are one.
/// In the order in which ipvsadm checks them, since only the first fault is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the option of that name")]
pub enum OptionKind {
    Numeric,
    Connection,
    ServiceAddress,
    Scheduler,
    Persistent,
    Netmask,
    RealServer,
    ForwardingMethod,
    Weight,
    UpperThreshold,
    LowerThreshold,
    McastInterface,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    NoSort,
    SyncId,
    Exact,
    OnePacket,
    PersistenceEngine,
    SchedulerFlags,
    McastGroup,
    McastPort,
    McastTtl,
    SyncMaxLen,
    TunInfo,
    TunType,
    TunPort,
    TunNoCsum,
    TunCsum,
    TunRemCsum,
}

use OptionKind::*;

const OPTIONS: [(OptionKind, &str); 34] = [
    (Numeric, "numeric"),
    (Connection, "connection"),
    (ServiceAddress, "service-address"),
    (Scheduler, "scheduler"),
    (Persistent, "persistent"),
    (Netmask, "netmask"),
    (RealServer, "real-server"),
    (ForwardingMethod, "forwarding-method"),
    (Weight, "weight"),
    (UpperThreshold, "u-threshold"),
    (LowerThreshold, "l-threshold"),
    (McastInterface, "mcast-interface"),
    (Timeout, "timeout"),
    (Daemon, "daemon"),
    (Stats, "stats"),
    (Rate, "rate"),
    (Thresholds, "thresholds"),
    (PersistentConn, "persistent-conn"),
    (NoSort, "nosort"),
    (SyncId, "syncid"),
    (Exact, "exact"),
    (OnePacket, "ops"),
    (PersistenceEngine, "pe"),
    (SchedulerFlags, "sched-flags"),
    (McastGroup, "mcast-group"),
    (McastPort, "mcast-port"),
    (McastTtl, "mcast-ttl"),
    (SyncMaxLen, "sync-maxlen"),
    (TunInfo, "tun-info"),
    (TunType, "tun-type"),
    (TunPort, "tun-port"),
    (TunNoCsum, "tun-nocsum"),
    (TunCsum, "tun-csum"),
    (TunRemCsum, "tun-remcsum"),
];

impl OptionKind {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        OPTIONS[self as usize].1
    }
}

/// The options that were given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given(u64);

impl Given {
    /// Adds one; each may be given once.
    pub fn add(&mut self, option: OptionKind) -> Result<(), UsageError> {
        if self.has(option) {
            return Err(UsageError::usage(format!(
                "multiple '{}' options specified",
                option.name()
            )));
        }
        self.0 |= 1 << option as u64;
        Ok(())
    }

    /// Whether it was given.
    pub fn has(self, option: OptionKind) -> bool {
        self.0 & 1 << option as u64 != 0
    }

    /// Whether one of them was given.
    pub fn has_any(self, options: &[OptionKind]) -> bool {
        options.iter().any(|option| self.has(*option))
    }
}

/// What a command does with options. Those not listed are illegal.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The command's (or tunnel type's) name in messages.
    name: &'static str,
    must: &'static [OptionKind],
    may: &'static [OptionKind],
    /// At most one of these.
    one_of: &'static [OptionKind],
}

const fn rules(name: &'static str, must: &'static [OptionKind], may: &'static [OptionKind]) -> Rules {
    Rules {
        name,
        must,
        may,
        one_of: &[],
    }
}

const OF_SERVICE: &[OptionKind] = &[
    Scheduler,
    Persistent,
    Netmask,
    OnePacket,
    PersistenceEngine,
    SchedulerFlags,
];
const OF_SERVER: &[OptionKind] = &[
    ForwardingMethod,
    Weight,
    UpperThreshold,
    LowerThreshold,
    TunType,
    TunPort,
    TunNoCsum,
    TunCsum,
    TunRemCsum,
];

/// `-A`.
pub const ADD_SERVICE: Rules = rules("add-service", &[ServiceAddress], OF_SERVICE);
/// `-E`.
pub const EDIT_SERVICE: Rules = rules("edit-service", &[ServiceAddress], OF_SERVICE);
/// `-D`.
pub const DELETE_SERVICE: Rules = rules("delete-service", &[ServiceAddress], &[]);
/// `-C`.
pub const CLEAR: Rules = rules("flush", &[], &[]);
/// `-a`.
pub const ADD_SERVER: Rules = rules("add-server", &[ServiceAddress, RealServer], OF_SERVER);
/// `-e`.
pub const EDIT_SERVER: Rules = rules("edit-server", &[ServiceAddress, RealServer], OF_SERVER);
/// `-d`.
pub const DELETE_SERVER: Rules = rules("delete-server", &[ServiceAddress, RealServer], &[]);
/// `--set`.
pub const SET: Rules = rules("set", &[], &[]);
/// `--start-daemon`.
pub const START_DAEMON: Rules = rules(
    "start-daemon",
    &[],
    &[McastInterface, SyncId, McastGroup, McastPort, McastTtl, SyncMaxLen],
);
/// `--stop-daemon`.
pub const STOP_DAEMON: Rules = rules("stop-daemon", &[], &[SyncId]);
/// `-R`.
pub const RESTORE: Rules = rules("restore", &[], &[]);
/// `-S`.
pub const SAVE: Rules = rules("save", &[], &[Numeric]);
/// `-Z`.
pub const ZERO: Rules = rules("zero", &[], &[ServiceAddress]);
/// `-L`.
pub const LIST: Rules = Rules {
    name: "list",
    must: &[],
    may: &[
        Numeric,
        Stats,
        Rate,
        Thresholds,
        PersistentConn,
        NoSort,
        SyncId,
        Exact,
        TunInfo,
    ],
    one_of: &[Connection, ServiceAddress, Timeout, Daemon],
};

const CSUMS: &[OptionKind] = &[TunNoCsum, TunCsum, TunRemCsum];
/// `--tun-type ipip`.
pub const TUN_IPIP: Rules = rules("ipip", &[], &[]);
/// `--tun-type gue`.
pub const TUN_GUE: Rules = Rules {
    name: "gue",
    must: &[TunPort],
    may: &[],
    one_of: CSUMS,
};
/// `--tun-type gre`.
pub const TUN_GRE: Rules = Rules {
    name: "gre",
    must: &[],
    may: &[],
    one_of: &[TunNoCsum, TunCsum],
};

/// Checks a command's options; the error names the first fault in the order of [`OptionKind`].
pub fn check_command(command: &Rules, given: Given) -> Result<(), UsageError> {
    check(command, given, "command", OPTIONS.iter().map(|(option, _)| *option))
}

/// Checks a tunnel type's options.
pub fn check_tunnel(tunnel: &Rules, given: Given) -> Result<(), UsageError> {
    check(
        tunnel,
        given,
        "tunnel type",
        [TunPort, TunNoCsum, TunCsum, TunRemCsum].into_iter(),
    )
}

fn check(rules: &Rules, given: Given, what: &str, options: impl Iterator<Item = OptionKind>) -> Result<(), UsageError> {
    let (mut exclusive, of) = (None, rules.name);
    for option in options {
        let name = option.name();
        if !given.has(option) {
            if rules.must.contains(&option) {
                let message = format!("You need to supply the '{name}' option for the '{of}' {what}");
                return Err(UsageError::usage(message));
            }
        } else if rules.one_of.contains(&option) {
            if let Some(first) = exclusive.replace(name) {
                let message = format!("The option '{name}' conflicts with the '{first}' option in the '{of}' {what}");
                return Err(UsageError::usage(message));
            }
        } else if !rules.must.contains(&option) && !rules.may.contains(&option) {
            return Err(UsageError::usage(format!(
                "Illegal '{name}' option with the '{of}' {what}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_stands_at_its_own_place() {
        for (place, (option, _)) in OPTIONS.iter().enumerate() {
            assert_eq!(*option as usize, place);
        }
    }

    #[test]
    fn the_first_fault_is_named() {
        let mut given = Given::default();
        given.add(Weight).unwrap();
        given.add(Numeric).unwrap();
        let message = |rules| check_command(rules, given).unwrap_err().message;
        assert_eq!(message(&CLEAR), "Illegal 'numeric' option with the 'flush' command");
        assert_eq!(
            message(&ADD_SERVER),
            "Illegal 'numeric' option with the 'add-server' command"
        );
        assert_eq!(message(&LIST), "Illegal 'weight' option with the 'list' command");
        assert_eq!(
            given.add(Weight).unwrap_err().message,
            "multiple 'weight' options specified"
        );
    }
}
