//! Options of a TCP header (RFC 9293 section 3.2), found to be changed in place.

use std::ops::Range;

/// Maximum segment size (RFC 9293 section 3.7.1).
pub const MSS: u8 = 2;
/// Selective acknowledgement (RFC 2018 section 3).
pub const SACK: u8 = 5;

const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const HEADER_LEN: usize = 20;

/// Where the value of the first option of that kind stands, from the start of the TCP header; `None` also when a length on the
/// way is wrong.
pub fn find(tcp: &[u8], wanted: u8) -> Option<Range<usize>> {
    let end = usize::from(tcp.get(12)? >> 4) * 4;
    let header = tcp.get(..end)?;
    let mut at = HEADER_LEN;
    loop {
        match *header.get(at)? {
            END => return None,
            NO_OPERATION => at += 1,
            kind => {
                let len = usize::from(*header.get(at + 1)?);
                if len < 2 || at + len > end {
                    return None;
                }
                if kind == wanted {
                    return Some(at + 2..at + len);
                }
                at += len;
            }
        }
    }
}
