//! Rules of the classifier: which packets get which firewall mark.
//!
//! In the kernel netfilter marks packets before IPVS sees them (`iptables -t mangle … -j MARK`). Frames of uvs never meet
//! netfilter, so uvs has rules of its own. They stand in order, and the first that matches decides.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::TransportProtocol;
use crate::packet::Family;

/// One rule. What it does not name may be anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MarkRule {
    /// The mark that matching packets get, above 0.
    pub mark: u32,
    /// Protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<TransportProtocol>,
    /// Where the packet comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Prefix>,
    /// Port it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<PortRange>,
    /// Where it goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Prefix>,
    /// Port it goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<PortRange>,
    /// Interface by which it comes in, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

impl MarkRule {
    /// Most bytes of an interface's name.
    pub const INTERFACE_LEN_MAX: usize = 15;

    /// Says what makes no sense in it.
    pub fn check(&self) -> Result<(), MarkError> {
        if self.mark == 0 {
            return Err(MarkError("a firewall mark is 1 to 4294967295, not 0".to_owned()));
        }
        if let (Some(source), Some(destination)) = (self.source, self.destination)
            && source.family() != destination.family()
        {
            return Err(MarkError(format!(
                "source {source} and destination {destination} are of different address families"
            )));
        }
        match &self.interface {
            Some(name) if name.is_empty() || name.len() > MarkRule::INTERFACE_LEN_MAX => {
                let max = MarkRule::INTERFACE_LEN_MAX;
                Err(MarkError(format!("{name:?} is no interface name (1 to {max} bytes)")))
            }
            _ => Ok(()),
        }
    }

    /// The only family whose packets can match; `None`: both.
    pub fn family(&self) -> Option<Family> {
        self.destination.or(self.source).map(|prefix| prefix.family())
    }

    /// The protocols that can match.
    pub fn protocols(&self) -> &[TransportProtocol] {
        match &self.protocol {
            Some(protocol) => std::slice::from_ref(protocol),
            None => &TransportProtocol::ALL,
        }
    }
}

/// The rule as the options of `uvs mark add`.
impl fmt::Display for MarkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mark)?;
        if let Some(protocol) = self.protocol {
            write!(f, " --protocol {protocol}")?;
        }
        if let Some(source) = self.source {
            write!(f, " --source {source}")?;
        }
        if let Some(ports) = self.source_port {
            write!(f, " --source-port {ports}")?;
        }
        if let Some(destination) = self.destination {
            write!(f, " --destination {destination}")?;
        }
        if let Some(ports) = self.destination_port {
            write!(f, " --destination-port {ports}")?;
        }
        match &self.interface {
            Some(interface) => write!(f, " --interface {interface}"),
            None => Ok(()),
        }
    }
}

/// Why something is no part of a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MarkError(pub String);

/// An address, or all that begin alike. No bits are set beyond the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// All addresses that are like this one in so many bits.
    pub fn around(address: IpAddr, length: u8) -> Prefix {
        let length = length.min(bits(address));
        Prefix {
            address: cut(address, length),
            length,
        }
    }

    /// Of this address alone.
    pub fn host_of(address: IpAddr) -> Prefix {
        Prefix::around(address, bits(address))
    }

    /// The first of its addresses.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits count.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Its family.
    pub fn family(&self) -> Family {
        Family::of(self.address)
    }

    /// Its address, if it is only one.
    pub fn host(&self) -> Option<IpAddr> {
        (self.length == bits(self.address)).then_some(self.address)
    }

    /// Whether the address is one of it.
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && cut(address, self.length) == self.address
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address without the bits beyond the length.
fn cut(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl FromStr for Prefix {
    type Err = MarkError;

    fn from_str(text: &str) -> Result<Prefix, MarkError> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let no_prefix = || {
            MarkError(format!(
                "{text:?} is no address or prefix, such as 192.0.2.1, 192.0.2.0/24 or 2001:db8::/64"
            ))
        };
        let address: IpAddr = address.parse().map_err(|_| no_prefix())?;
        let max = bits(address);
        let length = match length {
            None => max,
            Some(digits) => digits.parse().map_err(|_| no_prefix())?,
        };
        if length > max {
            return Err(MarkError(format!("{text:?}: a prefix of it is 0 to {max} bits long")));
        }
        let whole = cut(address, length);
        if whole != address {
            let meant = format!("bits are set beyond the prefix; {whole}/{length} is meant, or the address alone");
            return Err(MarkError(format!("{text:?}: {meant}")));
        }
        Ok(Prefix { address, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host() {
            Some(host) => write!(f, "{host}"),
            None => write!(f, "{}/{}", self.address, self.length),
        }
    }
}

/// A port, or all from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: PortRange = PortRange {
        first: 0,
        last: u16::MAX,
    };

    /// The lowest.
    pub fn first(&self) -> u16 {
        self.first
    }

    /// The highest.
    pub fn last(&self) -> u16 {
        self.last
    }

    /// All of them.
    pub fn ports(&self) -> std::ops::RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> PortRange {
        PortRange {
            first: port,
            last: port,
        }
    }
}

impl FromStr for PortRange {
    type Err = MarkError;

    /// `80`, `8000-8100` (as nft writes it) or `8000:8100` (as iptables does).
    fn from_str(text: &str) -> Result<PortRange, MarkError> {
        let (first, last) = text.split_once(['-', ':']).unwrap_or((text, text));
        let refused = |_| {
            MarkError(format!(
                "{text:?} is no port or range of ports, such as 80 or 8000-8100"
            ))
        };
        let (first, last) = (first.parse().map_err(refused)?, last.parse().map_err(refused)?);
        if first > last {
            return Err(MarkError(format!("{text:?}: the range ends before it begins")));
        }
        Ok(PortRange { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

macro_rules! as_text {
    ($kind:ty) => {
        impl TryFrom<String> for $kind {
            type Error = MarkError;

            fn try_from(text: String) -> Result<$kind, MarkError> {
                text.parse()
            }
        }

        impl From<$kind> for String {
            fn from(value: $kind) -> String {
                value.to_string()
            }
        }
    };
}

as_text!(Prefix);
as_text!(PortRange);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_and_printed() {
        for (text, printed) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1"),
        ] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), printed);
        }
        for (text, part) in [
            ("", "is no address or prefix"),
            ("192.0.2", "is no address or prefix"),
            ("192.0.2.1/", "is no address or prefix"),
            ("192.0.2.0/33", "0 to 32 bits"),
            ("2001:db8::/129", "0 to 128 bits"),
            ("192.0.2.1/24", "192.0.2.0/24 is meant"),
        ] {
            let error = text.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let prefix: Prefix = "192.0.2.128/25".parse().unwrap();
        for (address, inside) in [("192.0.2.129", true), ("192.0.2.127", false), ("::c000:281", false)] {
            assert_eq!(prefix.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(
            "::/0"
                .parse::<Prefix>()
                .unwrap()
                .contains("2001:db8::1".parse().unwrap())
        );
    }

    #[test]
    fn port_ranges_are_read_and_printed() {
        for (text, printed) in [
            ("80", "80"),
            ("8000-8100", "8000-8100"),
            ("1:65535", "1-65535"),
            ("7-7", "7"),
        ] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), printed);
        }
        for text in ["", "-", "80-", "-80", "65536", "80,443", "90-80"] {
            text.parse::<PortRange>().unwrap_err();
        }
    }

    #[test]
    fn a_rule_survives_json_and_prints_as_options() {
        let rule = MarkRule {
            mark: 7,
            protocol: Some(TransportProtocol::Tcp),
            source: Some("198.51.100.0/24".parse().unwrap()),
            source_port: Some("1024-65535".parse().unwrap()),
            destination: Some("192.0.2.1".parse().unwrap()),
            destination_port: Some(80.into()),
            interface: Some("eth0".to_owned()),
        };
        rule.check().unwrap();
        let json = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<MarkRule>(&json).unwrap(), rule);
        assert_eq!(
            rule.to_string(),
            "7 --protocol tcp --source 198.51.100.0/24 --source-port 1024-65535 --destination 192.0.2.1 \
             --destination-port 80 --interface eth0"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let rule = MarkRule {
            mark: 7,
            protocol: None,
            source: None,
            source_port: None,
            destination: Some("192.0.2.1".parse().unwrap()),
            destination_port: None,
            interface: None,
        };
        rule.check().unwrap();
        let zero = MarkRule {
            mark: 0,
            ..rule.clone()
        };
        assert!(zero.check().unwrap_err().to_string().contains("not 0"));
        let mixed = MarkRule {
            source: Some("2001:db8::/32".parse().unwrap()),
            ..rule.clone()
        };
        assert!(
            mixed
                .check()
                .unwrap_err()
                .to_string()
                .contains("different address families")
        );
        let nameless = MarkRule {
            interface: Some(String::new()),
            ..rule
        };
        assert!(nameless.check().unwrap_err().to_string().contains("no interface name"));
    }
}
