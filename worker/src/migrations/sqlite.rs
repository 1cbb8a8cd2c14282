//! Histories in a `SQLite` file. Neither `SQLite` nor sqlx has a lock for migrations there, so ours is the lock of a file
//! beside the database; and each file's transaction looks again whether it is applied already, for the tool itself
//! knows nothing of our lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rand::Rng;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, SqliteConnection};
use tokio::time::Instant;
use tracing::debug;

use crate::databases::Tool;
use crate::handler::{Failure, OrFail};
use crate::migrations::refusal::resolve_unfinished;
use crate::migrations::statements::{Shape, shape};
use crate::migrations::tools::sqlx::version_in;
use crate::migrations::{Applied, AppliedState, Engine, History, LOCK_POLL, Migration, Patience, failed};

/// How long a statement waits for the database's one writer.
const BUSY: Duration = Duration::from_secs(10);

const SQL_TABLE: &str = "CREATE TABLE IF NOT EXISTS nightporter_migrations (
    name text PRIMARY KEY,
    checksum text NOT NULL,
    started_at text NOT NULL DEFAULT CURRENT_TIMESTAMP,
    finished_at text,
    failure text
)";

const SQLX_TABLE: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
)";

/// Takes our lock on the database file and opens the tool's history in it.
pub async fn open_sqlite(path: &Path, tool: Tool) -> Result<Box<dyn History>, Failure> {
    open_sqlite_with(path, tool, Patience::default()).await
}

/// As [`open_sqlite`], with another patience.
pub async fn open_sqlite_with(path: &Path, tool: Tool, patience: Patience) -> Result<Box<dyn History>, Failure> {
    let tool = match tool {
        Tool::Sql => SqliteTool::Sql,
        Tool::Sqlx => SqliteTool::Sqlx,
        Tool::Prisma => {
            return Err(Failure::Discard(anyhow::anyhow!(
                "Prisma's migrations of SQLite are not supported; run `prisma migrate deploy`, or use the tool `sql`"
            )));
        }
    };
    if !path.is_file() {
        return Err(Failure::Discard(anyhow::anyhow!(
            "there is no database file at {}; check the database's `url`",
            path.display()
        )));
    }
    let lock = take_lock(path, patience.tool_lock).await?;
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(false).busy_timeout(BUSY);
    let connecting = options.disable_statement_logging().connect().await;
    let connection = connecting.or_retry(&format!("opening the database {}", path.display()))?;
    Ok(Box::new(SqliteHistory { connection, tool, _lock: lock }))
}

#[derive(Clone, Copy)]
enum SqliteTool {
    Sql,
    Sqlx,
}

struct SqliteHistory {
    connection: SqliteConnection,
    tool: SqliteTool,
    /// The lock lasts as long as the file is open.
    _lock: File,
}

/// Locks a file beside the database: never the database itself, whose locks would be lost with its closing.
async fn take_lock(database: &Path, patience: Duration) -> Result<File, Failure> {
    let path = lock_path(database);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.or_retry(&format!("opening the lock file {}", path.display()))?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => {
                return Err(Failure::retry(error).context(format!("locking {}", path.display())));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        let pause = rand::rng().random_range(LOCK_POLL.0..LOCK_POLL.1);
        if Instant::now() + pause >= deadline {
            let mut holder = String::new();
            file.read_to_string(&mut holder).or_retry("looking who holds the migration lock")?;
            return Err(Failure::retry(anyhow::anyhow!(
                "another process migrates this database ({}); wait for it, or end it",
                holder.trim()
            )));
        }
        tokio::time::sleep(pause).await;
    }
    let noted = file.set_len(0).and_then(|()| writeln!(file, "nightporter, pid {}", std::process::id()));
    noted.or_retry("noting who holds the migration lock")?;
    Ok(file)
}

fn lock_path(database: &Path) -> PathBuf {
    let mut name = database.file_name().unwrap_or_default().to_owned();
    name.push("-nightporter-migrate.lock");
    database.with_file_name(name)
}

type Row = (String, String, String, Option<i64>, bool, Option<String>);

#[async_trait]
impl History for SqliteHistory {
    fn engine(&self) -> Engine {
        Engine::Sqlite
    }

    async fn applied(&mut self) -> Result<Vec<Applied>, Failure> {
        let table = self.tool.table();
        let query =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)");
        let there: bool =
            query.bind(table).fetch_one(&mut self.connection).await.or_retry("looking for the history")?;
        if !there {
            return Ok(Vec::new());
        }
        let query = sqlx::query_as::<_, Row>(match self.tool {
            SqliteTool::Sql => {
                "SELECT name, name, checksum, unixepoch(finished_at), failure IS NULL, failure
                 FROM nightporter_migrations ORDER BY started_at, name"
            }
            SqliteTool::Sqlx => {
                "SELECT printf('%020d', version), version || '_' || replace(description, ' ', '_'), lower(hex(checksum)),
                        CASE WHEN success THEN unixepoch(installed_on) END, success, NULL
                 FROM _sqlx_migrations ORDER BY installed_on, version"
            }
        });
        let rows = query.fetch_all(&mut self.connection).await.or_retry(&format!("reading {table}"))?;
        rows.into_iter().map(applied).collect()
    }

    async fn apply(&mut self, migration: &Migration) -> Result<(), Failure> {
        self.say(self.tool.create()).await.or_retry("making the history table")?;
        let started = Instant::now();
        if migration.in_transaction {
            self.apply_inside(migration).await?;
        } else {
            self.apply_outside(migration).await?;
        }
        if let (SqliteTool::Sqlx, Some(version)) = (self.tool, version_in(&migration.id)) {
            let nanos = i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX);
            let time = format!("UPDATE _sqlx_migrations SET execution_time = {nanos} WHERE version = {version}");
            self.say(&time).await.or_retry("recording how long it took")?;
        }
        Ok(())
    }

    async fn close(self: Box<Self>) {
        if let Err(error) = self.connection.close().await {
            debug!(error = &error as &dyn std::error::Error, "the session did not end in order");
        }
    }
}

impl SqliteHistory {
    async fn apply_inside(&mut self, migration: &Migration) -> Result<(), Failure> {
        let shape = shape(&migration.sql, true, Engine::Sqlite);
        self.say("BEGIN IMMEDIATE").await.or_retry("waiting for the database's other writer")?;
        let done = async {
            if self.tool.is_applied(&mut self.connection, migration).await? {
                return self.say("ROLLBACK").await;
            }
            self.say(&migration.sql).await?;
            self.say(&self.tool.row(migration, true)).await?;
            self.say("COMMIT").await
        };
        let Err(error) = done.await else { return Ok(()) };
        if let Err(error) = self.say("ROLLBACK").await {
            debug!(error = &error as &dyn std::error::Error, "there was nothing to roll back");
        }
        Err(self.failure(migration, error, &shape))
    }

    /// Each statement commits for itself. Plain SQL has its row before the file begins.
    async fn apply_outside(&mut self, migration: &Migration) -> Result<(), Failure> {
        if matches!(self.tool, SqliteTool::Sql) {
            self.say(&self.tool.row(migration, false)).await.or_retry("recording that the migration begins")?;
        }
        if let Err(error) = self.say(&migration.sql).await {
            if matches!(self.tool, SqliteTool::Sql) {
                let note = format!(
                    "UPDATE nightporter_migrations SET failure = {} WHERE name = {}",
                    literal(&failed::message(migration, &error)),
                    literal(&migration.name)
                );
                self.say(&note).await.or_retry("recording that the migration failed")?;
            }
            return Err(self.failure(migration, error, &Shape::Loose));
        }
        self.say(&self.tool.row(migration, true)).await.or_retry("recording that the migration is finished")
    }

    fn failure(&self, migration: &Migration, error: sqlx::Error, shape: &Shape) -> Failure {
        if *shape != Shape::Loose && may_pass(&error) {
            return Failure::retry(error).context(format!("applying the migration `{}`", migration.name));
        }
        let next = match shape {
            Shape::Loose => {
                format!("Look what of it is in the database, then {}.", resolve_unfinished(self.tool.tool()))
            }
            _ => "Correct the file and start again with the new commit.".into(),
        };
        failed::discard(migration, &error, shape, &next)
    }

    async fn say(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        self.connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.map(|_| ())
    }
}

impl SqliteTool {
    fn tool(self) -> Tool {
        match self {
            Self::Sql => Tool::Sql,
            Self::Sqlx => Tool::Sqlx,
        }
    }

    fn table(self) -> &'static str {
        match self {
            Self::Sql => "nightporter_migrations",
            Self::Sqlx => "_sqlx_migrations",
        }
    }

    fn create(self) -> &'static str {
        match self {
            Self::Sql => SQL_TABLE,
            Self::Sqlx => SQLX_TABLE,
        }
    }

    async fn is_applied(self, connection: &mut SqliteConnection, migration: &Migration) -> Result<bool, sqlx::Error> {
        let query = match self {
            Self::Sql => sqlx::query_scalar(
                "SELECT EXISTS (SELECT 1 FROM nightporter_migrations WHERE name = ?1 AND finished_at IS NOT NULL)",
            ),
            Self::Sqlx => {
                sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM _sqlx_migrations WHERE version = CAST(?1 AS INTEGER))")
            }
        };
        query.bind(&migration.id).fetch_one(connection).await
    }

    /// Writes the migration's row.
    fn row(self, migration: &Migration, finished: bool) -> String {
        match self {
            Self::Sql => format!(
                "INSERT INTO nightporter_migrations (name, checksum, finished_at) VALUES ({}, '{}', {}) \
                 ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum, finished_at = excluded.finished_at, \
                 failure = NULL",
                literal(&migration.name),
                migration.checksum,
                if finished { "CURRENT_TIMESTAMP" } else { "NULL" }
            ),
            Self::Sqlx => format!(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES ({}, {}, TRUE, x'{}', -1)",
                version_in(&migration.id).unwrap_or_default(),
                literal(&migration.description),
                migration.checksum
            ),
        }
    }
}

fn applied((id, name, checksum, finished, well, failure): Row) -> Result<Applied, Failure> {
    let state = match (finished, well) {
        (Some(seconds), _) => {
            let time = schemas::Timestamp::from_timestamp(seconds, 0).ok_or("it is out of range");
            AppliedState::Finished(time.map_err(anyhow::Error::msg).or_discard("reading a time in the history")?)
        }
        (None, true) => AppliedState::Interrupted,
        (None, false) => AppliedState::Unfinished(failure.unwrap_or_else(|| "its row says success = false".into())),
    };
    Ok(Applied { id, name, checksum, state })
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Busy, locked, an I/O error, a full disk (the primary result codes).
fn may_pass(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    matches!(code.map(|code| code & 0xff), Some(5 | 6 | 10 | 13))
}
