//! A worker process: a consumer for each queue, one heart, one executor.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use queue::{NoticeOfDiscard, Queue};
use schemas::WorkerId;
use tokio::sync::{RwLock, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use crate::consumer::Consumer;
use crate::executor::Executor;
use crate::heart::Heart;
use crate::metrics::Metrics;
use crate::notice::Resolution;
use crate::registry::Registry;
use crate::world::World;

/// How a worker works.
#[derive(Clone)]
pub struct WorkerConfig {
    /// How many attempts of a queue run at once, by the queue's name.
    pub permits: BTreeMap<String, usize>,
    /// Of a queue that is not named there.
    pub other_permits: usize,
    /// How often a queue is looked at without a bell, on average, while bells are heard.
    pub poll: Duration,
    /// How long a lease lasts; see [`queue::QueueConfig::lease`].
    pub lease: Duration,
    /// How long running attempts may go on after the worker was told to stop; then they are given back.
    pub grace: Duration,
    /// Who is told about discarded jobs.
    pub notice: Option<NoticeOfDiscard>,
    /// What it counts.
    pub metrics: Metrics,
    /// Who is told that one is done after all.
    pub resolution: Option<Resolution>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            permits: BTreeMap::new(),
            other_permits: 16,
            poll: Duration::from_secs(15),
            lease: queue::QueueConfig::LEASE,
            grace: Duration::from_secs(20),
            notice: None,
            metrics: Metrics::default(),
            resolution: None,
        }
    }
}

/// Runs jobs.
pub struct Worker {
    queue: Queue,
    registry: Arc<Registry>,
    world: Arc<World>,
    config: WorkerConfig,
}

impl Worker {
    /// A worker for all kinds of the registry.
    pub fn new(queue: Queue, registry: Arc<Registry>, world: Arc<World>, config: WorkerConfig) -> Self {
        Self { queue, registry, world, config }
    }

    /// Works until told to stop; then lets running attempts end, for the grace, and gives back what still runs: no
    /// attempt is charged for it.
    pub async fn run(self, stop: CancellationToken) {
        let id = WorkerId::at(self.queue.clock().now());
        let heart = Heart::new(self.queue.clone(), self.config.lease);
        let executor = Arc::new(Executor {
            queue: self.queue.clone(),
            registry: Arc::clone(&self.registry),
            world: Arc::clone(&self.world),
            heart: Arc::clone(&heart),
            notice: self.config.notice.clone(),
            metrics: self.config.metrics.clone(),
            resolution: self.config.resolution.clone(),
            give_up: CancellationToken::new(),
            company: RwLock::default(),
        });
        let attempts = TaskTracker::new();
        let consumers: Vec<Consumer> = self
            .registry
            .queues()
            .into_iter()
            .map(|(queue, kinds)| Consumer {
                executor: Arc::clone(&executor),
                queue: queue.to_owned(),
                kinds,
                permits: Arc::new(Semaphore::new(self.permits_of(queue))),
                worker: id,
                lease: self.config.lease,
                poll: self.config.poll,
                attempts: attempts.clone(),
            })
            .collect();
        info!(worker.id = %id, "working");
        let mut beating = tokio::spawn(async move { heart.run().await });
        tokio::select! {
            _ = join_all(consumers.iter().map(|consumer| consumer.run(stop.clone()))) => {}
            // Without a heart every attempt loses its lease, and more would be claimed for the same fate.
            ended = &mut beating => return error!(?ended, "the worker's heart has stopped"),
        }
        attempts.close();
        if tokio::time::timeout(self.config.grace, attempts.wait()).await.is_err() {
            info!(attempts = attempts.len(), "giving back what still runs");
            executor.give_up.cancel();
            attempts.wait().await;
        }
        beating.abort();
    }

    fn permits_of(&self, queue: &str) -> usize {
        self.config.permits.get(queue).copied().unwrap_or(self.config.other_permits).max(1)
    }
}
