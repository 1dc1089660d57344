//! What the kernel's IPVS did with frames (`tests/kernel/packets.json`), done by `uvs run` on real interfaces.
//!
//! How: every recorded case through one daemon a driver, frames put on the wires and compared as they come out, byte
//! by byte, and the connection entries afterwards. Goal: no difference that is not agreed on below.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

#[path = "support/deviations.rs"]
mod deviations;
mod support;

use support::recorded::{Bench, Side, checksums};
use support::recorded_frame::{as_on_a_wire, hex, unhex};

/// Where uvs deliberately does something else: the cases of DEVIATIONS.md.
const AGREED: &[(&str, &str)] = &[
    ("tcp-doff-beyond", "a data offset past the end is dropped"),
    ("udp-bad-len", "a UDP length past the end is dropped"),
];

#[test]
fn agreed_cases_are_those_of_the_file() {
    let here: Vec<&str> = AGREED.iter().map(|(case, _)| *case).collect();
    assert_eq!(deviations::packet_cases(), here);
}

#[test]
fn through_af_xdp() {
    replay("xdp");
}

#[test]
fn through_packet_sockets() {
    replay("raw");
}

fn replay(driver: &str) {
    if !uvs::io::netns::can_test() {
        return;
    }
    let file: Value = serde_json::from_str(include_str!("kernel/packets.json")).unwrap();
    let cases = file["vectors"].as_array().unwrap();
    assert_eq!(cases.len(), 120, "the recorded file lost or gained cases");
    let mut bench = Bench::start(&format!("rec-{driver}"), driver);
    let mut used = HashSet::new();
    let mut differences: BTreeMap<String, String> = BTreeMap::new();
    for case in cases {
        let name = text(case, "name").trim_start_matches("ipvs-oracle/");
        if let Err(difference) = run(&mut bench, case, &mut used) {
            differences.insert(name.to_owned(), difference);
        }
    }
    let excused = |name: &str| {
        let kind = name.rsplit('/').next().unwrap();
        AGREED.iter().any(|(agreed, _)| *agreed == kind)
    };
    let mut report = String::new();
    for (name, difference) in &differences {
        let word = if excused(name) { "excused" } else { "WRONG" };
        writeln!(report, "{word} {name}: {difference}").unwrap();
    }
    println!(
        "driver {driver}: {} of {} cases as the kernel\n{report}",
        cases.len() - differences.len(),
        cases.len()
    );
    let wrong = differences.keys().filter(|name| !excused(name)).count();
    assert_eq!(wrong, 0, "driver {driver}:\n{report}");
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} of {value}"))
}

/// Runs one case on a clean table of services; the first difference.
fn run(bench: &mut Bench, case: &Value, used: &mut HashSet<String>) -> Result<(), String> {
    bench.ipvsadm("-C");
    for line in list(case, "setup") {
        bench.ipvsadm(line.as_str().unwrap());
    }
    for line in list(case, "pre") {
        bench.shell(line.as_str().unwrap());
    }
    let mut result = Ok(());
    for (n, step) in list(case, "steps").iter().enumerate() {
        if let Some(command) = step["command"].as_str() {
            bench.ipvsadm(command);
            continue;
        }
        let expected = list(step, "outputs");
        let side = Side::named(text(step, "inject_on"));
        let frame = unhex(text(step, "input_hex"));
        let seen = bench.inject(side, &frame, expected.len());
        if result.is_ok() {
            result = compare(expected, &seen).map_err(|difference| format!("step {n}: {difference}"));
        }
    }
    if result.is_ok() {
        result = entries(bench, case, used);
    }
    if list(case, "pre")
        .iter()
        .any(|line| line.as_str().unwrap().contains("sloppy_tcp"))
    {
        bench.shell("sysctl -qw net.ipv4.vs.sloppy_tcp=0");
    }
    result
}

/// The frames of one step, in any order of the two sides but in order on each.
fn compare(expected: &[Value], seen: &[(Side, Vec<u8>)]) -> Result<(), String> {
    let drawn = || {
        let mut all = String::new();
        for output in expected {
            write!(all, "\n    kernel {} {}", text(output, "seen_on"), text(output, "hex")).unwrap();
        }
        for (side, frame) in seen {
            write!(all, "\n    uvs    {side:?} {}", hex(frame)).unwrap();
        }
        all
    };
    if expected.len() != seen.len() {
        return Err(format!("{} frames, not {}{}", seen.len(), expected.len(), drawn()));
    }
    for side in [Side::Client, Side::Real] {
        let wanted = expected.iter().filter(|o| Side::named(text(o, "seen_on")) == side);
        let got = seen.iter().filter(|(at, _)| *at == side).map(|(_, frame)| frame);
        let (wanted, got): (Vec<_>, Vec<_>) = (wanted.collect(), got.collect());
        if wanted.len() != got.len() {
            return Err(format!("on another side{}", drawn()));
        }
        for (wanted, got) in wanted.iter().zip(got) {
            same(wanted, got).map_err(|what| format!("{what}{}", drawn()))?;
        }
    }
    Ok(())
}

/// One frame: every byte but the volatile ones, whose checksums must be right.
fn same(wanted: &Value, got: &[u8]) -> Result<(), String> {
    let bytes = as_on_a_wire(unhex(text(wanted, "hex")));
    if bytes.len() != got.len() {
        return Err(format!("{} bytes, not {}", got.len(), bytes.len()));
    }
    let volatile: Vec<usize> = match wanted["volatile_offsets"].as_array() {
        Some(offsets) => offsets.iter().map(|o| o.as_u64().unwrap() as usize).collect(),
        // Recorded once: identification and header checksum of what the director made or wrapped.
        None if bytes[12..14] == [8, 0] && matches!(bytes[23], 1 | 4 | 41 | 47) => vec![18, 19, 24, 25],
        None => vec![],
    };
    let differs = (0..bytes.len()).find(|at| bytes[*at] != got[*at] && !volatile.contains(at));
    if let Some(at) = differs {
        return Err(format!("byte {at} is {:02x}, not {:02x}", got[at], bytes[at]));
    }
    let (kernel, ours) = (checksums(&bytes), checksums(got));
    match kernel.iter().zip(&ours).position(|(kernel, ours)| *kernel && !ours) {
        Some(layer) => Err(format!("checksum {layer} is wrong")),
        None => Ok(()),
    }
}

/// The entries of this case's clients, as `/proc/net/ip_vs_conn` showed them.
fn entries(bench: &Bench, case: &Value, used: &mut HashSet<String>) -> Result<(), String> {
    let listed = bench.director.ipvsadm("-Lnc").expect("the connections are listed");
    let listed: Vec<Vec<&str>> = listed.lines().map(|l| l.split_whitespace().collect()).collect();
    let listed: Vec<_> = listed.into_iter().filter(|words| words.len() == 6).collect();
    let clients: HashSet<String> = list(case, "steps").iter().filter_map(client_of).collect();
    let mut known = HashSet::new();
    for line in text(case, "conn_dump").lines() {
        let entry = Recorded::read(line);
        // Others are of cases before, which may be in the other half of the recording.
        let id = format!("{} {}", entry.protocol, entry.client);
        if clients.contains(&id) && !text(case, "name").ends_with("/reply-ttl1") {
            entry.check(&listed)?;
        }
        known.insert(id);
    }
    let fresh = clients.iter().filter(|id| !known.contains(*id) && !used.contains(*id));
    let fresh: Vec<_> = fresh.collect();
    used.extend(clients.iter().cloned());
    let forwarded = list(case, "steps")
        .iter()
        .any(|step| list(step, "outputs").iter().any(|o| text(o, "seen_on") == "real_side"));
    match listed
        .iter()
        .find(|words| fresh.iter().any(|id| **id == format!("{} {}", words[0], words[3])))
    {
        Some(entry) if !forwarded => Err(format!("an entry that the kernel does not make: {entry:?}")),
        _ => Ok(()),
    }
}

/// A line of `/proc/net/ip_vs_conn`, in ipvsadm's way of writing.
#[derive(Debug)]
struct Recorded<'a> {
    protocol: &'a str,
    client: String,
    virtual_address: String,
    destination: String,
    state: &'a str,
    seconds: u32,
}

impl<'a> Recorded<'a> {
    fn read(line: &'a str) -> Recorded<'a> {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words.len(), 9, "not an entry: {line}");
        Recorded {
            protocol: words[0],
            client: endpoint(words[1], words[2]),
            virtual_address: endpoint(words[3], words[4]),
            destination: endpoint(words[5], words[6]),
            state: words[7],
            seconds: words[8].parse().unwrap(),
        }
    }

    /// Looks for it in the listing.
    fn check(&self, listed: &[Vec<&str>]) -> Result<(), String> {
        let entry = listed
            .iter()
            .find(|words| words[0] == self.protocol && words[3] == self.client && words[4] == self.virtual_address)
            .ok_or_else(|| format!("no entry {self:?}, but {listed:?}"))?;
        if entry[2] != self.state || entry[5] != self.destination {
            return Err(format!("entry {entry:?}, not {self:?}"));
        }
        let (minutes, rest) = entry[1].split_once(':').unwrap();
        let left = minutes.parse::<u32>().unwrap() * 60 + rest.parse::<u32>().unwrap();
        // Either may have been a little slower; a fresh one never reads a round number.
        let fresh = self.seconds / 10 * 10 + 9;
        if (fresh - 2..=fresh).contains(&left) {
            return Ok(());
        }
        Err(format!("{left} s left in {entry:?}, not {}", self.seconds))
    }
}

/// `0AC80101 0050` or `fd00:0200:… 0050` as ipvsadm prints it.
fn endpoint(address: &str, port: &str) -> String {
    let port = u16::from_str_radix(port, 16).unwrap();
    match address.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{port}"),
        Err(_) => {
            let address = std::net::Ipv4Addr::from_bits(u32::from_str_radix(address, 16).unwrap());
            format!("{address}:{port}")
        }
    }
}

/// Protocol and client of a step's frame, if it is TCP or UDP without IP options.
fn client_of(step: &Value) -> Option<String> {
    if step["inject_on"].as_str() != Some("client_side") {
        return None;
    }
    let frame = unhex(text(step, "input_hex"));
    let (protocol, address, ports) = match frame[12..15] {
        [8, 0, 0x45] if frame[20] & 0x3f == 0 && frame[21] == 0 => {
            let address = <[u8; 4]>::try_from(frame.get(26..30)?).ok()?;
            (frame[23], IpAddr::from(address), 34)
        }
        [0x86, 0xdd, _] => {
            let address = <[u8; 16]>::try_from(frame.get(22..38)?).ok()?;
            (frame[20], IpAddr::from(address), 54)
        }
        _ => return None,
    };
    let protocol = match protocol {
        6 => "TCP",
        17 => "UDP",
        _ => return None,
    };
    let port = u16::from_be_bytes(*frame.get(ports..)?.first_chunk()?);
    Some(format!("{protocol} {}", SocketAddr::new(address, port)))
}
