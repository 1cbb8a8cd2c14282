//! Snapshots: the whole ledger as it stands at one moment, while writing goes on.
//!
//! In the writer's turn the log is copied into the file, to its end, and a reader begins before the turn ends. For as long as
//! that one reads, `SQLite` copies nothing more of the log into the file: it would change under the reader
//! (<https://sqlite.org/wal.html#checkpointing>). So the file is the ledger of that moment, and can be read as any other,
//! while what is written goes to the log.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemas::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{Mutex, OnceCell};
use uuid::Uuid;

use super::super::LedgerError;
use super::super::rows::micros;
use super::super::snapshot::{Snapped, Snapshot};
use super::{Sqlite, in_time, time, unavailable};

/// Whoever reads at that moment keeps a part of the log from being copied. Reads are short, so it is tried again so often.
const TURNS: u32 = 40;
const REST: Duration = Duration::from_millis(50);

/// What snapshots are taken with.
pub(super) struct Camera {
    path: PathBuf,
    options: SqliteConnectOptions,
    /// Opened once and never closed before the process ends: to close any handle of a file gives up all locks that the
    /// process has on it, `SQLite`'s with them (<https://sqlite.org/howtocorrupt.html>, 2.2).
    file: OnceCell<Arc<File>>,
    /// Sees whether others have written.
    watch: Mutex<Option<SqliteConnection>>,
}

impl Camera {
    pub(super) fn new(path: PathBuf, options: &SqliteConnectOptions) -> Self {
        let options = options.clone().read_only(true).disable_statement_logging();
        Self { path, options, file: OnceCell::new(), watch: Mutex::default() }
    }

    async fn file(&self) -> Result<Arc<File>, LedgerError> {
        let open = || async { File::open(&self.path).map(Arc::new) };
        self.file.get_or_try_init(open).await.cloned().map_err(|error| unavailable(error.into()))
    }

    /// A number that changes with each commit.
    async fn version(&self) -> Result<i64, LedgerError> {
        let mut watch = self.watch.lock().await;
        let mut connection = match watch.take() {
            Some(connection) => connection,
            None => SqliteConnection::connect_with(&self.options).await.map_err(unavailable)?,
        };
        let version =
            sqlx::query_scalar("pragma data_version").fetch_one(&mut connection).await.map_err(unavailable)?;
        *watch = Some(connection);
        Ok(version)
    }
}

impl Sqlite {
    pub(super) async fn take_snapshot(&self, since: Option<i64>) -> Result<Snapped, LedgerError> {
        // Writes of before are seen; one that comes now is the next snapshot's.
        if since.is_some() && since == Some(in_time(self.camera.version()).await?) {
            return Ok(Snapped::Unchanged);
        }
        let file = self.camera.file().await?;
        for _ in 0..TURNS {
            if let Some(snapshot) = in_time(self.try_to_take_snapshot(&file)).await? {
                return Ok(Snapped::Taken(snapshot));
            }
            tokio::time::sleep(REST).await;
        }
        Err(unavailable(sqlx::Error::Protocol("readers of the ledger are in the way of a snapshot".into())))
    }

    /// None where somebody reads an older state.
    async fn try_to_take_snapshot(&self, file: &Arc<File>) -> Result<Option<Snapshot>, LedgerError> {
        let mut reader = SqliteConnection::connect_with(&self.camera.options).await.map_err(unavailable)?;
        let mut turn = self.write().await;
        if !turn.checkpoint().await? {
            return Ok(None);
        }
        sqlx::query("begin").execute(&mut reader).await.map_err(unavailable)?;
        let instance: Uuid =
            sqlx::query_scalar("select id from instance").fetch_one(&mut reader).await.map_err(unavailable)?;
        let version = self.camera.version().await?;
        let at = time();
        drop(turn);
        let bytes = file.metadata().map_err(|error| unavailable(error.into()))?.len();
        Ok(Some(Snapshot::new(Arc::clone(file), (bytes, at, instance, version), std::sync::Mutex::new(reader))))
    }
}

/// Gives a new ledger its identity; one that has one keeps it.
pub(super) async fn identify(writer: &mut SqliteConnection, now: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query("insert into instance (one, id, since) values (1, ?1, ?2) on conflict do nothing")
        .bind(Uuid::new_v4())
        .bind(micros(now))
        .execute(writer)
        .await?;
    Ok(())
}
