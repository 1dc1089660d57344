//! How each peer of a [`Rig`] is started, and the web server behind it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use uvs::demo::cluster::{Error, Host};
use uvs::demo::director::{Director, DirectorOptions};
use uvs::io::process::Process;

use crate::cpu::{self, OURS, THEIRS};
use crate::rig::{BULK, DATAGRAMS, Peer, Rig, VIP, WEB, Wanted, run, server_address, wrong};

/// Where Debian puts it.
pub const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

impl Rig {
    /// Starts what stands between client and server.
    pub(crate) fn start(&mut self, wanted: &Wanted<'_>) -> Result<(), Error> {
        match self.peer {
            // Attached by netlink: the program stays with the interface.
            Peer::Base => crate::sink::drop_at_xdp(&mut self.director, "clients").map(drop),
            Peer::Direct | Peer::Kernel => Ok(()),
            Peer::Nft => self.start_nft(),
            Peer::Haproxy => self.start_haproxy(),
            Peer::NginxStream => self.start_stream(),
            Peer::Bare(driver) => self.start_bare(&[driver]),
            Peer::Least => self.start_bare(&["xdp", "--least", &wanted.connections.to_string()]),
            Peer::Uvs(driver) | Peer::UvsDr(driver) => self.start_uvs(driver, wanted),
        }
    }

    fn start_nft(&mut self) -> Result<(), Error> {
        let rules = format!(
            "table ip uvsperf {{\n chain before {{\n  type nat hook prerouting priority -100;\n  ip daddr {VIP} dnat to {}\n }}\n}}\n",
            server_address(0)
        );
        let file = self.directory().join("rules.nft");
        std::fs::write(&file, rules).map_err(Error::io("write rules for nft"))?;
        run(self.director.command("nft")?.arg("-f").arg(&file))?;
        // Flows stay known from run to run.
        self.director
            .set_sysctl("net.netfilter.nf_conntrack_udp_timeout", "3600")
    }

    fn start_haproxy(&mut self) -> Result<(), Error> {
        let server = server_address(0);
        let listen = |port| format!("listen p{port}\n bind {VIP}:{port}\n server s {server}:{port}\n");
        let text = format!(
            "global\n nbthread 1\n maxconn 4000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n \
             timeout server 60s\n{}{}",
            listen(WEB),
            listen(BULK)
        );
        let file = self.directory().join("haproxy.cfg");
        std::fs::write(&file, text).map_err(Error::io("write haproxy.cfg"))?;
        let mut command = Rig::pinned(&self.director, THEIRS, "haproxy")?;
        command.arg("-db").arg("-f").arg(&file);
        self.director_process = Some(Process::start("haproxy", &mut command).map_err(Error::io("haproxy"))?);
        self.wait_for_listener()
    }

    fn start_stream(&mut self) -> Result<(), Error> {
        let server = server_address(0);
        let listen = |port| format!("server {{ listen {VIP}:{port} backlog=16384; proxy_pass {server}:{port}; }}\n");
        let home = self.directory().join("stream");
        let text = format!(
            "load_module {STREAM_MODULE};\n{}events {{ worker_connections 8192; }}\nstream {{\n{}{}}}\n",
            nginx_head(&home),
            listen(WEB),
            listen(BULK)
        );
        self.director_process = Some(start_nginx(&self.director, THEIRS, &home, &text)?);
        self.wait_for_listener()
    }

    /// The VIP on the director answers; else what the director's program says.
    fn wait_for_listener(&mut self) -> Result<(), Error> {
        let listens = wait_for_listener(&self.director, VIP, WEB);
        let said = self.director_process.as_mut().map(Process::output).unwrap_or_default();
        listens.map_err(|error| wrong(format!("{error}\n{said}")))
    }

    fn start_bare(&mut self, arguments: &[&str]) -> Result<(), Error> {
        let mut command = Rig::pinned(&self.director, THEIRS, crate::this_program())?;
        command.arg("--forward").args(arguments);
        let mut process =
            Process::start("the bare forwarder", &mut command).map_err(Error::io("the bare forwarder"))?;
        process
            .wait_for_line(Duration::from_secs(20), |line| line == "ready")
            .map_err(Error::io("wait for the bare forwarder"))?;
        self.director_process = Some(process);
        Ok(())
    }

    /// A director by uvs, with more arguments of `uvs run`.
    fn run_uvs(&self, driver: &str, wanted: &Wanted<'_>, more: &[&str]) -> Result<Director, Error> {
        let connections = wanted.connections.to_string();
        let arguments = ["--driver", driver, "--workers", "1", "--connections", &connections];
        let options = DirectorOptions {
            program: wanted.uvs,
            interfaces: &["clients", "servers"],
            directory: self.cluster.directory(),
            arguments: &[&arguments, more].concat(),
        };
        // uvs pins its worker to the first CPU that it may use, and a child may use what its parent may.
        cpu::on(THEIRS, || Director::start(&self.director, &options))
    }

    /// Another uvs takes over from the one that runs.
    pub fn take_over(&mut self, wanted: &Wanted<'_>) -> Result<(), Error> {
        let (Peer::Uvs(driver) | Peer::UvsDr(driver)) = self.peer else {
            return Err(wrong(format!("{} is not uvs", self.peer.name())));
        };
        self.uvs = Some(self.run_uvs(driver, wanted, &["--takeover"])?);
        Ok(())
    }

    fn start_uvs(&mut self, driver: &str, wanted: &Wanted<'_>) -> Result<(), Error> {
        let uvs = self.run_uvs(driver, wanted, &[])?;
        let method = if matches!(self.peer, Peer::UvsDr(_)) {
            "-g"
        } else {
            "-m"
        };
        uvs.ipvsadm("--set 0 0 3600")?;
        for service in [
            format!("-t {VIP}:{WEB}"),
            format!("-t {VIP}:{BULK}"),
            format!("-u {VIP}:{DATAGRAMS}"),
        ] {
            uvs.ipvsadm(&format!("-A {service} -s wlc"))?;
            let port = service.rsplit(':').next().unwrap_or_default();
            for n in 0..self.servers {
                // iperf3 wants its two connections at one server.
                if n == 0 || !service.ends_with(&BULK.to_string()) {
                    uvs.ipvsadm(&format!("-a {service} -r {}:{port} {method}", server_address(n)))?;
                }
            }
        }
        self.uvs = Some(uvs);
        Ok(())
    }

    /// A web server on the server's host, which answers `ok`; bounded to so many requests a second and address, if
    /// given: more wait in a queue.
    pub fn start_web(&mut self, requests_per_s: Option<u32>) -> Result<(), Error> {
        let home = self.directory().join("web");
        let (zone, limit) = match requests_per_s {
            Some(rate) => (
                format!("limit_req_zone $server_addr zone=capacity:1m rate={rate}r/s;"),
                "limit_req zone=capacity burst=10000;",
            ),
            None => Default::default(),
        };
        // `return` would answer before the limit is asked.
        std::fs::create_dir_all(home.join("root")).map_err(Error::io("make a folder"))?;
        std::fs::write(home.join("root/index.html"), "ok\n").map_err(Error::io("write a page"))?;
        let text = format!(
            "{}events {{ worker_connections 16384; }}\nhttp {{ access_log off; {zone}\n keepalive_requests 1000000; \
             open_file_cache max=10; client_body_temp_path {home}/1; proxy_temp_path {home}/2; fastcgi_temp_path {home}/3; \
             uwsgi_temp_path {home}/4; scgi_temp_path {home}/5;\n server {{ listen {WEB} backlog=16384; root {home}/root; \
             {limit} }} }}\n",
            nginx_head(&home),
            home = home.display(),
        );
        let nginx = start_nginx(&self.server, OURS, &home, &text)?;
        self.keep(nginx);
        wait_for_listener(&self.server, server_address(0), WEB)
    }
}

fn nginx_head(home: &Path) -> String {
    let home = home.display();
    format!(
        "daemon off; master_process off; user root; pid {home}/pid; error_log {home}/error.log crit;\n\
         worker_rlimit_nofile 16000;\n"
    )
}

fn start_nginx(host: &Host, cpu: usize, home: &Path, text: &str) -> Result<Process, Error> {
    std::fs::create_dir_all(home).map_err(Error::io("make a folder for nginx"))?;
    let file = home.join("nginx.conf");
    std::fs::write(&file, text).map_err(Error::io("write nginx.conf"))?;
    let mut command = Rig::pinned(host, cpu, "nginx")?;
    command.arg("-p").arg(home).arg("-c").arg(&file);
    Process::start("nginx", &mut command).map_err(Error::io("nginx"))
}

fn wait_for_listener(host: &Host, address: Ipv4Addr, port: u16) -> Result<(), Error> {
    for _ in 0..200 {
        if host
            .namespace()
            .run(|| std::net::TcpStream::connect((address, port)))?
            .is_ok()
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    Err(Error::Wrong(format!(
        "nobody listens on {address}:{port} of {}",
        host.name()
    )))
}
