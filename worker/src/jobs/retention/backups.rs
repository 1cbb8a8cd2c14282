//! Backups by the tiers of their store.
//!
//! Twice is safe: what is kept and what goes is decided anew from what lies in the store ([`crate::backups::keep`]), so an
//! attempt goes on where a killed one stopped. The manifest goes first: from then on it is no backup, and what is left of
//! it is an orphan that this job, or the next backup, sweeps. What cannot be read is never deleted; where the last backup
//! failed, is missing or is wrong, nothing is. Retries what may pass.

use std::collections::{BTreeMap, BTreeSet};

use queue::ledger::JobFilter;
use schemars::JsonSchema;
use schemas::{JobState, Names, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::backups::keep::{Decision, Keep, Known, decide};
use crate::backups::{self, Listing};
use crate::context::{Context, Step};
use crate::handler::{Failure, OrFail, Output};
use crate::stores::Store;

/// So many of the newest jobs are looked through for the last backup of a database.
const LOOKED_THROUGH: u32 = 500;
/// So many keys are named in the output.
const NAMED: usize = 200;

/// Which backups.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfBackups {
    /// The store, as the configuration names it; its `keep` says what is kept.
    store: String,
    /// Only of this database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    database: Option<String>,
    /// Only say what would be deleted.
    #[serde(default)]
    dry_run: bool,
}

impl OfBackups {
    pub(super) fn check(&self, names: &Names) -> Vec<Problem> {
        let known = names.stores.iter().map(String::as_str);
        let unknown = (!names.stores.contains(&self.store)).then(|| Problem::unknown("store", &self.store, known));
        unknown.into_iter().collect()
    }

    pub(super) async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let keep = keep(cx, &self.store)?;
        let store = cx.world().store(&self.store).await?;
        let listing = backups::list(&*store, self.database.as_deref()).await?;
        let decisions = self.decisions(cx, keep, &listing).await?;
        let old: Vec<&String> = decisions.values().flat_map(|decision| &decision.deleted).collect();
        if self.dry_run {
            return Ok(self.output(&Deleted::of(&old), &decisions, &listing));
        }
        let deleted = match cx.step("delete").await? {
            // What has become old since is the next run's.
            Step::Finished(deleted) => deleted,
            Step::Fresh(step) | Step::Unknown(step) => {
                let deleted = Deleted::of(&delete(&*store, &old).await?);
                step.finish(&deleted).await?;
                deleted
            }
        };
        for database in decisions.keys() {
            sweep(&*store, database, cx).await;
        }
        Ok(self.output(&deleted, &decisions, &listing))
    }

    async fn decisions(
        &self,
        cx: &Context,
        keep: &Keep,
        listing: &Listing,
    ) -> Result<BTreeMap<String, Decision>, Failure> {
        let mut decisions = BTreeMap::new();
        let databases: BTreeSet<&String> = listing.backups.iter().map(|backup| &backup.manifest.database).collect();
        for database in databases {
            let folder = format!("{database}/");
            let of_it = listing.backups.iter().filter(|backup| backup.manifest.database == *database);
            let known: Vec<Known> = of_it.map(|backup| Known::of(backup, listing)).collect();
            let broken = listing.broken.iter().map(|(key, _)| key.clone()).filter(|key| key.starts_with(&folder));
            let broken: Vec<String> = broken.collect();
            let failed = self.last_failure(cx, database).await?;
            let decision = decide(keep, &known, &broken, failed.as_deref(), cx.now());
            tell(database, &decision, self.dry_run);
            decisions.insert(database.clone(), decision);
        }
        Ok(decisions)
    }

    /// Why the last backup of a database into this store failed, as far as the ledger remembers; none where it did not.
    async fn last_failure(&self, cx: &Context, database: &str) -> Result<Option<String>, Failure> {
        let filter = JobFilter { kind: Some("backup".to_owned()), limit: LOOKED_THROUGH, ..JobFilter::default() };
        let jobs = cx.queue().ledger().jobs(&filter).await.or_retry("looking for the last backup")?;
        let here = |args: &Value| args["database"] == database && args["store"] == self.store.as_str();
        let ended =
            |state: JobState| (state.is_finished() && state != JobState::Skipped) || state == JobState::Retryable;
        let last = jobs.into_iter().find(|job| here(&job.args) && ended(job.state));
        let failed = last.filter(|job| job.state != JobState::Completed);
        Ok(failed.map(|job| format!("job {} is {}", job.id, job.state.as_str())))
    }

    fn output(&self, deleted: &Deleted, decisions: &BTreeMap<String, Decision>, listing: &Listing) -> Output {
        let held = decisions.iter().filter_map(|(database, decision)| Some((database, decision.held.as_ref()?)));
        json!({
            "dry_run": self.dry_run,
            "kept": decisions.values().map(|decision| decision.kept.len()).sum::<usize>(),
            "deleted": deleted.deleted,
            "keys": deleted.keys,
            "held": held.collect::<BTreeMap<_, _>>(),
            "broken": listing.broken.len(),
        })
    }
}

/// What was deleted, as the step keeps it.
#[derive(Debug, Serialize, Deserialize)]
struct Deleted {
    deleted: usize,
    /// The first of them.
    #[serde(default)]
    keys: Vec<String>,
}

impl Deleted {
    fn of(keys: &[&String]) -> Self {
        Self { deleted: keys.len(), keys: keys.iter().take(NAMED).copied().cloned().collect() }
    }
}

/// Deletes backups; those that were deleted, without such as were pinned meanwhile.
async fn delete<'k>(store: &dyn Store, keys: &[&'k String]) -> Result<Vec<&'k String>, Failure> {
    let mut deleted = Vec::with_capacity(keys.len());
    for key in keys {
        if backups::delete(store, key).await? {
            deleted.push(*key);
        }
    }
    Ok(deleted)
}

/// What the store keeps.
fn keep<'a>(cx: &'a Context, store: &str) -> Result<&'a Keep, Failure> {
    let missing = || Failure::Discard(anyhow::anyhow!("[stores.{store}] has no `keep`, which says what is kept"));
    let keep = cx.world().store_config(store)?.keep.as_ref().ok_or_else(missing)?;
    match keep.problem() {
        Some(problem) => Err(Failure::Discard(anyhow::anyhow!("`keep` of [stores.{store}] cannot be used: {problem}"))),
        None => Ok(keep),
    }
}

fn tell(database: &str, decision: &Decision, dry_run: bool) {
    if let Some(why) = &decision.held {
        warn!(database, why, "no backup is deleted");
    }
    for (key, reasons) in &decision.kept {
        info!(database, key, reasons = reasons.join(", "), "kept");
    }
    for key in &decision.deleted {
        info!(database, key, dry_run, "no tier keeps it: deleted");
    }
}

async fn sweep(store: &dyn Store, database: &str, cx: &Context) {
    match backups::sweep_orphans(store, database, cx.now()).await {
        Ok(swept) if swept.objects > 0 => info!(database, objects = swept.objects, "swept what belongs to no backup"),
        Ok(_) => {}
        Err(failure) => warn!(database, "the store could not be swept: {}", failure.words()),
    }
}

/// The names of its output.
pub(super) fn output() -> Value {
    json!({"kept": null, "keys": null, "held": null, "broken": null})
}
