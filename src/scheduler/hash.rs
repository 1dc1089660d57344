//! What the hashing schedulers share: the kernel's way to make a number of an address.

use std::net::IpAddr;

use super::Candidate;
use crate::packet::{FlowKey, Protocol};

/// An address as 32 bits: IPv6 is the exclusive or of its four words.
pub fn fold(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            (bits >> 96) as u32 ^ (bits >> 64) as u32 ^ (bits >> 32) as u32 ^ bits as u32
        }
    }
}

/// Multiplicative hash to 8 bits (golden ratio, Knuth 6.4).
pub fn hash_8(value: u32) -> usize {
    (value.wrapping_mul(0x61C8_8647) >> 24) as usize
}

/// The client's port, where the protocol has one and the service's flags ask for it.
pub fn client_port(flow: &FlowKey, wanted: bool) -> u32 {
    match flow.protocol {
        Protocol::TCP | Protocol::UDP | Protocol::SCTP if wanted => flow.source_port() as u32,
        _ => 0,
    }
}

/// Index of the candidate in a bucket, when it is available.
pub fn available(candidates: &[Candidate], bucket: u16) -> Option<usize> {
    let n = bucket as usize;
    candidates.get(n).filter(|c| c.is_available()).map(|_| n)
}
