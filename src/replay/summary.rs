//! A frame in one line of text.

use std::fmt::Write as _;

use crate::packet::parse::{Packet, Parsed, parse};
use crate::packet::quote::quote;
use crate::packet::{ETHERNET_HEADER_LEN, FlowKey, Offload, Protocol, TcpFlags};

/// What a frame is: `TCP 198.51.100.7:20001 > 10.200.1.1:80 S, 48 bytes`. Bytes are those of the IP packet.
pub fn describe(bytes: &[u8]) -> String {
    match parse(bytes, Offload::default()) {
        Ok(Packet::Flow(parsed)) => {
            let flags = if parsed.flow.protocol == Protocol::TCP {
                tcp_flags(parsed.tcp_flags)
            } else {
                String::new()
            };
            format!("{}{flags}, {} bytes", flow(&parsed.flow), parsed.ip_len())
        }
        Ok(Packet::Fragment(fragment)) => {
            let (from, to) = (fragment.flow.source(), fragment.flow.destination());
            let protocol = protocol(fragment.flow.protocol);
            format!(
                "{protocol} {from} > {to} fragment, {} bytes",
                bytes.len() - ETHERNET_HEADER_LEN
            )
        }
        Ok(Packet::IcmpError(parsed)) => icmp_error(bytes, &parsed),
        Ok(Packet::Secured(parsed)) => {
            let (from, to) = (parsed.flow.source(), parsed.flow.destination());
            let protocol = protocol(parsed.flow.protocol);
            format!("{protocol} {from} > {to}, {} bytes", parsed.ip_len())
        }
        Ok(Packet::Other) => other(bytes).unwrap_or_else(|| unknown(bytes)),
        Err(reason) => format!("{} ({})", other(bytes).unwrap_or_else(|| unknown(bytes)), reason.name()),
    }
}

/// `TCP 198.51.100.7:20001 > 10.200.1.1:80`.
pub fn flow(flow: &FlowKey) -> String {
    let at = |address, port| std::net::SocketAddr::new(address, port);
    format!(
        "{} {} > {}",
        protocol(flow.protocol),
        at(flow.source(), flow.source_port()),
        at(flow.destination(), flow.destination_port())
    )
}

fn icmp_error(bytes: &[u8], parsed: &Parsed) -> String {
    let at = parsed.l4 as usize;
    let mut text = format!(
        "{} {} > {} type {} code {}",
        protocol(parsed.flow.protocol),
        parsed.flow.source(),
        parsed.flow.destination(),
        bytes[at],
        bytes[at + 1]
    );
    if let Ok(quote) = quote(bytes, parsed) {
        // Writing into a string does not fail.
        let _ = write!(text, " about {}", flow(&quote.flow));
    }
    text
}

/// An IP packet of another protocol, or one with something wrong.
fn other(bytes: &[u8]) -> Option<String> {
    let (number, from, to) = match bytes.get(12..14)? {
        [0x08, 0x00] => {
            let address = |at: usize| Some(std::net::Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?).to_string());
            (*bytes.get(23)?, address(26)?, address(30)?)
        }
        [0x86, 0xdd] => {
            let address =
                |at: usize| Some(std::net::Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?).to_string());
            (*bytes.get(20)?, address(22)?, address(38)?)
        }
        _ => return None,
    };
    let len = bytes.len() - ETHERNET_HEADER_LEN;
    Some(format!("{} {from} > {to}, {len} bytes", protocol(Protocol(number))))
}

fn unknown(bytes: &[u8]) -> String {
    match bytes.get(12..14) {
        Some([0x08, 0x06]) => "ARP".to_owned(),
        Some([0x81, 0x00]) => "VLAN-tagged frame".to_owned(),
        Some([a, b]) => format!("Ethernet type {a:02x}{b:02x}, {} bytes", bytes.len()),
        _ => format!("{} bytes", bytes.len()),
    }
}

fn protocol(protocol: Protocol) -> String {
    match protocol {
        Protocol::TCP => "TCP".to_owned(),
        Protocol::UDP => "UDP".to_owned(),
        Protocol::SCTP => "SCTP".to_owned(),
        Protocol::ICMP => "ICMP".to_owned(),
        Protocol::ICMPV6 => "ICMPv6".to_owned(),
        Protocol::IPIP => "IPIP".to_owned(),
        Protocol::IPV6 => "IPv6-in-IP".to_owned(),
        Protocol(47) => "GRE".to_owned(),
        Protocol::AH => "AH".to_owned(),
        Protocol::ESP => "ESP".to_owned(),
        Protocol(number) => format!("protocol {number}"),
    }
}

/// As tcpdump has them.
fn tcp_flags(flags: TcpFlags) -> String {
    let named = [
        (TcpFlags::SYN, 'S'),
        (TcpFlags::FIN, 'F'),
        (TcpFlags::RST, 'R'),
        (TcpFlags::ACK, '.'),
    ];
    let set: String = named
        .iter()
        .filter(|(bit, _)| flags.any(*bit))
        .map(|(_, c)| *c)
        .collect();
    if set.is_empty() { set } else { format!(" {set}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing;

    #[test]
    fn a_line_says_what_a_frame_is() {
        let udp = testing::udp(testing::ipv6(), b"hello");
        assert!(describe(&udp).starts_with("UDP ["), "{}", describe(&udp));
        let tcp = testing::tcp(testing::ipv4(), b"");
        assert!(describe(&tcp).contains(", 40 bytes"), "{}", describe(&tcp));
        let mut broken = tcp.clone();
        broken[24] ^= 1;
        assert!(
            describe(&broken).ends_with("(bad_ip_checksum)"),
            "{}",
            describe(&broken)
        );
        assert_eq!(describe(&tcp[..13]), "13 bytes (truncated)");
        let mut arp = vec![0; 42];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(describe(&arp), "ARP (not_ip)");
        for len in 0..udp.len() {
            describe(&udp[..len]);
        }
    }
}
