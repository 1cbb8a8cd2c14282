//! Databases: what backups read, restores fill and migrations change. A new engine is a file here and an arm in [`open`].

pub(crate) mod contents;
pub mod pooler;
mod postgres;
pub(crate) mod program;
mod question;
mod sqlite;
mod upkeep;

use async_trait::async_trait;
use bytes::Bytes;
use secrets::{ExposeSecret, Resolver, SecretText};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncRead;

use crate::examination::Remark;
use crate::handler::{Failure, OrFail};
use crate::migrations::History;
use crate::rows::{Named, Walk};

pub use contents::{Contents, Digests, Scratch, Table};
pub use question::{Answer, LONGEST_VALUE, Question};
pub use upkeep::{Chore, Ended, Task, Upkeep};

/// A database as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://...`, the direct address and not a pooler's, or `sqlite:<path>`.
    pub url: SecretText,
    /// `production`, `staging` or any other word; for people and for policies.
    #[serde(default)]
    pub environment: Option<String>,
    /// Where its migrations are.
    #[serde(default)]
    pub migrations: Option<MigrationsConfig>,
    /// Backups take digests of the rows of tables up to this size, in MiB, and only count the rows of larger ones.
    #[serde(default = "digests_up_to_mib")]
    pub digests_up_to_mib: u64,
}

/// Some ten seconds for each table, at most.
fn digests_up_to_mib() -> u64 {
    2048
}

/// Where a database's migrations are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationsConfig {
    /// Whose folder it is: the history table is kept as that tool keeps it.
    pub tool: Tool,
    /// The folder: in the repository, or on this machine where no repository is given.
    pub path: String,
    /// `owner/name` at GitHub.
    #[serde(default)]
    pub repository: Option<String>,
    /// The branch whose commits may be applied.
    #[serde(default)]
    pub branch: Option<String>,
}

/// A migration tool whose folders and history tables are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// `*.sql` in the order of their names, with a history table of our own.
    Sql,
    /// sqlx: `<version>_<description>.sql`, `_sqlx_migrations`.
    Sqlx,
    /// Prisma up to 7: `<name>/migration.sql`, `_prisma_migrations`.
    Prisma,
}

/// A database that can be reached.
#[async_trait]
pub trait Database: Send + Sync {
    /// `postgresql` or `sqlite`, as dumps say it too.
    fn engine(&self) -> &'static str;

    /// Begins a dump in one consistent snapshot. `tag` names the work: what an earlier attempt with the same tag left
    /// behind is removed.
    async fn dump(&self, tag: &str) -> Result<Box<dyn Dump>, Failure>;

    /// Reads a dump to its end as a restore would, but into nothing: that it can be read is proven only so. A reader
    /// that fails with `InvalidData` holds what is not the backup's bytes.
    async fn read_through(&self, dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), Failure>;

    /// Makes a new database of that name from a dump; refuses where one of that name exists, unless this work, by its
    /// tag, made it. The database has its name only when it is whole; on failure nothing is left.
    async fn restore(&self, new_name: &str, tag: &str, dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), Failure>;

    /// The same beside this database, to take its place: whatever of it belongs to others, or is open to them, does so in
    /// the new one too. False where it has taken its place already.
    async fn restore_beside(&self, scratch: Scratch, dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<bool, Failure>;

    /// Puts what was restored beside this database in its place, at once or not at all, once; where the old one is kept.
    async fn take_place(&self, scratch: Scratch) -> Result<String, Failure>;

    /// What stands in the way of its jobs, without changing anything.
    async fn examine(&self) -> Result<Vec<Remark>, Failure>;

    /// Opens a walk over the rows of a table.
    async fn walk(&self, named: Named<'_>) -> Result<Walk, Failure>;

    /// Drops the scratch database of a job, and what was never finished of it, whoever uses it.
    async fn drop_scratch(&self, scratch: Scratch) -> Result<(), Failure>;

    /// The scratch databases that there are beside this one.
    async fn scratches(&self) -> Result<Vec<Scratch>, Failure>;

    /// What the tables of a scratch database hold, with digests of those tables that have one in `like`.
    async fn contents(&self, scratch: Scratch, like: &Contents) -> Result<Contents, Failure>;

    /// What a scratch database answers to a query that reads one value.
    async fn ask_scratch(&self, scratch: Scratch, sql: &str) -> Result<Value, Failure>;

    /// Asks a question. The database sees to it that nothing is written, and that the time limit holds.
    async fn ask(&self, question: &Question) -> Result<Answer, Failure>;

    /// Opens a session for the database's upkeep.
    async fn upkeep(&self) -> Result<Box<dyn Upkeep>, Failure>;

    /// Takes the lock of a migration tool on this database, by polling, and opens the tool's history.
    async fn migrate_with(&self, tool: Tool) -> Result<Box<dyn History>, Failure>;
}

/// A dump that is being made. Dropped, it stops.
#[async_trait]
pub trait Dump: Send {
    /// About how many bytes will come.
    fn estimate(&self) -> u64;

    /// The next bytes; none at the end, which alone says nothing about success.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure>;

    /// Whether it was whole: the exit status, read after the last bytes.
    async fn finish(self: Box<Self>) -> Result<DumpFacts, Failure>;
}

/// What a dump says about itself, for the manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DumpFacts {
    /// `postgresql` or `sqlite`.
    pub engine: String,
    /// The server's version.
    pub server_version: String,
    /// The format of the bytes: `pg_dump custom` or `sqlite file`.
    pub format: String,
    /// The program that made it, with its version.
    pub made_with: String,
    /// What it said and nevertheless succeeded.
    pub warnings: Vec<String>,
    /// What the tables held in the dump's snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<Contents>,
}

/// Opens the database: resolves its address and finds its engine.
pub async fn open(name: &str, config: &DatabaseConfig, secrets: &Resolver) -> Result<Box<dyn Database>, Failure> {
    let doing = format!("resolving the address of the database `{name}`");
    let address = match secrets.resolve(&config.url).await {
        Err(error) if !error.is_transient() => Err(error).or_discard(&doing)?,
        resolved => resolved.or_retry(&doing)?,
    };
    let address = address.expose_secret();
    match address.split(':').next() {
        Some("postgres" | "postgresql") => {
            let digests_up_to = config.digests_up_to_mib.saturating_mul(1024 * 1024);
            Ok(Box::new(postgres::Postgres::new(name, address, digests_up_to)?))
        }
        Some("sqlite") => Ok(Box::new(sqlite::Sqlite::new(name, address)?)),
        _ => Err(Failure::Discard(anyhow::anyhow!(
            "the address of the database `{name}` is neither `postgres://...` nor `sqlite:<path>`"
        ))),
    }
}

/// A name as statements spell it.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A query as part of another: without the semicolon that people end it with.
fn bare(sql: &str) -> &str {
    sql.trim_end().trim_end_matches(';')
}

/// The one value that a query answered.
fn one_value(mut rows: Vec<Value>) -> Result<Value, Failure> {
    match (rows.pop(), rows.is_empty()) {
        (Some(value), true) => Ok(value),
        (None, _) => Err(Failure::Discard(anyhow::anyhow!("it answers no row; it must answer one value"))),
        (Some(_), false) => Err(Failure::Discard(anyhow::anyhow!("it answers several rows; it must answer one value"))),
    }
}
