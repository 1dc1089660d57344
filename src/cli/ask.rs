//! Subcommands that ask the daemon one thing: `stats`, `sysctl`, `stop`, `ping`. Each returns what to print, over any
//! [`Transport`].

use super::stats;
use crate::control::client::{ClientError, Transport};
use crate::control::explain::Question;
use crate::control::protocol::{Command, Reply, Request};
use crate::control::run_error::RunError;
use crate::options::{ExplainOptions, StatsOptions, StopOptions, SysctlOptions};
use crate::table::Sysctls;

/// What the IPVS settings' names begin with.
const SYSCTL_PREFIX: &str = "net.ipv4.vs.";

/// Why a subcommand did nothing.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No answer.
    #[error("{0}{hint}", hint = hint(.0))]
    Client(#[from] ClientError),
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
    /// Done, and lost at the next restart.
    #[error("the change is live, but it is not saved: {0}")]
    Unsaved(String),
    /// The arguments make no sense.
    #[error("{0}")]
    Usage(String),
}

fn hint(error: &ClientError) -> &'static str {
    match error {
        ClientError::NotRunning { .. } => "; `uvs run` starts it",
        _ => "",
    }
}

/// `uvs stats`.
pub fn statistics(options: &StatsOptions, transport: &mut dyn Transport) -> Result<String, AskError> {
    match transport.call(&Request::Statistics)? {
        Reply::Statistics { statistics } if options.json => Ok(format!("{statistics}\n")),
        Reply::Statistics { statistics } => Ok(stats::text(&statistics)),
        reply => Err(refused(reply)),
    }
}

/// `uvs sysctl`: reads or sets the settings in order and stops at the first refusal.
pub fn sysctl(options: &SysctlOptions, transport: &mut dyn Transport) -> Result<String, AskError> {
    let mut out = String::new();
    let all = Sysctls::names()
        .into_iter()
        .map(|name| format!("{SYSCTL_PREFIX}{name}"));
    let settings: Vec<String> = match options.all {
        true => all.collect(),
        false => options.settings.clone(),
    };
    for setting in &settings {
        let (name, value) = match setting.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (setting.trim(), None),
        };
        let short = short_name(name)?;
        let value = match (value, options.write) {
            (Some(value), true) => set(short, value, transport)?,
            (None, false) => get(short, transport)?,
            (None, true) => return Err(AskError::Usage(format!("{name}: -w needs NAME=VALUE"))),
            (Some(_), false) => return Err(AskError::Usage(format!("{setting}: only -w sets a value"))),
        };
        if options.values {
            out += &format!("{value}\n");
        } else {
            out += &format!("{SYSCTL_PREFIX}{short} = {value}\n");
        }
    }
    Ok(out)
}

/// The part behind `net.ipv4.vs.`, also when written with slashes.
fn short_name(name: &str) -> Result<&str, AskError> {
    let short = name
        .strip_prefix(SYSCTL_PREFIX)
        .or_else(|| name.strip_prefix("net/ipv4/vs/"));
    short.ok_or_else(|| AskError::Usage(format!("{name}: uvs has settings named {SYSCTL_PREFIX}… only")))
}

fn get(name: &str, transport: &mut dyn Transport) -> Result<String, AskError> {
    match transport.call(&Request::Sysctl { name: name.to_owned() })? {
        Reply::Sysctl { value } => Ok(value),
        reply => Err(refused(reply)),
    }
}

fn set(name: &str, value: &str, transport: &mut dyn Transport) -> Result<String, AskError> {
    let command = Command::SetSysctl {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    applied(command, transport).map(|()| value.to_owned())
}

/// One change.
pub(super) fn applied(command: Command, transport: &mut dyn Transport) -> Result<(), AskError> {
    match transport.call(&Request::Apply {
        commands: vec![command],
        all_or_nothing: true,
    })? {
        Reply::Applied { results, unsaved } => match (results.into_iter().next(), unsaved) {
            (Some(Some(error)), _) => Err(AskError::Refused(error.to_string())),
            (_, Some(reason)) => Err(AskError::Unsaved(reason)),
            _ => Ok(()),
        },
        reply => Err(refused(reply)),
    }
}

/// `uvs stop`. `take_off` takes off what a daemon that died has left, and names the interfaces.
pub fn stop(
    options: &StopOptions,
    transport: &mut dyn Transport,
    take_off: fn() -> Result<Vec<String>, RunError>,
) -> Result<String, AskError> {
    match transport.call(&Request::Stop { keep: options.keep }) {
        Ok(Reply::Ok { .. }) => Ok(String::new()),
        Ok(reply) => Err(refused(reply)),
        Err(error @ ClientError::NotRunning { .. }) if !options.keep => {
            let interfaces = take_off().map_err(|error| AskError::Refused(error.to_string()))?;
            if interfaces.is_empty() {
                return Err(error.into());
            }
            Ok(format!(
                "uvs was not running; the filter that it left on {} is taken off\n",
                interfaces.join(", ")
            ))
        }
        Err(error) => Err(error.into()),
    }
}

/// `uvs explain`.
pub fn explain(options: &ExplainOptions, transport: &mut dyn Transport) -> Result<String, AskError> {
    let question = Question::parse(&options.protocol, &options.client, &options.virtual_address);
    let mut question = question.map_err(AskError::Usage)?;
    question.call_id.clone_from(&options.call_id);
    match transport.call(&Request::Explain { question })? {
        Reply::Explained { explanation } if options.json => {
            let text = serde_json::to_string(&explanation).map_err(|error| AskError::Refused(error.to_string()))?;
            Ok(format!("{text}\n"))
        }
        Reply::Explained { explanation } => Ok(explanation.to_string()),
        reply => Err(refused(reply)),
    }
}

/// `uvs ping`.
pub fn ping(transport: &mut dyn Transport) -> Result<String, AskError> {
    match transport.call(&Request::Ping)? {
        Reply::Ok { version, pid } => Ok(format!("uvs {version}, process {pid}\n")),
        reply => Err(refused(reply)),
    }
}

/// The answer is none to what was asked.
pub(super) fn refused(reply: Reply) -> AskError {
    AskError::Refused(match reply {
        Reply::Error { message } => message,
        _ => "uvs answered something else than was asked: is the daemon of another version?".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::CommandError;

    #[derive(Default)]
    struct Daemon(Sysctls);

    impl Transport for Daemon {
        fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
            Ok(match request {
                Request::Sysctl { name } => match self.0.get(name) {
                    Ok(value) => Reply::Sysctl { value },
                    Err(error) => Reply::Error {
                        message: error.to_string(),
                    },
                },
                Request::Apply { commands, .. } => {
                    let result = match &commands[0] {
                        Command::SetSysctl { name, value } => self.0.set(name, value),
                        other => panic!("{other:?}"),
                    };
                    Reply::Applied {
                        results: vec![result.err().map(|error| CommandError::Invalid(error.to_string()))],
                        unsaved: None,
                    }
                }
                Request::Statistics => Reply::Statistics {
                    statistics: serde_json::json!({"a": 1}),
                },
                Request::Stop { keep: true } => Reply::Ok {
                    version: "1".into(),
                    pid: 2,
                },
                Request::Stop { keep: false } => Reply::Error {
                    message: "not now".into(),
                },
                Request::Ping => Reply::Ok {
                    version: "1.2.3".into(),
                    pid: 99,
                },
                other => panic!("{other:?}"),
            })
        }
    }

    fn sysctl_of(daemon: &mut Daemon, write: bool, values: bool, settings: &[&str]) -> Result<String, String> {
        let options = SysctlOptions {
            write,
            values,
            settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
            ..Default::default()
        };
        sysctl(&options, daemon).map_err(|error| error.to_string())
    }

    #[test]
    fn sysctl_reads_and_writes_like_sysctl() {
        let daemon = &mut Daemon::default();
        let name = "net.ipv4.vs.expire_nodest_conn";
        assert_eq!(sysctl_of(daemon, false, false, &[name]), Ok(format!("{name} = 0\n")));
        let all = SysctlOptions {
            all: true,
            ..Default::default()
        };
        let all = sysctl(&all, daemon).unwrap();
        assert_eq!(all.lines().count(), Sysctls::names().len());
        assert!(all.contains(&format!("{name} = 0\n")), "{all}");
        let set = format!("{name}=1");
        assert_eq!(sysctl_of(daemon, true, false, &[&set]), Ok(format!("{name} = 1\n")));
        assert_eq!(
            sysctl_of(daemon, false, true, &["net/ipv4/vs/expire_nodest_conn", name]),
            Ok("1\n1\n".into())
        );
        for (write, setting, part) in [
            (true, name, "-w needs NAME=VALUE"),
            (false, set.as_str(), "only -w sets a value"),
            (
                false,
                "net.ipv4.ip_forward",
                "uvs has settings named net.ipv4.vs.… only",
            ),
            (false, "net.ipv4.vs.nonsense", "nonsense"),
            (true, "net.ipv4.vs.expire_nodest_conn=x", "expire_nodest_conn"),
        ] {
            let error = sysctl_of(daemon, write, false, &[setting]).unwrap_err();
            assert!(error.contains(part), "{setting}: {error}");
        }
    }

    #[test]
    fn the_others_ask_once() {
        let daemon = &mut Daemon::default();
        assert_eq!(ping(daemon).unwrap(), "uvs 1.2.3, process 99\n");
        let mut options = StatsOptions::default();
        assert_eq!(statistics(&options, daemon).unwrap(), "\na: 1\n");
        options.json = true;
        assert_eq!(statistics(&options, daemon).unwrap(), "{\"a\":1}\n");
        let mut options = StopOptions {
            keep: true,
            ..Default::default()
        };
        let nothing = || -> Result<Vec<String>, RunError> { panic!("it runs, so nothing was left") };
        assert_eq!(stop(&options, daemon, nothing).unwrap(), "");
        options.keep = false;
        assert_eq!(stop(&options, daemon, nothing).unwrap_err().to_string(), "not now");
    }

    #[test]
    fn a_stop_of_a_dead_daemon_takes_off_what_it_left() {
        let dead = &mut crate::control::client::Client::new("/nonexistent/uvs.sock".into());
        let mut options = StopOptions::default();
        let left = || Ok(vec!["eth0".to_owned(), "eth1".to_owned()]);
        let said = stop(&options, dead, left).unwrap();
        assert!(said.ends_with("on eth0, eth1 is taken off\n"), "{said}");
        let error = stop(&options, dead, || Ok(vec![])).unwrap_err().to_string();
        assert!(error.starts_with("uvs is not running"), "{error}");
        options.keep = true;
        stop(&options, dead, || panic!("it is to be kept")).unwrap_err();
    }

    #[test]
    fn without_a_daemon_the_error_says_how_to_start_it() {
        let mut client = crate::control::client::Client::new("/nonexistent/uvs.sock".into());
        let error = ping(&mut client).unwrap_err().to_string();
        assert!(
            error.starts_with("uvs is not running: /nonexistent/uvs.sock"),
            "{error}"
        );
        assert!(error.ends_with("; `uvs run` starts it"), "{error}");
    }
}
