//! AH and ESP: they go where the key exchange went that set them up, as in the kernel (`ip_vs_proto_ah_esp.c`).
//!
//! The exchange is UDP from port 500 to port 500 (ISAKMP, IKE), and begins the connection, by a service of its port or
//! of a firewall mark. AH and ESP begin none.

use super::driver::Driver;
use super::round::{Round, Verdict};
use crate::packet::{FlowKey, Frame, Parsed, Protocol};
use crate::table::InterfaceId;

/// Port of the key exchange (RFC 2408 section 2.5.1).
const ISAKMP: u32 = 500;

impl<D: Driver> Round<'_, D> {
    /// An AH or ESP packet.
    #[cold]
    pub(super) fn secured<F: Frame>(&mut self, frame: &mut F, interface: InterfaceId, parsed: &Parsed) -> Verdict {
        let exchange = FlowKey {
            protocol: Protocol::UDP,
            ports: ISAKMP << 16 | ISAKMP,
            ..parsed.flow
        };
        // As the exchange's, for whom there is no connection.
        let alike = Parsed {
            flow: exchange,
            ..*parsed
        };
        let connections = self.connections;
        match connections.lookup(connections.hash(&exchange), &exchange) {
            Some(hit) => self.known(frame, interface, parsed, hit),
            None => self.unserved(frame, interface, &alike),
        }
    }
}
