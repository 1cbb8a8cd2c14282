//! Approvals: which jobs wait for a person, and their word. Whether a caller may decide is the ledger's to say: it depends
//! on who started the work.

use axum::Json;
use axum::extract::State;
use schemas::JobId;
use schemas::api::{ApprovalView, JobView, ReasonRequest};

use super::auth::Caller;
use super::extract::{Body, Id, ListParams, Params};
use super::jobs::find;
use crate::Console;
use crate::router::Answer;

pub(crate) async fn list(
    State(console): State<Console>,
    Params(params): Params<ListParams>,
) -> Answer<Vec<ApprovalView>> {
    Ok(Json(console.queue.ledger().approvals(params.limit()).await?))
}

pub(crate) async fn approve(
    State(console): State<Console>,
    caller: Caller,
    Id(id): Id<JobId>,
    Body(request): Body<ReasonRequest>,
) -> Answer<JobView> {
    let role = caller.role;
    console.queue.approve(id, role, &caller.because(request.reason)?).await?;
    find(&console, id).await.map(Json)
}

pub(crate) async fn refuse(
    State(console): State<Console>,
    caller: Caller,
    Id(id): Id<JobId>,
    Body(request): Body<ReasonRequest>,
) -> Answer<JobView> {
    let role = caller.role;
    console.queue.refuse(id, role, &caller.because(request.reason)?).await?;
    find(&console, id).await.map(Json)
}
