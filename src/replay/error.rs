//! What is wrong with the files that a replay was given.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// A replay that could not be done, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A file, with the place in it.
    #[error("{}: {reason}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Where in it, and what is wrong.
        reason: String,
    },
    /// The rules' own message names file, line and key.
    #[error("{0}")]
    Rules(#[from] crate::control::config::ConfigError),
    /// Arguments that make no sense.
    #[error("{0}")]
    Usage(String),
    /// The reader of the output went away, or the disk is full.
    #[error("cannot write the answer: {0}")]
    Output(#[from] std::io::Error),
}

impl ReplayError {
    /// Something is wrong with a file.
    pub fn file(file: &Path, reason: impl Display) -> ReplayError {
        ReplayError::File {
            file: file.to_owned(),
            reason: reason.to_string(),
        }
    }
}
