//! Real FTP programs through the director, by NAT and DR: vsftpd as real server, curl and lftp as clients, each way to open
//! data connections, both families.
//!
//! How: files come and go over several data connections of one control connection, and are compared byte for byte; the
//! director is killed and started again in the middle. Goal: an FTP service behind NAT works as by the kernel's `ip_vs_ftp`.
//!
//! Runs with `UVS_REAL_PROGRAMS=1` alone. Debian has the programs as `vsftpd`, `curl` and `lftp`.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

mod support;

use support::{
    FAMILIES, Family, Host, Layout, Method, Plan, Process, Scenario, assert_balanced, method_flag, netns, programs,
    scenario, with_port,
};

const FTP: u16 = 21;
/// Length of the file that is fetched and sent.
const LENGTH: usize = 3 << 20;

/// Arguments that make curl open data connections in one way, and what it shall say then.
const WAYS: [(&str, &[&str], &str); 4] = [
    ("PASV", &["--disable-epsv"], "> PASV"),
    ("EPSV", &[], "> EPSV"),
    ("PORT", &["--ftp-port", "-", "--disable-eprt"], "> PORT"),
    ("EPRT", &["--ftp-port", "-"], "> EPRT"),
];

struct Running {
    _programs: Vec<Process>,
    s: Scenario,
    /// What each server has, and where it takes uploads.
    homes: Vec<PathBuf>,
    file: Vec<u8>,
    driver: &'static str,
    method: Method,
}

impl Running {
    fn start(label: &str, driver: &'static str, method: Method, options: &str) -> Option<Running> {
        if !programs::wanted() {
            return None;
        }
        let mut s = scenario(&format!("{label}-{driver}"), Plan::new(Layout::OneSegment))?;
        let file = programs::random(LENGTH);
        let (mut processes, mut homes) = (Vec::new(), Vec::new());
        for server in &s.topology.servers {
            let home = s.topology.cluster.directory().join(format!("ftp-{}", server.name()));
            processes.push(start_vsftpd(server, &home, &file));
            homes.push(home);
        }
        for family in FAMILIES {
            s.offer(method, family).expect("the VIP");
        }
        s.start(&["--driver", driver]).expect("the director starts");
        for family in FAMILIES {
            let vip = with_port(s.topology.vip(method, family), FTP);
            let reals: Vec<_> = (0..2)
                .map(|n| with_port(s.topology.server_address(n, family), FTP))
                .collect();
            let director = s.director().expect("a director");
            director
                .ipvsadm(&format!("-A -t {vip} -s rr {options}"))
                .expect("accepted");
            for real in reals {
                director
                    .ipvsadm(&format!("-a -t {vip} -r {real} {}", method_flag(method)))
                    .expect("accepted");
            }
        }
        Some(Running {
            _programs: processes,
            s,
            homes,
            file,
            driver,
            method,
        })
    }

    fn url(&self, family: Family, path: &str) -> String {
        format!(
            "ftp://{}/{path}",
            SocketAddr::new(self.s.topology.vip(self.method, family), FTP)
        )
    }

    /// curl on the client, which must succeed; what it said and what came.
    fn curl(&self, arguments: &[&str]) -> (String, Vec<u8>) {
        let always = ["-sSv", "--noproxy", "*", "--max-time", "30"];
        let all = [&always, arguments].concat();
        for _ in 0..5 {
            let output = programs::attempt(&self.s.topology.client, "curl", &all);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            // The server opens the connection (PORT, EPRT), and what it sends is short: on a busy machine all has come before curl
            // looks, and then curl takes the end for a failure.
            if !text.contains("Ctrl conn has data while waiting for data conn") {
                let output = programs::succeeded(output, self.driver, "curl", &all);
                return (text, output.stdout);
            }
        }
        panic!("{}: five times curl looked too late: {all:?}", self.driver)
    }

    /// The file that an upload of this name made, on whichever server.
    fn uploaded(&self, name: &str) -> Vec<u8> {
        let all = self.homes.iter().map(|home| home.join("upload").join(name));
        let found: Vec<_> = all.filter(|path| path.exists()).collect();
        assert_eq!(found.len(), 1, "{name} is on one server");
        fs::read(&found[0]).expect("the upload")
    }
}

/// vsftpd for everybody, with the file at `/file`, uploads to `/upload/`.
fn start_vsftpd(server: &Host, home: &Path, file: &[u8]) -> Process {
    let upload = home.join("upload");
    fs::create_dir_all(&upload).expect("a folder");
    fs::create_dir_all("/run/vsftpd/empty").expect("vsftpd wants it");
    // Anonymous users are the user ftp, who must get there, and must not be able to write into its root.
    for folder in home.ancestors().take(2) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("ours");
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("users");
    let ftp = passwd
        .lines()
        .find(|line| line.starts_with("ftp:"))
        .expect("vsftpd made a user ftp");
    let uid: u32 = ftp
        .split(':')
        .nth(2)
        .and_then(|uid| uid.parse().ok())
        .expect("a number");
    chown(&upload, Some(uid), None).expect("root may");
    fs::write(home.join("file"), file).expect("room");
    fs::write(home.join("name"), server.name()).expect("room");
    let configuration = home.with_extension("conf");
    let text = format!(
        "listen_ipv6=YES\nbackground=NO\nseccomp_sandbox=NO\nanonymous_enable=YES\nanon_root={}\nwrite_enable=YES\n\
         anon_upload_enable=YES\nanon_umask=022\nno_anon_password=YES\nconnect_from_port_20=YES\nxferlog_enable=NO\n",
        home.display()
    );
    fs::write(&configuration, text).expect("a file");
    let mut command = server.command("vsftpd").expect("a command");
    let process = Process::start("vsftpd", command.arg(&configuration)).expect("vsftpd is needed");
    programs::wait_for_listener(server, FTP);
    process
}

fn every_way(driver: &'static str) {
    let Some(mut running) = Running::start("ftp", driver, Method::Masq, "") else {
        return;
    };
    let mut length_changed = false;
    for family in FAMILIES {
        let vip = running.s.topology.vip(Method::Masq, family);
        for n in 0..2 {
            let real = running.s.topology.server_address(n, family);
            length_changed |= family == Family::V4 && real.to_string().len() != vip.to_string().len();
        }
        for (way, arguments, said) in WAYS {
            if is_impossible(family, way) {
                continue;
            }
            let what = format!("{driver} {family:?} {way}");
            // Six data connections of one control connection.
            let (file, list) = (running.url(family, "file"), running.url(family, ""));
            let urls = [file.as_str(), &list].repeat(3);
            let (text, came) = running.curl(&[arguments, &urls].concat());
            assert_eq!(text.matches(said).count(), 6, "{what}: {text}");
            // curl opens another when it takes one for dead, as it may on a busy machine.
            assert!(text.matches("< 220 ").count() < 3, "{what}: {text}");
            let listing = String::from_utf8_lossy(&came[LENGTH..LENGTH + 200]);
            assert!(came.starts_with(&running.file) && listing.contains("upload"), "{what}");
            assert!(came.len() > 3 * LENGTH + 100, "{what}: {}", came.len());

            // And the other way.
            let name = format!("{family:?}-{way}");
            let local = running.s.topology.cluster.directory().join(&name);
            fs::write(&local, &running.file).expect("room");
            let local = local.display().to_string();
            let to = running.url(family, &format!("upload/{name}"));
            running.curl(&[arguments, &["--upload-file", &local, &to][..]].concat());
            assert!(running.uploaded(&name) == running.file, "{what}: the file went changed");
        }
    }
    assert!(
        length_changed,
        "no reply got another length: nothing was proved about sequence numbers"
    );
    let accounting = assert_balanced(&mut running.s);
    netns::say(&format!("{driver}, ftp: {accounting}"));
}

/// By DR the director sees only the client's half: a persistent service takes the data connections along.
fn direct_routing(driver: &'static str) {
    let Some(mut running) = Running::start("ftp-dr", driver, Method::Route, "-p 300") else {
        return;
    };
    for family in FAMILIES {
        for (way, arguments, said) in WAYS {
            if is_impossible(family, way) {
                continue;
            }
            let url = running.url(family, "file");
            let (text, came) = running.curl(&[arguments, &[url.as_str(), &url][..]].concat());
            assert_eq!(text.matches(said).count(), 2, "{driver} {family:?} {way}: {text}");
            assert!(came == running.file.repeat(2), "{driver} {family:?} {way}");
        }
    }
    assert_balanced(&mut running.s);
}

/// PASV and PORT have no room for an IPv6 address: curl takes the extended ones whatever it is told.
fn is_impossible(family: Family, way: &str) -> bool {
    family == Family::V6 && ["PASV", "PORT"].contains(&way)
}

/// lftp with several sessions at once, and one after the other.
fn lftp(driver: &'static str) {
    let Some(mut running) = Running::start("lftp", driver, Method::Masq, "-p 300") else {
        return;
    };
    for family in FAMILIES {
        for passive in ["on", "off"] {
            let vip = running.s.topology.vip(Method::Masq, family);
            let to = running
                .s
                .topology
                .cluster
                .directory()
                .join(format!("mirror-{family:?}-{passive}"));
            let script = format!(
                "set ftp:passive-mode {passive}; set net:timeout 10; set net:max-retries 2; \
                 open {}; mirror --parallel=3 / {}; ls; pget -n 4 file -o {}/again",
                running.url(family, "").trim_end_matches('/'),
                to.display(),
                to.display(),
            );
            let what = format!("{driver} {family:?} {vip} passive {passive}");
            programs::run(&running.s.topology.client, &what, "lftp", &["-c", &script]);
            for name in ["file", "again"] {
                assert!(
                    fs::read(to.join(name)).expect("it came") == running.file,
                    "{what}: {name}"
                );
            }
        }
    }
    // One client, one server: data connections of a persistent service have no template of their own.
    let listing = running
        .s
        .director()
        .expect("a director")
        .ipvsadm("-lnc")
        .expect("accepted");
    let templates: Vec<_> = listing.lines().filter(|line| line.contains("NONE")).collect();
    assert_eq!(templates.len(), FAMILIES.len(), "{listing}");
    assert_balanced(&mut running.s);
}

/// The director is killed, and started again, while files come: the control connection goes on with the next file, as its
/// numbers are kept with the connections.
fn killed(driver: &'static str) {
    let Some(mut running) = Running::start("ftp-killed", driver, Method::Masq, "") else {
        return;
    };
    let url = running.url(Family::V4, "file");
    let target = running.s.topology.cluster.directory().join("came");
    let mut command = running.s.topology.client.command("curl").expect("a command");
    command.args([
        "-sS",
        "--noproxy",
        "*",
        "--max-time",
        "30",
        "--disable-epsv",
        "--limit-rate",
        "3M",
    ]);
    command
        .args([&url, &url, &url])
        .stdout(fs::File::create(&target).expect("room"));
    let mut client = command.spawn().expect("curl is needed");
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(900));
        running
            .s
            .take_director()
            .expect("a director")
            .process()
            .kill()
            .expect("it ran");
        running
            .s
            .start(&["--driver", driver])
            .expect("the director starts again");
    }
    let status = client.wait().expect("it ends");
    let statistics = running.s.director().expect("a director").statistics();
    let listing = running.s.director().expect("a director").ipvsadm("-lnc");
    assert!(status.success(), "{driver}: {status}: {listing:?} {statistics:?}");
    assert!(fs::read(target).expect("it came") == running.file.repeat(3), "{driver}");
}

macro_rules! by_driver {
    ($($test:ident, $of:ident, $driver:literal;)*) => { $(#[test] fn $test() { $of($driver); })* };
}

by_driver! {
    every_way_by_xdp, every_way, "xdp";
    every_way_by_raw, every_way, "raw";
    lftp_by_xdp, lftp, "xdp";
    lftp_by_raw, lftp, "raw";
    direct_routing_by_xdp, direct_routing, "xdp";
    direct_routing_by_raw, direct_routing, "raw";
    killed_by_xdp, killed, "xdp";
    killed_by_raw, killed, "raw";
}
