//! `uvs replay`: frames of a file through the data plane, without a network, and why each went where it went.
//!
//! [`director`] is a director in memory over the [memory driver](crate::io::memory), [`network`] what is around it. Frames
//! come from [`cases`] that were recorded with what came out, or from [`capture`]s; [`why`] says what became of each. Tests
//! drive the same director frame by frame.
//!
//! ```text
//! file --> cases, capture --> Observer::inject --> director (rules, pipeline, connections)
//!                                   |                 before and after: connection table, counters
//!                                   v
//!                       Account: fate, why, what left --> text, JSON, pcap
//! ```

pub mod capture;
pub mod cases;
pub mod director;
pub mod error;
pub mod network;
mod print;
pub mod summary;
pub mod why;

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use serde::Serialize;

use self::capture::{Captured, Reader, Writer};
use self::cases::Case;
use self::director::MemoryDirector;
use self::error::ReplayError;
use self::network::Network;
use self::why::{Account, Observer};
use crate::control::config::{self, Config};
use crate::control::state::State;
use crate::io::buffer::FRAME_LEN_MAX;
use crate::ipvsadm;
use crate::options::ReplayOptions;
use crate::packet::parse::{Packet, parse};
use crate::packet::{Mac, Offload};
use crate::table::InterfaceId;

/// Connections of a case's director.
const CONNECTIONS_OF_A_CASE: u32 = 1024;
/// Connections that a capture can have at a time.
const CONNECTIONS: u32 = 1 << 18;
/// Connections expire in steps of this, as the control thread sweeps.
const SWEEP_NS: u64 = 250_000_000;

/// One frame of a file, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// The case that it is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// Number of the frame in the file, or of the step in the case; the first is 1.
    pub frame: u64,
    /// Seconds since the first frame.
    pub time_s: f64,
    /// Where it came in.
    pub interface: String,
    /// What it is, in a line.
    pub packet: String,
    /// Why it was not put in at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// What became of it.
    #[serde(flatten)]
    pub account: Option<Account>,
    /// Whether that is what was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_recorded: Option<bool>,
    /// What is different.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<String>,
}

/// What a replay came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Frames put in.
    pub frames: u64,
    /// Frames passed over.
    pub skipped: u64,
    /// Cases.
    pub cases: u64,
    /// Cases with recorded outputs in which something else came out.
    pub different: u64,
}

/// Runs `uvs replay`; what it has to say goes to `out`.
pub fn run(options: &ReplayOptions, out: &mut dyn Write) -> Result<Summary, ReplayError> {
    let rules = match &options.rules {
        Some(path) => Some(config::load(path, ipvsadm::rules::parse_file)?),
        None => None,
    };
    let network = match options.interfaces.is_empty() {
        true => None,
        false => Some(
            Network::load(&options.interfaces)
                .map_err(|reason| ReplayError::Usage(format!("--interfaces: {reason}")))?,
        ),
    };
    let capture = match &options.write {
        Some(path) if is_same_file(path, &options.file) => {
            let reason = format!("--write {}: that is the file to be read", path.display());
            return Err(ReplayError::Usage(reason));
        }
        Some(path) => {
            let file = File::create(path).map_err(|error| ReplayError::file(path, error))?;
            let writer = Writer::new(BufWriter::new(file)).map_err(|error| ReplayError::file(path, error))?;
            Some((path.as_path(), writer))
        }
        None => None,
    };
    let mut replay = Replay {
        options,
        out,
        capture,
        summary: Summary::default(),
        impossible: None,
    };
    match is_json(&options.file)? {
        true => replay.cases(network, rules)?,
        false => replay.frames(network, rules)?,
    }
    replay.end()
}

/// Both are there, and the same file by whatever name.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(one).is_some() && real(one) == real(other)
}

/// Cases are JSON, and captures never begin with a brace or a blank.
fn is_json(path: &Path) -> Result<bool, ReplayError> {
    let mut first = [0; 64];
    let mut file = File::open(path).map_err(|error| ReplayError::file(path, error))?;
    let len = file.read(&mut first).map_err(|error| ReplayError::file(path, error))?;
    let text = first[..len].trim_ascii_start();
    Ok(text.first() == Some(&b'{'))
}

struct Replay<'a> {
    options: &'a ReplayOptions,
    out: &'a mut dyn Write,
    capture: Option<(&'a Path, Writer<BufWriter<File>>)>,
    summary: Summary,
    /// The first case that could not be done; the others are done all the same.
    impossible: Option<ReplayError>,
}

impl Replay<'_> {
    /// Every case in a director of its own.
    fn cases(&mut self, network: Option<Network>, rules: Option<Config>) -> Result<(), ReplayError> {
        let network = network.unwrap_or_else(Network::recorded);
        let state = rules.map(|rules| rules.desired).unwrap_or_default();
        let cases = cases::load(&self.options.file)?;
        for case in &cases.vectors {
            self.summary.cases += 1;
            let mut director = MemoryDirector::new(network.clone(), CONNECTIONS_OF_A_CASE, FRAME_LEN_MAX)?;
            director.change_to(state.clone());
            let as_recorded = match self.case(case, &mut director) {
                Err(error @ ReplayError::File { .. }) => {
                    self.impossible.get_or_insert(error);
                    Some(false)
                }
                result => result?,
            };
            self.summary.different += u64::from(as_recorded == Some(false));
            if !self.options.json {
                print::case_end(self.out, as_recorded)?;
            }
        }
        Ok(())
    }

    /// Whether everything that was recorded came out; `None` when nothing was.
    fn case(&mut self, case: &Case, director: &mut MemoryDirector) -> Result<Option<bool>, ReplayError> {
        let file = &self.options.file;
        let wrong = |reason: String| ReplayError::file(file, format!("case {}: {reason}", case.name));
        if !self.options.json {
            print::case_begin(self.out, &case.name)?;
        }
        case.prepare(director).map_err(wrong)?;
        let mut observer = Observer::default();
        let mut all = None;
        for (number, step) in (1..).zip(&case.steps) {
            let at = |reason: String| wrong(format!("step {number}: {reason}"));
            if let Some(command) = &step.command {
                cases::carry_out(director, command).map_err(|error| at(format!("`{command}': {error}")))?;
                continue;
            }
            let name = step.inject_on.as_deref().unwrap_or_default();
            let interface = cases::side(director.network(), name).map_err(at)?;
            let bytes = step.input().map_err(at)?;
            let (outcome, account) = observer.inject(director, interface, &bytes);
            let compared = step
                .outputs
                .as_ref()
                .map(|wanted| cases::compare(director, interface, &outcome, wanted));
            if let Some(result) = &compared {
                all = Some(all.unwrap_or(true) && result.is_ok());
            }
            let event = Event {
                case: Some(case.name.clone()),
                frame: number,
                time_s: 0.0,
                interface: director.network().interfaces()[interface.0 as usize].name.clone(),
                packet: summary::describe(&bytes),
                skipped: None,
                account: Some(account),
                as_recorded: compared.as_ref().map(Result::is_ok),
                difference: compared.and_then(Result::err),
            };
            let frames = outcome.sent.iter().map(|(_, bytes)| bytes.as_slice());
            self.event(&event, 0, frames)?;
        }
        Ok(all)
    }

    /// The frames of a capture through one director.
    fn frames(&mut self, network: Option<Network>, rules: Option<Config>) -> Result<(), ReplayError> {
        let Some(rules) = rules else {
            return Err(ReplayError::Usage(
                "a capture needs --rules FILE: TOML as for `uvs run --config', or rules of `ipvsadm -S'".to_owned(),
            ));
        };
        let mut network = network.unwrap_or_else(Network::one_link);
        if let Some(mac) = self.mac_of_services(&rules.desired)? {
            network.learn_mac(mac);
        }
        let mut director = MemoryDirector::new(network, CONNECTIONS, FRAME_LEN_MAX)?;
        director.change_to(rules.desired);
        let mut observer = Observer::default();
        let start_ns = director.now_ns;
        let mut swept_ns = start_ns;
        let mut first_ns = None;
        let mut reader = Reader::open(&self.options.file)?;
        while let Some(frame) = reader.next_frame()? {
            let since_first = frame.time_ns.saturating_sub(*first_ns.get_or_insert(frame.time_ns));
            // A capture of several interfaces may be out of order by a little; the clock never goes back.
            director.now_ns = director.now_ns.max(start_ns.saturating_add(since_first));
            if director.now_ns - swept_ns >= SWEEP_NS {
                swept_ns = director.now_ns;
                director.sweep();
            }
            self.frame(&mut director, &mut observer, &frame, since_first)?;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        director: &mut MemoryDirector,
        observer: &mut Observer,
        frame: &Captured,
        since_first: u64,
    ) -> Result<(), ReplayError> {
        let network = director.network();
        let interface = interface_of(network, frame);
        let mut event = Event {
            case: None,
            frame: frame.number,
            time_s: since_first as f64 / 1e9,
            interface: network.interfaces()[interface.0 as usize].name.clone(),
            packet: summary::describe(&frame.bytes),
            skipped: passed_over(network, frame),
            account: None,
            as_recorded: None,
            difference: None,
        };
        if event.skipped.is_some() {
            return Ok(self.event(&event, 0, std::iter::empty())?);
        }
        let (outcome, account) = observer.inject(director, interface, &frame.bytes);
        event.account = Some(account);
        let left = outcome.sent.iter().map(|(_, bytes)| bytes.as_slice());
        Ok(self.event(&event, frame.time_ns, left)?)
    }

    /// The link address that the first frame for one of the services went to.
    fn mac_of_services(&self, rules: &State) -> Result<Option<Mac>, ReplayError> {
        let vips: Vec<_> = rules
            .services()
            .filter_map(|entry| match entry.service.key {
                crate::service::ServiceKey::Address { address, .. } => Some(address),
                crate::service::ServiceKey::FwMark { .. } => None,
            })
            .collect();
        let mut reader = Reader::open(&self.options.file)?;
        while let Some(frame) = reader.next_frame()? {
            let Ok(Packet::Flow(parsed)) = parse(&frame.bytes, Offload::default()) else {
                continue;
            };
            if vips.contains(&parsed.flow.destination()) {
                return Ok(frame.bytes.first_chunk().map(|mac| Mac(*mac)));
            }
        }
        Ok(None)
    }

    /// Says what became of a frame, and writes what left.
    fn event<'f>(&mut self, event: &Event, time_ns: u64, left: impl Iterator<Item = &'f [u8]>) -> std::io::Result<()> {
        match event.skipped {
            Some(_) => self.summary.skipped += 1,
            None => self.summary.frames += 1,
        }
        if let Some((_, writer)) = &mut self.capture {
            for bytes in left {
                writer.frame(time_ns, bytes)?;
            }
        }
        if self.options.json {
            serde_json::to_writer(&mut *self.out, event)?;
            writeln!(self.out)
        } else {
            print::event(self.out, event)
        }
    }

    fn end(self) -> Result<Summary, ReplayError> {
        if !self.options.json {
            print::summary(self.out, &self.summary)?;
        }
        self.out.flush()?;
        if let Some((path, writer)) = self.capture {
            writer.finish().map_err(|error| ReplayError::file(path, error))?;
        }
        match self.impossible {
            Some(error) => Err(error),
            None => Ok(self.summary),
        }
    }
}

/// Where a captured frame came in: at the interface that the file names, else at the one that it was sent to.
fn interface_of(network: &Network, frame: &Captured) -> InterfaceId {
    let named = frame.interface.as_deref().and_then(|name| network.named(name));
    let destination = frame.bytes.first_chunk().map(|mac| Mac(*mac));
    let addressed = || destination.and_then(|mac| network.with_mac(mac));
    named.or_else(addressed).unwrap_or(InterfaceId(0))
}

/// Why a frame of a capture is not put in.
fn passed_over(network: &Network, frame: &Captured) -> Option<String> {
    let (len, wire_len) = (frame.bytes.len(), frame.wire_len);
    if len < wire_len {
        return Some(format!("the capture has {len} of its {wire_len} bytes"));
    }
    let source = frame.bytes.get(6..)?.first_chunk().map(|mac| Mac(*mac))?;
    let sender = network.with_mac(source)?;
    let name = &network.interfaces()[sender.0 as usize].name;
    Some(format!("{name} sent it"))
}

#[cfg(test)]
mod explain_tests;
#[cfg(test)]
mod tests;
