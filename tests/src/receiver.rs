//! A receiver of notifications in this process. It answers by a script, keeps what came, and acts once for each
//! `webhook-id`, as a receiver by Standard Webhooks does.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_mins(1);

/// A receiver on a free port. It stops when it is dropped.
pub struct Receiver {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    state: Arc<Shared>,
    count: watch::Receiver<usize>,
    _serving: AbortOnDropHandle<()>,
}

struct Shared {
    kept: Mutex<Kept>,
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Kept {
    script: VecDeque<Reply>,
    requests: Vec<Received>,
    accepted: BTreeSet<String>,
    taken: usize,
    refused: Vec<(&'static str, u16)>,
}

/// How a request is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// 200 `ok`: taken.
    Taken,
    /// Not taken.
    Refused(u16, &'static str),
    /// 429, and this `Retry-After`.
    TooMany(&'static str),
    /// A redirect to that address.
    Redirect(String),
    /// Taken, but the connection breaks before the answer.
    Lost,
    /// Taken, but the answer never comes.
    Silence,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its method.
    pub method: String,
    /// The path that it came to.
    pub path: String,
    /// What stands behind the question mark.
    pub query: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its bytes.
    pub raw: Bytes,
    /// Its body, as JSON.
    pub body: Value,
}

impl Received {
    /// A header as text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Whether its signature is right by Standard Webhooks, with the given `whsec_...`.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let Some(key) = secret.strip_prefix("whsec_").and_then(|key| STANDARD.decode(key).ok()) else { return false };
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key) else { return false };
        mac.update(format!("{}.{}.", self.header("webhook-id"), self.header("webhook-timestamp")).as_bytes());
        mac.update(&self.raw);
        let signature = STANDARD.decode(self.header("webhook-signature").trim_start_matches("v1,"));
        signature.is_ok_and(|signature| mac.verify_slice(&signature).is_ok())
    }
}

impl Receiver {
    /// Starts one that takes everything, until [`Receiver::then`] says otherwise.
    pub async fn start() -> Self {
        let (sender, count) = watch::channel(0);
        let state = Arc::new(Shared { kept: Mutex::default(), count: sender });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let router = Router::new().fallback(take).with_state(Arc::clone(&state));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Self { url, state, count, _serving: AbortOnDropHandle::new(serving) }
    }

    /// Answers the next requests so, in this order.
    pub fn then(&self, replies: impl IntoIterator<Item = Reply>) {
        self.state.lock().script.extend(replies);
    }

    /// Refuses whatever comes to a path, so.
    pub fn refuse_at(&self, path: &'static str, status: u16) {
        self.state.lock().refused.push((path, status));
    }

    /// All requests that came, taken or not.
    pub fn requests(&self) -> Vec<Received> {
        self.state.lock().requests.clone()
    }

    /// How many requests it took, whether its answer came or not.
    pub fn taken(&self) -> usize {
        self.state.lock().taken
    }

    /// How many different messages it acted upon, known by their `webhook-id`.
    pub fn effects(&self) -> usize {
        self.state.lock().accepted.len()
    }

    /// Waits until so many requests have come.
    ///
    /// # Panics
    ///
    /// If that takes too long.
    pub async fn requested(&self, count: usize) {
        let mut seen = self.count.clone();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| *seen >= count)).await;
        assert!(waited.is_ok_and(|seen| seen.is_ok()), "only {} of {count} requests came", self.requests().len());
    }
}

/// An address at which nobody listens.
///
/// # Panics
///
/// Where there is no free port.
pub fn nowhere() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("its address"))
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn take(State(state): State<Arc<Shared>>, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let raw = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let body = serde_json::from_slice(&raw).unwrap_or_default();
    let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
    let received = Received { method: parts.method.to_string(), path, query, headers: parts.headers, raw, body };
    let reply = note(&state, received);
    match reply {
        Reply::Taken => "ok".into_response(),
        Reply::Refused(status, body) => (code(status), body).into_response(),
        Reply::TooMany(seconds) => (code(429), [("retry-after", seconds)], "rate_limited").into_response(),
        Reply::Redirect(to) => (code(307), [("location", to)]).into_response(),
        // Ends the connection's task, and with it the connection; `resume_unwind` prints nothing.
        Reply::Lost => std::panic::resume_unwind(Box::new("lost")),
        Reply::Silence => std::future::pending().await,
    }
}

fn note(state: &Shared, received: Received) -> Reply {
    let mut kept = state.lock();
    let refused = kept.refused.iter().find(|(path, _)| *path == received.path).map(|(_, status)| *status);
    let scripted = || kept.script.pop_front().unwrap_or(Reply::Taken);
    let reply = refused.map_or_else(scripted, |status| Reply::Refused(status, ""));
    if matches!(reply, Reply::Taken | Reply::Lost | Reply::Silence) {
        kept.accepted.insert(received.header("webhook-id").to_owned());
        kept.taken += 1;
    }
    kept.requests.push(received);
    state.count.send_replace(kept.requests.len());
    reply
}

fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).expect("a status")
}
