//! Frames as the recordings in `tests/kernel/*.json` hold them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use uvs::packet::{FlowKey, Protocol, checksum};

/// Bytes of hexadecimal digits.
pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// The same back.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The kernel leaves the checksum of an ICMPv6 error that it rewrites to the device, and the recording device had none:
/// the recorded field is the pseudo-header's sum. On a wire it is what this makes of it.
pub fn as_on_a_wire(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes[12..14] == [0x86, 0xdd] && bytes[20] == 58 {
        let address = |at: usize| u128::from_be_bytes(*bytes[at..].first_chunk().unwrap());
        let flow = FlowKey::v6(Protocol::ICMPV6, address(22), address(38), 0);
        let pseudo = checksum::fold(checksum::pseudo_header(&flow, bytes.len() as u32 - 54));
        if pseudo.to_be_bytes() == bytes[56..58] {
            let finished = checksum::of(&bytes[54..]);
            bytes[56..58].copy_from_slice(&finished.to_be_bytes());
        }
    }
    bytes
}
