//! `restore`: makes a new database from a backup, which is checked against its manifest byte by byte on the way.
//!
//! Twice is safe: the database has its wanted name only when it is whole, and with it the job's mark (`PostgreSQL`) or the
//! backup's very bytes (`SQLite`); an attempt that finds that has nothing to do, one that finds another database refuses.
//! Nothing is ever restored over a database. Retries what may pass; a damaged backup and a taken name stay refused.

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Limit, Names, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;

use super::backup::{alone_at, check_names};
use crate::backups::{self, Backup};
use crate::context::{Context, Step};
use crate::handler::{Failure, Handler, Output};
use crate::stores::Store;

/// What stands for the newest backup.
pub(super) const LATEST: &str = "latest";

/// The arguments of `restore`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Restore {
    /// The key of the backup's manifest, as `backups list` shows it, or `latest`.
    backup: String,
    /// The database that it is a backup of, as the configuration names it. The new one is made on its server, or in its
    /// folder.
    database: String,
    /// The store, as the configuration names it.
    store: String,
    /// The new database's name: letters, digits, `_`, `-` and `.`.
    into: String,
}

#[async_trait]
impl Handler for Restore {
    const KIND: &'static str = "restore";
    const SUMMARY: &'static str = "makes a new database from a backup";
    const QUEUE: &'static str = "databases";
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_hours(24);

    fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = check_names(&self.database, &self.store, names);
        if !is_new_name(&self.into) {
            problems.push(Problem::new(format!(
                "`{}` cannot be a new database's name: write up to 63 letters, digits, `_`, `-` and `.`, beginning with \
                 a letter or a digit",
                self.into
            )));
        }
        problems
    }

    fn limits(&self) -> Vec<Limit> {
        vec![alone_at(&self.database)]
    }

    fn output() -> Value {
        json!({"backup": null, "into": null, "bytes": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        if !is_new_name(&self.into) {
            return Err(Failure::Discard(anyhow::anyhow!("`{}` cannot be a new database's name", self.into)));
        }
        let database = cx.world().database(&self.database).await?;
        let store = cx.world().store(&self.store).await?;
        let backup = choose(cx, &*store, &self.store, &self.database, &self.backup).await?;
        if let Step::Fresh(step) | Step::Unknown(step) = cx.step::<Value>("restore").await? {
            info!(backup = backup.key, into = self.into, bytes = backup.manifest.data.plain.bytes, "restore begins");
            let unpacked = backups::open(&*store, &backup.manifest.data, &cx.world().seal(&self.store).await?).await?;
            let tag = cx.job().attempt.job.to_string();
            database.restore(&self.into, &tag, unpacked.reader).await?;
            step.finish(&Value::Null).await?;
        }
        Ok(json!({"backup": backup.key, "into": self.into, "bytes": backup.manifest.data.plain.bytes}))
    }
}

/// The backup that is wanted, by its key or as `latest`.
pub(super) async fn choose(
    cx: &Context,
    store: &dyn Store,
    store_name: &str,
    database: &str,
    wanted: &str,
) -> Result<Backup, Failure> {
    // What is the latest may change between attempts; the first one's choice stays.
    let key = match cx.step::<String>("choose").await? {
        Step::Finished(key) => key,
        Step::Fresh(step) | Step::Unknown(step) => {
            let key = match wanted {
                LATEST => backups::latest(store, database).await?.key,
                named => named.to_owned(),
            };
            step.finish(&key).await?;
            key
        }
    };
    let missing = || {
        Failure::Discard(anyhow::anyhow!(
            "there is no backup `{key}` in the store `{store_name}`; `nightporter backups list` shows those that there are"
        ))
    };
    backups::find(store, &key).await?.ok_or_else(missing)
}

/// A name that needs no quoting anywhere and leaves no folder.
fn is_new_name(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    first && name.len() <= 63 && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_a_folder_or_look_like_options_are_refused() {
        assert!(["shop_restored", "shop-2026.db", "9"].into_iter().all(is_new_name));
        assert!(["", "-x", "../x", "a/b", ".hidden", "a b", "a'b"].into_iter().all(|name| !is_new_name(name)));
        assert!(!is_new_name(&"x".repeat(64)));
    }
}
