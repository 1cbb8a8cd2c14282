//! The door in a small world: a real `SQLite` ledger that can be taken away, a spool, a clock by hand.

mod answers;
mod fault;
mod spooling;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use prometheus_client::registry::Registry;
use queue::ledger::{Ledger, StoredBody};
use queue::{LedgerClock, Queue, QueueConfig};
use schemas::api::EventView;
use schemas::{Catalog, EventId, KindInfo, Names, Priority, Timestamp};
use secrets::{Resolver, SecretString};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;
use uuid::Uuid;

use self::fault::{Fault, Faulty};
use crate::sources::{SignedSample, signed_sample, source_type};
use crate::{Door, DoorConfig, Routes, Sources, Spool, SpoolLimits, Startable};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The wall clock of this world; the ledger's stands at the same moment until it is moved.
fn wall_clock() -> Timestamp {
    Timestamp::from_timestamp_secs(1_790_000_000).unwrap()
}

struct World {
    folder: TempDir,
    queue: Queue,
    clock: LedgerClock,
    fault: Fault,
    /// How many batches of deliveries the ledger was offered.
    offered: Arc<AtomicU32>,
    door: Door,
}

/// An answer of the door.
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl World {
    async fn new() -> Self {
        Self::with(SpoolLimits::default(), json!([])).await
    }

    /// What the door counts, as it is scraped.
    fn metrics(&self) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        self.door.register_metrics(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    async fn with(limits: SpoolLimits, routes: Value) -> Self {
        let folder = TempDir::new().unwrap();
        let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
        let opened = Queue::open(&QueueConfig::new(url, "in-process")).await.unwrap();
        let (fault, clock) = (Fault::default(), LedgerClock::by_hand(wall_clock()));
        let offered = Arc::new(AtomicU32::new(0));
        let ledger: Arc<dyn Ledger> = Arc::new(Faulty {
            ledger: Arc::clone(opened.ledger()),
            fault: fault.clone(),
            offered: Arc::clone(&offered),
        });
        let queue = Queue::with_parts(ledger, Arc::clone(opened.broker()), clock.clone());
        let door = door(&queue, &folder, limits, &routes);
        Self { folder, queue, clock, fault, offered, door }
    }

    /// The same house after a restart of its producer.
    fn restarted(self) -> Self {
        let door = door(&self.queue, &self.folder, SpoolLimits::default(), &json!([]));
        Self { door, ..self }
    }

    async fn send(&self, request: Request<Body>) -> Answered {
        let response = self.door.router().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answered { status: parts.status, headers: parts.headers, body }
    }

    async fn deliver(&self, source: &str, sample: &SignedSample) -> Answered {
        self.send(request(source, sample)).await
    }

    async fn event(&self, answered: &Answered) -> EventView {
        self.queue.ledger().event(event_id(answered)).await.unwrap().unwrap()
    }

    async fn body(&self, answered: &Answered) -> StoredBody {
        self.queue.ledger().body(event_id(answered)).await.unwrap().unwrap()
    }

    /// The endings of the files in the spool, sorted.
    fn spool_files(&self) -> Vec<String> {
        let files = std::fs::read_dir(spool_folder(&self.folder)).unwrap().map(|file| file.unwrap().path());
        let mut endings: Vec<String> =
            files.map(|path| path.extension().unwrap_or_default().to_string_lossy().into_owned()).collect();
        endings.sort();
        endings
    }
}

fn event_id(answered: &Answered) -> EventId {
    answered.body["event_id"].as_str().unwrap_or_else(|| panic!("no event in {}", answered.body)).parse().unwrap()
}

fn spool_folder(folder: &TempDir) -> std::path::PathBuf {
    folder.path().join("spool")
}

fn door(queue: &Queue, folder: &TempDir, limits: SpoolLimits, routes: &Value) -> Door {
    let kind = KindInfo {
        kind: "noop",
        summary: "",
        queue: "default",
        priority: Priority::Normal,
        schema: || json!({}),
        check: |_, _| Vec::new(),
        key: |_| None,
        limits: |_| Vec::new(),
        approval: |_| None,
        once: false,
        output: || json!({}),
    };
    let startable = Startable { catalog: Arc::new(Catalog::new([kind], Names::default())), runbooks: Arc::default() };
    let sources = json!({
        "github": {"secrets": ["old-secret", SECRET]},
        "vercel": {"secrets": [SECRET]},
        "clerk": {"secrets": [SECRET]},
        "render": {"type": "standard", "secrets": [SECRET]},
        "unset": {"type": "vercel", "secrets": ["other", "${env:NIGHTPORTER_NO_SUCH_VARIABLE}"]},
    });
    let sources = Sources::build(&serde_json::from_value(sources).unwrap()).ok().unwrap();
    let configs: Vec<crate::RouteConfig> = serde_json::from_value(routes.clone()).unwrap();
    let config = DoorConfig {
        queue: queue.clone(),
        routes: Routes::build(&configs, &startable, &sources).unwrap(),
        sources,
        startable,
        resolver: Arc::new(Resolver::default()),
        config_digest: "digest".into(),
        spool: Spool::open(&spool_folder(folder), limits).unwrap(),
    };
    Door::with_wall_clock(config, wall_clock)
}

fn request(source: &str, sample: &SignedSample) -> Request<Body> {
    let mut request = Request::post(format!("/webhooks/{source}")).body(Body::from(sample.body.clone())).unwrap();
    *request.headers_mut() = sample.headers.clone();
    request
}

/// A signed delivery of that event type; the number makes it another one.
fn sample(source: &str, kind: &str, number: u128) -> SignedSample {
    let source = source_type(source).unwrap();
    signed_sample(source, kind, &[], &SECRET.into(), Uuid::from_u128(number), wall_clock()).unwrap()
}

/// A signed GitHub delivery of these very bytes.
fn github(event: &str, id: &str, body: &[u8]) -> SignedSample {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "application/json".parse().unwrap());
    headers.insert("x-github-event", event.parse().unwrap());
    headers.insert("x-github-delivery", id.parse().unwrap());
    let secret = SecretString::from(SECRET);
    source_type("github").unwrap().sign(&secret, &mut headers, body, wall_clock()).unwrap();
    SignedSample { headers, body: body.to_vec() }
}

const MINUTE: Duration = Duration::from_mins(1);
