//! `notify` run by a worker, over a ledger in a file. The clock is moved by hand.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use queue::bell::Bells;
use queue::ledger::{Claim, JobFilter, Operator};
use queue::{LedgerClock, Queue, QueueConfig};
use schemas::api::JobView;
use schemas::runbook::{RunbookConfig, Start};
use schemas::{Catalog, JobId, JobState, Runbook, StepState, Timestamp, TraceContext, WorkerId};
use secrets::Resolver;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::ledgers::ada;
use tests::receiver::{Receiver, Reply};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use worker::{Worker, WorkerConfig, World, WorldConfig};

use super::{SECRET, config, slack, webhook};

/// Only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_mins(1);

/// A worker at its queue, and a receiver for its messages.
struct House {
    queue: Queue,
    catalog: Catalog,
    receiver: Receiver,
    _working: AbortOnDropHandle<()>,
    _folder: TempDir,
}

impl House {
    /// A house with the channels `ops`, of the given kind, and `oncall`, a signed webhook, told about discarded jobs.
    async fn with(ops: impl Fn(&str) -> Value) -> Self {
        let receiver = Receiver::start().await;
        let channels = channels(ops(&receiver.url), &receiver.url);
        let folder = tempfile::tempdir().unwrap();
        let queue = open(folder.path()).await;
        let working = AbortOnDropHandle::new(tokio::spawn(work(queue.clone(), channels.clone())));
        Self { queue, catalog: catalog(&channels), receiver, _working: working, _folder: folder }
    }

    async fn enqueue(&self, kind: &str, args: Value) -> JobId {
        let job = self.catalog.job(kind, &args, self.queue.clock().now()).unwrap();
        self.queue.enqueue(job).await.unwrap().id()
    }

    async fn notify_ops(&self) -> JobId {
        self.enqueue("notify", json!({"channel": "ops", "text": "hello"})).await
    }

    /// Lets time pass, and makes available what is due then.
    async fn pass(&self, time: Duration) {
        self.queue.clock().advance(time);
        let promoted = self.queue.ledger().promote(500, self.queue.clock().now()).await.unwrap();
        self.queue.ring(promoted.bells);
    }

    /// What the n-th request said, as people read it.
    fn said(&self, index: usize) -> String {
        self.receiver.requests()[index].body["text"].as_str().unwrap_or_default().to_owned()
    }

    async fn jobs(&self) -> Vec<JobView> {
        self.queue.ledger().jobs(&JobFilter { limit: 100, ..JobFilter::default() }).await.unwrap()
    }
}

fn channels(ops: Value, receiver: &str) -> WorldConfig {
    let oncall = json!({"webhook": {"url": format!("{receiver}/oncall"), "secret": SECRET}});
    let channels = [("ops".to_owned(), config(ops)), ("oncall".to_owned(), config(oncall))];
    WorldConfig { channels: channels.into(), ..WorldConfig::default() }
}

fn catalog(world: &WorldConfig) -> Catalog {
    worker::jobs::registry().catalog(world.names())
}

async fn open(folder: &Path) -> Queue {
    let url = format!("sqlite:{}", folder.join("ledger.db").display());
    let queue = Queue::open(&QueueConfig::new(url, "in-process")).await.unwrap();
    let clock = LedgerClock::by_hand(queue.clock().now());
    Queue::with_parts(Arc::clone(queue.ledger()), Arc::clone(queue.broker()), clock)
}

async fn work(queue: Queue, channels: WorldConfig) {
    let registry = Arc::new(worker::jobs::registry());
    let notice = worker::notice::on_discard("oncall", catalog(&channels));
    let world = Arc::new(World::new(channels, Arc::new(Resolver::default()), worker::world::http_client()));
    let config = WorkerConfig { notice: Some(notice), ..WorkerConfig::default() };
    Worker::new(queue, registry, world, config).run(CancellationToken::new()).await;
}

/// The job, once it is in that state.
async fn once(queue: &Queue, job: JobId, state: JobState) -> JobView {
    let mut found = None;
    let look = async {
        loop {
            found = queue.ledger().job(job).await.unwrap();
            match &found {
                Some(job) if job.state == state => return,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let waited = tokio::time::timeout(PATIENCE, look).await;
    assert!(waited.is_ok(), "the job never was {}: {found:#?}", state.as_str());
    found.unwrap()
}

fn report(receiver: &str) -> Value {
    let mut channel = slack(receiver);
    channel["on_unknown"] = "report".into();
    channel
}

fn operator() -> Operator {
    Operator { actor: "a test".into(), reason: "it was missing".into() }
}

#[tokio::test]
async fn a_message_is_delivered_and_says_so_in_its_output() {
    let house = House::with(slack).await;
    let job = once(&house.queue, house.notify_ops().await, JobState::Completed).await;
    let output = json!({"channel": "ops", "delivered": true, "tries": 1, "possibly_repeated": false});
    assert_eq!(job.output, Some(output));
    assert_eq!(house.said(0), "Nightporter\nhello");
}

#[tokio::test]
async fn at_429_nothing_is_lost_nothing_is_marked_and_the_asked_for_time_is_waited() {
    for channel in [slack as fn(&str) -> Value, report] {
        let house = House::with(channel).await;
        house.receiver.then([Reply::TooMany("37"), Reply::TooMany("37")]);
        let id = house.notify_ops().await;
        for count in 1..3 {
            house.receiver.requested(count).await;
            let job = once(&house.queue, id, JobState::Retryable).await;
            let wait = job.run_at.unwrap() - house.queue.clock().now();
            assert!(wait.num_seconds() >= 37, "{wait}");
            house.pass(Duration::from_hours(1)).await;
        }
        let job = once(&house.queue, id, JobState::Completed).await;
        assert_eq!(job.output.unwrap()["tries"], 3);
        assert_eq!(house.said(2), "Nightporter\nhello");
    }
}

#[tokio::test]
async fn after_a_lost_answer_slack_gets_it_again_with_a_mark_until_it_is_taken() {
    let house = House::with(slack).await;
    house.receiver.then([Reply::Lost, Reply::TooMany("1"), Reply::Taken]);
    let id = house.notify_ops().await;
    for count in 1..3 {
        house.receiver.requested(count).await;
        once(&house.queue, id, JobState::Retryable).await;
        house.pass(Duration::from_hours(1)).await;
    }
    let job = once(&house.queue, id, JobState::Completed).await;
    assert_eq!(job.output.unwrap()["possibly_repeated"], true);
    assert_eq!(house.said(0), "Nightporter\nhello");
    assert_eq!(house.said(1), "(possibly repeated) Nightporter\nhello");
    assert_eq!(
        house.said(2),
        "(possibly repeated) Nightporter\nhello",
        "the refused repeat does not take the doubt away"
    );
}

#[tokio::test]
async fn with_report_a_doubtful_message_is_not_sent_again_but_when_a_person_retries_it() {
    let house = House::with(report).await;
    house.receiver.then([Reply::Lost]);
    let id = house.notify_ops().await;
    once(&house.queue, id, JobState::Retryable).await;
    house.pass(Duration::from_hours(1)).await;
    let job = once(&house.queue, id, JobState::Discarded).await;
    let reason = job.reason.unwrap();
    assert!(
        reason.starts_with("notifying the channel `ops`: an earlier attempt ended while it was sending"),
        "{reason}"
    );
    assert!(reason.ends_with(&format!("nightporter jobs retry {id}")), "{reason}");
    house.receiver.requested(2).await; // the notice about it
    assert_eq!(house.receiver.requests()[1].path, "/oncall");
    house.queue.retry(id, &operator()).await.unwrap();
    once(&house.queue, id, JobState::Completed).await;
    assert_eq!(house.said(2), "(possibly repeated) Nightporter\nhello");
}

#[tokio::test]
async fn a_receiver_that_dedupes_acts_once_whatever_happens_on_the_way() {
    let house = House::with(webhook).await;
    house.receiver.then([Reply::Lost, Reply::Refused(503, ""), Reply::Lost]);
    let id = house.notify_ops().await;
    for count in 1..4 {
        house.receiver.requested(count).await;
        once(&house.queue, id, JobState::Retryable).await;
        house.pass(Duration::from_hours(1)).await;
    }
    once(&house.queue, id, JobState::Completed).await;
    assert_eq!(house.receiver.requests().len(), 4);
    assert_eq!(house.receiver.effects(), 1);
}

/// Kills a process that has sent its message and waits for the answer, and lets the next one go on.
async fn killed_while_sending(ops: impl Fn(&str) -> Value) -> (Receiver, JobView) {
    let receiver = Receiver::start().await;
    receiver.then([Reply::Silence]);
    let channels = channels(ops(&receiver.url), &receiver.url);
    let folder = tempfile::tempdir().unwrap();
    let job = catalog(&channels).job("notify", &json!({"channel": "ops", "text": "hello"}), Timestamp::UNIX_EPOCH);
    let job = job.unwrap();
    let id = job.id;
    let (path, world, killed) = (folder.path().to_owned(), channels.clone(), CancellationToken::new());
    let kill = killed.clone();
    // A runtime of its own, so that all its tasks end where they stand.
    let first_life = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(killed.run_until_cancelled(async {
            let queue = open(&path).await;
            queue.enqueue(job).await.unwrap();
            work(queue, world).await;
        }));
    });
    receiver.requested(1).await;
    kill.cancel();
    tokio::task::spawn_blocking(move || first_life.join().unwrap()).await.unwrap();

    let queue = open(folder.path()).await;
    let mut bells = Bells::default();
    bells.add("notify", id, &TraceContext::default());
    queue.ring(bells);
    let _working = AbortOnDropHandle::new(tokio::spawn(work(queue.clone(), channels)));
    let ended = async {
        loop {
            let job = queue.ledger().job(id).await.unwrap().unwrap();
            if job.state.is_finished() {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let job = tokio::time::timeout(PATIENCE, ended).await.expect("the job ends");
    (receiver, job)
}

#[tokio::test]
async fn killed_while_sending_to_slack_it_is_sent_again_with_a_mark() {
    let (receiver, job) = killed_while_sending(slack).await;
    assert_eq!(job.state, JobState::Completed);
    assert_eq!(job.attempts.len(), 2);
    assert_eq!(receiver.requests()[1].body["text"], "(possibly repeated) Nightporter\nhello");
}

#[tokio::test]
async fn killed_while_sending_to_slack_with_report_it_is_told_and_not_sent_again() {
    let (receiver, job) = killed_while_sending(report).await;
    assert_eq!(job.state, JobState::Discarded);
    assert!(receiver.requests().iter().skip(1).all(|request| request.path == "/oncall"));
}

#[tokio::test]
async fn killed_while_sending_a_signed_webhook_the_receiver_acts_once() {
    let (receiver, job) = killed_while_sending(webhook).await;
    assert_eq!(job.state, JobState::Completed);
    assert_eq!(receiver.requests().len(), 2);
    assert_eq!(receiver.effects(), 1);
    assert_eq!(receiver.requests()[0].raw, receiver.requests()[1].raw);
}

#[tokio::test]
async fn killed_after_the_message_was_noted_as_delivered_it_is_not_sent_again() {
    let receiver = Receiver::start().await;
    let channels = channels(slack(&receiver.url), &receiver.url);
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path()).await;
    let now = queue.clock().now();
    let job = catalog(&channels).job("notify", &json!({"channel": "ops", "text": "hello"}), now).unwrap();
    let id = queue.enqueue(job).await.unwrap().id();
    let claim = Claim {
        queue: "notify".into(),
        kinds: vec!["notify".into()],
        limit: 1,
        worker: WorkerId::at(now),
        lease: Duration::from_secs(30),
    };
    let attempt = queue.ledger().claim(&claim, now).await.unwrap()[0].id;
    let step = queue.ledger().start_step(attempt, "send 1", now).await.unwrap();
    assert!(matches!(step, StepState::Fresh));
    queue.ledger().finish_step(attempt, "send 1", Some(&to_raw_value("delivered").unwrap()), now).await.unwrap();
    let rescued = queue.ledger().rescue(Timestamp::MAX_UTC, 10, now).await.unwrap();
    queue.ring(rescued.bells);
    let _working = AbortOnDropHandle::new(tokio::spawn(work(queue.clone(), channels)));
    let job = once(&queue, id, JobState::Completed).await;
    assert_eq!(job.output.unwrap()["delivered"], true);
    assert_eq!(receiver.requests().len(), 0);
}

#[tokio::test]
async fn a_discarded_job_makes_exactly_one_notice() {
    let house = House::with(slack).await;
    let mut job = house.catalog.job("noop", &json!({}), house.queue.clock().now()).unwrap();
    job.args = to_raw_value(&json!({"steps": "many"})).unwrap();
    let id = house.queue.enqueue(job).await.unwrap().id();
    house.receiver.requested(1).await;
    let notice = house.jobs().await.into_iter().find(|job| job.kind == "notify").unwrap();
    once(&house.queue, notice.id, JobState::Completed).await;
    let told = house.receiver.requests()[0].body["data"].clone();
    assert_eq!(told["title"], "noop job discarded");
    assert!(told["text"].as_str().unwrap().contains(&format!("nightporter jobs retry {id}")), "{told}");
    assert_eq!((house.jobs().await.len(), house.receiver.requests().len()), (2, 1));
}

#[tokio::test]
async fn a_message_that_fails_for_good_is_told_elsewhere_and_the_notices_own_failure_makes_none() {
    let house = House::with(slack).await;
    house.receiver.then([Reply::Refused(404, "no_service"), Reply::Refused(410, "")]);
    let id = house.notify_ops().await;
    once(&house.queue, id, JobState::Discarded).await;
    house.receiver.requested(2).await;
    let notice = house.jobs().await.into_iter().find(|job| job.id != id).unwrap();
    let notice = once(&house.queue, notice.id, JobState::Discarded).await;
    assert!(notice.reason.unwrap().contains("the endpoint is gone for good"));
    assert_eq!(house.jobs().await.len(), 2, "the message and one notice, which is all");
    assert_eq!(house.receiver.requests().len(), 2);
}

#[tokio::test]
async fn the_end_of_a_run_is_told_with_each_of_its_jobs() {
    let house = House::with(slack).await;
    let runbook: RunbookConfig = serde_json::from_value(json!({"jobs": {
        "build": {"job": "noop", "with": {"message": "built"}},
        "extra": {"job": "noop", "needs": ["build"], "if": "jobs.build.message == 'other'"},
        "tell": {
            "job": "notify", "needs": ["build", "extra"], "if": "always()",
            "with": {"channel": "ops", "template": "deploy"},
        },
    }}))
    .unwrap();
    let runbook = Runbook::build("deploy", &runbook, &house.catalog).unwrap();
    let start = Start { actor: Some("a test".into()), ..Start::default() };
    let run = runbook.plan(&serde_json::Map::new(), start, &house.catalog, house.queue.clock().now()).unwrap();
    house.queue.start_run(&run, &ada()).await.unwrap();
    house.receiver.requested(1).await;
    let said = house.said(0);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "deploy completed");
    assert!(lines[1].starts_with("build: completed in "), "{said}");
    assert_eq!(lines[2], "extra: skipped (`jobs.build.message == 'other'` is false)");
    assert_eq!(lines.len(), 3, "{said}");
}
