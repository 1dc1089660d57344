//! The connection entries' file: where it is, and what a daemon before left in it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use arrayvec::ArrayVec;

use super::registry::{Registry, Routes};
use crate::conn::{
    Connection, ConnectionTable, Entries, EntriesError, INVALID_TEMPLATE_PORT, Kind, Recovered, Recovery, Tick,
    WorkerId,
};
use crate::conn::{boot_id, is_tmpfs, move_entries};
use crate::io::unix;
use crate::packet::{Family, FlowKey, Protocol};
use crate::service::{DestinationKey, FTP_PORT, Method, ServiceKey, TransportProtocol, may_be_ftp_data};
use crate::table::{Destination, DestinationId, HopId, Table};

/// Run directories that are tried when none is given.
const RUN_DIRS: [&str; 2] = ["/run/uvs", "/dev/shm/uvs"];
const FILE: &str = "connections";

/// Why there is no connection table.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Of the system.
    #[error("run directory {}: {action}: {source}", path.display())]
    System {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Others could write there.
    #[error("run directory {}: belongs to user {uid} with mode {mode:o}: others could forge connections there", path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its mode.
        mode: u32,
    },
    /// Neither default is on tmpfs.
    #[error("neither {} nor {} is on tmpfs: give a --run-dir that is", RUN_DIRS[0], RUN_DIRS[1])]
    NoTmpfs,
    /// Of the file.
    #[error("{0}")]
    Entries(#[from] EntriesError),
}

/// The file of one daemon.
#[derive(Debug)]
pub struct EntriesFile {
    path: PathBuf,
    /// The run directory.
    base: PathBuf,
}

impl EntriesFile {
    /// The place for a daemon with this state directory: a folder of its own below the run directory.
    pub fn place(run_dir: Option<&Path>, state_dir: &Path) -> Result<EntriesFile, RunDirError> {
        let state_dir = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        // A stable short name: the same directory has the same one at the next start.
        let name = format!("{:016x}", super::config::fingerprint(&state_dir.to_string_lossy()));
        let base = match run_dir {
            Some(path) => path.to_owned(),
            None => default_run_dir()?,
        };
        // What is wrong with it is said before anything depends on it.
        let there = base.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        if !is_tmpfs(there).unwrap_or(false) {
            return Err(EntriesError::NotTmpfs { path: base }.into());
        }
        let file = EntriesFile {
            path: base.join(name).join(FILE),
            base,
        };
        file.create_folder()?;
        Ok(file)
    }

    /// Makes the folders that are missing, for us alone.
    fn create_folder(&self) -> Result<(), RunDirError> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        for folder in [Some(&*self.base), self.path.parent()].into_iter().flatten() {
            private.create(folder).map_err(|source| RunDirError::System {
                path: folder.to_owned(),
                action: "cannot create it",
                source,
            })?;
            only_ours(folder)?;
        }
        Ok(())
    }

    /// Opens what a daemon before left, or makes it anew. `true`: there may be entries to recover.
    pub fn open(&self, capacity: u32) -> Result<(Entries, bool), RunDirError> {
        let boot_id = boot_id().map_err(|source| RunDirError::System {
            path: PathBuf::from("/proc/sys/kernel/random/boot_id"),
            action: "cannot read it",
            source,
        })?;
        let slots = ConnectionTable::slots_for(capacity);
        // Again: a daemon that was just ending may have removed its own.
        self.create_folder()?;
        self.remove_file(&self.unfinished())?;
        if self.path.exists() {
            match Entries::open(&self.path, boot_id) {
                Ok(entries) if entries.slots().len() == slots as usize => return Ok((entries, true)),
                Ok(entries) => return Ok((self.resize(entries, slots, boot_id)?, true)),
                Err(error @ (EntriesError::InUse { .. } | EntriesError::Io { .. })) => return Err(error.into()),
                Err(error) => {
                    log::warn!("{error}: starting without the connections in it");
                    self.remove_file(&self.path)?;
                }
            }
        }
        Ok((Entries::create(&self.path, slots, boot_id)?, false))
    }

    /// The entries in a file of so many slots, which takes the place of the one they were in.
    fn resize(&self, entries: Entries, slots: u32, boot_id: [u8; 16]) -> Result<Entries, RunDirError> {
        let new = self.unfinished();
        let (resized, lost) = match Entries::create(&new, slots, boot_id) {
            Ok(resized) => {
                let lost = move_entries(&entries, &resized);
                fs::rename(&new, &self.path).map_err(|source| RunDirError::System {
                    path: self.path.clone(),
                    action: "cannot replace it",
                    source,
                })?;
                (resized, lost)
            }
            // Not room for both files: by way of private memory, without a file for a moment.
            Err(EntriesError::NoRoom { .. }) => {
                let memory =
                    Entries::anonymous(entries.slots().len() as u32).map_err(|source| RunDirError::System {
                        path: self.path.clone(),
                        action: "no memory to move it",
                        source,
                    })?;
                move_entries(&entries, &memory);
                // Its room is free when nobody has it mapped any more.
                drop(entries);
                self.remove_file(&self.path)?;
                let resized = match Entries::create(&self.path, slots, boot_id) {
                    Ok(resized) => resized,
                    Err(error) => {
                        // For a start with the capacity of before.
                        let as_before = Entries::create(&self.path, memory.slots().len() as u32, boot_id)?;
                        move_entries(&memory, &as_before);
                        return Err(error.into());
                    }
                };
                let lost = move_entries(&memory, &resized);
                (resized, lost)
            }
            Err(error) => return Err(error.into()),
        };
        if lost > 0 {
            log::warn!("{lost} connections end: there is no room for them with the --connections of now");
        }
        Ok(resized)
    }

    /// Where a file is made that will take the place of the one that is there.
    fn unfinished(&self) -> PathBuf {
        self.path.with_extension("new")
    }

    fn remove_file(&self, path: &Path) -> Result<(), RunDirError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RunDirError::System {
                path: path.to_owned(),
                action: "cannot remove it",
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Removes the file: the next start begins without connections.
    pub fn remove(&self) {
        if let Err(error) = self.remove_file(&self.path) {
            log::error!("{error}");
        }
        if let Some(folder) = self.path.parent()
            && let Err(error) = fs::remove_dir(folder)
        {
            log::debug!("run directory {}: {error}", folder.display());
        }
    }
}

/// Nobody but root and us may put files there: what they hold becomes connections.
fn only_ours(folder: &Path) -> Result<(), RunDirError> {
    let found = fs::metadata(folder).map_err(|source| RunDirError::System {
        path: folder.to_owned(),
        action: "cannot look at it",
        source,
    })?;
    let trusted = [0, unix::effective_uid()].contains(&found.uid());
    let others_write = found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0;
    if trusted && !others_write {
        Ok(())
    } else {
        Err(RunDirError::NotOurs {
            path: folder.to_owned(),
            uid: found.uid(),
            mode: found.mode() & 0o7777,
        })
    }
}

fn default_run_dir() -> Result<PathBuf, RunDirError> {
    for path in RUN_DIRS {
        let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
        if is_tmpfs(parent).unwrap_or(false) {
            return Ok(PathBuf::from(path));
        }
    }
    Err(RunDirError::NoTmpfs)
}

/// Puts the entries that were left into the table, each with its destination's slot, and counts them. Before any worker
/// runs.
pub fn recover(
    connections: &ConnectionTable,
    now: Tick,
    registry: &mut Registry,
    routes: &mut dyn Routes,
) -> Recovered {
    connections.recover(now, &mut |connection| {
        let Some(id) = slot(connection, registry, routes) else {
            return Recovery::Drop;
        };
        if let Some(destination) = registry.destination(id) {
            count(connection, destination);
        }
        registry.remember_mark(connection);
        Recovery::Keep {
            destination_id: id.0,
            client_hop: HopId::UNKNOWN.0,
        }
    })
}

fn slot(connection: &Connection, registry: &mut Registry, routes: &mut dyn Routes) -> Option<DestinationId> {
    let (address, port) = connection.destination;
    let destination = DestinationKey { address, port };
    let services = services_of(connection)?;
    Some(registry.slot_of_entry(&services, destination, connection.method, routes))
}

/// The services that an entry can belong to, the likeliest first.
fn services_of(connection: &Connection) -> Option<ArrayVec<ServiceKey, 3>> {
    let (address, port) = connection.virtual_address;
    let invalid = [port, connection.destination.1] == [INVALID_TEMPLATE_PORT; 2];
    if connection.kind == Kind::Template && invalid {
        return None;
    }
    if connection.fwmark != 0 {
        let ipv6 = Family::of(connection.client.0) == Family::V6;
        let mark = ServiceKey::FwMark {
            mark: connection.fwmark,
            ipv6,
        };
        return Some(ArrayVec::from_iter([mark]));
    }
    let protocol = match connection.protocol {
        Protocol::TCP => TransportProtocol::Tcp,
        Protocol::UDP => TransportProtocol::Udp,
        Protocol::SCTP => TransportProtocol::Sctp,
        _ => return None,
    };
    let key = |port| ServiceKey::Address {
        protocol,
        address,
        port,
    };
    let mut services = ArrayVec::from_iter([key(port)]);
    // Of FTP are data connections, which have one port on both sides, and templates without one.
    let may_be_ftp = port == connection.destination.1 && may_be_ftp_data(port) || port == 0;
    services.extend((protocol == TransportProtocol::Tcp && may_be_ftp).then_some(key(FTP_PORT)));
    services.extend((port != 0).then_some(key(0)));
    Some(services)
}

fn count(connection: &Connection, destination: &Destination) {
    match connection.kind {
        Kind::Connection => destination.load.add(
            WorkerId::CONTROL.0,
            connection.state.is_active(),
            destination.upper_threshold,
        ),
        Kind::Template => destination.load.add_template(destination.upper_threshold),
    }
}

/// Which entry controls which connection is not in the file: the services tell again of templates, and FTP's control
/// connections have data connections between the same addresses. Not of templates of calls, as connections do not know their
/// Call-ID: such a template ends by its own time.
pub fn relate(connections: &ConnectionTable, table: &Table) {
    // Most often nothing: a million connections are not read once more for that.
    if !table.services.iter().any(|service| service.may_control()) {
        return;
    }
    let mut controlled = Vec::new();
    let mut controls = HashMap::new();
    let mut data = Vec::new();
    connections.for_each(|connection| {
        if connection.kind == Kind::Connection {
            let flow = FlowKey::new(connection.protocol, connection.client, connection.virtual_address);
            let service = match connection.fwmark {
                0 => table.service(&flow),
                mark => table.service_of_mark(mark, flow.family),
            };
            let addresses = (flow.source(), flow.destination(), connection.destination.0);
            let may_be_data = connection.method == Method::Masq && may_be_ftp_data(connection.virtual_address.1);
            if connection.helped {
                controls.insert(addresses, flow);
            } else if may_be_data && service.is_some_and(|service| service.template_port() == 0) {
                data.push((addresses, flow));
            }
            let key = service.and_then(|service| service.template_key(&flow));
            controlled.extend(key.map(|key| (flow, key)));
        }
    });
    let entry = |flow: &FlowKey| Some(connections.lookup(connections.hash(flow), flow)?.entry);
    for (addresses, flow) in data {
        let control = controls.get(&addresses).and_then(entry);
        if let Some((control, data)) = control.zip(entry(&flow)) {
            connections.control(data, control);
        }
    }
    for (flow, key) in controlled {
        let uncontrolled = entry(&flow).filter(|entry| !entry.is_controlled());
        if let Some((entry, template)) = uncontrolled.zip(connections.lookup_template(&key.into())) {
            connections.control(entry, template);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next start finds the file whatever way its state directory is written.
    #[test]
    fn one_place_for_one_state_directory() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        std::os::unix::fs::symlink(&state, folder.path().join("link")).unwrap();
        let run = folder.path().join("run");
        let place = |state_dir: PathBuf| EntriesFile::place(Some(&run), &state_dir).unwrap().path;
        let first = place(state.clone());
        for other in ["state/", "link", "state/../state"] {
            assert_eq!(place(folder.path().join(other)), first, "{other}");
        }
        assert_ne!(place(folder.path().to_owned()), first);
    }

    /// More or fewer slots than before: what was there is there, and no unfinished file is left.
    #[test]
    fn another_capacity_keeps_the_entries_file() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = EntriesFile::place(Some(&folder.path().join("run")), folder.path()).unwrap();
        drop(file.open(2000).unwrap());
        fs::write(file.unfinished(), "of a start that was cut off").unwrap();
        for capacity in [3000, 1500] {
            let (entries, left) = file.open(capacity).unwrap();
            assert!(left);
            assert_eq!(entries.slots().len(), ConnectionTable::slots_for(capacity) as usize);
            assert!(!file.unfinished().exists());
        }
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let run = folder.path().join("run");
        fs::create_dir(&run).unwrap();
        fs::set_permissions(&run, fs::Permissions::from_mode(0o777)).unwrap();
        let error = EntriesFile::place(Some(&run), folder.path()).unwrap_err().to_string();
        assert!(error.contains("mode 777") && error.contains("forge"), "{error}");
    }
}
