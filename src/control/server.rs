//! The daemon's side of the control socket: takes requests, hands them to the control thread, sends its answers.
//!
//! A thread accepts a client and serves it itself: it reads a line, waits for the answer, and writes what of it the thread that
//! had it did not. Another accepts meanwhile, so that no thread has to be started for each client. Only root and the daemon's own user are heard: the file mode keeps others out, and
//! SO_PEERCRED is asked all the same.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::protocol::{REQUEST_LEN_MAX, Reply, Request};
use crate::io::unix;

/// Clients at a time.
pub const CLIENTS_MAX: usize = 64;
/// Threads that wait for clients: one takes the next, and one is there at once in its place.
const WAITING_MAX: usize = 2;
/// A request must be complete this long after its first byte.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// A client that asks nothing for so long is closed.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
/// A client must take each part of its answer within this time.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a stopping daemon waits for requests that are on their way, and for its last answers to be written.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
/// An answer of up to so many bytes is sent by the thread that has it.
const SHORT_MAX: usize = 64 << 10;
/// How often a waiting client thread looks whether the daemon is stopping.
const LOOK_UP: Duration = Duration::from_millis(500);

/// What of an answer is left to be written by the client's own thread, and made there if need be.
pub type Rest = Box<dyn FnOnce() -> io::Result<Vec<u8>> + Send>;

/// A request, and where its answer goes.
pub struct Asked {
    /// What was asked.
    pub request: Request,
    answering: Answering,
}

impl Asked {
    /// A client's request, with the channel that the rest of its answer comes from.
    pub fn new(request: Request, client: Arc<UnixStream>) -> (Asked, Receiver<Rest>) {
        let (rest, answer) = crossbeam_channel::bounded(1);
        let answering = Answering { client, rest };
        (Asked { request, answering }, answer)
    }

    /// Takes request and where its answer goes apart.
    pub fn into_parts(self) -> (Request, Answering) {
        (self.request, self.answering)
    }
}

/// Where an answer goes.
pub struct Answering {
    client: Arc<UnixStream>,
    rest: Sender<Rest>,
}

impl Answering {
    /// Answers, if it is short at once: what the client's socket has no room for is left to its thread. Does not wait.
    pub fn reply(self, reply: Reply) {
        let rest = to_line(&reply).map(|mut line| {
            let sent = match line.len() {
                // No room, or an error: the client's thread tries again, and says what is wrong.
                ..=SHORT_MAX => unix::send_now(&self.client, &line).unwrap_or(0),
                _ => 0,
            };
            line.split_off(sent)
        });
        self.leave(move || rest);
    }

    /// Answers by what `make` makes, on the client's thread, so that a long listing does not hold up the control thread.
    pub fn reply_with(self, make: impl FnOnce() -> Reply + Send + 'static) {
        self.leave(move || to_line(&make()));
    }

    fn leave(self, rest: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static) {
        // Before its thread goes on: who closes the connection is that one.
        drop(self.client);
        // The client is gone: there is nobody to tell.
        let _ = self.rest.send(Box::new(rest));
    }
}

/// A reply as it is written.
fn to_line(reply: &Reply) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(line)
}

fn refusal(message: String) -> io::Result<Vec<u8>> {
    to_line(&Reply::Error { message })
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another daemon answers there.
    #[error("another uvs (process {pid}) listens at {}: stop it, use --takeover, or choose another --socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Of the other.
        pid: i32,
    },
    /// There is something that is no socket.
    #[error("{} is there and is no socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Of the system.
    #[error("control socket {}: {action}: {source}", path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// What requests are told that come when nobody carries them out any more.
pub const STOPPING: &str = "uvs is stopping";

/// The listening socket. Dropping it closes it, unless it is, and waits a moment until those that just came have asked, and all
/// answers are written.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    closed: bool,
    /// Device and inode of our file: another daemon's file at the same path is left alone.
    identity: (u64, u64),
    /// The listening socket as one that can be shut down, which ends all waiting for clients.
    socket: UnixStream,
    door: Arc<Door>,
}

impl Server {
    /// Listens at `path`, in the place of a socket that nobody listens at any more; requests go to `requests`.
    pub fn start(path: &Path, requests: Sender<Asked>) -> Result<Server, ServerError> {
        let system = |action| {
            move |source| ServerError::System {
                path: path.to_owned(),
                action,
                source,
            }
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(system("cannot create its folder"))?;
        }
        nobody_there(path)?;
        // Made beside it and renamed, so that it is never there with a wider mode, nor missing.
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        // A remainder of a start that was cut off; when it is not there, all is well.
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new).map_err(system("cannot listen"))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).map_err(system("cannot set its mode"))?;
        let metadata = fs::metadata(&new).map_err(system("cannot look at it"))?;
        fs::rename(&new, path).map_err(system("cannot rename"))?;
        let socket = listener.try_clone().map_err(system("cannot listen"))?;
        let server = Server {
            path: path.to_owned(),
            closed: false,
            identity: (metadata.dev(), metadata.ino()),
            socket: OwnedFd::from(socket).into(),
            door: Arc::new(Door {
                listener,
                requests,
                stopping: AtomicBool::new(false),
                clients: AtomicUsize::new(0),
                waiting: AtomicUsize::new(0),
                busy: AtomicUsize::new(0),
            }),
        };
        for _ in 0..WAITING_MAX {
            server.door.start_thread().map_err(system("cannot start its thread"))?;
        }
        Ok(server)
    }

    /// Takes no more clients, and removes its file. Where another daemon will come it is left, as by a crash: clients see by it that
    /// it is worth to wait.
    pub fn close(&mut self, leave_file: bool) {
        self.closed = true;
        self.door.stopping.store(true, Ordering::SeqCst);
        if let Err(error) = self.socket.shutdown(Shutdown::Both) {
            log::error!("control socket {}: cannot close it: {error}", self.path.display());
        }
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.identity);
        if ours
            && !leave_file
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("control socket {}: cannot remove it: {error}", self.path.display());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.closed {
            self.close(false);
        }
        let deadline = Instant::now() + LAST_WORDS_MAX;
        // A client that is accepted and not seen here sees that the server is stopping.
        while self.door.busy.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Refuses when a daemon answers at `path`, or when what is there is no socket.
fn nobody_there(path: &Path) -> Result<(), ServerError> {
    let path = || path.to_owned();
    match UnixStream::connect(path()) {
        Ok(stream) => {
            let pid = unix::peer_credentials(&stream).map(|found| found.pid);
            Err(ServerError::InUse {
                path: path(),
                pid: pid.unwrap_or(0),
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            use std::os::unix::fs::FileTypeExt;
            let socket = fs::symlink_metadata(path()).is_ok_and(|m| m.file_type().is_socket());
            if socket {
                Ok(())
            } else {
                Err(ServerError::NotASocket { path: path() })
            }
        }
        Err(source) => Err(ServerError::System {
            path: path(),
            action: "cannot see whether somebody listens",
            source,
        }),
    }
}

/// What the threads share that accept clients and serve them.
#[derive(Debug)]
struct Door {
    listener: UnixListener,
    requests: Sender<Asked>,
    stopping: AtomicBool,
    clients: AtomicUsize,
    /// Threads that wait for the next client.
    waiting: AtomicUsize,
    /// Clients that just came and have not asked yet, or are owed an answer.
    busy: AtomicUsize,
}

impl Door {
    fn start_thread(self: &Arc<Self>) -> io::Result<()> {
        let door = self.clone();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let started = thread::Builder::new()
            .name("uvs-client".to_owned())
            .spawn(move || door.attend());
        if let Err(error) = started {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(())
    }

    /// What each thread does, until enough others wait for clients.
    fn attend(self: &Arc<Self>) {
        while let Some(mut client) = self.accept() {
            if !self.admit(&mut client) {
                continue;
            }
            if self.waiting.fetch_sub(1, Ordering::Relaxed) == 1
                && let Err(error) = self.start_thread()
            {
                // Who comes meanwhile waits until this client, or another, is served.
                log::error!("control socket: cannot start a thread: {error}");
            }
            client.serve();
            drop(client);
            let one_more = |waiting| (waiting < WAITING_MAX).then_some(waiting + 1);
            let waits = self
                .waiting
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
            if waits.is_err() {
                return;
            }
        }
    }

    /// The next client, or none when the socket is closed. Who came before that, and was not accepted, is let go unheard.
    fn accept(self: &Arc<Self>) -> Option<Client> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let client = Client::new(stream, self.clone());
                    if !self.stopping.load(Ordering::SeqCst) {
                        return Some(client);
                    }
                }
                Err(_) if self.stopping.load(Ordering::SeqCst) => return None,
                Err(error) => {
                    // Out of descriptors, mostly: others must close theirs first.
                    log::error!("control socket: accept: {error}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Whether a client is to be served; one that is not is told why.
    fn admit(&self, client: &mut Client) -> bool {
        let message = match unix::peer_credentials(&client.stream) {
            Ok(peer) if !may_ask(peer.uid, unix::effective_uid()) => "permission denied: root only".to_owned(),
            Ok(_) if self.clients.load(Ordering::Relaxed) > CLIENTS_MAX => {
                format!("{CLIENTS_MAX} clients are connected already")
            }
            Ok(_) => return true,
            Err(error) => format!("cannot see who asks: {error}"),
        };
        log::warn!("control socket: refused: {message}");
        // It is being sent away: whether it hears why is its affair.
        let _ = client.write(refusal(message));
        false
    }
}

/// Root and the daemon's own user.
fn may_ask(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

/// One client.
struct Client {
    stream: Arc<UnixStream>,
    door: Arc<Door>,
    /// It is one of `busy`.
    is_busy: bool,
    /// Read, and not yet a whole line.
    pending: Vec<u8>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.set_busy(false);
        self.door.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a client's turn ended.
enum Line {
    Request(Vec<u8>),
    /// It left, or idled, or the daemon stops.
    End,
    /// It is told why before it is closed.
    Refused(String),
}

impl Client {
    /// Busy already, not when its request was read: else the program might end in between, and nobody would know whether it was
    /// carried out.
    fn new(stream: UnixStream, door: Arc<Door>) -> Client {
        door.clients.fetch_add(1, Ordering::Relaxed);
        let mut client = Client {
            stream: Arc::new(stream),
            door,
            is_busy: false,
            pending: Vec::new(),
        };
        client.set_busy(true);
        client
    }

    fn serve(&mut self) {
        loop {
            match self.line() {
                Ok(Line::Request(line)) => {
                    self.set_busy(true);
                    let rest = self.ask(&line);
                    let written = self.write(rest);
                    self.set_busy(false);
                    if let Err(error) = written {
                        log::info!("control socket: writing a reply: {error}");
                        return;
                    }
                }
                Ok(Line::Refused(message)) => {
                    // Closed in any case.
                    let _ = self.write(refusal(message));
                    return;
                }
                Ok(Line::End) => return,
                Err(error) => {
                    log::info!("control socket: reading a request: {error}");
                    return;
                }
            }
        }
    }

    fn set_busy(&mut self, busy: bool) {
        match (self.is_busy, busy) {
            (false, true) => self.door.busy.fetch_add(1, Ordering::SeqCst),
            (true, false) => self.door.busy.fetch_sub(1, Ordering::Relaxed),
            _ => return,
        };
        self.is_busy = busy;
    }

    /// What is left to be written of the answer.
    fn ask(&self, line: &[u8]) -> io::Result<Vec<u8>> {
        let request: Request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(reason) => return refusal(format!("not a request: {reason}")),
        };
        let (asked, answer) = Asked::new(request, self.stream.clone());
        match self.door.requests.send(asked).ok().and_then(|()| answer.recv().ok()) {
            Some(rest) => rest(),
            None => refusal(STOPPING.to_owned()),
        }
    }

    /// Reads up to the next end of line.
    fn line(&mut self) -> io::Result<Line> {
        self.stream.set_read_timeout(Some(LOOK_UP))?;
        let mut started = Instant::now();
        let mut searched = 0;
        let mut chunk = vec![0; 64 << 10];
        loop {
            if let Some(end) = self.pending[searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(searched + end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Ok(Line::Request(line));
            }
            searched = self.pending.len();
            if searched > REQUEST_LEN_MAX {
                return Ok(Line::Refused(format!("a request has at most {REQUEST_LEN_MAX} bytes")));
            }
            let limit = if self.pending.is_empty() {
                IDLE_MAX
            } else {
                REQUEST_TIME_MAX
            };
            if started.elapsed() >= limit {
                let seconds = limit.as_secs();
                return Ok(if self.pending.is_empty() {
                    Line::End
                } else {
                    Line::Refused(format!("a request must be complete within {seconds} s"))
                });
            }
            match (&*self.stream).read(&mut chunk) {
                Ok(0) => return Ok(Line::End),
                Ok(n) => {
                    if self.pending.is_empty() {
                        started = Instant::now();
                    }
                    self.pending.extend_from_slice(&chunk[..n]);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.door.stopping.load(Ordering::Relaxed) {
                        return Ok(Line::End);
                    }
                    if self.pending.is_empty() {
                        self.set_busy(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&mut self, rest: io::Result<Vec<u8>>) -> io::Result<()> {
        let rest = rest?;
        if rest.is_empty() {
            return Ok(());
        }
        self.stream.set_write_timeout(Some(WRITE_TIME_MAX))?;
        (&*self.stream).write_all(&rest)
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
