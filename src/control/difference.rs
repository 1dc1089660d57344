//! The least change from what runs to what shall run, so that a reload disturbs nothing that stays the same.
//!
//! Compared is what services and destinations are, not the order in which they were added.

use std::collections::HashSet;

use super::protocol::Command;
use super::state::{ServiceEntry, State};
use crate::table::Sysctls;

/// The commands that turn `running` into `desired`. Deletions come first, so that limits count what stays.
/// With `complete` timeouts, settings and rules of the classifier follow as well.
pub fn difference(running: &State, desired: &State, complete: bool) -> Vec<Command> {
    let mut commands = Vec::new();
    // The newest first: a state takes out its last service quickest.
    for old in running.services().rev() {
        match desired.service(&old.service.key) {
            None => commands.push(Command::DeleteService {
                service: old.service.key,
            }),
            Some(new) => commands.extend(deletions(old, new)),
        }
    }
    for new in desired.services() {
        match running.service(&new.service.key) {
            None => commands.extend(whole(new)),
            Some(old) => commands.extend(changes(old, new)),
        }
    }
    if complete {
        if running.timeouts != desired.timeouts {
            commands.push(Command::SetTimeouts(desired.timeouts));
        }
        commands.extend(settings(&running.sysctls, &desired.sysctls));
        if running.marks() != desired.marks() {
            commands.push(Command::SetMarks {
                rules: desired.marks().to_vec(),
            });
        }
        if running.mss_clamp != desired.mss_clamp {
            commands.push(Command::SetMssClamp { on: desired.mss_clamp });
        }
    }
    commands
}

fn deletions(old: &ServiceEntry, new: &ServiceEntry) -> Vec<Command> {
    let kept: HashSet<_> = new.destinations().map(|d| d.key).collect();
    let gone = old.destinations().filter(|d| !kept.contains(&d.key));
    gone.map(|d| Command::DeleteDestination {
        service: old.service.key,
        destination: d.key,
    })
    .collect()
}

fn whole(new: &ServiceEntry) -> Vec<Command> {
    let service = Command::AddService(new.service.clone());
    let destinations = new.destinations().rev().map(|d| Command::AddDestination {
        service: new.service.key,
        destination: d.clone(),
    });
    std::iter::once(service).chain(destinations).collect()
}

fn changes(old: &ServiceEntry, new: &ServiceEntry) -> Vec<Command> {
    let mut commands = Vec::new();
    if old.service != new.service {
        commands.push(Command::EditService(new.service.clone()));
    }
    let service = new.service.key;
    for destination in new.destinations().rev() {
        match old.destination(&destination.key) {
            Some(before) if before == destination => {}
            Some(_) => commands.push(Command::EditDestination {
                service,
                destination: destination.clone(),
            }),
            None => commands.push(Command::AddDestination {
                service,
                destination: destination.clone(),
            }),
        }
    }
    commands
}

fn settings(running: &Sysctls, desired: &Sysctls) -> Vec<Command> {
    let values = |name: &str| Some((running.get(name).ok()?, desired.get(name).ok()?));
    let changed = Sysctls::names().into_iter().filter_map(|name| {
        let (before, value) = values(name)?;
        (before != value).then(|| Command::SetSysctl {
            name: name.to_owned(),
            value,
        })
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::config;
    use super::*;

    fn state(toml: &str) -> State {
        let parsed = config::parse(Path::new("test.toml"), toml, |_| Ok(vec![]));
        parsed.unwrap_or_else(|error| panic!("{error}")).desired
    }

    const BEFORE: &str = r#"
        timeouts.tcp = 600
        [[mark]]
        mark = 7
        destination = "10.0.0.1"
        [[service]]
        tcp = "10.0.0.1:80"
        destination = [{ address = "10.1.0.1" }, { address = "10.1.0.2" }]
        [[service]]
        udp = "10.0.0.1:53"
        destination = [{ address = "10.1.0.1" }]
        [[service]]
        tcp = "10.0.0.1:25"
    "#;
    const AFTER: &str = r#"
        mss_clamp = true
        sysctl.sloppy_tcp = 1
        [[service]]
        tcp = "10.0.0.1:443"
        destination = [{ address = "10.1.0.1" }]
        [[service]]
        udp = "10.0.0.1:53"
        destination = [{ address = "10.1.0.1" }]
        [[service]]
        tcp = "10.0.0.1:80"
        scheduler = "rr"
        destination = [{ address = "10.1.0.3" }, { address = "10.1.0.2", weight = 5 }]
    "#;

    #[test]
    fn touches_only_what_differs() {
        let commands = difference(&state(BEFORE), &state(AFTER), true);
        let words: Vec<String> = commands.iter().map(|c| format!("{c:?}").replace('"', "")).collect();
        let begins = [
            "DeleteService",
            "DeleteDestination",
            "AddService",
            "AddDestination",
            "EditService",
            "AddDestination",
            "EditDestination",
            "SetTimeouts",
            "SetSysctl",
            "SetMarks",
            "SetMssClamp",
        ];
        assert_eq!(words.len(), begins.len(), "{words:#?}");
        for (word, begin) in words.iter().zip(begins) {
            assert!(word.starts_with(begin), "{word} where {begin} was expected");
            assert!(!word.contains("Udp"), "the unchanged service is touched: {word}");
        }
        assert!(difference(&state(AFTER), &state(AFTER), true).is_empty());
    }

    #[test]
    fn applied_it_gives_the_desired_state() {
        for (from, to) in [(BEFORE, AFTER), (AFTER, BEFORE), ("", AFTER), (AFTER, "")] {
            let (running, desired) = (state(from), state(to));
            let applied = running.apply_all(&difference(&running, &desired, true), true);
            assert!(applied.results.iter().all(Option::is_none), "{:?}", applied.results);
            assert!(difference(&applied.state, &desired, true).is_empty());
        }
        // A rules file leaves timeouts and settings alone.
        assert!(difference(&state("timeouts.udp = 1"), &state(""), false).is_empty());
    }

    /// A few services and destinations of few kinds, so that two drawn ones overlap.
    fn drawn(draw: &[(u8, u8, u8)]) -> State {
        let mut toml = String::new();
        for (port, scheduler, servers) in draw {
            let scheduler = ["rr", "wlc", "sh"][usize::from(scheduler % 3)];
            // Drawn twice: the second of the same port would be refused.
            if toml.contains(&format!(":{port}\"")) {
                continue;
            }
            toml += &format!("[[service]]\ntcp = \"10.0.0.1:{port}\"\nscheduler = \"{scheduler}\"\n");
            for bit in (0..4).filter(|bit| servers >> bit & 1 == 1) {
                let weight = servers >> 4 & 3;
                let method = if servers >> 6 & 1 == 1 { "masq" } else { "route" };
                toml += &format!(
                    "[[service.destination]]\naddress = \"10.1.0.{bit}\"\nweight = {weight}\nmethod = \"{method}\"\n"
                );
            }
        }
        state(&toml)
    }

    proptest::proptest! {
        #[test]
        fn from_anything_to_anything(
            from in proptest::collection::vec((1u8..6, 0u8..3, 0u8..128), 0..5),
            to in proptest::collection::vec((1u8..6, 0u8..3, 0u8..128), 0..5),
        ) {
            let (running, desired) = (drawn(&from), drawn(&to));
            let commands = difference(&running, &desired, true);
            let applied = running.apply_all(&commands, true);
            proptest::prop_assert!(applied.results.iter().all(Option::is_none), "{:?}", applied.results);
            proptest::prop_assert!(difference(&applied.state, &desired, true).is_empty());
            proptest::prop_assert_eq!(applied.state.destinations_count(), desired.destinations_count());
            // A service that is in both as it is was not touched.
            for old in running.services() {
                if desired.service(&old.service.key).is_some_and(|new| new.service == old.service) {
                    let after = applied.state.service(&old.service.key);
                    proptest::prop_assert_eq!(after.map(|entry| entry.incarnation), Some(old.incarnation));
                }
            }
        }
    }
}
