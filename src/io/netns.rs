//! Named network namespaces, as `ip netns` knows them.
//!
//! A [`Namespace`] is made by [`Namespace::create`]: a new network stack, pinned by a bind mount in [`DIRECTORY`], so
//! that `ip netns exec NAME …` and `nsenter --net=/run/netns/NAME …` find it. It is deleted when dropped. The
//! kernel frees it once no process, socket or descriptor is left in it.
//!
//! A network namespace belongs to a *thread*: [`Namespace::enter`] moves the calling one for good, and
//! [`Namespace::run`] runs a closure on a thread of its own. After either, `/proc/sys/net` shows the namespace
//! (it is resolved by thread), but `/sys/class/net` still shows the interfaces of the mount's owner: ask netlink.

#![allow(
    unsafe_code,
    reason = "setns, unshare, prctl and mount have no safe wrapper among our dependencies"
)]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// Where named namespaces are mounted; the same place as iproute2's.
pub const DIRECTORY: &str = "/run/netns";

/// What could not be done with a namespace, and why.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}")]
pub struct Error {
    /// What was tried, on what.
    pub action: String,
    /// What the kernel said.
    pub source: io::Error,
}

impl Error {
    fn new(action: impl Into<String>, source: io::Error) -> Error {
        Error {
            action: action.into(),
            source,
        }
    }

    fn last(action: impl Into<String>) -> Error {
        Error::new(action, io::Error::last_os_error())
    }
}

/// A network namespace with a name.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
    /// Made by us, so deleted with us.
    owned: bool,
}

impl Namespace {
    /// Makes a new namespace (its `lo` is down) and names it. Needs CAP_SYS_ADMIN.
    pub fn create(name: &str) -> Result<Namespace, Error> {
        let path = path_of(name)?;
        prepare_directory()?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| Error::new(format!("create {}", path.display()), source))?;
        // From here on the file is ours to remove again.
        let made = on_thread(|| {
            unshare_network()?;
            let own = Path::new("/proc/thread-self/ns/net");
            mount(own, &path, libc::MS_BIND)
                .map_err(|source| Error::new(format!("bind {} on {}", own.display(), path.display()), source))
        })
        .and_then(|()| open_file(&path));
        match made {
            Ok(file) => Ok(Namespace {
                name: name.to_owned(),
                file,
                owned: true,
            }),
            Err(error) => {
                if let Err(left) = delete(name) {
                    log::warn!("after a failed start: {left}");
                }
                Err(error)
            }
        }
    }

    /// Opens a namespace that somebody else made; it stays when this is dropped.
    pub fn open(name: &str) -> Result<Namespace, Error> {
        let path = path_of(name)?;
        Ok(Namespace {
            name: name.to_owned(),
            file: open_file(&path)?,
            owned: false,
        })
    }

    /// The namespace of the calling thread, named `name` for messages only.
    pub fn current(name: &str) -> Result<Namespace, Error> {
        Ok(Namespace {
            name: name.to_owned(),
            file: open_file(Path::new("/proc/thread-self/ns/net"))?,
            owned: false,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Moves the calling thread into it, for good. Sockets made before stay where they were made.
    pub fn enter(&self) -> Result<(), Error> {
        set_network(self.file.as_raw_fd())
            .map_err(|source| Error::new(format!("enter namespace {}", self.name), source))
    }

    /// Runs `work` on a new thread inside, waits for it, and passes its panic on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// Starts a thread inside and leaves it running.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T, Error>>, Error> {
        let inside = self.try_clone()?;
        thread::Builder::new()
            .name(self.name.clone())
            .spawn(move || {
                inside.enter()?;
                Ok(work())
            })
            .map_err(|source| Error::new(format!("start a thread for namespace {}", self.name), source))
    }

    /// A command that will run inside. It is killed when the *thread* that spawns it ends (`PR_SET_PDEATHSIG`),
    /// so that nothing outlives its parent: spawn it from a thread that stays.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command, Error> {
        let inside = self.try_clone()?;
        let parent = std::process::id();
        let mut command = Command::new(program);
        let prepare = move || {
            set_network(inside.file.as_raw_fd())?;
            die_with_parent(parent)
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed: `prepare` makes the system calls
        // setns, prctl and getppid, and allocates nothing (io::Error::last_os_error holds a number).
        unsafe { command.pre_exec(prepare) };
        Ok(command)
    }

    /// Sets a sysctl of the namespace: `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.5/rp_filter`.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<(), Error> {
        self.run(|| set_sysctl(name, value))?
    }

    /// Reads a sysctl of the namespace, without the newline.
    pub fn sysctl(&self, name: &str) -> Result<String, Error> {
        self.run(|| sysctl(name))?
    }

    /// A second handle that does not delete the namespace when dropped.
    pub fn try_clone(&self) -> Result<Namespace, Error> {
        let file = self
            .file
            .try_clone()
            .map_err(|source| Error::new(format!("duplicate the handle of namespace {}", self.name), source))?;
        Ok(Namespace {
            name: self.name.clone(),
            file,
            owned: false,
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = delete(&self.name)
        {
            log::warn!("{error}");
        }
    }
}

/// Unmounts and removes a named namespace. The kernel frees it when the last user is gone.
pub fn delete(name: &str) -> Result<(), Error> {
    let path = path_of(name)?;
    let target = c_path(&path)?;
    // SAFETY: `target` is a NUL-terminated path that outlives the call.
    if unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) } != 0 {
        let error = io::Error::last_os_error();
        // EINVAL: the file is there but nothing is mounted on it (a creation that failed half-way).
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(Error::new(format!("unmount {}", path.display()), error));
        }
    }
    fs::remove_file(&path).map_err(|source| Error::new(format!("remove {}", path.display()), source))
}

/// Names of all named namespaces that start with `prefix`.
pub fn list(prefix: &str) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::new(format!("read {DIRECTORY}"), error)),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    Ok(names)
}

/// Sets a sysctl in the namespace of the calling thread. Dots separate parts, unless the name has slashes (for
/// interface names with dots).
pub fn set_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = sysctl_path(name);
    fs::write(&path, value).map_err(|source| Error::new(format!("set {name} = {value}"), source))
}

/// Reads a sysctl in the namespace of the calling thread, without the newline.
pub fn sysctl(name: &str) -> Result<String, Error> {
    fs::read_to_string(sysctl_path(name))
        .map(|text| text.trim_end().to_owned())
        .map_err(|source| Error::new(format!("read sysctl {name}"), source))
}

fn sysctl_path(name: &str) -> PathBuf {
    let relative = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    // A thread's own network files are below its own /proc entry; /proc/sys/net follows the opening thread.
    Path::new("/proc/sys").join(relative)
}

/// Runs `work` on a scoped thread, so that what it does to its namespace dies with the thread.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let handle = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| Error::new("start a thread", source))?;
        match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn path_of(name: &str) -> Result<PathBuf, Error> {
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(Error::new(
            format!("namespace name {name:?}"),
            io::Error::from(io::ErrorKind::InvalidInput),
        ));
    }
    Ok(Path::new(DIRECTORY).join(name))
}

fn c_path(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(format!("path {path:?}"), io::Error::from(io::ErrorKind::InvalidInput)))
}

fn open_file(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::new(format!("open {}", path.display()), source))
}

/// Makes [`DIRECTORY`] a shared mount point, as iproute2 does, so that a namespace made or deleted in one mount
/// namespace is made or deleted in all of them.
fn prepare_directory() -> Result<(), Error> {
    let directory = Path::new(DIRECTORY);
    fs::create_dir_all(directory).map_err(|source| Error::new(format!("create {DIRECTORY}"), source))?;
    let shared = libc::MS_SHARED | libc::MS_REC;
    match mount_flags(directory, shared) {
        Ok(()) => Ok(()),
        // EINVAL: not a mount point yet.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            mount(directory, directory, libc::MS_BIND | libc::MS_REC)
                .and_then(|()| mount_flags(directory, shared))
                .map_err(|source| Error::new(format!("make {DIRECTORY} a shared mount"), source))
        }
        Err(error) => Err(Error::new(format!("make {DIRECTORY} a shared mount"), error)),
    }
}

fn mount_flags(target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    mount(Path::new("none"), target, flags)
}

fn mount(source: &Path, target: &Path, flags: libc::c_ulong) -> io::Result<()> {
    let source = CString::new(source.as_os_str().as_bytes())?;
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: both paths are NUL-terminated and outlive the call; these flags read neither type nor data.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            c"none".as_ptr(),
            flags,
            std::ptr::null(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn unshare_network() -> Result<(), Error> {
    // SAFETY: unshare(CLONE_NEWNET) changes the calling thread's network namespace only and touches no memory.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(Error::last("make a network namespace (needs root)"));
    }
    Ok(())
}

/// setns; async-signal-safe.
fn set_network(namespace: RawFd) -> io::Result<()> {
    // SAFETY: setns takes a descriptor and a flag; a descriptor that is no network namespace is refused.
    if unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has the kernel kill this process when the thread that forked it ends; async-signal-safe.
fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number by value.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have died before prctl: then nobody would tell us.
    // SAFETY: getppid takes and touches nothing.
    if unsafe { libc::getppid() }.cast_unsigned() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// Whether this process may make namespaces: effective user id 0.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes and touches nothing.
    unsafe { libc::geteuid() == 0 }
}

/// When set to 1, a test that cannot have what it needs (root, a program) fails.
pub const REQUIRE_VARIABLE: &str = "UVS_REQUIRE_ROOT_TESTS";

/// For tests: whether namespaces can be made. If not, see [`not_run`].
pub fn can_test() -> bool {
    if !is_root() {
        not_run("NAMESPACE TEST NOT RUN: needs root");
    }
    is_root()
}

/// For tests: says what does not run and why, on the terminal itself, past the capture of passing tests' output.
/// Panics where [`REQUIRE_VARIABLE`] says that it must run.
pub fn not_run(what: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let required = std::env::var(REQUIRE_VARIABLE).is_ok_and(|value| value == "1");
    assert!(!required, "{what}, and {REQUIRE_VARIABLE}=1 wants it run: {test}");
    say(&format!("{what}: {test}"));
}

/// For tests: a line on the terminal itself, past the capture of passing tests' output.
pub fn say(line: &str) {
    // Not eprintln!, which is captured. If this fails there is nowhere left to say it.
    let _ = io::Write::write_all(&mut io::stderr(), format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unique(what: &str) -> String {
        format!("uvs-{}-{what}", std::process::id())
    }

    #[test]
    fn names_that_are_no_file_names_are_refused() {
        for name in ["", ".", "..", "a/b", "../a", "a\0b"] {
            assert!(path_of(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn sysctl_names_with_slashes_keep_their_dots() {
        assert_eq!(
            sysctl_path("net.ipv4.ip_forward"),
            Path::new("/proc/sys/net/ipv4/ip_forward")
        );
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.5/rp_filter"),
            Path::new("/proc/sys/net/ipv4/conf/eth0.5/rp_filter")
        );
    }

    #[test]
    fn a_namespace_is_another_stack_and_goes_with_its_handle() {
        if !can_test() {
            return;
        }
        let name = unique("life");
        let namespace = Namespace::create(&name).unwrap();
        assert!(Namespace::create(&name).is_err(), "a second of the same name");
        let path = namespace.path();
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let inside = namespace
            .run(|| fs::read_link("/proc/thread-self/ns/net").unwrap())
            .unwrap();
        assert_ne!(own, inside);
        assert_eq!(
            fs::read_link("/proc/thread-self/ns/net").unwrap(),
            own,
            "the caller stays"
        );
        // The sysctl of the namespace changes, ours does not.
        let before = sysctl("net.ipv4.ip_default_ttl").unwrap();
        namespace.set_sysctl("net.ipv4.ip_default_ttl", "77").unwrap();
        assert_eq!(namespace.sysctl("net.ipv4.ip_default_ttl").unwrap(), "77");
        assert_eq!(sysctl("net.ipv4.ip_default_ttl").unwrap(), before);
        // A command runs inside.
        let output = namespace
            .command("cat")
            .unwrap()
            .arg("/proc/sys/net/ipv4/ip_default_ttl")
            .output()
            .unwrap();
        assert_eq!(output.stdout, b"77\n");
        assert_eq!(list(&name).unwrap(), std::slice::from_ref(&name));
        drop(namespace);
        assert!(!path.exists());
    }
}
