//! What the command line of `uvs` says, as plain data: one struct a subcommand, with unit, range and default of
//! every option in its help text.
//!
//! The structs stand below `io`, `control` and `demo`, whose `run` functions take them; [`crate::cli`] holds the
//! command tree. A value that the configuration file may give as well is an `Option`: `None` means "not given here".

use std::path::PathBuf;

/// Where the control socket is when neither `--socket` nor `UVS_SOCKET` says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/uvs/uvs.sock";

/// Name of the environment variable that names the control socket, for client and daemon alike.
pub const SOCKET_VARIABLE: &str = "UVS_SOCKET";

/// Where the running rules are saved by default.
pub const STATE_DIR_DEFAULT: &str = "/var/lib/uvs";

/// Connection entries by default.
pub const CONNECTIONS_DEFAULT: u32 = 1 << 20;

/// Options of `uvs run`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct RunOptions {
    /// Interface to serve, by name; may be given several times (1 to 16). Required here or in the configuration
    #[arg(short, long = "interface", value_name = "IF")]
    pub interfaces: Vec<String>,

    /// Worker threads, 1 to 256; each is pinned to a CPU and owns every N-th receive queue of every interface
    /// [default: one a CPU, not more than there are queues]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,

    /// How frames are taken off the interfaces [default: auto]
    #[arg(long, value_enum, value_name = "DRIVER")]
    pub driver: Option<DriverChoice>,

    /// Connection entries, 1024 to 67108864, 64 bytes of the run directory each; persistence templates included
    /// [default: 1048576]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1024..=67_108_864))]
    pub connections: Option<u32>,

    /// Configuration: TOML (every key in configs/reference.toml), or rules as `ipvsadm -S` writes them. Applied at
    /// start when its content differs from what was last applied, and on SIGHUP
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Folder of the running rules, saved at each change [default: /var/lib/uvs]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Folder of the connection entries; must be on tmpfs [default: /run/uvs, or /dev/shm/uvs where /run is no tmpfs]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Where to listen for commands.
    #[command(flatten)]
    pub socket: SocketOption,

    /// Take the place of the running daemon of this state directory without losing a connection
    #[arg(long)]
    pub takeover: bool,
}

/// How frames are taken off an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DriverChoice {
    /// The best that each interface can: xdp zero-copy, xdp native, else raw
    #[default]
    Auto,
    /// AF_XDP: zero-copy, native or generic, and says which
    Xdp,
    /// AF_XDP by the crate `afxdp`; only in builds with the feature `afxdp`
    Afxdp,
    /// Packet sockets, for cards and kernels without AF_XDP
    Raw,
}

/// Which control socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct SocketOption {
    /// Control socket [default: $UVS_SOCKET, or /run/uvs/uvs.sock]
    #[arg(long = "socket", value_name = "PATH")]
    pub path: Option<PathBuf>,
}

impl SocketOption {
    /// The path to use: the option, else `UVS_SOCKET`, else [`SOCKET_DEFAULT`].
    pub fn resolve(&self) -> PathBuf {
        self.resolve_or(None)
    }

    /// The same for the daemon, whose configuration may name one: it comes before the default.
    pub fn resolve_or(&self, configured: Option<PathBuf>) -> PathBuf {
        let variable = || std::env::var_os(SOCKET_VARIABLE).filter(|value| !value.is_empty());
        self.path
            .clone()
            .or_else(|| variable().map(PathBuf::from))
            .or(configured)
            .unwrap_or_else(|| PathBuf::from(SOCKET_DEFAULT))
    }
}

/// Options of `uvs stop`. Where none runs any more, filters that a dead one left in this network namespace are taken off.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct StopOptions {
    /// Leave the dropping filter and the connection entries, so that the next start goes on where this one stopped
    #[arg(long)]
    pub keep: bool,

    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketOption,
}

/// Options of `uvs stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct StatsOptions {
    /// Print the daemon's answer as JSON
    #[arg(long)]
    pub json: bool,

    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketOption,
}

/// Options of `uvs sysctl`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct SysctlOptions {
    /// Set: the arguments are NAME=VALUE
    #[arg(short, long)]
    pub write: bool,

    /// Print all settings
    #[arg(short, long, conflicts_with_all = ["write", "settings"])]
    pub all: bool,

    /// Print values without names
    #[arg(short = 'n', long)]
    pub values: bool,

    /// Settings by the kernel's names, such as net.ipv4.vs.expire_nodest_conn; units, ranges and defaults are the
    /// kernel's (Documentation/networking/ipvs-sysctl.rst)
    #[arg(value_name = "NAME[=VALUE]", required_unless_present = "all")]
    pub settings: Vec<String>,

    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketOption,
}

/// Options of `uvs mark`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct MarkOptions {
    /// What to do.
    #[command(subcommand)]
    pub action: MarkAction,
}

/// What `uvs mark` does.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum MarkAction {
    /// Add a rule; what it does not name may be anything, and the first rule that matches decides
    Add(MarkAddOptions),
    /// Delete a rule, by its number or by the options that it was added with
    Delete(MarkDeleteOptions),
    /// Show the rules in order
    List(MarkListOptions),
    /// Delete all rules
    Clear(MarkClearOptions),
}

impl MarkAction {
    /// Which daemon.
    pub fn socket(&self) -> &SocketOption {
        match self {
            MarkAction::Add(options) => &options.socket,
            MarkAction::Delete(options) => &options.socket,
            MarkAction::List(options) => &options.socket,
            MarkAction::Clear(options) => &options.socket,
        }
    }
}

/// Which packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct MarkMatch {
    /// Protocol: any, tcp, udp or sctp [default: any]
    #[arg(short, long, value_name = "PROTOCOL")]
    pub protocol: Option<String>,

    /// Where packets come from, such as 198.51.100.0/24 [default: anywhere]
    #[arg(short, long, visible_alias = "src", value_name = "PREFIX")]
    pub source: Option<String>,

    /// Port they come from, 0 to 65535, or a range such as 1024-65535 [default: any]
    #[arg(long, visible_alias = "sport", value_name = "PORTS")]
    pub source_port: Option<String>,

    /// Where packets go to, such as 192.0.2.1; addresses of the director only [default: each of them]
    #[arg(short, long, visible_alias = "dst", value_name = "PREFIX")]
    pub destination: Option<String>,

    /// Port they go to, 0 to 65535, or a range such as 8000-8100 [default: any]
    #[arg(long, visible_alias = "dport", value_name = "PORTS")]
    pub destination_port: Option<String>,

    /// Interface by which they come in, 1 to 15 bytes [default: any]
    #[arg(short, long, visible_alias = "in-interface", value_name = "IF")]
    pub interface: Option<String>,
}

/// Options of `uvs mark add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct MarkAddOptions {
    /// The mark that they get, 1 to 4294967295, or as 0x…
    #[arg(value_name = "MARK")]
    pub mark: String,

    /// Which packets.
    #[command(flatten)]
    pub matching: MarkMatch,

    /// Make it the rule of this number, counted from 1 [default: the last]
    #[arg(long, value_name = "NUMBER")]
    pub at: Option<u32>,

    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketOption,
}

/// Options of `uvs mark delete`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct MarkDeleteOptions {
    /// The mark of the rule, whose other options follow as they were added
    #[arg(value_name = "MARK", required_unless_present = "number")]
    pub mark: Option<String>,

    /// Number of the rule, counted from 1
    #[arg(short, long, value_name = "NUMBER", conflicts_with_all = [
        "mark", "protocol", "source", "source_port", "destination", "destination_port", "interface",
    ])]
    pub number: Option<u32>,

    /// Which packets.
    #[command(flatten)]
    pub matching: MarkMatch,

    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketOption,
}

/// Options of `uvs mark list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct MarkListOptions {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketOption,
}

/// Options of `uvs mark clear`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct MarkClearOptions {
    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketOption,
}

/// Options of `uvs replay`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ReplayOptions {
    /// Frames: a capture (pcap or pcapng, Ethernet), whose clock is the director's, or recorded cases (JSON, as
    /// tests/kernel/packets.json has them), each a director of its own, with what came out
    #[arg(value_name = "CASES|PCAP")]
    pub file: PathBuf,

    /// Rules: TOML as for `uvs run --config`, or as `ipvsadm -S` writes them; a capture needs them. The addresses of
    /// services are the director's
    #[arg(short, long, value_name = "FILE")]
    pub rules: Option<PathBuf>,

    /// The director's interfaces, as the help has them.
    #[arg(
        short,
        long,
        value_name = "FILE|INTERFACE",
        help = "The director's interfaces, 1 to 16: a file with one a line, or one as \
                NAME[,mac=MAC][,mtu=BYTES][,ADDRESS/BITS]…[,gateway=ADDRESS[@MAC]]…[,neighbour=ADDRESS@MAC]…; may be given \
                several times [default: for cases those of the recordings; for a capture eth0 with everybody on its link]"
    )]
    pub interfaces: Vec<String>,

    /// Print one JSON object a frame
    #[arg(long)]
    pub json: bool,

    /// Write what left the director to a pcap file as well
    #[arg(short, long, value_name = "PCAP")]
    pub write: Option<PathBuf>,
}

/// Options of `uvs demo`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct DemoOptions {
    /// Forwarding method to show [default: all three, one after the other]
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Option<DemoMode>,

    /// Leave the cluster up and print commands to try, until Ctrl-C
    #[arg(long)]
    pub keep: bool,

    /// Driver of the director
    #[arg(long, value_enum, value_name = "DRIVER", default_value_t = DriverChoice::Auto)]
    pub driver: DriverChoice,
}

/// What `uvs demo` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoMode {
    /// NAT (Masq): addresses are rewritten, replies come back through the director
    Nat,
    /// Tunnel (IPIP): real servers unwrap and answer clients themselves
    #[value(alias = "tunnel")]
    Tun,
    /// Direct routing: new link addresses only; real servers answer clients themselves
    Dr,
}

/// Options of `uvs decap`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct DecapOptions {
    /// Interface on which IPIP arrives
    #[arg(short, long, value_name = "IF")]
    pub interface: String,
}

/// Options of `uvs explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ExplainOptions {
    /// tcp, udp or sctp
    #[arg(value_name = "PROTO")]
    pub protocol: String,

    /// Where the packet comes from.
    #[arg(
        value_name = "CLIENT:PORT",
        help = "Where the packet comes from: the client, such as 198.51.100.7:20001 or [2001:db8::7]:20001"
    )]
    pub client: String,

    /// Where it goes: the virtual service, such as 192.0.2.1:80
    #[arg(value_name = "VIP:PORT")]
    pub virtual_address: String,

    /// The Call-ID in the datagram, for a service with the persistence engine sip
    #[arg(long, value_name = "TEXT")]
    pub call_id: Option<String>,

    /// Print the answer as JSON
    #[arg(long)]
    pub json: bool,

    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketOption,
}

/// Options of `uvs ping`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct PingOptions {
    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketOption,
}
