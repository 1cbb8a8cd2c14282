//! Firing as the ledger's contract: once for each nominal time, by the newest configuration.

use std::sync::Arc;
use std::time::Duration;

use queue::clock::later;
use queue::ledger::{DELIVERY_MEMORY, Fired, Firing, GENERATION_MEMORY, JobFilter};
use tests::ledgers::TestLedger;

on_every_engine![
    a_nominal_time_fires_once_however_many_ask,
    another_time_or_another_schedule_fires_as_well,
    the_newest_configuration_fires_while_it_is_alive,
    what_fired_is_remembered_as_long_as_deliveries_are,
];

fn firing(t: &TestLedger, schedule: &str, config: &str) -> Firing {
    let job = t.job();
    let nominal = t.now();
    Firing { schedule: schedule.into(), nominal, config_digest: config.into(), jobs: vec![job], runs: vec![] }
}

async fn a_nominal_time_fires_once_however_many_ask(t: TestLedger) {
    const PRODUCERS: usize = 16;
    let first = firing(&t, "nightly", "a");
    let asks = (0..PRODUCERS).map(|_| {
        // Each producer makes jobs of its own for the same nominal time.
        let own = Firing { jobs: vec![t.job()], ..first.clone() };
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
}

async fn another_time_or_another_schedule_fires_as_well(t: TestLedger) {
    let first = firing(&t, "nightly", "a");
    assert!(matches!(t.ledger.fire(&first, t.now()).await.unwrap(), Fired::Now(_)));
    let weekly = Firing { schedule: "weekly".into(), jobs: vec![t.job()], ..first.clone() };
    assert!(matches!(t.ledger.fire(&weekly, t.now()).await.unwrap(), Fired::Now(_)));
    let next = Firing { nominal: later(first.nominal, Duration::from_hours(24)), jobs: vec![t.job()], ..first };
    assert!(matches!(t.ledger.fire(&next, t.now()).await.unwrap(), Fired::Now(_)));
}

async fn the_newest_configuration_fires_while_it_is_alive(t: TestLedger) {
    assert!(t.ledger.announce("old", t.now()).await.unwrap());
    assert!(t.ledger.announce("new", t.now()).await.unwrap());
    assert!(!t.ledger.announce("old", t.now()).await.unwrap(), "an older producer is told, and can warn");
    assert_eq!(t.ledger.fire(&firing(&t, "nightly", "old"), t.now()).await.unwrap(), Fired::Outdated);
    let mut as_new = firing(&t, "nightly", "new");
    as_new.nominal = t.now();
    assert!(matches!(t.ledger.fire(&as_new, t.now()).await.unwrap(), Fired::Now(_)));
    // A producer with the old configuration starts again: that makes it no newer.
    assert!(!t.ledger.announce("old", t.now()).await.unwrap());
    // The new one is taken back: nobody has it any more, and after a while the old one fires again.
    t.clock.advance(GENERATION_MEMORY);
    assert!(t.ledger.announce("old", t.now()).await.unwrap());
    assert!(matches!(t.ledger.fire(&firing(&t, "nightly", "old"), t.now()).await.unwrap(), Fired::Now(_)));
    assert!(t.ledger.announce("new", t.now()).await.unwrap(), "it is back");
    assert_eq!(t.ledger.fire(&firing(&t, "nightly", "old"), t.now()).await.unwrap(), Fired::Outdated);
}

async fn what_fired_is_remembered_as_long_as_deliveries_are(t: TestLedger) {
    let minute = Duration::from_mins(1);
    let first = firing(&t, "nightly", "a");
    t.ledger.fire(&first, t.now()).await.unwrap();
    t.clock.advance(DELIVERY_MEMORY.saturating_sub(minute));
    t.ledger.prune(100, t.now()).await.unwrap();
    assert_eq!(t.ledger.fire(&first, t.now()).await.unwrap(), Fired::Before);
    t.clock.advance(minute);
    assert_eq!(t.ledger.prune(100, t.now()).await.unwrap(), 1);
}
