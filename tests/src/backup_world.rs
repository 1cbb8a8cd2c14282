//! A worker with an embedded ledger, for tests of what jobs do to databases and stores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use queue::ledger::{Claim, Operator, Replay};
use queue::{LedgerClock, Queue, QueueConfig};
use schemas::api::JobView;
use schemas::{Catalog, JobId, JobState, NewJob, Timestamp, WorkerId};
use secrets::vaults::Vault;
use secrets::{Resolver, SecretText};
use serde_json::Value;
use serde_json::value::to_raw_value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::databases::DatabaseConfig;
use worker::stores::StoreConfig;
use worker::world::Inlet;
use worker::{Registry, Worker, WorkerConfig, World, WorldConfig};

/// Longer than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_mins(2);

/// A worker and its queue.
pub struct BackupWorld {
    /// The queue.
    pub queue: Queue,
    /// Where the ledger lies.
    pub folder: TempDir,
    config: WorldConfig,
    vault: Option<Arc<dyn Vault>>,
    registry: Arc<Registry>,
    inlet: Option<Arc<dyn Inlet>>,
    worker: Option<(CancellationToken, JoinHandle<()>)>,
    upkeep: (CancellationToken, JoinHandle<()>),
}

impl BackupWorld {
    /// A world with the given databases and stores, by name and address, and a worker that runs.
    pub async fn with(databases: &[(&str, &str)], stores: &[(&str, &str)]) -> Self {
        Self::of(config(databases, stores)).await
    }

    /// A world of this configuration, and a worker that runs.
    pub async fn of(config: WorldConfig) -> Self {
        Self::with_clock(config, None, LedgerClock::sampled).await
    }

    /// The same, with a vault.
    pub async fn with_vault(config: WorldConfig, vault: Arc<dyn Vault>) -> Self {
        Self::with_clock(config, Some(vault), LedgerClock::sampled).await
    }

    /// The same, with a clock that stands still until [`BackupWorld::pass`].
    pub async fn with_vault_by_hand(config: WorldConfig, vault: Arc<dyn Vault>) -> Self {
        Self::with_clock(config, Some(vault), LedgerClock::by_hand).await
    }

    /// The same, with a clock that stands still until [`BackupWorld::pass`].
    pub async fn by_hand(config: WorldConfig) -> Self {
        Self::with_clock(config, None, LedgerClock::by_hand).await
    }

    async fn with_clock(
        config: WorldConfig,
        vault: Option<Arc<dyn Vault>>,
        clock: fn(Timestamp) -> LedgerClock,
    ) -> Self {
        let folder = TempDir::new().expect("a folder");
        let ledger = format!("sqlite:{}", folder.path().join("ledger.db").display());
        let queue = Queue::open(&QueueConfig::new(ledger, "in-process")).await.expect("a queue");
        let clock = clock(queue.clock().now());
        let queue = Queue::with_parts(Arc::clone(queue.ledger()), Arc::clone(queue.broker()), clock);
        let stop = CancellationToken::new();
        let (keeper, stopped) = (queue.clone(), stop.clone());
        let upkeep = (stop, tokio::spawn(async move { keeper.keep_up(stopped).await }));
        let registry = Arc::new(worker::jobs::registry());
        let mut world = Self { queue, folder, config, vault, registry, inlet: None, worker: None, upkeep };
        world.start_worker();
        world
    }

    /// Lets time pass on a clock by hand, and makes available what is due then.
    pub async fn pass(&self, time: Duration) {
        self.queue.clock().advance(time);
        let bells = self.queue.ledger().promote(100, self.queue.clock().now()).await.expect("promoted");
        self.queue.ring(bells);
    }

    /// Starts a worker; there is none.
    pub fn start_worker(&mut self) {
        let world = World::new(self.config.clone(), Arc::new(Resolver::new(self.vault.clone())), http());
        let world = match &self.inlet {
            Some(inlet) => world.with_inlet(Arc::clone(inlet)),
            None => world,
        };
        // A worker that is stopped here gives its jobs back at once, like one that is killed.
        let config = WorkerConfig { grace: Duration::ZERO, ..WorkerConfig::default() };
        let worker = Worker::new(self.queue.clone(), Arc::clone(&self.registry), Arc::new(world), config);
        let stop = CancellationToken::new();
        self.worker = Some((stop.clone(), tokio::spawn(worker.run(stop))));
    }

    /// The same world, whose jobs have a way in for events.
    pub async fn with_inlet(mut self, inlet: Arc<dyn Inlet>) -> Self {
        self.stop_worker().await;
        self.inlet = Some(inlet);
        self.start_worker();
        self
    }

    /// Stops the worker in the middle of what it does.
    pub async fn stop_worker(&mut self) {
        if let Some((stop, running)) = self.worker.take() {
            stop.cancel();
            running.await.expect("the worker ends");
        }
    }

    /// The kinds, whose checks know this world.
    pub fn catalog(&self) -> Catalog {
        self.registry.catalog(self.config.names())
    }

    /// A job that is not stored.
    pub fn new_job(&self, kind: &str, args: &Value) -> NewJob {
        self.catalog().job(kind, args, self.queue.clock().now()).expect("a right job")
    }

    /// Stores a job.
    pub async fn enqueue(&self, kind: &str, args: &Value) -> JobId {
        self.queue.enqueue(self.new_job(kind, args)).await.expect("it is stored").id()
    }

    /// Stores a job as an operator does.
    pub async fn start_job(&self, kind: &str, args: &Value, by: &Operator) -> JobId {
        let catalog = self.registry.catalog(self.config.names());
        let job = catalog.job(kind, args, self.queue.clock().now()).expect("a right job");
        self.queue.start_job(&job, by).await.expect("it is stored").id()
    }

    /// Waits until a job is in one of these states.
    pub async fn wait_for(&self, job: JobId, states: &[JobState]) -> JobView {
        let look = async {
            loop {
                let view = self.queue.ledger().job(job).await.expect("the ledger answers").expect("the job is there");
                if states.contains(&view.state) {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let Ok(view) = tokio::time::timeout(PATIENCE, look).await else {
            panic!("not {states:?}: {:?}", self.queue.ledger().job(job).await)
        };
        view
    }

    /// Waits until the first attempt at a job has failed; why.
    pub async fn first_failure(&self, job: JobId) -> String {
        let failed = crate::porter::eventually("its first attempt failed", async || {
            let view = self.queue.ledger().job(job).await.expect("the ledger answers").expect("the job is there");
            view.attempts.into_iter().next().and_then(|attempt| attempt.error)
        });
        failed.await
    }

    /// Stores a job and waits until it is discarded; why.
    pub async fn discarded(&self, kind: &str, args: &Value) -> String {
        let job = self.enqueue(kind, args).await;
        self.wait_discarded(job).await
    }

    /// Waits until a job is discarded; why.
    pub async fn wait_discarded(&self, job: JobId) -> String {
        let view = self.wait_for(job, &[JobState::Discarded, JobState::Completed, JobState::Cancelled]).await;
        assert_eq!(view.state, JobState::Discarded, "{:?}", view.output);
        view.reason.unwrap_or_default()
    }

    /// Retries a job that ended badly, as an operator does.
    pub async fn retry(&self, job: JobId) {
        let operator = Operator { actor: "a test".into(), reason: "look again".into() };
        self.queue.retry(job, &operator).await.expect("it may be retried");
    }

    /// Does an ended job again, as an operator does; the new job.
    pub async fn replay(&self, of: JobId, by: &Operator) -> JobId {
        let view = self.queue.ledger().job(of).await.expect("the ledger answers").expect("the job is there");
        let catalog = self.registry.catalog(self.config.names());
        let mut again = catalog.job(&view.kind, &view.args, self.queue.clock().now()).expect("a right job");
        again.key = None; // It is held by the first.
        let id = again.id;
        let again = Replay::Job { of, state: view.state, attempt: view.attempt, again: Box::new(again) };
        self.queue.replay(&[again], by).await.expect("it may be replayed");
        id
    }

    /// Lets the first attempt at a job be one that died after it did this: started its steps of these names, and finished
    /// those that have a result. No worker runs meanwhile.
    pub async fn die_after(&self, kind: &str, args: &Value, steps: &[(&str, Option<Value>)]) -> JobId {
        let catalog = self.registry.catalog(self.config.names());
        let info = catalog.kind(kind).expect("a kind");
        let job = self.enqueue(kind, args).await;
        let now = self.queue.clock().now();
        let claim = Claim {
            queue: info.queue.into(),
            kinds: vec![kind.into()],
            limit: 1,
            worker: WorkerId::at(now),
            lease: Duration::from_secs(30),
        };
        let ledger = self.queue.ledger();
        let attempt = ledger.claim(&claim, now).await.expect("claimed")[0].id;
        for (name, result) in steps {
            ledger.start_step(attempt, name, now).await.expect("started");
            if let Some(result) = result {
                let result = to_raw_value(result).expect("JSON");
                ledger.finish_step(attempt, name, Some(&result), now).await.expect("finished");
            }
        }
        let rescued = ledger.rescue(Timestamp::MAX_UTC, 10, now).await.expect("rescued");
        self.queue.ring(rescued.bells);
        job
    }

    /// Stores a job and waits until it has completed; its output.
    pub async fn complete(&self, kind: &str, args: &Value) -> Value {
        let job = self.enqueue(kind, args).await;
        self.completed(job).await
    }

    /// Waits until a job has completed; its output.
    pub async fn completed(&self, job: JobId) -> Value {
        let ends = [JobState::Completed, JobState::Discarded, JobState::Cancelled, JobState::Retryable];
        let view = self.wait_for(job, &ends).await;
        assert_eq!(view.state, JobState::Completed, "{:?}", view.reason);
        view.output.unwrap_or_default()
    }

    /// Ends what runs.
    pub async fn close(mut self) {
        self.stop_worker().await;
        self.upkeep.0.cancel();
        self.upkeep.1.await.expect("the upkeep ends");
    }
}

/// The HTTP client that jobs use.
pub fn http() -> reqwest::Client {
    worker::world::http_client()
}

/// A store's configuration, with the credentials of the test servers.
pub fn store_config(url: &str) -> StoreConfig {
    let credentials = SecretText::parse(crate::s3::CREDENTIALS).expect("a text");
    StoreConfig {
        url: url.to_owned(),
        credentials: Some(credentials),
        encrypt_to: Vec::new(),
        identity: None,
        keep: None,
    }
}

/// A database's configuration.
pub fn database_config(url: &str) -> DatabaseConfig {
    let url = SecretText::parse(url).expect("a text");
    DatabaseConfig { url, environment: None, migrations: None, digests_up_to_mib: 3 }
}

fn config(databases: &[(&str, &str)], stores: &[(&str, &str)]) -> WorldConfig {
    let databases: BTreeMap<_, _> =
        databases.iter().map(|(name, url)| ((*name).to_owned(), database_config(url))).collect();
    let stores = stores.iter().map(|(name, url)| ((*name).to_owned(), store_config(url))).collect();
    WorldConfig { databases, stores, ..WorldConfig::default() }
}

/// That an output has the names that its kind promises to conditions, and no others.
///
/// # Panics
///
/// Where it has not.
pub fn has_the_names_of(kind: &str, output: &Value) {
    let catalog = worker::jobs::registry().catalog(schemas::Names::default());
    let promised = (catalog.kind(kind).expect("a kind").output)();
    let names = |value: &Value| value.as_object().map(|fields| fields.keys().cloned().collect::<BTreeSet<_>>());
    assert_eq!(names(&promised), names(output), "{output}");
}
