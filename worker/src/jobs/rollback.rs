//! `rollback`: leads the production domains of a Vercel project back to an earlier deployment.
//!
//! First an emergency backup: the older code is about to write into a database that newer code has written to, and what
//! it spoils must be there to be looked up. It is a part of the job, so that nobody forgets it in the worst hour of the
//! week; who must do without says why (`without_backup`). Then the rollback, each domain, whether new deployments
//! get the domains by themselves again, and which migrations the older code does not know.
//!
//! Twice is safe: what is rolled back to, and what was so before, is a step. Each try to ask Vercel is one too; of one whose
//! answer was lost the project tells whether it was taken (`lastAliasRequest`), and a second one would lead the same
//! domains to the same deployment. When somebody else moves the domains meanwhile, this job gives way and says so. The
//! backup's manifest has the job's key. Retries: Vercel, its limits as late as it asks, another move that is under
//! way, and what a backup retries; never a rollback that Vercel says has failed.

mod domains;
mod moves;
mod schema;

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Limit, Names, Priority, Problem, period};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::backup::{Backup, Tier, alone_at, check_names};
use super::plan::check_database;
use crate::context::{Context, Step};
use crate::handler::{Failure, Handler, Output};
use crate::vercel::{Advice, Vercel};
use moves::{Aim, Project};

/// The longest that it may wait for Vercel.
const LONGEST: Duration = Duration::from_hours(1);

/// Vercel shows the reason of a rollback; a longer one is cut.
const LONGEST_REASON: usize = 200;

const ADVICE: Advice = Advice {
    forbidden: "may not roll back this project",
    check: "check `project` and `deployment`: it must be a deployment that has served production and is not deleted",
};

/// The arguments of `rollback`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollback {
    /// The project, by its id or its name.
    project: String,
    /// The deployment to go back to, by its id or its own address; the one before today's where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deployment: Option<String>,
    /// The database that the project writes to, as the configuration names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    database: Option<String>,
    /// The store that the emergency backup goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    /// Why there is no emergency backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    without_backup: Option<String>,
    /// Why it is rolled back; Vercel shows it. No secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// How long Vercel may take.
    #[serde(default = "within", with = "period")]
    #[schemars(with = "String")]
    within: Duration,
}

fn within() -> Duration {
    Duration::from_mins(10)
}

#[async_trait]
impl Handler for Rollback {
    const KIND: &'static str = "rollback";
    const SUMMARY: &'static str =
        "leads the production domains back to an earlier deployment, after an emergency backup";
    const PRIORITY: Priority = Priority::Urgent;
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    /// Of the backup; Vercel is waited for between attempts.
    const TIME_LIMIT: Duration = Duration::from_hours(24);

    fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = match (&self.database, &self.store, &self.without_backup) {
            (Some(database), Some(store), None) => check_names(database, store, names),
            (database, None, Some(why)) if !why.trim().is_empty() => {
                database.iter().flat_map(|database| check_database(database, names)).collect()
            }
            _ => {
                let help =
                    "write `database` and `store`; or, where there is none or no time, `without_backup = \"why\"`";
                vec![Problem::new("it begins with an emergency backup of the database").help(help)]
            }
        };
        let is_one = |text: &str| !text.is_empty() && !text.contains(['/', ' ', '?', '#']);
        if !is_one(&self.project) {
            problems.push(Problem::new("this is no project's id or name").within("project"));
        }
        if self.deployment.as_deref().is_some_and(|deployment| !is_one(deployment)) {
            let help = "write `dpl_...`, or its own address without `https://`";
            problems.push(Problem::new("this is no deployment").help(help).within("deployment"));
        }
        if self.within > LONGEST {
            problems.push(Problem::new("it may wait for at most an hour").within("within"));
        }
        problems
    }

    /// Not while the database is migrated or restored. Without a backup nothing is waited for.
    fn limits(&self) -> Vec<Limit> {
        let database = self.database.as_deref().filter(|_| self.without_backup.is_none());
        database.map(alone_at).into_iter().collect()
    }

    fn output() -> Value {
        json!({
            "project": null, "deployment": null, "url": null, "commit": null, "from": null, "backup": null,
            "without_backup": null, "domains": null, "pinned": null, "migrations_since": null, "unknown": null,
            "summary": null,
        })
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let vercel = Vercel::connect(cx, "a deployment of Vercel's is rolled back").await?;
        let aim = self.aim(cx, &vercel).await?;
        let backup = self.back_up(cx).await?;
        let asked_at = self.rolled_back(cx, &vercel, &aim).await?;
        let domains = self.all_lead_there(cx, &vercel, &aim, asked_at).await?;
        let since = self.migrations_since(cx, &aim).await?;
        let pinned = Project::read(&vercel, &aim.project).await?.is_pinned();
        let summary = summary(&aim, &domains, pinned, &since);
        warn!(project = aim.name, deployment = aim.deployment, "production is rolled back");
        Ok(json!({
            "project": aim.name, "deployment": aim.deployment, "url": aim.url, "commit": aim.commit, "from": aim.from,
            "backup": backup, "without_backup": self.without_backup, "domains": domains, "pinned": pinned,
            "migrations_since": since.as_ref().ok(), "unknown": since.err(), "summary": summary,
        }))
    }
}

impl Rollback {
    /// The emergency backup; its key, none where there is to be none.
    async fn back_up(&self, cx: &Context) -> Result<Option<Value>, Failure> {
        let (Some(database), Some(store), None) = (&self.database, &self.store, &self.without_backup) else {
            return Ok(None);
        };
        match cx.step::<Value>("emergency backup").await? {
            Step::Finished(backup) => Ok(Some(backup)),
            Step::Fresh(step) | Step::Unknown(step) => {
                let backup = Backup {
                    database: database.clone(),
                    store: store.clone(),
                    name: Some("before a rollback".to_owned()),
                    tier: Some(Tier::BeforeMigration),
                };
                let made = backup.run(cx).await.map_err(|failure| {
                    failure.context(
                        "the emergency backup is not made, so nothing is rolled back (to do it without one: \
                         `without_backup = \"why\"`)",
                    )
                })?;
                let key = made["backup"].clone();
                info!(backup = %key, "the emergency backup is made");
                step.finish(&key).await?;
                Ok(Some(key))
            }
        }
    }
}

/// What people are told: what is so now, and what they must know before they go on.
fn summary(aim: &Aim, domains: &[String], pinned: bool, since: &Result<Vec<String>, String>) -> String {
    let Aim { name, deployment, commit, .. } = aim;
    let commit = commit.as_deref().map(|commit| format!(" ({})", &commit[..commit.len().min(7)])).unwrap_or_default();
    let mut lines = vec![format!("{name} is back at {deployment}{commit}: {}", domains.join(", "))];
    lines.push(if pinned {
        "New deployments do not get these domains by themselves until somebody promotes one (`vercel promote`)."
            .to_owned()
    } else {
        "Vercel does not say that new deployments are held back: look before the next one, it may get the domains."
            .to_owned()
    });
    match since {
        Ok(names) if names.is_empty() => {}
        Ok(names) => lines.push(format!(
            "The database is ahead of this code by {}: {}. Whether the older code can live with them, somebody must \
             know.",
            if names.len() == 1 { "a migration".to_owned() } else { format!("{} migrations", names.len()) },
            names.join(", ")
        )),
        Err(why) => lines.push(format!("Which migrations this code does not know could not be found out: {why}")),
    }
    lines.join("\n")
}

/// A reason as Vercel takes it.
fn short(reason: &str) -> String {
    reason.chars().take(LONGEST_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(args: Value) -> Vec<String> {
        let names =
            Names { databases: ["main".to_owned()].into(), stores: ["nightly".to_owned()].into(), ..Names::default() };
        let rollback: Rollback = serde_json::from_value(args).unwrap();
        rollback.check(&names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_emergency_backup_cannot_be_forgotten_only_refused_with_a_reason() {
        assert!(problems(json!({"project": "app", "database": "main", "store": "nightly"})).is_empty());
        assert!(problems(json!({"project": "app", "without_backup": "it has no database"})).is_empty());
        let known = json!({"project": "app", "database": "main", "without_backup": "it takes an hour"});
        assert!(problems(known).is_empty());
        for forgotten in [
            json!({"project": "app"}),
            json!({"project": "app", "database": "main"}),
            json!({"project": "app", "store": "nightly"}),
            json!({"project": "app", "without_backup": " "}),
            json!({"project": "app", "database": "main", "store": "nightly", "without_backup": "both?"}),
        ] {
            assert!(problems(forgotten)[0].starts_with("it begins with an emergency backup"));
        }
        let unknown = json!({"project": "app", "database": "mian", "store": "nightly"});
        assert!(problems(unknown)[0].contains("did you mean `main`?"));
    }

    #[test]
    fn what_is_no_name_is_a_problem() {
        let with = |more: Value| {
            let mut args = json!({"project": "app", "without_backup": "x"});
            args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            problems(args)
        };
        assert!(with(json!({"deployment": "dpl_1", "within": "1h"})).is_empty());
        assert!(with(json!({"project": "a/b"}))[0].starts_with("project:"));
        assert!(with(json!({"deployment": "https://a.vercel.app"}))[0].starts_with("deployment:"));
        assert!(with(json!({"within": "2h"}))[0].starts_with("within:"));
    }

    #[test]
    fn people_are_told_what_is_pinned_and_what_the_older_code_does_not_know() {
        let aim: Aim = serde_json::from_value(json!({
            "project": "prj_1", "name": "app", "deployment": "dpl_1", "url": "a.vercel.app",
            "commit": "0123456789abcdef", "from": "dpl_2", "before": null,
        }))
        .unwrap();
        let domains = ["app.example.com".to_owned()];
        let told = summary(&aim, &domains, true, &Ok(vec!["0003_drop".to_owned()]));
        assert!(
            told.starts_with("app is back at dpl_1 (0123456): app.example.com\nNew deployments do not get"),
            "{told}"
        );
        assert!(told.contains("ahead of this code by a migration: 0003_drop."), "{told}");
        let told = summary(&aim, &domains, false, &Err("GitHub is away".to_owned()));
        assert!(told.contains("look before the next one") && told.ends_with("found out: GitHub is away"), "{told}");
        assert_eq!(summary(&aim, &domains, true, &Ok(Vec::new())).lines().count(), 2);
    }
}
