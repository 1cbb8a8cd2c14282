//! A worker at its queue over a ledger in a file, whose clock is moved by hand.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use queue::bell::Bells;
use queue::ledger::JobFilter;
use queue::{LedgerClock, Queue, QueueConfig};
use schemas::api::JobView;
use schemas::{Catalog, JobId, JobState, TraceContext};
use secrets::Resolver;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use sqlx::Connection;
use tempfile::TempDir;
use tests::receiver::Receiver;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use worker::{Worker, WorkerConfig, World, WorldConfig};

use super::{SECRET, config};

/// Only a test that fails waits so long.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// A worker at its queue, and a receiver for its messages.
pub(super) struct House {
    pub(super) queue: Queue,
    pub(super) catalog: Catalog,
    pub(super) receiver: Receiver,
    _working: AbortOnDropHandle<()>,
    folder: TempDir,
}

impl House {
    /// A house with the channels `ops`, of the given kind, and `oncall`, a signed webhook, told about discarded jobs.
    pub(super) async fn with(ops: impl Fn(&str) -> Value) -> Self {
        let receiver = Receiver::start().await;
        let channels = channels(ops(&receiver.url), &receiver.url);
        Self::of(channels, receiver).await
    }

    /// A house with these channels, of which `oncall` is told about discarded jobs.
    pub(super) async fn of(channels: WorldConfig, receiver: Receiver) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let queue = open(folder.path()).await;
        let working = AbortOnDropHandle::new(tokio::spawn(work(queue.clone(), channels.clone())));
        Self { queue, catalog: catalog(&channels), receiver, _working: working, folder }
    }

    pub(super) async fn enqueue(&self, kind: &str, args: Value) -> JobId {
        self.queue.clock().advance(Duration::from_millis(1)); // so that ids rise
        let job = self.catalog.job(kind, &args, self.queue.clock().now()).unwrap();
        self.queue.enqueue(job).await.unwrap().id()
    }

    pub(super) async fn notify_ops(&self) -> JobId {
        self.enqueue("notify", json!({"channel": "ops", "text": "hello"})).await
    }

    /// Lets time pass, and makes available what is due then.
    pub(super) async fn pass(&self, time: Duration) {
        self.queue.clock().advance(time);
        let bells = self.queue.ledger().promote(500, self.queue.clock().now()).await.unwrap();
        self.queue.ring(bells);
    }

    /// What the n-th request said, as people read it.
    pub(super) fn said(&self, index: usize) -> String {
        self.receiver.requests()[index].body["text"].as_str().unwrap_or_default().to_owned()
    }

    pub(super) async fn jobs(&self) -> Vec<JobView> {
        self.queue.ledger().jobs(&JobFilter { limit: 10_000, ..JobFilter::default() }).await.unwrap()
    }

    /// The job, once it is in that state.
    pub(super) async fn once(&self, job: JobId, state: JobState) -> JobView {
        once(&self.queue, job, state).await
    }

    async fn tables(&self) -> sqlx::SqliteConnection {
        let url = format!("sqlite:{}", self.folder.path().join("ledger.db").display());
        sqlx::SqliteConnection::connect(&url).await.unwrap()
    }

    /// Makes a step look as if the process had died before it was finished.
    pub(super) async fn open_step(&self, job: JobId, name: &str) {
        let sql = "update step set finished_at = null, result = null where job_id = ? and name = ?";
        let done = sqlx::query(sql).bind(job.0).bind(name).execute(&mut self.tables().await).await.unwrap();
        assert_eq!(done.rows_affected(), 1);
    }

    /// Runs a job that has completed again, from its start, as it would be after a kill: by the same id.
    pub(super) async fn once_more(&self, job: &JobView) -> JobView {
        let mut ledger = self.tables().await;
        for sql in [
            "insert into job (id, queue, kind, state, priority, run_at, attempt, failures, crashes, created_at)
             select id, queue, kind, 2, priority, 0, attempt, failures, crashes, created_at from history where id = ?",
            "delete from history where id = ?",
        ] {
            sqlx::query(sql).bind(job.id.0).execute(&mut ledger).await.unwrap();
        }
        let mut bells = Bells::default();
        bells.add(&job.queue, job.id, &TraceContext::default());
        self.queue.ring(bells);
        self.once(job.id, JobState::Completed).await
    }

    /// Stores a job that is discarded by its first attempt.
    pub(super) async fn hopeless(&self, steps: &str) -> JobId {
        let mut job = self.catalog.job("noop", &json!({}), self.queue.clock().now()).unwrap();
        job.args = to_raw_value(&json!({"steps": steps})).unwrap();
        self.queue.enqueue(job).await.unwrap().id()
    }

    /// Waits until all jobs are in states in which they stay by themselves, and gives them.
    pub(super) async fn at_rest(&self) -> Vec<JobView> {
        let rests = |job: &JobView| !matches!(job.state, JobState::Available | JobState::Running | JobState::Pending);
        let look = async {
            loop {
                let jobs = self.jobs().await;
                if jobs.iter().all(rests) {
                    return jobs;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE * 5, look).await;
        waited.unwrap_or_else(|_| panic!("something never came to rest"))
    }
}

pub(super) fn channels(ops: Value, receiver: &str) -> WorldConfig {
    let oncall = json!({"webhook": {"url": format!("{receiver}/oncall"), "secret": SECRET}});
    let channels = [("ops".to_owned(), config(ops)), ("oncall".to_owned(), config(oncall))];
    WorldConfig { channels: channels.into(), ..WorldConfig::default() }
}

pub(super) fn catalog(world: &WorldConfig) -> Catalog {
    worker::jobs::registry().catalog(world.names())
}

pub(super) async fn open(folder: &Path) -> Queue {
    let url = format!("sqlite:{}", folder.join("ledger.db").display());
    let queue = Queue::open(&QueueConfig::new(url, "in-process")).await.unwrap();
    let clock = LedgerClock::by_hand(queue.clock().now());
    Queue::with_parts(Arc::clone(queue.ledger()), Arc::clone(queue.broker()), clock)
}

pub(super) async fn work(queue: Queue, channels: WorldConfig) {
    let registry = Arc::new(worker::jobs::registry());
    let notice = Some(worker::notice::on_discard("oncall", catalog(&channels)));
    let resolution = Some(worker::notice::on_completion("oncall", catalog(&channels)));
    let world = Arc::new(World::new(channels, Arc::new(Resolver::default()), worker::world::http_client()));
    let config = WorkerConfig { notice, resolution, ..WorkerConfig::default() };
    Worker::new(queue, registry, world, config).run(CancellationToken::new()).await;
}

/// The job, once it is in that state.
pub(super) async fn once(queue: &Queue, job: JobId, state: JobState) -> JobView {
    let mut found = None;
    let look = async {
        loop {
            found = queue.ledger().job(job).await.unwrap();
            match &found {
                Some(job) if job.state == state => return,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, look).await;
    assert!(waited.is_ok(), "the job never was {}: {found:#?}", state.as_str());
    found.unwrap()
}
