//! Forgetting what is older than it is to be kept, on every engine.

use std::time::Duration;

use queue::ledger::Horizons;
use schemas::StepState;
use tests::ledgers::{TestLedger, completed};

on_every_engine![what_is_old_is_forgotten_and_what_has_not_ended_never];

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
