//! Health: `/healthz` (this process answers) and `/readyz` (it can do its work), for every role.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use producer::Door;
use queue::Queue;
use serde::Serialize;
use tokio::time::timeout;

use crate::talk::Talk;

/// A ledger that takes longer to tell the time is not ready.
const PATIENCE: Duration = Duration::from_secs(2);

/// What readiness is judged by.
#[derive(Clone)]
pub(crate) struct Health {
    queue: Queue,
    door: Option<Door>,
    talk: Option<Talk>,
}

/// Why a process is ready or not, for operators.
#[derive(Serialize)]
struct Readiness {
    ready: bool,
    ledger: &'static str,
    broker: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries: Option<&'static str>,
    /// The server by which other programs are met.
    #[serde(skip_serializing_if = "Option::is_none")]
    programs: Option<&'static str>,
    /// What is not well, and what that means; nothing where all is.
    reasons: Vec<&'static str>,
}

impl Health {
    /// The health of a process that has this queue, of its door and of its way to other programs, if it has them.
    pub(crate) fn new(queue: Queue, door: Option<Door>, talk: Option<&Talk>) -> Self {
        Self { queue, door, talk: talk.cloned() }
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
        let deliveries = match &self.door {
            Some(door) => Some(door.can_accept().await),
            None => None,
        };
        let programs = self.talk.as_ref().map(|talk| talk.programs.is_well());
        let word = |well: bool| if well { "well" } else { "away" };
        Readiness {
            ready: deliveries.unwrap_or(ledger),
            ledger: word(ledger),
            broker: word(broker),
            deliveries: deliveries.map(|can| if can { "accepted" } else { "refused: neither ledger nor spool" }),
            programs: programs.map(word),
            reasons: reasons_of(ledger, broker, deliveries, programs),
        }
    }
}

/// What is not well, and what that means: the first two are why a process is not ready, the others slow it down.
fn reasons_of(ledger: bool, broker: bool, deliveries: Option<bool>, programs: Option<bool>) -> Vec<&'static str> {
    let without_ledger = match deliveries {
        Some(true) => {
            "the ledger does not answer: deliveries of senders that never send again go to the spool, others are refused"
        }
        Some(false) => "the ledger does not answer, and nothing goes to the spool: deliveries are refused",
        None => "the ledger does not answer: no job can be claimed",
    };
    let without_broker = "the broker is away: jobs are found by polling, later";
    let without_programs = "the server of [amqp] is away: no messages are taken, announcements wait in the ledger";
    let reasons = [(ledger, without_ledger), (broker, without_broker), (programs.unwrap_or(true), without_programs)];
    reasons.into_iter().filter(|(well, _)| !well).map(|(_, reason)| reason).collect()
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
