//! The embedded ledger: one `SQLite` file, one process.
//!
//! A lock on a file beside it keeps other processes out; all writes go through one connection, in turn; reads have
//! connections of their own (WAL). `synchronous = FULL`: what is committed is on disk.

mod announcing;
mod books;
mod cancel;
mod desk;
mod door;
mod firing;
mod forget;
mod intake;
mod recover;
mod replay;
mod retry;
mod runs;
mod silence;
mod snapshot;
mod storing;
mod tokens;
mod upkeep;
mod values;
mod work;
mod writer;

use std::fs::{File, TryLockError};
use std::future::Future;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use chrono::Utc;
use schemas::Timestamp;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection, SqlitePool, SqliteTransaction};

pub(super) use self::recover::recover;
use self::snapshot::Camera;
use self::writer::{SharedWrite, Turn, Writer};
use super::{EngineConfig, LedgerError, Look};
use crate::OpenError;
use crate::config::NoticeOfDiscard;

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite");

/// Every call ends within this, the wait for the writer's turn included.
const DEADLINE: Duration = Duration::from_secs(15);

/// Prepared statements that a connection keeps: those with lists of values come in nine sizes each.
const STATEMENTS: usize = 256;

/// Rows on their way from the statement to its reader: a whole batch, so that neither waits for the other.
const ROWS: usize = 512;

/// Pages that a connection keeps, in KiB (that is what the sign says): the hot tables and the ends of the others.
const CACHE: &str = "-16384";

/// The log is copied into the file each so many pages (16 MB). A page that many commits wrote meanwhile is copied once.
const CHECKPOINT: &str = "4000";

/// Connections for reading.
const READERS: u32 = 4;

/// The embedded ledger.
pub(crate) struct Sqlite {
    writer: Writer,
    readers: SqlitePool,
    camera: Camera,
    notice: Option<NoticeOfDiscard>,
    /// Held for as long as the ledger is open.
    _lock: File,
}

impl Sqlite {
    pub(crate) async fn open(config: &EngineConfig) -> Result<Self, OpenError> {
        let options = SqliteConnectOptions::from_str(&config.url)
            .map_err(|error| cannot_open("its address is not `sqlite:<path>`", error))?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .statement_cache_capacity(STATEMENTS)
            .row_buffer_size(ROWS)
            .pragma("cache_size", CACHE)
            .pragma("wal_autocheckpoint", CHECKPOINT)
            .busy_timeout(Duration::from_secs(5));
        let path = options.get_filename().to_owned();
        let lock = lock_beside(&path)?;
        let reason = format!("{} cannot be opened", path.display());
        let mut writer = SqliteConnection::connect_with(&options).await.map_err(|error| cannot_open(&reason, error))?;
        migrate(&mut writer).await?;
        snapshot::identify(&mut writer, time()).await.map_err(|error| cannot_open(&reason, error))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .connect_with(options.clone().read_only(true))
            .await
            .map_err(|error| cannot_open(&reason, error))?;
        let camera = Camera::new(path, &options);
        let writer = Writer::new(writer, options);
        Ok(Self { writer, readers, camera, notice: config.notice.clone(), _lock: lock })
    }

    /// The writer's turn.
    async fn write(&self) -> Turn<'_> {
        self.writer.turn().await
    }

    /// Writes in a transaction with whoever else wants to.
    async fn share<W: SharedWrite>(&self, what: &W) -> Result<W::Answer, LedgerError> {
        in_time(self.writer.share(what)).await
    }
}

/// What is at this address.
pub(super) fn look(url: &str) -> Result<Look, OpenError> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| cannot_open("its address is not `sqlite:<path>`", error))?;
    let path = options.get_filename();
    if !path.exists() {
        let text = format!("{} is not there yet; the first start makes it", path.display());
        return Ok(Look { time: None, text });
    }
    let text = match lock_beside(path) {
        Ok(_free) => format!("{} is there, and no process uses it", path.display()),
        Err(OpenError::InUse { .. }) => format!("{} is there, and a running process uses it", path.display()),
        Err(error) => return Err(error),
    };
    Ok(Look { time: None, text })
}

async fn commit(transaction: SqliteTransaction<'_>) -> Result<(), LedgerError> {
    // A failed commit of SQLite has not happened: it is rolled back when the transaction is dropped.
    transaction.commit().await.map_err(unavailable)
}

/// Runs a call within the deadline.
async fn in_time<T>(call: impl Future<Output = Result<T, LedgerError>>) -> Result<T, LedgerError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(result) => result,
        Err(late) => Err(LedgerError::Unknown(late.into())),
    }
}

/// What went wrong before anything was committed.
fn unavailable(error: sqlx::Error) -> LedgerError {
    let refused = match &error {
        sqlx::Error::Database(database) => !matches!(database.kind(), sqlx::error::ErrorKind::Other),
        sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => true,
        _ => false,
    };
    if refused { LedgerError::Refused(error) } else { LedgerError::Unavailable(error) }
}

fn cannot_open(reason: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OpenError {
    OpenError::Ledger { reason: reason.to_owned(), source: source.into() }
}

fn lock_beside(path: &Path) -> Result<File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let open = File::options().create(true).truncate(false).write(true).open(&name);
    let file = open.map_err(|error| cannot_open(&format!("{} cannot be written", name.display()), error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(cannot_open(&format!("{} cannot be locked", name.display()), error)),
    }
}

async fn migrate(writer: &mut SqliteConnection) -> Result<(), OpenError> {
    match MIGRATIONS.run(writer).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(found)) => {
            let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
            Err(OpenError::Newer { found, known })
        }
        Err(error) => Err(cannot_open("its tables cannot be brought up to date", error)),
    }
}

/// The database's time: it has no other clock than the machine's.
fn time() -> Timestamp {
    Utc::now()
}
