//! The one writer: commands become a new table, and the table goes to the workers.
pub mod protocol;
