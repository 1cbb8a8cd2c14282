//! What operators do to jobs, and what they may not.

use std::collections::HashSet;
use std::time::Duration;

use queue::clock::later;
use queue::ledger::{Beat, Enqueued, LedgerError};
use schemas::{JobState, Outcome};
use tests::ledgers::{LEASE, TestLedger, ada, completed, discarded};

use super::{deploy, keyed};

on_every_engine![
    a_waiting_job_is_cancelled_at_once_and_a_running_one_through_its_heartbeat,
    a_cancelled_job_is_not_put_off_by_an_attempt_that_ended_before_it_was_told,
    a_retry_keeps_the_job_and_forgets_its_failures,
    what_is_started_by_hand_says_by_whom_and_why,
    verbs_on_the_wrong_state_are_conflicts,
];

async fn a_waiting_job_is_cancelled_at_once_and_a_running_one_through_its_heartbeat(t: TestLedger) {
    let ids = t.enqueue(&[t.job(), t.job()]).await;
    let running = t.claim_one().await.id;
    let (state, _) = t.ledger.cancel(ids[1], &ada(), t.now()).await.unwrap();
    assert_eq!((state, t.state(ids[1]).await), (JobState::Cancelled, JobState::Cancelled));
    let (state, _) = t.ledger.cancel(ids[0], &ada(), t.now()).await.unwrap();
    assert_eq!(state, JobState::Running);
    let beats = t.ledger.heartbeat(&[running], later(t.now(), LEASE), t.now()).await.unwrap();
    assert_eq!(beats, [Beat::Cancel("cancelled by ada: it must".into())]);
    t.clock.advance(LEASE * 2);
    assert_eq!(t.rescue().await, [(ids[0], JobState::Cancelled)], "a cancelled job is not run again");
    let audit = t.ledger.audit(10).await.unwrap();
    assert_eq!(audit.len(), 2);
    assert!(audit.iter().all(|line| line.actor == "ada" && line.verb == "cancel" && line.reason == "it must"));
}

async fn a_cancelled_job_is_not_put_off_by_an_attempt_that_ended_before_it_was_told(t: TestLedger) {
    let at = later(t.now(), Duration::from_secs(10));
    for outcome in [
        Outcome::Retry { at, error: "no luck".into() },
        Outcome::Snoozed { at, reason: "not yet".into() },
        Outcome::Released,
    ] {
        let id = t.enqueue(&[t.job()]).await[0];
        let attempt = t.claim_one().await.id;
        t.ledger.cancel(id, &ada(), t.now()).await.unwrap();
        let (recorded, bells) = t.finish_ringing(attempt, outcome).await;
        assert!(recorded && bells.is_empty());
        let view = t.view(id).await;
        assert_eq!((view.state, view.reason.as_deref()), (JobState::Cancelled, Some("cancelled by ada: it must")));
    }
    let done = t.enqueue(&[t.job()]).await[0];
    let attempt = t.claim_one().await.id;
    t.ledger.cancel(done, &ada(), t.now()).await.unwrap();
    t.finish(attempt, completed(None)).await;
    assert_eq!(t.state(done).await, JobState::Completed, "what was done is done");
}

async fn a_retry_keeps_the_job_and_forgets_its_failures(t: TestLedger) {
    let id = t.enqueue(&[t.job()]).await[0];
    let first = t.claim_one().await.id;
    t.finish(first, Outcome::Retry { at: t.now(), error: "once".into() }).await;
    t.promote().await;
    let second = t.claim_one().await.id;
    t.finish(second, discarded("twice")).await;
    let bells = t.ledger.retry(id, &ada(), t.now()).await.unwrap();
    assert!(!bells.is_empty());
    let third = t.claim_one().await;
    assert_eq!((third.id.job, third.id.number, third.failures), (id, 3, 0));
    let attempts = t.view(id).await.attempts;
    let outcomes: Vec<&str> = attempts.iter().filter_map(|attempt| attempt.outcome.as_deref()).collect();
    assert_eq!(outcomes, ["failed", "discarded"]);
    assert_eq!(attempts.len(), 3);
}

async fn what_is_started_by_hand_says_by_whom_and_why(t: TestLedger) {
    let (job, run) = (keyed(&t, "a"), deploy(&t));
    assert_eq!(t.ledger.start_job(&job, &ada(), t.now()).await.unwrap().0, Enqueued::New(job.id));
    let (again, _) = t.ledger.start_job(&keyed(&t, "a"), &ada(), t.now()).await.unwrap();
    assert_eq!(again, Enqueued::Existing(job.id));
    assert_eq!(t.ledger.start_run(&run, &ada(), t.now()).await.unwrap().0, Enqueued::New(run.id));
    assert_eq!(t.claim(10).await.len(), 2);
    let audit = t.ledger.audit(10).await.unwrap();
    let subjects: HashSet<String> = audit.iter().map(|line| line.subject.clone()).collect();
    assert_eq!(subjects, [run.id.to_string(), job.id.to_string()].into(), "what started nothing is not in the audit");
    assert!(audit.iter().all(|line| line.actor == "ada" && line.verb == "start" && line.reason == "it must"));
}

async fn verbs_on_the_wrong_state_are_conflicts(t: TestLedger) {
    let id = t.enqueue(&[t.job()]).await[0];
    assert!(matches!(t.ledger.retry(id, &ada(), t.now()).await, Err(LedgerError::Conflict(_))));
    t.complete_next(None).await;
    assert!(matches!(t.ledger.retry(id, &ada(), t.now()).await, Err(LedgerError::Conflict(_))));
    assert!(matches!(t.ledger.cancel(id, &ada(), t.now()).await, Err(LedgerError::Conflict(_))));
    let nobody = t.job().id;
    assert!(matches!(t.ledger.retry(nobody, &ada(), t.now()).await, Err(LedgerError::NotFound("job"))));
    assert!(matches!(t.ledger.cancel(nobody, &ada(), t.now()).await, Err(LedgerError::NotFound("job"))));
    assert!(t.ledger.audit(10).await.unwrap().is_empty(), "what was not done is not in the audit");
}
