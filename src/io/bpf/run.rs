//! Running an XDP program by hand (BPF_PROG_TEST_RUN): on one frame, to see its verdict, or over and over on live frames,
//! which leave by the interface that it redirects to. The latter is the fastest source of frames there is; `perf/` uses it.
#![allow(unsafe_code, reason = "bpf(2) takes a pointer to the frame")]

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::{Command, Program, bpf};

/// `BPF_F_TEST_XDP_LIVE_FRAMES`: redirected frames really leave, passed ones go to the local stack.
const F_LIVE_FRAMES: u32 = 1 << 1;

#[derive(Default)]
#[repr(C)]
struct TestRun {
    fd: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

impl Program {
    /// Runs it on a frame and returns its verdict.
    pub fn run_once(&self, frame: &[u8]) -> io::Result<u32> {
        self.run(
            frame,
            TestRun {
                repeat: 1,
                ..TestRun::default()
            },
        )
    }

    /// Runs it `repeat` times on the same frame, and tells how long all took. What it redirects goes nowhere.
    pub fn run_timed(&self, frame: &[u8], repeat: u32) -> io::Result<Duration> {
        let start = Instant::now();
        let attribute = TestRun {
            repeat,
            ..TestRun::default()
        };
        self.run(frame, attribute)?;
        Ok(start.elapsed())
    }

    /// Runs it `repeat` times on copies of `frame`, in batches of 64, in the namespace of the calling thread; what it
    /// redirects is sent. The copies are used again with what programs last wrote to them, so it writes all that
    /// matters anew. The interface that it redirects to must be a card's with native XDP, or a veth whose peer has an
    /// XDP program or GRO. More than one repetition costs some ten milliseconds beforehand: the kernel waits for RCU. A signal to the thread
    /// ends it early (`Interrupted`).
    pub fn run_live(&self, frame: &[u8], repeat: u32) -> io::Result<()> {
        let attribute = TestRun {
            repeat,
            flags: F_LIVE_FRAMES,
            ..TestRun::default()
        };
        self.run(frame, attribute).map(|_| ())
    }

    fn run(&self, frame: &[u8], attribute: TestRun) -> io::Result<u32> {
        let mut attribute = TestRun {
            fd: self.as_raw_fd() as u32,
            size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            ..attribute
        };
        // SAFETY: `data_in` is readable for `size_in` bytes; nothing is written out, as the out pointers are null.
        unsafe { bpf(Command::ProgramTestRun, &mut attribute) }?;
        Ok(attribute.result)
    }
}
