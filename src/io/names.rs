//! Names of hosts and their addresses, from what the machine is set to ask (`/etc/hosts`, DNS; nsswitch.conf(5)), by the program `getent`.
//!
//! Not by the C library: `uvs` is linked with it statically (build.rs), and a resolver so linked loads modules of the machine's own
//! library, which must be of the very same version.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

/// Addresses asked for by one `getent`; each takes at most 40 bytes of its arguments.
const ASKED_AT_ONCE: usize = 1_000;

/// The names of addresses; those without one are missing. May take as long as the resolver's own time limit, once for each address.
///
/// # Errors
/// When `getent` cannot be started or fails for another reason than an address without a name.
pub fn hosts_of(addresses: &[IpAddr]) -> io::Result<HashMap<IpAddr, String>> {
    let mut hosts = HashMap::new();
    for addresses in addresses.chunks(ASKED_AT_ONCE) {
        let said = getent("hosts", addresses.iter().map(IpAddr::to_string))?;
        hosts.extend(said.lines().filter_map(|line| {
            // The address, its name, other names of it.
            let mut words = line.split_ascii_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
        }));
    }
    Ok(hosts)
}

/// The first IPv4 address of a host, or `None` when it has none. May take as long as the resolver's own time limit.
///
/// # Errors
/// When `getent` cannot be started or fails for another reason than a host that nobody knows.
pub fn address_of(host: &str) -> io::Result<Option<Ipv4Addr>> {
    let said = getent("ahostsv4", [host.to_owned()])?;
    Ok(said
        .lines()
        .next()
        .and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()))
}

/// What `getent` prints of the keys that the database has.
fn getent(database: &str, keys: impl IntoIterator<Item = String>) -> io::Result<String> {
    /// getent(1): "One or more supplied key could not be found in the database".
    const KEY_NOT_FOUND: i32 = 2;

    let mut command = Command::new("getent");
    command.args([database, "--"]).args(keys).stdin(Stdio::null());
    let output = command.output()?;
    match output.status.code() {
        Some(0 | KEY_NOT_FOUND) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        _ => Err(io::Error::other(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that no machine has (RFC 2606), and addresses without names (TEST-NET-1, RFC 5737).
    const NOBODY: &str = "nobody.invalid";

    fn unnamed(count: u8) -> impl Iterator<Item = IpAddr> {
        (0..count).map(|last| IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn names_and_addresses_are_those_that_hosts_gives() {
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let line = hosts
            .lines()
            .find(|line| line.split_ascii_whitespace().next() == Some("127.0.0.1"));
        let Some(expected) = line.and_then(|line| line.split_ascii_whitespace().nth(1)) else {
            crate::io::netns::not_run("TEST NOT RUN: needs a name for 127.0.0.1 in /etc/hosts");
            return;
        };
        let loopback = IpAddr::from([127, 0, 0, 1]);
        // Among others without a name, before and behind it.
        let asked: Vec<_> = unnamed(3).chain([loopback]).chain(unnamed(2)).collect();
        let found = hosts_of(&asked).unwrap();
        assert_eq!(found, HashMap::from([(loopback, expected.to_owned())]));
        assert_eq!(address_of(expected).unwrap(), Some(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn nobody_is_no_error() {
        assert_eq!(address_of(NOBODY).unwrap(), None);
        assert_eq!(address_of("--version").unwrap(), None, "a host, not an option");
        assert_eq!(hosts_of(&[]).unwrap(), HashMap::new());
    }

    #[test]
    fn what_getent_says_against_a_question_is_the_error() {
        let error = getent("no such database", [NOBODY.to_owned()]).unwrap_err().to_string();
        assert!(error.contains("exit status: 1: Unknown database"), "{error}");
    }
}
