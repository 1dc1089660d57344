//! An explanation for people.

use std::fmt;

use super::{EntryReport, Explanation, HopReport, ServerReport, Way, name_of};

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let question = &self.question;
        writeln!(
            f,
            "{} {} > {}",
            name_of(question.protocol),
            question.client,
            question.virtual_address
        )?;
        let reason = self.drop_reason.as_ref().map(|reason| format!(" ({reason})"));
        writeln!(f, "{}{}: {}", self.way, reason.unwrap_or_default(), self.why)?;
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        if let Some(service) = &self.service {
            let scheduler = self.scheduler.as_deref().unwrap_or("?");
            writeln!(f, "service: {service}, scheduler {scheduler}")?;
        }
        if let Some(entry) = &self.entry {
            writeln!(f, "entry: {entry}")?;
        }
        if let Some(server) = &self.server {
            writeln!(f, "server: {} {}, {}", server.server, server.method, server.next_hop)?;
        }
        if !self.servers.is_empty() {
            writeln!(f, "all servers of the service:")?;
        }
        for server in &self.servers {
            writeln!(f, "  {server}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Connection => "to the server of its connection",
            Way::Reply => "to the client of its connection",
            Way::Template => "to the server of its template",
            Way::Scheduler => "to the server that the scheduler chooses",
            Way::Chance => "to a server by chance",
            Way::Dropped => "dropped",
            Way::LocalStack => "to the local stack",
            Way::Kernel => "not to uvs",
        })
    }
}

impl fmt::Display for EntryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} > {} > {}, {}, {} s left",
            self.client, self.virtual_address, self.server, self.state, self.expires_s
        )
    }
}

impl fmt::Display for ServerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} weight {}, {} active, {} inactive, ",
            self.server, self.method, self.weight, self.active, self.inactive
        )?;
        match &self.unavailable {
            Some(reason) => write!(f, "not available: {reason}"),
            None => write!(f, "available"),
        }
    }
}

impl fmt::Display for HopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HopReport::Hop {
                interface,
                to,
                source,
                mtu,
            } => write!(f, "by {interface} to {to}, from {source}, MTU {mtu}"),
            HopReport::Otherwise { no_hop } => f.write_str(no_hop),
        }
    }
}
