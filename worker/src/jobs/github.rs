//! `github`: starts a workflow at GitHub and waits for its conclusion.
//!
//! Twice is safe: which runs there were is written down before the dispatch, and the dispatch is a step. GitHub answers it
//! with the run's id (since 2026-02; elsewhere with nothing); where the answer was lost or says nothing, the run is looked
//! for among the newer ones: by the job's id in its title, where `mark` names the workflow's input that its `run-name`
//! shows, else by workflow, event and branch, and several of them are a person's to tell apart. A dispatch is made again
//! only when no run has come of it for five minutes. Between its looks it snoozes, which costs nothing. Retries: GitHub,
//! and its limits as late as it asks; never a workflow that has failed.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use queue::clock::later;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Names, Problem, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::info;

use crate::context::{Context, Step};
use crate::github::{Advice, Repository, Sent};
use crate::handler::{Failure, Handler, Output};

/// Between two looks.
const AGAIN: Duration = Duration::from_secs(15);

/// A run that was started is listed by then; seconds are the rule.
const LISTED_WITHIN: Duration = Duration::from_mins(5);

/// The longest that it may wait.
const LONGEST: Duration = Duration::from_hours(24);

const ADVICE: Advice = Advice {
    forbidden: "may not start workflows there; give it the right `actions: write`",
    check: "check `repository`, `workflow` and `ref`, that the workflow has `on: workflow_dispatch` with these inputs on \
            that ref, and that the token may read this repository (GitHub says `not found` where it may not)",
};

/// The arguments of `github`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Github {
    /// `owner/name`.
    repository: String,
    /// The workflow's file: `deploy.yml`.
    workflow: String,
    /// The branch or tag that it runs on.
    #[serde(rename = "ref")]
    reference: String,
    /// The workflow's inputs. No secrets: GitHub shows them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    inputs: BTreeMap<String, Value>,
    /// An input of the workflow that takes this job's id, and that its `run-name` shows: by it the run is known for sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
    /// How long to wait for its conclusion, from the dispatch on.
    #[serde(default = "within", with = "schemas::period")]
    #[schemars(with = "String")]
    within: Duration,
    /// Whether the run is cancelled when that time is up.
    #[serde(default)]
    cancel_run: bool,
}

fn within() -> Duration {
    Duration::from_hours(1)
}

/// What was so before the dispatch.
#[derive(Serialize, Deserialize)]
struct Before {
    /// The newest run of the workflow; those that come have higher numbers.
    newest: u64,
    at: Timestamp,
}

/// How a dispatch ended.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Dispatch {
    /// It was taken; the run's number, where GitHub said it.
    Taken(Option<u64>),
    /// It was not.
    Refused,
}

/// A run, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Run {
    id: u64,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    display_title: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    conclusion: Option<String>,
    #[serde(default)]
    html_url: Option<String>,
}

#[derive(Deserialize)]
struct Runs {
    workflow_runs: Vec<Run>,
}

#[async_trait]
impl Handler for Github {
    const KIND: &'static str = "github";
    const SUMMARY: &'static str = "starts a workflow at GitHub and waits for its conclusion";
    const RETRY: RetryPolicy = RetryPolicy { max_age: Duration::from_hours(48), ..RetryPolicy::PATIENT };
    /// Of one look; the waiting is done between attempts.
    const TIME_LIMIT: Duration = Duration::from_mins(5);

    fn check(&self, _: &Names) -> Vec<Problem> {
        let mut problems = Vec::new();
        let named = |text: &str| !text.is_empty() && !text.contains(['/', ' ', '?', '#']);
        if !self.repository.split_once('/').is_some_and(|(owner, name)| named(owner) && named(name)) {
            problems.push(Problem::new("this is not `owner/name`").within("repository"));
        }
        if !named(&self.workflow) {
            let help = "write the file's name alone: `deploy.yml`";
            problems.push(Problem::new("this is no workflow's file").help(help).within("workflow"));
        }
        if self.within > LONGEST {
            problems.push(Problem::new("it may wait for at most 24 hours").within("within"));
        }
        problems
    }

    fn output() -> Value {
        json!({"repository": null, "workflow": null, "run": null, "url": null, "conclusion": null})
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let needs = format!("the workflow `{}` is started at GitHub", self.workflow);
        let github = Repository::connect(cx, &self.repository, &needs).await?;
        let before = self.before(cx, &github).await?;
        let run = match self.dispatched(cx, &github, &before).await? {
            Some(run) => run,
            None => match cx.step::<u64>("find").await? {
                Step::Finished(run) => run,
                Step::Fresh(step) | Step::Unknown(step) => {
                    let run = self.find(cx, &github, &before).await?.ok_or_else(|| self.not_listed(cx, &before))?;
                    step.finish(&run).await?;
                    run
                }
            },
        };
        self.conclusion(cx, &github, run, later(before.at, self.within)).await
    }
}

impl Github {
    /// A workflow without inputs but its mark.
    pub(crate) fn of(repository: &str, file: &str, reference: &str, mark: Option<String>, within: Duration) -> Self {
        Self {
            repository: repository.to_owned(),
            workflow: file.to_owned(),
            reference: reference.to_owned(),
            inputs: BTreeMap::new(),
            mark,
            within,
            cancel_run: false,
        }
    }

    /// Which runs there are, before there is one of ours.
    async fn before(&self, cx: &Context, github: &Repository<'_>) -> Result<Before, Failure> {
        match cx.step::<Before>("look before").await? {
            Step::Finished(before) => Ok(before),
            Step::Fresh(step) | Step::Unknown(step) => {
                let runs: Runs =
                    github.get(&self.path("runs"), "per_page=1", "listing the workflow's runs", &ADVICE).await?;
                let newest = runs.workflow_runs.iter().map(|run| run.id).max().unwrap_or(0);
                let before = Before { newest, at: cx.now() };
                step.finish(&before).await?;
                Ok(before)
            }
        }
    }

    /// Starts the workflow, once; the run's id, where GitHub says it.
    async fn dispatched(&self, cx: &Context, github: &Repository<'_>, before: &Before) -> Result<Option<u64>, Failure> {
        for number in 1_u32.. {
            let step = match cx.step::<Dispatch>(&format!("dispatch {number}")).await? {
                Step::Finished(Dispatch::Taken(run)) => return Ok(run),
                Step::Finished(Dispatch::Refused) => continue,
                Step::Fresh(step) => step,
                Step::Unknown(step) => {
                    if let Some(run) = self.find(cx, github, before).await? {
                        step.finish(&Dispatch::Taken(Some(run))).await?;
                        return Ok(Some(run));
                    }
                    if cx.now() < later(before.at, LISTED_WITHIN) {
                        let reason = "nobody knows whether the workflow was started; its run is looked for".into();
                        return Err(Failure::Snooze { wait: AGAIN, reason });
                    }
                    step
                }
            };
            return match self.dispatch(cx, github).await {
                Sent::Done(answer) => {
                    let run = answer.get("workflow_run_id").and_then(Value::as_u64);
                    info!(workflow = self.workflow, run, "started");
                    step.finish(&Dispatch::Taken(run)).await?;
                    Ok(run)
                }
                Sent::Refused(failure) => {
                    step.finish(&Dispatch::Refused).await?;
                    Err(failure)
                }
                Sent::Unknown(failure) => Err(failure), // The step stays open: the next attempt looks for the run.
            };
        }
        Err(Failure::Discard(anyhow::anyhow!("it was tried too often")))
    }

    async fn dispatch(&self, cx: &Context, github: &Repository<'_>) -> Sent {
        let mut inputs = self.inputs.clone();
        if let Some(mark) = &self.mark {
            inputs.insert(mark.clone(), cx.job().attempt.job.to_string().into());
        }
        let what = format!("starting the workflow `{}`", self.workflow);
        let body = json!({"ref": self.reference, "inputs": inputs, "return_run_details": true});
        match github.post(&self.path("dispatches"), &body, &what, &ADVICE).await {
            // A server that does not know the parameter (GitHub Enterprise, for a while) refuses the whole.
            Sent::Refused(Failure::Discard(_)) => {
                let body = json!({"ref": self.reference, "inputs": inputs});
                github.post(&self.path("dispatches"), &body, &what, &ADVICE).await
            }
            sent => sent,
        }
    }

    /// The run that came of the dispatch, if it is listed.
    async fn find(&self, cx: &Context, github: &Repository<'_>, before: &Before) -> Result<Option<u64>, Failure> {
        let branch = self.reference.trim_start_matches("refs/heads/").trim_start_matches("refs/tags/");
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("event", "workflow_dispatch")
            .append_pair("per_page", "100")
            .append_pair("branch", branch)
            .finish();
        let runs: Runs = github.get(&self.path("runs"), &query, "looking for the run", &ADVICE).await?;
        let newer = runs.workflow_runs.into_iter().filter(|run| run.id > before.newest);
        let job = cx.job().attempt.job.to_string();
        let is_ours = |run: &Run| {
            let shows = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains(&job));
            self.mark.is_none() || shows(&run.display_title) || shows(&run.name)
        };
        let ours: Vec<u64> = newer.filter(is_ours).map(|run| run.id).collect();
        match ours.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(*only)),
            several => Err(Failure::Discard(anyhow::anyhow!(
                "{} runs of `{}` began at that time, and nobody can say which is this job's; look there. For the next time \
                 give the workflow an input, show it in its `run-name`, and name it by `mark`",
                several.len(),
                self.workflow
            ))),
        }
    }

    fn not_listed(&self, cx: &Context, before: &Before) -> Failure {
        if cx.now() < later(before.at, LISTED_WITHIN.min(self.within)) {
            let reason = "the workflow was started; its run is not listed yet".into();
            return Failure::Snooze { wait: AGAIN, reason };
        }
        let hint = match &self.mark {
            Some(mark) => format!("; does its `run-name` show the input `{mark}`?"),
            None => String::new(),
        };
        Failure::Discard(anyhow::anyhow!(
            "the workflow `{}` was started, and none of its runs is known to be this job's{hint} (they are in the repository's \
             Actions)",
            self.workflow
        ))
    }

    /// Looks once how the run stands.
    async fn conclusion(
        &self,
        cx: &Context,
        github: &Repository<'_>,
        id: u64,
        deadline: Timestamp,
    ) -> Result<Output, Failure> {
        let number = id.to_string();
        let run: Run = github.get(&["actions", "runs", &number], "", "looking at the run", &ADVICE).await?;
        let url = run.html_url.unwrap_or_else(|| format!("run {id}"));
        if run.status.as_deref() == Some("completed") {
            let conclusion = run.conclusion.unwrap_or_default();
            if conclusion == "success" {
                return Ok(json!({
                    "repository": self.repository, "workflow": self.workflow, "run": id, "url": url,
                    "conclusion": conclusion,
                }));
            }
            return Err(Failure::Discard(anyhow::anyhow!(
                "the workflow `{}` ended with `{conclusion}`: {url}",
                self.workflow
            )));
        }
        if cx.now() < deadline {
            let status = run.status.unwrap_or_default();
            return Err(Failure::Snooze { wait: AGAIN, reason: format!("the run is {status}: {url}") });
        }
        let cancelled = if self.cancel_run { self.cancel(github, &number).await? } else { "it goes on" };
        Err(Failure::Discard(anyhow::anyhow!(
            "the workflow `{}` had no conclusion within {}; {cancelled}: {url}",
            self.workflow,
            schemas::period::write(self.within)
        )))
    }

    /// Cancels the run; twice is as once.
    async fn cancel(&self, github: &Repository<'_>, number: &str) -> Result<&'static str, Failure> {
        match github.post(&["actions", "runs", number, "cancel"], &json!({}), "cancelling the run", &ADVICE).await {
            Sent::Done(_) => Ok("it is being cancelled"),
            // It has ended meanwhile.
            Sent::Refused(Failure::Discard(_)) => Ok("it could not be cancelled any more"),
            Sent::Refused(failure) | Sent::Unknown(failure) => Err(failure),
        }
    }

    fn path<'p>(&'p self, what: &'p str) -> [&'p str; 4] {
        ["actions", "workflows", &self.workflow, what]
    }
}
