//! What a flow finds in a table.

use super::*;
use crate::packet::Protocol;
use crate::service::TransportProtocol;

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

fn flow(protocol: Protocol, source: (&str, u16), destination: (&str, u16)) -> FlowKey {
    let at = |(address, port): (&str, u16)| (address.parse().unwrap(), port);
    FlowKey::new(protocol, at(source), at(destination))
}

fn table(services: Services) -> Table {
    Table {
        services,
        ..Table::default()
    }
}

fn with(sources: NatSources) -> Table {
    table(Services::new([], Arc::new(sources)))
}

#[test]
fn exact_before_any_port_and_families_apart() {
    let services = [
        service(TransportProtocol::Tcp, "10.0.0.1", 80),
        service(TransportProtocol::Tcp, "10.0.0.1", 0),
        service(TransportProtocol::Udp, "::a00:1", 80),
    ];
    let table = table(Services::new(services, Arc::default()));
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
