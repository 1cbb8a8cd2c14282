//! Attempts: who claims a job, what keeps it, and how it ends.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use queue::clock::later;
use queue::ledger::{Beat, Ended, LedgerError};
use schemas::{JobState, Outcome, Priority, StepState};
use serde_json::json;
use serde_json::value::RawValue;
use tests::ledgers::{LEASE, TestLedger, ada, completed, discarded, new_job};

on_every_engine![
    a_stored_job_is_claimed_once_and_completes,
    claims_go_by_priority_then_time_then_id,
    unknown_kinds_and_other_queues_are_left_alone,
    a_job_for_later_waits_for_the_promoter,
    only_what_is_due_is_promoted,
    a_failure_is_counted_and_waits,
    a_snooze_and_an_interruption_cost_no_failure,
    a_stale_attempt_changes_nothing,
    a_renewed_lease_is_not_rescued,
    an_orphan_that_cannot_be_rescued_does_not_keep_back_its_neighbours,
    a_dead_process_costs_no_failure_and_at_the_third_crash_the_job,
    progress_forgets_crashes,
    steps_are_fresh_then_unknown_then_finished,
    ends_of_a_batch_are_recorded_or_stale_one_by_one,
    a_stale_end_in_one_batch_with_the_current_one_changes_nothing,
    claims_at_the_same_time_never_share_a_job,
    what_becomes_available_is_claimed_at_once_however_old_it_is,
    discarding_stores_its_notice_in_the_same_transaction,
];

async fn a_stored_job_is_claimed_once_and_completes(t: TestLedger) {
    let id = t.enqueue(&[t.job()]).await[0];
    assert_eq!(t.state(id).await, JobState::Available);
    let claimed = t.claim(10).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!((claimed[0].id.job, claimed[0].id.number), (id, 1));
    assert_eq!(t.state(id).await, JobState::Running);
    assert!(t.claim(10).await.is_empty());
    assert!(t.finish(claimed[0].id, completed(Some(json!({"n": 1})))).await);
    let view = t.view(id).await;
    assert_eq!((view.state, view.output), (JobState::Completed, Some(json!({"n": 1}))));
    assert_eq!(view.attempts.len(), 1);
    assert_eq!(view.attempts[0].outcome.as_deref(), Some("completed"));
}

async fn claims_go_by_priority_then_time_then_id(t: TestLedger) {
    let (first, second, mut urgent, mut low) = (t.job(), t.job(), t.job(), t.job());
    urgent.priority = Priority::Urgent;
    low.priority = Priority::Low;
    let expected = [urgent.id, first.id, second.id, low.id];
    t.enqueue(&[low, second, first, urgent]).await;
    let mut claimed = Vec::new();
    for _ in 0..4 {
        claimed.push(t.claim_one().await.id.job);
    }
    assert_eq!(claimed, expected);
}

async fn unknown_kinds_and_other_queues_are_left_alone(t: TestLedger) {
    let (mut elsewhere, now) = (t.job(), t.now());
    elsewhere.queue = "elsewhere".into();
    let ids = t.enqueue(&[new_job("of_the_future", "{}", now), elsewhere]).await;
    assert!(t.claim(10).await.is_empty());
    for id in ids {
        assert_eq!(t.state(id).await, JobState::Available);
    }
}

async fn a_job_for_later_waits_for_the_promoter(t: TestLedger) {
    let mut job = t.job();
    job.run_at = Some(later(t.now(), Duration::from_mins(1)));
    let id = t.enqueue(&[job]).await[0];
    assert_eq!(t.state(id).await, JobState::Scheduled);
    assert_eq!(t.promote().await, 0);
    t.clock.advance(Duration::from_mins(1));
    assert_eq!(t.promote().await, 1);
    assert_eq!(t.claim_one().await.id.job, id);
}

async fn only_what_is_due_is_promoted(t: TestLedger) {
    let due_in = |minutes| schemas::NewJob { run_at: Some(later(t.now(), Duration::from_mins(minutes))), ..t.job() };
    let ids = t.enqueue(&[due_in(1), due_in(2)]).await;
    t.clock.advance(Duration::from_mins(1) + Duration::from_secs(1));
    assert_eq!(t.promote().await, 1);
    assert_eq!((t.state(ids[0]).await, t.state(ids[1]).await), (JobState::Available, JobState::Scheduled));
}

async fn a_failure_is_counted_and_waits(t: TestLedger) {
    let id = t.enqueue(&[t.job()]).await[0];
    let attempt = t.claim_one().await.id;
    let at = later(t.now(), Duration::from_secs(10));
    assert!(t.finish(attempt, Outcome::Retry { at, error: "no luck".into() }).await);
    let view = t.view(id).await;
    assert_eq!((view.state, view.failures, view.run_at), (JobState::Retryable, 1, Some(at)));
    assert_eq!(view.reason.as_deref(), Some("no luck"));
    assert!(t.claim(10).await.is_empty());
    t.clock.advance(Duration::from_secs(10));
    assert_eq!(t.promote().await, 1);
    let again = t.claim_one().await;
    assert_eq!((again.id.number, again.failures), (2, 1));
    assert_eq!(t.view(id).await.attempts[0].error.as_deref(), Some("no luck"));
}

async fn a_snooze_and_an_interruption_cost_no_failure(t: TestLedger) {
    let id = t.enqueue(&[t.job()]).await[0];
    let attempt = t.claim_one().await.id;
    let at = later(t.now(), Duration::from_secs(5));
    assert!(t.finish(attempt, Outcome::Snoozed { at, reason: "not yet".into() }).await);
    assert_eq!(t.state(id).await, JobState::Scheduled);
    t.clock.advance(Duration::from_secs(5));
    t.promote().await;
    let attempt = t.claim_one().await.id;
    let (recorded, bells) = t.finish_ringing(attempt, Outcome::Released).await;
    assert!(recorded && bells.iter().any(|bell| bell.queue == "default" && bell.count == 1));
    let again = t.claim_one().await;
    assert_eq!((again.id.number, again.failures, again.crashes), (3, 0, 0));
}

async fn a_stale_attempt_changes_nothing(t: TestLedger) {
    let id = t.enqueue(&[t.job()]).await[0];
    let stale = t.claim_one().await.id;
    t.clock.advance(LEASE + Duration::from_secs(1));
    assert_eq!(t.rescue().await, [(id, JobState::Available)]);
    let until = later(t.now(), LEASE);
    assert_eq!(t.ledger.heartbeat(&[stale], until, t.now()).await.unwrap(), [Beat::Lost]);
    assert!(matches!(t.ledger.start_step(stale, "one", t.now()).await, Err(LedgerError::Stale)));
    assert!(!t.finish(stale, completed(None)).await);
    let current = t.claim_one().await.id;
    assert_eq!(current.number, 2);
    assert!(!t.finish(stale, discarded("too late")).await);
    assert!(matches!(t.ledger.finish_step(stale, "one", None, t.now()).await, Err(LedgerError::Stale)));
    assert_eq!(t.state(id).await, JobState::Running);
    assert!(t.finish(current, completed(None)).await);
    assert!(!t.finish(current, completed(None)).await, "an attempt ends once");
}

async fn a_renewed_lease_is_not_rescued(t: TestLedger) {
    t.enqueue(&[t.job(), t.job()]).await;
    let (renewed, left) = (t.claim_one().await.id, t.claim_one().await.id);
    t.clock.advance(LEASE / 2);
    let beats = t.ledger.heartbeat(&[renewed], later(t.now(), LEASE), t.now()).await.unwrap();
    assert_eq!(beats, [Beat::Alive]);
    t.clock.advance(LEASE / 2 + Duration::from_secs(1));
    assert_eq!(t.rescue().await, [(left.job, JobState::Available)]);
}

async fn an_orphan_that_cannot_be_rescued_does_not_keep_back_its_neighbours(t: TestLedger) {
    let ids = t.enqueue(&[t.job(), t.job(), t.job()]).await;
    t.claim(3).await;
    // Its attempt is on record already, which no code of ours does.
    t.raw(
        "insert into attempt (job_id, number, started_at, ended_at, outcome)
         select id, attempt, 0, 0, 'crashed' from job order by id limit 1",
    )
    .await;
    t.clock.advance(LEASE + Duration::from_secs(1));
    assert_eq!(t.rescue().await, [(ids[1], JobState::Available), (ids[2], JobState::Available)]);
    t.raw("delete from attempt where ended_at = 0").await;
    assert_eq!(t.rescue().await, [(ids[0], JobState::Available)]);
}

async fn a_dead_process_costs_no_failure_and_at_the_third_crash_the_job(t: TestLedger) {
    let id = t.enqueue(&[t.job()]).await[0];
    for crashes in 0..2 {
        let claimed = t.claim_one().await;
        assert_eq!((claimed.crashes, claimed.failures), (crashes, 0));
        t.clock.advance(LEASE + Duration::from_secs(1));
        assert_eq!(t.rescue().await, [(id, JobState::Available)]);
    }
    assert_eq!(t.claim_one().await.crashes, 2);
    t.clock.advance(LEASE + Duration::from_secs(1));
    assert_eq!(t.rescue().await, [(id, JobState::Discarded)]);
    let view = t.view(id).await;
    assert_eq!((view.crashes, view.failures), (3, 0));
    assert!(view.reason.unwrap().starts_with("crashed"));
    let notice = t.claim_one().await;
    assert_eq!(notice.kind, "notify");
    assert!(notice.args.get().contains(&id.to_string()));
}

async fn progress_forgets_crashes(t: TestLedger) {
    let id = t.enqueue(&[t.job()]).await[0];
    for number in 0..6 {
        let attempt = t.claim_one().await.id;
        if number % 2 == 1 {
            let step = format!("step {number}");
            t.ledger.start_step(attempt, &step, t.now()).await.unwrap();
            t.ledger.finish_step(attempt, &step, None, t.now()).await.unwrap();
        }
        t.clock.advance(LEASE + Duration::from_secs(1));
        assert_eq!(t.rescue().await, [(id, JobState::Available)]);
        assert_eq!(t.view(id).await.crashes, i32::from(number % 2 != 1));
    }
}

async fn steps_are_fresh_then_unknown_then_finished(t: TestLedger) {
    let id = t.enqueue(&[t.job()]).await[0];
    let first = t.claim_one().await.id;
    assert!(matches!(t.ledger.start_step(first, "send", t.now()).await.unwrap(), StepState::Fresh));
    t.clock.advance(LEASE + Duration::from_secs(1));
    t.rescue().await;
    let second = t.claim_one().await.id;
    assert!(matches!(t.ledger.start_step(second, "send", t.now()).await.unwrap(), StepState::Unknown));
    let result = RawValue::from_string(r#"{"sent":true}"#.into()).unwrap();
    t.ledger.finish_step(second, "send", Some(&result), t.now()).await.unwrap();
    let StepState::Finished(Some(known)) = t.ledger.start_step(second, "send", t.now()).await.unwrap() else {
        panic!("a finished step is finished");
    };
    assert_eq!(known.get(), r#"{"sent":true}"#);
    let steps = t.view(id).await.steps;
    assert_eq!((steps.len(), steps[0].attempt, steps[0].finished_at.is_some()), (1, 2, true));
}

async fn ends_of_a_batch_are_recorded_or_stale_one_by_one(t: TestLedger) {
    t.enqueue(&[t.job(), t.job(), t.job()]).await;
    let jobs = t.claim(3).await;
    t.finish(jobs[1].id, completed(None)).await;
    let batch: Vec<Ended> = jobs.iter().map(|job| Ended { attempt: job.id, outcome: completed(None) }).collect();
    assert_eq!(t.ledger.finish(&batch, t.now()).await.unwrap().recorded, [true, false, true]);
}

async fn a_stale_end_in_one_batch_with_the_current_one_changes_nothing(t: TestLedger) {
    let id = t.enqueue(&[t.job()]).await[0];
    let stale = t.claim_one().await.id;
    t.clock.advance(LEASE * 2);
    t.rescue().await;
    let current = t.claim_one().await.id;
    let late = Ended { attempt: stale, outcome: Outcome::Retry { at: t.now(), error: "late".into() } };
    let batch = [late, Ended { attempt: current, outcome: completed(None) }];
    assert_eq!(t.ledger.finish(&batch, t.now()).await.unwrap().recorded, [false, true]);
    let view = t.view(id).await;
    assert_eq!((view.state, view.failures), (JobState::Completed, 0));
}

/// Claims look, find nothing, and time passes: what became available long ago is behind them.
async fn look_in_vain(t: &TestLedger) {
    assert!(t.claim(10).await.is_empty());
    t.clock.advance(Duration::from_secs(3));
    assert!(t.claim(10).await.is_empty());
}

async fn what_becomes_available_is_claimed_at_once_however_old_it_is(t: TestLedger) {
    look_in_vain(&t).await;
    let asked = schemas::NewJob { run_at: Some(t.now() - Duration::from_hours(1)), ..t.job() };
    let id = t.enqueue(&[asked]).await[0];
    let attempt = t.claim_one().await.id;
    look_in_vain(&t).await;
    assert!(t.finish(attempt, Outcome::Released).await);
    let attempt = t.claim_one().await.id;
    let at = later(t.now(), Duration::from_secs(2));
    assert!(t.finish(attempt, Outcome::Retry { at, error: "no luck".into() }).await);
    look_in_vain(&t).await;
    assert_eq!(t.promote().await, 1);
    t.claim_one().await;
    t.clock.advance(LEASE);
    look_in_vain(&t).await;
    assert_eq!(t.rescue().await, [(id, JobState::Available)]);
    let attempt = t.claim_one().await.id;
    assert!(t.finish(attempt, discarded("in vain")).await);
    look_in_vain(&t).await;
    t.ledger.retry(id, &ada(), t.now()).await.unwrap();
    assert_eq!(t.complete_next(None).await, id);
    let run = t.run(&[("first", &[], None), ("second", &["first"], None)]);
    t.ledger.start(&run, t.now()).await.unwrap();
    let attempt = t.claim_one().await.id;
    look_in_vain(&t).await;
    assert!(t.finish(attempt, completed(None)).await);
    t.claim_one().await;
}

async fn claims_at_the_same_time_never_share_a_job(t: TestLedger) {
    let jobs: Vec<_> = (0..200).map(|_| t.job()).collect();
    t.enqueue(&jobs).await;
    let t = Arc::new(t);
    let claimers = (0..8).map(|_| {
        let t = Arc::clone(&t);
        tokio::spawn(async move {
            let mut mine = Vec::new();
            loop {
                let claimed = t.claim(7).await;
                if claimed.is_empty() {
                    return mine;
                }
                mine.extend(claimed.into_iter().map(|job| job.id.job));
            }
        })
    });
    let mut all = Vec::new();
    for claimer in claimers.collect::<Vec<_>>() {
        all.extend(claimer.await.unwrap());
    }
    // A claim may come back empty while others hold their rows locked, so the last jobs are taken here.
    all.extend(t.claim(200).await.into_iter().map(|job| job.id.job));
    assert_eq!(all.len(), 200);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), 200);
}

async fn discarding_stores_its_notice_in_the_same_transaction(t: TestLedger) {
    t.enqueue(&[t.job()]).await;
    let attempt = t.claim_one().await.id;
    let notice = new_job("notify", "{}", t.now());
    let outcome = |notice| Outcome::Discarded { error: "no".into(), notice: Some(Box::new(notice)) };
    let (recorded, bells) = t.finish_ringing(attempt, outcome(notice.clone())).await;
    assert!(recorded && !bells.is_empty());
    assert_eq!(t.claim_one().await.id.job, notice.id);
    let stale = new_job("notify", "{}", t.now());
    assert!(!t.finish(attempt, outcome(stale)).await);
    assert!(t.claim(10).await.is_empty(), "a stale end tells nobody");
}
