//! How a gate comes to its decision.

use std::time::Duration;

use queue::clock::later;
use queue::ledger::{LedgerError, Operator};
use schemas::api::RunView;
use schemas::runbook::Start;
use schemas::{Key, RunId, RunState, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::info;

use super::door::{Awaited, no_longer_wanted};
use super::order::{Order, live_commit};
use super::verdict::{not_done, superseded, unapplied};
use super::{Conclusion, Door, Gate, MEMORY, OF_THE_DEPLOYMENT, Verdict, made_by};
use crate::context::{Context, Step};
use crate::handler::{Failure, Handler, OrFail};
use crate::vercel::{Deployment, Vercel};

/// Between two looks.
const AGAIN: Duration = Duration::from_secs(5);

/// The answer is given so long before Vercel's own time is up.
const RESERVE: Duration = Duration::from_secs(15);

/// A check's time that is below this is in seconds: nobody gives a check less than ten of them.
const LEAST_MILLIS: f64 = 10_000.0;

/// When the work began, and by when it is answered.
#[derive(Serialize, Deserialize)]
pub(super) struct Opened {
    until: Timestamp,
}

impl Gate {
    /// Says that it is being worked at, once; by when it must be answered.
    pub(super) async fn open(&self, cx: &Context, deployment: &Deployment, door: &Door<'_>) -> Result<Opened, Failure> {
        match cx.step::<Opened>("open").await? {
            Step::Finished(opened) => Ok(opened),
            Step::Fresh(step) | Step::Unknown(step) => {
                if deployment.is_over() {
                    return Err(no_longer_wanted());
                }
                let until = later(cx.now(), self.budget(door).await?);
                if !door.say_running(&format!("running `{}`", self.runbook)).await? {
                    return Err(no_longer_wanted());
                }
                let opened = Opened { until };
                step.finish(&opened).await?;
                Ok(opened)
            }
        }
    }

    /// The time budget: ours, or the check's, whichever is shorter.
    async fn budget(&self, door: &Door<'_>) -> Result<Duration, Failure> {
        let Door::Check { .. } = door else { return Ok(self.within) };
        let Some(run) = door.check_run().await? else { return Err(no_longer_wanted()) };
        let theirs = run.timeout.filter(|timeout| timeout.is_finite() && *timeout > 0.0).map(|timeout| {
            let seconds = if timeout < LEAST_MILLIS { timeout } else { timeout / 1000.0 };
            Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).saturating_sub(RESERVE)
        });
        Ok(theirs.map_or(self.within, |theirs| theirs.min(self.within)))
    }

    /// Decides, once. What cannot be done is decided too: the gate stays shut, and people are told why.
    pub(super) async fn verdict(
        &self,
        cx: &Context,
        vercel: &Vercel<'_>,
        deployment: &Deployment,
        door: &Door<'_>,
        opened: &Opened,
    ) -> Result<Verdict, Failure> {
        match cx.step::<Verdict>("decide").await? {
            Step::Finished(verdict) => Ok(verdict),
            Step::Fresh(step) | Step::Unknown(step) => {
                let verdict = match self.judge(cx, vercel, deployment, door, opened).await {
                    Err(Failure::Discard(error)) => Verdict::failed(format!("{error:#}"), None),
                    judged => judged?,
                };
                info!(deployment = deployment.id, conclusion = verdict.conclusion.as_str(), "decided");
                step.finish(&verdict).await?;
                Ok(verdict)
            }
        }
    }

    async fn judge(
        &self,
        cx: &Context,
        vercel: &Vercel<'_>,
        deployment: &Deployment,
        door: &Door<'_>,
        opened: &Opened,
    ) -> Result<Verdict, Failure> {
        let awaited = if deployment.is_over() { Awaited::Gone } else { door.look().await? };
        match awaited {
            Awaited::Open => {}
            Awaited::Given { conclusion, .. } => return Ok(given(&conclusion)),
            Awaited::Gone => {
                self.withdraw(cx, vercel, deployment).await?;
                return Err(no_longer_wanted());
            }
        }
        let Some(commit) = deployment.commit() else {
            return Ok(Verdict::failed(
                "it was not built from a commit that Vercel fetched itself, so that nobody knows its migrations; deploy from \
                 git",
                None,
            ));
        };
        let run = match cx.step::<Begun>("start").await? {
            Step::Finished(begun) => begun,
            Step::Fresh(step) | Step::Unknown(step) => {
                let begun = self.begin(cx, vercel, deployment, commit).await?;
                step.finish(&begun).await?;
                begun
            }
        };
        match run {
            Begun::Run(run) => self.of_run(cx, vercel, commit, run, opened).await,
            Begun::Decided(verdict) => Ok(verdict),
        }
    }

    /// Starts the run, where the commit may have one.
    async fn begin(
        &self,
        cx: &Context,
        vercel: &Vercel<'_>,
        deployment: &Deployment,
        commit: &str,
    ) -> Result<Begun, Failure> {
        if let Some(job) = made_by(cx, deployment).await?
            && live_commit(vercel, &self.project).await?.as_deref() == Some(commit)
        {
            let text = format!("made by the job {job} from the commit that is live: part of its run");
            return Ok(Begun::Decided(Verdict::succeeded(text, None)));
        }
        if let Order::Wrong(verdict) = self.order(cx, vercel, commit).await? {
            return Ok(Begun::Decided(verdict));
        }
        self.start(cx, vercel, deployment, commit).await.map(Begun::Run)
    }

    /// Starts the run, or finds the one that was started.
    async fn start(
        &self,
        cx: &Context,
        vercel: &Vercel<'_>,
        deployment: &Deployment,
        commit: &str,
    ) -> Result<RunId, Failure> {
        let runbook = cx.world().runbook(&self.runbook)?;
        let mut inputs = self.with.clone();
        let url = deployment.address(vercel);
        for (name, value) in OF_THE_DEPLOYMENT.into_iter().zip([commit, url.as_str(), deployment.id.as_str()]) {
            if runbook.inputs().contains_key(name) {
                inputs.insert(name.to_owned(), json!(value));
            }
        }
        let start = Start {
            reason: Some(format!("the gate before the deployment {}", deployment.id)),
            event: cx.job().event,
            // Of this job: one that is replayed has a run of its own.
            key: Some(Key { scope: Self::KIND.into(), key: format!("run of {}", cx.job().attempt.job), hold: MEMORY }),
            trace: queue::trace::current(),
            ..Start::default()
        };
        let run = runbook.plan(&inputs, start, cx.world().catalog(), cx.now()).map_err(|problem| {
            Failure::Discard(anyhow::anyhow!("the runbook `{}` cannot be started: {problem}", self.runbook))
        })?;
        let (started, bells) = cx.queue().ledger().start(&run, cx.now()).await.or_retry("starting the run")?;
        cx.queue().ring(bells);
        Ok(started.id())
    }

    /// How the run decides it.
    async fn of_run(
        &self,
        cx: &Context,
        vercel: &Vercel<'_>,
        commit: &str,
        id: RunId,
        opened: &Opened,
    ) -> Result<Verdict, Failure> {
        let run = cx.queue().ledger().run(id).await.or_retry("looking at the run")?;
        let run = run.ok_or_else(|| Failure::Discard(anyhow::anyhow!("the run {id} is gone from the ledger")))?;
        match run.state {
            RunState::Running if cx.now() < opened.until => {
                Err(Failure::Snooze { wait: AGAIN, reason: format!("the run {id} is under way") })
            }
            RunState::Running => {
                let text = format!(
                    "`{}` is still running when the time is up; rerun the check when it has ended (nightporter runs show {id})",
                    self.runbook
                );
                Ok(Verdict::failed(text, Some(id)))
            }
            RunState::Failed | RunState::Cancelled => {
                let text = format!("`{}` did not succeed: {}", self.runbook, not_done(&run));
                Ok(Verdict { is_told: true, ..Verdict::failed(text, Some(id)) })
            }
            RunState::Completed => self.of_good_run(cx, vercel, commit, &run).await,
        }
    }

    async fn of_good_run(
        &self,
        cx: &Context,
        vercel: &Vercel<'_>,
        commit: &str,
        run: &RunView,
    ) -> Result<Verdict, Failure> {
        if let Some(why) = unapplied(run) {
            return Ok(Verdict::failed(why, Some(run.id)));
        }
        // Another one may have gone live meanwhile.
        let order = self.order(cx, vercel, commit).await?;
        let behind = superseded(run);
        match order {
            Order::Wrong(verdict) => Ok(Verdict { run: Some(run.id), ..verdict }),
            Order::Unknown if !behind.is_empty() => {
                let text = format!(
                    "superseded: `{}` has a newer commit's migrations already; if this commit is meant (a revert), name the \
                     `repository` in the gate so that commits are compared, or bypass the gate",
                    behind.join("`, `")
                );
                Ok(Verdict::canceled(text, Some(run.id)))
            }
            Order::After | Order::Unknown => {
                Ok(Verdict::succeeded(format!("`{}` succeeded", self.runbook), Some(run.id)))
            }
        }
    }

    /// Cancels the run of a deployment that is no longer wanted.
    async fn withdraw(&self, cx: &Context, vercel: &Vercel<'_>, deployment: &Deployment) -> Result<(), Failure> {
        let begun = match cx.step::<Begun>("start").await? {
            Step::Fresh(_) => return Ok(()),
            Step::Finished(begun) => begun,
            Step::Unknown(step) => {
                // It may have been started: whoever starts it again finds it.
                let Some(commit) = deployment.commit() else { return Ok(()) };
                let begun = Begun::Run(self.start(cx, vercel, deployment, commit).await?);
                step.finish(&begun).await?;
                begun
            }
        };
        let Begun::Run(run) = begun else { return Ok(()) };
        let by = Operator {
            actor: format!("gate {}", cx.job().attempt.job),
            reason: format!("the deployment {} is no longer wanted", deployment.id),
        };
        match cx.queue().cancel_run(run, &by).await {
            Ok(()) | Err(LedgerError::Conflict(_)) => Ok(()), // It had ended.
            Err(error) => Err(Failure::retry(error).context("cancelling the run")),
        }
    }
}

/// What came of the start.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Begun {
    Run(RunId),
    /// None was started.
    Decided(Verdict),
}

/// Somebody answered before us: an operator's bypass, or a person at Vercel.
fn given(conclusion: &str) -> Verdict {
    let text = format!("it was answered by somebody else: {conclusion}");
    let good = matches!(conclusion, "succeeded" | "success" | "neutral" | "skipped");
    let conclusion = if good { Conclusion::Succeeded } else { Conclusion::Failed };
    Verdict { conclusion, text, run: None, is_told: true, is_given: true }
}
