//! What the ledger writes down to be announced: everything, in order, until it is said to be announced.

use std::time::Duration;

use queue::clock::later;
use queue::ledger::{self, Desk, Happened, Horizons, NewDelivery, Repeats, ToAnnounce, Turn};
use schemas::{EventId, JobId, JobState, NewRun, TraceContext, WorkerId};
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use tests::ledgers::{LEASE, TestLedger, ada, discarded};
use tests::postgres::fresh_database;
use uuid::Uuid;

on_every_engine![
    everything_that_happens_is_written_down_while_it_is_on_and_nothing_while_it_is_off,
    what_is_given_out_is_given_again_under_its_number_until_it_is_announced,
    one_herald_has_the_turn_until_it_passes_it_on_or_is_silent,
    the_newest_configuration_decides_whether_anything_is_announced,
    what_is_forgotten_before_it_was_announced_leaves_a_gap,
];

const TURN: Duration = Duration::from_secs(30);

/// Turns it on, by a configuration of that name.
async fn turn_on(t: &TestLedger, config: &str) {
    assert!(t.ledger.set_announcing(true, config, t.now()).await.unwrap());
}

async fn turn(t: &TestLedger, herald: WorkerId, limit: u32) -> Turn {
    t.ledger.next_announcements(herald, limit, later(t.now(), TURN), t.now()).await.unwrap()
}

async fn next(t: &TestLedger, herald: WorkerId, limit: u32) -> Vec<ToAnnounce> {
    match turn(t, herald, limit).await {
        Turn::Ours(next) => next,
        other => panic!("it is not our turn: {other:?}"),
    }
}

async fn announced(t: &TestLedger, herald: WorkerId, said: &[ToAnnounce]) -> bool {
    let numbers: Vec<i64> = said.iter().map(|one| one.number).collect();
    t.ledger.announced(herald, &numbers, t.now()).await.unwrap()
}

fn a_herald() -> WorkerId {
    WorkerId(Uuid::new_v4())
}

fn event_of(one: &ToAnnounce) -> Option<EventId> {
    match &one.what {
        Happened::Event { id, .. } => Some(*id),
        Happened::Job(_) => None,
    }
}

fn end_of(one: &ToAnnounce) -> Option<(JobId, JobState)> {
    match &one.what {
        Happened::Event { .. } => None,
        Happened::Job(end) => Some((end.job, end.state)),
    }
}

async fn everything_that_happens_is_written_down_while_it_is_on_and_nothing_while_it_is_off(t: TestLedger) {
    let herald = a_herald();
    t.accept(&t.delivery("before", b"0")).await;
    t.complete_next(None).await;
    assert_eq!(turn(&t, herald, 100).await, Turn::Off);
    assert_eq!(t.count("announcement").await, 0);
    turn_on(&t, "one").await;
    turn_on(&t, "one").await; // twice is once

    let trace =
        TraceContext { traceparent: Some(format!("00-{}-{}-01", "a".repeat(32), "b".repeat(16))), tracestate: None };
    let delivery = t.delivery("d-1", b"1");
    let delivery = NewDelivery { trace: trace.clone(), ..delivery };
    t.accept(&delivery).await;
    t.accept(&delivery).await; // a repeat is nothing new
    let held = NewDelivery { repeats: Repeats::AreHeld, jobs: Vec::new(), ..t.delivery("d-2", b"held") };
    let known = NewDelivery { repeats: Repeats::AreHeld, jobs: Vec::new(), ..t.delivery("d-3", b"held") };
    t.accept(&held).await;
    t.accept(&known).await;
    let unreadable = NewDelivery { unreadable: Some("no".into()), jobs: Vec::new(), ..t.delivery("d-4", b"4") };
    t.accept(&unreadable).await;
    t.ledger.release(known.event.id, &[], &[], &ada(), t.now()).await.unwrap();
    let done = t.complete_next(Some(json!({"n": 1}))).await;

    let run = t.run(&[("first", &[], None), ("second", &["first"], None)]);
    t.ledger.start(&run, t.now()).await.unwrap();
    let first = t.claim_one().await;
    assert!(t.finish(first.id, discarded("broken \u{1} \"quoted\"")).await);
    let cancelled = t.enqueue(&[t.job()]).await[0];
    Desk::cancel(&*t.ledger, cancelled, &ada(), t.now()).await.unwrap();
    // Retried, it ends again.
    Desk::retry(&*t.ledger, cancelled, &ada(), t.now()).await.unwrap();
    assert_eq!(t.complete_next(None).await, cancelled);
    let crashed = three_crashes(&t).await;

    let all = next(&t, herald, 100).await;
    let events: Vec<EventId> = all.iter().filter_map(event_of).collect();
    assert_eq!(events, [delivery.event.id, held.event.id, known.event.id]);
    let ends: Vec<(JobId, JobState)> = all.iter().filter_map(end_of).collect();
    let second = run.jobs[1].job.id;
    let expected = [
        (done, JobState::Completed),
        (first.id.job, JobState::Discarded),
        (second, JobState::Skipped),
        (cancelled, JobState::Cancelled),
        (cancelled, JobState::Completed),
        (crashed, JobState::Discarded),
    ];
    assert_eq!(ends, expected);
    says_what_is_known(&t, &all, &delivery, &run).await;
    assert!(announced(&t, herald, &all).await);
    assert_eq!(next(&t, herald, 100).await, []);
    assert_eq!(t.count("announcement").await, 0);
}

/// Has a job crash until it is given up.
async fn three_crashes(t: &TestLedger) -> JobId {
    let job = t.enqueue(&[t.job()]).await[0];
    for _ in 0..3 {
        assert_eq!(t.claim_one().await.id.job, job);
        t.clock.advance(LEASE * 2);
        t.rescue().await;
    }
    assert_eq!(t.state(job).await, JobState::Discarded);
    job
}

/// All that a listener needs is there.
async fn says_what_is_known(t: &TestLedger, all: &[ToAnnounce], delivery: &NewDelivery, run: &NewRun) {
    let numbers: Vec<i64> = all.iter().map(|one| one.number).collect();
    assert_eq!(numbers, (1..=i64::try_from(all.len()).unwrap()).collect::<Vec<_>>());
    let Happened::Event { source, kind, delivery_id, subject, time, data, .. } = &all[0].what else { panic!() };
    assert_eq!(
        (source, kind, delivery_id),
        (&delivery.event.source, &delivery.event.kind, &delivery.event.delivery_id)
    );
    assert_eq!((subject, *time, &**data), (&delivery.event.subject, delivery.event.time, &delivery.event.data));
    assert_eq!(all[0].trace, delivery.trace);
    let jobs: Vec<_> =
        all.iter().filter_map(|one| if let Happened::Job(end) = &one.what { Some(end) } else { None }).collect();
    let view = t.view(jobs[0].job).await;
    assert_eq!((jobs[0].event, jobs[0].attempt, jobs[0].kind.as_str()), (Some(delivery.event.id), 1, "noop"));
    assert_eq!((Some(jobs[0].finished_at), jobs[0].created_at), (view.finished_at, view.created_at));
    assert_eq!((jobs[1].run, jobs[1].reason.as_deref()), (Some(run.id), Some("broken \u{1} \"quoted\"")));
    assert_eq!((jobs[2].started_at, jobs[2].attempt), (None, 0));
}

async fn what_is_given_out_is_given_again_under_its_number_until_it_is_announced(t: TestLedger) {
    let herald = a_herald();
    turn_on(&t, "one").await;
    for id in ["1", "2", "3"] {
        t.accept(&t.delivery(id, id.as_bytes())).await;
    }
    let given = next(&t, herald, 2).await;
    t.accept(&t.delivery("4", b"4")).await;
    assert_eq!(next(&t, herald, 100).await, given, "nothing else comes before them");
    // One of them was published, the other was not.
    assert!(announced(&t, herald, &given[..1]).await);
    assert_eq!(next(&t, herald, 100).await, given[1..]);
    t.clock.advance(TURN * 2);
    let other = a_herald();
    assert_eq!(next(&t, other, 100).await, given[1..], "who follows goes on where it was left");
    // What was published was published, whoever says so.
    assert!(!announced(&t, herald, &given[1..]).await, "but it is told that its turn is over");
    let rest = next(&t, other, 100).await;
    assert_eq!(rest.iter().map(|one| one.number).collect::<Vec<_>>(), [3, 4]);
}

async fn one_herald_has_the_turn_until_it_passes_it_on_or_is_silent(t: TestLedger) {
    let (one, other) = (a_herald(), a_herald());
    turn_on(&t, "one").await;
    assert_eq!(turn(&t, one, 1).await, Turn::Ours(vec![]));
    assert_eq!(turn(&t, other, 1).await, Turn::Theirs);
    t.clock.advance(TURN / 2);
    assert_eq!(turn(&t, one, 1).await, Turn::Ours(vec![]), "it keeps it by asking");
    t.clock.advance(TURN / 2);
    assert_eq!(turn(&t, other, 1).await, Turn::Theirs);
    t.ledger.pass_turn(other).await.unwrap();
    assert_eq!(turn(&t, other, 1).await, Turn::Theirs, "nobody passes on what is not theirs");
    t.clock.advance(TURN);
    assert_eq!(turn(&t, other, 1).await, Turn::Ours(vec![]));
    assert_eq!(turn(&t, one, 1).await, Turn::Theirs);
    t.ledger.pass_turn(other).await.unwrap();
    assert_eq!(turn(&t, one, 1).await, Turn::Ours(vec![]));
}

async fn the_newest_configuration_decides_whether_anything_is_announced(t: TestLedger) {
    let herald = a_herald();
    assert!(t.ledger.set_announcing(false, "old", t.now()).await.unwrap());
    turn_on(&t, "new").await;
    assert!(!t.ledger.set_announcing(false, "old", t.now()).await.unwrap(), "it is outdated");
    t.accept(&t.delivery("1", b"1")).await;
    assert_eq!(next(&t, herald, 100).await.len(), 1);
    // Who goes back to the old one is heard when the new one has been silent for long enough.
    t.clock.advance(ledger::GENERATION_MEMORY * 2);
    assert!(t.ledger.set_announcing(false, "old", t.now()).await.unwrap());
    assert_eq!(turn(&t, herald, 100).await, Turn::Off);
    assert_eq!(t.count("announcement").await, 0, "what nobody will announce is forgotten");
    t.accept(&t.delivery("2", b"2")).await;
    assert_eq!(t.count("announcement").await, 0);
    assert!(t.ledger.oldest_unannounced().await.unwrap().is_none());
    // Numbers are never given twice.
    turn_on(&t, "newest").await;
    t.accept(&t.delivery("3", b"3")).await;
    assert_eq!(next(&t, herald, 100).await[0].number, 2);
}

async fn what_is_forgotten_before_it_was_announced_leaves_a_gap(t: TestLedger) {
    let herald = a_herald();
    turn_on(&t, "one").await;
    t.accept(&t.delivery("1", b"1")).await;
    assert_eq!(next(&t, herald, 100).await[0].number, 1);
    for id in ["2", "3"] {
        t.accept(&t.delivery(id, id.as_bytes())).await;
    }
    let oldest = t.ledger.oldest_unannounced().await.unwrap().expect("three wait");
    assert!(oldest <= t.now());
    t.clock.advance(Duration::from_hours(48));
    t.accept(&t.delivery("4", b"4")).await;
    let yesterday = Some(t.now() - chrono::TimeDelta::hours(24));
    let horizons = Horizons { events: yesterday, ..Horizons::default() };
    while t.ledger.forget(&horizons, 2).await.unwrap() > 0 {}
    let left = next(&t, herald, 100).await;
    assert_eq!(left.iter().map(|one| one.number).collect::<Vec<_>>(), [4], "two numbers were left out");
}

#[tokio::test]
async fn what_is_committed_late_under_an_earlier_id_is_not_skipped() {
    let url = fresh_database().await;
    let t = TestLedger::postgres_at(&url).await;
    let herald = a_herald();
    turn_on(&t, "one").await;
    // A producer that has written and not committed yet.
    let mut slow = PgConnection::connect(&url).await.unwrap();
    let late = Uuid::new_v4();
    slow.execute("begin; set local search_path = nightporter").await.unwrap();
    sqlx::query(
        "insert into event (id, source, kind, delivery_id, time, data, standing, received_at, config_digest)
         values ($1, 'github', 'github.push', 'late', 1, '{}', 0, 1, '')",
    )
    .bind(late)
    .execute(&mut slow)
    .await
    .unwrap();
    let quick = t.delivery("quick", b"1");
    t.accept(&quick).await;
    let first = next(&t, herald, 100).await;
    assert_eq!(first.iter().filter_map(event_of).collect::<Vec<_>>(), [quick.event.id]);
    assert!(announced(&t, herald, &first).await);
    slow.execute("commit").await.unwrap();
    let second = next(&t, herald, 100).await;
    assert_eq!(second.iter().filter_map(event_of).collect::<Vec<_>>(), [EventId(late)]);
    assert_eq!(second[0].number, 2, "its place is after what was announced already");
}

#[tokio::test]
async fn nothing_of_it_is_in_the_way_of_a_delivery_while_it_is_off() {
    let url = fresh_database().await;
    let t = TestLedger::postgres_at(&url).await;
    assert!(t.ledger.set_announcing(false, "one", t.now()).await.unwrap());
    let mut meddler = PgConnection::connect(&url).await.unwrap();
    let triggers = "select count(*) from pg_trigger t join pg_class c on c.oid = t.tgrelid
                    where c.relnamespace = 'nightporter'::regnamespace and not t.tgisinternal";
    let count: i64 = sqlx::query_scalar(triggers).fetch_one(&mut meddler).await.unwrap();
    assert_eq!(count, 0, "no trigger of ours");
    turn_on(&t, "one").await;
    let count: i64 = sqlx::query_scalar(triggers).fetch_one(&mut meddler).await.unwrap();
    assert_eq!(count, 3);
}
