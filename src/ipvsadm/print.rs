//! Replies to text, byte for byte as ipvsadm 1.31 prints it, blanks at line ends included.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use super::invocation::{Columns, Format};
use super::names::Names;
use super::scheduler_flags;
use crate::control::protocol::{ConnectionListing, DestinationListing, ServiceListing, Timeouts, TrafficStatistics};
use crate::packet::{Family, Protocol};
use crate::service::{
    Destination, Method, Persistence, SIP, Service, ServiceKey, TransportProtocol, Tunnel, TunnelChecksum, TunnelKind,
};

/// The first line of a full listing. IPVS's version and the size of its default hash table.
const BANNER: &str = "IP Virtual Server version 1.2.1 (size=4096)\n";

/// Characters of an IPv4 address or name with port in a listing.
const NAME_LEN_MAX: usize = 28;

/// Characters of any address or name with port: ipvsadm's buffer.
const BUFFER_LEN_MAX: usize = 59;

/// Prints to a `String`, which cannot fail.
macro_rules! put {
    ($out:expr, $($argument:tt)*) => {
        // Writing to a String never fails.
        let _ = write!($out, $($argument)*);
    };
}

/// The table (`-L`), with the version line when it is the whole of it.
pub fn table(services: &[ServiceListing], whole: bool, format: Format, names: &dyn Names) -> String {
    let naming = Naming::of_services(services, format.numeric, names);
    let mut out = String::new();
    if whole {
        out += BANNER;
    }
    out += &title(format.columns);
    for listing in services {
        let protocol = protocol_of(&listing.service.key);
        service_line(&mut out, listing, format, &naming);
        for destination in &listing.destinations {
            let name = &destination.destination.key;
            let name = listed_name(name.address, name.port, protocol, &naming);
            destination_line(&mut out, &name, destination, format);
        }
    }
    out
}

fn title(columns: Columns) -> String {
    let wide = |names: [&str; 5]| {
        let [a, b, c, d, e] = names;
        let first = "Prot LocalAddress:Port";
        format!("{first:<33} {a:>8} {b:>8} {c:>8} {d:>8} {e:>8}\n  -> RemoteAddress:Port\n")
    };
    let limits = |names: [&str; 4], width: [usize; 2]| {
        let ([a, b, c, d], [first, second]) = (names, width);
        let title = "Prot LocalAddress:Port";
        format!("{title:<33} {a:<first$} {b:<second$} {c:<10} {d:<10}\n  -> RemoteAddress:Port\n")
    };
    match columns {
        Columns::Statistics => wide(["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"]),
        Columns::Rates => wide(["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"]),
        Columns::Thresholds => limits(["Uthreshold", "Lthreshold", "ActiveConn", "InActConn"], [10, 10]),
        Columns::Persistent => limits(["Weight", "PersistConn", "ActiveConn", "InActConn"], [9, 11]),
        Columns::Tunnels => "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           \
                             Forward TunnelInfo    Weight ActiveConn InActConn\n"
            .to_owned(),
        Columns::Plain => "Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port           \
                           Forward Weight ActiveConn InActConn\n"
            .to_owned(),
    }
}

fn service_line(out: &mut String, listing: &ServiceListing, format: Format, naming: &Naming<'_>) {
    let service = &listing.service;
    let name = match service.key {
        // Printed signed, as ipvsadm does.
        ServiceKey::FwMark { mark, ipv6 } => format!("FWM  {}{}", mark as i32, if ipv6 { " IPv6" } else { "" }),
        ServiceKey::Address {
            protocol,
            address,
            port,
        } => {
            let word = match protocol {
                TransportProtocol::Tcp => "TCP",
                TransportProtocol::Udp => "UDP",
                TransportProtocol::Sctp => "SCTP",
            };
            let address = listed_name(address, port, Some(protocol), naming);
            format!("{word:<4} {address}")
        }
    };
    match format.columns {
        Columns::Statistics => {
            put!(
                out,
                "{name:<33}{}\n",
                numbers(&totals(&listing.statistics), format.exact)
            );
        }
        Columns::Rates => {
            put!(
                out,
                "{name:<33}{}\n",
                numbers(&rates(&listing.statistics), format.exact)
            );
        }
        Columns::Thresholds | Columns::Persistent | Columns::Tunnels | Columns::Plain => {
            put!(out, "{name} {}{}\n", service.scheduler, service_flags(service));
        }
    }
}

fn service_flags(service: &Service) -> String {
    let mut out = String::new();
    if let Some(flags) = scheduler_flags::listed(service) {
        put!(out, " ({flags})");
    }
    if let Some(persistence) = service.persistence {
        put!(out, " persistent {}", persistence.timeout_s);
        if let Some(mask) = mask(persistence, service.key.family()) {
            put!(out, " mask {mask}");
        }
        if let Some(engine) = &service.persistence_engine {
            put!(out, " pe {engine}");
        }
    }
    if service.one_packet {
        out += " ops";
    }
    out
}

/// The mask when it is not the whole address.
fn mask(persistence: Persistence, family: Family) -> Option<String> {
    let mask = persistence.mask;
    (mask != Persistence::mask_full(family)).then(|| match family {
        Family::V4 => Ipv4Addr::from_bits(mask).to_string(),
        Family::V6 => mask.to_string(),
    })
}

fn destination_line(out: &mut String, name: &str, listing: &DestinationListing, format: Format) {
    let DestinationListing {
        destination,
        active,
        inactive,
        persistent,
        statistics,
    } = listing;
    let Destination {
        weight,
        upper_threshold,
        lower_threshold,
        ..
    } = destination;
    let method = match destination.method {
        Method::Route => "Route",
        Method::Masq => "Masq",
        Method::Tunnel => "Tunnel",
    };
    match format.columns {
        Columns::Statistics => {
            put!(out, "  -> {name:<28}{}\n", numbers(&totals(statistics), format.exact));
        }
        Columns::Rates => {
            // Only the byte rates are shortened here.
            let [connections, packets_in, packets_out, bytes @ ..] = rates(statistics);
            let bytes = numbers(&bytes, format.exact);
            put!(
                out,
                "  -> {name:<28} {connections:>8} {packets_in:>8} {packets_out:>8}{bytes}\n"
            );
        }
        Columns::Thresholds => {
            put!(
                out,
                "  -> {name:<28} {upper_threshold:<10} {lower_threshold:<10} {active:<10} {inactive:<10}\n"
            );
        }
        Columns::Persistent => {
            put!(
                out,
                "  -> {name:<28} {weight:<9} {persistent:<11} {active:<10} {inactive:<10}\n"
            );
        }
        Columns::Tunnels => {
            let tunnel = tunnel_info(destination);
            put!(
                out,
                "  -> {name:<28} {method:<7} {tunnel:<13} {weight:<6} {active:<10} {inactive:<10}\n"
            );
        }
        Columns::Plain => {
            put!(
                out,
                "  -> {name:<28} {method:<7} {weight:<6} {active:<10} {inactive:<10}\n"
            );
        }
    }
}

fn tunnel_info(destination: &Destination) -> String {
    let Tunnel { kind, port, checksum } = destination.tunnel;
    let checksum = match checksum {
        TunnelChecksum::NoCsum => "-c",
        TunnelChecksum::Csum => "+c",
        TunnelChecksum::RemCsum => "r+c",
    };
    match (destination.method, kind) {
        (Method::Tunnel, TunnelKind::Ipip) => "ipip".to_owned(),
        (Method::Tunnel, TunnelKind::Gue) => format!("gue:{port}:{checksum}"),
        (Method::Tunnel, TunnelKind::Gre) => format!("gre:{checksum}"),
        (Method::Route | Method::Masq, _) => "n/a".to_owned(),
    }
}

fn totals(s: &TrafficStatistics) -> [u64; 5] {
    [s.connections, s.packets_in, s.packets_out, s.bytes_in, s.bytes_out]
}

fn rates(s: &TrafficStatistics) -> [u64; 5] {
    [
        s.connections_per_s,
        s.packets_in_per_s,
        s.packets_out_per_s,
        s.bytes_in_per_s,
        s.bytes_out_per_s,
    ]
}

fn numbers(values: &[u64], exact: bool) -> String {
    values.iter().map(|value| number(*value, exact)).collect()
}

/// A number in nine columns, from 100 million on in thousands, and so on; `exact` ones may be wider.
fn number(value: u64, exact: bool) -> String {
    if exact {
        return format!(" {value:>8}");
    }
    match value {
        0..100_000_000 => format!("{value:>9}"),
        100_000_000..1_000_000_000 => format!("{:>8}K", value / 1_000),
        1_000_000_000..100_000_000_000 => format!("{:>8}M", value / 1_000_000),
        100_000_000_000..100_000_000_000_000 => format!("{:>8}G", value / 1_000_000_000),
        _ => format!("{:>8}T", value / 1_000_000_000_000),
    }
}

/// The rules that make the table (`-S`). Thresholds are not among them, as with ipvsadm.
pub fn rules(services: &[ServiceListing], numeric: bool, names: &dyn Names) -> String {
    let naming = Naming::of_services(services, numeric, names);
    let mut out = String::new();
    for listing in services {
        let service = &listing.service;
        let name = match service.key {
            ServiceKey::FwMark { mark, ipv6 } => format!("-f {}{}", mark as i32, if ipv6 { " -6" } else { "" }),
            ServiceKey::Address {
                protocol,
                address,
                port,
            } => {
                let option = match protocol {
                    TransportProtocol::Tcp => "-t",
                    TransportProtocol::Udp => "-u",
                    TransportProtocol::Sctp => "--sctp-service",
                };
                format!("{option} {}", any_name(address, port, Some(protocol), &naming))
            }
        };
        put!(out, "-A {name} -s {}{}\n", service.scheduler, service_rule(service));
        for DestinationListing { destination, .. } in &listing.destinations {
            let server = any_name(
                destination.key.address,
                destination.key.port,
                protocol_of(&service.key),
                &naming,
            );
            let (method, tunnel) = match destination.method {
                Method::Route => ("-g", String::new()),
                Method::Masq => ("-m", String::new()),
                Method::Tunnel => ("-i", tunnel_rule(destination.tunnel)),
            };
            put!(
                out,
                "-a {name} -r {server} {method} -w {}{tunnel}\n",
                destination.weight
            );
        }
    }
    out
}

fn service_rule(service: &Service) -> String {
    let mut out = String::new();
    if let Some(persistence) = service.persistence {
        put!(out, " -p {}", persistence.timeout_s);
        if let Some(mask) = mask(persistence, service.key.family()) {
            put!(out, " -M {mask}");
        }
    }
    if let Some(engine) = &service.persistence_engine {
        put!(out, " --pe {engine}");
    }
    if service.one_packet {
        out += " -o";
    }
    if let Some(flags) = scheduler_flags::listed(service) {
        put!(out, " -b {flags}");
    }
    out
}

fn tunnel_rule(tunnel: Tunnel) -> String {
    let checksum = match tunnel.checksum {
        TunnelChecksum::NoCsum => "--tun-nocsum",
        TunnelChecksum::Csum => "--tun-csum",
        TunnelChecksum::RemCsum => "--tun-remcsum",
    };
    match tunnel.kind {
        TunnelKind::Ipip => " --tun-type ipip".to_owned(),
        TunnelKind::Gue => format!(" --tun-type gue --tun-port {} {checksum}", tunnel.port),
        TunnelKind::Gre => format!(" --tun-type gre {checksum}"),
    }
}

/// Connection entries (`-L -c`).
pub fn connections(entries: &[ConnectionListing], format: Format, names: &dyn Names) -> String {
    let mut out = String::from("IPVS connection entries\n");
    let (state, source, address) = ("state", "source", "virtual");
    put!(out, "pro expire {state:<11} {source:<18} {address:<18} ");
    if format.persistent_conn {
        put!(out, "{:<18} {:<16} pe_data\n", "destination", "pe name");
    } else {
        out += "destination\n";
    }
    let addresses = entries
        .iter()
        .flat_map(|entry| [entry.client, entry.virtual_address, entry.destination].map(|(address, _)| address));
    let naming = Naming::new(addresses, format.numeric, names);
    for entry in entries {
        let (word, protocol) = match Protocol(entry.protocol) {
            Protocol::TCP => ("TCP".to_owned(), Some(TransportProtocol::Tcp)),
            Protocol::UDP => ("UDP".to_owned(), Some(TransportProtocol::Udp)),
            Protocol::SCTP => ("SCTP".to_owned(), Some(TransportProtocol::Sctp)),
            Protocol::IP => ("IP".to_owned(), None),
            Protocol(number) => (format!("IP_{number}"), None),
        };
        let expires = format!("{:02}:{:02}", entry.expires_s / 60, entry.expires_s % 60);
        let [client, address, server] = [entry.client, entry.virtual_address, entry.destination]
            .map(|(address, port)| any_name(address, port, protocol, &naming));
        put!(
            out,
            "{word:<3} {expires:<6} {:<11} {client:<18} {address:<18} ",
            entry.state
        );
        match &entry.call_id {
            // As narrow and as wide as ipvsadm has them, not as its title.
            Some(call_id) if format.persistent_conn && !call_id.is_empty() => {
                put!(out, "{server:<16} {SIP:<18} {call_id}\n");
            }
            _ => {
                put!(out, "{server}\n");
            }
        }
    }
    out
}

/// `-L --timeout`.
pub fn timeouts(timeouts: Timeouts) -> String {
    let Timeouts { tcp, tcp_fin, udp } = timeouts;
    format!("Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}\n")
}

/// The protocol that names ports; marked services have none.
fn protocol_of(key: &ServiceKey) -> Option<TransportProtocol> {
    match key {
        ServiceKey::Address { protocol, .. } => Some(*protocol),
        ServiceKey::FwMark { .. } => None,
    }
}

/// What the addresses and ports of one listing are called.
struct Naming<'a> {
    /// Of all its addresses: asked for at once.
    hosts: HashMap<IpAddr, String>,
    /// Of ports; none with `-n`.
    names: Option<&'a dyn Names>,
}

impl<'a> Naming<'a> {
    fn new(addresses: impl Iterator<Item = IpAddr>, numeric: bool, names: &'a dyn Names) -> Naming<'a> {
        if numeric {
            return Naming {
                hosts: HashMap::new(),
                names: None,
            };
        }
        let addresses: BTreeSet<_> = addresses.collect();
        Naming {
            hosts: names.addresses_to_hosts(&Vec::from_iter(addresses)),
            names: Some(names),
        }
    }

    fn of_services(services: &[ServiceListing], numeric: bool, names: &'a dyn Names) -> Naming<'a> {
        let addresses = services.iter().flat_map(|listing| {
            let service = match listing.service.key {
                ServiceKey::Address { address, .. } => Some(address),
                ServiceKey::FwMark { .. } => None,
            };
            let servers = listing.destinations.iter();
            service
                .into_iter()
                .chain(servers.map(|listed| listed.destination.key.address))
        });
        Naming::new(addresses, numeric, names)
    }
}

/// As in listings: IPv4 cut to its column.
fn listed_name(address: IpAddr, port: u16, protocol: Option<TransportProtocol>, naming: &Naming<'_>) -> String {
    let name = any_name(address, port, protocol, naming);
    if address.is_ipv4() {
        cut(name, NAME_LEN_MAX)
    } else {
        name
    }
}

/// As in rules and connections.
fn any_name(address: IpAddr, port: u16, protocol: Option<TransportProtocol>, naming: &Naming<'_>) -> String {
    let host = naming.hosts.get(&address).cloned();
    let service = naming
        .names
        .zip(protocol)
        .and_then(|(names, protocol)| names.port_to_service(port, protocol));
    let host = host.unwrap_or_else(|| address_text(address));
    let service = service.unwrap_or_else(|| port.to_string());
    let name = match address {
        IpAddr::V4(_) => format!("{host}:{service}"),
        IpAddr::V6(_) => format!("[{host}]:{service}"),
    };
    cut(name, BUFFER_LEN_MAX)
}

fn cut(mut text: String, len_max: usize) -> String {
    if text.len() > len_max {
        let end = (0..=len_max).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
    }
    text
}

/// As `inet_ntop`, which writes IPv4-compatible addresses with dots, unlike Rust.
fn address_text(address: IpAddr) -> String {
    match address {
        IpAddr::V6(address) if address.to_bits() >> 32 == 0 && address.segments()[6] != 0 => {
            format!("::{}", Ipv4Addr::from_bits(address.to_bits() as u32))
        }
        address => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_get_their_suffix_where_ipvsadm_gives_it() {
        for (value, expected) in [
            (0, "        0"),
            (10_831_738, " 10831738"),
            (99_999_999, " 99999999"),
            (100_000_000, "  100000K"),
            (108_000_040, "  108000K"),
            (999_999_999, "  999999K"),
            (1_000_000_000, "    1000M"),
            (99_999_999_999, "   99999M"),
            (100_000_000_000, "     100G"),
            (99_999_999_999_999, "   99999G"),
            (100_000_000_000_000, "     100T"),
            (u64::MAX, "18446744T"),
        ] {
            assert_eq!(number(value, false), expected);
        }
        assert_eq!(number(108_000_040, true), " 108000040");
        assert_eq!(number(5, true), "        5");
    }

    #[test]
    fn addresses_as_inet_ntop_writes_them() {
        for (address, expected) in [
            ("::", "::"),
            ("::1", "::1"),
            ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
            ("::102:304", "::1.2.3.4"),
            ("2001:db8::1:0:0:1", "2001:db8::1:0:0:1"),
            ("1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"),
        ] {
            assert_eq!(address_text(address.parse().unwrap()), expected);
        }
    }
}
