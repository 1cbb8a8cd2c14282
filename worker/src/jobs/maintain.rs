//! `maintain`: does the upkeep that a live database's statistics ask for: dead rows, stale statistics, invalid and bloated
//! indexes.
//!
//! What is to be done is written down first; each table and index is a step then, so that a later attempt goes on where an
//! earlier one was interrupted. Twice is safe: VACUUM, ANALYZE and REINDEX CONCURRENTLY change nothing that anybody reads;
//! what an interrupted REINDEX leaves is dropped before it is built again. It stops nobody: all of it runs beside reads and
//! writes, no lock is waited for long, and while the database is busy or a transaction stays open it waits (a snooze, which
//! holds no permit). When its time is up it ends, and says what is left. Retries: the connection. What the database refuses
//! is told when all the rest is done, and discards the job.

use std::time::Duration;

use async_trait::async_trait;
use queue::clock::later;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Limit, Names, Problem, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;

use super::backup::alone_at;
use super::plan::check_database;
use crate::context::{Context, Step};
use crate::databases::{Chore, Ended, Task, Upkeep};
use crate::handler::{Failure, Handler, Output};

/// The longest time that it may take.
const LONGEST: Duration = Duration::from_hours(24);

/// How long a busy database is left alone before it is looked at again.
const AGAIN: Duration = Duration::from_mins(1);

/// So many things are done in a job; the others are found by the next one.
const MOST: usize = 100;

/// The order in which things are done: what makes the indexes' figures right comes before the indexes.
const TABLES: [Task; 3] = [Task::Leftovers, Task::Vacuum, Task::Analyze];
const INDEXES: [Task; 1] = [Task::Reindex];

/// The arguments of `maintain`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Maintain {
    /// The database's name in the configuration.
    database: String,
    /// What may be done: `leftovers`, `vacuum`, `analyze`, `reindex`; without it, all.
    #[serde(default = "all")]
    tasks: Vec<Task>,
    /// Only says what it would do.
    #[serde(default)]
    dry_run: bool,
    /// When the time is up it ends with what is done by then.
    #[serde(default = "within", with = "schemas::period")]
    #[schemars(with = "String")]
    within: Duration,
    /// While a transaction has been open for longer than this, it waits.
    #[serde(default = "long_transaction", with = "schemas::period")]
    #[schemars(with = "String")]
    long_transaction: Duration,
}

fn all() -> Vec<Task> {
    [TABLES.as_slice(), &INDEXES].concat()
}

fn within() -> Duration {
    Duration::from_hours(2)
}

fn long_transaction() -> Duration {
    Duration::from_mins(5)
}

/// What is done and what is left, so far.
#[derive(Default)]
struct Report {
    done: Vec<String>,
    left: Vec<String>,
    refused: Vec<String>,
}

/// What is waited for.
enum Waits {
    /// The whole database.
    Busy(String),
    /// A table's lock.
    Locked(String),
}

/// Whether to go on with the next thing.
enum Pace {
    Now(Duration),
    /// Not now, for this reason.
    Later(String),
    /// The time is up.
    Over,
}

#[async_trait]
impl Handler for Maintain {
    const KIND: &'static str = "maintain";
    const SUMMARY: &'static str = "vacuums, analyzes and reindexes what a database's statistics ask for";
    const QUEUE: &'static str = "databases";
    const RETRY: RetryPolicy = RetryPolicy { max_age: Duration::from_hours(48), ..RetryPolicy::PATIENT };
    const TIME_LIMIT: Duration = Duration::from_hours(25);

    fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = check_database(&self.database, names);
        if self.within > LONGEST {
            problems.push(Problem::new("it may take at most 24 hours").within("within"));
        }
        if self.tasks.is_empty() {
            problems.push(Problem::new("there is nothing to do").within("tasks"));
        }
        problems
    }

    /// Not while the same database is backed up or migrated: a dump's transaction is one that would be waited for, and a
    /// migration would wait for our locks.
    fn limits(&self) -> Vec<Limit> {
        vec![alone_at(&self.database)]
    }

    fn output() -> Value {
        json!({
            "database": null, "dry_run": null, "done": null, "count": null, "left": null, "left_count": null, "why": null,
            "plan": null,
        })
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let mut upkeep = cx.world().database(&self.database).await?.upkeep().await?;
        let output = if self.dry_run { self.would_do(&mut *upkeep).await } else { self.keep(cx, &mut *upkeep).await };
        upkeep.close().await;
        output
    }
}

impl Maintain {
    /// What a run at this moment would do.
    async fn would_do(&self, upkeep: &mut dyn Upkeep) -> Result<Output, Failure> {
        let mut chores = upkeep.chores(&self.of(&TABLES)).await?;
        chores.extend(upkeep.chores(&self.of(&INDEXES)).await?);
        let busy = upkeep.busy(self.long_transaction).await?;
        let why = busy.map(|busy| format!("it would wait: {busy}"));
        let plan: Vec<Value> =
            chores.iter().take(MOST).map(|chore| json!({"statement": chore.statement, "why": chore.why})).collect();
        Ok(self.output_of(&Report::default(), why, plan, chores.len()))
    }

    async fn keep(&self, cx: &Context, upkeep: &mut dyn Upkeep) -> Result<Output, Failure> {
        let begun: Timestamp = once(cx, "begin", async || Ok(cx.now())).await?;
        let deadline = later(begun, self.within);
        let mut report = Report::default();
        let mut waits = None;
        for (name, tasks) in [("plan tables", self.of(&TABLES)), ("plan indexes", self.of(&INDEXES))] {
            let chores: Vec<Chore> = once(cx, name, async || {
                let mut chores = upkeep.chores(&tasks).await?;
                chores.truncate(MOST);
                Ok(chores)
            })
            .await?;
            waits = self.each(cx, upkeep, &chores, deadline, &mut report).await?.or(waits);
            // What the indexes need is only known when the tables are done; a table that is locked holds up no other's.
            if matches!(waits, Some(Waits::Busy(_))) {
                break;
            }
        }
        let reason = waits.map(|(Waits::Busy(reason) | Waits::Locked(reason))| reason);
        match reason {
            Some(reason) if later(cx.now(), AGAIN) < deadline => Err(Failure::Snooze { wait: AGAIN, reason }),
            reason => self.ended(report, reason),
        }
    }

    /// Does all that can be done; why something was left, where that may pass.
    async fn each(
        &self,
        cx: &Context,
        upkeep: &mut dyn Upkeep,
        chores: &[Chore],
        deadline: Timestamp,
        report: &mut Report,
    ) -> Result<Option<Waits>, Failure> {
        let mut waits = None;
        for chore in chores {
            let title = format!("{} {}", word(chore.task), chore.name);
            let step = match cx.step::<Value>(&title).await? {
                Step::Finished(_) => {
                    report.done.push(title);
                    continue;
                }
                Step::Fresh(step) | Step::Unknown(step) => step,
            };
            let limit = match self.pace(cx, upkeep, deadline).await? {
                Pace::Now(limit) => limit,
                Pace::Later(reason) => {
                    report.left.push(title);
                    waits = Some(Waits::Busy(reason));
                    continue;
                }
                Pace::Over => {
                    report.left.push(title);
                    continue;
                }
            };
            match upkeep.work(chore, limit).await.map_err(|failure| failure.context(title.clone()))? {
                Ended::Done => {
                    step.finish(&Value::Null).await?;
                    info!(chore = title, why = chore.why, "done");
                    report.done.push(title);
                }
                Ended::Locked => {
                    waits = Some(Waits::Locked(format!("{title}: others hold the table's lock")));
                    report.left.push(title);
                }
                Ended::OutOfTime => report.left.push(title),
                Ended::Failed(said) => report.refused.push(format!("{title}: {said}")),
            }
        }
        Ok(waits)
    }

    async fn pace(&self, cx: &Context, upkeep: &mut dyn Upkeep, deadline: Timestamp) -> Result<Pace, Failure> {
        let Some(left) = (deadline - cx.now()).to_std().ok().filter(|left| !left.is_zero()) else {
            return Ok(Pace::Over);
        };
        let busy = upkeep.busy(self.long_transaction).await?;
        Ok(busy.map_or(Pace::Now(left), Pace::Later))
    }

    /// Those of the tasks that are wanted, in their order.
    fn of(&self, tasks: &[Task]) -> Vec<Task> {
        tasks.iter().copied().filter(|task| self.tasks.contains(task)).collect()
    }

    fn ended(&self, report: Report, waited_for: Option<String>) -> Result<Output, Failure> {
        if !report.refused.is_empty() {
            let refused = report.refused.join("; ");
            return Err(Failure::Discard(anyhow::anyhow!(
                "{} of {} things were refused by the database `{}`: {}",
                report.refused.len(),
                report.refused.len() + report.done.len() + report.left.len(),
                self.database,
                crate::channels::message::cut(&refused, 2000)
            )));
        }
        let why = (!report.left.is_empty()).then(|| {
            let waited = waited_for.map_or(String::new(), |reason| format!("; it waited: {reason}"));
            format!("the time of {} was up{waited}", schemas::period::write(self.within))
        });
        Ok(self.output_of(&report, why, Vec::new(), report.left.len()))
    }

    fn output_of(&self, report: &Report, why: Option<String>, plan: Vec<Value>, left: usize) -> Output {
        json!({
            "database": self.database,
            "dry_run": self.dry_run,
            "done": report.done,
            "count": report.done.len(),
            "left": report.left,
            "left_count": left,
            "why": why,
            "plan": plan,
        })
    }
}

/// What an earlier attempt found out, or this one does now.
async fn once<T: Serialize + serde::de::DeserializeOwned + Sync>(
    cx: &Context,
    name: &str,
    find: impl AsyncFnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    match cx.step::<T>(name).await? {
        Step::Finished(found) => Ok(found),
        Step::Fresh(step) | Step::Unknown(step) => {
            let found = find().await?;
            step.finish(&found).await?;
            Ok(found)
        }
    }
}

fn word(task: Task) -> &'static str {
    match task {
        Task::Leftovers => "drop",
        Task::Vacuum => "vacuum",
        Task::Analyze => "analyze",
        Task::Reindex => "reindex",
    }
}
