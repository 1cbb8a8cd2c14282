//! A whole embedded porter in this process: a queue on a real SQLite ledger, upkeep, and a worker.

use std::sync::Arc;
use std::time::Duration;

use queue::ledger::{self, JobFilter};
use queue::{Queue, QueueConfig};
use schemas::{Catalog, JobId, JobState, NewJob, Problem};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::{Registry, Worker, WorkerConfig, World, WorldConfig};

use crate::faulty::FaultyLedger;

/// Longer than anything here takes: when it passes, the test has failed.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The worker's lease: short, so that heartbeats and fences come soon.
pub const LEASE: Duration = Duration::from_millis(600);

/// A running porter.
pub struct Porter {
    /// Its queue.
    pub queue: Queue,
    /// The ledger below the queue, which can be made to fail.
    pub ledger: Arc<FaultyLedger>,
    catalog: Catalog,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _folder: TempDir,
}

impl Porter {
    /// Starts a porter that knows the given kinds, in an empty world.
    pub async fn start(registry: Registry) -> Self {
        Self::start_with(registry, WorkerConfig { lease: LEASE, ..WorkerConfig::default() }).await
    }

    /// Starts a porter whose worker is configured so, in an empty world.
    pub async fn start_with(registry: Registry, config: WorkerConfig) -> Self {
        Self::start_in(WorldConfig::default(), registry, config).await
    }

    /// Starts a porter in a world.
    pub async fn start_in(world: WorldConfig, registry: Registry, config: WorkerConfig) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
        let below = ledger::open(&url, config.notice.clone()).await.expect("the ledger opens");
        let ledger = FaultyLedger::before(below);
        let broker = queue::broker::open(&QueueConfig::new(url, "in-process").broker).await.expect("a broker");
        let now = queue::ledger::Upkeep::time(&*ledger).await.expect("the time");
        let queue = Queue::with_parts(ledger.clone(), broker, queue::LedgerClock::sampled(now));
        let registry = Arc::new(registry);
        let http = worker::world::http_client();
        let names = world.names();
        let world = Arc::new(World::new(world, Arc::default(), http));
        let stop = CancellationToken::new();
        let worker = Worker::new(queue.clone(), Arc::clone(&registry), world, config);
        let keeper = queue.clone();
        let (work, upkeep) = (stop.clone(), stop.clone());
        let tasks = vec![
            tokio::spawn(async move { worker.run(work).await }),
            tokio::spawn(async move { keeper.keep_up(upkeep).await }),
        ];
        Self { queue, ledger, catalog: registry.catalog(names), stop, tasks, _folder: folder }
    }

    /// A job, checked, not stored.
    pub fn job(&self, kind: &str, args: &Value) -> Result<NewJob, Problem> {
        self.catalog.job(kind, args, self.queue.clock().now())
    }

    /// Stores a job.
    pub async fn enqueue(&self, kind: &str, args: Value) -> JobId {
        let job = self.job(kind, &args).expect("a good job");
        self.queue.enqueue(job).await.expect("enqueued").id()
    }

    /// Waits until a job is in a state.
    pub async fn wait(&self, job: JobId, state: JobState) -> schemas::api::JobView {
        eventually(&format!("job {job} is {}", state.as_str()), async || {
            let view = self.queue.ledger().job(job).await.expect("read").expect("the job exists");
            (view.state == state).then_some(view)
        })
        .await
    }

    /// The jobs of a kind.
    pub async fn jobs(&self, kind: &str) -> Vec<schemas::api::JobView> {
        let filter = JobFilter { kind: Some(kind.into()), limit: 100, ..JobFilter::default() };
        self.queue.ledger().jobs(&filter).await.expect("read")
    }

    /// Stops the worker and waits until it has.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            task.await.expect("it ends without a panic");
        }
    }
}

/// Looks until there is something, for as long as [`PATIENCE`]; ten times as long in the long mode, where more is to be done.
///
/// # Panics
///
/// When there is nothing by then.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let patience = if crate::is_long() { PATIENCE * 10 } else { PATIENCE };
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
