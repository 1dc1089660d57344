//! Host names of addresses, from the machine's resolver (`/etc/hosts`, DNS). Limits: names of 1024 bytes.
#![allow(
    unsafe_code,
    reason = "the C library's resolver: std offers only the way from names to addresses"
)]

use std::ffi::CStr;
use std::net::IpAddr;

/// The name of an address, or `None` when it has none or no resolver answers. May take as long as the resolver's
/// own time limit.
pub fn host_of(address: IpAddr) -> Option<String> {
    match address {
        IpAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: 0,
                sin_addr: libc::in_addr {
                    s_addr: address.to_bits().to_be(),
                },
                sin_zero: [0; 8],
            };
            name_info(&raw)
        }
        IpAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: address.octets(),
                },
                sin6_scope_id: 0,
            };
            name_info(&raw)
        }
    }
}

/// A socket address as the C library knows it.
trait RawAddress {}
impl RawAddress for libc::sockaddr_in {}
impl RawAddress for libc::sockaddr_in6 {}

fn name_info<A: RawAddress>(raw: &A) -> Option<String> {
    let mut name = [0u8; 1025];
    // SAFETY: `raw` is a whole sockaddr_in or sockaddr_in6 (the only RawAddress types) and its size is passed; `name`
    // is writable for the length passed and outlives the call; no service buffer is given, with length 0.
    let result = unsafe {
        libc::getnameinfo(
            std::ptr::from_ref(raw).cast(),
            size_of::<A>() as libc::socklen_t,
            name.as_mut_ptr().cast(),
            name.len() as libc::socklen_t,
            std::ptr::null_mut(),
            0,
            libc::NI_NAMEREQD,
        )
    };
    if result != 0 {
        return None;
    }
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    Some(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_name_has_none() {
        // TEST-NET-1 (RFC 5737) has no names anywhere.
        assert_eq!(host_of(IpAddr::from([192, 0, 2, 77])), None);
    }

    #[test]
    fn loopback_has_the_name_that_hosts_gives_it() {
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let line = hosts
            .lines()
            .find(|line| line.split_ascii_whitespace().next() == Some("127.0.0.1"));
        let Some(expected) = line.and_then(|line| line.split_ascii_whitespace().nth(1)) else {
            crate::io::netns::not_run("TEST NOT RUN: needs a name for 127.0.0.1 in /etc/hosts");
            return;
        };
        assert_eq!(host_of(IpAddr::from([127, 0, 0, 1])).as_deref(), Some(expected));
    }
}
