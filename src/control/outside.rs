//! What the control thread needs of workers, filter, kernel and clock: one trait, so that the loop runs in memory.

use std::collections::HashSet;
use std::sync::Arc;

use super::protocol::ConnectionListing;
use super::registry::Routes;
use super::report::Report;
use crate::conn::{CallId, Connection, Tick, TimeoutTable};
use crate::io::filter::Rule;
use crate::table::{Destination, Interface, LocalAddresses, Supplies, Table};

/// A worker does not answer. Nothing can be made live any more: the process must end, and the next one takes over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("worker {worker} has not answered for {seconds} s")]
pub struct Stuck {
    /// Its number, from 0.
    pub worker: usize,
    /// For how long.
    pub seconds: u64,
}

/// Makes the listing of all connections; may run on any thread.
pub type ListConnections = Box<dyn FnOnce() -> Vec<ConnectionListing> + Send>;

/// Copies of the connections that are wanted, and the time it is for them; may run on any thread.
pub type FindConnections = Box<dyn FnOnce(&dyn Fn(&Connection) -> bool) -> (Vec<Connection>, Tick) + Send>;

/// Workers, filter, kernel and clock.
pub trait Outside: Routes {
    /// Milliseconds of a clock that never goes back.
    fn now_ms(&self) -> u64;

    /// The daemon's interfaces, as last heard of.
    fn interfaces(&self) -> Arc<[Interface]>;

    /// An interface that was gone is there again, which only a new start can serve.
    fn interface_is_back(&self) -> bool;

    /// The director's own addresses, as last heard of.
    fn local_addresses(&self) -> Arc<LocalAddresses>;

    /// Reads links, addresses and neighbours anew.
    fn network_changed(&mut self);

    /// About once a second: keeps neighbours fresh. `true`: look again how destinations are reached.
    fn network_tick(&mut self) -> bool;

    /// Waits a little for neighbours to answer, and reads anew.
    fn network_wait(&mut self);

    /// Takes rules out of the filter that are not in `wanted`.
    fn shrink_filter(&mut self, wanted: &HashSet<Rule>) -> Result<(), String>;

    /// Puts the rules of `wanted` that are missing into the filter.
    fn grow_filter(&mut self, wanted: &HashSet<Rule>) -> Result<(), String>;

    /// Gives every worker the table, and waits until all work by it.
    fn publish(&mut self, table: Arc<Table>) -> Result<(), Stuck>;

    /// About once a second: whether every worker's heart beats.
    fn check_workers(&mut self) -> Result<(), Stuck>;

    /// Expires connections, and takes them off their destinations' numbers.
    fn sweep(&mut self, destinations: &[Option<Arc<Destination>>]);

    /// What is left of memory and connection table.
    fn supplies(&self) -> Supplies;

    /// Ends some connections before their time, as drop_entry does once a second.
    fn drop_entries(&mut self, destinations: &[Option<Arc<Destination>>], timeouts: &TimeoutTable);

    /// The connections.
    fn connections(&self) -> ListConnections;

    /// Some of the connections.
    fn find_connections(&self) -> FindConnections;

    /// What a template keeps of this Call-ID.
    fn call_id(&self, text: &str) -> CallId;

    /// Numbers for `uvs stats`; the caller adds generation and `unsaved`.
    fn report(&mut self) -> Report;
}
