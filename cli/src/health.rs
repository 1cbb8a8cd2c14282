//! Health: `/healthz` (this process answers) and `/readyz` (it can do its work), for every role.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use queue::Queue;
use serde::Serialize;
use tokio::time::timeout;

/// A ledger that takes longer to tell the time is not ready.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether deliveries can be taken: into the ledger or into the spool.
pub(crate) type CanAccept = Arc<dyn Fn() -> bool + Send + Sync>;

/// What readiness is judged by.
#[derive(Clone)]
pub(crate) struct Health {
    queue: Queue,
    can_accept: Option<CanAccept>,
}

/// Why a process is ready or not, for operators.
#[derive(Serialize)]
struct Readiness {
    ready: bool,
    ledger: &'static str,
    broker: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries: Option<&'static str>,
}

impl Health {
    /// The health of a process that has this queue, and of its door, if it has one.
    pub(crate) fn new(queue: Queue, can_accept: Option<CanAccept>) -> Self {
        Self { queue, can_accept }
    }

    /// `/healthz`, and `/readyz` with yes or no: what the public may know.
    pub(crate) fn public(self) -> Router {
        Router::new().route("/healthz", get(alive)).route("/readyz", get(yes_or_no)).with_state(self)
    }

    /// `/healthz`, and `/readyz` with reasons.
    pub(crate) fn with_reasons(self) -> Router {
        Router::new().route("/healthz", get(alive)).route("/readyz", get(reasons)).with_state(self)
    }

    async fn judge(&self) -> Readiness {
        let ledger = matches!(timeout(PATIENCE, self.queue.ledger().time()).await, Ok(Ok(_)));
        // Without a broker everything goes on, slower: workers poll. So it is no reason to send nobody here.
        let broker = self.queue.broker().is_well();
        let deliveries = self.can_accept.as_ref().map(|can_accept| can_accept());
        let word = |well: bool| if well { "well" } else { "away" };
        Readiness {
            ready: deliveries.unwrap_or(ledger),
            ledger: word(ledger),
            broker: word(broker),
            deliveries: deliveries.map(|can| if can { "accepted" } else { "refused: neither ledger nor spool" }),
        }
    }
}

async fn alive() -> &'static str {
    "ok\n"
}

async fn yes_or_no(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.judge().await.ready { (StatusCode::OK, "yes\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "no\n") }
}

async fn reasons(State(health): State<Health>) -> (StatusCode, Json<Readiness>) {
    let readiness = health.judge().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}
