//! A UDP server that answers each datagram with its name, and what it takes to ask it.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::io::netns::Namespace;

/// How often the server looks whether it is to stop.
const GLANCE: Duration = Duration::from_millis(50);

/// Answers `NAME CLIENT: payload` to each datagram; it ends when dropped.
pub struct UdpEcho {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Serves on `address` inside `namespace`, as `name`. With the VIP as the address (direct routing, tunnel), the
    /// answers come from it.
    pub fn start(namespace: &Namespace, address: SocketAddr, name: &str) -> io::Result<UdpEcho> {
        let socket = namespace.run(|| UdpSocket::bind(address)).map_err(io::Error::other)??;
        socket.set_read_timeout(Some(GLANCE))?;
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (stop, name) = (Arc::clone(&stop), name.to_owned());
            thread::Builder::new()
                .name(name.clone())
                .spawn(move || answer(&socket, &name, &stop))?
        };
        Ok(UdpEcho {
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("UDP server on {} panicked", self.address);
        }
    }
}

fn answer(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let mut reply = format!("{name} {peer}: ").into_bytes();
        reply.extend_from_slice(&buffer[..length]);
        if let Err(error) = socket.send_to(&reply, peer) {
            log::debug!("UDP server {name}: answer to {peer}: {error}");
        }
    }
}

/// A client's socket.
pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    /// A socket inside `namespace`, at `from` (or anywhere), that sends to `to` and hears only from there.
    pub fn connect(
        namespace: &Namespace,
        from: Option<IpAddr>,
        to: SocketAddr,
        timeout: Duration,
    ) -> io::Result<UdpClient> {
        let any: IpAddr = if to.is_ipv4() {
            [0u8; 4].into()
        } else {
            [0u8; 16].into()
        };
        let from = SocketAddr::new(from.unwrap_or(any), 0);
        let socket = namespace
            .run(|| {
                let socket = UdpSocket::bind(from)?;
                socket.connect(to)?;
                Ok::<_, io::Error>(socket)
            })
            .map_err(io::Error::other)??;
        socket.set_read_timeout(Some(timeout))?;
        Ok(UdpClient { socket })
    }

    /// Our side.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends `payload` and waits for the answer.
    pub fn ask(&self, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.socket.send(payload)?;
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_with_name_and_payload() {
        let here = Namespace::current("here").unwrap();
        let server = UdpEcho::start(&here, "127.0.0.1:0".parse().unwrap(), "server4-hk").unwrap();
        let client = UdpClient::connect(&here, None, server.address(), Duration::from_secs(5)).unwrap();
        let expected = format!("server4-hk {}: hello", client.local().unwrap());
        assert_eq!(client.ask(b"hello").unwrap(), expected.as_bytes());
    }
}
