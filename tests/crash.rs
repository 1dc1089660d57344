//! The daemon dies, is taken over, stops for a moment, and ends.
//!
//! How: 200 open connections a forwarding method, half of them IPv6, and clients that go on with requests, while the
//! process is killed and started again in every way there is. Goal: no connection notices more than a pause, and a plain
//! stop leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uvs::io::filter::attach;
use uvs::packet::Family::{V4, V6};

mod support;

use support::load::Load;
use support::{FAMILIES, HttpClient, Layout, METHODS, Method, PORT, Plan, Scenario, program, scenario};

/// Open connections of each method.
const CONNECTIONS: usize = 200;

/// From the start of the process until an open connection is served again.
const RESTART_MAX: Duration = Duration::from_millis(500);

#[test]
fn killed_and_started_again_with_af_xdp() {
    live_on("crash-xdp", "xdp", "raw");
}

#[test]
fn killed_and_started_again_with_packet_sockets() {
    live_on("crash-raw", "raw", "xdp");
}

/// An open connection and who serves it.
struct Open {
    client: HttpClient,
    server: String,
    what: String,
}

fn live_on(label: &str, driver: &str, other: &str) {
    // One after the other: the time that a restart takes is measured.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut s) = scenario(label, Plan::new(Layout::OneSegment)) else {
        return;
    };
    for family in FAMILIES {
        for method in METHODS {
            s.offer(method, family).expect("a VIP");
        }
    }
    s.start(&["--driver", driver]).expect("uvs run");
    for family in FAMILIES {
        for method in METHODS {
            // A persistent one among them: templates are found again as well.
            let options = if method == Method::Route {
                "-s rr -p 300"
            } else {
                "-s rr"
            };
            s.add_service(method, family, options).expect("a service");
        }
    }
    let mut open = connections(&s);
    let used = entries(&mut s);
    let targets: Vec<SocketAddr> = METHODS
        .into_iter()
        .flat_map(|m| FAMILIES.map(|f| (m, f)))
        .map(|(m, f)| s.service_address(m, f))
        .collect();
    let load = Load::start(s.topology.client.namespace(), &targets);
    std::thread::sleep(Duration::from_millis(300));

    let mut restarts = Vec::new();
    for round in 0..3 {
        kill(&mut s);
        if round == 0 {
            drops_while_dead(&s);
        }
        restarts.push(start_again(&mut s, &["--driver", driver], &mut open[round]));
        all_go_on(&mut open, "kill -9");
    }
    assert!(entries(&mut s) >= used, "entries were lost");

    // One that cannot be leaves the running one alone.
    s.start(&["--driver", "xdp", "--takeover", "--workers", "9"])
        .expect_err("there are not so many queues");
    all_go_on(&mut open, "a takeover that was refused");

    let arguments = ["--driver", driver, "--takeover", "--connections", "100000"];
    restarts.push(start_again(&mut s, &arguments, &mut open[0]));
    all_go_on(&mut open, "takeover with another capacity");
    assert!(entries(&mut s) >= used, "entries were lost");

    stop(&mut s, true);
    drops_while_dead(&s);
    restarts.push(start_again(&mut s, &["--driver", driver], &mut open[1]));
    all_go_on(&mut open, "stop --keep");

    kill(&mut s);
    s.start(&["--driver", other])
        .expect("the other driver starts after kill -9");
    all_go_on(&mut open, &format!("kill -9, then driver {other}"));

    let commands = Commands::start(&mut s);
    restarts.push(start_again(&mut s, &["--driver", driver, "--takeover"], &mut open[2]));
    commands.stop_without_failure();
    all_go_on(&mut open, &format!("takeover from driver {other}"));

    println!("{driver}: forwarding again after {restarts:?}");
    assert!(
        restarts.iter().all(|restart| *restart < RESTART_MAX),
        "{driver}: forwarding again after {restarts:?}"
    );

    load.stop_without_failure(&format!("{driver}, killed four times, taken over twice, stopped once"));
    drop(open);
    kill(&mut s);
    stop_the_dead(&mut s);
    s.start(&["--driver", driver]).expect("it starts");
    little_memory_was_waited_for(&mut s);
    leaves_nothing(&mut s);
}

/// An operator's script, which knows nothing of takeovers.
struct Commands {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Vec<Output>)>,
}

impl Commands {
    fn start(s: &mut Scenario) -> Commands {
        let socket = s.director().unwrap().socket().to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut all, mut failed) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                let mut command = Command::new(program());
                command
                    .args(["ipvsadm", "--set", "900", "120", "300"])
                    .env("UVS_SOCKET", &socket);
                let output = command.output().expect("uvs runs");
                all += 1;
                failed.extend((!output.status.success()).then_some(output));
            }
            (all, failed)
        });
        Commands { stop, thread }
    }

    fn stop_without_failure(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (all, failed) = self.thread.join().expect("it does not panic");
        assert!(
            failed.is_empty() && all > 0,
            "{} of {all} failed: {:?}",
            failed.len(),
            failed.first()
        );
    }
}

/// `uvs stop` gives the virtual addresses back though nobody runs.
fn stop_the_dead(s: &mut Scenario) {
    let socket = s.director().unwrap().socket().to_owned();
    let stop = |s: &Scenario| {
        // In its namespace: that is where the filter is.
        let mut command = s.topology.director.command(program()).expect("a command");
        command.arg("stop").env("UVS_SOCKET", &socket);
        command.output().expect("uvs stop runs")
    };
    let output = stop(s);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("left on eth0 is taken off"),
        "{output:?}"
    );
    assert_eq!(attached(s), (0, 0), "programs of XDP and tcx");
    let again = stop(s);
    assert!(!again.status.success(), "{again:?}");
}

/// Our programs on the director's interface, of XDP and of tcx.
fn attached(s: &mut Scenario) -> (usize, usize) {
    let index = s.topology.director.link("eth0").expect("eth0").index;
    let attached = || {
        let xdp = attach::query_xdp(index).expect("a question to the kernel").len();
        (xdp, attach::query_tc(index).expect("a question to the kernel").len())
    };
    let found = s.topology.director.namespace().run(attached);
    found.expect("the namespace is there")
}

/// Starts the director. Returns how long it took until a request on an open connection was answered.
fn start_again(s: &mut Scenario, arguments: &[&str], open: &mut Open) -> Duration {
    let start = Instant::now();
    s.start(arguments)
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    assert_eq!(open.client.get("/").expect("forwarded again"), open.server);
    start.elapsed()
}

fn connections(s: &Scenario) -> Vec<Open> {
    let mut open = Vec::new();
    for method in METHODS {
        for n in 0..CONNECTIONS {
            let family = if n % 2 == 0 { V4 } else { V6 };
            let what = format!("{method:?} {family:?} connection {n}");
            let mut client = s
                .connect(method, family, None)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            let server = client.get("/").unwrap_or_else(|e| panic!("{what}: {e}"));
            open.push(Open { client, server, what });
        }
    }
    open
}

/// Every connection answers, from the server it was with.
fn all_go_on(open: &mut [Open], after: &str) {
    let mut broken = Vec::new();
    for Open { client, server, what } in open.iter_mut() {
        match client.get("/") {
            Ok(now) if now == *server => {}
            Ok(now) => broken.push(format!("{what}: {now}, not {server}")),
            Err(error) => broken.push(format!("{what}: {error}")),
        }
    }
    assert!(
        broken.is_empty(),
        "after {after}: {} of {} connections broken: {:#?}",
        broken.len(),
        open.len(),
        &broken[..broken.len().min(10)]
    );
}

/// Connection entries in the table.
fn entries(s: &mut Scenario) -> u64 {
    let statistics = s.director().unwrap().statistics().expect("statistics");
    statistics["connections"]["used"].as_u64().expect("a number")
}

fn kill(s: &mut Scenario) {
    s.director().unwrap().process().kill().expect("killed");
}

fn stop(s: &mut Scenario, keep: bool) {
    let director = s.director().unwrap();
    let arguments: &[&str] = if keep { &["stop", "--keep"] } else { &["stop"] };
    let output = director.output(arguments).expect("uvs stop runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        director.socket().exists(),
        keep,
        "the socket's file, when a stop was answered"
    );
    let status = director.process().wait(Duration::from_secs(5)).expect("it ends");
    assert!(status.success(), "{status}");
}

/// Virtual services are silent, all else is the kernel's.
fn drops_while_dead(s: &Scenario) {
    for method in METHODS {
        for family in FAMILIES {
            let to = s.service_address(method, family);
            let error = attempt(s, to).expect_err("nobody answers");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{method:?} {family:?}: {error}");
            let error = attempt(s, SocketAddr::new(to.ip(), 9)).expect_err("nobody listens");
            assert_eq!(
                error.kind(),
                io::ErrorKind::ConnectionRefused,
                "unserved port of the VIP of {method:?} {family:?}: {error}"
            );
        }
    }
    let own: IpAddr = "172.25.7.2".parse().unwrap();
    let error = attempt(s, SocketAddr::new(own, PORT)).expect_err("nobody listens");
    assert_eq!(
        error.kind(),
        io::ErrorKind::ConnectionRefused,
        "the director's own address: {error}"
    );
}

fn attempt(s: &Scenario, to: SocketAddr) -> io::Result<()> {
    HttpClient::connect(s.topology.client.namespace(), None, to, Duration::from_millis(150)).map(drop)
}

/// What a start need not touch it does not, and a new file of connections gets huge pages all the same.
fn little_memory_was_waited_for(s: &mut Scenario) {
    let pid = s.director().unwrap().process().id();
    let heap = kib_of(pid, "[heap]", "Rss:");
    assert!((1..2 << 10).contains(&heap), "{heap} KiB of heap");
    let deadline = Instant::now() + Duration::from_secs(10);
    while kib_of(pid, "/connections", "ShmemPmdMapped:") == 0 {
        assert!(Instant::now() < deadline, "connections in small pages only");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A figure of a process's mapping, from its smaps.
fn kib_of(pid: u32, mapping: &str, figure: &str) -> usize {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut lines = smaps.lines().skip_while(|line| !line.ends_with(mapping));
    let line = lines.find_map(|line| line.strip_prefix(figure)).expect("a mapping");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// SIGTERM: no filter, no device, no socket, no entries, and the kernel answers for the VIP.
fn leaves_nothing(s: &mut Scenario) {
    let directory = s.topology.cluster.directory().to_owned();
    let socket = s.director().unwrap().socket().to_owned();
    assert!(socket.exists(), "the socket is there while it runs");
    assert!(files(&directory.join("run")) > 0, "entries are there while it runs");
    let status = s.director().unwrap().process().terminate().expect("it ends");
    assert!(status.success(), "{status}");
    let links = s.topology.director.netlink().links().expect("links");
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["lo", "eth0"]);
    assert_eq!(attached(s), (0, 0), "programs of XDP and tcx");
    assert!(!socket.exists(), "the socket is gone");
    assert_eq!(files(&directory.join("run")), 0, "the entries are gone");
    for method in METHODS {
        for family in FAMILIES {
            let error = attempt(s, s.service_address(method, family)).expect_err("nobody listens");
            assert_eq!(
                error.kind(),
                io::ErrorKind::ConnectionRefused,
                "{method:?} {family:?}: {error}"
            );
        }
    }
}

/// Files below a folder.
fn files(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let count = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        _ => 1,
    };
    entries.flatten().map(count).sum()
}
