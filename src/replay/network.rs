//! The network around a director in memory: its interfaces, who is next door, and where the rest of the world is.
//!
//! An interface is written as words with commas between:
//!
//! ```text
//! d0,mac=02:00:00:00:00:d0,mtu=1500,10.0.0.1/24,fd00:10::1/64,gateway=10.0.0.254@02:00:00:00:00:c0,neighbour=10.0.0.9@02:…
//! ```
//!
//! The name comes first; all else in any order, and only what is needed. An address brings its network, whose hosts are
//! neighbours; one without a known link address gets one made of its own last four bytes, `02:00:` in front.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use crate::control::config::INTERFACES_MAX;
use crate::control::registry::Routes;
use crate::packet::Mac;
use crate::table::{Interface, InterfaceId, LocalAddresses, NextHop, Reach};

/// A file of interfaces is at most this long.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Ethernet's.
const MTU_DEFAULT: u16 = 1500;
/// RFC 791 section 3.2: every IPv4 link carries that much.
const MTU_MIN: u16 = 68;

/// The machine of the recordings in `tests/kernel/packets.json`, as `how_to_apply` there describes it.
const RECORDED: &str = "\
d0,mac=02:00:00:00:00:d0,10.0.0.1/24,fd00:10::1/64,gateway=10.0.0.254@02:00:00:00:00:c0,gateway=fd00:10::fe@02:00:00:00:00:c0
d1,mac=02:00:00:00:00:d1,172.16.0.1/16,fd00:16::1/64,\
neighbour=172.16.0.11@02:00:00:00:00:a1,neighbour=172.16.0.12@02:00:00:00:00:a2,\
neighbour=172.16.0.13@02:00:00:00:00:a3,neighbour=172.16.0.14@02:00:00:00:00:a4,\
neighbour=fd00:16::11@02:00:00:00:00:a1,neighbour=fd00:16::12@02:00:00:00:00:a2,\
neighbour=fd00:16::13@02:00:00:00:00:a3,neighbour=fd00:16::14@02:00:00:00:00:a4
";
/// Its virtual addresses.
const RECORDED_VIPS: [&str; 2] = ["10.200.1.1", "fd00:200::1"];

/// One interface on whose link everybody is, with addresses for documentation (RFC 5737, RFC 3849).
const ONE_LINK: &str = "eth0,192.0.2.254/0,2001:db8::fe/0";

/// Interfaces, neighbours and gateways.
#[derive(Clone, Debug, Default)]
pub struct Network {
    interfaces: Vec<Interface>,
    /// Interfaces whose link address nobody said.
    without_mac: Vec<InterfaceId>,
    /// Our address, its prefix length in bits, and where.
    links: Vec<(IpAddr, u8, InterfaceId)>,
    neighbours: HashMap<IpAddr, (InterfaceId, Mac)>,
    gateways: Vec<(IpAddr, InterfaceId)>,
    vips: Vec<IpAddr>,
}

impl Network {
    /// The machine of the recorded cases.
    pub fn recorded() -> Network {
        let mut network = Network::parse(RECORDED).expect("the recorded machine is well described");
        network.vips = RECORDED_VIPS.map(|vip| vip.parse().expect("an address")).to_vec();
        network
    }

    /// One interface, `eth0`, with everybody on its link.
    pub fn one_link() -> Network {
        Network::parse(ONE_LINK).expect("one interface is well described")
    }

    /// From the arguments of `--interfaces`: each an interface, or a file with one a line.
    pub fn load(arguments: &[String]) -> Result<Network, String> {
        let mut text = String::new();
        for argument in arguments {
            let path = Path::new(argument);
            if !path.exists() {
                text.push_str(argument);
            } else {
                let wrong = |error: &dyn std::fmt::Display| format!("{argument}: {error}");
                let size = path.metadata().map_err(|error| wrong(&error))?.len();
                if size > FILE_BYTES_MAX {
                    return Err(wrong(&format!("{size} bytes are more than {FILE_BYTES_MAX}")));
                }
                text.push_str(&std::fs::read_to_string(path).map_err(|error| wrong(&error))?);
            }
            text.push('\n');
        }
        Network::parse(&text)
    }

    /// One interface a line; empty lines and those that begin with `#` say nothing.
    pub fn parse(text: &str) -> Result<Network, String> {
        let mut network = Network::default();
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            network
                .interface(line)
                .map_err(|reason| format!("interface `{line}': {reason}"))?;
        }
        match network.interfaces.len() {
            0 => Err("no interface is given".to_owned()),
            n if n > INTERFACES_MAX => Err(format!("{n} interfaces are more than {INTERFACES_MAX}")),
            _ => Ok(network),
        }
    }

    fn interface(&mut self, line: &str) -> Result<(), String> {
        let id = InterfaceId(u8::try_from(self.interfaces.len()).map_err(|_| "too many interfaces".to_owned())?);
        let mut words = line.split(',').map(str::trim).filter(|word| !word.is_empty());
        let name = words.next().unwrap_or_default();
        if name.len() > 15 || name.contains(['=', '/', ':', ' ']) {
            return Err(format!(
                "it begins with {name:?}, which is no interface name (1 to 15 bytes)"
            ));
        }
        if self.interfaces.iter().any(|interface| interface.name == name) {
            return Err("the name stands there twice".to_owned());
        }
        let mut interface = Interface {
            name: name.to_owned(),
            index: u32::from(id.0) + 1,
            mac: Mac([2, 0, 0, 0, 0, 0xd0 + id.0]),
            mtu: MTU_DEFAULT,
            addresses: Vec::new(),
        };
        let mut mac_said = false;
        for word in words {
            match word.split_once('=') {
                Some(("mac", value)) => {
                    interface.mac = mac(value)?;
                    mac_said = true;
                }
                Some(("mtu", value)) => {
                    let number = value.parse().ok().filter(|mtu| *mtu >= MTU_MIN);
                    interface.mtu = number.ok_or(format!("mtu: {value:?} is not {MTU_MIN} to 65535"))?;
                }
                Some(("neighbour", value)) => {
                    let (address, link) = value
                        .split_once('@')
                        .ok_or(format!("neighbour: {value:?} is not ADDRESS@MAC"))?;
                    self.neighbours.insert(ip(address)?, (id, mac(link)?));
                }
                Some(("gateway", value)) => {
                    let (address, link) = value.split_once('@').map_or((value, None), |(a, l)| (a, Some(l)));
                    let address = ip(address)?;
                    if let Some(link) = link {
                        self.neighbours.insert(address, (id, mac(link)?));
                    }
                    self.gateways.push((address, id));
                }
                Some((key, _)) => return Err(format!("{key:?} is none of mac, mtu, neighbour, gateway")),
                None => {
                    let (address, bits) = network_of(word)?;
                    interface.addresses.push(address);
                    self.links.push((address, bits, id));
                }
            }
        }
        if !mac_said {
            self.without_mac.push(id);
        }
        self.interfaces.push(interface);
        Ok(())
    }

    /// The interfaces.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// By name.
    pub fn named(&self, name: &str) -> Option<InterfaceId> {
        self.id_where(|interface| interface.name == name)
    }

    /// The one with this link address.
    pub fn with_mac(&self, mac: Mac) -> Option<InterfaceId> {
        self.id_where(|interface| interface.mac == mac)
    }

    fn id_where(&self, is_it: impl Fn(&Interface) -> bool) -> Option<InterfaceId> {
        self.interfaces.iter().position(is_it).map(|n| InterfaceId(n as u8))
    }

    /// Gives the first interface whose link address nobody said this one.
    pub fn learn_mac(&mut self, mac: Mac) {
        if !self.without_mac.is_empty() {
            let id = self.without_mac.remove(0);
            self.interfaces[id.0 as usize].mac = mac;
        }
    }

    /// The interface's MTU from now on.
    pub fn set_mtu(&mut self, id: InterfaceId, mtu: u16) {
        self.interfaces[id.0 as usize].mtu = mtu;
    }

    /// The address is the director's from now on.
    pub fn add_vip(&mut self, vip: IpAddr) {
        if !self.vips.contains(&vip) {
            self.vips.push(vip);
        }
    }

    /// All addresses of the director.
    pub fn local(&self) -> LocalAddresses {
        let own = self.interfaces.iter().flat_map(|interface| &interface.addresses);
        LocalAddresses::new(own.chain(&self.vips).copied(), [])
    }

    /// The longest network that the address is in: interface, and our address there.
    fn link_of(&self, address: IpAddr) -> Option<(InterfaceId, IpAddr)> {
        let within =
            |(ours, bits, _): &&(IpAddr, u8, InterfaceId)| LocalAddresses::new([], [(*ours, *bits)]).contains(&address);
        let links = self.links.iter().filter(within);
        links.max_by_key(|(_, bits, _)| *bits).map(|(ours, _, id)| (*id, *ours))
    }

    fn hop(&self, id: InterfaceId, neighbour: IpAddr) -> NextHop {
        let interface = &self.interfaces[id.0 as usize];
        let destination = match self.neighbours.get(&neighbour) {
            Some((_, mac)) => *mac,
            None => made_up_mac(neighbour),
        };
        NextHop {
            interface: id,
            source: interface.mac,
            destination,
            mtu: interface.mtu,
        }
    }
}

impl Routes for Network {
    fn reach(&mut self, destination: IpAddr) -> Reach {
        let ours = self.interfaces.iter().flat_map(|interface| &interface.addresses);
        if ours.chain(&self.vips).any(|address| *address == destination) {
            return Reach::Local;
        }
        if let Some((id, source)) = self.link_of(destination) {
            let hop = self.hop(id, destination);
            return Reach::Hop { hop, source };
        }
        let of_family = |(gateway, _): &&(IpAddr, InterfaceId)| gateway.is_ipv4() == destination.is_ipv4();
        let Some(&(gateway, id)) = self.gateways.iter().find(of_family) else {
            return Reach::Unreachable;
        };
        let own = &self.interfaces[id.0 as usize].addresses;
        match own.iter().find(|address| address.is_ipv4() == destination.is_ipv4()) {
            Some(source) => Reach::Hop {
                hop: self.hop(id, gateway),
                source: *source,
            },
            None => Reach::Unreachable,
        }
    }
}

fn made_up_mac(address: IpAddr) -> Mac {
    let last = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => (v6.to_bits() as u32).to_be_bytes(),
    };
    let [a, b, c, d] = last;
    Mac([2, 0, a, b, c, d])
}

fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is no address"))
}

fn network_of(text: &str) -> Result<(IpAddr, u8), String> {
    let wrong = || format!("{text:?} is not ADDRESS/BITS, such as 192.0.2.1/24");
    let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
    let address = ip(address)?;
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.parse().ok().filter(|bits| *bits <= bits_max).ok_or_else(wrong)?;
    Ok((address, bits))
}

fn mac(text: &str) -> Result<Mac, String> {
    let wrong = || format!("{text:?} is no link address, such as 02:00:00:00:00:d0");
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| (1..=2).contains(&part.len()));
        *byte = part
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or_else(wrong)?;
    }
    match parts.next() {
        None => Ok(Mac(bytes)),
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(network: &mut Network, address: &str) -> Reach {
        network.reach(address.parse().unwrap())
    }

    #[test]
    fn the_nearest_way_is_taken() {
        let mut network = Network::recorded();
        let Reach::Hop { hop, source } = reach(&mut network, "fd00:16::12") else {
            panic!()
        };
        assert_eq!(
            (hop.interface.0, hop.source.0[5], hop.destination.0[5], hop.mtu),
            (1, 0xd1, 0xa2, 1500)
        );
        assert_eq!(source.to_string(), "fd00:16::1");
        let Reach::Hop { hop, source } = reach(&mut network, "203.0.113.9") else {
            panic!()
        };
        assert_eq!((hop.interface.0, hop.destination.0[5]), (0, 0xc0), "by the gateway");
        assert_eq!(source.to_string(), "10.0.0.1");
        let Reach::Hop { hop, .. } = reach(&mut network, "172.16.1.2") else {
            panic!()
        };
        assert_eq!(
            hop.destination,
            Mac([2, 0, 172, 16, 1, 2]),
            "a neighbour nobody described"
        );
        assert_eq!(reach(&mut network, "10.200.1.1"), Reach::Local);
        let mut small = Network::parse("eth0,10.0.0.1/24").unwrap();
        assert_eq!(reach(&mut small, "10.0.1.1"), Reach::Unreachable);
        assert_eq!(reach(&mut small, "::2"), Reach::Unreachable);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("", "no interface is given"),
            (
                "mac=02:00:00:00:00:01",
                "interface `mac=02:00:00:00:00:01': it begins with \"mac=02:00:00:00:00:01\"",
            ),
            ("a,mac=02:00:00:00:00", "\"02:00:00:00:00\" is no link address"),
            ("a,mac=02:00:00:00:00:00:01", "is no link address"),
            ("a,mtu=67", "mtu: \"67\" is not 68 to 65535"),
            ("a,10.0.0.1", "\"10.0.0.1\" is not ADDRESS/BITS"),
            ("a,10.0.0.1/33", "is not ADDRESS/BITS"),
            ("a,neighbour=10.0.0.1", "neighbour: \"10.0.0.1\" is not ADDRESS@MAC"),
            ("a,gateway=nowhere", "\"nowhere\" is no address"),
            ("a,speed=10", "\"speed\" is none of mac, mtu, neighbour, gateway"),
            ("a\na", "the name stands there twice"),
        ] {
            let error = Network::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let many: String = (0..17).map(|n| format!("e{n}\n")).collect();
        assert_eq!(Network::parse(&many).unwrap_err(), "17 interfaces are more than 16");
    }
}
