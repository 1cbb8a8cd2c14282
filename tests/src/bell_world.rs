//! A producer and a worker with a broker between them; effects and bells are counted.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use crate::porter::eventually;
use crate::proxy::Proxy;
use async_trait::async_trait;
use futures_util::future::join_all;
use queue::broker::{self, Broker, BrokerError, Heard, Listener};
use queue::ledger;
use queue::retry::RetryPolicy;
use queue::{Bell, LedgerClock, Queue, QueueConfig};
use schemars::JsonSchema;
use schemas::NewJob;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use worker::{Context, Failure, Handler, Output, Registry, Worker, WorkerConfig, WorldConfig};

/// The queue of these jobs, as the broker calls it.
pub const BROKER_QUEUE: &str = "nightporter.faults";

/// So many attempts run at once.
const PERMITS: usize = 4;

/// A producer and a worker, with a ledger of their own.
pub struct World {
    id: Uuid,
    effects: Arc<Effects>,
    /// What enqueues; not the worker's.
    producer: Queue,
    bells: Arc<AtomicUsize>,
    deaf: Arc<AtomicBool>,
    acknowledged: AtomicU64,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl World {
    /// Starts both, on a ledger of their own and this broker.
    pub async fn start(broker: &str) -> Self {
        let database = crate::postgres::fresh_database().await;
        let producer = Queue::open(&QueueConfig::new(&database, broker)).await.unwrap();
        let bells = Arc::new(AtomicUsize::new(0));
        let deaf = Arc::new(AtomicBool::new(false));
        let broker = broker::open(broker).await.unwrap();
        let counting = Counting { broker, bells: Arc::clone(&bells), deaf: Arc::clone(&deaf) };
        let ledger = ledger::open(&database, None).await.unwrap();
        let now = ledger.time().await.unwrap();
        let queue = Queue::with_parts(ledger, Arc::new(counting), LedgerClock::sampled(now));
        let (id, effects) = (Uuid::new_v4(), Arc::new(Effects::new()));
        WORLDS.lock().unwrap().insert(id, Arc::clone(&effects));

        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let permits = [("faults".to_owned(), PERMITS)].into();
        let config = WorkerConfig { permits, poll: Duration::from_secs(1), ..WorkerConfig::default() };
        let world = worker::World::new(WorldConfig::default(), Arc::default(), worker::world::http_client());
        let registry = Arc::new(Registry::default().with::<Count>());
        let worker = Worker::new(queue.clone(), registry, Arc::new(world), config);
        tasks.spawn(worker.run(stop.clone()));
        tasks.spawn({
            let stop = stop.clone();
            async move {
                queue.keep_up(stop).await;
                queue.close(Duration::from_secs(1)).await;
            }
        });
        let world = Self { id, effects, producer, bells, deaf, acknowledged: AtomicU64::new(0), stop, tasks };
        world.hears_bells().await;
        world
    }

    /// From now on the broker has forgotten the worker's consumer, and has not said so.
    pub fn forgets_the_consumer(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// Enqueues jobs, all of which the ledger acknowledges.
    pub async fn enqueue(&self, jobs: usize) {
        let jobs = (0..jobs).map(|_| self.job(false)).collect::<Vec<_>>();
        for done in join_all(jobs.into_iter().map(|job| self.producer.enqueue(job))).await {
            done.unwrap();
        }
    }

    fn job(&self, meets: bool) -> NewJob {
        let number = self.acknowledged.fetch_add(1, Ordering::SeqCst);
        let args = json!({"world": self.id, "number": number, "meets": meets}).to_string();
        NewJob {
            queue: Count::QUEUE.into(),
            ..crate::ledgers::new_job(Count::KIND, &args, self.producer.clock().now())
        }
    }

    /// Waits until every job that was acknowledged has had its effect, and checks that none has had it twice.
    pub async fn settled(&self) {
        let all = self.acknowledged.load(Ordering::SeqCst);
        let missing = || {
            let counts = self.effects.counts.lock().unwrap();
            (0..all).filter(|number| !counts.contains_key(number)).count()
        };
        eventually("all jobs have had their effect", async || (missing() == 0).then_some(())).await;
        let counts = self.effects.counts.lock().unwrap();
        let twice: Vec<_> = counts.iter().filter(|(_, effects)| **effects != 1).collect();
        assert!(twice.is_empty(), "had their effect more than once: {twice:?}");
    }

    /// The fault is over: bells are heard again, and everything is done. Says how long it took.
    pub async fn recovered(&self, fault: &str, jobs: usize) {
        let start = Instant::now();
        self.hears_bells().await;
        let heard = start.elapsed();
        self.enqueue(jobs).await;
        self.settled().await;
        let all = self.acknowledged.load(Ordering::SeqCst);
        println!("{fault}: by bells again after {heard:.1?}, {all} jobs done, none lost, none twice");
    }

    /// Enqueues jobs, one after the other, until the worker hears of one by a bell.
    async fn hears_bells(&self) {
        let before = self.bells.load(Ordering::SeqCst);
        eventually("the worker hears bells", async || {
            self.enqueue(1).await;
            for _ in 0..20 {
                if self.bells.load(Ordering::SeqCst) > before {
                    return Some(());
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            None
        })
        .await;
    }

    /// All permits are there, and no more; then everything ends in good order.
    pub async fn ends(self, what: &str) {
        let jobs: Vec<_> = (0..PERMITS).map(|_| self.job(true)).collect();
        for job in jobs {
            self.producer.enqueue(job).await.unwrap();
        }
        self.settled().await;
        assert_eq!(self.effects.most_at_once.load(Ordering::SeqCst), PERMITS, "as many at once as there are permits");
        self.stop.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(crate::porter::PATIENCE, self.tasks.wait()).await;
        assert!(ended.is_ok(), "the worker does not end");
        self.producer.close(Duration::from_secs(1)).await;
        println!("{what}: {} jobs in all, each done once", self.acknowledged.load(Ordering::SeqCst));
    }
}

/// What has happened in each world.
static WORLDS: LazyLock<Mutex<HashMap<Uuid, Arc<Effects>>>> = LazyLock::new(Mutex::default);

struct Effects {
    counts: Mutex<BTreeMap<u64, u32>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    meeting: Barrier,
}

impl Effects {
    fn new() -> Self {
        Self {
            counts: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            meeting: Barrier::new(PERMITS),
        }
    }
}

/// Counts its effect.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Count {
    world: Uuid,
    number: u64,
    /// Waits until as many run at once as there are permits.
    meets: bool,
}

#[async_trait]
impl Handler for Count {
    const KIND: &'static str = "count";
    const SUMMARY: &'static str = "counts its effect";
    const QUEUE: &'static str = "faults";
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_mins(10);

    fn output() -> Value {
        Value::Null
    }

    async fn run(&self, _: &Context) -> Result<Output, Failure> {
        let effects = WORLDS.lock().unwrap().get(&self.world).cloned();
        let effects = effects.ok_or_else(|| Failure::discard(anyhow::anyhow!("a job of another test's world")))?;
        let now = effects.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        effects.most_at_once.fetch_max(now, Ordering::SeqCst);
        if self.meets {
            effects.meeting.wait().await;
        }
        *effects.counts.lock().unwrap().entry(self.number).or_default() += 1;
        effects.at_once.fetch_sub(1, Ordering::SeqCst);
        Ok(Value::Null)
    }
}

/// A broker that counts the bells which are heard, and can forget a consumer.
struct Counting {
    broker: Arc<dyn Broker>,
    bells: Arc<AtomicUsize>,
    deaf: Arc<AtomicBool>,
}

#[async_trait]
impl Broker for Counting {
    async fn ring(&self, bells: &[Bell]) -> Result<(), BrokerError> {
        self.broker.ring(bells).await
    }

    async fn listen(&self, queue: &str) -> Result<Box<dyn Listener>, BrokerError> {
        let (bells, deaf) = (Arc::clone(&self.bells), Arc::clone(&self.deaf));
        Ok(Box::new(CountingEar { ear: self.broker.listen(queue).await?, bells, deaf }))
    }

    fn is_well(&self) -> bool {
        self.broker.is_well()
    }

    async fn close(&self) {
        self.broker.close().await;
    }
}

struct CountingEar {
    ear: Box<dyn Listener>,
    bells: Arc<AtomicUsize>,
    /// Until it listens anew.
    deaf: Arc<AtomicBool>,
}

#[async_trait]
impl Listener for CountingEar {
    async fn heard(&mut self) -> Heard {
        let heard = loop {
            let heard = self.ear.heard().await;
            if !self.deaf.load(Ordering::SeqCst) {
                break heard;
            }
            heard.take(); // It is as if it had never come.
        };
        self.bells.fetch_add(1, Ordering::SeqCst);
        heard
    }

    fn hears(&self) -> bool {
        self.ear.hears()
    }

    async fn pause(&mut self) {
        self.deaf.store(false, Ordering::SeqCst);
        self.ear.pause().await;
    }
}

/// The socket of a broker.
pub fn address_of(url: &str) -> SocketAddr {
    let url = url::Url::parse(url).unwrap();
    format!("{}:{}", url.host_str().unwrap(), url.port().unwrap()).parse().unwrap()
}

/// The address of a broker by way of a proxy, with more settings.
pub fn through(proxy: &Proxy, url: &str, settings: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_port(Some(proxy.address().port())).unwrap();
    format!("{url}{settings}")
}
