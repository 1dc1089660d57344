//! A child process that cannot be left behind, and whose output can be waited for.

#![allow(unsafe_code, reason = "kill(2) has no safe wrapper among our dependencies")]

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

/// Lines of output kept.
const LINES_MAX: usize = 1000;

/// How long a process may take to end after SIGTERM, before SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// A running child; terminated, and waited for, when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    kept: VecDeque<String>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with its output (both kinds) gathered line by line. `name` is for messages.
    pub fn start(name: &str, command: &mut Command) -> io::Result<Process> {
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("start {name}: {error}"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (sender, lines) = crossbeam_channel::bounded(LINES_MAX);
        if let Some(output) = child.stdout.take() {
            gather(output, sender.clone())?;
        }
        if let Some(output) = child.stderr.take() {
            gather(output, sender)?;
        }
        Ok(Process {
            name: name.to_owned(),
            child,
            lines,
            kept: VecDeque::new(),
            status: None,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of output that `wanted` says yes to. An error when it ends first or the time is over, with
    /// what it had said.
    pub fn wait_for_line(&mut self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> io::Result<String> {
        let end = Instant::now() + timeout;
        let timed_out = loop {
            match self.lines.recv_deadline(end) {
                Ok(line) => {
                    let found = wanted(&line);
                    self.keep(line.clone());
                    if found {
                        return Ok(line);
                    }
                }
                Err(error) => break error.is_timeout(),
            }
        };
        // Closed output comes a moment before the end.
        let status = if timed_out {
            self.try_wait()?
        } else {
            self.wait(GRACE).ok()
        };
        let why = match status {
            Some(status) => format!("ended ({status})"),
            None => format!("is not ready after {} s", timeout.as_secs()),
        };
        let output = self.output();
        Err(io::Error::other(format!("{} {why}. Its output:\n{output}", self.name)))
    }

    /// What it said last, up to a thousand lines; after its end was seen, all of them.
    pub fn output(&mut self) -> String {
        // What an ended process said may still be on its way through the threads that read it.
        let patience = if self.status.is_some() { GRACE } else { Duration::ZERO };
        while let Ok(line) = self.lines.recv_timeout(patience) {
            self.keep(line);
        }
        self.kept.iter().map(|line| format!("  {line}\n")).collect()
    }

    /// Its exit status, once it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits for its end; an error when the time is over.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<ExitStatus> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                let message = format!("{} still runs after {} s", self.name, timeout.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = self.child.id().cast_signed();
        // SAFETY: kill takes numbers. The child is not waited for yet, so the id is still its own.
        if unsafe { libc::kill(pid, signal) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// SIGKILL, and waits.
    pub fn kill(&mut self) -> io::Result<()> {
        self.signal(libc::SIGKILL)?;
        self.wait(GRACE).map(drop)
    }

    /// SIGTERM, and waits; SIGKILL when that takes too long.
    pub fn terminate(&mut self) -> io::Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        match self.wait(GRACE) {
            Ok(status) => Ok(status),
            Err(_) => {
                log::warn!("{} does not end on SIGTERM", self.name);
                self.kill()?;
                self.wait(GRACE)
            }
        }
    }

    fn keep(&mut self, line: String) {
        if self.kept.len() == LINES_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(line);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            log::warn!("end {}: {error}", self.name);
        }
    }
}

/// Reads lines on a thread until the other end is closed. When nobody takes them, the newest are left out, so that
/// the child never waits for us.
fn gather(output: impl Read + Send + 'static, lines: Sender<String>) -> io::Result<()> {
    thread::Builder::new().name("output".to_owned()).spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            // Full, or nobody there: the line is left out, but reading goes on.
            let _ = lines.try_send(String::from_utf8_lossy(&line).into_owned());
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(5);

    fn shell(script: &str) -> Process {
        Process::start("shell", Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn waits_for_a_line_and_tells_what_was_said_instead() {
        let mut process = shell("echo one; echo two >&2; echo ready; sleep 60");
        assert_eq!(
            process.wait_for_line(WAIT, |line| line.contains("ready")).unwrap(),
            "ready"
        );
        let mut process = shell("echo cannot >&2; exit 3");
        let error = process
            .wait_for_line(WAIT, |line| line.contains("ready"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3") && error.contains("cannot"), "{error}");
    }

    #[test]
    fn dropping_ends_it_even_when_it_does_not_want_to() {
        let mut process = shell("trap '' TERM; echo ready; while :; do sleep 0.1; done");
        process.wait_for_line(WAIT, |line| line == "ready").unwrap();
        let pid = process.id();
        drop(process);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
