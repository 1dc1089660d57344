//! The state directory: the running rules outlive the daemon.
//!
//! ```text
//! lock         held while a daemon uses the directory; its process id for messages
//! rules.json   line 1: header; then one command a line, oldest first
//! rules.json.new            being written; renamed over rules.json when it is on the disk
//! rules.journal             the changes since: see [`journal`](super::journal)
//! rules.*.refused-N         a file that could not be understood, kept for the operator
//! ```
//!
//! rules.json is replaced as a whole, so after a crash or on a full disk there is the old one or the new one, never a
//! half. A change is a line of the journal; when that has grown too long, or could not be written, rules.json is written
//! anew and the journal removed, in this order: each knows by generation and fingerprint which belong together, and a
//! journal of an older rules.json holds nothing that is not in the newer one. A daemon that ends on purpose leaves
//! one file, rules.json, and no journal.
//!
//! A file that cannot be understood is put aside, never written over; a journal not before rules.json has what counts of
//! it.
//!
//! Limit: a uvs from before there were journals reads rules.json alone, so before going back to one, stop this one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::config::fingerprint;
use super::journal::{self, Base, Change, Contents, Fault, Journal};
use super::protocol::{Command, CommandError};
use super::state::State;
use crate::io::unix;

/// Format of rules.json that this program writes and reads.
pub const FORMAT: u32 = 1;

const FILE: &str = "rules.json";
const JOURNAL: &str = "rules.journal";
/// Files put aside at most; the last is replaced then.
const REFUSED_MAX: u32 = 100;
const FILE_BYTES_MAX: u64 = 256 << 20;
/// A journal up to this length is kept, however few the rules are; and one that is no longer than rules.json.
const JOURNAL_BYTES_KEPT: u64 = 1 << 20;
/// Commands of a change that goes to the journal at most: more are as quickly written with all rules.
const JOURNALED_MAX: usize = 1024;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Of the system: full, read-only, no permission.
    #[error("state directory: {action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another daemon has it.
    #[error("another uvs (process {pid}) uses the state directory {}: stop it, use --takeover, or choose another --state-dir", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// As it wrote it into the lock file.
        pid: String,
    },
}

/// The state directory of this daemon, locked.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    _lock: File,
    /// Of the last rules.json.
    generation: u64,
    /// Its length.
    bytes: u64,
    /// Of the changes since. Without one, all rules must be written.
    journal: Option<Journal>,
    /// What the journal that is there is to be renamed to, when it is needed no more.
    aside: Option<PathBuf>,
}

/// What is saved.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saved {
    /// The rules.
    pub state: State,
    /// [`Config::fingerprint`](super::config::Config::fingerprint) of the configuration that was last applied.
    pub config: Option<u64>,
}

/// What was found at start.
#[derive(Debug)]
pub enum Found {
    /// No file: a first start.
    Nothing,
    /// The rules of last time.
    Saved {
        /// They, with what counts of the journal.
        saved: Saved,
        /// What does not count of it, why, and where it is now.
        remark: Option<String>,
    },
    /// A file that is no use; it was put aside.
    Refused {
        /// What is wrong with it, and where it is now.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    program: String,
    format: u32,
    version: String,
    commands: usize,
    /// Of the lines that follow.
    fingerprint: u64,
    config: Option<u64>,
    /// 0: written by a uvs that has no journal.
    #[serde(default)]
    generation: u64,
}

/// Makes the state directory where it is missing.
pub fn make_directory(directory: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(directory).map_err(|source| StoreError::System {
        action: "cannot create",
        path: directory.to_owned(),
        source,
    })
}

impl Store {
    /// Makes the directory where it is missing, and locks it; waits so long for a daemon that is just ending.
    pub fn open(directory: &Path, patience: Duration) -> Result<Store, StoreError> {
        let system = |action, path: &Path, source| StoreError::System {
            action,
            path: path.to_owned(),
            source,
        };
        make_directory(directory)?;
        let path = directory.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut lock = options
            .open(&path)
            .map_err(|error| system("cannot open", &path, error))?;
        let deadline = Instant::now() + patience;
        while !unix::try_lock(&lock).map_err(|error| system("cannot lock", &path, error))? {
            if Instant::now() >= deadline {
                let mut pid = String::new();
                // Only for the message: without it the process stays unnamed.
                let known = lock.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
                return Err(StoreError::InUse {
                    path: directory.to_owned(),
                    pid: if known {
                        pid.trim().to_owned()
                    } else {
                        "unknown".to_owned()
                    },
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let write = |lock: &mut File| -> io::Result<()> {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write(&mut lock).map_err(|error| system("cannot write", &path, error))?;
        Ok(Store {
            directory: directory.to_owned(),
            _lock: lock,
            generation: 0,
            bytes: 0,
            journal: None,
            aside: None,
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads the rules of last time.
    pub fn load(&mut self) -> Result<Found, StoreError> {
        let path = self.directory.join(FILE);
        let file = match File::open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.system("cannot open", FILE, error)),
        };
        let contents = self.read_journal()?;
        // Also beyond a journal that is left out: it must never belong to what is written next.
        self.generation = contents.base.map_or(0, |base| base.generation);
        let Some(file) = file else {
            return Ok(
                match self.leave_out(&contents, "there is no rules.json that it continues") {
                    None => Found::Nothing,
                    Some(reason) => Found::Refused { reason },
                },
            );
        };
        match read(file) {
            Ok((saved, base)) => {
                self.generation = self.generation.max(base.generation);
                Ok(self.replay(saved, base, contents))
            }
            Err(reason) => {
                let aside = self.put_aside(&path)?;
                let mut reason = format!("{}: {reason}; it was renamed to {}", path.display(), aside.display());
                if let Some(more) = self.leave_out(&contents, "it continues that rules.json") {
                    reason = format!("{reason}. {more}");
                }
                Ok(Found::Refused { reason })
            }
        }
    }

    fn read_journal(&self) -> Result<Contents, StoreError> {
        let mut text = Vec::new();
        let read = match File::open(self.directory.join(JOURNAL)) {
            Ok(file) => file.take(journal::BYTES_MAX).read_to_end(&mut text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => return Err(self.system("cannot open", JOURNAL, error)),
        };
        read.map_err(|error| self.system("cannot read", JOURNAL, error))?;
        Ok(journal::read(&text))
    }

    /// The rules of rules.json, and what the journal says since.
    fn replay(&mut self, saved: Saved, base: Base, contents: Contents) -> Found {
        let belongs = match contents.base {
            Some(of) if of == base => true,
            // It ended between the new rules.json and the end of the journal before: all of that is in it.
            Some(of) if of.generation < base.generation => return Found::Saved { saved, remark: None },
            _ => false,
        };
        if !belongs {
            let reason = match (contents.base, &contents.fault) {
                (None, Some(Fault::Damaged(reason))) => reason.clone(),
                _ => "it continues another rules.json than the one that is there".to_owned(),
            };
            let remark = self.leave_out(&contents, &reason);
            return Found::Saved { saved, remark };
        }
        let path = self.directory.join(JOURNAL);
        let (saved, count, refusal) = apply(saved, &contents.changes);
        // The header is line 1.
        let refusal = refusal.map(|error| format!("line {}: {error}", count + 2));
        let damage = match &contents.fault {
            Some(Fault::Damaged(reason)) => Some(reason.clone()),
            _ => None,
        };
        let remark = match (refusal.or(damage), &contents.fault) {
            (Some(reason), _) => {
                let reason = format!("{reason}; {count} changes before it count");
                self.leave_out(&contents, &reason)
            }
            (None, Some(Fault::Torn { line })) => Some(format!(
                "{}: line {line} was not written to its end, and nobody was told so: it is left out, {count} changes before it count",
                path.display()
            )),
            (None, _) => None,
        };
        Found::Saved { saved, remark }
    }

    /// The journal will be put aside as soon as all rules are in rules.json. `None`: it says nothing.
    fn leave_out(&mut self, contents: &Contents, reason: &str) -> Option<String> {
        let says_something = !contents.changes.is_empty() || matches!(contents.fault, Some(Fault::Damaged(_)));
        says_something.then(|| {
            let (path, aside) = (self.directory.join(JOURNAL), self.aside(JOURNAL));
            let said = format!("{}: {reason}; it is renamed to {}", path.display(), aside.display());
            self.aside = Some(aside);
            said
        })
    }

    /// Saves the rules as they are after `commands`, which lead there from the rules that were last to be saved. When this
    /// returns `Ok` they are on the disk.
    pub fn save(&mut self, saved: &Saved, commands: Vec<Command>) -> Result<(), StoreError> {
        // Whatever becomes of it: a journal without this change is of no more use.
        let journal = self.journal.take();
        if commands.len() <= JOURNALED_MAX
            && let Some(mut journal) = journal
        {
            let config = saved.config;
            match journal.append(&Change { commands, config }) {
                Ok(()) => {
                    self.journal = Some(journal);
                    return Ok(());
                }
                Err(error) => log::warn!("{}", self.system("cannot write", JOURNAL, error)),
            }
        }
        self.save_all(saved)
    }

    /// The journal has grown so long that all rules should be written.
    pub fn is_long(&self) -> bool {
        let most = self.bytes.max(JOURNAL_BYTES_KEPT);
        self.journal.as_ref().is_some_and(|journal| journal.bytes() > most)
    }

    /// rules.json holds everything.
    pub fn is_whole(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.bytes() == 0)
    }

    /// Writes all rules. When this returns `Ok` they are on the disk; when it fails before that, the journal goes on.
    pub fn save_all(&mut self, saved: &Saved) -> Result<(), StoreError> {
        let new = format!("{FILE}.new");
        let path = self.directory.join(&new);
        let mut options = OpenOptions::new();
        let written = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                let (text, base) = encode(saved, self.generation + 1)?;
                file.write_all(&text)?;
                file.sync_all()?;
                Ok((base, text.len() as u64))
            });
        let (base, bytes) = written.map_err(|error| {
            // The unfinished file only takes up room that is scarce; the old rules stand in either case.
            let _ = fs::remove_file(&path);
            self.system("cannot write", &new, error)
        })?;
        // From here on it is not known which of the two will be found.
        self.journal = None;
        (self.generation, self.bytes) = (base.generation, bytes);
        fs::rename(&path, self.directory.join(FILE)).map_err(|error| self.system("cannot rename", &new, error))?;
        let directory = File::open(&self.directory).and_then(|directory| directory.sync_all());
        directory.map_err(|error| self.system("cannot sync", "", error))?;
        self.begin_journal(base);
        Ok(())
    }

    /// All that counts of the journal so far is in rules.json.
    fn begin_journal(&mut self, base: Base) {
        let path = self.directory.join(JOURNAL);
        let (action, done) = match &self.aside {
            Some(aside) => ("cannot rename", fs::rename(&path, aside)),
            None => ("cannot remove", fs::remove_file(&path)),
        };
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // It says of itself that it is older, so it does no harm there.
                log::error!("{}", self.system(action, JOURNAL, error));
            }
            _ => {
                self.aside = None;
                self.journal = Some(Journal::new(path, base));
            }
        }
    }

    fn put_aside(&self, path: &Path) -> Result<PathBuf, StoreError> {
        let aside = self.aside(FILE);
        fs::rename(path, &aside).map_err(|error| self.system("cannot rename", FILE, error))?;
        Ok(aside)
    }

    /// What a file of that name that is put aside is called.
    fn aside(&self, file: &str) -> PathBuf {
        let name = |n: u32| self.directory.join(format!("{file}.refused-{n}"));
        let free = (1..REFUSED_MAX).map(name).find(|path| !path.exists());
        free.unwrap_or_else(|| name(REFUSED_MAX))
    }

    fn system(&self, action: &'static str, name: &str, source: io::Error) -> StoreError {
        StoreError::System {
            action,
            path: self.directory.join(name),
            source,
        }
    }
}

fn encode(saved: &Saved, generation: u64) -> io::Result<(Vec<u8>, Base)> {
    let commands = saved.state.commands();
    let mut body = Vec::new();
    for command in &commands {
        serde_json::to_writer(&mut body, command)?;
        body.push(b'\n');
    }
    let text = std::str::from_utf8(&body).map_err(io::Error::other)?;
    let base = Base {
        generation,
        fingerprint: fingerprint(text),
    };
    let header = Header {
        program: "uvs".to_owned(),
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commands: commands.len(),
        fingerprint: base.fingerprint,
        config: saved.config,
        generation,
    };
    let mut file = serde_json::to_vec(&header)?;
    file.push(b'\n');
    file.extend_from_slice(&body);
    Ok((file, base))
}

fn read(file: File) -> Result<(Saved, Base), String> {
    let mut text = String::new();
    let mut reader = BufReader::new(file.take(FILE_BYTES_MAX));
    let mut first = String::new();
    reader.read_line(&mut first).map_err(|error| error.to_string())?;
    reader.read_to_string(&mut text).map_err(|error| error.to_string())?;

    // The format first: another version's header may have other fields.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
        version: String,
    }
    let format: Format =
        serde_json::from_str(&first).map_err(|error| format!("line 1: no header of rules: {error}"))?;
    if format.format != FORMAT {
        let Format { format, version } = format;
        return Err(format!(
            "format {format}, written by uvs {version}; this one reads format {FORMAT}"
        ));
    }
    let header: Header = serde_json::from_str(&first).map_err(|error| format!("line 1: {error}"))?;
    if header.fingerprint != fingerprint(&text) {
        return Err("damaged: what follows line 1 is not what was written".to_owned());
    }
    let mut commands = Vec::with_capacity(header.commands);
    for (number, line) in (2..).zip(text.lines()) {
        let command: Command = serde_json::from_str(line).map_err(|error| format!("line {number}: {error}"))?;
        commands.push(command);
    }
    let applied = State::default().apply_all(&commands, true);
    let refused = applied
        .results
        .iter()
        .enumerate()
        .find_map(|(n, result)| Some((n + 2, result.as_ref()?)));
    match refused {
        Some((line, error)) => Err(format!("line {line}: {error}")),
        None => {
            let base = Base {
                generation: header.generation,
                fingerprint: header.fingerprint,
            };
            let saved = Saved {
                state: applied.state,
                config: header.config,
            };
            Ok((saved, base))
        }
    }
}

/// What was saved after these changes; when one of them is refused, before it. Also how many count, and the refusal.
fn apply(saved: Saved, changes: &[Change]) -> (Saved, usize, Option<CommandError>) {
    // All in one go, as each go copies the list of services.
    let commands: Vec<Command> = changes.iter().flat_map(|change| change.commands.clone()).collect();
    let applied = saved.state.apply_all(&commands, true);
    let config = changes.last().map_or(saved.config, |change| change.config);
    let Some(at) = applied.results.iter().position(Option::is_some) else {
        let state = applied.state;
        return (Saved { state, config }, changes.len(), None);
    };
    let mut end = 0;
    let count = changes.iter().position(|change| {
        end += change.commands.len();
        end > at
    });
    let count = count.unwrap_or(0);
    let (saved, count, _) = apply(saved, &changes[..count]);
    (saved, count, applied.results.into_iter().nth(at).flatten())
}

/// For tests: what a daemon would find that started now. Looks at a copy, as the directory is in use.
#[cfg(test)]
pub fn found_at_a_start(directory: &Path) -> Saved {
    let copy = tempfile::tempdir().expect("a folder");
    for name in [FILE, JOURNAL] {
        let (from, to) = (directory.join(name), copy.path().join(name));
        assert!(fs::copy(&from, to).is_ok() || !from.exists(), "{name} cannot be copied");
    }
    let store = Store::open(copy.path(), Duration::ZERO).and_then(|mut store| store.load());
    match store {
        Ok(Found::Saved { saved, remark: None }) => saved,
        other => panic!("{other:?}"),
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
