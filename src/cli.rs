//! The command tree of `uvs`, and who runs each command.
//!
//! `ask` holds the subcommands that ask the daemon one thing, `stats` the human form of the statistics.
//!
//! Words: *program* is the name that uvs was called by, *subcommand* what follows it. Called as `ipvsadm`,
//! `ipvsadm-save` or `ipvsadm-restore`, or as `uvs ipvsadm …`, all arguments go to that dialect untouched, which reads
//! options the way popt does. Exit codes of the other subcommands: 0 done, 1 refused or failed, 2 wrong usage.

mod ask;
mod mark;
mod stats;

use std::ffi::OsString;
use std::io::Write;

use clap::{Parser, Subcommand};

use crate::control;
use crate::control::client::Client;
use crate::ipvsadm;
use crate::options::{
    DecapOptions, DemoOptions, ExplainOptions, MarkOptions, PingOptions, ReplayOptions, RunOptions, SocketOption,
    StatsOptions, StopOptions, SysctlOptions,
};
use crate::replay::error::ReplayError;

// Exit codes.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// A Linux Virtual Server director in userspace: IPVS on AF_XDP or packet sockets, with ipvsadm's commands and output
#[derive(Debug, Parser)]
#[command(name = "uvs", version, arg_required_else_help = true, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the director, in the foreground; prints a line with `ready` once it forwards
    Run(RunOptions),
    /// Stop the running director, or take off the filter that a dead one left
    Stop(StopOptions),
    /// Read and change the table of the running director, as ipvsadm does
    #[command(disable_help_flag = true)]
    Ipvsadm {
        /// What ipvsadm takes: see `uvs ipvsadm --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        arguments: Vec<OsString>,
    },
    /// Frames, drops by reason, interfaces, connections and latency of the running director
    Stats(StatsOptions),
    /// Read or set the IPVS settings (net.ipv4.vs.*) of the running director
    Sysctl(SysctlOptions),
    /// Which packets have which firewall mark: the rules that send packets to services of marks (ipvsadm -f)
    Mark(MarkOptions),
    /// See whether a director runs: its version and process id
    Ping(PingOptions),
    /// Put the frames of a file through a director in memory and say what comes out, where, and why; exits with 1 when a
    /// recorded case comes out otherwise
    Replay(ReplayOptions),
    /// Ask the running director which way a flow goes and why, without touching it: known connection, template, the
    /// scheduler's choice, next hop
    Explain(ExplainOptions),
    /// Show a complete little cluster in network namespaces: client, director, two real servers
    Demo(DemoOptions),
    /// On a real server whose kernel has no IPIP: unwrap it for the local stack, in the foreground
    Decap(DecapOptions),
}

/// Runs `uvs` with all its arguments, the program's name first. Returns its exit code.
pub fn main(arguments: &[OsString]) -> u8 {
    let called = arguments
        .first()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if ipvsadm::Program::of(&called).is_some() {
        return ipvsadm::main(&called, &arguments[1..]);
    }
    // Before clap, which would take `--help` and `--` out.
    if let [_, subcommand, rest @ ..] = arguments
        && subcommand == "ipvsadm"
    {
        return ipvsadm::main("ipvsadm", rest);
    }
    match Arguments::try_parse_from(arguments) {
        Ok(arguments) => dispatch(arguments.command),
        Err(error) => {
            // Printing fails only when the terminal is gone; there is nowhere left to say so.
            let _ = error.print();
            u8::try_from(error.exit_code()).unwrap_or(USAGE)
        }
    }
}

fn dispatch(command: Command) -> u8 {
    match command {
        Command::Run(options) => run(options),
        Command::Demo(options) => demo(options),
        Command::Decap(options) => decap(options),
        Command::Replay(options) => replay(&options),
        Command::Ipvsadm { arguments } => ipvsadm::main("ipvsadm", &arguments),
        Command::Stop(options) => print(ask::stop(
            &options,
            &mut client(&options.socket),
            control::run::take_off_dead_filters,
        )),
        Command::Stats(options) => print(ask::statistics(&options, &mut client(&options.socket))),
        Command::Sysctl(options) => print(ask::sysctl(&options, &mut client(&options.socket))),
        Command::Mark(options) => {
            let socket = options.action.socket();
            print(mark::mark(&options.action, &mut client(socket)))
        }
        Command::Explain(options) => print(ask::explain(&options, &mut client(&options.socket))),
        Command::Ping(options) => print(ask::ping(&mut client(&options.socket))),
    }
}

fn client(socket: &SocketOption) -> Client {
    Client::patient(socket.resolve())
}

/// Prints an answer, or why there is none.
fn print(answer: Result<String, ask::AskError>) -> u8 {
    match answer {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => DONE,
            // The reader went away, as with `uvs stats | head`.
            Err(_) => FAILED,
        },
        Err(error) => {
            eprintln!("uvs: {error}");
            match error {
                ask::AskError::Usage(_) => USAGE,
                _ => FAILED,
            }
        }
    }
}

fn run(options: RunOptions) -> u8 {
    start_log();
    match control::run::run(&options, ipvsadm::rules::parse_file) {
        Ok(()) => DONE,
        Err(error) => {
            eprintln!("uvs run: {error}");
            FAILED
        }
    }
}

/// Messages go to standard error; `RUST_LOG` chooses which (error, warn, info, debug).
fn start_log() {
    let default = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(default)
        .format(|out, record| {
            writeln!(
                out,
                "uvs: {}: {}",
                record.level().as_str().to_lowercase(),
                record.args()
            )
        })
        .init();
}

fn demo(options: DemoOptions) -> u8 {
    start_log();
    if crate::demo::run(&options) { DONE } else { FAILED }
}

fn decap(options: DecapOptions) -> u8 {
    start_log();
    match crate::io::decap::run(&options.interface) {
        Ok(()) => DONE,
        Err(error) => {
            eprintln!("uvs decap: {error}");
            FAILED
        }
    }
}

fn replay(options: &ReplayOptions) -> u8 {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    match crate::replay::run(options, &mut out) {
        Ok(summary) if summary.different == 0 => DONE,
        Ok(_) => FAILED,
        // The reader went away, as with `uvs replay … | head`.
        Err(ReplayError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => FAILED,
        Err(error) => {
            // What was said before the error comes before it; a terminal that is gone is no news.
            let _ = out.flush();
            eprintln!("uvs replay: {error}");
            match error {
                ReplayError::Usage(_) => USAGE,
                _ => FAILED,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::options::DriverChoice;

    #[test]
    fn the_command_tree_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_option_says_what_it_is() {
        for subcommand in Arguments::command().get_subcommands() {
            assert!(subcommand.get_about().is_some(), "{}", subcommand.get_name());
            for argument in subcommand.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    subcommand.get_name(),
                    argument.get_id()
                );
            }
        }
    }

    fn run_options(line: &str) -> Result<RunOptions, clap::Error> {
        match Arguments::try_parse_from(line.split(' '))?.command {
            Command::Run(options) => Ok(options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn run_takes_what_the_design_fixes() {
        let options = run_options(
            "uvs run --interface eth0 --interface eth1 --workers 2 --driver raw --config f --state-dir s --run-dir r \
             --socket k --takeover",
        )
        .unwrap();
        assert_eq!(options.interfaces, ["eth0", "eth1"]);
        assert_eq!((options.workers, options.driver), (Some(2), Some(DriverChoice::Raw)));
        assert_eq!(options.run_dir.as_deref(), Some("r".as_ref()));
        assert_eq!(options.socket.resolve().to_str(), Some("k"));
        assert!(options.takeover);
        let defaults = run_options("uvs run").unwrap();
        assert_eq!(
            (defaults.workers, defaults.connections, defaults.driver),
            (None, None, None)
        );
        assert_eq!(
            (defaults.state_dir, defaults.run_dir, defaults.config),
            (None, None, None)
        );
    }

    #[test]
    fn run_refuses_what_is_out_of_range() {
        for line in [
            "uvs run --workers 0",
            "uvs run --workers 257",
            "uvs run --connections 1023",
            "uvs run --driver dpdk",
            "uvs run eth0",
        ] {
            assert_eq!(run_options(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
