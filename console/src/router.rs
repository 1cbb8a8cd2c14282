//! The routes of the API, behind one token.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use queue::Queue;
use queue::ledger::StoredBody;
use schemas::api::EventView;
use schemas::{Catalog, NewJob, NewRun, Problem, Runbook};
use tower_http::timeout::TimeoutLayer;

use crate::api::error::{ApiError, not_allowed, not_found};
use crate::api::{auth, books, events, jobs, runs};

/// No request of ours is larger.
const LARGEST_BODY: usize = 1024 * 1024;

/// An answer later than this is of no use to its caller.
const DEADLINE: Duration = Duration::from_secs(30);

/// The work of a held event, made by those who know the routes.
pub type Released = Arc<dyn Fn(&EventView, &StoredBody) -> Result<(Vec<NewJob>, Vec<NewRun>), Problem> + Send + Sync>;

/// What the API speaks of. Cheap to clone.
#[derive(Clone)]
pub struct Console {
    /// Books and commands.
    pub queue: Queue,
    /// The job kinds.
    pub catalog: Arc<Catalog>,
    /// The runbooks, by name.
    pub runbooks: Arc<BTreeMap<String, Runbook>>,
    /// What a caller must show.
    pub token: Arc<str>,
    /// Makes the work of a held event, by today's routes.
    pub released: Released,
}

/// The API: `/api/v1/...`. Every call shows the token; every error is an [`schemas::api::ErrorAnswer`].
pub fn router(console: Console) -> Router {
    let api = Router::new()
        .route("/runs", get(runs::list).post(runs::start))
        .route("/runs/{id}", get(runs::show))
        .route("/jobs", get(jobs::list))
        .route("/jobs/{id}", get(jobs::show))
        .route("/jobs/{id}/cancel", post(jobs::cancel))
        .route("/jobs/{id}/retry", post(jobs::retry))
        .route("/events", get(events::list))
        .route("/events/{id}", get(events::show))
        .route("/events/{id}/release", post(events::release))
        .route("/queues", get(books::queues))
        .route("/audit", get(books::audit))
        .method_not_allowed_fallback(not_allowed)
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, DEADLINE))
        .layer(from_fn_with_state(console.clone(), auth::require_token))
        .with_state(console);
    Router::new().nest("/api/v1", api)
}

/// What every handler answers.
pub(crate) type Answer<T> = Result<axum::Json<T>, ApiError>;
