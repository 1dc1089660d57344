//! What is asked: a packet's ends, from the words of the command line, and which entries have to do with it.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::conn::{Connection, Kind, TemplateKey};
use crate::packet::FlowKey;
use crate::service::{Method, TransportProtocol};

/// A client's packet, or a NAT real server's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Protocol.
    pub protocol: TransportProtocol,
    /// Where it comes from.
    pub client: SocketAddr,
    /// Where it goes.
    pub virtual_address: SocketAddr,
    /// The Call-ID in a SIP message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
}

impl Question {
    /// From the words of the command line; says which of them is wrong.
    pub fn parse(protocol: &str, client: &str, virtual_address: &str) -> Result<Question, String> {
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => TransportProtocol::Tcp,
            "udp" => TransportProtocol::Udp,
            "sctp" => TransportProtocol::Sctp,
            _ => return Err(format!("PROTO: {protocol:?} is none of tcp, udp, sctp")),
        };
        let endpoint = |name: &str, text: &str| {
            text.parse::<SocketAddr>()
                .map_err(|_| format!("{name}: {text:?} is not ADDRESS:PORT, such as 192.0.2.1:80 or [2001:db8::1]:80"))
        };
        let question = Question {
            protocol,
            client: endpoint("CLIENT:PORT", client)?,
            virtual_address: endpoint("VIP:PORT", virtual_address)?,
            call_id: None,
        };
        if question.client.is_ipv4() != question.virtual_address.is_ipv4() {
            return Err(format!(
                "CLIENT:PORT and VIP:PORT: {client} and {virtual_address} are of two families"
            ));
        }
        Ok(question)
    }

    pub(super) fn flow(&self) -> FlowKey {
        let pair = |at: SocketAddr| (at.ip(), at.port());
        FlowKey::new(self.protocol.number(), pair(self.client), pair(self.virtual_address))
    }

    /// Whether an entry has to do with the flow; `template` is its template's key.
    pub fn is_about(&self, template: Option<&TemplateKey>, connection: &Connection) -> bool {
        self.is_forward(connection)
            || self.is_reply(connection)
            || self.is_expected(connection)
            || template.is_some_and(|key| is_template(key, connection))
    }

    pub(super) fn is_forward(&self, connection: &Connection) -> bool {
        self.is(connection, connection.client, connection.virtual_address)
    }

    /// What a NAT real server sends.
    pub(super) fn is_reply(&self, connection: &Connection) -> bool {
        connection.method == Method::Masq && self.is(connection, connection.destination, connection.client)
    }

    /// What an FTP control connection has announced, without a client port.
    pub(super) fn is_expected(&self, connection: &Connection) -> bool {
        let any_port = (connection.client.0, self.client.port());
        let is_announced = self.protocol == TransportProtocol::Tcp && connection.client.1 == 0;
        is_announced && self.is(connection, any_port, connection.virtual_address)
    }

    fn is(&self, connection: &Connection, from: (IpAddr, u16), to: (IpAddr, u16)) -> bool {
        let at = |(address, port): (IpAddr, u16)| SocketAddr::new(address, port);
        connection.kind == Kind::Connection
            && connection.protocol == self.protocol.number()
            && (at(from), at(to)) == (self.client, self.virtual_address)
    }
}

/// Whether an entry is the template of that key.
fn is_template(key: &TemplateKey, connection: &Connection) -> bool {
    let flow = &key.flow;
    connection.kind == Kind::Template
        && connection.protocol == flow.protocol
        && connection.client == (flow.source(), flow.source_port())
        && connection.virtual_address == (flow.destination(), flow.destination_port())
        && connection.call_id == key.call_id
}
