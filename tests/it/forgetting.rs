//! Forgetting what is older than it is to be kept, on every engine.

use std::sync::Arc;
use std::time::Duration;

use queue::ledger::{Horizons, JobFilter, NewDelivery};
use queue::{Keep, NoticeOfForgetting, Queue, QueueConfig};
use schemas::{ApprovalPolicy, Limit, NewJob, Role, StepState};
use tests::ledgers::{TestLedger, ada, completed, discarded, new_job};

on_every_engine![
    what_is_old_is_forgotten_and_what_has_not_ended_never,
    jobs_and_runs_are_kept_for_so_long_after_their_end,
    an_event_takes_its_body_and_a_job_its_limits_and_consents_along,
    people_are_told_before_what_waits_for_them_is_forgotten_once_for_each_stretch,
    what_a_ledger_is_to_forget_all_at_once_waits_until_people_were_told_of_it,
    where_nobody_is_to_be_told_all_events_are_forgotten_alike,
];

async fn what_is_old_is_forgotten_and_what_has_not_ended_never(t: TestLedger) {
    let (done, open) = (t.delivery("d-1", b"1"), t.delivery("d-2", b"2"));
    t.accept(&done).await;
    let single = t.enqueue(&[t.job()]).await[0];
    let run = t.run(&[("first", &[], None), ("second", &["first"], None)]);
    t.ledger.start(&run, t.now()).await.unwrap();
    while let Some(job) = t.claim(1).await.pop() {
        assert!(matches!(t.ledger.start_step(job.id, "a step", t.now()).await, Ok(StepState::Fresh)));
        assert!(t.finish(job.id, completed(None)).await);
    }
    let waiting = t.run(&[("first", &[], None), ("second", &["first"], None)]);
    t.ledger.start(&waiting, t.now()).await.unwrap();
    t.accept(&open).await;
    let ended = t.now();
    t.clock.advance(Duration::from_hours(48));
    let later = t.enqueue(&[t.job()]).await[0];

    let before_all = ended - chrono::TimeDelta::hours(1);
    let all = |time| Horizons { bodies: Some(time), events: Some(time), jobs: Some(time), waiting: None };
    assert_eq!(t.ledger.forget(&all(before_all), 100).await.unwrap(), 0, "nothing is that old");
    assert_eq!(t.ledger.forget(&Horizons::default(), 100).await.unwrap(), 0, "all is kept for ever");

    let since = ended + chrono::TimeDelta::hours(1);
    let bodies = Horizons { bodies: Some(since), ..Horizons::default() };
    assert_eq!(t.ledger.forget(&bodies, 1).await.unwrap(), 1, "no more than was asked for");
    assert_eq!(t.ledger.forget(&bodies, 100).await.unwrap(), 1);
    assert!(t.ledger.body(done.event.id).await.unwrap().is_none());
    assert!(t.ledger.event(done.event.id).await.unwrap().is_some(), "without its body an event is kept");

    while t.ledger.forget(&all(since), 1).await.unwrap() > 0 {}
    assert!(t.ledger.event(done.event.id).await.unwrap().is_none());
    assert!(t.ledger.job(single).await.unwrap().is_none());
    assert!(t.ledger.run(run.id).await.unwrap().is_none());
    for planned in &run.jobs {
        assert!(t.ledger.job(planned.job.id).await.unwrap().is_none(), "a run goes with its jobs");
    }
    assert!(t.ledger.job(later).await.unwrap().is_some(), "what is young stays");
    assert_eq!(t.ledger.run(waiting.id).await.unwrap().unwrap().jobs.len(), 2, "what has not ended stays");
    let left = [("job_args", 4), ("step", 0), ("attempt", 0), ("run_job", 2), ("history", 0), ("delivery_body", 0)];
    for (table, rows) in left {
        assert_eq!(t.count(table).await, rows, "rows of {table}");
    }
    assert!(t.accept(&done).await.duplicate, "a known delivery stays known");
    assert_eq!(t.claim(10).await.len(), 3, "and the ledger works");
}

async fn jobs_and_runs_are_kept_for_so_long_after_their_end(t: TestLedger) {
    let single = t.enqueue(&[t.job()]).await[0];
    let run = t.run(&[("only", &[], None)]);
    t.ledger.start(&run, t.now()).await.unwrap();
    t.clock.advance(Duration::from_hours(48));
    let begun = t.now();
    t.complete_next(None).await;
    t.complete_next(None).await;
    let jobs = Horizons { jobs: Some(begun), ..Horizons::default() };
    assert_eq!(t.ledger.forget(&jobs, 100).await.unwrap(), 0);
    assert!(t.ledger.job(single).await.unwrap().is_some() && t.ledger.run(run.id).await.unwrap().is_some());
    let since = Horizons { jobs: Some(t.now() + chrono::TimeDelta::seconds(1)), ..Horizons::default() };
    assert_eq!(t.ledger.forget(&since, 100).await.unwrap(), 1);
    assert!(t.ledger.job(single).await.unwrap().is_none() && t.ledger.run(run.id).await.unwrap().is_none());
}

async fn an_event_takes_its_body_and_a_job_its_limits_and_consents_along(t: TestLedger) {
    let delivery = NewDelivery { jobs: Vec::new(), ..t.delivery("d-1", b"1") };
    t.accept(&delivery).await;
    let approval = Some(ApprovalPolicy {
        count: std::num::NonZeroU32::MIN,
        role: Role::Operator,
        own: true,
        within: Duration::from_hours(1),
    });
    let gated = NewJob { limits: vec![Limit::one("a key")], approval, ..t.job() };
    let job = gated.id;
    t.enqueue(&[gated]).await;
    t.ledger.approve(job, Role::Operator, &ada(), t.now()).await.unwrap();
    t.complete_next(None).await;
    for table in ["delivery_body", "job_limit", "approval", "consent"] {
        assert_eq!(t.count(table).await, 1, "rows of {table}");
    }
    let since = Some(t.now() + chrono::TimeDelta::hours(1));
    t.ledger.forget(&Horizons { events: since, jobs: since, ..Horizons::default() }, 100).await.unwrap();
    for table in ["event", "delivery_body", "history", "job_args", "attempt", "job_limit", "approval", "consent"] {
        assert_eq!(t.count(table).await, 0, "rows of {table}");
    }
}

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// Bodies are kept for so many days, events for some more.
fn keep(days: u32) -> Keep {
    Keep { bodies: Some(DAY * days), events: Some(DAY * (days + 5)), jobs: None }
}

/// A queue over a test's ledger, with its clock.
async fn queue_of(t: &TestLedger) -> Queue {
    let broker = queue::broker::open(&QueueConfig::new("sqlite:none", "in-process").broker).await.unwrap();
    Queue::with_parts(Arc::clone(&t.ledger), broker, t.clock.clone())
}

/// The upkeep looks each hour for so long, and forgets.
async fn pass(t: &TestLedger, queue: &Queue, keep: Keep, time: Duration) {
    let notice: NoticeOfForgetting = Arc::new(|waiting, within, now| {
        let said = format!(r#"{{"held":{},"in":{},"within":{}}}"#, waiting.held, waiting.quarantined, within.as_secs());
        Some(new_job("notify", &said, now))
    });
    for _ in 0..time.as_secs() / HOUR.as_secs() {
        t.clock.advance(HOUR);
        queue.forget(keep, Some(notice.clone()), 100).await.unwrap();
    }
}

/// What people were told, the newest first.
async fn told(t: &TestLedger) -> Vec<String> {
    let filter = JobFilter { kind: Some("notify".into()), limit: 100, ..JobFilter::default() };
    t.ledger.jobs(&filter).await.unwrap().into_iter().map(|job| job.args.to_string()).collect()
}

/// An event in quarantine.
async fn quarantined(t: &TestLedger, id: &str) -> schemas::EventId {
    let delivery = NewDelivery { jobs: Vec::new(), unreadable: Some("odd".into()), ..t.delivery(id, id.as_bytes()) };
    t.accept(&delivery).await.event
}

async fn people_are_told_before_what_waits_for_them_is_forgotten_once_for_each_stretch(t: TestLedger) {
    let (queue, keep) = (queue_of(&t).await, keep(10));
    let first = quarantined(&t, "d-1").await;
    let known = NewDelivery { repeats: queue::ledger::Repeats::AreHeld, ..t.delivery("d-2", b"same") };
    t.accept(&NewDelivery { jobs: Vec::new(), ..known.clone() }).await;
    let replayed = NewDelivery { repeats: queue::ledger::Repeats::AreHeld, ..t.delivery("d-3", b"same") };
    let held = t.accept(&replayed).await.event;
    let plain = NewDelivery { jobs: Vec::new(), ..t.delivery("d-4", b"plain") };
    t.accept(&plain).await;
    pass(&t, &queue, keep, DAY * 6).await;
    assert!(told(&t).await.is_empty(), "it is too early");
    pass(&t, &queue, keep, DAY * 3).await;
    assert_eq!(told(&t).await, [r#"{"held":1,"in":1,"within":259200}"#]);
    // Given up: nobody has heard of it, so it is told again.
    let message = t.claim_one().await;
    t.finish(message.id, discarded("no such channel")).await;
    pass(&t, &queue, keep, HOUR).await;
    assert_eq!(told(&t).await.len(), 2);
    // While the message is under way nothing goes that waits; what does not wait goes.
    pass(&t, &queue, keep, DAY * 3).await;
    assert!(t.ledger.body(plain.event.id).await.unwrap().is_none());
    assert!(t.ledger.body(first).await.unwrap().is_some() && t.ledger.body(held).await.unwrap().is_some());
    t.complete_next(None).await;
    pass(&t, &queue, keep, HOUR).await;
    assert!(t.ledger.body(first).await.unwrap().is_none() && t.ledger.body(held).await.unwrap().is_none());
    assert!(t.ledger.event(first).await.unwrap().is_some());
    pass(&t, &queue, keep, DAY * 4).await;
    assert!(t.ledger.event(first).await.unwrap().is_none() && t.ledger.event(held).await.unwrap().is_none());
    assert_eq!(told(&t).await.len(), 2, "told once more for nothing");
}

async fn what_a_ledger_is_to_forget_all_at_once_waits_until_people_were_told_of_it(t: TestLedger) {
    let (queue, keep) = (queue_of(&t).await, keep(10));
    let old = quarantined(&t, "d-1").await;
    // Until now everything was kept, or nobody was there.
    t.clock.advance(DAY * 100);
    pass(&t, &queue, keep, HOUR).await;
    assert_eq!(told(&t).await.len(), 1);
    t.complete_next(None).await;
    pass(&t, &queue, keep, HOUR * 22).await;
    assert!(t.ledger.body(old).await.unwrap().is_some(), "they have a day at least");
    pass(&t, &queue, keep, HOUR * 3).await;
    assert!(t.ledger.body(old).await.unwrap().is_none() && t.ledger.event(old).await.unwrap().is_none());
    assert_eq!(told(&t).await.len(), 1);
}

async fn where_nobody_is_to_be_told_all_events_are_forgotten_alike(t: TestLedger) {
    let queue = queue_of(&t).await;
    let old = quarantined(&t, "d-1").await;
    t.clock.advance(DAY * 100);
    queue.forget(keep(10), None, 100).await.unwrap();
    assert!(t.ledger.event(old).await.unwrap().is_none());
    assert!(told(&t).await.is_empty());
}
