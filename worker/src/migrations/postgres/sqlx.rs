//! sqlx's history. Contract: sqlx 0.9, `sqlx-postgres/src/migrate.rs`.

use async_trait::async_trait;
use tokio::time::Instant;

use super::session::{self, Sending, Session};
use super::{literal, time_of};
use crate::databases::Tool;
use crate::handler::{Failure, OrFail};
use crate::migrations::refusal::resolve_unfinished;
use crate::migrations::statements::{Shape, shape};
use crate::migrations::tools::sqlx::{id_of, version_in};
use crate::migrations::{Applied, AppliedState, Engine, History, Migration};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
    success BOOLEAN NOT NULL,
    checksum BYTEA NOT NULL,
    execution_time BIGINT NOT NULL
)";

pub(super) struct SqlxHistory(pub(super) Session);

type Row = (i64, String, String, bool, i64);

#[async_trait]
impl History for SqlxHistory {
    fn engine(&self) -> Engine {
        Engine::Postgres
    }

    async fn applied(&mut self) -> Result<Vec<Applied>, Failure> {
        if !self.0.has_table("_sqlx_migrations").await? {
            return Ok(Vec::new());
        }
        let query = sqlx::query_as::<_, Row>(
            "SELECT version, description, encode(checksum, 'hex'), success, (extract(epoch FROM installed_on) * 1e6)::bigint
             FROM _sqlx_migrations ORDER BY installed_on, version",
        );
        let doing = "reading _sqlx_migrations";
        let rows = session::in_time(doing, query.fetch_all(&mut self.0.connection)).await?;
        rows.into_iter().map(applied).collect()
    }

    async fn apply(&mut self, migration: &Migration) -> Result<(), Failure> {
        self.0.say(TABLE, "making _sqlx_migrations").await?;
        let version = version_in(&migration.id).ok_or("no version").map_err(anyhow::Error::msg).or_discard("sqlx")?;
        let row = format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES ({version}, {}, TRUE, decode('{}', 'hex'), -1)",
            literal(&migration.description),
            migration.checksum
        );
        let shape = shape(&migration.sql, migration.in_transaction, Engine::Postgres);
        let started = Instant::now();
        let sending = match (migration.in_transaction, &shape) {
            (true, _) => Sending::InTransaction(&row),
            (false, Shape::Atomic) => Sending::InOneMessage(&row),
            (false, _) => Sending::Bare,
        };
        if let Err(stopped) = self.0.send(migration, &shape, &sending).await? {
            let next = match shape {
                Shape::Loose => resolve_by_hand(),
                _ => "Correct the file and start again with the new commit.".to_owned(),
            };
            return Err(session::failure(stopped, migration, &shape, &next));
        }
        if matches!(sending, Sending::Bare) {
            self.0.say(&row, "recording the migration").await?;
        }
        let nanos = i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let time = format!("UPDATE _sqlx_migrations SET execution_time = {nanos} WHERE version = {version}");
        self.0.say(&time, "recording how long it took").await
    }

    async fn close(self: Box<Self>) {
        self.0.close().await;
    }
}

fn resolve_by_hand() -> String {
    format!(
        "sqlx records nothing of such a file: look what of it is in the database, take it back, correct the file and start \
         again with the new commit; or complete it by hand, insert its row, and retry. For a row that is there, {}.",
        resolve_unfinished(Tool::Sqlx)
    )
}

fn applied((version, description, checksum, success, installed): Row) -> Result<Applied, Failure> {
    let state = if success {
        AppliedState::Finished(time_of(installed)?)
    } else {
        AppliedState::Unfinished("its row says success = false".into())
    };
    let name = format!("{version}_{}", description.replace(' ', "_"));
    Ok(Applied { id: id_of(version), name, checksum, state })
}
