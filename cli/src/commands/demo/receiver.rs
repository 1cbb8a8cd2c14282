//! The demo's outside world, on this machine: a team that receives signed webhooks, checks each signature and hands the
//! message on; and a CRM, which is away until it is opened.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{post, put};
use chrono::Utc;
use schemas::JobId;
use secrets::SecretString;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::failure::Failure;

/// A message that arrived.
#[derive(Debug, Deserialize)]
pub(crate) struct Arrived {
    /// The job that sent it.
    pub(crate) job: JobId,
    /// Its first line.
    pub(crate) title: String,
    /// The rest.
    pub(crate) text: String,
}

#[derive(Deserialize)]
struct Body {
    data: Arrived,
}

/// A receiver that listens; it verifies once it is given the secret.
pub(crate) struct Receiver {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What arrived, its signature right.
    pub(crate) arrived: mpsc::UnboundedReceiver<Arrived>,
    outside: Outside,
}

#[derive(Clone)]
struct Outside {
    known: Arc<Mutex<Known>>,
    arrived: mpsc::UnboundedSender<Arrived>,
}

#[derive(Default)]
struct Known {
    /// What the team's messages are signed with.
    secret: Option<SecretString>,
    /// Whether the CRM takes anything.
    open: bool,
    /// How often each user was put into the CRM.
    users: BTreeMap<String, usize>,
}

impl Receiver {
    /// Listens on any free port of this machine.
    pub(crate) async fn start() -> Result<Self, Failure> {
        let failed = |error| Failure::failed(format!("no free port on 127.0.0.1: {error}"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (sender, arrived) = mpsc::unbounded_channel();
        let outside = Outside { known: Arc::default(), arrived: sender };
        let router = Router::new().route("/", post(receive)).route("/crm/{user}", put(remember));
        let router = router.with_state(outside.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, arrived, outside })
    }

    /// From now on it believes what is signed with this secret.
    pub(crate) fn believe(&self, secret: String) {
        self.outside.lock().secret = Some(secret.into());
    }

    /// From now on the CRM takes what is put into it.
    pub(crate) fn open_crm(&self) {
        self.outside.lock().open = true;
    }

    /// Who is in the CRM, and how often they were put there.
    pub(crate) fn crm(&self) -> BTreeMap<String, usize> {
        self.outside.lock().users.clone()
    }
}

impl Outside {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn receive(State(outside): State<Outside>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let Some(secret) = outside.lock().secret.clone() else { return StatusCode::SERVICE_UNAVAILABLE };
    let Ok(standard) = producer::source_type("standard") else { return StatusCode::INTERNAL_SERVER_ERROR };
    if standard.verify(&headers, &body, &[secret], Utc::now()).is_err() {
        return StatusCode::UNAUTHORIZED;
    }
    match serde_json::from_slice::<Body>(&body) {
        Ok(body) => {
            // Err only when the demo is ending.
            let _told = outside.arrived.send(body.data);
            StatusCode::NO_CONTENT
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}

async fn remember(State(outside): State<Outside>, Path(user): Path<String>) -> StatusCode {
    let mut known = outside.lock();
    if !known.open {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    *known.users.entry(user).or_default() += 1;
    StatusCode::NO_CONTENT
}
