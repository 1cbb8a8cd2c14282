//! Upkeep of `SQLite`: ANALYZE where it asks for it (PRAGMA optimize), and free pages given back where the database was
//! made for that (`auto_vacuum = incremental`). VACUUM is left to its owner: it locks everybody out and needs the file's
//! size again.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use tokio::time::Instant;
use tracing::{Instrument, debug};

use super::{Sqlite, open};
use crate::databases::upkeep::{Chore, Ended, Task, Upkeep};
use crate::handler::{Failure, OrFail};
use crate::outside;

/// Rows that ANALYZE looks at in each index: enough for the planner, quick for any size.
const ANALYSIS_LIMIT: &str = "PRAGMA analysis_limit = 1000";

/// All of what `PRAGMA optimize` may do, said and not done.
const WOULD_OPTIMIZE: &str = "PRAGMA optimize(-1)";

/// After so many steps of its machine `SQLite` asks whether it may go on.
const STEPS: i32 = 10_000;

struct Session(SqliteConnection);

impl Sqlite {
    pub(super) async fn keep(&self) -> Result<Box<dyn Upkeep>, Failure> {
        let mut connection = open(&self.path).await?;
        connection.execute(ANALYSIS_LIMIT).await.or_retry("limiting the analysis")?;
        Ok(Box::new(Session(connection)))
    }
}

#[async_trait]
impl Upkeep for Session {
    async fn chores(&mut self, tasks: &[Task]) -> Result<Vec<Chore>, Failure> {
        let mut chores = Vec::new();
        if tasks.contains(&Task::Vacuum) {
            let mode: i64 = self.number("PRAGMA auto_vacuum").await?;
            let free = self.number("PRAGMA freelist_count").await?;
            if mode == 2 && free > 0 {
                let (name, why) = ("main".to_owned(), format!("{free} pages are free"));
                chores.push(Chore { task: Task::Vacuum, name, why, statement: "PRAGMA incremental_vacuum".into() });
            }
        }
        if tasks.contains(&Task::Analyze) {
            let asked = sqlx::query_scalar::<_, String>(WOULD_OPTIMIZE).fetch_all(&mut self.0);
            let statements = asked.await.or_retry("asking SQLite what it would do")?;
            for statement in statements.into_iter().filter(|statement| statement.starts_with("ANALYZE ")) {
                let name = statement.trim_start_matches("ANALYZE ").to_owned();
                chores.push(Chore { task: Task::Analyze, name, why: "SQLite asks for it".into(), statement });
            }
        }
        Ok(chores)
    }

    async fn busy(&mut self, _long: Duration) -> Result<Option<String>, Failure> {
        Ok(None) // It has one writer, for whom each statement waits.
    }

    async fn work(&mut self, chore: &Chore, limit: Duration) -> Result<Ended, Failure> {
        let deadline = Instant::now() + limit;
        let mut handle = self.0.lock_handle().await.or_retry("reaching the SQLite database")?;
        handle.set_progress_handler(STEPS, move || Instant::now() < deadline);
        drop(handle);
        let running = self.0.execute(AssertSqlSafe(chore.statement.clone()));
        let Err(error) = running.instrument(outside::database("sqlite", "maintain")).await else {
            return Ok(Ended::Done);
        };
        let Some(said) = error.as_database_error() else { return Err(Failure::retry(error)) };
        match said.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff) {
            Some(5 | 6) => Ok(Ended::Locked),
            Some(9) => Ok(Ended::OutOfTime),
            Some(10 | 13) => Err(Failure::retry(error)), // I/O, a full disk
            _ => Ok(Ended::Failed(said.message().to_owned())),
        }
    }

    async fn close(self: Box<Self>) {
        if let Err(error) = self.0.close().await {
            debug!(error = &error as &dyn std::error::Error, "the database did not close in order");
        }
    }
}

impl Session {
    async fn number(&mut self, asked: &'static str) -> Result<i64, Failure> {
        sqlx::query_scalar(asked).fetch_one(&mut self.0).await.or_retry("asking SQLite about its file")
    }
}
