//! A sender of webhooks as GitHub is one: it gives up after ten seconds, and never sends again.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use chrono::Utc;
use producer::source_type;
use schemas::Standing;
use secrets::SecretString;
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

/// The secret of the source `github`.
pub const SECRET: &str = "not a secret";

/// GitHub hangs up after this.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends, and knows what was answered to each delivery.
pub struct Sender {
    http: reqwest::Client,
    next: AtomicU64,
    /// By delivery id: signed for, and whether the answer said that it is in the spool.
    acknowledged: Mutex<BTreeMap<String, bool>>,
    /// Answers by status; 0 where there was none.
    answers: Mutex<BTreeMap<u16, usize>>,
    without_retry_after: AtomicUsize,
}

impl Default for Sender {
    fn default() -> Self {
        let client = reqwest::Client::builder().timeout(PATIENCE).pool_max_idle_per_host(1024);
        // Err only says that a provider is installed already.
        drop(worker::world::http_client());
        Self {
            http: client.build().expect("the TLS library is set up"),
            next: AtomicU64::new(1), // A commit of zeros is none.
            acknowledged: Mutex::default(),
            answers: Mutex::default(),
            without_retry_after: AtomicUsize::new(0),
        }
    }
}

impl Sender {
    /// Sends a new push of about so many bytes; the status, if there was an answer.
    pub async fn push(&self, door: &str, bytes: usize) -> Option<StatusCode> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let (headers, body) = push(number, &".".repeat(bytes));
        self.send(door, headers, body).await
    }

    /// Sends what was signed before, under a new id.
    pub async fn send(&self, door: &str, mut headers: HeaderMap, body: Bytes) -> Option<StatusCode> {
        let id = Uuid::new_v4().to_string();
        headers.insert("x-github-delivery", id.parse().expect("a header"));
        let sent = self.http.post(format!("{door}/webhooks/github")).headers(headers).body(body).send().await;
        let Ok(answer) = sent else {
            self.count(0);
            return None;
        };
        let (status, retry_after) = (answer.status(), answer.headers().contains_key("retry-after"));
        self.count(status.as_u16());
        if matches!(status.as_u16(), 429 | 503) && !retry_after {
            self.without_retry_after.fetch_add(1, Ordering::SeqCst);
        }
        if status.is_success() {
            let answer: Value = answer.json().await.unwrap_or_default();
            self.acknowledged.lock().expect("no panic").insert(id, answer["spooled"] == Value::Bool(true));
        }
        Some(status)
    }

    fn count(&self, status: u16) {
        *self.answers.lock().expect("no panic").entry(status).or_default() += 1;
    }

    /// How many were signed for, and how many of these by the spool.
    pub fn acknowledged(&self) -> (usize, usize) {
        let acknowledged = self.acknowledged.lock().expect("no panic");
        (acknowledged.len(), acknowledged.values().filter(|spooled| **spooled).count())
    }

    /// How many answers had this status; 0 is for those that never came.
    pub fn answered(&self, status: u16) -> usize {
        self.answers.lock().expect("no panic").get(&status).copied().unwrap_or_default()
    }

    /// All answers, for people.
    pub fn answers(&self) -> String {
        format!("{:?}", self.answers.lock().expect("no panic"))
    }

    /// Whether everything that was signed for is in the ledger once, with one job (or held, without one).
    ///
    /// # Panics
    ///
    /// Where something is there twice, or has more or fewer jobs.
    pub async fn is_all_booked(&self, ledger: &str) -> bool {
        let Ok(mut ledger) = PgConnection::connect(ledger).await else { return false };
        let select =
            "select delivery_id, count(distinct event.id), count(job_args.id), min(standing) from nightporter.event
                      left join nightporter.job_args on event_id = event.id group by delivery_id";
        let Ok(booked) = sqlx::query_as::<_, (String, i64, i64, i16)>(select).fetch_all(&mut ledger).await else {
            return false;
        };
        self.is_all_in(&booked)
    }

    /// The same, of what a ledger holds: delivery ids, how many events and jobs each has, and the least standing.
    ///
    /// # Panics
    ///
    /// Where something is there twice, or has more or fewer jobs.
    pub fn is_all_in(&self, booked: &[(String, i64, i64, i16)]) -> bool {
        assert_eq!(self.without_retry_after.load(Ordering::SeqCst), 0, "refused without saying when to come back");
        let is_once = |events: i64, jobs: i64, standing: i16| {
            events == 1 && jobs == i64::from(standing == Standing::Accepted.code())
        };
        let not_once: Vec<_> =
            booked.iter().filter(|(_, events, jobs, standing)| !is_once(*events, *jobs, *standing)).collect();
        assert!(not_once.is_empty(), "not once: {not_once:?}");
        let booked: std::collections::BTreeSet<&str> = booked.iter().map(|(id, ..)| id.as_str()).collect();
        self.acknowledged.lock().expect("no panic").keys().all(|id| booked.contains(id.as_str()))
    }
}

/// A signed push with a number and some padding, which lacks only its delivery id.
pub fn push(number: u64, padding: &str) -> (HeaderMap, Bytes) {
    let github = source_type("github").expect("there is one");
    let sample = github.sample("github.push").expect("there is one");
    let mut body = sample.body;
    body["after"] = format!("{number:040x}").into();
    body["padding"] = padding.into();
    let (mut headers, body) = (HeaderMap::new(), Bytes::from(body.to_string()));
    headers.insert("content-type", "application/json".parse().expect("a header"));
    headers.insert("x-github-event", "push".parse().expect("a header"));
    github.sign(&SecretString::from(SECRET), &mut headers, &body, Utc::now()).expect("it signs");
    (headers, body)
}

/// A porter that makes a job of each push.
pub fn configuration(ledger: &str) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "{SECRET} {SECRET}"
[queue]
ledger = "{ledger}"
[sources.github]
secrets = ["{SECRET}"]
[[routes]]
on = "github.push"
run = {{ job = "noop" }}
"#
    )
}
