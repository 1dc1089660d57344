//! `scripts/real-server`: sets up, undoes, and names what is wrong.
//!
//! How: in a real server's namespace, against the kernel's own settings. Goal: `stop` leaves everything as it was,
//! and each fault that makes a real server fail silently is named.

use std::path::Path;
use std::process::Output;

use uvs::demo::cluster::Host;
use uvs::demo::director::start_decap;
use uvs::demo::topology::{Layout, Plan, Topology};
use uvs::io::netlink::{Route, VethEnd};

mod support;

use support::{Family, Method, netns};

const VIP: &str = "172.25.7.200";
const VIP6: &str = "fd00:7::200";

struct Script<'a> {
    host: &'a Host,
    folder: &'a Path,
}

impl Script<'_> {
    fn run(&self, arguments: &str) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/real-server");
        let mut command = self.host.command(script).expect("the namespace is there");
        command
            .args(arguments.split_whitespace())
            .env("UVS_REAL_SERVER_DIR", self.folder);
        command.output().expect("the script runs")
    }

    /// Runs it; its output, which must be a success.
    fn good(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let text = text_of(&output);
        assert!(output.status.success(), "{arguments}: {text}");
        text
    }

    /// Runs it; its output, which must be a failure.
    fn bad(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let text = text_of(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {text}");
        text
    }

    fn wrong(&self, arguments: &str, words: &str) {
        let text = self.bad(arguments);
        assert!(
            text.lines()
                .any(|line| line.starts_with("WRONG") && line.contains(words)),
            "{words}: {text}"
        );
    }

    /// Everything that the script may change, as the kernel tells it.
    fn state(&self) -> String {
        let script = "ip -o addr show | awk '{print $2, $3, $4}'; ip -4 route show; ip -6 route show default; \
                      cd /proc/sys/net/ipv4/conf; grep . */arp_ignore */arp_announce */rp_filter";
        let mut command = self.host.command("sh").expect("the namespace is there");
        text_of(&command.args(["-c", script]).output().expect("sh runs"))
    }
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn server(label: &str) -> Option<Topology> {
    support::topology(
        label,
        Plan {
            servers: 1,
            ..Plan::new(Layout::OneSegment)
        },
    )
}

#[test]
fn direct_routing_is_set_up_and_undone() {
    let Some(topology) = server("rs-dr") else { return };
    let script = Script {
        host: &topology.servers[0],
        folder: &topology.cluster.directory().join("rs"),
    };
    let before = script.state();
    let text = script.bad(&format!("dr check {VIP}"));
    assert!(text.contains("WRONG: the VIP is not here"), "{text}");
    assert!(text.contains("WRONG: arp_ignore is 0 on eth0"), "{text}");
    assert!(text.contains("WRONG: arp_announce is 0 on eth0"), "{text}");
    for vip in [VIP, VIP6] {
        script.good(&format!("dr start {vip}"));
        script.good(&format!("dr start {vip}")); // Again changes nothing.
        let text = script.good(&format!("dr check {vip}"));
        assert!(text.contains("ok: the VIP is on lo"), "{text}");
    }
    // A second VIP shares the settings: they stay as long as it does.
    script.good("dr start 172.25.7.201");
    script.good(&format!("dr stop {VIP}"));
    script.good("dr check 172.25.7.201");
    script.good("dr stop 172.25.7.201");
    script.good(&format!("dr stop {VIP6}"));
    assert_eq!(script.state(), before);
    assert!(script.good(&format!("dr stop {VIP}")).contains("nothing to undo"));
}

#[test]
fn faults_of_direct_routing_are_named() {
    let Some(mut topology) = server("rs-dr-faults") else {
        return;
    };
    let folder = topology.cluster.directory().join("rs");
    let host = &mut topology.servers[0];
    let check = format!("dr check {VIP}");
    Script { host, folder: &folder }.good(&format!("dr start {VIP}"));
    host.set_sysctl("net.ipv4.conf.all.arp_announce", "1").unwrap();
    Script { host, folder: &folder }.wrong(&check, "arp_announce is 1 on eth0");
    // The interface's own value counts too: the kernel takes the larger.
    host.set_sysctl("net.ipv4.conf.eth0.arp_announce", "2").unwrap();
    Script { host, folder: &folder }.good(&check);
    host.delete_address("lo", VIP.parse().unwrap(), 32).unwrap();
    host.add_address("lo", VIP.parse().unwrap(), 24).unwrap();
    Script { host, folder: &folder }.wrong(&check, "on lo as 172.25.7.200/24, not /32");
    host.delete_address("lo", VIP.parse().unwrap(), 24).unwrap();
    host.add_address("eth0", VIP.parse().unwrap(), 32).unwrap();
    Script { host, folder: &folder }.wrong(&check, "the VIP is on eth0");
}

#[test]
fn tunnel_without_ipip_says_what_to_run_and_sets_the_rest_up() {
    let Some(mut topology) = server("rs-tun") else { return };
    let folder = topology.cluster.directory().join("rs");
    let host = &mut topology.servers[0];
    if host.link("tunl0").is_ok() {
        netns::say("TUNNEL WITHOUT IPIP NOT TESTED: this kernel has ipip");
        return;
    }
    host.set_sysctl("net.ipv4.conf.all.rp_filter", "1").unwrap();
    let script = Script { host, folder: &folder };
    let before = script.state();
    let text = script.good(&format!("tun start {VIP} --interface eth0"));
    assert!(text.contains("run `uvs decap --interface eth0`"), "{text}");
    script.wrong(&format!("tun check {VIP}"), "no tunl0");
    assert_eq!(host.namespace().sysctl("net.ipv4.conf.all.rp_filter").unwrap(), "0");
    // eth0 keeps the check that it had by `all`.
    assert_eq!(host.namespace().sysctl("net.ipv4.conf.eth0.rp_filter").unwrap(), "1");
    script.good(&format!("tun stop {VIP}"));
    assert_eq!(script.state(), before);
}

#[test]
fn tunnel_device_with_reverse_path_filter_is_named() {
    // The fault a reader of the first document met: newer systems have rp_filter on, and what tunl0 unwraps is
    // dropped without a word. The device here is no tunnel, but it has the name.
    let Some(mut topology) = server("rs-rp") else { return };
    let folder = topology.cluster.directory().join("rs");
    let host = &mut topology.servers[0];
    if host.link("tunl0").is_err() {
        let end = |name| VethEnd {
            name,
            namespace: None,
            mac: None,
        };
        host.netlink().create_veth([end("tunl0"), end("other")], 1).unwrap();
    }
    host.set_sysctl("net.ipv4.conf.tunl0.rp_filter", "0").unwrap();
    let check = format!("tun check {VIP} --interface eth0");
    let before = Script { host, folder: &folder }.state();
    Script { host, folder: &folder }.wrong(&check, "tunl0 is down");
    Script { host, folder: &folder }.good(&format!("tun start {VIP}"));
    Script { host, folder: &folder }.good(&check);
    for (place, value, words) in [
        ("tunl0", "1", "rp_filter is strict (own 1, all 0) on tunl0"),
        ("all", "1", "rp_filter is strict (own 0, all 1) on tunl0"),
    ] {
        host.set_sysctl(&format!("net.ipv4.conf.{place}.rp_filter"), value)
            .unwrap();
        Script { host, folder: &folder }.wrong(&check, words);
        host.set_sysctl(&format!("net.ipv4.conf.{place}.rp_filter"), "0")
            .unwrap();
    }
    // Loose: enough of an address is on it.
    host.set_sysctl("net.ipv4.conf.all.rp_filter", "2").unwrap();
    Script { host, folder: &folder }.good(&check);
    host.set_sysctl("net.ipv4.conf.all.rp_filter", "0").unwrap();
    Script { host, folder: &folder }.good(&format!("tun stop {VIP}"));
    assert_eq!(Script { host, folder: &folder }.state(), before);
}

#[test]
fn nat_sets_the_way_back_and_restores_it() {
    let Some(topology) = server("rs-nat") else { return };
    let script = Script {
        host: &topology.servers[0],
        folder: &topology.cluster.directory().join("rs"),
    };
    let before = script.state();
    for (vip, director, other) in [
        ("172.25.254.100", "172.25.7.2", "172.25.7.9"),
        ("fd00:254::100", "fd00:7::2", "fd00:7::9"),
    ] {
        script.good(&format!("nat check {vip} --gateway {director}"));
        script.wrong(
            &format!("nat check {vip} --gateway {other}"),
            &format!("is not by the director {other}"),
        );
        script.good(&format!("nat start {vip} --gateway {other}"));
        script.good(&format!("nat check {vip} --gateway {other}"));
        script.wrong(
            &format!("nat check {vip} --gateway {director}"),
            "is not by the director",
        );
        script.good(&format!("nat stop {vip}"));
        assert_eq!(script.state(), before);
    }
    // A gateway that cannot be: refused, and the old route is back.
    let text = script.bad("nat start 172.25.254.100 --gateway 203.0.113.1");
    assert!(text.contains("no default route via 203.0.113.1"), "{text}");
    assert_eq!(script.state(), before);
    script.wrong("nat check 172.25.7.3 --gateway 172.25.7.2", "the VIP is on this server");
}

#[test]
fn servers_set_up_by_it_serve() {
    // Scenario S3 with nothing on the real servers but what the script does.
    for (action, method) in [("dr", Method::Route), ("tun", Method::Tunnel), ("nat", Method::Masq)] {
        let Some(mut s) = support::scenario(&format!("rs-s3-{action}"), Plan::new(Layout::OneSegment)) else {
            return;
        };
        let vip = s.topology.vip(method, Family::V4);
        let bits = if method == Method::Masq { 24 } else { 32 };
        s.topology.director.add_address("eth0", vip, bits).expect("the VIP");
        let folder = s.topology.cluster.directory().join("rs");
        let mut decaps = Vec::new();
        for server in &mut s.topology.servers {
            let nowhere = Route::default_via("172.25.7.99".parse().unwrap());
            server.add_route(&nowhere).expect("a way back that leads nowhere");
            let script = Script {
                host: server,
                folder: &folder,
            };
            let gateway = if action == "nat" { "--gateway 172.25.7.2" } else { "" };
            script.good(&format!("{action} start {vip} {gateway} --interface eth0"));
            if action == "tun" && server.link("tunl0").is_err() {
                decaps.push(start_decap(server, support::program(), "eth0").expect("uvs decap"));
            }
            let script = Script {
                host: server,
                folder: &folder,
            };
            script.good(&format!("{action} check {vip} {gateway} --interface eth0"));
        }
        s.start(&[]).expect("the director starts");
        s.add_service(method, Family::V4, "-s rr").expect("the rules");
        for name in ["server4-hk", "server3-hk"] {
            assert_eq!(s.request(method, Family::V4).expect("an answer"), name, "{action}");
        }
        support::assert_balanced(&mut s);
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    let Some(topology) = server("rs-usage") else { return };
    let script = Script {
        host: &topology.servers[0],
        folder: &topology.cluster.directory().join("rs"),
    };
    for (arguments, words) in [
        ("", "METHOD, ACTION and VIP"),
        ("lvs start 10.0.0.1", "method lvs"),
        ("dr go 10.0.0.1", "action go"),
        ("dr start 10.0.0.1/24", "without prefix length"),
        ("dr start 10.0.0.1 --force", "unknown option --force"),
        ("nat start 10.0.0.1", "needs --gateway"),
    ] {
        let output = script.run(arguments);
        let text = text_of(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {text}");
        assert!(
            text.contains(words) && text.contains("real-server dr  start|stop|check"),
            "{arguments}: {text}"
        );
    }
    assert!(
        script
            .bad("dr check 10.0.0.1 --interface nothere")
            .contains("no interface nothere")
    );
}
