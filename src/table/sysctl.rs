//! The settings that the kernel's IPVS has under `net.ipv4.vs.`, by their own names, with its defaults (Linux 6.1).
//!
//! Workers read the fields; names and text are for the control thread. Values are the kernel's integers, also
//! for what is a switch: any number but 0 is on.

/// Why a setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SysctlError {
    /// No such name.
    #[error("no setting named net.ipv4.vs.{0}")]
    Unknown(String),
    /// Not a number, or outside its range.
    #[error("net.ipv4.vs.{name}: {value:?} is not {wanted}")]
    BadValue {
        /// Which.
        name: &'static str,
        /// As given.
        value: String,
        /// What it may be.
        wanted: String,
    },
}

/// One setting, for listings and documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysctlInfo {
    /// Name below `net.ipv4.vs.`.
    pub name: &'static str,
    /// Default.
    pub default: i32,
    /// Smallest value.
    pub min: i32,
    /// Largest value.
    pub max: i32,
    /// What it does.
    pub explanation: &'static str,
}

macro_rules! sysctls {
    ($($(#[doc = $doc:literal])+ $name:ident = $default:literal, $min:expr, $max:expr;)+) => {
        /// All settings.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Sysctls {
            $($(#[doc = $doc])+ pub $name: i32,)+
            /// Sync: packets of a connection before it is first told, and how often after that.
            pub sync_threshold: [i32; 2],
        }

        impl Default for Sysctls {
            fn default() -> Self {
                Sysctls { $($name: $default,)+ sync_threshold: [3, 50] }
            }
        }

        impl Sysctls {
            /// Every setting that is one number, in the order of their names.
            pub const ALL: &'static [SysctlInfo] = &[$(SysctlInfo {
                name: stringify!($name),
                default: $default,
                min: $min,
                max: $max,
                explanation: concat!($($doc,)+),
            },)+];

            fn field(&self, name: &str) -> Option<i32> {
                match name { $(stringify!($name) => Some(self.$name),)+ _ => None }
            }

            fn field_mut(&mut self, name: &str) -> Option<&mut i32> {
                match name { $(stringify!($name) => Some(&mut self.$name),)+ _ => None }
            }
        }
    };
}

const ANY_MIN: i32 = i32::MIN;
const ANY_MAX: i32 = i32::MAX;

sysctls! {
    /// drop_packet 3: one in so many packets that would begin a connection is dropped.
    am_droprate = 10, ANY_MIN, ANY_MAX;
    /// Free memory in pages below which the automatic defences begin; also of the connection table, 64 slots a page.
    amemthresh = 1024, ANY_MIN, ANY_MAX;
    /// A backup director does not forward; kept, without effect: there is no backup without connection synchronisation.
    backup_only = 0, ANY_MIN, ANY_MAX;
    /// Forward to the address asked for when no destination is left (transparent caches); kept, without effect: frames to
    /// addresses that are not the director's own are not taken.
    cache_bypass = 0, ANY_MIN, ANY_MAX;
    /// What a SYN on a connection that is closing does: 0 nothing, else bits 1 and 2 choose a destination anew.
    conn_reuse_mode = 1, ANY_MIN, ANY_MAX;
    /// Netfilter connection tracking of IPVS connections; kept, without effect: there is no netfilter in the way.
    conntrack = 0, ANY_MIN, ANY_MAX;
    /// Half-open and idle connections end at random: 0 off, 1 automatic, 2 automatic and at work, 3 always.
    drop_entry = 0, 0, 3;
    /// Packets that would begin a connection are dropped: 0 off, 1 automatic, 2 automatic and at work, 3 always.
    drop_packet = 0, 0, 3;
    /// A connection whose destination was removed is forgotten at its next packet.
    expire_nodest_conn = 0, ANY_MIN, ANY_MAX;
    /// Persistence templates of destinations of weight 0 no longer win.
    expire_quiescent_template = 0, ANY_MIN, ANY_MAX;
    /// What came in a tunnel is not balanced; kept, without effect: it never is.
    ignore_tunneled = 0, ANY_MIN, ANY_MAX;
    /// A NAT destination's packet that belongs to no connection, dropped anyway, is answered by ICMP port unreachable.
    nat_icmp_send = 0, ANY_MIN, ANY_MAX;
    /// Packets too big for a tunnel are answered by ICMP instead of being fragmented.
    pmtu_disc = 1, ANY_MIN, ANY_MAX;
    /// Rates are estimated.
    run_estimation = 1, ANY_MIN, ANY_MAX;
    /// An ICMP error about no known connection begins one.
    schedule_icmp = 0, ANY_MIN, ANY_MAX;
    /// Stricter TCP states: 0 off, 1 automatic, 2 automatic and at work, 3 always.
    secure_tcp = 0, 0, 3;
    /// SCTP connections may begin with any chunk but ABORT, not only INIT.
    sloppy_sctp = 0, ANY_MIN, ANY_MAX;
    /// TCP connections may begin with any packet but RST.
    sloppy_tcp = 0, ANY_MIN, ANY_MAX;
    /// Replies are routed anew after translation; kept, without effect.
    snat_reroute = 1, ANY_MIN, ANY_MAX;
    /// Sync: persistence templates are told less often.
    sync_persist_mode = 0, ANY_MIN, ANY_MAX;
    /// Sync: number of threads and UDP ports; a power of two.
    sync_ports = 1, 1, 64;
    /// Sync: messages queued at most.
    sync_qlen_max = 15193, 0, ANY_MAX;
    /// Sync: seconds after which an unchanged connection is told again.
    sync_refresh_period = 0, 0, ANY_MAX;
    /// Sync: how often a message is repeated.
    sync_retries = 0, 0, 3;
    /// Sync: socket buffer in bytes; 0 = the system's.
    sync_sock_size = 0, 0, ANY_MAX;
    /// Sync: version of the protocol.
    sync_version = 1, 0, 1;
}

impl Sysctls {
    /// The value as `sysctl` prints it.
    pub fn get(&self, name: &str) -> Result<String, SysctlError> {
        if name == "sync_threshold" {
            return Ok(format!("{}\t{}", self.sync_threshold[0], self.sync_threshold[1]));
        }
        let value = self.field(name).ok_or_else(|| SysctlError::Unknown(name.to_owned()))?;
        Ok(value.to_string())
    }

    /// Sets a value as written by `sysctl -w`.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SysctlError> {
        if name == "sync_threshold" {
            self.sync_threshold = sync_threshold(value)?;
            return Ok(());
        }
        let Some(info) = Sysctls::ALL.iter().find(|info| info.name == name) else {
            return Err(SysctlError::Unknown(name.to_owned()));
        };
        let number = value.trim().parse::<i32>().ok();
        let number = number.filter(|n| (info.min..=info.max).contains(n));
        let number = number.filter(|n| name != "sync_ports" || n.count_ones() == 1);
        let Some(number) = number else {
            return Err(SysctlError::BadValue {
                name: info.name,
                value: value.to_owned(),
                wanted: wanted(info),
            });
        };
        if let Some(field) = self.field_mut(name) {
            *field = number;
        }
        Ok(())
    }

    /// All settings by name, with their values as printed: those that differ from the default.
    pub fn changed(&self) -> Vec<(&'static str, String)> {
        let default = Sysctls::default();
        let names = Sysctls::ALL.iter().map(|info| info.name).chain(["sync_threshold"]);
        names
            .filter_map(|name| {
                let value = self.get(name).ok()?;
                (default.get(name).ok()? != value).then_some((name, value))
            })
            .collect()
    }

    /// The names of all settings, sorted.
    pub fn names() -> Vec<&'static str> {
        let mut names: Vec<_> = Sysctls::ALL.iter().map(|info| info.name).collect();
        names.push("sync_threshold");
        names.sort_unstable();
        names
    }
}

fn wanted(info: &SysctlInfo) -> String {
    match (info.name, info.min, info.max) {
        ("sync_ports", min, max) => format!("a power of two from {min} to {max}"),
        (_, ANY_MIN, ANY_MAX) => "a number".to_owned(),
        (_, min, ANY_MAX) => format!("a number from {min} up"),
        (_, min, max) => format!("a number from {min} to {max}"),
    }
}

/// Two numbers; the first below the second, unless the second is 0.
fn sync_threshold(value: &str) -> Result<[i32; 2], SysctlError> {
    let numbers: Option<Vec<i32>> = value.split_whitespace().map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[first, period]) if first >= 0 && period >= 0 && (period == 0 || first < period) => Ok([first, period]),
        _ => Err(SysctlError::BadValue {
            name: "sync_threshold",
            value: value.to_owned(),
            wanted: "two numbers, the first below the second".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_defaults_are_the_kernels() {
        // `grep . /proc/sys/net/ipv4/vs/*` on Linux 6.1.
        let kernel = "am_droprate:10 amemthresh:1024 backup_only:0 cache_bypass:0 conn_reuse_mode:1 conntrack:0 \
            drop_entry:0 drop_packet:0 expire_nodest_conn:0 expire_quiescent_template:0 ignore_tunneled:0 \
            nat_icmp_send:0 pmtu_disc:1 run_estimation:1 schedule_icmp:0 secure_tcp:0 sloppy_sctp:0 sloppy_tcp:0 \
            snat_reroute:1 sync_persist_mode:0 sync_ports:1 sync_qlen_max:15193 sync_refresh_period:0 sync_retries:0 \
            sync_sock_size:0 sync_threshold:3\t50 sync_version:1";
        let defaults = Sysctls::default();
        let ours: Vec<_> = Sysctls::names()
            .iter()
            .map(|name| format!("{name}:{}", defaults.get(name).unwrap()))
            .collect();
        assert_eq!(ours, kernel.split(' ').filter(|s| !s.is_empty()).collect::<Vec<_>>());
    }

    #[test]
    fn sets_and_refuses() {
        let mut sysctls = Sysctls::default();
        sysctls.set("sloppy_tcp", "1").unwrap();
        assert_eq!(sysctls.sloppy_tcp, 1);
        sysctls.set("sync_threshold", "5 100").unwrap();
        assert_eq!(
            sysctls.changed(),
            [("sloppy_tcp", "1".to_owned()), ("sync_threshold", "5\t100".to_owned())]
        );
        assert!(matches!(sysctls.set("nonsense", "1"), Err(SysctlError::Unknown(_))));
        for (name, value) in [
            ("sloppy_tcp", "yes"),
            ("drop_entry", "4"),
            ("sync_ports", "3"),
            ("sync_threshold", "50 50"),
            ("sync_threshold", "1"),
        ] {
            let before = sysctls.clone();
            assert!(
                matches!(sysctls.set(name, value), Err(SysctlError::BadValue { .. })),
                "{name}"
            );
            assert_eq!(sysctls, before);
        }
    }
}
