//! Replays: finished work is done again under new ids, by today's catalog, runbooks and routes.
//!
//! What is made holds no unique key: the old work may still hold it, and the new one would vanish into it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use queue::ledger::{JobFilter, Replay};
use queue::trace;
use schemas::api::{
    JobView, PreviewRequest, ReasonRequest, ReplayAnswer, ReplayFilter, ReplayJobRequest, ReplayLine, ReplayPreview,
    ReplayRequest,
};
use schemas::runbook::Start;
use schemas::{EventId, JobId, JobState, NewJob, NewRun, Problem, RunId, Standing};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tracing::{Instrument, Span, info_span};

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Id};
use super::{events, jobs, runs};
use crate::Console;

/// No replay is larger: nobody reads a longer preview.
const MOST: u32 = 1000;

type Replayed = Result<(StatusCode, Json<ReplayAnswer>), ApiError>;

/// Does one finished job again.
pub(crate) async fn job(
    State(console): State<Console>,
    caller: Caller,
    Id(id): Id<JobId>,
    Body(request): Body<ReplayJobRequest>,
) -> Replayed {
    let by = caller.because(request.reason)?;
    async {
        let view = jobs::find(&console, id).await?;
        let args = request.args.map_or_else(|| view.args.clone(), Value::Object);
        let job = again(&console, &view, &args)?;
        let made = job.id;
        console.queue.replay(&[replay_of(&view, job)], &by).await?;
        Ok(created(vec![made], Vec::new()))
    }
    .instrument(info_span!("replay"))
    .await
}

/// Says which jobs a filter names now, and what would become of each.
pub(crate) async fn preview(
    State(console): State<Console>,
    Body(request): Body<PreviewRequest>,
) -> Result<Json<ReplayPreview>, ApiError> {
    let candidates = candidates(&console, &request.filter).await?;
    Ok(Json(ReplayPreview { set: set_of(&candidates), jobs: candidates.into_iter().map(|one| one.line).collect() }))
}

/// Does exactly the jobs of a preview again, or none.
pub(crate) async fn jobs(
    State(console): State<Console>,
    caller: Caller,
    Body(request): Body<ReplayRequest>,
) -> Replayed {
    let by = caller.because(request.reason)?;
    async {
        let candidates = candidates(&console, &request.filter).await?;
        if set_of(&candidates) != request.set {
            return Err(ApiError::Conflict(
                "the jobs are no longer those of the preview; nothing was replayed: look at a new preview".into(),
            ));
        }
        let replays: Vec<Replay> = candidates.into_iter().filter_map(|one| one.replay).collect();
        if replays.is_empty() {
            return Err(ApiError::Conflict("none of these jobs can be replayed; the preview says why".into()));
        }
        let made = replays.iter().filter_map(|replay| match replay {
            Replay::Job { again, .. } => Some(again.id),
            Replay::Run { .. } | Replay::Event { .. } => None,
        });
        let made = made.collect();
        console.queue.replay(&replays, &by).await?;
        Ok(created(made, Vec::new()))
    }
    .instrument(info_span!("replay"))
    .await
}

/// Does a run that has ended again: planned anew, with the same inputs, from today's runbook.
pub(crate) async fn run(
    State(console): State<Console>,
    caller: Caller,
    Id(id): Id<RunId>,
    Body(request): Body<ReasonRequest>,
) -> Replayed {
    let by = caller.because(request.reason)?;
    async {
        let view = runs::find(&console, id).await?;
        let gone = || ApiError::Conflict(format!("there is no runbook `{}` in today's configuration", view.runbook));
        let runbook = console.runbooks.get(&view.runbook).ok_or_else(gone)?;
        let inputs = view.inputs.as_object().cloned().unwrap_or_default();
        let start = Start {
            actor: Some(by.actor.clone()),
            reason: Some(by.reason.clone()),
            event: view.event,
            key: None,
            trace: trace::of(&Span::current()),
        };
        let planned = runbook.plan(&inputs, start, &console.catalog, console.queue.clock().now());
        let mut run = planned.map_err(|problem| ApiError::Wrong(vec![problem]))?;
        run.jobs.iter().try_for_each(|planned| may_repeat(&console, &planned.job.kind))?;
        run.replay_of = Some(id);
        let made = run.id;
        console.queue.replay(&[Replay::Run { of: id, state: view.state, again: Box::new(run) }], &by).await?;
        Ok(created(Vec::new(), vec![made]))
    }
    .instrument(info_span!("replay"))
    .await
}

/// Does what today's routes make of an event.
pub(crate) async fn event(
    State(console): State<Console>,
    caller: Caller,
    Id(id): Id<EventId>,
    Body(request): Body<ReasonRequest>,
) -> Replayed {
    let by = caller.because(request.reason)?;
    async {
        let event = events::find(&console, id).await?;
        match event.standing {
            Standing::Accepted => {}
            Standing::Held => {
                return Err(ApiError::Conflict("this event is held and had no work yet: release it".into()));
            }
            Standing::Quarantined => {
                return Err(ApiError::Conflict("this event is in quarantine: it could not be read".into()));
            }
        }
        let (jobs, runs) = events::work_of(&console, &event).await?;
        let jobs: Vec<NewJob> = jobs.into_iter().map(|job| NewJob { key: None, ..job }).collect();
        let runs: Vec<NewRun> = runs.into_iter().map(|run| NewRun { key: None, ..run }).collect();
        let of_runs = runs.iter().flat_map(|run| &run.jobs).map(|planned| &planned.job);
        jobs.iter().chain(of_runs).try_for_each(|job| may_repeat(&console, &job.kind))?;
        if jobs.is_empty() && runs.is_empty() {
            return Err(ApiError::Conflict("today's routes make nothing of this event".into()));
        }
        let made = created(jobs.iter().map(|job| job.id).collect(), runs.iter().map(|run| run.id).collect());
        console.queue.replay(&[Replay::Event { of: id, jobs, runs }], &by).await?;
        Ok(made)
    }
    .instrument(info_span!("replay"))
    .await
}

/// A job that a filter names.
struct Candidate {
    line: ReplayLine,
    /// None where it is left out.
    replay: Option<Replay>,
}

async fn candidates(console: &Console, filter: &ReplayFilter) -> Result<Vec<Candidate>, ApiError> {
    let ReplayFilter { state, kind, queue, since, until } = filter.clone();
    let state = state.unwrap_or(JobState::Discarded);
    if !state.is_finished() {
        return Err(ApiError::wrong(
            "only jobs that have ended can be replayed: completed, skipped, cancelled, discarded",
        ));
    }
    let filter = JobFilter { state: Some(state), kind, queue, since, until, before: None, limit: MOST + 1 };
    let found = console.queue.ledger().jobs(&filter).await?;
    if found.len() > MOST as usize {
        return Err(ApiError::Wrong(vec![
            Problem::new(format!("more than {MOST} jobs fit the filter"))
                .help("narrow it by `kind`, `queue`, `since` or `until`"),
        ]));
    }
    let mut candidates = Vec::with_capacity(found.len());
    for mut view in found {
        if view.run.is_some() {
            // Lists say nothing about approvals, which only jobs of runs have.
            view = jobs::find(console, view.id).await?;
        }
        let (replay, left_out) = match again(console, &view, &view.args) {
            Ok(job) => (Some(replay_of(&view, job)), None),
            Err(why) => (None, Some(why.to_string())),
        };
        let JobView { id: job, kind, state, attempt, created_at, reason, .. } = view;
        candidates
            .push(Candidate { line: ReplayLine { job, kind, state, attempt, created_at, reason, left_out }, replay });
    }
    Ok(candidates)
}

/// The digest of what an operator was shown: which jobs, how each stood, and which of them are left out.
fn set_of(candidates: &[Candidate]) -> String {
    let mut lines: Vec<String> = candidates
        .iter()
        .map(|Candidate { line, replay }| {
            format!("{} {} {} {}\n", line.job, line.state.as_str(), line.attempt, replay.is_some())
        })
        .collect();
    lines.sort_unstable();
    hex::encode(Sha256::digest(lines.concat()))
}

/// The new job, checked as any other today.
fn again(console: &Console, view: &JobView, args: &Value) -> Result<NewJob, ApiError> {
    may_repeat(console, &view.kind)?;
    if view.approval.is_some() {
        return Err(ApiError::Conflict(
            "this job had to be approved, and a replay of it alone would not: replay its run, which asks again".into(),
        ));
    }
    let made = console.catalog.job(&view.kind, args, console.queue.clock().now());
    let job = made.map_err(|problem| ApiError::Wrong(vec![problem]))?;
    Ok(NewJob { key: None, replay_of: Some(view.id), event: view.event, trace: trace::of(&Span::current()), ..job })
}

fn replay_of(view: &JobView, job: NewJob) -> Replay {
    Replay::Job { of: view.id, state: view.state, attempt: view.attempt, again: Box::new(job) }
}

fn may_repeat(console: &Console, kind: &str) -> Result<(), ApiError> {
    let info = console.catalog.kind(kind).map_err(|problem| ApiError::Wrong(vec![problem]))?;
    if info.once {
        return Err(ApiError::Conflict(format!("a `{kind}` must not be done twice: retry it, or start a new one")));
    }
    Ok(())
}

fn created(jobs: Vec<JobId>, runs: Vec<RunId>) -> (StatusCode, Json<ReplayAnswer>) {
    (StatusCode::CREATED, Json(ReplayAnswer { jobs, runs }))
}
