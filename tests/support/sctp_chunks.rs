//! Chunks of an SCTP association: type, flags, length, and enough of a value (RFC 9260 section 3.3).

pub const INIT: &[u8] = &[1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 5, 0xdc, 0, 1, 0, 1, 0, 0, 0, 1];
pub const INIT_ACK: &[u8] = &[2, 0, 0, 20, 0, 0, 0, 2, 0, 0, 5, 0xdc, 0, 1, 0, 1, 0, 0, 0, 7];
pub const COOKIE_ECHO: &[u8] = &[10, 0, 0, 6, 0xaa, 0xbb, 0, 0];
pub const COOKIE_ACK: &[u8] = &[11, 0, 0, 4];
pub const DATA: &[u8] = &[
    0, 3, 0, 21, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, b'h', b'e', b'l', b'l', b'o', 0, 0, 0,
];
pub const SHUTDOWN: &[u8] = &[7, 0, 0, 8, 0, 0, 0, 1];
pub const SHUTDOWN_ACK: &[u8] = &[8, 0, 0, 4];
pub const SHUTDOWN_COMPLETE: &[u8] = &[14, 0, 0, 4];
