//! Starts that cannot be.

use std::fs::File;
use std::process::{Command, Stdio};

use uvs::io::bpf::asm::{Assembler, R0};
use uvs::io::bpf::xdp_link::{self, AttachMode};
use uvs::io::bpf::{Program, ProgramType};

use super::support::{Family, Layout, Method, Plan, Process, netns, program, scenario, topology};
use super::{START_MAX, arguments, assert_message, assert_refused, refused};

/// XDP_PASS.
const PASS: i32 = 2;

#[test]
fn interfaces_that_cannot_be_served() {
    let Some(mut t) = topology("iface", Plan::new(Layout::OneSegment)) else {
        return;
    };
    let folder = t.cluster.directory().to_owned();
    assert_refused(
        &t.director,
        &folder,
        &["nosuch0"],
        &[],
        &["there is no interface nosuch0"],
    );
    assert_refused(
        &t.director,
        &folder,
        &["lo"],
        &[],
        &["interface lo has no Ethernet address"],
    );
    assert_refused(
        &t.director,
        &folder,
        &["eth0", "eth0"],
        &[],
        &["interface eth0 is given twice"],
    );
    assert_refused(&t.director, &folder, &[], &[], &["no interface given", "--interface"]);
    let workers = ["--driver", "xdp", "--workers", "9"];
    let words = ["9 workers are more than the 1 receive queues of interface eth0"];
    assert_refused(&t.director, &folder, &["eth0"], &workers, &words);
    t.director.set_up("eth0", false).unwrap();
    let words = ["interface eth0 is down", "ip link set eth0 up"];
    assert_refused(&t.director, &folder, &["eth0"], &[], &words);
    assert!(!folder.join("uvs.sock").exists());
}

#[test]
fn without_root_it_says_so() {
    if !netns::can_test() {
        return;
    }
    // By its descriptor: the path to it may be closed to others.
    let open = || Stdio::from(File::open(program()).unwrap());
    let unprivileged = |arguments: &[&str]| {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("/proc/self/fd/0");
        command
            .args(arguments)
            .stdin(open())
            .uid(65534)
            .gid(65534)
            .current_dir("/");
        let output = command.output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    };
    for driver in ["auto", "xdp", "raw"] {
        let (status, said) = unprivileged(&["run", "--interface", "lo", "--driver", driver]);
        assert_message(status, &said, &["needs root"]);
    }
    let (status, said) = unprivileged(&["decap", "--interface", "lo"]);
    assert_message(status, &said, &["needs root"]);
}

/// Goal: another's XDP program is named, stays, and goes on; the interface before it is as it was; the way out that
/// the message names works.
#[test]
fn a_foreign_xdp_program_is_named_and_left_alone() {
    let Some(mut s) = scenario("foreign", Plan::new(Layout::TwoArmed)) else {
        return;
    };
    s.offer(Method::Masq, Family::V4).unwrap();
    let [eth0, eth1] = ["eth0", "eth1"].map(|name| s.topology.director.link(name).unwrap().index);
    let folder = s.topology.cluster.directory().to_owned();
    let mut a = Assembler::new();
    a.mov_imm(R0, PASS);
    a.exit();
    let foreign = Program::load(ProgramType::Xdp, "their_filter", &a.finish()).unwrap();
    let id = foreign.info().unwrap().id;
    let namespace = s.topology.director.namespace().try_clone().unwrap();
    let attached = |link| namespace.run(|| xdp_link::query(link).unwrap().xdp_programs).unwrap();
    for mode in [AttachMode::Native, AttachMode::Generic] {
        let attach = || xdp_link::attach(eth1, mode, &foreign, None);
        namespace.run(attach).unwrap().unwrap();
        for driver in ["xdp", "auto"] {
            let words = ["interface eth1", "their_filter", &mode.to_string(), "--driver raw"];
            let interfaces = ["eth0", "eth1"];
            assert_refused(
                &s.topology.director,
                &folder,
                &interfaces,
                &["--driver", driver],
                &words,
            );
            assert_eq!((attached(eth0), attached(eth1)), (vec![], vec![(mode, id)]), "{driver}");
        }
        s.start(&["--driver", "raw"]).unwrap();
        s.add_service(Method::Masq, Family::V4, "-s rr").unwrap();
        assert_eq!(s.request(Method::Masq, Family::V4).unwrap(), "server2-hk", "{mode}");
        s.director().unwrap().ipvsadm("-C").unwrap();
        drop(s.take_director());
        assert_eq!(attached(eth1), [(mode, id)]);
        let detach = || xdp_link::detach(eth1, mode, &foreign);
        namespace.run(detach).unwrap().unwrap();
    }
}

/// Goal: what belongs to a running daemon is told before anything is touched; that one goes on.
#[test]
fn another_uvs_is_named_and_undisturbed() {
    let Some(mut s) = scenario("second", Plan::new(Layout::TwoArmed)) else {
        return;
    };
    s.offer(Method::Masq, Family::V4).unwrap();
    s.start(&[]).unwrap();
    s.add_service(Method::Masq, Family::V4, "-s rr").unwrap();
    let mut open = s.connect(Method::Masq, Family::V4, None).unwrap();
    let name = open.get("/").unwrap();
    let pid = format!("process {}", s.director().unwrap().process().id());
    let first = s.topology.cluster.directory().to_owned();
    let other = first.join("other");
    std::fs::create_dir(&other).unwrap();

    let director = &s.topology.director;
    let words = ["interface eth0", "another uvs", &pid, "--takeover"];
    for driver in ["auto", "raw"] {
        assert_refused(director, &other, &["eth0"], &["--driver", driver], &words);
    }
    // Taken over it can be only by its own control socket.
    let words = ["interface eth0", "another uvs", &pid, "give the --socket"];
    assert_refused(director, &other, &["eth0"], &["--takeover"], &words);
    // Elsewhere, with one thing in common.
    let elsewhere = &s.topology.client;
    let state = first.join("state").display().to_string();
    let words = ["another uvs", &pid, "state directory", &state];
    assert_refused(elsewhere, &other, &["eth0"], &["--state-dir", &state], &words);
    let socket = first.join("uvs.sock").display().to_string();
    let words = ["another uvs", &pid, &socket];
    assert_refused(elsewhere, &other, &["eth0"], &["--socket", &socket], &words);
    let link = s.topology.client.link("eth0").unwrap().index;
    let left = s
        .topology
        .client
        .namespace()
        .run(|| xdp_link::query(link).unwrap().xdp_programs);
    assert_eq!(left.unwrap(), [], "a start that failed leaves no filter");

    assert_eq!(open.get("/").unwrap(), name);
    s.request(Method::Masq, Family::V4).unwrap();
    super::support::assert_balanced(&mut s);
}

#[test]
fn run_directories_that_cannot_hold_the_entries() {
    let Some(t) = topology("rundir", Plan::new(Layout::OneSegment)) else {
        return;
    };
    let folder = t.cluster.directory().to_owned();
    let mounted = folder.join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    let run = |mount: &str, more: &[&str]| {
        // In a mount namespace of its own, which goes with it.
        let mut command = t.director.command("unshare").unwrap();
        command
            .args(["--mount", "sh", "-c"])
            .arg(format!("{mount} && exec \"$@\""));
        command.arg("sh").arg(program());
        let mounted = mounted.display().to_string();
        let more: Vec<&str> = ["--run-dir", &mounted]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        command.args(arguments(&folder, &["eth0"], &more));
        command
    };
    let at = mounted.display();
    let (status, said) = refused(run(&format!("mount -t ramfs none {at}"), &[]));
    assert_message(status, &said, &["connection entries", &at.to_string(), "not on tmpfs"]);
    let small = format!("mount -t tmpfs -o size=1m none {at}");
    let (status, said) = refused(run(&small, &["--connections", "100000"]));
    assert_message(
        status,
        &said,
        &["connection entries", "no room for", "No space left on device"],
    );
    // With fewer it starts.
    let mut process = Process::start("uvs run", &mut run(&small, &["--connections", "1024"])).unwrap();
    process.wait_for_line(START_MAX, |line| line.contains("ready")).unwrap();
    assert!(process.terminate().unwrap().success());
}
