//! The state directory: what is written is found again, at whatever point it ended.

use super::super::config;
use super::*;

fn open(directory: &Path) -> Store {
    Store::open(directory, Duration::ZERO).unwrap_or_else(|error| panic!("{error}"))
}

fn rules(toml: &str) -> Saved {
    let parsed = config::parse(Path::new("test.toml"), toml, |_| Ok(vec![]));
    let parsed = parsed.unwrap_or_else(|error| panic!("{error}"));
    Saved {
        state: parsed.desired,
        config: Some(parsed.fingerprint),
    }
}

/// Rules that are found without a remark.
fn load(store: &mut Store) -> Saved {
    match store.load().unwrap() {
        Found::Saved { saved, remark: None } => saved,
        other => panic!("{other:?}"),
    }
}

const TOML: &str = r#"
    mss_clamp = true
    timeouts.tcp = 600
    sysctl.sloppy_tcp = 1
    [[service]]
    tcp = "10.0.0.1:80"
    persistent = 10
    destination = [{ address = "10.1.0.1", upper_threshold = 9, lower_threshold = 3 }, { address = "10.1.0.2" }]
"#;

#[test]
fn what_was_saved_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/state");
    let mut store = open(&path);
    assert!(matches!(store.load().unwrap(), Found::Nothing));
    for toml in [TOML, "", TOML] {
        store.save_all(&rules(toml)).unwrap();
        let found = load(&mut store);
        assert_eq!(found.state.commands(), rules(toml).state.commands());
        assert_eq!(found.config, rules(toml).config);
    }
    assert!(!path.join("rules.json.new").exists());
}

#[test]
fn one_daemon_a_directory_and_the_message_names_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let error = Store::open(folder.path(), Duration::from_millis(20))
        .unwrap_err()
        .to_string();
    assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
    assert!(error.contains(&folder.path().display().to_string()), "{error}");
    drop(first);
    open(folder.path());
}

#[test]
fn a_file_that_is_no_use_is_put_aside_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.save_all(&rules(TOML)).unwrap();
    let path = folder.path().join(FILE);
    let good = fs::read_to_string(&path).unwrap();
    let cases = [
        (String::new(), "line 1: no header of rules"),
        ("hello\n".to_owned(), "line 1: no header of rules"),
        (good.replace("\"format\":1", "\"format\":7"), "format 7, written by uvs"),
        (good.replace("10.1.0.2", "10.1.0.3"), "damaged"),
        (good[..good.len() - 20].to_owned(), "damaged"),
    ];
    for (n, (text, reason)) in cases.iter().enumerate() {
        fs::write(&path, text).unwrap();
        let Found::Refused { reason: found } = store.load().unwrap() else {
            panic!("{reason} was accepted")
        };
        assert!(found.contains(reason), "{found}");
        let aside = folder.path().join(format!("{FILE}.refused-{}", n + 1));
        assert!(found.contains(&aside.display().to_string()), "{found}");
        assert_eq!(fs::read_to_string(aside).unwrap(), *text);
        assert!(matches!(store.load().unwrap(), Found::Nothing));
    }
}

#[test]
fn a_failed_save_says_why_and_keeps_the_old_rules() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.save_all(&rules(TOML)).unwrap();
    // A folder where the new file should go: nothing can be written there, whoever we are.
    fs::create_dir(folder.path().join("rules.json.new")).unwrap();
    let error = store.save_all(&rules("")).unwrap_err().to_string();
    assert!(
        error.contains("cannot write") && error.contains("rules.json.new"),
        "{error}"
    );
    let found = load(&mut store);
    assert_eq!(found.config, rules(TOML).config);
}

#[test]
fn a_full_disk_is_named() {
    // /dev/full takes nothing, as a full disk does.
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    std::os::unix::fs::symlink("/dev/full", folder.path().join("rules.json.new")).unwrap();
    let error = store.save_all(&rules(TOML)).unwrap_err().to_string();
    assert!(error.contains("No space left on device"), "{error}");
    assert!(matches!(store.load().unwrap(), Found::Nothing));
}

/// A daemon's rules beside what it has saved of them.
struct Daemon {
    folder: tempfile::TempDir,
    store: Option<Store>,
    saved: Saved,
}

impl Daemon {
    fn new(toml: &str) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let saved = rules(toml);
        store.save(&saved, vec![]).unwrap();
        assert!(store.is_whole());
        Daemon {
            store: Some(store),
            folder,
            saved,
        }
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().unwrap()
    }

    /// As the control thread does it: what was refused is not saved.
    fn change(&mut self, commands: Vec<Command>, config: u64) -> Result<(), StoreError> {
        let applied = self.saved.state.apply_all(&commands, false);
        self.saved = Saved {
            state: applied.state,
            config: Some(config),
        };
        let done = commands.into_iter().zip(applied.results);
        let done = done.filter_map(|(command, refusal)| refusal.is_none().then_some(command));
        self.store.as_mut().unwrap().save(&self.saved, done.collect())
    }

    /// A server with this last number in its address comes to TOML's service.
    fn add(&mut self, server: u8) -> Result<(), StoreError> {
        let toml = TOML.replace("10.1.0.1", &format!("10.2.0.{server}"));
        let added = rules(&toml).state.commands().into_iter().filter(|command| {
            matches!(command, Command::AddDestination { destination, .. } if destination.key.address.to_string().starts_with("10.2"))
        });
        self.change(added.collect(), server.into())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn journal(&self) -> String {
        fs::read_to_string(self.path(JOURNAL)).unwrap()
    }

    /// Dies and starts again: nothing is written in between.
    fn die(&mut self) -> Found {
        self.store = None;
        let mut store = open(self.folder.path());
        let found = store.load().unwrap();
        self.store = Some(store);
        found
    }

    /// The same, and everything is there.
    fn assert_kept(&mut self) {
        self.die();
        let found = load(self.store());
        assert_same(&found, &self.saved);
    }
}

fn assert_same(found: &Saved, saved: &Saved) {
    assert_eq!(found.state.commands(), saved.state.commands());
    assert_eq!(found.config, saved.config);
}

#[test]
fn a_change_is_a_line_of_the_journal() {
    let mut daemon = Daemon::new(TOML);
    let before = fs::read(daemon.path(FILE)).unwrap();
    for server in 1..=3 {
        daemon.add(server).unwrap();
        assert_eq!(daemon.journal().lines().count(), 1 + usize::from(server));
    }
    assert_eq!(fs::read(daemon.path(FILE)).unwrap(), before);
    daemon.assert_kept();
    // The next daemon begins with all rules in one file.
    let saved = daemon.saved.clone();
    daemon.store().save(&saved, vec![]).unwrap();
    assert!(daemon.store().is_whole() && !daemon.path(JOURNAL).exists());
    daemon.add(4).unwrap();
    assert!(!daemon.store().is_whole());
    daemon.assert_kept();
}

/// A restore of many rules is not written twice, nor can a small journal grow long by it.
#[test]
fn a_large_change_is_written_with_all_rules() {
    let mut daemon = Daemon::new("");
    let services = (0..=JOURNALED_MAX).map(|n| format!("[[service]]\ntcp = \"10.0.0.1:{}\"\n", n + 1));
    let commands = rules(&services.collect::<String>()).state.commands();
    daemon.change(commands, 1).unwrap();
    assert!(daemon.store().is_whole() && !daemon.path(JOURNAL).exists());
    daemon.assert_kept();
}

#[test]
fn a_journal_grows_long() {
    let mut daemon = Daemon::new(TOML);
    let edits = |daemon: &Daemon| {
        let service = daemon.saved.state.services().next().unwrap().clone();
        let edit = Command::EditService(service.service.clone());
        vec![edit; JOURNALED_MAX]
    };
    while !daemon.store().is_long() {
        let commands = edits(&daemon);
        daemon.change(commands, 1).unwrap();
        assert!(!daemon.store().is_whole());
    }
    let length = fs::metadata(daemon.path(JOURNAL)).unwrap().len();
    assert!(
        (JOURNAL_BYTES_KEPT..2 * JOURNAL_BYTES_KEPT).contains(&length),
        "{length}"
    );
    daemon.assert_kept();
}

/// Killed at any byte of the line that it writes.
#[test]
fn a_line_that_was_cut_off_is_left_out() {
    let mut daemon = Daemon::new(TOML);
    daemon.add(1).unwrap();
    let kept = daemon.saved.clone();
    let before = daemon.journal().len();
    daemon.add(2).unwrap();
    let whole = daemon.journal();
    for end in before + 1..whole.len() {
        fs::write(daemon.path(JOURNAL), &whole[..end]).unwrap();
        let Found::Saved { saved, remark } = daemon.die() else {
            panic!()
        };
        assert_same(&saved, &kept);
        let remark = remark.unwrap();
        assert!(
            remark.contains("line 3 was not written to its end") && remark.contains("1 changes"),
            "{remark}"
        );
    }
    // In the first of all.
    for end in 0..whole.lines().next().unwrap().len() {
        fs::write(daemon.path(JOURNAL), &whole[..end]).unwrap();
        assert_same(&load(daemon.store()), &rules(TOML));
    }
    // What comes next is whole again.
    daemon.saved = load(daemon.store());
    daemon.add(3).unwrap();
    daemon.assert_kept();
}

#[test]
fn a_journal_that_is_damaged_counts_up_to_there_and_is_put_aside() {
    let mut daemon = Daemon::new(TOML);
    daemon.add(1).unwrap();
    let kept = daemon.saved.clone();
    daemon.add(2).unwrap();
    daemon.add(3).unwrap();
    let good = daemon.journal();
    let line = |n: usize| good.lines().nth(n - 1).unwrap();
    let sum = |json: &str| format!("{:08x} {json}", crc32c::crc32c(json.as_bytes()));
    let cases = [
        (good.replacen("10.2.0.2", "10.2.0.9", 1), "line 3: damaged", &kept),
        (good.replace(&format!("{}\n", line(3)), "\n"), "line 3: damaged", &kept),
        (good.replace(line(3), &sum("{}")), "line 3: missing field", &kept),
        // A change that these rules refuse.
        (
            good.replace(line(3), line(2)),
            "line 3: Destination already exists; 1 changes before it count",
            &kept,
        ),
        (
            good.replacen("{\"program", "{\"progrom", 1),
            "line 1: damaged",
            &rules(TOML),
        ),
        (
            good.replace(line(1), &sum(&line(1)[9..].replace("\"format\":1", "\"format\":7"))),
            "line 1: format 7, written by uvs",
            &rules(TOML),
        ),
        (
            good.replace(
                line(1),
                &sum(&line(1)[9..].replace("\"generation\":1", "\"generation\":2")),
            ),
            "it continues another rules.json",
            &rules(TOML),
        ),
        (
            good.replace(line(1), &sum(&format!("{}}}}}", &line(1)[9..line(1).len() - 3]))),
            "it continues another rules.json",
            &rules(TOML),
        ),
    ];
    let old = fs::read(daemon.path(FILE)).unwrap();
    for (n, (text, reason, expected)) in cases.iter().enumerate() {
        assert_ne!(*text, good);
        fs::write(daemon.path(FILE), &old).unwrap();
        fs::write(daemon.path(JOURNAL), text).unwrap();
        let aside = daemon.path(&format!("{JOURNAL}.refused-{}", n + 1));
        // Whoever dies now finds it again.
        for _ in 0..2 {
            let Found::Saved { saved, remark } = daemon.die() else {
                panic!()
            };
            assert_same(&saved, expected);
            let remark = remark.unwrap();
            assert!(
                remark.contains(reason) && remark.contains(&aside.display().to_string()),
                "{reason}: {remark}"
            );
        }
        daemon.store().save(expected, vec![]).unwrap();
        assert_eq!(fs::read_to_string(aside).unwrap(), *text);
        assert_same(&load(daemon.store()), expected);
        assert!(!daemon.path(JOURNAL).exists());
    }
}

/// Killed between the new rules.json and the end of the journal before it.
#[test]
fn a_journal_of_the_rules_before_is_not_carried_out_again() {
    let mut daemon = Daemon::new(TOML);
    daemon.add(1).unwrap();
    let journal = daemon.journal();
    let saved = daemon.saved.clone();
    daemon.store().save_all(&saved).unwrap();
    fs::write(daemon.path(JOURNAL), &journal).unwrap();
    daemon.assert_kept();
    // Nor is it gone on with.
    daemon.saved = load(daemon.store());
    daemon.add(2).unwrap();
    fs::write(daemon.path(JOURNAL), &journal).unwrap();
    let saved = daemon.saved.clone();
    daemon.store().save_all(&saved).unwrap();
    daemon.add(3).unwrap();
    daemon.assert_kept();
}

#[test]
fn a_journal_whose_rules_are_gone_is_put_aside() {
    let mut daemon = Daemon::new(TOML);
    daemon.add(1).unwrap();
    let journal = daemon.journal();
    for reason in [
        "there is no rules.json that it continues",
        "it continues that rules.json",
    ] {
        let Found::Refused { reason: said } = ({
            if reason.starts_with("there") {
                fs::remove_file(daemon.path(FILE)).unwrap();
            } else {
                fs::write(daemon.path(FILE), "hello\n").unwrap();
                fs::write(daemon.path(JOURNAL), &journal).unwrap();
            }
            daemon.die()
        }) else {
            panic!()
        };
        assert!(
            said.contains(reason) && said.contains("rules.journal.refused-"),
            "{said}"
        );
        daemon.store().save(&Saved::default(), vec![]).unwrap();
        assert!(!daemon.path(JOURNAL).exists());
        assert_same(&load(daemon.store()), &Saved::default());
    }
    for n in 1..=2 {
        let aside = daemon.path(&format!("{JOURNAL}.refused-{n}"));
        assert_eq!(fs::read_to_string(aside).unwrap(), journal);
    }
    // One that says nothing is no loss.
    fs::remove_file(daemon.path(FILE)).unwrap();
    fs::write(daemon.path(JOURNAL), journal.lines().next().unwrap()).unwrap();
    assert!(matches!(daemon.die(), Found::Nothing));
}

/// As uvs wrote it that had no journal.
#[test]
fn rules_of_a_uvs_without_a_journal_are_read() {
    let mut daemon = Daemon::new(TOML);
    daemon.add(1).unwrap();
    let text = fs::read_to_string(daemon.path(FILE)).unwrap();
    let old = text.replacen(",\"generation\":1}", "}", 1);
    assert_ne!(old, text);
    fs::write(daemon.path(FILE), old).unwrap();
    // A journal of somebody else's rules was there all the time.
    let Found::Saved { saved, remark } = daemon.die() else {
        panic!()
    };
    assert!(remark.unwrap().contains("it continues another rules.json"));
    assert_same(&saved, &rules(TOML));
    daemon.saved = saved;
    let saved = daemon.saved.clone();
    daemon.store().save(&saved, vec![]).unwrap();
    daemon.add(2).unwrap();
    daemon.assert_kept();
}

#[test]
fn a_full_disk_ends_the_journal_until_all_rules_are_written() {
    let mut daemon = Daemon::new(TOML);
    let full = |path: PathBuf| std::os::unix::fs::symlink("/dev/full", path).unwrap();
    // There is no room for a line, but for a file: nobody needs to know.
    full(daemon.path(JOURNAL));
    daemon.add(1).unwrap();
    assert!(daemon.store().is_whole());
    daemon.assert_kept();
    // For neither.
    let saved = daemon.saved.clone();
    daemon.store().save(&saved, vec![]).unwrap();
    assert!(daemon.store().is_whole());
    full(daemon.path(JOURNAL));
    full(daemon.path("rules.json.new"));
    let error = daemon.add(2).unwrap_err().to_string();
    assert!(
        error.contains("rules.json.new") && error.contains("No space left"),
        "{error}"
    );
    // A line of the journal would miss that change.
    assert!(!daemon.path("rules.json.new").exists());
    fs::remove_file(daemon.path(JOURNAL)).unwrap();
    daemon.add(3).unwrap();
    daemon.assert_kept();
}

#[test]
fn rules_that_cannot_be_written_anew_leave_the_journal() {
    let mut daemon = Daemon::new(TOML);
    daemon.add(1).unwrap();
    fs::create_dir(daemon.path("rules.json.new")).unwrap();
    let saved = daemon.saved.clone();
    daemon.store().save_all(&saved).unwrap_err();
    daemon.add(2).unwrap();
    daemon.assert_kept();
}

mod properties {
    use proptest::prelude::*;

    use super::super::super::protocol::{Timeouts, WhichMark};
    use super::*;
    use crate::service::{Destination, MarkRule, Service, ServiceKey};

    /// A few services, servers and rules of each kind, so that drawn commands meet, and many are refused.
    fn examples() -> (Vec<Service>, Vec<Destination>, Vec<MarkRule>) {
        let toml = r#"
            mark = [{ mark = 1, destination = "10.0.0.1" }, { mark = 2, protocol = "udp" }]
            [[service]]
            tcp = "10.0.0.1:80"
            destination = [
                { address = "10.1.0.1" },
                { address = "10.1.0.2:81", method = "masq" },
                { address = "fd00::1", method = "tunnel" },
            ]
            [[service]]
            udp = "10.0.0.1:80"
            scheduler = "sh"
            scheduler_flags = ["sh-port"]
            [[service]]
            tcp = "10.0.0.1:0"
            persistent = 50
            [[service]]
            fwmark = 3
        "#;
        let state = rules(toml).state;
        let services = state.services().map(|entry| entry.service.clone()).collect();
        let destinations = state.services().flat_map(|entry| entry.destinations());
        (services, destinations.cloned().collect(), state.marks().to_vec())
    }

    fn command() -> impl Strategy<Value = Command> {
        let (services, destinations, marks) = examples();
        let scheduler = prop::sample::select(vec!["rr", "wlc", "nobody"]);
        let service = (prop::sample::select(services), scheduler).prop_map(|(service, scheduler)| Service {
            scheduler: scheduler.to_owned(),
            ..service
        });
        let key = service.clone().prop_map(|service| service.key).boxed();
        let destination = (prop::sample::select(destinations), 0u32..3)
            .prop_map(|(destination, weight)| Destination { weight, ..destination });
        let mark = prop::sample::select(marks);
        let pair = (key.clone(), destination).boxed();
        let with = |make: fn(ServiceKey, Destination) -> Command| {
            pair.clone()
                .prop_map(move |(service, destination)| make(service, destination))
        };
        let setting = (prop::sample::select(vec!["sloppy_tcp", "nothing"]), 0u8..3);
        prop_oneof![
            3 => service.clone().prop_map(Command::AddService),
            2 => service.prop_map(Command::EditService),
            1 => key.clone().prop_map(|service| Command::DeleteService { service }),
            1 => Just(Command::Clear),
            6 => with(|service, destination| Command::AddDestination { service, destination }),
            4 => with(|service, destination| Command::EditDestination { service, destination }),
            2 => with(|service, destination| Command::DeleteDestination { service, destination: destination.key }),
            1 => prop::option::of(key).prop_map(|service| Command::Zero { service }),
            1 => (0u32..3, 0u32..3).prop_map(|(tcp, udp)| Command::SetTimeouts(Timeouts { tcp, tcp_fin: 0, udp })),
            1 => setting.prop_map(|(name, value)| Command::SetSysctl { name: name.to_owned(), value: value.to_string() }),
            2 => (mark.clone(), prop::option::of(0u32..3)).prop_map(|(rule, at)| Command::AddMark { rule, at }),
            1 => (1u32..3).prop_map(|number| Command::DeleteMark { which: WhichMark::Number(number) }),
            1 => prop::collection::vec(mark, 0..3).prop_map(|rules| Command::SetMarks { rules }),
            1 => any::<bool>().prop_map(|on| Command::SetMssClamp { on }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Goal: whatever was changed, and wherever the journal was cut, there is what was saved by some change, and by the
        /// last one when it was not cut.
        #[test]
        fn every_prefix_of_a_journal_is_what_was_saved_then(
            changes in prop::collection::vec((prop::collection::vec(command(), 1..6), any::<u64>()), 1..12),
            anew in 0usize..24,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 8),
        ) {
            let mut daemon = Daemon::new(TOML);
            // Each with the journal's length when it was saved.
            let mut saved = vec![(0, daemon.saved.clone())];
            for (n, (commands, config)) in changes.into_iter().enumerate() {
                daemon.change(commands, config).unwrap();
                if n == anew {
                    let all = daemon.saved.clone();
                    daemon.store().save_all(&all).unwrap();
                    saved.clear();
                }
                let length = fs::metadata(daemon.path(JOURNAL)).map_or(0, |metadata| metadata.len() as usize);
                saved.push((length, daemon.saved.clone()));
            }
            daemon.assert_kept();
            let whole = fs::read(daemon.path(JOURNAL)).unwrap_or_default();
            for cut in cuts {
                let end = cut.index(whole.len() + 1);
                fs::write(daemon.path(JOURNAL), &whole[..end]).unwrap();
                let (_, expected) = saved.iter().rfind(|(length, _)| *length <= end).unwrap();
                let Found::Saved { saved: found, remark } = daemon.die() else { panic!() };
                assert_same(&found, expected);
                let written = &whole[..end];
                let is_torn = written.contains(&b'\n') && !written.ends_with(b"\n");
                prop_assert_eq!(remark.is_some(), is_torn);
            }
        }

        /// The same for a bit that fell over anywhere: nothing is there that was not saved so.
        #[test]
        fn a_damaged_journal_is_a_prefix(
            changes in prop::collection::vec((prop::collection::vec(command(), 1..4), any::<u64>()), 1..8),
            bits in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 8),
        ) {
            let mut daemon = Daemon::new(TOML);
            let mut saved = vec![daemon.saved.clone()];
            for (commands, config) in changes {
                daemon.change(commands, config).unwrap();
                saved.push(daemon.saved.clone());
            }
            let whole = fs::read(daemon.path(JOURNAL)).unwrap();
            for (at, bit) in bits {
                let mut text = whole.clone();
                let at = at.index(text.len());
                text[at] ^= 1 << bit;
                fs::write(daemon.path(JOURNAL), &text).unwrap();
                let Found::Saved { saved: found, remark } = daemon.die() else { panic!() };
                let lines = whole[..at].iter().filter(|byte| **byte == b'\n').count();
                assert_same(&found, &saved[lines.saturating_sub(1)]);
                prop_assert!(remark.is_some());
            }
        }
    }
}
