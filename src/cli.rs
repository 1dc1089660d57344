//! The command tree of `uvs`, and who runs each command.
//!
//! Words: *program* is the name that uvs was called by, *subcommand* what follows it. Called as `ipvsadm`,
//! `ipvsadm-save` or `ipvsadm-restore`, or as `uvs ipvsadm …`, all arguments go to that dialect untouched, which reads options the
//! way popt does. Exit codes of the other subcommands: 0 done, 1 refused or failed, 2 wrong usage.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::options::{DecapOptions, DemoOptions, PingOptions, RunOptions, StatsOptions, StopOptions, SysctlOptions};

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
    /// Stop the running director
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
    /// See whether a director runs: its version and process id
    Ping(PingOptions),
    /// Show a complete little cluster in network namespaces: client, director, two real servers
    Demo(DemoOptions),
    /// On a real server whose kernel has no IPIP: unwrap it for the local stack, in the foreground
    Decap(DecapOptions),
}

/// Runs `uvs` with all its arguments, the program's name first.
pub fn main(arguments: &[OsString]) -> ExitCode {
    match Arguments::try_parse_from(arguments) {
        Ok(arguments) => dispatch(arguments.command),
        Err(error) => {
            // Printing fails only when the terminal is gone; there is nowhere left to say so.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

fn dispatch(command: Command) -> ExitCode {
    match command {
        Command::Run(options) => run(options),
        Command::Stop(options) => stop(options),
        Command::Ipvsadm { .. } => not_yet("ipvsadm"),
        Command::Stats(options) => stats(options),
        Command::Sysctl(options) => sysctl(options),
        Command::Ping(options) => ping(options),
        Command::Demo(options) => demo(options),
        Command::Decap(options) => decap(options),
    }
}

fn run(options: RunOptions) -> ExitCode {
    drop(options);
    not_yet("run")
}

fn demo(options: DemoOptions) -> ExitCode {
    drop(options);
    not_yet("demo")
}

fn decap(options: DecapOptions) -> ExitCode {
    drop(options);
    not_yet("decap")
}

fn stop(options: StopOptions) -> ExitCode {
    drop(options);
    not_yet("stop")
}

fn stats(options: StatsOptions) -> ExitCode {
    drop(options);
    not_yet("stats")
}

fn sysctl(options: SysctlOptions) -> ExitCode {
    drop(options);
    not_yet("sysctl")
}

fn ping(options: PingOptions) -> ExitCode {
    drop(options);
    not_yet("ping")
}

fn not_yet(what: &str) -> ExitCode {
    eprintln!("uvs {what}: not wired yet");
    ExitCode::FAILURE
}
