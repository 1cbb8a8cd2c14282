//! The distributed ledger: `PostgreSQL` 14 or later.
//!
//! Its tables lie in a schema of their own, so that they meet nobody else's, not even in the application's database. What
//! is hot is one statement and one round trip: rows travel as arrays (`unnest`) in the order of their keys, so that no two
//! transactions wait for each other; what others have locked is skipped or waited for, never guessed.
//!
//! A fenced write asks for `state + 0 = 3`: without the `+ 0` the planner may use the rescuer's partial index and read
//! every running job for each row of a batch.

mod announcing;
mod books;
mod cancel;
mod desk;
mod door;
mod firing;
mod floors;
mod forget;
mod intake;
mod kept;
mod pooler;
mod replay;
mod retry;
mod runs;
mod silence;
mod storing;
mod tokens;
mod upkeep;
mod work;

use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, PgTransaction, Postgres as Pg};

use self::floors::Floors;
use self::kept::{Hot, Kept};
use self::pooler::{Way, make_settings};
use super::rows::moment;
use super::{EngineConfig, LedgerError, Look};
use crate::OpenError;
use crate::config::NoticeOfDiscard;

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/postgres");

/// Every call ends within this, the wait for a connection included.
const DEADLINE: Duration = Duration::from_secs(15);

/// A call fails where no connection can be had in this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// For the writers that make batches, one each, the consumers, and what is done at regular times.
const KEPT: usize = 8;

/// For the heart, and what is no single statement and is done now and then.
const HOT: u32 = 8;

/// For operators and readers, whose questions must not hold up the work.
const DESK: u32 = 5;

/// The server itself ends a statement that outlasts our patience, and a transaction whose process was stopped in it.
const LIMITS: [(&str, &str); 4] = [
    ("search_path", "nightporter"),
    ("statement_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "15s"),
    ("jit", "off"),
];

/// Every hot statement finds its rows by an index, a few at a time. Statistics taken in a busy minute say otherwise, and
/// then each of these plans costs a hundred times as much.
const HOT_PLANS: [(&str, &str); 4] =
    [("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off"), ("enable_bitmapscan", "off")];

/// Each question of an operator is planned for the tables as they are now. A plan that was made when they were small, and
/// is kept, reads all of them.
const DESK_PLANS: [(&str, &str); 1] = [("plan_cache_mode", "force_custom_plan")];

/// The distributed ledger.
pub(crate) struct Postgres {
    kept: Kept,
    floors: Floors,
    hot: PgPool,
    desk: PgPool,
    notice: Option<NoticeOfDiscard>,
}

impl Postgres {
    pub(crate) async fn open(config: &EngineConfig) -> Result<Self, OpenError> {
        let options = PgConnectOptions::from_str(&config.url)
            .map_err(|error| cannot_open("its address is not `postgres://user:password@host:5432/database`", error))?
            .application_name("nightporter");
        let way = way(options).await?;
        migrate(&way).await?;
        let pool = |settings: &[(&str, &str)]| {
            let (options, statement) = way.with(settings);
            let pool = PgPoolOptions::new()
                .acquire_timeout(CONNECT_WITHIN)
                .test_before_acquire(false)
                .after_connect(move |connection, _| Box::pin(make_settings(connection, statement.clone())))
                .after_release(|connection, _| Box::pin(answers(connection)));
            (pool, options)
        };
        let hot_settings = [&LIMITS[..], &HOT_PLANS].concat();
        let (options, statement) = way.with(&hot_settings);
        let kept = Kept::new(options, statement, KEPT);
        let (hot, options) = pool(&hot_settings);
        let hot = hot.max_connections(HOT).connect_lazy_with(options);
        let (desk, options) = pool(&[&LIMITS[..], &DESK_PLANS].concat());
        let desk = desk.max_connections(DESK).connect_lazy_with(options);
        Ok(Self { kept, floors: Floors::default(), hot, desk, notice: config.notice.clone() })
    }

    /// A connection for what is done all the time.
    async fn kept(&self) -> Result<Hot<'_>, LedgerError> {
        self.kept.take().await.map_err(unavailable)
    }

    /// A connection for one statement that commits itself.
    async fn hot(&self) -> Result<PoolConnection<Pg>, LedgerError> {
        self.hot.acquire().await.map_err(unavailable)
    }
}

/// Whether a connection that comes back to the pool still answers, and by a server that takes writes: one to a standby,
/// reached by mistake or while the servers changed roles, is not kept. The pool asks whether it answers itself, but without
/// a deadline: where the network swallows everything it waits for as long as TCP does, a quarter of an hour, with the
/// connection's place taken.
async fn answers(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match tokio::time::timeout(CONNECT_WITHIN, is_standby(connection)).await {
        Ok(answered) => answered.map(|is_standby| !is_standby),
        Err(late) => Err(sqlx::Error::Io(late.into())),
    }
}

async fn is_standby(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(connection).await
}

/// A transaction on a connection of the caller's.
async fn begin_on(connection: &mut PgConnection) -> Result<PgTransaction<'_>, LedgerError> {
    connection.begin().await.map_err(unavailable)
}

async fn begin(pool: &PgPool) -> Result<PgTransaction<'static>, LedgerError> {
    pool.begin().await.map_err(unavailable)
}

async fn commit(transaction: PgTransaction<'_>) -> Result<(), LedgerError> {
    transaction.commit().await.map_err(unknown)
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
    if is_refusal(&error) { LedgerError::Refused(error) } else { LedgerError::Unavailable(error) }
}

/// What went wrong in a commit, or in a statement that commits itself: only an answer of the server's says that nothing
/// was written, and not one of those that it sends as it shuts down (class 57P).
fn unknown(error: sqlx::Error) -> LedgerError {
    match &error {
        sqlx::Error::Database(database) if !database.code().is_some_and(|code| code.starts_with("57P")) => {
            unavailable(error)
        }
        _ if is_refusal(&error) => LedgerError::Refused(error),
        _ => LedgerError::Unknown(error.into()),
    }
}

/// Whether it will never be taken: data that no column takes (22), a broken rule (23), more than fits (54).
fn is_refusal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => {
            database.code().is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
        }
        sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => true,
        _ => false,
    }
}

fn cannot_open(reason: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OpenError {
    OpenError::Ledger { reason: reason.to_owned(), source: source.into() }
}

/// Finds out what stands between us and the server, and refuses what cannot work.
async fn way(options: PgConnectOptions) -> Result<Way, OpenError> {
    let (host, port) = (options.get_host().to_owned(), options.get_port());
    let away = format!("PostgreSQL at {host}:{port} cannot be reached; is it running, and is `queue.ledger` right?");
    let found = tokio::time::timeout(DEADLINE, async {
        let way = Way::find(options).await?;
        Ok::<_, sqlx::Error>((way.keeps_its_server().await?, way))
    });
    match found.await {
        Ok(Ok((true, way))) => Ok(way),
        Ok(Ok((false, _))) => Err(cannot_open(
            &format!(
                "the pooler at {host}:{port} gives each transaction another connection, and the ledger needs connections of its \
                 own; let `queue.ledger` name PostgreSQL itself, or a pool with `pool_mode = session`"
            ),
            "the connection did not keep its server",
        )),
        Ok(Err(error)) => Err(cannot_open(&away, error)),
        Err(late) => Err(cannot_open(&away, late)),
    }
}

/// What is at this address.
pub(super) async fn look(url: &str) -> Result<Look, OpenError> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|error| cannot_open("its address is not `postgres://user:password@host:5432/database`", error))?;
    let (options, _) = way(options).await?.with(&[]);
    let asked = async {
        let mut connection = options.connect().await?;
        sqlx::query_as::<_, (String, i64, bool, bool)>(
            "select current_setting('server_version'), (extract(epoch from clock_timestamp()) * 1000000)::bigint,
                    pg_is_in_recovery(),
                    to_regnamespace('nightporter') is not null
                      or has_database_privilege(current_database(), 'create')",
        )
        .persistent(false)
        .fetch_one(&mut connection)
        .await
    };
    let away = "it does not answer";
    let (version, time, is_standby, may_create) = match tokio::time::timeout(DEADLINE, asked).await {
        Ok(answered) => answered.map_err(|error| cannot_open(away, error))?,
        Err(late) => return Err(cannot_open(away, late)),
    };
    if is_standby {
        return Err(cannot_open("it is a standby; let `queue.ledger` lead to the primary", "the server only reads"));
    }
    if !may_create {
        return Err(cannot_open(
            "its schema `nightporter` is not there, and this user may not make it; grant CREATE on the database",
            "no privilege",
        ));
    }
    Ok(Look { time: Some(moment(time)), text: format!("PostgreSQL {version}") })
}

/// Makes the schema and brings its tables up to date. Processes that start together take turns: the migrator locks.
async fn migrate(way: &Way) -> Result<(), OpenError> {
    let away = "its connection was lost as its tables were to be brought up to date";
    let (options, statement) = way.with(&LIMITS[..1]);
    let connect = async {
        let mut connection = options.connect().await?;
        make_settings(&mut connection, statement).await.map(|()| connection)
    };
    let mut connection = match tokio::time::timeout(DEADLINE, connect).await {
        Ok(connected) => connected.map_err(|error| cannot_open(away, error))?,
        Err(late) => return Err(cannot_open(away, late)),
    };
    if is_standby(&mut connection).await.map_err(|error| cannot_open(away, error))? {
        return Err(cannot_open(
            "`queue.ledger` leads to a standby; let it lead to the primary",
            "the server only reads",
        ));
    }
    make_schema(&mut connection)
        .await
        .map_err(|error| cannot_open("its schema `nightporter` cannot be made; may this user create one?", error))?;
    let migrated = MIGRATIONS.run(&mut connection).await;
    // What matters is done; a goodbye that fails changes nothing.
    let _closed = connection.close().await;
    migrated.map_err(|error| match error {
        MigrateError::VersionMissing(found) => {
            let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
            OpenError::Newer { found, known }
        }
        error => cannot_open("its tables cannot be brought up to date", error),
    })
}

async fn make_schema(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    // Asked first: who may not create schemas may still use one that an administrator made.
    let there = "select to_regnamespace('nightporter') is not null";
    if sqlx::query_scalar(there).fetch_one(&mut *connection).await? {
        return Ok(());
    }
    let made = sqlx::query("create schema if not exists nightporter").execute(&mut *connection).await;
    match made {
        // Another process made it at the same moment.
        Err(_) if sqlx::query_scalar(there).fetch_one(connection).await? => Ok(()),
        made => made.map(drop),
    }
}
