//! What stands between us and the server: nothing, or a pooler (`PgBouncer` and its like).
//!
//! A pooler takes no settings at the start of a connection, so they are made after it. One that gives each transaction
//! another connection of the server's is refused: settings and prepared statements would be lost, or met by others.

use std::fmt::Write;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};
use tokio::time::timeout;

/// How a connection gets its settings.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// With its start, in the options.
    Direct(PgConnectOptions),
    /// By a statement after it.
    Pooled(PgConnectOptions),
}

/// A pooler that has no server's connection for us answers nothing for so long.
const PATIENCE: Duration = Duration::from_secs(5);

impl Way {
    /// Looks, by connecting. Fails as connecting does.
    pub(super) async fn find(options: PgConnectOptions) -> Result<Self, sqlx::Error> {
        let wanted = [("search_path", "nightporter")];
        match options.clone().options(wanted).connect().await {
            Ok(mut connection) => {
                // Some poolers take the options, and forget them.
                let set = connection.fetch_one("select current_setting('search_path') = 'nightporter'").await?;
                let is_set = set.try_get::<bool, _>(0)?;
                let _closed = connection.close().await;
                Ok(if is_set { Self::Direct(options) } else { Self::pooled(options) })
            }
            Err(error) if is_poolers(&error) => Ok(Self::pooled(options)),
            Err(error) => Err(error),
        }
    }

    fn pooled(options: PgConnectOptions) -> Self {
        Self::Pooled(options.extra_float_digits(None))
    }

    /// How to connect so that these settings hold, and the statement that makes them afterwards, where one must.
    pub(super) fn with(&self, settings: &[(&str, &str)]) -> (PgConnectOptions, Option<String>) {
        match self {
            Self::Direct(options) => (options.clone().options(settings.iter().copied()), None),
            Self::Pooled(options) => {
                let statement = settings.iter().fold(String::new(), |mut text, (name, value)| {
                    let _infallible = write!(text, "set {name} = '{value}';");
                    text
                });
                (options.clone(), Some(statement))
            }
        }
    }

    /// Whether a connection of ours is one of the server's, the same for as long as it lasts.
    pub(super) async fn keeps_its_server(&self) -> Result<bool, sqlx::Error> {
        let Self::Pooled(options) = self else { return Ok(true) };
        let (mut ours, mut other) = (options.connect().await?, options.connect().await?);
        let Ok(before) = timeout(PATIENCE, server_of(&mut ours)).await else { return Ok(false) };
        let before = before?;
        // Takes the server's connection that was given back last, and keeps it: ours, if it was given back.
        let Ok(begun) = timeout(PATIENCE, other.execute("begin")).await else { return Ok(false) };
        begun?;
        let after = timeout(PATIENCE, server_of(&mut ours)).await;
        let kept = matches!(after, Ok(Ok(after)) if after == before);
        for connection in [ours, other] {
            let _closed = timeout(PATIENCE, connection.close()).await;
        }
        Ok(kept)
    }
}

/// Makes settings on a new connection.
pub(super) async fn make_settings(connection: &mut PgConnection, statement: Option<String>) -> Result<(), sqlx::Error> {
    match statement {
        Some(statement) => sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop),
        None => Ok(()),
    }
}

/// The server's process, asked without a prepared statement.
async fn server_of(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    connection
        .fetch_one(sqlx::raw_sql("select pg_backend_pid()::text"))
        .await?
        .try_get_unchecked::<String, _>(0)
        .map(|pid| pid.parse().unwrap_or(0))
}

/// `PgBouncer`: "unsupported startup parameter: options".
fn is_poolers(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.message().contains("unsupported startup parameter"))
}
