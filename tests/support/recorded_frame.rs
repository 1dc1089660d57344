//! Frames as the recordings in `tests/kernel/*.json` hold them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub use uvs::replay::cases::{as_on_a_wire, hex};

/// Bytes of hexadecimal digits.
pub fn unhex(text: &str) -> Vec<u8> {
    uvs::replay::cases::unhex(text).unwrap()
}
