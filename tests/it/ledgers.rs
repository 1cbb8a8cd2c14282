//! The ledger's contract: one suite, every engine.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use queue::clock::later;
use queue::ledger::{Beat, Ended, Enqueued, HeldKey, Hold, JobFilter, LedgerError, Repeats, behind};
use schemas::{JobId, JobState, Key, NewRun, Outcome, Priority, RunState, Standing, StepState};
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
    a_key_is_held_by_one_job_until_it_fails_or_expires,
    a_running_job_takes_a_key_or_is_written_down_behind_its_holder,
    of_jobs_that_ask_for_a_key_at_once_one_holds_it_and_all_others_are_written_down,
    a_delivery_is_booked_once_with_its_jobs,
    deliveries_of_one_batch_are_told_apart,
    a_known_body_is_held_and_can_be_released,
    what_cannot_be_read_is_kept_without_jobs,
    bodies_come_back_byte_for_byte,
    a_run_goes_on_as_its_needs_end,
    a_failed_need_skips_what_needs_it,
    a_condition_that_errs_discards_its_job_and_tells,
    many_ends_of_one_run_at_once_settle_it,
    a_waiting_job_is_cancelled_at_once_and_a_running_one_through_its_heartbeat,
    a_cancelled_job_is_not_put_off_by_an_attempt_that_ended_before_it_was_told,
    a_retry_keeps_the_job_and_forgets_its_failures,
    a_retry_in_a_run_lets_what_was_skipped_wait_again,
    what_is_started_by_hand_says_by_whom_and_why,
    a_retry_in_a_run_takes_the_key_of_the_run_again,
    verbs_on_the_wrong_state_are_conflicts,
    ends_of_a_batch_are_recorded_or_stale_one_by_one,
    a_stale_end_in_one_batch_with_the_current_one_changes_nothing,
    claims_at_the_same_time_never_share_a_job,
    what_becomes_available_is_claimed_at_once_however_old_it_is,
    discarding_stores_its_notice_in_the_same_transaction,
    what_has_expired_is_pruned,
    odd_text_survives,
    a_nul_in_a_text_wedges_nothing,
    queues_and_lists_tell_what_is_there,
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
    let next = t.ledger.promote(10, t.now()).await.unwrap().next.unwrap();
    assert_eq!(next, t.view(id).await.run_at.unwrap());
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

fn keyed(t: &TestLedger, key: &str) -> schemas::NewJob {
    let key = Key { scope: "noop".into(), key: key.into(), hold: Duration::from_hours(1) };
    schemas::NewJob { key: Some(key), ..t.job() }
}

async fn a_key_is_held_by_one_job_until_it_fails_or_expires(t: TestLedger) {
    let jobs = [keyed(&t, "a"), keyed(&t, "a"), keyed(&t, "b")];
    let (enqueued, _) = t.ledger.enqueue(&jobs, t.now()).await.unwrap();
    let first = jobs[0].id;
    assert_eq!(enqueued, [Enqueued::New(first), Enqueued::Existing(first), Enqueued::New(jobs[2].id)]);
    t.complete_next(None).await;
    let (again, _) = t.ledger.enqueue(&[keyed(&t, "a")], t.now()).await.unwrap();
    assert_eq!(again, [Enqueued::Existing(first)], "a key outlives a success");
    let failed = t.claim_one().await.id;
    t.finish(failed, discarded("no")).await;
    assert!(matches!(t.ledger.enqueue(&[keyed(&t, "b")], t.now()).await.unwrap().0[0], Enqueued::New(_)));
    t.clock.advance(Duration::from_secs(3601));
    assert!(matches!(t.ledger.enqueue(&[keyed(&t, "a")], t.now()).await.unwrap().0[0], Enqueued::New(_)));
}

async fn a_running_job_takes_a_key_or_is_written_down_behind_its_holder(t: TestLedger) {
    let key = Key { scope: "group".into(), key: "storm".into(), hold: Duration::from_mins(5) };
    let ids = t.enqueue(&[t.job(), t.job(), t.job()]).await;
    let attempts: Vec<_> = t.claim(3).await.into_iter().map(|job| job.id).collect();
    let hold = async |which: usize| t.ledger.hold(attempts[which], &key, t.now()).await;
    assert_eq!(hold(0).await.unwrap(), Hold::Mine);
    assert_eq!(hold(1).await.unwrap(), Hold::Behind(ids[0]));
    assert_eq!((hold(0).await.unwrap(), hold(1).await.unwrap()), (Hold::Mine, Hold::Behind(ids[0])), "twice is once");
    let behind_first = async || t.ledger.held(&behind(ids[0]), 10, t.now()).await.unwrap();
    let place = |under_way| HeldKey { key: ids[1].to_string(), owner: ids[1], under_way };
    assert_eq!(behind_first().await, [place(true)]);
    assert!(t.finish(attempts[1], completed(None)).await);
    assert_eq!(behind_first().await, [place(false)], "it is known when it has ended");
    assert!(matches!(hold(1).await, Err(LedgerError::Stale)), "an attempt that is over writes nothing");
    assert_eq!(t.ledger.held("group", 10, t.now()).await.unwrap()[0].owner, ids[0]);
    t.clock.advance(Duration::from_mins(5));
    assert!(t.ledger.held("group", 10, t.now()).await.unwrap().is_empty());
    assert_eq!(hold(2).await.unwrap(), Hold::Mine, "what has expired is free");
    assert_eq!(behind_first().await.len(), 1, "and who stood behind its holder is still known");
    assert_eq!(t.ledger.held(&behind(ids[0]), 0, t.now()).await.unwrap(), []);
}

async fn of_jobs_that_ask_for_a_key_at_once_one_holds_it_and_all_others_are_written_down(t: TestLedger) {
    let key = Key { scope: "group".into(), key: "storm".into(), hold: Duration::from_mins(5) };
    t.enqueue(&(0..20).map(|_| t.job()).collect::<Vec<_>>()).await;
    let asking = t.claim(20).await.into_iter().map(|job| {
        let (ledger, key, now) = (Arc::clone(&t.ledger), key.clone(), t.now());
        tokio::spawn(async move { (job.id.job, ledger.hold(job.id, &key, now).await.unwrap()) })
    });
    let mut answers = Vec::new();
    for asked in asking.collect::<Vec<_>>() {
        answers.push(asked.await.unwrap());
    }
    let holders: Vec<JobId> = answers.iter().filter(|(_, hold)| *hold == Hold::Mine).map(|(job, _)| *job).collect();
    assert_eq!(holders.len(), 1);
    assert_eq!(answers.iter().filter(|(_, hold)| *hold == Hold::Behind(holders[0])).count(), 19);
    assert_eq!(t.ledger.held(&behind(holders[0]), 100, t.now()).await.unwrap().len(), 19);
}

async fn a_delivery_is_booked_once_with_its_jobs(t: TestLedger) {
    let first = t.delivery("d-1", b"body");
    let receipt = t.accept(&first).await;
    assert_eq!((receipt.event, receipt.duplicate), (first.event.id, false));
    assert_eq!(receipt.jobs, [first.jobs[0].id]);
    let repeat = t.accept(&t.delivery("d-1", b"body")).await;
    assert_eq!((repeat.event, repeat.duplicate, repeat.jobs.len()), (first.event.id, true, 0));
    assert_eq!(t.claim(10).await.len(), 1);
    let view = t.ledger.event(first.event.id).await.unwrap().unwrap();
    assert_eq!((view.event, view.jobs, view.standing), (first.event, receipt.jobs, Standing::Accepted));
}

async fn deliveries_of_one_batch_are_told_apart(t: TestLedger) {
    let batch = [t.delivery("d-1", b"1"), t.delivery("d-1", b"1"), t.delivery("d-2", b"2")];
    let (receipts, _) = t.ledger.accept(&batch, t.now()).await.unwrap();
    assert_eq!(receipts.iter().map(|receipt| receipt.duplicate).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(receipts[1].event, batch[0].event.id);
    assert_eq!(t.claim(10).await.len(), 2);
}

async fn a_known_body_is_held_and_can_be_released(t: TestLedger) {
    let with = |id: &str, repeats| queue::ledger::NewDelivery { repeats, ..t.delivery(id, b"same body") };
    assert_eq!(t.accept(&with("d-1", Repeats::AreHeld)).await.standing, Standing::Accepted);
    let suspect = with("d-2", Repeats::AreHeld);
    let receipt = t.accept(&suspect).await;
    assert_eq!((receipt.standing, receipt.jobs.len()), (Standing::Held, 0));
    let honest = Repeats::AreHeldAfter(Duration::from_mins(10));
    assert_eq!(t.accept(&with("d-3", honest)).await.standing, Standing::Accepted);
    t.clock.advance(Duration::from_mins(10));
    assert_eq!(t.accept(&with("d-4", honest)).await.standing, Standing::Held);
    assert_eq!(t.claim(10).await.len(), 2);
    let bells = t.ledger.release(suspect.event.id, &suspect.jobs, &[], &ada(), t.now()).await.unwrap();
    assert_eq!(bells.iter().map(|bell| bell.count).sum::<u32>(), 1);
    assert_eq!(t.claim_one().await.id.job, suspect.jobs[0].id);
    let again = t.ledger.release(suspect.event.id, &suspect.jobs, &[], &ada(), t.now()).await;
    assert!(matches!(again, Err(LedgerError::Conflict(_))));
}

async fn what_cannot_be_read_is_kept_without_jobs(t: TestLedger) {
    let mut delivery = t.delivery("d-1", b"\x00\xff not JSON");
    delivery.unreadable = Some("not JSON".into());
    let receipt = t.accept(&delivery).await;
    assert_eq!((receipt.standing, receipt.jobs.len()), (Standing::Quarantined, 0));
    let view = t.ledger.event(delivery.event.id).await.unwrap().unwrap();
    assert_eq!(view.reason.as_deref(), Some("not JSON"));
    assert!(t.claim(10).await.is_empty());
}

async fn bodies_come_back_byte_for_byte(t: TestLedger) {
    let body: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let delivery = t.delivery("d-1", &body);
    t.accept(&delivery).await;
    let stored = t.ledger.body(delivery.event.id).await.unwrap().unwrap();
    assert_eq!(stored, delivery.body);
    assert_eq!(stored.bytes().unwrap(), body);
}

/// plan → backup (if something is pending) → migrate → notify (always).
fn deploy(t: &TestLedger) -> schemas::NewRun {
    t.run(&[
        ("plan", &[], None),
        ("backup", &["plan"], Some("jobs.plan.pending > 0")),
        ("migrate", &["plan", "backup"], None),
        ("notify", &["migrate"], Some("always()")),
    ])
}

async fn run_state(t: &TestLedger, run: schemas::RunId) -> RunState {
    t.ledger.run(run).await.unwrap().unwrap().state
}

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

async fn what_has_expired_is_pruned(t: TestLedger) {
    t.ledger.enqueue(&[keyed(&t, "a"), keyed(&t, "b")], t.now()).await.unwrap();
    t.accept(&t.delivery("d-1", b"1")).await;
    assert_eq!(t.ledger.prune(100, t.now()).await.unwrap(), 0);
    t.clock.advance(Duration::from_secs(3601));
    assert_eq!(t.ledger.prune(100, t.now()).await.unwrap(), 2);
    assert!(t.accept(&t.delivery("d-1", b"1")).await.duplicate);
    t.clock.advance(Duration::from_hours(9624));
    assert_eq!(t.ledger.prune(100, t.now()).await.unwrap(), 1);
    assert!(!t.accept(&t.delivery("d-1", b"1")).await.duplicate);
}

async fn odd_text_survives(t: TestLedger) {
    let text = "quotes ' \" \\ $1 ? {{ }} — ünïcödé \u{1F980} \u{7f} \r\n\t";
    let args = json!({ "text": text, "big": u64::MAX, "deep": [[[[{"a": null}]]]] });
    let id = t.enqueue(&[new_job("noop", &args.to_string(), t.now())]).await[0];
    let claimed = t.claim_one().await;
    assert_eq!(claimed.args.get(), args.to_string());
    t.finish(claimed.id, discarded(text)).await;
    let view = t.view(id).await;
    assert_eq!((view.args, view.reason.as_deref()), (args, Some(text)));
}

async fn a_nul_in_a_text_wedges_nothing(t: TestLedger) {
    let mut delivery = t.delivery("d-\0", b"body");
    delivery.event.subject = Some("refs/heads/\0".into());
    delivery.jobs = vec![keyed(&t, "a\0b")];
    let (receipts, _) = t.ledger.accept(&[delivery.clone(), t.delivery("d-2", b"2")], t.now()).await.unwrap();
    assert!(receipts.iter().all(|receipt| !receipt.duplicate && receipt.jobs.len() == 1));
    assert!(t.accept(&delivery).await.duplicate);
    let (again, _) = t.ledger.enqueue(&[keyed(&t, "a\0b")], t.now()).await.unwrap();
    assert_eq!(again, [Enqueued::Existing(delivery.jobs[0].id)]);
    let attempt = t.claim_one().await.id;
    t.ledger.start_step(attempt, "a\0b", t.now()).await.unwrap();
    t.ledger.finish_step(attempt, "a\0b", None, t.now()).await.unwrap();
    assert!(matches!(t.ledger.start_step(attempt, "a\0b", t.now()).await.unwrap(), StepState::Finished(None)));
    assert!(t.finish(attempt, discarded("before\0after")).await);
    assert!(t.view(attempt.job).await.reason.unwrap().starts_with("before"));
}

async fn queues_and_lists_tell_what_is_there(t: TestLedger) {
    let ids = t.enqueue(&[t.job(), t.job(), t.job()]).await;
    t.complete_next(None).await;
    t.claim_one().await;
    let queues = t.ledger.queues().await.unwrap();
    assert_eq!(queues.len(), 1);
    let counts: Vec<(&str, u64)> = queues[0].jobs.iter().map(|(state, count)| (state.as_str(), *count)).collect();
    assert_eq!(counts, [("available", 1), ("running", 1)]);
    let list = |state| JobFilter { state, kind: Some("noop".into()), limit: 10, ..JobFilter::default() };
    let all = t.ledger.jobs(&list(None)).await.unwrap();
    assert_eq!(all.iter().map(|job| job.id).collect::<Vec<_>>(), ids.iter().rev().copied().collect::<Vec<_>>());
    let completed = t.ledger.jobs(&list(Some(JobState::Completed))).await.unwrap();
    assert_eq!(completed.iter().map(|job| job.id).collect::<Vec<_>>(), [ids[0]]);
}
