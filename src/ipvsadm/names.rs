//! Names for addresses and ports, both ways: what the listing shows without `-n`, and what may be written for numbers.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use crate::io::names;
use crate::service::TransportProtocol;

/// Looks names up.
pub trait Names {
    /// The first IPv4 address of a host.
    fn host_to_address(&self, host: &str) -> Option<Ipv4Addr>;
    /// The host names of addresses; those without one are missing.
    fn addresses_to_hosts(&self, addresses: &[IpAddr]) -> HashMap<IpAddr, String>;
    /// The port of a service such as `http`.
    fn service_to_port(&self, service: &str, protocol: TransportProtocol) -> Option<u16>;
    /// The service of a port.
    fn port_to_service(&self, port: u16, protocol: TransportProtocol) -> Option<String>;
}

/// The names this machine knows: its resolver and `/etc/services`.
#[derive(Debug, Default)]
pub struct SystemNames {
    services: OnceCell<Services>,
    /// The hosts found: rules name that of a service again with each of its servers.
    hosts: RefCell<HashMap<String, Ipv4Addr>>,
    /// Why there are no names was said.
    complained: Cell<bool>,
}

impl Names for SystemNames {
    fn host_to_address(&self, host: &str) -> Option<Ipv4Addr> {
        if host.is_empty() || host.contains('\0') {
            return None;
        }
        let mut hosts = self.hosts.borrow_mut();
        if let Some(known) = hosts.get(host) {
            return Some(*known);
        }
        let found = self.answer(names::address_of(host))?;
        hosts.insert(host.to_owned(), found);
        Some(found)
    }

    fn addresses_to_hosts(&self, addresses: &[IpAddr]) -> HashMap<IpAddr, String> {
        self.answer(names::hosts_of(addresses))
    }

    fn service_to_port(&self, service: &str, protocol: TransportProtocol) -> Option<u16> {
        self.services().ports.get(&(service.to_owned(), protocol)).copied()
    }

    fn port_to_service(&self, port: u16, protocol: TransportProtocol) -> Option<String> {
        self.services().names.get(&(port, protocol)).cloned()
    }
}

impl SystemNames {
    /// The answer; who does not get one learns why, once, and goes on without names.
    fn answer<T: Default>(&self, answer: io::Result<T>) -> T {
        answer.unwrap_or_else(|error| {
            if !self.complained.replace(true) {
                eprintln!("uvs: no names of hosts: `getent`: {error}");
            }
            T::default()
        })
    }

    fn services(&self) -> &Services {
        // A machine without the file has no service names; numbers are always understood.
        self.services
            .get_or_init(|| Services::parse(&std::fs::read_to_string("/etc/services").unwrap_or_default()))
    }
}

/// What `/etc/services` says: `name port/protocol alias… # comment`, the first line of a port or name wins.
#[derive(Debug, Default)]
pub struct Services {
    ports: HashMap<(String, TransportProtocol), u16>,
    names: HashMap<(u16, TransportProtocol), String>,
}

impl Services {
    /// Reads the file's text; lines of other protocols or without sense are passed over, as the C library does.
    pub fn parse(text: &str) -> Services {
        let mut services = Services::default();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let (Some(name), Some((port, protocol))) =
                (words.next(), words.next().and_then(|word| word.split_once('/')))
            else {
                continue;
            };
            let protocol = match protocol {
                "tcp" => TransportProtocol::Tcp,
                "udp" => TransportProtocol::Udp,
                "sctp" => TransportProtocol::Sctp,
                _ => continue,
            };
            let Ok(port) = port.parse() else { continue };
            services
                .names
                .entry((port, protocol))
                .or_insert_with(|| name.to_owned());
            for name in std::iter::once(name).chain(words) {
                services.ports.entry((name.to_owned(), protocol)).or_insert(port);
            }
        }
        services
    }
}

/// The names of the recorded transcripts, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) struct RecordedNames(Services);

    impl RecordedNames {
        pub(crate) fn new() -> Self {
            RecordedNames(Services::parse(
                "domain 53/tcp\ndomain 53/udp\nhttp 80/tcp www # WorldWideWeb\nhttp-alt 8080/tcp webcache\n\
                 http-alt 8080/udp\nother 80/dccp\nnonsense\nmore x/tcp\n",
            ))
        }
    }

    const HOSTS: [(&str, [u8; 4]); 4] = [
        ("vip.example.com", [10, 0, 0, 1]),
        ("rs1.example.com", [10, 1, 0, 1]),
        ("localhost", [127, 0, 0, 1]),
        ("a-very-long-host-name.of.the.example.com", [10, 9, 9, 9]),
    ];

    impl Names for RecordedNames {
        fn host_to_address(&self, host: &str) -> Option<Ipv4Addr> {
            HOSTS
                .iter()
                .find(|(name, _)| *name == host)
                .map(|(_, address)| Ipv4Addr::from(*address))
        }

        fn addresses_to_hosts(&self, addresses: &[IpAddr]) -> HashMap<IpAddr, String> {
            let known = HOSTS.map(|(name, address)| (IpAddr::from(address), name.to_owned()));
            known
                .into_iter()
                .filter(|(address, _)| addresses.contains(address))
                .collect()
        }

        fn service_to_port(&self, service: &str, protocol: TransportProtocol) -> Option<u16> {
            self.0.ports.get(&(service.to_owned(), protocol)).copied()
        }

        fn port_to_service(&self, port: u16, protocol: TransportProtocol) -> Option<String> {
            self.0.names.get(&(port, protocol)).cloned()
        }
    }

    #[test]
    fn services_are_read_as_the_c_library_reads_them() {
        let names = RecordedNames::new();
        let (tcp, udp) = (TransportProtocol::Tcp, TransportProtocol::Udp);
        assert_eq!(names.service_to_port("www", tcp), Some(80), "an alias");
        assert_eq!(
            names.port_to_service(80, tcp).as_deref(),
            Some("http"),
            "the name, not the alias"
        );
        assert_eq!(names.service_to_port("http", udp), None, "of another protocol");
        assert_eq!(names.service_to_port("WorldWideWeb", tcp), None, "a comment");
        assert_eq!(names.port_to_service(8080, udp).as_deref(), Some("http-alt"));
    }
}
