//! Keys: of work that asks for one, one holds it.

use std::sync::Arc;
use std::time::Duration;

use queue::ledger::{Enqueued, HeldKey, Hold, LedgerError, NewDelivery, Repeats, behind};
use schemas::{JobId, Key, Standing};
use tests::ledgers::{TestLedger, completed, discarded};

use super::keyed;

on_every_engine![
    a_key_is_held_by_one_job_until_it_fails_or_expires,
    a_running_job_takes_a_key_or_is_written_down_behind_its_holder,
    of_jobs_that_ask_for_a_key_at_once_one_holds_it_and_all_others_are_written_down,
    what_has_expired_is_pruned,
];

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

async fn what_has_expired_is_pruned(t: TestLedger) {
    let held = |id: &str| NewDelivery { repeats: Repeats::AreHeld, ..t.delivery(id, b"a known body") };
    t.ledger.enqueue(&[keyed(&t, "a"), keyed(&t, "b")], t.now()).await.unwrap();
    t.accept(&t.delivery("d-1", b"1")).await;
    t.accept(&held("d-2")).await;
    assert_eq!(t.ledger.prune(100, t.now()).await.unwrap(), 0);
    t.clock.advance(Duration::from_secs(3601));
    assert_eq!(t.ledger.prune(100, t.now()).await.unwrap(), 2);
    assert!(t.accept(&t.delivery("d-1", b"1")).await.duplicate);
    assert_eq!(t.accept(&held("d-3")).await.standing, Standing::Held);
    t.clock.advance(Duration::from_hours(9600) - Duration::from_secs(1));
    assert_eq!(t.ledger.prune(100, t.now()).await.unwrap(), 2, "the most of one kind: d-1 and d-2");
    assert!(!t.accept(&t.delivery("d-1", b"1")).await.duplicate);
    assert_eq!(t.accept(&held("d-4")).await.standing, Standing::Accepted);
}
