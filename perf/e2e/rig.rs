//! One peer with its own client, director and server, all there at the same time as the other peers', so that runs
//! can take turns.
//!
//! ```text
//!            10.16.0.0/16                 10.48.0.0/24
//!   client ───────────────── director ───────────────── server
//!   eth0 .0.250    clients .0.251   servers .1      eth0 .11, .12 …
//!     └──────────────────── 10.64.0.0/24 ────────────────┘
//!   eth1 .1              (direct path)              eth1 .2
//! ```
//! Links are veth pairs without a switch, so that nothing but the peer is between client and server. Neighbours are
//! permanent: no ARP while it is measured.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use uvs::demo::cluster::{Cluster, Error, Host};
use uvs::demo::director::Director;
use uvs::io::ethtool::{self, Offload};
use uvs::io::netlink::{Route, VethEnd};
use uvs::io::process::Process;
use uvs::packet::Mac;

/// The virtual address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 32, 0, 1);
/// Where the direct path leads.
pub const DIRECT: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 2);
/// Where the web servers listen.
pub const WEB: u16 = 80;
/// Where iperf3 listens.
pub const BULK: u16 = 5201;
/// Where datagrams go; the sink takes them before anybody could listen.
pub const DATAGRAMS: u16 = 9;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 16, 0, 250);
const TO_CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 16, 0, 251);
const TO_SERVERS: Ipv4Addr = Ipv4Addr::new(10, 48, 0, 1);

/// Link addresses: of the client, the director's two interfaces, and the server.
pub const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xc0]);
pub const CLIENTS_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xd0]);
pub const SERVERS_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xd1]);
pub const SERVER_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xe0]);

/// Address of real server `n`.
pub fn server_address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 48, 0, 11 + n as u8)
}

/// What stands between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Nothing: frames are dropped where they reach the director. What all others are measured above.
    Base,
    /// Nothing: the link from client to server.
    Direct,
    /// The kernel routes; the server has the VIP.
    Kernel,
    /// The kernel's NAT.
    Nft,
    /// haproxy in TCP mode.
    Haproxy,
    /// nginx's stream module.
    NginxStream,
    /// Takes frames as uvs does, and changes link addresses only.
    Bare(&'static str),
    /// The bare forwarder, by `xdp`, with the least that a director does to a frame (NAT to one server).
    Least,
    /// uvs with a driver, by NAT.
    Uvs(&'static str),
    /// uvs with a driver, by direct routing.
    UvsDr(&'static str),
}

impl Peer {
    /// As the tables have it.
    pub fn name(self) -> String {
        match self {
            Peer::Base => "base (dropped on arrival)".into(),
            Peer::Direct => "direct path".into(),
            Peer::Kernel => "kernel forwarding".into(),
            Peer::Nft => "nft DNAT".into(),
            Peer::Haproxy => "haproxy TCP".into(),
            Peer::NginxStream => "nginx stream".into(),
            Peer::Bare(driver) => format!("bare forwarder, {driver}"),
            Peer::Least => "least director, xdp".into(),
            Peer::Uvs(driver) => format!("uvs NAT, {driver}"),
            Peer::UvsDr(driver) => format!("uvs DR, {driver}"),
        }
    }

    /// Why it cannot run here.
    pub fn missing(self) -> Option<String> {
        let program = match self {
            Peer::Nft => "nft",
            Peer::Haproxy => "haproxy",
            Peer::NginxStream => "nginx",
            _ => return None,
        };
        if which(program).is_none() {
            return Some(format!("{program} is not installed"));
        }
        (self == Peer::NginxStream && !Path::new(crate::peers::STREAM_MODULE).exists())
            .then(|| "nginx has no stream module (libnginx-mod-stream)".to_owned())
    }

    fn needs_vip_at_server(self) -> bool {
        matches!(self, Peer::Kernel | Peer::Bare(_) | Peer::UvsDr(_))
    }

    /// Letters for the names of namespaces.
    fn label(self) -> String {
        match self {
            Peer::Base => "base".into(),
            Peer::Direct => "direct".into(),
            Peer::Kernel => "kernel".into(),
            Peer::Nft => "nft".into(),
            Peer::Haproxy => "haproxy".into(),
            Peer::NginxStream => "stream".into(),
            Peer::Bare(driver) => format!("bare-{driver}"),
            Peer::Least => "least".into(),
            Peer::Uvs(driver) => format!("nat-{driver}"),
            Peer::UvsDr(driver) => format!("dr-{driver}"),
        }
    }
}

/// The path of a program, if it is installed.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(sbin)
        .map(|folder| folder.join(program));
    found.into_iter().find(|file| file.is_file())
}

/// What a row wants of its rigs.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The program `uvs`.
    pub uvs: &'a Path,
    /// Real servers; all addresses of one host.
    pub servers: usize,
    /// `--connections` of uvs.
    pub connections: u32,
    /// Whether interfaces of client and server keep their offloads.
    pub offloads: bool,
    /// Whether GRO is switched on where a director without XDP receives: live frames need it to arrive.
    pub live_frames: bool,
}

impl<'a> Wanted<'a> {
    /// One server, the defaults of everything.
    pub fn new(uvs: &'a Path) -> Wanted<'a> {
        Wanted {
            uvs,
            servers: 1,
            connections: 100_000,
            offloads: true,
            live_frames: false,
        }
    }
}

/// A peer at work.
pub struct Rig {
    // Dropped in this order: processes before the namespaces they are in.
    pub(crate) programs: Vec<Process>,
    pub(crate) director_process: Option<Process>,
    pub(crate) uvs: Option<Director>,
    pub peer: Peer,
    pub client: Host,
    pub director: Host,
    pub server: Host,
    pub servers: usize,
    pub(crate) cluster: Cluster,
}

impl Rig {
    /// Builds the three hosts and starts the peer, on the CPU of directors.
    pub fn build(label: &str, peer: Peer, wanted: &Wanted<'_>) -> Result<Rig, Error> {
        let cluster = Cluster::new(&format!("{label}-{}", peer.label()))?;
        let mut rig = Rig {
            programs: Vec::new(),
            director_process: None,
            uvs: None,
            peer,
            client: cluster.host("client")?,
            director: cluster.host("director")?,
            server: cluster.host("server")?,
            servers: wanted.servers,
            cluster,
        };
        rig.link()?;
        rig.address()?;
        if !wanted.offloads {
            rig.client.set_offloads("eth0", false)?;
            rig.server.set_offloads("eth0", false)?;
        }
        let xdp = matches!(
            peer,
            Peer::Base | Peer::Bare("xdp") | Peer::Least | Peer::Uvs("xdp") | Peer::UvsDr("xdp")
        );
        if wanted.live_frames && !xdp {
            let gro = || ethtool::set_offload("clients", Offload::Gro, true);
            rig.director
                .namespace()
                .run(gro)?
                .map_err(Error::io("switch GRO on at the director"))?;
        }
        rig.start(wanted)?;
        Ok(rig)
    }

    /// A folder on tmpfs.
    pub fn directory(&self) -> &Path {
        self.cluster.directory()
    }

    /// What a client connects to.
    pub fn target(&self) -> Ipv4Addr {
        if self.peer == Peer::Direct { DIRECT } else { VIP }
    }

    /// The director, where it is uvs.
    pub fn uvs(&self) -> Result<&Director, Error> {
        self.uvs
            .as_ref()
            .ok_or_else(|| Error::Wrong(format!("{} is not uvs", self.peer.name())))
    }

    /// The process of the director, where it has one.
    pub fn director_pid(&mut self) -> Option<u32> {
        match (&mut self.uvs, &self.director_process) {
            (Some(uvs), _) => Some(uvs.process().id()),
            (None, process) => process.as_ref().map(Process::id),
        }
    }

    /// A program on a host, pinned to a CPU.
    pub fn pinned(host: &Host, cpu: usize, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, Error> {
        let mut command = host.command("taskset")?;
        command.arg("-c").arg(cpu.to_string()).arg(program);
        Ok(command)
    }

    /// Keeps a program until the rig goes.
    pub fn keep(&mut self, process: Process) {
        self.programs.push(process);
    }

    fn link(&mut self) -> Result<(), Error> {
        let pairs = [
            (&self.client, "eth0", CLIENT_MAC, &self.director, "clients", CLIENTS_MAC),
            (&self.director, "servers", SERVERS_MAC, &self.server, "eth0", SERVER_MAC),
            (
                &self.client,
                "eth1",
                Mac([2, 0, 0, 0, 1, 0xc0]),
                &self.server,
                "eth1",
                Mac([2, 0, 0, 0, 1, 0xe0]),
            ),
        ];
        let mut netlink = uvs::io::netlink::Netlink::open_in(self.client.namespace()).map_err(wrong)?;
        for (left, left_name, left_mac, right, right_name, right_mac) in pairs {
            let ends = [
                VethEnd {
                    name: left_name,
                    namespace: Some(left.namespace()),
                    mac: Some(left_mac),
                },
                VethEnd {
                    name: right_name,
                    namespace: Some(right.namespace()),
                    mac: Some(right_mac),
                },
            ];
            netlink.create_veth(ends, 1).map_err(wrong)?;
        }
        for (host, names) in [
            (&mut self.client, ["eth0", "eth1"]),
            (&mut self.director, ["clients", "servers"]),
            (&mut self.server, ["eth0", "eth1"]),
        ] {
            names.iter().try_for_each(|name| host.set_up(name, true))?;
        }
        for (host, names) in [
            (&mut self.client, ["eth0", "eth1"]),
            (&mut self.director, ["clients", "servers"]),
            (&mut self.server, ["eth0", "eth1"]),
        ] {
            for name in names {
                let index = host.link(name)?.index;
                host.netlink()
                    .wait_running(index, Duration::from_secs(5))
                    .map_err(wrong)?;
            }
        }
        Ok(())
    }

    fn address(&mut self) -> Result<(), Error> {
        let vip = IpAddr::from(VIP);
        for host in [&mut self.client, &mut self.director, &mut self.server] {
            // iperf3 sets what `-C` says on a connection that has begun: of BBR, where that is the machine's default, the pacing
            // would stay. A namespace may always have Reno; Cubic the kernel may refuse.
            host.set_sysctl("net.ipv4.tcp_congestion_control", "reno")?;
        }
        self.client.add_address("eth0", CLIENT.into(), 16)?;
        self.client
            .add_address("eth1", Ipv4Addr::new(10, 64, 0, 1).into(), 24)?;
        self.client.add_route(&Route::via(vip, 32, TO_CLIENTS.into()))?;
        self.client.set_sysctl("net.ipv4.ip_local_port_range", "1024 65000")?;
        self.director.add_address("clients", TO_CLIENTS.into(), 16)?;
        self.director.add_address("servers", TO_SERVERS.into(), 24)?;
        self.server.add_address("eth1", DIRECT.into(), 24)?;
        for n in 0..self.servers {
            self.server.add_address("eth0", server_address(n).into(), 24)?;
        }
        if matches!(self.peer, Peer::UvsDr(_)) {
            self.server.add_route(&Route::via(
                Ipv4Addr::new(10, 16, 0, 0).into(),
                16,
                Ipv4Addr::new(10, 64, 0, 1).into(),
            ))?;
        } else {
            self.server.add_route(&Route::default_via(TO_SERVERS.into()))?;
        }
        if self.peer.needs_vip_at_server() {
            self.server.add_vip_on_loopback(vip)?;
        }
        match self.peer {
            Peer::Kernel => self
                .director
                .add_route(&Route::via(vip, 32, server_address(0).into()))?,
            Peer::Base | Peer::Direct | Peer::Bare(_) | Peer::Least => {}
            _ => self.director.add_address("clients", vip, 32)?,
        }
        let routes = !matches!(self.peer, Peer::Base | Peer::Bare(_) | Peer::Least);
        self.director
            .set_sysctl("net.ipv4.ip_forward", if routes { "1" } else { "0" })?;
        self.server.set_sysctl("net.core.somaxconn", "16384")?;
        self.neighbours()
    }

    fn neighbours(&mut self) -> Result<(), Error> {
        let servers: Vec<_> = (0..self.servers).map(server_address).collect();
        let permanent = |host: &mut Host, interface: &str, addresses: &[Ipv4Addr], mac| {
            let index = host.link(interface)?.index;
            let mut add = |address: &Ipv4Addr| host.netlink().add_neighbour(index, (*address).into(), mac);
            addresses.iter().try_for_each(&mut add).map_err(wrong)
        };
        permanent(&mut self.client, "eth0", &[TO_CLIENTS], CLIENTS_MAC)?;
        permanent(&mut self.director, "clients", &[CLIENT], CLIENT_MAC)?;
        permanent(&mut self.director, "servers", &servers, SERVER_MAC)?;
        permanent(&mut self.server, "eth0", &[TO_SERVERS], SERVERS_MAC)
    }
}

/// Runs a command to its good end and returns what it prints.
pub fn run(command: &mut Command) -> Result<String, Error> {
    let what = format!("{command:?}");
    let output = command.output().map_err(Error::io(what.clone()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let also = String::from_utf8_lossy(&output.stdout);
    Err(Error::Wrong(format!(
        "{what}: {}: {}{}",
        output.status,
        said.trim_end(),
        also.trim_end()
    )))
}

/// Any other error, as text.
pub fn wrong(error: impl std::fmt::Display) -> Error {
    Error::Wrong(error.to_string())
}
