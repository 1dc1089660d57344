//! The journal: the changes since rules.json was written, so that a change costs what it says, not what all rules say.
//!
//! ```text
//! line 1      header: which rules.json it continues
//! each more   one change, or several that were saved at once; oldest first
//!
//! a line:     CRC-32C of the JSON in 8 hex digits | space | JSON, without line breaks | \n
//! ```
//!
//! A line is on the disk before the next one is begun. So what a crash cuts off is the last line, mostly without its end,
//! and nobody was told that it is saved. Any other line that is not as it was written is damage. In both cases the changes
//! before it count.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::protocol::Command;

/// Format of the journal that this program writes and reads.
pub const FORMAT: u32 = 1;
/// Length of a journal at most.
pub const BYTES_MAX: u64 = 256 << 20;

/// Names one rules.json among all that were ever written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Counts them.
    pub generation: u64,
    /// Of its commands.
    pub fingerprint: u64,
}

/// What one line says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The commands that were carried out.
    pub commands: Vec<Command>,
    /// As in [`Saved`](super::store::Saved), after them.
    pub config: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    program: String,
    format: u32,
    version: String,
    base: Base,
}

/// The journal of one rules.json, being written. Its file is made with the first change.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    base: Base,
    file: Option<File>,
    bytes: u64,
}

impl Journal {
    /// One without changes, to be written at `path` in the place of whatever is there.
    pub fn new(path: PathBuf, base: Base) -> Journal {
        Journal {
            path,
            base,
            file: None,
            bytes: 0,
        }
    }

    /// How long it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a change. When this returns `Ok` it is on the disk; after an error the journal is of no more use.
    pub fn append(&mut self, change: &Change) -> io::Result<()> {
        let mut text = Vec::new();
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                push_line(&mut text, &self.header())?;
                create(&self.path)?
            }
        };
        push_line(&mut text, change)?;
        let bytes = self.bytes + text.len() as u64;
        if bytes > BYTES_MAX {
            return Err(io::Error::other(format!("a journal has at most {BYTES_MAX} bytes")));
        }
        file.write_all(&text)?;
        file.sync_data()?;
        self.bytes = bytes;
        self.file = Some(file);
        Ok(())
    }

    fn header(&self) -> Header {
        Header {
            program: "uvs".to_owned(),
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            base: self.base,
        }
    }
}

/// An empty file whose name is on the disk.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    Ok(file)
}

fn push_line(text: &mut Vec<u8>, what: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(what)?;
    text.extend_from_slice(checksum(&json).as_bytes());
    text.extend_from_slice(&json);
    text.push(b'\n');
    Ok(())
}

/// What a line begins with.
fn checksum(json: &[u8]) -> String {
    format!("{:08x} ", crc32c::crc32c(json))
}

/// What a journal's file holds.
#[derive(Debug, PartialEq)]
pub struct Contents {
    /// Which rules.json it continues, when its first line says so.
    pub base: Option<Base>,
    /// Everything before the fault.
    pub changes: Vec<Change>,
    /// What is wrong.
    pub fault: Option<Fault>,
}

/// Why a journal does not count to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This line, the last, has no end: it was being written when process or machine stopped.
    Torn {
        /// Counted from 1.
        line: usize,
    },
    /// Which line is not what was written, and why.
    Damaged(String),
}

/// Reads a journal's file.
pub fn read(text: &[u8]) -> Contents {
    let mut contents = Contents {
        base: None,
        changes: Vec::new(),
        fault: None,
    };
    for (line, bytes) in (1..).zip(text.split_inclusive(|byte| *byte == b'\n')) {
        let Some(bytes) = bytes.strip_suffix(b"\n") else {
            contents.fault = Some(Fault::Torn { line });
            break;
        };
        let parsed = match line {
            1 => header(bytes).map(|header| contents.base = Some(header.base)),
            _ => parse(bytes).map(|change| contents.changes.push(change)),
        };
        if let Err(reason) = parsed {
            contents.fault = Some(Fault::Damaged(format!("line {line}: {reason}")));
            break;
        }
    }
    contents
}

fn header(bytes: &[u8]) -> Result<Header, String> {
    // The format first: another version's header may have other fields.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
        version: String,
    }
    let Format { format, version } = parse(bytes)?;
    if format != FORMAT {
        return Err(format!(
            "format {format}, written by uvs {version}; this one reads format {FORMAT}"
        ));
    }
    parse(bytes)
}

/// A line without its end.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let (sum, json) = bytes.split_at_checked(9).unwrap_or((bytes, &[]));
    if sum != checksum(json).as_bytes() {
        return Err("damaged: it is not what was written".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}
