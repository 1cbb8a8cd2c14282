//! One session: questions with a deadline, files with a limit for their locks.

use std::fmt::Write;
use std::time::Duration;

use queue::retry::Pauses;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use tracing::{debug, info};

use crate::handler::Failure;
use crate::migrations::statements::{self, Shape};
use crate::migrations::{Engine, Migration, Patience, failed};

/// Connecting, and each question about the history.
const DEADLINE: Duration = Duration::from_secs(30);

/// The first pause before a file is sent again that could not get its locks.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Session {
    pub(super) connection: PgConnection,
    pub(super) patience: Patience,
}

/// How a file goes to the server.
pub(super) enum Sending<'s> {
    /// In a transaction, with this statement behind it.
    InTransaction(&'s str),
    /// In one message, with this statement at its end: both or nothing.
    InOneMessage(&'s str),
    /// Alone, in one message.
    Bare,
}

/// Why a file did not run to its end.
pub(super) enum Stopped {
    /// It did not get its locks in time, in no try; nothing of it remains.
    Locked(sqlx::Error),
    /// It failed by itself.
    Failed(sqlx::Error),
    /// The session ended; how far it came is for the history to say.
    Lost(sqlx::Error),
}

impl Session {
    pub(super) async fn connect(options: &PgConnectOptions, patience: Patience) -> Result<Self, Failure> {
        let connecting = tokio::time::timeout(DEADLINE, options.connect()).await;
        let connecting = connecting.map_err(|_| Failure::retry(anyhow::anyhow!("it did not answer in time")));
        let doing = || format!("connecting to the database at `{}`", options.get_host());
        let connection =
            connecting.and_then(|made| made.map_err(Failure::retry)).map_err(|error| error.context(doing()))?;
        let mut session = Self { connection, patience };
        session.end_with_us().await;
        session.limit_locks(patience.statement_lock).await?;
        Ok(session)
    }

    /// Asks the server to look every second whether we are still there, so that a killed attempt's statement and lock do
    /// not outlive it. `PostgreSQL` 14 and later, not on every system; without it the next attempt only waits longer.
    async fn end_with_us(&mut self) {
        let set =
            "SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'";
        if let Err(error) = self.connection.execute(set).await {
            debug!(error = &error as &dyn std::error::Error, "the server does not watch its connections");
        }
    }

    async fn limit_locks(&mut self, limit: Duration) -> Result<(), Failure> {
        self.say(&format!("SET lock_timeout = {}", limit.as_millis()), "limiting the wait for locks").await
    }

    /// Runs statements of ours.
    pub(super) async fn say(&mut self, sql: &str, doing: &str) -> Result<(), Failure> {
        let saying = self.connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())));
        in_time(doing, saying).await.map(|_| ())
    }

    /// Whether there is such a table where unqualified names are looked up.
    pub(super) async fn has_table(&mut self, name: &str) -> Result<bool, Failure> {
        let query = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(name);
        in_time("looking for the history table", query.fetch_one(&mut self.connection)).await
    }

    pub(super) async fn database(&mut self) -> Result<String, Failure> {
        let query = sqlx::query_scalar("SELECT current_database()");
        in_time("asking for the database's name", query.fetch_one(&mut self.connection)).await
    }

    /// Whether the index is there, and if so whether it is valid.
    pub(super) async fn index_is_valid(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        let query = sqlx::query_scalar("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)").bind(name);
        in_time("looking for the index", query.fetch_optional(&mut self.connection)).await
    }

    /// Sends a file; again, with pauses, while it does not get its locks and nothing of it remains.
    pub(super) async fn send(
        &mut self,
        migration: &Migration,
        shape: &Shape,
        sending: &Sending<'_>,
    ) -> Result<Result<(), Stopped>, Failure> {
        let polite = statements::waits_politely(&migration.sql, Engine::Postgres);
        let limit = if polite { Duration::ZERO } else { self.patience.statement_lock };
        let mut pauses = Pauses::new(FIRST_PAUSE, self.patience.longest_pause, self.patience.tries);
        loop {
            self.drop_invalid(shape).await?;
            self.limit_locks(limit).await?;
            let Err(error) = self.send_once(&migration.sql, sending).await else { return Ok(Ok(())) };
            if is_lost(&error) {
                return Ok(Err(Stopped::Lost(error)));
            }
            if !wanted_a_lock(&error) || *shape == Shape::Loose {
                return Ok(Err(Stopped::Failed(error)));
            }
            match pauses.next_pause() {
                None => return Ok(Err(Stopped::Locked(error))),
                Some(pause) => {
                    info!(
                        migration = migration.name,
                        "it did not get its locks and nothing of it remains; trying again"
                    );
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn send_once(&mut self, file: &str, sending: &Sending<'_>) -> Result<(), sqlx::Error> {
        match sending {
            Sending::Bare => self.message(file.to_owned()).await,
            Sending::InOneMessage(row) => {
                let mut both = file.to_owned();
                // Writing into a string cannot fail. The file may end in a comment or without a semicolon.
                let _ = write!(both, "\n;{row}");
                self.message(both).await
            }
            Sending::InTransaction(row) => {
                // Not the library's transaction: the file may end it, as it may with the tool itself.
                self.message("BEGIN".into()).await?;
                let done = async {
                    self.message(file.to_owned()).await?;
                    self.message((*row).to_owned()).await?;
                    self.message("COMMIT".into()).await
                };
                let Err(error) = done.await else { return Ok(()) };
                // Where this fails too, the session is lost, and that error says more.
                match self.message("ROLLBACK".into()).await {
                    Err(lost) if is_lost(&lost) && !is_lost(&error) => Err(lost),
                    _ => Err(error),
                }
            }
        }
    }

    /// One simple-query message. No deadline but the job's: a migration takes as long as it takes.
    async fn message(&mut self, sql: String) -> Result<(), sqlx::Error> {
        self.connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.map(|_| ())
    }

    /// An interrupted `CREATE INDEX CONCURRENTLY` leaves an index that no query uses, and `IF NOT EXISTS` would take it
    /// for the wanted one.
    async fn drop_invalid(&mut self, shape: &Shape) -> Result<(), Failure> {
        let Shape::ConcurrentIndex(name) = shape else { return Ok(()) };
        if self.index_is_valid(name).await? == Some(false) {
            info!(index = name, "dropping the invalid index that an interrupted attempt left");
            self.limit_locks(Duration::ZERO).await?;
            let dropping = self.message(format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")).await;
            dropping.map_err(|error| Failure::retry(error).context(format!("dropping the invalid index {name}")))?;
        }
        Ok(())
    }

    pub(super) async fn close(self) {
        // The server ends the session by itself when the socket closes.
        if let Ok(Err(error)) = tokio::time::timeout(DEADLINE, self.connection.close()).await {
            debug!(error = &error as &dyn std::error::Error, "the session did not end in order");
        }
    }
}

/// What a stopped file means, once the history says what there is to say.
pub(super) fn failure(stopped: Stopped, migration: &Migration, shape: &Shape, next: &str) -> Failure {
    match stopped {
        Stopped::Failed(error) => failed::discard(migration, &error, shape, next),
        Stopped::Locked(error) => Failure::retry(anyhow::anyhow!(
            "{}. Other transactions hold the table for longer than a migration may make its readers wait; nothing of this \
             file remains applied. It is tried again; end long transactions, or migrate at a quieter time",
            failed::message(migration, &error)
        )),
        Stopped::Lost(error) => Failure::retry(error).context(format!(
            "the session was lost in the migration `{}`; the next attempt reads in the history how far it came",
            migration.name
        )),
    }
}

/// A question about the history.
pub(super) async fn in_time<T>(
    doing: &str,
    asking: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(DEADLINE, asking).await {
        Ok(answer) => answer.map_err(|error| Failure::retry(error).context(doing)),
        Err(_) => Err(Failure::retry(anyhow::anyhow!("{doing}: the database did not answer in time"))),
    }
}

fn wanted_a_lock(error: &sqlx::Error) -> bool {
    // lock_not_available, deadlock_detected, serialization_failure: what the file did is rolled back.
    matches!(code_of(error).as_deref(), Some("55P03" | "40P01" | "40001"))
}

fn is_lost(error: &sqlx::Error) -> bool {
    match code_of(error) {
        // The server is going away or came back: 57P01 to 57P05, and the connection exceptions.
        Some(code) => code.starts_with("57P") || code.starts_with("08"),
        None => true,
    }
}

fn code_of(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().map(|error| error.code().unwrap_or_default().into_owned())
}
