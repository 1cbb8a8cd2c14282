//! The history of plain SQL folders: a table of our own. A file that runs outside a transaction has its row before it
//! begins, so that an interrupted one is seen.

use async_trait::async_trait;

use super::session::{self, Sending, Session, Stopped};
use super::{literal, time_of};
use crate::databases::Tool;
use crate::handler::Failure;
use crate::migrations::refusal::resolve_unfinished;
use crate::migrations::statements::{Shape, shape};
use crate::migrations::{Applied, AppliedState, Engine, History, Migration, failed};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS nightporter_migrations (
    name text PRIMARY KEY,
    checksum text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    failure text
)";

pub(super) struct SqlHistory(pub(super) Session);

type Row = (String, String, Option<i64>, Option<String>);

#[async_trait]
impl History for SqlHistory {
    fn engine(&self) -> Engine {
        Engine::Postgres
    }

    async fn applied(&mut self) -> Result<Vec<Applied>, Failure> {
        if !self.0.has_table("nightporter_migrations").await? {
            return Ok(Vec::new());
        }
        let query = sqlx::query_as::<_, Row>(
            "SELECT name, checksum, (extract(epoch FROM finished_at) * 1e6)::bigint, failure
             FROM nightporter_migrations ORDER BY started_at, name",
        );
        let doing = "reading nightporter_migrations";
        let rows = session::in_time(doing, query.fetch_all(&mut self.0.connection)).await?;
        rows.into_iter().map(applied).collect()
    }

    async fn apply(&mut self, migration: &Migration) -> Result<(), Failure> {
        self.0.say(TABLE, "making nightporter_migrations").await?;
        let shape = shape(&migration.sql, migration.in_transaction, Engine::Postgres);
        if migration.in_transaction {
            let row = row(migration, "clock_timestamp()");
            let sent = self.0.send(migration, &shape, &Sending::InTransaction(&row)).await?;
            return sent.map_err(|stopped| session::failure(stopped, migration, &shape, &next(&shape)));
        }
        let finish = self.begin_outside(migration, &shape).await?;
        let Some(finish) = finish else { return Ok(()) };
        let sending = if shape == Shape::Atomic { Sending::InOneMessage(&finish) } else { Sending::Bare };
        if let Err(stopped) = self.0.send(migration, &shape, &sending).await? {
            self.record(&stopped, migration, &shape).await?;
            return Err(session::failure(stopped, migration, &shape, &next(&shape)));
        }
        if matches!(sending, Sending::Bare) {
            self.0.say(&finish, "recording that the migration is finished").await?;
        }
        Ok(())
    }

    async fn close(self: Box<Self>) {
        self.0.close().await;
    }
}

impl SqlHistory {
    /// Writes the row of a file that runs outside a transaction; what finishes it, or none where an interrupted attempt
    /// had built its index already.
    async fn begin_outside(&mut self, migration: &Migration, shape: &Shape) -> Result<Option<String>, Failure> {
        let name = literal(&migration.name);
        let finish = format!("UPDATE nightporter_migrations SET finished_at = clock_timestamp() WHERE name = {name}");
        let query = sqlx::query_scalar("SELECT EXISTS (SELECT FROM nightporter_migrations WHERE name = $1)");
        let asking = query.bind(&migration.name).fetch_one(&mut self.0.connection);
        let again: bool = session::in_time("looking for an interrupted attempt", asking).await?;
        if let (true, Shape::ConcurrentIndex(index)) = (again, shape)
            && self.0.index_is_valid(index).await? == Some(true)
        {
            self.0.say(&finish, "recording that the migration is finished").await?;
            return Ok(None);
        }
        self.0.say(&row(migration, "NULL"), "recording that the migration begins").await?;
        Ok(Some(finish))
    }

    /// After a file that stopped: where nothing of it remains, nothing of its row does.
    async fn record(&mut self, stopped: &Stopped, migration: &Migration, shape: &Shape) -> Result<(), Failure> {
        let name = literal(&migration.name);
        let note = match stopped {
            Stopped::Lost(_) => return Ok(()),
            Stopped::Failed(error) if *shape == Shape::Loose => format!(
                "UPDATE nightporter_migrations SET failure = {} WHERE name = {name}",
                literal(&failed::message(migration, error))
            ),
            Stopped::Failed(_) | Stopped::Locked(_) => {
                format!("DELETE FROM nightporter_migrations WHERE name = {name}")
            }
        };
        self.0.say(&note, "recording that the migration failed").await
    }
}

fn row(migration: &Migration, finished: &str) -> String {
    format!(
        "INSERT INTO nightporter_migrations (name, checksum, started_at, finished_at) \
         VALUES ({}, '{}', clock_timestamp(), {finished}) \
         ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum, started_at = excluded.started_at, \
         finished_at = excluded.finished_at, failure = NULL",
        literal(&migration.name),
        migration.checksum
    )
}

fn next(shape: &Shape) -> String {
    match shape {
        Shape::Loose => format!("Look what of it is in the database, then {}.", resolve_unfinished(Tool::Sql)),
        _ => "Correct the file and start again with the new commit.".into(),
    }
}

fn applied((name, checksum, finished, failure): Row) -> Result<Applied, Failure> {
    let state = match (finished, failure) {
        (Some(micros), _) => AppliedState::Finished(time_of(micros)?),
        (None, None) => AppliedState::Interrupted,
        (None, Some(failure)) => AppliedState::Unfinished(failure),
    };
    Ok(Applied { id: name.clone(), name, checksum, state })
}
