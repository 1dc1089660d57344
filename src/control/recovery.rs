//! The connection entries over a restart: their file under the run directory, and whose they are.
//!
//! ```text
//! RUN_DIR/NAME-FINGERPRINT/connections          of the daemon with that state directory
//! RUN_DIR/NAME-FINGERPRINT/connections.refused  one that could not be used, put aside
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use super::config::fingerprint;
use super::registry::{Registry, Routes};
use super::run::RunError;
use crate::conn::{
    Connection, ConnectionTable, Entries, EntriesError, Kind, Recovered, Recovery, Tick, boot_id, is_tmpfs,
};
use crate::packet::{FlowKey, Protocol};
use crate::service::{DestinationKey, TransportProtocol};
use crate::table::{DestinationId, HopId, Table};

/// Tried in this order for the run directory.
const RUN_DIRS: [(&str, &str); 2] = [("/run", "/run/uvs"), ("/dev/shm", "/dev/shm/uvs")];

/// The folder of this daemon's entries: `wanted`, or the first default that is on tmpfs; in it one per state directory.
pub fn folder(wanted: Option<&Path>, state_dir: &Path) -> Result<PathBuf, RunError> {
    let run_dir = match wanted {
        Some(path) => path.to_owned(),
        None => RUN_DIRS
            .iter()
            .find(|(parent, _)| is_tmpfs(Path::new(parent)).unwrap_or(false))
            .map(|(_, path)| PathBuf::from(path))
            .ok_or(RunError::NoRunDir)?,
    };
    let state_dir = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let name = state_dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = run_dir.join(format!("{name}-{:016x}", fingerprint(&state_dir.to_string_lossy())));
    fs::create_dir_all(&folder).map_err(|source| RunError::RunDir { path: folder.clone(), source })?;
    Ok(folder)
}

/// The file of the entries.
pub fn file(folder: &Path) -> PathBuf {
    folder.join("connections")
}

/// Opens the entries that a daemon before has left, or makes new ones. `true`: there are some to recover.
pub fn open(folder: &Path, capacity: u32) -> Result<(Entries, bool), RunError> {
    let path = file(folder);
    let slots = ConnectionTable::slots_for(capacity);
    let boot = boot_id().map_err(RunError::BootId)?;
    if path.exists() {
        match Entries::open(&path, slots, boot) {
            Ok(entries) => return Ok((entries, true)),
            Err(error @ EntriesError::InUse { .. }) => return Err(error.into()),
            Err(error) => put_aside(&path, &error)?,
        }
    }
    Ok((Entries::create(&path, slots, boot)?, false))
}

fn put_aside(path: &Path, error: &EntriesError) -> Result<(), RunError> {
    let aside = path.with_extension("refused");
    log::error!("connections of before are lost, starting without: {error} (kept as {})", aside.display());
    fs::rename(path, &aside).map_err(|source| RunError::RunDir { path: path.to_owned(), source })
}

/// Takes the entries of before into the table and finds their destinations again.
pub fn recover(connections: &ConnectionTable, registry: &mut Registry, routes: &mut dyn Routes, now: Tick) -> Recovered {
    connections.recover(now, &mut |connection| {
        let Some(protocol) = transport(connection.protocol) else { return Recovery::Drop };
        let destination = DestinationKey { address: connection.destination.0, port: connection.destination.1 };
        let id = registry.slot_of_entry(protocol, connection.virtual_address, destination, connection.method, routes);
        count(registry, id, connection);
        Recovery::Keep { destination_id: id.0, client_hop: HopId::UNKNOWN.0 }
    })
}

fn transport(protocol: Protocol) -> Option<TransportProtocol> {
    match protocol {
        Protocol::TCP => Some(TransportProtocol::Tcp),
        Protocol::UDP => Some(TransportProtocol::Udp),
        Protocol::SCTP => Some(TransportProtocol::Sctp),
        _ => None,
    }
}

fn count(registry: &Registry, id: DestinationId, connection: &Connection) {
    let Some(destination) = registry.destination(id) else { return };
    match connection.kind {
        Kind::Connection => destination.load.add(connection.state.is_active(), destination.upper_threshold),
        Kind::Template => destination.load.add_template(destination.upper_threshold),
    }
}

/// Which template controls which connection is not in the file; the services tell it again.
pub fn relate_templates(connections: &ConnectionTable, table: &Table) {
    let mut controlled = Vec::new();
    connections.for_each(|connection| {
        if connection.kind == Kind::Connection {
            let flow = FlowKey::new(connection.protocol, connection.client, connection.virtual_address);
            let key = table.service(&flow).and_then(|service| service.template_key(&flow));
            controlled.extend(key.map(|key| (flow, key)));
        }
    });
    for (flow, key) in controlled {
        let hit = connections.lookup(connections.hash(&flow), &flow);
        if let (Some(hit), Some(template)) = (hit, connections.lookup_template(&key)) {
            connections.control(hit.entry, template);
        }
    }
}
