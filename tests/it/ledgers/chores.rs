//! What there is for the upkeep to do, by one question.

use std::num::NonZeroU32;
use std::time::Duration;

use queue::clock::later;
use queue::ledger::{Chores, Pausable};
use schemas::{ApprovalPolicy, JobState, Limit, NewJob, Outcome, Role};
use tests::ledgers::{LEASE, TestLedger, ada};

on_every_engine![
    where_nothing_waits_there_is_nothing_to_do_but_to_know_the_time,
    the_first_of_those_who_wait_for_their_time_is_told_of,
    a_lease_that_ran_out_leaves_an_orphan_until_it_is_rescued,
    who_waits_for_room_is_told_of,
    who_waits_for_the_end_of_a_pause_is_told_of,
    who_waited_too_long_for_consent_is_told_of_once,
];

async fn chores(t: &TestLedger) -> Chores {
    t.ledger.chores(t.now()).await.unwrap()
}

async fn where_nothing_waits_there_is_nothing_to_do_but_to_know_the_time(t: TestLedger) {
    t.enqueue(&[t.job(), t.job()]).await;
    t.complete_next(None).await;
    t.claim_one().await;
    let before = t.ledger.time().await.unwrap();
    let Chores { time, next_due, has_orphans, has_waiting } = chores(&t).await;
    assert!((before..=t.ledger.time().await.unwrap()).contains(&time));
    assert_eq!((next_due, has_orphans, has_waiting), (None, false, false));
}

async fn the_first_of_those_who_wait_for_their_time_is_told_of(t: TestLedger) {
    t.enqueue(&[t.job()]).await;
    let attempt = t.claim_one().await.id;
    let [soon, late] = [10, 60].map(|seconds| later(t.now(), Duration::from_secs(seconds)));
    t.enqueue(&[NewJob { run_at: Some(late), ..t.job() }]).await;
    assert_eq!(chores(&t).await.next_due, Some(late));
    assert!(t.finish(attempt, Outcome::Retry { at: soon, error: "no luck".into() }).await);
    assert_eq!(chores(&t).await.next_due, Some(soon));
    t.clock.advance(Duration::from_secs(30));
    assert_eq!(chores(&t).await.next_due, Some(soon), "it was due");
    assert_eq!(t.promote().await, 1);
    assert_eq!(chores(&t).await.next_due, Some(late));
}

async fn a_lease_that_ran_out_leaves_an_orphan_until_it_is_rescued(t: TestLedger) {
    t.enqueue(&[t.job()]).await;
    t.claim_one().await;
    t.clock.advance(LEASE);
    assert!(!chores(&t).await.has_orphans);
    t.clock.advance(Duration::from_secs(1));
    assert!(chores(&t).await.has_orphans);
    t.rescue().await;
    assert!(!chores(&t).await.has_orphans);
}

async fn who_waits_for_room_is_told_of(t: TestLedger) {
    let limited = || NewJob { limits: vec![Limit::one("database:main")], ..t.job() };
    t.enqueue(&[limited()]).await;
    assert!(!chores(&t).await.has_waiting);
    t.enqueue(&[limited()]).await;
    assert!(chores(&t).await.has_waiting);
    t.complete_next(None).await;
    assert!(!chores(&t).await.has_waiting);
}

async fn who_waits_for_the_end_of_a_pause_is_told_of(t: TestLedger) {
    let noop = Pausable::Kind("noop".into());
    t.ledger.pause(&noop, &ada(), t.now()).await.unwrap();
    assert!(!chores(&t).await.has_waiting);
    let job = t.enqueue(&[t.job()]).await[0];
    assert!(chores(&t).await.has_waiting);
    t.ledger.resume(&noop, &ada(), t.now()).await.unwrap();
    t.ledger.review(100, t.now()).await.unwrap();
    assert_eq!((t.state(job).await, chores(&t).await.has_waiting), (JobState::Available, false));
}

async fn who_waited_too_long_for_consent_is_told_of_once(t: TestLedger) {
    let policy =
        ApprovalPolicy { count: NonZeroU32::MIN, role: Role::Operator, within: Duration::from_hours(1), own: false };
    let asking = || NewJob { approval: Some(policy.clone()), ..t.job() };
    let jobs = t.enqueue(&[asking(), asking()]).await;
    t.ledger.approve(jobs[0], Role::Operator, &ada(), t.now()).await.unwrap();
    assert!(!chores(&t).await.has_waiting);
    t.clock.advance(Duration::from_hours(1));
    assert!(chores(&t).await.has_waiting);
    t.ledger.review(100, t.now()).await.unwrap();
    assert_eq!((t.state(jobs[1]).await, chores(&t).await.has_waiting), (JobState::Cancelled, false));
}
