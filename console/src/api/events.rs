//! Events: reading them, and releasing held ones.

use axum::Json;
use axum::extract::State;
use schemas::api::{EventView, ReasonRequest};
use schemas::{EventId, Standing};
use serde::Deserialize;

use super::error::ApiError;
use super::extract::{Body, Id, Params, limit};
use super::jobs::operator;
use crate::Console;
use crate::router::Answer;

#[derive(Deserialize)]
pub(crate) struct ListParams {
    limit: Option<u32>,
}

pub(crate) async fn list(State(console): State<Console>, Params(params): Params<ListParams>) -> Answer<Vec<EventView>> {
    Ok(Json(console.queue.ledger().events(limit(params.limit)).await?))
}

pub(crate) async fn show(State(console): State<Console>, Id(id): Id<EventId>) -> Answer<EventView> {
    find(&console, id).await.map(Json)
}

/// Lets a held event have its work after all, by today's routes.
pub(crate) async fn release(
    State(console): State<Console>,
    Id(id): Id<EventId>,
    Body(request): Body<ReasonRequest>,
) -> Answer<EventView> {
    let by = operator(request)?;
    let event = find(&console, id).await?;
    if event.standing != Standing::Held {
        let standing = match event.standing {
            Standing::Accepted => "accepted: its routes have made their jobs",
            Standing::Quarantined => "in quarantine: it could not be read",
            Standing::Held => "held",
        };
        return Err(ApiError::Conflict(format!("only a held event can be released; this one is {standing}")));
    }
    let body = console.queue.ledger().body(id).await?;
    let body = body.ok_or_else(|| ApiError::Conflict("the event's body is no longer kept".into()))?;
    let (jobs, runs) = (console.released)(&event, &body).map_err(|problem| ApiError::Wrong(vec![problem]))?;
    console.queue.release(id, &jobs, &runs, &by).await?;
    find(&console, id).await.map(Json)
}

async fn find(console: &Console, id: EventId) -> Result<EventView, ApiError> {
    console.queue.ledger().event(id).await?.ok_or_else(|| ApiError::no_such("event", id))
}
