//! Twenty megabytes each way, byte for byte, by every method, family and driver, with the clients' default offloads and
//! without any.
//!
//! How: a pattern in which a lost, doubled or moved piece shows, sent and fetched over a connection through the
//! director. Goal: unfinished checksums and super-frames, which every veth and virtio client sends, arrive whole.

mod support;

use support::{FAMILIES, Layout, METHODS, Plan, Scenario, assert_balanced, scenario};

const LENGTH: u64 = 20 << 20;

/// Every method and family through one driver, with offloads as they are and then without.
fn transfer_by(driver: &str) {
    let Some(mut s) = scenario(&format!("bulk-{driver}"), Plan::new(Layout::OneSegment)) else {
        return;
    };
    for method in METHODS {
        for family in FAMILIES {
            s.offer(method, family).expect("the VIP");
        }
    }
    s.start(&["--driver", driver]).expect("the director starts");
    for method in METHODS {
        for family in FAMILIES {
            s.add_service(method, family, "-s rr").expect("the rules");
        }
    }
    transfer_all(&mut s, driver, "default offloads");
    s.topology.client.set_offloads("eth0", false).expect("offloads off");
    for server in &mut s.topology.servers {
        server.set_offloads("eth0", false).expect("offloads off");
    }
    transfer_all(&mut s, driver, "no offloads");
}

fn transfer_all(s: &mut Scenario, driver: &str, offloads: &str) {
    for method in METHODS {
        for family in FAMILIES {
            let what = format!("{driver}, {offloads}, {method:?}, {family:?}");
            let mut client = s
                .connect(method, family, None)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            client.upload(LENGTH).unwrap_or_else(|error| panic!("{what}: {error}"));
            client
                .download(LENGTH)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
    assert_balanced(s);
}

#[test]
fn by_xdp() {
    transfer_by("xdp");
}

#[test]
fn by_raw() {
    transfer_by("raw");
}

#[cfg(feature = "afxdp")]
#[test]
fn by_afxdp() {
    transfer_by("afxdp");
}
