//! The upkeep of a live database: what its statistics say is to be done, and doing one thing after the other.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::handler::Failure;

/// One thing to be done, on one table or index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chore {
    /// What is done.
    pub task: Task,
    /// The table or index, as statements write it.
    pub name: String,
    /// What the statistics say.
    pub why: String,
    /// The statement that does it.
    pub statement: String,
}

/// A kind of upkeep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Invalid indexes that an interrupted `REINDEX CONCURRENTLY` left are dropped.
    Leftovers,
    /// Dead rows are made room of (`SQLite`: free pages are given back).
    Vacuum,
    /// The planner's statistics are made anew.
    Analyze,
    /// Indexes that are invalid, or far larger than what is in them, are built anew.
    Reindex,
}

/// How a chore ended.
#[derive(Debug)]
pub enum Ended {
    /// It is done.
    Done,
    /// Others hold what it needs: later, perhaps.
    Locked,
    /// Its time was up; nothing remains of it but what the next planning cleans.
    OutOfTime,
    /// The database refuses it.
    Failed(String),
}

/// A session that does upkeep.
#[async_trait]
pub trait Upkeep: Send {
    /// What is to be done of these tasks, by the statistics of now.
    async fn chores(&mut self, tasks: &[Task]) -> Result<Vec<Chore>, Failure>;

    /// Why the database had better be left alone now; `long`: so long may a transaction be open.
    async fn busy(&mut self, long: Duration) -> Result<Option<String>, Failure>;

    /// Does one, within a time. Doing it again is harmless.
    async fn work(&mut self, chore: &Chore, limit: Duration) -> Result<Ended, Failure>;

    /// Ends the session.
    async fn close(self: Box<Self>);
}
