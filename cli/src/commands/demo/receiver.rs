//! The demo's team: a receiver of signed webhooks on this machine, which checks each signature and hands the message on.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use chrono::Utc;
use schemas::JobId;
use secrets::SecretString;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, mpsc};

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
    secret: &'static OnceCell<SecretString>,
    /// What arrived, its signature right.
    pub(crate) arrived: mpsc::UnboundedReceiver<Arrived>,
}

#[derive(Clone)]
struct Team {
    secret: &'static OnceCell<SecretString>,
    arrived: mpsc::UnboundedSender<Arrived>,
}

static SECRET: OnceCell<SecretString> = OnceCell::const_new();

impl Receiver {
    /// Listens on any free port of this machine.
    pub(crate) async fn start() -> Result<Self, Failure> {
        let failed = |error| Failure::failed(format!("no free port on 127.0.0.1: {error}"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (sender, arrived) = mpsc::unbounded_channel();
        let router = Router::new().route("/", post(receive)).with_state(Team { secret: &SECRET, arrived: sender });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, secret: &SECRET, arrived })
    }

    /// From now on it believes what is signed with this secret.
    pub(crate) fn believe(&self, secret: String) {
        // Err only if it was told before.
        let _told = self.secret.set(secret.into());
    }
}

async fn receive(State(team): State<Team>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let Some(secret) = team.secret.get() else { return StatusCode::SERVICE_UNAVAILABLE };
    let Ok(standard) = producer::source_type("standard") else { return StatusCode::INTERNAL_SERVER_ERROR };
    if standard.verify(&headers, &body, std::slice::from_ref(secret), Utc::now()).is_err() {
        return StatusCode::UNAUTHORIZED;
    }
    match serde_json::from_slice::<Body>(&body) {
        Ok(body) => {
            // Err only when the demo is ending.
            let _told = team.arrived.send(body.data);
            StatusCode::NO_CONTENT
        }
        Err(_) => StatusCode::BAD_REQUEST,
    }
}
