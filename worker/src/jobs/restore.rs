//! `restore`: makes a new database from a backup, which is checked against its manifest byte by byte on the way; and, where
//! that is asked for, has it take the place of the live one (`restore/live.rs`).
//!
//! Twice is safe: the database has its wanted name only when it is whole, and with it the job's mark (`PostgreSQL`) or the
//! backup's very bytes (`SQLite`); an attempt that finds that has nothing to do, one that finds another database refuses.
//! Nothing is ever restored over a database. Retries what may pass; a damaged backup and a taken name stay refused.

mod live;

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{ApprovalPolicy, Limit, Names, Problem, Role};
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    into: Option<String>,
    /// Instead of that, it takes the place of the live one, of which a backup is made first, and which is kept under
    /// another name. Somebody else than who starts it must approve it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    replace: bool,
}

/// How long a restore into a live database waits for its approval.
const APPROVED_WITHIN: Duration = Duration::from_hours(24);

#[async_trait]
impl Handler for Restore {
    const KIND: &'static str = "restore";
    const SUMMARY: &'static str = "makes a new database from a backup, or puts it in the place of the live one";
    const QUEUE: &'static str = "databases";
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_hours(24);

    fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = check_names(&self.database, &self.store, names);
        match &self.into {
            Some(name) if !is_new_name(name) => problems.push(Problem::new(format!(
                "`{name}` cannot be a new database's name: write up to 63 letters, digits, `_`, `-` and `.`, beginning with \
                 a letter or a digit"
            ))),
            Some(_) if self.replace => problems.push(Problem::new("it is either `into` a new database or to `replace` the live one")),
            None if !self.replace => {
                let help = "give the new database's name, or `replace = true` to put it in the place of the live one";
                problems.push(Problem::new("`into` is missing").help(help));
            }
            _ => {}
        }
        problems
    }

    fn approval(&self) -> Option<ApprovalPolicy> {
        let (count, role) = (NonZeroU32::MIN, Role::Operator);
        self.replace.then_some(ApprovalPolicy { count, role, within: APPROVED_WITHIN, own: false })
    }

    fn limits(&self) -> Vec<Limit> {
        vec![alone_at(&self.database)]
    }

    fn output() -> Value {
        json!({"backup": null, "into": null, "bytes": null, "safety_backup": null, "kept": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let into = match &self.into {
            Some(into) if is_new_name(into) && !self.replace => into,
            None if self.replace => return self.replace(cx).await,
            _ => return Err(Failure::Discard(anyhow::anyhow!("it is not said well what becomes of the new database"))),
        };
        let database = cx.world().database(&self.database).await?;
        let store = cx.world().store(&self.store).await?;
        let backup = choose(cx, &*store, &self.store, &self.database, &self.backup).await?;
        if let Step::Fresh(step) | Step::Unknown(step) = cx.step::<Value>("restore").await? {
            info!(backup = backup.key, into, bytes = backup.manifest.data.plain.bytes, "restore begins");
            let unpacked = backups::open(&*store, &backup.manifest.data, &cx.world().seal(&self.store).await?).await?;
            let tag = cx.job().attempt.job.to_string();
            database.restore(into, &tag, unpacked.reader).await?;
            step.finish(&Value::Null).await?;
        }
        Ok(json!({"backup": backup.key, "into": into, "bytes": backup.manifest.data.plain.bytes,
                  "safety_backup": null, "kept": null}))
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
    fn what_replaces_a_live_database_is_approved_by_somebody_else_and_nothing_else_is() {
        let restore = |more: Value| -> Restore {
            let mut args = json!({"backup": "latest", "database": "main", "store": "nightly"});
            args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(args).unwrap()
        };
        let names =
            Names { databases: ["main".to_owned()].into(), stores: ["nightly".to_owned()].into(), ..Names::default() };
        let (beside, live) = (restore(json!({"into": "copy"})), restore(json!({"replace": true})));
        assert!(beside.check(&names).is_empty() && live.check(&names).is_empty());
        assert_eq!(beside.approval(), None);
        assert!(live.approval().is_some_and(|approval| !approval.own && approval.role == Role::Operator));
        for wrong in [json!({}), json!({"into": "copy", "replace": true}), json!({"into": "../copy"})] {
            assert_eq!(restore(wrong.clone()).check(&names).len(), 1, "{wrong}");
        }
    }

    #[test]
    fn names_that_leave_a_folder_or_look_like_options_are_refused() {
        assert!(["shop_restored", "shop-2026.db", "9"].into_iter().all(is_new_name));
        assert!(["", "-x", "../x", "a/b", ".hidden", "a b", "a'b"].into_iter().all(|name| !is_new_name(name)));
        assert!(!is_new_name(&"x".repeat(64)));
    }
}
