//! From the classifier's rules to what the filter must look for.

use super::*;

fn rule(mark: u32, destination: Option<&str>, ports: Option<&str>) -> MarkRule {
    MarkRule {
        mark,
        protocol: Some(TransportProtocol::Tcp),
        source: None,
        source_port: None,
        destination: destination.map(|text| text.parse().unwrap()),
        destination_port: ports.map(|text| text.parse().unwrap()),
        interface: None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn wanted(mark: u32, ipv6: bool) -> Wanted {
    let mut wanted = Wanted::default();
    wanted.add(&ServiceKey::FwMark { mark, ipv6 }, false);
    wanted
}

/// What the filter would look for of one mark: `ADDRESS PORT`, sorted.
fn found(rules: Vec<MarkRule>, wanted: &Wanted, local: &LocalAddresses) -> Vec<String> {
    let mut marks = Marks::default();
    marks.follow(&Arc::new(rules));
    let endpoint = |rule: Rule| match rule {
        Rule::Service { address, port, .. } => format!("{address} {port}"),
        other => panic!("{other:?}"),
    };
    let mut all: Vec<String> = marks.service_rules(wanted, local).into_iter().map(endpoint).collect();
    all.sort();
    all
}

#[test]
fn only_addresses_of_the_director_count() {
    let hosts = ["10.0.0.1", "10.0.0.9", "127.0.0.1", "fd00::1"].map(ip);
    let prefixes = [
        (ip("127.0.0.0"), 8),
        (ip("198.51.100.0"), 30),
        (ip("fd00:1::"), 64),
        (ip("10.8.0.0"), 13),
    ];
    let local = LocalAddresses::new(hosts, prefixes);
    let of = |destination| found(vec![rule(1, destination, Some("80"))], &wanted(1, false), &local);
    assert_eq!(of(None), ["10.0.0.1 80", "10.0.0.9 80"], "loopback is nobody's");
    assert_eq!(of(Some("10.0.0.9")), ["10.0.0.9 80"]);
    assert_eq!(of(Some("10.0.0.8/29")), ["10.0.0.9 80"]);
    assert!(of(Some("10.0.0.2")).is_empty());
    assert!(of(Some("127.0.0.1/32")).iter().all(|found| found == "127.0.0.1 80"));
    assert_eq!(of(Some("198.51.100.2")), ["198.51.100.2 80"]);
    // A local prefix in the rule's, and the rule's in a local one.
    assert_eq!(of(Some("198.51.100.0/24")).len(), 4);
    assert_eq!(of(Some("198.51.100.2/31")), ["198.51.100.2 80", "198.51.100.3 80"]);
    assert!(of(Some("203.0.113.0/24")).is_empty());
    assert_eq!(of(Some("10.8.0.0/13")).len(), LOCAL_ADDRESSES_MAX as usize);
    assert!(of(Some("fd00:1::/64")).is_empty(), "of the other family");
    let v6 = |destination| found(vec![rule(1, destination, Some("80"))], &wanted(1, true), &local);
    assert_eq!(v6(None), ["fd00::1 80"]);
    assert_eq!(v6(Some("fd00:1::4/126")).len(), 4);
}

#[test]
fn small_ranges_stand_port_by_port_until_they_are_too_many() {
    let vip = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n));
    let local = LocalAddresses::new((0..512).map(vip), []);
    let ports = |range| found(vec![rule(1, Some("10.0.0.1"), Some(range))], &wanted(1, false), &local);
    assert_eq!(ports("7-8"), ["10.0.0.1 7", "10.0.0.1 8"]);
    assert_eq!(ports("21"), ["10.0.0.1 0", "10.0.0.1 21"], "FTP has data connections");
    assert_eq!(ports("101-164").len(), PORTS_MAX);
    assert_eq!(ports("101-165"), ["10.0.0.1 0"]);
    let everywhere = |range| found(vec![rule(1, None, Some(range))], &wanted(1, false), &local);
    assert_eq!(everywhere("101-132").len(), ENTRIES_MAX);
    assert_eq!(everywhere("101-133").len(), 512);
    assert_eq!(everywhere("9").len(), 512);
    // Another mark's rules, and rules of a mark without a service.
    assert!(found(vec![rule(2, None, None)], &wanted(1, false), &local).is_empty());
}

#[test]
fn replies_come_from_the_ports_asked_for_or_the_destinations_own() {
    use TransportProtocol::Tcp;
    let rules = [rule(1, None, Some("80-81"))];
    let ports = |own, persistent| {
        let mut ports: Vec<u16> = nat_ports(rules.iter(), own, persistent)
            .into_iter()
            .map(|(_, port)| port)
            .collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(ports(0, Some(false)), [80, 81]);
    assert_eq!(ports(8080, Some(false)), [8080]);
    assert_eq!(ports(8080, Some(true)), [80, 81]);
    assert_eq!(ports(8080, None), [80, 81, 8080]);
    let ftp = |persistent| nat_ports([rule(1, None, Some("21"))].iter(), 0, persistent);
    assert_eq!(ftp(Some(false)), HashSet::from([(Tcp, 21), (Tcp, 20)]));
    assert_eq!(ftp(None), HashSet::from([(Tcp, 21), (Tcp, 0)]));
    let any = [rule(1, None, None)];
    assert_eq!(nat_ports(any.iter(), 0, None), HashSet::from([(Tcp, 0)]));
}
