//! `gate`: holds a deployment at Vercel until a runbook has succeeded for its commit, and answers for it.
//!
//! It reads the deployment (project, target, commit: a webhook is only a hint), says where the answer is awaited that it
//! runs, starts the runbook, and looks every few seconds how that stands, without holding a permit. The answer is
//! `succeeded` only where every job of the run completed, or was skipped by its own `if`, and every migration that a plan
//! of it found pending was applied by it; in all other cases, the end of the time budget among them, the gate stays shut.
//!
//! Twice is safe: a check run has one gate (its key), the run has the same key, and what is decided is a step before it is
//! said. Where nobody knows whether an answer arrived, Vercel or GitHub is asked before it is given again, and the same
//! answer twice is as once. A deployment that is cancelled, or whose check is gone, is no longer wanted: the run is
//! cancelled, and nothing is answered. Retries: Vercel, GitHub, and their limits as late as they ask.

mod cause;
mod door;
mod judge;
mod order;
mod verdict;

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Key, Names, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::context::{Context, Step};
use crate::github::{Repository, is_repository};
use crate::handler::{Failure, Handler, Output};
use crate::vercel::{Deployment, Vercel};

pub(super) use cause::made_by;
pub(super) use door::Door;
pub(super) use verdict::{Conclusion, Verdict};

/// How long a check run, or a commit at an environment, is known to have its gate.
const MEMORY: Duration = Duration::from_hours(24);

/// How long it is known that a deployment was let through: longer than it can be promoted late.
const LONG_MEMORY: Duration = Duration::from_hours(24 * 400);

/// The longest time budget.
const LONGEST: Duration = Duration::from_hours(6);

/// What a runbook may be given of a deployment, by the names of its inputs.
pub(super) const OF_THE_DEPLOYMENT: [&str; 3] = ["ref", "url", "deployment"];

/// The arguments of `gate`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gate {
    /// The runbook that must succeed. Its inputs `ref`, `url` and `deployment`, where it has them, are the deployment's.
    pub(super) runbook: String,
    /// More inputs of the runbook.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    with: Map<String, Value>,
    /// The deployment, `dpl_...`.
    pub(super) deployment: String,
    /// The project that it must be of, `prj_...`.
    pub(super) project: String,
    /// The environment that it must be for.
    #[serde(default = "production")]
    target: String,
    /// The run of a deployment check that is answered; without it, a commit status at GitHub is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check_run: Option<String>,
    /// `owner/name` at GitHub: where the status is set, and where the commit is compared with the one that is live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repository: Option<String>,
    /// The time budget: when it is up, the answer is that it failed.
    #[serde(default = "within", with = "schemas::period")]
    #[schemars(with = "String")]
    within: Duration,
    /// Whether it only says what it would have answered, and stops nothing.
    #[serde(default)]
    report_only: bool,
}

fn production() -> String {
    "production".to_owned()
}

fn within() -> Duration {
    Duration::from_mins(15)
}

#[async_trait]
impl Handler for Gate {
    const KIND: &'static str = "gate";
    const SUMMARY: &'static str = "holds a deployment at Vercel until a runbook has succeeded for its commit";
    const RETRY: RetryPolicy =
        RetryPolicy { longest: Duration::from_secs(30), max_failures: 40, ..RetryPolicy::PATIENT };
    /// Of one look; the waiting is done between attempts.
    const TIME_LIMIT: Duration = Duration::from_mins(5);

    fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = self.problems_of_inputs(names);
        problems.extend(wrong_project(&self.project));
        match &self.repository {
            Some(name) if !is_repository(name) => {
                problems.push(Problem::new("this is not `owner/name`").within("repository"));
            }
            None if self.check_run.is_none() => {
                let help =
                    "give `check_run` to answer a check at Vercel, or `repository` to set a commit status at GitHub";
                problems.push(Problem::new("nobody would hear the answer").help(help));
            }
            _ => {}
        }
        if self.within > LONGEST {
            problems.push(Problem::new("a deployment may be held for at most 6 hours").within("within"));
        }
        problems
    }

    fn key(&self) -> Option<Key> {
        Some(self.place())
    }

    fn output() -> Value {
        json!({
            "deployment": null, "project": null, "ref": null, "run": null, "conclusion": null, "text": null,
            "report_only": null,
        })
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let vercel = Vercel::connect(cx, "a gate answers Vercel").await?;
        let deployment = Deployment::read(&vercel, &self.deployment).await?;
        self.refuse_others(&deployment)?;
        let door = self.door(cx, &vercel, &deployment).await?;
        let opened = self.open(cx, &deployment, &door).await?;
        let verdict = self.verdict(cx, &vercel, &deployment, &door, &opened).await?;
        self.say(cx, &deployment, &door, &verdict).await?;
        let output = json!({
            "deployment": deployment.id, "project": deployment.project(), "ref": deployment.commit(),
            "run": verdict.run, "conclusion": verdict.conclusion, "text": verdict.text,
            "report_only": self.report_only,
        });
        // What the run itself has told people of is not told twice.
        if verdict.is_told { Ok(output) } else { Err(Failure::Discard(anyhow::anyhow!("{}", verdict.text))) }
    }
}

impl Gate {
    fn problems_of_inputs(&self, names: &Names) -> Vec<Problem> {
        let Some(inputs) = names.runbooks.get(&self.runbook) else {
            let known = names.runbooks.keys().map(String::as_str);
            return vec![Problem::unknown("runbook", &self.runbook, known).within("runbook")];
        };
        let known = || inputs.iter().map(String::as_str);
        let unknown = self.with.keys().filter(|name| !inputs.contains(*name));
        let unknown = unknown.map(|name| Problem::unknown("input", name, known()).within("with"));
        let missing = inputs
            .iter()
            .filter(|name| !self.with.contains_key(*name) && !OF_THE_DEPLOYMENT.contains(&name.as_str()))
            .map(|name| Problem::new(format!("the input `{name}` of `{}` is missing", self.runbook)).within("with"));
        unknown.chain(missing).collect()
    }

    /// What has one gate only.
    fn place(&self) -> Key {
        let key = match &self.check_run {
            Some(run) => format!("check {run}"),
            None => format!("status {}", self.deployment),
        };
        Key { scope: Self::KIND.into(), key, hold: MEMORY }
    }

    /// A gate stands before one project and environment; at another one it says nothing.
    pub(super) fn refuse_others(&self, deployment: &Deployment) -> Result<(), Failure> {
        let wrong = |what: &str, found: &str, wanted: &str| {
            Failure::Discard(anyhow::anyhow!(
                "the deployment {} is {what} `{found}`, and this gate is for `{wanted}`: nothing was answered; correct the \
                 route's `when`",
                deployment.id
            ))
        };
        if deployment.project() != self.project {
            return Err(wrong("of the project", deployment.project(), &self.project));
        }
        if deployment.target() != self.target {
            return Err(wrong("for", deployment.target(), &self.target));
        }
        Ok(())
    }

    /// Where the answer goes.
    pub(super) async fn door<'d>(
        &'d self,
        cx: &'d Context,
        vercel: &'d Vercel<'d>,
        deployment: &'d Deployment,
    ) -> Result<Door<'d>, Failure> {
        let job = cx.job().attempt.job;
        if let Some(run) = &self.check_run {
            return Ok(Door::Check { vercel, deployment: &deployment.id, run, job });
        }
        let name = self.repository.as_deref().unwrap_or_default();
        let github = Repository::connect(cx, name, "a gate sets a commit status").await?;
        let commit = deployment.commit().ok_or_else(|| {
            Failure::Discard(anyhow::anyhow!(
                "the deployment {} was not built from a commit that Vercel fetched itself, so that there is no status to set; \
                 deploy from git",
                deployment.id
            ))
        })?;
        let context = format!("nightporter ({} - {})", deployment.name, self.target);
        Ok(Door::Status { github, commit, context, job })
    }

    /// Gives the answer, once it is decided.
    async fn say(
        &self,
        cx: &Context,
        deployment: &Deployment,
        door: &Door<'_>,
        verdict: &Verdict,
    ) -> Result<(), Failure> {
        if verdict.is_given {
            return Ok(());
        }
        match cx.step::<Value>("answer").await? {
            Step::Finished(_) => Ok(()),
            Step::Fresh(step) | Step::Unknown(step) => {
                if verdict.conclusion == Conclusion::Succeeded || self.report_only {
                    let_through(cx, &deployment.id).await?; // Before anybody can see it served.
                }
                let (conclusion, text) = self.as_told(verdict);
                door.answer(conclusion, &text).await?;
                step.finish(&json!({"conclusion": conclusion})).await
            }
        }
    }

    /// The answer as it is given: what only reports stops nothing.
    fn as_told(&self, verdict: &Verdict) -> (Conclusion, String) {
        if !self.report_only || verdict.conclusion == Conclusion::Succeeded {
            return (verdict.conclusion, verdict.text.clone());
        }
        let text = format!("report only; it would have been {}: {}", verdict.conclusion.as_str(), verdict.text);
        (Conclusion::Neutral, text)
    }
}

/// What is wrong with a project's id.
pub(super) fn wrong_project(project: &str) -> Option<Problem> {
    let help = "write its id, `prj_...`: it stands in the project's settings, and names can be taken over";
    let problem = || Problem::new("this is no project's id").help(help).within("project");
    (!project.starts_with("prj_")).then(problem)
}

/// The scope of the key by which it is known that a deployment was let through.
fn let_through_scope(deployment: &str) -> String {
    format!("let through {deployment}")
}

/// Writes down that we let a deployment through.
pub(super) async fn let_through(cx: &Context, deployment: &str) -> Result<(), Failure> {
    let key = Key { scope: let_through_scope(deployment), key: "answered".into(), hold: LONG_MEMORY };
    let held = cx.queue().ledger().hold(cx.job().attempt, &key, cx.now()).await;
    held.map(drop).map_err(|error| Failure::retry(error).context("writing down what is let through"))
}

/// Whether we let a deployment through.
pub(super) async fn was_let_through(cx: &Context, deployment: &str) -> Result<bool, Failure> {
    let held = cx.queue().ledger().held(&let_through_scope(deployment), 1, cx.now()).await;
    held.map(|held| !held.is_empty()).map_err(|error| Failure::retry(error).context("looking up what was let through"))
}

/// A text of Vercel's or GitHub's own limits; neither says them of every field.
pub(super) fn short(text: &str, most: usize) -> String {
    crate::channels::message::cut(text, most)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn problems(args: Value) -> Vec<String> {
        let inputs = ["ref", "url", "region"].map(str::to_owned).into();
        let names = Names { runbooks: BTreeMap::from([("deploy".to_owned(), inputs)]), ..Names::default() };
        let mut whole = json!({"runbook": "deploy", "deployment": "dpl_1", "project": "prj_1", "check_run": "chr_1"});
        whole["with"] = json!({"region": "eu"});
        whole.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
        let gate: Gate = serde_json::from_value(whole).unwrap();
        gate.check(&names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_runbook_has_its_inputs_from_the_deployment_and_the_rest_from_with() {
        assert!(problems(json!({})).is_empty());
        assert_eq!(problems(json!({"with": {}})), ["with: the input `region` of `deploy` is missing"]);
        assert!(problems(json!({"with": {"region": "eu", "rejion": 1}}))[0].contains("no input named `rejion`"));
        assert!(problems(json!({"runbook": "deply"}))[0].contains("did you mean `deploy`?"));
    }

    #[test]
    fn a_gate_names_one_project_and_somebody_who_hears_its_answer() {
        assert!(problems(json!({"project": "app"}))[0].starts_with("project: this is no project's id"));
        assert!(problems(json!({"check_run": null}))[0].contains("nobody would hear the answer"));
        assert!(problems(json!({"check_run": null, "repository": "acme/app"})).is_empty());
        assert!(problems(json!({"repository": "app"}))[0].contains("not `owner/name`"));
        assert!(problems(json!({"within": "7h"}))[0].contains("at most 6 hours"));
    }

    #[test]
    fn a_check_run_has_one_gate_and_a_deployment_one_status() {
        let gate = |args: Value| serde_json::from_value::<Gate>(args).unwrap().place().key;
        let check = json!({"runbook": "x", "deployment": "dpl_1", "project": "prj_1", "check_run": "chr_1"});
        assert_eq!(gate(check), "check chr_1");
        let status = json!({"runbook": "x", "deployment": "dpl_1", "project": "prj_1", "repository": "a/b"});
        assert_eq!(gate(status), "status dpl_1");
    }
}
