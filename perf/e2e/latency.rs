//! How long a frame is on its way at a fixed arrival rate.
//!
//! One thread sends and receives, spinning on a CPU of its own: a frame is due at a set time and carries that time, not the one
//! at which it was sent, so a late source counts as latency too (no coordinated omission).

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use uvs::demo::cluster::{Error, Host};
use uvs::io::buffer::{FrameBuffer, Pool};
use uvs::io::mmsg::{Arrival, Receiver, Sender};
use uvs::io::packet_socket::{PacketSocket, classic};
use uvs::packet::{Frame, Offload};

use crate::cpu;
use crate::generator::{FRAME_LEN, flow_frame};
use crate::report::{Distribution, Goal, Row, Series};
use crate::rig::{Peer, Rig, Wanted, wrong};
use crate::rows::Setup;
use crate::sink::Sink;

/// Frames a second.
const RATE: u64 = 10_000;
/// Where a frame carries its time, behind the headers.
const TIME_AT: usize = 42;
const FLOWS: u64 = 64;
/// How long frames are sent without a pause. What spins with real-time priority for 0.95 s loses its CPU for 50 ms to
/// others that wait (`sched_rt_runtime_us`, the fair server of later kernels), which is not the director's latency.
const PART: Duration = Duration::from_millis(400);
/// Frames in a part.
const FRAMES: u64 = RATE * PART.as_millis() as u64 / 1000;
/// The pause before, in which others run.
const REST: Duration = Duration::from_millis(100);

struct Lane {
    rig: Rig,
    _sink: Sink,
    out: PacketSocket,
    back: PacketSocket,
    all_ns: Histogram<u64>,
}

impl Lane {
    fn build(setup: &Setup, peer: Peer) -> Result<Lane, Error> {
        let mut rig = Rig::build("latency", peer, &Wanted::new(&setup.uvs))?;
        if let Some(pid) = rig.director_pid() {
            cpu::realtime(pid)?;
        }
        let (out, back) = (open(&mut rig.client)?, open(&mut rig.server)?);
        back.filter_classic(&mut [
            classic::load_byte(23),
            classic::if_equal(17, 0, 1),
            classic::keep(0xffff),
            classic::keep(0),
        ])
        .map_err(wrong)?;
        Ok(Lane {
            _sink: Sink::attach(&mut rig.server, "eth0")?,
            out,
            back,
            all_ns: histogram(),
            rig,
        })
    }

    /// Sends a part. Adds what arrived to the distribution.
    fn run(&self, measured: &mut Histogram<u64>) -> Result<(), Error> {
        let before = measured.len();
        let (mut sender, mut receiver) = (Sender::new(), Receiver::new());
        let mut pool = Pool::new(256, 2048);
        let mut frame = FrameBuffer::new(FRAME_LEN);
        let mut arrived = Vec::with_capacity(64);
        let interval = Duration::from_nanos(1_000_000_000 / RATE);
        let start = Instant::now();
        let mut sent = 0;
        let end = start + PART + Duration::from_millis(100);
        while Instant::now() < end && (sent < FRAMES || measured.len() - before < FRAMES) {
            let due = interval * sent as u32;
            if sent < FRAMES && start.elapsed() >= due {
                let mut bytes = flow_frame((sent % FLOWS) as u32);
                bytes[TIME_AT..TIME_AT + 8].copy_from_slice(&(due.as_nanos() as u64).to_ne_bytes());
                frame
                    .fill(&bytes, Offload::default())
                    .map_err(|_| wrong("a frame fits"))?;
                sender
                    .send(self.out.as_fd(), std::slice::from_ref(&frame))
                    .map_err(Error::io("send a frame"))?;
                sent += 1;
            }
            // An error says that nothing waits.
            let received = receiver.receive(self.back.as_fd(), 64, &mut pool, |arrival| {
                if let Arrival::Frame(frame) = arrival {
                    arrived.push(frame);
                }
            });
            let now = start.elapsed().as_nanos() as u64;
            for frame in arrived.drain(..) {
                let time = frame
                    .bytes()
                    .get(TIME_AT..TIME_AT + 8)
                    .and_then(|bytes| bytes.try_into().ok());
                // One that is due later is a late one of the part before.
                if received.is_ok()
                    && let Some(due) = time.map(u64::from_ne_bytes)
                    && let Some(taken) = now.checked_sub(due)
                {
                    measured.saturating_record(taken);
                }
                pool.give(frame);
            }
        }
        Ok(())
    }
}

fn open(host: &mut Host) -> Result<PacketSocket, Error> {
    let index = host.link("eth0")?.index;
    host.namespace()
        .run(|| PacketSocket::open("eth0", index))?
        .map_err(wrong)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(1_000_000_000, 3).expect("1 s at 3 digits is a legal histogram")
}

/// `latency`.
pub fn latency(setup: &Setup) -> Result<Row, Error> {
    let mut row = Row::new("latency", "One-way latency at 10,000 frames a second", "µs, p50");
    let mut lanes = Vec::new();
    for peer in [
        Peer::Kernel,
        Peer::Nft,
        Peer::Bare("xdp"),
        Peer::Uvs("xdp"),
        Peer::Bare("raw"),
        Peer::Uvs("raw"),
    ] {
        if setup.can_run(peer, &mut row) {
            lanes.push((Lane::build(setup, peer)?, Vec::new()));
        }
    }
    let parts = if setup.quick { 1 } else { 2 };
    for _ in 0..setup.runs {
        for (lane, values) in &mut lanes {
            setup.go_on()?;
            let mut measured = histogram();
            for _ in 0..parts {
                thread::sleep(REST);
                cpu::undisturbed(|| lane.run(&mut measured))??;
            }
            lane.all_ns.add(&measured).map_err(wrong)?;
            let share = measured.len() as f64 / (parts * FRAMES) as f64;
            if share < 0.5 {
                return Err(wrong(format!(
                    "{}: {:.1} % arrived",
                    lane.rig.peer.name(),
                    100.0 * share
                )));
            }
            values.push(measured.value_at_quantile(0.5) as f64 / 1000.0);
        }
    }
    for (lane, values) in lanes {
        let peer = lane.rig.peer.name();
        row.distributions.push(Distribution {
            peer: peer.clone(),
            all_ns: lane.all_ns,
        });
        row.series.push(Series {
            peer,
            values,
            missing: None,
        });
    }
    for driver in ["xdp", "raw"] {
        row.judge_difference(
            &Peer::Uvs(driver).name(),
            &Peer::Bare(driver).name(),
            Goal::at_most(5.0, None, "µs"),
        );
    }
    row.note("From the time at which a frame was due to the time at which the server's packet socket had it; director, source and sink with real-time priority.");
    Ok(row)
}
