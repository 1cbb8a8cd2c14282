//! A producer's door over the queue of a `BackupWorld`, served on a port, and its way in for what jobs find.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use producer::{Door, DoorConfig, NotBooked, RouteConfig, Routes, Sources, Spool, SpoolLimits, Startable};
use queue::Queue;
use queue::ledger::JobFilter;
use schemas::Names;
use schemas::api::EventView;
use secrets::Resolver;
use serde_json::{Value, json};
use tempfile::TempDir;
use worker::Failure;
use worker::world::Inlet;

/// The door, and where it is.
pub struct ServedDoor {
    /// The door.
    pub door: Door,
    address: SocketAddr,
    queue: Queue,
    _folder: TempDir,
}

impl ServedDoor {
    /// A door for these sources, each event of which makes a job `noop`.
    pub async fn open(queue: &Queue, sources: &Value) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let catalog = Arc::new(worker::jobs::registry().catalog(Names::default()));
        let startable = Startable { catalog, runbooks: Arc::new(BTreeMap::new()) };
        let types: Vec<&String> = sources.as_object().expect("an object").keys().collect();
        let sources = serde_json::from_value(sources.clone()).expect("sources");
        let sources = Sources::build(&sources).unwrap_or_else(|problems| panic!("{problems:?}"));
        let routes: Vec<RouteConfig> = types
            .iter()
            .map(|kind| json!({"on": format!("{kind}.*"), "run": {"job": "noop"}}))
            .map(|route| serde_json::from_value(route).expect("a route"))
            .collect();
        let door = Door::new(DoorConfig {
            queue: queue.clone(),
            routes: Routes::build(&routes, &startable, &sources).unwrap_or_else(|problems| panic!("{problems:?}")),
            sources,
            startable,
            resolver: Arc::new(Resolver::default()),
            config_digest: "digest".into(),
            spool: Spool::open(folder.path(), SpoolLimits::default()).expect("a spool"),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let served = door.router();
        tokio::spawn(async move { axum::serve(listener, served).await });
        // From now on somebody listens.
        door.look_for_silence(None).await.expect("the ledger is there");
        Self { door, address, queue: queue.clone(), _folder: folder }
    }

    /// The address of a source's webhook.
    pub fn url(&self, source: &str) -> String {
        format!("http://{}/webhooks/{source}", self.address)
    }

    /// The events that are booked, the oldest first.
    pub async fn events(&self) -> Vec<EventView> {
        let mut events = self.queue.ledger().events(500).await.expect("the ledger is there");
        events.reverse();
        events
    }

    /// How many jobs its routes made.
    pub async fn jobs_made(&self) -> usize {
        let filter = JobFilter { kind: Some("noop".into()), limit: 500, ..JobFilter::default() };
        self.queue.ledger().jobs(&filter).await.expect("the ledger is there").len()
    }

    /// The way in, as jobs have it.
    pub fn inlet(&self) -> Arc<dyn Inlet> {
        Arc::new(WayIn(self.door.clone()))
    }
}

struct WayIn(Door);

#[async_trait]
impl Inlet for WayIn {
    async fn take(&self, source: &str, body: &Value) -> Result<bool, Failure> {
        match self.0.take_found(source, body).await {
            Ok(answer) => Ok(!answer.duplicate),
            Err(error @ NotBooked::Never(_)) => Err(Failure::discard(error)),
            Err(error @ NotBooked::NotNow(_)) => Err(Failure::retry(error)),
        }
    }
}
