//! The dialect of ipvsadm 1.31: its arguments, its output, its messages, its exit codes.
//!
//! A pure parser and printer over control's requests and replies:
//!
//! ```text
//! arguments -> popt -> parse -> Invocation -> Request -> the daemon -> Reply -> sort, print -> text
//! ```
//!
//! Words are ipvsadm's own; messages and layout are identical on purpose, peculiarities included (each is noted where
//! it is kept). Differences: exit code and message when no uvs runs, the sync daemon, which uvs does not have, and
//! details of an invalid command, which follow on a line of their own.
//!
//! `--nosort` shows the daemon's order: the kernel's for destinations (newest first), services with a mark last.
//! Limits: a restore sends 20000 rules at a time.

mod address;
mod invocation;
mod legal;
mod names;
mod options;
mod parse;
mod popt;
mod print;
pub mod rules;
mod run;
mod scheduler_flags;
mod sort;
#[cfg(test)]
mod tests;
mod usage;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

pub use invocation::{Columns, Format, Invocation, Listed, SyncDaemon, UsageError};
pub use names::{Names, SystemNames};
pub use parse::parse;
pub use run::{Outcome, Program, run};

use crate::control::client::Client;
use crate::options::SocketOption;

/// The scheduler of a service that names none.
pub const SCHEDULER_DEFAULT: &str = "wlc";

impl Program {
    /// Which of the three a path names, if any.
    pub fn of(called: &str) -> Option<Program> {
        match Path::new(called).file_name()?.to_str()? {
            "ipvsadm" => Some(Program::Ipvsadm),
            "ipvsadm-save" => Some(Program::Save),
            "ipvsadm-restore" => Some(Program::Restore),
            _ => None,
        }
    }
}

/// Runs the program `called` (a name or path whose last part [`Program::of`] knows) against the daemon behind
/// `UVS_SOCKET`. Returns its exit code.
pub fn main(called: &str, arguments: &[OsString]) -> u8 {
    let arguments: Vec<String> = arguments
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut client = Client::patient(SocketOption::default().resolve());
    let program = Program::of(called).unwrap_or(Program::Ipvsadm);
    let stdin = &mut std::io::stdin().lock();
    let outcome = run(program, called, &arguments, stdin, &mut client, &SystemNames::default());
    let printed = std::io::stdout().write_all(outcome.stdout.as_bytes());
    // Without standard error there is nobody to tell.
    let _ = std::io::stderr().write_all(outcome.stderr.as_bytes());
    match printed {
        Ok(()) => outcome.exit_code,
        // The reader went away, as with `ipvsadm -L | head`.
        Err(_) => 1,
    }
}
