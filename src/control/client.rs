//! The client's side of the control socket: one [`Request`] a line there, one [`Reply`] a line back.
//!
//! Limits: a request of [`REQUEST_LEN_MAX`] bytes, a reply of [`REPLY_LEN_MAX`] bytes, and [`TIME_MAX`] for both.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::protocol::{REPLY_LEN_MAX, REQUEST_LEN_MAX, Reply, Request};
use super::server::STOPPING;

/// How long a daemon may stay silent in the middle of an exchange. A table change waits for all workers.
pub const TIME_MAX: Duration = Duration::from_secs(30);

/// Who answers requests: the daemon behind its socket, or a test's own state.
pub trait Transport {
    /// Asks and waits for the answer.
    fn call(&mut self, request: &Request) -> Result<Reply, ClientError>;
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("uvs is not running: {path}: {error}", path = path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The socket is somebody else's.
    #[error("Permission denied (you must be root): {path}", path = path.display())]
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The exchange broke off.
    #[error("{path}: {doing}: {error}", path = path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// In the middle of what.
        doing: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// The daemon closed the socket without an answer.
    #[error("{path}: uvs closed the connection without an answer: it refused the caller, or stopped", path = path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon closed the socket with the request unread: nothing has been done.
    #[error("{path}: uvs closed the connection before it had read the request: it stopped", path = path.display())]
    Unheard {
        /// The socket.
        path: PathBuf,
    },
    /// A limit of the protocol.
    #[error("{what} is longer than {max} bytes")]
    TooLong {
        /// Request or reply.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// Not the protocol's JSON.
    #[error("uvs's answer makes no sense: {0}: is the daemon of another version?")]
    Nonsense(serde_json::Error),
}

/// How long a patient client waits for the next daemon, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A daemon's socket. Each call connects anew.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    patience: Duration,
}

impl Client {
    /// A client of the daemon that listens at `path`; connects at the first call.
    pub fn new(path: PathBuf) -> Client {
        Client {
            path,
            patience: Duration::ZERO,
        }
    }

    /// The same for commands of operators and scripts: while one daemon takes over from another, or is started again after a
    /// crash, they wait. The socket's file is there then, and nobody listens.
    pub fn patient(path: PathBuf) -> Client {
        Client {
            path,
            patience: PATIENCE,
        }
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        let path = || self.path.clone();
        let stream = UnixStream::connect(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed { path: path() },
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path: path(), error }
            }
            _ => self.broken("connect", error),
        })?;
        let limited = stream
            .set_read_timeout(Some(TIME_MAX))
            .and_then(|()| stream.set_write_timeout(Some(TIME_MAX)));
        limited.map_err(|error| self.broken("set time limits", error))?;
        Ok(stream)
    }

    fn broken(&self, doing: &'static str, error: io::Error) -> ClientError {
        let error = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} s", TIME_MAX.as_secs()),
            ),
            _ => error,
        };
        ClientError::Broken {
            path: self.path.clone(),
            doing,
            error,
        }
    }
}

impl Transport for Client {
    fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let until = Instant::now() + self.patience;
        loop {
            let answer = self.call_once(request);
            // In none of these cases has anything been done.
            let is_between = match &answer {
                Err(ClientError::Unheard { .. }) => true,
                Err(ClientError::NotRunning { error, .. }) => error.kind() == io::ErrorKind::ConnectionRefused,
                Ok(Reply::Error { message }) => message == STOPPING,
                _ => false,
            };
            if !is_between || Instant::now() >= until {
                return answer;
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

impl Client {
    fn call_once(&self, request: &Request) -> Result<Reply, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(ClientError::Nonsense)?;
        line.push(b'\n');
        if line.len() > REQUEST_LEN_MAX {
            return Err(ClientError::TooLong {
                what: "the request",
                max: REQUEST_LEN_MAX,
            });
        }
        let mut stream = self.connect()?;
        let sent = match stream.write_all(&line) {
            Ok(()) => true,
            // A daemon that refuses the caller may close before it has read everything; its answer may still be there.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => false,
            Err(error) => return Err(self.broken("send the request", error)),
        };
        let mut answer = Vec::new();
        let mut limited = BufReader::new(stream).take(REPLY_LEN_MAX as u64 + 1);
        let heard = match limited.read_until(b'\n', &mut answer) {
            Ok(_) => sent,
            // The other end of a Unix socket was closed, and not all had been read there.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
            Err(error) => return Err(self.broken("read the answer", error)),
        };
        if answer.len() > REPLY_LEN_MAX {
            return Err(ClientError::TooLong {
                what: "the answer",
                max: REPLY_LEN_MAX,
            });
        }
        if answer.is_empty() {
            let path = self.path.clone();
            return Err(match heard {
                true => ClientError::NoAnswer { path },
                false => ClientError::Unheard { path },
            });
        }
        serde_json::from_slice(&answer).map_err(ClientError::Nonsense)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A daemon that takes one connection, reads one line and answers with `answer`.
    fn daemon(answer: &'static [u8]) -> (tempfile::TempDir, Client, thread::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uvs.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let handle = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(answer).unwrap();
            line
        });
        (dir, Client::new(path), handle)
    }

    #[test]
    fn one_line_each_way() {
        let (_dir, mut client, daemon) = daemon(b"{\"reply\":\"ok\",\"version\":\"9\",\"pid\":7}\n");
        let reply = client.call(&Request::Ping).unwrap();
        assert_eq!(
            reply,
            Reply::Ok {
                version: "9".into(),
                pid: 7
            }
        );
        assert_eq!(daemon.join().unwrap(), "{\"request\":\"ping\"}\n");
    }

    #[test]
    fn every_way_to_get_no_answer_says_which() {
        let (_dir, mut client, daemon) = daemon(b"");
        let error = client.call(&Request::Ping).unwrap_err();
        assert!(matches!(error, ClientError::NoAnswer { .. }), "{error}");
        daemon.join().unwrap();
        let error = client.call(&Request::Ping).unwrap_err();
        assert!(
            matches!(error, ClientError::NotRunning { .. }),
            "nobody listens any more: {error}"
        );

        // The next daemon comes after a while.
        let path = client.path.clone();
        let next = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            // At no moment is there no file: that one is not waited for.
            let beside = path.with_extension("next");
            let listener = UnixListener::bind(&beside).unwrap();
            std::fs::rename(&beside, &path).unwrap();
            // A connection that the one before had not taken up, or not read, when it ended.
            drop(listener.accept().unwrap());
            let stopping = format!("{{\"reply\":\"error\",\"message\":\"{STOPPING}\"}}\n");
            for answer in [stopping.as_str(), "{\"reply\":\"ok\",\"version\":\"9\",\"pid\":7}\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                BufReader::new(&stream).read_line(&mut String::new()).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let patient = Client::patient(client.path.clone()).call(&Request::Ping);
        assert!(patient.is_ok_and(|reply| !matches!(reply, Reply::Error { .. })));
        next.join().unwrap();

        let (_dir, mut client, _daemon) = self::daemon(b"what?\n");
        let error = client.call(&Request::Ping).unwrap_err();
        assert!(matches!(error, ClientError::Nonsense(_)), "{error}");

        let error = Client::new("/nonexistent/uvs.sock".into())
            .call(&Request::Ping)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("uvs is not running: /nonexistent/uvs.sock: No such file"),
            "{error}"
        );
    }
}
