//! Databases: what backups read, restores fill and migrations change. A new engine is a file here and an arm in [`open`].

pub mod pooler;

use async_trait::async_trait;
use bytes::Bytes;
use secrets::{Resolver, SecretText};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;

use crate::handler::Failure;
use crate::migrations::History;

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
    /// Begins a dump in one consistent snapshot.
    async fn dump(&self) -> Result<Box<dyn Dump>, Failure>;

    /// Fills a new database of that name from a dump; refuses where one of that name exists.
    async fn restore(&self, new_name: &str, dump: Box<dyn AsyncRead + Send + Unpin>) -> Result<(), Failure>;

    /// Takes the lock of a migration tool on this database, by polling, and opens the tool's history.
    async fn migrate_with(&self, tool: Tool) -> Result<Box<dyn History>, Failure>;
}

/// A dump that is being made. Dropped, it stops.
#[async_trait]
pub trait Dump: Send {
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
}

/// Opens the database: resolves its address and finds its engine.
pub async fn open(name: &str, config: &DatabaseConfig, secrets: &Resolver) -> Result<Box<dyn Database>, Failure> {
    let _ = (name, config, secrets);
    Err(Failure::Discard(anyhow::anyhow!("no database engine is built in")))
}
