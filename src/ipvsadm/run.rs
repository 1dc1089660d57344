//! One call of ipvsadm from arguments to exit code, over any [`Transport`]. What it prints is collected, so that tests
//! see it whole.

use std::io::Read;

use super::invocation::{Format, Invocation, Listed, UsageError};
use super::names::Names;
use super::parse::parse;
use super::{print, rules, sort, usage};
use crate::control::client::{ClientError, Transport};
use crate::control::protocol::{Command, CommandError, Reply, Request, ServiceListing};
use crate::service::ServiceKey;

/// Exit code of what the kernel, or here the daemon, refuses.
const REFUSED: u8 = 255;

/// Commands in one request of a restore: a larger one would come near the request's size limit.
const COMMANDS_MAX: usize = 20_000;

/// What a call came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output.
    pub stdout: String,
    /// For standard error.
    pub stderr: String,
    /// The exit code.
    pub exit_code: u8,
}

/// The program's three names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `ipvsadm`.
    Ipvsadm,
    /// `ipvsadm-save`: `-S`, perhaps with `-n`.
    Save,
    /// `ipvsadm-restore`: `-C`, then `-R` without comment lines.
    Restore,
}

/// Runs one call. `called` is the name the program was called by, as messages show it.
pub fn run(
    program: Program,
    called: &str,
    arguments: &[String],
    stdin: &mut dyn Read,
    transport: &mut dyn Transport,
    names: &dyn Names,
) -> Outcome {
    let mut call = Call {
        called: if program == Program::Ipvsadm { called } else { "ipvsadm" },
        names,
        transport,
        outcome: Outcome::default(),
    };
    let result = match program {
        Program::Ipvsadm => call.ipvsadm(arguments, stdin),
        Program::Save => call.save_script(called, arguments),
        Program::Restore => call.read(stdin).and_then(|rules| {
            let rules = rules::without_comments(&rules);
            call.restore(&rules, vec![Pending::Command(Command::Clear)])
        }),
    };
    call.outcome.exit_code = match result {
        Ok(exit_code) => exit_code,
        Err(Stop { message, exit_code }) => {
            call.complain(&message);
            exit_code
        }
    };
    call.outcome
}

/// What ends the program at once.
struct Stop {
    message: String,
    exit_code: u8,
}

impl From<UsageError> for Stop {
    fn from(error: UsageError) -> Self {
        Stop {
            message: error.message,
            exit_code: error.exit_code,
        }
    }
}

impl From<ClientError> for Stop {
    /// In the place of ipvsadm's message when the kernel has no IPVS, with its exit code.
    fn from(error: ClientError) -> Self {
        let message = match &error {
            ClientError::NotRunning { .. } => {
                format!("Can't initialize ipvs: {error}\nAre you sure that uvs is running? `uvs run` starts it.")
            }
            _ => format!("Can't reach ipvs: {error}"),
        };
        Stop { message, exit_code: 2 }
    }
}

/// A line of a restore that waits for its turn.
enum Pending {
    Command(Command),
    Complaint(String),
}

struct Call<'a> {
    called: &'a str,
    names: &'a dyn Names,
    transport: &'a mut dyn Transport,
    outcome: Outcome,
}

impl Call<'_> {
    fn ipvsadm(&mut self, arguments: &[String], stdin: &mut dyn Read) -> Result<u8, Stop> {
        if arguments.is_empty() {
            return self.list(Listed::All, Format::default());
        }
        match parse(self.called, arguments, self.names)? {
            Invocation::Change(command) => self.apply(vec![Pending::Command(command)]),
            Invocation::Restore => {
                let rules = self.read(stdin)?;
                self.restore(&rules, Vec::new())
            }
            other => self.ask(other),
        }
    }

    /// All that neither changes the table nor reads rules.
    fn ask(&mut self, invocation: Invocation) -> Result<u8, Stop> {
        match invocation {
            Invocation::List { what, format } => self.list(what, format),
            Invocation::Save { numeric } => {
                let services = sort::sort(self.services(None)?);
                self.outcome.stdout += &print::rules(&services, numeric, self.names);
                Ok(0)
            }
            Invocation::Help => {
                self.outcome.stdout += &usage::help(self.called);
                Ok(0)
            }
            Invocation::Version => {
                self.outcome.stdout += usage::VERSION;
                Ok(0)
            }
            Invocation::StartDaemon(_) => {
                self.alive()?;
                self.complain("Operation not supported: uvs has no connection sync daemon");
                Ok(REFUSED)
            }
            Invocation::StopDaemon(_) => {
                self.alive()?;
                self.complain("No daemon is running");
                Ok(REFUSED)
            }
            // Only inside a restore; there ipvsadm refuses it to avoid an endless loop.
            Invocation::Change(_) | Invocation::Restore => Err(UsageError::try_help(self.called).into()),
        }
    }

    fn list(&mut self, what: Listed, format: Format) -> Result<u8, Stop> {
        let text = match what {
            Listed::All | Listed::Service(_) => {
                let key = match what {
                    Listed::Service(key) => Some(key),
                    _ => None,
                };
                let services = self.services(key)?;
                if key.is_some() && services.is_empty() {
                    self.complain("No such service");
                    return Ok(1);
                }
                let services = if format.unsorted {
                    sort::marks_last(services)
                } else {
                    sort::sort(services)
                };
                print::table(&services, key.is_none(), format, self.names)
            }
            Listed::Connections => match self.transport.call(&Request::Connections)? {
                Reply::Connections { connections } => print::connections(&connections, format, self.names),
                reply => return Err(unexpected(reply)),
            },
            Listed::Timeouts => match self.transport.call(&Request::Timeouts)? {
                Reply::Timeouts(timeouts) => print::timeouts(timeouts),
                reply => return Err(unexpected(reply)),
            },
            Listed::Daemon => {
                self.alive()?;
                String::new()
            }
        };
        self.outcome.stdout += &text;
        Ok(0)
    }

    fn services(&mut self, service: Option<ServiceKey>) -> Result<Vec<ServiceListing>, Stop> {
        match self.transport.call(&Request::List { service })? {
            Reply::Services { services } => Ok(services),
            reply => Err(unexpected(reply)),
        }
    }

    fn alive(&mut self) -> Result<(), Stop> {
        match self.transport.call(&Request::Ping)? {
            Reply::Ok { .. } => Ok(()),
            reply => Err(unexpected(reply)),
        }
    }

    /// Carries out lines in order, all commands in one request, and returns the exit code of the last line.
    fn apply(&mut self, pending: Vec<Pending>) -> Result<u8, Stop> {
        let commands = pending.iter().filter_map(|line| match line {
            Pending::Command(command) => Some(command.clone()),
            Pending::Complaint(_) => None,
        });
        let commands: Vec<_> = commands.collect();
        let mut results = Vec::with_capacity(commands.len());
        let mut failure = None;
        for chunk in commands.chunks(COMMANDS_MAX) {
            let commands = chunk.to_vec();
            match self.transport.call(&Request::Apply {
                commands,
                all_or_nothing: false,
            })? {
                Reply::Applied { results: some, unsaved } if some.len() == chunk.len() => {
                    results.extend(some);
                    failure = unsaved;
                }
                reply => return Err(unexpected(reply)),
            }
        }
        let mut results = results.into_iter();
        let mut exit_code = 0;
        for line in pending {
            let complaint = match line {
                Pending::Complaint(complaint) => Some(complaint),
                Pending::Command(command) => results.next().flatten().map(|error| kernel_words(&command, &error)),
            };
            exit_code = if complaint.is_some() { REFUSED } else { 0 };
            if let Some(complaint) = complaint {
                self.complain(&complaint);
            }
        }
        // Nothing that ipvsadm could fail at: the exit code is of the change, which is live.
        if let Some(reason) = failure {
            self.complain(&format!("uvs: the change is live, but it is not saved: {reason}"));
        }
        Ok(exit_code)
    }

    /// `-R`: lines up to the first usage error are carried out; what the daemon refuses does not stop it.
    fn restore(&mut self, text: &str, mut pending: Vec<Pending>) -> Result<u8, Stop> {
        let mut exit_code = 0;
        for line in text.lines() {
            let words = rules::words(line);
            if words.is_empty() {
                continue;
            }
            match parse(self.called, &words, self.names) {
                Ok(Invocation::Change(command)) => pending.push(Pending::Command(command)),
                Ok(other) => {
                    self.apply(std::mem::take(&mut pending))?;
                    exit_code = self.ask(other.clone())?;
                    if matches!(other, Invocation::Help | Invocation::Version) {
                        return Ok(exit_code);
                    }
                }
                Err(error) if error.ends_restore => {
                    self.apply(pending)?;
                    return Err(error.into());
                }
                Err(error) => pending.push(Pending::Complaint(error.message)),
            }
        }
        if pending.is_empty() {
            Ok(exit_code)
        } else {
            self.apply(pending)
        }
    }

    fn save_script(&mut self, called: &str, arguments: &[String]) -> Result<u8, Stop> {
        let mut numeric = false;
        for argument in arguments {
            match argument.as_str() {
                "-n" => numeric = true,
                other if other.starts_with('-') => {
                    let name = called.rsplit('/').next().unwrap_or(called);
                    self.complain(&format!(
                        "{name}: Script to save the IPVS table to stdout.\n   \
                         With the -n option, prints out the table in numeric format."
                    ));
                    return Ok(1);
                }
                _ => {}
            }
        }
        self.ask(Invocation::Save { numeric })
    }

    fn read(&mut self, stdin: &mut dyn Read) -> Result<String, Stop> {
        let mut bytes = Vec::new();
        match stdin.read_to_end(&mut bytes) {
            Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => Err(Stop {
                message: format!("cannot read the rules from standard input: {error}"),
                exit_code: 1,
            }),
        }
    }

    fn complain(&mut self, message: &str) {
        self.outcome.stderr += message;
        self.outcome.stderr += "\n";
    }
}

fn unexpected(reply: Reply) -> Stop {
    let message = match reply {
        Reply::Error { message } => message,
        _ => "uvs answered something else than was asked: is the daemon of another version?".to_owned(),
    };
    Stop { message, exit_code: 1 }
}

/// ipvsadm's words for what the kernel would have answered to this command.
fn kernel_words(command: &Command, error: &CommandError) -> String {
    let of_destination = matches!(
        command,
        Command::AddDestination { .. } | Command::EditDestination { .. } | Command::DeleteDestination { .. }
    );
    match error {
        CommandError::NoSuchService if of_destination => "Service not defined".to_owned(),
        CommandError::Invalid(detail) => {
            let words = "Invalid operation.  Possibly wrong module version, address not unicast, ...";
            if detail.is_empty() {
                words.to_owned()
            } else {
                format!("{words}\nuvs: {detail}")
            }
        }
        other => other.to_string(),
    }
}
