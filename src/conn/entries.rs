//! The memory of the entries: slots of 64 bytes in one mapping, either anonymous or a tmpfs file that outlives a
//! crash of the daemon.
//!
//! The file is one header page, then the slots. It is allocated whole when it is made, so a full tmpfs is an
//! error then and never a SIGBUS later, and locked while it is open, so two daemons never share one. Everything in the
//! mapping is atomic words: whatever another process writes there, it is a number.
#![allow(unsafe_code, reason = "maps memory, advises the kernel about it, and uses SSE2")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};

/// Bytes of a slot: one cache line.
pub const SLOT_BYTES: usize = 64;
/// Bytes in front of the slots of a file.
const HEADER_BYTES: usize = 4096;
/// Bytes of a huge page (x86-64, arm64 with pages of 4 KiB).
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// First word of a file: "uvsconn1" as a number.
const MAGIC: u64 = u64::from_be_bytes(*b"uvsconn1");
/// Layout of header and slots; goes up whenever either changes.
const VERSION: u64 = 1;

/// Header words.
const HEADER_MAGIC: usize = 0;
const HEADER_VERSION: usize = 1;
const HEADER_SLOTS: usize = 2;
const HEADER_BOOT_ID: usize = 3; // and 4

/// A slot. See [`super::layout`].
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Slot {
    pub words: [AtomicU64; 8],
}

const _: () = assert!(size_of::<Slot>() == SLOT_BYTES && HEADER_BYTES.is_multiple_of(SLOT_BYTES));

/// Why the entries' file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum EntriesError {
    /// The system refused something.
    #[error("connection entries {}: {what}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The file system has no room for all entries.
    #[error("connection entries {}: no room for {bytes} bytes: {source}", path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Bytes wanted.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// Not on tmpfs: writing entries would be writing to a disk.
    #[error("connection entries {}: not on tmpfs: give a --run-dir that is, such as /run/uvs or /dev/shm/uvs", path.display())]
    NotTmpfs {
        /// The file.
        path: PathBuf,
    },
    /// Another process holds it.
    #[error("connection entries {}: in use by another process", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Not a file of entries, or one whose making was cut short.
    #[error("connection entries {}: not a file of connection entries", path.display())]
    NotEntries {
        /// The file.
        path: PathBuf,
    },
    /// Made by another version of uvs.
    #[error("connection entries {}: layout version {found}, this uvs has {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// Made before the machine was started the last time: its times mean nothing.
    #[error("connection entries {}: from before the last boot", path.display())]
    OtherBoot {
        /// The file.
        path: PathBuf,
    },
    /// Shorter or longer than its header says.
    #[error("connection entries {}: {found} bytes, its header says {wanted}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes it has.
        found: u64,
        /// Bytes it should have.
        wanted: u64,
    },
}

/// The entries' memory.
#[derive(Debug)]
pub struct Entries {
    map: MmapRaw,
    /// Bytes in front of the first slot.
    offset: usize,
    slots: usize,
    /// Held open for its lock.
    _file: Option<File>,
}

impl Entries {
    /// Private memory without a file: gone with the process.
    pub fn anonymous(slots: u32) -> io::Result<Entries> {
        let bytes = slots as usize * SLOT_BYTES;
        // Of whole huge pages, which the kernel then begins at a multiple of their size.
        let map = MmapOptions::new()
            .len(bytes.next_multiple_of(HUGE_PAGE_BYTES))
            .map_anon()?;
        // Advice only: without huge pages it is slower, not wrong.
        drop(map.advise(Advice::HugePage));
        let entries = Entries {
            map: map.into(),
            offset: 0,
            slots: slots as usize,
            _file: None,
        };
        entries.populate();
        Ok(entries)
    }

    /// A new file with every slot free. There must be none at `path`.
    pub fn create(path: &Path, slots: u32, boot_id: [u8; 16]) -> Result<Entries, EntriesError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| io_error(path, "cannot create it", e))?;
        let made = Entries::fill(path, file, slots, boot_id);
        if made.is_err() {
            // The error at hand is the one to tell; a left-over would only be refused as `NotEntries`.
            drop(std::fs::remove_file(path));
        }
        made
    }

    fn fill(path: &Path, file: File, slots: u32, boot_id: [u8; 16]) -> Result<Entries, EntriesError> {
        lock(path, &file)?;
        if !is_tmpfs_file(&file).map_err(|e| io_error(path, "cannot ask its file system", e))? {
            return Err(EntriesError::NotTmpfs { path: path.into() });
        }
        let bytes = file_bytes(slots);
        allocate(&file, bytes).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM | libc::EFBIG) => EntriesError::NoRoom {
                path: path.into(),
                bytes,
                source,
            },
            _ => io_error(path, "cannot allocate it", source),
        })?;
        let entries = Entries::map_file(path, file, slots)?;
        let header = entries.header();
        header[HEADER_VERSION].store(VERSION, Ordering::Relaxed);
        header[HEADER_SLOTS].store(slots as u64, Ordering::Relaxed);
        let [high, low] = boot_words(boot_id);
        header[HEADER_BOOT_ID].store(high, Ordering::Relaxed);
        header[HEADER_BOOT_ID + 1].store(low, Ordering::Relaxed);
        // Last, so that a file with the mark is whole.
        header[HEADER_MAGIC].store(MAGIC, Ordering::Release);
        Ok(entries)
    }

    /// The file of a daemon that was here before, with its entries as they were left; however many slots it has.
    pub fn open(path: &Path, boot_id: [u8; 16]) -> Result<Entries, EntriesError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| io_error(path, "cannot open it", e))?;
        lock(path, &file)?;
        let found = file
            .metadata()
            .map_err(|e| io_error(path, "cannot read its size", e))?
            .len();
        if found < HEADER_BYTES as u64 {
            return Err(EntriesError::NotEntries { path: path.into() });
        }
        let header = Entries::map_file(path, file, 0)?;
        let slots = check_header(path, header.header(), found, boot_id)?;
        let file = header
            ._file
            .ok_or_else(|| EntriesError::NotEntries { path: path.into() })?;
        // A shorter length than allocated cannot be: the length was just checked. Holes can: someone may have punched
        // some, so allocate again, which does nothing where pages are.
        allocate(&file, found).map_err(|e| io_error(path, "cannot allocate it", e))?;
        Entries::map_file(path, file, slots)
    }

    fn map_file(path: &Path, file: File, slots: u32) -> Result<Entries, EntriesError> {
        let bytes = file_bytes(slots) as usize;
        let (map, start) = map_aligned(&file, bytes).map_err(|e| io_error(path, "cannot map it", e))?;
        let entries = Entries {
            map,
            offset: start + HEADER_BYTES,
            slots: slots as usize,
            _file: Some(file),
        };
        entries.populate();
        Ok(entries)
    }

    /// Where in the mapping the memory begins, and its length.
    fn range(&self) -> (usize, usize) {
        match self.offset.checked_sub(HEADER_BYTES) {
            None => (0, self.map.len()),
            Some(start) => (start, HEADER_BYTES + self.slots * SLOT_BYTES),
        }
    }

    /// Maps every page now, so that no worker faults.
    fn populate(&self) {
        let (start, length) = self.range();
        // Advice only, as above. PopulateWrite is Linux 5.14; before that pages fault in one by one.
        drop(self.map.advise_range(Advice::PopulateWrite, start, length));
    }

    /// Makes the `n`th 2 MiB of a file's memory a huge page if the kernel will (Linux 6.1): tmpfs makes none by itself. Some
    /// ms, in which workers wait that come there. `false`: there is no `n`th, or no file.
    pub fn make_huge_page(&self, n: usize) -> bool {
        let (start, length) = self.range();
        let there = self.offset != 0 && n < length / HUGE_PAGE_BYTES;
        if there {
            let at = start + n * HUGE_PAGE_BYTES;
            collapse(self.map.as_ptr() as usize + at);
            // What the kernel took out and then gave up on is mapped again; advice only, as in `populate`.
            drop(self.map.advise_range(Advice::PopulateWrite, at, HUGE_PAGE_BYTES));
        }
        there
    }

    /// The header of a file.
    fn header(&self) -> &[AtomicU64] {
        let start = self.offset - HEADER_BYTES;
        // SAFETY: the file is mapped from `start` on, at least one page long, page-aligned, for as long as `self` lives,
        // and is only ever accessed as atomic words.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(start).cast(), HEADER_BYTES / 8) }
    }

    /// The boot that the file is of, as in its header; `None`: there is no file.
    pub fn boot_id(&self) -> Option<u128> {
        let header = (self.offset != 0).then(|| self.header())?;
        let word = |n: usize| header[n].load(Ordering::Relaxed) as u128;
        Some(word(HEADER_BOOT_ID) << 64 | word(HEADER_BOOT_ID + 1))
    }

    /// Every slot.
    #[inline]
    pub fn slots(&self) -> &[Slot] {
        // SAFETY: the mapping holds `offset + slots * 64` bytes (it was made so), is page-aligned and `offset` is a
        // multiple of 64, lives as long as `self`, and any bits are valid atomic words.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.offset).cast(), self.slots) }
    }
}

/// Maps the file where huge pages can be: at a multiple of their size, inside a mapping of more than that. Returns that mapping
/// and where in it the file begins.
fn map_aligned(file: &File, bytes: usize) -> io::Result<(MmapRaw, usize)> {
    let room = MmapOptions::new().len(bytes + HUGE_PAGE_BYTES).map_anon()?;
    let start = room.as_ptr().align_offset(HUGE_PAGE_BYTES);
    // SAFETY: the range lies inside `room`, which nobody uses yet and which unmaps all of it at its end; the
    // descriptor is open.
    let mapped = unsafe {
        libc::mmap(
            room.as_ptr().add(start).cast_mut().cast(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            file.as_raw_fd(),
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok((room.into(), start))
}

fn file_bytes(slots: u32) -> u64 {
    HEADER_BYTES as u64 + slots as u64 * SLOT_BYTES as u64
}

fn check_header(path: &Path, header: &[AtomicU64], length: u64, boot_id: [u8; 16]) -> Result<u32, EntriesError> {
    let path = path.to_path_buf();
    let word = |n: usize| header[n].load(Ordering::Acquire);
    if word(HEADER_MAGIC) != MAGIC {
        return Err(EntriesError::NotEntries { path });
    }
    if word(HEADER_VERSION) != VERSION {
        return Err(EntriesError::Version {
            path,
            found: word(HEADER_VERSION),
        });
    }
    if [word(HEADER_BOOT_ID), word(HEADER_BOOT_ID + 1)] != boot_words(boot_id) {
        return Err(EntriesError::OtherBoot { path });
    }
    let slots = word(HEADER_SLOTS).min(u32::MAX as u64) as u32;
    let wanted = file_bytes(slots);
    if length != wanted {
        return Err(EntriesError::Length {
            path,
            found: length,
            wanted,
        });
    }
    Ok(slots)
}

fn boot_words(id: [u8; 16]) -> [u64; 2] {
    let id = u128::from_be_bytes(id);
    [(id >> 64) as u64, id as u64]
}

fn io_error(path: &Path, what: &'static str, source: io::Error) -> EntriesError {
    EntriesError::Io {
        path: path.into(),
        what,
        source,
    }
}

fn lock(path: &Path, file: &File) -> Result<(), EntriesError> {
    // SAFETY: flock takes no pointers; the descriptor is open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    Err(match source.kind() {
        io::ErrorKind::WouldBlock => EntriesError::InUse { path: path.into() },
        _ => io_error(path, "cannot lock it", source),
    })
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    // SAFETY: fallocate takes no pointers; the descriptor is open.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes as libc::off_t) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn is_tmpfs_file(file: &File) -> io::Result<bool> {
    let mut buffer = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open and the buffer is a statfs to write to.
    if unsafe { libc::fstatfs(file.as_raw_fd(), buffer.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs succeeded, so it has filled the buffer.
    let kind = unsafe { buffer.assume_init() }.f_type;
    Ok(kind == libc::TMPFS_MAGIC)
}

/// The directory is on tmpfs.
pub fn is_tmpfs(directory: &Path) -> io::Result<bool> {
    is_tmpfs_file(&File::open(directory)?)
}

/// The kernel's id of this boot.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("boot_id is {text:?}, not a UUID")))
}

/// Asks for huge pages under memory that is still untouched.
pub fn advise_huge_pages<T>(memory: &mut [std::mem::MaybeUninit<T>]) {
    let start = (memory.as_ptr() as usize).next_multiple_of(4096);
    let end = (memory.as_ptr() as usize + size_of_val(memory)) & !4095;
    if start < end {
        // SAFETY: the range lies inside `memory`, and MADV_HUGEPAGE changes no content. Its result is of no interest:
        // without huge pages it is slower, not wrong.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

/// Makes one huge page of the small ones from `start` on.
fn collapse(start: usize) {
    const MADV_COLLAPSE: libc::c_int = 25;
    // SAFETY: the range lies in a mapping of ours, and collapsing changes no content. Failure is slower, not wrong.
    unsafe { libc::madvise(start as *mut libc::c_void, HUGE_PAGE_BYTES, MADV_COLLAPSE) };
}

/// Compares eight 16-bit lanes (lane 0 is the lowest of `low`) with `wanted`: bit n = lane n is equal. May have bits
/// too many, never too few. One compare instead of eight, at every lookup.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn equal_lanes(low: u64, high: u64, wanted: u16) -> u32 {
    use core::arch::x86_64::{
        _mm_cmpeq_epi16, _mm_movemask_epi8, _mm_packs_epi16, _mm_set_epi64x, _mm_set1_epi16, _mm_setzero_si128,
    };
    // SAFETY: SSE2 is part of x86-64, and these work on registers only.
    unsafe {
        let equal = _mm_cmpeq_epi16(_mm_set_epi64x(high as i64, low as i64), _mm_set1_epi16(wanted as i16));
        _mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128())) as u32
    }
}

/// As above, where there is no SSE2.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub fn equal_lanes(low: u64, high: u64, wanted: u16) -> u32 {
    equal_lanes_portable(low, high, wanted)
}

/// The same with plain arithmetic. Exact but for lanes above an equal one.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn equal_lanes_portable(low: u64, high: u64, wanted: u16) -> u32 {
    const ONES: u64 = 0x0001_0001_0001_0001;
    let equal = |word: u64| {
        let x = word ^ (ONES * wanted as u64);
        let tops = x.wrapping_sub(ONES) & !x & (ONES << 15);
        (tops >> 15 & 1 | tops >> 30 & 2 | tops >> 45 & 4 | tops >> 60 & 8) as u32
    };
    equal(low) | equal(high) << 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_compare_as_one_by_one() {
        let lanes = [0x1234u16, 0, 1, 0xffff, 0x8000, 0x1234, 0x7fff, 2];
        let word = |part: &[u16]| part.iter().rev().fold(0u64, |w, lane| w << 16 | *lane as u64);
        let (low, high) = (word(&lanes[..4]), word(&lanes[4..]));
        for wanted in [0x1234, 0, 1, 0xffff, 0x8000, 0x7fff, 2, 3] {
            let expected = (0..8).filter(|n| lanes[*n] == wanted).fold(0, |bits, n| bits | 1 << n);
            assert_eq!(equal_lanes(low, high, wanted), expected, "{wanted:x}");
            let portable = equal_lanes_portable(low, high, wanted);
            assert_eq!(portable & expected, expected, "{wanted:x}: too few");
            assert_eq!(
                portable.trailing_zeros(),
                expected.trailing_zeros(),
                "{wanted:x}: the first is exact"
            );
        }
    }
}
