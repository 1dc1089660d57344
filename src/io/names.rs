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
    hosts_said(addresses, |asked| {
        getent(&["hosts"], asked.iter().map(IpAddr::to_string))
    })
}

fn hosts_said(
    addresses: &[IpAddr],
    ask: impl Fn(&[IpAddr]) -> io::Result<String>,
) -> io::Result<HashMap<IpAddr, String>> {
    let mut hosts = HashMap::new();
    let mut doubtful = Vec::new();
    for asked in addresses.chunks(ASKED_AT_ONCE) {
        let said = ask(asked)?;
        for (address, host) in entries(&said) {
            // An answer may hold more addresses than the one asked for: for a machine's own, all that it has (nss-myhostname(8)).
            if hosts
                .insert(address, host.to_owned())
                .is_some_and(|other| other != host)
            {
                doubtful.push(address);
            }
        }
    }
    for address in doubtful {
        let said = ask(&[address])?;
        if let Some((_, host)) = entries(&said).find(|(named, _)| *named == address) {
            hosts.insert(address, host.to_owned());
        }
    }
    Ok(hosts)
}

/// The first IPv4 address of a host, or `None` when it has none. May take as long as the resolver's own time limit.
///
/// # Errors
/// When `getent` cannot be started or fails for another reason than a host that nobody knows.
pub fn address_of(host: &str) -> io::Result<Option<Ipv4Addr>> {
    // As gethostbyname(3): also where the machine has no IPv4 address yet, which older ones of glibc's cannot be told.
    let asked = || [host.to_owned()];
    let said = match getent(&["--no-idn", "--no-addrconfig", "ahostsv4"], asked()) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => getent(&["--no-idn", "ahostsv4"], asked())?,
        said => said?,
    };
    let first = entries(&said).find_map(|(address, _)| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    Ok(first)
}

/// Each line's address and the word behind it, which is the host's name in `hosts`; further names are left out.
fn entries(said: &str) -> impl Iterator<Item = (IpAddr, &str)> {
    said.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?))
    })
}

/// What `getent` prints of the keys that a database has. An option that it does not know is [`io::ErrorKind::InvalidInput`].
fn getent(options_and_database: &[&str], keys: impl IntoIterator<Item = String>) -> io::Result<String> {
    /// getent(1): "One or more supplied key could not be found in the database".
    const KEY_NOT_FOUND: i32 = 2;
    /// sysexits(3), as glibc's programs end for it.
    const EX_USAGE: i32 = 64;

    let mut command = Command::new("getent");
    command.args(options_and_database).arg("--").args(keys);
    let output = command.stdin(Stdio::null()).output()?;
    let kind = match output.status.code() {
        Some(0 | KEY_NOT_FOUND) => return Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Some(EX_USAGE) => io::ErrorKind::InvalidInput,
        _ => io::ErrorKind::Other,
    };
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::new(kind, format!("{}: {}", output.status, said.trim_end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that no machine has (RFC 2606), and addresses without names (TEST-NET-1, RFC 5737).
    const NOBODY: &str = "nobody.invalid";

    const UNNAMED: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77)),
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 78)),
    ];

    #[test]
    fn lines_are_addresses_with_names() {
        let said = "10.0.0.1       a.example a other\n2001:db8::1     six.example\n\nno address\n10.0.0.2\n10.0.0.3        STREAM \n";
        let expected = [
            ("10.0.0.1", "a.example"),
            ("2001:db8::1", "six.example"),
            ("10.0.0.3", "STREAM"),
        ];
        let expected = expected.map(|(address, name)| (address.parse().unwrap(), name));
        assert_eq!(entries(said).collect::<Vec<(IpAddr, _)>>(), expected);
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
        let found = hosts_of(&[UNNAMED[0], loopback, UNNAMED[1]]).unwrap();
        assert_eq!(found, HashMap::from([(loopback, expected.to_owned())]));
        assert_eq!(address_of(expected).unwrap(), Some(Ipv4Addr::LOCALHOST));
    }

    /// How: a machine's own two addresses, of which one has a name by itself, and any answer to the other holds both, asked for in both
    /// orders. Goal: that one keeps its name.
    #[test]
    fn a_name_that_another_answer_gives_is_not_believed() {
        let [www, other] = UNNAMED;
        let ask = |asked: &[IpAddr]| {
            let answer = |address| match address == www {
                true => format!("{www} www\n"),
                false => format!("{www} director\n{other} director\n"),
            };
            Ok(asked.iter().map(|address| answer(*address)).collect())
        };
        let expected = HashMap::from([(www, "www".to_owned()), (other, "director".to_owned())]);
        assert_eq!(hosts_said(&[www, other], ask).unwrap(), expected);
        assert_eq!(hosts_said(&[other, www], ask).unwrap(), expected);
    }

    #[test]
    fn nobody_is_no_error() {
        assert_eq!(address_of(NOBODY).unwrap(), None);
        assert_eq!(address_of("--version").unwrap(), None, "a host, not an option");
        assert_eq!(hosts_of(&[]).unwrap(), HashMap::new());
    }

    #[test]
    fn what_getent_says_against_a_question_is_the_error() {
        let refused = |words: &[&str]| getent(words, [NOBODY.to_owned()]).unwrap_err();
        let error = refused(&["no such database"]);
        assert!(error.to_string().starts_with("exit status: 1: "), "{error}");
        assert_eq!(refused(&["--no-such-option"]).kind(), io::ErrorKind::InvalidInput);
    }
}
