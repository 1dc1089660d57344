//! Good files, refused files with file, line, key and reason, and the examples in configs/.

use super::super::protocol::CommandError;
use super::*;

fn no_rules(_: &str) -> Result<Vec<(usize, Command)>, RulesError> {
    panic!("these are no rules")
}

fn read(text: &str) -> Result<Config, ConfigError> {
    parse(Path::new("uvs.toml"), text, no_rules)
}

#[test]
fn a_full_file_becomes_a_state() {
    let config = read(
        r#"
        interfaces = ["eth0", "eth1"]
        driver = "raw"
        workers = 2
        connections = 4096
        state_dir = "/tmp/state"
        [timeouts]
        tcp_fin = 60
        [sysctl]
        expire_nodest_conn = 1
        sync_threshold = "5 100"
        [[mark]]
        mark = 7
        protocol = "tcp"
        destination = "192.0.2.1"
        destination_port = 80
        [[mark]]
        mark = 8
        source = "2001:db8::/32"
        source_port = "1024-65535"
        destination_port = "443"
        interface = "eth1"
        [[service]]
        tcp = "[2001:db8::1]:443"
        scheduler = "sh"
        scheduler_flags = ["sh-port"]
        persistent = 300
        persistent_mask = "/64"
        [[service.destination]]
        address = "2001:db8:1::1"
        method = "masq"
        weight = 5
        upper_threshold = 100
        lower_threshold = 50
        [[service.destination]]
        address = "10.0.0.9:4430"
        method = "tunnel"
        tunnel = "gue"
        tunnel_port = 6080
        tunnel_checksum = "csum"
        [[service]]
        fwmark = 7
        persistent = 10
        persistent_mask = "255.255.255.0"
        one_packet = true
        "#,
    )
    .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.daemon.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.daemon.driver, Some(DriverChoice::Raw));
    assert_eq!(
        (config.daemon.workers, config.daemon.connections),
        (Some(2), Some(4096))
    );
    assert_eq!(config.daemon.state_dir.as_deref(), Some(Path::new("/tmp/state")));
    let state = config.desired;
    assert_eq!(
        state.timeouts,
        Timeouts {
            tcp_fin: 60,
            ..Timeouts::default()
        }
    );
    assert_eq!(
        (state.sysctls.expire_nodest_conn, state.sysctls.sync_threshold),
        (1, [5, 100])
    );
    let marks: Vec<_> = state.marks().iter().map(|rule| rule.to_string()).collect();
    assert_eq!(
        marks,
        [
            "7 --protocol tcp --destination 192.0.2.1 --destination-port 80",
            "8 --source 2001:db8::/32 --source-port 1024-65535 --destination-port 443 --interface eth1"
        ]
    );
    let services: Vec<_> = state.services().collect();
    let web = &services[0].service;
    assert_eq!(
        web.persistence,
        Some(Persistence {
            timeout_s: 300,
            mask: 64
        })
    );
    assert_eq!(
        (web.scheduler.as_str(), web.scheduler_flags.as_slice()),
        ("sh", &["sh-port".to_owned()][..])
    );
    let destinations: Vec<_> = services[0].destinations().collect();
    assert_eq!(destinations[1].key.port, 443);
    assert_eq!((destinations[1].weight, destinations[1].upper_threshold), (5, 100));
    let gue = Tunnel {
        kind: TunnelKind::Gue,
        port: 6080,
        checksum: TunnelChecksum::Csum,
    };
    assert_eq!((destinations[0].key.port, destinations[0].tunnel), (443, gue));
    let mark = &services[1].service;
    assert_eq!(
        (mark.key, mark.one_packet),
        (ServiceKey::FwMark { mark: 7, ipv6: false }, true)
    );
    assert_eq!(
        mark.persistence,
        Some(Persistence {
            timeout_s: 10,
            mask: 0xffff_ff00
        })
    );
}

#[test]
fn refusals_name_file_line_key_and_reason() {
    let service = "[[service]]\ntcp = \"10.0.0.1:80\"\n";
    let destination = "[[service.destination]]\naddress = \"10.1.0.1\"\n";
    let cases = [
        ("workers = 0", "uvs.toml:1: workers: 0 is not 1 to 256"),
        (
            "\nworkers = \"two\"",
            "uvs.toml:2: workers: invalid type: string \"two\", expected i64",
        ),
        (
            "\n\nworkrs = 2",
            "uvs.toml:3: workrs: unknown field `workrs`, expected one of",
        ),
        ("workers = ", "uvs.toml:1: workers: "),
        (
            "driver = \"dpdk\"",
            "uvs.toml:1: driver: \"dpdk\" is none of auto, xdp, afxdp, raw",
        ),
        (
            "interfaces = []",
            "uvs.toml:1: interfaces: 0 interfaces are not 1 to 16",
        ),
        (
            "interfaces = [\"a\", \"a\"]",
            "uvs.toml:1: interfaces: \"a\" stands there twice",
        ),
        (
            "interfaces = [\"abcdefghijklmnop\"]",
            "uvs.toml:1: interfaces: \"abcdefghijklmnop\" is no interface name",
        ),
        (
            "connections = 10",
            "uvs.toml:1: connections: 10 is not 1024 to 67108864",
        ),
        ("[timeouts]\nudp = 0", "uvs.toml:2: timeouts.udp: 0 is not 1 to 2678400"),
        (
            "[sysctl]\nfoo = 1",
            "uvs.toml:2: sysctl.foo: Invalid argument: no setting named net.ipv4.vs.foo",
        ),
        (
            "[sysctl]\ndrop_entry = 4",
            "uvs.toml:2: sysctl.drop_entry: Invalid argument: net.ipv4.vs.drop_entry: \"4\"",
        ),
        (
            "[sysctl]\nsloppy_tcp = true",
            "uvs.toml:2: sysctl.sloppy_tcp: a boolean is neither",
        ),
        (
            "[[service]]\nscheduler = \"rr\"",
            "uvs.toml:1: service: exactly one of tcp, udp, sctp and fwmark",
        ),
        (
            "[[service]]\ntcp = \"10.0.0.1\"",
            "uvs.toml:2: tcp: \"10.0.0.1\" is no address with port",
        ),
        (
            "[[mark]]\nprotocol = \"tcp\"",
            "uvs.toml:1: mark: a rule needs the mark that it gives",
        ),
        ("[[mark]]\nmark = 0", "uvs.toml:2: mark: 0 is not 1 to 4294967295"),
        (
            "[[mark]]\nmark = 1\nprotocol = \"gre\"",
            "uvs.toml:3: protocol: \"gre\" is none of any, tcp, udp, sctp",
        ),
        (
            "[[mark]]\nmark = 1\ndestination = \"192.0.2.1/24\"",
            "uvs.toml:3: destination: \"192.0.2.1/24\": bits are set beyond the prefix; 192.0.2.0/24 is meant",
        ),
        (
            "[[mark]]\nmark = 1\ndestination_port = \"80,443\"",
            "uvs.toml:3: destination_port: \"80,443\" is no port or range of ports",
        ),
        (
            "[[mark]]\nmark = 1\nsource_port = 65536",
            "uvs.toml:3: source_port: \"65536\" is no port",
        ),
        (
            "[[mark]]\nmark = 1\nsource_port = [80]",
            "uvs.toml:3: source_port: a port such as 80, or a range",
        ),
        (
            "[[mark]]\nmark = 1\nsource = \"::/0\"\ndestination = \"192.0.2.1\"",
            "uvs.toml:1: mark: source ::/0 and destination 192.0.2.1 are of different address families",
        ),
        (
            "[[mark]]\nmark = 1\n[[mark]]\nmark = 1",
            "uvs.toml:3: mark: rule number 1 is the same: `1`",
        ),
        (
            "[[service]]\nfwmark = 0",
            "uvs.toml:2: fwmark: 0 is not 1 to 4294967295",
        ),
        (
            "[[service]]\ntcp = \"10.0.0.1:0\"",
            "uvs.toml:2: service tcp 10.0.0.1:0: Invalid argument: a service with port 0",
        ),
        (
            &format!("{service}{service}"),
            "uvs.toml:4: service tcp 10.0.0.1:80: Service already exists",
        ),
        (
            &format!("{service}scheduler = \"best\""),
            "uvs.toml:2: service tcp 10.0.0.1:80: Scheduler or persistence",
        ),
        (
            &format!("{service}persistent = 0"),
            "uvs.toml:3: persistent: 0 is not 1 to 2678400",
        ),
        (
            &format!("{service}persistent_mask = \"/33\""),
            "uvs.toml:3: persistent_mask: \"/33\" is not /0 to /32",
        ),
        (
            &format!("{service}{destination}{destination}"),
            "uvs.toml:6: service tcp 10.0.0.1:80, destination 10.1.0.1: Dest",
        ),
        (
            &format!("{service}{destination}weight = -1"),
            "uvs.toml:5: weight: -1 is not 0 to 2147483647",
        ),
        (
            &format!("{service}{destination}lower_threshold = 5"),
            "uvs.toml:4: service tcp 10.0.0.1:80, destination 10.1.0.1: Num",
        ),
        (
            &format!("{service}{destination}method = \"dr\""),
            "uvs.toml:5: method: unknown variant `dr`, expected one of",
        ),
        (
            &format!("{service}[[service.destination]]\naddress = \"web1\""),
            "uvs.toml:4: address: \"web1\" is no address",
        ),
        (
            &format!("{service}[[service.destination]]\nweight = 1"),
            "uvs.toml:3: missing field `address`",
        ),
    ];
    for (text, expected) in cases {
        let error = read(text).expect_err(text).to_string();
        assert!(
            error.starts_with(expected),
            "{text:?} gave\n  {error}\ninstead of\n  {expected}"
        );
    }
}

#[test]
fn a_missing_file_and_rules() {
    let error = load(Path::new("/nonexistent/uvs.toml"), no_rules).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nonexistent/uvs.toml: No such file or directory (os error 2)"
    );

    // A parser that knows `-C`, fails on `-X`, and takes any other line as a wrong command.
    let rules: RulesParser = |text| {
        let lines = text.lines().enumerate().map(|(n, line)| (n + 1, line));
        lines
            .map(|(line, text)| match text {
                "-C" => Ok((line, Command::Clear)),
                "-X" => Err(RulesError {
                    line,
                    reason: "no option -X".to_owned(),
                }),
                _ => Ok((
                    line,
                    Command::SetSysctl {
                        name: text.to_owned(),
                        value: String::new(),
                    },
                )),
            })
            .collect()
    };
    let path = Path::new("rules");
    let config = parse(path, "-C\n-C\n", rules).unwrap();
    assert!(!config.complete && config.desired.services().len() == 0);
    assert_eq!(
        parse(path, "-C\n-X\n", rules).unwrap_err().to_string(),
        "rules:2: no option -X"
    );
    let refused = parse(path, "-C\n-C\n-n\n", rules).unwrap_err();
    assert_eq!(refused.line, Some(3));
    assert!(
        refused
            .reason
            .starts_with(&CommandError::Invalid(String::new()).to_string())
    );
}

#[test]
fn contents_are_told_apart() {
    assert_eq!(read("").unwrap().fingerprint, fingerprint(""));
    assert_ne!(fingerprint("workers = 1"), fingerprint("workers = 2"));
    // The published FNV-1a value of "a": it must not change between versions.
    assert_eq!(fingerprint("a"), 0xaf63_dc4c_8601_ec8c);
}
