//! BPF maps: what a program and we both read and write.
#![allow(unsafe_code, reason = "bpf(2) takes pointers to keys and values")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::{BpfError, Command, bpf, bpf_open, object_name};

/// Map types (`enum bpf_map_type`) in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapType {
    /// Hash table. Elements are allocated when they come.
    Hash = 1,
    /// Array of values.
    Array = 2,
    /// Array with one value a CPU.
    PerCpuArray = 6,
    /// AF_XDP sockets by queue.
    XskMap = 17,
}

/// Memory on demand instead of all at once.
const F_NO_PREALLOC: u32 = 1;

/// A map. Lives as long as this or a program that uses it.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    name: &'static str,
    key_len: usize,
    value_len: usize,
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_len: u32,
    value_len: u32,
    entries_max: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct Element {
    fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Map {
    /// Makes one. Sizes in bytes.
    pub fn create(
        kind: MapType,
        name: &'static str,
        key_len: usize,
        value_len: usize,
        entries_max: u32,
    ) -> Result<Map, BpfError> {
        let mut attribute = MapCreate {
            kind: kind as u32,
            key_len: key_len as u32,
            value_len: value_len as u32,
            entries_max,
            flags: if kind == MapType::Hash { F_NO_PREALLOC } else { 0 },
            inner_map_fd: 0,
            numa_node: 0,
            name: object_name(name),
        };
        // SAFETY: BPF_MAP_CREATE takes no pointers here.
        match unsafe { bpf_open(Command::MapCreate, &mut attribute) } {
            Ok(fd) => Ok(Map {
                fd,
                name,
                key_len,
                value_len,
            }),
            Err(e) => Err(BpfError::new(format!("create the BPF map {name}"), e)),
        }
    }

    /// Sets the value of `key`. Value buffers of per-CPU maps are not for this.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), BpfError> {
        assert_eq!(value.len(), self.value_len, "{}: wrong value size", self.name);
        let mut element = self.element(key, value.as_ptr() as u64);
        // SAFETY: key and value are readable for the sizes the map was made with (asserted).
        match unsafe { bpf(Command::MapUpdate, &mut element) } {
            Ok(_) => Ok(()),
            Err(e) => Err(BpfError::new(format!("add to the BPF map {}", self.name), e)),
        }
    }

    /// Removes `key`; `false` if it was not there.
    pub fn remove(&self, key: &[u8]) -> Result<bool, BpfError> {
        let mut element = self.element(key, 0);
        // SAFETY: the key is readable for the size the map was made with (asserted).
        match unsafe { bpf(Command::MapDelete, &mut element) } {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(BpfError::new(format!("remove from the BPF map {}", self.name), e)),
        }
    }

    /// The sum over all CPUs of a 64-bit counter in a per-CPU array.
    pub fn sum(&self, index: u32) -> Result<u64, BpfError> {
        assert_eq!(self.value_len, 8, "{}: no 64-bit counters", self.name);
        let mut values = vec![0u64; possible_cpus().map_err(|e| BpfError::new("count the possible CPUs", e))?];
        let key = index.to_ne_bytes();
        let mut element = self.element(&key, values.as_mut_ptr() as u64);
        // SAFETY: the kernel writes one 8-byte value a possible CPU, and the vector has that many.
        match unsafe { bpf(Command::MapLookup, &mut element) } {
            Ok(_) => Ok(values.iter().fold(0, |sum, v| sum.wrapping_add(*v))),
            Err(e) => Err(BpfError::new(format!("read the BPF map {}", self.name), e)),
        }
    }

    fn element(&self, key: &[u8], value: u64) -> Element {
        assert_eq!(key.len(), self.key_len, "{}: wrong key size", self.name);
        Element {
            fd: self.fd.as_raw_fd() as u32,
            padding: 0,
            key: key.as_ptr() as u64,
            value,
            flags: 0,
        }
    }
}

impl AsRawFd for Map {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// CPUs that may ever come up: per-CPU values are copied for each.
fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    // "0-3", "0" or "0,2-5": the last number is the highest.
    let last = text
        .trim()
        .rsplit(['-', ','])
        .next()
        .and_then(|n| n.parse::<usize>().ok());
    match last {
        Some(highest) => Ok(highest + 1),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/sys/devices/system/cpu/possible: '{text}'"),
        )),
    }
}
