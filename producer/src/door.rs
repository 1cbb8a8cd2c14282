//! The public door, as the command line holds it.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::Utc;
use prometheus_client::registry::Registry;
use queue::Queue;
use queue::ledger::StoredBody;
use schemas::{Event, Timestamp, TraceContext};
use secrets::Resolver;
use tokio::time::Instant;

use crate::absence::{self, Absence};
use crate::body::Room;
use crate::metrics::Metrics;
use crate::patience::Patience;
use crate::routes::{Making, Matched, Routes, Startable};
use crate::silence::Heard;
use crate::sources::Sources;
use crate::spool::Spool;

/// What a door is made of.
pub struct DoorConfig {
    /// Where deliveries are booked.
    pub queue: Queue,
    /// Who may deliver.
    pub sources: Sources,
    /// What their events make.
    pub routes: Routes,
    /// What routes can start.
    pub startable: Startable,
    /// Resolves the sources' secrets, at each delivery.
    pub resolver: Arc<Resolver>,
    /// Of the configuration that all this is from; stored with each event.
    pub config_digest: String,
    /// Where deliveries of senders that never send again wait while the ledger is away.
    pub spool: Spool,
}

/// The public door: takes deliveries in. Cheap to clone.
#[derive(Clone)]
pub struct Door(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: DoorConfig,
    /// For bodies that are here and not yet answered for.
    pub(crate) room: Room,
    pub(crate) absence: Absence,
    pub(crate) patience: BTreeMap<String, Patience>,
    pub(crate) metrics: Metrics,
    pub(crate) heard: Heard,
    /// Tells the wall clock's time: the only place that needs it is a signature.
    pub(crate) wall_clock: fn() -> Timestamp,
}

impl Door {
    /// A door that is open.
    pub fn new(config: DoorConfig) -> Self {
        Self::with_wall_clock(config, Utc::now)
    }

    pub(crate) fn with_wall_clock(config: DoorConfig, wall_clock: fn() -> Timestamp) -> Self {
        let now = Instant::now();
        let patience = config.sources.iter().map(|source| (source.name().to_owned(), Patience::new(now))).collect();
        let heard = Heard::nothing_of(&config.sources);
        Self(Arc::new(Inner {
            config,
            room: Room::new(),
            absence: Absence::default(),
            patience,
            metrics: Metrics::default(),
            heard,
            wall_clock,
        }))
    }

    /// Whether a delivery could be signed for now: while the ledger answers, or the spool has room and some source would
    /// use it.
    pub async fn can_accept(&self) -> bool {
        let config = &self.0.config;
        if absence::is_there(&config.queue).await {
            return true;
        }
        let spools = config.sources.iter().any(|source| !source.kind().sends_again());
        spools && config.spool.can_accept().await
    }

    /// Makes what it counts known under its names.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.0.metrics.register(registry);
    }

    /// How many deliveries wait in the spool, for metrics.
    pub fn spooled(&self) -> u64 {
        self.0.config.spool.waiting()
    }

    /// What today's routes make of an event that is booked already, for the release of a held one.
    pub fn work_of(&self, event: &Event, body: &StoredBody, trace: &TraceContext) -> Matched {
        let Inner { config, .. } = &*self.0;
        let making = Making { now: config.queue.clock().now(), trace };
        let raw = || {
            let bytes = body.bytes().map_err(|error| error.to_string())?;
            self.raw(&event.source, &body.content_type, &bytes)
        };
        config.routes.matching(event, raw, &config.startable, making)
    }

    /// The sender's own body as a value, for the routes that read it.
    pub(crate) fn raw(&self, source: &str, content_type: &str, body: &[u8]) -> Result<serde_json::Value, String> {
        let source = self.0.config.sources.get(source);
        let source = source.ok_or("its source is no longer configured")?;
        let json = source.kind().json(content_type, body).map_err(|error| error.to_string())?;
        serde_json::from_str(&json).map_err(|error| error.to_string())
    }
}
