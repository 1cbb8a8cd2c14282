//! Migrations of a user's database: folders, histories and plans of the tools that are known.

use std::path::Path;

use async_trait::async_trait;
use url::Url;

use crate::databases::Tool;
use crate::handler::Failure;

/// A migration tool's history in one database, under the tool's own lock.
#[async_trait]
pub trait History: Send {}

/// Takes the tool's lock on a PostgreSQL database and opens its history.
#[allow(clippy::unused_async)]
pub(crate) async fn open_postgres(_url: &Url, _tool: Tool) -> Result<Box<dyn History>, Failure> {
    Err(Failure::Discard(anyhow::anyhow!("migrations are not built in")))
}

/// Takes the tool's lock on a SQLite database and opens its history.
#[allow(clippy::unused_async)]
pub(crate) async fn open_sqlite(_path: &Path, _tool: Tool) -> Result<Box<dyn History>, Failure> {
    Err(Failure::Discard(anyhow::anyhow!("migrations are not built in")))
}
