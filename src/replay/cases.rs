//! Recorded cases: rules, frames in, and the frames that came out where they were recorded.
//!
//! The format is that of `tests/kernel/packets.json`: `vectors` with a `name`, lines of shell to run before (`pre`), lines of
//! ipvsadm (`setup`), and `steps`: either a `command`, or a frame (`input_hex`, `inject_on`) with the `outputs`
//! that were seen (`hex`, `seen_on`, `volatile_offsets`). `client_side` is the first interface, `real_side` the second;
//! interfaces may be given by name as well.

use std::path::Path;

use serde::Deserialize;

use super::director::{MemoryDirector, Outcome};
use super::error::ReplayError;
use super::network::Network;
use crate::control::protocol::Command;
use crate::io::buffer::FRAME_LEN_MAX;
use crate::packet::{FlowKey, Protocol, checksum};
use crate::table::InterfaceId;

/// A file of cases is at most this long.
pub const FILE_BYTES_MAX: u64 = 256 << 20;

/// A file of cases.
#[derive(Debug, Deserialize)]
pub struct Cases {
    /// The cases.
    pub vectors: Vec<Case>,
}

/// One case: a director of its own.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// Lines of shell, as [`carry_out`] understands them.
    #[serde(default)]
    pub pre: Vec<String>,
    /// Lines of ipvsadm.
    #[serde(default)]
    pub setup: Vec<String>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// A command, or a frame.
#[derive(Debug, Deserialize)]
pub struct Step {
    /// Lines of shell, as [`carry_out`] understands them.
    #[serde(default)]
    pub command: Option<String>,
    /// Where the frame goes in.
    #[serde(default)]
    pub inject_on: Option<String>,
    /// The frame.
    #[serde(default)]
    pub input_hex: Option<String>,
    /// What came out; `None`: not known.
    #[serde(default)]
    pub outputs: Option<Vec<Output>>,
}

/// A frame that came out.
#[derive(Debug, Deserialize)]
pub struct Output {
    /// Where.
    pub seen_on: String,
    /// Its bytes.
    pub hex: String,
    /// Bytes that were not the same each time; `None`: recorded once.
    #[serde(default)]
    pub volatile_offsets: Option<Vec<usize>>,
}

/// Reads a file of cases.
pub fn load(path: &Path) -> Result<Cases, ReplayError> {
    let wrong = |reason: String| ReplayError::file(path, reason);
    let size = path.metadata().map_err(|error| wrong(error.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(wrong(format!(
            "{size} bytes are more than the {FILE_BYTES_MAX} that cases may have"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    parse(&text).map_err(wrong)
}

/// Reads the text of a file of cases, and every frame in it.
pub fn parse(text: &str) -> Result<Cases, String> {
    let cases: Cases = serde_json::from_str(text).map_err(|error| error.to_string())?;
    for case in &cases.vectors {
        for (number, step) in (1..).zip(&case.steps) {
            step.check()
                .map_err(|reason| format!("case {}, step {number}: {reason}", case.name))?;
        }
    }
    Ok(cases)
}

impl Step {
    fn check(&self) -> Result<(), String> {
        if self.command.is_some() {
            return Ok(());
        }
        let input = self.input_hex.as_deref().ok_or("neither a command nor input_hex")?;
        frame(input).map_err(|reason| format!("input_hex: {reason}"))?;
        if self.inject_on.is_none() {
            return Err("inject_on is missing".to_owned());
        }
        for output in self.outputs.iter().flatten() {
            frame(&output.hex).map_err(|reason| format!("outputs: hex: {reason}"))?;
        }
        Ok(())
    }

    /// The frame that goes in.
    pub fn input(&self) -> Result<Vec<u8>, String> {
        frame(self.input_hex.as_deref().unwrap_or_default())
    }
}

impl Case {
    /// Runs the lines before the steps.
    pub fn prepare(&self, director: &mut MemoryDirector) -> Result<(), String> {
        for (kind, lines) in [("pre", &self.pre), ("setup", &self.setup)] {
            for line in lines {
                carry_out(director, line).map_err(|error| format!("{kind}: `{line}': {error}"))?;
            }
        }
        Ok(())
    }
}

/// Carries out lines of shell, one after the other, up to the first that is refused. Of programs there are `ipvsadm`, whose
/// name may be left out, `sysctl` for settings of IPVS, and `ip link set` for an MTU.
pub fn carry_out(director: &mut MemoryDirector, lines: &str) -> Result<(), String> {
    let lines = lines.replace("&&", ";").replace('\n', ";");
    for line in lines.split(';') {
        let words: Vec<&str> = line.split_whitespace().collect();
        match &words[..] {
            [] => {}
            ["sysctl", rest @ ..] => director.apply(&settings(rest)?)?,
            ["ip", "link", "set", rest @ ..] => {
                let (interface, mtu) = link_mtu(director.network(), rest)?;
                director.set_mtu(interface, mtu);
            }
            [program, ..] if *program == "ipvsadm" || program.starts_with('-') => director.ipvsadm(line)?,
            _ => {
                return Err(
                    "only ipvsadm, `sysctl -w net.ipv4.vs.NAME=VALUE' and `ip link set NAME mtu N' can be done here"
                        .to_owned(),
                );
            }
        }
    }
    Ok(())
}

/// The words after `sysctl`: options aside, `net.ipv4.vs.NAME=VALUE` as often as wanted.
fn settings(words: &[&str]) -> Result<Vec<Command>, String> {
    let settings = words.iter().filter(|word| !word.starts_with('-'));
    let setting = |word: &&str| {
        let (name, value) = word.split_once('=')?;
        Some(Command::SetSysctl {
            name: name.strip_prefix("net.ipv4.vs.")?.to_owned(),
            value: value.to_owned(),
        })
    };
    settings
        .map(|word| setting(word).ok_or_else(|| format!("{word} is not net.ipv4.vs.NAME=VALUE")))
        .collect()
}

/// The words after `ip link set`: an interface and its MTU.
fn link_mtu(network: &Network, words: &[&str]) -> Result<(InterfaceId, u16), String> {
    let (name, mtu) = match words {
        ["dev", name, "mtu", mtu] | [name, "mtu", mtu] | ["mtu", mtu, "dev", name] => (name, mtu),
        _ => return Err("only the MTU of an interface can be set".to_owned()),
    };
    let mtu = mtu.parse().map_err(|_| format!("{mtu} is no MTU"))?;
    Ok((side(network, name)?, mtu))
}

/// The interface that a case means.
pub fn side(network: &Network, name: &str) -> Result<InterfaceId, String> {
    let number = match name {
        "client_side" => Some(0),
        "real_side" => Some(1),
        _ => None,
    };
    let id = match number {
        Some(number) => Some(InterfaceId(number)).filter(|id| usize::from(id.0) < network.interfaces().len()),
        None => network.named(name),
    };
    id.ok_or_else(|| format!("there is no interface {name}"))
}

/// Whether what came out is what was recorded, volatile bytes aside; what is different if not. `from` is where the frame
/// went in.
pub fn compare(
    director: &MemoryDirector,
    from: InterfaceId,
    outcome: &Outcome,
    wanted: &[Output],
) -> Result<(), String> {
    let mut local = 0;
    let mut expected = Vec::new();
    for output in wanted {
        let bytes = as_on_a_wire(frame(&output.hex)?);
        let interface = side(director.network(), &output.seen_on)?;
        if interface == from && is_of_local_stack(director, &bytes) {
            local += 1;
        } else {
            expected.push((interface, bytes, output.volatile_offsets.as_deref()));
        }
    }
    let names = director.network().interfaces();
    let name = |id: InterfaceId| &names[id.0 as usize].name;
    let list = || {
        let sent = outcome.sent.iter();
        let lines = sent.map(|(interface, bytes)| format!("  left {}: {}", name(*interface), hex(bytes)));
        lines.collect::<Vec<_>>().join("\n")
    };
    if local > 0 && outcome.handed_back == 0 {
        return Err(format!("the local stack's, but not handed back\n{}", list())
            .trim_end()
            .to_owned());
    }
    if outcome.sent.len() != expected.len() {
        let (sent, expected) = (outcome.sent.len(), expected.len());
        return Err(format!("{sent} frames left instead of {expected}\n{}", list())
            .trim_end()
            .to_owned());
    }
    for ((interface, got), (wanted, want, volatile)) in outcome.sent.iter().zip(&expected) {
        if interface != wanted {
            return Err(format!("left {} instead of {}", name(*interface), name(*wanted)));
        }
        same(got, want, *volatile)?;
    }
    Ok(())
}

/// A reset or an echo reply to the side that a packet came from, by one of the director's own addresses: no service sends
/// such.
fn is_of_local_stack(director: &MemoryDirector, bytes: &[u8]) -> bool {
    let (source, protocol, l4) = match bytes.get(12..14) {
        Some([0x08, 0x00]) if bytes.len() > 34 => {
            let source = bytes[26..].first_chunk::<4>().map(|a| std::net::IpAddr::from(*a));
            (source, bytes[23], 14 + usize::from(bytes[14] & 15) * 4)
        }
        Some([0x86, 0xdd]) if bytes.len() > 54 => {
            let source = bytes[22..].first_chunk::<16>().map(|a| std::net::IpAddr::from(*a));
            (source, bytes[20], 54)
        }
        _ => return false,
    };
    let ours = source.is_some_and(|source| director.is_local(source));
    let at = |offset: usize| bytes.get(l4 + offset).copied().unwrap_or_default();
    // RST; echo reply (RFC 792, RFC 4443 section 4.2).
    ours && match protocol {
        6 => at(13) & 4 != 0,
        1 => at(0) == 0,
        58 => at(0) == 129,
        _ => false,
    }
}

fn same(got: &[u8], want: &[u8], volatile: Option<&[usize]>) -> Result<(), String> {
    // Recorded once: the identification and checksum of headers that the director itself makes.
    let own = want.get(12..14) == Some(&[8, 0]) && want.len() > 34 && (want[23] == 4 || want[15] == 0xc0);
    let offsets = match volatile {
        Some(offsets) => offsets,
        None if own => &[18, 19, 24, 25],
        None => &[],
    };
    let mask = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        for at in offsets {
            if let Some(byte) = bytes.get_mut(*at) {
                *byte = 0;
            }
        }
        hex(&bytes)
    };
    if mask(got) != mask(want) {
        return Err(format!("other bytes\n   got {}\n  want {}", mask(got), mask(want)));
    }
    if let Some([8, 0, first]) = got.get(12..15) {
        let header = 14 + usize::from(first & 15) * 4;
        if checksum::of(got.get(14..header).unwrap_or_default()) != 0 {
            return Err("wrong header checksum".to_owned());
        }
    }
    Ok(())
}

/// The kernel leaves the checksum of an ICMPv6 error that it rewrites to the device, and the recording device had none:
/// the recorded field is the pseudo-header's sum. On a wire it is what this makes of it.
pub fn as_on_a_wire(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() > 58 && bytes[12..14] == [0x86, 0xdd] && bytes[20] == 58 {
        let address = |at: usize| bytes[at..].first_chunk().map_or(0, |a| u128::from_be_bytes(*a));
        let flow = FlowKey::v6(Protocol::ICMPV6, address(22), address(38), 0);
        let pseudo = checksum::fold(checksum::pseudo_header(&flow, bytes.len() as u32 - 54));
        if pseudo.to_be_bytes() == bytes[56..58] {
            let finished = checksum::of(&bytes[54..]);
            bytes[56..58].copy_from_slice(&finished.to_be_bytes());
        }
    }
    bytes
}

/// A frame by its hexadecimal digits.
fn frame(digits: &str) -> Result<Vec<u8>, String> {
    let bytes = unhex(digits)?;
    match bytes.len() {
        0..14 => Err(format!("{} bytes are no Ethernet frame", bytes.len())),
        14..=FRAME_LEN_MAX => Ok(bytes),
        len => Err(format!("{len} bytes are more than {FRAME_LEN_MAX}")),
    }
}

/// Bytes of hexadecimal digits.
pub fn unhex(digits: &str) -> Result<Vec<u8>, String> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return Err("no pairs of hexadecimal digits".to_owned());
    }
    let pairs = (0..digits.len()).step_by(2);
    pairs
        .map(|at| {
            let pair = &digits[at..at + 2];
            u8::from_str_radix(pair, 16).map_err(|_| format!("{pair:?} at {at} is no hexadecimal number"))
        })
        .collect()
}

/// The same back.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
