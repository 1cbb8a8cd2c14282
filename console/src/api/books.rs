//! Queues, the audit, and the document that describes the API.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use schemas::api::{AuditView, QueueView};
use serde_json::Value;

use super::extract::{ListParams, Params};
use crate::Console;
use crate::router::Answer;

/// Those that hold jobs, and those that are paused.
pub(crate) async fn queues(State(console): State<Console>) -> Answer<Vec<QueueView>> {
    let ledger = console.queue.ledger();
    let queues = ledger.queues().await?.into_iter().map(|view| (view.queue.clone(), view));
    let mut queues: BTreeMap<String, QueueView> = queues.collect();
    for pause in ledger.pauses().await?.into_iter().filter(|pause| pause.what == "queue") {
        let queue = queues.entry(pause.name.clone()).or_default();
        queue.queue.clone_from(&pause.name);
        queue.paused = Some(pause);
    }
    Ok(Json(queues.into_values().collect()))
}

pub(crate) async fn audit(
    State(console): State<Console>,
    Params(params): Params<ListParams>,
) -> Answer<Vec<AuditView>> {
    let lines = console.queue.ledger().audit(params.limit()).await?.into_iter();
    let view = lines.map(|line| AuditView {
        at: line.at,
        actor: line.actor,
        verb: line.verb,
        subject: line.subject,
        reason: line.reason,
    });
    Ok(Json(view.collect()))
}

pub(crate) async fn openapi() -> Json<Value> {
    Json(crate::openapi())
}
