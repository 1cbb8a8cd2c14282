//! Rows by age: a walk along the primary key ([`crate::rows`]).
//!
//! Twice is safe: which rows are due is fixed by the first step, and each deletion asks for itself whether a row is due and
//! not held, so one that was deleted is not there and one that changed is looked at anew. Into a table rows move in one
//! statement. Into a store they go first, and then those versions of them are deleted that are in the object: an attempt
//! that finds the object of a killed one goes on from what it says. Retries what may pass; a ceiling that is exceeded and
//! a table that is not fit are for a person.

mod archive;

use std::time::Duration;

use schemars::JsonSchema;
use schemas::{Limit, Names, Problem, period};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;
use tokio::time::Instant;
use tracing::info;

use crate::context::{Context, Step};
use crate::handler::{Failure, Output};
use crate::rows::{Key, Named, Pace, Plan, Stepped, Walk};

/// A stretch of the walk is a step of the job: so much is done again at most, where a process dies.
const STRETCH: Duration = Duration::from_secs(30);
/// Where others need the database more, it is looked at again after so long.
const COME_BACK: Duration = Duration::from_mins(1);
/// Whoever is in the way for so long is for a person to look at.
const PATIENCE: Duration = Duration::from_hours(24);

/// Which rows.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfRows {
    /// The database, as the configuration names it.
    database: String,
    /// The table, or `schema.table`.
    table: String,
    /// The column that says how old a row is: a timestamp or a date.
    #[serde(default = "created_at")]
    column: String,
    /// How old rows are kept, such as `90d`.
    keep: String,
    /// A condition in SQL on the table's columns; rows for which it holds stay, such as `legal_hold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hold: Option<String>,
    /// What is more than a run may delete.
    #[serde(default)]
    at_most: Ceiling,
    /// Where rows go before they are deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    archive: Option<Archive>,
    /// Only say what would be deleted.
    #[serde(default)]
    dry_run: bool,
}

/// What is more than a run may delete: it stops a typo before it deletes anything.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Ceiling {
    /// So much of the table's rows, in percent.
    percent: u8,
    /// So many rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<u64>,
}

/// Where rows go before they are deleted.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Archive {
    /// Into objects of a store, as the configuration names it.
    Store(String),
    /// Into a table of the same database that has the same columns.
    Table(String),
}

/// What a stretch of the walk leaves to the next.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stretch {
    /// The last key that was looked at; none where nothing was.
    cursor: Option<Key>,
    deleted: u64,
    /// The object that its rows are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    object: Option<String>,
}

/// What a stretch of the walk goes by.
struct Way<'a> {
    plan: &'a Plan,
    cursor: Option<&'a Key>,
    last: &'a Key,
}

fn created_at() -> String {
    "created_at".to_owned()
}

impl Default for Ceiling {
    fn default() -> Self {
        Self { percent: 50, rows: None }
    }
}

impl OfRows {
    pub(super) fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !names.databases.contains(&self.database) {
            let known = names.databases.iter().map(String::as_str);
            problems.push(Problem::unknown("database", &self.database, known).within("database"));
        }
        if let Some(Archive::Store(store)) = &self.archive
            && !names.stores.contains(store)
        {
            let known = names.stores.iter().map(String::as_str);
            problems.push(Problem::unknown("store", store, known).within("archive"));
        }
        if self.kept().is_none() {
            problems.push(Problem::new(format!("`{}` is no length of time such as 90d", self.keep)).within("keep"));
        }
        if let Some(problem) = self.hold.as_deref().and_then(wrong_condition) {
            problems.push(problem.within("hold"));
        }
        if self.at_most.percent > 100 {
            problems.push(Problem::new("write a number up to 100").within("at_most.percent"));
        }
        problems
    }

    pub(super) fn limits(&self) -> Vec<Limit> {
        vec![Limit::one(format!("retention:{}/{}", self.database, self.table))]
    }

    /// How long rows are kept; none where that is no length of time, or none at all.
    fn kept(&self) -> Option<Duration> {
        period::read(&self.keep).filter(|kept| !kept.is_zero())
    }

    pub(super) async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let database = cx.world().database(&self.database).await?;
        let named = Named { table: &self.table, column: &self.column, hold: self.hold.as_deref() };
        let mut walk = database.walk(named).await?;
        let plan = self.plan(cx, &mut walk).await?;
        if self.dry_run {
            return Ok(self.output(&plan, &[]));
        }
        self.stays_below_ceiling(&plan)?;
        let Some(last) = &plan.last else { return Ok(self.output(&plan, &[])) };
        let mut done: Vec<Stretch> = Vec::new();
        while done.last().and_then(|stretch| stretch.cursor.as_ref()) != Some(last) {
            let cursor = done.last().and_then(|stretch| stretch.cursor.clone());
            let name = format!("walk {}", done.len() + 1);
            let stretch = match cx.step::<Stretch>(&name).await? {
                Step::Finished(stretch) => stretch,
                Step::Fresh(step) | Step::Unknown(step) => {
                    self.wait_while_busy(cx, &mut walk, &plan).await?;
                    let stretch = self.stretch(cx, &mut walk, &plan, cursor, last, done.len() + 1).await?;
                    step.finish(&stretch).await?;
                    stretch
                }
            };
            info!(table = self.table, deleted = stretch.deleted, due = plan.due, "a stretch of the walk is done");
            done.push(stretch);
        }
        Ok(self.output(&plan, &done))
    }

    /// What is due, counted once, by the first attempt's time.
    async fn plan(&self, cx: &Context, walk: &mut Walk) -> Result<Plan, Failure> {
        match cx.step::<Plan>("plan").await? {
            Step::Finished(plan) => Ok(plan),
            Step::Fresh(step) | Step::Unknown(step) => {
                let kept = self.kept().ok_or_else(|| no(format!("`{}` is no length of time", self.keep)))?;
                let plan = walk.plan(queue::clock::earlier(cx.now(), kept)).await?;
                step.finish(&plan).await?;
                Ok(plan)
            }
        }
    }

    fn stays_below_ceiling(&self, plan: &Plan) -> Result<(), Failure> {
        let Ceiling { percent, rows } = self.at_most;
        let most = (plan.rows.saturating_mul(u64::from(percent)) / 100).min(rows.unwrap_or(u64::MAX));
        if plan.due <= most {
            return Ok(());
        }
        Err(no(format!(
            "{} of the {} rows of {} are due, more than the {most} that it may delete, so nothing was deleted; if that is \
             right, raise `at_most` (percent = {percent}{})",
            plan.due,
            plan.rows,
            self.table,
            rows.map(|rows| format!(", rows = {rows}")).unwrap_or_default()
        )))
    }

    async fn wait_while_busy(&self, cx: &Context, walk: &mut Walk, plan: &Plan) -> Result<(), Failure> {
        match walk.busy().await? {
            Some(reason) => Err(self.come_back(cx, plan, reason)),
            None => Ok(()),
        }
    }

    /// Comes back later, for a day: what is in the way for longer is for a person to look at.
    fn come_back(&self, cx: &Context, plan: &Plan, reason: String) -> Failure {
        let began = queue::clock::later(plan.before, self.kept().unwrap_or_default());
        if cx.now() > queue::clock::later(began, PATIENCE) {
            return no(format!("it has not come to its end within a day: {reason}"));
        }
        Failure::Snooze { wait: COME_BACK, reason }
    }

    /// Goes on from the cursor, for as long as a stretch lasts.
    async fn stretch(
        &self,
        cx: &Context,
        walk: &mut Walk,
        plan: &Plan,
        cursor: Option<Key>,
        last: &Key,
        number: usize,
    ) -> Result<Stretch, Failure> {
        match &self.archive {
            None => self.delete(cx, walk, plan, cursor, last, None).await,
            Some(Archive::Table(table)) => self.delete(cx, walk, plan, cursor, last, Some(table)).await,
            Some(Archive::Store(store)) => {
                let store = cx.world().store(store).await?;
                let way = Way { plan, cursor: cursor.as_ref(), last };
                self.move_into_store(cx, walk, &way, &*store, self.object(cx, number)).await
            }
        }
    }

    async fn delete(
        &self,
        cx: &Context,
        walk: &mut Walk,
        plan: &Plan,
        cursor: Option<Key>,
        last: &Key,
        into: Option<&str>,
    ) -> Result<Stretch, Failure> {
        let (mut pace, begun) = (Pace::new(), Instant::now());
        let mut stretch = Stretch { cursor, ..Stretch::default() };
        while stretch.cursor.as_ref() != Some(last) && begun.elapsed() < STRETCH {
            let start = Instant::now();
            let cursor = stretch.cursor.as_ref();
            let stepped = match walk.boundary(plan.before, cursor, last, pace.size()).await? {
                Stepped::Done(boundary) => match walk.delete(plan.before, cursor, &boundary, into).await? {
                    Stepped::Done(deleted) => Some((boundary, deleted)),
                    Stepped::Refused => None,
                },
                Stepped::Refused => None,
            };
            let rest = match stepped {
                Some((boundary, deleted)) => {
                    stretch.cursor = Some(boundary);
                    stretch.deleted += deleted;
                    pace.done(start.elapsed())
                }
                None => match pace.refused() {
                    Some(rest) => rest,
                    None if stretch.deleted > 0 => break, // What was done is kept; the next stretch asks who is busy.
                    None => return Err(self.come_back(cx, plan, IN_THE_WAY.to_owned())),
                },
            };
            tokio::time::sleep(rest).await;
        }
        Ok(stretch)
    }

    fn output(&self, plan: &Plan, done: &[Stretch]) -> Output {
        let objects: Vec<&String> = done.iter().filter_map(|stretch| stretch.object.as_ref()).collect();
        json!({
            "dry_run": self.dry_run,
            "table": self.table,
            "before": plan.before,
            "rows": plan.rows,
            "due": plan.due,
            "held": plan.held,
            "deleted": done.iter().map(|stretch| stretch.deleted).sum::<u64>(),
            "objects": objects.len(),
            "first_object": objects.first(),
        })
    }
}

const IN_THE_WAY: &str = "others hold locks on its rows, or each statement takes too long";

/// The names of its output.
pub(super) fn output() -> Value {
    json!({"table": null, "before": null, "rows": null, "due": null, "objects": null, "first_object": null})
}

/// What is wrong with a condition in SQL.
fn wrong_condition(text: &str) -> Option<Problem> {
    let parsed = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).and_then(|mut parser| {
        parser.parse_expr()?;
        parser.expect_token(&Token::EOF)
    });
    parsed.err().map(|error| Problem::new(format!("this is no condition in SQL: {error}")))
}

fn no(words: String) -> Failure {
    Failure::Discard(anyhow::anyhow!(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(args: Value) -> Vec<String> {
        let names =
            Names { databases: ["main".to_owned()].into(), stores: ["nightly".to_owned()].into(), ..Names::default() };
        let of: OfRows = serde_json::from_value(args).unwrap();
        of.check(&names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_wrong_is_found_before_the_night() {
        let fine = json!({"database": "main", "table": "sessions", "keep": "90d", "hold": "legal_hold or user_id = 7",
                          "archive": {"store": "nightly"}});
        assert_eq!(problems(fine), [""; 0]);
        let wrong = json!({"database": "mian", "table": "sessions", "keep": "ninety days", "hold": "true; drop table x",
                           "archive": {"store": "nightlee"}, "at_most": {"percent": 101}});
        let found = problems(wrong);
        for said in
            ["did you mean `main`?", "did you mean `nightly`?", "`ninety days`", "no condition in SQL", "up to 100"]
        {
            assert!(found.iter().any(|problem| problem.contains(said)), "{said}: {found:?}");
        }
        assert_eq!(found.len(), 5, "{found:?}");
        assert_eq!(problems(json!({"database": "main", "table": "t", "keep": "0s"})).len(), 1, "all would be due");
    }
}
