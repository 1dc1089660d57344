//! For the tests in network namespaces: who may run them, and the cluster they run on (see `uvs::demo`).
//!
//! Use: `let Some(mut scenario) = support::scenario("label", Plan::new(Layout::OneSegment)) else { return };`
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

pub mod load;
pub mod programs;
pub mod recorded;
pub mod recorded_frame;

use std::path::Path;

pub use uvs::demo::cluster::{Cluster, Host};
pub use uvs::demo::director::{Director, method_flag, with_port};
pub use uvs::demo::http::{self, HttpClient, HttpServer};
pub use uvs::demo::scenario::{Accounting, PORT, REQUEST_MAX, Scenario};
pub use uvs::demo::topology::{Layout, Plan, Topology};
pub use uvs::demo::udp::{UdpClient, UdpEcho};
pub use uvs::io::netns::{self, Namespace};
pub use uvs::io::process::Process;
pub use uvs::io::tap::FrameSocket;
pub use uvs::packet::Family;
pub use uvs::service::Method;

/// All three methods.
pub const METHODS: [Method; 3] = [Method::Masq, Method::Tunnel, Method::Route];

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The `uvs` program under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_uvs"))
}

/// A scenario with its network and servers, or `None` where namespace tests cannot run; it says so loudly then, and
/// fails with `UVS_REQUIRE_ROOT_TESTS=1`.
pub fn scenario(label: &str, plan: Plan) -> Option<Scenario> {
    netns::can_test().then(|| Scenario::new(label, plan, program()).expect("the network is built"))
}

/// A network alone.
pub fn topology(label: &str, plan: Plan) -> Option<Topology> {
    netns::can_test().then(|| Topology::build(label, plan).expect("the network is built"))
}

/// Fails unless every frame is accounted for.
pub fn assert_balanced(scenario: &mut Scenario) -> Accounting {
    let accounting = scenario.accounting().expect("the director answers");
    assert!(accounting.balanced(), "{accounting}");
    accounting
}

/// `ipvsadm ARGUMENTS` on the director, which must be accepted. Returns what it prints.
pub fn ipvsadm(scenario: &mut Scenario, arguments: &str) -> String {
    let director = scenario.director().expect("a director");
    director.ipvsadm(arguments).expect("accepted")
}
