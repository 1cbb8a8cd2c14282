//! The worker's contract: what happens to jobs between the claim and the recorded outcome.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use queue::ledger::{Claim, Ended, Operator};
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{AttemptId, JobState, Outcome, WorkerId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tests::ledgers::new_job;
use tests::porter::{LEASE, Porter, eventually};
use tokio::sync::Semaphore;
use worker::{Context, Failure, Handler, Output, Registry, WorkerConfig, jobs};

/// No waits between attempts, and two failures end it.
const AT_ONCE: RetryPolicy =
    RetryPolicy { first: Duration::ZERO, longest: Duration::ZERO, max_failures: 2, max_age: Duration::from_hours(1) };

#[tokio::test]
async fn a_job_goes_from_enqueue_to_completed_with_its_steps() {
    let mut porter = Porter::start(jobs::registry()).await;
    let id = porter.enqueue("noop", json!({"message": "hello", "steps": 3})).await;
    let view = porter.wait(id, JobState::Completed).await;
    assert_eq!(view.output, Some(json!({"message": "hello"})));
    assert_eq!(view.steps.len(), 3);
    assert!(view.steps.iter().all(|step| step.finished_at.is_some()));
    porter.stop().await;
}

#[tokio::test]
async fn a_failed_job_is_tried_again_and_its_failures_are_on_record() {
    let mut porter = Porter::start(Registry::default().with::<Flaky>()).await;
    let id = porter.enqueue("flaky", json!({"failures": 1, "how": "retry"})).await;
    let view = porter.wait(id, JobState::Completed).await;
    let outcomes: Vec<_> = view.attempts.iter().map(|attempt| attempt.outcome.clone().unwrap()).collect();
    assert_eq!((outcomes, view.failures), (vec!["failed".to_owned(), "completed".to_owned()], 1));
    porter.stop().await;
}

#[tokio::test]
async fn too_many_failures_a_discard_a_panic_and_a_time_limit_end_as_said() {
    let notice: queue::NoticeOfDiscard = Arc::new(|_, kind, error, now| {
        (kind != "noop").then(|| new_job("noop", &json!({"message": error}).to_string(), now))
    });
    let config = WorkerConfig { lease: LEASE, notice: Some(notice), ..WorkerConfig::default() };
    let mut porter = Porter::start_with(jobs::registry().with::<Flaky>(), config).await;
    for (how, attempts, reason) in [
        ("retry", 2, "as asked (given up after 2 failures)"),
        ("discard", 1, "as asked"),
        ("panic", 2, "the handler panicked: as asked (given up after 2 failures)"),
        ("stall", 2, "it ran longer than its time limit of 200ms (given up after 2 failures)"),
    ] {
        let id = porter.enqueue("flaky", json!({"failures": 9, "how": how})).await;
        let view = porter.wait(id, JobState::Discarded).await;
        assert_eq!((view.attempts.len(), view.reason.as_deref()), (attempts, Some(reason)));
        let told = eventually("the notice is there", async || {
            porter.jobs("noop").await.into_iter().find(|job| job.args["message"] == json!(reason))
        });
        told.await;
    }
    assert_eq!(porter.jobs("noop").await.len(), 4, "each discard is told once");
    porter.stop().await;
}

#[tokio::test]
async fn a_running_job_sees_its_cancellation() {
    let mut porter = Porter::start(Registry::default().with::<Endless>()).await;
    let id = porter.enqueue("endless", json!({})).await;
    porter.wait(id, JobState::Running).await;
    let by = Operator { actor: "ada".into(), reason: "enough".into() };
    porter.queue.cancel(id, &by).await.unwrap();
    let view = porter.wait(id, JobState::Cancelled).await;
    assert_eq!(view.reason.as_deref(), Some("cancelled by ada: enough"));
    porter.stop().await;
}

#[tokio::test]
async fn a_worker_that_stops_gives_back_what_runs_at_no_cost() {
    let config = WorkerConfig { lease: LEASE, grace: Duration::ZERO, ..WorkerConfig::default() };
    let mut porter = Porter::start_with(Registry::default().with::<Endless>(), config).await;
    let id = porter.enqueue("endless", json!({})).await;
    porter.wait(id, JobState::Running).await;
    porter.stop().await;
    let view = porter.queue.ledger().job(id).await.unwrap().unwrap();
    assert_eq!((view.state, view.failures, view.crashes), (JobState::Available, 0, 0));
    assert_eq!(view.attempts[0].outcome.as_deref(), Some("interrupted"));
}

#[tokio::test]
async fn a_backlog_that_no_bell_announces_is_worked_off_without_waiting_for_a_poll_for_each_claim() {
    let permits = [("default".to_owned(), 1)].into();
    let config = WorkerConfig { lease: LEASE, permits, ..WorkerConfig::default() };
    let mut porter = Porter::start_with(jobs::registry(), config).await;
    let backlog: Vec<_> = (0..40).map(|_| porter.job("noop", &json!({})).unwrap()).collect();
    // Straight into the ledger: its bells are lost, as with a broker that was wiped.
    porter.queue.ledger().enqueue(&backlog, porter.queue.clock().now()).await.unwrap();
    let last = porter.enqueue("noop", json!({})).await;
    porter.wait(last, JobState::Completed).await;
    porter.stop().await;
}

static ENDED: AtomicU32 = AtomicU32::new(0);

#[tokio::test]
async fn an_attempt_whose_heartbeats_fail_is_stopped_and_given_back_uncharged() {
    let mut porter = Porter::start(Registry::default().with::<Watched>()).await;
    porter.ledger.break_methods(&["rescue"]);
    let id = porter.enqueue("watched", json!({})).await;
    porter.wait(id, JobState::Running).await;
    // As when the ledger is away for longer than the lease.
    porter.ledger.break_methods(&["heartbeat", "finish", "claim"]);
    eventually("the attempt is stopped", async || (ENDED.load(Ordering::SeqCst) > 0).then_some(())).await;
    eventually("its end is tried again", async || (porter.ledger.calls("finish") > 2).then_some(())).await;
    let view = porter.queue.ledger().job(id).await.unwrap().unwrap();
    assert_eq!((view.state, view.attempts.len()), (JobState::Running, 1));
    porter.ledger.mend();
    let view = eventually("it is given back, and taken again", async || {
        let view = porter.queue.ledger().job(id).await.unwrap().unwrap();
        (view.attempts.len() == 2).then_some(view)
    })
    .await;
    assert_eq!((view.crashes, view.failures), (0, 0));
    assert_eq!(view.attempts[0].outcome.as_deref(), Some("interrupted"));
    porter.stop().await;
}

static FREED: AtomicU32 = AtomicU32::new(0);

#[tokio::test]
async fn what_another_has_rescued_is_not_given_back_by_the_one_who_lost_it() {
    let mut porter = Porter::start(Registry::default().with::<Lost>()).await;
    let id = porter.enqueue("lost", json!({})).await;
    porter.wait(id, JobState::Running).await;
    porter.ledger.break_methods(&["heartbeat", "finish", "claim"]);
    eventually("the attempt is stopped", async || (FREED.load(Ordering::SeqCst) > 0).then_some(())).await;
    let now = porter.queue.clock().now();
    porter.ledger.inner().rescue(schemas::Timestamp::MAX_UTC, 10, now).await.unwrap();
    let kinds = vec!["lost".into()];
    let claim = Claim { queue: "default".into(), kinds, limit: 1, worker: WorkerId::at(now), lease: LEASE * 1000 };
    let other = porter.ledger.inner().claim(&claim, now).await.unwrap()[0].id;
    let before = porter.ledger.calls("finish");
    porter.ledger.mend();
    eventually("it is tried", async || (porter.ledger.calls("finish") > before).then_some(())).await;
    assert!(
        porter
            .queue
            .finish(Ended { attempt: other, outcome: Outcome::Completed { output: None, notice: None } })
            .await
            .unwrap()
    );
    let view = porter.wait(id, JobState::Completed).await;
    let outcomes: Vec<_> = view.attempts.iter().map(|attempt| attempt.outcome.as_deref()).collect();
    assert_eq!(outcomes, [Some("crashed"), Some("completed")]);
    porter.stop().await;
}

#[tokio::test]
async fn an_attempt_outlives_heartbeats_that_fail_in_passing() {
    let config = WorkerConfig { lease: Duration::from_secs(3), ..WorkerConfig::default() };
    let mut porter = Porter::start_with(Registry::default().with::<Endless>(), config).await;
    let id = porter.enqueue("endless", json!({})).await;
    porter.wait(id, JobState::Running).await;
    // As after a restart of PostgreSQL: each connection of the pool fails once.
    let before = porter.ledger.calls("heartbeat");
    porter.ledger.break_methods(&["heartbeat", "rescue"]);
    eventually("heartbeats failed", async || (porter.ledger.calls("heartbeat") >= before + 3).then_some(())).await;
    porter.ledger.mend();
    porter.ledger.break_methods(&["rescue"]);
    let by = Operator { actor: "ada".into(), reason: "enough".into() };
    porter.queue.cancel(id, &by).await.unwrap();
    // By its own heartbeat: nobody else can.
    assert_eq!(porter.wait(id, JobState::Cancelled).await.attempts.len(), 1);
    porter.stop().await;
}

#[tokio::test]
async fn an_outcome_is_recorded_when_the_ledger_comes_back_within_the_lease() {
    let config = WorkerConfig { lease: Duration::from_secs(30), ..WorkerConfig::default() };
    let mut porter = Porter::start_with(jobs::registry(), config).await;
    porter.ledger.break_methods(&["finish"]);
    let id = porter.enqueue("noop", json!({})).await;
    eventually("the end was tried", async || (porter.ledger.calls("finish") > 1).then_some(())).await;
    porter.ledger.mend();
    let view = porter.wait(id, JobState::Completed).await;
    assert_eq!(view.attempts.len(), 1);
    porter.stop().await;
}

static COMPANY: AtomicU32 = AtomicU32::new(0);
static MET_OTHERS: AtomicBool = AtomicBool::new(false);
static NEIGHBOURS_MAY_END: Semaphore = Semaphore::const_new(0);

#[tokio::test]
async fn a_job_that_crashed_twice_runs_alone() {
    let mut porter = Porter::start(Registry::default().with::<Neighbour>().with::<Suspect>()).await;
    porter.ledger.break_methods(&["claim"]);
    let id = porter.enqueue("suspect", json!({})).await;
    // Another worker takes it, and dies under it twice; then it holds it until the neighbours run.
    for _ in 0..2 {
        claim_elsewhere(&porter).await;
        porter.ledger.inner().rescue(schemas::Timestamp::MAX_UTC, 10, porter.queue.clock().now()).await.unwrap();
    }
    let held = claim_elsewhere(&porter).await;
    porter.ledger.mend();
    for _ in 0..3 {
        porter.enqueue("neighbour", json!({})).await;
    }
    eventually("the neighbours run", async || (COMPANY.load(Ordering::SeqCst) == 3).then_some(())).await;
    assert!(porter.queue.finish(Ended { attempt: held, outcome: Outcome::Released }).await.unwrap());
    let view = porter.wait(id, JobState::Running).await;
    assert_eq!(view.crashes, 2);
    // It does not keep others from beginning for long.
    porter.enqueue("neighbour", json!({})).await;
    let begun = eventually("another begins", async || (COMPANY.load(Ordering::SeqCst) == 4).then_some(()));
    tokio::time::timeout(Duration::from_secs(20), begun).await.expect("another begins while it waits");
    NEIGHBOURS_MAY_END.add_permits(4);
    porter.wait(id, JobState::Completed).await;
    assert!(!MET_OTHERS.load(Ordering::SeqCst), "it did not begin in company");
    porter.stop().await;
}

/// Claims the suspect with a lease that no test outlives.
async fn claim_elsewhere(porter: &Porter) -> AttemptId {
    let now = porter.queue.clock().now();
    let claim = Claim {
        queue: "suspects".into(),
        kinds: vec!["suspect".into()],
        limit: 1,
        worker: WorkerId::at(now),
        lease: Duration::from_hours(1),
    };
    porter.ledger.inner().claim(&claim, now).await.unwrap()[0].id
}

#[tokio::test]
async fn more_jobs_than_permits_all_run_and_never_more_at_once() {
    let config = WorkerConfig { lease: LEASE, permits: [("default".into(), 3)].into(), ..WorkerConfig::default() };
    let mut porter = Porter::start_with(Registry::default().with::<Counted>(), config).await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(porter.enqueue("counted", json!({})).await);
    }
    for id in ids {
        porter.wait(id, JobState::Completed).await;
    }
    assert!((1..=3).contains(&MOST_AT_ONCE.load(Ordering::SeqCst)));
    porter.stop().await;
}

/// Fails so often, so.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Flaky {
    failures: i32,
    how: String,
}

#[async_trait]
impl Handler for Flaky {
    const KIND: &'static str = "flaky";
    const SUMMARY: &'static str = "fails as asked";
    const RETRY: RetryPolicy = AT_ONCE;
    const TIME_LIMIT: Duration = Duration::from_millis(200);

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        if cx.job().failures >= self.failures {
            return Ok(Value::Null);
        }
        match self.how.as_str() {
            "discard" => Err(Failure::discard(anyhow::anyhow!("as asked"))),
            "panic" => panic!("as asked"),
            "stall" => std::future::pending().await,
            _ => Err(Failure::retry(anyhow::anyhow!("as asked"))),
        }
    }
}

/// Runs until it is stopped from outside.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Endless {}

#[async_trait]
impl Handler for Endless {
    const KIND: &'static str = "endless";
    const SUMMARY: &'static str = "runs until it is stopped";
    const RETRY: RetryPolicy = AT_ONCE;
    const TIME_LIMIT: Duration = Duration::from_hours(1);

    async fn run(&self, _cx: &Context) -> Result<Output, Failure> {
        std::future::pending().await
    }
}

/// Says when it is dropped.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Watched {}

struct SaysWhenDropped;

impl Drop for SaysWhenDropped {
    fn drop(&mut self) {
        ENDED.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Handler for Watched {
    const KIND: &'static str = "watched";
    const SUMMARY: &'static str = "says when it is dropped";
    const RETRY: RetryPolicy = AT_ONCE;
    const TIME_LIMIT: Duration = Duration::from_hours(1);

    async fn run(&self, _cx: &Context) -> Result<Output, Failure> {
        let _says = SaysWhenDropped;
        std::future::pending().await
    }
}

/// Says in its own way when it is dropped.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Lost {}

struct Frees;

impl Drop for Frees {
    fn drop(&mut self) {
        FREED.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Handler for Lost {
    const KIND: &'static str = "lost";
    const SUMMARY: &'static str = "says when it is dropped";
    const RETRY: RetryPolicy = AT_ONCE;
    const TIME_LIMIT: Duration = Duration::from_hours(1);

    async fn run(&self, _cx: &Context) -> Result<Output, Failure> {
        let _frees = Frees;
        std::future::pending().await
    }
}

/// Runs until the test lets it end.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Neighbour {}

#[async_trait]
impl Handler for Neighbour {
    const KIND: &'static str = "neighbour";
    const SUMMARY: &'static str = "runs until the test lets it end";
    const RETRY: RetryPolicy = AT_ONCE;
    const TIME_LIMIT: Duration = Duration::from_hours(1);

    async fn run(&self, _cx: &Context) -> Result<Output, Failure> {
        COMPANY.fetch_add(1, Ordering::SeqCst);
        NEIGHBOURS_MAY_END.acquire().await.map_err(Failure::retry)?.forget();
        COMPANY.fetch_sub(1, Ordering::SeqCst);
        Ok(Value::Null)
    }
}

/// Notes whether anybody else runs.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Suspect {}

#[async_trait]
impl Handler for Suspect {
    const KIND: &'static str = "suspect";
    const SUMMARY: &'static str = "notes whether anybody else runs";
    const QUEUE: &'static str = "suspects";
    const RETRY: RetryPolicy = AT_ONCE;
    const TIME_LIMIT: Duration = Duration::from_hours(1);

    async fn run(&self, _cx: &Context) -> Result<Output, Failure> {
        MET_OTHERS.fetch_or(COMPANY.load(Ordering::SeqCst) > 0, Ordering::SeqCst);
        Ok(Value::Null)
    }
}

static AT_ONCE_NOW: AtomicU32 = AtomicU32::new(0);
static MOST_AT_ONCE: AtomicU32 = AtomicU32::new(0);

/// Counts how many run at once.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Counted {}

#[async_trait]
impl Handler for Counted {
    const KIND: &'static str = "counted";
    const SUMMARY: &'static str = "counts how many run at once";
    const RETRY: RetryPolicy = AT_ONCE;
    const TIME_LIMIT: Duration = Duration::from_mins(1);

    async fn run(&self, _cx: &Context) -> Result<Output, Failure> {
        MOST_AT_ONCE.fetch_max(AT_ONCE_NOW.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        AT_ONCE_NOW.fetch_sub(1, Ordering::SeqCst);
        Ok(Value::Null)
    }
}
