//! Schedulers before a ledger, with a clock that is driven by hand: whoever dies, each nominal time is settled once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use producer::{ScheduleConfig, Scheduler, SchedulerConfig, Startable};
use queue::ledger::{GENERATION_MEMORY, JobFilter, Pausable};
use queue::{MissedTimes, Queue, QueueConfig};
use schemas::api::{FiringOutcome, FiringView};
use schemas::{Names, Schedule, Timestamp};
use serde_json::{Value, json};
use tests::faulty::FaultyLedger;
use tests::ledgers::{TestLedger, ada, completed, new_job};

on_every_engine![
    each_nominal_time_fires_once_though_producers_die,
    a_new_schedule_starts_nothing_from_before_its_first_sight,
    what_fell_into_a_downtime_is_made_up_for_or_told_as_it_is_configured,
    a_night_that_clocks_are_changed_in_has_each_time_once,
    a_producer_with_an_older_configuration_keeps_still_and_takes_over_later,
    what_waits_for_earlier_work_fires_when_that_has_ended,
    a_ledger_that_is_away_delays_and_loses_nothing,
    a_pause_is_kept_to_and_what_passed_is_not_made_up_for,
];

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// What the schedulers of a test have in common.
struct Site {
    t: TestLedger,
    ledger: Arc<FaultyLedger>,
    told: Arc<Mutex<Vec<MissedTimes>>>,
}

impl Site {
    /// At this moment.
    fn at(t: TestLedger, moment: &str) -> Self {
        let moment: Timestamp = moment.parse().unwrap();
        t.clock.advance((moment - t.now()).to_std().expect("a moment after the test ledger's"));
        let ledger = FaultyLedger::before(Arc::clone(&t.ledger));
        Self { t, ledger, told: Arc::default() }
    }

    /// A producer of this configuration; what is said of a schedule stands over what all have.
    async fn producer(&self, config: &str, schedules: Value) -> Scheduler {
        let broker = queue::broker::open(&QueueConfig::new("sqlite:none", "in-process").broker).await.unwrap();
        let catalog = Arc::new(worker::jobs::registry().catalog(Names::default()));
        let startable = Startable { catalog, runbooks: Arc::new(BTreeMap::new()) };
        let build = |(name, own): (&String, &Value)| -> Schedule {
            let mut config = json!({"run": {"job": "noop", "with": {"message": "{{ schedule.time }}"}}});
            config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
            serde_json::from_value::<ScheduleConfig>(config).unwrap().build(name, &startable).unwrap()
        };
        let told = Arc::clone(&self.told);
        Scheduler::new(SchedulerConfig {
            queue: Queue::with_parts(self.ledger.clone(), broker, self.t.clock.clone()),
            schedules: schedules.as_object().unwrap().iter().map(build).collect(),
            startable: startable.clone(),
            config_digest: config.to_owned(),
            notice: Some(Arc::new(move |missed, now| {
                told.lock().unwrap().push(missed.clone());
                Some(new_job("notify", "{}", now))
            })),
        })
    }

    /// Lets time pass, while these producers look at each of its minutes.
    async fn pass(&self, time: Duration, producers: &mut [Scheduler]) {
        for _ in 0..time.as_secs() / 60 {
            self.t.clock.advance(MINUTE);
            for producer in &mut *producers {
                producer.look().await;
            }
        }
    }

    /// What became of the nominal times, the oldest first.
    async fn firings(&self, schedule: &str) -> Vec<FiringView> {
        let mut firings = self.t.ledger.firings(schedule, 500).await.unwrap();
        firings.reverse();
        firings
    }

    /// The same in short: `fired 02:00`.
    async fn became(&self, schedule: &str) -> Vec<String> {
        let short = |firing: FiringView| format!("{} {}", firing.outcome.as_str(), firing.nominal.format("%H:%M"));
        self.firings(schedule).await.into_iter().map(short).collect()
    }

    /// The jobs, by the nominal time that they were made for, the oldest first.
    async fn jobs(&self) -> Vec<String> {
        let filter = JobFilter { kind: Some("noop".into()), limit: 500, ..JobFilter::default() };
        let jobs = self.t.ledger.jobs(&filter).await.unwrap();
        jobs.iter().rev().map(|job| job.args["message"].as_str().unwrap()[11..16].to_owned()).collect()
    }
}

async fn each_nominal_time_fires_once_though_producers_die(t: TestLedger) {
    let site = Site::at(t, "2027-03-01T00:00:30Z");
    let schedules = json!({"often": {"cron": "*/7 * * * *", "overlap": "queue", "catch_up": "all", "jitter": "3m"}});
    let mut alive = vec![site.producer("a", schedules.clone()).await, site.producer("a", schedules.clone()).await];
    for round in 0..3 {
        site.pass(HOUR, &mut alive).await;
        // Some die in the midst of a look, wherever they are just then, and another begins.
        for polls in 0..30 {
            site.t.clock.advance(MINUTE);
            let dies_after = async {
                for _ in 0..polls {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                () = dies_after => {}
                _ = alive[0].look() => {}
            }
            alive[0] = site.producer("a", schedules.clone()).await;
        }
        // One dies, and is gone for a while; then all are, for less than would be missed by `all`.
        drop(alive.remove(round % 2));
        site.pass(HOUR / 2, &mut alive).await;
        alive.clear();
        site.pass(HOUR, &mut alive).await;
        alive = vec![site.producer("a", schedules.clone()).await, site.producer("a", schedules.clone()).await];
        for job in site.t.claim(100).await {
            site.t.finish(job.id, completed(None)).await;
        }
    }
    site.pass(HOUR, &mut alive).await;
    for _ in 0..200 {
        // Whatever waits has its turn.
        for job in site.t.claim(100).await {
            site.t.finish(job.id, completed(None)).await;
        }
        site.pass(MINUTE, &mut alive[..1]).await;
    }
    let firings = site.firings("often").await;
    let told: Vec<Timestamp> = firings.iter().map(|firing| firing.nominal).collect();
    let table = schemas::Timetable::read("*/7 * * * *", "UTC").unwrap();
    let first = "2027-03-01T00:00:30Z".parse().unwrap();
    let expected: Vec<Timestamp> = table.times_after(first).take(told.len()).collect();
    assert_eq!(told, expected, "never one missing, never one twice");
    assert!(told.len() > 100, "{}", told.len());
    let fired: Vec<_> = firings.iter().filter(|firing| firing.outcome == FiringOutcome::Fired).collect();
    assert!(fired.len() + 3 >= firings.len(), "at the end at most some wait: {firings:?}");
    assert_eq!(site.jobs().await.len(), fired.len(), "one job for each");
}

async fn a_new_schedule_starts_nothing_from_before_its_first_sight(t: TestLedger) {
    let site = Site::at(t, "2027-03-01T12:00:00Z");
    let mut producer = [site.producer("a", json!({"daily": {"cron": "0 2 * * *", "catch_up": "all"}})).await];
    site.pass(HOUR * 13, &mut producer).await;
    assert_eq!(site.became("daily").await, [""; 0]);
    site.pass(HOUR * 2, &mut producer).await;
    assert_eq!(site.became("daily").await, ["fired 02:00"]);
    // Another timetable begins when it is first seen as well.
    let mut changed = [site.producer("b", json!({"daily": {"cron": "0 1 * * *", "catch_up": "all"}})).await];
    site.pass(HOUR, &mut changed).await;
    assert_eq!(site.became("daily").await.len(), 1);
}

async fn what_fell_into_a_downtime_is_made_up_for_or_told_as_it_is_configured(t: TestLedger) {
    let site = Site::at(t, "2027-03-01T01:30:00Z");
    let hourly =
        |catch_up: &str| json!({"cron": "0 * * * *", "catch_up": catch_up, "catch_up_limit": 2, "overlap": "queue"});
    let schedules = json!({"all": hourly("all"), "once": hourly("once"), "skip": hourly("skip")});
    let mut producer = [site.producer("a", schedules.clone()).await];
    site.pass(MINUTE, &mut producer).await;
    site.t.clock.advance(HOUR * 5);
    // Two come up at the same moment.
    let mut both = [site.producer("a", schedules.clone()).await, site.producer("a", schedules).await];
    site.pass(MINUTE, &mut both).await;
    assert_eq!(site.became("skip").await, ["missed 06:00"]);
    assert_eq!(site.became("once").await, ["missed 05:00", "fired 06:00"]);
    assert_eq!(site.became("all").await, ["missed 04:00", "fired 05:00", "waiting 06:00"]);
    let skipped = &site.firings("skip").await[0];
    assert_eq!(skipped.times, 5);
    assert!(skipped.reason.as_deref().unwrap().contains("catch_up = \"skip\""), "{skipped:?}");
    let notices = JobFilter { kind: Some("notify".into()), limit: 9, ..JobFilter::default() };
    assert_eq!(site.t.ledger.jobs(&notices).await.unwrap().len(), 2, "of skip and of all, once each");
    let told = site.told.lock().unwrap().clone();
    let skip = told.iter().find(|missed| missed.schedule == "skip").unwrap();
    assert_eq!((skip.times, skip.last - skip.first), (5, chrono::TimeDelta::hours(4)));
    assert!(told.iter().all(|missed| missed.schedule != "once"));
}

async fn a_night_that_clocks_are_changed_in_has_each_time_once(t: TestLedger) {
    let site = Site::at(t, "2027-03-27T20:00:00Z");
    let zone = json!({"nightly": {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}});
    let mut producer = [site.producer("a", zone.clone()).await];
    site.pass(HOUR * 12, &mut producer).await;
    assert_eq!(site.became("nightly").await, ["fired 01:00"], "02:30 is left out: it comes after the gap");
    site.t.complete_next(None).await;
    site.t.clock.advance(("2027-10-30T20:00:00Z".parse::<Timestamp>().unwrap() - site.t.now()).to_std().unwrap());
    let mut producer =
        [site.producer("b", json!({"nightly": {"cron": "30 2 * * *", "timezone": "Europe/Vienna"}})).await];
    site.pass(HOUR * 12, &mut producer).await;
    assert_eq!(site.became("nightly").await, ["fired 01:00", "fired 00:30"], "02:30 comes twice, and counts once");
}

async fn a_producer_with_an_older_configuration_keeps_still_and_takes_over_later(t: TestLedger) {
    let site = Site::at(t, "2027-03-01T00:30:30Z");
    let old = json!({"daily": {"cron": "0 * * * *", "overlap": "queue"}, "gone": {"cron": "0 * * * *"}});
    let mut old = [site.producer("old", old).await];
    site.pass(MINUTE, &mut old).await;
    let mut new = [site.producer("new", json!({"daily": {"cron": "30 * * * *", "overlap": "queue"}})).await];
    site.pass(MINUTE, &mut new).await;
    let mut both = [old, new].into_iter().flatten().collect::<Vec<_>>();
    site.pass(HOUR, &mut both).await;
    assert_eq!(site.became("daily").await, ["fired 01:30"]);
    assert_eq!(site.became("gone").await, [""; 0], "it is not configured any more");
    // The new one is taken back.
    both.truncate(1);
    site.pass(GENERATION_MEMORY + MINUTE, &mut both).await;
    site.pass(HOUR, &mut both).await;
    site.t.complete_next(None).await;
    site.pass(MINUTE, &mut both).await;
    assert_eq!(site.became("daily").await, ["fired 01:30", "fired 02:00"]);
    assert_eq!(site.became("gone").await, ["fired 02:00"]);
}

async fn what_waits_for_earlier_work_fires_when_that_has_ended(t: TestLedger) {
    let site = Site::at(t, "2027-03-01T00:30:00Z");
    let hourly = |overlap: &str| json!({"cron": "0 * * * *", "overlap": overlap});
    let schedules = json!({"cancel": hourly("cancel_running"), "queue": hourly("queue"), "skip": hourly("skip")});
    let mut producer = [site.producer("a", schedules.clone()).await];
    site.pass(HOUR * 2, &mut producer).await;
    assert_eq!(site.became("queue").await, ["fired 01:00", "waiting 02:00"]);
    assert_eq!(site.became("skip").await, ["fired 01:00", "skipped 02:00"]);
    // What had not begun is cancelled at once.
    assert_eq!(site.became("cancel").await, ["fired 01:00", "fired 02:00"]);
    let cancelled = site.t.view(site.firings("cancel").await[0].job.unwrap()).await;
    assert!(cancelled.reason.unwrap().starts_with("cancelled by schedule:cancel: "));
    // Whoever comes next knows what waits.
    let mut another = [site.producer("a", schedules).await];
    while let Some(job) = site.t.claim(1).await.pop() {
        site.t.finish(job.id, completed(None)).await;
        site.pass(MINUTE, &mut another).await;
    }
    assert_eq!(site.became("queue").await, ["fired 01:00", "fired 02:00"]);
}

async fn a_ledger_that_is_away_delays_and_loses_nothing(t: TestLedger) {
    let site = Site::at(t, "2027-03-01T00:58:00Z");
    let mut producer = [site.producer("a", json!({"hourly": {"cron": "0 * * * *", "catch_up": "skip"}})).await];
    site.pass(MINUTE, &mut producer).await;
    site.ledger.break_methods(&["fire", "announce"]);
    site.pass(MINUTE * 8, &mut producer).await;
    site.ledger.mend();
    site.pass(MINUTE, &mut producer).await;
    assert_eq!(site.became("hourly").await, ["fired 01:00"], "it is late, and not missed");
    assert_eq!(site.jobs().await, ["01:00"]);
    let idle = site.ledger.calls("announce") + site.ledger.calls("fire");
    for _ in 0..600 {
        site.t.clock.advance(Duration::from_secs(1));
        producer[0].look().await;
    }
    let asked = site.ledger.calls("announce") + site.ledger.calls("fire") - idle;
    assert!(asked <= 21, "an idle scheduler asks twice a minute, not {asked} times in ten minutes");
}

async fn a_pause_is_kept_to_and_what_passed_is_not_made_up_for(t: TestLedger) {
    let site = Site::at(t, "2027-03-01T00:30:00Z");
    let mut producer = [site.producer("a", json!({"hourly": {"cron": "0 * * * *", "catch_up": "all"}})).await];
    site.pass(MINUTE, &mut producer).await;
    let hourly = Pausable::Schedule("hourly".into());
    site.t.ledger.pause(&hourly, &ada(), site.t.now()).await.unwrap();
    site.pass(HOUR * 2, &mut producer).await;
    site.t.ledger.resume(&hourly, &ada(), site.t.now()).await.unwrap();
    site.pass(HOUR, &mut producer).await;
    assert_eq!(site.became("hourly").await, ["skipped 01:00", "skipped 02:00", "fired 03:00"]);
    assert!(site.told.lock().unwrap().is_empty(), "who paused it knows");
}
