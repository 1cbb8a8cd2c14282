//! Migrations of a user's database: folders, histories and plans of the tools that are known.
//!
//! A folder is read into [`Migration`]s ([`folder`], [`github`]), a database's own history into [`Applied`] ones
//! ([`History`]); [`plan`] compares the two. The tool's history table stays as the tool itself would leave it, so that
//! the tool can be used next to Nightporter, or after it.

mod failed;
pub mod folder;
pub mod github;
pub mod plan;
mod postgres;
mod refusal;
pub mod risk;
pub(crate) mod source;
mod sqlite;
pub(crate) mod statements;
mod tools;

use std::time::Duration;

use async_trait::async_trait;
use schemas::Timestamp;

use crate::handler::Failure;

pub use postgres::{open_postgres, open_postgres_with};
pub use sqlite::{open_sqlite, open_sqlite_with};

/// What speaks SQL, for those who must read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `PostgreSQL`.
    Postgres,
    /// `SQLite`.
    Sqlite,
}

impl Engine {
    /// As OpenTelemetry's conventions name it.
    pub(crate) const fn system(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql",
            Self::Sqlite => "sqlite",
        }
    }
}

/// One migration of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// What the tool's history knows it by; sorts in the tool's order.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// The file, in the folder.
    pub path: String,
    /// What the tool records as its description; empty where it records none.
    pub description: String,
    /// The file's text.
    pub sql: String,
    /// The digest that the tool records, in lower-case hexadecimal digits.
    pub checksum: String,
    /// Other recorded digests that the tool takes for the same file.
    pub also_accepted: Vec<String>,
    /// Whether the tool opens a transaction around the file and its row.
    pub in_transaction: bool,
}

/// One migration of a database's history, as it stands: of several rows of one name, the one that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// As [`Migration::id`].
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// The digest that was recorded, in hexadecimal digits.
    pub checksum: String,
    /// How far it came.
    pub state: AppliedState,
}

/// How far a migration came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppliedState {
    /// To its end, at this time.
    Finished(Timestamp),
    /// Nightporter began it and was interrupted: where the file runs whole or not at all together with its row, nothing
    /// of it remains, and it may simply be run again.
    Interrupted,
    /// It failed, or another program was interrupted in it: a person must look. What the history says about it.
    Unfinished(String),
}

/// A migration tool's history in one database: one session, which holds the tool's own lock until it is dropped.
#[async_trait]
pub trait History: Send {
    /// What kind of database it is.
    fn engine(&self) -> Engine;

    /// What has been applied, in the order in which it was. Changes nothing, even where there is no history table yet.
    async fn applied(&mut self) -> Result<Vec<Applied>, Failure>;

    /// Applies one migration and records it as the tool would, making the history table where it is missing.
    ///
    /// # Errors
    ///
    /// `Retry` where it may pass and the history says the truth: a lock that others hold, a lost connection. `Discard`
    /// where the file itself fails; it says whether anything of it remains and what to do next.
    async fn apply(&mut self, migration: &Migration) -> Result<(), Failure>;

    /// Gives the lock back and ends the session.
    async fn close(self: Box<Self>);
}

/// How long histories wait for others.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the tool's own lock.
    pub tool_lock: Duration,
    /// For a lock of a statement: queries that come after it wait behind it for as long, so it is short.
    pub statement_lock: Duration,
    /// How often a file is sent that could not get its locks.
    pub tries: u32,
    /// The longest pause between these tries.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tool_lock: Duration::from_mins(2),
            statement_lock: Duration::from_secs(1),
            tries: 15,
            longest_pause: Duration::from_secs(20),
        }
    }
}

/// The first and the longest pause between two tries to take a tool's lock. It is polled, never waited for: a session
/// that waits in `pg_advisory_lock` holds a snapshot, which `CREATE INDEX CONCURRENTLY` of the lock's holder waits for.
const LOCK_POLL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
