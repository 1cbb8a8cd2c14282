//! `notify` run by a worker, over a ledger in a file. The clock is moved by hand.

use std::time::Duration;

use queue::bell::Bells;
use queue::ledger::{Claim, Operator};
use schemas::api::JobView;
use schemas::runbook::{RunbookConfig, Start};
use schemas::{JobState, Runbook, StepState, Timestamp, TraceContext, WorkerId};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use tests::ledgers::ada;
use tests::receiver::{Receiver, Reply};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::house::{House, PATIENCE, catalog, channels, once, open, work};
use super::{slack, webhook};

fn report(receiver: &str) -> Value {
    let mut channel = slack(receiver);
    channel["on_unknown"] = "report".into();
    channel
}

pub(super) fn operator() -> Operator {
    Operator { actor: "a test".into(), reason: "it was missing".into() }
}

#[tokio::test]
async fn a_message_is_delivered_and_says_so_in_its_output() {
    let house = House::with(slack).await;
    let job = once(&house.queue, house.notify_ops().await, JobState::Completed).await;
    let output = job.output.unwrap();
    assert_eq!((&output["channel"], &output["delivered"]), (&json!("ops"), &json!(true)));
    assert_eq!((&output["tries"], &output["possibly_repeated"]), (&json!(1), &json!(false)));
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
    let id = house.hopeless("many").await;
    house.receiver.requested(1).await;
    house.pass(Duration::from_hours(1)).await;
    let jobs = house.at_rest().await;
    let told = house.receiver.requests()[0].body["data"].clone();
    assert_eq!(told["title"], "noop job discarded");
    assert!(told["text"].as_str().unwrap().contains(&format!("nightporter jobs retry {id}")), "{told}");
    let notices: Vec<&JobView> = jobs.iter().filter(|job| job.kind == "notify").collect();
    assert!(notices.iter().all(|job| job.state == JobState::Completed), "{notices:#?}");
    assert_eq!((notices.len(), house.receiver.requests().len()), (2, 1), "the notice, and the message that it made");
}

#[tokio::test]
async fn a_message_that_fails_for_good_is_told_elsewhere_and_the_notices_own_failure_makes_none() {
    let house = House::with(slack).await;
    house.receiver.then([Reply::Refused(404, "no_service"), Reply::Refused(410, "")]);
    let id = house.notify_ops().await;
    once(&house.queue, id, JobState::Discarded).await;
    house.receiver.requested(2).await;
    house.pass(Duration::from_hours(1)).await;
    let jobs = house.at_rest().await;
    let failed: Vec<&JobView> = jobs.iter().filter(|job| job.state == JobState::Discarded).collect();
    assert_eq!(failed.len(), 2, "the message, and the one that tells of it: {failed:#?}");
    assert!(failed.iter().any(|job| job.reason.as_ref().unwrap().contains("the endpoint is gone for good")));
    assert_eq!(jobs.len(), 3, "and the notice, which is all");
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
