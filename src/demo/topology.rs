//! The scenarios' networks, IPv4 and IPv6 side by side, with addresses of the documents.
//!
//! ```text
//! OneSegment (S0a, S2, S3: direct routing, tunnel, one-armed NAT)
//!
//!   client            director         server3        server4  …
//!   172.25.7.250      172.25.7.2       172.25.7.3     172.25.7.4
//!   172.25.254.250    + VIPs
//!      └────────────────┴────────────────┴──────────────┘  fd00:7::/64, fd00:254::/64
//!
//! TwoArmed (S0b: NAT)
//!
//!   client ── 10.0.0.0/24 ── director ── 192.168.0.0/24 ── server1, server2 …
//!   .250                .1 eth0   eth1 .1                .11, .12 …
//!
//! Gateway (tunnel and NAT to servers behind a router)
//!
//!   client, director ── 172.25.7.0/24 ── router ── 172.25.8.0/24 ── server3, server4 …
//!                                        .254   .254
//! ```
//! IPv6 addresses have the last group of the IPv4 ones, written the same: 172.25.7.200 and fd00:7::200.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cluster::{Attachment, Cluster, Error, Host, Segment};
use crate::io::netlink::Route;
use crate::packet::Family;
use crate::service::Method;

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All on one segment.
    OneSegment,
    /// The director between clients and servers.
    TwoArmed,
    /// Servers behind a router.
    Gateway,
}

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which network.
    pub layout: Layout,
    /// Real servers, 1 to 90.
    pub servers: u8,
    /// Queues of the director's interfaces.
    pub queues: u32,
    /// Largest IP packet, on every interface.
    pub mtu: u32,
}

impl Plan {
    /// Two servers, one queue, 1500 bytes.
    pub fn new(layout: Layout) -> Plan {
        Plan {
            layout,
            servers: 2,
            queues: 1,
            mtu: 1500,
        }
    }
}

/// A network as planned, without a daemon yet.
pub struct Topology {
    /// Names and files.
    pub cluster: Cluster,
    /// Where requests come from.
    pub client: Host,
    /// Where `uvs run` goes.
    pub director: Host,
    /// Real servers, in the order of their addresses.
    pub servers: Vec<Host>,
    /// Between director and servers, if planned.
    pub router: Option<Host>,
    /// The switches: clients' first, then servers'.
    pub segments: Vec<Segment>,
    plan: Plan,
}

/// A network: the first 24 bits, and the first 64.
#[derive(Clone, Copy)]
struct Net {
    v4: [u8; 3],
    v6: [u16; 2],
}

const LAN: Net = Net {
    v4: [172, 25, 7],
    v6: [0xfd00, 0x7],
};
const NAT_CLIENTS: Net = Net {
    v4: [172, 25, 254],
    v6: [0xfd00, 0x254],
};
const BEHIND: Net = Net {
    v4: [172, 25, 8],
    v6: [0xfd00, 0x8],
};
const PUBLIC: Net = Net {
    v4: [10, 0, 0],
    v6: [0xfd00, 0x10],
};
const PRIVATE: Net = Net {
    v4: [192, 168, 0],
    v6: [0xfd00, 0x192],
};

const CLIENT: u8 = 250;
const ROUTER: u8 = 254;

impl Net {
    /// The address of a host; IPv6 writes the number with the same digits.
    fn address(self, family: Family, host: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(self.v4[0], self.v4[1], self.v4[2], host).into(),
            Family::V6 => {
                let digits = u16::from(host / 100) << 8 | u16::from(host / 10 % 10) << 4 | u16::from(host % 10);
                Ipv6Addr::new(self.v6[0], self.v6[1], 0, 0, 0, 0, 0, digits).into()
            }
        }
    }

    /// Both addresses of a host, with the bits of their networks.
    fn both(self, host: u8) -> [(IpAddr, u8); 2] {
        [
            (self.address(Family::V4, host), 24),
            (self.address(Family::V6, host), 64),
        ]
    }
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Topology {
    /// Builds the network; `label` tells it from others of this process. Needs root.
    pub fn build(label: &str, plan: Plan) -> Result<Topology, Error> {
        if !(1..=90).contains(&plan.servers) {
            return Err(Error::Wrong(format!("{} servers: 1 to 90 are possible", plan.servers)));
        }
        let cluster = Cluster::new(label)?;
        let mut topology = Topology {
            client: cluster.host("client")?,
            director: cluster.host("director")?,
            servers: Vec::new(),
            router: None,
            segments: vec![cluster.segment("switch")?],
            cluster,
            plan,
        };
        topology.director_settings()?;
        match plan.layout {
            Layout::OneSegment => topology.one_segment()?,
            Layout::TwoArmed => topology.two_armed()?,
            Layout::Gateway => topology.gateway()?,
        }
        Ok(topology)
    }

    /// The director's interfaces.
    pub fn director_interfaces(&self) -> &'static [&'static str] {
        match self.plan.layout {
            Layout::OneSegment | Layout::Gateway => &["eth0"],
            Layout::TwoArmed => &["eth0", "eth1"],
        }
    }

    /// The virtual address of a method, as scenario S3 (or S0b) has it.
    pub fn vip(&self, method: Method, family: Family) -> IpAddr {
        match (self.plan.layout, method) {
            (Layout::TwoArmed, _) => PUBLIC.address(family, 100),
            (_, Method::Masq) => NAT_CLIENTS.address(family, 100),
            (_, Method::Tunnel) => LAN.address(family, 100),
            (_, Method::Route) => LAN.address(family, 200),
        }
    }

    /// Address of real server `n`, counted from 0.
    pub fn server_address(&self, n: usize, family: Family) -> IpAddr {
        let (net, host) = self.server_host(n);
        net.address(family, host)
    }

    /// Address of the client that requests to that method's VIP come from.
    pub fn client_address(&self, method: Method, family: Family) -> IpAddr {
        let net = match (self.plan.layout, method) {
            (Layout::TwoArmed, _) => PUBLIC,
            (_, Method::Masq) => NAT_CLIENTS,
            (_, Method::Tunnel | Method::Route) => LAN,
        };
        net.address(family, CLIENT)
    }

    /// The VIP of a method on the director, and on the real servers where the method needs it there.
    pub fn set_up_vip(&mut self, method: Method, family: Family) -> Result<(), Error> {
        let vip = self.vip(method, family);
        // The network of the clients hangs on the NAT VIP in S3a; the others are single addresses.
        let network_bits = if family == Family::V4 { 24 } else { 64 };
        let single = if family == Family::V4 { 32 } else { 128 };
        let prefix_len = if method == Method::Masq { network_bits } else { single };
        self.director.add_address("eth0", vip, prefix_len)?;
        if method != Method::Masq {
            for server in &mut self.servers {
                server.add_vip_on_loopback(vip)?;
            }
        }
        Ok(())
    }

    /// Position and network of a server: S3 begins at .3, S0b at .11.
    fn server_host(&self, n: usize) -> (Net, u8) {
        let n = n as u8;
        match self.plan.layout {
            Layout::OneSegment => (LAN, 3 + n),
            Layout::TwoArmed => (PRIVATE, 11 + n),
            Layout::Gateway => (BEHIND, 3 + n),
        }
    }

    fn director_settings(&mut self) -> Result<(), Error> {
        // As the documents have it. Redirects would teach one-armed servers to go round the director.
        for (setting, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
        ] {
            self.director.set_sysctl(setting, value)?;
        }
        Ok(())
    }

    fn one_segment(&mut self) -> Result<(), Error> {
        let client: Vec<_> = LAN.both(CLIENT).into_iter().chain(NAT_CLIENTS.both(CLIENT)).collect();
        self.attach_client(&client)?;
        self.attach_director(0, "eth0", &LAN.both(2))?;
        self.attach_servers(0, LAN, 2)
    }

    fn two_armed(&mut self) -> Result<(), Error> {
        self.segments.push(self.cluster.segment("switch2")?);
        self.attach_client(&PUBLIC.both(CLIENT))?;
        self.attach_director(0, "eth0", &PUBLIC.both(1))?;
        self.attach_director(1, "eth1", &PRIVATE.both(1))?;
        self.attach_servers(1, PRIVATE, 1)
    }

    fn gateway(&mut self) -> Result<(), Error> {
        self.segments.push(self.cluster.segment("switch2")?);
        let client: Vec<_> = LAN.both(CLIENT).into_iter().chain(NAT_CLIENTS.both(CLIENT)).collect();
        self.attach_client(&client)?;
        self.attach_director(0, "eth0", &LAN.both(2))?;
        let mut router = self.cluster.host("router")?;
        for (setting, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
        ] {
            router.set_sysctl(setting, value)?;
        }
        for (segment, interface, net) in [(0, "eth0", LAN), (1, "eth1", BEHIND)] {
            let attachment = Attachment {
                interface,
                addresses: &net.both(ROUTER),
                queues: 1,
                mtu: self.plan.mtu,
            };
            self.segments[segment].attach(&mut router, &attachment)?;
        }
        for family in FAMILIES {
            // Replies to clients of the NAT VIP go back through the director; others are on the router's own segment.
            router.add_route(&Route::default_via(LAN.address(family, 2)))?;
            let bits = if family == Family::V4 { 24 } else { 64 };
            let behind = Route::via(BEHIND.address(family, 0), bits, LAN.address(family, ROUTER));
            self.director.add_route(&behind)?;
        }
        self.router = Some(router);
        self.attach_servers(1, BEHIND, ROUTER)
    }

    fn attach_client(&mut self, addresses: &[(IpAddr, u8)]) -> Result<(), Error> {
        let attachment = Attachment {
            interface: "eth0",
            addresses,
            queues: 1,
            mtu: self.plan.mtu,
        };
        self.segments[0].attach(&mut self.client, &attachment).map(drop)
    }

    fn attach_director(&mut self, segment: usize, interface: &str, addresses: &[(IpAddr, u8)]) -> Result<(), Error> {
        let attachment = Attachment {
            interface,
            addresses,
            queues: self.plan.queues,
            mtu: self.plan.mtu,
        };
        self.segments[segment].attach(&mut self.director, &attachment).map(drop)
    }

    /// Makes the servers, with `gateway` of their network as default route.
    fn attach_servers(&mut self, segment: usize, net: Net, gateway: u8) -> Result<(), Error> {
        for n in 0..usize::from(self.plan.servers) {
            let (_, host) = self.server_host(n);
            let number = if self.plan.layout == Layout::TwoArmed {
                host - 10
            } else {
                host
            };
            let mut server = self.cluster.host(&format!("server{number}"))?;
            let attachment = Attachment {
                interface: "eth0",
                addresses: &net.both(host),
                queues: 1,
                mtu: self.plan.mtu,
            };
            self.segments[segment].attach(&mut server, &attachment)?;
            for family in FAMILIES {
                server.add_route(&Route::default_via(net.address(family, gateway)))?;
            }
            self.servers.push(server);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
