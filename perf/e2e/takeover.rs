//! What a new process that takes over costs the services: how many frames of a steady stream are lost.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use uvs::demo::cluster::Error;

use crate::datagrams::{FEW, Lane, MILLION, at, wanted};
use crate::generator::Order;
use crate::report::{Row, Series};
use crate::rig::{DATAGRAMS, Peer, Rig, VIP, wrong};
use crate::rows::Setup;

/// Frames flow this long before and after.
const AROUND: Duration = Duration::from_millis(200);
/// Frames a millisecond.
const PER_MS: u64 = 10;

/// `takeover`: with few connections, and with a million.
pub fn takeover(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new("takeover", "Frames lost when a new uvs takes over", "ms of traffic");
    for driver in ["xdp", "raw"] {
        for flows in [FEW, MILLION] {
            let peer = Peer::Uvs(driver);
            let mut lane = Lane::build(setup, "takeover", peer, flows, Order::Random)?;
            lane.establish(flows)?;
            let mut values = Vec::new();
            for _ in 0..setup.runs {
                setup.go_on()?;
                values.push(lost(setup, &mut lane, flows)?);
            }
            row.series.push(Series {
                peer: at(peer, flows),
                values,
                missing: None,
            });
        }
    }
    row.note(format!(
        "{PER_MS} frames each millisecond; `uvs run --takeover` with the same options. Old and new process share a CPU."
    ));
    Ok(row)
}

/// Milliseconds of the stream.
fn lost(setup: &Setup, lane: &mut Lane, flows: u32) -> Result<f64, Error> {
    let before = lane.sink.count()?;
    let mut stream = Stream::start(&lane.rig)?;
    thread::sleep(AROUND);
    lane.rig.take_over(&wanted(setup, flows))?;
    let at_ready = lane.sink.count()?;
    thread::sleep(AROUND);
    let sent = stream.stop()?;
    thread::sleep(AROUND);
    let (after, all) = (lane.sink.count()? - at_ready, lane.sink.count()? - before);
    let least = AROUND.as_millis() as u64 * PER_MS * 9 / 10;
    let lost = sent.checked_sub(all).filter(|_| after >= least);
    let lost = lost.ok_or_else(|| wrong(format!("{all} of {sent} frames arrived, {after} after the takeover")))?;
    Ok(lost as f64 / PER_MS as f64)
}

/// A client's datagrams, until it is dropped. By a socket: the generator of the other rows does not leave the kernel, and there the end
/// of a director takes a second, as it waits until each CPU has left it once (RCU).
struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::io::Result<u64>>>,
}

impl Stream {
    fn start(rig: &Rig) -> Result<Stream, Error> {
        let socket = rig.client.namespace().run(|| UdpSocket::bind("0.0.0.0:0"))?;
        let socket = socket.map_err(Error::io("open a client's socket"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let start = Instant::now();
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                let due = start + Duration::from_millis(sent / PER_MS);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                for _ in 0..PER_MS {
                    socket.send_to(&[0; 18], (VIP, DATAGRAMS))?;
                }
                sent += PER_MS;
            }
            Ok(sent)
        });
        Ok(Stream {
            stop,
            thread: Some(thread),
        })
    }

    /// Returns how many were sent.
    fn stop(&mut self) -> Result<u64, Error> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(0);
        };
        let sent = thread.join().map_err(|_| wrong("the stream's thread panicked"))?;
        sent.map_err(Error::io("send to the VIP"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error}");
        }
    }
}
