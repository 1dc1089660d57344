//! `uvs demo`: the three methods of scenario S3, shown and checked.
//!
//! For each: network, director, rules, six requests by a TCP client, who answered, the table, and where every frame
//! went. The exit code is 0 only if the servers took turns and the table is right. Nothing is left behind: what
//! `Drop` cannot do, because this process was killed, a [`Guardian`] does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::cluster::{self, Error};
use super::scenario::{PORT, Scenario};
use super::topology::{Layout, Plan};
use crate::io::guardian::Guardian;
use crate::io::netns;
use crate::options::{DemoMode, DemoOptions, DriverChoice, SOCKET_VARIABLE};
use crate::packet::Family;
use crate::service::Method;

/// Requests of each method.
const REQUESTS: usize = 6;

/// How long the table may take to show all connections as closed.
const SETTLE_MAX: Duration = Duration::from_secs(3);

/// Runs `uvs demo`. `true`: all was as it should be.
pub fn run(options: &DemoOptions) -> bool {
    if !netns::is_root() {
        eprintln!("uvs demo: {}", Error::NotRoot);
        return false;
    }
    let own = std::process::id();
    // Before any thread. Without it all is well too, as long as nobody kills this process.
    let guardian = Guardian::start(move || cluster::remove_all_of(own));
    if let Err(error) = &guardian {
        log::warn!("nobody will clean up should this process be killed: {error}");
    }
    let stop = match stop_flag() {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("uvs demo: cannot catch signals: {error}");
            return false;
        }
    };
    match show_all(options, &stop) {
        Ok(all_right) => all_right,
        Err(_) if stop.load(Ordering::Relaxed) => {
            eprintln!("uvs demo: interrupted; everything is cleaned up");
            false
        }
        Err(error) => {
            eprintln!("uvs demo: {error}");
            false
        }
    }
}

fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Shows the modes asked for; whether all were right.
fn show_all(options: &DemoOptions, stop: &AtomicBool) -> Result<bool, Error> {
    let modes = match options.mode {
        Some(mode) => vec![mode],
        None => vec![DemoMode::Nat, DemoMode::Tun, DemoMode::Dr],
    };
    let mut kept = Vec::new();
    let mut wrong = Vec::new();
    for mode in &modes {
        let shown = Shown::of(*mode);
        let (scenario, faults) = show(&shown, options, stop)?;
        for fault in &faults {
            println!("WRONG: {fault}");
        }
        println!(
            "{}: {}\n",
            shown.name,
            if faults.is_empty() { "right" } else { "wrong" }
        );
        if !faults.is_empty() {
            wrong.push(shown.name);
        }
        if options.keep {
            kept.push((shown, scenario));
        }
    }
    if wrong.is_empty() {
        println!("All right: {} of {} methods.", modes.len(), modes.len());
    } else {
        println!("Wrong: {}.", wrong.join(", "));
    }
    if options.keep {
        keep(&mut kept, stop)?;
    }
    Ok(wrong.is_empty())
}

/// One mode with its words.
struct Shown {
    /// In the names of the namespaces.
    label: &'static str,
    /// As the documents say it.
    name: &'static str,
    /// As the table says it.
    listed: &'static str,
    /// One line on what happens.
    explanation: &'static str,
    method: Method,
}

impl Shown {
    fn of(mode: DemoMode) -> Shown {
        match mode {
            DemoMode::Nat => Shown {
                label: "nat",
                name: "NAT",
                listed: "Masq",
                explanation: "one-armed: the director rewrites addresses, and replies come back through it",
                method: Method::Masq,
            },
            DemoMode::Tun => Shown {
                label: "tun",
                name: "Tunnel",
                listed: "Tunnel",
                explanation: "IP in IP to the real servers, which unwrap it (uvs decap) and answer the client themselves",
                method: Method::Tunnel,
            },
            DemoMode::Dr => Shown {
                label: "dr",
                name: "Direct Routing",
                listed: "Route",
                explanation: "new link addresses, nothing else; the real servers have the VIP on lo and answer themselves",
                method: Method::Route,
            },
        }
    }
}

/// Shows one mode: the cluster as it then stands, and what was wrong.
fn show(shown: &Shown, options: &DemoOptions, stop: &AtomicBool) -> Result<(Scenario, Vec<String>), Error> {
    let (method, family) = (shown.method, Family::V4);
    let go_on = || match stop.load(Ordering::Relaxed) {
        true => Err(Error::Wrong("interrupted".to_owned())),
        false => Ok(()),
    };
    println!("== {}: {}", shown.name, shown.explanation);
    let mut scenario = Scenario::new(shown.label, Plan::new(Layout::OneSegment), &program())?;
    go_on()?;
    scenario.offer(method, family)?;
    go_on()?;
    print_addresses(&scenario, method, family);
    scenario.start(&["--driver", driver_name(options.driver)])?;
    go_on()?;

    for rule in scenario.rules(method, family, "-t", "-s rr", "") {
        println!("director# ipvsadm {rule}");
        scenario.director()?.ipvsadm(&rule)?;
    }
    let mut faults = Vec::new();
    let mut answers = Vec::new();
    for _ in 0..REQUESTS {
        go_on()?;
        println!("client# curl http://{}/", scenario.topology.vip(method, family));
        match scenario.request(method, family) {
            Ok(answer) => {
                println!("{answer}");
                answers.push(answer);
            }
            Err(error) => {
                faults.push(format!("no answer: {error}"));
                break;
            }
        }
    }
    faults.extend(check_rotation(&scenario, &answers));

    let (table, fault) = settled_table(&mut scenario, shown, family)?;
    print!("director# ipvsadm -ln\n{table}");
    faults.extend(fault);
    let accounting = scenario.accounting()?;
    println!("director# uvs stats\n{accounting}");
    if !accounting.balanced() {
        faults.push("frames are missing in the accounting".to_owned());
    }
    if !faults.is_empty() {
        print!("What the director said:\n{}", scenario.director()?.process().output());
    }
    Ok((scenario, faults))
}

fn print_addresses(scenario: &Scenario, method: Method, family: Family) {
    let topology = &scenario.topology;
    println!("   client    {}", topology.client_address(method, family));
    println!("   director  172.25.7.2, VIP {}", topology.vip(method, family));
    for (n, server) in topology.servers.iter().enumerate() {
        println!("   {}   {}", server.name(), topology.server_address(n, family));
    }
}

/// Round robin takes the newest destination first (the kernel's order), then each in turn.
fn check_rotation(scenario: &Scenario, answers: &[String]) -> Option<String> {
    let names: Vec<_> = scenario
        .topology
        .servers
        .iter()
        .rev()
        .map(|server| format!("{}-hk", server.name()))
        .collect();
    let expected: Vec<_> = names.into_iter().cycle().take(REQUESTS).collect();
    (answers != expected).then(|| format!("answered {}, expected {}", answers.join(" "), expected.join(" ")))
}

/// The table once all connections are closed, or as it is when that takes too long, and what is wrong with it.
fn settled_table(scenario: &mut Scenario, shown: &Shown, family: Family) -> Result<(String, Option<String>), Error> {
    let start = Instant::now();
    loop {
        let table = scenario.director()?.ipvsadm("-ln")?;
        let fault = check_table(scenario, &table, shown, family);
        if fault.is_none() || start.elapsed() > SETTLE_MAX {
            return Ok((table, fault));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn check_table(scenario: &Scenario, table: &str, shown: &Shown, family: Family) -> Option<String> {
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_ascii_whitespace().collect())
        .collect();
    let topology = &scenario.topology;
    let has = |row: &[&str]| rows.iter().any(|found| found == row);
    let vip = format!("{}:{PORT}", topology.vip(shown.method, family));
    if !has(&["TCP", &vip, "rr"]) {
        return Some(format!("the table lacks `TCP {vip} rr`"));
    }
    let connections = (REQUESTS / topology.servers.len()).to_string();
    (0..topology.servers.len()).find_map(|n| {
        let server = format!("{}:{PORT}", topology.server_address(n, family));
        let row = ["->", &server, shown.listed, "1", "0", &connections];
        (!has(&row)).then(|| format!("the table lacks `{}`", row.join(" ")))
    })
}

/// Prints what can be tried and waits for a signal.
fn keep(kept: &mut [(Shown, Scenario)], stop: &AtomicBool) -> Result<(), Error> {
    let program = program();
    let program = program.display();
    println!("\nThe cluster stays up. To try by hand, in another terminal, as root:");
    for (shown, scenario) in &mut *kept {
        let vip = scenario.topology.vip(shown.method, Family::V4);
        let socket = scenario.director()?.socket().display().to_string();
        let topology = &scenario.topology;
        println!("\n# {}", shown.name);
        println!(
            "ip netns exec {} curl http://{vip}/",
            topology.client.namespace().name()
        );
        println!("{SOCKET_VARIABLE}={socket} {program} ipvsadm -ln --stats");
        println!("{SOCKET_VARIABLE}={socket} {program} stats");
        for host in [&topology.client, &topology.director]
            .into_iter()
            .chain(&topology.servers)
        {
            println!(
                "nsenter --net={} sh    # on {}",
                host.namespace().path().display(),
                host.name()
            );
        }
    }
    println!("\nCtrl-C ends it and cleans up.");
    while !stop.load(Ordering::Relaxed) {
        for (shown, scenario) in &mut *kept {
            let process = scenario.director()?.process();
            if let Some(status) = process.try_wait().map_err(Error::io("look after the director"))?
                && !stop.load(Ordering::Relaxed)
            {
                let said = process.output();
                return Err(Error::Wrong(format!(
                    "the director of {} ended ({status}):\n{said}",
                    shown.name
                )));
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("Cleaning up.");
    Ok(())
}

fn driver_name(driver: DriverChoice) -> &'static str {
    match driver {
        DriverChoice::Auto => "auto",
        DriverChoice::Xdp => "xdp",
        DriverChoice::Afxdp => "afxdp",
        DriverChoice::Raw => "raw",
    }
}

/// This program; by way of /proc when its file was replaced meanwhile.
fn program() -> std::path::PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| "/proc/self/exe".into())
}
