//! Rows of a user's table that are older than they are to be kept, in `PostgreSQL`.
//!
//! The table is walked along its primary key, a few thousand keys at a time, and of those the due ones are deleted: a
//! statement that looks for due rows again and again reads what it has deleted before each time. Each statement asks for
//! itself whether a row is due and not held, so that what changes meanwhile counts.

mod pace;
mod table;
mod walk;

use schemas::Timestamp;
use serde::{Deserialize, Serialize};

pub(crate) use pace::Pace;
pub(crate) use table::Table;
pub(crate) use walk::{Stepped, Versions};

pub use table::Named;
pub use walk::Walk;

/// The key of one row, as texts, one for each column of the primary key.
pub(crate) type Key = Vec<String>;

/// What there is to do, counted before anything is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Rows are due that are older.
    pub(crate) before: Timestamp,
    /// How many are due.
    pub(crate) due: u64,
    /// How many would be, were they not held.
    pub(crate) held: u64,
    /// How many the table has in all.
    pub(crate) rows: u64,
    /// The key of the last one that is due: the walk ends there.
    pub(crate) last: Option<Key>,
}
