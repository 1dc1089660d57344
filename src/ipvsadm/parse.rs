//! Arguments to [`Invocation`]: pure, names are looked up through [`Names`].
//!
//! Values are checked as they are read and combinations afterwards, in ipvsadm's order, because only the first fault
//! is reported.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::{address_port, inet_aton, leading_number, number};
use super::invocation::{Columns, Format, Invocation, Listed, SyncDaemon, UsageError};
use super::legal::{self, Given, OptionKind};
use super::names::Names;
use super::options::{KNOWN, Opt};
use super::popt::{Found, Reader};
use super::scheduler_flags;
use crate::control::protocol::{Command, Timeouts};
use crate::packet::Family;
use crate::service::{
    Destination, DestinationKey, Method, Persistence, Service, ServiceKey, TransportProtocol, Tunnel, TunnelChecksum,
    TunnelKind,
};

/// Reads the arguments that follow the program's name; there must be at least one.
pub fn parse(program: &str, arguments: &[String], names: &dyn Names) -> Result<Invocation, UsageError> {
    let mut reader = Reader::new(KNOWN, arguments);
    let command = match reader.next() {
        Some(Ok(command)) if command.meaning.is_command() => command,
        _ => return Err(UsageError::try_help(program)),
    };
    let mut collected = Collected::default();
    match command.meaning {
        Opt::Help => return Ok(Invocation::Help),
        Opt::Version => return Ok(Invocation::Version),
        Opt::StartDaemon => collected.sync.backup = role(&command, "illegal start-daemon parameter specified")?,
        Opt::StopDaemon => collected.sync.backup = role(&command, "illegal start_daemon specified")?,
        _ => {}
    }
    while let Some(found) = reader.next() {
        let found = found.map_err(|error| UsageError {
            message: format!("{}: {}", error.word, error.reason),
            exit_code: 255,
            ends_restore: false,
        })?;
        if found.meaning.is_command() {
            return Err(UsageError::usage(format!("invalid option `{}'", reader.word())));
        }
        collected.take(found, names)?;
    }
    let mut rest = reader.into_rest().into_iter();
    let timeouts = match command.meaning {
        Opt::Set => Some(timeouts(&mut rest)?),
        _ => None,
    };
    if let Some(word) = rest.next() {
        return Err(UsageError::usage(format!("unexpected argument {word}")));
    }
    if let Some(flags) = collected.flag_words.take().filter(|flags| !flags.is_empty()) {
        collected.flags = scheduler_flags::parse(collected.scheduler_or_default(), &flags)?;
    }
    collected.finish(command.meaning, timeouts)
}

fn role(command: &Found<Opt>, message: &str) -> Result<bool, UsageError> {
    match command.value.as_deref() {
        Some("master") => Ok(false),
        Some("backup") => Ok(true),
        _ => Err(UsageError::usage(message)),
    }
}

fn timeouts(rest: &mut impl Iterator<Item = String>) -> Result<Timeouts, UsageError> {
    let (Some(tcp), Some(tcp_fin), Some(udp)) = (rest.next(), rest.next(), rest.next()) else {
        return Err(UsageError::usage("--set option requires 3 timeout values"));
    };
    Ok(Timeouts {
        tcp: timeout(&tcp, 0)?,
        tcp_fin: timeout(&tcp_fin, 0)?,
        udp: timeout(&udp, 0)?,
    })
}

fn timeout(text: &str, min: i64) -> Result<u32, UsageError> {
    let value = number(text, min, i64::from(Persistence::TIMEOUT_MAX_S));
    let value = value.ok_or_else(|| UsageError::usage(format!("invalid timeout value `{text}' specified")))?;
    Ok(value as u32)
}

/// What the options said so far.
struct Collected {
    given: Given,
    protocol: Option<TransportProtocol>,
    address: Option<IpAddr>,
    port: u16,
    mark: u32,
    family: Family,
    scheduler: String,
    flag_words: Option<String>,
    flags: Vec<String>,
    persistence_s: Option<u32>,
    mask: u32,
    engine: Option<String>,
    server: DestinationKey,
    method: Method,
    weight: u32,
    upper_threshold: u32,
    lower_threshold: u32,
    tunnel: Tunnel,
    sync: SyncDaemon,
}

impl Default for Collected {
    fn default() -> Self {
        Collected {
            given: Given::default(),
            protocol: None,
            address: None,
            port: 0,
            mark: 0,
            family: Family::V4,
            scheduler: String::new(),
            flag_words: None,
            flags: Vec::new(),
            persistence_s: None,
            mask: Persistence::mask_full(Family::V4),
            engine: None,
            server: DestinationKey {
                address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                port: 0,
            },
            method: Method::Route,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: Tunnel::default(),
            sync: SyncDaemon {
                backup: false,
                interface: None,
                sync_id: None,
                group: None,
                port: None,
                ttl: None,
                len_max: None,
            },
        }
    }
}

impl Collected {
    /// Takes one option in.
    fn take(&mut self, found: Found<Opt>, names: &dyn Names) -> Result<(), UsageError> {
        if let Some(kind) = found.meaning.kind() {
            self.given.add(kind)?;
        }
        let value = found.value.as_deref().unwrap_or_default();
        match found.meaning {
            Opt::Tcp => self.service(TransportProtocol::Tcp, value, names)?,
            Opt::Udp => self.service(TransportProtocol::Udp, value, names)?,
            Opt::Sctp => self.service(TransportProtocol::Sctp, value, names)?,
            Opt::FwMark => {
                let mark = number(value, 1, i64::from(u32::MAX));
                let message = || UsageError::usage(format!("invalid fwmark value `{value}' specified"));
                self.mark = mark.ok_or_else(message)? as u32;
                // ipvsadm marks such a service as TCP, which only matters for names of ports behind -r.
                (self.protocol, self.family) = (Some(TransportProtocol::Tcp), Family::V4);
            }
            Opt::Ipv6 if self.mark == 0 => return Err(UsageError::usage("-6 used before -f\n")),
            Opt::Ipv6 => (self.family, self.mask) = (Family::V6, Persistence::mask_full(Family::V6)),
            Opt::Scheduler => self.scheduler = value.to_owned(),
            Opt::SchedulerFlags => self.flag_words = Some(value.to_owned()),
            Opt::Persistent => {
                self.persistence_s = Some(match &found.value {
                    None => Persistence::TIMEOUT_DEFAULT_S,
                    Some(value) => timeout(value, 1)?,
                });
            }
            Opt::Netmask => self.netmask(value, names)?,
            Opt::PersistenceEngine => self.engine = Some(value.to_owned()).filter(|name| !name.is_empty()),
            Opt::RealServer => self.server(value, names)?,
            Opt::Masquerading => self.method = Method::Masq,
            Opt::Ipip => self.method = Method::Tunnel,
            Opt::Gatewaying => self.method = Method::Route,
            Opt::Weight => self.weight = within(value, 0, i32::MAX.into(), "illegal weight specified")?,
            Opt::UpperThreshold => {
                self.upper_threshold = within(value, 0, i32::MAX.into(), "illegal u_threshold specified")?;
            }
            Opt::LowerThreshold => {
                self.lower_threshold = within(value, 0, i32::MAX.into(), "illegal l_threshold specified")?;
            }
            Opt::TunType => self.tunnel.kind = tunnel_kind(value)?,
            Opt::TunPort => self.tunnel.port = within(value, 1, 65_535, "illegal tunnel port specified")? as u16,
            Opt::TunNoCsum => self.tunnel.checksum = TunnelChecksum::NoCsum,
            Opt::TunCsum => self.tunnel.checksum = TunnelChecksum::Csum,
            Opt::TunRemCsum => self.tunnel.checksum = TunnelChecksum::RemCsum,
            Opt::McastInterface => self.sync.interface = Some(value.to_owned()),
            Opt::SyncId => self.sync.sync_id = Some(within(value, 0, 255, "illegal syncid specified")? as u8),
            Opt::McastGroup => self.sync.group = Some(mcast_group(value)?),
            Opt::McastPort => self.sync.port = Some(within(value, 1, 65_535, "illegal mcast-port specified")? as u16),
            Opt::McastTtl => self.sync.ttl = Some(within(value, 1, 255, "illegal mcast-ttl specified")? as u8),
            Opt::SyncMaxLen => {
                // The largest UDP payload of IPv4 (RFC 768, RFC 791).
                self.sync.len_max = Some(within(value, 1, 65_535 - 20 - 8, "illegal sync-maxlen specified")? as u16);
            }
            // Options without a value need no more than to be given; commands never come here.
            _ => {}
        }
        Ok(())
    }

    fn service(&mut self, protocol: TransportProtocol, text: &str, names: &dyn Names) -> Result<(), UsageError> {
        let illegal = || UsageError::usage("illegal virtual server address[:port] specified");
        let found = address_port(text, Some(protocol), names).ok_or_else(illegal)?;
        self.protocol = Some(protocol);
        self.address = Some(found.address);
        self.port = found.port.unwrap_or(0);
        self.family = Family::of(found.address);
        if self.family == Family::V6 {
            self.mask = Persistence::mask_full(Family::V6);
        }
        Ok(())
    }

    fn server(&mut self, text: &str, names: &dyn Names) -> Result<(), UsageError> {
        let illegal = || UsageError::usage("illegal real server address[:port] specified");
        let found = address_port(text, self.protocol, names).ok_or_else(illegal)?;
        self.server = DestinationKey {
            address: found.address,
            port: found.port.unwrap_or(self.port),
        };
        Ok(())
    }

    fn netmask(&mut self, text: &str, names: &dyn Names) -> Result<(), UsageError> {
        if self.family == Family::V6 {
            let bits = leading_number(text);
            if !(1..=128).contains(&bits) {
                return Err(UsageError::usage("illegal ipv6 netmask specified"));
            }
            self.mask = bits as u32;
            return Ok(());
        }
        let mask = inet_aton(text).or_else(|| names.host_to_address(text));
        let illegal = || UsageError::usage("illegal virtual server persistent mask specified");
        self.mask = mask.ok_or_else(illegal)?.to_bits();
        Ok(())
    }

    fn scheduler_or_default(&self) -> &str {
        if self.scheduler.is_empty() {
            super::SCHEDULER_DEFAULT
        } else {
            &self.scheduler
        }
    }

    /// Checks the combination and makes the invocation.
    fn finish(mut self, command: Opt, timeouts: Option<Timeouts>) -> Result<Invocation, UsageError> {
        legal::check_command(command.rules(), self.given)?;
        Ok(match command {
            Opt::AddService => Invocation::Change(Command::AddService(self.into_service()?)),
            Opt::EditService => Invocation::Change(Command::EditService(self.into_service()?)),
            Opt::DeleteService => Invocation::Change(Command::DeleteService { service: self.key() }),
            Opt::Clear => Invocation::Change(Command::Clear),
            Opt::Zero => Invocation::Change(Command::Zero {
                // The address of nobody, port 0: libipvs names no service then, which means all.
                service: Some(self.key())
                    .filter(|_| self.given.has(OptionKind::ServiceAddress))
                    .filter(|key| !is_nowhere(key)),
            }),
            Opt::AddServer => {
                let destination = self.destination()?;
                let service = self.key();
                Invocation::Change(Command::AddDestination { service, destination })
            }
            Opt::EditServer => {
                let destination = self.destination()?;
                let service = self.key();
                Invocation::Change(Command::EditDestination { service, destination })
            }
            Opt::DeleteServer => Invocation::Change(Command::DeleteDestination {
                service: self.key(),
                destination: self.server,
            }),
            Opt::Set => Invocation::Change(Command::SetTimeouts(timeouts.unwrap_or_default())),
            Opt::StartDaemon => Invocation::StartDaemon(self.sync),
            Opt::StopDaemon => Invocation::StopDaemon(self.sync),
            Opt::Restore => Invocation::Restore,
            Opt::Save => Invocation::Save {
                numeric: self.given.has(OptionKind::Numeric),
            },
            _ => self.list()?,
        })
    }

    /// The service's name. A mark goes before an address, as in the kernel.
    fn key(&self) -> ServiceKey {
        if self.mark != 0 {
            return ServiceKey::FwMark {
                mark: self.mark,
                ipv6: self.family == Family::V6,
            };
        }
        ServiceKey::Address {
            protocol: self.protocol.unwrap_or(TransportProtocol::Tcp),
            address: self.address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
            port: self.port,
        }
    }

    fn into_service(self) -> Result<Service, UsageError> {
        if self.mark == 0 && self.port == 0 && self.persistence_s.is_none() {
            return Err(UsageError::usage("Zero port specified for non-persistent service"));
        }
        let one_packet = self.given.has(OptionKind::OnePacket);
        if one_packet && self.mark == 0 && self.protocol != Some(TransportProtocol::Udp) {
            return Err(UsageError::usage(
                "One-Packet Scheduling is only for UDP virtual services",
            ));
        }
        Ok(Service {
            key: self.key(),
            scheduler: self.scheduler_or_default().to_owned(),
            scheduler_flags: self.flags,
            persistence: self.persistence_s.map(|timeout_s| Persistence {
                timeout_s,
                mask: self.mask,
            }),
            one_packet,
            persistence_engine: self.engine,
        })
    }

    fn destination(&mut self) -> Result<Destination, UsageError> {
        if self.mark == 0 && self.method != Method::Masq {
            self.server.port = self.port;
        }
        if Family::of(self.server.address) != self.family && self.method != Method::Tunnel {
            return Err(UsageError::usage(
                "Different address family is allowed only for tunneling servers",
            ));
        }
        use OptionKind::{TunCsum, TunNoCsum, TunPort, TunRemCsum, TunType};
        let tunnel_options = self.given.has_any(&[TunType, TunPort, TunNoCsum, TunCsum, TunRemCsum]);
        if tunnel_options && self.method != Method::Tunnel {
            return Err(UsageError::usage("Tunnel options conflict with forward method"));
        }
        let rules = match self.tunnel.kind {
            TunnelKind::Ipip => legal::TUN_IPIP,
            TunnelKind::Gue => legal::TUN_GUE,
            TunnelKind::Gre => legal::TUN_GRE,
        };
        legal::check_tunnel(&rules, self.given)?;
        Ok(Destination {
            key: self.server,
            method: self.method,
            weight: self.weight,
            upper_threshold: self.upper_threshold,
            lower_threshold: self.lower_threshold,
            tunnel: self.tunnel,
        })
    }

    fn list(self) -> Result<Invocation, UsageError> {
        use OptionKind::*;
        let given = self.given;
        let no_table = given.has_any(&[Connection, Timeout, Daemon]) && given.has_any(&[Stats, Rate, Thresholds]);
        if no_table || given.has_any(&[Timeout, Daemon]) && given.has(PersistentConn) {
            return Err(UsageError::usage("options conflicts in the list command"));
        }
        let what = match () {
            () if given.has(Connection) => Listed::Connections,
            () if given.has(ServiceAddress) => Listed::Service(self.key()),
            () if given.has(Timeout) => Listed::Timeouts,
            () if given.has(Daemon) => Listed::Daemon,
            () => Listed::All,
        };
        let columns = match () {
            () if given.has(Stats) => Columns::Statistics,
            () if given.has(Rate) => Columns::Rates,
            () if given.has(Thresholds) => Columns::Thresholds,
            () if given.has(PersistentConn) => Columns::Persistent,
            () if given.has(TunInfo) => Columns::Tunnels,
            () => Columns::Plain,
        };
        let format = Format {
            numeric: given.has(Numeric),
            exact: given.has(Exact),
            unsorted: given.has(NoSort),
            columns,
            persistent_conn: given.has(PersistentConn),
        };
        Ok(Invocation::List { what, format })
    }
}

fn within(text: &str, min: i64, max: i64, message: &str) -> Result<u32, UsageError> {
    let value = number(text, min, max).ok_or_else(|| UsageError::usage(message))?;
    Ok(value as u32)
}

fn tunnel_kind(text: &str) -> Result<TunnelKind, UsageError> {
    match text {
        "ipip" => Ok(TunnelKind::Ipip),
        "gue" => Ok(TunnelKind::Gue),
        "gre" => Ok(TunnelKind::Gre),
        _ => Err(UsageError::usage("illegal tunnel type specified")),
    }
}

fn mcast_group(text: &str) -> Result<IpAddr, UsageError> {
    let family = if text.contains(':') { "IPv6" } else { "IPv4" };
    let group = match family {
        "IPv6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    };
    let group = group.filter(IpAddr::is_multicast);
    group.ok_or_else(|| UsageError::usage(format!("invalid {family} mcast-group `{text}'")))
}

/// The unspecified address, port 0.
fn is_nowhere(key: &ServiceKey) -> bool {
    matches!(key, ServiceKey::Address { address, port: 0, .. } if address.is_unspecified())
}
