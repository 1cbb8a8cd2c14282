//! Prisma's history. Contract: prisma-engines, `schema-engine` (tables, order of writes, what stops a deployment).
//!
//! Prisma writes a migration's row first, sends the file as one message, then finishes the row. So do we; but where the
//! file may share a transaction, the finishing goes at the end of the same message, so that an interrupted attempt of
//! ours leaves either a finished row or nothing of the file. Our rows are known by their ids.

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use super::session::{self, Sending, Session, Stopped};
use super::{identifier, literal, time_of};
use crate::databases::Tool;
use crate::handler::Failure;
use crate::migrations::refusal::resolve_unfinished;
use crate::migrations::statements::{Shape, shape};
use crate::migrations::{Applied, AppliedState, Engine, History, Migration, failed};

pub(super) struct PrismaHistory {
    session: Session,
    schema: String,
    /// The table, qualified: a file may change where unqualified names are looked up.
    table: String,
}

/// A row of `_prisma_migrations`: id, name, checksum, finished (µs), rolled back, logs.
type Row = (String, String, String, Option<i64>, bool, Option<String>);

#[async_trait]
impl History for PrismaHistory {
    fn engine(&self) -> Engine {
        Engine::Postgres
    }

    async fn applied(&mut self) -> Result<Vec<Applied>, Failure> {
        if !self.session.has_table(&self.table).await? {
            self.refuse_foreign_tables().await?;
            return Ok(Vec::new());
        }
        let rows = self.rows().await?;
        let standing = rows.iter().filter(|row| !row.4);
        standing.map(|row| applied(row, &rows)).collect()
    }

    async fn apply(&mut self, migration: &Migration) -> Result<(), Failure> {
        self.make_table().await?;
        let shape = shape(&migration.sql, false, Engine::Postgres);
        let rows = self.rows().await?;
        if self.finish_interrupted(migration, &shape, &rows).await? {
            return Ok(());
        }
        let id = self.begin(migration, &rows).await?;
        let finish = self.finishing(&id);
        let sending = if shape == Shape::Atomic { Sending::InOneMessage(&finish) } else { Sending::Bare };
        if let Err(stopped) = self.session.send(migration, &shape, &sending).await? {
            self.record(&stopped, migration, &id).await?;
            let next = format!(
                "Prisma's history has it as failed, which stops each later deployment: {}.",
                resolve_unfinished(Tool::Prisma)
            );
            return Err(session::failure(stopped, migration, &shape, &next));
        }
        if matches!(sending, Sending::Bare) {
            self.session.say(&finish, "recording that the migration is finished").await?;
        }
        Ok(())
    }

    async fn close(self: Box<Self>) {
        self.session.close().await;
    }
}

impl PrismaHistory {
    pub(super) fn new(session: Session, schema: String) -> Self {
        let table = format!("{}._prisma_migrations", identifier(&schema));
        Self { session, schema, table }
    }

    /// Prisma's P3005: without a history, tables that are there would be made twice.
    async fn refuse_foreign_tables(&mut self) -> Result<(), Failure> {
        let query = sqlx::query_scalar(
            "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')
               AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
             ORDER BY c.relname LIMIT 1",
        );
        let asking = query.bind(&self.schema).fetch_optional(&mut self.session.connection);
        let found: Option<String> = session::in_time("looking for tables", asking).await?;
        match found {
            None => Ok(()),
            Some(table) => Err(Failure::Discard(anyhow::anyhow!(
                "the schema `{}` has tables (`{table}`) but no `_prisma_migrations`; say which migrations are applied \
                 already (`prisma migrate resolve --applied NAME` for each), then retry the job",
                self.schema
            ))),
        }
    }

    async fn make_table(&mut self) -> Result<(), Failure> {
        if self.session.has_table(&self.table).await? {
            return Ok(());
        }
        let sql = format!(
            "CREATE SCHEMA IF NOT EXISTS {};
             CREATE TABLE {} (
                id                  VARCHAR(36) PRIMARY KEY NOT NULL,
                checksum            VARCHAR(64) NOT NULL,
                finished_at         TIMESTAMPTZ,
                migration_name      VARCHAR(255) NOT NULL,
                logs                TEXT,
                rolled_back_at      TIMESTAMPTZ,
                started_at          TIMESTAMPTZ NOT NULL DEFAULT now(),
                applied_steps_count INTEGER NOT NULL DEFAULT 0
             )",
            identifier(&self.schema),
            self.table
        );
        self.session.say(&sql, "making _prisma_migrations").await
    }

    async fn rows(&mut self) -> Result<Vec<Row>, Failure> {
        let sql = format!(
            "SELECT id, migration_name, checksum, (extract(epoch FROM finished_at) * 1e6)::bigint,
                    rolled_back_at IS NOT NULL, logs
             FROM {} ORDER BY started_at",
            self.table
        );
        let query = sqlx::query_as::<_, Row>(sqlx::AssertSqlSafe(sql));
        session::in_time("reading _prisma_migrations", query.fetch_all(&mut self.session.connection)).await
    }

    /// Deals with what an interrupted attempt of ours left of this migration; whether that finishes it.
    async fn finish_interrupted(
        &mut self,
        migration: &Migration,
        shape: &Shape,
        rows: &[Row],
    ) -> Result<bool, Failure> {
        let Some(row) = rows.iter().find(|row| row.1 == migration.name && is_open(row)) else { return Ok(false) };
        if let Shape::ConcurrentIndex(index) = shape
            && self.session.index_is_valid(index).await? == Some(true)
        {
            self.session.say(&self.finishing(&row.0), "recording that the migration is finished").await?;
            return Ok(true);
        }
        let back = format!("UPDATE {} SET rolled_back_at = now() WHERE id = {}", self.table, literal(&row.0));
        self.session.say(&back, "recording that the interrupted attempt left nothing").await?;
        Ok(false)
    }

    async fn begin(&mut self, migration: &Migration, rows: &[Row]) -> Result<String, Failure> {
        let before = rows.iter().filter(|row| row.1 == migration.name).count();
        let id = our_id(&migration.name, &migration.checksum, before);
        let row = format!(
            "INSERT INTO {} (id, checksum, started_at, migration_name) VALUES ('{id}', '{}', clock_timestamp(), {})",
            self.table,
            migration.checksum,
            literal(&migration.name)
        );
        self.session.say(&row, "recording that the migration begins").await?;
        Ok(id)
    }

    fn finishing(&self, id: &str) -> String {
        format!(
            "UPDATE {} SET applied_steps_count = applied_steps_count + 1, finished_at = clock_timestamp() WHERE id = {}",
            self.table,
            literal(id)
        )
    }

    async fn record(&mut self, stopped: &Stopped, migration: &Migration, id: &str) -> Result<(), Failure> {
        let (error, back) = match stopped {
            Stopped::Lost(_) => return Ok(()),
            Stopped::Failed(error) => (error, ""),
            Stopped::Locked(error) => (error, ", rolled_back_at = now()"),
        };
        let logs = literal(&failed::message(migration, error));
        let note = format!("UPDATE {} SET logs = {logs}{back} WHERE id = '{id}'", self.table);
        self.session.say(&note, "recording that the migration failed").await
    }
}

/// Begun, and neither finished nor resolved.
fn is_open(row: &Row) -> bool {
    row.3.is_none() && !row.4
}

fn applied(row: &Row, rows: &[Row]) -> Result<Applied, Failure> {
    let (id, name, checksum, finished, _, logs) = row;
    let ours = || {
        let of_name = rows.iter().filter(|other| other.1 == *name).count();
        (0..of_name).any(|before| our_id(name, checksum, before) == *id)
    };
    let state = match (finished, logs.as_deref().unwrap_or_default()) {
        (Some(micros), _) => AppliedState::Finished(time_of(*micros)?),
        (None, "") if ours() => AppliedState::Interrupted,
        (None, "") => AppliedState::Unfinished("it was begun and never finished".into()),
        (None, logs) => AppliedState::Unfinished(logs.to_owned()),
    };
    Ok(Applied { id: name.clone(), name: name.clone(), checksum: checksum.clone(), state })
}

/// The id of the row of an attempt of ours, after so many rows of the same name: by its form a random one (version 4),
/// as Prisma's are, but one that can be made again.
fn our_id(name: &str, checksum: &str, before: usize) -> String {
    let digest = Sha256::digest(format!("nightporter\n{name}\n{checksum}\n{before}"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn our_ids_look_like_prismas_and_can_be_made_again() {
        let id: Uuid = our_id("1_init", "abc", 0).parse().unwrap();
        assert_eq!(id.get_version_num(), 4);
        assert_eq!(our_id("1_init", "abc", 0), id.to_string());
        assert_ne!(our_id("1_init", "abc", 1), id.to_string());
    }

    fn row(id: &str, finished: Option<i64>, logs: Option<&str>) -> Row {
        (id.into(), "1_init".into(), "abc".into(), finished, false, logs.map(str::to_owned))
    }

    #[test]
    fn only_our_own_open_row_without_logs_counts_as_interrupted() {
        let ours = our_id("1_init", "abc", 0);
        let state = |row: &Row| applied(row, std::slice::from_ref(row)).unwrap().state;
        assert_eq!(state(&row(&ours, None, None)), AppliedState::Interrupted);
        assert!(matches!(state(&row("f00", None, None)), AppliedState::Unfinished(_)));
        assert_eq!(state(&row(&ours, None, Some("no"))), AppliedState::Unfinished("no".into()));
        assert!(matches!(state(&row(&ours, Some(1), None)), AppliedState::Finished(_)));
    }
}
