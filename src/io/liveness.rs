//! Which interfaces a living uvs serves: an abstract Unix socket `@uvs/IFINDEX` each, which vanishes with the process
//! however that ends. Abstract names belong to the network namespace, as the interfaces do.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::unix;

/// The claim on an interface; ends when dropped, and with the process.
#[derive(Debug)]
pub struct Claim {
    _socket: UnixListener,
}

/// Why there is no claim.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another uvs is at work there.
    #[error("served by another uvs (process {pid}); --takeover takes it over")]
    Taken {
        /// Kernel index of the interface.
        ifindex: u32,
        /// Its process id, in our pid namespace (0 if it is not visible there).
        pid: i32,
    },
    /// Something else.
    #[error("cannot claim it by an abstract socket: {source}")]
    System {
        /// Kernel index of the interface.
        ifindex: u32,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Claims the interface for this process. To be called in the network namespace of the interface.
pub fn claim(ifindex: u32) -> Result<Claim, ClaimError> {
    let system = |source| ClaimError::System { ifindex, source };
    let address = SocketAddr::from_abstract_name(name(ifindex)).map_err(system)?;
    match UnixListener::bind_addr(&address) {
        Ok(_socket) => Ok(Claim { _socket }),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Err(ClaimError::Taken {
            ifindex,
            pid: holder(ifindex).map_err(system)?.unwrap_or(0),
        }),
        Err(e) => Err(system(e)),
    }
}

/// Claims the interface if nobody has it.
pub fn try_claim(ifindex: u32) -> Option<Claim> {
    let address = SocketAddr::from_abstract_name(name(ifindex)).ok()?;
    let _socket = UnixListener::bind_addr(&address).ok()?;
    Some(Claim { _socket })
}

/// The process that serves the interface, if one does.
pub fn holder(ifindex: u32) -> io::Result<Option<i32>> {
    // Nobody ever accepts; without waiting, as the queue may be full of others who asked.
    match unix::connect_abstract(&name(ifindex)) {
        Ok(stream) => Ok(Some(unix::peer_credentials(&stream)?.pid)),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        // It lives, and cannot be asked who it is.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Some(0)),
        Err(e) => Err(e),
    }
}

fn name(ifindex: u32) -> String {
    format!("uvs/{ifindex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::testing::in_namespace;

    /// How: claims twice, asks, gives up the claim. Goal: alive or dead is never in doubt, and the holder has a name.
    #[test]
    fn one_holder_at_a_time_and_none_after_its_end() {
        in_namespace(|| {
            assert_eq!(holder(3).unwrap(), None);
            let first = claim(3).unwrap();
            let _other = claim(4).unwrap();
            assert_eq!(holder(3).unwrap(), Some(std::process::id() as i32));
            let error = claim(3).unwrap_err().to_string();
            assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
            // However often it was asked, it is alive.
            for _ in 0..10_000 {
                if holder(3).unwrap() == Some(0) {
                    break;
                }
            }
            assert_eq!(holder(3).unwrap(), Some(0), "its queue is full");
            assert!(claim(3).is_err());
            drop(first);
            assert_eq!(holder(3).unwrap(), None);
            claim(3).unwrap();
        });
    }
}
