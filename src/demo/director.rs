//! A director as a child process in a host, and its commands.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use super::cluster::{Error, Host};
use crate::io::process::Process;
use crate::options::SOCKET_VARIABLE;
use crate::service::Method;

/// How long a director may take until it forwards.
const START_MAX: Duration = Duration::from_secs(20);

/// A running director.
pub struct Director {
    process: Process,
    program: PathBuf,
    socket: PathBuf,
}

/// How a director is started.
#[derive(Clone, Debug)]
pub struct DirectorOptions<'a> {
    /// The `uvs` program.
    pub program: &'a Path,
    /// Its interfaces.
    pub interfaces: &'a [&'a str],
    /// Folder for state, entries and socket; it must be on tmpfs. The same folder again is the same daemon again.
    pub directory: &'a Path,
    /// More arguments of `uvs run`.
    pub arguments: &'a [&'a str],
}

impl Director {
    /// Starts `uvs run` in `host` and waits until it says that it is ready.
    pub fn start(host: &Host, options: &DirectorOptions<'_>) -> Result<Director, Error> {
        let socket = options.directory.join("uvs.sock");
        let mut command = host.command(options.program)?;
        command.arg("run");
        for interface in options.interfaces {
            command.args(["--interface", interface]);
        }
        command.arg("--state-dir").arg(options.directory.join("state"));
        command.arg("--run-dir").arg(options.directory.join("run"));
        command.arg("--socket").arg(&socket);
        command.args(options.arguments);
        let mut process = Process::start("the director", &mut command).map_err(Error::io("uvs run"))?;
        process
            .wait_for_line(START_MAX, |line| line.split_whitespace().any(|word| word == "ready"))
            .map_err(Error::io("wait for the director"))?;
        Ok(Director {
            process,
            program: options.program.to_owned(),
            socket,
        })
    }

    /// Its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// `uvs ARGUMENTS` for this director.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env(SOCKET_VARIABLE, &self.socket);
        command
    }

    /// Runs `uvs ARGUMENTS`; whatever comes out.
    pub fn output(&self, arguments: &[&str]) -> Result<Output, Error> {
        self.command(arguments)
            .output()
            .map_err(Error::io(format!("uvs {}", arguments.join(" "))))
    }

    /// Runs `uvs ipvsadm ARGUMENTS` (given as one text) and returns what it prints; an error when it fails.
    pub fn ipvsadm(&self, arguments: &str) -> Result<String, Error> {
        let mut all = vec!["ipvsadm"];
        all.extend(arguments.split_whitespace());
        self.successful(&all)
    }

    /// The frame accounting, as `uvs stats --json` prints it.
    pub fn statistics(&self) -> Result<serde_json::Value, Error> {
        let text = self.successful(&["stats", "--json"])?;
        serde_json::from_str(&text).map_err(|error| Error::Wrong(format!("uvs stats --json: {error}: {text}")))
    }

    fn successful(&self, arguments: &[&str]) -> Result<String, Error> {
        let output = self.output(arguments)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Wrong(format!(
            "uvs {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        )))
    }
}

/// `uvs decap` on a real server whose kernel has no IPIP, until it is dropped.
pub fn start_decap(host: &Host, program: &Path, interface: &str) -> Result<Process, Error> {
    let mut command = host.command(program)?;
    command.args(["decap", "--interface", interface]);
    let name = format!("uvs decap on {}", host.name());
    let mut process = Process::start(&name, &mut command).map_err(Error::io("uvs decap"))?;
    process
        .wait_for_line(START_MAX, |line| line.split_whitespace().any(|word| word == "ready"))
        .map_err(Error::io(format!("wait for {name}")))?;
    Ok(process)
}

/// The flag of `ipvsadm -a` for a method.
pub fn method_flag(method: Method) -> &'static str {
    match method {
        Method::Route => "-g",
        Method::Masq => "-m",
        Method::Tunnel => "-i",
    }
}

/// `ADDRESS:PORT` as ipvsadm takes it, IPv6 in brackets.
pub fn with_port(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
