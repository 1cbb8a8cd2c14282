//! Queues and the audit.

use axum::Json;
use axum::extract::State;
use schemas::api::{AuditView, QueueView};
use serde::Deserialize;

use super::extract::{Params, limit};
use crate::Console;
use crate::router::Answer;

#[derive(Deserialize)]
pub(crate) struct ListParams {
    limit: Option<u32>,
}

pub(crate) async fn queues(State(console): State<Console>) -> Answer<Vec<QueueView>> {
    Ok(Json(console.queue.ledger().queues().await?))
}

pub(crate) async fn audit(
    State(console): State<Console>,
    Params(params): Params<ListParams>,
) -> Answer<Vec<AuditView>> {
    let lines = console.queue.ledger().audit(limit(params.limit)).await?.into_iter();
    let view = lines.map(|line| AuditView {
        at: line.at,
        actor: line.actor,
        verb: line.verb,
        subject: line.subject,
        reason: line.reason,
    });
    Ok(Json(view.collect()))
}
