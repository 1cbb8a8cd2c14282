//! One trace, from the delivery's request to each outside call: the built binary, a real collector, both shapes. And no
//! secret in it.

use chrono::Utc;
use producer::source_type;
use producer::sources::signed_sample;
use sqlx::{Connection, Executor, PgConnection};
use tests::binary::House;
use tests::otlp::{Collector, Span, ancestry, named, the, tree};
use tests::receiver::Receiver;
use tests::s3::{Bucket, CREDENTIALS};
use uuid::Uuid;

const DELIVERY: &str = "POST /webhooks/{source}";
const FORGED: &str = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-01";

/// Secrets that are in the configuration: none of them may be anywhere else.
const SOURCE_SECRET: &str = "canary-of-the-source";
const TOKEN: &str = "canary-of-the-operators";
const TEAM_SECRET: &str = "whsec_Y2FuYXJ5LW9mLXRoZS10ZWFtLWNhbmFyeQ==";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_porter_traces_a_delivery_to_each_outside_call() {
    let (collector, team) = (Collector::start().await, Receiver::start().await);
    let house = House::new(&configuration(
        "sqlite:ledger.db",
        "in-process",
        "sqlite:shop.db",
        "file:backups",
        &collector,
        &team,
    ));
    std::fs::create_dir(house.path("backups")).unwrap();
    let mut shop =
        sqlx::SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", house.path("shop.db").display())).await.unwrap();
    shop.execute("create table customers (id integer primary key)").await.unwrap();
    let up = house.start("up");
    deliver(&up.server()).await;
    team.requested(1).await;
    assert!(up.stop().success());
    let spans = all_spans(&collector).await;
    assert_one_trace(&spans, &["copy sqlite", "POST"]);
    assert_no_secret(&spans, &house, &["up"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_distributed_porter_traces_a_delivery_through_the_broker_to_each_outside_call() {
    let (collector, team) = (Collector::start().await, Receiver::start().await);
    let (ledger, shop) = (tests::postgres::fresh_database().await, tests::postgres::fresh_database().await);
    PgConnection::connect(&shop).await.unwrap().execute("create table customers (id integer)").await.unwrap();
    let bucket = Bucket::on_server().await;
    let store = format!("s3://{}?region=us-east-1&endpoint={}", bucket.name, bucket.endpoint);
    let broker = tests::server("NIGHTPORTER_TEST_AMQP");
    let house = House::new(&configuration(&ledger, &broker, &shop, &store, &collector, &team));
    let (serve, work) = (house.start("serve"), house.start("work"));
    deliver(&serve.server()).await;
    team.requested(1).await;
    assert!(work.stop().success() && serve.stop().success());
    let spans = all_spans(&collector).await;
    assert_one_trace(&spans, &["pg_dump", "S3/PutObject", "POST"]);
    let process = |name: &str| the(&spans, name).resource["service.instance.id"].clone();
    assert_ne!(process(DELIVERY), process("process backup"), "the trace went from one process to another");
    assert_no_secret(&spans, &house, &["serve", "work"]);
}

fn configuration(
    ledger: &str,
    broker: &str,
    shop: &str,
    store: &str,
    collector: &Collector,
    team: &Receiver,
) -> String {
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
[operators]
listen = "127.0.0.1:0"
token = "{TOKEN}"
[queue]
ledger = "{ledger}"
broker = "{broker}"
[telemetry]
otlp = "{}"
level = "debug"
[sources.vercel]
secrets = ["{SOURCE_SECRET}"]
[databases.shop]
url = "{shop}"
[stores.backups]
url = "{store}"
credentials = "{CREDENTIALS}"
[channels.team]
webhook = {{ url = "{}/", secret = "{TEAM_SECRET}" }}
[runbooks.deploy.jobs]
backup = {{ job = "backup", with = {{ database = "shop", store = "backups" }} }}
notify = {{ job = "notify", needs = ["backup"], with = {{ channel = "team", template = "deploy" }} }}
[[routes]]
on = "vercel.deployment.succeeded"
run = {{ runbook = "deploy" }}
"#,
        collector.url, team.url
    )
    .replace(if store.starts_with("file:") { "credentials = \"test-key:test-secret\"\n" } else { "\0" }, "")
}

/// Sends a signed delivery, with a trace of the caller's making.
async fn deliver(door: &str) {
    let vercel = source_type("vercel").unwrap();
    let secret = SOURCE_SECRET.into();
    let sample = signed_sample(vercel, "deployment.succeeded", &[], &secret, Uuid::new_v4(), Utc::now()).unwrap();
    let http = worker::world::http_client();
    let request = http.post(format!("{door}/webhooks/vercel")).headers(sample.headers).body(sample.body);
    let answer = request.header("traceparent", FORGED).send().await.unwrap();
    assert_eq!(answer.status(), 202);
}

/// Everything: the processes have stopped, and sent what they had.
async fn all_spans(collector: &Collector) -> Vec<Span> {
    let done = |spans: &[Span]| !named(spans, DELIVERY).is_empty() && !named(spans, "process notify").is_empty();
    collector.wait_for("the delivery and its last attempt", done).await
}

fn assert_one_trace(spans: &[Span], outside: &[&str]) {
    let delivery = the(spans, DELIVERY);
    assert_eq!((delivery.kind, &delivery.parent_id), ("server", &None), "the delivery is the root");
    assert!(!FORGED.contains(&delivery.trace_id), "a caller does not choose our trace");
    for name in ["process backup", "process notify", "publish databases", "publish notify"] {
        for span in named(spans, name) {
            assert_eq!(ancestry(spans, span), [name, DELIVERY], "{}", tree(spans));
        }
        assert!(!named(spans, name).is_empty(), "no span is named {name}:\n{}", tree(spans));
    }
    for name in outside {
        let found = named(spans, name);
        assert!(!found.is_empty(), "no span is named {name}:\n{}", tree(spans));
        for span in found {
            assert_eq!(span.kind, "client");
            let ancestry = ancestry(spans, span);
            let [_, attempt, root] = &ancestry[..] else { panic!("{ancestry:?}\n{}", tree(spans)) };
            assert!(attempt.starts_with("process ") && root == DELIVERY, "{ancestry:?}");
        }
    }
}

/// No secret in any span, log or row. Configuration files are where they belong.
fn assert_no_secret(spans: &[Span], house: &House, logs: &[&str]) {
    let mut told = format!("{spans:?}");
    for log in logs {
        told += &std::fs::read_to_string(house.path(&format!("{log}.log"))).unwrap();
    }
    if let Ok(ledger) = std::fs::read(house.path("ledger.db")) {
        told += &String::from_utf8_lossy(&ledger);
    }
    assert!(told.contains("process backup"), "there is something to search");
    for secret in [SOURCE_SECRET, TOKEN, TEAM_SECRET, "test-secret"] {
        assert!(!told.contains(secret), "`{secret}` is told");
    }
}
