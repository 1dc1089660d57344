//! Services of new connections, one after another.

use std::sync::Arc;

use super::services::Endpoint;
use super::{InterfaceId, Service, Table};
use crate::packet::FlowKey;

/// Finds services, and has the last one at hand: new connections that come one after another are of the same, most often.
#[derive(Debug)]
pub struct Finder<'t> {
    table: &'t Table,
    last: Option<(Endpoint, &'t Arc<Service>)>,
}

impl<'t> Finder<'t> {
    /// One for this table.
    pub fn new(table: &'t Table) -> Finder<'t> {
        Finder { table, last: None }
    }

    /// As [`Table::service_at`].
    #[inline(always)]
    pub fn service_at(&mut self, flow: &FlowKey, interface: InterfaceId) -> Option<&'t Arc<Service>> {
        let endpoint = Endpoint::destination(flow);
        match self.last {
            Some((last, service)) if last == endpoint => Some(service),
            _ => self.look_up(flow, interface, endpoint),
        }
    }

    #[inline(never)]
    fn look_up(&mut self, flow: &FlowKey, interface: InterfaceId, endpoint: Endpoint) -> Option<&'t Arc<Service>> {
        let service = self.table.service_at(flow, interface)?;
        // A mark is not of the address alone.
        if self.table.services.marks.is_empty() {
            self.last = Some((endpoint, service));
        }
        Some(service)
    }
}
