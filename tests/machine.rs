//! What the machine may do to a director: refuse, be full, be taken, lose an interface.
//!
//! How: each through the real program in a network of its own. Goal: a message that names what, where and why (or a
//! counted drop reason), and nothing else disturbed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use uvs::io::bpf::asm::{Assembler, R0};
use uvs::io::bpf::xdp_link::{self, AttachMode};
use uvs::io::bpf::{Program, ProgramType};

mod support;

use support::load::Load;
use support::{
    Family, FrameSocket, HttpClient, Layout, Method, PORT, Plan, Process, Scenario, netns, program, scenario,
};

const WAIT: Duration = Duration::from_secs(10);

/// A short-lived scenario with direct routing, and no director yet.
fn machine(label: &str) -> Option<Scenario> {
    let mut s = scenario(label, Plan::new(Layout::OneSegment))?;
    s.offer(Method::Route, Family::V4).expect("a VIP");
    Some(s)
}

/// `uvs run` with its own folders below the cluster's.
fn run(s: &Scenario, folder: &str, arguments: &[&str]) -> Command {
    let directory = s.topology.cluster.directory().join(folder);
    let mut command = s.topology.director.command(program()).expect("the namespace is there");
    command.arg("run");
    command.arg("--state-dir").arg(directory.join("state"));
    command.arg("--run-dir").arg(directory.join("run"));
    command.arg("--socket").arg(directory.join("uvs.sock"));
    command.args(arguments);
    command
}

/// Runs it to its end, which must be a failure; what it says.
fn refused(command: &mut Command) -> String {
    let mut process = Process::start("uvs run", command).expect("it starts");
    let status = process.wait(WAIT).expect("it ends by itself");
    let said = process.output();
    assert_eq!(status.code(), Some(1), "{said}");
    said
}

/// The message has all the words, and is one line and no panic.
fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn interfaces_that_cannot_be_served() {
    let Some(mut s) = machine("m-interface") else { return };
    assert_says(
        &refused(&mut run(&s, "a", &["--interface", "eth7"])),
        &["there is no interface eth7"],
    );
    assert_says(
        &refused(&mut run(&s, "a", &["--interface", "eth0", "--interface", "eth0"])),
        &["interface eth0 is given twice"],
    );
    assert_says(
        &refused(&mut run(&s, "a", &["--interface", "lo"])),
        &["interface lo has no Ethernet address"],
    );
    assert_says(&refused(&mut run(&s, "a", &[])), &["no interface given", "--interface"]);
    assert_says(
        &refused(&mut run(
            &s,
            "a",
            &["--interface", "eth0", "--driver", "xdp", "--workers", "2"],
        )),
        &["2 workers", "1 receive queues of interface eth0"],
    );
    s.topology.director.set_up("eth0", false).unwrap();
    assert_says(
        &refused(&mut run(&s, "a", &["--interface", "eth0"])),
        &["interface eth0 is down"],
    );
}

#[test]
fn nobody_but_root() {
    let Some(s) = machine("m-root") else { return };
    // Where another user can read it.
    let copy = s.topology.cluster.directory().join("uvs");
    fs::copy(program(), &copy).unwrap();
    for path in [s.topology.cluster.directory(), &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&copy);
    command.args(["run", "--interface", "lo"]).uid(65534).gid(65534);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_says(&String::from_utf8_lossy(&output.stderr), &["needs root"]);

    // Nor may another user tell a running daemon anything.
    let mut s = s;
    s.start(&[]).unwrap();
    let socket = s.director().unwrap().socket().to_owned();
    let mut command = Command::new(&copy);
    command
        .args(["ipvsadm", "-C"])
        .env("UVS_SOCKET", &socket)
        .uid(65534)
        .gid(65534);
    let output = command.output().unwrap();
    assert_ne!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(said.contains("permi") || said.contains("root"), "{said}");
}

#[test]
fn a_foreign_xdp_program_stays_and_is_named() {
    let Some(s) = machine("m-foreign") else { return };
    let mut s = s;
    let index = s.topology.director.link("eth0").unwrap().index;
    let foreign = s.topology.director.namespace().run(|| {
        let mut code = Assembler::new();
        code.mov_imm(R0, 2); // XDP_PASS
        code.exit();
        let foreign = Program::load(ProgramType::Xdp, "firewall_of_joe", &code.finish()).unwrap();
        xdp_link::attach(index, AttachMode::Native, &foreign, None).unwrap();
        foreign
    });
    let foreign = foreign.unwrap();
    for driver in ["xdp", "auto"] {
        let said = refused(&mut run(&s, "a", &["--interface", "eth0", "--driver", driver]));
        assert_says(&said, &["interface eth0", "firewall_of_joe", "not of uvs"]);
    }
    let attached = s
        .topology
        .director
        .namespace()
        .run(|| xdp_link::query(index).unwrap().programs);
    assert_eq!(attached.unwrap(), [(AttachMode::Native, foreign.info().unwrap().id)]);
    // Packet sockets work behind it.
    s.start(&["--driver", "raw"]).unwrap();
    s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
    s.request(Method::Route, Family::V4).expect("served");
}

#[test]
fn one_uvs_an_interface_a_state_directory_and_a_socket() {
    let Some(mut s) = machine("m-two") else { return };
    s.start(&[]).unwrap();
    s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
    let pid = s.director().unwrap().process().id().to_string();
    let directory = s.topology.cluster.directory().to_owned();
    let said = refused(&mut run(&s, "other", &["--interface", "eth0"]));
    assert_says(&said, &["another uvs", &pid, "--takeover"]);
    // Another interface, the same state directory; then the same socket.
    s.topology.director.netlink().create_bridge("spare").unwrap();
    s.topology.director.set_up("spare", true).unwrap();
    let mut command = s.topology.director.command(program()).unwrap();
    command
        .args(["run", "--interface", "spare", "--driver", "raw", "--state-dir"])
        .arg(directory.join("state"));
    command
        .arg("--run-dir")
        .arg(directory.join("run2"))
        .arg("--socket")
        .arg(directory.join("b.sock"));
    assert_says(&refused(&mut command), &["another uvs", &pid, "state directory"]);
    let mut command = s.topology.director.command(program()).unwrap();
    command
        .args(["run", "--interface", "spare", "--driver", "raw", "--state-dir"])
        .arg(directory.join("state2"));
    command
        .arg("--run-dir")
        .arg(directory.join("run2"))
        .arg("--socket")
        .arg(directory.join("uvs.sock"));
    let said = refused(&mut command);
    assert_says(&said, &["uvs.sock", &pid]);
    // The first one does not notice.
    s.request(Method::Route, Family::V4).expect("served");
    assert!(
        s.director()
            .unwrap()
            .ipvsadm("-ln")
            .unwrap()
            .contains("172.25.7.200:80 rr")
    );
}

#[test]
fn an_interface_that_is_deleted_takes_no_other_along() {
    for driver in ["xdp", "raw"] {
        let Some(mut s) = machine(&format!("m-gone-{driver}")) else {
            return;
        };
        let ends = [("spare0", None), ("spare1", None)].map(|(name, mac)| uvs::io::netlink::VethEnd {
            name,
            namespace: None,
            mac,
        });
        s.topology.director.netlink().create_veth(ends, 1).unwrap();
        for name in ["spare0", "spare1"] {
            s.topology.director.set_up(name, true).unwrap();
        }
        s.start(&["--interface", "spare0", "--driver", driver]).unwrap();
        s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
        let load = Load::start(
            s.topology.client.namespace(),
            &[s.service_address(Method::Route, Family::V4); 2],
        );
        std::thread::sleep(Duration::from_millis(200));
        let index = s.topology.director.link("spare1").unwrap().index;
        s.topology.director.netlink().delete_link(index).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        load.stop_without_failure(&format!("{driver}: an interface is deleted"));
        assert!(
            s.director().unwrap().process().try_wait().unwrap().is_none(),
            "it goes on"
        );
        s.director().unwrap().ipvsadm("-ln").unwrap();
        support::assert_balanced(&mut s);
        let status = s.director().unwrap().process().terminate().unwrap();
        assert!(status.success(), "{driver}: {status}");
    }
}

#[test]
fn a_server_without_neighbour_or_route_is_told_and_counted() {
    let Some(mut s) = machine("m-neighbour") else { return };
    s.topology
        .director
        .set_sysctl("net.ipv4.neigh.eth0.retrans_time_ms", "50")
        .unwrap();
    s.start(&[]).unwrap();
    let vip = "172.25.7.200";
    for (port, server) in [(80, "172.25.7.99"), (81, "198.51.100.1")] {
        let director = s.director().unwrap();
        director.ipvsadm(&format!("-A -t {vip}:{port} -s rr")).unwrap();
        director
            .ipvsadm(&format!("-a -t {vip}:{port} -r {server}:{port} -g"))
            .unwrap();
    }
    std::thread::sleep(Duration::from_millis(500));
    for port in [80, 81] {
        let to = SocketAddr::new(vip.parse().unwrap(), port);
        let error = HttpClient::connect(s.topology.client.namespace(), None, to, Duration::from_secs(3))
            .map(drop)
            .expect_err("nobody is there");
        assert_eq!(error.raw_os_error(), Some(libc_ehostunreach()), "port {port}: {error}");
    }
    let accounting = support::assert_balanced(&mut s);
    assert!(
        accounting.dropped.get("no_route").is_some_and(|n| *n >= 2),
        "{accounting}"
    );
}

/// "No route to host" of Linux.
fn libc_ehostunreach() -> i32 {
    113
}

#[test]
fn a_full_table_keeps_what_is_established() {
    let Some(mut s) = machine("m-full") else { return };
    s.start(&["--connections", "1024"]).unwrap();
    s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
    let connect = |s: &Scenario| s.connect(Method::Route, Family::V4, None);
    let mut open: Vec<HttpClient> = (0..300).map(|_| connect(&s).expect("room")).collect();
    for client in &mut open {
        client.get("/").expect("served");
    }
    let full = |s: &mut Scenario| {
        let accounting = s.accounting().unwrap();
        accounting.dropped.get("table_full").copied().unwrap_or(0)
    };
    // A flood of half-open ones goes round in what is left.
    flood(&mut s, 5000);
    let used = s.director().unwrap().statistics().unwrap()["connections"]["used"]
        .as_u64()
        .unwrap();
    assert!((300..=1100).contains(&used), "{used} of 1024");
    for client in &mut open {
        client.get("/").expect("an established connection is never evicted");
    }
    let mut more = connect(&s).expect("a half-open one makes room");
    more.get("/").expect("served");
    // Only established ones: then new ones are refused, and that is counted.
    let before = full(&mut s);
    let start = Instant::now();
    let to = s.service_address(Method::Route, Family::V4);
    while full(&mut s) == before {
        assert!(start.elapsed() < Duration::from_secs(30), "{} open", open.len());
        for _ in 0..50 {
            let one = HttpClient::connect(s.topology.client.namespace(), None, to, Duration::from_millis(300));
            match one {
                Ok(client) => open.push(client),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
                    break;
                }
            }
        }
    }
    assert!(open.len() > 700, "only {} fit in 1024", open.len());
    for client in &mut open {
        client.get("/").expect("an established connection is never evicted");
    }
    support::assert_balanced(&mut s);
}

/// SYNs of clients that do not exist.
fn flood(s: &mut Scenario, count: u32) {
    let director = s.topology.director.link("eth0").unwrap().mac.unwrap();
    let client = s.topology.client.link("eth0").unwrap();
    let wire = FrameSocket::open_in(s.topology.client.namespace(), client.index).unwrap();
    for n in 0..count {
        let source = [172, 25, 100 + (n >> 8) as u8, n as u8];
        let mut frame = Vec::with_capacity(54);
        frame.extend_from_slice(&director.0);
        frame.extend_from_slice(&client.mac.unwrap().0);
        frame.extend_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0]);
        frame.extend_from_slice(&source);
        frame.extend_from_slice(&[172, 25, 7, 200]);
        let sum = uvs::packet::checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        let mut segment = vec![
            0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
        ];
        let addresses = u32::from_be_bytes(source);
        let flow = uvs::packet::FlowKey::v4(uvs::packet::Protocol::TCP, addresses, 0xac19_07c8, 0);
        let sum = uvs::packet::checksum::pseudo_header(&flow, 20) + uvs::packet::checksum::sum(&segment);
        let sum = !uvs::packet::checksum::fold(sum);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        frame.extend_from_slice(&segment);
        wire.send(&frame).unwrap();
        if n % 256 == 255 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn saved_rules_and_entries_that_are_no_use() {
    let Some(mut s) = machine("m-files") else { return };
    let state = s.topology.cluster.directory().join("state/rules.json");
    type Damage<T> = (&'static str, T, &'static str);
    let damages: [Damage<fn(String) -> String>; 3] = [
        (
            "another version's",
            |t| t.replacen("\"format\":1", "\"format\":99", 1),
            "format 99",
        ),
        ("damaged", |t| t.replacen("172.25.7.200", "172.25.7.201", 1), "damaged"),
        ("rubbish", |_| "\u{0}\u{1}hello".to_owned(), "no header"),
    ];
    for (what, damage, words) in damages {
        s.start(&[]).unwrap();
        s.director().unwrap().ipvsadm("-C").unwrap();
        s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
        s.director().unwrap().process().terminate().unwrap();
        let good = fs::read_to_string(&state).unwrap();
        let bad = damage(good.clone());
        assert_ne!(good, bad);
        fs::write(&state, &bad).unwrap();
        s.start(&[]).unwrap_or_else(|e| panic!("{what}: {e}"));
        let said = s.director().unwrap().process().output();
        assert_says(&said, &["rules.json", words, "renamed to"]);
        let rules = s.director().unwrap().ipvsadm("-Sn").unwrap();
        assert_eq!(rules, "", "{what}: starts empty");
        let aside = fs::read_dir(state.parent().unwrap()).unwrap().flatten();
        let kept = aside
            .filter(|f| fs::read_to_string(f.path()).is_ok_and(|text| text == bad))
            .count();
        assert_eq!(kept, 1, "{what}: the file was put aside");
        s.director().unwrap().process().terminate().unwrap();
    }
    // The entries' file, after a crash: another version's, cut, and rubbish.
    let damages: [Damage<fn(&mut Vec<u8>)>; 3] = [
        ("another version's", |b| b[8] = 77, "version 77"),
        ("cut", |b| b.truncate(10_000), "bytes"),
        ("rubbish", |b| b[..8].fill(0x41), "not a file of connection entries"),
    ];
    for (what, damage, words) in damages {
        s.start(&[]).unwrap();
        if s.director().unwrap().ipvsadm("-Sn").unwrap().is_empty() {
            s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
        }
        s.request(Method::Route, Family::V4).expect("served");
        s.director().unwrap().process().kill().unwrap();
        let path = entries_file(s.topology.cluster.directory());
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        s.start(&[]).unwrap_or_else(|e| panic!("{what}: {e}"));
        let said = s.director().unwrap().process().output();
        assert_says(
            &said,
            &["connection entries", words, "starting without the connections in it"],
        );
        s.request(Method::Route, Family::V4).expect("served");
        s.director().unwrap().process().terminate().unwrap();
    }
}

/// The one file of entries below the folder.
fn entries_file(directory: &Path) -> PathBuf {
    let folders = fs::read_dir(directory.join("run")).unwrap().flatten();
    let files: Vec<PathBuf> = folders
        .map(|f| f.path().join("connections"))
        .filter(|f| f.exists())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

/// A file system of some KiB, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, kib: u32) -> SmallDisk {
        fs::create_dir_all(&path).unwrap();
        let size = format!("size={kib}k");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "small"])
            .arg(&path)
            .status();
        assert!(status.unwrap().success(), "mount {}", path.display());
        SmallDisk(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(status.is_ok_and(|s| s.success()), "umount {}", self.0.display());
    }
}

#[test]
fn full_disks() {
    let Some(mut s) = machine("m-disk") else { return };
    let directory = s.topology.cluster.directory().to_owned();
    // Entries: refused at the start, for they could not be written later.
    let small = SmallDisk::mount(directory.join("small/run"), 256);
    let said = refused(&mut run(&s, "small", &["--interface", "eth0"]));
    assert_says(&said, &["connection entries", "no room for", "bytes"]);
    drop(small);
    // Rules: they are live, and it is said that they are not saved.
    let disk = SmallDisk::mount(directory.join("state"), 64);
    s.start(&[]).unwrap();
    s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
    let mut filler = Vec::new();
    while filler.len() < 64 {
        filler.push(fs::write(disk.0.join(format!("filler{}", filler.len())), [0; 4096]));
    }
    assert!(filler.iter().any(Result::is_err), "the disk is full");
    s.director().unwrap().ipvsadm("-A -t 172.25.7.200:81 -s rr").unwrap();
    let listed = s.director().unwrap().ipvsadm("-ln").unwrap();
    assert!(listed.contains("172.25.7.200:81"), "{listed}");
    s.request(Method::Route, Family::V4).expect("served");
    let unsaved = s.director().unwrap().statistics().unwrap()["unsaved"].to_string();
    assert_says(&unsaved, &["rules.json", "No space left on device"]);
    assert_says(
        &s.director().unwrap().process().output(),
        &["rules.json", "No space left on device"],
    );
    // There is room again: the next change saves all.
    for n in 0..filler.len() {
        // Those that were not written are not there.
        let _ = fs::remove_file(disk.0.join(format!("filler{n}")));
    }
    s.director().unwrap().ipvsadm("-A -t 172.25.7.200:82 -s rr").unwrap();
    assert!(s.director().unwrap().statistics().unwrap()["unsaved"].is_null());
    s.director().unwrap().process().kill().unwrap();
    s.start(&[]).unwrap();
    let listed = s.director().unwrap().ipvsadm("-ln").unwrap();
    assert!(listed.contains(":81") && listed.contains(":82"), "{listed}");
    s.director().unwrap().process().terminate().unwrap();
    drop(disk);
}

#[test]
fn commands_that_are_wrong() {
    let Some(mut s) = machine("m-commands") else { return };
    s.start(&[]).unwrap();
    s.add_service(Method::Route, Family::V4, "-s rr").unwrap();
    let before = s.director().unwrap().ipvsadm("-Sn").unwrap();
    let vip = "172.25.7.200:80";
    let kernel: &[(&str, i32, &str)] = &[
        ("-A -t 172.25.7.200:80 -s rr", 255, "Service already exists"),
        ("-E -t 172.25.7.200:99 -s rr", 255, "No such service"),
        ("-D -t 172.25.7.200:99", 255, "No such service"),
        ("-a -t 172.25.7.200:99 -r 172.25.7.3:99 -g", 255, "Service not defined"),
        (
            "-a -t 172.25.7.200:80 -r 172.25.7.3:80 -g",
            255,
            "Destination already exists",
        ),
        ("-e -t 172.25.7.200:80 -r 172.25.7.77:80 -g", 255, "No such destination"),
        ("-d -t 172.25.7.200:80 -r 172.25.7.77:80", 255, "No such destination"),
        (
            "-A -t 172.25.7.200:99 -s nosuch",
            255,
            "Scheduler or persistence engine not found",
        ),
        (
            "-a -t 172.25.7.200:80 -r 172.25.7.5:80 -g -x 1 -y 5",
            255,
            "Numerical result out of range",
        ),
        ("-A -t 172.25.7.999:80 -s rr", 2, "illegal virtual server"),
        ("-A -t 172.25.7.200:99999 -s rr", 2, "illegal virtual server"),
        ("-a -t 172.25.7.200:80 -r nonsense: -g", 2, "illegal real server"),
        ("-a -t 172.25.7.200:80 -r 172.25.7.5:80 -g -w -1", 2, "weight"),
        ("-a -t 172.25.7.200:80 -r 172.25.7.5:80 -g -m", 2, ""),
        ("-A -t 172.25.7.200:99 -u 172.25.7.200:99", 2, ""),
        ("-A", 2, ""),
        ("--no-such-option", 255, ""),
    ];
    for (arguments, code, words) in kernel {
        let mut all = vec!["ipvsadm"];
        all.extend(arguments.split_whitespace());
        let Output { status, stdout, stderr } = s.director().unwrap().output(&all).unwrap();
        let said = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(*code), "{arguments}: {said}");
        assert!(said.contains(words), "{arguments}: {said}");
        assert!(
            !said.is_empty() && stdout.is_empty(),
            "{arguments}: all of it is an error"
        );
    }
    assert_eq!(
        s.director().unwrap().ipvsadm("-Sn").unwrap(),
        before,
        "{vip}: nothing changed"
    );
    // No daemon.
    let output = Command::new(program())
        .args(["ipvsadm", "-ln"])
        .env("UVS_SOCKET", "/dev/shm/uvs-none.sock")
        .output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_says(&String::from_utf8_lossy(&output.stderr), &["/dev/shm/uvs-none.sock"]);
}

#[test]
fn the_directors_own_address_as_a_destination_of_another_port() {
    let Some(mut s) = machine("m-local") else { return };
    let own: IpAddr = "172.25.7.2".parse().unwrap();
    s.start(&[]).unwrap();
    let director = s.director().unwrap();
    director.ipvsadm("-A -t 172.25.7.200:80 -s rr").unwrap();
    director
        .ipvsadm(&format!("-a -t 172.25.7.200:80 -r {own}:{} -m", PORT + 1))
        .unwrap();
    let error = HttpClient::connect(
        s.topology.client.namespace(),
        None,
        s.service_address(Method::Route, Family::V4),
        Duration::from_millis(300),
    );
    assert!(error.is_err());
    let accounting = support::assert_balanced(&mut s);
    assert!(
        accounting.dropped.get("local_port").is_some_and(|n| *n >= 1),
        "{accounting}"
    );
    assert!(netns::is_root());
}
