//! Which way a flow goes, and why, without touching it.

use crate::service::{Method, ServiceKey};

/// As IPVS lists a service: `TCP 192.0.2.1:80`, `FWM 7`.
pub fn service_name(key: &ServiceKey) -> String {
    match *key {
        ServiceKey::Address {
            protocol,
            address,
            port,
        } => {
            let protocol = format!("{protocol:?}").to_uppercase();
            format!("{protocol} {}", std::net::SocketAddr::new(address, port))
        }
        ServiceKey::FwMark { mark, .. } => format!("FWM {mark}"),
    }
}

/// As ipvsadm lists a forwarding method.
pub fn method_name(method: Method) -> &'static str {
    match method {
        Method::Route => "Route",
        Method::Masq => "Masq",
        Method::Tunnel => "Tunnel",
    }
}
