//! The connection table: entries, TCP, UDP and SCTP states, persistence templates, what FTP needs, expiry.
//!
//! All workers share one [`ConnectionTable`] of fixed capacity. Two memories make it up:
//!
//! ```text
//!  index (private, rebuilt at start)            entries (a mapped tmpfs file, survive a crash)
//!  bucket, 64 bytes                             slot, 64 bytes; IPv6 takes two
//!  +--------+--------+--------+--------+        +---------+---------+-------+----------+
//!  | 8 tags | 8 refs | lock, overflow  |  ref   | control | runtime | ports | template |
//!  | 16 bit | 32 bit | 32 bit          | -----> +---------+---------+-------+----------+
//!  +--------+--------+-----------------+        | addresses of client, VIP, destination|
//!                                               +--------------------------------------+
//! ```
//!
//! Words: an **entry** is a connection or a persistence **template**; its **forward** key is what clients send
//! (client to VIP), its **reply** key what a NAT destination sends (destination to client). A **slot** is 64 bytes of
//! the entries; a **chunk** is 64 slots. An entry that was **retired** is found by nobody any more, and its slot is
//! used again only when every worker has passed a batch boundary: so what a lookup returned stays what it was
//! until the worker says [`ConnectionTable::quiescent`].
//!
//! Who may do what: workers look up, touch, insert and remove; the control thread sweeps, lists and recovers. Nothing
//! here reads a clock: time is a [`Tick`] that the caller brings.
//!
//! Limits: capacity up to [`CAPACITY_MAX`] slots, chosen at creation; nothing is allocated afterwards, but room for the texts
//! of Call-IDs when the first service asks for it ([`ConnectionTable::keep_call_ids`]).

mod call_ids;
mod chunk;
mod drop_entry;
mod entries;
mod entry;
mod epoch;
mod expire;
mod helped;
mod index;
mod insert;
mod layout;
mod recover;
pub mod sctp;
mod slots;
pub mod state;
mod steady;
pub mod table;
pub mod tcp;
mod time;
pub mod udp;

#[cfg(test)]
mod tests;

pub use call_ids::{CallId, TemplateKey};
pub use drop_entry::EntryDropper;
pub use entries::{Entries, EntriesError, boot_id, is_tmpfs};
pub use entry::{Connection, EntryRef, Hit};
pub use expire::SweepReport;
pub use helped::{Passive, Shift};
pub use insert::{INVALID_TEMPLATE_PORT, InsertError, NewConnection, NewTemplate, ReplyLink};
pub use layout::{Direction, Kind};
pub use recover::{Recovered, Recovery, move_entries};
pub use slots::CAPACITY_MAX;
pub use state::{State, StateChange, TimeoutTable};
pub use steady::Reader;
pub use table::{ConnectionTable, Guess, Hash, WorkerId};
pub use time::{Tick, ticks_of_seconds};
