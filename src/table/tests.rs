//! What a flow finds in a table.

use std::collections::HashSet;

use super::*;
use crate::packet::Protocol;
use crate::service::{MarkRule, TransportProtocol};

struct First;

impl Schedule for First {
    fn pick<'s>(&'s self, candidates: &[Candidate], _: &FlowKey, _: &mut Batch<'s>) -> Option<usize> {
        (!candidates.is_empty()).then_some(0)
    }
}

fn service(protocol: TransportProtocol, address: &str, port: u16) -> Arc<Service> {
    Arc::new(Service {
        key: ServiceKey::Address {
            protocol,
            address: address.parse().unwrap(),
            port,
        },
        scheduler: Box::new(First),
        candidates: vec![],
        ids: vec![],
        persistence: None,
        one_packet: false,
        sip: false,
    })
}

fn service_of_mark(mark: u32) -> Arc<Service> {
    let of_any_address = service(TransportProtocol::Tcp, "10.0.0.1", 0);
    let mut service = Arc::into_inner(of_any_address).expect("nobody else has it");
    service.key = ServiceKey::FwMark { mark, ipv6: false };
    Arc::new(service)
}

fn flow(protocol: Protocol, source: (&str, u16), destination: (&str, u16)) -> FlowKey {
    let at = |(address, port): (&str, u16)| (address.parse().unwrap(), port);
    FlowKey::new(protocol, at(source), at(destination))
}

fn table(services: impl IntoIterator<Item = Arc<Service>>) -> Table {
    Table {
        services: services.into_iter().collect(),
        ..Table::default()
    }
}

fn with(sources: NatSources) -> Table {
    Table {
        nat_sources: Arc::new(sources),
        ..Table::default()
    }
}

#[test]
fn exact_before_any_port_and_families_apart() {
    let services = [
        service(TransportProtocol::Tcp, "10.0.0.1", 80),
        service(TransportProtocol::Tcp, "10.0.0.1", 0),
        service(TransportProtocol::Udp, "::a00:1", 80),
    ];
    let table = table(services);
    let port = |protocol, address, port| {
        let source = if protocol == Protocol::TCP {
            "192.0.2.1"
        } else {
            "2001:db8::1"
        };
        let found = table.service(&flow(protocol, (source, 999), (address, port)));
        found.map(|service| service.key.port())
    };
    assert_eq!(port(Protocol::TCP, "10.0.0.1", 80), Some(80));
    assert_eq!(port(Protocol::TCP, "10.0.0.1", 81), Some(0));
    assert_eq!(port(Protocol::TCP, "10.0.0.2", 80), None);
    // ::a00:1 is 10.0.0.1 as a number, and another address.
    assert_eq!(port(Protocol::UDP, "::a00:1", 80), Some(80));
    assert!(
        table
            .service(&flow(Protocol::UDP, ("192.0.2.1", 1), ("10.0.0.1", 80)))
            .is_none()
    );
}

/// Goal: who has the last service at hand finds no other one. How: packets for every pair of services, one after the other, and
/// for none; then the same with a mark for one of two clients.
#[test]
fn finder_finds_what_the_table_finds() {
    let addresses = [
        service(TransportProtocol::Tcp, "10.0.0.1", 80),
        service(TransportProtocol::Udp, "10.0.0.1", 80),
        service(TransportProtocol::Tcp, "10.0.0.1", 0),
        service(TransportProtocol::Tcp, "10.0.0.2", 80),
        service(TransportProtocol::Tcp, "::a00:1", 80),
    ];
    let (a, b, v6) = (("192.0.2.1", 9), ("192.0.2.2", 9), ("2001:db8::1", 9));
    let flows = [
        flow(Protocol::TCP, a, ("10.0.0.1", 80)),
        flow(Protocol::TCP, b, ("10.0.0.1", 80)),
        flow(Protocol::UDP, a, ("10.0.0.1", 80)),
        flow(Protocol::TCP, a, ("10.0.0.1", 81)),
        flow(Protocol::TCP, a, ("10.0.0.2", 80)),
        flow(Protocol::TCP, v6, ("::a00:1", 80)),
        flow(Protocol::TCP, a, ("10.0.0.3", 80)),
    ];
    let rule = MarkRule {
        mark: 7,
        protocol: None,
        source: Some("192.0.2.2/32".parse().unwrap()),
        source_port: None,
        destination: None,
        destination_port: None,
        interface: None,
    };
    let plain = table(addresses.clone());
    let marked = Table {
        classifier: Arc::new(Classifier::new(&[rule], &[])),
        ..table(addresses.into_iter().chain([service_of_mark(7)]))
    };
    for (table, distinct) in [(plain, 5), (marked, 6)] {
        let place = |service: &Arc<Service>| Arc::as_ptr(service).addr();
        let mut found = HashSet::new();
        for first in &flows {
            for second in &flows {
                let mut finder = Finder::new(&table);
                for flow in [first, second, first] {
                    let expected = table.service_at(flow, InterfaceId(0)).map(place);
                    let service = finder.service_at(flow, InterfaceId(0)).map(place);
                    assert_eq!(service, expected, "{flow:?} after {first:?}");
                    found.extend(service);
                }
            }
        }
        assert_eq!(found.len(), distinct, "services that were asked for");
    }
}

#[test]
fn nat_sources_by_port_and_any_port() {
    let mut sources = NatSources::default();
    sources.add_virtual_address("10.0.0.1".parse().unwrap());
    sources.add_endpoint(TransportProtocol::Tcp, "10.1.0.1".parse().unwrap(), 8080);
    let table = with(sources);
    let from = |table: &Table, protocol, address, port| {
        table.is_nat_source(&flow(protocol, (address, port), ("192.0.2.1", 9)))
    };
    assert!(from(&table, Protocol::TCP, "10.1.0.1", 8080));
    assert!(!from(&table, Protocol::TCP, "10.1.0.1", 8081));
    assert!(!from(&table, Protocol::UDP, "10.1.0.1", 8080));
    assert!(table.is_virtual("10.0.0.1".parse().unwrap()));

    let mut sources = NatSources::default();
    sources.add_endpoint(TransportProtocol::Udp, "10.1.0.2".parse().unwrap(), 0);
    let table = with(sources);
    assert!(from(&table, Protocol::UDP, "10.1.0.2", 53));
    assert!(!from(&table, Protocol::UDP, "10.1.0.3", 53));
}

proptest::proptest! {
    /// Goal: services that come and go one by one leave what those that stayed make at once. How: a few of every kind, put and
    /// removed in any order.
    #[test]
    fn services_one_by_one(draw in proptest::collection::vec((0usize..8, 0u8..3), 0..40)) {
        let kinds = [
            (TransportProtocol::Tcp, 80), (TransportProtocol::Tcp, 0), (TransportProtocol::Tcp, FTP_PORT),
            (TransportProtocol::Udp, 0), (TransportProtocol::Udp, 5060), (TransportProtocol::Udp, 5061),
        ];
        let made = |kind: usize, sip| {
            let service = match kinds.get(kind) {
                Some((protocol, port)) => service(*protocol, "10.0.0.1", *port),
                None => service_of_mark(kind as u32),
            };
            let service = Arc::into_inner(service).expect("nobody else has it");
            Arc::new(Service { sip, ..service })
        };
        let mut services = Services::default();
        let mut stayed = vec![None; 8];
        for (kind, what) in draw {
            let service = made(kind, what == 2);
            stayed[kind] = match what {
                0 => {
                    services.remove(&service.key);
                    None
                }
                _ => {
                    services.put(service.clone());
                    Some(service)
                }
            };
        }
        let at_once: Services = stayed.into_iter().flatten().collect();
        proptest::prop_assert!(services.shares_all_with(&at_once));
    }
}
