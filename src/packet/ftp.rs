//! What of FTP matters to a NAT: who announces which address and port for a data connection (RFC 959, RFC 2428).
//!
//! ```text
//!  client  PORT 198,51,100,7,200,13     EPRT |2|2001:db8::7|51213|      the server will connect there
//!          PASV                         EPSV  EPSV 1                    the client will connect to where the reply says:
//!  server  227 Entering Passive Mode (10,1,0,11,195,80).                229 Entering Extended Passive Mode (|||50000|)
//! ```
//! Limits: as in the kernel a command and a reply are found where they stand whole in one segment; a reply at its begin.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::Family;

/// What a client says about data connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// PASV.
    Passive,
    /// EPSV, of the control connection's own family.
    ExtendedPassive,
    /// PORT or EPRT: it listens there.
    Port(IpAddr, u16),
}

/// The command in a line of a client, without its line end. `family` is that of the control connection.
pub fn command(line: &[u8], family: Family) -> Option<Command> {
    let (name, argument) = line.split_first_chunk::<4>()?;
    let argument = argument.trim_ascii();
    match (&name.map(|byte| byte.to_ascii_uppercase()), argument) {
        (b"PASV", b"") if family == Family::V4 => Some(Command::Passive),
        (b"EPSV", b"") => Some(Command::ExtendedPassive),
        (b"EPSV", [number]) if *number == number_of(family) => Some(Command::ExtendedPassive),
        (b"PORT", _) if family == Family::V4 => {
            let (address, port, rest) = host_port(argument)?;
            rest.is_empty().then_some(Command::Port(address.into(), port))
        }
        (b"EPRT", _) => extended_port(argument, family),
        _ => None,
    }
}

/// The commands in what a client sends, of all lines that are whole.
pub fn commands(payload: &[u8], family: Family) -> impl Iterator<Item = Command> {
    let lines = payload.split_inclusive(|byte| *byte == b'\n');
    lines.filter_map(move |line| command(line.strip_suffix(b"\n")?, family))
}

/// The address and port in a server's answer to PASV, and where in it they stand (RFC 1123 section 4.1.2.6: with whatever
/// around).
pub fn passive_reply(payload: &[u8]) -> Option<(Ipv4Addr, u16, Range<usize>)> {
    let text = first_line(payload, b"227 ")?;
    // Digits of something else may come first.
    for start in 4..text.len() {
        if text[start].is_ascii_digit()
            && !text[start - 1].is_ascii_digit()
            && let Some((address, port, rest)) = host_port(&text[start..])
        {
            return Some((address, port, start..text.len() - rest.len()));
        }
    }
    None
}

/// The port in a server's answer to EPSV: network and address stay empty there.
pub fn extended_passive_reply(payload: &[u8]) -> Option<u16> {
    let text = first_line(payload, b"229 ")?;
    let open = text.iter().position(|byte| *byte == b'(')?;
    let (delimiter, rest) = text[open + 1..].split_first()?;
    let rest = rest.strip_prefix(&[*delimiter, *delimiter])?;
    let end = rest.iter().position(|byte| byte == delimiter)?;
    number(&rest[..end]).filter(|port| *port != 0)
}

/// What PORT takes, into the returned buffer's begin; its length with it.
pub fn write_host_port(address: Ipv4Addr, port: u16) -> ([u8; HOST_PORT_MAX], usize) {
    use std::io::Write;
    let [a, b, c, d] = address.octets();
    let [high, low] = port.to_be_bytes();
    let mut text = [0; HOST_PORT_MAX];
    let mut rest = &mut text[..];
    write!(rest, "{a},{b},{c},{d},{high},{low}").expect("six numbers of three digits fit");
    let unused = rest.len();
    (text, HOST_PORT_MAX - unused)
}

/// Longest text of six numbers.
pub const HOST_PORT_MAX: usize = 6 * 3 + 5;

/// RFC 2428 section 2: the number of an address family.
fn number_of(family: Family) -> u8 {
    match family {
        Family::V4 => b'1',
        Family::V6 => b'2',
    }
}

/// The first line of a reply of that code, if it is whole.
fn first_line<'a>(payload: &'a [u8], code: &[u8]) -> Option<&'a [u8]> {
    let end = payload.iter().position(|byte| *byte == b'\n')?;
    payload[..end].starts_with(code).then_some(&payload[..end])
}

/// `h1,h2,h3,h4,p1,p2`, and what stands behind.
fn host_port(text: &[u8]) -> Option<(Ipv4Addr, u16, &[u8])> {
    let mut rest = text;
    let mut numbers = [0u8; 6];
    for (n, value) in numbers.iter_mut().enumerate() {
        if n > 0 {
            rest = rest.strip_prefix(b",")?;
        }
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        // With zeros in front a text of six bytes could be of any length, and what is off by it too.
        if digits > 3 {
            return None;
        }
        *value = number(&rest[..digits])?;
        rest = &rest[digits..];
    }
    let [a, b, c, d, high, low] = numbers;
    let port = u16::from_be_bytes([high, low]);
    (port != 0).then_some((Ipv4Addr::new(a, b, c, d), port, rest))
}

/// `|1|198.51.100.7|51213|`, with any delimiter.
fn extended_port(text: &[u8], family: Family) -> Option<Command> {
    let (delimiter, rest) = text.split_first()?;
    let mut parts = rest.split(|byte| byte == delimiter);
    let (protocol, address, port, end) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if protocol != [number_of(family)] || !end.is_empty() || parts.next().is_some() {
        return None;
    }
    let address = std::str::from_utf8(address).ok()?;
    let address = match family {
        Family::V4 => IpAddr::V4(address.parse::<Ipv4Addr>().ok()?),
        Family::V6 => IpAddr::V6(address.parse::<Ipv6Addr>().ok()?),
    };
    let port = number(port).filter(|port| *port != 0)?;
    Some(Command::Port(address, port))
}

/// A decimal number of digits only.
fn number<N: std::str::FromStr>(digits: &[u8]) -> Option<N> {
    let digits = std::str::from_utf8(digits).ok()?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(digits)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, family: Family) -> Vec<Command> {
        commands(text.as_bytes(), family).collect()
    }

    #[test]
    fn commands_of_clients() {
        let v4 = |text| all(text, Family::V4);
        let v6 = |text| all(text, Family::V6);
        let port = |address: &str, port| vec![Command::Port(address.parse().unwrap(), port)];
        assert_eq!(v4("PASV\r\n"), [Command::Passive]);
        assert_eq!(v4("pasv\n"), [Command::Passive]);
        assert_eq!(v6("PASV\r\n"), []);
        assert_eq!(v4("EPSV\r\n"), [Command::ExtendedPassive]);
        assert_eq!(v4("EPSV 1\r\n"), [Command::ExtendedPassive]);
        assert_eq!(v6("Epsv 2\r\n"), [Command::ExtendedPassive]);
        assert_eq!(v6("EPSV 1\r\n"), []);
        assert_eq!(v4("EPSV ALL\r\n"), []);
        assert_eq!(v4("PORT 198,51,100,7,200,13\r\n"), port("198.51.100.7", 51213));
        assert_eq!(v4("port 1,2,3,4,0,1\r\n"), port("1.2.3.4", 1));
        assert_eq!(v4("EPRT |1|198.51.100.7|51213|\r\n"), port("198.51.100.7", 51213));
        assert_eq!(v6("EPRT !2!2001:db8::7!80!\r\n"), port("2001:db8::7", 80));
        for nonsense in [
            "PASV",
            "PAS",
            "\r\n",
            "XPASV\r\n",
            "PASVX\r\n",
            "PORT\r\n",
            "PORT 1,2,3,4,5\r\n",
            "PORT 1,2,3,4,256,5\r\n",
            "PORT 1,2,3,4,0,0\r\n",
            "PORT 1,2,3,4,5,6,7\r\n",
            "PORT 1,2,3,,5,6\r\n",
            "PORT 1,2,3,+4,5,6\r\n",
            "EPRT |2|2001:db8::7|80|\r\n",
            "EPRT |1|2001:db8::7|80|\r\n",
            "EPRT |1|1.2.3.4|65536|\r\n",
            "EPRT |1|1.2.3.4|0|\r\n",
            "EPRT |1|1.2.3.4|80\r\n",
            "EPRT |1|1.2.3.4|80||\r\n",
            "EPRT \r\n",
            "EPRT |1|\u{fc}|80|\r\n",
        ] {
            assert_eq!(v4(nonsense), [], "{nonsense:?}");
        }
        assert_eq!(v4("PORT 1,2,3,4,5,6\r\nNOOP\r\nPASV\r\nPAS"), {
            let mut both = port("1.2.3.4", 1286);
            both.push(Command::Passive);
            both
        });
    }

    #[test]
    fn replies_of_servers() {
        for (text, expected) in [
            (
                "227 Entering Passive Mode (10,1,0,11,195,80).\r\n",
                Some("10,1,0,11,195,80"),
            ),
            (
                "227 Entering Passive Mode. 10,1,0,11,195,80\r\n",
                Some("10,1,0,11,195,80"),
            ),
            ("227 =10,1,0,11,195,080\r\n220 more\r\n", Some("10,1,0,11,195,080")),
            ("227 v2, 3 at 010,1,0,11,195,80\n", Some("010,1,0,11,195,80")),
            ("227 =10,1,0,11,195,0080\r\n", None),
            ("227 Entering Passive Mode (10,1,0,11,195,80).", None),
            ("227 Entering Passive Mode (10,1,0,11,0,0).\r\n", None),
            ("227 Entering Passive Mode (10,1,0,11,195).\r\n", None),
            ("226 Entering Passive Mode (10,1,0,11,195,80).\r\n", None),
            ("227-Entering Passive Mode (10,1,0,11,195,80).\r\n", None),
            ("227 \r\n", None),
            ("227", None),
            ("", None),
        ] {
            let found = passive_reply(text.as_bytes());
            assert_eq!(found.clone().map(|(_, _, range)| &text[range]), expected, "{text:?}");
            if let Some((address, port, _)) = found {
                assert_eq!((address, port), (Ipv4Addr::new(10, 1, 0, 11), 50000), "{text:?}");
            }
        }
        for (text, expected) in [
            ("229 Entering Extended Passive Mode (|||50000|)\r\n", Some(50000)),
            ("229 x (!!!1!).\n", Some(1)),
            ("229 x (|||65536|)\r\n", None),
            ("229 x (|||0|)\r\n", None),
            ("229 x (||50000|)\r\n", None),
            ("229 x (|||50000)\r\n", None),
            ("229 x (|1|1.2.3.4|50000|)\r\n", None),
            ("229 x (\r\n", None),
            ("229 x (|||50000|)", None),
        ] {
            assert_eq!(extended_passive_reply(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for (address, port) in [("0.0.0.0", 1), ("255.255.255.255", 65535), ("192.0.2.1", 50000)] {
            let address = address.parse().unwrap();
            let (text, len) = write_host_port(address, port);
            assert_eq!(host_port(&text[..len]), Some((address, port, &b""[..])));
        }
    }
}
