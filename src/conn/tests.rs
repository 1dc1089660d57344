//! The table as a whole: what goes in is found by the right keys, ends when it should, and survives a crash.

mod basic;
mod drop_entry;
mod expiry;
mod file;
mod full;
mod model;
mod stress;
