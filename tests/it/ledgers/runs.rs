//! Runs: what goes on, and what is skipped, as needs end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use queue::ledger::{Enqueued, LedgerError};
use schemas::{JobId, JobState, Key, NewRun, RunState};
use serde_json::json;
use tests::ledgers::{TestLedger, ada, completed, discarded};

use super::{deploy, run_state};

on_every_engine![
    a_run_goes_on_as_its_needs_end,
    a_failed_need_skips_what_needs_it,
    a_condition_that_errs_discards_its_job_and_tells,
    many_ends_of_one_run_at_once_settle_it,
    a_retry_in_a_run_lets_what_was_skipped_wait_again,
    a_retry_in_a_run_takes_the_key_of_the_run_again,
];

async fn a_run_goes_on_as_its_needs_end(t: TestLedger) {
    let run = deploy(&t);
    t.ledger.start(&run, t.now()).await.unwrap();
    let claimed = t.claim(10).await;
    assert_eq!(claimed.len(), 1, "what needs others waits");
    assert_eq!(claimed[0].run, Some(run.id));
    let (_, bells) = t.finish_ringing(claimed[0].id, completed(Some(json!({"pending": 2})))).await;
    assert_eq!(bells.iter().map(|bell| bell.count).sum::<u32>(), 1);
    assert_eq!(t.ledger.outputs(run.id).await.unwrap(), json!({"plan": {"pending": 2}}));
    for expected in ["backup", "migrate", "notify"] {
        assert_eq!(run_state(&t, run.id).await, RunState::Running);
        let id = t.complete_next(None).await;
        let names: HashMap<JobId, &str> = run.jobs.iter().map(|job| (job.job.id, job.name.as_str())).collect();
        assert_eq!(names[&id], expected);
    }
    let view = t.ledger.run(run.id).await.unwrap().unwrap();
    assert_eq!((view.state, view.finished_at.is_some()), (RunState::Completed, true));
    assert_eq!((view.actor.as_deref(), view.reason.as_deref()), (Some("ada"), Some("because")));
}

async fn a_failed_need_skips_what_needs_it(t: TestLedger) {
    let run = deploy(&t);
    t.ledger.start(&run, t.now()).await.unwrap();
    let plan = t.claim_one().await.id;
    t.finish(plan, discarded("cannot plan")).await;
    let states = t.run_states(run.id).await;
    let of = |name: &str| states.iter().find(|(known, _)| known == name).unwrap().1;
    assert_eq!([of("plan"), of("backup"), of("migrate")], [JobState::Discarded, JobState::Skipped, JobState::Skipped]);
    assert_eq!(of("notify"), JobState::Available);
    t.complete_next(None).await;
    assert_eq!(run_state(&t, run.id).await, RunState::Failed);
    let view = t.view(run.jobs[2].job.id).await;
    assert_eq!(view.reason.as_deref(), Some("`plan`, which it needs, failed"));
}

async fn a_condition_that_errs_discards_its_job_and_tells(t: TestLedger) {
    let run = t.run(&[("plan", &[], None), ("next", &["plan"], Some("jobs.plan.nothing > 0"))]);
    t.ledger.start(&run, t.now()).await.unwrap();
    t.complete_next(Some(json!({"pending": 1}))).await;
    assert_eq!(t.state(run.jobs[1].job.id).await, JobState::Discarded);
    assert_eq!(run_state(&t, run.id).await, RunState::Failed);
    assert_eq!(t.claim_one().await.kind, "notify");
}

async fn many_ends_of_one_run_at_once_settle_it(t: TestLedger) {
    let names: Vec<String> = (0..8).map(|number| format!("job{number}")).collect();
    let mut jobs: Vec<(&str, &[&str], Option<&str>)> =
        names.iter().map(|name| (name.as_str(), &[][..], None)).collect();
    let needs: Vec<&str> = names.iter().map(String::as_str).collect();
    jobs.push(("last", &needs, None));
    let run = t.run(&jobs);
    t.ledger.start(&run, t.now()).await.unwrap();
    let claimed = t.claim(10).await;
    assert_eq!(claimed.len(), 8);
    let t = Arc::new(t);
    let ends = claimed.into_iter().map(|job| {
        let t = Arc::clone(&t);
        tokio::spawn(async move { t.finish(job.id, completed(None)).await })
    });
    for end in ends.collect::<Vec<_>>() {
        assert!(end.await.unwrap());
    }
    assert_eq!(t.complete_next(None).await, run.jobs[8].job.id);
    assert_eq!(run_state(&t, run.id).await, RunState::Completed);
}

async fn a_retry_in_a_run_lets_what_was_skipped_wait_again(t: TestLedger) {
    let run = deploy(&t);
    t.ledger.start(&run, t.now()).await.unwrap();
    let plan = t.claim_one().await.id;
    t.finish(plan, discarded("cannot plan")).await;
    t.complete_next(None).await; // notify
    t.ledger.retry(plan.job, &ada(), t.now()).await.unwrap();
    assert_eq!(run_state(&t, run.id).await, RunState::Running);
    t.complete_next(Some(json!({"pending": 0}))).await;
    t.complete_next(None).await; // migrate; backup is skipped by its own condition
    let states: Vec<JobState> = t.run_states(run.id).await.into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, [JobState::Completed, JobState::Skipped, JobState::Completed, JobState::Completed]);
    assert_eq!(run_state(&t, run.id).await, RunState::Completed);
}

async fn a_retry_in_a_run_takes_the_key_of_the_run_again(t: TestLedger) {
    let key = Key { scope: "runs".into(), key: "deploy abc".into(), hold: Duration::from_hours(1) };
    let keyed = || NewRun { key: Some(key.clone()), ..t.run(&[("plan", &[], None)]) };
    let (first, second, third) = (keyed(), keyed(), keyed());
    t.ledger.start(&first, t.now()).await.unwrap();
    t.finish(t.claim_one().await.id, discarded("no luck")).await;
    t.ledger.retry(first.jobs[0].job.id, &ada(), t.now()).await.unwrap();
    assert_eq!(t.ledger.start(&second, t.now()).await.unwrap().0, Enqueued::Existing(first.id), "it runs again");
    t.finish(t.claim_one().await.id, discarded("no luck")).await;
    assert_eq!(t.ledger.start(&third, t.now()).await.unwrap().0, Enqueued::New(third.id));
    let refused = t.ledger.retry(first.jobs[0].job.id, &ada(), t.now()).await;
    assert!(matches!(refused, Err(LedgerError::Conflict(why)) if why.contains(&third.id.to_string())));
    assert_eq!(t.state(first.jobs[0].job.id).await, JobState::Discarded);
}
