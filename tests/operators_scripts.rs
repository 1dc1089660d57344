//! What operators have that calls ipvsadm: ldirectord, mon's alert script, Debian's init script, pipes of the shell. All
//! unchanged, on a director that runs uvs.
//!
//! How: `ipvsadm`, `ipvsadm-save` and `ipvsadm-restore` are links to uvs, on PATH; for programs that insist on
//! `/sbin/ipvsadm` uvs is mounted there, in a mount namespace of theirs alone. Web servers stop and start, tables and clients tell
//! what became of it. Goal: whoever drives IPVS by ipvsadm drives uvs, and clients see no dead server.
//!
//! ldirectord and the init script need Debian's `ldirectord` (which brings `ipvsadm`) and `libnet-inet6glue-perl`, and run with `UVS_REAL_PROGRAMS=1` alone; a
//! program that is missing is then a failure.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

mod support;

use support::{
    FAMILIES, Family, Host, HttpServer, Layout, METHODS, Method, Plan, Process, REQUEST_MAX, Scenario, assert_balanced,
    http, method_flag, programs, scenario, with_port,
};
use uvs::options::SOCKET_VARIABLE;

/// Where the web servers listen that these tests stop and start; the scenario's own have port 80.
const WEB: u16 = 8000;
/// The firewall mark of a service, and the port of its packets.
const MARK: (u32, u16) = (7, 8001);
/// How long ldirectord may take to see what became of a server; it looks every second.
const NOTICE_MAX: Duration = Duration::from_secs(10);

/// A director with the links that the README tells to make, and two real servers.
struct Site {
    /// Of the two real servers, both ports; none while stopped.
    web: [Vec<HttpServer>; 2],
    s: Scenario,
    links: PathBuf,
}

impl Site {
    fn start(label: &str, driver: &str, cases: &[(Method, Family)]) -> Option<Site> {
        let mut s = scenario(&format!("{label}-{driver}"), Plan::new(Layout::OneSegment))?;
        for (method, family) in cases {
            s.offer(*method, *family).expect("the VIP");
        }
        s.start(&["--driver", driver]).expect("the director starts");
        let links = s.topology.cluster.directory().join("bin");
        fs::create_dir(&links).expect("a folder");
        for name in ["ipvsadm", "ipvsadm-save", "ipvsadm-restore"] {
            symlink(support::program(), links.join(name)).expect("a link");
        }
        let mut site = Site {
            web: Default::default(),
            s,
            links,
        };
        site.start_web(0);
        site.start_web(1);
        Some(site)
    }

    fn start_web(&mut self, n: usize) {
        let server = &self.s.topology.servers[n];
        self.web[n] = [WEB, MARK.1].map(|port| web_server(server, port, server.name())).into();
    }

    fn stop_web(&mut self, n: usize) {
        self.web[n].clear();
    }

    /// A program in the director's namespace that finds uvs as ipvsadm, by PATH.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.s.topology.director.command(program).expect("a command");
        let path = std::env::var("PATH").expect("PATH");
        command.env("PATH", format!("{}:{path}", self.links.display()));
        command.env(SOCKET_VARIABLE, self.s.topology.cluster.directory().join("uvs.sock"));
        command
    }

    /// A line of shell, which must succeed.
    fn shell(&self, line: &str) -> String {
        text(&self.run(self.command("sh").args(["-c", line]), ""), line)
    }

    /// Runs to the end, with `input` on standard input; whatever comes out.
    fn run(&self, command: &mut Command, input: &str) -> Output {
        let pipes = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = pipes.spawn().expect("the program is there");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }

    /// A program to which uvs is also `/sbin/ipvsadm`, and each of `files` is at its second path.
    fn command_with_sbin(&self, files: &[(&Path, &str)], program: &str) -> Command {
        assert!(
            Path::new("/sbin/ipvsadm").exists(),
            "ldirectord is needed, which brings ipvsadm"
        );
        let mounts = [(support::program(), "/sbin/ipvsadm")]
            .into_iter()
            .chain(files.iter().copied());
        let mounts: Vec<_> = mounts
            .map(|(from, to)| format!("mount --bind {} {to}", from.display()))
            .collect();
        let mut command = self.command("unshare");
        let line = format!("{} && exec {program}", mounts.join(" && "));
        command.args(["--mount", "sh", "-c", &line]);
        command
    }

    fn ipvsadm(&mut self, arguments: &str) -> String {
        support::ipvsadm(&mut self.s, arguments)
    }

    fn service(&self, method: Method, family: Family) -> SocketAddr {
        SocketAddr::new(self.s.topology.vip(method, family), WEB)
    }

    fn real(&self, n: usize, family: Family, port: u16) -> String {
        with_port(self.s.topology.server_address(n, family), port)
    }

    /// Server, method and weight of each destination of a service, as `ipvsadm -ln` lists them; none without the service.
    fn destinations(&mut self, service: &str) -> Vec<String> {
        let arguments = format!("ipvsadm -ln {service}");
        let arguments: Vec<_> = arguments.split(' ').collect();
        let output = self
            .s
            .director()
            .expect("a director")
            .output(&arguments)
            .expect("uvs is there");
        let listing = String::from_utf8(output.stdout).expect("text");
        let rows = listing.lines().filter_map(|line| line.strip_prefix("  -> "));
        rows.map(|row| row.split_ascii_whitespace().take(3).collect::<Vec<_>>().join(" "))
            .filter(|row| !row.starts_with("RemoteAddress"))
            .collect()
    }

    /// Who answers `count` clients, one after the other.
    fn answers(&self, service: SocketAddr, count: usize) -> Vec<String> {
        let client = self.s.topology.client.namespace();
        let answer = |_| http::get(client, service, REQUEST_MAX).unwrap_or_else(|error| error.to_string());
        (0..count).map(answer).collect()
    }
}

/// A web server on a port of every address of a host.
fn web_server(host: &Host, port: u16, name: &str) -> HttpServer {
    let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    HttpServer::start(host.namespace(), everywhere, name).expect("the port is free")
}

fn cases() -> impl Iterator<Item = (Method, Family)> {
    METHODS
        .into_iter()
        .flat_map(|method| FAMILIES.map(|family| (method, family)))
}

/// What a program printed, which must have succeeded without a complaint.
fn text(output: &Output, what: &str) -> String {
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{what}: {output:?}"
    );
    String::from_utf8(output.stdout.clone()).expect("text")
}

// --- mon's alert script -------------------------------------------------------------------------------------------------

/// The alert of the seminar's cluster: out when down, in with weight 100 and its forwarding method when up.
fn mon_alert(driver: &str) {
    let all: Vec<_> = cases().collect();
    let Some(mut site) = Site::start("alert", driver, &all) else {
        return;
    };
    for (method, family) in all {
        let service = site.service(method, family);
        let (row, word) = match method {
            Method::Masq => ("Masq", "nat"),
            Method::Tunnel => ("Tunnel", "tun"),
            Method::Route => ("Route", "dr"),
        };
        site.ipvsadm(&format!("-A -t {service} -s wlc"));
        let reals = [site.real(0, family, WEB), site.real(1, family, WEB)];
        for real in &reals {
            site.ipvsadm(&format!("-a -t {service} -r {real} {} -w 100", method_flag(method)));
        }
        let alert = |site: &Site, up: bool| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/operators_scripts/lvs.alert");
            let mut command = site.command(script);
            command.args(["-s", "http", "-g", "web", "-h", "server3", "-t", "1100000000"]);
            command.args(up.then_some("-u"));
            command.args(["-P", "tcp", "-V", &service.to_string(), "-R", &reals[0], "-F", word]);
            site.run(&mut command, "server3\nHTTP/1.0 GET failed: Connection refused\n")
        };
        let both = [format!("{} {row} 100", reals[0]), format!("{} {row} 100", reals[1])];
        let at = format!("-t {service}");
        assert_eq!(site.destinations(&at), both);

        site.stop_web(0);
        assert_eq!(text(&alert(&site, false), "down"), "down: server3\n");
        assert_eq!(site.destinations(&at), both[1..], "{driver} {service}");
        assert_eq!(site.answers(service, 4), ["server4"; 4], "{driver} {service}");
        // mon repeats an alert as long as the server is down.
        let again = alert(&site, false);
        let said = String::from_utf8_lossy(&again.stderr);
        assert_eq!((again.status.code(), &*said), (Some(255), "No such destination\n"));

        site.start_web(0);
        assert_eq!(text(&alert(&site, true), "up"), "");
        assert_eq!(site.destinations(&at), both, "{driver} {service}");
        let mut answers = site.answers(service, 8);
        answers.sort();
        answers.dedup();
        assert_eq!(answers, ["server3", "server4"], "{driver} {service}");
        let again = alert(&site, true);
        let said = String::from_utf8_lossy(&again.stderr);
        assert_eq!(
            (again.status.code(), &*said),
            (Some(255), "Destination already exists\n")
        );
    }
    assert_balanced(&mut site.s);
}

#[test]
fn mon_alert_by_raw() {
    mon_alert("raw");
}

#[test]
fn mon_alert_by_xdp() {
    mon_alert("xdp");
}

// --- ldirectord ---------------------------------------------------------------------------------------------------------

/// One virtual service as ldirectord's configuration has it.
struct Virtual {
    /// Where clients find it.
    service: SocketAddr,
    /// How ipvsadm is asked for it.
    at: String,
    reals: [String; 2],
    row: &'static str,
    fallback: String,
    /// A server that is down stays with weight 0, or is deleted.
    quiescent: bool,
    /// The client stays with one server as long as that is up.
    persistent: bool,
    configuration: String,
}

impl Virtual {
    /// IPv4 services quiesce their servers, IPv6 services delete them; those that have a mark are persistent.
    fn new(site: &Site, method: Method, family: Family, mark: Option<(u32, u16)>) -> Virtual {
        let port = mark.map_or(WEB, |(_, port)| port);
        let service = SocketAddr::new(site.s.topology.vip(method, family), port);
        let reals = [0, 1].map(|n| site.real(n, family, port));
        let quiescent = family == Family::V4;
        let (six, own) = match family {
            Family::V4 => ("", IpAddr::from(Ipv4Addr::LOCALHOST)),
            Family::V6 => ("6", IpAddr::from(Ipv6Addr::LOCALHOST)),
        };
        let fallback = with_port(own, port);
        let (row, word) = match method {
            Method::Masq => ("Masq", "masq"),
            Method::Tunnel => ("Tunnel", "ipip"),
            Method::Route => ("Route", "gate"),
        };
        let (name, at, protocol) = match (mark, family) {
            (None, _) => (service.to_string(), format!("-t {service}"), "tcp"),
            (Some((mark, _)), Family::V4) => (mark.to_string(), format!("-f {mark}"), "fwm"),
            (Some((mark, _)), Family::V6) => (mark.to_string(), format!("-f {mark} -6"), "fwm"),
        };
        let mut configuration = format!("virtual{six}={name}\n");
        for real in &reals {
            configuration += &format!("\treal{six}={real} {word} 100\n");
        }
        configuration += &format!(
            "\tfallback{six}={fallback} gate\n\tservice=http\n\tcheckport={WEB}\n\trequest=\"/\"\n\treceive=\"server\"\n\
             \tscheduler=wlc\n\tprotocol={protocol}\n\tchecktype=negotiate\n\tquiescent={}\n",
            if quiescent { "yes" } else { "no" }
        );
        if mark.is_some() {
            configuration += "\tpersistent=600\n";
        }
        configuration.push('\n');
        Virtual {
            service,
            at,
            reals,
            row,
            fallback,
            quiescent,
            persistent: mark.is_some(),
            configuration,
        }
    }

    /// The rows of the table when these servers are up.
    fn rows(&self, up: [bool; 2]) -> Vec<String> {
        let mut rows = Vec::new();
        if up == [false, false] {
            rows.push(format!("{} Route 1", self.fallback));
        }
        for (real, up) in self.reals.iter().zip(up) {
            if up || self.quiescent {
                rows.push(format!("{real} {} {}", self.row, if up { 100 } else { 0 }));
            }
        }
        rows.sort();
        rows
    }
}

/// ldirectord with services of all methods and of marks: servers stop and come back, all of them stop, ldirectord ends.
fn ldirectord(driver: &str) {
    if !programs::wanted() {
        return;
    }
    let all: Vec<_> = cases().collect();
    let Some(mut site) = Site::start("ldirectord", driver, &all) else {
        return;
    };
    let _fallback = [WEB, MARK.1].map(|port| web_server(&site.s.topology.director, port, "fallback"));
    let mut virtuals: Vec<_> = all
        .iter()
        .map(|(method, family)| Virtual::new(&site, *method, *family, None))
        .collect();
    for family in FAMILIES {
        let marked = Virtual::new(&site, Method::Route, family, Some(MARK));
        let vip = marked.service.ip();
        let rule = format!("mark add {} -p tcp -d {vip} --dport {}", MARK.0, MARK.1);
        let director = site.s.director().expect("a director");
        let rule: Vec<_> = rule.split(' ').collect();
        assert!(director.output(&rule).expect("uvs mark").status.success(), "{rule:?}");
        virtuals.push(marked);
    }
    for (method, family) in all.iter().filter(|(_, family)| *family == Family::V6) {
        // Else the director itself would ask its servers from the VIP, which they have too, and get no answer.
        let vip = site.s.topology.vip(*method, *family);
        let bits = if *method == Method::Masq { 64 } else { 128 };
        site.shell(&format!("ip address change {vip}/{bits} dev eth0 preferred_lft 0"));
    }
    // A server that is down keeps no client by a template, as ldirectord's manual wants it set.
    let director = site.s.director().expect("a director");
    let setting = director.output(&["sysctl", "-w", "net.ipv4.vs.expire_quiescent_template=1"]);
    assert!(setting.expect("uvs sysctl").status.success());

    let mut configuration =
        "checktimeout=2\nnegotiatetimeout=2\ncheckinterval=1\nsupervised=yes\ncleanstop=yes\n\n".to_owned();
    for one in &virtuals {
        configuration += &one.configuration;
    }
    let file = site.s.topology.cluster.directory().join("ldirectord.cf");
    fs::write(&file, configuration).expect("a file");
    let mut command = site.command_with_sbin(&[], &format!("ldirectord {} start", file.display()));
    let mut process = Process::start("ldirectord", &mut command).expect("unshare is there");

    let expect = |site: &mut Site, process: &mut Process, up: [bool; 2], names: &[&str]| {
        let end = Instant::now() + NOTICE_MAX;
        for one in &virtuals {
            loop {
                let mut rows = site.destinations(&one.at);
                rows.sort();
                if rows == one.rows(up) {
                    break;
                }
                let late = Instant::now() > end || process.try_wait().expect("a process").is_some();
                assert!(!late, "{driver} {}: {rows:?}\n{}", one.at, process.output());
                std::thread::sleep(Duration::from_millis(50));
            }
            let mut answers = site.answers(one.service, 6);
            answers.sort();
            answers.dedup();
            if one.persistent {
                assert!(
                    answers.len() == 1 && names.contains(&&*answers[0]),
                    "{driver} {}: {answers:?}",
                    one.at
                );
            } else {
                assert_eq!(answers, names, "{driver} {}", one.at);
            }
        }
    };
    let both = ["server3", "server4"];
    expect(&mut site, &mut process, [true, true], &both);
    site.stop_web(0);
    expect(&mut site, &mut process, [false, true], &both[1..]);
    // An upgrade of the daemon in between is nothing that ldirectord would notice.
    site.s
        .start(&["--driver", driver, "--takeover"])
        .expect("the next one starts");
    site.stop_web(1);
    expect(&mut site, &mut process, [false, false], &["fallback"]);
    site.start_web(0);
    expect(&mut site, &mut process, [true, false], &both[..1]);
    site.start_web(1);
    expect(&mut site, &mut process, [true, true], &both);
    // Told to end, it takes its services away.
    process.signal(15).expect("SIGTERM");
    process.wait(NOTICE_MAX).expect("it ends");
    assert_eq!(site.ipvsadm("-ln").lines().count(), 3, "{driver}: {}", process.output());
    assert_balanced(&mut site.s);
}

#[test]
fn ldirectord_by_raw() {
    ldirectord("raw");
}

#[test]
fn ldirectord_by_xdp() {
    ldirectord("xdp");
}

// --- pipes, rules files, init scripts -----------------------------------------------------------------------------------

/// Rules of `services` services with two destinations each, as `ipvsadm-save -n` prints them.
fn many_rules(services: u16) -> String {
    let service = |n: u16| {
        let at = format!("172.25.7.200:{}", 10_000 + n);
        format!("-A -t {at} -s wlc -p 300\n-a -t {at} -r 172.25.7.3:80 -m -w 5\n-a -t {at} -r 172.25.7.4:80 -m -w 5\n")
    };
    (0..services).map(service).collect()
}

#[test]
fn pipes_of_the_shell() {
    let Some(mut site) = Site::start("pipes", "raw", &[]) else {
        return;
    };
    let folder = site.s.topology.cluster.directory().join("rules");
    fs::create_dir(&folder).expect("a folder");
    let rules = many_rules(300);
    fs::write(folder.join("in"), format!("# written by hand\n\n{rules}")).expect("a file");
    let at = folder.display();

    site.shell(&format!("grep -v '^#' {at}/in | ipvsadm -R"));
    assert_eq!(site.shell("ipvsadm-save -n"), rules);
    // With comments, over a table that is not empty.
    site.shell(&format!("ipvsadm-restore < {at}/in"));
    assert_eq!(site.shell("ipvsadm -Sn"), rules);
    site.shell("ipvsadm-save | ipvsadm-restore && ipvsadm-save -n | ipvsadm-restore");
    assert_eq!(site.shell("ipvsadm-save -n"), rules);

    // Everybody's monitoring: weights by server, services, servers out of service.
    let weights = "ipvsadm -Ln | awk '$1 == \"->\" && $2 ~ /^172.25.7.3:/ { sum += $4 } END { print sum }'";
    assert_eq!(site.shell(weights), "1500\n");
    assert_eq!(site.shell("ipvsadm -Ln | grep -c ^TCP"), "300\n");
    site.shell("ipvsadm -e -t 172.25.7.200:10000 -r 172.25.7.3:80 -m -w 0");
    let quiet = "ipvsadm -Ln | awk '/^TCP/ { s = $2 } $1 == \"->\" && $4 == 0 { print s, $2 }'";
    assert_eq!(site.shell(quiet), "172.25.7.200:10000 172.25.7.3:80\n");
    assert_eq!(site.shell("ipvsadm -Ln --rate | sed -n 4p | awk '{ print NF }'"), "7\n");
    assert_eq!(
        site.shell("ipvsadm -Ln | head -n 1"),
        "IP Virtual Server version 1.2.1 (size=4096)\n"
    );
    site.shell("ipvsadm -C");
    assert_eq!(site.shell("ipvsadm-save -n; ipvsadm -L --daemon"), "");
    assert_balanced(&mut site.s);
}

/// Debian's `/etc/init.d/ipvsadm` and its `ipvsadm-save` and `ipvsadm-restore`, as they are.
#[test]
fn debians_scripts() {
    if !programs::wanted() {
        return;
    }
    let Some(mut site) = Site::start("init", "raw", &[]) else {
        return;
    };
    let folder = site.s.topology.cluster.directory().to_owned();
    let (rules_file, settings) = (folder.join("ipvsadm.rules"), folder.join("default"));
    let rules = many_rules(3);
    fs::write(&rules_file, format!("# ipvsadm.rules\n{rules}")).expect("a file");
    let run = |site: &Site, daemon: &str, line: &str| {
        fs::write(&settings, format!("AUTO=true\nDAEMON={daemon}\nIFACE=eth0\n")).expect("a file");
        let files = [
            (rules_file.as_path(), "/etc/ipvsadm.rules"),
            (settings.as_path(), "/etc/default/ipvsadm"),
        ];
        let mut command = site.command_with_sbin(&files, line);
        // Where systemd runs, the script would hand over to it.
        command.env("SYSTEMCTL_SKIP_REDIRECT", "1");
        site.run(&mut command, "")
    };
    let init = |site: &Site, word: &str| {
        let line = format!("/etc/init.d/ipvsadm {word}");
        text(&run(site, "none", &line), &line)
    };

    init(&site, "start");
    assert_eq!(site.ipvsadm("-Sn"), rules);
    assert_eq!(init(&site, "status"), site.ipvsadm("-ln"));
    assert_eq!(init(&site, "rate"), site.ipvsadm("-ln --rate"));
    site.ipvsadm("-D -t 172.25.7.200:10001");
    init(&site, "save");
    let saved = site.ipvsadm("-Sn");
    assert_eq!(saved.lines().count(), 6);
    assert_eq!(
        fs::read_to_string(&rules_file).expect("saved"),
        format!("# ipvsadm.rules\n{saved}")
    );
    site.ipvsadm("-C");
    for word in ["load", "restart", "reload"] {
        init(&site, word);
        assert_eq!(site.ipvsadm("-Sn"), saved, "{word}");
    }
    init(&site, "stop");
    assert_eq!(site.ipvsadm("-Sn"), "");

    // The sync daemon is refused, the rules are there all the same.
    let output = run(&site, "both", "/etc/init.d/ipvsadm start");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("uvs has no connection sync daemon\n").count(), 2, "{said}");
    assert_eq!(site.ipvsadm("-Sn"), saved);

    let line = "sh -c '/sbin/ipvsadm-save -n | /sbin/ipvsadm-restore && /sbin/ipvsadm-save -n'";
    assert_eq!(text(&run(&site, "none", line), line), saved);
    assert_balanced(&mut site.s);
}
