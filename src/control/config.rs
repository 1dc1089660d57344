//! The configuration file: TOML, or rules as `ipvsadm -S` writes them, into what the daemon shall be.
//!
//! A file is read as a whole before anything changes, and every refusal names file, line, key and reason. TOML says
//! everything (what it does not name has its default); a rules file says services and destinations only.
//! All keys, with unit, range and default: configs/reference.toml.

mod marks;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use serde::Deserialize;
use toml::Spanned;

use super::difference::difference;
use super::protocol::Command;
use super::state::{State, WEIGHT_MAX};
use crate::options::DriverChoice;
use crate::packet::Family;
use crate::service::{
    Destination, DestinationKey, Method, Persistence, Service, ServiceKey, Timeouts, TransportProtocol, Tunnel,
    TunnelChecksum, TunnelKind,
};

/// A configuration file is at most this long.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Interfaces at most.
pub const INTERFACES_MAX: usize = 16;

/// Reads the rules dialect: each command with the line it stands on (the first is 1).
pub type RulesParser = fn(&str) -> Result<Vec<(usize, Command)>, RulesError>;

/// A rules file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesError {
    /// The first is 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// Why a configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The first is 1; `None` when the file as a whole is meant.
    pub line: Option<usize>,
    /// The key in the file.
    pub key: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        match &self.key {
            Some(key) => write!(f, ": {key}: {}", self.reason),
            None => write!(f, ": {}", self.reason),
        }
    }
}

/// A configuration file that was understood and can be applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What the daemon takes at start.
    pub daemon: DaemonConfig,
    /// The services as they shall be.
    pub desired: State,
    /// Timeouts and settings shall be as in `desired` too (TOML); a rules file leaves them alone.
    pub complete: bool,
    /// There is nothing in the file: it changes nothing, as that is more likely an accident than the wish to lose all
    /// services.
    pub empty: bool,
    /// Tells one content from another: see [`fingerprint`].
    pub fingerprint: u64,
}

impl Config {
    /// The commands that make `running` what the configuration says; `None` when it says nothing.
    pub fn changes(&self, running: &State) -> Option<Vec<Command>> {
        if self.empty {
            log::warn!(
                "configuration: there is nothing in the file, so nothing changes; `service = []` removes all services"
            );
            return None;
        }
        Some(difference(running, &self.desired, self.complete))
    }
}

/// What only a start can change. `None` = not given here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonConfig {
    /// `--interface`.
    pub interfaces: Vec<String>,
    /// `--driver`.
    pub driver: Option<DriverChoice>,
    /// `--workers`.
    pub workers: Option<u16>,
    /// `--connections`.
    pub connections: Option<u32>,
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
    /// `--run-dir`.
    pub run_dir: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
}

/// Reads a configuration file of either kind.
pub fn load(path: &Path, rules: RulesParser) -> Result<Config, ConfigError> {
    let whole = |reason: String| ConfigError {
        file: path.to_owned(),
        line: None,
        key: None,
        reason,
    };
    let size = std::fs::metadata(path).map_err(|error| whole(error.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(whole(format!(
            "{size} bytes are more than the {FILE_BYTES_MAX} that a configuration may have"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| whole(error.to_string()))?;
    parse(path, &text, rules)
}

/// Reads the text of a configuration file of either kind; `path` is for messages.
pub fn parse(path: &Path, text: &str, rules: RulesParser) -> Result<Config, ConfigError> {
    let result = if is_rules(text) {
        parse_rules(text, rules)
    } else {
        parse_toml(text)
    };
    result.map_err(|fault| ConfigError {
        file: path.to_owned(),
        line: fault.line,
        key: fault.key,
        reason: fault.reason,
    })
}

/// Tells one content from another (FNV-1a); not against malice.
pub fn fingerprint(text: &str) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    text.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Rules begin with an option; no line of TOML can.
fn is_rules(text: &str) -> bool {
    first_line(text).is_some_and(|line| line.starts_with('-'))
}

/// The first line that says something in either language.
fn first_line(text: &str) -> Option<&str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| !line.is_empty() && !line.starts_with('#'))
}

/// An error without its file.
struct Fault {
    line: Option<usize>,
    key: Option<String>,
    reason: String,
}

fn parse_rules(text: &str, rules: RulesParser) -> Result<Config, Fault> {
    let fault = |line, reason| Fault {
        line: Some(line),
        key: None,
        reason,
    };
    let commands = rules(text).map_err(|error| fault(error.line, error.reason))?;
    let (lines, commands): (Vec<usize>, Vec<Command>) = commands.into_iter().unzip();
    let applied = State::default().apply_all(&commands, true);
    let refused = applied
        .results
        .iter()
        .zip(&lines)
        .find_map(|(result, line)| Some((result.as_ref()?, line)));
    match refused {
        Some((error, line)) => Err(fault(*line, error.to_string())),
        None => Ok(Config {
            daemon: DaemonConfig::default(),
            desired: applied.state,
            complete: false,
            empty: false,
            fingerprint: fingerprint(text),
        }),
    }
}

fn parse_toml(text: &str) -> Result<Config, Fault> {
    let file: FileTable = toml::from_str(text).map_err(|error| syntax_fault(text, &error))?;
    let source = Source { text };
    let daemon = source.daemon(&file)?;
    let mut desired = source.apply(
        State::default(),
        Command::SetMssClamp { on: file.mss_clamp },
        0,
        "mss_clamp",
    )?;
    if let Some(timeouts) = &file.timeouts {
        let timeouts = source.timeouts(timeouts)?;
        desired = source.apply(desired, Command::SetTimeouts(timeouts), 0, "timeouts")?;
    }
    for (name, value) in &file.sysctl {
        desired = source.sysctl(desired, name, value)?;
    }
    let mut commands = Vec::new();
    let mut places = Vec::new();
    for mark in &file.mark {
        let (rule, place) = source.mark(mark)?;
        commands.push(Command::AddMark { rule, at: None });
        places.push(place);
    }
    for service in &file.service {
        source.service(service, &mut commands, &mut places)?;
    }
    let applied = desired.apply_all(&commands, true);
    let refused = applied
        .results
        .iter()
        .zip(&places)
        .find_map(|(result, place)| Some((result.as_ref()?, place)));
    if let Some((error, place)) = refused {
        return Err(source.fault(place.offset, &place.key, error.to_string()));
    }
    Ok(Config {
        daemon,
        desired: applied.state,
        complete: true,
        empty: first_line(text).is_none(),
        fingerprint: fingerprint(text),
    })
}

fn syntax_fault(text: &str, error: &toml::de::Error) -> Fault {
    let offset = error.span().map(|span| span.start);
    let line = offset.map(|offset| line_of(text, offset));
    let key = line.and_then(|line| text.lines().nth(line - 1)?.split_once('='));
    Fault {
        line,
        key: key.map(|(key, _)| key.trim().to_owned()).filter(|key| !key.is_empty()),
        reason: error.message().trim().replace('\n', " "),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTable {
    interfaces: Option<Spanned<Vec<String>>>,
    driver: Option<Spanned<String>>,
    workers: Option<Spanned<i64>>,
    connections: Option<Spanned<i64>>,
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    #[serde(default)]
    mss_clamp: bool,
    timeouts: Option<TimeoutsTable>,
    #[serde(default)]
    sysctl: BTreeMap<String, Spanned<toml::Value>>,
    #[serde(default)]
    mark: Vec<Spanned<marks::MarkTable>>,
    #[serde(default)]
    service: Vec<Spanned<ServiceTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimeoutsTable {
    tcp: Option<Spanned<i64>>,
    tcp_fin: Option<Spanned<i64>>,
    udp: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceTable {
    tcp: Option<Spanned<String>>,
    udp: Option<Spanned<String>>,
    sctp: Option<Spanned<String>>,
    fwmark: Option<Spanned<i64>>,
    #[serde(default)]
    ipv6: bool,
    scheduler: Option<String>,
    #[serde(default)]
    scheduler_flags: Vec<String>,
    persistent: Option<Spanned<i64>>,
    persistent_mask: Option<Spanned<String>>,
    persistence_engine: Option<String>,
    #[serde(default)]
    one_packet: bool,
    #[serde(default)]
    destination: Vec<Spanned<DestinationTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DestinationTable {
    address: Spanned<String>,
    method: Option<Method>,
    weight: Option<Spanned<i64>>,
    upper_threshold: Option<Spanned<i64>>,
    lower_threshold: Option<Spanned<i64>>,
    tunnel: Option<TunnelKind>,
    tunnel_port: Option<Spanned<i64>>,
    tunnel_checksum: Option<TunnelChecksum>,
}

/// Where a command came from.
struct Place {
    offset: usize,
    key: String,
}

/// The text, for line numbers.
struct Source<'a> {
    text: &'a str,
}

impl Source<'_> {
    fn fault(&self, offset: usize, key: &str, reason: impl Into<String>) -> Fault {
        Fault {
            line: Some(line_of(self.text, offset)),
            key: Some(key.to_owned()),
            reason: reason.into(),
        }
    }

    fn number<T: TryFrom<i64>>(
        &self,
        key: &str,
        value: &Option<Spanned<i64>>,
        range: RangeInclusive<i64>,
    ) -> Result<Option<T>, Fault> {
        let Some(value) = value else { return Ok(None) };
        let number = *value.get_ref();
        let within = range.contains(&number).then(|| T::try_from(number).ok()).flatten();
        let (min, max) = range.into_inner();
        let refused = || self.fault(value.span().start, key, format!("{number} is not {min} to {max}"));
        within.map(Some).ok_or_else(refused)
    }

    fn apply(&self, state: State, command: Command, offset: usize, key: &str) -> Result<State, Fault> {
        let applied = state.apply(&command);
        let (state, _) = applied.map_err(|error| self.fault(offset, key, error.to_string()))?;
        Ok(state)
    }

    fn daemon(&self, file: &FileTable) -> Result<DaemonConfig, Fault> {
        let mut interfaces = Vec::new();
        if let Some(names) = &file.interfaces {
            let refused = |reason: String| self.fault(names.span().start, "interfaces", reason);
            for name in names.get_ref() {
                if name.is_empty() || name.len() > 15 {
                    return Err(refused(format!("{name:?} is no interface name (1 to 15 bytes)")));
                }
                if interfaces.contains(name) {
                    return Err(refused(format!("{name:?} stands there twice")));
                }
                interfaces.push(name.clone());
            }
            if interfaces.is_empty() || interfaces.len() > INTERFACES_MAX {
                return Err(refused(format!(
                    "{} interfaces are not 1 to {INTERFACES_MAX}",
                    interfaces.len()
                )));
            }
        }
        Ok(DaemonConfig {
            interfaces,
            driver: file.driver.as_ref().map(|driver| self.driver(driver)).transpose()?,
            workers: self.number("workers", &file.workers, 1..=256)?,
            connections: self.number("connections", &file.connections, 1024..=67_108_864)?,
            state_dir: file.state_dir.clone(),
            run_dir: file.run_dir.clone(),
            socket: file.socket.clone(),
        })
    }

    fn driver(&self, driver: &Spanned<String>) -> Result<DriverChoice, Fault> {
        let name = driver.get_ref();
        let refused = |_| {
            let reason = format!("{name:?} is none of auto, xdp, afxdp, raw");
            self.fault(driver.span().start, "driver", reason)
        };
        DriverChoice::from_str(name, false).map_err(refused)
    }

    fn timeouts(&self, table: &TimeoutsTable) -> Result<Timeouts, Fault> {
        let range = 1..=i64::from(Timeouts::MAX_S);
        let default = Timeouts::default();
        let value = |key: &str, value: &Option<Spanned<i64>>, default: u32| {
            Ok(self
                .number(&format!("timeouts.{key}"), value, range.clone())?
                .unwrap_or(default))
        };
        Ok(Timeouts {
            tcp: value("tcp", &table.tcp, default.tcp)?,
            tcp_fin: value("tcp_fin", &table.tcp_fin, default.tcp_fin)?,
            udp: value("udp", &table.udp, default.udp)?,
        })
    }

    fn sysctl(&self, state: State, name: &str, value: &Spanned<toml::Value>) -> Result<State, Fault> {
        let key = format!("sysctl.{name}");
        let text = match value.get_ref() {
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::String(text) => text.clone(),
            other => {
                let reason = format!("a {} is neither a number nor a string", other.type_str());
                return Err(self.fault(value.span().start, &key, reason));
            }
        };
        let command = Command::SetSysctl {
            name: name.to_owned(),
            value: text,
        };
        self.apply(state, command, value.span().start, &key)
    }

    fn service(
        &self,
        spanned: &Spanned<ServiceTable>,
        commands: &mut Vec<Command>,
        places: &mut Vec<Place>,
    ) -> Result<(), Fault> {
        let table = spanned.get_ref();
        let (key, key_offset, name) = self.service_key(spanned)?;
        commands.push(Command::AddService(Service {
            key,
            scheduler: table.scheduler.clone().unwrap_or_else(|| "wlc".to_owned()),
            scheduler_flags: table.scheduler_flags.clone(),
            persistence: self.persistence(table, key.family())?,
            one_packet: table.one_packet,
            persistence_engine: table.persistence_engine.clone(),
        }));
        places.push(Place {
            offset: key_offset,
            key: format!("service {name}"),
        });
        for spanned in &table.destination {
            let destination = self.destination(spanned.get_ref(), &key)?;
            commands.push(Command::AddDestination {
                service: key,
                destination,
            });
            let address = &spanned.get_ref().address;
            places.push(Place {
                offset: address.span().start,
                key: format!("service {name}, destination {}", address.get_ref()),
            });
        }
        Ok(())
    }

    /// The key, where it stands, and its name in messages.
    fn service_key(&self, spanned: &Spanned<ServiceTable>) -> Result<(ServiceKey, usize, String), Fault> {
        let table = spanned.get_ref();
        let addresses = [
            (TransportProtocol::Tcp, "tcp", &table.tcp),
            (TransportProtocol::Udp, "udp", &table.udp),
            (TransportProtocol::Sctp, "sctp", &table.sctp),
        ];
        let given: Vec<_> = addresses
            .iter()
            .filter_map(|(p, name, a)| Some((*p, *name, a.as_ref()?)))
            .collect();
        match (given.as_slice(), &table.fwmark) {
            ([(protocol, name, address)], None) => {
                let offset = address.span().start;
                let text = address.get_ref();
                let reason = || format!("{text:?} is no address with port, such as 192.0.2.1:80 or [2001:db8::1]:80");
                let socket = SocketAddr::from_str(text).map_err(|_| self.fault(offset, name, reason()))?;
                let key = ServiceKey::Address {
                    protocol: *protocol,
                    address: socket.ip(),
                    port: socket.port(),
                };
                Ok((key, offset, format!("{name} {text}")))
            }
            ([], Some(mark)) => {
                let number: Option<u32> = self.number("fwmark", &table.fwmark, 1..=i64::from(u32::MAX))?;
                let key = ServiceKey::FwMark {
                    mark: number.unwrap_or_default(),
                    ipv6: table.ipv6,
                };
                Ok((key, mark.span().start, format!("fwmark {}", mark.get_ref())))
            }
            _ => {
                let reason = "exactly one of tcp, udp, sctp and fwmark names a service";
                Err(self.fault(spanned.span().start, "service", reason))
            }
        }
    }

    fn persistence(&self, table: &ServiceTable, family: Family) -> Result<Option<Persistence>, Fault> {
        let range = 1..=i64::from(Persistence::TIMEOUT_MAX_S);
        let timeout_s = self.number("persistent", &table.persistent, range)?;
        let mask = match &table.persistent_mask {
            None => Persistence::mask_full(family),
            Some(mask) => {
                let parsed = parse_mask(mask.get_ref(), family);
                parsed.map_err(|reason| self.fault(mask.span().start, "persistent_mask", reason))?
            }
        };
        Ok(timeout_s.map(|timeout_s| Persistence { timeout_s, mask }))
    }

    fn destination(&self, table: &DestinationTable, service: &ServiceKey) -> Result<Destination, Fault> {
        let text = table.address.get_ref();
        let address = IpAddr::from_str(text).map(|address| (address, service.port()));
        let address = address.or_else(|_| SocketAddr::from_str(text).map(|socket| (socket.ip(), socket.port())));
        let reason = || format!("{text:?} is no address, such as 192.0.2.1, 192.0.2.1:80 or [2001:db8::1]:80");
        let (address, port) = address.map_err(|_| self.fault(table.address.span().start, "address", reason()))?;
        let weights = 0..=i64::from(WEIGHT_MAX);
        let thresholds = 0..=i64::from(u32::MAX);
        let upper = self.number("upper_threshold", &table.upper_threshold, thresholds.clone())?;
        let lower = self.number("lower_threshold", &table.lower_threshold, thresholds)?;
        Ok(Destination {
            key: DestinationKey { address, port },
            method: table.method.unwrap_or(Method::Route),
            weight: self.number("weight", &table.weight, weights)?.unwrap_or(1),
            upper_threshold: upper.unwrap_or(0),
            lower_threshold: lower.unwrap_or(0),
            tunnel: Tunnel {
                kind: table.tunnel.unwrap_or_default(),
                port: self.number("tunnel_port", &table.tunnel_port, 1..=65535)?.unwrap_or(0),
                checksum: table.tunnel_checksum.unwrap_or_default(),
            },
        })
    }
}

/// `255.255.255.0` or `/24` for IPv4, `/64` for IPv6.
fn parse_mask(text: &str, family: Family) -> Result<u32, String> {
    let prefix = text.strip_prefix('/').and_then(|digits| digits.parse::<u32>().ok());
    match (family, prefix) {
        (Family::V4, Some(0)) => Ok(0),
        (Family::V4, Some(length @ 1..=32)) => Ok(u32::MAX << (32 - length)),
        (Family::V6, Some(length @ 1..=128)) => Ok(length),
        (Family::V4, None) => {
            let mask = std::net::Ipv4Addr::from_str(text);
            let refused = |_| format!("{text:?} is no mask, such as 255.255.255.0 or /24");
            mask.map(|mask| mask.to_bits()).map_err(refused)
        }
        (Family::V4, _) => Err(format!("{text:?} is not /0 to /32")),
        (Family::V6, _) => Err(format!("{text:?} is no prefix length, /1 to /128")),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
