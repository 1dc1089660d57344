//! Files of before that are of no use, and a disk without room: rules and connection entries.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::support::{Family, Host, HttpClient, Layout, Method, Plan, Process, Scenario, program, scenario, topology};
use super::{START_MAX, arguments, only_child, wait_until};

/// Two-armed NAT with one service and a connection that is open, and the daemon just stopped with `uvs stop --keep`.
fn stopped(label: &str) -> Option<(Scenario, HttpClient)> {
    let mut s = scenario(label, Plan::new(Layout::TwoArmed))?;
    s.offer(Method::Masq, Family::V4).unwrap();
    s.start(&[]).unwrap();
    s.add_service(Method::Masq, Family::V4, "-s rr").unwrap();
    let mut client = s.connect(Method::Masq, Family::V4, None).unwrap();
    client.get("/").unwrap();
    stop_and_keep(&mut s);
    Some((s, client))
}

fn stop_and_keep(s: &mut Scenario) {
    let mut director = s.take_director().unwrap();
    let output = director.output(&["stop", "--keep"]).unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(director.process().wait(START_MAX).unwrap().success());
}

/// Starts it again; what it said.
fn start(s: &mut Scenario) -> String {
    s.start(&[]).unwrap();
    s.director().unwrap().process().output()
}

fn rules(s: &mut Scenario) -> String {
    s.director().unwrap().ipvsadm("-Sn").unwrap()
}

/// Goal: rules that cannot be read are put aside, by a message that says why and where; nothing of them runs.
#[test]
fn saved_rules_that_cannot_be_read_are_put_aside() {
    let Some((mut s, _client)) = stopped("rules") else {
        return;
    };
    let folder = s.topology.cluster.directory().join("state");
    let path = folder.join("rules.json");
    let good = fs::read_to_string(&path).unwrap();
    let cases = [
        (
            "of another version",
            good.replacen("\"format\":1", "\"format\":99", 1),
            "99",
        ),
        ("cut", good[..good.len() - 20].to_owned(), ""),
        ("a bit fell over", good.replacen("10.0.0.100", "10.0.0.101", 1), ""),
        ("empty", String::new(), ""),
        ("no text", "\0\0\0\0".repeat(100), ""),
    ];
    for (n, (name, bad, word)) in cases.iter().enumerate() {
        assert_ne!(*bad, good, "{name}");
        fs::write(&path, bad).unwrap();
        let said = start(&mut s);
        let aside = folder.join(format!("rules.json.refused-{}", n + 1));
        let message = said.lines().find(|line| line.contains(&aside.display().to_string()));
        let message = message.unwrap_or_else(|| panic!("{name}: nothing is said: {said}"));
        assert!(
            message.contains(&path.display().to_string()) && message.contains(word),
            "{name}: {message}"
        );
        assert_eq!(
            fs::read_to_string(&aside).unwrap(),
            *bad,
            "{name}: kept for the operator"
        );
        assert_eq!(rules(&mut s), "", "{name}");
        stop_and_keep(&mut s);
    }
    // Put back, it is as it was.
    fs::write(&path, &good).unwrap();
    start(&mut s);
    assert_eq!(rules(&mut s).lines().count(), 3);
    s.request(Method::Masq, Family::V4).unwrap();
}

/// Goal: a change that was answered outlives `kill -9`, whatever is wrong behind it in the journal, and that is said.
#[test]
fn changes_outlive_a_crash_and_a_journal_that_is_cut_or_damaged() {
    let Some((mut s, _client)) = stopped("journal") else {
        return;
    };
    let folder = s.topology.cluster.directory().join("state");
    let path = folder.join("rules.journal");
    start(&mut s);
    assert!(!path.exists());
    let mut weight = 10;
    for (name, end, word) in [
        ("whole", "", None),
        ("cut", "0123abcd {\"commands\":[", Some("was not written to its end")),
        ("damaged", "0123abcd {}\n", Some("rules.journal.refused-1")),
    ] {
        for _ in 0..3 {
            weight += 1;
            s.director().unwrap().ipvsadm(&format!("--set {weight} 0 0")).unwrap();
        }
        let before = rules(&mut s);
        s.take_director().unwrap().process().kill().unwrap();
        let journal = fs::read_to_string(&path).unwrap();
        assert_eq!(journal.lines().count(), 4, "{name}: {journal}");
        fs::write(&path, journal + end).unwrap();
        let said = start(&mut s);
        match word {
            None => assert!(!said.contains("rules.journal"), "{name}: {said}"),
            Some(word) => assert!(said.contains(word), "{name}: {said}"),
        }
        // By the thread that saves, as soon as all rules are in rules.json.
        let is_damaged = name == "damaged";
        let aside = || folder.join("rules.journal.refused-1").exists();
        assert_eq!(
            wait_until(START_MAX, aside, |there| *there == is_damaged),
            is_damaged,
            "{name}"
        );
        assert_eq!(rules(&mut s), before, "{name}");
        let timeouts = s.director().unwrap().ipvsadm("-L --timeout").unwrap();
        assert!(timeouts.contains(&format!(": {weight} ")), "{name}: {timeouts}");
    }
    s.request(Method::Masq, Family::V4).unwrap();
    stop_and_keep(&mut s);
    assert!(!path.exists());
    let saved = fs::read_to_string(folder.join("rules.json")).unwrap();
    assert!(saved.contains(&format!("\"tcp\":{weight},")), "{saved}");
}

/// Goal: entries that mean nothing are left out, by a message that says why; with good ones connections go on.
#[test]
fn connection_entries_that_mean_nothing_are_left_out() {
    let Some((mut s, mut client)) = stopped("entries") else {
        return;
    };
    // Control: with the file as it was left, the connection goes on.
    let path = only_child(&s.topology.cluster.directory().join("run")).join("connections");
    let good = start(&mut s);
    assert!(good.contains("1 connections go on"), "{good}");
    assert_eq!(client.get("/").unwrap(), "server2-hk");
    let word = |at: u64, value: u64| {
        move |path: &Path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&value.to_ne_bytes(), at).unwrap();
        }
    };
    let length = |bytes: u64| {
        move |path: &Path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(bytes).unwrap();
        }
    };
    type Damage = Box<dyn Fn(&Path)>;
    let cases: [(Damage, &str); 5] = [
        (Box::new(word(0, 4711)), "not a file of connection entries"),
        (Box::new(word(8, 99)), "layout version 99"),
        (Box::new(word(24, 4711)), "from before the last boot"),
        (Box::new(length(100)), "not a file of connection entries"),
        (Box::new(length(65_536)), "65536 bytes, its header says"),
    ];
    for (damage, reason) in cases {
        stop_and_keep(&mut s);
        damage(&path);
        let said = start(&mut s);
        let message = said.lines().find(|line| line.contains(reason));
        let message = message.unwrap_or_else(|| panic!("`{reason}` is not said: {said}"));
        assert!(message.contains(&path.display().to_string()), "{message}");
        assert!(message.contains("starting without the connections in it"), "{message}");
        assert!(!said.contains("connections go on"), "{said}");
        s.request(Method::Masq, Family::V4).unwrap();
    }
    // Room for more or fewer than last time: they move.
    stop_and_keep(&mut s);
    s.start(&["--connections", "5000"]).unwrap();
    let said = s.director().unwrap().process().output();
    assert!(said.contains("connections go on"), "{said}");
    // Rubbish in the slots themselves: each entry is looked at, none is believed.
    stop_and_keep(&mut s);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let rubbish: Vec<u8> = (0..100 * 64u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    file.write_all_at(&rubbish, 4096).unwrap();
    s.start(&["--connections", "5000"]).unwrap();
    s.request(Method::Masq, Family::V4).unwrap();
    super::support::assert_balanced(&mut s);
}

/// `uvs run` with its state folder on a file system of 64 KiB of its own.
struct SmallDisk {
    process: Process,
    socket: PathBuf,
    /// The state folder as that process sees it.
    folder: PathBuf,
}

impl SmallDisk {
    fn start(host: &Host, cluster: &Path) -> SmallDisk {
        let mounted = cluster.join("state");
        fs::create_dir_all(&mounted).unwrap();
        let mut command = host.command("unshare").unwrap();
        let mount = format!("mount -t tmpfs -o size=64k none {} && exec \"$@\"", mounted.display());
        command.args(["--mount", "sh", "-c", &mount, "sh"]).arg(program());
        command.args(arguments(cluster, &["eth0"], &[]));
        let mut process = Process::start("uvs run", &mut command).unwrap();
        process.wait_for_line(START_MAX, |line| line.contains("ready")).unwrap();
        let root = PathBuf::from(format!("/proc/{}/root", process.id()));
        SmallDisk {
            process,
            socket: cluster.join("uvs.sock"),
            folder: root.join(mounted.strip_prefix("/").unwrap()),
        }
    }

    fn output(&self, arguments: &str) -> std::process::Output {
        let mut command = std::process::Command::new(program());
        command
            .args(arguments.split_whitespace())
            .env("UVS_SOCKET", &self.socket)
            .output()
            .unwrap()
    }

    fn uvs(&self, arguments: &str) -> (bool, String) {
        let output = self.output(arguments);
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    }
}

/// Goal: on a full disk a change is live, the old file stands, the operator hears of it; with room it is saved again.
/// How: 64 KiB are filled, and changes made until also the journal's last block is full.
#[test]
fn on_a_full_disk_changes_are_live_and_said_to_be_unsaved() {
    let Some(t) = topology("full-disk", Plan::new(Layout::OneSegment)) else {
        return;
    };
    let mut disk = SmallDisk::start(&t.director, t.cluster.directory());
    assert!(disk.uvs("ipvsadm -A -t 172.25.7.200:80 -s rr").0);
    let rules = disk.folder.join("rules.json");
    let before = fs::read_to_string(&rules).unwrap();
    let ballast = disk.folder.join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).expect_err("64 KiB are full");

    let add = |server: u8| {
        let added = disk.output(&format!("ipvsadm -a -t 172.25.7.200:80 -r 172.25.8.{server} -g"));
        assert!(added.status.success() && added.stdout.is_empty(), "{added:?}");
        String::from_utf8(added.stderr).unwrap()
    };
    let (server, warning) = (1..100)
        .map(|server| (server, add(server)))
        .find(|(_, warning)| !warning.is_empty())
        .unwrap();
    assert!(
        warning.starts_with("uvs: the change is live, but it is not saved: state directory: cannot write"),
        "{warning}"
    );
    let (_, listed) = disk.uvs("ipvsadm -ln");
    assert!(listed.contains(&format!("172.25.8.{server}:80")), "{listed}");
    assert_eq!(fs::read_to_string(&rules).unwrap(), before);
    let (_, stats) = disk.uvs("stats");
    let line = stats
        .lines()
        .find(|line| line.starts_with("The rules are not saved: "))
        .expect(&stats);
    for word in ["cannot write", "rules.json.new", "No space left on device"] {
        assert!(line.contains(word), "{line}");
    }
    let (_, json) = disk.uvs("stats --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["unsaved"].is_string(), "{json}");
    let said = disk.process.output();
    assert!(said.contains("the change is live, but it is not saved"), "{said}");

    fs::remove_file(&ballast).unwrap();
    assert!(disk.uvs("ipvsadm -a -t 172.25.7.200:80 -r 172.25.7.4 -g").0);
    let (_, json) = disk.uvs("stats --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["unsaved"].is_null(), "{json}");
    let after = fs::read_to_string(&rules).unwrap();
    for address in ["172.25.8.1", &format!("172.25.8.{server}"), "172.25.7.4"] {
        assert!(after.contains(&format!("\"{address}\"")), "{address}: {after}");
    }
    assert!(disk.process.terminate().unwrap().success());
}
