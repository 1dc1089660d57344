//! SCTP (RFC 9260): what its chunks say about the association.
//!
//! ```text
//! 0        4                  8          12                          12 + length, rounded up to 4
//! | ports  | verification tag | checksum | type, flags, length, ...  | next chunk ...
//! ```

use crate::packet::DropReason;

/// Bytes of the common header (RFC 9260 section 3.1).
pub const COMMON_HEADER_LEN: usize = 12;
/// Bytes of the header of a chunk (RFC 9260 section 3.2).
const CHUNK_HEADER_LEN: usize = 4;

/// Type of a chunk (RFC 9260 section 3.2). Unknown ones are legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkType(pub u8);

impl ChunkType {
    /// Payload.
    pub const DATA: ChunkType = ChunkType(0);
    /// Begins an association.
    pub const INIT: ChunkType = ChunkType(1);
    /// Answers that, with a cookie.
    pub const INIT_ACK: ChunkType = ChunkType(2);
    /// Ends an association at once, or refuses it.
    pub const ABORT: ChunkType = ChunkType(6);
    /// Begins its orderly end.
    pub const SHUTDOWN: ChunkType = ChunkType(7);
    /// Answers that.
    pub const SHUTDOWN_ACK: ChunkType = ChunkType(8);
    /// An error, not always fatal.
    pub const ERROR: ChunkType = ChunkType(9);
    /// Brings the cookie back.
    pub const COOKIE_ECHO: ChunkType = ChunkType(10);
    /// Accepts it: the association stands.
    pub const COOKIE_ACK: ChunkType = ChunkType(11);
    /// The association is over.
    pub const SHUTDOWN_COMPLETE: ChunkType = ChunkType(14);
}

/// Ports of an SCTP packet, and the chunk that counts: the first; behind a cookie, echoed or acknowledged, an ABORT. (Other
/// chunks that change an association come alone, or say the same as the first.) `None`: not even one whole chunk header.
pub(super) fn sctp_fields(transport: &[u8]) -> Result<(u32, Option<ChunkType>), DropReason> {
    let (common, chunks) = transport
        .split_first_chunk::<COMMON_HEADER_LEN>()
        .ok_or(DropReason::Truncated)?;
    let ports = u32::from_be_bytes([common[0], common[1], common[2], common[3]]);
    Ok((ports, deciding_chunk(chunks)))
}

fn deciding_chunk(chunks: &[u8]) -> Option<ChunkType> {
    let (first, len) = chunk_header(chunks)?;
    if !matches!(first, ChunkType::COOKIE_ECHO | ChunkType::COOKIE_ACK) || len < CHUNK_HEADER_LEN {
        return Some(first);
    }
    // RFC 9260 section 3.2: the padding to four bytes is not in the length.
    let second = chunks.get(len.next_multiple_of(4)..).and_then(chunk_header);
    match second {
        Some((ChunkType::ABORT, _)) => Some(ChunkType::ABORT),
        _ => Some(first),
    }
}

fn chunk_header(chunks: &[u8]) -> Option<(ChunkType, usize)> {
    let header = chunks.first_chunk::<CHUNK_HEADER_LEN>()?;
    Some((
        ChunkType(header[0]),
        u16::from_be_bytes([header[2], header[3]]) as usize,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::hex;

    /// A packet of these chunks, from port 20001 to port 80.
    fn packet(chunks: &str) -> Vec<u8> {
        [hex("4e210050 01020304 00000000"), hex(chunks)].concat()
    }

    #[test]
    fn the_chunk_that_counts() {
        use ChunkType as C;
        for (what, chunks, expected) in [
            ("no chunk", "", None),
            ("half a chunk header", "010000", None),
            ("an INIT", "01000014 00000001 000005dc 00010001 00000001", Some(C::INIT)),
            ("its header alone", "01000014", Some(C::INIT)),
            ("data, then an ABORT", "00030004 06000004", Some(C::DATA)),
            ("an unknown type", "c1000004", Some(ChunkType(0xc1))),
            ("a cookie and data", "0a000004 00030010", Some(C::COOKIE_ECHO)),
            ("a cookie and an ABORT", "0a000004 06000004", Some(C::ABORT)),
            ("the same behind padding", "0a000005 ff000000 06000004", Some(C::ABORT)),
            (
                "the same behind a longer cookie",
                "0a000008 06000004 00030010",
                Some(C::COOKIE_ECHO),
            ),
            (
                "an acknowledged cookie and an ABORT",
                "0b000004 06000004",
                Some(C::ABORT),
            ),
            ("an ABORT cut short", "0b000004 060000", Some(C::COOKIE_ACK)),
            (
                "an ABORT as third chunk",
                "0b000004 00030004 06000004",
                Some(C::COOKIE_ACK),
            ),
            ("a length below the header's", "0a000003 06000004", Some(C::COOKIE_ECHO)),
            ("a length past the end", "0affffff 06000004", Some(C::COOKIE_ECHO)),
            ("a SHUTDOWN COMPLETE", "0e000004", Some(C::SHUTDOWN_COMPLETE)),
        ] {
            assert_eq!(sctp_fields(&packet(chunks)), Ok((0x4e21_0050, expected)), "{what}");
        }
        assert_eq!(sctp_fields(&packet("")[..11]), Err(DropReason::Truncated));
    }
}
