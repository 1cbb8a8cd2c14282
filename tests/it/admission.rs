//! Who is let in, as the ledger's contract: limits, rates, pauses.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use queue::clock::later;
use queue::ledger::{Claim, Ended, Pausable};
use schemas::{JobId, JobState, Limit, NewJob, NewRun, Outcome, Rate, RunState, WorkerId};
use tests::ledgers::{LEASE, TestLedger, ada, completed, discarded};

on_every_engine![
    one_job_of_a_key_at_a_time_whatever_its_kind,
    several_keys_are_taken_together_or_not_at_all,
    who_waits_is_let_in_in_order_of_priority_and_arrival,
    every_way_out_makes_room,
    an_interrupted_job_keeps_its_room,
    a_job_that_waits_for_the_outside_world_makes_room,
    a_newer_job_takes_the_place_of_those_that_wait,
    a_superseded_job_ends_its_run,
    a_rate_puts_off_what_comes_too_fast,
    a_retry_pays_for_its_start_again,
    a_job_of_a_run_waits_for_its_needs_and_then_for_room,
    a_paused_queue_is_not_claimed,
    a_paused_kind_is_not_let_in,
    what_slips_in_while_its_kind_is_paused_waits_for_the_end_of_the_pause,
    a_paused_key_is_not_let_in,
    a_pause_gives_the_room_of_what_it_parks_to_others,
    a_retried_job_finds_room_again,
    a_delivery_and_a_schedule_bring_jobs_with_limits_too,
    a_batch_that_mixes_all_kinds_is_stored_whole,
    room_that_nobody_told_of_is_found_by_a_review,
    however_many_come_and_go_at_once_no_more_than_the_limit_are_inside,
];

fn limited(t: &TestLedger, key: &str) -> NewJob {
    NewJob { limits: vec![Limit::one(key)], ..t.job() }
}

fn of_kind(kind: &str, job: NewJob) -> NewJob {
    NewJob { kind: kind.into(), ..job }
}

async fn states(t: &TestLedger, jobs: &[JobId]) -> Vec<JobState> {
    let mut states = Vec::new();
    for job in jobs {
        states.push(t.state(*job).await);
    }
    states
}

async fn one_job_of_a_key_at_a_time_whatever_its_kind(t: TestLedger) {
    let (backup, migrate) = (limited(&t, "database:main"), of_kind("other", limited(&t, "database:main")));
    let elsewhere = limited(&t, "database:other");
    let jobs = t.enqueue(&[backup, migrate, elsewhere]).await;
    assert_eq!(states(&t, &jobs).await, [JobState::Available, JobState::Pending, JobState::Available]);
    assert_eq!(t.view(jobs[1]).await.reason.as_deref(), Some("waits for room at `database:main`"));
    let claimed = t.claim(10).await;
    assert_eq!(claimed.iter().map(|job| job.id.job).collect::<Vec<_>>(), [jobs[0], jobs[2]]);
    assert_eq!(t.state(jobs[1]).await, JobState::Pending);
    let (_, bells) = t.finish_ringing(claimed[0].id, completed(None)).await;
    assert_eq!(t.state(jobs[1]).await, JobState::Available);
    assert_eq!(bells.iter().map(|bell| bell.count).sum::<u32>(), 1, "who is let in is rung for");
    let view = t.view(jobs[1]).await;
    assert!(view.reason.is_none() && view.limits[0].inside && view.limits[0].at_once == Some(1));
}

async fn several_keys_are_taken_together_or_not_at_all(t: TestLedger) {
    let both = NewJob { limits: vec![Limit::one("a"), Limit::one("b")], ..t.job() };
    let jobs = t.enqueue(&[limited(&t, "b"), both, limited(&t, "a")]).await;
    let expected = [JobState::Available, JobState::Pending, JobState::Available];
    assert_eq!(states(&t, &jobs).await, expected, "who waits at `b` takes no room at `a`");
    t.complete_next(None).await;
    assert_eq!(t.state(jobs[1]).await, JobState::Pending, "`b` is free, `a` is not");
    t.complete_next(None).await;
    assert_eq!(t.state(jobs[1]).await, JobState::Available);
}

async fn who_waits_is_let_in_in_order_of_priority_and_arrival(t: TestLedger) {
    let [first, second, third] = [(); 3].map(|()| limited(&t, "a"));
    let urgent = NewJob { priority: schemas::Priority::Urgent, ..limited(&t, "a") };
    // One batch, and ids that do not tell who came first in it.
    let jobs = t.enqueue(&[third, first, second]).await;
    let urgent = t.enqueue(&[urgent]).await[0];
    assert_eq!(t.complete_next(None).await, jobs[0]);
    assert_eq!(t.complete_next(None).await, urgent);
    assert_eq!(t.complete_next(None).await, jobs[1]);
    assert_eq!(t.complete_next(None).await, jobs[2]);
}

async fn every_way_out_makes_room(t: TestLedger) {
    for way in ["complete", "discard", "cancel waiting", "cancel running", "crash"] {
        let jobs = t.enqueue(&[limited(&t, way), limited(&t, way)]).await;
        assert_eq!(t.state(jobs[1]).await, JobState::Pending);
        match way {
            "cancel waiting" => drop(t.ledger.cancel(jobs[0], &ada(), t.now()).await.unwrap()),
            "crash" => {
                for _ in 0..3 {
                    let id = t.claim_one().await.id;
                    assert_eq!(id.job, jobs[0], "a crashed job keeps its room");
                    t.clock.advance(LEASE * 2);
                    assert_eq!(t.rescue().await.len(), 1);
                }
            }
            _ => {
                let id = t.claim_one().await.id;
                let outcome = match way {
                    "complete" => completed(None),
                    "discard" => discarded("no"),
                    _ => Outcome::Cancelled { reason: "enough".into() },
                };
                assert!(t.finish(id, outcome).await);
            }
        }
        assert!(t.state(jobs[0]).await.is_finished(), "{way}");
        assert_eq!(t.state(jobs[1]).await, JobState::Available, "{way}");
        t.complete_next(None).await;
    }
}

async fn an_interrupted_job_keeps_its_room(t: TestLedger) {
    let jobs = t.enqueue(&[limited(&t, "a"), limited(&t, "a")]).await;
    let claimed = t.claim_one().await;
    assert!(t.finish(claimed.id, Outcome::Released).await);
    assert_eq!(states(&t, &jobs).await, [JobState::Available, JobState::Pending]);
    assert_eq!(t.complete_next(None).await, jobs[0]);
}

async fn a_job_that_waits_for_the_outside_world_makes_room(t: TestLedger) {
    let jobs = t.enqueue(&[limited(&t, "a"), limited(&t, "a")]).await;
    let at = later(t.now(), Duration::from_mins(1));
    let claimed = t.claim_one().await;
    assert!(t.finish(claimed.id, Outcome::Snoozed { at, reason: "not yet".into() }).await);
    assert_eq!(states(&t, &jobs).await, [JobState::Scheduled, JobState::Available]);
    let second = t.claim_one().await;
    t.clock.advance(Duration::from_mins(2));
    t.promote().await;
    assert_eq!(t.state(jobs[0]).await, JobState::Pending, "its time has come, and there is no room");
    let at = later(t.now(), Duration::from_mins(1));
    assert!(t.finish(second.id, Outcome::Retry { at, error: "no".into() }).await);
    assert_eq!(states(&t, &jobs).await, [JobState::Available, JobState::Retryable]);
    assert_eq!(t.complete_next(None).await, jobs[0]);
    t.clock.advance(Duration::from_mins(2));
    assert_eq!(t.promote().await, 1);
    assert_eq!(t.complete_next(None).await, jobs[1]);
}

fn newest(t: &TestLedger, key: &str) -> NewJob {
    NewJob { limits: vec![Limit { newest: true, ..Limit::one(key) }], ..t.job() }
}

async fn a_newer_job_takes_the_place_of_those_that_wait(t: TestLedger) {
    let first = t.enqueue(&[newest(&t, "deploy")]).await[0];
    let second = t.enqueue(&[newest(&t, "deploy")]).await[0];
    assert_eq!(t.state(second).await, JobState::Pending);
    let others = t.enqueue(&[of_kind("other", newest(&t, "deploy")), limited(&t, "deploy")]).await;
    let batch = t.enqueue(&[newest(&t, "deploy"), newest(&t, "deploy")]).await;
    assert_eq!(t.state(first).await, JobState::Available, "what was let in is not taken back");
    assert_eq!(states(&t, &[second, batch[0]]).await, [JobState::Cancelled; 2]);
    assert!(t.view(second).await.reason.unwrap().contains("newer"));
    let expected = [JobState::Pending; 3];
    assert_eq!(states(&t, &[others[0], others[1], batch[1]]).await, expected, "another kind, or without the option");
}

async fn a_superseded_job_ends_its_run(t: TestLedger) {
    let mut run = t.run(&[("only", &[], None), ("after", &["only"], Some("always()"))]);
    run.jobs[0].job.limits = vec![Limit { newest: true, ..Limit::one("deploy") }];
    t.enqueue(&[newest(&t, "deploy")]).await;
    t.ledger.start(&run, t.now()).await.unwrap();
    let (_, bells) = t.ledger.enqueue(&[newest(&t, "deploy")], t.now()).await.unwrap();
    assert_eq!(t.state(run.jobs[0].job.id).await, JobState::Cancelled);
    assert_eq!(t.state(run.jobs[1].job.id).await, JobState::Available, "what waited for it goes on");
    assert_eq!(bells.iter().map(|bell| bell.count).sum::<u32>(), 1, "and is rung for");
}

fn rated(t: &TestLedger, starts: u32) -> NewJob {
    let rate = Rate { starts: NonZeroU32::new(starts).unwrap(), period: Duration::from_mins(1) };
    NewJob { limits: vec![Limit { rate: Some(rate), ..Limit::none("channel:ops") }], ..t.job() }
}

async fn a_rate_puts_off_what_comes_too_fast(t: TestLedger) {
    let jobs: Vec<NewJob> = (0..4).map(|_| rated(&t, 2)).collect();
    let (_, bells) = t.ledger.enqueue(&jobs, t.now()).await.unwrap();
    assert!(bells.has_put_off(), "the promoter is told");
    assert_eq!(bells.iter().map(|bell| bell.count).sum::<u32>(), 2);
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    let expected = [JobState::Available, JobState::Available, JobState::Scheduled, JobState::Scheduled];
    assert_eq!(states(&t, &ids).await, expected);
    t.complete_next(None).await;
    t.complete_next(None).await;
    t.clock.advance(Duration::from_secs(31));
    assert_eq!(t.promote().await, 1, "its turn has come");
    t.complete_next(None).await;
    t.clock.advance(Duration::from_secs(30));
    assert_eq!(t.promote().await, 1);
    t.complete_next(None).await;
    // A minute and more after the first: the bucket holds what the last half minute has filled.
    let again = t.enqueue(&[rated(&t, 2), rated(&t, 2)]).await;
    assert_eq!(states(&t, &again).await, [JobState::Scheduled; 2]);
    t.clock.advance(Duration::from_mins(5));
    t.promote().await;
    assert_eq!(states(&t, &again).await, [JobState::Available; 2]);
}

async fn a_retry_pays_for_its_start_again(t: TestLedger) {
    let job = t.enqueue(&[rated(&t, 1)]).await[0];
    let claimed = t.claim_one().await;
    let at = later(t.now(), Duration::from_secs(1));
    assert!(t.finish(claimed.id, Outcome::Retry { at, error: "no".into() }).await);
    t.clock.advance(Duration::from_secs(2));
    t.promote().await;
    assert_eq!(t.state(job).await, JobState::Scheduled, "its time has come, its turn has not");
    t.clock.advance(Duration::from_mins(1));
    assert_eq!(t.promote().await, 1);
}

async fn a_job_of_a_run_waits_for_its_needs_and_then_for_room(t: TestLedger) {
    let holder = t.enqueue(&[limited(&t, "database:main")]).await[0];
    let mut run: NewRun = t.run(&[("plan", &[], None), ("migrate", &["plan"], None)]);
    run.jobs[1].job.limits = vec![Limit::one("database:main")];
    let (plan, migrate) = (run.jobs[0].job.id, run.jobs[1].job.id);
    t.ledger.start(&run, t.now()).await.unwrap();
    assert!(t.view(migrate).await.reason.is_none(), "it waits for what it needs");
    let claimed = t.claim(10).await;
    let of = |id: JobId| claimed.iter().find(|job| job.id.job == id).unwrap().id;
    assert!(t.finish(of(plan), completed(None)).await);
    assert_eq!(t.state(migrate).await, JobState::Pending);
    assert_eq!(t.view(migrate).await.reason.as_deref(), Some("waits for room at `database:main`"));
    assert!(t.finish(of(holder), completed(None)).await);
    assert_eq!(t.complete_next(None).await, migrate);
    assert_eq!(t.ledger.run(run.id).await.unwrap().unwrap().state, RunState::Completed);
}

async fn a_paused_queue_is_not_claimed(t: TestLedger) {
    let queue = Pausable::Queue("default".into());
    let jobs = t.enqueue(&[t.job(), t.job()]).await;
    let running = t.claim_one().await;
    t.ledger.pause(&queue, &ada(), t.now()).await.unwrap();
    assert!(t.claim(10).await.is_empty());
    assert_eq!(t.state(jobs[1]).await, JobState::Available);
    assert!(t.finish(running.id, completed(None)).await, "what runs goes on");
    let again = t.ledger.pause(&queue, &ada(), t.now()).await;
    assert!(again.unwrap_err().to_string().contains("is paused already"));
    let bells = t.ledger.resume(&queue, &ada(), t.now()).await.unwrap();
    assert_eq!(bells.iter().map(|bell| (bell.queue.as_str(), bell.count)).collect::<Vec<_>>(), [("default", 1)]);
    assert_eq!(t.complete_next(None).await, jobs[1]);
    assert!(t.ledger.resume(&queue, &ada(), t.now()).await.unwrap_err().to_string().contains("is not paused"));
}

async fn resume(t: &TestLedger, what: &Pausable) {
    t.ledger.resume(what, &ada(), t.now()).await.unwrap();
    t.ledger.review(100, t.now()).await.unwrap();
}

async fn a_paused_kind_is_not_let_in(t: TestLedger) {
    let kind = Pausable::Kind("noop".into());
    let before = t.enqueue(&[t.job()]).await[0];
    let later_on = NewJob { run_at: Some(later(t.now(), Duration::from_secs(10))), ..t.job() };
    let later_on = t.enqueue(&[later_on]).await[0];
    let run = t.run(&[("first", &[], None)]);
    let following = t.run(&[("first", &[], None), ("second", &["first"], None)]);
    let other = NewRun { jobs: following.jobs.clone(), ..following };
    t.ledger.pause(&kind, &ada(), t.now()).await.unwrap();
    assert_eq!(t.state(before).await, JobState::Pending);
    let after = t.enqueue(&[t.job(), of_kind("other", t.job())]).await;
    t.ledger.start(&run, t.now()).await.unwrap();
    t.ledger.start(&other, t.now()).await.unwrap();
    t.clock.advance(Duration::from_secs(20));
    t.promote().await;
    assert_eq!(states(&t, &[after[0], later_on, run.jobs[0].job.id]).await, [JobState::Pending; 3]);
    assert_eq!(t.claim(10).await.iter().map(|job| job.id.job).collect::<Vec<_>>(), [after[1]]);
    assert!(t.ledger.review(100, t.now()).await.unwrap().is_empty(), "a review lets nobody past a pause");
    resume(&t, &kind).await;
    assert_eq!(states(&t, &[before, after[0], later_on, run.jobs[0].job.id]).await, [JobState::Available; 4]);
    assert_eq!(t.state(other.jobs[1].job.id).await, JobState::Pending, "it still waits for what it needs");
    assert_eq!(t.claim(10).await.len(), 5);
}

async fn what_slips_in_while_its_kind_is_paused_waits_for_the_end_of_the_pause(t: TestLedger) {
    let kind = Pausable::Kind("noop".into());
    let job = t.enqueue(&[t.job()]).await[0];
    let attempt = t.claim_one().await.id;
    t.ledger.pause(&kind, &ada(), t.now()).await.unwrap();
    assert!(t.finish(attempt, Outcome::Released).await);
    assert_eq!(t.state(job).await, JobState::Available);
    t.clock.advance(Duration::from_secs(3));
    let other = t.enqueue(&[of_kind("other", t.job())]).await[0];
    assert_eq!(t.claim(10).await.iter().map(|job| job.id.job).collect::<Vec<_>>(), [other]);
    let bells = t.ledger.resume(&kind, &ada(), t.now()).await.unwrap();
    assert_eq!(bells.iter().map(|bell| bell.count).sum::<u32>(), 1);
    assert_eq!(t.claim_one().await.id.job, job);
}

async fn a_paused_key_is_not_let_in(t: TestLedger) {
    let key = Pausable::Key("database:main".into());
    let inside = t.enqueue(&[limited(&t, "database:main")]).await[0];
    t.ledger.pause(&key, &ada(), t.now()).await.unwrap();
    let after = t.enqueue(&[limited(&t, "database:main"), limited(&t, "database:other")]).await;
    assert_eq!(
        states(&t, &[inside, after[0], after[1]]).await,
        [JobState::Pending, JobState::Pending, JobState::Available]
    );
    assert!(t.view(after[0]).await.reason.unwrap().contains("`database:main` is paused"));
    assert_eq!(t.complete_next(None).await, after[1]);
    assert!(t.claim(10).await.is_empty());
    resume(&t, &key).await;
    assert_eq!(states(&t, &[inside, after[0]]).await, [JobState::Available, JobState::Pending]);
    let pauses = t.ledger.pauses().await.unwrap();
    assert!(pauses.is_empty());
}

async fn a_pause_gives_the_room_of_what_it_parks_to_others(t: TestLedger) {
    let jobs = t.enqueue(&[limited(&t, "a"), of_kind("other", limited(&t, "a"))]).await;
    t.ledger.pause(&Pausable::Kind("noop".into()), &ada(), t.now()).await.unwrap();
    t.ledger.review(100, t.now()).await.unwrap();
    assert_eq!(states(&t, &jobs).await, [JobState::Pending, JobState::Available]);
    let pauses = t.ledger.pauses().await.unwrap();
    assert_eq!((pauses[0].what.as_str(), pauses[0].name.as_str(), pauses[0].actor.as_str()), ("kind", "noop", "ada"));
}

async fn a_retried_job_finds_room_again(t: TestLedger) {
    let jobs = t.enqueue(&[limited(&t, "a"), limited(&t, "a")]).await;
    let first = t.claim_one().await;
    assert!(t.finish(first.id, discarded("no")).await);
    let second = t.claim_one().await;
    t.ledger.retry(jobs[0], &ada(), t.now()).await.unwrap();
    assert_eq!(t.state(jobs[0]).await, JobState::Pending);
    let (_, bells) = t.finish_ringing(second.id, completed(None)).await;
    assert!(!bells.is_empty());
    assert_eq!(t.complete_next(None).await, jobs[0]);
    let view = t.view(jobs[0]).await;
    assert_eq!(view.attempts.len(), 2);
}

async fn a_delivery_and_a_schedule_bring_jobs_with_limits_too(t: TestLedger) {
    let first = limited(&t, "a");
    let mut delivery = t.delivery("one", b"body");
    delivery.jobs = vec![first.clone()];
    let mut run = t.run(&[("only", &[], None)]);
    run.jobs[0].job.limits = vec![Limit::one("a")];
    delivery.runs = vec![run.clone()];
    let (_, bells) = t.ledger.accept(&[delivery], t.now()).await.unwrap();
    assert_eq!(bells.iter().map(|bell| bell.count).sum::<u32>(), 1, "only who is let in is rung for");
    let second = limited(&t, "a");
    let firing = queue::ledger::Firing {
        schedule: "nightly".into(),
        nominal: t.now(),
        config_digest: "a".into(),
        due: queue::ledger::Due::Work {
            work: schemas::NewWork::Job(Box::new(second.clone())),
            overlap: schemas::Overlap::Skip,
        },
    };
    t.ledger.fire(&firing, t.now()).await.unwrap();
    for expected in [first.id, run.jobs[0].job.id, second.id] {
        assert_eq!(t.complete_next(None).await, expected);
    }
}

async fn a_batch_that_mixes_all_kinds_is_stored_whole(t: TestLedger) {
    let key = schemas::Key { scope: "noop".into(), key: "k".into(), hold: Duration::from_hours(1) };
    let keyed = || NewJob { key: Some(key.clone()), ..limited(&t, "a") };
    let batch = [t.job(), keyed(), keyed(), rated(&t, 1), limited(&t, "a")];
    let (enqueued, _) = t.ledger.enqueue(&batch, t.now()).await.unwrap();
    assert_eq!(enqueued[2].id(), batch[1].id, "the key is taken");
    assert_eq!(t.claim(10).await.len(), 3, "the plain one, the keyed one and the rated one");
    assert_eq!(t.state(batch[4].id).await, JobState::Pending);
}

async fn room_that_nobody_told_of_is_found_by_a_review(t: TestLedger) {
    let jobs = t.enqueue(&[limited(&t, "a"), limited(&t, "a")]).await;
    assert!(t.ledger.review(100, t.now()).await.unwrap().is_empty(), "there is no room");
    // As a process of the release before limits would end it: it knows of no one who waits.
    t.raw("delete from job where state = 2").await;
    let bells = t.ledger.review(100, t.now()).await.unwrap();
    assert_eq!(bells.iter().map(|bell| bell.count).sum::<u32>(), 1);
    assert_eq!(t.state(jobs[1]).await, JobState::Available);
}

async fn however_many_come_and_go_at_once_no_more_than_the_limit_are_inside(t: TestLedger) {
    const JOBS: usize = 120;
    const LIMIT: u32 = 3;
    const WORKERS: usize = 6;
    let t = Arc::new(t);
    let (done, inside, most) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let makers = (0..4).map(|_| {
        let jobs: Vec<NewJob> = (0..JOBS / 4)
            .map(|_| {
                let shared = Limit { at_once: NonZeroU32::new(LIMIT), ..Limit::none("shared") };
                NewJob { limits: vec![shared], ..t.job() }
            })
            .collect();
        let t = Arc::clone(&t);
        tokio::spawn(async move {
            for job in jobs {
                t.ledger.enqueue(&[job], t.now()).await.unwrap();
            }
        })
    });
    let makers: Vec<_> = makers.collect();
    let workers = (0..WORKERS).map(|_| {
        let (t, done, inside, most) = (Arc::clone(&t), Arc::clone(&done), Arc::clone(&inside), Arc::clone(&most));
        tokio::spawn(async move {
            let claim = Claim {
                queue: "default".into(),
                kinds: vec!["noop".into()],
                limit: 2,
                worker: WorkerId::at(t.now()),
                lease: LEASE,
            };
            while done.load(Ordering::SeqCst) < JOBS {
                let claimed = t.ledger.claim(&claim, t.now()).await.unwrap();
                let now_inside = inside.fetch_add(claimed.len(), Ordering::SeqCst) + claimed.len();
                most.fetch_max(now_inside, Ordering::SeqCst);
                tokio::task::yield_now().await;
                inside.fetch_sub(claimed.len(), Ordering::SeqCst);
                done.fetch_add(claimed.len(), Ordering::SeqCst);
                let ended: Vec<Ended> =
                    claimed.iter().map(|job| Ended { attempt: job.id, outcome: completed(None) }).collect();
                if !ended.is_empty() {
                    let finished = t.ledger.finish(&ended, t.now()).await.unwrap();
                    assert!(finished.recorded.iter().all(|recorded| *recorded));
                }
            }
        })
    });
    let workers: Vec<_> = workers.collect();
    for task in makers.into_iter().chain(workers) {
        tokio::time::timeout(Duration::from_mins(2), task).await.expect("nobody waits for ever").unwrap();
    }
    assert_eq!(done.load(Ordering::SeqCst), JOBS);
    let most = most.load(Ordering::SeqCst);
    assert!((1..=LIMIT as usize).contains(&most), "{most} were inside at once");
}
