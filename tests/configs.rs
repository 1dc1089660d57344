//! The files in configs/: examples load, and reference.toml says what the program says.
//!
//! How: parses the files with the program's own reader, and reads `uvs run --help`. Goal: no key, range or default
//! can be changed in one place only.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use uvs::control::config::{self, Config, ConfigError};
use uvs::control::difference::difference;
use uvs::control::state::State;
use uvs::options::CONNECTIONS_DEFAULT;
use uvs::table::Sysctls;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

fn reference() -> String {
    std::fs::read_to_string(folder().join("reference.toml")).unwrap()
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    config::parse(Path::new("test.toml"), text, |_| panic!("TOML was taken for rules"))
}

/// The keys that the reader knows in this place: it lists them when it meets one that it does not.
fn known(place: &str) -> BTreeSet<String> {
    let error = parse(&format!("{place}\nno_such_key = 1\n")).unwrap_err();
    let (_, list) = error
        .reason
        .split_once("expected one of")
        .unwrap_or_else(|| panic!("{error}"));
    list.split(',')
        .map(|key| key.trim_matches([' ', '`']).to_owned())
        .collect()
}

/// One key of the reference, with the comment in front of it.
#[derive(Debug)]
struct Entry {
    section: String,
    key: String,
    value: String,
    unit: String,
    range: String,
    default: String,
}

/// The parts of `# Unit: …. Range: …. Default: ….`
fn parts(line: &str) -> Option<[String; 3]> {
    let rest = line.strip_prefix("# Unit: ")?;
    let (unit, rest) = rest.split_once(". Range: ")?;
    let (range, default) = rest.split_once(". Default: ")?;
    Some([unit, range, default.strip_suffix('.')?].map(str::to_owned))
}

fn entries() -> Vec<Entry> {
    let mut section = String::new();
    let mut before = "";
    let mut entries = Vec::new();
    let text = reference();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if !line.starts_with('#') && line.contains('=') {
            let (key, value) = line.split_once('=').unwrap();
            let found =
                parts(before).unwrap_or_else(|| panic!("no unit, range and default before {line:?}: {before:?}"));
            let [unit, range, default] = found;
            entries.push(Entry {
                section: section.clone(),
                key: key.trim().to_owned(),
                value: value.trim().trim_matches('"').to_owned(),
                unit,
                range,
                default,
            });
        }
        before = line;
    }
    entries
}

#[test]
fn examples_load() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let config = config::load(&path, |_| panic!("TOML was taken for rules"));
            let config = config.unwrap_or_else(|error| panic!("{error}"));
            assert!(
                !config.daemon.interfaces.is_empty(),
                "{} names no interface",
                path.display()
            );
            assert!(
                config.desired.destinations_count() > 1,
                "{} has no destinations",
                path.display()
            );
            names.push(path.file_stem().unwrap().to_string_lossy().into_owned());
        }
    }
    for scenario in ["s0a", "s0b", "s0c", "s2a", "s3a", "s3b", "s3c", "s4"] {
        let found = names.iter().any(|name| name.starts_with(&format!("{scenario}-")));
        assert!(found, "no example for {scenario} among {names:?}");
    }
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let mut expected = BTreeSet::new();
    let mut expect = |section: &str, keys: BTreeSet<String>| {
        expected.extend(keys.into_iter().map(|key| (section.to_owned(), key)));
    };
    let tables = ["timeouts", "sysctl", "mark", "service"];
    expect(
        "",
        known("")
            .into_iter()
            .filter(|key| !tables.contains(&key.as_str()))
            .collect(),
    );
    expect("timeouts", known("[timeouts]"));
    expect("sysctl", Sysctls::names().into_iter().map(str::to_owned).collect());
    expect("mark", known("[[mark]]"));
    let service = known("[[service]]").into_iter().filter(|key| key != "destination");
    expect("service", service.collect());
    expect("service.destination", known("[[service]]\n[[service.destination]]"));
    let written: BTreeSet<_> = entries().into_iter().map(|entry| (entry.section, entry.key)).collect();
    assert_eq!(written, expected);
}

#[test]
fn what_the_reference_calls_default_is_the_default() {
    let config = parse(&reference()).unwrap_or_else(|error| panic!("{error}"));
    // Timeouts and settings as written there are those of an empty configuration.
    let empty = State::default();
    assert_eq!(config.desired.timeouts, empty.timeouts);
    assert_eq!(config.desired.sysctls, empty.sysctls);
    assert_eq!(config.desired.mss_clamp, empty.mss_clamp);
    assert_eq!(config.daemon.connections, Some(CONNECTIONS_DEFAULT));
    for entry in entries() {
        if ["timeouts", "sysctl"].contains(&entry.section.as_str())
            || ["connections", "mss_clamp"].contains(&entry.key.as_str())
        {
            assert_eq!(entry.value, entry.default, "{}.{}", entry.section, entry.key);
        }
        assert!(!entry.unit.is_empty() && !entry.range.is_empty());
    }
    let schedulers = entries().into_iter().find(|entry| entry.key == "scheduler").unwrap();
    assert_eq!(schedulers.range, uvs::scheduler::NAMES.join(", "));
    // A service and a destination with nothing but their names have the defaults of the reference.
    let bare = |service: &str, destination: &str| {
        let text = format!("[[service]]\ntcp = \"10.0.0.1:80\"\n{service}\n[[service.destination]]\n{destination}\n");
        parse(&text).unwrap_or_else(|error| panic!("{error}")).desired
    };
    let plain = bare("", "address = \"10.1.0.1\"");
    for entry in entries() {
        let quoted = match entry.default.as_str() {
            number if number.parse::<u64>().is_ok() => number.to_owned(),
            word @ ("true" | "false") => word.to_owned(),
            word => format!("\"{word}\""),
        };
        let line = format!("{} = {quoted}", entry.key);
        let explicit = match (entry.section.as_str(), entry.key.as_str()) {
            ("service", "scheduler" | "one_packet" | "ipv6") => bare(&line, "address = \"10.1.0.1\""),
            ("service.destination", "method" | "weight" | "upper_threshold" | "lower_threshold" | "tunnel")
            | ("service.destination", "tunnel_checksum") => bare("", &format!("address = \"10.1.0.1\"\n{line}")),
            _ => continue,
        };
        assert!(
            difference(&plain, &explicit, true).is_empty(),
            "{line} is not the default"
        );
    }
}

#[test]
fn ranges_of_numbers_are_enforced_at_both_ends() {
    let mut tried = 0;
    for entry in entries() {
        let bounds = entry
            .range
            .split_once(" to ")
            .and_then(|(min, max)| Some((min.parse::<i64>().ok()?, max.parse::<i64>().ok()?)));
        let (Some((min, max)), false) = (bounds, entry.key == "interfaces") else {
            continue;
        };
        let at = |value: i64| {
            let line = format!("{} = {value}", entry.key);
            let service = "[[service]]\ntcp = \"10.0.0.1:80\"\n";
            parse(&match entry.section.as_str() {
                "" => line,
                "mark" if entry.key == "mark" => format!("[[mark]]\n{line}"),
                "mark" => format!("[[mark]]\nmark = 1\n{line}"),
                "service" if entry.key == "fwmark" => format!("[[service]]\n{line}"),
                "service" => format!("{service}{line}"),
                "service.destination" => {
                    let upper = if entry.key == "lower_threshold" {
                        "\nupper_threshold = 4294967295"
                    } else {
                        ""
                    };
                    format!("{service}[[service.destination]]\naddress = \"10.1.0.1\"\n{line}{upper}")
                }
                section => format!("[{section}]\n{line}"),
            })
        };
        for good in [min, max] {
            assert!(at(good).is_ok(), "{} = {good}: {}", entry.key, at(good).unwrap_err());
        }
        for bad in [min - 1, max + 1] {
            let error = at(bad).expect_err(&entry.key);
            assert!(
                error.key.is_some_and(|key| key.contains(&entry.key)),
                "{}: {}",
                entry.key,
                error.reason
            );
        }
        tried += 1;
    }
    assert!(tried >= 15, "only {tried} ranges were found in the reference");
}

/// Options of `uvs run` and their help, white space folded.
fn help() -> Vec<(String, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_uvs"))
        .args(["run", "--help"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut options: Vec<(String, String)> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(at) = line.starts_with('-').then(|| line.find("--")).flatten() {
            let name = line[at + 2..].split([' ', '<', '=']).next().unwrap_or_default();
            options.push((name.to_owned(), String::new()));
        } else if let Some((_, help)) = options.last_mut() {
            help.push_str(line);
            help.push(' ');
        }
    }
    options
}

/// The values that the help lists for an option, each as `- value: what it is`.
fn choices(help: &str) -> Vec<&str> {
    let words: Vec<&str> = help.split_whitespace().collect();
    words
        .windows(2)
        .filter(|pair| pair[0] == "-")
        .filter_map(|pair| pair[1].strip_suffix(':'))
        .collect()
}

#[test]
fn the_reference_and_the_help_agree() {
    let options = help();
    let mut compared = Vec::new();
    // What SIGHUP changes as well is no option of a start.
    let of_the_daemon = |entry: &Entry| entry.section.is_empty() && entry.key != "mss_clamp";
    for entry in entries().into_iter().filter(of_the_daemon) {
        let name = if entry.key == "interfaces" {
            "interface".to_owned()
        } else {
            entry.key.replace('_', "-")
        };
        let (_, help) = options
            .iter()
            .find(|(option, _)| *option == name)
            .unwrap_or_else(|| panic!("--{name} is not in {options:?}"));
        if entry.range.starts_with(|c: char| c.is_ascii_digit()) && entry.key != "socket" {
            let min = entry.range.split(' ').next().unwrap();
            let max = entry.range.rsplit(' ').next().unwrap();
            assert!(
                help.contains(&format!("{min} to {max}")),
                "--{name}: {} is not in {help:?}",
                entry.range
            );
        }
        let choices = choices(help);
        if entry.key == "driver" || !choices.is_empty() {
            assert_eq!(choices.join(", "), entry.range, "--{name}");
        }
        let first = entry.default.split(',').next().unwrap();
        if !first.starts_with("none") {
            assert!(
                help.contains("[default: ") && help.contains(first),
                "--{name}: {first} is not in {help:?}"
            );
        }
        for path in entry.default.split([' ', ',']).filter(|word| word.starts_with('/')) {
            assert!(help.contains(path), "--{name}: {path} is not in {help:?}");
        }
        assert!(reference().contains(&format!("(--{name})")), "no key names --{name}");
        compared.push(name);
    }
    assert_eq!(compared.len(), 7, "{compared:?}");
    for (option, _) in &options {
        // Only the command line has these.
        let alone = ["config", "takeover", "help"].contains(&option.as_str());
        assert!(alone || compared.contains(option), "--{option} is not in the reference");
    }
}

#[test]
fn the_systemd_unit_keeps_what_a_restart_needs() {
    let unit = std::fs::read_to_string(folder().join("uvs.service")).unwrap();
    for line in [
        "Type=notify",
        "ExecStart=/usr/local/bin/uvs run --config /etc/uvs/uvs.toml",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Restart=always",
        // The daemon's own threads end by themselves; SIGTERM goes to it alone.
        "KillMode=mixed",
        "RuntimeDirectory=uvs",
        "RuntimeDirectoryPreserve=yes",
        "StateDirectory=uvs",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line} is missing");
    }
    // The daemon feeds the watchdog once a second.
    let watchdog = unit.lines().find_map(|line| line.strip_prefix("WatchdogSec=")).unwrap();
    assert!(watchdog.parse::<u32>().unwrap() >= 5);
    for capability in ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF"] {
        assert!(unit.contains(capability), "{capability}");
    }
}
