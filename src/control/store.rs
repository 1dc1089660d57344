//! The state directory: the running rules outlive the daemon.
//!
//! ```text
//! lock         held while a daemon uses the directory; its process id for messages
//! rules.json   line 1: header; then one command a line, oldest first
//! rules.json.new            being written; renamed over rules.json when it is on the disk
//! rules.json.refused-N      a file that could not be understood, kept for the operator
//! ```
//!
//! The file is replaced as a whole, so after a crash or on a full disk there is the old one or the new one, never a
//! half. A file that cannot be understood is put aside, never written over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::config::fingerprint;
use super::protocol::Command;
use super::state::State;
use crate::io::unix;

/// Format of rules.json that this program writes and reads.
pub const FORMAT: u32 = 1;

const FILE: &str = "rules.json";
/// Files put aside at most; the last is replaced then.
const REFUSED_MAX: u32 = 100;
const FILE_BYTES_MAX: u64 = 256 << 20;

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
}

/// What rules.json held.
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
    Saved(Saved),
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
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads the rules of last time.
    pub fn load(&self) -> Result<Found, StoreError> {
        let path = self.directory.join(FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(self.system("cannot open", FILE, error)),
        };
        match read(file) {
            Ok(saved) => Ok(Found::Saved(saved)),
            Err(reason) => {
                let aside = self.put_aside(&path)?;
                let reason = format!("{}: {reason}; it was renamed to {}", path.display(), aside.display());
                Ok(Found::Refused { reason })
            }
        }
    }

    /// Replaces the saved rules. When this returns `Ok` they are on the disk.
    pub fn save(&self, saved: &Saved) -> Result<(), StoreError> {
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
                file.write_all(&encode(saved)?)?;
                file.sync_all()
            });
        if let Err(error) = written {
            // The unfinished file only takes up room that is scarce; the old rules stand in either case.
            let _ = fs::remove_file(&path);
            return Err(self.system("cannot write", &new, error));
        }
        fs::rename(&path, self.directory.join(FILE)).map_err(|error| self.system("cannot rename", &new, error))?;
        let directory = File::open(&self.directory).and_then(|directory| directory.sync_all());
        directory.map_err(|error| self.system("cannot sync", "", error))
    }

    fn put_aside(&self, path: &Path) -> Result<PathBuf, StoreError> {
        let name = |n: u32| self.directory.join(format!("{FILE}.refused-{n}"));
        let free = (1..REFUSED_MAX).map(name).find(|path| !path.exists());
        let aside = free.unwrap_or_else(|| name(REFUSED_MAX));
        fs::rename(path, &aside).map_err(|error| self.system("cannot rename", FILE, error))?;
        Ok(aside)
    }

    fn system(&self, action: &'static str, name: &str, source: io::Error) -> StoreError {
        StoreError::System {
            action,
            path: self.directory.join(name),
            source,
        }
    }
}

fn encode(saved: &Saved) -> io::Result<Vec<u8>> {
    let commands = saved.state.commands();
    let mut body = Vec::new();
    for command in &commands {
        serde_json::to_writer(&mut body, command)?;
        body.push(b'\n');
    }
    let text = std::str::from_utf8(&body).map_err(io::Error::other)?;
    let header = Header {
        program: "uvs".to_owned(),
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commands: commands.len(),
        fingerprint: fingerprint(text),
        config: saved.config,
    };
    let mut file = serde_json::to_vec(&header)?;
    file.push(b'\n');
    file.extend_from_slice(&body);
    Ok(file)
}

fn read(file: File) -> Result<Saved, String> {
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
        None => Ok(Saved {
            state: applied.state,
            config: header.config,
        }),
    }
}

#[cfg(test)]
mod tests {
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
        let store = open(&path);
        assert!(matches!(store.load().unwrap(), Found::Nothing));
        for toml in [TOML, "", TOML] {
            store.save(&rules(toml)).unwrap();
            let Found::Saved(found) = store.load().unwrap() else {
                panic!()
            };
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
        let store = open(folder.path());
        store.save(&rules(TOML)).unwrap();
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
        let store = open(folder.path());
        store.save(&rules(TOML)).unwrap();
        // A folder where the new file should go: nothing can be written there, whoever we are.
        fs::create_dir(folder.path().join("rules.json.new")).unwrap();
        let error = store.save(&rules("")).unwrap_err().to_string();
        assert!(
            error.contains("cannot write") && error.contains("rules.json.new"),
            "{error}"
        );
        let Found::Saved(found) = store.load().unwrap() else {
            panic!()
        };
        assert_eq!(found.config, rules(TOML).config);
    }

    #[test]
    fn a_full_disk_is_named() {
        // /dev/full takes nothing, as a full disk does.
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        std::os::unix::fs::symlink("/dev/full", folder.path().join("rules.json.new")).unwrap();
        let error = store.save(&rules(TOML)).unwrap_err().to_string();
        assert!(error.contains("No space left on device"), "{error}");
        assert!(matches!(store.load().unwrap(), Found::Nothing));
    }
}
