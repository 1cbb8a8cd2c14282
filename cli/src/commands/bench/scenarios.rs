//! The scenarios, each one round.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use queue::Queue;
use queue::ledger::Enqueued;
use schemas::{JobId, TraceContext};
use secrets::Resolver;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, Span, info_span};
use worker::{Worker, WorkerConfig, World, WorldConfig};

use super::Plan;
use super::probe::{self, Jobs};
use super::report::Round;
use super::stage::Stage;
use crate::failure::{Failure, with_causes};

/// A backlog is stored in commits of so many jobs.
const BACKLOG_BATCH: usize = 250;
/// Jobs before the measured ones, so that connections, statements and the broker's queue are there.
const WARM_UP: u64 = 500;
/// At most so many jobs are picked up one by one in a round, one each so often.
const PICKUPS: u64 = 500;
const PICKUP_EVERY: Duration = Duration::from_millis(10);
/// How often it is looked whether everything is done.
const LOOK: Duration = Duration::from_millis(2);
const LAST_BELLS: Duration = Duration::from_secs(5);

/// A queue with its workers and its upkeep, as a process has it.
struct Porter {
    queue: Queue,
    stop: CancellationToken,
    parts: JoinSet<()>,
    _stopped_when_dropped: DropGuard,
}

impl Porter {
    async fn open(stage: &Stage) -> Result<Self, Failure> {
        let queue = stage.open().await?;
        let stop = CancellationToken::new();
        let mut parts = JoinSet::new();
        let (upkeep, told) = (queue.clone(), stop.clone());
        parts.spawn(async move { upkeep.keep_up(told).await });
        let guard = stop.clone().drop_guard();
        Ok(Self { queue, stop, parts, _stopped_when_dropped: guard })
    }

    fn work(&mut self, plan: &Plan) {
        let world = World::new(WorldConfig::default(), Arc::new(Resolver::new(None)), worker::world::http_client());
        let how = WorkerConfig { other_permits: plan.permits, ..WorkerConfig::default() };
        let worker = Worker::new(self.queue.clone(), Arc::new(probe::registry()), Arc::new(world), how);
        self.parts.spawn(worker.run(self.stop.clone()));
    }

    async fn close(mut self) {
        self.stop.cancel();
        while self.parts.join_next().await.is_some() {}
        self.queue.close(LAST_BELLS).await;
    }
}

/// Jobs enqueued and drained at once, in one process.
pub(super) async fn jobs(plan: &Plan, stage: &Stage) -> Result<Round, Failure> {
    let mut porter = Porter::open(stage).await?;
    porter.work(plan);
    enqueue_all(&porter.queue, plan, WARM_UP).await?;
    drained(&[&porter.queue], 0, Instant::now() + plan.limit).await?;
    stage.settle().await?;
    let before = probe::handled();
    let meter = plan.watch.start();
    let latencies = enqueue_all(&porter.queue, plan, plan.jobs).await?;
    drained(&[&porter.queue], before + latencies.len() as u64, meter.began() + plan.limit * 2).await?;
    let round = meter.end(probe::handled() - before, latencies);
    porter.close().await;
    Ok(round)
}

/// Jobs enqueued while nobody works.
pub(super) async fn enqueue(plan: &Plan, stage: &Stage) -> Result<Round, Failure> {
    let porter = Porter::open(stage).await?;
    enqueue_all(&porter.queue, plan, WARM_UP).await?;
    stage.settle().await?;
    let meter = plan.watch.start();
    let latencies = enqueue_all(&porter.queue, plan, plan.jobs).await?;
    let round = meter.end(latencies.len() as u64, latencies);
    porter.close().await;
    stage.clear().await?;
    Ok(round)
}

/// A backlog, drained by as many workers, each with a queue and connections of its own.
pub(super) async fn drain(plan: &Plan, stage: &Stage, workers: usize) -> Result<Round, Failure> {
    let mut porters = Vec::with_capacity(workers);
    for _ in 0..workers {
        porters.push(Porter::open(stage).await?);
    }
    let jobs = Jobs::new(false);
    let first = porters[0].queue.clone();
    let mut stored = 0;
    while stored < plan.jobs {
        let some: Vec<_> =
            (0..BACKLOG_BATCH).map(|_| jobs.next(first.clock().now(), TraceContext::default())).collect();
        first.ledger().enqueue(&some, first.clock().now()).await.map_err(|error| failed(&error))?;
        stored += some.len() as u64;
    }
    stage.settle().await?;
    let before = probe::handled();
    let meter = plan.watch.start();
    porters.iter_mut().for_each(|porter| porter.work(plan));
    let queues: Vec<&Queue> = porters.iter().map(|porter| &porter.queue).collect();
    let whole = drained(&queues, before + stored, meter.began() + plan.limit).await?;
    let round = meter.end(probe::handled() - before, Vec::new());
    for porter in porters {
        porter.close().await;
    }
    if !whole {
        stage.clear().await?;
    }
    Ok(round)
}

/// One job each 10 ms on an idle system: from its commit, as the caller sees it, to its handler.
pub(super) async fn pickup(plan: &Plan, stage: &Stage) -> Result<Round, Failure> {
    let mut porter = Porter::open(stage).await?;
    porter.work(plan);
    enqueue_all(&porter.queue, plan, WARM_UP).await?;
    drained(&[&porter.queue], 0, Instant::now() + plan.limit).await?;
    stage.settle().await?;
    let jobs = Jobs::new(true);
    let (before, wanted) = (probe::handled(), PICKUPS.min(plan.jobs));
    let mut committed = HashMap::new();
    let meter = plan.watch.start();
    let mut due = meter.began();
    for _ in 0..wanted {
        due += PICKUP_EVERY;
        sleep_until(due).await;
        if meter.began().elapsed() > plan.limit {
            break;
        }
        let (job, _) = enqueue_one(&porter.queue, &jobs).await?;
        committed.insert(job, Instant::now());
    }
    drained(&[&porter.queue], before + committed.len() as u64, Instant::now() + plan.limit).await?;
    // The handler may begin before the caller, on its own way back from the commit, has looked at its watch.
    let moments = probe::take_moments().into_iter();
    let pickups = moments.filter_map(|(job, at)| Some(at.saturating_duration_since(*committed.get(&job)?))).collect();
    let round = meter.end(probe::handled() - before, pickups).at_a_given_rate();
    porter.close().await;
    Ok(round)
}

/// Has the callers enqueue jobs, each one job at a time, until all are stored or the time is up: how long each call took.
async fn enqueue_all(queue: &Queue, plan: &Plan, count: u64) -> Result<Vec<Duration>, Failure> {
    let left = Arc::new(AtomicU64::new(count));
    let until = Instant::now() + plan.limit;
    let mut callers = JoinSet::new();
    for _ in 0..plan.callers {
        let (queue, left) = (queue.clone(), Arc::clone(&left));
        callers.spawn(async move {
            let jobs = Jobs::new(false);
            let mut took = Vec::new();
            let take_one = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            while Instant::now() < until && take_one().is_ok() {
                took.push(enqueue_one(&queue, &jobs).await?.1);
            }
            Ok::<_, Failure>(took)
        });
    }
    let mut all = Vec::new();
    while let Some(caller) = callers.join_next().await {
        all.extend(caller.map_err(|error| Failure::failed(error.to_string()))??);
    }
    Ok(all)
}

/// Enqueues a job as a request does: in a span, whose position is stored with the job.
async fn enqueue_one(queue: &Queue, jobs: &Jobs) -> Result<(JobId, Duration), Failure> {
    let span = info_span!(parent: None, "enqueue", otel.kind = "producer");
    async {
        let began = Instant::now();
        let job = jobs.next(queue.clock().now(), queue::trace::of(&Span::current()));
        let enqueued: Enqueued<JobId> = queue.enqueue(job).await.map_err(|error| failed(&error))?;
        Ok((enqueued.id(), began.elapsed()))
    }
    .instrument(span)
    .await
}

/// Waits until as many jobs have been handled and the ends of all are in the ledger; false when the time is up before.
async fn drained(queues: &[&Queue], handled: u64, until: Instant) -> Result<bool, Failure> {
    loop {
        if probe::handled() >= handled {
            let left = queues[0].ledger().queues().await.map_err(|error| failed(&error))?;
            if left.is_empty() {
                return Ok(true);
            }
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        sleep(LOOK).await;
    }
}

/// What the ledger said.
pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::failed(format!("the ledger did not do it: {}", with_causes(error)))
}
