//! Numbers, addresses and `address[:port]` as ipvsadm's C library calls read them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::names::Names;
use crate::service::TransportProtocol;

/// What `host[:port]` said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPort {
    /// The address.
    pub address: IpAddr,
    /// The port, if one was given.
    pub port: Option<u16>,
}

/// Reads `host[:port]`, `[v6]:port` or a bare IPv6 address. Host names resolve to IPv4 only; service names are
/// looked up for `protocol`. `None`: ipvsadm calls it illegal.
///
/// Kept from ipvsadm: `[v6]` without a port is illegal, and what is no IPv6 address in brackets loses its port.
pub fn address_port(text: &str, protocol: Option<TransportProtocol>, names: &dyn Names) -> Option<AddressPort> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (host, bracket_port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, Some(port.strip_prefix(':')?))
        }
        None => (text, None),
    };
    let (address, port) = match host.parse::<Ipv6Addr>() {
        Ok(address) => (IpAddr::V6(address), bracket_port),
        Err(_) => {
            let (host, port) = match host.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (host, None),
            };
            let address = inet_aton(host).or_else(|| names.host_to_address(host))?;
            (IpAddr::V4(address), port)
        }
    };
    let port = match port {
        None => None,
        Some(port) => Some(match number(port, 0, 65_535) {
            Some(port) => port as u16,
            None => names.service_to_port(port, protocol?)?,
        }),
    };
    Some(AddressPort { address, port })
}

/// A decimal number within limits, as `strtol` reads it: blanks and a sign in front are allowed, nothing behind.
pub fn number(text: &str, min: i64, max: i64) -> Option<i64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = text.parse().ok()?;
    (min..=max).contains(&value).then_some(value)
}

/// The number that a text begins with, as `atoi` reads it; 0 when there is none or it is too large.
pub fn leading_number(text: &str) -> i64 {
    let text = text.trim_start();
    let sign = text.starts_with(['+', '-']) as usize;
    let digits = text[sign..].bytes().take_while(u8::is_ascii_digit).count();
    text[..sign + digits].parse().unwrap_or(0)
}

/// An IPv4 address as `inet_aton` reads it: one to four parts, decimal, octal (`0…`) or hexadecimal (`0x…`), the last
/// part filling the rest; blanks behind end it.
pub fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let text = text.split([' ', '\t', '\n', '\x0b', '\x0c', '\r']).next()?;
    let parts = text.split('.').map(part).collect::<Option<Vec<u32>>>()?;
    let (last, first) = parts.split_last()?;
    if first.len() > 3 || first.iter().any(|part| *part > 255) {
        return None;
    }
    let room = 32 - 8 * first.len() as u32;
    if u64::from(*last) >> room != 0 {
        return None;
    }
    let high = first.iter().fold(0u64, |high, part| high << 8 | u64::from(*part));
    Some(Ipv4Addr::from_bits((high << room) as u32 | last))
}

fn part(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inet_aton_reads_the_old_forms() {
        for (text, expected) in [
            ("1.2.3.4", Some([1, 2, 3, 4])),
            ("127.1", Some([127, 0, 0, 1])),
            ("1.256", Some([1, 0, 1, 0])),
            ("24", Some([0, 0, 0, 24])),
            ("0177.0.0.1", Some([127, 0, 0, 1])),
            ("0xffffff00", Some([255, 255, 255, 0])),
            ("4294967295", Some([255, 255, 255, 255])),
            ("0", Some([0, 0, 0, 0])),
            ("1.2.3.4 x", Some([1, 2, 3, 4])),
            ("4294967296", None),
            ("256.1", None),
            ("1.2.65536", None),
            ("1.2.3.4.5", None),
            ("1..2", None),
            ("1.2.3.", None),
            ("1.2.3.4x", None),
            ("09.1.1.1", None),
            ("0x.1", None),
            ("+1.2.3.4", None),
            ("", None),
        ] {
            assert_eq!(inet_aton(text), expected.map(Ipv4Addr::from), "{text:?}");
        }
    }

    #[test]
    fn numbers_as_strtol() {
        for (text, expected) in [
            ("5", Some(5)),
            (" 5", Some(5)),
            ("+5", Some(5)),
            ("-0", Some(0)),
            ("010", Some(10)),
            ("5 ", None),
            ("0x10", None),
            ("", None),
            ("-1", None),
            ("101", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(number(text, 0, 100), expected, "{text:?}");
        }
        assert_eq!(leading_number("64abc"), 64);
        assert_eq!(leading_number("abc"), 0);
        assert_eq!(leading_number("-3"), -3);
    }
}
