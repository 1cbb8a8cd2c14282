//! Jobs that other programs ask for.

use std::collections::BTreeSet;
use std::sync::Arc;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use producer::{Intake, IntakeConfig};
use queue::broker::programs::{self, Programs};
use queue::ledger::{Ended, JobFilter};
use queue::{Queue, QueueConfig};
use schemas::api::JobView;
use schemas::{JobState, Names};
use serde_json::{Value, json};
use tests::faulty::FaultyLedger;
use tests::ledgers::{TestLedger, ada, discarded};
use tests::porter::eventually;
use tests::program::Program;
use tests::proxy::Proxy;
use tests::{bell_world as world, server};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

on_every_engine![
    a_message_is_one_job_however_often_it_is_sent_and_whatever_becomes_of_it,
    while_the_ledger_is_away_messages_are_kept_and_they_are_done_when_it_is_back,
];

/// A producer that takes messages in, and a program that sends them.
struct Site {
    t: TestLedger,
    ledger: Arc<FaultyLedger>,
    queue: Queue,
    inbox: String,
    program: Program,
    programs: Arc<dyn Programs>,
    stop: CancellationToken,
    intake: JoinHandle<()>,
}

impl Site {
    async fn start(t: TestLedger) -> Self {
        Self::start_by(t, &server("NIGHTPORTER_TEST_AMQP")).await
    }

    /// Takes in what comes by this address.
    async fn start_by(t: TestLedger, url: &str) -> Self {
        let inbox = format!("test-jobs-{}", Uuid::new_v4());
        let ledger = FaultyLedger::before(Arc::clone(&t.ledger));
        let broker = queue::broker::open(&QueueConfig::new("sqlite:none", "in-process").broker).await.unwrap();
        let queue = Queue::with_parts(ledger.clone(), broker, t.clock.clone());
        let programs = programs::connect(url).unwrap();
        let intake = Intake::new(IntakeConfig {
            queue: queue.clone(),
            programs: Arc::clone(&programs),
            inbox: inbox.clone(),
            kinds: BTreeSet::from(["noop".to_owned()]),
            catalog: Arc::new(worker::jobs::registry().catalog(Names::default())),
            config_digest: "test".into(),
        });
        let stop = CancellationToken::new();
        let intake = tokio::spawn(intake.run(stop.clone()));
        Self { t, ledger, queue, inbox, program: Program::connect().await, programs, stop, intake }
    }

    async fn ask(&self, id: &str, message: Value) {
        self.program.ask(&self.inbox, id, &message).await;
    }

    async fn jobs(&self) -> Vec<JobView> {
        self.t.ledger.jobs(&JobFilter { limit: 100, ..JobFilter::default() }).await.unwrap()
    }

    /// Waits until there are so many jobs.
    async fn has_jobs(&self, count: usize) -> Vec<JobView> {
        let has = async || Some(self.jobs().await).filter(|jobs| jobs.len() == count);
        eventually(&format!("there are {count} jobs"), has).await
    }

    fn dead(&self) -> String {
        format!("{}.dead", self.inbox)
    }

    /// Ends it; nothing is left in our hands, and nothing in the queues.
    async fn end(self) {
        let queues = [self.inbox.clone(), self.dead()];
        self.stop.cancel();
        self.intake.await.unwrap();
        self.programs.close().await;
        for queue in queues {
            assert_eq!(self.program.lying_in(&queue).await, 0, "{queue}");
            self.program.delete(&queue).await;
        }
    }
}

fn noop(message: &str) -> Value {
    json!({"kind": "noop", "args": {"message": message}})
}

async fn a_message_is_one_job_however_often_it_is_sent_and_whatever_becomes_of_it(t: TestLedger) {
    let site = Site::start(t).await;
    site.ask("m-1", noop("one")).await;
    let job = site.has_jobs(1).await.remove(0);
    assert_eq!((job.kind.as_str(), &job.args), ("noop", &json!({"message": "one"})));
    let event = site.t.ledger.event(job.event.expect("it is known what it was made for")).await.unwrap().unwrap();
    assert_eq!(event.event.source, format!("message:{}", site.inbox));
    assert_eq!((event.event.kind.as_str(), event.event.delivery_id.as_str()), ("nightporter.job.requested", "id:m-1"));

    // It ends badly, so that it lets go of every key that it has: it is done with nevertheless.
    let claimed = site.t.claim_one().await;
    let end = Ended { attempt: claimed.id, outcome: discarded("no") };
    assert!(site.t.ledger.finish(&[end], site.t.now()).await.unwrap().recorded[0]);
    site.ask("m-1", noop("one")).await;
    let keyed = |id| json!({"kind": "noop", "args": {"message": id}, "key": "the same", "queue": "default"});
    for id in ["m-2", "m-3", "m-2"] {
        site.ask(id, keyed(id)).await;
    }
    site.ask("m-4", noop("last")).await;
    let is_there = async || site.jobs().await.iter().find(|job| job.args == json!({"message": "last"})).map(|_| ());
    eventually("the last one is booked", is_there).await;
    let settled = async || (site.program.lying_in(&site.inbox).await == 0).then_some(());
    eventually("all are taken", settled).await;
    let jobs = site.has_jobs(3).await;
    let state = |message: &str| jobs.iter().find(|job| job.args == json!({"message": message})).map(|job| job.state);
    assert_eq!(state("one"), Some(JobState::Discarded));
    assert_eq!((state("m-2"), state("m-3")), (Some(JobState::Available), None));
    // An operator may do it again, as any other.
    queue::ledger::Desk::retry(&*site.t.ledger, job.id, &ada(), site.t.now()).await.unwrap();
    site.end().await;
}

async fn while_the_ledger_is_away_messages_are_kept_and_they_are_done_when_it_is_back(t: TestLedger) {
    let site = Site::start(t).await;
    site.ask("before", noop("before")).await;
    site.has_jobs(1).await;
    site.ledger.break_methods(&["accept", "time"]);
    for number in 0..20 {
        site.ask(&format!("m-{number}"), noop(&format!("{number}"))).await;
    }
    let back = async || (site.program.lying_in(&site.inbox).await == 20).then_some(());
    eventually("all have gone back to the broker", back).await;
    let tried = site.ledger.calls("accept");
    let asked = site.ledger.calls("time");
    let asks = async || (site.ledger.calls("time") > asked + 3).then_some(());
    eventually("it is asked whether the ledger is back", asks).await;
    assert_eq!(site.ledger.calls("accept"), tried, "a ledger that is away is not offered every message");
    site.ledger.mend();
    site.has_jobs(21).await;
    site.end().await;
}

/// What is sent, with which properties, and what is said of it.
fn wrong() -> Vec<(Vec<u8>, BasicProperties, &'static str)> {
    let with_id = || BasicProperties::default().with_message_id(Uuid::new_v4().to_string().into());
    let text = |value: Value| value.to_string().into_bytes();
    vec![
        (b"not JSON".to_vec(), with_id(), "not a JSON object"),
        (b"{\"kind\": \"noop\", ".to_vec(), with_id(), "cannot be read"),
        (vec![b'{', 0xff], with_id(), "not UTF-8"),
        (text(json!({"kind": "noop", "args": {"message": "x"}, "more": 1})), with_id(), "unknown field `more`"),
        (text(json!({"kind": "nop"})), with_id(), "did you mean `noop`?"),
        (text(json!({"kind": "sql", "args": {}})), with_id(), "cannot be asked for by messages"),
        (text(json!({"kind": "noop", "args": {"mesage": "x"}})), with_id(), "mesage"),
        (text(json!({"kind": "noop", "args": {"message": "x"}, "queue": "databases"})), with_id(), "queue `default`"),
        (text(json!({"kind": "noop", "args": {"message": "x"}, "key": ""})), with_id(), "between 1 and 200"),
        (text(noop("x")), BasicProperties::default(), "neither a `key` nor a message id"),
        (text(noop(&"x".repeat(300 << 10))), with_id(), "262144 are the most"),
        (text(noop("x")), with_id().with_content_encoding("gzip".into()), "content encoding is `gzip`"),
        (format!("{{\"kind\":\"noop\",\"args\":{}1{}}}", "[".repeat(500), "]".repeat(500)).into(), with_id(), "read"),
    ]
}

#[tokio::test]
async fn what_is_wrong_is_laid_aside_as_it_came_with_the_reason_and_holds_up_nothing() {
    let site = Site::start(TestLedger::sqlite().await).await;
    for (body, properties, reason) in wrong() {
        site.program.send(&site.inbox, &body, properties.clone()).await;
        let aside = site.program.take(&site.dead()).await;
        assert_eq!(aside.data, body, "{reason}");
        assert_eq!(aside.properties.message_id(), properties.message_id());
        let said = header(&aside.properties, "x-nightporter-reason");
        assert!(said.contains(reason), "{said}, and not {reason}");
    }
    assert!(site.jobs().await.is_empty());
    site.ask("good", noop("good")).await;
    site.has_jobs(1).await;
    site.end().await;
}

#[tokio::test]
async fn what_is_laid_aside_stays_there_whatever_its_sender_told_the_broker() {
    let site = Site::start(TestLedger::sqlite().await).await;
    site.ask("first", noop("first")).await;
    site.has_jobs(1).await; // by now there is the queue
    let copies = format!("test-copies-{}", Uuid::new_v4());
    site.program.declare(&copies).await;
    let mut headers = FieldTable::default();
    headers.insert("mine".into(), AMQPValue::LongString("kept".into()));
    headers.insert("CC".into(), AMQPValue::FieldArray(vec![AMQPValue::LongString(copies.as_str().into())].into()));
    let properties = BasicProperties::default()
        .with_user_id("guest".into())
        .with_reply_to("some.queue".into())
        .with_expiration("60000".into())
        .with_correlation_id("c-1".into())
        .with_headers(headers);
    site.program.send(&site.inbox, b"wrong", properties).await;
    let aside = site.program.take(&site.dead()).await.properties;
    assert_eq!(header(&aside, "mine"), "kept");
    assert_eq!(aside.correlation_id().as_ref().unwrap().as_str(), "c-1");
    assert!(aside.expiration().is_none(), "it would be gone before anybody looks");
    assert!(aside.user_id().is_none(), "the broker refuses what claims to be from another user");
    assert_eq!(header(&aside, "x-nightporter-user-id"), "guest");
    assert_eq!(header(&aside, "x-nightporter-reply-to"), "some.queue");
    assert_eq!(header(&aside, "x-nightporter-routing-key"), site.inbox);
    assert!(!aside.headers().as_ref().unwrap().inner().contains_key("CC"));
    assert_eq!(site.program.lying_in(&copies).await, 1, "sent on with its CC, it would be copied again");
    // Headers that fill their frame leave no room for ours.
    let mut many = FieldTable::default();
    many.insert("large".into(), AMQPValue::LongString("x".repeat(120 << 10).into()));
    site.program.send(&site.inbox, b"wrong", BasicProperties::default().with_headers(many)).await;
    let aside = site.program.take(&site.dead()).await.properties;
    assert!(header(&aside, "x-nightporter-reason").contains("not a JSON object"));
    assert_eq!(header(&aside, "x-nightporter-headers"), "too large to be kept");
    site.program.delete(&copies).await;
    site.end().await;
}

/// A ledger that is away for days gives every message back again and again; newer brokers put up with 20 times.
#[tokio::test]
async fn however_often_a_good_message_goes_back_it_stays_in_its_queue() {
    let site = Site::start(TestLedger::sqlite().await).await;
    site.ask("first", noop("first")).await;
    site.has_jobs(1).await; // by now there is the queue
    site.stop.cancel();
    site.intake.await.unwrap();
    site.program.ask(&site.inbox, "second", &noop("second")).await;
    for _ in 0..30 {
        site.program.give_back(&site.inbox).await;
    }
    let dead = format!("{}.dead", site.inbox);
    assert_eq!(site.program.lying_in(&dead).await, 0);
    assert_eq!(site.program.take(&site.inbox).await.properties.message_id().as_ref().unwrap().as_str(), "second");
    site.programs.close().await;
    for queue in [&site.inbox, &dead] {
        site.program.delete(queue).await;
    }
}

#[tokio::test]
async fn what_is_wrong_is_laid_aside_though_somebody_deleted_the_queue_for_it() {
    let site = Site::start(TestLedger::sqlite().await).await;
    site.program.send(&site.inbox, b"first", BasicProperties::default()).await;
    assert_eq!(site.program.take(&site.dead()).await.data, b"first");
    site.program.delete(&site.dead()).await;
    // Published to nobody it would be gone: it stays in the inbox until it lies aside.
    site.program.send(&site.inbox, b"second", BasicProperties::default()).await;
    assert_eq!(site.program.take(&site.dead()).await.data, b"second");
    site.end().await;
}

fn header(properties: &BasicProperties, name: &str) -> String {
    match properties.headers().as_ref().and_then(|headers| headers.inner().get(name)) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => panic!("{name} is {other:?}"),
    }
}

#[tokio::test]
async fn messages_are_taken_again_after_the_queue_was_deleted_and_the_connection_was_lost() {
    let url = server("NIGHTPORTER_TEST_AMQP");
    let proxy = Proxy::to(world::address_of(&url)).await;
    let site = Site::start_by(TestLedger::sqlite().await, &world::through(&proxy, &url, "?heartbeat=1")).await;
    site.ask("first", noop("first")).await;
    site.has_jobs(1).await;
    site.program.delete(&site.inbox).await;
    site.ask("second", noop("second")).await;
    site.has_jobs(2).await;
    // Neither side hears that the connection is dead; only heartbeats tell.
    proxy.swallow();
    site.ask("third", noop("third")).await;
    site.has_jobs(3).await;
    assert_eq!(site.queue.ledger().events(10).await.unwrap().len(), 3);
    site.end().await;
}
