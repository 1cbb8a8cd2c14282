//! Events: reading them, and releasing held ones.

use axum::Json;
use axum::extract::State;
use schemas::api::{EventView, ReasonRequest};
use schemas::{EventId, NewJob, NewRun, Standing};

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Id, ListParams, Params};
use crate::Console;
use crate::router::Answer;

pub(crate) async fn list(State(console): State<Console>, Params(params): Params<ListParams>) -> Answer<Vec<EventView>> {
    Ok(Json(console.queue.ledger().events(params.limit()).await?))
}

pub(crate) async fn show(State(console): State<Console>, Id(id): Id<EventId>) -> Answer<EventView> {
    find(&console, id).await.map(Json)
}

/// Lets a held event have its work after all, by today's routes.
pub(crate) async fn release(
    State(console): State<Console>,
    caller: Caller,
    Id(id): Id<EventId>,
    Body(request): Body<ReasonRequest>,
) -> Answer<EventView> {
    let by = caller.because(request.reason)?;
    let event = find(&console, id).await?;
    if event.standing != Standing::Held {
        let standing = match event.standing {
            Standing::Accepted => "accepted: its routes have made their jobs",
            Standing::Quarantined => "in quarantine: it could not be read",
            Standing::Held => "held",
        };
        return Err(ApiError::Conflict(format!("only a held event can be released; this one is {standing}")));
    }
    let (jobs, runs) = work_of(&console, &event).await?;
    console.queue.release(id, &jobs, &runs, &by).await?;
    find(&console, id).await.map(Json)
}

/// What today's routes make of an event.
pub(crate) async fn work_of(console: &Console, event: &EventView) -> Result<(Vec<NewJob>, Vec<NewRun>), ApiError> {
    let body = console.queue.ledger().body(event.event.id).await?;
    let body = body.ok_or_else(|| ApiError::Conflict("the event's body is no longer kept".into()))?;
    (console.released)(event, &body).map_err(|problem| ApiError::Wrong(vec![problem]))
}

/// The event.
pub(crate) async fn find(console: &Console, id: EventId) -> Result<EventView, ApiError> {
    console.queue.ledger().event(id).await?.ok_or_else(|| ApiError::no_such("event", id))
}
