//! The upkeep: what it asks the ledger, and what it does when the ledger was away.

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use queue::clock::earlier;
use queue::ledger::Claim;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{ApprovalPolicy, JobState, NewJob, Role, WorkerId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tests::porter::{LEASE, Porter, eventually};
use worker::{Context, Failure, Handler, Output, Registry, WorkerConfig, jobs};

/// Waits until it was asked so many times more what there is to do.
async fn rounds(porter: &Porter, more: usize) {
    let before = porter.ledger.calls("chores");
    eventually("it was asked", async || (porter.ledger.calls("chores") >= before + more).then_some(())).await;
}

#[tokio::test]
async fn with_nothing_to_do_it_asks_one_question_in_each_round() {
    let mut porter = Porter::start(jobs::registry()).await;
    let told_the_time = porter.ledger.calls("time");
    rounds(&porter, 2).await;
    let asked = ["time", "promote", "rescue", "review"].map(|method| porter.ledger.calls(method));
    assert_eq!(asked, [told_the_time, 0, 0, 0]);
    porter.stop().await;
}

#[tokio::test]
async fn after_an_outage_nobody_is_taken_for_crashed_before_a_round_has_passed() {
    let mut porter = Porter::start_with(Registry::default(), WorkerConfig::default()).await;
    porter.ledger.break_methods(&["chores"]);
    rounds(&porter, 1).await;
    // A worker of another process had it, and could not beat.
    let now = porter.queue.clock().now();
    let job = tests::ledgers::new_job("elsewhere", &json!({}).to_string(), now);
    let id = porter.queue.enqueue(job).await.unwrap().id();
    let kinds = vec!["elsewhere".into()];
    let claim = Claim { queue: "default".into(), kinds, limit: 1, worker: WorkerId::at(now), lease: LEASE };
    assert_eq!(porter.ledger.inner().claim(&claim, now).await.unwrap().len(), 1);
    let is_out = async || porter.ledger.inner().chores(porter.queue.clock().now()).await.unwrap().has_orphans;
    eventually("its lease has run out", async || is_out().await.then_some(())).await;
    rounds(&porter, 1).await;
    let asked = porter.ledger.calls("chores");
    porter.ledger.mend();
    porter.wait(id, JobState::Available).await;
    let rounds = porter.ledger.calls("chores") - asked;
    assert!(rounds >= 2, "it was rescued in round {rounds} after the outage");
    porter.stop().await;
}

#[tokio::test]
async fn who_was_put_off_is_due_when_its_time_comes_and_not_at_the_next_round() {
    let mut porter = Porter::start(Registry::default().with::<Sleepy>()).await;
    let id = porter.enqueue("sleepy", json!({})).await;
    // A round is five seconds: in forty of them patience ends.
    assert_eq!(porter.wait(id, JobState::Completed).await.attempts.len(), 41);
    porter.stop().await;
}

#[tokio::test]
async fn whom_nobody_consents_to_in_time_is_cancelled() {
    let mut porter = Porter::start(jobs::registry()).await;
    let asks = ApprovalPolicy { count: NonZeroU32::MIN, role: Role::Operator, within: LEASE, own: false };
    let job = NewJob { approval: Some(asks), ..porter.job("noop", &json!({})).unwrap() };
    let id = porter.queue.enqueue(job).await.unwrap().id();
    porter.wait(id, JobState::Cancelled).await;
    porter.stop().await;
}

#[tokio::test]
async fn a_clock_that_went_wrong_is_put_right() {
    let mut porter = Porter::start(jobs::registry()).await;
    let clock = porter.queue.clock();
    clock.correct(earlier(clock.now(), Duration::from_hours(1)), Duration::ZERO);
    let stands_still = clock.now();
    eventually("it goes on", async || (clock.now() > stands_still).then_some(())).await;
    porter.stop().await;
}

/// Sleeps forty times.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Sleepy {}

#[async_trait]
impl Handler for Sleepy {
    const KIND: &'static str = "sleepy";
    const SUMMARY: &'static str = "is put off forty times";
    const RETRY: RetryPolicy = RetryPolicy::PROMPT;
    const TIME_LIMIT: Duration = Duration::from_mins(1);

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        if cx.job().attempt.number > 40 {
            return Ok(Value::Null);
        }
        // For longer than until the look that follows a promotion: it must be told of each time.
        tokio::time::sleep(Duration::from_millis(30)).await;
        Err(Failure::Snooze { wait: Duration::from_millis(20), reason: "not yet".to_owned() })
    }
}
