//! Runs: what was started, and starting it.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use queue::ledger::{Enqueued, Operator};
use queue::trace;
use schemas::api::{ReasonRequest, RunView, StartAnswer, StartRequest};
use schemas::runbook::Start;
use schemas::{Key, Problem, RunId, TraceContext};
use serde_json::Value;
use tracing::{Instrument, Span, info_span};

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Id, ListParams, Params};
use crate::Console;
use crate::router::Answer;

/// How long the key of a start is held.
const KEY_HOLD: Duration = Duration::from_hours(24);

/// No key of a start is longer.
const LONGEST_KEY: usize = 200;

pub(crate) type Started = Result<(StatusCode, Json<StartAnswer>), ApiError>;

pub(crate) async fn list(State(console): State<Console>, Params(params): Params<ListParams>) -> Answer<Vec<RunView>> {
    Ok(Json(console.queue.ledger().runs(params.limit()).await?))
}

pub(crate) async fn show(State(console): State<Console>, Id(id): Id<RunId>) -> Answer<RunView> {
    find(&console, id).await.map(Json)
}

/// The run, with its jobs.
pub(crate) async fn find(console: &Console, id: RunId) -> Result<RunView, ApiError> {
    console.queue.ledger().run(id).await?.ok_or_else(|| ApiError::no_such("run", id))
}

/// Ends all jobs of a run that have not ended: at once where they wait; where they run, at their next heartbeat.
pub(crate) async fn cancel(
    State(console): State<Console>,
    caller: Caller,
    Id(id): Id<RunId>,
    Body(request): Body<ReasonRequest>,
) -> Answer<RunView> {
    console.queue.cancel_run(id, &caller.because(request.reason)?).await?;
    find(&console, id).await.map(Json)
}

/// Starts a runbook or a single job: 201, or 200 where the key names an earlier start.
pub(crate) async fn start(
    State(console): State<Console>,
    caller: Caller,
    headers: HeaderMap,
    Body(request): Body<StartRequest>,
) -> Started {
    let by = caller.because(request.reason.clone())?;
    check(&request)?;
    let span = info_span!("start", run.name = request.run);
    // A caller who has shown the token may be the parent of what is done for it.
    trace::set_parent(&span, &caller_trace(&headers));
    let key = request.key.clone().map(|key| Key { scope: request.run.clone(), key, hold: KEY_HOLD });
    async {
        if console.runbooks.contains_key(&request.run) {
            start_run(&console, request, key, by).await
        } else {
            start_job(&console, request, key, by).await
        }
    }
    .instrument(span)
    .await
}

fn check(request: &StartRequest) -> Result<(), ApiError> {
    let length = request.key.as_ref().map(|key| key.chars().count());
    if length.is_some_and(|length| length == 0 || length > LONGEST_KEY) {
        return Err(ApiError::wrong("a `key` has between 1 and 200 characters"));
    }
    Ok(())
}

async fn start_run(console: &Console, request: StartRequest, key: Option<Key>, by: Operator) -> Started {
    let runbook = console.runbooks.get(&request.run).ok_or_else(|| ApiError::no_such("runbook", &request.run))?;
    let problems = runbook.check_inputs(&request.with);
    if !problems.is_empty() {
        return Err(ApiError::Wrong(problems));
    }
    let start = Start {
        actor: Some(by.actor.clone()),
        reason: Some(by.reason.clone()),
        event: None,
        key,
        trace: trace::of(&Span::current()),
    };
    let run = runbook
        .plan(&request.with, start, &console.catalog, console.queue.clock().now())
        .map_err(|problem| ApiError::Wrong(vec![problem]))?;
    let started = console.queue.start_run(&run, &by).await?;
    Ok(answer(started, |run| StartAnswer { run: Some(run), job: None, existing: false }))
}

async fn start_job(console: &Console, request: StartRequest, key: Option<Key>, by: Operator) -> Started {
    let args = Value::Object(request.with);
    let (catalog, now) = (&console.catalog, console.queue.clock().now());
    if catalog.kind(&request.run).is_err() {
        return Err(ApiError::NotFound(unknown(console, &request.run).to_string()));
    }
    let problems = catalog.check(&request.run, &args);
    if !problems.is_empty() {
        return Err(ApiError::Wrong(problems));
    }
    let mut job = catalog.job(&request.run, &args, now).map_err(|problem| ApiError::Wrong(vec![problem]))?;
    if key.is_some() && job.key.is_some() {
        return Err(ApiError::wrong("jobs of this kind are kept single by their arguments already: leave `key` out"));
    }
    job.key = job.key.or(key);
    job.trace = trace::of(&Span::current());
    let started = console.queue.start_job(&job, &by).await?;
    Ok(answer(started, |job| StartAnswer { run: None, job: Some(job), existing: false }))
}

fn unknown(console: &Console, name: &str) -> Problem {
    let kinds = console.catalog.kinds().map(|info| info.kind);
    Problem::unknown("runbook or job kind", name, console.runbooks.keys().map(String::as_str).chain(kinds))
}

pub(crate) fn answer<T: Copy>(started: Enqueued<T>, say: impl Fn(T) -> StartAnswer) -> (StatusCode, Json<StartAnswer>) {
    let existing = matches!(started, Enqueued::Existing(_));
    let status = if existing { StatusCode::OK } else { StatusCode::CREATED };
    (status, Json(StartAnswer { existing, ..say(started.id()) }))
}

fn caller_trace(headers: &HeaderMap) -> TraceContext {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    TraceContext { traceparent: text("traceparent"), tracestate: text("tracestate") }
}
