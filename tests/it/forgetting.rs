//! Forgetting what is older than it is to be kept, on every engine.

use std::time::Duration;

use queue::ledger::Horizons;
use schemas::{ApprovalPolicy, Limit, NewJob, Role, StepState};
use tests::ledgers::{TestLedger, ada, completed};

on_every_engine![
    what_is_old_is_forgotten_and_what_has_not_ended_never,
    jobs_and_runs_are_kept_for_so_long_after_their_end,
    an_event_takes_its_body_and_a_job_its_limits_and_consents_along,
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
    let all = |time| Horizons { bodies: Some(time), events: Some(time), jobs: Some(time) };
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
    let delivery = queue::ledger::NewDelivery { jobs: Vec::new(), ..t.delivery("d-1", b"1") };
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
    t.ledger.forget(&Horizons { bodies: None, events: since, jobs: since }, 100).await.unwrap();
    for table in ["event", "delivery_body", "history", "job_args", "attempt", "job_limit", "approval", "consent"] {
        assert_eq!(t.count(table).await, 0, "rows of {table}");
    }
}
