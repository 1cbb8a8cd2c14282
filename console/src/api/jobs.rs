//! Jobs: reading, cancelling, retrying them.

use axum::Json;
use axum::extract::State;
use queue::ledger::{JobFilter, Operator};
use schemas::api::{JobView, ReasonRequest};
use schemas::{JobId, JobState};
use serde::Deserialize;

use super::auth::ACTOR;
use super::error::ApiError;
use super::extract::{Body, Id, Params, limit};
use crate::Console;
use crate::router::Answer;

#[derive(Deserialize)]
pub(crate) struct ListParams {
    state: Option<JobState>,
    kind: Option<String>,
    limit: Option<u32>,
}

pub(crate) async fn list(State(console): State<Console>, Params(params): Params<ListParams>) -> Answer<Vec<JobView>> {
    let filter =
        JobFilter { state: params.state, kind: params.kind, limit: limit(params.limit), ..JobFilter::default() };
    Ok(Json(console.queue.ledger().jobs(&filter).await?))
}

pub(crate) async fn show(State(console): State<Console>, Id(id): Id<JobId>) -> Answer<JobView> {
    find(&console, id).await
}

/// Ends a job: at once where it waits; where it runs, at its next heartbeat.
pub(crate) async fn cancel(
    State(console): State<Console>,
    Id(id): Id<JobId>,
    Body(request): Body<ReasonRequest>,
) -> Answer<JobView> {
    console.queue.cancel(id, &operator(request)?).await?;
    find(&console, id).await
}

/// Makes a job that was given up or cancelled available again.
pub(crate) async fn retry(
    State(console): State<Console>,
    Id(id): Id<JobId>,
    Body(request): Body<ReasonRequest>,
) -> Answer<JobView> {
    console.queue.retry(id, &operator(request)?).await?;
    find(&console, id).await
}

async fn find(console: &Console, id: JobId) -> Answer<JobView> {
    let job = console.queue.ledger().job(id).await?;
    job.map(Json).ok_or_else(|| ApiError::no_such("job", id))
}

/// Who does it and why, for the audit.
pub(crate) fn operator(request: ReasonRequest) -> Result<Operator, ApiError> {
    if request.reason.trim().is_empty() {
        return Err(ApiError::wrong("say why in `reason`: it is kept in the audit"));
    }
    Ok(Operator { actor: ACTOR.into(), reason: request.reason })
}
