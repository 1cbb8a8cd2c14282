//! The routes of the API, behind tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use queue::Queue;
use queue::ledger::StoredBody;
use schemas::api::EventView;
use schemas::{Catalog, NewJob, NewRun, Problem, Runbook, Schedule};
use tower_http::timeout::TimeoutLayer;

use crate::api::auth;
use crate::api::error::{ApiError, not_allowed, not_found};
use crate::operations::operations;

/// No request of ours is larger.
const LARGEST_BODY: usize = 1024 * 1024;

/// An answer later than this is of no use to its caller.
const DEADLINE: Duration = Duration::from_secs(30);

/// The work of an event that is booked, made by those who know the routes.
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
    /// The schedules, by name.
    pub schedules: Arc<BTreeMap<String, Schedule>>,
    /// The token that is not in the ledger, so that there is a first one: an admin's.
    pub token: Arc<str>,
    /// Makes the work of an event that is booked, by today's routes.
    pub released: Released,
}

/// The API: `/api/v1/...`. Every call shows a token whose role may do it; every error is an
/// [`schemas::api::ErrorAnswer`].
pub fn router(console: Console) -> Router {
    let routes = operations().into_iter().fold(Router::new(), |routes, operation| {
        let guarded = operation.handler.route_layer(from_fn_with_state(operation.role, auth::require_role));
        routes.route(operation.path, guarded)
    });
    let api = routes
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
