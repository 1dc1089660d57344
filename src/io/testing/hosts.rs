//! A client and a server in namespaces of their own, and what they do with each other.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::Scope;
use std::time::Duration;

use super::{enter_new_namespace, in_namespace, ip, thread_id, wait_up};

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Of both interfaces between them.
pub const MIDDLE: &str = "02:00:00:00:00:0d";
/// Longer than anything takes.
pub const LONG: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// A host: a thread that lives in its namespace and runs what it is given.
pub struct Host(mpsc::Sender<Job>);

impl Host {
    /// A host whose `eth0` is a veth; the other end, `peer`, is in the calling thread's namespace.
    fn new<'s>(scope: &'s Scope<'s, '_>, peer: &'static str, mac: &'static str, number: u8) -> Host {
        let (jobs, work) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let middle = thread_id();
        scope.spawn(move || {
            assert!(enter_new_namespace());
            set_up(peer, middle, mac, number);
            ready.send(()).unwrap();
            work.iter().for_each(|job| job());
        });
        is_ready.recv().unwrap();
        Host(jobs)
    }

    /// Starts a job there; the result comes by the channel, if anyone wants it.
    pub fn start<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
        let (result, is_done) = mpsc::channel();
        self.0.send(Box::new(move || drop(result.send(job())))).unwrap();
        is_done
    }

    /// Runs a job there and waits for its result.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(job).recv_timeout(2 * LONG).expect("the job ends well")
    }
}

fn set_up(peer: &str, middle: i32, mac: &str, number: u8) {
    let other = 3 - number;
    ip("link set lo up");
    ip(&format!(
        "link add eth0 address {mac} type veth peer name {peer} address {MIDDLE}"
    ));
    ip(&format!("link set {peer} netns {middle}"));
    ip(&format!("addr add 192.0.2.{number}/24 dev eth0"));
    ip(&format!("addr add 2001:db8::{number}/64 dev eth0 nodad"));
    ip("link set eth0 up");
    ip(&format!(
        "neigh add 192.0.2.{other} lladdr {MIDDLE} dev eth0 nud permanent"
    ));
    ip(&format!(
        "neigh add 2001:db8::{other} lladdr {MIDDLE} dev eth0 nud permanent"
    ));
}

/// Runs `test` in a namespace with the interfaces `toclient` and `toserver`, each to a host's `eth0`. The client is
/// 192.0.2.1 and 2001:db8::1, the server .2 and ::2; both send to [`MIDDLE`].
pub fn between_two_hosts(test: impl FnOnce(Host, Host) + Send) {
    in_namespace(|| {
        std::thread::scope(|scope| {
            let client = Host::new(scope, "toclient", "02:00:00:00:00:01", 1);
            let server = Host::new(scope, "toserver", "02:00:00:00:00:02", 2);
            for name in ["toclient", "toserver"] {
                ip(&format!("link set {name} up"));
            }
            ["toclient", "toserver"].iter().for_each(|name| wait_up(name));
            [&client, &server].iter().for_each(|host| host.run(|| wait_up("eth0")));
            test(client, server);
        });
    });
}

/// `len` bytes that differ from place to place.
pub fn content(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Sends `len` bytes by TCP to the server, which sends them back; panics unless they come back as they were.
pub fn transfer(client: &Host, server: &Host, address: &'static str, len: usize) {
    server.run(move || {
        let listener = TcpListener::bind(address).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        });
    });
    let same = client.run(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        let sent = content(len);
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        back == sent
    });
    assert!(same, "every byte, in order");
}
