//! `migrate`: applies the pending migrations of a folder to a database: exactly those of the run's plan, where it has one.
//!
//! Twice is safe: the tool's own lock lets one run at a time, and the tool's own history, read under that lock, says what
//! is applied; a file and its row are committed together. For files that run outside a transaction see
//! [`Migrate::apply`]. Retries: GitHub, the connection, the tool's lock and the locks of statements; never a file that failed.

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Key, Limit, Names, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::Instrument;

use super::backup::alone_at;
use super::plan::check_database;
use crate::context::{Context, Step};
use crate::databases::Tool;
use crate::handler::{Failure, Handler, OrFail, Output};
use crate::migrations::folder::{Folder, SourceFile};
use crate::migrations::plan::{Bound, Comparison, Plan, Refusal};
use crate::migrations::{AppliedState, History, Migration, source, statements};
use crate::outside;

/// The arguments of `migrate`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Migrate {
    /// The database's name in the configuration.
    database: String,
    /// The commit whose migrations are meant: a whole hash, needed where they come from a repository.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
    /// The hash of a plan: nothing but that plan is applied. Without it, the plan of the same run, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<String>,
}

/// What the first attempt decided, for those after it.
#[derive(Serialize, Deserialize)]
struct Binding {
    plan: Bound,
    /// What was pending then.
    pending: Vec<String>,
}

#[async_trait]
impl Handler for Migrate {
    const KIND: &'static str = "migrate";
    const SUMMARY: &'static str = "applies pending migrations to a database, exactly as planned";
    const QUEUE: &'static str = "databases";
    const RETRY: RetryPolicy = RetryPolicy {
        first: Duration::from_secs(2),
        longest: Duration::from_mins(1),
        max_failures: 8,
        // Counted from when the run was stored: a long backup may stand before it.
        max_age: Duration::from_hours(24),
    };
    const TIME_LIMIT: Duration = Duration::from_hours(6);

    fn check(&self, names: &Names) -> Vec<Problem> {
        check_database(&self.database, names)
    }

    fn key(&self) -> Option<Key> {
        let commit = self.commit.as_ref()?;
        let hold = Duration::from_hours(24);
        Some(Key { scope: Self::KIND.into(), key: format!("{}@{commit}", self.database), hold })
    }

    /// Not while the same database is backed up: the dump would hold the locks that a migration waits for.
    fn limits(&self) -> Vec<Limit> {
        vec![alone_at(&self.database)]
    }

    fn output() -> Value {
        json!({
            "database": null, "ref": null, "applied": null, "count": null, "last_five": null, "hash": null,
            "superseded": null, "by": null,
        })
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let config = source::config(cx, &self.database)?;
        let files = source::files(cx, &self.database, config, self.commit.as_deref()).await?;
        let mut history = cx.world().database(&self.database).await?.migrate_with(config.tool).await?;
        let output = self.under_lock(cx, config.tool, &files, &mut *history).await;
        history.close().await;
        output
    }
}

impl Migrate {
    async fn under_lock(
        &self,
        cx: &Context,
        tool: Tool,
        files: &[SourceFile],
        history: &mut dyn History,
    ) -> Result<Output, Failure> {
        let engine = history.engine();
        let folder = Folder::of(tool, engine, files).or_discard("reading the migrations folder")?;
        let comparison = Comparison::of(&folder, &history.applied().await?, engine).map_err(Failure::discard)?;
        let binding = match cx.step::<Binding>("bind to the plan").await? {
            Step::Finished(binding) => binding,
            Step::Fresh(step) | Step::Unknown(step) => {
                let binding = self.bind(&comparison, cx.outputs().await?, history)?;
                step.finish(&binding).await?;
                binding
            }
        };
        comparison.is_as_planned(&binding.plan).map_err(Failure::discard)?;
        self.apply(cx, tool, &comparison.pending, history).await?;
        let applied = if comparison.superseded_by.is_empty() { binding.pending } else { Vec::new() };
        Ok(json!({
            "database": self.database,
            "ref": self.commit,
            "count": applied.len(),
            "applied": applied,
            "last_five": last_five(history).await?,
            "hash": binding.plan.hash,
            "superseded": !comparison.superseded_by.is_empty(),
            "by": comparison.superseded_by,
        }))
    }

    /// The plan that binds this job: the run's, or the one whose hash was given, or what is pending now.
    fn bind(&self, now: &Comparison<'_>, outputs: Value, history: &dyn History) -> Result<Binding, Failure> {
        let current = now.plan(&self.database, self.commit.as_deref(), history.engine());
        let of_run = self.plan_of_run(outputs)?;
        let plan = match (of_run, &self.plan) {
            (Some(plan), Some(hash)) if plan.hash != *hash => {
                return Err(not_as_planned("the plan of this run is not the one that was asked for"));
            }
            (Some(plan), _) => Bound { names: plan.names, hash: plan.hash },
            (None, Some(hash)) if current.hash != *hash && current.pending > 0 => {
                return Err(not_as_planned("the files or the database's history are not those that were planned for"));
            }
            (None, _) => Bound { names: current.names.clone(), hash: current.hash },
        };
        now.is_as_planned(&plan).map_err(Failure::discard)?;
        Ok(Binding { plan, pending: current.names })
    }

    /// The plan of the same database and commit that another job of the run has made.
    fn plan_of_run(&self, outputs: Value) -> Result<Option<Plan>, Failure> {
        let Value::Object(outputs) = outputs else { return Ok(None) };
        // Other jobs put out other things.
        let plans = outputs.into_iter().filter_map(|(_, output)| serde_json::from_value::<Plan>(output).ok());
        let mut plans = plans.filter(|plan| plan.database == self.database && plan.commit == self.commit);
        let Some(first) = plans.next() else { return Ok(None) };
        if plans.any(|other| other.hash != first.hash) {
            return Err(not_as_planned("this run has several plans for the same database and commit, which differ"));
        }
        Ok(Some(first))
    }

    /// Applies them, one after the other.
    ///
    /// Most tools record a file that runs outside a transaction before it begins. For the others a step stands around
    /// all of them: found unfinished, an attempt was interrupted in one of them, and a person is asked to look, once.
    async fn apply(
        &self,
        cx: &Context,
        tool: Tool,
        pending: &[&Migration],
        history: &mut dyn History,
    ) -> Result<(), Failure> {
        let engine = history.engine();
        let unrecorded = pending.iter().find(|migration| statements::is_unrecorded(migration, tool, engine));
        let Some(unrecorded) = unrecorded else { return apply_all(pending, history).await };
        match cx.step::<Value>("outside a transaction").await? {
            Step::Finished(_) => apply_all(pending, history).await,
            Step::Fresh(step) => {
                let result = apply_all(pending, history).await;
                step.finish(&Value::Null).await?;
                result
            }
            Step::Unknown(step) => {
                step.finish(&Value::Null).await?;
                Err(Failure::Discard(anyhow::anyhow!(
                    "an attempt was interrupted, perhaps in the migration `{}`, which runs outside a transaction and of \
                     which the history says nothing; look what of it is in the database, complete it and write its row, or \
                     take it back, then retry the job: it is not stopped a second time",
                    unrecorded.name
                )))
            }
        }
    }
}

async fn apply_all(pending: &[&Migration], history: &mut dyn History) -> Result<(), Failure> {
    for migration in pending {
        let span = outside::database(history.engine().system(), "migrate");
        history.apply(migration).instrument(span).await?;
        tracing::info!(migration = migration.name, "applied");
    }
    Ok(())
}

async fn last_five(history: &mut dyn History) -> Result<Vec<Value>, Failure> {
    let applied = history.applied().await?;
    let finished = applied.into_iter().filter_map(|applied| match applied.state {
        AppliedState::Finished(at) => Some((at, applied.id, applied.name)),
        _ => None,
    });
    let mut finished: Vec<_> = finished.collect();
    finished.sort();
    Ok(finished.iter().rev().take(5).map(|(at, _, name)| json!({"name": name, "finished_at": at})).collect())
}

fn not_as_planned(why: &str) -> Failure {
    Failure::discard(Refusal::NotAsPlanned(why.into()))
}
