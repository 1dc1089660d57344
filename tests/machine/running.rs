//! A machine that breaks while the director runs: an interface goes, a server is nowhere to be found, the table is full.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use uvs::demo::cluster::Attachment;
use uvs::io::bpf::xdp_link;
use uvs::io::filter::attach;
use uvs::packet::Mac;

use super::frames::build::{Ends, TCP, ip, tcp};
use super::support::{
    FAMILIES, Family, FrameSocket, HttpServer, Layout, Method, Plan, Scenario, assert_balanced, http, scenario,
    with_port,
};
use super::{dropped, wait_until};

const WAIT: Duration = Duration::from_secs(10);

fn get(s: &Scenario, to: SocketAddr) -> io::Result<String> {
    http::get(s.topology.client.namespace(), to, Duration::from_secs(3))
}

fn attachment<'a>(interface: &'a str, addresses: &'a [(IpAddr, u8)]) -> Attachment<'a> {
    Attachment {
        interface,
        addresses,
        queues: 1,
        mtu: 1500,
    }
}

/// Goal: what hung on the interface fails at once, all else goes on, the end is clean, and so is the next start.
fn an_interface_goes(driver: &str) {
    let Some(mut s) = scenario(&format!("gone-{driver}"), Plan::new(Layout::TwoArmed)) else {
        return;
    };
    s.offer(Method::Masq, Family::V4).unwrap();
    // A third server, on the clients' side, by direct routing.
    let near: IpAddr = "10.0.0.9".parse().unwrap();
    let mut third = s.topology.cluster.host("third").unwrap();
    s.topology.segments[0]
        .attach(&mut third, &attachment("eth0", &[(near, 24)]))
        .unwrap();
    let vip = s.topology.vip(Method::Masq, Family::V4);
    third.add_vip_on_loopback(vip).unwrap();
    let everywhere = "[::]:81".parse().unwrap();
    let _server = HttpServer::start(third.namespace(), everywhere, "third").unwrap();
    let (gone, stays) = (SocketAddr::new(vip, 80), SocketAddr::new(vip, 81));
    let file = s.topology.cluster.directory().join("uvs.toml");
    std::fs::write(&file, "# services by hand\n").unwrap();
    let path = file.display().to_string();
    let start = ["--driver", driver, "--config", &path];
    s.start(&start).unwrap();
    s.add_service(Method::Masq, Family::V4, "-s rr").unwrap();
    for rule in [format!("-A -t {stays} -s rr"), format!("-a -t {stays} -r {near}:81 -g")] {
        s.director().unwrap().ipvsadm(&rule).unwrap();
    }
    let mut open = super::support::HttpClient::connect(s.topology.client.namespace(), None, stays, WAIT).unwrap();
    assert_eq!(
        (open.get("/").unwrap(), get(&s, gone).unwrap()),
        ("third".into(), "server2-hk".into())
    );

    let link = s.topology.director.link("eth1").unwrap().index;
    s.topology.director.netlink().delete_link(link).unwrap();
    let unreachable = |answer: &io::Result<String>| {
        answer
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::HostUnreachable)
    };
    wait_until(WAIT, || get(&s, gone), unreachable).unwrap_err();
    for _ in 0..20 {
        assert_eq!(
            (open.get("/").unwrap(), get(&s, stays).unwrap()),
            ("third".into(), "third".into())
        );
    }
    let counts = assert_balanced(&mut s);
    assert!(dropped(&counts, "no_route") > 0, "{counts}");
    let statistics = s.director().unwrap().output(&["stats"]).unwrap();
    assert!(statistics.status.success());

    // One of that name again: the same process serves it, and what it had goes on. Not while a start would fail.
    std::fs::write(&file, "[[service]\n").unwrap();
    let process = s.director().unwrap().process().id();
    let back: IpAddr = "192.168.0.1".parse().unwrap();
    s.topology.segments[1]
        .attach(&mut s.topology.director, &attachment("eth1", &[(back, 24)]))
        .unwrap();
    let said = || s.director().unwrap().process().output();
    wait_until(WAIT, said, |said| {
        said.contains("cannot be served yet") && said.contains(&path)
    });
    assert_eq!(open.get("/").unwrap(), "third");
    std::fs::write(&file, "# services by hand\n").unwrap();
    wait_until(WAIT, || get(&s, gone), io::Result::is_ok).unwrap();
    assert_eq!(open.get("/").unwrap(), "third");
    assert_eq!(s.director().unwrap().process().id(), process);
    assert_balanced(&mut s);
    let link = s.topology.director.link("eth1").unwrap().index;
    s.topology.director.netlink().delete_link(link).unwrap();
    let said = || s.director().unwrap().process().output();
    wait_until(WAIT, said, |said| said.matches("interface eth1 is gone").count() == 2);

    let mut director = s.take_director().unwrap();
    let status = director.process().terminate().unwrap();
    let said = director.process().output();
    assert!(status.success() && !said.contains("panicked"), "{status}: {said}");
    let eth0 = s.topology.director.link("eth0").unwrap().index;
    let left = || {
        (
            xdp_link::query(eth0).unwrap().xdp_programs.len(),
            attach::query_tc(eth0).unwrap().len(),
        )
    };
    assert_eq!(
        s.topology.director.namespace().run(left).unwrap(),
        (0, 0),
        "nothing is left attached"
    );

    let error = s.start(&start).unwrap_err().to_string();
    assert!(error.contains("there is no interface eth1"), "{error}");
    s.topology.segments[1]
        .attach(&mut s.topology.director, &attachment("eth1", &[(back, 24)]))
        .unwrap();
    s.start(&start).unwrap();
    wait_until(WAIT, || get(&s, gone), io::Result::is_ok).unwrap();
    assert_balanced(&mut s);
}

#[test]
fn an_interface_goes_while_xdp_forwards() {
    an_interface_goes("xdp");
}

#[test]
fn an_interface_goes_while_raw_forwards() {
    an_interface_goes("raw");
}

/// Goal: as the kernel does it, but that it does not hold the packet back: no answer while its neighbour is looked for,
/// then host unreachable; and as soon as it is there it is served.
#[test]
fn a_server_that_is_nowhere() {
    let Some(mut s) = scenario("nowhere", Plan::new(Layout::OneSegment)) else {
        return;
    };
    let nowhere: [IpAddr; 2] = ["172.25.7.99".parse().unwrap(), "fd00:7::99".parse().unwrap()];
    for family in FAMILIES {
        s.offer(Method::Route, family).unwrap();
    }
    for family in ["ipv4", "ipv6"] {
        // Three questions, and long enough to see what happens meanwhile.
        let setting = format!("net/{family}/neigh/eth0/retrans_time_ms");
        s.topology.director.set_sysctl(&setting, "300").unwrap();
    }
    s.start(&[]).unwrap();
    for (family, nowhere) in FAMILIES.into_iter().zip(nowhere) {
        let vip = s.topology.vip(Method::Route, family);
        let service = SocketAddr::new(vip, 80);
        let rules = [
            format!("-A -t {service} -s rr"),
            format!("-a -t {service} -r {} -g", with_port(nowhere, 80)),
        ];
        for rule in rules {
            s.director().unwrap().ipvsadm(&rule).unwrap();
        }
        let before = s.accounting().unwrap();
        let error = get(&s, service).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::HostUnreachable, "{family:?}: {error}");
        let counts = assert_balanced(&mut s);
        // One while it was looked for, one that was answered.
        assert!(
            dropped(&counts, "no_neighbour") > dropped(&before, "no_neighbour") + 1,
            "{family:?}: {counts}"
        );
        assert_eq!(
            counts.generated,
            before.generated + 1,
            "{family:?}: one ICMP error: {counts}"
        );
        // Another server of the service would have taken the next one; here the same comes to life.
        let bits = if family == Family::V4 { 24 } else { 64 };
        s.topology.servers[0].add_address("eth0", nowhere, bits).unwrap();
        assert_eq!(
            wait_until(WAIT, || get(&s, service), io::Result::is_ok).unwrap(),
            "server3-hk"
        );
    }
    assert_balanced(&mut s);
}

/// Clients by number, each an address of its own; frames of theirs in front of a director.
struct Crowd {
    wire: FrameSocket,
    macs: [Mac; 2],
    vip: IpAddr,
    sent: u64,
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

impl Crowd {
    fn send(&mut self, s: &mut Scenario, client: u16, flags: u8) {
        let ends = Ends {
            macs: self.macs,
            source: Ipv4Addr::new(10, 77, (client >> 8) as u8, client as u8).into(),
            destination: self.vip,
        };
        let mut frame = ip(&ends, TCP, &tcp(80));
        frame[47] = flags;
        self.wire.send(&frame).unwrap();
        self.sent += 1;
        if self.sent.is_multiple_of(128) {
            self.arrived(s);
        }
    }

    /// Waits for what was sent, so that no ring overflows.
    fn arrived(&self, s: &mut Scenario) {
        wait_until(
            WAIT,
            || s.accounting().unwrap().received,
            |received| *received >= self.sent,
        );
    }

    /// Who has an established connection.
    fn established(s: &mut Scenario) -> HashSet<Ipv4Addr> {
        let text = s.director().unwrap().ipvsadm("-Lnc").unwrap();
        let established = text.lines().filter(|line| line.contains(" ESTABLISHED "));
        let client = |line: &str| {
            line.split_whitespace()
                .nth(3)
                .and_then(|field| field.split(':').next()?.parse().ok())
        };
        established.map(|line| client(line).expect("a client")).collect()
    }
}

/// Goal: established connections are never given up for new ones; half-open ones are, oldest first, and without them a
/// new one is counted and dropped.
#[test]
fn the_table_is_full() {
    const FIRST: u16 = 100;
    const CAPACITY: u64 = 1024;
    let Some(mut s) = scenario("full", Plan::new(Layout::OneSegment)) else {
        return;
    };
    s.offer(Method::Route, Family::V4).unwrap();
    s.start(&["--connections", &CAPACITY.to_string()]).unwrap();
    let vip = s.topology.vip(Method::Route, Family::V4);
    let nobody: IpAddr = "172.25.7.77".parse().unwrap();
    let link = s.topology.director.link("eth0").unwrap();
    let (index, mac) = (link.index, link.mac.unwrap());
    s.topology
        .director
        .netlink()
        .add_neighbour(index, nobody, Mac([2, 0, 0, 0, 0, 0x77]))
        .unwrap();
    for rule in [
        format!("-A -t {vip}:80 -s rr"),
        format!("-a -t {vip}:80 -r {nobody} -g"),
    ] {
        s.director().unwrap().ipvsadm(&rule).unwrap();
    }
    let switch = s.topology.segments[0].switch();
    let port = switch.link("port2").unwrap().index;
    let mut crowd = Crowd {
        wire: FrameSocket::open_in(switch.namespace(), port).unwrap(),
        macs: [Mac([2, 0, 0, 0, 0, 1]), mac],
        vip,
        sent: 0,
    };
    for client in 0..FIRST {
        crowd.send(&mut s, client, SYN);
        crowd.send(&mut s, client, ACK);
    }
    // A flood of half-open ones finds room: its own.
    for client in 1000..4000 {
        crowd.send(&mut s, client, SYN);
    }
    crowd.arrived(&mut s);
    assert_eq!(dropped(&assert_balanced(&mut s), "table_full"), 0);
    let first: HashSet<Ipv4Addr> = (0..FIRST).map(|n| Ipv4Addr::new(10, 77, 0, n as u8)).collect();
    assert_eq!(Crowd::established(&mut s), first);
    // Good clients find room in it as well, until they alone fill the table.
    for client in 5000..7000 {
        crowd.send(&mut s, client, SYN);
        crowd.send(&mut s, client, ACK);
    }
    crowd.arrived(&mut s);
    let counts = assert_balanced(&mut s);
    let established = Crowd::established(&mut s);
    assert!(
        established.is_superset(&first),
        "an established connection was given up"
    );
    assert_eq!(established.len() as u64, CAPACITY);
    assert_eq!(
        dropped(&counts, "table_full"),
        2000 + u64::from(FIRST) - CAPACITY,
        "{counts}"
    );
    // They are served as before.
    for client in 0..FIRST {
        crowd.send(&mut s, client, ACK);
    }
    crowd.arrived(&mut s);
    let served = assert_balanced(&mut s);
    assert_eq!(served.transmitted - counts.transmitted, u64::from(FIRST), "{served}");
    let listed = s.director().unwrap().ipvsadm("-Ln").unwrap();
    let row: Vec<&str> = listed.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row[4..], [CAPACITY.to_string(), "0".to_owned()], "{listed}");
}
