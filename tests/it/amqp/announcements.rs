//! What is announced to other programs.

use std::collections::BTreeMap;
use std::sync::Arc;

use producer::{Announcer, AnnouncerConfig, Door, DoorConfig, Routes, Sources, Spool, SpoolLimits, Startable};
use queue::broker::programs::{self, Programs};
use queue::ledger::{self, NewDelivery, StoredBody};
use queue::{Queue, QueueConfig};
use schemas::{Catalog, Event};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::faulty::FaultyLedger;
use tests::ledgers::{TestLedger, ada, completed, discarded};
use tests::porter::eventually;
use tests::program::{Ear, Program};
use tests::proxy::{Line, Proxy};
use tests::{bell_world as world, server};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

on_every_engine![
    events_and_ends_of_jobs_come_in_their_order_as_cloud_events,
    what_was_published_and_not_noted_comes_again_the_same_and_nothing_is_left_out,
];

/// A queue, of which other programs hear by an exchange.
struct Site {
    t: TestLedger,
    ledger: Arc<FaultyLedger>,
    queue: Queue,
    exchange: String,
    program: Program,
    door: Door,
    _spool: TempDir,
}

/// A producer that announces.
struct Running {
    announcer: Announcer,
    programs: Arc<dyn Programs>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Site {
    async fn new(t: TestLedger) -> Self {
        let ledger = FaultyLedger::before(Arc::clone(&t.ledger));
        let broker = queue::broker::open(&QueueConfig::new("sqlite:none", "in-process").broker).await.unwrap();
        let queue = Queue::with_parts(ledger.clone(), broker, t.clock.clone());
        let spool = tempfile::tempdir().unwrap();
        let door = Door::new(DoorConfig {
            queue: queue.clone(),
            sources: Sources::default(),
            routes: Routes::default(),
            startable: Startable { catalog: Arc::new(Catalog::default()), runbooks: Arc::default() },
            resolver: Arc::default(),
            config_digest: "test".into(),
            spool: Spool::open(spool.path(), SpoolLimits::default()).unwrap(),
        });
        let exchange = format!("test-exchange-{}", Uuid::new_v4());
        Self { t, ledger, queue, exchange, program: Program::connect().await, door, _spool: spool }
    }

    fn announcer(&self, programs: &Arc<dyn Programs>, all: bool) -> Announcer {
        Announcer::new(AnnouncerConfig {
            queue: self.queue.clone(),
            programs: Arc::clone(programs),
            exchange: self.exchange.clone(),
            bodies: all,
            outputs: all,
            door: self.door.clone(),
            config_digest: "test".into(),
        })
    }

    /// Starts a producer that announces by this address, and waits until it is on.
    async fn announce_by(&self, url: &str, all: bool) -> Running {
        let programs = programs::connect(url).unwrap();
        let announcer = self.announcer(&programs, all);
        let stop = CancellationToken::new();
        let task = tokio::spawn(announcer.clone().run(stop.clone()));
        eventually("announcing is on", async || (self.t.count("herald").await == 1).then_some(())).await;
        Running { announcer, programs, stop, task }
    }

    async fn announce(&self) -> Running {
        self.announce_by(&server("NIGHTPORTER_TEST_AMQP"), false).await
    }

    async fn hears(&self) -> Ear {
        self.program.listen(&self.exchange, &["#"]).await
    }

    /// Books a push from this source.
    async fn push(&self, source: &str, id: &str) -> NewDelivery {
        let delivery = self.delivery(source, id);
        self.t.accept(&delivery).await;
        delivery
    }

    fn delivery(&self, source: &str, id: &str) -> NewDelivery {
        let delivery = self.t.delivery(id, format!("{{\"id\":\"{id}\"}}").as_bytes());
        let event = Event { source: source.into(), ..delivery.event };
        NewDelivery { event, jobs: Vec::new(), ..delivery }
    }
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
        self.programs.close().await;
    }
}

/// The numbers of each source, in the order in which they came.
fn sequences(heard: &[(String, Value)]) -> BTreeMap<String, Vec<String>> {
    let mut sequences: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, announcement) in heard {
        let text = |name: &str| announcement[name].as_str().unwrap().to_owned();
        sequences.entry(text("source")).or_default().push(text("sequence"));
    }
    sequences
}

async fn events_and_ends_of_jobs_come_in_their_order_as_cloud_events(t: TestLedger) {
    let site = Site::new(t).await;
    let (mut all, mut ends) = (site.hears().await, site.program.listen(&site.exchange, &["job.*.completed"]).await);
    let running = site.announce().await;
    let delivery = site.t.delivery("d-1", b"{\"secret\":\"of the sender\"}");
    site.t.accept(&delivery).await;
    let job = site.t.complete_next(Some(json!({"rows": 7}))).await;
    let heard = all.hear(2).await;
    let (key, event) = &heard[0];
    assert_eq!(key, "event.github.push");
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["id"], delivery.event.id.to_string());
    assert_eq!((&event["source"], &event["type"]), (&json!("github"), &json!("github.push")));
    assert_eq!((&event["deliveryid"], &event["subject"]), (&json!("d-1"), &json!("refs/heads/main")));
    assert_eq!(event["data"]["repository"], json!({"id": null, "full_name": null}));
    assert!(!event.to_string().contains("of the sender"), "bodies are personal data: {event}");
    let (key, end) = &heard[1];
    assert_eq!(key, "job.noop.completed");
    assert_eq!((&end["type"], &end["source"]), (&json!("nightporter.job.completed"), &json!("nightporter/jobs/noop")));
    assert_eq!((&end["subject"], &end["data"]["job"]), (&json!(job.to_string()), &json!(job.to_string())));
    assert_eq!((&end["data"]["state"], &end["data"]["attempt"]), (&json!("completed"), &json!(1)));
    assert_eq!(end["data"]["event"], event["id"]);
    assert!(end["data"].get("output").is_none(), "{end}");
    let (key, only) = ends.next().await;
    assert_eq!((key.as_str(), &only), ("job.noop.completed", end), "who asks for some gets those");

    // Both are read by the published types.
    for (_, announcement) in &heard {
        let read: schemas::Announcement = serde_json::from_value(announcement.clone()).unwrap();
        assert_eq!(&serde_json::to_value(read).unwrap(), announcement);
    }
    for number in 0..150 {
        site.push(if number % 3 == 0 { "vercel" } else { "github" }, &format!("n-{number}")).await;
    }
    let heard = all.hear(150).await;
    for (source, numbers) in sequences(&heard) {
        assert!(numbers.is_sorted_by(|a, b| a < b), "{source}: {numbers:?}");
    }
    running.end().await;
}

/// What it says of the ledger's announcements is lost, as where a process dies between.
async fn what_was_published_and_not_noted_comes_again_the_same_and_nothing_is_left_out(t: TestLedger) {
    let site = Site::new(t).await;
    let mut ear = site.hears().await;
    let running = site.announce().await;
    site.ledger.break_methods(&["announced"]);
    // At once: of what it is given in parts it would say the first part for ever.
    let three = ["1", "2", "3"].map(|id| site.delivery("github", id));
    site.t.ledger.accept(&three, site.t.now()).await.unwrap();
    let first = ear.hear(3).await;
    let (_, again) = ear.next().await;
    assert_eq!(again, first[0].1, "the same, word for word");
    site.push("github", "4").await;
    site.ledger.mend();
    let fourth = eventually("the fourth comes too", async || {
        let (_, announcement) = ear.next().await;
        Some(announcement).filter(|announcement| announcement["deliveryid"] == "4")
    })
    .await;
    assert!(fourth["sequence"].as_str() > first[2].1["sequence"].as_str());
    eventually("all are noted", async || (site.t.count("announcement").await == 0).then_some(())).await;
    running.end().await;
}

#[tokio::test]
async fn what_happens_while_the_broker_is_away_is_announced_when_it_is_back() {
    let site = Site::new(TestLedger::postgres().await).await;
    let url = server("NIGHTPORTER_TEST_AMQP");
    let proxy = Proxy::to(world::address_of(&url)).await;
    let mut ear = site.hears().await;
    let running = site.announce_by(&world::through(&proxy, &url, "?heartbeat=1"), false).await;
    site.push("github", "before").await;
    ear.hear(1).await;
    proxy.set(Line::Silent);
    for number in 0..10 {
        site.push("github", &format!("{number}")).await;
    }
    let tries = site.ledger.calls("next_announcements");
    eventually("it is tried", async || (site.ledger.calls("next_announcements") > tries + 1).then_some(())).await;
    assert_eq!(site.t.count("announcement").await, 10, "they wait in the ledger");
    assert!(site.t.ledger.oldest_unannounced().await.unwrap().is_some());
    proxy.set(Line::Good);
    let heard = ear.hear(10).await;
    let ids: Vec<_> = heard.iter().map(|(_, announcement)| announcement["deliveryid"].clone()).collect();
    assert_eq!(ids, (0..10).map(|number| json!(format!("{number}"))).collect::<Vec<_>>());
    running.end().await;
}

#[tokio::test]
async fn what_the_broker_does_not_take_for_a_reader_is_announced_again_when_it_does() {
    let site = Site::new(TestLedger::sqlite().await).await;
    let narrow = format!("test-narrow-{}", Uuid::new_v4());
    site.program.declare_narrow(&narrow, &site.exchange).await;
    let running = site.announce().await;
    site.push("github", "1").await;
    eventually("one is taken", async || (site.t.count("announcement").await == 0).then_some(())).await;
    site.push("github", "2").await;
    let tries = site.ledger.calls("next_announcements");
    eventually("it is tried", async || (site.ledger.calls("next_announcements") > tries + 2).then_some(())).await;
    assert_eq!(site.t.count("announcement").await, 1, "the other waits in the ledger");
    for id in ["1", "2"] {
        let taken: Value = serde_json::from_slice(&site.program.take(&narrow).await.data).unwrap();
        assert_eq!(taken["deliveryid"], id);
    }
    running.end().await;
    site.program.delete(&narrow).await;
}

#[tokio::test]
async fn whoever_cannot_reach_the_broker_gives_its_turn_to_one_who_can() {
    let site = Site::new(TestLedger::postgres().await).await;
    let url = server("NIGHTPORTER_TEST_AMQP");
    let proxy = Proxy::to(world::address_of(&url)).await;
    let mut ear = site.hears().await;
    let first = site.announce_by(&world::through(&proxy, &url, "?heartbeat=1"), false).await;
    site.push("github", "1").await;
    ear.hear(1).await;
    let second = programs::connect(&url).unwrap();
    let other = site.announcer(&second, false);
    proxy.set(Line::Silent);
    site.push("github", "2").await;
    // The clock stands still: no turn ends by itself.
    let (_, told) = eventually("the other one announces", async || {
        other.look().await.ok();
        tokio::time::timeout(std::time::Duration::from_millis(200), ear.next()).await.ok()
    })
    .await;
    assert_eq!(told["deliveryid"], "2");
    first.end().await;
    second.close().await;
}

#[tokio::test]
async fn a_job_that_ends_again_after_a_retry_is_announced_again_under_another_id() {
    let site = Site::new(TestLedger::sqlite().await).await;
    let mut ear = site.program.listen(&site.exchange, &["job.#"]).await;
    let running = site.announce().await;
    let job = site.t.enqueue(&[site.t.job()]).await[0];
    let claimed = site.t.claim_one().await;
    assert!(site.t.finish(claimed.id, discarded("no")).await);
    queue::ledger::Desk::retry(&*site.t.ledger, job, &ada(), site.t.now()).await.unwrap();
    site.t.complete_next(None).await;
    let (first, second) = (ear.next().await.1, ear.next().await.1);
    assert_eq!((&first["data"]["state"], &second["data"]["state"]), (&json!("discarded"), &json!("completed")));
    assert_eq!(first["subject"], second["subject"]);
    assert_ne!(first["id"], second["id"], "whoever knows it by its id would leave out its good end");
    running.end().await;
}

#[tokio::test]
async fn of_several_producers_one_announces_and_another_goes_on_when_it_ends() {
    let site = Site::new(TestLedger::postgres().await).await;
    let mut ear = site.hears().await;
    let first = site.announce().await;
    site.push("github", "1").await;
    ear.hear(1).await;
    let second = programs::connect(&server("NIGHTPORTER_TEST_AMQP")).unwrap();
    let waits = site.announcer(&second, false);
    for _ in 0..3 {
        waits.look().await.unwrap();
    }
    site.push("github", "2").await;
    waits.look().await.unwrap();
    ear.hear(1).await;
    first.end().await; // it passes its turn on
    site.push("github", "3").await;
    let (_, third) = eventually("the other one announces", async || {
        waits.look().await.unwrap();
        let next = tokio::time::timeout(std::time::Duration::from_millis(200), ear.next()).await;
        next.ok()
    })
    .await;
    assert_eq!((&third["deliveryid"], &third["sequence"]), (&json!("3"), &json!("00000000000000000003")));
    second.close().await;
}

#[tokio::test]
async fn bodies_and_outputs_are_announced_only_where_that_is_configured() {
    let site = Site::new(TestLedger::sqlite().await).await;
    let mut ear = site.hears().await;
    let running = site.announce_by(&server("NIGHTPORTER_TEST_AMQP"), true).await;
    let delivery = site.t.delivery("d-1", b"{\"said\":true}");
    site.t.accept(&delivery).await;
    let claimed = site.t.claim_one().await;
    assert!(site.t.finish(claimed.id, completed(Some(json!({"rows": 7})))).await);
    let heard = ear.hear(2).await;
    assert_eq!(heard[0].1["data"]["raw"], json!({"said": true}));
    assert_eq!(heard[1].1["data"]["output"], json!({"rows": 7}));
    // What is too large, or is none that can be read, is left out, and does not hold up the others.
    let large = format!("{{\"text\":\"{}\"}}", "x".repeat(300 << 10));
    for (id, body) in [("large", large.as_bytes()), ("text", b"no JSON")] {
        let mut delivery = site.t.delivery(id, body);
        delivery.body =
            StoredBody::new(body, [u8::try_from(body.len() % 251).unwrap(); 32], "text/plain".into(), "{}".into());
        site.t.accept(&delivery).await;
    }
    for (_, announcement) in ear.hear(2).await {
        assert!(announcement["data"].get("raw").is_none(), "{announcement}");
    }
    assert!(running.announcer.look().await.is_ok());
    running.end().await;
}

#[tokio::test]
async fn an_event_of_the_longest_type_is_announced_too() {
    let site = Site::new(TestLedger::sqlite().await).await;
    let mut ear = site.hears().await;
    let running = site.announce().await;
    let delivery = site.t.delivery("d-1", b"{}");
    let kind = format!("standard.{}", "é".repeat(300));
    let event = Event { kind: kind.clone(), ..delivery.event };
    site.t.accept(&ledger::NewDelivery { event, jobs: Vec::new(), ..delivery }).await;
    let (key, announcement) = ear.next().await;
    assert!(key.starts_with("event.standard.é") && key.len() <= 255);
    assert_eq!(announcement["type"], kind);
    running.end().await;
}
