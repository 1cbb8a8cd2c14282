//! Discord, `PagerDuty` and Resend in this process, as far as their documentation says how they behave: what they refuse
//! and how, which messages they take for the same, what becomes of an alert; and faults by a script.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// The one webhook that Discord knows.
pub const WEBHOOK: &str = "api/webhooks/1/T0CANARY-B0CANARY";
/// The one routing key that `PagerDuty` knows.
pub const ROUTING_KEY: &str = "0CANARY000000000000000000000000R";
/// The one key that Resend knows.
pub const RESEND_KEY: &str = "re_CANARY";

/// The services on a free port. They end when this is dropped.
pub struct Services {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    state: Arc<Mutex<Kept>>,
    _serving: AbortOnDropHandle<()>,
}

/// How a request is answered that would have been taken.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Not taken: 429, as the service says it.
    TooMany,
    /// Not taken.
    Refused(u16, &'static str),
    /// Taken, but the connection breaks before the answer.
    Lost,
}

#[derive(Default)]
struct Kept {
    faults: VecDeque<Fault>,
    posts: Vec<Value>,
    alerts: BTreeMap<String, Alert>,
    events: Vec<Value>,
    mails: BTreeMap<String, Value>,
    mail_requests: usize,
}

/// What became of a key of `PagerDuty`'s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alert {
    /// Whether it is open.
    pub open: bool,
    /// How many incidents were opened for it.
    pub incidents: usize,
    /// The triggers that an open alert took in.
    pub absorbed: usize,
}

impl Services {
    /// Starts them.
    pub async fn start() -> Self {
        let state = Arc::new(Mutex::new(Kept::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let router = Router::new()
            .route("/api/webhooks/{id}/{token}", post(discord))
            .route("/v2/enqueue", post(pagerduty))
            .route("/emails", post(resend))
            .with_state(Arc::clone(&state));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Self { url, state, _serving: AbortOnDropHandle::new(serving) }
    }

    /// Answers the next requests so, in this order.
    pub fn then(&self, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.state).faults.extend(faults);
    }

    /// From now on everything is taken and answered.
    pub fn mend(&self) {
        lock(&self.state).faults.clear();
    }

    /// What was posted at Discord.
    pub fn posts(&self) -> Vec<Value> {
        lock(&self.state).posts.clone()
    }

    /// All events that `PagerDuty` took.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.state).events.clone()
    }

    /// The alert with this key.
    pub fn alert(&self, key: &str) -> Alert {
        lock(&self.state).alerts.get(key).cloned().unwrap_or_default()
    }

    /// All alerts.
    pub fn alerts(&self) -> BTreeMap<String, Alert> {
        lock(&self.state).alerts.clone()
    }

    /// The mails that Resend sent.
    pub fn mails(&self) -> Vec<Value> {
        lock(&self.state).mails.values().cloned().collect()
    }

    /// How many requests Resend took, repeats included.
    pub fn mail_requests(&self) -> usize {
        lock(&self.state).mail_requests
    }

    /// The configuration of a channel to Discord.
    pub fn discord(&self) -> Value {
        json!({"discord": format!("{}/{WEBHOOK}", self.url)})
    }

    /// The configuration of a channel to `PagerDuty`.
    pub fn pagerduty(&self) -> Value {
        json!({"pagerduty": {"routing_key": ROUTING_KEY, "url": self.url}})
    }

    /// The configuration of a channel to Resend.
    pub fn resend(&self) -> Value {
        let (from, to) = ("Nightporter <np@example.com>", ["ops@example.com"]);
        json!({"resend": {"key": RESEND_KEY, "from": from, "to": to, "url": self.url}})
    }
}

fn lock(state: &Mutex<Kept>) -> std::sync::MutexGuard<'_, Kept> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a right request, unless the script says otherwise; `too_many` is the service's own way to say that.
fn take(state: &Mutex<Kept>, too_many: Response, taking: impl FnOnce(&mut Kept) -> Response) -> Response {
    let mut kept = lock(state);
    match kept.faults.pop_front() {
        None => taking(&mut kept),
        Some(Fault::TooMany) => too_many,
        Some(Fault::Refused(status, body)) => (code(status), body).into_response(),
        Some(Fault::Lost) => {
            drop(taking(&mut kept));
            drop(kept);
            // Ends the connection's task, and with it the connection; `resume_unwind` prints nothing.
            std::panic::resume_unwind(Box::new("lost"))
        }
    }
}

fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).expect("a status")
}

async fn discord(
    State(state): State<Arc<Mutex<Kept>>>,
    Path((id, token)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    Json(body): Json<Value>,
) -> Response {
    let error = |status, code, message| (self::code(status), Json(json!({"message": message, "code": code})));
    if id != "1" {
        return error(404, 10015, "Unknown Webhook").into_response();
    }
    if format!("api/webhooks/{id}/{token}") != WEBHOOK {
        return error(401, 50027, "Invalid Webhook Token").into_response();
    }
    let units = |text: &Value| text.as_str().unwrap_or_default().encode_utf16().count();
    let embeds = body["embeds"].as_array().cloned().unwrap_or_default();
    let fits = embeds.len() <= 10
        && embeds.iter().all(|embed| (1..=4_096).contains(&units(&embed["description"])))
        && units(&body["content"]) <= 2_000;
    if !fits {
        return error(400, 50035, "Invalid Form Body").into_response();
    }
    if units(&body["content"]) == 0 && embeds.is_empty() {
        return error(400, 50006, "Cannot send an empty message").into_response();
    }
    let limited = json!({"message": "You are being rate limited.", "retry_after": 36.5, "global": false});
    let limited = (code(429), [("retry-after", "37"), ("x-ratelimit-scope", "user")], Json(limited)).into_response();
    take(&state, limited, |kept| {
        kept.posts.push(body);
        if query.is_some_and(|query| query.split('&').any(|pair| pair == "wait=true")) {
            Json(json!({"id": "7", "channel_id": "8", "type": 0, "content": "..."})).into_response()
        } else {
            code(204).into_response()
        }
    })
}

async fn pagerduty(State(state): State<Arc<Mutex<Kept>>>, Json(body): Json<Value>) -> Response {
    let mut errors = Vec::new();
    let (action, key) = (body["event_action"].as_str(), body["dedup_key"].as_str());
    if body["routing_key"] != ROUTING_KEY {
        errors.push("Invalid routing key");
    }
    if !matches!(action, Some("trigger" | "acknowledge" | "resolve")) {
        errors.push("'event_action' is missing or invalid");
    }
    if key.is_none_or(|key| key.len() > 255) {
        errors.push("'dedup_key' is missing or too long");
    }
    if action == Some("trigger") {
        let (payload, severities) = (&body["payload"], ["critical", "error", "warning", "info"]);
        let summary = payload["summary"].as_str().unwrap_or_default();
        if summary.is_empty() || summary.chars().count() > 1_024 {
            errors.push("'payload.summary' is missing or too long");
        }
        if payload["source"].as_str().is_none_or(str::is_empty) {
            errors.push("'payload.source' is missing or blank");
        }
        if !payload["severity"].as_str().is_some_and(|severity| severities.contains(&severity)) {
            errors.push("'payload.severity' is invalid");
        }
    }
    if !errors.is_empty() {
        let answer = json!({"status": "invalid event", "message": "Event object is invalid", "errors": errors});
        return (code(400), Json(answer)).into_response();
    }
    let limited =
        json!({"status": "throttle exceeded", "message": "Requests for this service are arriving too quickly"});
    take(&state, (code(429), Json(limited)).into_response(), |kept| {
        let key = key.unwrap_or_default().to_owned();
        let alert = kept.alerts.entry(key.clone()).or_default();
        match action {
            Some("trigger") if alert.open => alert.absorbed += 1,
            Some("trigger") => (alert.open, alert.incidents) = (true, alert.incidents + 1),
            Some("resolve") => alert.open = false,
            _ => {}
        }
        kept.events.push(body.clone());
        let answer = json!({"status": "success", "message": "Event processed", "dedup_key": key});
        (code(202), Json(answer)).into_response()
    })
}

async fn resend(State(state): State<Arc<Mutex<Kept>>>, headers: HeaderMap, raw: Bytes) -> Response {
    let error = |status: u16, name: &str| {
        let body = json!({"statusCode": status, "name": name, "message": "..."});
        (code(status), Json(body)).into_response()
    };
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    if header("authorization") != format!("Bearer {RESEND_KEY}") {
        return error(403, "invalid_api_key");
    }
    let body: Value = serde_json::from_slice(&raw).unwrap_or_default();
    if ["from", "to", "subject", "text"].iter().any(|field| body[*field].is_null() || body[*field] == "") {
        return error(422, "missing_required_field");
    }
    let key = header("idempotency-key");
    if !(1..=256).contains(&key.len()) {
        return error(400, "invalid_idempotency_key");
    }
    let limited = ([("retry-after", "37"), ("ratelimit-reset", "37")], error(429, "rate_limit_exceeded"));
    take(&state, limited.into_response(), |kept| {
        kept.mail_requests += 1;
        match kept.mails.get(&key) {
            Some(before) if *before != body => error(409, "invalid_idempotent_request"),
            _ => {
                kept.mails.insert(key.clone(), body);
                Json(json!({"id": "49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"})).into_response()
            }
        }
    })
}
