//! Hosts and network segments, made of network namespaces and veth pairs by netlink alone.
//!
//! A [`Host`] is a namespace with an interface or more; a [`Segment`] is a bridge in a namespace of its own, with one
//! port a host, as a switch is. A [`Cluster`] names them, `uvs-PID-LABEL-NAME`, and has a folder for the files of
//! its daemons. Each is taken away when dropped; what a killed process left is taken away by the next
//! [`Cluster::new`].

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::io::ethtool::{self, Offload};
use crate::io::netlink::{self, Link, Netlink, Route, VethEnd};
use crate::io::netns::{self, Namespace};
use crate::packet::Mac;

/// What all names of ours begin with.
const PREFIX: &str = "uvs-";

/// How long a new interface may take until it carries frames; usually milliseconds.
const RUNNING_MAX: Duration = Duration::from_secs(5);

/// Where the folders go: always a tmpfs, which connection entries need.
const SHARED_MEMORY: &str = "/dev/shm";

/// Why a cluster could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces need root.
    #[error("needs root: network namespaces are made with CAP_SYS_ADMIN and CAP_NET_ADMIN")]
    NotRoot,
    /// A namespace.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    /// A link, address or route.
    #[error("in namespace {namespace}: {source}")]
    Netlink {
        /// Where.
        namespace: String,
        /// What.
        source: netlink::Error,
    },
    /// A file, process or socket.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What went wrong.
        source: io::Error,
    },
    /// Something did not come out as it should.
    #[error("{0}")]
    Wrong(String),
}

impl Error {
    /// For `map_err` on I/O results.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let action = action.into();
        move |source| Error::Io { action, source }
    }
}

/// Names and files of one cluster.
#[derive(Debug)]
pub struct Cluster {
    prefix: String,
    directory: PathBuf,
}

impl Cluster {
    /// Begins a cluster. `label` tells it from others of this process.
    pub fn new(label: &str) -> Result<Cluster, Error> {
        if !netns::is_root() {
            return Err(Error::NotRoot);
        }
        sweep();
        let prefix = format!("{PREFIX}{}-{label}", std::process::id());
        let directory = Path::new(SHARED_MEMORY).join(&prefix);
        fs::create_dir(&directory).map_err(Error::io(format!("create {}", directory.display())))?;
        Ok(Cluster { prefix, directory })
    }

    /// A folder on tmpfs for the cluster's files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the names of its namespaces begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A new host with only `lo`, which is up.
    pub fn host(&self, name: &str) -> Result<Host, Error> {
        let namespace = Namespace::create(&format!("{}-{name}", self.prefix))?;
        let netlink = Netlink::open_in(&namespace).map_err(in_namespace(&namespace))?;
        let mut host = Host {
            name: name.to_owned(),
            namespace,
            netlink,
        };
        // The host's own settings may be inherited; ours are the same everywhere. Without duplicate address
        // detection link-local addresses are usable at once, not after two seconds.
        for (setting, value) in [
            ("net.ipv6.conf.all.disable_ipv6", "0"),
            ("net.ipv6.conf.default.disable_ipv6", "0"),
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.default.accept_ra", "0"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
        ] {
            host.set_sysctl(setting, value)?;
        }
        host.set_up("lo", true)?;
        Ok(host)
    }

    /// A new segment without hosts.
    pub fn segment(&self, name: &str) -> Result<Segment, Error> {
        let mut switch = self.host(name)?;
        let namespace = switch.namespace.name().to_owned();
        let failed = |source| Error::Netlink { namespace, source };
        let bridge = switch
            .netlink
            .create_bridge("bridge")
            .and_then(|()| switch.netlink.link("bridge"));
        let bridge = bridge.map_err(failed)?.index;
        switch.set_sysctl("net.ipv6.conf.bridge.disable_ipv6", "1")?;
        switch.set_up("bridge", true)?;
        Ok(Segment {
            switch,
            bridge,
            hosts: 0,
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            log::warn!("remove {}: {error}", self.directory.display());
        }
    }
}

/// A switch.
pub struct Segment {
    switch: Host,
    bridge: u32,
    hosts: u8,
}

/// How a host is attached.
#[derive(Clone, Debug)]
pub struct Attachment<'a> {
    /// Name of the interface in the host.
    pub interface: &'a str,
    /// Addresses with the bits of their networks.
    pub addresses: &'a [(IpAddr, u8)],
    /// Receive and transmit queues.
    pub queues: u32,
    /// Largest IP packet.
    pub mtu: u32,
}

impl Segment {
    /// Attaches a host with a new interface, which is up when this returns.
    pub fn attach(&mut self, host: &mut Host, attachment: &Attachment<'_>) -> Result<Link, Error> {
        let Attachment {
            interface, queues, mtu, ..
        } = *attachment;
        self.hosts += 1;
        let port_name = format!("port{}", self.hosts);
        let ends = [
            VethEnd {
                name: &port_name,
                namespace: None,
                mac: None,
            },
            VethEnd {
                name: interface,
                namespace: Some(&host.namespace),
                mac: Some(mac_of(&host.name, self.hosts)),
            },
        ];
        let port = (|| {
            let netlink = &mut self.switch.netlink;
            netlink.create_veth(ends, queues)?;
            let port = netlink.link(&port_name)?.index;
            netlink.set_mtu(port, mtu)?;
            netlink.set_controller(port, Some(self.bridge))?;
            Ok(port)
        })()
        .map_err(in_namespace(&self.switch.namespace))?;
        self.switch
            .set_sysctl(&format!("net.ipv6.conf.{port_name}.disable_ipv6"), "1")?;
        let link = host.link(interface)?;
        let in_host = in_namespace(&host.namespace);
        host.netlink.set_mtu(link.index, mtu).map_err(in_host)?;
        host.set_up(interface, true)?;
        self.switch.set_up(&port_name, true)?;
        host.wait_running(link.index)?;
        self.switch.wait_running(port)?;
        for (address, prefix_len) in attachment.addresses {
            host.add_address(interface, *address, *prefix_len)?;
        }
        host.link(interface)
    }

    /// The namespace of the switch, for frames that come from nowhere.
    pub fn switch(&mut self) -> &mut Host {
        &mut self.switch
    }
}

/// A link address that tells hosts apart in a capture: the number of the port last, the beginning of the name before.
fn mac_of(name: &str, port: u8) -> Mac {
    let byte = |n: usize| name.as_bytes().get(n).copied().unwrap_or(0);
    Mac([2, 0, byte(0), byte(1), byte(name.len().saturating_sub(1)), port])
}

/// A host: a network namespace.
pub struct Host {
    name: String,
    namespace: Namespace,
    netlink: Netlink,
}

impl Host {
    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A netlink socket there.
    pub fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// One of its interfaces.
    pub fn link(&mut self, interface: &str) -> Result<Link, Error> {
        self.netlink.link(interface).map_err(in_namespace(&self.namespace))
    }

    /// Sets an interface up or down.
    pub fn set_up(&mut self, interface: &str, up: bool) -> Result<(), Error> {
        let link = self.link(interface)?.index;
        self.netlink.set_up(link, up).map_err(in_namespace(&self.namespace))
    }

    /// Waits until an interface that is up carries frames.
    fn wait_running(&mut self, link: u32) -> Result<(), Error> {
        let failed = in_namespace(&self.namespace);
        if self.netlink.wait_running(link, RUNNING_MAX).map_err(failed)? {
            return Ok(());
        }
        let namespace = self.namespace.name();
        Err(Error::Wrong(format!(
            "interface {link} in namespace {namespace} gets no carrier"
        )))
    }

    /// Adds an address.
    pub fn add_address(&mut self, interface: &str, address: IpAddr, prefix_len: u8) -> Result<(), Error> {
        let link = self.link(interface)?.index;
        self.netlink
            .add_address(link, address, prefix_len)
            .map_err(in_namespace(&self.namespace))
    }

    /// Takes an address away.
    pub fn delete_address(&mut self, interface: &str, address: IpAddr, prefix_len: u8) -> Result<(), Error> {
        let link = self.link(interface)?.index;
        self.netlink
            .delete_address(link, address, prefix_len)
            .map_err(in_namespace(&self.namespace))
    }

    /// Adds a route.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        self.netlink.add_route(route).map_err(in_namespace(&self.namespace))
    }

    /// Sets a sysctl.
    pub fn set_sysctl(&mut self, name: &str, value: &str) -> Result<(), Error> {
        Ok(self.namespace.set_sysctl(name, value)?)
    }

    /// Switches every offload of an interface on or off.
    pub fn set_offloads(&mut self, interface: &str, on: bool) -> Result<(), Error> {
        let work = || {
            Offload::ALL
                .into_iter()
                .try_for_each(|offload| ethtool::set_offload(interface, offload, on))
        };
        let action = format!("set the offloads of {interface} in namespace {}", self.namespace.name());
        self.namespace.run(work)?.map_err(Error::io(action))
    }

    /// The VIP on `lo`, and no word about it by ARP: what a real server of direct routing needs (`arp_ignore=1`,
    /// `arp_announce=2`). IPv6 does not answer for addresses of other links anyway.
    pub fn add_vip_on_loopback(&mut self, vip: IpAddr) -> Result<(), Error> {
        for place in ["all", "lo"] {
            self.set_sysctl(&format!("net.ipv4.conf.{place}.arp_ignore"), "1")?;
            self.set_sysctl(&format!("net.ipv4.conf.{place}.arp_announce"), "2")?;
        }
        self.add_address("lo", vip, if vip.is_ipv4() { 32 } else { 128 })
    }

    /// A command that runs in its namespace and dies with the calling thread.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, Error> {
        Ok(self.namespace.command(program)?)
    }
}

fn in_namespace(namespace: &Namespace) -> impl FnOnce(netlink::Error) -> Error {
    let namespace = namespace.name().to_owned();
    move |source| Error::Netlink { namespace, source }
}

/// Takes away every namespace and folder that process `pid` made.
pub fn remove_all_of(pid: u32) {
    remove_matching(|name| owner(name) == Some(pid));
}

/// Takes away namespaces and folders of ours whose process lives no more.
fn sweep() {
    remove_matching(|name| owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
}

fn remove_matching(matches: impl Fn(&str) -> bool) {
    let namespaces = netns::list(PREFIX).unwrap_or_default();
    for name in namespaces.iter().filter(|name| matches(name)) {
        log::info!("namespace {name} was left behind: deleted");
        if let Err(error) = netns::delete(name) {
            log::warn!("{error}");
        }
    }
    let Ok(entries) = fs::read_dir(SHARED_MEMORY) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(&matches)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            log::warn!("remove {}: {error}", entry.path().display());
        }
    }
}

/// The process that made `uvs-PID-…`; none for names that are not ours.
fn owner(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_names_have_an_owner() {
        assert_eq!(owner("uvs-123-nat-client"), Some(123));
        for name in ["uvs", "uvs-", "uvs-x-1", "uvs-12", "vpn-12-a", "uvs-router"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }

    #[test]
    fn what_a_dead_process_left_goes_with_the_next_cluster() {
        if !netns::can_test() {
            return;
        }
        // Above the kernel's largest process id.
        let left = "uvs-4194305-test-left";
        let folder = Path::new(SHARED_MEMORY).join(left);
        fs::create_dir_all(&folder).unwrap();
        // Its guard is not dropped, as in a process that was killed.
        std::mem::forget(Namespace::create(left).unwrap());
        let _cluster = Cluster::new("t-sweep").unwrap();
        assert_eq!(netns::list(left).unwrap(), Vec::<String>::new());
        assert!(!folder.exists());
    }
}
