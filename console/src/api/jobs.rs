//! Jobs: reading, cancelling, retrying them.

use axum::Json;
use axum::extract::State;
use queue::ledger::JobFilter;
use schemars::JsonSchema;
use schemas::api::{JobView, PauseView, ReasonRequest, StartAnswer};
use schemas::{JobId, JobState, Timestamp};
use serde::Deserialize;
use serde_json::json;

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{self, Body, Id, limit};
use super::runs::{self, Started};
use crate::Console;
use crate::router::Answer;

/// Which jobs to list.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Params {
    /// Only in this state.
    state: Option<JobState>,
    /// Only of this kind.
    kind: Option<String>,
    /// Only of this queue.
    queue: Option<String>,
    /// Only stored at this time or later.
    since: Option<Timestamp>,
    /// Only stored before this time.
    until: Option<Timestamp>,
    /// Only older than this one: the last of the page before.
    before: Option<JobId>,
    /// At most so many: 50 where nothing is said, never more than 500.
    limit: Option<u32>,
}

pub(crate) async fn list(
    State(console): State<Console>,
    extract::Params(params): extract::Params<Params>,
) -> Answer<Vec<JobView>> {
    let Params { state, kind, queue, since, until, before, limit: asked } = params;
    let filter = JobFilter { state, kind, queue, since, until, before, limit: limit(asked) };
    let mut jobs = console.queue.ledger().jobs(&filter).await?;
    let pauses = console.queue.ledger().pauses().await?;
    jobs.iter_mut().for_each(|job| say_pause(job, &pauses));
    Ok(Json(jobs))
}

pub(crate) async fn show(State(console): State<Console>, Id(id): Id<JobId>) -> Answer<JobView> {
    let mut job = find(&console, id).await?;
    say_pause(&mut job, &console.queue.ledger().pauses().await?);
    Ok(Json(job))
}

/// Ends a job: at once where it waits; where it runs, at its next heartbeat.
pub(crate) async fn cancel(
    State(console): State<Console>,
    caller: Caller,
    Id(id): Id<JobId>,
    Body(request): Body<ReasonRequest>,
) -> Answer<JobView> {
    console.queue.cancel(id, &caller.because(request.reason)?).await?;
    find(&console, id).await.map(Json)
}

/// Makes a job that was given up or cancelled available again.
pub(crate) async fn retry(
    State(console): State<Console>,
    caller: Caller,
    Id(id): Id<JobId>,
    Body(request): Body<ReasonRequest>,
) -> Answer<JobView> {
    console.queue.retry(id, &caller.because(request.reason)?).await?;
    find(&console, id).await.map(Json)
}

/// Lets the deployment of a gate go live though nothing was proven: a new job, whose start in the audit says who and why.
pub(crate) async fn bypass(
    State(console): State<Console>,
    caller: Caller,
    Id(id): Id<JobId>,
    Body(request): Body<ReasonRequest>,
) -> Started {
    let by = caller.because(request.reason)?;
    let gate = find(&console, id).await?;
    if gate.kind != "gate" {
        return Err(ApiError::wrong(&format!("the job {id} is a `{}`: only a `gate` can be bypassed", gate.kind)));
    }
    let job = console.catalog.job("bypass", &json!({"gate": id}), console.queue.clock().now());
    let job = job.map_err(|problem| ApiError::Wrong(vec![problem]))?;
    let started = console.queue.start_job(&job, &by).await?;
    Ok(runs::answer(started, |job| StartAnswer { run: None, job: Some(job), existing: false }))
}

/// The job, with its attempts and steps.
pub(crate) async fn find(console: &Console, id: JobId) -> Result<JobView, ApiError> {
    console.queue.ledger().job(id).await?.ok_or_else(|| ApiError::no_such("job", id))
}

/// A job that a pause holds back looks as if it were about to run: says why it is not, where the ledger does not. What
/// waits for its needs waits for them first.
fn say_pause(job: &mut JobView, pauses: &[PauseView]) {
    let held_by = match job.state {
        JobState::Available => ("queue", &job.queue),
        JobState::Pending if job.run.is_none() => ("kind", &job.kind),
        _ => return,
    };
    let holds = pauses.iter().any(|pause| (pause.what.as_str(), &pause.name) == held_by);
    if holds && job.reason.is_none() {
        job.reason = Some(format!("the {} `{}` is paused", held_by.0, held_by.1));
    }
}
