//! A topology with everything that answers requests: web and UDP servers, VIPs, unwrapping of tunnels, a director.
//!
//! The steps of a test or of the demonstration, each in a word: [`Scenario::new`], [`Scenario::offer`] a VIP,
//! [`Scenario::start`] the director, give it rules ([`Scenario::add_service`] or `director().ipvsadm(…)`), send
//! requests, read the accounting.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cluster::Error;
use super::director::{Director, DirectorOptions, method_flag, start_decap, with_port};
use super::http::{self, HttpClient, HttpServer};
use super::topology::{Plan, Topology};
use super::udp::UdpEcho;
use crate::io::process::Process;
use crate::packet::Family;
use crate::service::Method;

/// The port that everything serves.
pub const PORT: u16 = 80;

/// How long a request may take.
pub const REQUEST_MAX: Duration = Duration::from_secs(5);

/// A network with servers, and a director once started.
pub struct Scenario {
    // Fields are dropped in this order: processes and servers before the namespaces they are in.
    director: Option<Director>,
    decaps: Vec<Process>,
    web: Vec<HttpServer>,
    udp: Vec<UdpEcho>,
    /// The network.
    pub topology: Topology,
    program: PathBuf,
}

impl Scenario {
    /// Builds the network and starts a web server on port 80 of every real server, named `server3-hk` and so on.
    /// `program` is `uvs`.
    pub fn new(label: &str, plan: Plan, program: &Path) -> Result<Scenario, Error> {
        let topology = Topology::build(label, plan)?;
        // One socket for both families and every address, VIPs on `lo` included.
        let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT);
        let web = topology
            .servers
            .iter()
            .map(|server| {
                HttpServer::start(server.namespace(), everywhere, &format!("{}-hk", server.name()))
                    .map_err(Error::io(format!("start the web server of {}", server.name())))
            })
            .collect::<Result<_, _>>()?;
        Ok(Scenario {
            director: None,
            decaps: Vec::new(),
            web,
            udp: Vec::new(),
            topology,
            program: program.to_owned(),
        })
    }

    /// Makes a method's VIP ready: on the director, on the real servers where the method wants it, with UDP servers
    /// and, for tunnels, `uvs decap`.
    pub fn offer(&mut self, method: Method, family: Family) -> Result<(), Error> {
        self.topology.set_up_vip(method, family)?;
        let vip = self.topology.vip(method, family);
        for (n, server) in self.topology.servers.iter().enumerate() {
            let own = self.topology.server_address(n, family);
            let at = SocketAddr::new(if method == Method::Masq { own } else { vip }, PORT);
            let echo = UdpEcho::start(server.namespace(), at, &format!("{}-hk", server.name()))
                .map_err(Error::io(format!("start the UDP server of {}", server.name())))?;
            self.udp.push(echo);
        }
        if method == Method::Tunnel && self.decaps.is_empty() {
            for server in &self.topology.servers {
                self.decaps.push(start_decap(server, &self.program, "eth0")?);
            }
        }
        Ok(())
    }

    /// Starts the director on all its interfaces, with more arguments for `uvs run`, and waits until it is ready.
    /// Started again, it finds its rules and connections again. One that still runs is left running until the new
    /// one is ready (for `--takeover`).
    pub fn start(&mut self, arguments: &[&str]) -> Result<(), Error> {
        let options = DirectorOptions {
            program: &self.program,
            interfaces: self.topology.director_interfaces(),
            directory: self.topology.cluster.directory(),
            arguments,
        };
        let started = Director::start(&self.topology.director, &options)?;
        self.director = Some(started);
        Ok(())
    }

    /// The director; an error before [`Scenario::start`].
    pub fn director(&mut self) -> Result<&mut Director, Error> {
        self.director
            .as_mut()
            .ok_or_else(|| Error::Wrong("no director was started".to_owned()))
    }

    /// Takes the director's process away from here, dead or alive.
    pub fn take_director(&mut self) -> Option<Director> {
        self.director.take()
    }

    /// The rules of one virtual service with every real server, as `ipvsadm` takes them.
    pub fn rules(&self, method: Method, family: Family, protocol: &str, service: &str, server: &str) -> Vec<String> {
        let vip = with_port(self.topology.vip(method, family), PORT);
        let mut rules = vec![format!("-A {protocol} {vip} {service}").trim_end().to_owned()];
        for n in 0..self.topology.servers.len() {
            let real = with_port(self.topology.server_address(n, family), PORT);
            let flag = method_flag(method);
            rules.push(
                format!("-a {protocol} {vip} -r {real} {flag} {server}")
                    .trim_end()
                    .to_owned(),
            );
        }
        rules
    }

    /// Adds a TCP service of `service` options (such as `-s rr`) with every real server.
    pub fn add_service(&mut self, method: Method, family: Family, service: &str) -> Result<(), Error> {
        let rules = self.rules(method, family, "-t", service, "");
        rules
            .iter()
            .try_for_each(|rule| self.director()?.ipvsadm(rule).map(drop))
    }

    /// Where clients find a method's service.
    pub fn service_address(&self, method: Method, family: Family) -> SocketAddr {
        SocketAddr::new(self.topology.vip(method, family), PORT)
    }

    /// One request on a connection of its own: the name of the server that answered.
    pub fn request(&self, method: Method, family: Family) -> io::Result<String> {
        http::get(
            self.topology.client.namespace(),
            self.service_address(method, family),
            REQUEST_MAX,
        )
    }

    /// A client's connection that stays open; from the address given, or the client's.
    pub fn connect(&self, method: Method, family: Family, from: Option<IpAddr>) -> io::Result<HttpClient> {
        let to = self.service_address(method, family);
        HttpClient::connect(self.topology.client.namespace(), from, to, REQUEST_MAX)
    }

    /// The web servers, in the order of the real servers.
    pub fn web(&self) -> &[HttpServer] {
        &self.web
    }

    /// The processes of `uvs decap`, in the order of the real servers.
    pub fn decaps(&mut self) -> &mut [Process] {
        &mut self.decaps
    }

    /// Where every frame went. Frames may be on their way, so it looks again until the sum is right, for at most
    /// two seconds; then it returns what it has.
    pub fn accounting(&mut self) -> Result<Accounting, Error> {
        let start = Instant::now();
        loop {
            let accounting = Accounting::from_json(&self.director()?.statistics()?)?;
            if accounting.balanced() || start.elapsed() > Duration::from_secs(2) {
                return Ok(accounting);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What became of the frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounting {
    /// Taken off the interfaces.
    pub received: u64,
    /// Made by uvs itself.
    pub generated: u64,
    /// Sent.
    pub transmitted: u64,
    /// Given to the local stack.
    pub handed_back: u64,
    /// Kept for later.
    pub held: u64,
    /// Dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Dropped, as the daemon sums it up.
    pub dropped_total: u64,
}

impl Accounting {
    /// Reads it from `uvs stats --json`.
    pub fn from_json(statistics: &serde_json::Value) -> Result<Accounting, Error> {
        let number = |path: &str| {
            statistics
                .pointer(path)
                .and_then(serde_json::Value::as_u64)
                .ok_or_else(|| Error::Wrong(format!("uvs stats --json has no number at {path}: {statistics}")))
        };
        let reasons = statistics
            .pointer("/frames/dropped/reasons")
            .and_then(serde_json::Value::as_object);
        Ok(Accounting {
            received: number("/frames/received")?,
            generated: number("/frames/generated")?,
            transmitted: number("/frames/transmitted")?,
            handed_back: number("/frames/handed_back")?,
            held: number("/frames/held")?,
            dropped_total: number("/frames/dropped/total")?,
            dropped: reasons
                .into_iter()
                .flatten()
                .filter_map(|(reason, count)| Some((reason.clone(), count.as_u64()?)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        })
    }

    /// Every frame that came in went somewhere, and every drop has a reason.
    pub fn balanced(&self) -> bool {
        let out = self.transmitted + self.handed_back + self.dropped_total + self.held;
        self.received + self.generated == out && self.dropped.values().sum::<u64>() == self.dropped_total
    }
}

impl std::fmt::Display for Accounting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.balanced() { "=" } else { "IS NOT" };
        write!(
            f,
            "received {} + generated {} {sign} transmitted {} + handed back {} + dropped {} + held {}",
            self.received, self.generated, self.transmitted, self.handed_back, self.dropped_total, self.held
        )?;
        for (reason, count) in &self.dropped {
            write!(f, "\n  dropped: {reason} {count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounting_reads_the_agreed_json_and_sees_a_missing_frame() {
        let mut json = serde_json::json!({"frames": {
            "received": 60, "generated": 1, "transmitted": 55, "handed_back": 2, "held": 1,
            "dropped": {"total": 3, "reasons": {"NoService": 2, "Runt": 1, "TableFull": 0}},
        }});
        let accounting = Accounting::from_json(&json).unwrap();
        assert!(accounting.balanced());
        assert_eq!(
            accounting.to_string(),
            "received 60 + generated 1 = transmitted 55 + handed back 2 + dropped 3 + held 1\n  dropped: NoService 2\n  \
             dropped: Runt 1"
        );
        json["frames"]["received"] = 61.into();
        assert!(!Accounting::from_json(&json).unwrap().balanced());
        json["frames"]["held"] = "x".into();
        assert!(
            Accounting::from_json(&json)
                .unwrap_err()
                .to_string()
                .contains("/frames/held")
        );
    }
}
