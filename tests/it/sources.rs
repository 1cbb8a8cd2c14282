//! Sources as the ledger's contract, and a silence from the door to the channel.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use queue::NoticeOfSilence;
use queue::clock::later;
use queue::ledger::{Horizons, Listened, Silence};
use schemas::Names;
use serde_json::{Value, json};
use tests::backup_world::BackupWorld;
use tests::door_world::ServedDoor;
use tests::ledgers::{TestLedger, new_job};
use tests::migration_world::Github;
use tests::porter::eventually;
use tests::receiver::Receiver;
use worker::WorldConfig;

on_every_engine![
    silence_is_told_once_by_many_producers_and_so_is_its_end,
    time_in_which_nobody_listens_is_no_silence,
    a_source_that_may_be_silent_is_never_told_of,
    the_alarm_of_a_source_that_is_not_watched_any_more_ends,
    deliveries_are_known_longer_than_their_events,
];

const MINUTE: Duration = Duration::from_mins(1);

fn listened(t: &TestLedger, heard_ago: Option<Duration>) -> Listened {
    let heard_at = heard_ago.map(|ago| queue::clock::earlier(t.now(), ago));
    Listened { source: "github".into(), heard_at, silent_after: Some(Duration::from_hours(2)) }
}

fn notice() -> NoticeOfSilence {
    Arc::new(|silence: &Silence, now| Some(new_job("notify", &format!(r#"{{"over":{}}}"#, silence.is_over), now)))
}

/// Several producers look at the same time; what changed by it, in all.
async fn look(t: &TestLedger, heard_ago: Option<Duration>) -> Vec<Silence> {
    let looks = (0..5).map(|_| {
        let (ledger, now, listened) = (Arc::clone(&t.ledger), t.now(), listened(t, heard_ago));
        tokio::spawn(async move { ledger.listen(&[listened], Some(&notice()), now).await.unwrap().0 })
    });
    let mut changed = Vec::new();
    for look in looks.collect::<Vec<_>>() {
        changed.extend(look.await.unwrap());
    }
    changed
}

/// Looks each minute of this time.
async fn pass(t: &TestLedger, time: Duration) -> Vec<Silence> {
    let mut changed = Vec::new();
    for _ in 0..time.as_secs() / 60 {
        t.clock.advance(MINUTE);
        changed.extend(look(t, None).await);
    }
    changed
}

async fn silence_is_told_once_by_many_producers_and_so_is_its_end(t: TestLedger) {
    assert!(look(&t, None).await.is_empty());
    let since = t.ledger.source("github").await.unwrap().unwrap();
    assert_eq!((since.since, since.heard_at, since.silent_at), (t.now(), None, None));
    let changed = pass(&t, Duration::from_hours(3)).await;
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!((changed[0].is_over, changed[0].quiet, changed[0].heard_at), (false, MINUTE * 120, None));
    assert_eq!(t.claim(10).await.len(), 1, "one notice");
    // One of them hears it again.
    let heard = look(&t, Some(Duration::from_secs(3))).await;
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert!(heard[0].is_over && heard[0].heard_at.is_some());
    assert_eq!(t.claim(10).await.len(), 1, "one notice of the end");
    assert!(pass(&t, MINUTE * 119).await.is_empty());
    assert_eq!(pass(&t, MINUTE * 2).await.len(), 1, "and it may fall silent again");
    let kept = t.ledger.source("github").await.unwrap().unwrap();
    assert_eq!(kept.since, since.since);
    assert!(kept.silent_at.is_some() && kept.heard_at.is_some());
}

async fn time_in_which_nobody_listens_is_no_silence(t: TestLedger) {
    look(&t, Some(MINUTE)).await;
    t.clock.advance(Duration::from_hours(48));
    assert!(look(&t, None).await.is_empty(), "a downtime is none of the source's");
    // What was listened to before counts on: 6 minutes (the downtime's 5 included), and 114 more.
    assert!(pass(&t, MINUTE * 113).await.is_empty());
    assert_eq!(pass(&t, MINUTE).await.len(), 1);
}

async fn a_source_that_may_be_silent_is_never_told_of(t: TestLedger) {
    for _ in 0..50 {
        t.clock.advance(MINUTE * 4);
        let listened = Listened { silent_after: None, ..listened(&t, None) };
        assert!(t.ledger.listen(&[listened], Some(&notice()), t.now()).await.unwrap().0.is_empty());
    }
    assert!(t.claim(10).await.is_empty());
}

async fn the_alarm_of_a_source_that_is_not_watched_any_more_ends(t: TestLedger) {
    for is_configured in [true, false] {
        assert_eq!(pass(&t, MINUTE * 130).await.len(), 1);
        let mut changed = Vec::new();
        for _ in 0..20 {
            t.clock.advance(MINUTE);
            // Another source goes on.
            let other = Listened { source: "vercel".into(), heard_at: Some(t.now()), silent_after: None };
            let left = Listened { silent_after: None, ..listened(&t, None) };
            let now = if is_configured { vec![other, left] } else { vec![other] };
            changed.extend(t.ledger.listen(&now, Some(&notice()), t.now()).await.unwrap().0);
        }
        assert_eq!(changed.len(), 1, "once: {changed:?}");
        assert!(changed[0].is_over && !changed[0].is_watched && changed[0].source == "github", "{changed:?}");
        assert_eq!(t.claim(10).await.len(), 2, "a notice of the silence, and one of its end");
        assert_eq!(t.ledger.source("github").await.unwrap().unwrap().silent_at, None);
        // A producer that still has the configuration of before does not raise it again at once.
        assert!(look(&t, None).await.is_empty());
    }
}

async fn deliveries_are_known_longer_than_their_events(t: TestLedger) {
    t.accept(&t.delivery("one", b"1")).await;
    t.accept(&t.delivery("two", b"2")).await;
    let asked = ["one", "two", "three", "o\u{0}ne"].map(str::to_owned);
    let known = || async { t.ledger.known("github", &asked).await.unwrap().into_iter().collect::<Vec<_>>() };
    assert_eq!(known().await, ["one", "two"]);
    assert!(t.ledger.known("vercel", &asked).await.unwrap().is_empty(), "another source's are others");
    assert!(t.ledger.known("github", &[]).await.unwrap().is_empty());
    t.clock.advance(Duration::from_hours(24));
    let soon = Some(later(t.now(), MINUTE));
    let all = Horizons { events: soon, bodies: soon, ..Horizons::default() };
    while t.ledger.forget(&all, 100).await.unwrap() > 0 {}
    assert_eq!(t.count("event").await, 0);
    assert_eq!(known().await, ["one", "two"]);
}

const TEAM_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Waits until so many messages have come; what they say. Time that is moved by hand may end the lease of whoever sends
/// one, and it is sent again under its id.
async fn heard(receiver: &Receiver, messages: usize) -> Vec<Value> {
    eventually("people are told", async || (receiver.effects() == messages).then_some(())).await;
    let mut ids = BTreeSet::new();
    let new = receiver.requests().into_iter().filter(|request| ids.insert(request.header("webhook-id").to_owned()));
    new.map(|request| request.body["data"].clone()).collect()
}

#[tokio::test]
async fn a_silence_is_heard_in_the_channel_once_and_so_is_its_end() {
    let receiver = Receiver::start().await;
    let channel = json!({"webhook": {"url": format!("{}/oncall", receiver.url), "secret": TEAM_SECRET}});
    let channels = [("oncall".to_owned(), serde_json::from_value(channel).unwrap())].into();
    let world = BackupWorld::by_hand(WorldConfig { channels, ..WorldConfig::default() }).await;
    let names = Names { channels: ["oncall".to_owned()].into(), ..Names::default() };
    let notice = worker::notice::on_silence("oncall", worker::jobs::registry().catalog(names));
    let sources = json!({"github": {"secrets": [tests::github_hooks::SECRET], "silent_after": "1h"}});
    let served = ServedDoor::open(&world.queue, &sources).await;
    // A producer beside it, which hears nothing all the time.
    let other = ServedDoor::open(&world.queue, &sources).await;
    let github = Github::default();
    github.hooks(|hooks| hooks.url = Some(served.url("github")));
    let pass = async |minutes: u32| {
        for _ in 0..minutes {
            world.pass(MINUTE).await;
            for door in [&served.door, &other.door] {
                door.look_for_silence(Some(&notice)).await.unwrap();
            }
        }
    };
    let body = json!({"zen": "z", "hook_id": 1, "hook": {}});
    pass(50).await;
    assert_eq!(github.tell("ping", "one", &body).await, 202);
    pass(50).await;
    assert!(receiver.requests().is_empty());
    // What is not believed is not heard.
    let mut forged = worker::world::http_client().post(served.url("github")).body("{}");
    for (name, value) in [("content-type", "application/json"), ("x-github-event", "ping"), ("x-github-delivery", "x")]
    {
        forged = forged.header(name, value);
    }
    assert_eq!(forged.header("x-hub-signature-256", "sha256=00").send().await.unwrap().status(), 401);
    pass(70).await;
    heard(&receiver, 1).await;
    // A repeat is a sign of life too.
    assert_eq!(github.tell("ping", "one", &body).await, 200);
    pass(30).await;
    let said = heard(&receiver, 2).await;
    let alarm = |action: &str| json!({"key": "silent source github", "action": action});
    assert_eq!((&said[0]["title"], &said[0]["alarm"]), (&json!("Source github has gone silent"), &alarm("trigger")));
    assert_eq!((&said[1]["title"], &said[1]["alarm"]), (&json!("Source github speaks again"), &alarm("resolve")));
    world.close().await;
}
