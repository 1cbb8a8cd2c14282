//! Where the measuring happens: a database, or a file, and a broker's queue, that nobody else uses.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::options::QueueDeleteOptions;
use lapin::{Connection as Amqp, ConnectionProperties};
use queue::{OpenError, Queue, QueueConfig};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use url::Url;
use uuid::Uuid;

use crate::config::sqlite_path;
use crate::failure::Failure;

/// What is said of the server: what decides whether a commit is on disk, and how large its caches are.
const SETTINGS: [&str; 6] =
    ["server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size"];

/// The broker's queue for the jobs that are measured.
const BROKERS_QUEUE: &str = "nightporter.bench";

/// How long a round may take to let go of a file, and how often it is looked.
const LET_GO_WITHIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

/// Which ledger is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Postgres,
    Sqlite,
}

/// The ledger and the broker of one run.
pub(super) struct Stage {
    engine: Engine,
    /// The run's own ledger.
    url: String,
    broker: String,
    /// Of the server where the run's own database is made and dropped, and the database's name.
    server: Option<(Url, String)>,
    /// Holds the run's own file, where that is the ledger.
    _folder: Option<TempDir>,
}

impl Stage {
    /// Makes a place of its own at the server, or a file.
    pub(super) async fn set(ledger: Option<&str>, broker: &str) -> Result<Self, Failure> {
        let broker = broker.to_owned();
        let folder = match ledger {
            None => Some(tempfile::tempdir()),
            Some(ledger) => sqlite_path(ledger).map(tempfile::tempdir_in),
        };
        if let Some(folder) = folder {
            let folder = folder.map_err(|error| {
                Failure::usage(format!("no folder can be made for the run: {error}"))
                    .help("--ledger sqlite:FOLDER names a folder on the disk that is to be measured")
            })?;
            let url = format!("sqlite:{}", folder.path().join("bench.db").display());
            return Ok(Self { engine: Engine::Sqlite, url, broker, server: None, _folder: Some(folder) });
        }
        let ledger = ledger.unwrap_or_default();
        // Its own message may quote the address, and that holds a password.
        let server: Url = ledger.parse().map_err(|_| Failure::usage("--ledger is no address of a ledger"))?;
        let database = format!("nightporter_bench_{}", Uuid::new_v4().simple());
        at_server(&server, &format!("create database {database}")).await.map_err(|error| {
            Failure::unavailable(format!("no database can be made for the run: {error}")).help(
                "--ledger names a server and a user who may create databases; the run drops its database at the end",
            )
        })?;
        let mut url = server.clone();
        url.set_path(&database);
        Ok(Self { engine: Engine::Postgres, url: url.into(), broker, server: Some((server, database)), _folder: None })
    }

    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Whether several processes may work on this ledger.
    pub(super) fn takes_several_processes(&self) -> bool {
        self.engine == Engine::Postgres
    }

    pub(super) async fn open(&self) -> Result<Queue, Failure> {
        let config = QueueConfig::new(&self.url, &self.broker);
        let began = Instant::now();
        loop {
            match Queue::open(&config).await {
                // By the round before: its writers let go of the file a moment after they were told to.
                Err(OpenError::InUse { .. }) if began.elapsed() < LET_GO_WITHIN => sleep(LOOK).await,
                opened => return Ok(opened?),
            }
        }
    }

    /// Has the server finish what earlier rounds left it to do, so that no round pays for another.
    pub(super) async fn settle(&self) -> Result<(), Failure> {
        if self.engine == Engine::Postgres {
            self.on_database("vacuum (analyze)").await?;
            // Only some users may; for the others the server does it in its own time.
            let _may_not = self.on_database("checkpoint").await;
        }
        Ok(())
    }

    /// Lays finished jobs of the past into the ledger.
    pub(super) async fn lay(&self, finished: u64) -> Result<(), Failure> {
        self.open().await?.close(Duration::from_secs(1)).await; // which makes the tables
        let laid = match self.engine {
            Engine::Postgres => lay_postgres(&self.url, finished).await,
            Engine::Sqlite => lay_sqlite(&self.url, finished).await,
        };
        laid.map_err(|error| Failure::failed(format!("finished jobs cannot be laid into the ledger: {error}")))
    }

    /// Forgets the jobs that nobody is to run.
    pub(super) async fn clear(&self) -> Result<(), Failure> {
        match self.engine {
            Engine::Postgres => self.on_database("truncate nightporter.job, nightporter.job_args").await,
            Engine::Sqlite => {
                let cleared = async {
                    let mut file = SqliteConnection::connect(&self.url).await?;
                    sqlx::raw_sql("delete from job; delete from job_args").execute(&mut file).await?;
                    file.close().await
                };
                cleared.await.map_err(|error| Failure::failed(format!("the file cannot be cleared: {error}")))
            }
        }
    }

    /// What the servers say of themselves.
    pub(super) async fn settings(&self) -> Result<BTreeMap<String, String>, Failure> {
        let mut settings = BTreeMap::new();
        settings.insert("broker".to_owned(), self.broker.split(':').next().unwrap_or_default().to_owned());
        if self.engine == Engine::Sqlite {
            settings.insert("ledger".to_owned(), "SQLite, journal_mode wal, synchronous full".to_owned());
            return Ok(settings);
        }
        let read = async {
            let mut database = PgConnection::connect(&self.url).await?;
            for name in SETTINGS {
                let value: String =
                    sqlx::query_scalar("select current_setting($1)").bind(name).fetch_one(&mut database).await?;
                settings.insert(name.to_owned(), value);
            }
            database.close().await?;
            Ok::<_, sqlx::Error>(settings)
        };
        read.await.map_err(|error| Failure::failed(format!("the server's settings cannot be read: {error}")))
    }

    /// Removes what the run made.
    pub(super) async fn strike(self) -> Result<(), Failure> {
        if self.broker.starts_with("amqp") {
            let removed = remove_queue(&self.broker).await;
            removed.map_err(|error| {
                Failure::failed(format!("the queue {BROKERS_QUEUE} is left at the broker: {error}"))
            })?;
        }
        if let Some((server, database)) = &self.server {
            let dropped = at_server(server, &format!("drop database {database} with (force)")).await;
            dropped.map_err(|error| Failure::failed(format!("the database {database} is left behind: {error}")))?;
        }
        Ok(())
    }

    async fn on_database(&self, statement: &'static str) -> Result<(), Failure> {
        let done = async {
            let mut database = PgConnection::connect(&self.url).await?;
            sqlx::raw_sql(statement).execute(&mut database).await?;
            database.close().await
        };
        done.await.map_err(|error| Failure::failed(format!("`{statement}` failed: {error}")))
    }
}

async fn lay_postgres(url: &str, finished: u64) -> Result<(), sqlx::Error> {
    let statements = format!(
        "set search_path = nightporter;
         create temp table past as
         select ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid as id from generate_series(1, {finished}) n;
         insert into job_args (id, args) select id, '{{}}' from past;
         insert into history (id, queue, kind, state, priority, attempt, failures, crashes, created_at, finished_at)
         select id, 'bench', 'bench', 5, 2, 1, 0, 0, 1, 1 from past;
         analyze"
    );
    let mut connection = PgConnection::connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await?;
    connection.close().await
}

async fn lay_sqlite(url: &str, finished: u64) -> Result<(), sqlx::Error> {
    let statements = format!(
        "begin;
         create temp table past as
         with recursive n(n) as (select 1 union all select n + 1 from n where n < {finished})
         select unhex('00000000000070008000' || printf('%012x', n)) as id from n;
         insert into job_args (id, args) select id, '{{}}' from past;
         insert into history (id, queue, kind, state, priority, attempt, failures, crashes, created_at, finished_at)
         select id, 'bench', 'bench', 5, 2, 1, 0, 0, 1, 1 from past;
         commit"
    );
    let mut connection = SqliteConnection::connect(url).await?;
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await?;
    connection.close().await
}

async fn at_server(server: &Url, statement: &str) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(server.as_str()).await?;
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await?;
    connection.close().await
}

async fn remove_queue(broker: &str) -> Result<(), lapin::Error> {
    let connection = Amqp::connect(broker, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.queue_delete(BROKERS_QUEUE.into(), QueueDeleteOptions::default()).await?;
    connection.close(200, "bye".into()).await
}
