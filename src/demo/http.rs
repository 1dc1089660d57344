//! A small web server and client, so that a cluster needs no other program.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the server's name and a newline, as the pages of the documents |
//! | `GET /client` | address and port that the server sees the client at |
//! | `GET /bytes/N` | N bytes of [`pattern`] |
//! | `POST /bytes` | how many bytes of the body were those of [`pattern`], from its start |
//!
//! HTTP/1.1 with `Content-Length` and keep-alive; the client closes first. Limits: 8 KiB a head, 1 GiB a body.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::io::netns::Namespace;
use crate::io::poll::{PollSet, Waker};
use crate::io::stream;

const HEAD_MAX: u64 = 8 * 1024;
const BODY_MAX: u64 = 1 << 30;
const CHUNK: usize = 64 * 1024;

/// How often a thread that waits for a peer looks whether the server is to stop.
const GLANCE: Duration = Duration::from_millis(100);

/// Bytes that repeat only after 4 GiB, so that a lost, doubled or moved piece shows.
pub fn pattern(offset: u64, out: &mut [u8]) {
    for (n, byte) in out.iter_mut().enumerate() {
        let position = offset + n as u64;
        // A multiplicative hash of the four-byte word, and the byte of it that belongs here.
        let word = (position >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        *byte = (word >> (8 * (position & 3))) as u8;
    }
}

/// A web server on threads of its own; it ends when dropped.
pub struct HttpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    stop: AtomicBool,
    requests: AtomicU64,
}

impl HttpServer {
    /// Serves on `address` inside `namespace`, as `name`.
    pub fn start(namespace: &Namespace, address: SocketAddr, name: &str) -> io::Result<HttpServer> {
        let listener = namespace
            .run(|| TcpListener::bind(address))
            .map_err(io::Error::other)??;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let waker = Waker::new()?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            stop: AtomicBool::new(false),
            requests: AtomicU64::new(0),
        });
        let polls = PollSet::new(waker.clone(), &[listener.as_raw_fd()]);
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || accept(&listener, polls, &shared))?
        };
        Ok(HttpServer {
            address,
            shared,
            waker,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("web server {} panicked", self.shared.name);
        }
    }
}

fn accept(listener: &TcpListener, mut polls: PollSet, shared: &Arc<Shared>) {
    let mut handlers: Vec<JoinHandle<()>> = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        polls.wait(Duration::from_secs(60));
        while let Ok((stream, peer)) = listener.accept() {
            let shared = Arc::clone(shared);
            let handler = thread::Builder::new().name("http".to_owned()).spawn(move || {
                if let Err(error) = serve(stream, peer, &shared) {
                    log::debug!("web server {}: client {peer}: {error}", shared.name);
                }
            });
            match handler {
                Ok(handler) => handlers.push(handler),
                Err(error) => log::warn!("web server: no thread for a client: {error}"),
            }
        }
        handlers.retain(|handler| !handler.is_finished());
    }
    for handler in handlers {
        if handler.join().is_err() {
            log::error!("a thread of a web server panicked");
        }
    }
}

/// Serves one connection until the client closes.
fn serve(stream: TcpStream, peer: SocketAddr, shared: &Shared) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GLANCE))?;
    stream.set_write_timeout(Some(GLANCE))?;
    let mut reader = BufReader::with_capacity(
        CHUNK,
        Patient {
            stream: stream.try_clone()?,
            shared,
        },
    );
    let mut writer = Patient { stream, shared };
    while let Some(head) = read_head(&mut reader)? {
        let mut words = head.first.split_ascii_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        shared.requests.fetch_add(1, Ordering::Relaxed);
        match (method, path) {
            ("GET", "/") => respond(&mut writer, "200 OK", format!("{}\n", shared.name).as_bytes())?,
            ("GET", "/client") => respond(&mut writer, "200 OK", format!("{}\n", canonical(peer)).as_bytes())?,
            ("POST", "/bytes") => {
                let good = compare_body(&mut reader, head.length)?;
                respond(&mut writer, "200 OK", format!("{good}\n").as_bytes())?;
            }
            ("GET", path) => match path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()) {
                Some(length) if length <= BODY_MAX => send_pattern(&mut writer, length)?,
                _ => respond(&mut writer, "404 Not Found", b"not here\n")?,
            },
            _ => {
                respond(&mut writer, "400 Bad Request", b"not understood\n")?;
                return Ok(());
            }
        }
        if head.close {
            return Ok(());
        }
    }
    Ok(())
}

/// An IPv4 client of a socket for both families is an IPv4 client.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// A stream whose waits end when the server is to stop.
struct Patient<'a> {
    stream: TcpStream,
    shared: &'a Shared,
}

impl Patient<'_> {
    fn retry(&self, mut work: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        loop {
            match work() {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if self.shared.stop.load(Ordering::Relaxed) {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.retry(|| (&self.stream).read(out))
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(|| (&self.stream).write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Head {
    /// Request or status line.
    first: String,
    length: u64,
    close: bool,
}

/// Reads up to the empty line; `None` at the end of the stream before a first byte.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut limited = reader.take(HEAD_MAX);
    let mut first = String::new();
    if limited.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut head = Head {
        close: first.contains("HTTP/1.0"),
        first: first.trim_end().to_owned(),
        length: 0,
    };
    loop {
        let mut line = String::new();
        if limited.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "head cut short or longer than 8 KiB",
            ));
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some(head));
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            head.length = value.parse().map_err(io::Error::other)?;
            if head.length > BODY_MAX {
                return Err(io::Error::other("body longer than 1 GiB"));
            }
        } else if name.eq_ignore_ascii_case("connection") {
            head.close = value.eq_ignore_ascii_case("close");
        }
    }
}

fn respond(writer: &mut impl Write, status: &str, body: &[u8]) -> io::Result<()> {
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    writer.write_all(&answer)
}

fn send_pattern(writer: &mut impl Write, length: u64) -> io::Result<()> {
    write!(
        writer,
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
    )?;
    write_pattern(writer, length)
}

fn write_pattern(writer: &mut impl Write, length: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < length {
        let part = &mut chunk[..(length - offset).min(CHUNK as u64) as usize];
        pattern(offset, part);
        writer.write_all(part)?;
        offset += part.len() as u64;
    }
    Ok(())
}

/// Reads a body of `length` bytes; how many of them, from the first on, are those of [`pattern`].
fn compare_body(reader: &mut impl Read, length: u64) -> io::Result<u64> {
    let (mut chunk, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut offset, mut good, mut broken) = (0, 0, false);
    while offset < length {
        let part = (length - offset).min(CHUNK as u64) as usize;
        reader.read_exact(&mut chunk[..part])?;
        pattern(offset, &mut expected[..part]);
        if !broken {
            let same = chunk[..part].iter().zip(&expected).take_while(|(a, b)| a == b).count();
            good += same as u64;
            broken = same < part;
        }
        offset += part as u64;
    }
    Ok(good)
}

/// A client's connection. It stays open between requests and is closed, by FIN, when dropped.
pub struct HttpClient {
    reader: BufReader<TcpStream>,
    local: SocketAddr,
}

impl HttpClient {
    /// Connects from inside `namespace`; from the address `from`, or the kernel's choice. The timeout holds for
    /// the connection and for each later wait.
    pub fn connect(
        namespace: &Namespace,
        from: Option<IpAddr>,
        to: SocketAddr,
        timeout: Duration,
    ) -> io::Result<HttpClient> {
        let from = from.map(|address| SocketAddr::new(address, 0));
        let stream = namespace
            .run(|| stream::connect(from, to, timeout))
            .map_err(io::Error::other)??;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(HttpClient {
            local: stream.local_addr()?,
            reader: BufReader::with_capacity(CHUNK, stream),
        })
    }

    /// Our side of the connection.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// `GET path`: the body, as text without the newline at its end.
    pub fn get(&mut self, path: &str) -> io::Result<String> {
        let length = self.request(&format!("GET {path} HTTP/1.1\r\nHost: uvs\r\n\r\n"))?;
        self.text(length)
    }

    /// Fetches `length` bytes of the pattern; an error says at which byte they differ.
    pub fn download(&mut self, length: u64) -> io::Result<()> {
        let promised = self.request(&format!("GET /bytes/{length} HTTP/1.1\r\nHost: uvs\r\n\r\n"))?;
        let good = compare_body(&mut self.reader, promised)?;
        check_transfer("download", length, good)
    }

    /// Sends `length` bytes of the pattern; an error says at which byte the server saw a difference.
    pub fn upload(&mut self, length: u64) -> io::Result<()> {
        let head = format!("POST /bytes HTTP/1.1\r\nHost: uvs\r\nContent-Length: {length}\r\n\r\n");
        let mut stream = self.reader.get_ref();
        stream.write_all(head.as_bytes())?;
        write_pattern(&mut stream, length)?;
        let answer = self.answer()?;
        let good = self.text(answer)?.parse().map_err(io::Error::other)?;
        check_transfer("upload", length, good)
    }

    fn request(&mut self, head: &str) -> io::Result<u64> {
        self.reader.get_mut().write_all(head.as_bytes())?;
        self.answer()
    }

    /// Reads the head of an answer; the length of its body.
    fn answer(&mut self) -> io::Result<u64> {
        let head = read_head(&mut self.reader)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer"))?;
        if head.first.split_ascii_whitespace().nth(1) != Some("200") {
            return Err(io::Error::other(format!("answer {}", head.first)));
        }
        Ok(head.length)
    }

    fn text(&mut self, length: u64) -> io::Result<String> {
        let mut body = Vec::new();
        (&mut self.reader).take(length).read_to_end(&mut body)?;
        if body.len() as u64 != length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "body cut short"));
        }
        String::from_utf8(body)
            .map(|text| text.trim_end().to_owned())
            .map_err(io::Error::other)
    }
}

/// One request on a connection of its own, as `curl http://ADDRESS/` does it.
pub fn get(namespace: &Namespace, to: SocketAddr, timeout: Duration) -> io::Result<String> {
    HttpClient::connect(namespace, None, to, timeout)?.get("/")
}

fn check_transfer(what: &str, length: u64, good: u64) -> io::Result<()> {
    if good == length {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{what} of {length} bytes differs at byte {good}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(5);

    #[test]
    fn names_addresses_and_bytes_over_loopback() {
        let here = Namespace::current("here").unwrap();
        let server = HttpServer::start(&here, "127.0.0.1:0".parse().unwrap(), "server3-hk").unwrap();
        let to = server.address();
        assert_eq!(get(&here, to, WAIT).unwrap(), "server3-hk");
        let from = "127.0.0.9".parse().unwrap();
        let mut client = HttpClient::connect(&here, Some(from), to, WAIT).unwrap();
        assert_eq!(client.get("/client").unwrap(), client.local().to_string());
        client.download(300_001).unwrap();
        client.upload(300_001).unwrap();
        assert_eq!(
            client.get("/nothing").unwrap_err().to_string(),
            "answer HTTP/1.1 404 Not Found"
        );
        assert_eq!(server.requests(), 5);
        // It stops with a client still connected.
        drop(server);
        assert!(get(&here, to, WAIT).is_err());
    }

    #[test]
    fn a_changed_byte_is_found() {
        let mut bytes = vec![0; 200_000];
        pattern(0, &mut bytes);
        assert_eq!(compare_body(&mut bytes.as_slice(), 200_000).unwrap(), 200_000);
        bytes[150_003] ^= 1;
        assert_eq!(compare_body(&mut bytes.as_slice(), 200_000).unwrap(), 150_003);
        // Two pieces swapped.
        pattern(0, &mut bytes);
        bytes.swap(1448, 2896);
        assert!(compare_body(&mut bytes.as_slice(), 200_000).unwrap() < 200_000);
    }

    #[test]
    fn heads_that_never_end_are_refused() {
        let long = "GET / HTTP/1.1\r\n".to_owned() + &"x: y\r\n".repeat(10_000);
        assert!(read_head(&mut long.as_bytes()).is_err());
        assert!(read_head(&mut &b""[..]).unwrap().is_none());
        assert!(read_head(&mut &b"POST /bytes HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"[..]).is_err());
    }
}
