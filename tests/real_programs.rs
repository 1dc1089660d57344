//! Real programs through the director: nginx as real server, curl, iperf3 and wrk as clients, all with the offloads that
//! interfaces have by default.
//!
//! How: a network a driver, with all methods and families offered; each program must succeed by its own account, and
//! nginx's answers are compared byte for byte. Goal: what operators will run works, not only our own client and server.
//!
//! Runs with `UVS_REAL_PROGRAMS=1` alone; a program that is missing is then a failure. Debian has them as `nginx-light`,
//! `curl`, `iperf3` and `wrk`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

mod support;

use support::{
    FAMILIES, Family, Host, Layout, METHODS, Method, Plan, Process, Scenario, assert_balanced, method_flag, netns,
    programs, scenario, with_port,
};

/// Where nginx listens; the built-in web server has port 80.
const WEB: u16 = 8000;
/// Where iperf3 listens.
const BULK: u16 = 5201;
/// Length of the file that is fetched and sent.
const LENGTH: usize = 20 << 20;

/// Everything running on one network, with one driver.
struct Running {
    // Dropped in this order: the programs before the namespaces they are in.
    _programs: Vec<Process>,
    s: Scenario,
    file: PathBuf,
    driver: &'static str,
}

impl Running {
    /// nginx on every server, the director with a service for each, method by method.
    fn start(label: &str, driver: &'static str) -> Option<Running> {
        if !programs::wanted() {
            return None;
        }
        let mut s = scenario(&format!("{label}-{driver}"), Plan::new(Layout::OneSegment))?;
        let file = s.topology.cluster.directory().join("random");
        fs::write(&file, programs::random(LENGTH)).expect("room for the file");
        let mut programs = Vec::new();
        for server in &s.topology.servers {
            programs.push(start_nginx(server, s.topology.cluster.directory(), &file));
        }
        for (method, family) in cases() {
            s.offer(method, family).expect("the VIP");
        }
        s.start(&["--driver", driver]).expect("the director starts");
        let mut running = Running {
            _programs: programs,
            s,
            file,
            driver,
        };
        for (method, family) in cases() {
            running.add_service(method, family, WEB, 2);
            // iperf3 wants its two connections at one server: the first.
            running.add_service(method, family, BULK, 1);
        }
        Some(running)
    }

    fn add_service(&mut self, method: Method, family: Family, port: u16, servers: usize) {
        let vip = with_port(self.s.topology.vip(method, family), port);
        self.ipvsadm(&format!("-A -t {vip} -s rr"));
        for n in 0..servers {
            let real = with_port(self.s.topology.server_address(n, family), port);
            self.ipvsadm(&format!("-a -t {vip} -r {real} {}", method_flag(method)));
        }
    }

    fn ipvsadm(&mut self, arguments: &str) -> String {
        support::ipvsadm(&mut self.s, arguments)
    }

    fn url(&self, method: Method, family: Family, path: &str) -> String {
        format!(
            "http://{}/{path}",
            SocketAddr::new(self.s.topology.vip(method, family), WEB)
        )
    }

    /// curl on the client, which must succeed.
    fn curl(&self, arguments: &[&str]) -> Output {
        let always = ["-sS", "--fail", "--noproxy", "*", "--max-time", "30"];
        self.client("curl", &[&always, arguments].concat())
    }

    /// A program on the client, which must succeed.
    fn client(&self, program: &str, arguments: &[&str]) -> Output {
        programs::run(&self.s.topology.client, self.driver, program, arguments)
    }

    /// Connections of a web service's destinations, active and inactive, as `ipvsadm -ln` lists them now.
    fn connections(&mut self, method: Method, family: Family) -> Vec<u64> {
        let vip = with_port(self.s.topology.vip(method, family), WEB);
        let text = self.ipvsadm(&format!("-ln -t {vip}"));
        let rows = text
            .lines()
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row.len() == 6 && row[5] != "InActConn")
            .map(|row| row[4].parse::<u64>().expect("a count") + row[5].parse::<u64>().expect("a count"))
            .collect()
    }
}

fn cases() -> impl Iterator<Item = (Method, Family)> {
    METHODS
        .into_iter()
        .flat_map(|method| FAMILIES.map(|family| (method, family)))
}

/// nginx with everything in a folder of its own: its name at `/`, the file at `/random`, uploads to `/upload/`.
fn start_nginx(server: &Host, directory: &Path, file: &Path) -> Process {
    let home = directory.join(format!("nginx-{}", server.name()));
    fs::create_dir_all(home.join("upload")).expect("a folder");
    // One process, so that nothing is left when it is killed.
    let text = format!(
        "daemon off; master_process off; user root; pid {home}/pid; error_log {home}/error.log warn;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; sendfile on; default_type application/octet-stream; keepalive_requests 1000000;
            client_max_body_size 100m; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
            fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
            server {{
                listen [::]:{WEB} ipv6only=off backlog=1024;
                location = / {{ return 200 {name}; }}
                location = /random {{ alias {file}; }}
                location /upload/ {{ root {home}; dav_methods PUT; }}
            }}
        }}",
        home = home.display(),
        file = file.display(),
        name = server.name(),
    );
    let configuration = home.join("nginx.conf");
    fs::write(&configuration, text).expect("a file");
    let mut command = server.command("nginx").expect("a command");
    command.arg("-p").arg(&home).arg("-c").arg(&configuration);
    let process = Process::start("nginx", &mut command).expect("nginx is needed");
    programs::wait_for_listener(server, WEB);
    process
}

/// A server for one run: between two runs of one process there is a moment in which it refuses the next client.
fn start_iperf3(server: &Host) -> Process {
    let mut command = server.command("iperf3").expect("a command");
    command.args(["--server", "--one-off", "--forceflush", "--port", &BULK.to_string()]);
    let mut process = Process::start("iperf3", &mut command).expect("iperf3 is needed");
    let listening = process.wait_for_line(Duration::from_secs(5), |line| line.starts_with("Server listening"));
    listening.expect("iperf3 listens");
    process
}

/// A hundred requests alternate; the file comes and goes unchanged; a kept connection stays with its server.
fn nginx_and_curl(driver: &'static str) {
    let Some(mut running) = Running::start("web", driver) else {
        return;
    };
    let expected = fs::read(&running.file).expect("the file");
    let file = running.file.display().to_string();
    for (method, family) in cases() {
        let what = format!("{driver}, {method:?}, {family:?}");
        let root = running.url(method, family, "");
        for n in 0..100 {
            let answer = running.curl(&[&root]).stdout;
            let name: &[u8] = if n % 2 == 0 { b"server4" } else { b"server3" };
            assert_eq!(
                String::from_utf8_lossy(&answer),
                String::from_utf8_lossy(name),
                "{what}, request {n}"
            );
        }
        assert_eq!(running.connections(method, family), [50, 50], "{what}");

        let download = running.curl(&[&running.url(method, family, "random")]).stdout;
        assert!(download == expected, "{what}: the file came changed");
        running.curl(&["-T", &file, &running.url(method, family, "upload/file")]);
        let homes = ["server3", "server4"].map(|name| {
            running
                .s
                .topology
                .cluster
                .directory()
                .join(format!("nginx-{name}/upload/file"))
        });
        let uploaded: Vec<_> = homes.iter().filter(|home| home.exists()).collect();
        assert_eq!(uploaded.len(), 1, "{what}");
        assert!(
            fs::read(uploaded[0]).expect("the upload") == expected,
            "{what}: the file went changed"
        );
        fs::remove_file(uploaded[0]).expect("removed");

        // One connection for five requests: one server. curl says how many connections each transfer made.
        let mut arguments = vec!["-w", " %{num_connects}\n"];
        arguments.extend([root.as_str(); 5]);
        let kept = String::from_utf8(running.curl(&arguments).stdout).expect("text");
        assert_eq!(
            kept, "server4 1\nserver4 0\nserver4 0\nserver4 0\nserver4 0\n",
            "{what}"
        );
        assert_eq!(running.connections(method, family), [51, 52], "{what}");
    }
    let accounting = assert_balanced(&mut running.s);
    netns::say(&format!("{driver}, nginx and curl: {accounting}"));
}

/// Bulk both ways for two seconds.
fn iperf3(driver: &'static str) {
    let Some(mut running) = Running::start("bulk", driver) else {
        return;
    };
    for (method, family) in cases() {
        let vip = running.s.topology.vip(method, family).to_string();
        for direction in ["", "--reverse"] {
            let mut server = start_iperf3(&running.s.topology.servers[0]);
            let mut arguments = vec![
                "--client",
                vip.as_str(),
                "--time",
                "2",
                "--json",
                "--connect-timeout",
                "5000",
            ];
            arguments.extend((!direction.is_empty()).then_some(direction));
            let output = running.client("iperf3", &arguments);
            server.wait(Duration::from_secs(5)).expect("its one run is over");
            let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let number = |path: &str| json.pointer(path).and_then(serde_json::Value::as_f64);
            let what = format!("{driver}, iperf3 {method:?} {family:?} {direction}");
            assert!(json.get("error").is_none(), "{what}: {json}");
            let rate = number("/end/sum_received/bits_per_second").expect("a rate") / 1e9;
            assert!(rate > 0.0, "{what}: {json}");
            let again = number("/end/sum_sent/retransmits").unwrap_or_default();
            netns::say(&format!("{what}: {rate:.2} Gbit/s, {again} sent again"));
        }
    }
    let accounting = assert_balanced(&mut running.s);
    netns::say(&format!("{driver}, iperf3: {accounting}"));
}

/// Fifty connections that ask without a pause, for three seconds.
fn wrk(driver: &'static str) {
    let Some(mut running) = Running::start("wrk", driver) else {
        return;
    };
    for method in [Method::Masq, Method::Route] {
        for (kept, header) in [("kept", "X: x"), ("one request each", "Connection: close")] {
            let url = running.url(method, Family::V4, "");
            let output = running.client("wrk", &["-t1", "-c50", "-d3s", "--latency", "-H", header, &url]);
            let text = String::from_utf8(output.stdout).expect("text");
            assert!(
                !text.contains("Socket errors") && !text.contains("Non-2xx"),
                "{driver} {method:?}: {text}"
            );
            let line = |with: &str| {
                text.lines()
                    .find(|line| line.contains(with))
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            };
            let (rate, p99) = (line("Requests/sec"), line("99%"));
            assert!(!rate.is_empty(), "{text}");
            netns::say(&format!(
                "{driver}, wrk {method:?}, 50 connections {kept}: {rate}, latency {p99}"
            ));
        }
    }
    let accounting = assert_balanced(&mut running.s);
    netns::say(&format!("{driver}, wrk: {accounting}"));
}

macro_rules! by_driver {
    ($($test:ident, $of:ident, $driver:literal;)*) => { $(#[test] fn $test() { $of($driver); })* };
}

by_driver! {
    nginx_and_curl_by_xdp, nginx_and_curl, "xdp";
    nginx_and_curl_by_raw, nginx_and_curl, "raw";
    iperf3_by_xdp, iperf3, "xdp";
    iperf3_by_raw, iperf3, "raw";
    wrk_by_xdp, wrk, "xdp";
    wrk_by_raw, wrk, "raw";
}

#[cfg(feature = "afxdp")]
by_driver! {
    nginx_and_curl_by_afxdp, nginx_and_curl, "afxdp";
    iperf3_by_afxdp, iperf3, "afxdp";
}
