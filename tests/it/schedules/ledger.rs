//! Settling nominal times as the ledger's contract: once each, by the newest configuration, and what overlaps.

use std::sync::Arc;
use std::time::Duration;

use queue::clock::{earlier, later};
use queue::ledger::{
    Announced, DELIVERY_MEMORY, Due, Fired, Firing, GENERATION_MEMORY, JobFilter, LedgerError, MOST_WAITING, Pausable,
    Progress,
};
use schemas::api::{FiringOutcome, FiringView};
use schemas::{Key, NewJob, NewWork, Overlap, Timestamp};
use tests::ledgers::{TestLedger, ada, completed};

on_every_engine![
    a_nominal_time_fires_once_however_many_ask,
    another_time_or_another_schedule_fires_as_well,
    the_newest_configuration_fires_while_it_is_alive,
    what_fired_is_remembered_as_long_as_deliveries_are,
    a_schedule_begins_at_first_sight_and_anew_when_its_timetable_changes,
    what_overlaps_is_skipped_with_the_reason,
    work_that_outlasts_many_of_its_times_is_in_the_way_of_each,
    what_is_queued_waits_for_the_end_of_earlier_work_in_order,
    what_runs_is_cancelled_once_with_an_audit_row,
    a_time_that_fires_takes_the_place_of_an_older_one_that_waits,
    a_run_is_cancelled_as_a_whole,
    a_paused_schedule_skips_and_says_who_paused_it,
    missed_times_of_a_paused_schedule_are_skipped_and_counted,
    missed_times_are_one_row_and_one_notice,
    work_that_is_under_way_under_its_key_is_told,
];

fn firing(t: &TestLedger, schedule: &str, config: &str) -> Firing {
    let work = NewWork::Job(Box::new(t.job()));
    let due = Due::Work { work, overlap: Overlap::Queue };
    Firing { schedule: schedule.into(), nominal: t.now(), config_digest: config.into(), due }
}

/// The next nominal time of the schedule `nightly`, an hour after the last.
fn next(t: &TestLedger, overlap: Overlap) -> Firing {
    t.clock.advance(Duration::from_hours(1));
    let work = NewWork::Job(Box::new(t.job()));
    Firing { due: Due::Work { work, overlap }, ..firing(t, "nightly", "a") }
}

async fn fire(t: &TestLedger, firing: &Firing) -> Fired {
    t.ledger.fire(firing, t.now()).await.unwrap()
}

async fn firings(t: &TestLedger) -> Vec<FiringView> {
    t.ledger.firings("nightly", 500).await.unwrap()
}

async fn a_nominal_time_fires_once_however_many_ask(t: TestLedger) {
    const PRODUCERS: usize = 16;
    let first = firing(&t, "nightly", "a");
    let asks = (0..PRODUCERS).map(|_| {
        // Each producer makes jobs of its own for the same nominal time.
        let own = Firing { due: firing(&t, "nightly", "a").due, ..first.clone() };
        let (ledger, now) = (Arc::clone(&t.ledger), t.now());
        tokio::spawn(async move { ledger.fire(&own, now).await.unwrap() })
    });
    let asks: Vec<_> = asks.collect();
    let mut fired = Vec::new();
    for ask in asks {
        fired.push(ask.await.unwrap());
    }
    assert_eq!(fired.iter().filter(|fired| matches!(fired, Fired::Now(_))).count(), 1);
    assert_eq!(fired.iter().filter(|fired| **fired == Fired::Before).count(), PRODUCERS - 1);
    let jobs = t.ledger.jobs(&JobFilter { limit: 50, ..JobFilter::default() }).await.unwrap();
    assert_eq!(jobs.len(), 1, "one job, and no more, was stored");
    let rung = fired.iter().find_map(|fired| if let Fired::Now(bells) = fired { Some(bells.clone()) } else { None });
    assert_eq!(rung.unwrap().iter().map(|bell| bell.count).sum::<u32>(), 1);
    let from = t.view(jobs[0].id).await.schedule.unwrap();
    assert_eq!((from.name.as_str(), from.nominal), ("nightly", first.nominal));
}

async fn another_time_or_another_schedule_fires_as_well(t: TestLedger) {
    let first = firing(&t, "nightly", "a");
    assert!(matches!(fire(&t, &first).await, Fired::Now(_)));
    assert!(matches!(fire(&t, &firing(&t, "weekly", "a")).await, Fired::Now(_)));
    t.complete_next(None).await;
    let again = Firing { nominal: later(first.nominal, Duration::from_hours(24)), ..firing(&t, "nightly", "a") };
    assert!(matches!(fire(&t, &again).await, Fired::Now(_)));
    let between = Firing { nominal: later(first.nominal, Duration::from_hours(1)), ..firing(&t, "nightly", "a") };
    assert_eq!(fire(&t, &between).await, Fired::Before, "what is settled stays settled");
}

async fn the_newest_configuration_fires_while_it_is_alive(t: TestLedger) {
    let announce = async |digest: &str| t.ledger.announce(digest, &[], t.now()).await.unwrap().is_some();
    assert!(announce("old").await);
    assert!(announce("new").await);
    assert!(!announce("old").await, "an older producer is told, and can warn");
    assert_eq!(fire(&t, &firing(&t, "nightly", "old")).await, Fired::Outdated);
    assert!(matches!(fire(&t, &firing(&t, "nightly", "new")).await, Fired::Now(_)));
    t.complete_next(None).await;
    // A producer with the old configuration starts again: that makes it no newer.
    assert!(!announce("old").await);
    // The new one is taken back: nobody has it any more, and after a while the old one fires again.
    t.clock.advance(GENERATION_MEMORY);
    assert!(announce("old").await);
    assert!(matches!(fire(&t, &firing(&t, "nightly", "old")).await, Fired::Now(_)));
    assert!(announce("new").await, "it is back");
    assert_eq!(fire(&t, &firing(&t, "nightly", "old")).await, Fired::Outdated);
}

async fn what_fired_is_remembered_as_long_as_deliveries_are(t: TestLedger) {
    let minute = Duration::from_mins(1);
    let first = firing(&t, "nightly", "a");
    fire(&t, &first).await;
    t.clock.advance(DELIVERY_MEMORY.saturating_sub(minute));
    t.ledger.prune(100, t.now()).await.unwrap();
    assert_eq!(fire(&t, &first).await, Fired::Before);
    t.clock.advance(minute);
    assert_eq!(t.ledger.prune(100, t.now()).await.unwrap(), 1);
    assert_eq!(fire(&t, &first).await, Fired::Before, "how far it has come is never forgotten");
}

async fn announce(t: &TestLedger, schedules: &[(&str, &str)]) -> Vec<Progress> {
    let announced = schedules
        .iter()
        .map(|(name, timetable)| Announced { schedule: (*name).to_owned(), timetable: (*timetable).to_owned() });
    let announced: Vec<Announced> = announced.collect();
    t.ledger.announce("a", &announced, t.now()).await.unwrap().unwrap()
}

async fn a_schedule_begins_at_first_sight_and_anew_when_its_timetable_changes(t: TestLedger) {
    let settled =
        |progress: &[Progress]| progress.iter().map(|one| (one.schedule.clone(), one.settled)).collect::<Vec<_>>();
    let start = t.now();
    let both = [("nightly", "0 2 * * * UTC"), ("weekly", "0 3 * * 0 UTC")];
    assert_eq!(settled(&announce(&t, &both).await), [("nightly".into(), start), ("weekly".into(), start)]);
    t.clock.advance(Duration::from_hours(5));
    assert_eq!(settled(&announce(&t, &both).await), [("nightly".into(), start), ("weekly".into(), start)]);
    let fired = firing(&t, "nightly", "a");
    fire(&t, &fired).await;
    t.clock.advance(Duration::from_hours(5));
    assert_eq!(settled(&announce(&t, &both).await), [("nightly".into(), fired.nominal), ("weekly".into(), start)]);
    // Another timetable begins now; one that is gone is forgotten, and begins now when it is back.
    let changed = [("nightly", "0 4 * * * UTC")];
    let now = t.now();
    assert_eq!(settled(&announce(&t, &changed).await), [("nightly".into(), now)]);
    t.clock.advance(Duration::from_hours(5));
    let back = t.now();
    assert_eq!(settled(&announce(&t, &both).await), [("nightly".into(), back), ("weekly".into(), back)]);
    // A clock that was ahead: nothing that is recorded becomes due a second time.
    let ahead = Firing { nominal: later(t.now(), Duration::from_hours(9)), ..firing(&t, "nightly", "a") };
    t.complete_next(None).await;
    fire(&t, &ahead).await;
    assert_eq!(settled(&announce(&t, &changed).await), [("nightly".into(), ahead.nominal)]);
}

async fn what_overlaps_is_skipped_with_the_reason(t: TestLedger) {
    assert!(matches!(fire(&t, &next(&t, Overlap::Skip)).await, Fired::Now(_)));
    let claimed = t.claim_one().await;
    let second = next(&t, Overlap::Skip);
    let Fired::Skipped(reason) = fire(&t, &second).await else { panic!("it is not skipped") };
    assert!(reason.contains(&claimed.id.job.to_string()) && reason.contains("has not ended"), "{reason}");
    assert_eq!(fire(&t, &second).await, Fired::Before, "once and for all");
    t.finish(claimed.id, completed(None)).await;
    assert!(matches!(fire(&t, &next(&t, Overlap::Skip)).await, Fired::Now(_)));
    let outcomes: Vec<FiringOutcome> = firings(&t).await.iter().map(|firing| firing.outcome).collect();
    assert_eq!(outcomes, [FiringOutcome::Fired, FiringOutcome::Skipped, FiringOutcome::Fired]);
    let states: Vec<Option<String>> = firings(&t).await.into_iter().map(|firing| firing.state).collect();
    assert_eq!(states, [Some("available".into()), None, Some("completed".into())]);
}

async fn work_that_outlasts_many_of_its_times_is_in_the_way_of_each(t: TestLedger) {
    assert!(matches!(fire(&t, &next(&t, Overlap::Skip)).await, Fired::Now(_)));
    let running = t.claim_one().await;
    for time in 1..=40 {
        let fired = fire(&t, &next(&t, Overlap::Skip)).await;
        assert!(matches!(fired, Fired::Skipped(_)), "time {time} runs beside the first: {fired:?}");
    }
    t.finish(running.id, completed(None)).await;
    assert!(matches!(fire(&t, &next(&t, Overlap::Skip)).await, Fired::Now(_)));
}

async fn what_is_queued_waits_for_the_end_of_earlier_work_in_order(t: TestLedger) {
    fire(&t, &next(&t, Overlap::Queue)).await;
    let (second, third) = (next(&t, Overlap::Queue), next(&t, Overlap::Queue));
    assert!(matches!(fire(&t, &second).await, Fired::Waits(_)));
    assert!(matches!(fire(&t, &third).await, Fired::Waits(_)));
    let waiting = announce(&t, &[("nightly", "")]).await.pop().unwrap().waiting;
    assert_eq!(waiting, [second.nominal, third.nominal]);
    t.complete_next(None).await;
    assert!(matches!(fire(&t, &third).await, Fired::Waits(_)), "the second is first");
    assert!(matches!(fire(&t, &second).await, Fired::Now(_)));
    assert_eq!(fire(&t, &second).await, Fired::Before);
    assert!(matches!(fire(&t, &third).await, Fired::Waits(_)));
    for _ in 2..=MOST_WAITING {
        assert!(matches!(fire(&t, &next(&t, Overlap::Queue)).await, Fired::Waits(_)));
    }
    let Fired::Skipped(reason) = fire(&t, &next(&t, Overlap::Queue)).await else { panic!("it waits for ever") };
    assert!(reason.contains("wait already"), "{reason}");
    // Its schedule is gone: nothing waits for ever.
    assert!(announce(&t, &[]).await.is_empty());
    let waiting = firings(&t).await.into_iter().filter(|firing| firing.outcome == FiringOutcome::Waiting);
    assert_eq!(waiting.count(), 0);
}

async fn audit_of(t: &TestLedger, verb: &str) -> Vec<(String, String, String)> {
    let lines = t.ledger.audit(100).await.unwrap().into_iter().filter(|line| line.verb == verb);
    lines.map(|line| (line.actor, line.subject, line.reason)).collect()
}

async fn what_runs_is_cancelled_once_with_an_audit_row(t: TestLedger) {
    fire(&t, &next(&t, Overlap::CancelRunning)).await;
    let running = t.claim_one().await;
    let (second, third) = (next(&t, Overlap::CancelRunning), next(&t, Overlap::CancelRunning));
    assert!(matches!(fire(&t, &second).await, Fired::Waits(_)));
    assert!(matches!(fire(&t, &second).await, Fired::Waits(_)), "it runs until its next heartbeat");
    let audit = audit_of(&t, "cancel").await;
    assert_eq!(audit.len(), 1, "cancelled once: {audit:?}");
    assert_eq!((audit[0].0.as_str(), audit[0].1.clone()), ("schedule:nightly", running.id.job.to_string()));
    assert!(audit[0].2.contains("cancel_running"), "{audit:?}");
    // A newer time takes the place of the one that waits.
    assert!(matches!(fire(&t, &third).await, Fired::Waits(_)));
    assert_eq!(fire(&t, &second).await, Fired::Before);
    let lease = later(t.now(), Duration::from_secs(30));
    let beats = t.ledger.heartbeat(&[running.id], lease, t.now()).await.unwrap();
    let queue::ledger::Beat::Cancel(reason) = &beats[0] else { panic!("it is not told: {beats:?}") };
    let cancelled = schemas::Outcome::Cancelled { reason: reason.clone() };
    assert!(t.finish(running.id, cancelled).await);
    assert!(matches!(fire(&t, &third).await, Fired::Now(_)));
    // What only waits is cancelled at once, and its place is taken.
    let fourth = next(&t, Overlap::CancelRunning);
    assert!(matches!(fire(&t, &fourth).await, Fired::Waits(_)));
    assert!(matches!(fire(&t, &fourth).await, Fired::Now(_)));
    assert_eq!(t.claim(10).await.len(), 1);
}

async fn a_time_that_fires_takes_the_place_of_an_older_one_that_waits(t: TestLedger) {
    fire(&t, &next(&t, Overlap::CancelRunning)).await;
    let running = t.claim_one().await;
    let second = next(&t, Overlap::CancelRunning);
    assert!(matches!(fire(&t, &second).await, Fired::Waits(_)));
    t.finish(running.id, completed(None)).await;
    // Nobody has asked for the second one since, and the third has come.
    assert!(matches!(fire(&t, &next(&t, Overlap::CancelRunning)).await, Fired::Now(_)));
    assert_eq!(fire(&t, &second).await, Fired::Before);
    let replaced = firings(&t).await.into_iter().find(|firing| firing.nominal == second.nominal).unwrap();
    assert_eq!(replaced.reason.as_deref(), Some("a newer one took its place while it waited"));
    assert_eq!(t.claim(10).await.len(), 1);
}

async fn a_run_is_cancelled_as_a_whole(t: TestLedger) {
    let run = || t.run(&[("one", &[], None), ("two", &["one"], None), ("always", &["two"], Some("always()"))]);
    let with = |run, overlap| {
        let work = NewWork::Run(Box::new(run));
        Firing { due: Due::Work { work, overlap }, ..next(&t, overlap) }
    };
    let (first, second) = (run(), run());
    let id = first.id;
    assert!(matches!(fire(&t, &with(first, Overlap::CancelRunning)).await, Fired::Now(_)));
    let skipped = fire(&t, &with(run(), Overlap::Skip)).await;
    let Fired::Skipped(reason) = skipped else { panic!("{skipped:?}") };
    assert!(reason.contains(&id.to_string()), "{reason}");
    let again = with(second, Overlap::CancelRunning);
    assert!(matches!(fire(&t, &again).await, Fired::Waits(_)));
    let view = t.ledger.run(id).await.unwrap().unwrap();
    assert_eq!(view.state.as_str(), "cancelled");
    assert!(view.jobs.iter().all(|job| job.state.as_str() == "cancelled"), "{view:?}");
    assert!(matches!(fire(&t, &again).await, Fired::Now(_)));
    // By hand, what runs is told at its next heartbeat, and the rest ends at once.
    let running = t.claim_one().await;
    let id = running.run.unwrap();
    t.clock.advance(Duration::from_millis(1)); // so that the audit has an order
    t.ledger.cancel_run(id, &ada(), t.now()).await.unwrap();
    let states: Vec<&str> = t.run_states(id).await.into_iter().map(|(_, state)| state.as_str()).collect();
    assert_eq!(states, ["running", "cancelled", "cancelled"]);
    assert_eq!(audit_of(&t, "cancel").await[0].1, id.to_string());
    t.finish(running.id, completed(None)).await;
    let refused = t.ledger.cancel_run(id, &ada(), t.now()).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::Conflict(why) if why.contains("it is cancelled")), "{refused:?}");
    let nobody = t.ledger.cancel_run(schemas::RunId::at(t.now()), &ada(), t.now()).await.unwrap_err();
    assert!(matches!(nobody, LedgerError::NotFound("run")), "{nobody:?}");
}

async fn a_paused_schedule_skips_and_says_who_paused_it(t: TestLedger) {
    let nightly = Pausable::Schedule("nightly".into());
    t.ledger.pause(&nightly, &ada(), t.now()).await.unwrap();
    let skipped = fire(&t, &next(&t, Overlap::Skip)).await;
    assert_eq!(skipped, Fired::Skipped("the schedule is paused by ada: it must".into()));
    assert!(matches!(fire(&t, &firing(&t, "weekly", "a")).await, Fired::Now(_)), "others go on");
    t.ledger.resume(&nightly, &ada(), t.now()).await.unwrap();
    assert!(matches!(fire(&t, &next(&t, Overlap::Skip)).await, Fired::Now(_)));
    assert_eq!(audit_of(&t, "pause").await[0].1, "schedule nightly");
}

fn missed(t: &TestLedger, first: Timestamp) -> Firing {
    let notice = Some(Box::new(NewJob { kind: "notify".into(), ..t.job() }));
    let due = Due::Missed { first, times: 7, reason: "nobody was there".into(), notice };
    Firing { due, ..firing(t, "nightly", "a") }
}

async fn missed_times_of_a_paused_schedule_are_skipped_and_counted(t: TestLedger) {
    t.ledger.pause(&Pausable::Schedule("nightly".into()), &ada(), t.now()).await.unwrap();
    let first = t.now();
    t.clock.advance(Duration::from_hours(7));
    assert!(matches!(fire(&t, &missed(&t, first)).await, Fired::Skipped(_)));
    let row = firings(&t).await.pop().unwrap();
    assert_eq!((row.outcome, row.times), (FiringOutcome::Skipped, 7));
    assert!(t.claim(10).await.is_empty(), "who paused it knows");
}

async fn missed_times_are_one_row_and_one_notice(t: TestLedger) {
    let first = t.now();
    t.clock.advance(Duration::from_hours(7));
    let stretch = missed(&t, first);
    assert!(matches!(fire(&t, &stretch).await, Fired::Missed(_)));
    // Another producer saw it a little later, and longer.
    t.clock.advance(Duration::from_hours(1));
    assert_eq!(fire(&t, &missed(&t, first)).await, Fired::Before);
    let within = Firing { nominal: earlier(stretch.nominal, Duration::from_hours(1)), ..next(&t, Overlap::Skip) };
    assert_eq!(fire(&t, &within).await, Fired::Before, "they are settled, one and all");
    let row = firings(&t).await.pop().unwrap();
    assert_eq!((row.outcome, row.times, row.reason.as_deref()), (FiringOutcome::Missed, 7, Some("nobody was there")));
    let told = t.ledger.jobs(&JobFilter { kind: Some("notify".into()), limit: 9, ..JobFilter::default() }).await;
    assert_eq!(told.unwrap().len(), 1);
}

async fn work_that_is_under_way_under_its_key_is_told(t: TestLedger) {
    let key = Some(Key { scope: "noop".into(), key: "only".into(), hold: Duration::from_hours(24) });
    let keyed = || NewJob { key: key.clone(), ..t.job() };
    let by_hand = t.enqueue(&[keyed()]).await[0];
    let work = NewWork::Job(Box::new(keyed()));
    let same = Firing { due: Due::Work { work, overlap: Overlap::Skip }, ..next(&t, Overlap::Skip) };
    assert!(matches!(fire(&t, &same).await, Fired::Now(_)));
    let row = firings(&t).await.pop().unwrap();
    assert_eq!((row.job, row.reason.as_deref()), (Some(by_hand), Some("the same was under way already")));
}
