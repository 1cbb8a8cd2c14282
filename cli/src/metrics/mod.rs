//! `/metrics`, in the text format of `OpenMetrics`: what the process counts, and what the ledger holds.
//!
//! What the ledger holds is asked for when somebody scrapes, and not again for a while: any number of scrapers cost it
//! no more than one, and a process that nobody scrapes costs it nothing.

mod backups;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use producer::{Door, Scheduler};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use queue::Queue;
use schemas::api::QueueView;
use schemas::{Catalog, JobState, Timestamp};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::warn;
use worker::World;
use worker::ledger_copies::CopyMetrics;

use self::backups::Backups;
use crate::config::Config;
use crate::talk::Talk;

/// What the ledger holds is asked for at most so often.
const ASK_EVERY: Duration = Duration::from_secs(15);

/// A ledger that takes longer to answer is away.
const PATIENCE: Duration = Duration::from_secs(5);

/// The format that is answered.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The states in which jobs wait or run.
const STATES: [JobState; 5] =
    [JobState::Pending, JobState::Scheduled, JobState::Available, JobState::Running, JobState::Retryable];

/// What is scraped. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    queue: Queue,
    door: Option<Door>,
    copies: Option<CopyMetrics>,
    talk: Option<Talk>,
    /// All queues that this configuration's jobs wait in.
    queues: BTreeSet<String>,
    held: Held,
    asked: Mutex<Option<Instant>>,
    /// Of a process that works: it knows the stores.
    backups: Option<Backups>,
}

/// The parts of a process that count something.
#[derive(Default)]
pub(crate) struct Parts<'a> {
    pub(crate) worker: Option<&'a worker::Metrics>,
    pub(crate) door: Option<&'a Door>,
    pub(crate) scheduler: Option<&'a Scheduler>,
    pub(crate) talk: Option<&'a Talk>,
    pub(crate) copies: Option<&'a CopyMetrics>,
    /// Where backups lie, and the stores' names.
    pub(crate) stores: Option<(Arc<World>, Vec<String>)>,
}

/// What the ledger and the spool hold now.
#[derive(Default)]
struct Held {
    ledger_up: Gauge,
    broker_up: Gauge,
    jobs: Family<JobsOf, Gauge>,
    oldest: Family<Waiting, Gauge<f64, AtomicU64>>,
    spooled: Gauge,
    programs_up: Gauge,
    unannounced: Gauge<f64, AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobsOf {
    queue: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Waiting {
    queue: String,
}

impl Metrics {
    /// The metrics of a process that has this queue, these parts, and jobs of this catalog.
    pub(crate) fn new(queue: Queue, mut parts: Parts<'_>, catalog: &Catalog) -> Self {
        let mut registry = Registry::with_prefix("nightporter");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The program", build);
        queue.register_metrics(&mut registry);
        if let Some(worker) = parts.worker {
            worker.register(&mut registry);
        }
        if let Some(door) = parts.door {
            door.register_metrics(&mut registry);
        }
        if let Some(copies) = parts.copies {
            copies.register(&mut registry);
        }
        if let Some(scheduler) = parts.scheduler {
            scheduler.register_metrics(&mut registry);
        }
        if let Some(talk) = parts.talk {
            talk.register_metrics(&mut registry);
        }
        let backups = parts.stores.take().map(|(world, stores)| Backups::new(world, stores));
        if let Some(backups) = &backups {
            backups.register(&mut registry);
        }
        let held = Held::default();
        held.register(&mut registry, &parts);
        let queues = catalog.kinds().map(|kind| kind.queue.to_owned()).collect();
        let (door, talk, copies) = (parts.door.cloned(), parts.talk.cloned(), parts.copies.cloned());
        let asked = Mutex::default();
        Self(Arc::new(Inner { registry, queue, door, copies, talk, queues, held, asked, backups }))
    }

    /// `/metrics`.
    pub(crate) fn router(self) -> Router {
        Router::new().route("/metrics", get(scrape)).with_state(self)
    }

    /// Asks what is held, unless that was asked a moment ago.
    async fn ask(&self) {
        let Inner { queue, door, copies, talk, queues, held, asked, backups, .. } = &*self.0;
        copies.iter().for_each(CopyMetrics::show);
        held.broker_up.set(i64::from(queue.broker().is_well()));
        if let Some(door) = door {
            held.spooled.set(i64::try_from(door.spooled()).unwrap_or(i64::MAX));
        }
        if let Some(talk) = talk {
            held.programs_up.set(i64::from(talk.programs.is_well()));
        }
        if let Some(backups) = backups {
            backups.show(queue.clock().now());
        }
        let mut asked = asked.lock().await;
        if asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return;
        }
        match timeout(PATIENCE, queue.ledger().queues()).await {
            Ok(Ok(found)) => held.show(queues, &found, queue.clock().now()),
            Ok(Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, "the ledger does not say what it holds");
                held.hide();
            }
            Err(_) => held.hide(),
        }
        if talk.as_ref().is_some_and(|talk| talk.announcer.is_some())
            && let Ok(Ok(oldest)) = timeout(PATIENCE, queue.ledger().oldest_unannounced()).await
        {
            held.unannounced.set(oldest.map_or(0.0, |oldest| waited(oldest, queue.clock().now())));
        }
        *asked = Some(Instant::now());
    }
}

impl Held {
    fn register(&self, registry: &mut Registry, parts: &Parts<'_>) {
        registry.register("ledger_up", "Whether the ledger answers", self.ledger_up.clone());
        let help = "Whether the broker is connected and takes bells";
        registry.register("broker_up", help, self.broker_up.clone());
        registry.register("jobs", "Jobs that have not ended, by queue and state", self.jobs.clone());
        let help = "How long the oldest available job of a queue has waited";
        registry.register_with_unit("oldest_available_job", help, Unit::Seconds, self.oldest.clone());
        if parts.door.is_some() {
            let help = "Deliveries that wait in the spool for the ledger";
            registry.register("deliveries_in_spool", help, self.spooled.clone());
        }
        let Some(talk) = parts.talk else { return };
        let help = "Whether the server is connected by which other programs are met";
        registry.register("programs_up", help, self.programs_up.clone());
        if talk.announcer.is_some() {
            let help = "How long the oldest announcement has waited that is not published";
            registry.register_with_unit("oldest_announcement", help, Unit::Seconds, self.unannounced.clone());
        }
    }

    /// Shows every state of each queue, those of empty ones too: an alarm needs something to look at.
    fn show(&self, queues: &BTreeSet<String>, found: &[QueueView], now: Timestamp) {
        self.hide();
        self.ledger_up.set(1);
        let found: BTreeMap<&str, &QueueView> = found.iter().map(|view| (view.queue.as_str(), view)).collect();
        for queue in queues.iter().map(String::as_str).chain(found.keys().copied()) {
            let view = found.get(queue);
            for state in STATES {
                let count = view.and_then(|view| view.jobs.get(state.as_str())).copied().unwrap_or(0);
                let labels = JobsOf { queue: queue.to_owned(), state: state.as_str() };
                self.jobs.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            let since = view.and_then(|view| view.oldest_available);
            let waited = since.map_or(0.0, |since| waited(since, now));
            self.oldest.get_or_create(&Waiting { queue: queue.to_owned() }).set(waited);
        }
    }

    /// Numbers that are not known now are not shown: old ones would look like news.
    fn hide(&self) {
        self.ledger_up.set(0);
        self.jobs.clear();
        self.oldest.clear();
    }
}

fn waited(since: Timestamp, now: Timestamp) -> f64 {
    (now - since).to_std().unwrap_or_default().as_secs_f64()
}

impl Parts<'_> {
    /// The stores of a process that works.
    pub(crate) fn with_stores(mut self, config: &Config, world: Option<Arc<World>>) -> Self {
        self.stores = world.map(|world| (world, config.world.stores.keys().cloned().collect()));
        self
    }
}

async fn scrape(State(metrics): State<Metrics>) -> Response {
    metrics.ask().await;
    let mut text = String::new();
    match encode(&mut text, &metrics.0.registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (axum::http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
