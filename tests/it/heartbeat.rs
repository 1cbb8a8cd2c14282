//! The sign of life: sent while all is well, and otherwise the reason.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use queue::{LedgerClock, Queue, QueueConfig};
use secrets::Resolver;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::faulty::FaultyLedger;
use tests::ledgers::new_job;
use tests::receiver::{Receiver, Reply, nowhere};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use worker::heartbeat::{Heartbeat, Unheard};

/// As a real address holds its secret.
const CANARY: &str = "T0CANARY-B0CANARY";

struct House {
    queue: Queue,
    faults: Arc<FaultyLedger>,
    _folder: TempDir,
}

async fn house() -> House {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("ledger.db").display());
    let queue = Queue::open(&QueueConfig::new(url, "in-process")).await.unwrap();
    let faults = FaultyLedger::before(Arc::clone(queue.ledger()));
    let clock = LedgerClock::by_hand(queue.clock().now());
    let queue = Queue::with_parts(faults.clone(), Arc::clone(queue.broker()), clock);
    House { queue, faults, _folder: folder }
}

fn heartbeat(house: &House, url: &str, more: Value) -> Heartbeat {
    let mut config = json!({"url": format!("{url}/{CANARY}/")});
    config.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
    let config = serde_json::from_value(config).unwrap();
    Heartbeat::new(config, house.queue.clone(), Arc::new(Resolver::default()), worker::world::http_client())
}

fn paths(receiver: &Receiver) -> Vec<String> {
    receiver.requests().into_iter().map(|request| request.path.replace(CANARY, "check")).collect()
}

#[tokio::test]
async fn while_all_is_well_the_switch_hears_so_and_otherwise_why_not() {
    let (house, receiver) = (house().await, Receiver::start().await);
    let healthchecks = heartbeat(&house, &receiver.url, json!({}));
    healthchecks.beat().await.unwrap();
    let job = new_job("noop", "{}", house.queue.clock().now());
    house.queue.enqueue(job).await.unwrap();
    house.queue.clock().advance(Duration::from_mins(15));
    healthchecks.beat().await.unwrap();
    house.queue.clock().advance(Duration::from_mins(1));
    healthchecks.beat().await.unwrap();
    assert_eq!(paths(&receiver), ["/check/", "/check/", "/check/fail"]);
    let reason = receiver.requests()[2].raw.clone();
    assert_eq!(&reason[..], b"the queue `default` is stuck: a job has waited for 16 min");
}

#[tokio::test]
async fn a_ledger_that_does_not_answer_is_not_well() {
    let (house, receiver) = (house().await, Receiver::start().await);
    let sentry = heartbeat(&house, &receiver.url, json!({"service": "sentry"}));
    sentry.beat().await.unwrap();
    house.faults.break_methods(&["queues"]);
    sentry.beat().await.unwrap();
    let queries: Vec<String> = receiver.requests().into_iter().map(|request| request.query).collect();
    assert_eq!(queries, ["status=ok", "status=error"]);
}

#[tokio::test]
async fn what_the_switch_did_not_hear_is_said_without_its_address() {
    let (house, receiver) = (house().await, Receiver::start().await);
    receiver.then([Reply::Refused(404, ""), Reply::Refused(200, "OK (not found)"), Reply::Lost, Reply::TooMany("1")]);
    let healthchecks = heartbeat(&house, &receiver.url, json!({}));
    let mut unheard = Vec::new();
    for _ in 0..4 {
        unheard.push(healthchecks.beat().await.unwrap_err());
    }
    unheard.push(heartbeat(&house, &nowhere(), json!({})).beat().await.unwrap_err());
    assert!(matches!(
        unheard[..],
        [Unheard::Refused(404), Unheard::Ignored, Unheard::NoAnswer(_), Unheard::Refused(429), Unheard::NoAnswer(_)]
    ));
    assert!(!format!("{unheard:?}").contains(CANARY), "{unheard:?}");
}

#[tokio::test]
async fn one_that_fails_stops_nothing_and_the_process_ends_without_waiting_for_an_answer() {
    let (house, receiver) = (house().await, Receiver::start().await);
    receiver.then([Reply::Refused(500, ""), Reply::Lost, Reply::Silence]);
    let config = json!({"every": "1s"});
    let stop = CancellationToken::new();
    let beating = tokio::spawn(heartbeat(&house, &receiver.url, config).run(stop.clone()));
    receiver.requested(3).await;
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), beating).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn of_an_answer_without_end_only_the_beginning_is_read() {
    let (house, sent) = (house().await, Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&sent);
    let endless = move || {
        let count = Arc::clone(&count);
        let piece = move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 1024]))
        };
        async move { Body::from_stream(futures_util::stream::iter(std::iter::repeat_with(piece))) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(endless);
    let _serving = AbortOnDropHandle::new(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
    heartbeat(&house, &url, json!({})).beat().await.unwrap();
    // What lies in the sockets between the two was sent as well.
    assert!(sent.load(Ordering::Relaxed) < 50_000, "{} KiB were read", sent.load(Ordering::Relaxed));
}
